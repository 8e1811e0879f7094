//! Where an engine stands: namespaces, an image, the subject under a name of its own, and the look at what is left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use orlop_conformance_oci::{Called, Rig, skip};

/// A rig with what an engine needs around it.
pub(crate) struct Bench {
    pub(crate) rig: Rig,
    /// The subject as one file without arguments.
    pub(crate) runtime: PathBuf,
    /// A tar of the root file system.
    pub(crate) image: PathBuf,
}

impl Bench {
    /// None where the programs are not installed.
    pub(crate) fn new(programs: &[&str]) -> Option<Self> {
        let is_there = |program: &&str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|directory| directory.join(program).exists())
        };
        if let Some(missing) = programs.iter().find(|program| !is_there(program)) {
            skip(&format!("needs {missing}"));
            return None;
        }
        let rig = Rig::new()?;
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        let runtime = rig.path("runtime").join(if rig.subject.prefix.is_empty() {
            rig.subject.program.file_name().unwrap().to_os_string()
        } else {
            "orlop-oci".into()
        });
        fs::create_dir(rig.path("runtime")).unwrap();
        symlink(fs::canonicalize(&rig.subject.program).unwrap(), &runtime).unwrap();
        let image = rig.path("image.tar");
        let status = Command::new("tar").arg("-C").arg(rig.rootfs()).arg("-cf").arg(&image).arg(".").status();
        assert!(status.unwrap().success());
        Some(Self { rig, runtime, image })
    }

    /// Calls a program of the engine, in the bench's directory: conmon leaves a file `oom` where it is started.
    pub(crate) fn call(&self, mut command: Command) -> Called {
        command.current_dir(self.rig.path(""));
        self.rig.finish(command)
    }

    /// No process of this bench, no mount, no group with a process.
    pub(crate) fn assert_nothing_left(&self) {
        let own = self.rig.path("").display().to_string();
        let is_ours = |pid: &str| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(own.trim_end_matches('/'))
        };
        orlop_conformance_oci::wait_for("every process ends", || {
            let entries = fs::read_dir("/proc").unwrap().flatten();
            let mut pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
            !pids.any(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && is_ours(&pid))
        });
        assert_eq!(self.rig.group().processes(), Vec::<u32>::new());
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let left: Vec<&str> =
            mounts.lines().filter(|line| line.contains(own.trim_end_matches('/'))).collect();
        // podman keeps one private bind of its storage.
        assert!(left.iter().all(|line| line.split(' ').nth(4).unwrap().ends_with("/storage")), "{left:?}");
    }
}
