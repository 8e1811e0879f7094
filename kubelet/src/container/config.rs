//! The sandbox and container configurations that CRI is asked for. Pure.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use orlop_cri::v1 as cri;

use super::dns::Resolver;
use super::security::{self, SecurityError};
use super::{env, resources};
use crate::labels;
use crate::pod::model;

/// What a sandbox follows from, beside the pod.
pub(crate) struct SandboxFacts<'a> {
    pub(crate) attempt: u32,
    pub(crate) hostname: String,
    pub(crate) log_directory: String,
    pub(crate) resolver: Resolver,
    pub(crate) cgroup_parent: String,
    pub(crate) source: &'a str,
}

fn pod_labels(pod: &core::Pod) -> HashMap<String, String> {
    HashMap::from([
        (labels::POD_NAME.to_owned(), model::name(pod).to_owned()),
        (labels::POD_NAMESPACE.to_owned(), model::namespace(pod).to_owned()),
        (labels::POD_UID.to_owned(), model::uid(pod).to_owned()),
    ])
}

/// `NAMESPACE_NAME_UID`: the directory of a pod's logs.
pub(crate) fn log_directory(pod: &core::Pod) -> String {
    format!("{}_{}_{}", model::namespace(pod), model::name(pod), model::uid(pod))
}

fn port_mappings(pod: &core::Pod) -> Vec<cri::PortMapping> {
    if model::host_network(pod) {
        return Vec::new();
    }
    let containers = model::containers(pod);
    let ports = containers.iter().flat_map(|(_, container)| container.ports.iter().flatten());
    ports
        .map(|port| cri::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp as i32,
                Some("SCTP") => cri::Protocol::Sctp as i32,
                _ => cri::Protocol::Tcp as i32,
            },
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// The sandbox of a pod.
pub(crate) fn sandbox(
    pod: &core::Pod,
    facts: &SandboxFacts<'_>,
) -> Result<cri::PodSandboxConfig, SecurityError> {
    let mut all_labels: HashMap<String, String> =
        pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    all_labels.extend(pod_labels(pod));
    let mut annotations: HashMap<String, String> =
        pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect();
    annotations.insert(labels::CONFIG_SOURCE.to_owned(), facts.source.to_owned());
    let created: Option<Timestamp> = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    if let Some(created) = created {
        annotations.insert(labels::CONFIG_SEEN.to_owned(), created.to_string());
    }
    let sysctls = model::spec(pod).security_context.as_ref().and_then(|context| context.sysctls.as_ref());
    let limits = resources::pod_limits(pod);
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: model::name(pod).to_owned(),
            uid: model::uid(pod).to_owned(),
            namespace: model::namespace(pod).to_owned(),
            attempt: facts.attempt,
        }),
        hostname: facts.hostname.clone(),
        log_directory: facts.log_directory.clone(),
        dns_config: Some(cri::DnsConfig {
            servers: facts.resolver.servers.clone(),
            searches: facts.resolver.searches.clone(),
            options: facts.resolver.options.clone(),
        }),
        port_mappings: port_mappings(pod),
        labels: all_labels,
        annotations,
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: facts.cgroup_parent.clone(),
            security_context: Some(security::sandbox(pod)?),
            sysctls: sysctls
                .into_iter()
                .flatten()
                .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
                .collect(),
            overhead: Some(cri::LinuxContainerResources::default()),
            resources: Some(cri::LinuxContainerResources {
                cpu_shares: limits.cpu_shares,
                cpu_quota: limits.cpu_quota.unwrap_or(0),
                cpu_period: limits.cpu_period,
                memory_limit_in_bytes: limits.memory_bytes.unwrap_or(0),
                ..Default::default()
            }),
        }),
        windows: None,
    })
}

/// What a container follows from, beside the pod.
pub(crate) struct ContainerFacts<'a> {
    pub(crate) attempt: u32,
    pub(crate) image_ref: &'a str,
    pub(crate) image: Option<&'a cri::Image>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<cri::Mount>,
    pub(crate) memory_capacity_bytes: i64,
    /// cgroup v2.
    pub(crate) unified: bool,
    /// Container whose PID namespace an ephemeral container joins.
    pub(crate) target_id: Option<String>,
}

/// One container.
pub(crate) fn container(
    pod: &core::Pod,
    spec: &core::Container,
    facts: ContainerFacts<'_>,
) -> Result<cri::ContainerConfig, SecurityError> {
    let values: BTreeMap<&str, &str> =
        facts.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expand = |texts: &Option<Vec<String>>| -> Vec<String> {
        let lookup = |name: &str| values.get(name).map(|&value| value.to_owned());
        texts.iter().flatten().map(|text| env::expand(text, lookup)).collect()
    };
    let mut all_labels = pod_labels(pod);
    all_labels.insert(labels::CONTAINER_NAME.to_owned(), spec.name.clone());
    let security_context = security::container(pod, spec, facts.image, facts.target_id.clone())?;
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: spec.name.clone(), attempt: facts.attempt }),
        image: Some(cri::ImageSpec {
            image: facts.image_ref.to_owned(),
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand(&spec.command),
        args: expand(&spec.args),
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: facts
            .env
            .iter()
            .map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone().into_bytes() })
            .collect(),
        mounts: facts.mounts,
        labels: all_labels,
        annotations: annotations(pod, spec, facts.attempt),
        log_path: format!("{}/{}.log", spec.name, facts.attempt),
        stdin: spec.stdin == Some(true),
        stdin_once: spec.stdin_once == Some(true),
        tty: spec.tty == Some(true),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources::container(pod, spec, facts.memory_capacity_bytes, facts.unified)),
            security_context: Some(security_context),
        }),
        stop_signal: stop_signal(spec),
        ..Default::default()
    })
}

fn stop_signal(spec: &core::Container) -> i32 {
    let name = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_ref());
    name.and_then(|name| cri::Signal::from_str_name(&format!("SIGNAL_{name}")))
        .map_or(0, |signal| signal as i32)
}

fn annotations(pod: &core::Pod, spec: &core::Container, attempt: u32) -> HashMap<String, String> {
    let path = spec.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    let policy = spec.termination_message_policy.as_deref().unwrap_or("File");
    let mut annotations = HashMap::from([
        (labels::HASH.to_owned(), model::hash(spec)),
        (labels::RESTART_COUNT.to_owned(), attempt.to_string()),
        (labels::MESSAGE_PATH.to_owned(), path.to_owned()),
        (labels::MESSAGE_POLICY.to_owned(), policy.to_owned()),
    ]);
    if let Some(grace) = model::spec(pod).termination_grace_period_seconds {
        annotations.insert(labels::POD_GRACE.to_owned(), grace.to_string());
    }
    if let Some(grace) = pod.metadata.deletion_grace_period_seconds {
        annotations.insert(labels::POD_DELETION_GRACE.to_owned(), grace.to_string());
    }
    let json = |value: serde_json::Result<String>| value.unwrap_or_default();
    if let Some(ports) = spec.ports.as_ref().filter(|ports| !ports.is_empty()) {
        annotations.insert(labels::CONTAINER_PORTS.to_owned(), json(serde_json::to_string(ports)));
    }
    if let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
        annotations.insert(labels::PRE_STOP.to_owned(), json(serde_json::to_string(hook)));
    }
    annotations
}
