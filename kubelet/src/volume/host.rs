//! What volumes need of the machine: mounts, ownership, host paths, safe sub paths.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Mount points at or below `prefix`, deepest first.
pub(crate) fn mounts_below(prefix: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let mut found: Vec<PathBuf> =
        table.lines().filter_map(mount_point).filter(|path| path.starts_with(prefix)).collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

fn mount_point(line: &str) -> Option<PathBuf> {
    // proc(5): spaces, tabs, newlines and backslashes are written in octal.
    let field = line.split(' ').nth(4)?;
    Some(PathBuf::from(
        field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
    ))
}

/// Sees to it that mounts made later below `dir` arrive in the pods' mount namespaces, which are older and slaves of this one. Where
/// the machine's root is shared (as systemd has it) they do; elsewhere `dir` becomes a shared mount of its own (as upstream's root).
pub(crate) fn share_mounts(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let dir = dir.canonicalize()?;
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let (point, shared) = innermost_mount(&table, &dir);
    if shared {
        return Ok(());
    }
    let none = None::<&str>;
    if point != dir {
        nix::mount::mount(Some(&dir), &dir, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    }
    nix::mount::mount(none, &dir, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none)?;
    Ok(())
}

/// The mount that holds `dir`, and whether it is shared (proc_pid_mountinfo(5): the optional fields).
fn innermost_mount(table: &str, dir: &Path) -> (PathBuf, bool) {
    let mounts = table.lines().filter_map(|line| {
        let shared = line
            .split(' ')
            .skip(6)
            .take_while(|field| *field != "-")
            .any(|field| field.starts_with("shared:"));
        Some((mount_point(line)?, shared))
    });
    // Of several at one place the last is on top, and the last of equals is taken.
    let holding = mounts.filter(|(point, _)| dir.starts_with(point));
    holding.max_by_key(|(point, _)| point.components().count()).unwrap_or_default()
}

/// Makes `dir` a tmpfs, once.
pub(crate) fn mount_tmpfs(dir: &Path, size_bytes: Option<u64>) -> io::Result<()> {
    if mounts_below(dir)?.iter().any(|mounted| mounted == dir) {
        return Ok(());
    }
    let options = size_bytes.map_or_else(|| "mode=0777".to_owned(), |size| format!("mode=0777,size={size}"));
    nix::mount::mount(
        Some("tmpfs"),
        dir,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )?;
    Ok(())
}

/// Sees to it that what is written to `dir` never reaches a disk: most machines have a tmpfs there (`/run`), on others it becomes one.
pub(crate) fn keep_in_memory(dir: &Path) -> io::Result<()> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    let kind = rustix::fs::statfs(dir)?.f_type;
    if [TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some("mode=0700"))?;
    Ok(())
}

/// Takes every mount below `dir` away, then the tree itself. Never removes across a mount that stayed.
pub(crate) fn remove_tree(dir: &Path) -> io::Result<()> {
    // A mount may be stacked on another: as many passes as there are layers, bounded.
    for _ in 0..8 {
        let mounted = mounts_below(dir)?;
        if mounted.is_empty() {
            return match fs::remove_dir_all(dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            };
        }
        for mount in mounted {
            nix::mount::umount2(&mount, MntFlags::MNT_DETACH)?;
        }
    }
    Err(io::Error::other(format!("mounts below {} stay", dir.display())))
}

/// Gives a writable volume to a group (upstream: SetVolumeOwnership): group may read and write, new files inherit it.
pub(crate) fn give_to_group(path: &Path, group: u32) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.file_type().is_symlink() {
        return Ok(());
    }
    let mut mode = metadata.mode() & 0o7777;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to_group(&entry?.path(), group)?;
        }
        mode |= 0o2770;
    } else {
        mode |= 0o660;
    }
    chown(path, None, Some(group))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Checks (and for the `…OrCreate` types makes) a host path.
pub(crate) fn check_host_path(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    let metadata = fs::metadata(path);
    let expect = |ok: fn(&fs::Metadata) -> bool, what: &str| match &metadata {
        Ok(metadata) if ok(metadata) => Ok(()),
        _ => Err(format!("hostPath type check failed: {shown} is not a {what}")),
    };
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if metadata.is_err() => {
            fs::create_dir_all(path).map_err(|error| format!("failed to create {shown}: {error}"))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
                .map_err(|error| format!("{shown}: {error}"))
        }
        "Directory" | "DirectoryOrCreate" => expect(fs::Metadata::is_dir, "directory"),
        "FileOrCreate" if metadata.is_err() => {
            match fs::OpenOptions::new().create_new(true).append(true).open(path) {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("failed to create {shown}: {error}")),
            }
        }
        "File" | "FileOrCreate" => expect(fs::Metadata::is_file, "file"),
        "Socket" => expect(|metadata| metadata.file_type().is_socket(), "socket file"),
        "CharDevice" => expect(|metadata| metadata.file_type().is_char_device(), "character device"),
        "BlockDevice" => expect(|metadata| metadata.file_type().is_block_device(), "block device"),
        other => Err(format!("hostPath type {other:?} is not known")),
    }
}

