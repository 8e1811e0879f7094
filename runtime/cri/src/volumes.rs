//! Where a container's mounts come from: paths of the host, trees shared with it, images.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use orlop_cri::v1;
use orlop_images::{ImageError, ImageStore};
use orlop_shim::protocol::{StagedMount, StagedSource};

use crate::error::{CriError, chain};
use crate::spec::mounts::{self, HostMount};

/// The kubelet's mounts, resolved.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    /// For the container's configuration.
    pub mounts: Vec<HostMount>,
    /// For the shim to make before.
    pub staged: Vec<StagedMount>,
}

/// Whom the volumes are for.
pub(crate) struct Owner<'a> {
    /// Key of the container's root file system, which keeps images alive.
    pub id: &'a str,
    /// The container's bundle.
    pub bundle: &'a Path,
    /// Where images are.
    pub images: &'a ImageStore,
    /// The pod's own user namespace.
    pub user: Option<v1::UserNamespace>,
    /// The root directory as the pod's shim sees it; absent, it is taken for this process's own.
    pub shim_root: Option<PathBuf>,
}

/// Resolves mounts: links followed, missing host directories made (as every CRI runtime does), images looked up and named in `wanted`.
///
/// # Errors
/// The mount that cannot be made, and why.
pub(crate) fn resolve(wanted: &mut [v1::Mount], owner: &Owner<'_>) -> Result<Volumes, CriError> {
    let mut volumes = Volumes::default();
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| CriError::failed("failed to read the mount table", error))?;
    for mount in wanted {
        mounts::check(mount, owner.user.as_ref())?;
        let target = owner.bundle.join("mounts").join(volumes.staged.len().to_string());
        let (source, staged) = match &mut mount.image {
            Some(image) => (target.clone(), Some(image_source(image, &mount.image_sub_path, owner)?)),
            None => {
                let path = host_path(&mount.host_path)?;
                check_propagation(&mountinfo, &path, mount.propagation())?;
                let private = mount.propagation() == v1::MountPropagation::PropagationPrivate;
                match private && owner.sees(&path) {
                    true => (path, None),
                    false => (target.clone(), Some(StagedSource::Host { path })),
                }
            }
        };
        volumes.staged.extend(staged.map(|source| StagedMount { target, source }));
        volumes.mounts.push(HostMount {
            host_path: source,
            container_path: PathBuf::from(&mount.container_path),
            readonly: mount.readonly,
            recursive_read_only: mount.recursive_read_only,
            propagation: mount.propagation(),
            options: mount.mount_options.clone(),
            // An image's layers are mapped by the shim: an overlay itself cannot be.
            mapped: mount.image.is_none() && !mount.uid_mappings.is_empty(),
        });
    }
    Ok(volumes)
}

impl Owner<'_> {
    /// Whether the shim sees the same at a path. Where the host's root is not shared, mounts made after the pod do not reach it (a volume's sub
    /// path, for one).
    fn sees(&self, path: &Path) -> bool {
        let Some(root) = &self.shim_root else { return true };
        let inside = root.join(path.strip_prefix("/").unwrap_or(path));
        let identity = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        identity(path) == identity(&inside)
    }
}

