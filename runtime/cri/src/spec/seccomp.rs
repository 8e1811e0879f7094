//! The `RuntimeDefault` seccomp profile: an allow list with argument rules, equal in effect to the one that containerd and
//! Docker ship. Everything else answers EPERM, `clone3` without CAP_SYS_ADMIN ENOSYS (its flags are behind a pointer that a
//! filter cannot read; C libraries then fall back to `clone`).

use std::collections::BTreeSet;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::seccomp_table::{ALLOWED, ALLOWED_ON_ARM, ALLOWED_ON_X86, BY_CAPABILITY};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// The kernel's own cryptography: no use for it that a library lacks, and a history of holes.
const AF_ALG: u64 = 38;
/// Virtual machine sockets ignore network namespaces.
const AF_VSOCK: u64 = 40;
/// PER_LINUX, PER_LINUX32, UNAME26, both, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile for a process with these capabilities (`CAP_…`).
///
/// # Errors
/// Never for the tables above; the specification's builders just say so.
pub(crate) fn runtime_default(capabilities: &BTreeSet<String>) -> Result<LinuxSeccomp, OciSpecError> {
    let administrator = capabilities.contains("CAP_SYS_ADMIN");
    let mut syscalls = vec![
        allow(ALLOWED)?,
        // Everything but AF_ALG and AF_VSOCK, in ranges: two "not equal" rules would allow each other's family.
        conditional("socket", 0, AF_ALG, LinuxSeccompOperator::ScmpCmpLt, None)?,
        conditional("socket", 0, AF_ALG + 1, LinuxSeccompOperator::ScmpCmpEq, None)?,
        conditional("socket", 0, AF_VSOCK, LinuxSeccompOperator::ScmpCmpGt, None)?,
    ];
    for personality in PERSONALITIES {
        syscalls.push(conditional("personality", 0, personality, LinuxSeccompOperator::ScmpCmpEq, None)?);
    }
    if cfg!(target_arch = "x86_64") {
        syscalls.push(allow(ALLOWED_ON_X86)?);
    } else if cfg!(target_arch = "aarch64") {
        syscalls.push(allow(ALLOWED_ON_ARM)?);
    }
    for (capability, names) in BY_CAPABILITY {
        if capabilities.contains(*capability) {
            syscalls.push(allow(names)?);
        }
    }
    if !administrator {
        let masked = LinuxSeccompOperator::ScmpCmpMaskedEq;
        syscalls.push(conditional("clone", 0, NAMESPACE_FLAGS, masked, Some(0))?);
        syscalls.push(
            LinuxSyscallBuilder::default()
                .names(vec!["clone3".to_owned()])
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(ENOSYS)
                .build()?,
        );
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures())
        .syscalls(syscalls)
        .build()
}

fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    }
}

fn allow(names: &[&str]) -> Result<LinuxSyscall, OciSpecError> {
    LinuxSyscallBuilder::default()
        .names(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        .action(LinuxSeccompAction::ScmpActAllow)
        .build()
}

fn conditional(
    name: &str,
    index: usize,
    value: u64,
    operator: LinuxSeccompOperator,
    value_two: Option<u64>,
) -> Result<LinuxSyscall, OciSpecError> {
    let argument = LinuxSeccompArgBuilder::default().index(index).value(value).op(operator);
    let argument: LinuxSeccompArg = match value_two {
        Some(value_two) => argument.value_two(value_two).build()?,
        None => argument.build()?,
    };
    LinuxSyscallBuilder::default()
        .names(vec![name.to_owned()])
        .action(LinuxSeccompAction::ScmpActAllow)
        .args(vec![argument])
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &LinuxSeccomp) -> Vec<String> {
        let syscalls = profile.syscalls().as_ref().unwrap();
        syscalls
            .iter()
            .filter(|rule| rule.args().is_none() && rule.action() == LinuxSeccompAction::ScmpActAllow)
            .flat_map(|rule| rule.names().clone())
            .collect()
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let none = names(&runtime_default(&BTreeSet::new()).unwrap());
        let admin = names(&runtime_default(&BTreeSet::from(["CAP_SYS_ADMIN".to_owned()])).unwrap());
        for name in ["mount", "unshare", "setns", "bpf", "clone", "clone3", "fsopen"] {
            assert!(!none.iter().any(|known| known == name), "{name}");
            assert!(admin.iter().any(|known| known == name), "{name}");
        }
        for name in
            ["reboot", "kexec_load", "init_module", "add_key", "keyctl", "userfaultfd", "io_uring_setup"]
        {
            assert!(
                !none.iter().any(|known| known == name) && !admin.iter().any(|known| known == name),
                "{name}"
            );
        }
        for name in ["read", "execve", "futex", "openat2", "epoll_pwait2", "rseq", "ptrace", "arch_prctl"] {
            assert!(none.iter().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut all = names(&runtime_default(&BTreeSet::new()).unwrap());
        let before = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), before);
    }
}
