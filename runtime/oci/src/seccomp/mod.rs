//! OCI `linux.seccomp` to a classic BPF program, without libseccomp.
//!
//! [`model`] says what each system call number answers on each architecture; [`program`] turns that into instructions: one binary search per
//! architecture, argument tests at its leaves. Nothing here touches the kernel; `orlop_linux::seccomp::load` does.
//!
//! Same meaning as runc with libseccomp: rules that only repeat the default are dropped, an architecture that is not listed kills, and a
//! system call newer than everything in the profile answers ENOSYS so that C libraries fall back (runc's "-ENOSYS stub").

pub mod model;
mod numbers_aarch64;
mod numbers_x32;
mod numbers_x86;
mod numbers_x86_64;
mod program;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};
use orlop_linux::seccomp::Instruction;

/// Why a profile cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// `SCMP_ACT_NOTIFY` needs an agent that we do not serve.
    #[error("seccomp action SCMP_ACT_NOTIFY is not supported")]
    Notify,
    /// System calls have six arguments.
    #[error("seccomp rule for {syscall} tests argument {index} (0 to 5 exist)")]
    ArgumentIndex {
        /// Name in the profile.
        syscall: String,
        /// What it asked for.
        index: usize,
    },
    /// The flag means nothing for a single-threaded process that is about to exec, or needs an agent.
    #[error("seccomp flag {0} is not supported")]
    Flag(&'static str),
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
}

/// Compiles a profile for the machine this program was built for.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let tables = model::tables(profile, model::Machine::NATIVE)?;
    let instructions = program::assemble(&tables)?;
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => orlop_linux::seccomp::FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => orlop_linux::seccomp::FLAG_SPEC_ALLOW,
            // The loading process has one thread, so there is nothing to synchronise.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(SeccompError::Flag("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"));
            }
        };
    }
    Ok(Filter { instructions, flags })
}

#[cfg(test)]
mod tests;
