//! ExecSync: a command with its output, for probes and hooks.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use orlop_cri::v1;
use orlop_shim::protocol::{ExecProcess, Request, Response};

use crate::error::CriError;
use crate::runtime::Runtime;

/// Beyond the command's own time: starting it, draining its output.
const EXEC_PATIENCE: Duration = Duration::from_secs(10);
/// A command without a limit is still not waited for longer than a day.
const EXEC_LIMIT_SECONDS: u64 = 24 * 3600;

impl Runtime {
    /// The verb. `timeout` in seconds; 0 is none.
    pub(crate) async fn exec_sync(
        self: &Arc<Self>,
        id: &str,
        command: Vec<String>,
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, CriError> {
        if command.is_empty() {
            return Err(CriError::Invalid("no command to run".to_owned()));
        }
        let container = self.running(id)?;
        let seconds = timeout.max(0).unsigned_abs().min(EXEC_LIMIT_SECONDS);
        let process =
            ExecProcess { args: command, terminal: false, stdin: false, stdout: true, stderr: true };
        let request = Request::ExecSync { id: container.id.clone(), process, timeout_millis: seconds * 1000 };
        let limit = if seconds == 0 { EXEC_LIMIT_SECONDS } else { seconds };
        let deadline = Duration::from_secs(limit) + EXEC_PATIENCE;
        let answer = self
            .shim(&container.sandbox_id)
            .call(&request, deadline)
            .await
            .map_err(|error| error.to_cri("failed to run the command", &container.id))?;
        let Response::ExecSync { stdout, stderr, exit, timed_out } = answer else {
            return Err(CriError::Failed {
                act: "failed to run the command".to_owned(),
                cause: "the pod's shim answered out of protocol".into(),
            });
        };
        if timed_out {
            return Err(CriError::Timeout(format!(
                "failed to exec in container: timeout {seconds}s exceeded"
            )));
        }
        Ok(v1::ExecSyncResponse { stdout: decode(&stdout)?, stderr: decode(&stderr)?, exit_code: exit.code })
    }
}

fn decode(text: &str) -> Result<Vec<u8>, CriError> {
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| CriError::failed("failed to read the command's output", error))
}
