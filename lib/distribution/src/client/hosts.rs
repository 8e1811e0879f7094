//! Which hosts serve a registry: containerd's `hosts.toml` (containerd docs/hosts.md), a mirror, the registry itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a hosts file is of no use.
#[derive(Clone, Debug, thiserror::Error)]
#[error("hosts file {path}: {reason}")]
pub struct HostsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// One host that serves a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Base URL, `/v2` included unless the file overrides the path; no slash at the end.
    pub url: String,
    /// `host[:port]` of the URL.
    pub authority: String,
    /// Whether it is the registry that the images are named after.
    pub is_own: bool,
    /// Whether it is asked last, so that patience pays.
    pub is_last: bool,
    /// The registry to name in `?ns=` when it is another host.
    pub namespace: Option<String>,
    /// Gives manifests and blobs by digest.
    pub can_pull: bool,
    /// Turns a tag into a digest.
    pub can_resolve: bool,
    /// Certificate authorities, PEM.
    pub ca: Vec<PathBuf>,
    /// Client certificate and key, PEM; the key may be in the same file.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Takes any certificate.
    pub skip_verify: bool,
    /// Headers for every request.
    pub headers: Vec<(String, String)>,
    /// To a connection.
    pub dial_timeout: Option<Duration>,
}

/// A parsed hosts file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostsFile {
    /// Where it was.
    pub path: PathBuf,
    /// The `[host."…"]` tables in order.
    pub hosts: Vec<HostEntry>,
    /// `server`, with the settings at the top of the file.
    pub server: HostEntry,
}

/// One table of a hosts file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostEntry {
    url: Option<String>,
    capabilities: Option<Vec<String>>,
    ca: Vec<PathBuf>,
    client: Vec<(PathBuf, Option<PathBuf>)>,
    skip_verify: bool,
    headers: Vec<(String, String)>,
    override_path: bool,
    dial_timeout: Option<Duration>,
}

/// Reads the hosts file of a registry: `DIR/HOST:PORT/hosts.toml`, `DIR/HOST_PORT_/hosts.toml`, `DIR/_default/hosts.toml`. None when
/// there is none.
///
/// # Errors
/// [`HostsError`].
pub fn read_hosts(directory: &Path, registry: &str) -> Result<Option<HostsFile>, HostsError> {
    let mut names = vec![registry.to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push("_default".to_owned());
    for name in names {
        let path = directory.join(name).join("hosts.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => return HostsFile::parse(&text, &path).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(HostsError { path, reason: error.to_string() }),
        }
    }
    Ok(None)
}

impl HostsFile {
    /// A file that names nothing but the server.
    pub fn of_server(url: &str) -> Self {
        let server = HostEntry { url: Some(url.to_owned()), ..HostEntry::default() };
        HostsFile { server, ..Self::default() }
    }

    /// Parses a hosts file; relative certificate paths are taken from its directory.
    ///
    /// # Errors
    /// [`HostsError`] names the key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, HostsError> {
        let fail = |reason: String| HostsError { path: path.to_owned(), reason };
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| fail(error.to_string()))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut file = HostsFile { path: path.to_owned(), ..Self::default() };
        file.server = HostEntry::parse(&table, directory).map_err(fail)?;
        file.server.url = match table.get("server") {
            None => None,
            Some(toml::Value::String(server)) => Some(server.clone()),
            Some(_) => return Err(fail("server is not a text".into())),
        };
        if let Some(hosts) = table.get("host") {
            let hosts = hosts.as_table().ok_or_else(|| fail("host is not a table".into()))?;
            for (url, settings) in hosts {
                let settings =
                    settings.as_table().ok_or_else(|| fail(format!("host {url:?} is not a table")))?;
                let entry = HostEntry::parse(settings, directory)
                    .map_err(|reason| fail(format!("host {url:?}: {reason}")))?;
                file.hosts.push(HostEntry { url: Some(url.clone()), ..entry });
            }
        }
        Ok(file)
    }
}

