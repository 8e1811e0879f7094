//! Errors of the CRI verbs and the gRPC codes that a kubelet decides by.

use std::sync::Arc;

/// Why a verb failed. Cloneable: callers that joined one flight share its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CriError {
    /// The object does not exist.
    #[error("{kind} {id:?} not found")]
    NotFound {
        /// `sandbox`, `container` or `image`.
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
    /// An image that is nowhere; the text says where it was looked for.
    #[error("{0}")]
    NoImage(String),
    /// The request makes no sense: retrying it unchanged is useless.
    #[error("{0}")]
    Invalid(String),
    /// Not possible in the object's state.
    #[error("{0}")]
    WrongState(String),
    /// The name belongs to another object.
    #[error("{0}")]
    AlreadyExists(String),
    /// Something needed is not there yet.
    #[error("{0}")]
    Unavailable(String),
    /// A deadline passed.
    #[error("{0}")]
    Timeout(String),
    /// This runtime does not do that.
    #[error("{0}")]
    Unimplemented(String),
    /// Everything else; the text carries the causes.
    #[error("{act}: {cause}")]
    Failed {
        /// The act with its object.
        act: String,
        /// The causes, outermost first.
        cause: Arc<str>,
    },
}

impl CriError {
    /// An act that failed, with all causes of `error` in the text.
    pub fn failed(act: impl Into<String>, error: impl std::error::Error) -> Self {
        Self::Failed { act: act.into(), cause: chain(&error).into() }
    }

    /// A container that is unknown.
    pub fn no_container(id: &str) -> Self {
        Self::NotFound { kind: "container", id: id.to_owned() }
    }

    /// A sandbox that is unknown.
    pub fn no_sandbox(id: &str) -> Self {
        Self::NotFound { kind: "sandbox", id: id.to_owned() }
    }
}

/// Of an error's text.
const MESSAGE_LIMIT_BYTES: usize = 2048;

impl From<CriError> for tonic::Status {
    fn from(error: CriError) -> Self {
        let code = match &error {
            CriError::NotFound { .. } | CriError::NoImage(_) => tonic::Code::NotFound,
            CriError::Invalid(_) => tonic::Code::InvalidArgument,
            CriError::WrongState(_) => tonic::Code::FailedPrecondition,
            CriError::AlreadyExists(_) => tonic::Code::AlreadyExists,
            CriError::Unavailable(_) => tonic::Code::Unavailable,
            CriError::Timeout(_) => tonic::Code::DeadlineExceeded,
            CriError::Unimplemented(_) => tonic::Code::Unimplemented,
            CriError::Failed { .. } => tonic::Code::Unknown,
        };
        tonic::Status::new(code, shorten(error.to_string()))
    }
}

/// Its beginning and its end: a message is a header, and one that is too long ends the connection for every other call.
fn shorten(text: String) -> String {
    if text.len() <= MESSAGE_LIMIT_BYTES {
        return text;
    }
    let half = MESSAGE_LIMIT_BYTES / 2;
    let start = text.floor_char_boundary(half);
    let end = text.ceil_char_boundary(text.len() - half);
    format!("{} […] {}", &text[..start], &text[end..])
}

/// The error and its sources, separated by colons, without saying one thing twice.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
