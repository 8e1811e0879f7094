use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use orlop_daemon::config::Validate;
use serde::{Deserialize, Serialize};

use crate::auth::AuthConfig;
use crate::keeping::{KeepingConfig, Mode};
use crate::upstream::{UpstreamCredential, UpstreamListener, UpstreamTimeouts};

/// Configuration of the registry.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// Where it is served.
    pub listen: SocketAddr,
    /// Where blobs, manifests and tags are kept.
    pub root: PathBuf,
    /// Serving certificate, PEM; without it only loopback is served. It is read again when it changes.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub tls_key_file: Option<PathBuf>,
    /// Authorities of clients' certificates, PEM. The common name of a certificate is a user's name in the rules of `auth`.
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client may come without a certificate, where there is `clientCaFile`.
    pub client_auth: ClientAuth,
    /// Serves addresses other than loopback without TLS: everybody on the way can read and change what is sent, passwords too.
    pub plain_http: bool,
    /// Base URLs of the registries that are fetched from on a miss, by their names in image references, for example `docker.io:
    /// https://registry-1.docker.io`. A registry that is not named here is never contacted.
    pub upstreams: BTreeMap<String, String>,
    /// The upstream that a repository without a registry in front means, unless something was pushed under its name: a name of
    /// `upstreams`, or a URL. Docker's `registry-mirrors` ask so.
    pub default_upstream: Option<String>,
    /// Credentials of upstreams, by their names.
    pub upstream_credentials: BTreeMap<String, UpstreamCredential>,
    /// A directory `NAME/hosts.toml` as containerd has it: authorities, client certificates, `skip_verify` and headers of upstreams, and
    /// hosts that are asked before them.
    pub hosts_directory: Option<PathBuf>,
    /// More addresses, each with a default upstream of its own.
    pub listeners: Vec<UpstreamListener>,
    /// How long a tag that was fetched is served before the upstream is asked again whether it still holds.
    pub tag_freshness_seconds: u64,
    /// How long an upstream is not asked again for what it did not give.
    pub negative_cache_seconds: u64,
    /// How long an upstream is waited for.
    pub upstream_timeouts: UpstreamTimeouts,
    /// Base URLs of the other mirrors of this one's pair: content is replicated both ways, and they are asked before an upstream.
    pub peers: Vec<String>,
    /// The secret that the mirrors of a pair share, mode 0600; without it only peers on this machine are asked and answered.
    pub peer_token_file: Option<PathBuf>,
    /// Certificate authorities of the peers, PEM; without it those that this machine trusts.
    pub peer_ca_file: Option<PathBuf>,
    /// Mirrors of the other nodes: of what all of them want, few fetch.
    pub nodes: Option<NodesConfig>,
    /// Directories of runtimes' content stores on this machine, for example `/var/lib/orlop/runtime` or
    /// `/var/lib/containerd/io.containerd.content.v1.content`; read only.
    pub content_stores: Vec<PathBuf>,
    /// Refuses a push (503, the content stays) that no peer has on its disk after `replicationTimeoutSeconds`. A peer that failed five times
    /// to get a blob's bytes counts as having it, and asks again later.
    pub strict_replication: bool,
    /// See `strictReplication`.
    pub replication_timeout_seconds: u64,
    /// `normal`, `readOnly` (refuses pushes and deletes; fetching goes on) or `maintenance` (serves what is here, fetches and writes
    /// nothing). `orlop mirror mode` changes it at run time; what it says is remembered and wins.
    pub mode: Mode,
    /// Takes pushes and deletes from whoever reaches the address. On loopback they are taken anyway, unless `auth` says who may.
    pub anonymous_push: bool,
    /// Users and their rights; without it nobody is asked who he is.
    pub auth: Option<AuthConfig>,
    /// Logs a line for each request.
    pub access_log: bool,
    /// Connections at one time.
    pub max_connections: usize,
    /// Uploads under way at one time.
    pub max_uploads: usize,
    /// What stays on the disk.
    pub keeping: KeepingConfig,
    /// Directory of bundles and other archives of images: each is taken in at the start, and when it appears or changes there.
    pub bundles: Option<PathBuf>,
    /// Public key, PEM, of who signs bundles (`orlop image bundle keygen`); without it every archive in the directory is taken.
    pub bundle_key_file: Option<PathBuf>,
}

