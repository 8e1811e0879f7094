//! Which hosts serve a registry: containerd's `hosts.toml` (containerd docs/hosts.md), a mirror, the registry itself.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a hosts file that are read.
const HOSTS_LIMIT: u64 = 1 << 20;

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

/// Reads what is configured for a registry: `hosts.toml`, or without one certificates (`*.crt` authorities, `*.cert` and `*.key`), in
/// the first directory there is of `HOST_PORT_`, `HOST:PORT` and `_default`. None when there is none.
///
/// # Errors
/// [`HostsError`].
pub fn read_hosts(directory: &Path, registry: &str) -> Result<Option<HostsFile>, HostsError> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    let Some(found) = names.iter().map(|name| directory.join(name)).find(|path| path.is_dir()) else {
        return Ok(None);
    };
    let path = found.join("hosts.toml");
    let fail = |error: std::io::Error| HostsError { path: path.clone(), reason: error.to_string() };
    let mut text = String::new();
    match std::fs::File::open(&path) {
        Ok(file) => {
            file.take(HOSTS_LIMIT).read_to_string(&mut text).map_err(fail)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    if text.trim().is_empty() {
        return HostsFile::of_certificates(&found).map(Some).map_err(fail);
    }
    HostsFile::parse(&text, &path).map(Some)
}

impl HostsFile {
    /// A file that names nothing but the server.
    pub fn of_server(url: &str, ca: &[PathBuf]) -> Self {
        let server = HostEntry { url: Some(url.to_owned()), ca: ca.to_vec(), ..HostEntry::default() };
        HostsFile { server, ..Self::default() }
    }

    /// The file with a server, unless it names one.
    pub(super) fn with_server(mut self, url: &str) -> Self {
        self.server.url.get_or_insert_with(|| url.to_owned());
        self
    }

    /// Docker's layout: certificates and no hosts file.
    fn of_certificates(directory: &Path) -> std::io::Result<Self> {
        let mut file = HostsFile { path: directory.to_owned(), ..Self::default() };
        let entries = std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path()));
        let mut paths = entries.collect::<Result<Vec<_>, _>>()?;
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => file.server.ca.push(path),
                Some("cert") => file.server.client.push((path.clone(), Some(path.with_extension("key")))),
                _ => {}
            }
        }
        Ok(file)
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
                "capabilities" => entry.capabilities = capabilities(&texts(key, value)?)?,
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
                    if let Some((name, _)) =
                        entry.headers.iter().find(|(name, value)| !is_header(name, value))
                    {
                        return Err(format!("header {name:?} is not a header of HTTP, or its value is not"));
                    }
                }
                // What newer versions of the format add must not stop pulls.
                _ => {}
            }
        }
        Ok(entry)
    }

    fn host(&self, url: &str, registry: &str) -> Result<Host, String> {
        let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
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
    let server = file.server.url.clone().unwrap_or_else(|| {
        let authority = default_authority(registry);
        // Nothing says what a registry on this machine speaks.
        let scheme = if is_loopback(&authority) { "http" } else { "https" };
        format!("{scheme}://{authority}")
    });
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

/// `localhost`, 127.0.0.0/8 and ::1 with a port, as in containerd; without one, or with 443, TLS is meant.
pub(super) fn is_loopback(authority: &str) -> bool {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if matches!(port, None | Some("443")) {
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

/// What a host may be used for; no list, or an empty one, is everything.
fn capabilities(list: &[String]) -> Result<Option<Vec<String>>, String> {
    let list: Vec<String> = list.iter().map(|name| name.to_lowercase()).collect();
    if let Some(unknown) = list.iter().find(|name| !matches!(name.as_str(), "pull" | "resolve" | "push")) {
        return Err(format!("unknown capability {unknown:?} (pull, resolve and push are known)"));
    }
    Ok(Some(list).filter(|list| !list.is_empty()))
}

fn is_header(name: &str, value: &str) -> bool {
    name.parse::<http::HeaderName>().is_ok() && value.parse::<http::HeaderValue>().is_ok()
}

/// Go's durations: decimal numbers with units, such as `1.5s`, `500ms` and `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("dial_timeout {text:?} is not a duration such as \"3s\"");
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() || text.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        rest = &rest[unit..];
    }
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
        assert_eq!(urls("localhost", None, None), ["https://localhost/v2"]);
        assert_eq!(urls("r:1", Some("[host.\"127.0.0.1:5000\"]"), None)[0], "https://127.0.0.1:5000/v2");
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
        for text in [
            "server = 1",
            "host = 1",
            "[host.x]\nca = 1",
            "[host.x]\ndial_timeout = \"soon\"",
            "[host.x]\ndial_timeout = \"\"",
            "[host.x]\ncapabilities = [\"fly\"]",
            "[host.x.header]\n\"a b\" = \"c\"",
            "[host.x.header]\na = \"\\n\"",
            "x =",
        ] {
            let error = HostsFile::parse(text, Path::new("/certs.d/x/hosts.toml")).unwrap_err().to_string();
            assert!(error.contains("/certs.d/x/hosts.toml"), "{error}");
        }
        let file = HostsFile::parse("server = \"ftp://x\"", Path::new("/f")).unwrap();
        assert!(plan_hosts("x", Some(file), None).is_err());
    }

    #[test]
    fn what_a_host_may_be_used_for() {
        for (text, pull, resolve) in [
            ("", true, true),
            ("capabilities = []", true, true),
            ("capabilities = [\"PULL\"]", true, false),
            ("capabilities = [\"push\", \"resolve\"]", false, true),
        ] {
            let file = HostsFile::parse(&format!("[host.m]\n{text}"), Path::new("/f")).unwrap();
            let host = &plan_hosts("r", Some(file), None).unwrap()[0];
            assert_eq!((host.can_pull, host.can_resolve), (pull, resolve), "{text}");
        }
    }

    #[test]
    fn durations_of_go() {
        for (text, milliseconds) in
            [("1500ms", 1500), ("1m30s", 90_000), ("1.5s", 1500), ("1h0.5s", 3_600_500)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for text in ["", "5", "s", "-1s", "1x", "1e9h", "1..5s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn certificates_without_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("reg:5000");
        std::fs::create_dir(&at).unwrap();
        for name in ["ca.crt", "client.cert", "client.key", "README"] {
            std::fs::write(at.join(name), "").unwrap();
        }
        let file = read_hosts(directory.path(), "reg:5000").unwrap().unwrap();
        let host = plan_hosts("reg:5000", Some(file), None).unwrap().remove(0);
        assert_eq!((host.url.as_str(), host.ca), ("https://reg:5000/v2", vec![at.join("ca.crt")]));
        assert_eq!(host.client, [(at.join("client.cert"), Some(at.join("client.key")))]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,300}", value in "[\\[\\]{}\"a-z0-9_,. ]{0,60}") {
            let _ = duration(&text);
            for text in [text, format!("[host.\"x\"]\nclient = {value}"), format!("ca = {value}\nheader = {value}")] {
                if let Ok(file) = HostsFile::parse(&text, Path::new("/f")) {
                    let _ = plan_hosts("r:1", Some(file), Some("http://m"));
                }
            }
        }
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
        for name in ["_default", "reg:5000", "reg_5000_"] {
            write(name);
            assert_eq!(found(), Some(format!("https://{name}")));
        }
    }
}
