//! The configuration: upstream's KubeletConfiguration v1beta1 names where one exists, and what upstream keeps in flags.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use orlop_daemon::config::Validate;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::quantity;

/// One kubelet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// `kubelet.config.k8s.io/v1beta1`, or absent.
    pub api_version: Option<String>,
    /// `KubeletConfiguration`, or absent.
    pub kind: Option<String>,

    /// Client configuration for the API server.
    pub kubeconfig: PathBuf,
    /// Name of the Node object.
    pub node_name: String,
    /// Address of this node that others reach.
    #[serde(rename = "nodeIP")]
    pub node_ip: String,
    /// Directory on disk for pod state: volumes, hosts files, termination messages.
    pub root_dir: PathBuf,
    /// Directory on tmpfs for secret and token volumes.
    pub memory_dir: PathBuf,
    /// Container logs.
    pub pod_logs_dir: PathBuf,
    /// Labels put on the Node at registration.
    pub node_labels: BTreeMap<String, String>,

    /// Address of the HTTPS server.
    pub address: String,
    /// Port of the HTTPS server.
    pub port: u16,
    /// Address of the plain health check.
    pub healthz_bind_address: String,
    /// Port of the plain health check; 0 is none.
    pub healthz_port: u16,
    /// Serving certificate; self-signed when absent.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    pub tls_private_key_file: Option<PathBuf>,
    /// Who may call the HTTPS server.
    pub authentication: Authentication,
    /// What they may do.
    pub authorization: Authorization,

    /// `unix:///path`.
    pub container_runtime_endpoint: String,
    /// Images from another endpoint than the runtime's.
    pub image_service_endpoint: Option<String>,
    /// Bound of every CRI call that is not a pull, a stop or an exec.
    pub runtime_request_timeout: GoDuration,
    /// Pulls at one time on this node.
    pub max_parallel_image_pulls: Option<u32>,

    /// Name servers of pods with policy ClusterFirst.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    /// Domain of the cluster's names.
    pub cluster_domain: String,
    /// The node's own resolver file.
    pub resolv_conf: PathBuf,

    /// Pods at one time.
    pub max_pods: u32,
    /// Only `cgroupfs`.
    pub cgroup_driver: String,
    /// Cgroup under which `kubepods` is made.
    pub cgroup_root: String,
    /// Pod and class cgroups; without them the runtime places containers by itself.
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: bool,
    /// Kept from pods for Kubernetes daemons: cpu, memory, ephemeral-storage.
    pub kube_reserved: BTreeMap<String, String>,
    /// Kept from pods for the system.
    pub system_reserved: BTreeMap<String, String>,
    /// Processes in one pod; unlimited when absent or negative.
    pub pod_pids_limit: Option<i64>,
    /// Sysctls that pods may set beside the safe ones; a trailing `*` stands for all with that beginning.
    pub allowed_unsafe_sysctls: Vec<String>,

    /// Make the Node object.
    pub register_node: bool,
    /// Taints of a newly made Node.
    pub register_with_taints: Vec<Taint>,
    /// `spec.providerID` of a newly made Node.
    #[serde(rename = "providerID")]
    pub provider_id: Option<String>,
    /// How often the node status is computed.
    pub node_status_update_frequency: GoDuration,
    /// How often an unchanged node status is sent.
    pub node_status_report_frequency: GoDuration,
    /// Life of the Lease; renewed at a quarter of it.
    pub node_lease_duration_seconds: i32,
    /// Longest time until a changed ConfigMap or Secret shows in volumes.
    pub sync_frequency: GoDuration,

    /// Size at which a container log is rotated.
    pub container_log_max_size: String,
    /// Files of a container log, the current one included.
    pub container_log_max_files: u32,
}

/// Who may call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Authentication {
    /// Client certificates.
    pub x509: X509,
    /// Callers without an identity.
    pub anonymous: Enabled,
}

/// Client certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct X509 {
    /// The authorities that sign callers' certificates.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

/// A switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Enabled {
    /// On.
    pub enabled: bool,
}

/// What callers may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Authorization {
    /// `Certificate` (default): only the API server's identity and `system:masters`; `AlwaysAllow`.
    pub mode: AuthorizationMode,
}