/// What is asked of a client's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClientAuth {
    /// It is checked where there is one.
    Request,
    /// Without one there is no connection.
    Require,
}

/// The mirrors of other nodes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodesConfig {
    /// Their base URLs, one in a line, this node's own with them; read again when it changes.
    pub file: PathBuf,
    /// This node's own line.
    pub own: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 5000)),
            root: PathBuf::from("/var/lib/orlop/mirror"),
            tls_cert_file: None,
            tls_key_file: None,
            client_ca_file: None,
            client_auth: ClientAuth::Request,
            plain_http: false,
            upstreams: BTreeMap::new(),
            default_upstream: None,
            upstream_credentials: BTreeMap::new(),
            hosts_directory: None,
            listeners: Vec::new(),
            tag_freshness_seconds: 60,
            negative_cache_seconds: 10,
            upstream_timeouts: UpstreamTimeouts::default(),
            peers: Vec::new(),
            peer_token_file: None,
            peer_ca_file: None,
            nodes: None,
            content_stores: Vec::new(),
            strict_replication: false,
            replication_timeout_seconds: 30,
            mode: Mode::Normal,
            anonymous_push: false,
            auth: None,
            access_log: false,
            max_connections: 1024,
            max_uploads: 256,
            keeping: KeepingConfig::default(),
            bundles: None,
            bundle_key_file: None,
        }
    }
}

impl Config {
    /// Whether pushes and deletes are taken: where nobody is asked who he is, by default only on this machine.
    pub(crate) fn takes_pushes(&self) -> bool {
        self.auth.is_some() || self.anonymous_push || self.listen.ip().is_loopback()
    }

    fn peer_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for url in &self.peers {
            problems.extend(self.url_problem("peers", url));
        }
        if self.nodes.as_ref().is_some_and(|nodes| nodes.file.as_os_str().is_empty()) {
            problems.push("nodes.file is missing: name the list of nodes".to_owned());
        }
        if self.strict_replication && self.peers.is_empty() {
            problems.push("strictReplication without peers would refuse every push: give peers".to_owned());
        }
        if !(1..=600).contains(&self.replication_timeout_seconds) {
            let given = self.replication_timeout_seconds;
            problems.push(format!("replicationTimeoutSeconds is {given}: give 1 to 600"));
        }
        problems
    }

    /// What is wrong with another mirror's URL: the pair's secret and its content travel there.
    pub(crate) fn url_problem(&self, key: &str, url: &str) -> Option<String> {
        let uri = url.parse::<http::Uri>().ok();
        let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.host()?)));
        let bare = uri.as_ref().is_some_and(|uri| {
            uri.path() == "/"
                && uri.query().is_none()
                && !uri.authority().is_some_and(|authority| authority.as_str().contains('@'))
        });
        match parts.filter(|_| bare) {
            Some(("https", _)) => self.peer_token_file.is_none().then(|| no_token(key, url)),
            Some(("http", host)) => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let near =
                    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
                if !near && !self.plain_http {
                    return Some(format!(
                        "{key}: {url:?} is another machine: use https, or set plainHttp: true"
                    ));
                }
                (!near && self.peer_token_file.is_none()).then(|| no_token(key, url))
            }
            _ => Some(format!("{key}: {url:?} is no URL such as \"https://mirror-b:5000\"")),
        }
    }
}

fn no_token(key: &str, url: &str) -> String {
    format!("{key}: {url:?} needs peerTokenFile, the secret that both mirrors have")
}

