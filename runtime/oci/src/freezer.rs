//! Stopping and resuming every process of a container (cgroup-v1/freezer-subsystem.rst; cgroup-v2.rst, "cgroup.freeze").

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;

/// The kernel freezes a task when it next leaves the kernel; one in an uninterruptible sleep may take long.
const DEADLINE: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Freezes or thaws, and waits until it is so.
    pub fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        let Some((directory, unified)) = self.of_controller("freezer") else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "no freezer is mounted"));
        };
        let (file, word) = match (unified, frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        let end = Instant::now() + DEADLINE;
        let mut pause = Duration::from_millis(1);
        loop {
            // v1 may stay in FREEZING when tasks appear meanwhile; writing again helps.
            fs::write(directory.join(file), word)?;
            if self.is_frozen() == frozen {
                return Ok(());
            }
            if Instant::now() >= end {
                if frozen {
                    // Half frozen is worse than not at all.
                    let undo = if unified { "0" } else { "THAWED" };
                    let _ = fs::write(directory.join(file), undo);
                }
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Whether it was frozen by [`Cgroup::set_frozen`] (or runc, or a parent).
    pub fn is_frozen(&self) -> bool {
        let Some((directory, unified)) = self.of_controller("freezer") else { return false };
        let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
        if unified {
            read("cgroup.events").lines().any(|line| line == "frozen 1")
        } else {
            read("freezer.state").trim() == "FROZEN"
        }
    }

    /// The directory that holds a controller's files.
    pub fn controller_directory(&self, controller: &str) -> Option<(PathBuf, bool)> {
        self.of_controller(controller).filter(|(directory, _)| directory.is_dir())
    }
}
