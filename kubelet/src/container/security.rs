//! Security contexts (upstream: kuberuntime/security_context.go). Pure.

use k8s_openapi::api::core::v1 as core;
use orlop_cri::v1 as cri;

use crate::pod::model;

/// Paths that unprivileged containers must not see (upstream: defaultMaskedPaths).
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const MASKED_MORE: [&str; 3] =
    ["/proc/scsi", "/sys/devices/virtual/powercap", "/sys/devices/system/cpu/cpu0/thermal_throttle"];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Why a container cannot be configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecurityError {
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    Root { pod: String, container: String },
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RootAsked { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})"
    )]
    Unverifiable { user: String, pod: String, container: String },
    #[error("invalid seccomp profile type {0:?}")]
    Seccomp(String),
}

fn mode(node: bool, otherwise: cri::NamespaceMode) -> i32 {
    if node { cri::NamespaceMode::Node as i32 } else { otherwise as i32 }
}

/// Namespaces of a pod; containers get them as the sandbox does.
pub(crate) fn namespaces(pod: &core::Pod, target_id: Option<String>) -> cri::NamespaceOption {
    let spec = model::spec(pod);
    let shared = if spec.share_process_namespace == Some(true) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    let pid = match &target_id {
        Some(_) if spec.host_pid != Some(true) && spec.share_process_namespace != Some(true) => {
            cri::NamespaceMode::Target as i32
        }
        _ => mode(spec.host_pid == Some(true), shared),
    };
    cri::NamespaceOption {
        network: mode(model::host_network(pod), cri::NamespaceMode::Pod),
        pid,
        ipc: mode(spec.host_ipc == Some(true), cri::NamespaceMode::Pod),
        target_id: target_id.unwrap_or_default(),
        userns_options: None,
    }
}

fn profile(kind: &str, localhost: Option<&String>) -> Result<cri::SecurityProfile, SecurityError> {
    use cri::security_profile::ProfileType;
    let profile_type = match kind {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Unconfined" => ProfileType::Unconfined,
        "Localhost" => ProfileType::Localhost,
        other => return Err(SecurityError::Seccomp(other.to_owned())),
    };
    Ok(cri::SecurityProfile {
        profile_type: profile_type as i32,
        localhost_ref: localhost.cloned().unwrap_or_default(),
    })
}

fn unconfined() -> cri::SecurityProfile {
    cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::Unconfined as i32,
        localhost_ref: String::new(),
    }
}

fn seccomp(
    pod: &core::Pod,
    container: Option<&core::SecurityContext>,
) -> Result<cri::SecurityProfile, SecurityError> {
    let own = container.and_then(|context| context.seccomp_profile.as_ref());
    let shared =
        model::spec(pod).security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
    match own.or(shared) {
        Some(set) => profile(&set.type_, set.localhost_profile.as_ref()),
        None => Ok(unconfined()),
    }
}

fn apparmor(
    pod: &core::Pod,
    container: Option<&core::SecurityContext>,
) -> Result<Option<cri::SecurityProfile>, SecurityError> {
    let own = container.and_then(|context| context.app_armor_profile.as_ref());
    let shared =
        model::spec(pod).security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    own.or(shared).map(|set| profile(&set.type_, set.localhost_profile.as_ref())).transpose()
}

fn selinux(options: Option<&core::SELinuxOptions>) -> Option<cri::SeLinuxOption> {
    let options = options?.clone();
    Some(cri::SeLinuxOption {
        user: options.user.unwrap_or_default(),
        role: options.role.unwrap_or_default(),
        r#type: options.type_.unwrap_or_default(),
        level: options.level.unwrap_or_default(),
    })
}

fn number(value: Option<i64>) -> Option<cri::Int64Value> {
    value.map(|value| cri::Int64Value { value })
}

fn groups(pod: &core::Pod) -> Vec<i64> {
    let Some(context) = &model::spec(pod).security_context else {
        return Vec::new();
    };
    let fs_group = context.fs_group.into_iter();
    context.supplemental_groups.iter().flatten().copied().chain(fs_group).collect()
}

fn groups_policy(pod: &core::Pod) -> i32 {
    let context = model::spec(pod).security_context.as_ref();
    match context.and_then(|context| context.supplemental_groups_policy.as_deref()) {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict as i32,
        _ => cri::SupplementalGroupsPolicy::Merge as i32,
    }
}

fn is_privileged(pod: &core::Pod) -> bool {
    model::containers(pod).iter().any(|(_, container)| {
        container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
    })
}

/// The security context of a sandbox.
pub(crate) fn sandbox(pod: &core::Pod) -> Result<cri::LinuxSandboxSecurityContext, SecurityError> {
    let context = model::spec(pod).security_context.clone().unwrap_or_default();
    Ok(cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        selinux_options: selinux(context.se_linux_options.as_ref()),
        run_as_user: number(
            context.run_as_user.filter(|_| context.run_as_group.is_none() || context.run_as_user.is_some()),
        ),
        run_as_group: number(context.run_as_group.filter(|_| context.run_as_user.is_some())),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        privileged: is_privileged(pod),
        // The sandbox runs nothing of the user's: the runtime's own profile is always right for it.
        seccomp: Some(profile("RuntimeDefault", None)?),
        ..Default::default()
    })
}

/// The security context of a container. `image` tells the user that the image asks for.
pub(crate) fn container(
    pod: &core::Pod,
    container: &core::Container,
    image: Option<&cri::Image>,
    target_id: Option<String>,
) -> Result<cri::LinuxContainerSecurityContext, SecurityError> {
    let shared = model::spec(pod).security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let asked = own.run_as_user.or(shared.run_as_user);
    let image_uid = image.and_then(|image| image.uid.as_ref()).map(|uid| uid.value);
    let image_user = image.map(|image| image.username.clone()).unwrap_or_default();
    verify_user(
        pod,
        container,
        asked,
        image_uid,
        &image_user,
        own.run_as_non_root.or(shared.run_as_non_root) == Some(true),
    )?;
    let run_as_user = asked.or(image_uid);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let strings = |list: &[&str]| list.iter().map(|&path| path.to_owned()).collect::<Vec<_>>();
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod, target_id)),
        selinux_options: selinux(own.se_linux_options.as_ref().or(shared.se_linux_options.as_ref())),
        run_as_user: number(run_as_user),
        run_as_group: number(own.run_as_group.or(shared.run_as_group)),
        run_as_username: if run_as_user.is_none() { image_user } else { String::new() },
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: if unmasked { Vec::new() } else { strings(&[&MASKED[..], &MASKED_MORE[..]].concat()) },
        readonly_paths: if unmasked { Vec::new() } else { strings(&READONLY) },
        seccomp: Some(if privileged {
            unconfined()
        } else {
            seccomp(pod, container.security_context.as_ref())?
        }),
        apparmor: apparmor(pod, container.security_context.as_ref())?,
        ..Default::default()
    })
}

fn verify_user(
    pod: &core::Pod,
    container: &core::Container,
    asked: Option<i64>,
    image_uid: Option<i64>,
    image_user: &str,
    non_root: bool,
) -> Result<(), SecurityError> {
    if !non_root {
        return Ok(());
    }
    let pod = model::full_name(pod);
    let container = container.name.clone();
    match (asked, image_uid) {
        (Some(0), _) => Err(SecurityError::RootAsked { pod, container }),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(SecurityError::Root { pod, container }),
        (None, Some(_)) => Ok(()),
        (None, None) if image_user.is_empty() => Err(SecurityError::Root { pod, container }),
        (None, None) => Err(SecurityError::Unverifiable { user: image_user.to_owned(), pod, container }),
    }
}
