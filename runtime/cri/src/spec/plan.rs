//! The plan of one container: `config.json` from the kubelet's wish, the image and the machine.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, Process, ProcessBuilder, RootBuilder, Spec,
    SpecBuilder, UserBuilder,
};
use orlop_cri::v1;

use super::capabilities::{self, Granted};
use super::mounts::{self, HostMount, PodFiles};
use super::resources::{self, CgroupFeatures, HostDevice};
use super::{seccomp, signals};
use crate::error::CriError;
use crate::model::{ContainerUser, Sandbox, namespace_options, pod_user_namespace};

/// The namespace path that the shim replaces by its own namespace of that type.
const POD_NAMESPACE: &str = "pod";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SIGTERM: i32 = 15;

/// Everything that a `config.json` depends on.
pub(crate) struct Input<'a> {
    /// The kubelet's wish.
    pub config: &'a v1::ContainerConfig,
    /// The pod.
    pub sandbox: &'a Sandbox,
    /// The image's own wish.
    pub image: &'a ImageConfiguration,
    /// Who runs, resolved in the image.
    pub user: &'a ContainerUser,
    /// The user's home directory in the image.
    pub home: &'a str,
    /// Hostname inside the pod.
    pub hostname: &'a str,
    /// Mounts of the kubelet, resolved.
    pub mounts: &'a [HostMount],
    /// The pod's files.
    pub files: &'a PodFiles,
    /// Devices, looked up.
    pub devices: &'a [HostDevice],
    /// A seccomp profile that was read from a file.
    pub localhost_seccomp: Option<LinuxSeccomp>,
    /// AppArmor profile, loaded.
    pub apparmor: Option<String>,
    /// First process of the container whose PID namespace is joined.
    pub target_pid: Option<u32>,
    /// Cgroup of the container.
    pub cgroup: &'a str,
    /// What cgroups can do here.
    pub cgroups: &'a CgroupFeatures,
    /// Capabilities that the daemon itself holds.
    pub available_capabilities: &'a BTreeSet<String>,
    /// Lowest oom_score_adj that may be asked for.
    pub oom_score_adj_floor: Option<i32>,
}

/// The security context, empty when absent.
pub(crate) fn security_context(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// The resources, empty when absent.
pub(crate) fn wanted_resources(config: &v1::ContainerConfig) -> v1::LinuxContainerResources {
    config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
}

/// The signal that stops the container: the kubelet's, else the image's, else SIGTERM.
pub(crate) fn stop_signal(config: &v1::ContainerConfig, image: &ImageConfiguration) -> i32 {
    let of_image = image.config().as_ref().and_then(|config| config.stop_signal().as_deref());
    signals::from_cri(config.stop_signal()).or_else(|| of_image.and_then(signals::parse)).unwrap_or(SIGTERM)
}

/// Makes the plan.
///
/// # Errors
/// [`CriError::Invalid`] for a wish that makes no sense, [`CriError::Unimplemented`] for one that this runtime does not do.
pub(crate) fn plan_spec(input: &Input<'_>) -> Result<Spec, CriError> {
    let context = security_context(input.config);
    let granted = capabilities::grant(&context, input.available_capabilities)?;
    let process = plan_process(input, &context, &granted)?;
    let linux = plan_linux(input, &context, &granted)?;
    let wrap = |error: OciSpecError| CriError::failed("failed to write the container's specification", error);
    let options = container_namespaces(input.config);
    let shape = mounts::Shape {
        privileged: context.privileged,
        readonly_rootfs: context.readonly_rootfs,
        host_ipc: options.ipc() == v1::NamespaceMode::Node,
        mapped: pod_user_namespace(&input.sandbox.config).is_some(),
    };
    let mounts = mounts::plan_mounts(input.mounts, input.files, &shape).map_err(wrap)?;
    let root =
        RootBuilder::default().path("rootfs").readonly(context.readonly_rootfs).build().map_err(wrap)?;
    let mut spec = SpecBuilder::default()
        .version("1.2.0")
        .root(root)
        .mounts(mounts)
        .process(process)
        .annotations(annotations(input))
        .linux(linux)
        .build()
        .map_err(wrap)?;
    // The pod's UTS namespace already carries the name.
    spec.set_hostname(None);
    Ok(spec)
}

fn container_namespaces(config: &v1::ContainerConfig) -> v1::NamespaceOption {
    security_context(config).namespace_options.unwrap_or_default()
}

/// Program and arguments: the kubelet's command replaces the image's entry point and its arguments.
///
/// # Errors
/// [`CriError::Invalid`] when neither says what to run.
pub(crate) fn plan_arguments(
    config: &v1::ContainerConfig,
    image: &ImageConfiguration,
) -> Result<Vec<String>, CriError> {
    let image = image.config().as_ref();
    let entrypoint = image.and_then(|image| image.entrypoint().clone()).unwrap_or_default();
    let command = image.and_then(|image| image.cmd().clone()).unwrap_or_default();
    let arguments: Vec<String> = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => config.command.iter().chain(&config.args).cloned().collect(),
        (true, false) => entrypoint.iter().chain(&config.args).cloned().collect(),
        (true, true) => entrypoint.into_iter().chain(command).collect(),
    };
    if arguments.is_empty() {
        return Err(CriError::Invalid(
            "no command specified: neither the container nor its image names one".to_owned(),
        ));
    }
    Ok(arguments)
}

