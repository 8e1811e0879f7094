//! OCI `linux.seccomp` to a classic BPF program, without libseccomp.
//!
//! [`model`] says what each system call number answers on each architecture; [`program`] turns that into instructions: one binary search per
//! architecture, argument tests at its leaves. Nothing here touches the kernel; `orlop_linux::seccomp::load` does.
//!
//! Same meaning as runc with libseccomp: rules that only repeat the default are dropped, an architecture that is not listed kills, and a
//! system call newer than everything in the profile answers ENOSYS so that C libraries fall back (runc's "-ENOSYS stub").

pub(crate) mod listener;
pub mod model;
mod numbers_aarch64;
mod numbers_x32;
mod numbers_x86;
mod numbers_x86_64;
mod program;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};
use orlop_linux::seccomp::Instruction;

/// Why a profile cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// `SCMP_ACT_NOTIFY` needs an agent.
    #[error("seccomp action SCMP_ACT_NOTIFY needs linux.seccomp.listenerPath")]
    NoListener,
    /// The agent would have to answer for everything, its own start too.
    #[error("seccomp action SCMP_ACT_NOTIFY cannot be the default action")]
    NotifyByDefault,
    /// System calls have six arguments.
    #[error("seccomp rule for {syscall} tests argument {index} (0 to 5 exist)")]
    ArgumentIndex {
        /// Name in the profile.
        syscall: String,
        /// What it asked for.
        index: usize,
    },
    /// The kernel takes 4096 instructions.
    #[error("seccomp program has {0} instructions (4096 are the most)")]
    TooLong(usize),
}

/// A program and the flags to load it with.
#[derive(Clone, Debug)]
pub struct Filter {
    /// For `orlop_linux::seccomp::load`.
    pub instructions: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    /// An agent answers for some system calls.
    pub notifies: bool,
}

/// Compiles a profile for the machine this program was built for.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let notify = LinuxSeccompAction::ScmpActNotify;
    if profile.default_action() == notify {
        return Err(SeccompError::NotifyByDefault);
    }
    let notifies = profile.syscalls().iter().flatten().any(|entry| entry.action() == notify);
    let has_agent = profile.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
    if notifies && !has_agent {
        return Err(SeccompError::NoListener);
    }
    let tables = model::tables(profile, model::Machine::NATIVE)?;
    let instructions = program::assemble(&tables)?;
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => orlop_linux::seccomp::FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => orlop_linux::seccomp::FLAG_SPEC_ALLOW,
            // The loading process has one thread, so there is nothing to synchronise.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            // The kernel refuses it where there is no agent to wait for.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if !notifies => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                orlop_linux::seccomp::FLAG_WAIT_KILLABLE_RECV
            }
        };
    }
    Ok(Filter { instructions, flags, notifies })
}

#[cfg(test)]
mod tests;
