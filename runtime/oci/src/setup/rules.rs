//! The configuration that libcontainer gets, derived from the one that we were given.
//!
//! libcontainer sets up namespaces, mounts and cgroups as root; user, capabilities, priorities, labels, seccomp and no_new_privs are [`crate::last_mile`]'s. So the derived
//! process is root with everything, and the rest is what libcontainer 0.7 would refuse or get wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::systemd::{self, ScopeError};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Process, Spec, User};

/// The path that stands for the pod's namespace.
pub const POD: &str = "pod";

/// A configuration that we do not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeriveError {
    /// `process` is missing.
    #[error("config.json has no process")]
    NoProcess,
    /// `linux` is missing.
    #[error("config.json has no linux section")]
    NoLinux,
    /// `root` is missing.
    #[error("config.json has no root")]
    NoRoot,
    /// `"path": "pod"` outside of a pod.
    #[error("the pod has no {0} namespace of its own")]
    NoPodNamespace(String),
    /// Two namespaces of one type.
    #[error("linux.namespaces has two of type {0}")]
    DuplicateNamespace(&'static str),
    /// Another major version of the specification.
    #[error("ociVersion {0:?} is not supported: this runtime speaks 1.x")]
    Version(String),
    /// A path that is neither below the root of the control groups nor a scope of systemd's.
    #[error(transparent)]
    Scope(#[from] ScopeError),
}

/// The name of a namespace type in configurations and requests.
pub fn namespace_name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

/// The cgroup of a container; of `slice:prefix:name`, where systemd has it.
pub(crate) fn cgroup_path(spec: &Spec, id: &str) -> Result<PathBuf, DeriveError> {
    let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    match given {
        None => Ok(Path::new("/").join(id)),
        // Relative paths are below the root too, not below wherever the caller happens to be.
        Some(path) => Ok(systemd::path_of(&path)?.unwrap_or_else(|| Path::new("/").join(path))),
    }
}

/// Derives. `user_namespace` is where libcontainer finds the one that the container runs in, unless that is ours.
pub(crate) fn derive(
    given: &Spec,
    id: &str,
    rootfs: &Path,
    pod_namespaces: &BTreeMap<String, PathBuf>,
    user_namespace: Option<PathBuf>,
) -> Result<Spec, DeriveError> {
    let mut spec = given.clone();
    let process = given.process().as_ref().ok_or(DeriveError::NoProcess)?;
    let mut linux = given.linux().clone().ok_or(DeriveError::NoLinux)?;
    let mut root = given.root().clone().ok_or(DeriveError::NoRoot)?;

    check_version(given.version())?;
    refuse_duplicates(linux.namespaces().as_deref().unwrap_or_default())?;
    linux.set_cgroups_path(Some(cgroup_path(given, id)?));
    linux.set_seccomp(None).set_personality(None);
    let others = linux.namespaces().iter().flatten();
    let others = others.filter(|namespace| namespace.typ() != LinuxNamespaceType::User);
    let mut namespaces =
        others.map(|namespace| substitute(namespace, pod_namespaces)).collect::<Result<Vec<_>, _>>()?;
    if let Some(path) = user_namespace {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(LinuxNamespaceType::User).set_path(Some(path));
        namespaces.push(namespace);
    }
    linux.set_namespaces(Some(namespaces));
    linux.set_uid_mappings(None).set_gid_mappings(None);
    // Only the recursive forms are in use (CRI says rslave), only the short names are understood, and they are applied recursively.
    let propagation =
        linux.rootfs_propagation().as_ref().map(|name| name.strip_prefix('r').unwrap_or(name).to_owned());
    linux.set_rootfs_propagation(propagation);

    root.set_path(rootfs.to_path_buf());
    spec.set_root(Some(root));
    spec.set_linux(Some(linux));
    spec.set_process(Some(derive_process(process)));
    Ok(spec)
}

fn substitute(
    namespace: &LinuxNamespace,
    pod: &BTreeMap<String, PathBuf>,
) -> Result<LinuxNamespace, DeriveError> {
    let mut namespace = namespace.clone();
    if namespace.path().as_deref() == Some(Path::new(POD)) {
        let name = namespace_name(namespace.typ());
        let path = pod.get(name).ok_or_else(|| DeriveError::NoPodNamespace(name.to_owned()))?;
        namespace.set_path(Some(path.clone()));
    }
    Ok(namespace)
}

/// Any 1.x (runtime-spec config.md, "Specification version").
fn check_version(version: &str) -> Result<(), DeriveError> {
    let minor = version.strip_prefix("1.").and_then(|rest| rest.split('.').next());
    match minor.is_some_and(|minor| !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit())) {
        true => Ok(()),
        false => Err(DeriveError::Version(version.to_owned())),
    }
}

