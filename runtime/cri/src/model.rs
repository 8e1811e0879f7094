//! What the daemon knows: sandboxes and containers, and how they read as CRI messages. Pure.
//!
//! ```text
//!   sandbox:    Ready --stop, or its shim died--> NotReady --remove--> gone
//!   container:  Created --start--> Running --exit--> Exited --remove--> gone      (never backwards)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use orlop_cri::v1;
use orlop_shim::protocol;
use orlop_types::ProcessIdentity;
use serde::{Deserialize, Serialize};

/// Hexadecimal digits of a sandbox id: short enough for a unix socket path below the state directory.
pub(crate) const SANDBOX_ID_LENGTH: usize = 32;
/// Version of the files written for sandboxes and containers.
pub(crate) const RECORD_VERSION: u32 = 1;

/// How far a sandbox got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Stage {
    /// RunPodSandbox was cut off: the next start undoes it.
    Making,
    /// Its shim lives and its network is up.
    Ready,
    /// Stopped, or its shim died.
    Stopped,
}

/// A pod's sandbox. Written to `sandboxes/ID/sandbox.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sandbox {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Sandbox id.
    pub id: String,
    /// As the kubelet gave it.
    #[serde(with = "message")]
    pub config: v1::PodSandboxConfig,
    /// The configured handler that it runs with; empty is the default one.
    #[serde(default)]
    pub runtime_handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// How far it got.
    pub stage: Stage,
    /// The pod's shim, once it was started.
    pub shim: Option<ProcessIdentity>,
    /// Addresses that CNI gave, the default interface's first one first; empty on the host's network.
    pub addresses: Vec<String>,
    /// The highest directory of each cgroup hierarchy that is there for this pod's sake, above its own groups.
    #[serde(default)]
    pub made_cgroups: Vec<PathBuf>,
    /// systemd makes its control groups.
    #[serde(default)]
    pub systemd: bool,
}

/// A container. Written to `sandboxes/SANDBOX/bundles/ID/container.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Container id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// As the kubelet gave it.
    #[serde(with = "message")]
    pub config: v1::ContainerConfig,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// The image's tag, as people know it.
    pub image_name: String,
    /// A reference with a manifest digest, or the id.
    pub image_ref: String,
    /// Resources in force.
    #[serde(with = "message")]
    pub resources: v1::LinuxContainerResources,
    /// Numeric identity of the first process.
    pub user: ContainerUser,
    /// Where the log goes.
    pub log_path: String,
    /// Signal number sent first by a stop.
    pub stop_signal: i32,
    /// Cgroup below each hierarchy's root.
    pub cgroup: String,
    /// Life so far.
    pub phase: protocol::Phase,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0 is not yet.
    pub started_at: i64,
    /// How it ended.
    pub exit: Option<protocol::ExitStatus>,
    /// Why it never ran.
    pub failure: Option<String>,
}

/// Numeric identity of a container's first process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, the primary one included.
    pub groups: Vec<u32>,
}

impl Sandbox {
    /// Whether the pod uses the host's network.
    pub(crate) fn host_network(&self) -> bool {
        namespace_options(&self.config).network() == v1::NamespaceMode::Node
    }

    /// Whether the pod's containers share one PID namespace.
    pub(crate) fn shared_pid(&self) -> bool {
        namespace_options(&self.config).pid() == v1::NamespaceMode::Pod
    }

    /// The pod's cgroup when it is the pod's alone: kubelets name it by the pod's UID, with `_` for `-` under systemd.
    pub(crate) fn own_cgroup(&self) -> Option<String> {
        let parent = self.cgroup_parent();
        let uid = self
            .config
            .metadata
            .as_ref()
            .map(|metadata| metadata.uid.as_str())
            .filter(|uid| !uid.is_empty())?;
        let name = parent.rsplit('/').next()?;
        (name.contains(uid) || name.contains(&uid.replace('-', "_"))).then_some(parent)
    }

    /// The shim is gone, and every group that was there for the pod's sake.
    pub(crate) fn forget_shim(&mut self) {
        self.shim = None;
        self.made_cgroups.clear();
    }

    /// Whether containers can run in it.
    pub(crate) fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// The name inside the pod's UTS namespace; `None` on the host's network.
    pub(crate) fn hostname(&self) -> Option<String> {
        (!self.host_network()).then(|| self.config.hostname.clone())
    }

