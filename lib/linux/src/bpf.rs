//! Device policy of a cgroup v2: one program of type `BPF_PROG_TYPE_CGROUP_DEVICE` (kernel: Documentation/admin-guide/cgroup-v2.rst, "Device
//! controller").

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of nested cgroups all run, and all must allow.
const BPF_F_ALLOW_MULTI: u32 = 2;
const LOG_BYTES: usize = 16 * 1024;

/// One eBPF instruction, laid out as the kernel's `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low, source register in the high four bits.
    pub registers: u8,
    /// Jump distance or memory offset.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads here; zero padded to what older kernels know.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a live, exclusively borrowed `repr(C)` struct whose size is passed along; every pointer inside it was
    // made from a slice that the caller keeps alive across this call. rustix and nix have no bpf(2).
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    crate::check(answer)
}

/// Loads a device program. On refusal the error carries the end of the verifier's log.
pub fn load_device_program(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let count = u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let attributes = || LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: count,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let error = match bpf(BPF_PROG_LOAD, &mut attributes()) {
        Ok(number) => return Ok(own(number)),
        Err(error)
            if error.raw_os_error() == Some(libc::EACCES) || error.raw_os_error() == Some(libc::EINVAL) =>
        {
            error
        }
        Err(error) => return Err(error),
    };
    // Once more, to hear why.
    let mut log = vec![0_u8; LOG_BYTES];
    let mut verbose = attributes();
    verbose.log_level = 1;
    verbose.log_size = u32::try_from(log.len()).unwrap_or(0);
    verbose.log_buffer = log.as_mut_ptr() as u64;
    if let Ok(number) = bpf(BPF_PROG_LOAD, &mut verbose) {
        return Ok(own(number));
    }
    let text: Vec<u8> = log.into_iter().take_while(|b| *b != 0).collect();
    Err(io::Error::new(error.kind(), format!("{error}: {}", String::from_utf8_lossy(&text).trim())))
}

fn own(number: libc::c_long) -> OwnedFd {
    let number = libc::c_int::try_from(number).expect("the kernel returns descriptors as int");
    // SAFETY: bpf(2) just returned this new descriptor to us alone.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Attaches a device program to a cgroup v2 directory. It stays until the directory goes.
pub fn attach_device_program(cgroup: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let number =
        |fd: libc::c_int| u32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let mut attributes = AttachAttributes {
        target: number(cgroup.as_fd().as_raw_fd())?,
        program: number(program.as_fd().as_raw_fd())?,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &mut attributes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_has_the_kernel_layout() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(size_of::<LoadAttributes>(), 48);
        assert_eq!(size_of::<AttachAttributes>(), 16);
    }
}
