//! User namespaces held by a descriptor alone (user_namespaces(7)).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions, waitpid};

/// What the kernel takes in one write to a map (user_namespaces(7): 340 lines).
const LINES_LIMIT: usize = 340;
/// More than a map of [`LINES_LIMIT`] lines has.
const TEXT_LIMIT_BYTES: u64 = 16 * 1024;

/// One line of `uid_map` or `gid_map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside the namespace.
    pub inside: u32,
    /// The same one outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The maps of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// Users.
    pub users: Vec<IdRange>,
    /// Groups.
    pub groups: Vec<IdRange>,
}

/// What an id inside is called outside, if it is mapped.
pub fn outside_of(map: &[IdRange], inside: u32) -> Option<u32> {
    map.iter().find_map(|range| {
        let distance = inside.checked_sub(range.inside).filter(|distance| *distance < range.count)?;
        range.outside.checked_add(distance)
    })
}

fn text(map: &[IdRange]) -> io::Result<String> {
    if map.is_empty() || map.len() > LINES_LIMIT {
        let said = format!("an id map has {} lines; 1 to {LINES_LIMIT} are possible", map.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, said));
    }
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.count);
    Ok(map.iter().map(line).collect())
}

fn parse(text: &str) -> Option<Vec<IdRange>> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        Some(IdRange { inside: next()?, outside: next()?, count: next()? })
    };
    text.lines().map(line).collect()
}

/// Runs `work` in a short-lived child and waits for it. What `work` may do is narrow: see the SAFETY comment.
fn in_child<T>(
    flags: libc::c_int,
    work: impl FnOnce() -> bool,
    meanwhile: impl FnOnce(u32) -> io::Result<T>,
) -> io::Result<T> {
    let flags = libc::c_long::from(libc::SIGCHLD | flags);
    // SAFETY: without CLONE_VM this is fork: the child has its own copy of everything, runs `work`, and ends by _exit. All callers are in
    // this file, and their `work` makes bare system calls (setns, read, write) on descriptors and buffers that exist already: nothing that
    // takes a lock which another thread may have held at the fork, and no allocation.
    let answer = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    let pid = match crate::check(answer)? {
        0 => crate::process::exit_now(i32::from(!work())),
        pid => i32::try_from(pid).map_err(io::Error::other)?,
    };
    let result = meanwhile(u32::try_from(pid).map_err(io::Error::other)?);
    // Somebody else may have reaped it (a SIGCHLD that is ignored): that it is gone is all that counts.
    while let Err(rustix::io::Errno::INTR) = waitpid(Pid::from_raw(pid), WaitOptions::empty()) {}
    result
}

/// A new user namespace with these maps; it lives as long as the descriptor and what belongs to it.
///
/// # Errors
/// Maps that the kernel does not take: overlapping, too long, or beyond the caller's rights.
pub fn create(maps: &IdMaps) -> io::Result<OwnedFd> {
    let (users, groups) = (text(&maps.users)?, text(&maps.groups)?);
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let writer_number = writer.as_raw_fd();
    let wait_for_the_end = || {
        // SAFETY: closes this child's copy of the write end, so that its read ends with the parent's; nothing in the child uses it again
        // (the child ends by _exit, which drops nothing).
        unsafe { libc::close(writer_number) };
        let mut byte = [0_u8];
        while let Err(rustix::io::Errno::INTR) = rustix::io::read(&reader, &mut byte) {}
        true
    };
    in_child(libc::CLONE_NEWUSER, wait_for_the_end, |pid| {
        let made = std::fs::write(format!("/proc/{pid}/uid_map"), users)
            .and_then(|()| std::fs::write(format!("/proc/{pid}/gid_map"), groups))
            .and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
        let_go(&writer);
        made.map(OwnedFd::from)
    })
}

/// The maps of a process's user namespace; ids outside are the caller's.
pub fn maps_of_process(pid: u32) -> io::Result<IdMaps> {
    let read_one = |file: &str| -> io::Result<Vec<IdRange>> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"))?;
        parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable id map"))
    };
    Ok(IdMaps { users: read_one("uid_map")?, groups: read_one("gid_map")? })
}

/// The maps of a user namespace that the caller may join. Ids outside are the namespace's parent's.
pub fn maps(namespace: impl AsFd) -> io::Result<IdMaps> {
    let namespace = namespace.as_fd();
    let read_one = |file: &std::ffi::CStr| -> io::Result<Vec<IdRange>> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let mut buffer = vec![0_u8; usize::try_from(TEXT_LIMIT_BYTES).map_err(io::Error::other)?];
        let copy = || copy_own_file(namespace.as_raw_fd(), file, &mut buffer, writer.as_raw_fd());
        // A pipe takes 64 KiB: the child ends without a reader.
        in_child(0, copy, |_| Ok(()))?;
        drop(writer);
        let mut said = String::new();
        File::from(reader).take(TEXT_LIMIT_BYTES).read_to_string(&mut said)?;
        let map = parse(&said).filter(|map| !map.is_empty());
        map.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the user namespace has no id map"))
    };
    Ok(IdMaps { users: read_one(c"/proc/self/uid_map")?, groups: read_one(c"/proc/self/gid_map")? })
}