    fn state(&self) -> v1::PodSandboxState {
        match self.stage {
            Stage::Ready => v1::PodSandboxState::SandboxReady,
            Stage::Making | Stage::Stopped => v1::PodSandboxState::SandboxNotready,
        }
    }

    /// As ListPodSandbox shows it.
    pub(crate) fn item(&self) -> v1::PodSandbox {
        v1::PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state() as i32,
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }

    /// As PodSandboxStatus shows it.
    pub(crate) fn status(&self) -> v1::PodSandboxStatus {
        let mut addresses = self.addresses.iter().cloned();
        v1::PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state() as i32,
            created_at: self.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: addresses.next().unwrap_or_default(),
                additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace { options: Some(namespace_options(&self.config)) }),
            }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }

    /// As statistics name it.
    pub(crate) fn attributes(&self) -> v1::PodSandboxAttributes {
        v1::PodSandboxAttributes {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
        }
    }
}

impl Container {
    /// Takes over what the shim says; an older phase than the known one is stale and ignored. True when something changed.
    pub(crate) fn observe(&mut self, seen: &protocol::ContainerState) -> bool {
        if rank(seen.phase) < rank(self.phase) || (seen.phase == self.phase && self.exit == seen.exit) {
            return false;
        }
        if self.phase == protocol::Phase::Exited && self.exit.is_some() {
            return false;
        }
        self.phase = seen.phase;
        if seen.started_at != 0 {
            self.started_at = seen.started_at;
        }
        self.exit = seen.exit.clone();
        true
    }

    /// The CRI state.
    pub(crate) fn state(&self) -> v1::ContainerState {
        match self.phase {
            protocol::Phase::Created => v1::ContainerState::ContainerCreated,
            protocol::Phase::Running => v1::ContainerState::ContainerRunning,
            protocol::Phase::Exited => v1::ContainerState::ContainerExited,
        }
    }

    fn image(&self) -> v1::ImageSpec {
        v1::ImageSpec { image: self.image_name.clone(), ..self.config.image.clone().unwrap_or_default() }
    }

    /// As ListContainers shows it.
    pub(crate) fn item(&self) -> v1::Container {
        v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox_id.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: self.image_ref.clone(),
            state: self.state() as i32,
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: self.image_id.clone(),
        }
    }

    /// As ContainerStatus shows it.
    pub(crate) fn status(&self) -> v1::ContainerStatus {
        let (reason, message) = self.reason();
        v1::ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state() as i32,
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.exit.as_ref().map_or(0, |exit| exit.finished_at),
            exit_code: self.exit.as_ref().map_or(0, |exit| exit.code),
            image: Some(self.image()),
            image_ref: self.image_ref.clone(),
            reason,
            message,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: self.log_path.clone(),
            resources: Some(v1::ContainerResources { linux: Some(self.resources.clone()), windows: None }),
            image_id: self.image_id.clone(),
            user: Some(v1::ContainerUser {
                linux: Some(v1::LinuxContainerUser {
                    uid: i64::from(self.user.uid),
                    gid: i64::from(self.user.gid),
                    supplemental_groups: self.user.groups.iter().map(|gid| i64::from(*gid)).collect(),
                }),
            }),
            stop_signal: crate::spec::signals::to_cri(self.stop_signal) as i32,
        }
    }

    /// The kubelet's words for how a container ended.
    fn reason(&self) -> (String, String) {
        match (&self.exit, &self.failure) {
            (_, Some(failure)) => ("StartError".to_owned(), failure.clone()),
            (Some(exit), None) if exit.oom_killed => ("OOMKilled".to_owned(), String::new()),
            (Some(exit), None) if exit.code == 0 => ("Completed".to_owned(), String::new()),
            (Some(_), None) => ("Error".to_owned(), String::new()),
            (None, None) => Default::default(),
        }
    }

    /// As statistics name it.
    pub(crate) fn attributes(&self) -> v1::ContainerAttributes {
        v1::ContainerAttributes {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
        }
    }
}

fn rank(phase: protocol::Phase) -> u8 {
    match phase {
        protocol::Phase::Created => 0,
        protocol::Phase::Running => 1,
        protocol::Phase::Exited => 2,
    }
}

/// Namespace options of a sandbox; absent ones are all `POD`, as protobuf reads them.
pub(crate) fn namespace_options(config: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default()
}