impl HostEntry {
    fn parse(table: &toml::Table, directory: &Path) -> Result<Self, String> {
        let mut entry = HostEntry::default();
        for (key, value) in table {
            match key.as_str() {
                "capabilities" => entry.capabilities = Some(texts(key, value)?),
                "ca" => entry.ca = texts(key, value)?.iter().map(|path| directory.join(path)).collect(),
                "client" => entry.client = client(value, directory)?,
                "skip_verify" => {
                    entry.skip_verify = value.as_bool().ok_or("skip_verify is not true or false")?
                }
                "override_path" => {
                    entry.override_path = value.as_bool().ok_or("override_path is not true or false")?
                }
                "dial_timeout" => {
                    entry.dial_timeout = Some(duration(value.as_str().ok_or("dial_timeout is not a text")?)?)
                }
                "header" => {
                    for (name, value) in value.as_table().ok_or("header is not a table")? {
                        entry
                            .headers
                            .extend(texts(name, value)?.into_iter().map(|value| (name.clone(), value)));
                    }
                }
                // What newer versions of the format add must not stop pulls.
                _ => {}
            }
        }
        Ok(entry)
    }

    fn host(&self, url: &str, registry: &str) -> Result<Host, String> {
        let loopback = is_loopback(url.split('/').next().unwrap_or_default());
        let full = if url.contains("://") {
            url.to_owned()
        } else {
            format!("{}://{url}", if loopback { "http" } else { "https" })
        };
        let uri: http::Uri = full.parse().map_err(|error| format!("{url:?} is not a URL: {error}"))?;
        let authority = uri.authority().ok_or_else(|| format!("{url:?} has no host"))?.to_string();
        if !matches!(uri.scheme_str(), Some("http" | "https")) || authority.contains('@') {
            return Err(format!("{url:?} is not an http or https URL"));
        }
        let base = full.trim_end_matches('/');
        let url =
            if self.override_path || base.ends_with("/v2") { base.to_owned() } else { format!("{base}/v2") };
        let is_own = authority == registry || authority == default_authority(registry);
        let capabilities = self.capabilities.as_ref();
        let can =
            |name: &str| capabilities.is_none_or(|list| list.iter().any(|capability| capability == name));
        Ok(Host {
            url,
            is_own,
            is_last: false,
            namespace: (!is_own).then(|| registry.to_owned()),
            can_pull: can("pull"),
            can_resolve: can("resolve"),
            ca: self.ca.clone(),
            client: self.client.clone(),
            skip_verify: self.skip_verify,
            headers: self.headers.clone(),
            dial_timeout: self.dial_timeout,
            authority,
        })
    }
}

/// The hosts to ask for images of `registry`, in order: the mirror, the file's hosts, the file's server or the registry itself.
///
/// # Errors
/// [`HostsError`] for a URL that is none.
pub fn plan_hosts(
    registry: &str,
    file: Option<HostsFile>,
    mirror: Option<&str>,
) -> Result<Vec<Host>, HostsError> {
    let file = file.unwrap_or_default();
    let fail = |reason: String| HostsError { path: file.path.clone(), reason };
    let mut hosts = Vec::new();
    if let Some(mirror) = mirror {
        // A mirror that hangs must not hold up what the registry could give.
        let entry = HostEntry { dial_timeout: Some(Duration::from_secs(2)), ..HostEntry::default() };
        hosts.push(entry.host(mirror, registry).map_err(fail)?);
    }
    for entry in &file.hosts {
        hosts.push(entry.host(entry.url.as_deref().unwrap_or_default(), registry).map_err(fail)?);
    }
    let server = file.server.url.clone().unwrap_or_else(|| default_authority(registry));
    hosts.push(file.server.host(&server, registry).map_err(fail)?);
    let mut seen = std::collections::HashSet::new();
    hosts.retain(|host| seen.insert(host.url.clone()));
    if let Some(last) = hosts.last_mut() {
        last.is_last = true;
    }
    Ok(hosts)
}

/// Docker Hub's API is at another host than its name says.
fn default_authority(registry: &str) -> String {
    match registry {
        "docker.io" => "registry-1.docker.io".to_owned(),
        other => other.to_owned(),
    }
}