impl Validate for Config {
    const FREE_MAPS: &'static [&'static str] = &["upstreams", "upstreamCredentials"];

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.tls_cert_file.is_some() != self.tls_key_file.is_some() {
            problems.push("tlsCertFile and tlsKeyFile go together: give both or none".to_owned());
        }
        if self.client_ca_file.is_some() && self.tls_cert_file.is_none() {
            problems.push(
                "clientCaFile: there are no client certificates without TLS: give tlsCertFile and tlsKeyFile"
                    .to_owned(),
            );
        }
        if self.bundle_key_file.is_some() && self.bundles.is_none() {
            problems.push("bundleKeyFile checks what is in bundles: give that directory".to_owned());
        }
        if self.client_auth == ClientAuth::Require && self.client_ca_file.is_none() {
            problems.push("clientAuth: require needs clientCaFile".to_owned());
        }
        if self.plain_http && self.tls_cert_file.is_some() {
            problems.push("plainHttp and tlsCertFile contradict each other".to_owned());
        }
        if self.tls_cert_file.is_none() && !self.plain_http && !self.listen.ip().is_loopback() {
            problems.push(format!(
                "listen {} is not a loopback address: give tlsCertFile and tlsKeyFile, or listen on 127.0.0.1, or set plainHttp: true",
                self.listen
            ));
        }
        problems.extend(self.peer_problems());
        problems.extend(crate::upstream::problems(self));
        for (key, value) in [("maxConnections", self.max_connections), ("maxUploads", self.max_uploads)] {
            if value == 0 {
                problems.push(format!("{key} is 0: give at least 1"));
            }
        }
        problems.extend(self.keeping.problems());
        if let Some(auth) = &self.auth {
            problems.extend(auth.problems(self.client_ca_file.is_some()));
            if self.anonymous_push {
                problems.push(
                    "anonymousPush and auth contradict each other: name \"*\" in a rule of auth".to_owned(),
                );
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_rules_are_read_and_their_faults_named() {
        let parse =
            |text: &str| orlop_daemon::config::parse::<Config>(text, std::path::Path::new("mirror.yaml"));
        let text = r#"
            listen: 192.0.2.1:5000
            plainHttp: true
            auth:
              htpasswdFile: /users
              rules: [{users: [ci], repositories: ["team/*"], actions: [pull, push]}]
        "#;
        let config = parse(text).unwrap();
        assert!(config.takes_pushes() && config.auth.is_some_and(|auth| auth.anonymous_pull));
        let text = r#"
            anonymousPush: true
            clientAuth: require
            auth:
              anonymousPul: true
              rules: [{user: [ci], repositories: ["a*b", "*"], actions: []}]
              externalTokens: {issuer: x}
        "#;
        let problems = parse(text).unwrap_err().to_string();
        for wanted in [
            r#"unknown key "auth.anonymousPul", the nearest valid one is "anonymousPull""#,
            r#"unknown key "auth.rules[0].user", the nearest valid one is "users""#,
            "auth.rules[0].users is empty",
            r#""a*b" is no name with at most one *"#,
            "auth.externalTokens.service is empty",
            "give auth.tokenRealm",
            "clientAuth: require needs clientCaFile",
            "anonymousPush and auth contradict each other",
        ] {
            assert!(problems.contains(wanted), "{wanted}: {problems}");
        }
    }

    #[test]
    fn pushes_from_everybody_must_be_wanted() {
        for (listen, anonymous_push, taken) in [
            ("127.0.0.1:5000", false, true),
            ("[::1]:5000", false, true),
            ("0.0.0.0:5000", false, false),
            ("192.0.2.1:5000", true, true),
        ] {
            let listen = listen.parse().expect("an address");
            let config = Config { listen, anonymous_push, ..Config::default() };
            assert_eq!(config.takes_pushes(), taken, "{config:?}");
        }
    }
}
