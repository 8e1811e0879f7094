//! Work inside another network namespace.
//!
//! A namespace belongs to a thread, and a pooled thread that wandered into a pod would take the next task with it. So the work runs on
//! a thread of its own that ends with it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Opens a namespace file such as `/proc/1234/ns/net`.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)
}

/// Runs `work` on a new thread inside `namespace` and waits for it. Blocks: call it from a blocking context.
pub fn run<T: Send>(namespace: impl AsFd, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = namespace.as_fd();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?;
        match thread.join() {
            Ok(answer) => answer,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_elsewhere_and_leaves_us_here() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: needs root");
            return;
        }
        let mine = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let other = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            open(Path::new("/proc/thread-self/ns/net")).unwrap()
        })
        .join()
        .unwrap();
        let inside = run(&other, || {
            crate::interface::set_loopback_up().unwrap();
            std::net::TcpListener::bind("127.0.0.1:1").unwrap();
            std::fs::read_link("/proc/thread-self/ns/net").unwrap()
        })
        .unwrap();
        assert_ne!(inside, mine);
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), mine);
    }
}