/// `localhost`, 127.0.0.0/8 and ::1, with or without a port (but 443 means TLS).
pub(super) fn is_loopback(authority: &str) -> bool {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if port == Some("443") {
        return false;
    }
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn texts(key: &str, value: &toml::Value) -> Result<Vec<String>, String> {
    let wrong = || format!("{key} is not a text or a list of texts");
    match value {
        toml::Value::String(text) => Ok(vec![text.clone()]),
        toml::Value::Array(list) => {
            list.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}

/// `"cert"`, `["cert", …]` or `[["cert", "key"], …]`.
fn client(value: &toml::Value, directory: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    let wrong = || "client is not a path, a list of paths or a list of pairs".to_owned();
    let one = |value: &toml::Value| match value {
        toml::Value::String(path) => Ok((directory.join(path), None)),
        toml::Value::Array(pair) => match pair.as_slice() {
            [toml::Value::String(certificate), toml::Value::String(key)] => {
                Ok((directory.join(certificate), Some(directory.join(key)).filter(|_| !key.is_empty())))
            }
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    };
    match value {
        toml::Value::Array(list) => list.iter().map(one).collect(),
        other => one(other).map(|client| vec![client]),
    }
}

/// Go's durations as far as hosts files use them: `1s`, `500ms`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("dial_timeout {text:?} is not a duration such as \"3s\"");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let number: f64 = text[..end].parse().map_err(|_| wrong())?;
    let seconds = match &text[end..] {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(registry: &str, text: Option<&str>, mirror: Option<&str>) -> Vec<String> {
        let file = text.map(|text| HostsFile::parse(text, Path::new("/certs.d/x/hosts.toml")).unwrap());
        plan_hosts(registry, file, mirror).unwrap().into_iter().map(|host| host.url).collect()
    }

    #[test]
    fn the_order_of_hosts() {
        assert_eq!(urls("docker.io", None, None), ["https://registry-1.docker.io/v2"]);
        assert_eq!(urls("localhost:5000", None, None), ["http://localhost:5000/v2"]);
        assert_eq!(urls("[::1]:5000", None, None), ["http://[::1]:5000/v2"]);
        assert_eq!(urls("127.9.9.9:443", None, None), ["https://127.9.9.9:443/v2"]);
        assert_eq!(urls("127.0.0.1.evil.example", None, None), ["https://127.0.0.1.evil.example/v2"]);
        assert_eq!(urls("quay.io", None, Some("http://m:5000")), ["http://m:5000/v2", "https://quay.io/v2"]);
        let text = "server = \"https://z\"\n[host.\"https://b\"]\n[host.\"http://a/v2/proxy/\"]\noverride_path = true\n";
        assert_eq!(urls("quay.io", Some(text), None), ["https://b/v2", "http://a/v2/proxy", "https://z/v2"]);
    }

    #[test]
    fn settings_of_a_host() {
        let text = r#"
            [host."https://m:5000"]
            capabilities = ["pull"]
            ca = ["ca.pem", "/abs.pem"]
            client = [["c.pem", "k.pem"]]
            skip_verify = true
            dial_timeout = "1500ms"
            future_key = 1
            [host."https://m:5000".header]
            x-one = ["a", "b"]
        "#;
        let file = HostsFile::parse(text, Path::new("/certs.d/docker.io/hosts.toml")).unwrap();
        let hosts = plan_hosts("docker.io", Some(file), None).unwrap();
        let mirror = &hosts[0];
        assert!(mirror.can_pull && !mirror.can_resolve && mirror.skip_verify && !mirror.is_own);
        assert_eq!(mirror.namespace.as_deref(), Some("docker.io"));
        assert_eq!(mirror.ca, [Path::new("/certs.d/docker.io/ca.pem"), Path::new("/abs.pem")]);
        assert_eq!(mirror.client[0].1.as_deref(), Some(Path::new("/certs.d/docker.io/k.pem")));
        assert_eq!(mirror.dial_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(mirror.headers.len(), 2);
        assert!(hosts[1].is_own && hosts[1].namespace.is_none() && hosts[1].can_resolve);
    }

    #[test]
    fn mistakes_name_the_file() {
        for text in ["server = 1", "host = 1", "[host.x]\nca = 1", "[host.x]\ndial_timeout = \"soon\"", "x ="]
        {
            let error = HostsFile::parse(text, Path::new("/certs.d/x/hosts.toml")).unwrap_err().to_string();
            assert!(error.contains("/certs.d/x/hosts.toml"), "{error}");
        }
        let file = HostsFile::parse("server = \"ftp://x\"", Path::new("/f")).unwrap();
        assert!(plan_hosts("x", Some(file), None).is_err());
    }

    #[test]
    fn the_file_is_found_by_its_three_names() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            std::fs::create_dir_all(directory.path().join(name)).unwrap();
            std::fs::write(
                directory.path().join(name).join("hosts.toml"),
                format!("server = \"https://{name}\""),
            )
            .unwrap();
        };
        let found = || read_hosts(directory.path(), "reg:5000").unwrap().and_then(|file| file.server.url);
        assert_eq!(found(), None);
        for name in ["_default", "reg_5000_", "reg:5000"] {
            write(name);
            assert_eq!(found(), Some(format!("https://{name}")));
        }
    }
}
