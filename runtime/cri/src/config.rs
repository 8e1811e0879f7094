//! The runtime daemon's configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use orlop_daemon::config::Validate;
use serde::{Deserialize, Serialize};

use crate::streaming::TlsFiles;

/// `sun_path` holds 108 bytes with its final zero (unix(7)); the shim's socket is `STATE/sandboxes/ID/shim.sock`.
const SOCKET_PATH_LIMIT_BYTES: usize = 107;

/// Who makes the control groups of pods and containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// This program.
    #[default]
    Cgroupfs,
    /// systemd, as transient scopes in the slice that the kubelet names.
    Systemd,
}

/// Keys of `runtime.yaml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// Where the CRI is served: `unix:///path`.
    pub listen: String,
    /// Durable files: `content/`, `images/`, `snapshots/`.
    pub root: PathBuf,
    /// State that a reboot must forget; put it on tmpfs.
    pub state: PathBuf,
    /// Who makes control groups. The kubelet asks for it (KEP-4033); it has to be the kubelet's too.
    pub cgroup_driver: CgroupDriver,
    /// Directory with CNI configurations; the first by name that is valid is used.
    pub cni_conf_dir: PathBuf,
    /// Directories with CNI plugins, searched in order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Seconds that one CNI plugin may take.
    pub cni_timeout_seconds: u64,
    /// How a shim is started; empty is this program with the argument `shim`.
    pub shim_command: Vec<String>,
    /// How the server of sessions is started; empty is this program with the argument `streamer`.
    pub streamer_command: Vec<String>,
    /// Where exec, attach and port-forward sessions are served; port 0 is any free one. URLs name it, so it is an address of this
    /// machine, and one that is not loopback needs TLS.
    pub stream_address: SocketAddr,
    /// Certificate chain of `streamAddress`, PEM; with `streamTlsPrivateKeyFile`. Read again when it changes.
    pub stream_tls_cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub stream_tls_private_key_file: Option<PathBuf>,
    /// Authorities, PEM: clients of `streamAddress` need a certificate of one of them.
    pub stream_client_ca_file: Option<PathBuf>,
    /// Seconds without a byte in either direction after which a session ends.
    pub stream_idle_timeout_seconds: u64,
    /// Registry configuration in containerd's layout (`HOST/hosts.toml`).
    pub registry_hosts_dir: Option<PathBuf>,
    /// Registry asked before the one that an image names.
    pub registry_mirror: Option<String>,
    /// Image pulls that run at once.
    pub pull_concurrency: usize,
    /// Seconds without a byte after which a download is taken up again, and given up when that does not help.
    pub image_pull_progress_timeout_seconds: u64,
    /// Policy file (containers-policy.json(5)) asked before a pull; without one every image may be pulled.
    pub signature_policy: Option<PathBuf>,
    /// Images that the kubelet's collection must leave alone: references, or beginnings of normalised ones that end with `*`.
    pub pinned_images: Vec<String>,
    /// Directory that relative `Localhost` seccomp profiles are looked up in.
    pub seccomp_profile_root: PathBuf,
    /// Directories with CDI specifications, the most important last.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// What RuntimeClasses may name; the empty name is always there, with every option off.
    pub runtime_handlers: BTreeMap<String, RuntimeHandler>,
    /// Bytes of `/dev/shm` of a pod.
    pub shm_bytes: u64,
    /// Lowest `oom_score_adj` that is asked for; the kernel refuses values below the daemon's own without CAP_SYS_RESOURCE.
    pub oom_score_adj_floor: Option<i32>,
}

/// A way of running pods that a RuntimeClass chooses by name (`handler`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RuntimeHandler {
    /// How its pods' shims are started; empty is as all others.
    pub shim_command: Vec<String>,
    /// Privileged containers get no devices of the host but those that they name.
    pub privileged_without_host_devices: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "unix:///run/orlop/runtime.sock".to_owned(),
            root: PathBuf::from("/var/lib/orlop/runtime"),
            state: PathBuf::from("/run/orlop/runtime"),
            cgroup_driver: CgroupDriver::default(),
            cni_conf_dir: PathBuf::from("/etc/cni/net.d"),
            cni_bin_dirs: vec![PathBuf::from("/opt/cni/bin")],
            cni_timeout_seconds: 60,
            shim_command: Vec::new(),
            streamer_command: Vec::new(),
            stream_address: SocketAddr::from(([127, 0, 0, 1], 0)),
            stream_tls_cert_file: None,
            stream_tls_private_key_file: None,
            stream_client_ca_file: None,
            stream_idle_timeout_seconds: 4 * 3600,
            registry_hosts_dir: None,
            registry_mirror: None,
            pull_concurrency: 4,
            image_pull_progress_timeout_seconds: 60,
            signature_policy: None,
            pinned_images: Vec::new(),
            seccomp_profile_root: PathBuf::from("/var/lib/kubelet/seccomp"),
            cdi_spec_dirs: vec![PathBuf::from("/etc/cdi"), PathBuf::from("/var/run/cdi")],
            runtime_handlers: BTreeMap::new(),
            shm_bytes: 64 * 1024 * 1024,
            oom_score_adj_floor: None,
        }
    }
}

