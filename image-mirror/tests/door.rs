//! TLS, limits and the access log, as curl and bare sockets see them.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use orlop_daemon::{Frame, Settings};
use orlop_mirror::{Action, AuthConfig, ClientAuth, Config, Rule};
use orlop_types::Digest;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

struct Registry {
    address: SocketAddr,
    frame: Frame,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Registry {
    fn start(work: &Path, config: Config) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = Config { listen: address, root: work.join("root"), ..config };
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            orlop_daemon::run(Settings::new("mirror"), |frame| async move {
                orlop_mirror::start(&frame, config).await?;
                sender.send(frame)?;
                Ok(())
            })
            .unwrap();
        });
        let frame = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        Self { address, frame, thread: Some(thread) }
    }

    /// Curl's end code and the answer with its head.
    fn curl(&self, words: &[&str], path: &str) -> (i32, String) {
        let scheme = if words.contains(&"--cacert") { "https" } else { "http" };
        let url = format!("{scheme}://{}{path}", self.address);
        let output =
            Command::new("curl").args(["-s", "-i", "-m", "10"]).args(words).arg(url).output().expect("curl");
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.frame.shutdown();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// An authority, with its certificate in a file.
fn authority(work: &Path, name: &str) -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let file = work.join(format!("{name}.pem"));
    std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
    (Issuer::new(params, key), file.to_str().unwrap().to_owned())
}

/// A certificate and its key, put in their places whole.
fn leaf(work: &Path, issuer: &Issuer<'_, KeyPair>, file: &str, name: &str) -> (PathBuf, PathBuf) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let put = |suffix: &str, text: String| {
        let target = work.join(format!("{file}.{suffix}"));
        std::fs::write(target.with_extension("new"), text).unwrap();
        std::fs::rename(target.with_extension("new"), &target).unwrap();
        target
    };
    (put("crt", certificate.pem()), put("key", key.serialize_pem()))
}

/// Asks until the answer is as wanted.
fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !ask() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_new_certificate_is_shown_without_a_restart() {
    let work = tempfile::tempdir().unwrap();
    let (first, first_file) = authority(work.path(), "first");
    let (second, second_file) = authority(work.path(), "second");
    let (certificate, key) = leaf(work.path(), &first, "server", "mirror");
    let config =
        Config { tls_cert_file: Some(certificate.clone()), tls_key_file: Some(key), ..Config::default() };
    let registry = Registry::start(work.path(), config);
    let (code, answer) = registry.curl(&["--cacert", &first_file], "/v2/");
    assert!(code == 0 && answer.starts_with("HTTP/2 200"), "{code} {answer}");
    let (code, _) = registry.curl(&["--cacert", &second_file], "/v2/");
    assert_eq!(code, 60, "the authority is not known");
    let (_, metrics) = registry.curl(&["--cacert", &first_file], "/metrics");
    assert!(metrics.contains("mirror_tls_certificate_expiry_timestamp_seconds 2208988800"), "{metrics}");

    leaf(work.path(), &second, "server", "mirror");
    until("the new certificate is never shown", || registry.curl(&["--cacert", &second_file], "/v2/").0 == 0);
    let (code, answer) = registry.curl(&["--cacert", &second_file, "--http1.1"], "/v2/");
    assert!(code == 0 && answer.starts_with("HTTP/1.1 200"), "{code} {answer}");
}

fn push(name: &str) -> String {
    format!("/v2/{name}/blobs/uploads/?digest={}", Digest::sha256(b"blob"))
}

#[test]
fn a_certificate_says_who_a_client_is() {
    let work = tempfile::tempdir().unwrap();
    let (ours, ours_file) = authority(work.path(), "ours");
    let (theirs, _) = authority(work.path(), "theirs");
    let (certificate, key) = leaf(work.path(), &ours, "server", "mirror");
    let config = |client_auth| Config {
        tls_cert_file: Some(certificate.clone()),
        tls_key_file: Some(key.clone()),
        client_ca_file: Some(PathBuf::from(&ours_file)),
        client_auth,
        auth: Some(AuthConfig {
            rules: vec![Rule {
                users: vec!["builder".into()],
                repositories: vec!["team/*".into()],
                actions: vec![Action::Push],
            }],
            ..AuthConfig::default()
        }),
        ..Config::default()
    };
    let identity = |issuer, name| {
        let (certificate, key) = leaf(work.path(), issuer, name, name);
        [certificate, key].map(|file| file.to_str().unwrap().to_owned())
    };
    let builder = identity(&ours, "builder");
    let reader = identity(&ours, "reader");
    let stranger = identity(&theirs, "builder2");
    let curl = |registry: &Registry, identity: Option<&[String; 2]>, words: &[&str], path: &str| {
        let mut all = vec!["--cacert", ours_file.as_str()];
        all.extend(identity.iter().flat_map(|[certificate, key]| ["--cert", certificate, "--key", key]));
        all.extend(words);
        let (code, answer) = registry.curl(&all, path);
        if code == 0 { answer.split(' ').nth(1).unwrap().to_owned() } else { "cut".to_owned() }
    };
    let pushing = ["-X", "POST", "-d", "blob"];

    let registry = Registry::start(work.path(), config(ClientAuth::Request));
    assert_eq!(curl(&registry, Some(&builder), &pushing, &push("team/app")), "201");
    assert_eq!(curl(&registry, Some(&builder), &pushing, &push("other")), "403");
    assert_eq!(curl(&registry, Some(&reader), &pushing, &push("team/app")), "403");
    assert_eq!(curl(&registry, None, &pushing, &push("team/app")), "401");
    assert_eq!(curl(&registry, Some(&stranger), &[], "/v2/"), "cut");
    assert_eq!(curl(&registry, Some(&reader), &[], "/v2/"), "200");
    assert_eq!(curl(&registry, None, &[], "/v2/"), "401");
    let blob = format!("/v2/team/app/blobs/{}", Digest::sha256(b"blob"));
    assert_eq!(curl(&registry, None, &[], &blob), "200");
    // There are no passwords, whatever is said.
    assert_eq!(curl(&registry, Some(&builder), &["-u", "builder:x"], "/v2/"), "401");
    drop(registry);

    let registry = Registry::start(work.path(), config(ClientAuth::Require));
    assert_eq!(curl(&registry, None, &[], &blob), "cut");
    assert_eq!(curl(&registry, Some(&reader), &[], &blob), "200");
}

