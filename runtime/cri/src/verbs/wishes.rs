//! Values that no kubelet sends and nothing below would refuse by name: checked before anything is made.

use std::path::{Component, Path};

use orlop_cri::v1;

use crate::error::CriError;

/// Longer names are nobody's: Kubernetes' own have at most 253 characters (RFC 1123).
const NAME_LIMIT_BYTES: usize = 512;
/// `__NEW_UTS_LEN` of sethostname(2).
const HOSTNAME_LIMIT_BYTES: usize = 64;
/// `PATH_MAX` of path_resolution(7).
const PATH_LIMIT_BYTES: usize = 4095;
/// `NAME_MAX`.
const COMPONENT_LIMIT_BYTES: usize = 255;
/// Sysctls are a line.
const SYSCTL_LIMIT_BYTES: usize = 1024;

/// Whether a pod's names, paths and ports can be what they are for.
///
/// # Errors
/// [`CriError::Invalid`] with the field's name.
pub(super) fn check_pod(config: &v1::PodSandboxConfig) -> Result<(), CriError> {
    let metadata = config.metadata.clone().unwrap_or_default();
    for (field, value) in [
        ("metadata.name", &metadata.name),
        ("metadata.uid", &metadata.uid),
        ("metadata.namespace", &metadata.namespace),
    ] {
        check_line(field, value, NAME_LIMIT_BYTES)?;
    }
    check_line("hostname", &config.hostname, HOSTNAME_LIMIT_BYTES)?;
    check_path("log_directory", &config.log_directory)?;
    if let Some(linux) = &config.linux {
        check_path("cgroup_parent", &linux.cgroup_parent)?;
        for (name, value) in &linux.sysctls {
            check_line("a name of sysctls", name, SYSCTL_LIMIT_BYTES)?;
            check_line(&format!("sysctl {name}"), value, SYSCTL_LIMIT_BYTES)?;
        }
    }
    if let Some(dns) = &config.dns_config {
        for value in dns.servers.iter().chain(&dns.searches).chain(&dns.options) {
            check_line("dns_config", value, NAME_LIMIT_BYTES)?;
        }
    }
    config.port_mappings.iter().try_for_each(check_port)
}

/// Whether a container's log stays below its pod's directory.
///
/// # Errors
/// [`CriError::Invalid`] with the field's name.
pub(super) fn check_container(config: &v1::ContainerConfig) -> Result<(), CriError> {
    check_line("log_path", &config.log_path, PATH_LIMIT_BYTES)?;
    let below = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(&config.log_path).components().all(below) {
        return Err(invalid("log_path", &config.log_path, "leaves the pod's log directory"));
    }
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    for (field, value) in resources.into_iter().flat_map(|resources| {
        [("cpuset_cpus", &resources.cpuset_cpus), ("cpuset_mems", &resources.cpuset_mems)]
    }) {
        if value.len() > PATH_LIMIT_BYTES || !value.bytes().all(|byte| b"0123456789,-\n ".contains(&byte)) {
            return Err(invalid(field, value, "is no list of numbers like 0-2,5"));
        }
    }
    Ok(())
}

/// As containerd, and in its words: who may run a pod was decided by what its sandbox was announced as.
///
/// # Errors
/// [`CriError::Invalid`] for a privileged container in a pod that is not.
pub(super) fn check_privilege(
    pod: &v1::PodSandboxConfig,
    container: &v1::ContainerConfig,
) -> Result<(), CriError> {
    let pod = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let is_allowed = pod.is_some_and(|context| context.privileged);
    if crate::spec::plan::security_context(container).privileged && !is_allowed {
        return Err(CriError::Invalid(
            "no privileged container allowed in sandbox: it was not announced as privileged".to_owned(),
        ));
    }
    Ok(())
}

