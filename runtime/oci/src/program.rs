//! Starting `oci-setup`: this binary again, from a copy that nobody can write to.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::{Child, Command};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, OFlags, SealFlags};
use rustix::pipe::PipeFlags;
use serde::Serialize;

use crate::setup::Answer;

/// This binary. A container that gets hold of `/proc/PID/exe` cannot write through it (CVE-2019-5736).
pub(crate) struct Program(OwnedFd);

impl Program {
    pub(crate) fn seal() -> io::Result<Self> {
        orlop_linux::mount::read_only_program().or_else(|_| Self::memory_copy()).map(Self)
    }

    /// For kernels before 5.12 and callers in a chroot.
    fn memory_copy() -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut copy = File::from(rustix::fs::memfd_create("orlop-oci", flags)?);
        io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&copy, seals)?;
        Ok(copy.into())
    }

    /// Runs `oci-setup VERB` with a request that may name the descriptors of `keep`, and the answer's.
    pub(crate) fn ask<R: Serialize>(
        &self,
        verb: &str,
        keep: &[BorrowedFd<'_>],
        request: impl FnOnce(RawFd) -> R,
    ) -> anyhow::Result<Answer> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let request = request(writer.as_raw_fd());
        let mut inherited = keep.to_vec();
        inherited.push(writer.as_fd());
        let mut child = self.start(verb, &request, &inherited).context("failed to start oci-setup")?;
        drop(writer);
        let text = read_answer(reader, &child);
        let status = child.wait().context("failed to wait for oci-setup")?;
        let text = text.context("failed to read the answer of oci-setup")?;
        if text.is_empty() {
            anyhow::bail!("oci-setup died: {status}");
        }
        let answer: Answer =
            serde_json::from_slice(&text).context("failed to read the answer of oci-setup")?;
        match answer.error {
            Some(error) => Err(anyhow::Error::msg(error)),
            None => Ok(answer),
        }
    }

    fn start(&self, verb: &str, request: &impl Serialize, keep: &[BorrowedFd<'_>]) -> io::Result<Child> {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        // libcontainer would count these descriptors once more.
        command.env_remove("LISTEN_FDS");
        start_setup(command, verb, request, keep)
    }
}

/// Starts `PROGRAM oci-setup VERB`: it inherits its request and `keep`, and no other descriptor that is close-on-exec.
///
/// # Errors
/// When the request cannot be written down or the program cannot be started.
pub fn start_setup(
    mut program: Command,
    verb: &str,
    request: &impl Serialize,
    keep: &[BorrowedFd<'_>],
) -> io::Result<Child> {
    let mut file = File::from(rustix::fs::memfd_create("request", MemfdFlags::CLOEXEC)?);
    // At once: written straight to the file, every word of it would be a system call.
    file.write_all(&serde_json::to_vec(request)?)?;
    file.rewind()?;
    let mut inherited: Vec<BorrowedFd<'_>> = keep.to_vec();
    inherited.push(file.as_fd());
    for fd in &inherited {
        orlop_linux::fd::set_inheritable(*fd, true)?;
    }
    let started = program.args(["oci-setup", verb, &file.as_raw_fd().to_string()]).spawn();
    for fd in &inherited {
        orlop_linux::fd::set_inheritable(*fd, false)?;
    }
    started
}

/// Until the child ends: a container's first process holds a copy of the pipe and would keep it open.
fn read_answer(reader: OwnedFd, child: &Child) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::fcntl_getfl(&reader)?;
    rustix::fs::fcntl_setfl(&reader, flags | OFlags::NONBLOCK)?;
    let process = orlop_linux::process::open_pid(child.id())?;
    let mut reader = File::from(reader);
    let mut text = Vec::new();
    let mut ended = false;
    loop {
        match reader.read_to_end(&mut text) {
            Ok(_) => return Ok(text),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && ended => return Ok(text),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let mut wanted = [PollFd::new(&reader, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
        match poll(&mut wanted, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        ended = !wanted[1].revents().is_empty();
    }
}
