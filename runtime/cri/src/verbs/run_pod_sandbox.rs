//! RunPodSandbox: record, files, shim, network; undone in reverse when a step fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_cri::v1;
use orlop_shim::protocol::{IdMapping, ShimConfig, UserNamespace};
use serde_json::{Map, Value, json};

use super::wishes;
use crate::cni::{Attachment, NetworkList, plan};
use crate::config::CgroupDriver;
use crate::error::CriError;
use crate::files::{self, SandboxDir};
use crate::model::{
    RECORD_VERSION, SANDBOX_ID_LENGTH, Sandbox, SandboxName, Stage, namespace_options, pod_user_namespace,
};
use crate::runtime::Runtime;
use crate::{groups, machine, process};

impl Runtime {
    /// The verb. A retry with the same name joins, or gets the sandbox that is already there.
    pub(crate) async fn run_pod_sandbox(
        self: &Arc<Self>,
        config: v1::PodSandboxConfig,
        handler: &str,
    ) -> Result<String, CriError> {
        let known = handler.is_empty() || self.config.runtime_handlers.contains_key(handler);
        if !known {
            return Err(CriError::Invalid(format!(
                "failed to get sandbox runtime: no runtime for {handler:?} is configured"
            )));
        }
        check(&config)?;
        let name = SandboxName::of(&config).expect("check requires the metadata");
        let (runtime, handler) = (self.clone(), handler.to_owned());
        self.runs.join(name.clone(), || async move { runtime.run_named(name, config, handler).await }).await
    }