fn plan_environment(input: &Input<'_>) -> Vec<String> {
    let image = input.image.config().as_ref().and_then(|image| image.env().clone()).unwrap_or_default();
    let mut environment: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: String| match environment.iter_mut().find(|(known, _)| known == key) {
        Some((_, old)) => *old = value,
        None => environment.push((key.to_owned(), value)),
    };
    set("PATH", DEFAULT_PATH.to_owned());
    set("HOSTNAME", input.hostname.to_owned());
    set("HOME", input.home.to_owned());
    if input.config.tty {
        set("TERM", "xterm".to_owned());
    }
    for variable in &image {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(key, value.to_owned());
    }
    for variable in &input.config.envs {
        set(&variable.key, String::from_utf8_lossy(&variable.value).into_owned());
    }
    environment.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn plan_process(
    input: &Input<'_>,
    context: &v1::LinuxContainerSecurityContext,
    granted: &Granted,
) -> Result<Process, CriError> {
    let wrap = |error: OciSpecError| CriError::failed("failed to write the container's process", error);
    let of_image =
        input.image.config().as_ref().and_then(|image| image.working_dir().clone()).unwrap_or_default();
    let directory =
        [input.config.working_dir.as_str(), of_image.as_str(), "/"].into_iter().find(|path| !path.is_empty());
    let user = UserBuilder::default()
        .uid(input.user.uid)
        .gid(input.user.gid)
        .additional_gids(input.user.groups.clone())
        .build()
        .map_err(wrap)?;
    let mut process = ProcessBuilder::default()
        .terminal(input.config.tty)
        .user(user)
        .args(plan_arguments(input.config, input.image)?)
        .env(plan_environment(input))
        .cwd(mounts::clean(Path::new(directory.unwrap_or("/"))))
        .capabilities(capabilities::to_oci(granted)?);
    let wanted = wanted_resources(input.config);
    process = process.oom_score_adj(oom_score_adj(wanted.oom_score_adj, input.oom_score_adj_floor));
    let mut process = process.build().map_err(wrap)?;
    process.set_rlimits(None);
    process.set_apparmor_profile(input.apparmor.clone());
    // Absent, not false: false beside a seccomp filter is refused further down.
    process.set_no_new_privileges(context.no_new_privs.then_some(true));
    Ok(process)
}

/// Inside the kernel's range, and not below what this daemon may ask for.
pub(crate) fn oom_score_adj(wanted: i64, floor: Option<i32>) -> i32 {
    let adjust = i32::try_from(wanted.clamp(-1000, 1000)).unwrap_or(0);
    floor.map_or(adjust, |floor| adjust.max(floor))
}

fn plan_linux(
    input: &Input<'_>,
    context: &v1::LinuxContainerSecurityContext,
    granted: &Granted,
) -> Result<Linux, CriError> {
    let wrap = |error: OciSpecError| CriError::failed("failed to write the container's isolation", error);
    let wanted = wanted_resources(input.config);
    let limits =
        resources::plan_resources(&wanted, input.cgroups, context.privileged, input.devices).map_err(wrap)?;
    let (masked, readonly) = if context.privileged {
        (Vec::new(), Vec::new())
    } else {
        // libcontainer mounts the v1 hierarchies writable: root in the container could lift its own limits.
        let hierarchies = input.cgroups.v1_names.iter().map(|name| format!("/sys/fs/cgroup/{name}"));
        (context.masked_paths.clone(), context.readonly_paths.iter().cloned().chain(hierarchies).collect())
    };
    let devices: Result<Vec<LinuxDevice>, OciSpecError> = input.devices.iter().map(plan_device).collect();
    let mut linux = LinuxBuilder::default()
        .namespaces(plan_namespaces(input, context.privileged).map_err(wrap)?)
        .resources(limits)
        .cgroups_path(PathBuf::from(input.cgroup))
        .masked_paths(masked)
        .readonly_paths(readonly)
        .devices(devices.map_err(wrap)?)
        .build()
        .map_err(wrap)?;
    linux.set_seccomp(plan_seccomp(input, context, granted)?);
    linux.set_rootfs_propagation(root_propagation(input.mounts).map(str::to_owned));
    Ok(linux)
}

/// As far as the mount that wants most.
fn root_propagation(mounts: &[HostMount]) -> Option<&'static str> {
    let wants = |wanted| mounts.iter().any(|mount| mount.propagation == wanted);
    if wants(v1::MountPropagation::PropagationBidirectional) {
        Some("rshared")
    } else if wants(v1::MountPropagation::PropagationHostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

fn plan_device(device: &HostDevice) -> Result<LinuxDevice, OciSpecError> {
    LinuxDeviceBuilder::default()
        .path(PathBuf::from(&device.path))
        .typ(if device.block { LinuxDeviceType::B } else { LinuxDeviceType::C })
        .major(device.major)
        .minor(device.minor)
        .file_mode(device.mode)
        .uid(device.uid)
        .gid(device.gid)
        .build()
}

fn plan_namespaces(input: &Input<'_>, privileged: bool) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let of_pod = namespace_options(&input.sandbox.config);
    let own = container_namespaces(input.config);
    let new = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let pod = |kind| LinuxNamespaceBuilder::default().typ(kind).path(POD_NAMESPACE).build();
    let mut namespaces = vec![new(LinuxNamespaceType::Mount)?];
    if of_pod.network() != v1::NamespaceMode::Node {
        namespaces.push(pod(LinuxNamespaceType::Network)?);
        namespaces.push(pod(LinuxNamespaceType::Uts)?);
    }
    if of_pod.ipc() != v1::NamespaceMode::Node {
        namespaces.push(pod(LinuxNamespaceType::Ipc)?);
    }
    if pod_user_namespace(&input.sandbox.config).is_some() {
        namespaces.push(pod(LinuxNamespaceType::User)?);
    }
    match (own.pid(), input.target_pid) {
        (v1::NamespaceMode::Node, _) => {}
        (v1::NamespaceMode::Target, Some(pid)) => namespaces.push(
            LinuxNamespaceBuilder::default()
                .typ(LinuxNamespaceType::Pid)
                .path(format!("/proc/{pid}/ns/pid"))
                .build()?,
        ),
        (v1::NamespaceMode::Pod, _) if input.sandbox.shared_pid() => {
            namespaces.push(pod(LinuxNamespaceType::Pid)?)
        }
        (v1::NamespaceMode::Pod | v1::NamespaceMode::Container | v1::NamespaceMode::Target, _) => {
            namespaces.push(new(LinuxNamespaceType::Pid)?);
        }
    }
    if input.cgroups.unified && !privileged {
        namespaces.push(new(LinuxNamespaceType::Cgroup)?);
    }
    Ok(namespaces)
}

/// The wished seccomp profile, also in the text form of old kubelets; none is unconfined.
///
/// # Errors
/// A text that is no profile.
#[expect(deprecated, reason = "old kubelets send it")]
pub(crate) fn seccomp_profile(
    context: &v1::LinuxContainerSecurityContext,
) -> Result<Option<v1::SecurityProfile>, CriError> {
    match &context.seccomp {
        Some(profile) => Ok(Some(profile.clone())),
        None => crate::apparmor::profile_from_text(&context.seccomp_profile_path),
    }
}

fn plan_seccomp(
    input: &Input<'_>,
    context: &v1::LinuxContainerSecurityContext,
    granted: &Granted,
) -> Result<Option<LinuxSeccomp>, CriError> {
    use v1::security_profile::ProfileType;
    let Some(profile) = seccomp_profile(context)?.filter(|_| !context.privileged) else {
        return Ok(None);
    };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::Localhost => Ok(input.localhost_seccomp.clone()),
        ProfileType::RuntimeDefault => seccomp::runtime_default(&granted.all)
            .map(Some)
            .map_err(|error| CriError::failed("failed to write the default seccomp profile", error)),
    }
}

fn annotations(input: &Input<'_>) -> HashMap<String, String> {
    let metadata = input.sandbox.config.metadata.clone().unwrap_or_default();
    let name = input.config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    HashMap::from([
        ("io.kubernetes.cri.container-type".to_owned(), "container".to_owned()),
        ("io.kubernetes.cri.sandbox-id".to_owned(), input.sandbox.id.clone()),
        ("io.kubernetes.cri.sandbox-namespace".to_owned(), metadata.namespace),
        ("io.kubernetes.cri.sandbox-name".to_owned(), metadata.name),
        ("io.kubernetes.cri.container-name".to_owned(), name),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::sandbox;

    struct Case {
        config: v1::ContainerConfig,
        sandbox: Sandbox,
        image: ImageConfiguration,
        cgroups: CgroupFeatures,
    }

    impl Case {
        fn new(context: v1::LinuxContainerSecurityContext) -> Self {
            let image = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
                "config":{"Entrypoint":["/entry"],"Cmd":["default"],"Env":["PATH=/image","A=image"],"WorkingDir":"/w"}}"#;
            let config = v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 0 }),
                envs: vec![v1::KeyValue { key: "A".into(), value: b"pod=1".to_vec() }],
                linux: Some(v1::LinuxContainerConfig {
                    resources: Some(v1::LinuxContainerResources { oom_score_adj: 999, ..Default::default() }),
                    security_context: Some(context),
                }),
                ..Default::default()
            };
            Self {
                config,
                sandbox: sandbox("s"),
                image: serde_json::from_str(image).unwrap(),
                cgroups: CgroupFeatures {
                    v1_names: vec!["cpu,cpuacct".to_owned()],
                    ..CgroupFeatures::default()
                },
            }
        }

        fn plan(&self) -> Result<Spec, CriError> {
            plan_spec(&Input {
                config: &self.config,
                sandbox: &self.sandbox,
                image: &self.image,
                user: &ContainerUser { uid: 33, gid: 34, groups: vec![34, 50] },
                home: "/srv",
                hostname: "web",
                mounts: &[],
                files: &PodFiles {
                    shm: "/s/shm".into(),
                    resolv_conf: "/s/resolv.conf".into(),
                    hostname: "/s/hostname".into(),
                    hosts: "/s/hosts".into(),
                },
                devices: &[],
                localhost_seccomp: None,
                apparmor: None,
                target_pid: Some(77),
                cgroup: "/kubepods/pod1/c",
                cgroups: &self.cgroups,
                available_capabilities: &capabilities::from_mask(u64::MAX),
                oom_score_adj_floor: Some(-500),
            })
        }

        fn namespaces(&self) -> Vec<(String, Option<String>)> {
            let spec = self.plan().unwrap();
            let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
            let mut listed: Vec<_> = namespaces
                .iter()
                .map(|one| {
                    (one.typ().to_string(), one.path().as_ref().map(|path| path.display().to_string()))
                })
                .collect();
            listed.sort();
            listed
        }
    }

    fn context(
        change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
    ) -> v1::LinuxContainerSecurityContext {
        let mut context = v1::LinuxContainerSecurityContext {
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            seccomp: Some(v1::SecurityProfile::default()),
            namespace_options: Some(v1::NamespaceOption {
                pid: v1::NamespaceMode::Container as i32,
                ..Default::default()
            }),
            ..Default::default()
        };
        change(&mut context);
        context
    }

    #[test]
    fn an_ordinary_container() {
        let case = Case::new(context(|_| {}));
        let spec = case.plan().unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["/entry", "default"]);
        assert_eq!(process.env().as_ref().unwrap(), &["PATH=/image", "HOSTNAME=web", "HOME=/srv", "A=pod=1"]);
        assert_eq!(
            (process.cwd().as_path(), process.user().uid(), process.oom_score_adj()),
            (Path::new("/w"), 33, Some(999))
        );
        assert!(
            process.no_new_privileges().is_none() && process.rlimits().is_none() && spec.hostname().is_none()
        );
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_some());
        assert_eq!(linux.masked_paths().as_ref().unwrap(), &["/proc/kcore"]);
        assert_eq!(linux.readonly_paths().as_ref().unwrap(), &["/proc/sys", "/sys/fs/cgroup/cpu,cpuacct"]);
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/kubepods/pod1/c")));
        // What the OCI side reads is what was meant.
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }

    #[test]
    fn a_privileged_container() {
        let case = Case::new(context(|context| {
            context.privileged = true;
            context.no_new_privs = true;
        }));
        let spec = case.plan().unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_none() && linux.masked_paths().as_ref().unwrap().is_empty());
        let process = spec.process().as_ref().unwrap();
        assert_eq!(
            process.capabilities().as_ref().unwrap().effective().as_ref().unwrap().len(),
            capabilities::BY_BIT.len()
        );
        assert_eq!(process.no_new_privileges(), Some(true));
    }

    #[test]
    fn namespaces_follow_pod_and_container() {
        let pod = |kind: &str| (kind.to_owned(), Some("pod".to_owned()));
        let new = |kind: &str| (kind.to_owned(), None);
        let mut case = Case::new(context(|_| {}));
        assert_eq!(case.namespaces(), [pod("ipc"), new("mnt"), pod("net"), new("pid"), pod("uts")]);
        case.cgroups.unified = true;
        assert!(case.namespaces().contains(&new("cgroup")));
        let set_pid = |case: &mut Case, mode: v1::NamespaceMode| {
            let context = case.config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            context.namespace_options.as_mut().unwrap().set_pid(mode);
        };
        set_pid(&mut case, v1::NamespaceMode::Pod);
        assert!(case.namespaces().contains(&pod("pid")));
        set_pid(&mut case, v1::NamespaceMode::Target);
        assert!(case.namespaces().contains(&("pid".to_owned(), Some("/proc/77/ns/pid".to_owned()))));
        set_pid(&mut case, v1::NamespaceMode::Node);
        case.sandbox.config.linux = Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    network: v1::NamespaceMode::Node as i32,
                    ipc: v1::NamespaceMode::Node as i32,
                    pid: v1::NamespaceMode::Node as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        });
        assert_eq!(case.namespaces(), [new("cgroup"), new("mnt")]);
    }

    #[test]
    fn commands_and_arguments_replace_the_images() {
        let case = Case::new(context(|_| {}));
        let plan = |command: &[&str], args: &[&str]| {
            let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            let config =
                v1::ContainerConfig { command: strings(command), args: strings(args), ..Default::default() };
            plan_arguments(&config, &case.image).unwrap()
        };
        assert_eq!(plan(&[], &[]), ["/entry", "default"]);
        assert_eq!(plan(&[], &["x"]), ["/entry", "x"]);
        assert_eq!(plan(&["/c"], &[]), ["/c"]);
        assert_eq!(plan(&["/c"], &["x"]), ["/c", "x"]);
        let bare = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
        );
        let error = plan_arguments(&v1::ContainerConfig::default(), &bare.unwrap()).unwrap_err();
        assert!(error.to_string().contains("no command"), "{error}");
    }
}