/// In a child: joins, and copies what `/proc` says of it to a pipe.
fn copy_own_file(namespace: i32, file: &std::ffi::CStr, buffer: &mut [u8], to: i32) -> bool {
    // SAFETY: system calls on open descriptors, a static path, and a live, exclusively borrowed buffer whose length is passed.
    unsafe {
        if libc::setns(namespace, libc::CLONE_NEWUSER) != 0 {
            return false;
        }
        let from = libc::open(file.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let count = libc::read(from, buffer.as_mut_ptr().cast(), buffer.len());
        usize::try_from(count)
            .is_ok_and(|count| libc::write(to, buffer.as_ptr().cast(), count) == count.cast_signed())
    }
}

/// Runs `work` in a child process that is root of a user namespace, and returns what it wrote into the file that it is given.
///
/// # Errors
/// Those of `fork` and `setns`, and what `work` says.
pub fn as_root(
    _proof: &crate::process::SingleThreaded,
    namespace: impl AsFd,
    work: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let namespace = namespace.as_fd();
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let inside = || {
        let done = nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWUSER)
            .and_then(|()| nix::unistd::setresgid(0.into(), 0.into(), 0.into()))
            .and_then(|()| nix::unistd::setresuid(0.into(), 0.into(), 0.into()))
            .map_err(io::Error::from)
            .and_then(|()| work());
        done.map_err(|error| error.to_string())
    };
    // The proof makes this an ordinary fork, in which anything may be done.
    let child = || match inside() {
        Ok(()) => true,
        Err(said) => {
            let _ = rustix::io::write(&writer, said.as_bytes());
            false
        }
    };
    in_child(0, child, |_| Ok(()))?;
    drop(writer);
    let mut said = String::new();
    File::from(reader).take(TEXT_LIMIT_BYTES).read_to_string(&mut said)?;
    if said.is_empty() { Ok(()) } else { Err(io::Error::other(said)) }
}

/// Makes namespaces of the kinds in `flags` (CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, …) that belong to a user namespace, and returns
/// one descriptor for each name below `/proc/PID/ns` in `names`.
pub fn create_owned(
    namespace: impl AsFd,
    flags: nix::sched::CloneFlags,
    names: &[&str],
) -> io::Result<Vec<OwnedFd>> {
    let namespace = namespace.as_fd();
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (ready_reader, ready_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let writer_number = writer.as_raw_fd();
    let flags = flags.bits();
    let hold = || {
        // SAFETY: system calls with numbers of open descriptors; the write end is closed in this child's copy alone (see `create`).
        let made = unsafe {
            libc::close(writer_number);
            libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER) == 0 && libc::unshare(flags) == 0
        };
        let errno = if made { 0 } else { errno_of_last_call() };
        let _ = rustix::io::write(&ready_writer, &errno.to_ne_bytes());
        let mut byte = [0_u8];
        while let Err(rustix::io::Errno::INTR) = rustix::io::read(&reader, &mut byte) {}
        made
    };
    in_child(0, hold, |pid| {
        let mut errno = [0_u8; 4];
        let opened =
            File::from(ready_reader).read_exact(&mut errno).and_then(|()| match i32::from_ne_bytes(errno) {
                0 => names
                    .iter()
                    .map(|name| File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from))
                    .collect(),
                errno => Err(io::Error::from_raw_os_error(errno)),
            });
        let_go(&writer);
        opened
    })
}

/// A byte and not only the end: another thread's child may hold a copy of this end.
fn let_go(writer: &OwnedFd) {
    let _ = rustix::io::write(writer, b"x");
}

fn errno_of_last_call() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shifted() -> Vec<IdRange> {
        vec![
            IdRange { inside: 0, outside: 100_000, count: 1000 },
            IdRange { inside: 5000, outside: 7, count: 1 },
        ]
    }

    #[test]
    fn ids_are_found() {
        assert_eq!(outside_of(&shifted(), 999), Some(100_999));
        assert_eq!(outside_of(&shifted(), 5000), Some(7));
        assert_eq!(outside_of(&shifted(), 1000), None);
        assert_eq!(outside_of(&[], 0), None);
        assert!(text(&[]).is_err());
        assert_eq!(parse(" 0 1 2\n 3 4 5\n").unwrap().len(), 2);
        assert_eq!(parse("0 x 2\n"), None);
    }

    #[test]
    fn makes_and_reads_back() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: needs root");
            return;
        }
        let wanted = IdMaps { users: shifted(), groups: vec![IdRange { inside: 0, outside: 3, count: 1 }] };
        let namespace = create(&wanted).unwrap();
        assert_eq!(maps(&namespace).unwrap(), wanted);
        let overlapping = IdMaps { users: [shifted(), shifted()].concat(), groups: shifted() };
        assert!(create(&overlapping).is_err());

        let flags = nix::sched::CloneFlags::CLONE_NEWNET | nix::sched::CloneFlags::CLONE_NEWUTS;
        let owned = create_owned(&namespace, flags, &["net", "uts"]).unwrap();
        assert_eq!(owned.len(), 2);
        // The owner of each is our namespace (ioctl_ns(2), NS_GET_USERNS).
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        for fd in &owned {
            const NS_GET_USERNS: libc::c_ulong = 0xb701;
            // SAFETY: NS_GET_USERNS takes no argument and answers a new descriptor.
            let owner = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_USERNS as _) };
            assert!(owner >= 0);
            // SAFETY: just made, and nobody else's.
            let owner = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(owner) };
            assert_eq!(inode(&owner), inode(&namespace));
        }
        assert!(create_owned(&namespace, nix::sched::CloneFlags::CLONE_NEWNET, &["nothing"]).is_err());
    }
}
