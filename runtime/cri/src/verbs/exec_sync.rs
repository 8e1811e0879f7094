//! ExecSync: a command with its output, for probes and hooks.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use orlop_cri::v1;
use orlop_shim::protocol::{ExecEnd, ExecProcess, Request, Response};

use super::exec_output::{Output, OutputRoom, Stream};
use crate::error::CriError;
use crate::runtime::Runtime;
use crate::shim::{Frame, Session, ShimClient, ShimError};

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
        let request = Request::ExecSync {
            id: container.id.clone(),
            process,
            timeout_millis: seconds * 1000,
            stream: true,
        };
        let limit = if seconds == 0 { EXEC_LIMIT_SECONDS } else { seconds };
        let deadline = Duration::from_secs(limit) + EXEC_PATIENCE;
        let shim = self.shim(&container.sandbox_id);
        let ran = tokio::time::timeout(deadline, run(&shim, &request, &self.exec_output, deadline))
            .await
            .unwrap_or(Err(ShimError::Timeout(deadline)))
            .map_err(|error| error.to_cri("failed to run the command", &container.id))?;
        if ran.cut > 0 {
            tracing::warn!(container = %container.id, bytes = ran.cut, "output of a command was discarded: it is too long");
        }
        if ran.timed_out {
            return Err(CriError::Timeout(format!(
                "failed to exec in container: timeout {seconds}s exceeded"
            )));
        }
        Ok(ran.response)
    }
}

/// A command that ended.
struct Ran {
    response: v1::ExecSyncResponse,
    timed_out: bool,
    /// Bytes of output that were discarded.
    cut: u64,
}

async fn run(
    shim: &ShimClient,
    request: &Request,
    room: &OutputRoom,
    deadline: Duration,
) -> Result<Ran, ShimError> {
    let mut session = match shim.begin(request, deadline).await? {
        (Response::Ok, stream) => Session::new(stream),
        // A shim that is older than the streams.
        (Response::ExecSync { stdout, stderr, exit, timed_out }, _) => {
            let response = v1::ExecSyncResponse {
                stdout: decode(&stdout)?,
                stderr: decode(&stderr)?,
                exit_code: exit.code,
            };
            return Ok(Ran { response, timed_out, cut: 0 });
        }
        (other, _) => return Err(ShimError::Protocol(format!("unexpected {other:?}"))),
    };
    let mut output = Output::new(room);
    loop {
        match session.reader.next().await.map_err(ShimError::Broken)? {
            Some(Frame::Stdout(data)) => output.push(Stream::Stdout, &data).await,
            Some(Frame::Stderr(data)) => output.push(Stream::Stderr, &data).await,
            Some(Frame::Exit(ExecEnd { exit, timed_out })) => {
                let Output { stdout, stderr, cut, .. } = output;
                let response = v1::ExecSyncResponse { stdout, stderr, exit_code: exit.code };
                return Ok(Ran { response, timed_out, cut });
            }
            Some(Frame::Failed(reason)) => return Err(ShimError::Protocol(reason)),
            None => return Err(ShimError::Broken(std::io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

fn decode(text: &str) -> Result<Vec<u8>, ShimError> {
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| ShimError::Protocol(format!("the command's output is unreadable: {error}")))
}