/// See [`Authorization::mode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthorizationMode {
    /// The API server and `system:masters`.
    #[default]
    Certificate,
    /// Everybody who is authenticated.
    AlwaysAllow,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_version: None,
            kind: None,
            kubeconfig: PathBuf::from("/etc/kubernetes/kubelet.conf"),
            node_name: String::new(),
            node_ip: String::new(),
            root_dir: PathBuf::from("/var/lib/kubelet"),
            memory_dir: PathBuf::from("/run/orlop/kubelet"),
            pod_logs_dir: PathBuf::from("/var/log/pods"),
            node_labels: BTreeMap::new(),
            address: "0.0.0.0".to_owned(),
            port: 10_250,
            healthz_bind_address: "127.0.0.1".to_owned(),
            healthz_port: 10_248,
            tls_cert_file: None,
            tls_private_key_file: None,
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            container_runtime_endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            image_service_endpoint: None,
            runtime_request_timeout: GoDuration(Duration::from_secs(120)),
            max_parallel_image_pulls: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            max_pods: 110,
            cgroup_driver: "cgroupfs".to_owned(),
            cgroup_root: "/".to_owned(),
            cgroups_per_qos: true,
            kube_reserved: BTreeMap::new(),
            system_reserved: BTreeMap::new(),
            pod_pids_limit: None,
            allowed_unsafe_sysctls: Vec::new(),
            register_node: true,
            register_with_taints: Vec::new(),
            provider_id: None,
            node_status_update_frequency: GoDuration(Duration::from_secs(10)),
            node_status_report_frequency: GoDuration(Duration::from_secs(300)),
            node_lease_duration_seconds: 40,
            sync_frequency: GoDuration(Duration::from_secs(60)),
            container_log_max_size: "10Mi".to_owned(),
            container_log_max_files: 5,
        }
    }
}

impl Config {
    fn reserved_problems(&self) -> impl Iterator<Item = String> {
        let reserved = self.kube_reserved.iter().chain(&self.system_reserved);
        let wrong = reserved.filter(|(_, value)| quantity::milli(value).is_none());
        wrong.map(|(name, value)| format!("reserved {name}: {value:?} is no quantity"))
    }

    /// [`Config::container_log_max_size`] in bytes.
    pub(crate) fn log_limit_bytes(&self) -> u64 {
        quantity::bytes(&self.container_log_max_size).unwrap_or(10 << 20)
    }
}

impl Validate for Config {
    const FREE_MAPS: &'static [&'static str] = &["nodeLabels", "kubeReserved", "systemReserved"];

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, problem: &str| {
            if !ok {
                problems.push(problem.to_owned());
            }
        };
        check(
            self.api_version.as_deref().is_none_or(|version| version == "kubelet.config.k8s.io/v1beta1"),
            "apiVersion must be kubelet.config.k8s.io/v1beta1",
        );
        check(
            self.kind.as_deref().is_none_or(|kind| kind == "KubeletConfiguration"),
            "kind must be KubeletConfiguration",
        );
        check(!self.node_name.is_empty(), "nodeName is empty: give the name of this node");
        check(
            self.node_ip.parse::<std::net::IpAddr>().is_ok(),
            "nodeIP is no address: give the address others reach this node by",
        );
        check(self.address.parse::<std::net::IpAddr>().is_ok(), "address is no IP address");
        check(
            self.healthz_bind_address.parse::<std::net::IpAddr>().is_ok(),
            "healthzBindAddress is no IP address",
        );
        check(self.max_pods > 0, "maxPods is 0: give at least 1");
        check(
            self.cgroup_driver == "cgroupfs",
            "cgroupDriver must be cgroupfs: slices of systemd are not made yet",
        );
        check(self.cgroup_root.starts_with('/'), "cgroupRoot must start with /");
        check(
            self.tls_cert_file.is_some() == self.tls_private_key_file.is_some(),
            "tlsCertFile and tlsPrivateKeyFile go together: give both or none",
        );
        check(quantity::bytes(&self.container_log_max_size).is_some(), "containerLogMaxSize is no quantity");
        check(self.container_log_max_files > 1, "containerLogMaxFiles must be at least 2");
        check(self.node_lease_duration_seconds > 0, "nodeLeaseDurationSeconds must be positive");
        check(!self.node_status_update_frequency.0.is_zero(), "nodeStatusUpdateFrequency must be positive");
        check(!self.sync_frequency.0.is_zero(), "syncFrequency must be positive");
        problems.extend(self.reserved_problems());
        problems
    }
}

/// A duration as Go writes it: `300ms`, `1m30s`, `2h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", self.0.as_millis()))
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map(GoDuration).ok_or_else(|| {
            serde::de::Error::custom(format!("{text:?} is no duration: write for example 10s or 1m30s"))
        })
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_length = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit_length] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * seconds;
        rest = &rest[unit_length..];
    }
    (!text.is_empty() && total.is_finite()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, milliseconds) in
            [("10s", 10_000), ("1m30s", 90_000), ("300ms", 300), ("1.5h", 5_400_000), ("0", 0), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "10", "s", "1x", "-1s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn an_upstream_file_is_understood() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nnodeName: a\nnodeIP: 10.0.0.1\n\
                    clusterDNS: [10.96.0.10]\nnodeStatusUpdateFrequency: 10s\nauthentication: {x509: {clientCAFile: /ca.crt}}\n\
                    registerWithTaints: [{key: a, effect: NoSchedule}]\n";
        let config: Config = orlop_daemon::config::parse(text, std::path::Path::new("kubelet.yaml")).unwrap();
        assert_eq!(config.cluster_dns, ["10.96.0.10"]);
        let error = orlop_daemon::config::parse::<Config>("nodeNam: a", std::path::Path::new("k"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("nodeName"), "{error}");
    }
}
