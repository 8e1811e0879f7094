//! The mount table of a container: the specification's own mounts, then the pod's files, then the kubelet's.

use std::path::{Component, Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder};
use orlop_cri::v1;

use crate::error::CriError;

/// Files and directories of the pod on the host.
#[derive(Clone, Debug)]
pub(crate) struct PodFiles {
    /// Memory shared by the pod's containers; `None` uses the host's.
    pub shm: PathBuf,
    /// Generated `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// Generated `/etc/hostname`.
    pub hostname: PathBuf,
    /// Generated `/etc/hosts`, for kubelets that mount none.
    pub hosts: PathBuf,
}

/// A mount of the kubelet whose host path was resolved and exists.
#[derive(Clone, Debug)]
pub(crate) struct HostMount {
    /// Without symbolic links.
    pub host_path: PathBuf,
    /// In the container, absolute.
    pub container_path: PathBuf,
    /// Read-only at the top.
    pub readonly: bool,
    /// Read-only all the way down.
    pub recursive_read_only: bool,
    /// What crosses over.
    pub propagation: v1::MountPropagation,
    /// Checked bind mount options.
    pub options: Vec<String>,
    /// Owners are mapped through the pod's user namespace.
    pub mapped: bool,
}

/// What the mount table of a container depends on besides its mounts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    /// Privileged: `/sys` is writable.
    pub privileged: bool,
    /// Files of the pod are read-only too.
    pub readonly_rootfs: bool,
    /// `/dev/shm` is the host's.
    pub host_ipc: bool,
    /// The pod has a user namespace of its own.
    pub mapped: bool,
}

/// The shim's word for "through the pod's user namespace".
const ID_MAP: &str = "idmap";

/// Bind mount options that a mount may ask for beyond its own fields.
const MOUNT_OPTIONS: [&str; 13] = [
    "noexec",
    "exec",
    "nodev",
    "dev",
    "nosuid",
    "suid",
    "noatime",
    "relatime",
    "strictatime",
    "nodiratime",
    "rnoexec",
    "rnodev",
    "rnosuid",
];

/// Refuses what makes no sense, before anything is touched.
pub(crate) fn check(mount: &v1::Mount, user: Option<&v1::UserNamespace>) -> Result<(), CriError> {
    let path = &mount.container_path;
    check_mappings(mount, user)?;
    if let Some(unknown) = mount.mount_options.iter().find(|given| !MOUNT_OPTIONS.contains(&given.as_str())) {
        return Err(CriError::Invalid(format!(
            "mount {path}: mount option {unknown:?} is not one of {}",
            MOUNT_OPTIONS.join(", ")
        )));
    }
    if mount.recursive_read_only && !mount.readonly {
        return Err(CriError::Invalid(format!("mount {path}: recursive read-only needs readonly")));
    }
    if mount.recursive_read_only && mount.propagation() != v1::MountPropagation::PropagationPrivate {
        return Err(CriError::Invalid(format!(
            "mount {path}: recursive read-only needs private propagation"
        )));
    }
    match &mount.image {
        Some(image) => check_image(mount, image),
        None if !mount.image_sub_path.is_empty() => {
            Err(CriError::Invalid(format!("mount {path}: an image sub path without an image")))
        }
        None if mount.host_path.is_empty() => Err(CriError::Invalid(format!("mount {path}: no host path"))),
        None => Ok(()),
    }
}

/// A mount is mapped as its pod or not at all: no kubelet asks for anything else.
fn check_mappings(mount: &v1::Mount, user: Option<&v1::UserNamespace>) -> Result<(), CriError> {
    let path = &mount.container_path;
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    match user {
        Some(_) if mount.propagation() == v1::MountPropagation::PropagationBidirectional => {
            Err(CriError::Invalid(format!(
                "mount {path}: bidirectional propagation needs the host's user namespace"
            )))
        }
        _ if uids.is_empty() && gids.is_empty() => Ok(()),
        Some(user) if user.uids == *uids && user.gids == *gids => Ok(()),
        Some(_) => Err(CriError::Invalid(format!(
            "mount {path}: its id mappings are not those of the pod's user namespace"
        ))),
        None => Err(CriError::Invalid(format!(
            "mount {path}: id mappings without a user namespace of the pod's own"
        ))),
    }
}

