//! Sessions of `kubectl exec`, `attach` and `port-forward`: the CRI verb gives out a URL with a one-time token, the kubelet
//! tunnels its client's upgraded connection there, and here it is bridged to the pod's shim.
//!
//! Listens on loopback only; the token is the authority, as in every CRI runtime.

mod http;
mod port_forward;
mod remote_command;
pub(crate) mod spdy;
mod spdy_command;
mod status;
mod websocket;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orlop_cri::v1;
use orlop_daemon::Drain;
use orlop_shim::protocol::ExecProcess;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::error::CriError;
use crate::machine;
use crate::runtime::Runtime;

/// How long a URL is good for.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// URLs given out and not used yet.
const WAITING_LIMIT: usize = 1000;
/// Sessions at once.
const SESSION_LIMIT: usize = 1024;
const TOKEN_DIGITS: usize = 32;

/// What a URL stands for.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    /// A new process in a container.
    Exec {
        /// Sandbox id.
        sandbox_id: String,
        /// Container id.
        container_id: String,
        /// What to run.
        process: ExecProcess,
    },
    /// A container's first process.
    Attach {
        /// Sandbox id.
        sandbox_id: String,
        /// Container id.
        container_id: String,
        /// As in exec; without a command.
        process: ExecProcess,
    },
    /// TCP ports of a pod.
    PortForward {
        /// Sandbox id.
        sandbox_id: String,
        /// For clients that name none themselves.
        ports: Vec<u16>,
    },
}

impl Wish {
    /// From Exec.
    pub(crate) fn exec(runtime: &Runtime, request: v1::ExecRequest) -> Result<Self, CriError> {
        if request.cmd.is_empty() {
            return Err(CriError::Invalid("no command to run".to_owned()));
        }
        let process = ExecProcess {
            args: request.cmd,
            terminal: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        check(&process)?;
        let container = runtime.running(&request.container_id)?;
        Ok(Self::Exec { sandbox_id: container.sandbox_id, container_id: container.id, process })
    }

    /// From Attach.
    pub(crate) fn attach(runtime: &Runtime, request: v1::AttachRequest) -> Result<Self, CriError> {
        let process = ExecProcess {
            args: Vec::new(),
            terminal: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        check(&process)?;
        let container = runtime.running(&request.container_id)?;
        Ok(Self::Attach { sandbox_id: container.sandbox_id, container_id: container.id, process })
    }

    /// From PortForward.
    pub(crate) fn port_forward(runtime: &Runtime, request: v1::PortForwardRequest) -> Result<Self, CriError> {
        let sandbox = runtime.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(CriError::WrongState(format!("sandbox {} is not ready", sandbox.id)));
        }
        let ports: Result<Vec<u16>, _> = request.port.iter().map(|port| u16::try_from(*port)).collect();
        let ports =
            ports.map_err(|_| CriError::Invalid(format!("ports {:?} are out of range", request.port)))?;
        Ok(Self::PortForward { sandbox_id: sandbox.id, ports })
    }

    /// First part of the URL's path.
    fn kind(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// As CRI's documentation of ExecRequest demands.
fn check(process: &ExecProcess) -> Result<(), CriError> {
    if process.terminal && process.stderr {
        return Err(CriError::Invalid("tty and stderr cannot both be true".to_owned()));
    }
    if !process.stdin && !process.stdout && !process.stderr {
        return Err(CriError::Invalid("one of stdin, stdout, or stderr must be set".to_owned()));
    }
    Ok(())
}

/// URLs that were given out.
pub(crate) struct Streams {
    address: SocketAddr,
    waiting: Mutex<HashMap<String, (Instant, Wish)>>,
}

impl Streams {
    /// Binds the address, so that URLs can be given out.
    pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<(Self, TcpListener)> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((Self { address, waiting: Mutex::default() }, listener))
    }

    /// A URL for one session.
    pub(crate) fn url(&self, wish: Wish) -> Result<String, CriError> {
        let token = machine::random_id(TOKEN_DIGITS);
        let url = format!("http://{}/{}/{token}", self.address, wish.kind());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (given, _)| given.elapsed() < TOKEN_LIFE);
        if waiting.len() >= WAITING_LIMIT {
            return Err(CriError::Unavailable("too many sessions wait for their client".to_owned()));
        }
        waiting.insert(token, (Instant::now(), wish));
        Ok(url)
    }

    /// Takes the wish behind a path; each token works once.
    fn take(&self, path: &str) -> Option<Wish> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.get(token)?.1.kind() != kind {
            return None;
        }
        let (given, wish) = waiting.remove(token)?;
        (given.elapsed() < TOKEN_LIFE).then_some(wish)
    }

    /// Number of URLs waiting.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Accepts sessions until the drain starts; open ones end with the process.
pub(crate) async fn serve(runtime: Arc<Runtime>, listener: TcpListener, drain: Drain) {
    let limit = Arc::new(Semaphore::new(SESSION_LIMIT));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.wait() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "could not accept a session");
                if !drain.sleep(Duration::from_millis(100)).await {
                    return;
                }
                continue;
            }
        };
        // Refused by closing: the client sees the end of its connection at once.
        let Ok(permit) = limit.clone().try_acquire_owned() else {
            continue;
        };
        // Keystrokes are small.
        let _ = stream.set_nodelay(true);
        let runtime = runtime.clone();
        tokio::spawn(async move {
            http::serve_connection(runtime, stream, Arc::new(permit)).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_works_once_and_for_its_own_kind() {
        let (streams, _listener) = Streams::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let wish = Wish::PortForward { sandbox_id: "s".into(), ports: vec![80] };
        let url = streams.url(wish).unwrap();
        let path = url.strip_prefix(&format!("http://{}", streams.address)).unwrap();
        assert!(path.starts_with("/portforward/"));
        assert!(streams.take(&path.replace("portforward", "exec")).is_none());
        assert!(streams.take("/portforward/guess").is_none() && streams.take("").is_none());
        assert!(streams.take(path).is_some());
        assert!(streams.take(path).is_none());
        assert_eq!(streams.waiting(), 0);
    }

    #[test]
    fn impossible_streams_are_refused() {
        let process = |terminal, stdin, stdout, stderr| ExecProcess {
            args: Vec::new(),
            terminal,
            stdin,
            stdout,
            stderr,
        };
        assert!(check(&process(true, false, true, true)).is_err());
        assert!(check(&process(false, false, false, false)).is_err());
        assert!(check(&process(true, true, true, false)).is_ok());
    }
}
