//! Mounts, modules and control groups, as a booted Debian has them (but for systemd).

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::task::{Module, Task};

/// Where cgroup v2 is mounted.
pub(crate) const GROUPS: &str = "/sys/fs/cgroup";
/// The group of the runner and its tests: beside those of containers, as on a machine with a service manager.
pub(crate) const OWN_GROUP: &str = "tests";

/// The disk.
const DISK: &str = "/dev/ram0";

/// Everything that process 1 needs before it can read.
pub(crate) fn mount() -> anyhow::Result<()> {
    leave_initramfs()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let device = MountFlags::NOSUID | MountFlags::NOEXEC;
    let free = MountFlags::NOSUID | MountFlags::NODEV;
    let groups: &CStr = c"nsdelegate,memory_recursiveprot";
    for (kind, target, flags, options) in [
        ("proc", "/proc", flags, c""),
        ("sysfs", "/sys", flags, c""),
        ("devtmpfs", "/dev", device, c"mode=755"),
        ("devpts", "/dev/pts", device, c"mode=620,gid=5,ptmxmode=666"),
        ("tmpfs", "/dev/shm", free, c"mode=1777"),
        ("mqueue", "/dev/mqueue", flags, c""),
        ("cgroup2", GROUPS, flags, groups),
        ("tmpfs", "/run", free, c"mode=755"),
    ] {
        fs::create_dir_all(target).with_context(|| format!("failed to make {target}"))?;
        rustix::mount::mount(kind, target, kind, flags, options)
            .with_context(|| format!("failed to mount {kind} at {target}"))?;
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        std::os::unix::fs::symlink(target, Path::new("/dev").join(name)).context("failed to make a link")?;
    }
    // As systemd does.
    rustix::mount::mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .context("failed to share the mounts")
}

/// pivot_root(2) refuses the root that the kernel starts with, so it becomes a mount of its own.
fn leave_initramfs() -> anyhow::Result<()> {
    const NEW: &str = "/newroot";
    fs::create_dir_all(NEW).context("failed to make the new root")?;
    rustix::mount::mount_bind("/", NEW).context("failed to bind the root")?;
    rustix::process::chdir(NEW)?;
    rustix::mount::mount_move(".", "/").context("failed to move the root")?;
    rustix::process::chroot(".").context("failed to change the root")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// What a service manager would have done.
pub(crate) fn configure(task: &Task) -> anyhow::Result<()> {
    for module in &task.modules {
        load(module)?;
    }
    // `ip netns` makes it a mount when it first needs it, and leaves it.
    fs::create_dir("/run/netns").context("failed to make /run/netns")?;
    rustix::mount::mount_bind("/run/netns", "/run/netns").context("failed to bind /run/netns")?;
    rustix::system::sethostname(b"vm").context("failed to set the host name")?;
    call("ip", &["link", "set", "lo", "up"])?;
    // Tests keep their files on a disk: a tmpfs of this kernel has no user.* attributes, and no device whose use is limited.
    call("/usr/sbin/mke2fs", &["-q", "-t", "ext4", "-O", "^has_journal", DISK])?;
    rustix::mount::mount(DISK, "/tmp", "ext4", MountFlags::empty(), c"")
        .context("failed to mount the disk")?;
    fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777)).context("failed to open /tmp to all")?;
    // Swap that the memory controller can count.
    fs::write("/sys/block/zram0/disksize", "256M").context("failed to size the swap device")?;
    call("mkswap", &["/dev/zram0"])?;
    call("swapon", &["/dev/zram0"])?;
    fs::write("/proc/sys/vm/nr_hugepages", "8").context("failed to reserve huge pages")
}

fn load(module: &Module) -> anyhow::Result<()> {
    let path = module.path.display();
    let file = fs::File::open(&module.path).with_context(|| format!("failed to open {path}"))?;
    let parameters = CString::new(module.parameters.as_str())?;
    match rustix::system::finit_module(&file, &parameters, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to load {path}")),
    }
}

fn call(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(program).args(arguments).status();
    let status = status.with_context(|| format!("failed to start {program}"))?;
    ensure!(status.success(), "{program} {arguments:?} failed: {status}");
    Ok(())
}

/// Moves the caller, and so what it starts, out of the root group.
pub(crate) fn enter_group() -> anyhow::Result<()> {
    let group = Path::new(GROUPS).join(OWN_GROUP);
    fs::create_dir(&group).context("failed to make a control group")?;
    fs::write(group.join("cgroup.procs"), "0").context("failed to enter the control group")
}
