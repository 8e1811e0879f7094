//! Processes: clone(2) for single-threaded programs, identities, signal dispositions.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use orlop_types::ProcessIdentity;
use rustix::process::{Pid, PidfdFlags};

/// Which side of a [`clone`] we are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller; the new process has this pid in the caller's PID namespace.
    Parent(u32),
    /// The new process.
    Child,
}

/// What a [`clone`] makes besides a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneOptions {
    /// The child is the first process of a new PID namespace.
    pub new_pid_namespace: bool,
    /// The child becomes a child of the caller's parent, so that the caller may exit and the parent still gets the exit code.
    pub sibling: bool,
    /// Both have one table of descriptors until one of them executes a program: what one opens or closes, the other has or lacks.
    pub shared_descriptors: bool,
}

/// Proof that the process had one thread. Whoever holds it must not start threads before using it.
#[derive(Debug)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// Counts `/proc/self/task`: take it before `/proc` becomes somebody else's.
    pub fn verify() -> io::Result<Self> {
        match std::fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(())),
            threads => {
                Err(io::Error::other(format!("the process has {threads} threads where one is allowed")))
            }
        }
    }
}

/// fork(2) with flags.
///
/// In the child only the calling thread exists, and a lock that another one held (malloc's, say) would stay locked for ever; hence the proof.
pub fn clone(_proof: &SingleThreaded, options: CloneOptions) -> io::Result<Side> {
    let mut flags = libc::c_long::from(libc::SIGCHLD);
    if options.new_pid_namespace {
        flags |= libc::c_long::from(libc::CLONE_NEWPID);
    }
    if options.sibling {
        flags |= libc::c_long::from(libc::CLONE_PARENT);
    }
    if options.shared_descriptors {
        flags |= libc::c_long::from(libc::CLONE_FILES);
    }
    // SAFETY: without CLONE_VM this is fork: the child runs on its own copy of the stack (a null stack pointer means that), and the
    // process has one thread (the proof), so no lock is held by a thread that will not exist. nix's fork takes no flags and its clone
    // wants a stack of its own.
    let answer = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    match crate::check(answer)? {
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(u32::try_from(pid).map_err(io::Error::other)?)),
    }
}

/// Ends the process without running destructors or flushing buffers that a parent holds copies of.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes an int and does not return.
    unsafe { libc::_exit(code) }
}

/// Default disposition for every signal and an empty mask, as a program expects to find them after execve.
///
/// Rust's runtime ignores SIGPIPE, and ignored signals stay ignored across execve.
pub fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL installs no handler of ours. SIGKILL, SIGSTOP and the C library's own answer EINVAL, which changes nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask().map_err(io::Error::from)
}

/// Sets the caller's I/O class (1 real time, 2 best effort, 3 idle) and its level, 0 to 7 (ioprio_set(2)).
pub fn set_io_priority(class: u8, level: u8) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    let value = libc::c_int::from(class) << 13 | libc::c_int::from(level);
    // SAFETY: three ints; no memory. rustix and nix have no ioprio_set(2).
    crate::check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) }).map(drop)
}

/// `struct sched_attr` as the kernel first had it (sched_setattr(2)).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerAttributes {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the time-sharing policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// Nanoseconds; for deadlines.
    pub runtime: u64,
    /// As `runtime`.
    pub deadline: u64,
    /// As `runtime`.
    pub period: u64,
}

/// Sets the caller's scheduling policy.
pub fn set_scheduler(mut attributes: SchedulerAttributes) -> io::Result<()> {
    attributes.size = u32::try_from(size_of::<SchedulerAttributes>()).map_err(io::Error::other)?;
    // SAFETY: a live `repr(C)` struct that says its own size; the kernel only reads it. rustix and nix have no sched_setattr(2).
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0_u32) };
    crate::check(answer).map(drop)
}

/// Sets the caller's execution domain (personality(2)).
pub fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: takes a number, touches no memory.
    crate::check(unsafe { libc::syscall(libc::SYS_personality, domain) }).map(drop)
}

/// Sends a signal by number, real-time ones too (nix and rustix know names only). A negative pid is a process group.
pub fn send_signal(pid: i32, signal: i32) -> io::Result<()> {
    if pid == 0 || pid == -1 {
        // Our own group, and everybody: never what a caller with a pid means.
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill(2) takes two ints and touches no memory of ours.
    crate::check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Sends a signal by number to exactly the process behind a pidfd.
pub fn send_signal_to(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo makes the kernel fill one in; the other arguments are ints. rustix takes named signals alone, and real-time
    // ones have no names.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0_u32,
        )
    };
    crate::check(answer).map(drop)
}

/// Start time of a process in clock ticks since boot: field 22 of `/proc/PID/stat`.
pub fn start_time(pid: u32) -> io::Result<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time"))
    })
}

/// The command name may hold spaces and parentheses, so fields are counted from the last `)`.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Pid and start time of a process.
pub fn identify(pid: u32) -> io::Result<ProcessIdentity> {
    Ok(ProcessIdentity::new(pid, start_time(pid)?))
}

/// A pidfd of exactly this process; `NotFound` when it is gone or its pid is somebody else's by now.
pub fn open(identity: ProcessIdentity) -> io::Result<OwnedFd> {
    let pid = open_pid(identity.pid)?;
    // Looked at after the pidfd exists: while we hold it the pid cannot be given to another process unnoticed.
    match start_time(identity.pid) {
        Ok(start_time) if start_time == identity.start_time => Ok(pid),
        Ok(_) => Err(io::ErrorKind::NotFound.into()),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(io::ErrorKind::NotFound.into()),
        Err(error) => Err(error),
    }
}

/// A pidfd by number alone: for children that were not waited for yet.
pub fn open_pid(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| match errno {
        rustix::io::Errno::SRCH => io::ErrorKind::NotFound.into(),
        other => other.into(),
    })
}

/// Whether exactly this process still exists (a zombie does).
pub fn is_alive(identity: ProcessIdentity) -> bool {
    open(identity).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_strange_names() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2";
        assert_eq!(parse_start_time(stat), Some(4711));
        assert_eq!(parse_start_time("nonsense"), None);
        assert_eq!(parse_start_time("1 (x) S 1"), None);
    }

    #[test]
    fn knows_itself() {
        let me = identify(std::process::id()).unwrap();
        assert!(is_alive(me));
        assert!(!is_alive(ProcessIdentity::new(me.pid, me.start_time + 1)));
        assert!(!is_alive(ProcessIdentity::new(u32::try_from(i32::MAX).unwrap(), 1)));
    }

    #[test]
    fn refuses_to_clone_with_threads() {
        // The test harness itself runs several.
        let (keep, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        assert!(SingleThreaded::verify().is_err());
        drop(keep);
        let _ = thread.join();
    }
}
