//! The bridge between a client of exec or attach, whatever it speaks, and the shim's session.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use orlop_shim::protocol::{Request, TerminalSize};
use tokio::sync::mpsc;

use super::Wish;
use super::status::Outcome;
use super::streamer::Streamer;
use crate::error::chain;
use crate::shim::{Frame, Session, SessionWriter};

/// Starting a process in a container on a loaded machine.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// Messages of one client on their way to the shim; a message is as long as its protocol allows.
pub(super) const INPUT_LIMIT: usize = 2;

/// What a client sends. The channel's end is the client's: it went away.
#[derive(Debug)]
pub(super) enum Input {
    /// Standard input.
    Stdin(Bytes),
    /// No more of it.
    CloseStdin,
    /// The terminal's new size.
    Resize(TerminalSize),
}

/// Where a client's output goes.
#[async_trait::async_trait]
pub(super) trait Output: Send {
    /// Standard output.
    async fn stdout(&mut self, data: Bytes) -> io::Result<()>;
    /// Standard error.
    async fn stderr(&mut self, data: Bytes) -> io::Result<()>;
    /// The end of the session.
    async fn end(&mut self, outcome: &Outcome) -> io::Result<()>;
}

/// Runs a session to its end.
pub(super) async fn bridge(
    streamer: &Streamer,
    wish: &Wish,
    input: mpsc::Receiver<Input>,
    output: &mut dyn Output,
) {
    let started = Instant::now();
    let (outcome, container) = match wish {
        Wish::Exec { sandbox_id, container_id, process } => {
            let request = Request::Exec { id: container_id.clone(), process: process.clone() };
            (session(streamer, sandbox_id, &request, input, output).await, container_id)
        }
        Wish::Attach { sandbox_id, container_id, process } => {
            let request = Request::Attach {
                id: container_id.clone(),
                stdin: process.stdin,
                stdout: process.stdout,
                stderr: process.stderr,
            };
            // The process' own exit code is the container's affair, not the client's.
            let outcome =
                session(streamer, sandbox_id, &request, input, output).await.map(|outcome| match outcome {
                    Outcome::ExitCode(_) => Outcome::Success,
                    other => other,
                });
            (outcome, container_id)
        }
        Wish::PortForward { .. } => return,
    };
    let Some(outcome) = outcome else {
        tracing::info!(
            kind = wish.kind(),
            container,
            seconds = started.elapsed().as_secs(),
            "the client left its session"
        );
        return;
    };
    tracing::info!(
        kind = wish.kind(),
        container,
        seconds = started.elapsed().as_secs(),
        ?outcome,
        "session ended"
    );
    if let Err(error) = output.end(&outcome).await {
        tracing::debug!(%error, "the client did not hear how its session ended");
    }
}

/// `None` when the client went away first.
async fn session(
    streamer: &Streamer,
    sandbox_id: &str,
    request: &Request,
    input: mpsc::Receiver<Input>,
    output: &mut dyn Output,
) -> Option<Outcome> {
    let Session { mut reader, writer } = match streamer.shim(sandbox_id).open(request, OPEN_DEADLINE).await {
        Ok(stream) => Session::new(stream),
        Err(error) => return Some(Outcome::Failed(chain(&error))),
    };
    let pump = async {
        loop {
            let written = match reader.next().await {
                Ok(Some(Frame::Stdout(data))) => output.stdout(data).await,
                Ok(Some(Frame::Stderr(data))) => output.stderr(data).await,
                Ok(Some(Frame::Exit(end))) => return Some(Outcome::of_exit(end.exit.code)),
                Ok(Some(Frame::Failed(reason))) => return Some(Outcome::Failed(reason)),
                Ok(None) => return Some(Outcome::Failed("the pod's shim closed the session".to_owned())),
                Err(error) => return Some(Outcome::Failed(format!("the session broke: {error}"))),
            };
            if written.is_err() {
                return None;
            }
        }
    };
    tokio::select! {
        outcome = pump => outcome,
        () = feed(input, writer) => None,
    }
}

/// Hands the client's input on; returns when the client went away.
async fn feed(mut input: mpsc::Receiver<Input>, mut writer: SessionWriter) {
    let mut broken = false;
    while let Some(given) = input.recv().await {
        if broken {
            continue;
        }
        let written = match given {
            Input::Stdin(data) => writer.stdin(&data).await,
            Input::CloseStdin => writer.close_stdin().await,
            Input::Resize(size) => writer.resize(size).await,
        };
        // The process may be gone with its output still on the way; what the client says meanwhile is dropped.
        broken = written.is_err();
    }
}