/// runtime-spec config-linux.md, "Namespaces": an error, not a choice.
fn refuse_duplicates(namespaces: &[LinuxNamespace]) -> Result<(), DeriveError> {
    for (at, namespace) in namespaces.iter().enumerate() {
        if namespaces[..at].iter().any(|earlier| earlier.typ() == namespace.typ()) {
            return Err(DeriveError::DuplicateNamespace(namespace_name(namespace.typ())));
        }
    }
    Ok(())
}

/// Bind mounts name their source absolutely or from the bundle (runtime-spec config.md, "Mounts").
pub fn absolute_sources(spec: &mut Spec, bundle: &Path) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        let options = mount.options().as_deref().unwrap_or_default();
        let bind = mount.typ().as_deref() == Some("bind")
            || options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"));
        let relative = mount.source().clone().filter(|source| bind && source.is_relative());
        if let Some(source) = relative {
            mount.set_source(Some(bundle.join(source)));
        }
    }
    spec.set_mounts(Some(mounts));
}

fn derive_process(given: &Process) -> Process {
    let mut process = given.clone();
    let mut environment = given.env().clone().unwrap_or_default();
    if !environment.iter().any(|entry| entry.starts_with("PATH=")) {
        environment.push("PATH=/".to_owned());
    }
    process.set_env(Some(environment));
    process.set_user(User::default());
    process.set_capabilities(None);
    process.set_no_new_privileges(None);
    process.set_io_priority(None).set_scheduler(None).set_apparmor_profile(None).set_selinux_label(None);
    process.set_oom_score_adj(None);
    process.set_cwd(PathBuf::from("/"));
    process
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    const CONFIG: &str = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs","readonly":true},
        "process":{"user":{"uid":7,"gid":7},"args":["x"],"cwd":"/w","noNewPrivileges":false,"oomScoreAdj":-5,
            "capabilities":{"bounding":["CAP_CHOWN"]},"rlimits":[]},
        "linux":{"cgroupsPath":"kube/c1","rootfsPropagation":"rslave","seccomp":{"defaultAction":"SCMP_ACT_ALLOW"},
            "namespaces":[{"type":"mount"},{"type":"network","path":"pod"},{"type":"pid","path":"/proc/9/ns/pid"}]}}"#;

    #[test]
    fn hands_over_set_up_only() {
        let pod = BTreeMap::from([("network".to_owned(), PathBuf::from("/proc/5/ns/net"))]);
        let derived = derive(&spec(CONFIG), "c1", Path::new("/b/rootfs"), &pod, None).unwrap();
        let process = derived.process().as_ref().unwrap();
        assert_eq!(process.user().uid(), 0);
        assert!(process.capabilities().is_none() && process.no_new_privileges().is_none());
        assert!(process.oom_score_adj().is_none());
        assert_eq!(process.env().as_ref().unwrap(), &["PATH=/"]);
        let linux = derived.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_none());
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/kube/c1")));
        assert_eq!(linux.rootfs_propagation().as_deref(), Some("slave"));
        let paths: Vec<_> = linux.namespaces().iter().flatten().map(|n| n.path().clone()).collect();
        assert_eq!(paths, [None, Some("/proc/5/ns/net".into()), Some("/proc/9/ns/pid".into())]);
        assert_eq!(derived.root().as_ref().unwrap().path(), Path::new("/b/rootfs"));
        assert_eq!(derived.root().as_ref().unwrap().readonly(), Some(true));
    }

    #[test]
    fn refuses() {
        let no_pod = derive(&spec(CONFIG), "c1", Path::new("/r"), &BTreeMap::new(), None);
        assert_eq!(no_pod.unwrap_err(), DeriveError::NoPodNamespace("network".to_owned()));
        let scope = CONFIG.replace("kube/c1", "a-b.slice:p:c");
        let path = cgroup_path(&spec(&scope), "x").unwrap();
        assert_eq!(path, Path::new("/a.slice/a-b.slice/p-c.scope"));
        let bad = CONFIG.replace("kube/c1", "a:c");
        assert!(matches!(cgroup_path(&spec(&bad), "x"), Err(DeriveError::Scope(_))));
    }
}