/// Opens `sub_path` below `root` without ever leaving it (openat2(2), RESOLVE_BENEATH), making missing directories.
fn open_beneath(root: &Path, sub_path: &str) -> io::Result<OwnedFd> {
    let open = |path: &str| -> io::Result<OwnedFd> {
        let base = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = if path.is_empty() { "." } else { path };
        Ok(rustix::fs::openat2(
            base,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        )?)
    };
    match open(sub_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let mode = Mode::from_raw_mode(fs::metadata(root)?.mode() & 0o7777);
    let mut walked = String::new();
    for part in sub_path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        let parent = open(&walked)?;
        match rustix::fs::mkdirat(&parent, part, mode) {
            Ok(()) => {
                // The umask must not narrow what the volume grants.
                rustix::fs::chmodat(&parent, part, mode, rustix::fs::AtFlags::empty())?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        walked = if walked.is_empty() { part.to_owned() } else { format!("{walked}/{part}") };
    }
    open(&walked)
}

/// Binds `root/sub_path` to `target` so that no later change of a symlink can redirect it (CVE-2017-1002101).
pub(crate) fn bind_sub_path(root: &Path, sub_path: &str, target: &Path) -> io::Result<()> {
    let source = open_beneath(root, sub_path)?;
    let link = format!("/proc/thread-self/fd/{}", source.as_raw_fd());
    if mounts_below(target)?.iter().any(|mounted| mounted == target) {
        nix::mount::umount2(target, MntFlags::MNT_DETACH)?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::metadata(&link)?.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    nix::mount::mount(
        Some(link.as_str()),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_in_memory() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        // Not /tmp, which may be a tmpfs itself.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        keep_in_memory(dir.path()).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        keep_in_memory(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "x");
        assert_eq!(mounts_below(dir.path()).unwrap(), [dir.path()]);
        nix::mount::umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
    }

    #[test]
    fn sub_paths_never_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("inside")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("inside", volume.join("in")).unwrap();
        assert!(open_beneath(&volume, "in").is_ok());
        assert!(open_beneath(&volume, "new/deep").is_ok());
        assert!(volume.join("new/deep").is_dir());
        for escape in ["out", "out/passwd", "../volume", "in/../../x"] {
            assert!(open_beneath(&volume, escape).is_err(), "{escape}");
        }
    }

    #[test]
    fn host_path_types() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let fresh = dir.path().join("d/e");
        assert!(check_host_path(&file, "File").is_err());
        assert!(check_host_path(&file, "FileOrCreate").is_ok());
        assert!(check_host_path(&file, "File").is_ok());
        assert!(check_host_path(&file, "Directory").is_err());
        assert!(check_host_path(&fresh, "DirectoryOrCreate").is_ok());
        assert!(check_host_path(&fresh, "Directory").is_ok());
        assert!(check_host_path(Path::new("/dev/null"), "CharDevice").is_ok());
        assert!(check_host_path(Path::new("/dev/null"), "Socket").is_err());
        assert!(check_host_path(&file, "Odd").is_err());
        assert!(check_host_path(Path::new("/none/such"), "").is_ok());
    }

    /// In a mount namespace of this thread's own: the machine's table is not touched.
    #[test]
    fn mounts_come_and_go() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().canonicalize().unwrap().join("pod");
        let volume = pod.join("volume");
        fs::create_dir_all(&volume).unwrap();
        mount_tmpfs(&volume, Some(1 << 20)).unwrap();
        mount_tmpfs(&volume, Some(1 << 20)).unwrap();
        assert_eq!(mounts_below(&pod).unwrap(), std::slice::from_ref(&volume));
        fs::write(volume.join("f"), "1").unwrap();
        bind_sub_path(&volume, "f", &pod.join("bound/f")).unwrap();
        bind_sub_path(&volume, "made/deep", &pod.join("bound/d")).unwrap();
        bind_sub_path(&volume, "made/deep", &pod.join("bound/d")).unwrap();
        fs::write(pod.join("bound/f"), "2").unwrap();
        assert_eq!(fs::read_to_string(volume.join("f")).unwrap(), "2");
        assert_eq!(mounts_below(&pod).unwrap().len(), 3);
        remove_tree(&pod).unwrap();
        assert!(mounts_below(&pod).unwrap().is_empty());
        assert!(!pod.exists());
        remove_tree(&pod).unwrap();
    }

    /// A pod's mount namespace is made before its sub paths are bound.
    #[test]
    fn later_mounts_arrive_in_older_namespaces() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let change = |flags| {
            nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | flags, None::<&str>)
                .unwrap();
        };
        change(MsFlags::MS_PRIVATE);
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().canonicalize().unwrap().join("pods");
        share_mounts(&pods).unwrap();
        share_mounts(&pods).unwrap();
        assert_eq!(mounts_below(&pods).unwrap(), std::slice::from_ref(&pods));
        let bound = pods.join("bound");
        let (ready, wait) = std::sync::mpsc::channel::<()>();
        let (go, went) = std::sync::mpsc::channel::<()>();
        let seen = bound.clone();
        let pod = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            change(MsFlags::MS_SLAVE);
            ready.send(()).unwrap();
            went.recv().unwrap();
            fs::read_to_string(seen).unwrap()
        });
        wait.recv().unwrap();
        fs::create_dir(dir.path().join("volume")).unwrap();
        fs::write(dir.path().join("volume/f"), "content").unwrap();
        bind_sub_path(&dir.path().join("volume"), "f", &bound).unwrap();
        go.send(()).unwrap();
        assert_eq!(pod.join().unwrap(), "content");
        remove_tree(&pods).unwrap();
    }

    #[test]
    fn groups_may_use_what_they_are_given() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        give_to_group(dir.path(), 4242).unwrap();
        let (root, file) = (fs::metadata(dir.path()).unwrap(), fs::metadata(dir.path().join("f")).unwrap());
        assert_eq!((root.gid(), root.mode() & 0o2070), (4242, 0o2070));
        assert_eq!((file.gid(), file.mode() & 0o060), (4242, 0o060));
    }
}