fn check_port(mapping: &v1::PortMapping) -> Result<(), CriError> {
    if v1::Protocol::try_from(mapping.protocol).is_err() {
        return Err(CriError::Invalid(format!("port_mappings: protocol {} is unknown", mapping.protocol)));
    }
    let out_of_range =
        !(1..=65535).contains(&mapping.container_port) || !(0..=65535).contains(&mapping.host_port);
    if out_of_range {
        return Err(CriError::Invalid(format!(
            "port_mappings: container port {} or host port {} is no port",
            mapping.container_port, mapping.host_port
        )));
    }
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<std::net::IpAddr>().is_err() {
        return Err(invalid("port_mappings: host_ip", &mapping.host_ip, "is no address"));
    }
    Ok(())
}

/// One line without control characters, of bounded length.
fn check_line(field: &str, value: &str, limit: usize) -> Result<(), CriError> {
    if value.len() > limit {
        return Err(CriError::Invalid(format!("{field} has {} bytes: at most {limit}", value.len())));
    }
    if value.chars().any(|one| one.is_control() && one != '\t') {
        return Err(invalid(field, value, "has a control character"));
    }
    Ok(())
}

/// Absolute, or not given; without `..`.
fn check_path(field: &str, value: &str) -> Result<(), CriError> {
    check_line(field, value, PATH_LIMIT_BYTES)?;
    if value.is_empty() {
        return Ok(());
    }
    if !value.starts_with('/') {
        return Err(invalid(field, value, "is not an absolute path"));
    }
    if Path::new(value).components().any(|part| part == Component::ParentDir) {
        return Err(invalid(field, value, "has a .. in it"));
    }
    if value.split('/').any(|part| part.len() > COMPONENT_LIMIT_BYTES) {
        return Err(invalid(field, value, "has a part of more than 255 bytes"));
    }
    Ok(())
}

fn invalid(field: &str, value: &str, what: &str) -> CriError {
    CriError::Invalid(format!("{field} {value:?} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubelets_send_is_taken() {
        let mut pod = crate::model::tests::sandbox("a").config;
        pod.log_directory = "/var/log/pods/default_a_uid".into();
        pod.hostname = "a".into();
        pod.port_mappings = vec![v1::PortMapping { container_port: 80, ..Default::default() }];
        let linux = pod.linux.get_or_insert_default();
        linux.cgroup_parent = "/kubepods/burstable/poduid".into();
        linux.sysctls.insert("net.ipv4.ip_local_port_range".into(), "1024\t65535".into());
        check_pod(&pod).unwrap();
        let log_path = "c/0.log".to_owned();
        check_container(&v1::ContainerConfig { log_path, ..Default::default() }).unwrap();
    }

    #[test]
    fn each_refusal_names_its_field() {
        let pod = |change: fn(&mut v1::PodSandboxConfig)| {
            let mut config = crate::model::tests::sandbox("a").config;
            change(&mut config);
            check_pod(&config).unwrap_err().to_string()
        };
        for (said, field) in [
            (pod(|c| c.hostname = "x".repeat(65)), "hostname"),
            (pod(|c| c.metadata.get_or_insert_default().uid = "a\0".into()), "metadata.uid"),
            (pod(|c| c.log_directory = "relative".into()), "log_directory"),
            (pod(|c| c.linux.get_or_insert_default().cgroup_parent = "/a/../../b".into()), "cgroup_parent"),
            (pod(|c| c.linux.get_or_insert_default().cgroup_parent = "x".repeat(9000)), "cgroup_parent"),
            (
                pod(|c| {
                    c.dns_config = Some(v1::DnsConfig { servers: vec!["a\nb".into()], ..Default::default() });
                }),
                "dns_config",
            ),
            (
                pod(|c| {
                    c.port_mappings = vec![v1::PortMapping { container_port: 70000, ..Default::default() }];
                }),
                "port",
            ),
        ] {
            assert!(said.contains(field), "{said}");
        }
        for log_path in ["../other/0.log", "/etc/passwd"] {
            let config = v1::ContainerConfig { log_path: log_path.into(), ..Default::default() };
            assert!(check_container(&config).is_err(), "{log_path}");
        }
    }
}
