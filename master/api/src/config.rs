use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// What the API server is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// Where HTTPS is served.
    pub listen: Vec<SocketAddr>,
    /// The address that nodes and pods reach this server at; the first listen address when absent.
    pub advertise_address: Option<IpAddr>,
    /// Where the store is kept.
    pub data_dir: PathBuf,
    /// The server's certificate chain, PEM.
    pub tls_cert_file: PathBuf,
    /// Its key, PEM.
    pub tls_key_file: PathBuf,
    /// Who signs client certificates, PEM.
    pub client_ca_file: PathBuf,
    /// The key that signs and verifies service-account tokens: PKCS#8, ECDSA P-256, PEM.
    pub service_account_key_file: PathBuf,
    /// The issuer written into tokens; also the audience of tokens that ask for none.
    pub issuer: String,
    /// The certificate that this server shows to kubelets, PEM; absent means that logs, exec and the like are refused.
    pub kubelet_client_cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub kubelet_client_key_file: Option<PathBuf>,
    /// Who signs the kubelets' serving certificates; absent means that they are not verified (upstream's default).
    pub kubelet_ca_file: Option<PathBuf>,
    /// Addresses of Services.
    pub service_cidr: Ipv4Net,
    /// Ports of NodePort Services, `first-last`.
    pub node_port_range: String,
    /// The address of the kube-system/kube-dns Service; absent means that there is none.
    pub cluster_dns: Option<Ipv4Addr>,
    /// Plain HTTP on this loopback port, where every request is a superuser; 0 is off.
    pub insecure_port: u16,
}

impl Default for Config {
    fn default() -> Self {
        let pki = PathBuf::from("/var/lib/orlop/pki");
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 6443))],
            advertise_address: None,
            data_dir: PathBuf::from("/var/lib/orlop/master"),
            tls_cert_file: pki.join("apiserver.crt"),
            tls_key_file: pki.join("apiserver.key"),
            client_ca_file: pki.join("ca.crt"),
            service_account_key_file: pki.join("service-account.key"),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            kubelet_client_cert_file: None,
            kubelet_client_key_file: None,
            kubelet_ca_file: None,
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            node_port_range: "30000-32767".to_owned(),
            cluster_dns: Some(Ipv4Addr::new(10, 96, 0, 10)),
            insecure_port: 0,
        }
    }
}

impl Config {
    /// The port that clients use.
    pub(crate) fn port(&self) -> u16 {
        self.listen.first().map_or(6443, SocketAddr::port)
    }

    /// The address that others reach this server at; none when only a wildcard is known.
    pub(crate) fn advertised(&self) -> Option<IpAddr> {
        self.advertise_address
            .or_else(|| self.listen.first().map(SocketAddr::ip))
            .filter(|address| !address.is_unspecified())
    }

    /// The range of node ports, inclusive.
    pub(crate) fn node_ports(&self) -> Option<(u16, u16)> {
        let (first, last) = self.node_port_range.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (1 <= first && first <= last).then_some((first, last))
    }

    /// The address of the Service `kubernetes`.
    pub(crate) fn kubernetes_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr.network()) + 1)
    }
}

impl orlop_daemon::config::Validate for Config {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.listen.is_empty() {
            problems.push("listen is empty: give at least one address and port".to_owned());
        }
        if self.node_ports().is_none() {
            problems.push(format!(
                "nodePortRange is {:?}: give FIRST-LAST, for example 30000-32767",
                self.node_port_range
            ));
        }
        if self.service_cidr.prefix_len() > 28 {
            problems
                .push(format!("serviceCidr is {}: it must hold at least 16 addresses", self.service_cidr));
        }
        if let Some(address) = self.cluster_dns
            && (!self.service_cidr.contains(&address) || address == self.kubernetes_address())
        {
            problems.push(format!(
                "clusterDns is {address}: give an address of serviceCidr {} other than its first",
                self.service_cidr
            ));
        }
        if self.kubelet_client_cert_file.is_some() != self.kubelet_client_key_file.is_some() {
            problems.push("kubeletClientCertFile and kubeletClientKeyFile: give both or none".to_owned());
        }
        problems
    }
}
