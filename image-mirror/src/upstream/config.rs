//! The upstreams' part of the configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use orlop_distribution::CredentialSource;
use orlop_types::Reference;
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// Longest time in seconds that a key takes: a year.
const SECONDS_LIMIT: u64 = 31_536_000;

/// Bounds of each wait for an upstream; after them the client gets what was last seen, or an error, and may ask its next host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UpstreamTimeouts {
    /// To a TCP and TLS connection.
    pub connect_seconds: u64,
    /// From the request to the head of the answer.
    pub first_byte_seconds: u64,
    /// Without a byte of the body.
    pub stall_seconds: u64,
}

impl Default for UpstreamTimeouts {
    fn default() -> Self {
        Self { connect_seconds: 3, first_byte_seconds: 15, stall_seconds: 30 }
    }
}

/// Where an upstream's credential is: one of docker's `config.json`, two files, or a helper. Files are read again when they change; nothing of
/// them is kept, logged or shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
// The keys of a map are free, so nobody else finds wrong ones below them.
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct UpstreamCredential {
    /// A docker `config.json`; its helpers are run.
    pub docker_config_file: Option<PathBuf>,
    /// A file with the user's name.
    pub username_file: Option<PathBuf>,
    /// A file with the password or token.
    pub password_file: Option<PathBuf>,
    /// The NAME of a program `docker-credential-NAME`, or its path.
    pub helper: Option<String>,
}

impl UpstreamCredential {
    fn source(&self) -> Option<CredentialSource> {
        match (&self.docker_config_file, &self.username_file, &self.password_file, &self.helper) {
            (Some(path), None, None, None) => Some(CredentialSource::DockerConfig(path.clone())),
            (None, Some(username), Some(password), None) => {
                Some(CredentialSource::Files { username: username.clone(), password: password.clone() })
            }
            (None, None, None, Some(name)) => Some(CredentialSource::Helper(name.clone())),
            _ => None,
        }
    }
}

/// An address at which a repository without a registry in front means one of the upstreams, for clients that know neither `ns` nor
/// registries in paths.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamListener {
    /// Where it is served.
    pub listen: SocketAddr,
    /// A name of `upstreams`.
    pub upstream: String,
}

impl Config {
    /// The name of the default upstream, and its address when it is only given there.
    fn default_name(&self) -> Option<(String, Option<String>)> {
        let given = self.default_upstream.as_deref()?;
        if !given.contains("://") {
            return Some((given.to_owned(), None));
        }
        let url = given.trim_end_matches('/');
        if let Some((name, _)) = self.upstreams.iter().find(|(_, known)| known.trim_end_matches('/') == url) {
            return Some((name.clone(), None));
        }
        let uri: Option<http::Uri> = url.parse().ok();
        let authority = uri.and_then(|uri| uri.authority().map(ToString::to_string)).unwrap_or_default();
        // Docker Hub's API is at another host than its name says.
        let name = match authority.as_str() {
            "registry-1.docker.io" | "index.docker.io" => "docker.io".to_owned(),
            _ => authority,
        };
        Some((name, Some(url.to_owned())))
    }

    /// Where the upstreams' credentials are.
    pub(crate) fn credential_sources(&self) -> BTreeMap<String, CredentialSource> {
        let known = self.upstream_credentials.iter();
        known.filter_map(|(name, credential)| Some((name.clone(), credential.source()?))).collect()
    }

    /// The configuration with a default upstream that is named and stands among the others.
    pub(crate) fn with_named_default(mut self) -> Self {
        if let Some((name, url)) = self.default_name() {
            if let Some(url) = url {
                self.upstreams.insert(name.clone(), url);
            }
            self.default_upstream = Some(name);
        }
        self
    }
}