/// The pod's own user namespace; `None` is the host's.
pub(crate) fn pod_user_namespace(config: &v1::PodSandboxConfig) -> Option<v1::UserNamespace> {
    namespace_options(config).userns_options.filter(|wanted| wanted.mode() == v1::NamespaceMode::Pod)
}

/// Everything known.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// By id.
    pub sandboxes: BTreeMap<String, Sandbox>,
    /// By id.
    pub containers: BTreeMap<String, Container>,
}

impl Model {
    /// The sandbox with this id or unambiguous prefix of one.
    pub(crate) fn sandbox(&self, id: &str) -> Option<&Sandbox> {
        by_prefix(&self.sandboxes, id)
    }

    /// The container with this id or unambiguous prefix of one.
    pub(crate) fn container(&self, id: &str) -> Option<&Container> {
        by_prefix(&self.containers, id)
    }

    /// The containers of one sandbox.
    pub(crate) fn containers_of<'a>(&'a self, sandbox_id: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.values().filter(move |container| container.sandbox_id == sandbox_id)
    }

    /// The sandbox that holds this name.
    pub(crate) fn sandbox_named(&self, name: &SandboxName) -> Option<&Sandbox> {
        self.sandboxes.values().find(|sandbox| SandboxName::of(&sandbox.config).as_ref() == Some(name))
    }

    /// The container of `sandbox_id` that holds this name.
    pub(crate) fn container_named(
        &self,
        sandbox_id: &str,
        metadata: &v1::ContainerMetadata,
    ) -> Option<&Container> {
        self.containers.values().find(|container| {
            container.sandbox_id == sandbox_id && container.config.metadata.as_ref() == Some(metadata)
        })
    }

    /// ListPodSandbox.
    pub(crate) fn list_sandboxes(&self, filter: Option<&v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let empty = v1::PodSandboxFilter::default();
        let filter = filter.unwrap_or(&empty);
        self.sandboxes
            .values()
            .filter(|sandbox| {
                has_prefix(&sandbox.id, &filter.id)
                    && filter.state.as_ref().is_none_or(|wanted| wanted.state() == sandbox.state())
                    && selects(&filter.label_selector, &sandbox.config.labels)
            })
            .map(Sandbox::item)
            .collect()
    }

    /// ListContainers.
    pub(crate) fn list_containers(&self, filter: Option<&v1::ContainerFilter>) -> Vec<v1::Container> {
        let empty = v1::ContainerFilter::default();
        let filter = filter.unwrap_or(&empty);
        self.containers
            .values()
            .filter(|container| {
                has_prefix(&container.id, &filter.id)
                    && has_prefix(&container.sandbox_id, &filter.pod_sandbox_id)
                    && filter.state.as_ref().is_none_or(|wanted| wanted.state() == container.state())
                    && selects(&filter.label_selector, &container.config.labels)
            })
            .map(Container::item)
            .collect()
    }
}

fn has_prefix(id: &str, wanted: &str) -> bool {
    wanted.is_empty() || id.starts_with(wanted)
}

/// Whether `labels` carry every pair of `selector`.
pub(crate) fn selects(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn by_prefix<'a, T>(objects: &'a BTreeMap<String, T>, id: &str) -> Option<&'a T> {
    if id.is_empty() {
        return None;
    }
    if let Some(object) = objects.get(id) {
        return Some(object);
    }
    let mut matching = objects.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
    match (matching.next(), matching.next()) {
        (Some((_, object)), None) => Some(object),
        _ => None,
    }
}

/// What a sandbox's name is reserved by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SandboxName {
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// Attempt.
    pub attempt: u32,
}

impl SandboxName {
    /// From a configuration with metadata.
    pub(crate) fn of(config: &v1::PodSandboxConfig) -> Option<Self> {
        let metadata = config.metadata.as_ref()?;
        Some(Self {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            attempt: metadata.attempt,
        })
    }
}