impl Config {
    /// The CRI socket's path.
    pub fn socket_path(&self) -> Option<PathBuf> {
        let path = PathBuf::from(self.listen.strip_prefix("unix://").unwrap_or(&self.listen));
        path.is_absolute().then_some(path)
    }

    /// TLS of sessions, where it is configured.
    pub(crate) fn stream_tls(&self) -> Option<TlsFiles> {
        let certificate = self.stream_tls_cert_file.clone()?;
        let key = self.stream_tls_private_key_file.clone()?;
        Some(TlsFiles { certificate, key, client_authorities: self.stream_client_ca_file.clone() })
    }

    fn stream_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (address, secured) = (self.stream_address, self.stream_tls_cert_file.is_some());
        if secured != self.stream_tls_private_key_file.is_some() {
            problems.push("streamTlsCertFile and streamTlsPrivateKeyFile need each other".to_owned());
        }
        if self.stream_client_ca_file.is_some() && !secured {
            problems.push(
                "streamClientCaFile needs streamTlsCertFile: without TLS nobody shows a certificate"
                    .to_owned(),
            );
        }
        if address.ip().is_unspecified() {
            problems.push(format!(
                "streamAddress {address} is every address: give the one that the kubelet is to connect to"
            ));
        } else if !address.ip().is_loopback() && !secured {
            problems.push(format!(
                "streamAddress {address} is not a loopback address: give streamTlsCertFile and streamTlsPrivateKeyFile"
            ));
        }
        if self.stream_idle_timeout_seconds == 0 {
            problems.push("streamIdleTimeoutSeconds is 0: give at least 1".to_owned());
        }
        problems
    }
}

impl Validate for Config {
    const FREE_MAPS: &'static [&'static str] = &["runtimeHandlers"];

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.socket_path().is_none() {
            problems.push(format!("listen {:?} is not a unix socket: use unix:///path/to.sock", self.listen));
        }
        problems.extend(self.stream_problems());
        if self.pull_concurrency == 0 {
            problems.push("pullConcurrency is 0: give at least 1".to_owned());
        }
        if self.image_pull_progress_timeout_seconds == 0 {
            problems.push("imagePullProgressTimeoutSeconds is 0: give at least 1".to_owned());
        }
        if self.cni_timeout_seconds == 0 {
            problems.push("cniTimeoutSeconds is 0: give at least 1".to_owned());
        }
        for (key, path) in [("root", &self.root), ("state", &self.state), ("cniConfDir", &self.cni_conf_dir)]
        {
            if !path.is_absolute() {
                problems.push(format!("{key} {} is not an absolute path", path.display()));
            }
        }
        for name in self.runtime_handlers.keys() {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
                problems.push(format!(
                    "runtimeHandlers: {name:?} is no name of a handler: 1 to 63 lower-case letters, digits and '-'"
                ));
            }
        }
        let longest =
            SOCKET_PATH_LIMIT_BYTES - "/sandboxes//shim.sock".len() - crate::model::SANDBOX_ID_LENGTH;
        if self.state.as_os_str().len() > longest {
            problems.push(format!(
                "state {} is too long: at most {longest} bytes, or the path of a unix socket below it does not fit",
                self.state.display()
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_encrypted_wherever_others_could_listen() {
        let with = |address: &str, change: fn(&mut Config)| {
            let mut config = Config { stream_address: address.parse().unwrap(), ..Config::default() };
            change(&mut config);
            config.stream_problems().join(";")
        };
        let tls = |config: &mut Config| {
            config.stream_tls_cert_file = Some("/c".into());
            config.stream_tls_private_key_file = Some("/k".into());
        };
        assert_eq!(with("127.0.0.1:0", |_| {}), "");
        assert_eq!(with("10.1.2.3:10010", tls), "");
        assert!(with("10.1.2.3:10010", |_| {}).contains("give streamTlsCertFile"));
        assert!(with("0.0.0.0:10010", tls).contains("every address"));
        assert!(
            with("[::1]:0", |config| config.stream_tls_cert_file = Some("/c".into())).contains("each other")
        );
        assert!(with("[::1]:0", |config| config.stream_client_ca_file = Some("/c".into())).contains("needs"));
    }
}
