//! Where the credentials of registries are: docker's `config.json`, two files, or a helper program (docker's `docker-credential-NAME get`).
//!
//! Files are read for each use, so that a change counts at once; a helper's answer is kept for a while. What cannot be had is logged, and
//! the registry is asked without it. Secrets stand in no message.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Mutex;

use crate::Credential;

/// Most bytes of a file or of a helper's answer.
const LIMIT_BYTES: u64 = 1 << 20;
/// A helper that takes longer is killed.
const HELPER_TIME: Duration = Duration::from_secs(10);
/// How long a helper is not run again; services hand out passwords that last for hours.
const HELPER_LIFETIME: Duration = Duration::from_secs(300);
/// What docker calls the hub.
const HUB: &str = "https://index.docker.io/v1/";
/// The user name that stands for "the secret is an identity token" in a helper's answer.
const TOKEN_USER: &str = "<token>";

/// Where the credential of one registry is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CredentialSource {
    /// A docker `config.json`: its helpers, then its `auths`.
    DockerConfig(PathBuf),
    /// Files that hold the user's name and the password, with or without a newline at the end.
    Files {
        /// The name.
        username: PathBuf,
        /// The password.
        password: PathBuf,
    },
    /// The NAME of a program `docker-credential-NAME`, or a path.
    Helper(String),
}

/// Why there is no credential. Holds nothing secret.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct KeyringError(String);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// What helpers said, by helper and registry, and when.
type Answers = HashMap<(String, String), (Instant, Option<Credential>)>;

/// The credentials of registries, by their names.
#[derive(Default)]
pub(crate) struct Keyring {
    sources: BTreeMap<String, CredentialSource>,
    answers: Mutex<Answers>,
}

impl Keyring {
    pub(crate) fn new(sources: BTreeMap<String, CredentialSource>) -> Self {
        Self { sources, answers: Mutex::default() }
    }

    /// The credential of a registry, if it has one.
    pub(crate) async fn credential(&self, registry: &str) -> Option<Credential> {
        let source = self.sources.get(registry)?;
        let found = match source {
            CredentialSource::DockerConfig(path) => self.of_docker(path, registry).await,
            CredentialSource::Files { username, password } => of_files(username, password).await.map(Some),
            CredentialSource::Helper(name) => self.of_helper(name, registry).await,
        };
        found.unwrap_or_else(|error| {
            tracing::warn!(registry, %error, "no credential, the registry is asked without one");
            None
        })
    }

    async fn of_docker(&self, path: &Path, registry: &str) -> Result<Option<Credential>, KeyringError> {
        let bytes = read(path).await?;
        // The error of the parser could quote a secret.
        let config: DockerConfig = serde_json::from_slice(&bytes)
            .map_err(|_| KeyringError(format!("{} is no docker configuration", path.display())))?;
        let helper = config.cred_helpers.iter().find(|(key, _)| names(key, registry)).map(|(_, name)| name);
        let store = Some(&config.creds_store).filter(|name| !name.is_empty());
        if let Some(name) = helper.or(store) {
            if name.contains('/') {
                return Err(KeyringError(format!("{}: the helper {name:?} is no name", path.display())));
            }
            return self.of_helper(name, registry).await;
        }
        Ok(config
            .auths
            .into_iter()
            .find(|(key, _)| names(key, registry))
            .and_then(|(_, auth)| auth.credential()))
    }

    async fn of_helper(&self, name: &str, registry: &str) -> Result<Option<Credential>, KeyringError> {
        let key = (name.to_owned(), registry.to_owned());
        // Held while the helper runs: the others want its answer.
        let mut answers = self.answers.lock().await;
        if let Some((at, known)) = answers.get(&key)
            && at.elapsed() < HELPER_LIFETIME
        {
            return Ok(known.clone());
        }
        let answer = tokio::time::timeout(HELPER_TIME, run(name, registry)).await;
        let answer = answer.map_err(|_| {
            KeyringError(format!("the helper {name} gave no answer in {}s", HELPER_TIME.as_secs()))
        })??;
        answers.insert(key, (Instant::now(), answer.clone()));
        Ok(answer)
    }
}

impl DockerAuth {
    fn credential(self) -> Option<Credential> {
        let basic = match self.auth.is_empty() {
            true => Credential::basic(self.username, self.password),
            false => Credential::from_auth(&self.auth).unwrap_or_default(),
        };
        let credential =
            Credential { identity_token: self.identitytoken, registry_token: self.registrytoken, ..basic };
        Some(credential).filter(|credential| !credential.is_empty())
    }
}

/// Whether a key of docker's configuration means a registry: `HOST`, `https://HOST`, `https://HOST/v1/`.
fn names(key: &str, registry: &str) -> bool {
    let bare = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    matches!(path, "" | "v1" | "v1/" | "v2" | "v2/")
        && (host == registry || (hub(host) && registry == "docker.io"))
}

async fn read(path: &Path) -> Result<Vec<u8>, KeyringError> {
    let fail = |error: std::io::Error| KeyringError(format!("failed to read {}: {error}", path.display()));
    let file = tokio::fs::File::open(path).await.map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(LIMIT_BYTES).read_to_end(&mut bytes).await.map_err(fail)?;
    Ok(bytes)
}