/// Protobuf messages in JSON records: base64 of their encoding, which stays readable across versions of the message.
mod message {
    use base64::Engine as _;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<M: prost::Message, S: Serializer>(
        message: &M,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(message.encode_to_vec()))
    }

    pub(super) fn deserialize<'de, M, D>(deserializer: D) -> Result<M, D::Error>
    where
        M: prost::Message + Default,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(D::Error::custom)?;
        M::decode(bytes.as_slice()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sandbox(id: &str) -> Sandbox {
        Sandbox {
            version: RECORD_VERSION,
            id: id.to_owned(),
            config: v1::PodSandboxConfig {
                metadata: Some(v1::PodSandboxMetadata {
                    name: format!("pod-{id}"),
                    uid: "uid".to_owned(),
                    namespace: "default".to_owned(),
                    attempt: 0,
                }),
                labels: HashMap::from([("app".to_owned(), id.to_owned())]),
                ..Default::default()
            },
            runtime_handler: String::new(),
            created_at: 1,
            stage: Stage::Ready,
            shim: None,
            addresses: vec!["10.0.0.2".to_owned(), "fd00::2".to_owned()],
            made_cgroups: Vec::new(),
            systemd: false,
        }
    }

    pub(crate) fn container(id: &str, sandbox_id: &str) -> Container {
        Container {
            version: RECORD_VERSION,
            id: id.to_owned(),
            sandbox_id: sandbox_id.to_owned(),
            config: v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
                ..Default::default()
            },
            image_id: "sha256:1".to_owned(),
            image_name: "docker.io/library/busybox:latest".to_owned(),
            image_ref: "docker.io/library/busybox@sha256:2".to_owned(),
            resources: v1::LinuxContainerResources::default(),
            user: ContainerUser::default(),
            log_path: String::new(),
            stop_signal: 15,
            cgroup: format!("/orlop/{id}"),
            phase: protocol::Phase::Created,
            created_at: 1,
            started_at: 0,
            exit: None,
            failure: None,
        }
    }

    #[test]
    fn a_stale_report_never_turns_a_container_back() {
        let mut container = container("c", "s");
        let running = protocol::ContainerState {
            id: "c".to_owned(),
            phase: protocol::Phase::Running,
            pid: Some(7),
            created_at: 1,
            started_at: 2,
            exit: None,
        };
        let exit = protocol::ExitStatus { code: 137, finished_at: 3, oom_killed: true };
        let exited =
            protocol::ContainerState { phase: protocol::Phase::Exited, exit: Some(exit), ..running.clone() };
        assert!(container.observe(&running));
        assert!(!container.observe(&running));
        assert!(container.observe(&exited));
        assert!(!container.observe(&running));
        assert!(!container.observe(&exited));
        let status = container.status();
        assert_eq!((status.exit_code, status.finished_at, status.reason.as_str()), (137, 3, "OOMKilled"));
    }

    #[test]
    fn prefixes_resolve_only_when_unambiguous() {
        let mut model = Model::default();
        for id in ["abc1", "abc2", "xyz"] {
            model.sandboxes.insert(id.to_owned(), sandbox(id));
        }
        for (given, found) in
            [("abc1", Some("abc1")), ("abc", None), ("x", Some("xyz")), ("", None), ("q", None)]
        {
            assert_eq!(model.sandbox(given).map(|sandbox| sandbox.id.as_str()), found, "{given:?}");
        }
    }

    #[test]
    fn filters_combine() {
        let mut model = Model::default();
        for id in ["a", "b"] {
            model.sandboxes.insert(id.to_owned(), sandbox(id));
        }
        model.sandboxes.get_mut("b").unwrap().stage = Stage::Stopped;
        let ready = Some(v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady as i32 });
        let by_label = |value: &str| HashMap::from([("app".to_owned(), value.to_owned())]);
        let table: [(v1::PodSandboxFilter, &[&str]); 4] = [
            (v1::PodSandboxFilter::default(), &["a", "b"]),
            (v1::PodSandboxFilter { state: ready, ..Default::default() }, &["a"]),
            (v1::PodSandboxFilter { label_selector: by_label("b"), ..Default::default() }, &["b"]),
            (v1::PodSandboxFilter { id: "a".into(), label_selector: by_label("b"), state: None }, &[]),
        ];
        for (filter, wanted) in table {
            let found: Vec<_> = model.list_sandboxes(Some(&filter)).into_iter().map(|item| item.id).collect();
            assert_eq!(found, wanted, "{filter:?}");
        }
    }

    #[test]
    fn records_read_back_what_they_wrote() {
        let text = serde_json::to_string(&sandbox("a")).unwrap();
        let back: Sandbox = serde_json::from_str(&text).unwrap();
        assert_eq!(back.config, sandbox("a").config);
        assert_eq!(back.status().network.unwrap().additional_ips[0].ip, "fd00::2");
        let text = serde_json::to_string(&container("c", "a")).unwrap();
        assert_eq!(serde_json::from_str::<Container>(&text).unwrap().status(), container("c", "a").status());
    }
}