/// What is wrong with the upstreams.
pub(crate) fn problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let named = config.clone().with_named_default();
    check_names(config, &named.upstreams, &mut problems);
    if let Some(name) = &named.default_upstream
        && !named.upstreams.contains_key(name)
    {
        problems.push(format!("defaultUpstream {name:?} is neither a URL nor a name of upstreams"));
    }
    if let Some((name, Some(url))) = config.default_name()
        && let Some(known) = config.upstreams.get(&name)
    {
        problems.push(format!("defaultUpstream {url:?} is not where upstreams.{name} is: {known:?}"));
    }
    for UpstreamListener { listen, upstream } in &config.listeners {
        if !named.upstreams.contains_key(upstream) {
            problems.push(format!("listeners: {upstream:?} is no name of upstreams"));
        }
        if config.tls_cert_file.is_none() && !config.plain_http && !listen.ip().is_loopback() {
            problems.push(format!(
                "listeners: {listen} is not a loopback address: give tlsCertFile and tlsKeyFile, or listen on 127.0.0.1, or set plainHttp: true"
            ));
        }
    }
    for (name, credential) in &config.upstream_credentials {
        if !named.upstreams.contains_key(name) {
            problems.push(format!("upstreamCredentials: {name:?} is no name of upstreams"));
        }
        if credential.source().is_none() {
            problems.push(format!(
                "upstreamCredentials.{name}: give dockerConfigFile, or usernameFile and passwordFile, or helper"
            ));
        }
    }
    let timeouts = &config.upstream_timeouts;
    for (key, seconds, least, most) in [
        ("upstreamTimeouts.connectSeconds", timeouts.connect_seconds, 1, 3600),
        ("upstreamTimeouts.firstByteSeconds", timeouts.first_byte_seconds, 1, 3600),
        ("upstreamTimeouts.stallSeconds", timeouts.stall_seconds, 1, 3600),
        ("tagFreshnessSeconds", config.tag_freshness_seconds, 0, SECONDS_LIMIT),
        ("negativeCacheSeconds", config.negative_cache_seconds, 0, SECONDS_LIMIT),
    ] {
        if !(least..=most).contains(&seconds) {
            problems.push(format!("{key} is {seconds}: give {least} to {most}"));
        }
    }
    problems
}

fn check_names(config: &Config, all: &BTreeMap<String, String>, problems: &mut Vec<String>) {
    for (name, url) in all {
        let key = match config.upstreams.contains_key(name) {
            true => "upstreams",
            false => "defaultUpstream",
        };
        if !Reference::parse(&format!("{name}/x/y")).is_ok_and(|parsed| parsed.registry() == name) {
            problems.push(format!("{key}: {name:?} is no registry name such as \"docker.io\""));
        }
        let uri: Option<http::Uri> = url.parse().ok();
        let usable = uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("https" | "http"))
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        });
        if !usable {
            problems.push(format!("{key}.{name}: {url:?} is no http or https URL"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(default: &str, upstreams: &[(&str, &str)]) -> Config {
        let owned = |(name, url): &(&str, &str)| ((*name).to_owned(), (*url).to_owned());
        let upstreams = upstreams.iter().map(owned).collect();
        Config { default_upstream: Some(default.to_owned()), upstreams, ..Config::default() }
    }

    #[test]
    fn the_default_is_a_name_or_a_url() {
        let hub = ("docker.io", "https://registry-1.docker.io");
        let table = [
            ("docker.io", vec![hub], Some("docker.io")),
            ("docker.io", vec![], None),
            ("https://registry-1.docker.io/", vec![], Some("docker.io")),
            (
                "https://registry-1.docker.io",
                vec![("hub.example", "https://registry-1.docker.io/")],
                Some("hub.example"),
            ),
            ("http://127.0.0.1:5001", vec![], Some("127.0.0.1:5001")),
            ("https://registry-1.docker.io", vec![("docker.io", "https://other.example")], None),
            ("ftp://x.example", vec![], None),
            ("https://user@x.example", vec![], None),
            ("nonsense", vec![hub], None),
        ];
        for (given, upstreams, expected) in table {
            let config = config(given, &upstreams);
            let problems = problems(&config);
            assert_eq!(problems.is_empty(), expected.is_some(), "{given}: {problems:?}");
            if let Some(expected) = expected {
                let named = config.with_named_default();
                assert_eq!(named.default_upstream.as_deref(), Some(expected));
                assert!(named.upstreams.contains_key(expected));
            }
        }
    }
}