async fn of_files(username: &Path, password: &Path) -> Result<Credential, KeyringError> {
    let text = async |path: &Path| {
        let text = String::from_utf8(read(path).await?);
        let text = text.map_err(|_| KeyringError(format!("{} is no text", path.display())))?;
        Ok::<_, KeyringError>(text.trim_end_matches(['\n', '\r']).to_owned())
    };
    Ok(Credential::basic(text(username).await?, text(password).await?))
}

/// None when the helper knows nothing of the registry.
async fn run(name: &str, registry: &str) -> Result<Option<Credential>, KeyringError> {
    let program = if name.contains('/') { name.to_owned() } else { format!("docker-credential-{name}") };
    let fail = |error: std::io::Error| KeyringError(format!("failed to run {program}: {error}"));
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(fail)?;
    if let Some(mut input) = child.stdin.take() {
        let server = if registry == "docker.io" { HUB } else { registry };
        // A helper that reads nothing may have ended already.
        let _ = input.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LIMIT_BYTES).read_to_end(&mut output).await.map_err(fail)?;
    }
    let status = child.wait().await.map_err(fail)?;
    if !status.success() {
        tracing::debug!(program, registry, %status, "the helper has no credential");
        return Ok(None);
    }
    let answer: HelperAnswer = serde_json::from_slice(&output)
        .map_err(|_| KeyringError(format!("the answer of {program} is none")))?;
    Ok(Some(match answer.username == TOKEN_USER {
        true => Credential { identity_token: answer.secret, ..Credential::default() },
        false => Credential::basic(answer.username, answer.secret),
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn ring(registry: &str, source: CredentialSource) -> Keyring {
        Keyring::new([(registry.to_owned(), source)].into())
    }

    #[tokio::test]
    async fn docker_configurations() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let token = Credential { identity_token: "t".to_owned(), ..Credential::default() };
        let table = [
            (
                r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#,
                Some(Credential::basic("u", "p")),
            ),
            (r#"{"auths":{"docker.io":{"username":"u","password":"p"}}}"#, Some(Credential::basic("u", "p"))),
            (r#"{"auths":{"docker.io":{"identitytoken":"t"}}}"#, Some(token)),
            (r#"{"auths":{"docker.io/team":{"auth":"dTpw"}}}"#, None),
            (r#"{"auths":{"other.example":{"auth":"dTpw"}}}"#, None),
            (r#"{"auths":{"docker.io":{}}}"#, None),
            (r#"{"auths":{"docker.io":{"auth":"dTpw"}},"credsStore":"../../x"}"#, None),
            (r#"{"HttpHeaders":{}}"#, None),
            ("nonsense", None),
            ("", None),
        ];
        let ring = ring("docker.io", CredentialSource::DockerConfig(path.clone()));
        assert_eq!(ring.credential("docker.io").await, None, "no file yet");
        for (text, expected) in table {
            std::fs::write(&path, text).unwrap();
            assert_eq!(ring.credential("docker.io").await, expected, "{text}");
            assert_eq!(ring.credential("other.example").await, None, "not configured");
        }
    }

    #[tokio::test]
    async fn two_files() {
        let directory = tempfile::tempdir().unwrap();
        let [username, password] = ["user", "password"].map(|name| directory.path().join(name));
        std::fs::write(&username, "me\n").unwrap();
        let ring = ring("r", CredentialSource::Files { username, password: password.clone() });
        assert_eq!(ring.credential("r").await, None);
        std::fs::write(&password, "a b").unwrap();
        assert_eq!(ring.credential("r").await, Some(Credential::basic("me", "a b")));
    }

    #[tokio::test]
    async fn helpers() {
        let directory = tempfile::tempdir().unwrap();
        let (path, count) = (directory.path().join("helper"), directory.path().join("count"));
        let table = [
            (r#"echo "{\"Username\":\"u\",\"Secret\":\"$(cat)\"}""#, Some(Credential::basic("u", "r"))),
            (
                r#"echo '{"Username":"<token>","Secret":"t"}'"#,
                Some(Credential { identity_token: "t".to_owned(), ..Credential::default() }),
            ),
            ("echo credentials not found; exit 1", None),
            ("echo nonsense", None),
            ("exec yes", None),
        ];
        for (script, expected) in table {
            let text = format!("#!/bin/sh\nprintf . >> {}\n{script}\n", count.display());
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
            let ring = ring("r", CredentialSource::Helper(path.display().to_string()));
            assert_eq!(ring.credential("r").await, expected, "{script}");
        }
        let ring = ring("r", CredentialSource::Helper(path.display().to_string()));
        let answers = "echo '{\"Username\":\"u\",\"Secret\":\"p\"}'";
        std::fs::write(&path, format!("#!/bin/sh\nprintf . >> {}\n{answers}\n", count.display())).unwrap();
        std::fs::write(&count, "").unwrap();
        for _ in 0..3 {
            assert_eq!(ring.credential("r").await, Some(Credential::basic("u", "p")));
        }
        assert_eq!(std::fs::read(&count).unwrap(), b".", "run once");
    }

    proptest::proptest! {
        #[test]
        fn no_key_makes_it_panic(key in ".{0,40}") {
            let _ = names(&key, "docker.io");
        }
    }
}