/// In containerd's words: kubelets show them.
fn check_image(mount: &v1::Mount, image: &v1::ImageSpec) -> Result<(), CriError> {
    let problem = if !mount.host_path.is_empty() {
        "hostpath must be empty while mount image"
    } else if !mount.readonly {
        "readonly must be true while mount image"
    } else if image.image.is_empty() {
        "image not specified"
    } else if mount.propagation() != v1::MountPropagation::PropagationPrivate {
        "an image is mounted with private propagation only"
    } else {
        return Ok(());
    };
    Err(CriError::Invalid(format!("ImageVolumeMountFailed: {problem}: mount {}", mount.container_path)))
}

/// The whole table, parents before children.
pub(crate) fn plan_mounts(
    host_mounts: &[HostMount],
    files: &PodFiles,
    shape: &Shape,
) -> Result<Vec<Mount>, OciSpecError> {
    let mut mounts = base_mounts(shape.privileged)?;
    let access = if shape.readonly_rootfs { "ro" } else { "rw" };
    let shm = if shape.host_ipc { Path::new("/dev/shm") } else { files.shm.as_path() };
    mounts.push(bind(shm, "/dev/shm", &["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"])?);
    for (source, destination) in [
        (&files.hostname, "/etc/hostname"),
        (&files.resolv_conf, "/etc/resolv.conf"),
        (&files.hosts, "/etc/hosts"),
    ] {
        let mut options = vec!["rbind", "rprivate", access];
        options.extend(shape.mapped.then_some(ID_MAP));
        mounts.push(bind(source, destination, &options)?);
    }
    // The kubelet's mount at the same place wins.
    let given: Vec<PathBuf> = host_mounts.iter().map(|mount| clean(&mount.container_path)).collect();
    // A whole `/dev` of the kubelet's has its own pts, shm and mqueue.
    let own_dev = given.iter().any(|path| path == Path::new("/dev"));
    mounts.retain(|mount| {
        let path = mount.destination();
        !(given.contains(path) || own_dev && path.starts_with("/dev"))
    });
    let mut sorted: Vec<&HostMount> = host_mounts.iter().collect();
    sorted.sort_by_key(|mount| clean(&mount.container_path).components().count());
    for mount in sorted {
        let mut options = vec!["rbind"];
        options.push(match mount.propagation {
            v1::MountPropagation::PropagationPrivate => "rprivate",
            v1::MountPropagation::PropagationHostToContainer => "rslave",
            v1::MountPropagation::PropagationBidirectional => "rshared",
        });
        options.push(match (mount.recursive_read_only, mount.readonly) {
            (true, _) => "rro",
            (false, true) => "ro",
            (false, false) => "rw",
        });
        options.extend(mount.options.iter().map(String::as_str));
        options.extend(mount.mapped.then_some(ID_MAP));
        mounts.push(bind(&mount.host_path, clean(&mount.container_path), &options)?);
    }
    // A stable sort keeps the order above among siblings; `/` depth decides so that nothing is mounted over.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(mounts)
}

