//! `tmpcopyup`: a tmpfs that begins with the content of the directory that it covers (as runc and crun have it).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, bail};
use oci_spec::runtime::Mount;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fchmod, fchown, mkdirat, openat,
    openat2, readlinkat, statat, symlinkat,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use super::options::Options;
use crate::setup::user_namespace::UserNamespace;

/// Deeper trees are refused rather than walked.
const DEPTH_LIMIT: u32 = 128;

/// Makes the file system, detached, and fills it.
pub(super) fn tmpfs(
    mount: &Mount,
    options: &Options,
    rootfs: &Path,
    user: Option<&UserNamespace>,
) -> anyhow::Result<OwnedFd> {
    let tree = make(options, user)?;
    let root = openat(CWD, rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let inside = mount.destination().strip_prefix("/").unwrap_or(mount.destination());
    // The image's links lead to the image's files.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(&root, inside, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
        Ok(covered) => {
            let top = openat(&tree, ".", flags, Mode::empty())?;
            let found = rustix::fs::fstat(&covered)?;
            // Its own mode counts only when no option names one.
            let named = |name: &str| options.kept.iter().any(|option| option.starts_with(name));
            own(&top, &found, !named("mode="), !named("uid=") && !named("gid="))?;
            copy_directory(covered, top.as_fd(), 0).context("failed to copy what it covers")?;
        }
        Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno).context("failed to open what it covers"),
    }
    let attributes = orlop_linux::mount::Attributes::new;
    orlop_linux::mount::set_attributes_of(&tree, false, attributes(options.own.set, options.own.clear))?;
    orlop_linux::mount::set_attributes_of(&tree, true, attributes(options.all.set, options.all.clear))?;
    Ok(tree)
}

fn make(options: &Options, user: Option<&UserNamespace>) -> anyhow::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", "tmpfs")?;
    if let Some(user) = user {
        // Of the container's root unless an option says otherwise; names of users are the container's.
        let (uid, gid) = user.outside(0, 0)?;
        fsconfig_set_string(context, "uid", uid.to_string())?;
        fsconfig_set_string(context, "gid", gid.to_string())?;
    }
    let is_attribute = |option: &&String| !option.contains('=');
    for option in options.kept.iter().filter(|option| !is_attribute(option)) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value = match (name, user, value.parse::<u32>()) {
            ("uid", Some(user), Ok(id)) => user.outside(id, 0)?.0.to_string(),
            ("gid", Some(user), Ok(id)) => user.outside(0, id)?.1.to_string(),
            _ => value.to_owned(),
        };
        fsconfig_set_string(context, name, value)
            .with_context(|| format!("tmpfs does not take {option:?}"))?;
    }
    for option in options.kept.iter().filter(is_attribute).filter(|option| option.as_str() == "lazytime") {
        fsconfig_set_flag(context, option.as_str())?;
    }
    fsconfig_create(context)?;
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn copy_directory(from: OwnedFd, to: BorrowedFd<'_>, depth: u32) -> anyhow::Result<()> {
    if depth > DEPTH_LIMIT {
        bail!("directories are nested more than {DEPTH_LIMIT} deep");
    }
    let mut entries = Dir::read_from(&from)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        copy_entry(from.as_fd(), to, name, depth)
            .with_context(|| format!("failed to copy {:?}", name.to_string_lossy()))?;
    }
    Ok(())
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    depth: u32,
) -> anyhow::Result<()> {
    let found = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let reading = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let owner = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let flags = reading | OFlags::DIRECTORY;
            let (source, copy) =
                (openat(from, name, flags, Mode::empty())?, openat(to, name, flags, Mode::empty())?);
            copy_directory(source, copy.as_fd(), depth + 1)?;
            own(&copy, &found, true, true)?;
        }
        FileType::RegularFile => {
            let mut source = File::from(openat(from, name, reading, Mode::empty())?);
            let writing = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut copy = File::from(openat(to, name, writing, Mode::RUSR | Mode::WUSR)?);
            io::copy(&mut source, &mut copy)?;
            own(&copy, &found, true, true)?;
        }
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new())?;
            symlinkat(target, to, name)?;
            rustix::fs::chownat(to, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        // Devices of an image are not the container's to have, and sockets and pipes have no content.
        _ => {}
    }
    Ok(())
}

/// Owner before mode: a change of owner takes set-user-id bits away.
fn own(file: impl AsFd, like: &Stat, mode: bool, owner: bool) -> io::Result<()> {
    if owner {
        fchown(file.as_fd(), Some(Uid::from_raw(like.st_uid)), Some(Gid::from_raw(like.st_gid)))?;
    }
    if mode {
        fchmod(file, Mode::from_raw_mode(like.st_mode))?;
    }
    Ok(())
}