    async fn run_named(
        self: Arc<Self>,
        name: SandboxName,
        config: v1::PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<String, CriError> {
        let existing =
            self.model().sandbox_named(&name).map(|sandbox| (sandbox.id.clone(), sandbox.is_ready()));
        match existing {
            Some((id, true)) => return Ok(id),
            Some((id, false)) => {
                let text = format!(
                    "name {}/{} attempt {} is reserved by sandbox {id}",
                    name.namespace, name.name, name.attempt
                );
                return Err(CriError::AlreadyExists(text));
            }
            None => {}
        }
        let mut sandbox = Sandbox {
            version: RECORD_VERSION,
            id: machine::random_id(SANDBOX_ID_LENGTH),
            config,
            runtime_handler,
            created_at: machine::now(),
            stage: Stage::Making,
            shim: None,
            addresses: Vec::new(),
            made_cgroups: Vec::new(),
            systemd: self.config.cgroup_driver == CgroupDriver::Systemd,
        };
        groups::check_parent(self.config.cgroup_driver, &sandbox)?;
        let directory = self.directory(&sandbox.id);
        if let Err(error) = self.make(&mut sandbox, &directory).await {
            self.discard(&sandbox).await;
            return Err(error);
        }
        let id = sandbox.id.clone();
        self.model().sandboxes.insert(id.clone(), sandbox);
        self.watch_shim(&id);
        self.announce(&id, &id, v1::ContainerEventType::ContainerCreatedEvent);
        self.announce(&id, &id, v1::ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    async fn make(&self, sandbox: &mut Sandbox, directory: &SandboxDir) -> Result<(), CriError> {
        let network = if sandbox.host_network() { None } else { Some(self.network()?) };
        let keep = |error| CriError::failed("failed to write the sandbox's state", error);
        // Slices are systemd's: they go with their last unit.
        if !sandbox.systemd {
            sandbox.made_cgroups =
                self.cgroup_parents.claim(&sandbox.id, &sandbox.cgroup_parent(), &self.hierarchies);
        }
        files::make_private_dir(&directory.pod_file("bundles")).map_err(keep)?;
        files::write_json(&directory.record(), sandbox).map_err(keep)?;
        write_pod_files(sandbox, directory).map_err(keep)?;
        let launcher = self.launcher(&sandbox.runtime_handler);
        let shim = launcher.launch(directory, &self.shim_config(sandbox, directory)).await?;
        sandbox.shim = Some(shim);
        files::write_json(&directory.record(), sandbox).map_err(keep)?;
        if let Some(network) = network {
            let attachment = plan_attachment(sandbox, shim.pid, network);
            let attached = self.cni.attach(attachment, &directory.network()).await.map_err(|error| {
                CriError::failed(format!("failed to set up the network of sandbox {}", sandbox.id), error)
            })?;
            sandbox.addresses = attached.addresses();
        }
        write_hosts(sandbox, directory).map_err(keep)?;
        sandbox.stage = Stage::Ready;
        files::write_json(&directory.record(), sandbox).map_err(keep)
    }

    fn network(&self) -> Result<NetworkList, CriError> {
        self.cni.network().map_err(|error| CriError::Unavailable(format!("network is not ready: {error}")))
    }

    fn shim_config(&self, sandbox: &Sandbox, directory: &SandboxDir) -> ShimConfig {
        let linux = sandbox.config.linux.clone().unwrap_or_default();
        let group = sandbox.shim_group();
        ShimConfig {
            sandbox_id: sandbox.id.clone(),
            state_dir: directory.path().to_owned(),
            new_network_namespace: !sandbox.host_network(),
            new_ipc_namespace: namespace_options(&sandbox.config).ipc() != v1::NamespaceMode::Node,
            hostname: sandbox.hostname(),
            shared_pid_namespace: sandbox.shared_pid(),
            sysctls: linux.sysctls.into_iter().collect::<BTreeMap<_, _>>(),
            cgroup: group.path,
            scope: sandbox.systemd.then_some(group.named),
            shm_bytes: self.config.shm_bytes,
            user_namespace: user_namespace(&sandbox.config),
        }
    }

    /// Undoes a sandbox that never became ready, as far as it got. What fails is logged; the next start tries again.
    pub(crate) async fn discard(&self, sandbox: &Sandbox) {
        let directory = self.directory(&sandbox.id);
        // A shim that was started but not recorded left its own note.
        let shim = sandbox.shim.or_else(|| files::read_json(&directory.shim_identity()).ok());
        let lives = shim.is_some_and(process::is_alive);
        let detached = self.cni.detach(&directory.network(), lives).await;
        if !self.end_shim(sandbox, shim).await {
            return;
        }
        if let Err(error) = detached {
            // The pod's end of it went with the shim; the note stays, so that the next start asks the plugin again.
            tracing::warn!(sandbox = %sandbox.id, %error, "could not remove the pod's network");
            return;
        }
        if let Err(error) = files::remove_tree(directory.path()) {
            tracing::warn!(sandbox = %sandbox.id, %error, "could not remove the sandbox's state");
        }
    }
}

fn check(config: &v1::PodSandboxConfig) -> Result<(), CriError> {
    let Some(metadata) = &config.metadata else {
        return Err(CriError::Invalid("the sandbox has no metadata".to_owned()));
    };
    if metadata.name.is_empty() || metadata.uid.is_empty() {
        return Err(CriError::Invalid("the sandbox has no name or no uid".to_owned()));
    }
    wishes::check_pod(config)?;
    check_user_namespace(config)
}

/// As containerd, which the kubelet's own checks are made for: one range of users and one of groups.
fn check_user_namespace(config: &v1::PodSandboxConfig) -> Result<(), CriError> {
    let options = namespace_options(config);
    let Some(wanted) = &options.userns_options else { return Ok(()) };
    match wanted.mode() {
        v1::NamespaceMode::Node => return Ok(()),
        v1::NamespaceMode::Pod => {}
        v1::NamespaceMode::Container | v1::NamespaceMode::Target => {
            return Err(CriError::Invalid(
                "unsupported user namespace mode: only POD and NODE are".to_owned(),
            ));
        }
    }
    for (kind, ranges) in [("UID", &wanted.uids), ("GID", &wanted.gids)] {
        let [range] = ranges.as_slice() else {
            return Err(CriError::Invalid(format!(
                "user namespaces: only one {kind} mapping is supported, got {}",
                ranges.len()
            )));
        };
        if range.length == 0 || range.container_id != 0 || range.host_id.checked_add(range.length).is_none() {
            return Err(CriError::Invalid(format!(
                "user namespaces: the {kind} mapping of {} ids from {} to {} makes no sense: it must begin with 0 inside",
                range.length, range.container_id, range.host_id
            )));
        }
    }
    if options.network() == v1::NamespaceMode::Node {
        return Err(CriError::Unimplemented(
            "user namespaces: pods on the host's network are not supported".to_owned(),
        ));
    }
    Ok(())
}

fn user_namespace(config: &v1::PodSandboxConfig) -> Option<UserNamespace> {
    let wanted = pod_user_namespace(config)?;
    let map = |ranges: &[v1::IdMapping]| {
        let range = |range: &v1::IdMapping| IdMapping {
            container_id: range.container_id,
            host_id: range.host_id,
            length: range.length,
        };
        ranges.iter().map(range).collect()
    };
    Some(UserNamespace { uid_mappings: map(&wanted.uids), gid_mappings: map(&wanted.gids) })
}

fn plan_attachment(sandbox: &Sandbox, shim_pid: u32, network: NetworkList) -> Attachment {
    let metadata = sandbox.config.metadata.clone().unwrap_or_default();
    let mut capabilities = Map::new();
    let mappings = plan::port_mappings(&sandbox.config.port_mappings);
    if !mappings.is_empty() {
        capabilities.insert("portMappings".to_owned(), Value::Array(mappings));
    }
    if let Some(dns) = &sandbox.config.dns_config {
        let dns = json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options });
        capabilities.insert("dns".to_owned(), dns);
    }
    Attachment {
        container_id: sandbox.id.clone(),
        netns: format!("/proc/{shim_pid}/ns/net"),
        arguments: plan::pod_arguments(&metadata.namespace, &metadata.name, &metadata.uid, &sandbox.id),
        capabilities,
        network,
        result: None,
    }
}

fn write_pod_files(sandbox: &Sandbox, directory: &SandboxDir) -> std::io::Result<()> {
    let resolv_conf = match &sandbox.config.dns_config {
        Some(dns) if !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()) => {
            resolv_conf(dns)
        }
        // Without a wish the pod resolves as the host does; a host without the file resolves nothing.
        _ => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    let hostname = match sandbox.hostname() {
        Some(hostname) => format!("{hostname}\n"),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")?,
    };
    files::write_atomic(&directory.pod_file("resolv.conf"), resolv_conf.as_bytes(), 0o644)?;
    files::write_atomic(&directory.pod_file("hostname"), hostname.as_bytes(), 0o644)
}

/// resolv.conf(5) from the kubelet's wish.
fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// For kubelets that mount no hosts file of their own.
fn write_hosts(sandbox: &Sandbox, directory: &SandboxDir) -> std::io::Result<()> {
    let text = match sandbox.hostname() {
        None => std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
        Some(hostname) => {
            let own: String =
                sandbox.addresses.iter().map(|address| format!("{address}\t{hostname}\n")).collect();
            format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}")
        }
    };
    files::write_atomic(&directory.pod_file("hosts"), text.as_bytes(), 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_says_what_is_wished() {
        let dns = v1::DnsConfig {
            servers: vec!["10.96.0.10".into(), "fd00::10".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        let wanted = "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver fd00::10\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), wanted);
    }

    #[test]
    fn a_nameless_sandbox_is_refused() {
        assert!(check(&v1::PodSandboxConfig::default()).is_err());
        let metadata = v1::PodSandboxMetadata { name: "a".into(), uid: "u".into(), ..Default::default() };
        assert!(check(&v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }).is_ok());
    }

    #[test]
    fn user_namespaces_are_one_range_from_zero() {
        let range =
            |inside, outside, length| v1::IdMapping { container_id: inside, host_id: outside, length };
        let good = range(0, 65_536, 65_536);
        for (mode, network, uids, wanted) in [
            (v1::NamespaceMode::Pod, v1::NamespaceMode::Pod, vec![good], true),
            (v1::NamespaceMode::Node, v1::NamespaceMode::Node, vec![], true),
            (v1::NamespaceMode::Pod, v1::NamespaceMode::Node, vec![good], false),
            (v1::NamespaceMode::Container, v1::NamespaceMode::Pod, vec![good], false),
            (v1::NamespaceMode::Pod, v1::NamespaceMode::Pod, vec![], false),
            (v1::NamespaceMode::Pod, v1::NamespaceMode::Pod, vec![good, good], false),
            (v1::NamespaceMode::Pod, v1::NamespaceMode::Pod, vec![range(1, 65_536, 65_536)], false),
            (v1::NamespaceMode::Pod, v1::NamespaceMode::Pod, vec![range(0, u32::MAX, 65_536)], false),
            (v1::NamespaceMode::Pod, v1::NamespaceMode::Pod, vec![range(0, 65_536, 0)], false),
        ] {
            let options = v1::NamespaceOption {
                network: network as i32,
                userns_options: Some(v1::UserNamespace {
                    mode: mode as i32,
                    uids: uids.clone(),
                    gids: vec![good],
                }),
                ..Default::default()
            };
            let context =
                v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
            let linux = v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
            let config = v1::PodSandboxConfig { linux: Some(linux), ..Default::default() };
            assert_eq!(check_user_namespace(&config).is_ok(), wanted, "{mode:?} {network:?} {uids:?}");
            if wanted {
                let made = user_namespace(&config).map(|namespace| namespace.uid_mappings[0].host_id);
                assert_eq!(made, (mode == v1::NamespaceMode::Pod).then_some(65_536));
            }
        }
    }
}
