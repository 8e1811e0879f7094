//! Accounts at registries, from a file as docker and podman write it.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use orlop_distribution::Credential;
use serde::Deserialize;

/// Bytes of the file that are read.
const FILE_LIMIT: u64 = 1 << 20;

/// Accounts by registry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts(HashMap<String, Credential>);

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

impl Accounts {
    /// The file that is named, or the first there is of podman's and docker's.
    pub(crate) fn file(named: Option<&Path>) -> Option<PathBuf> {
        let usual = || {
            let home = std::env::var_os("HOME").map(PathBuf::from);
            let podman = std::env::var_os("XDG_RUNTIME_DIR")
                .map(|run| PathBuf::from(run).join("containers/auth.json"));
            let docker = std::env::var_os("DOCKER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| Some(home?.join(".docker")))
                .map(|directory| directory.join("config.json"));
            podman.into_iter().chain(docker).find(|path| path.is_file())
        };
        named.map(Path::to_owned).or_else(usual)
    }

    /// Reads that file.
    pub(crate) fn load(named: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = Self::file(named) else { return Ok(Self::default()) };
        let mut text = String::new();
        std::fs::File::open(&path)
            .and_then(|file| file.take(FILE_LIMIT).read_to_string(&mut text))
            .with_context(|| format!("failed to read accounts in {}", path.display()))?;
        // The parser's own words may quote a password.
        let parsed = Self::parse(&text).ok();
        parsed.with_context(|| format!("{} is no file of accounts as docker login writes it", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let file: AuthFile = serde_json::from_str(text)?;
        let credential = |entry: &Entry| {
            let mut credential = Credential::from_auth(&entry.auth)
                .unwrap_or_else(|| Credential::basic(&*entry.username, &*entry.password));
            credential.identity_token.clone_from(&entry.identity_token);
            credential
        };
        let entries = file.auths.iter().map(|(host, entry)| {
            let mut credential = credential(entry);
            credential.server_address = authority(host).to_owned();
            (authority(host).to_owned(), credential)
        });
        Ok(Self(entries.filter(|(_, credential)| !credential.is_empty()).collect()))
    }

    /// The account at a registry or host.
    pub(crate) fn of(&self, registry: &str) -> Option<&Credential> {
        let hub = ["docker.io", "index.docker.io", "registry-1.docker.io"];
        let names = if hub.contains(&registry) { &hub[..] } else { &[registry][..] };
        names.iter().find_map(|name| self.0.get(*name))
    }
}

fn authority(host: &str) -> &str {
    let host = host.split_once("://").map_or(host, |(_, rest)| rest);
    host.split('/').next().unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_docker_and_podman() {
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "r:5000": {"username": "a", "password": "b"},
            "helper.example": {}}, "credsStore": "x"}"#;
        let accounts = Accounts::parse(text).unwrap();
        assert_eq!(accounts.of("docker.io").unwrap().username, "u");
        assert_eq!(accounts.of("r:5000").unwrap().server_address, "r:5000");
        assert!(accounts.of("helper.example").is_none());
        assert!(Accounts::parse("{\"auths\": 1}").is_err());
    }
}
