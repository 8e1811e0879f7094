//! How a session ends, as `metav1.Status` (remote command protocol v4 and v5) or as text (older ones). Pure.

use serde_json::json;

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Exit code 0, or an attach that is over.
    Success,
    /// Another exit code.
    ExitCode(i32),
    /// It could not be run, or broke.
    Failed(String),
}

impl Outcome {
    /// From an exec's exit code.
    pub(super) fn of_exit(code: i32) -> Self {
        if code == 0 { Self::Success } else { Self::ExitCode(code) }
    }

    /// For the error channel of v4 and v5.
    pub(super) fn status(&self) -> String {
        let value = match self {
            Self::Success => json!({ "metadata": {}, "status": "Success" }),
            Self::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": { "causes": [{ "message": message }] },
                "code": 500,
            }),
        };
        value.to_string()
    }

    /// For the error channel of older protocols: empty when all went well.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => format!("command terminated with exit code {code}"),
            Self::Failed(message) => message.clone(),
        }
    }
}
