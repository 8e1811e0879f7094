//! Loading seccomp(2) filters.

use std::io;

/// Log what is not allowed (all actions but ALLOW).
pub const FLAG_LOG: u32 = 1 << 1;
/// Leave speculative store bypass on.
pub const FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// Answer with a descriptor on which an agent hears of the system calls that the filter notifies.
pub const FLAG_NEW_LISTENER: u32 = 1 << 3;
/// Once the agent has heard of a call, only a fatal signal interrupts the caller (Linux 5.19).
pub const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;

/// One classic BPF instruction, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Puts the calling thread under a filter, for good. Needs CAP_SYS_ADMIN or no_new_privs. Returns the kernel's answer: with
/// [`FLAG_NEW_LISTENER`] the number of a new descriptor, which is close-on-exec, else 0.
pub fn load(program: &[Instruction], flags: u32) -> io::Result<i32> {
    let length = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "seccomp program is too long"))?;
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: `program` points to `length` live instructions of the kernel's layout, which the kernel copies and checks. What the
    // filter does to later system calls is its purpose. rustix and nix have no seccomp(2).
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    i32::try_from(crate::check(answer)?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_has_the_kernel_layout() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(size_of::<Program>(), 16);
    }

    #[test]
    fn filters_one_thread() {
        const RETURN: u16 = 0x06;
        const LOAD_WORD: u16 = 0x20;
        const JUMP_EQUAL: u16 = 0x15;
        let errno = 0x0005_0000 | u32::try_from(libc::EXDEV).unwrap();
        let line =
            |code, jump_true, jump_false, operand| Instruction { code, jump_true, jump_false, operand };
        let getppid = u32::try_from(libc::SYS_getppid).unwrap();
        let program = [
            line(LOAD_WORD, 0, 0, 0),
            line(JUMP_EQUAL, 0, 1, getppid),
            line(RETURN, 0, 0, errno),
            line(RETURN, 0, 0, 0x7fff_0000),
        ];
        std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            load(&program, 0).unwrap();
            // SAFETY: getppid takes nothing.
            assert_eq!(unsafe { libc::syscall(libc::SYS_getppid) }, -1);
            assert_eq!(crate::last_error().raw_os_error(), Some(libc::EXDEV));
        })
        .join()
        .unwrap();
        assert!(load(&[], 0).is_err());
    }
}