/// Who is refused has often begun to send already, and reads the answer when he has sent all.
#[test]
fn a_refusal_arrives_although_a_body_is_on_its_way() {
    let work = tempfile::tempdir().unwrap();
    let users = work.path().join("users");
    std::fs::write(&users, "").unwrap();
    let auth = AuthConfig { htpasswd_file: Some(users), ..AuthConfig::default() };
    let registry = Registry::start(work.path(), Config { auth: Some(auth), ..Config::default() });
    std::fs::write(work.path().join("content"), vec![7; 900_000]).unwrap();
    let body = format!("@{}", work.path().join("content").display());
    for (version, expects) in [
        ("--http1.1", "Expect:"),
        ("--http2-prior-knowledge", "Expect:"),
        ("--http1.1", "Expect: 100-continue"),
    ] {
        for _ in 0..10 {
            let words = [version, "-X", "POST", "-H", expects, "--data-binary", &body];
            let (code, answer) = registry.curl(&words, &push("team/app"));
            assert!(code == 0 && answer.contains(" 401"), "{version} {expects} {code} {answer}");
        }
    }
}

#[test]
fn a_connection_too_many_is_told_so() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path(), Config { max_connections: 1, ..Config::default() });
    let mut only = TcpStream::connect(registry.address).unwrap();
    only.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = [0; 12];
    only.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let (code, answer) = registry.curl(&[], "/v2/");
    let lower = answer.to_lowercase();
    assert!(code == 0 && answer.starts_with("HTTP/1.1 503") && lower.contains("retry-after: 1"), "{answer}");
    drop(only);
    until("the place is never free again", || registry.curl(&[], "/v2/").1.starts_with("HTTP/1.1 200"));
    let (_, metrics) = registry.curl(&[], "/metrics");
    assert!(metrics.contains("mirror_connections_refused_total"), "{metrics}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The lines of finished requests that begin with a path.
    fn lines(&self, path: &str) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["target"] == "mirror::access")
            .map(|line| line["fields"].clone())
            .filter(|fields| fields["path"].as_str().is_some_and(|found| found.starts_with(path)))
            .collect()
    }
}

#[test]
fn each_request_leaves_a_line_without_secrets() {
    let log = Log::default();
    let lines = log.clone();
    tracing_subscriber::fmt().json().with_writer(move || lines.clone()).init();
    let work = tempfile::tempdir().unwrap();
    let users = work.path().join("users");
    std::fs::write(&users, format!("ann:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
    let auth = AuthConfig { htpasswd_file: Some(users), ..AuthConfig::default() };
    let config = Config { auth: Some(auth), access_log: true, ..Config::default() };
    let registry = Registry::start(work.path(), config);

    let size = 20 << 20;
    let content = vec![7; size];
    let digest = Digest::sha256(&content);
    std::fs::write(work.path().join("content"), &content).unwrap();
    let from = format!("@{}", work.path().join("content").display());
    let words = ["-u", "ann:secret", "-X", "POST", "--data-binary", &from];
    let (_, pushed) =
        registry.curl(&words, &format!("/v2/team/app/blobs/uploads/?digest={digest}&token=hidden"));
    assert!(pushed.contains("201 Created"), "{pushed}");
    until("the push is never logged", || log.lines("/v2/team/app/blobs/uploads/").len() == 1);
    let line = &log.lines("/v2/team/app/blobs/uploads/")[0];
    assert!(line["method"] == "POST" && line["code"] == 201 && line["user"] == "ann", "{line}");
    assert!(line["whole"] == true && line["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");

    // A client that goes away in the middle.
    let path = format!("/v2/team/app/blobs/{digest}");
    let mut client = TcpStream::connect(registry.address).unwrap();
    client.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    client.read_exact(&mut [0; 4096]).unwrap();
    drop(client);
    until("the cut pull is never logged", || log.lines(&path).len() == 1);
    let line = &log.lines(&path)[0];
    let bytes = line["bytes"].as_u64().unwrap();
    assert!(line["code"] == 200 && line["whole"] == false && (4096..size as u64).contains(&bytes), "{line}");
    assert!(line.get("user").is_none(), "{line}");

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("hidden") && !text.contains("secret"));
    let (_, metrics) = registry.curl(&[], "/metrics");
    for wanted in [
        r#"mirror_http_requests_total{method="POST",code="201"} 1"#,
        "mirror_http_request_duration_seconds_count{method=\"POST\"} 1",
        "mirror_http_requests_in_flight 1",
        &format!("mirror_http_received_bytes_total {size}"),
    ] {
        assert!(metrics.contains(wanted), "{wanted}: {metrics}");
    }
}