fn base_mounts(privileged: bool) -> Result<Vec<Mount>, OciSpecError> {
    let access = if privileged { "rw" } else { "ro" };
    let table: [(&str, &str, &str, &[&str]); 6] = [
        ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    table
        .into_iter()
        .map(|(destination, kind, source, options)| {
            MountBuilder::default()
                .destination(destination)
                .typ(kind)
                .source(source)
                .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
                .build()
        })
        .collect()
}

fn bind(source: &Path, destination: impl Into<PathBuf>, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
}

/// Absolute, without `.`, `..` and double slashes; a path in a container never leaves it.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> PodFiles {
        PodFiles {
            shm: "/run/s/shm".into(),
            resolv_conf: "/run/s/resolv.conf".into(),
            hostname: "/run/s/hostname".into(),
            hosts: "/run/s/hosts".into(),
        }
    }

    fn mount(host: &str, container: &str) -> HostMount {
        HostMount {
            host_path: host.into(),
            container_path: container.into(),
            readonly: false,
            recursive_read_only: false,
            propagation: v1::MountPropagation::PropagationPrivate,
            options: Vec::new(),
            mapped: false,
        }
    }

    #[test]
    fn parents_come_first_and_the_kubelets_mounts_win() {
        let mut deep = mount("/h/deep", "/data/a/b");
        deep.recursive_read_only = true;
        deep.readonly = true;
        let given =
            [deep, mount("/h/data", "/data/"), mount("/h/hosts", "/etc//hosts"), mount("/h/shm", "/dev/shm")];
        let mounts =
            plan_mounts(&given, &files(), &Shape { readonly_rootfs: true, ..Shape::default() }).unwrap();
        let place = |path: &str| {
            let found: Vec<usize> =
                (0..mounts.len()).filter(|at| mounts[*at].destination() == Path::new(path)).collect();
            assert_eq!(found.len(), 1, "{path}");
            found[0]
        };
        assert!(place("/data") < place("/data/a/b"));
        assert!(place("/dev") < place("/dev/shm") && place("/sys") < place("/sys/fs/cgroup"));
        let source = |path: &str| mounts[place(path)].source().clone().unwrap();
        assert_eq!(source("/etc/hosts"), PathBuf::from("/h/hosts"));
        assert_eq!(source("/dev/shm"), PathBuf::from("/h/shm"));
        assert!(mounts[place("/data/a/b")].options().as_ref().unwrap().contains(&"rro".to_owned()));
        assert!(mounts[place("/etc/resolv.conf")].options().as_ref().unwrap().contains(&"ro".to_owned()));
        assert!(mounts[place("/sys")].options().as_ref().unwrap().contains(&"ro".to_owned()));
    }

    #[test]
    fn a_dev_of_the_kubelets_is_left_whole() {
        let mut dev = mount("/dev", "/dev/");
        dev.options = vec!["nosuid".to_owned()];
        let mounts = plan_mounts(&[dev], &files(), &Shape { privileged: true, ..Shape::default() }).unwrap();
        let below: Vec<&Mount> =
            mounts.iter().filter(|mount| mount.destination().starts_with("/dev")).collect();
        assert_eq!(below.len(), 1);
        assert_eq!(below[0].options().as_ref().unwrap(), &["rbind", "rprivate", "rw", "nosuid"]);
    }

    #[test]
    fn mounts_that_make_no_sense_are_named() {
        let base = v1::Mount { container_path: "/c".into(), host_path: "/h".into(), ..Default::default() };
        let image = v1::Mount {
            host_path: String::new(),
            readonly: true,
            image: Some(v1::ImageSpec { image: "a:1".into(), ..Default::default() }),
            ..base.clone()
        };
        let bidirectional = v1::MountPropagation::PropagationBidirectional as i32;
        for good in [
            base.clone(),
            image.clone(),
            v1::Mount { propagation: bidirectional, ..base.clone() },
            v1::Mount { mount_options: vec!["noexec".into(), "nosuid".into()], ..base.clone() },
            v1::Mount { image_sub_path: "a/b".into(), ..image.clone() },
        ] {
            assert!(check(&good, None).is_ok(), "{good:?}");
        }
        for (bad, word) in [
            (v1::Mount { host_path: String::new(), ..base.clone() }, "no host path"),
            (v1::Mount { recursive_read_only: true, ..base.clone() }, "readonly"),
            (v1::Mount { mount_options: vec!["remount".into()], ..base.clone() }, "remount"),
            (v1::Mount { image_sub_path: "a".into(), ..base.clone() }, "sub path"),
            (v1::Mount { host_path: "/h".into(), ..image.clone() }, "hostpath must be empty"),
            (v1::Mount { readonly: false, ..image.clone() }, "readonly must be true"),
            (v1::Mount { image: Some(v1::ImageSpec::default()), ..image.clone() }, "image not specified"),
            (v1::Mount { propagation: bidirectional, ..image }, "private"),
        ] {
            let error = check(&bad, None).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn mounts_are_mapped_as_their_pod_or_not_at_all() {
        let range = |outside| vec![v1::IdMapping { container_id: 0, host_id: outside, length: 65_536 }];
        let pod = |outside| v1::UserNamespace {
            mode: v1::NamespaceMode::Pod as i32,
            uids: range(outside),
            gids: range(outside),
        };
        let plain = v1::Mount { container_path: "/c".into(), host_path: "/h".into(), ..Default::default() };
        let mapped = v1::Mount { uid_mappings: range(70_000), gid_mappings: range(70_000), ..plain.clone() };
        let both = v1::MountPropagation::PropagationBidirectional as i32;
        for (mount, user, wanted) in [
            (&plain, None, true),
            (&plain, Some(pod(70_000)), true),
            (&mapped, Some(pod(70_000)), true),
            (&mapped, Some(pod(140_000)), false),
            (&mapped, None, false),
            (&v1::Mount { propagation: both, ..plain.clone() }, Some(pod(70_000)), false),
        ] {
            assert_eq!(check(mount, user.as_ref()).is_ok(), wanted, "{mount:?} {user:?}");
        }
    }

    #[test]
    fn container_paths_stay_inside() {
        for (given, wanted) in [("/a/../../b", "/b"), ("a//b/.", "/a/b"), ("/..", "/")] {
            assert_eq!(clean(Path::new(given)), PathBuf::from(wanted));
        }
    }
}
