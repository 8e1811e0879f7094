//! What a URL stands for.

use orlop_cri::v1;
use orlop_shim::protocol::ExecProcess;
use serde::{Deserialize, Serialize};

use crate::error::CriError;
use crate::runtime::Runtime;

/// What a URL stands for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
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
    pub(super) fn kind(&self) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;

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