fn host_path(given: &str) -> Result<PathBuf, CriError> {
    let failed = |error| CriError::failed(format!("failed to prepare the mount source {given}"), error);
    match std::fs::canonicalize(given) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(given).map_err(failed)?;
            std::fs::canonicalize(given).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn image_source(
    wanted: &mut v1::ImageSpec,
    sub_path: &str,
    owner: &Owner<'_>,
) -> Result<StagedSource, CriError> {
    let name = wanted.image.clone();
    let failed = |error: &ImageError| CriError::Failed {
        act: format!("ImageVolumeMountFailed: failed to resolve image {name:?}"),
        cause: chain(error).into(),
    };
    let image = owner.images.find(&name).map_err(|error| failed(&error))?;
    let image = image.ok_or_else(|| failed(&ImageError::Unknown(name.clone())))?;
    let lower = owner.images.prepare_volume(owner.id, &image.id).map_err(|error| failed(&error))?;
    // As ContainerStatus is to tell it (KEP-5365): what PullImage answered.
    wanted.image_ref = image.id;
    Ok(StagedSource::Image { lower, sub_path: PathBuf::from(sub_path) })
}

/// Without a mount that propagates, what the kubelet asks for would silently not happen.
fn check_propagation(
    mountinfo: &str,
    path: &Path,
    propagation: v1::MountPropagation,
) -> Result<(), CriError> {
    let (tags, wanted): (&[&str], _) = match propagation {
        v1::MountPropagation::PropagationPrivate => return Ok(()),
        v1::MountPropagation::PropagationHostToContainer => (&["shared:", "master:"], "shared or slave"),
        v1::MountPropagation::PropagationBidirectional => (&["shared:"], "shared"),
    };
    let Some((mountpoint, found)) = mount_of(mountinfo, path) else {
        return Err(CriError::Invalid(format!("path {path:?} is on no mount of this machine")));
    };
    if found.iter().any(|tag| tags.iter().any(|wanted| tag.starts_with(wanted))) {
        return Ok(());
    }
    Err(CriError::Invalid(format!(
        "path {path:?} is mounted on {mountpoint:?} but it is not a {wanted} mount"
    )))
}

/// The mount that `path` is on, with its optional fields (proc_pid_mountinfo(5)): of several on one place the last, which covers the others.
fn mount_of<'a>(mountinfo: &'a str, path: &Path) -> Option<(PathBuf, Vec<&'a str>)> {
    let lines = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(4);
        let mountpoint = PathBuf::from(unescape(fields.next()?));
        let tags = fields.skip(1).take_while(|field| *field != "-").collect();
        path.starts_with(&mountpoint).then_some((mountpoint, tags))
    });
    lines.max_by_key(|(mountpoint, _)| mountpoint.components().count())
}

/// Space, tab, newline and backslash are written as octal numbers.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw
23 22 8:2 / /var/lib rw master:3 propagate_from:2 - ext4 /dev/sdb rw
24 23 8:3 / /var/lib/a\\040b rw - ext4 /dev/sdc rw
25 22 8:4 / /twice rw - tmpfs a rw
26 25 8:4 / /twice rw shared:9 master:3 - tmpfs b rw
";

    #[test]
    fn propagation_needs_a_mount_that_propagates() {
        use v1::MountPropagation::{
            PropagationBidirectional as Both, PropagationHostToContainer as Down, PropagationPrivate as None,
        };
        for (path, down, both) in [
            ("/etc", true, true),
            ("/var/lib/x", true, false),
            ("/var/lib/a b/c", false, false),
            ("/var/library", true, true),
            ("/twice", true, true),
        ] {
            let may = |wanted| check_propagation(MOUNTINFO, Path::new(path), wanted).is_ok();
            assert_eq!((may(None), may(Down), may(Both)), (true, down, both), "{path}");
        }
        let error = check_propagation(MOUNTINFO, Path::new("/var/lib/x"), Both).unwrap_err().to_string();
        assert_eq!(error, "path \"/var/lib/x\" is mounted on \"/var/lib\" but it is not a shared mount");
    }

    #[test]
    fn sources_are_made_followed_and_staged() {
        let directory = tempfile::tempdir().unwrap();
        let images = ImageStore::open(orlop_images::Config {
            root: directory.path().join("images"),
            ..Default::default()
        })
        .unwrap();
        std::os::unix::fs::symlink("real", directory.path().join("link")).unwrap();
        std::fs::create_dir(directory.path().join("real")).unwrap();
        let mount = |name: &str| v1::Mount {
            container_path: "/c".into(),
            host_path: directory.path().join(name).to_string_lossy().into_owned(),
            ..Default::default()
        };
        let owner = Owner { id: "c", bundle: directory.path(), images: &images, user: None, shim_root: None };
        let volumes = resolve(&mut [mount("link"), mount("new/deep")], &owner).unwrap();
        assert!(volumes.mounts[0].host_path.ends_with("real") && volumes.staged.is_empty());
        assert!(volumes.mounts[1].host_path.is_dir());
        let image = v1::Mount {
            host_path: String::new(),
            readonly: true,
            image: Some(v1::ImageSpec { image: "nobody/has:it".into(), ..Default::default() }),
            ..mount("link")
        };
        let error = resolve(&mut [image], &owner).unwrap_err().to_string();
        assert!(
            error.starts_with("ImageVolumeMountFailed: failed to resolve image \"nobody/has:it\""),
            "{error}"
        );
    }
}
