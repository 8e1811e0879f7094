//! What stays on the disk, and what an operator orders at the admin socket.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use orlop_daemon::{Frame, Settings};
use orlop_mirror::{Config, KeepingConfig};
use orlop_types::Digest;
use serde_json::json;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// No test waits longer for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn config(root: &Path, keeping: KeepingConfig) -> Config {
    Config { listen: free_address(), root: root.to_owned(), keeping, ..Config::default() }
}

fn settings(root: &Path) -> Settings {
    let mut settings = Settings::new("mirror");
    settings.admin_socket = Some(root.join("admin.sock"));
    settings
}

struct Mirror {
    address: SocketAddr,
    root: PathBuf,
    frame: Frame,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mirror {
    fn start(config: Config) -> Self {
        let (address, root) = (config.listen, config.root.clone());
        let (sender, receiver) = std::sync::mpsc::channel();
        let settings = settings(&root);
        let thread = std::thread::spawn(move || {
            orlop_daemon::run(settings, |frame| async move {
                orlop_mirror::start(&frame, config).await?;
                sender.send(frame)?;
                Ok(())
            })
            .unwrap();
        });
        let frame = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        Self { address, root, frame, thread: Some(thread) }
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        ask(self.address, method, path, body).unwrap()
    }

    fn order(&self, command: &str, argument: &str) -> Answer {
        order(&self.root, &format!("PUT /commands/{command}"), argument).unwrap()
    }

    fn state(&self) -> serde_json::Value {
        let dump: serde_json::Value =
            serde_json::from_str(&order(&self.root, "GET /dump", "").unwrap().text()).unwrap();
        dump["mirror"]["keeping"].clone()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.frame.shutdown();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn exchange(mut stream: impl io::Read + io::Write, request: &[u8]) -> io::Result<Answer> {
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or_else(|| io::Error::other("the head was cut"))?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let body = bytes.split_off(end + 4);
    let stated = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    if stated.is_some_and(|stated: usize| stated != body.len()) && !request.starts_with(b"HEAD") {
        return Err(io::Error::other("the body was cut"));
    }
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer { code: code.ok_or_else(|| io::Error::other("no status"))?, head, body })
}

fn ask(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: mirror\r\nconnection: close\r\ncontent-type: {MANIFEST}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    exchange(stream, &request)
}

fn order(root: &Path, request: &str, argument: &str) -> io::Result<Answer> {
    let stream = UnixStream::connect(root.join("admin.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!(
        "{request} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{argument}",
        argument.len()
    );
    exchange(stream, request.as_bytes())
}

fn blob(repository: &str, content: &[u8]) -> (String, String) {
    let digest = Digest::sha256(content);
    (format!("/v2/{repository}/blobs/uploads/?digest={digest}"), format!("/v2/{repository}/blobs/{digest}"))
}

/// A manifest of one blob, which is its config too.
fn manifest(content: &[u8]) -> Vec<u8> {
    let descriptor = json!({
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": Digest::sha256(content).as_str(),
        "size": content.len(),
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/example",
        "config": descriptor,
        "layers": [],
    });
    manifest.to_string().into_bytes()
}

fn push(mirror: &Mirror, repository: &str, tag: &str, content: &[u8]) {
    let (upload, _) = blob(repository, content);
    assert_eq!(mirror.ask("POST", &upload, content).code, 201);
    let pushed = mirror.ask("PUT", &format!("/v2/{repository}/manifests/{tag}"), &manifest(content));
    assert_eq!(pushed.code, 201, "{pushed:?}");
}

/// Asks again until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn files(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("blobs/sha256")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn modes_are_changed_at_run_time_and_remembered() {
    let work = tempfile::tempdir().unwrap();
    let config = || Config {
        // Nobody listens there.
        upstreams: [("up.example".to_owned(), format!("http://{}", free_address()))].into(),
        ..config(work.path(), KeepingConfig::default())
    };
    let mirror = Mirror::start(config());
    push(&mirror, "a", "1", b"content");
    let (upload, get) = blob("a", b"content");
    assert_eq!(mirror.order("mode", "").text(), "normal");
    assert_eq!(mirror.order("mode", "other").code, 409);
    assert_eq!(mirror.order("nothing", "").code, 404);
    assert_eq!(mirror.order("mode", "readOnly").text(), "readOnly");
    let refused = mirror.ask("POST", &upload, b"content");
    assert!(refused.code == 405 && refused.text().contains("read-only"), "{refused:?}");
    assert_eq!(mirror.ask("GET", &get, b"").code, 200);
    drop(mirror);

    let mirror = Mirror::start(config());
    assert_eq!(mirror.state()["mode"], "readOnly");
    assert_eq!(mirror.ask("DELETE", "/v2/a/manifests/1", b"").code, 405);
    assert_eq!(mirror.ask("GET", "/v2/x/manifests/1?ns=up.example", b"").code, 502, "it is asked for");
    mirror.order("mode", "maintenance");
    for (method, path) in [("DELETE", "/v2/a/manifests/1"), ("GET", "/v2/x/manifests/1?ns=up.example")] {
        let refused = mirror.ask(method, path, b"");
        assert!(refused.code == 503 && refused.head.contains("retry-after:"), "{refused:?}");
    }
    assert_eq!(mirror.ask("GET", "/v2/a/manifests/1", b"").code, 200);
    assert_eq!(mirror.ask("GET", &get, b"").body, b"content");
    assert!(mirror.order("gc", "").text().contains("maintenance"));
    assert_eq!(mirror.order("mode", "configured").text(), "normal");
    assert_eq!(mirror.ask("DELETE", "/v2/a/manifests/1", b"").code, 202);
}

#[test]
fn a_repository_is_deleted_and_its_bytes_are_freed_when_the_lease_ends() {
    let work = tempfile::tempdir().unwrap();
    let keeping = KeepingConfig { upload_lease_seconds: 1, ..KeepingConfig::default() };
    let mirror = Mirror::start(config(work.path(), keeping));
    push(&mirror, "a/b", "1", b"one");
    push(&mirror, "a/b", "2", b"two");
    push(&mirror, "a/c", "1", b"one");
    assert_eq!(mirror.order("delete", "a/none").code, 409);
    let deleted = mirror.order("delete", "a/b");
    assert!(deleted.text().starts_with("6 tags"), "{deleted:?}");
    assert_eq!(mirror.ask("GET", "/v2/a/b/manifests/1", b"").code, 404);
    assert_eq!(mirror.ask("GET", "/v2/a/c/manifests/1", b"").code, 200);
    let kept = {
        let mut kept =
            [b"one".to_vec(), manifest(b"one")].map(|bytes| Digest::sha256(&bytes).hex().to_owned());
        kept.sort();
        kept
    };
    until("garbage goes", || {
        assert_eq!(mirror.order("gc", "").code, 200);
        files(work.path()) == kept
    });
    let (_, get) = blob("a/c", b"one");
    assert_eq!(mirror.ask("GET", &get, b"").body, b"one");
    assert_eq!(std::fs::read_dir(work.path().join("trash")).unwrap().count(), 0);
    let last = &mirror.state()["lastCollection"];
    assert!(last["endedMs"].as_u64() >= last["startedMs"].as_u64(), "{last}");
}

#[test]
fn a_quota_that_is_full_of_pushes_refuses_more_and_reads_go_on() {
    let work = tempfile::tempdir().unwrap();
    let keeping = KeepingConfig { quota_bytes: 2000, upload_lease_seconds: 1, ..KeepingConfig::default() };
    let mirror = Mirror::start(config(work.path(), keeping));
    let (first, second) = ([1_u8; 1000], [2_u8; 1000]);
    push(&mirror, "a", "1", &first);
    let (upload, get) = blob("a", &second);
    let refused = mirror.ask("POST", &upload, &second);
    assert!(refused.code == 507 && refused.text().contains("DENIED"), "{refused:?}");
    assert!(refused.text().contains("keeping.quotaBytes"), "{refused:?}");
    assert_eq!(mirror.ask("GET", &get, b"").code, 404);
    assert_eq!(mirror.ask("GET", "/v2/a/manifests/1", b"").code, 200);
    assert!(mirror.state()["lastRefusal"]["message"].as_str().unwrap().contains("quota"));
    assert_eq!(mirror.order("delete", "a").code, 200);
    until("the room that was freed is used", || {
        mirror.order("gc", "");
        mirror.ask("POST", &upload, &second).code == 201
    });
    let metrics = mirror.ask("GET", "/metrics", b"").text();
    assert!(
        metrics.contains("mirror_quota_bytes 2000") && metrics.contains("mirror_blob_bytes 1"),
        "{metrics}"
    );
}

/// The process that the next tests kill.
#[test]
fn serves_until_it_is_killed() {
    let Ok(text) = std::env::var("MIRROR_OF_A_TEST") else { return };
    let config: Config = serde_json::from_str(&text).unwrap();
    orlop_daemon::run(settings(&config.root.clone()), |frame| async move {
        orlop_mirror::start(&frame, config).await
    })
    .unwrap();
}

struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(config: &Config) -> Self {
        Self::start_by(Command::new(std::env::current_exe().unwrap()), config)
    }

    /// On a small file system of its own, in a mount namespace of its own.
    fn start_on_small_disk(config: &Config, options: &str) -> Self {
        let script = r#"mount -t tmpfs -o "$1" tmpfs "$2" && head -c 4M /dev/zero > "$2/ballast" && shift 2 && exec "$@""#;
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-ec", script, "sh", options]).arg(&config.root);
        command.arg(std::env::current_exe().unwrap());
        Self::start_by(command, config)
    }

    /// A file below the mirror's root, as the mirror sees it.
    fn see(&self, config: &Config, name: &str) -> PathBuf {
        let root = config.root.strip_prefix("/").unwrap();
        Path::new("/proc").join(self.child.id().to_string()).join("root").join(root).join(name)
    }

    fn start_by(mut command: Command, config: &Config) -> Self {
        let child = command
            .args(["--exact", "serves_until_it_is_killed"])
            .env("MIRROR_OF_A_TEST", serde_json::to_string(config).unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Self { child, address: config.listen };
        until("the mirror listens", || TcpStream::connect(process.address).is_ok());
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// splitmix64: the same run each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// What was acknowledged is there whole after each kill, and what was deleted is not; nothing is left of it in the end.
#[test]
fn killed_between_pushes_deletes_and_collections() {
    let work = tempfile::tempdir().unwrap();
    let keeping =
        KeepingConfig { upload_lease_seconds: 1, collect_interval_seconds: 1, ..KeepingConfig::default() };
    let config = config(work.path(), keeping);
    let mut random = Random(std::env::var("SEED").map_or(7, |seed| seed.parse().unwrap()));
    // What a tag names, none when it was deleted; no entry when nobody knows whether the last change arrived.
    let mut known: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
    for round in 0..25_u32 {
        let process = Process::start(&config);
        let address = process.address;
        for (tag, content) in &known {
            check(address, tag, content.as_deref());
        }
        let root = work.path().to_owned();
        let collector = std::thread::spawn(move || while order(&root, "PUT /commands/gc", "").is_ok() {});
        let (mut process, mut killer) = (Some(process), None);
        let kill_at = random.below(12);
        for number in 0.. {
            if number == kill_at {
                let (process, moment) = (process.take(), Duration::from_micros(random.below(8000)));
                // The moment is what is tried, not a wait for anything.
                killer = Some(std::thread::spawn(move || {
                    std::thread::sleep(moment);
                    drop(process);
                }));
            }
            let tag = format!("t{}", random.below(6));
            let content = format!("{round} {}", random.below(u64::MAX)).into_bytes();
            let done = match random.below(3) {
                0 => change(address, &tag, None).map(|()| None),
                _ => change(address, &tag, Some(&content)).map(|()| Some(content)),
            };
            match done {
                Ok(content) => drop(known.insert(tag, content)),
                Err(error) => {
                    known.remove(&tag);
                    if error.kind() != io::ErrorKind::Unsupported {
                        break;
                    }
                }
            }
        }
        killer.expect("only a killed one does not answer").join().unwrap();
        collector.join().unwrap();
    }
    let mirror = Mirror::start(config);
    assert!(!known.is_empty());
    for (tag, content) in &known {
        check(mirror.address, tag, content.as_deref());
    }
    mirror.order("delete", "a");
    until("everything goes", || mirror.order("gc", "").code == 200 && files(work.path()).is_empty());
    assert_eq!(std::fs::read_dir(work.path().join("ingest")).unwrap().count(), 0);
}

fn change(address: SocketAddr, tag: &str, content: Option<&[u8]>) -> io::Result<()> {
    let path = format!("/v2/a/manifests/{tag}");
    let Some(content) = content else {
        let answer = ask(address, "DELETE", &path, b"")?;
        return if matches!(answer.code, 202 | 404) {
            Ok(())
        } else {
            Err(io::ErrorKind::Unsupported.into())
        };
    };
    let answer = ask(address, "POST", &blob("a", content).0, content)?;
    let put = ask(address, "PUT", &path, &manifest(content))?;
    // A machine that is slow enough for the lease to end in between is told so.
    if (answer.code, put.code) == (201, 201) { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

fn check(address: SocketAddr, tag: &str, content: Option<&[u8]>) {
    let found = ask(address, "GET", &format!("/v2/a/manifests/{tag}"), b"").unwrap();
    match content {
        Some(content) => {
            assert_eq!(found.body, manifest(content), "{tag}: {}", found.code);
            assert_eq!(ask(address, "GET", &blob("a", content).1, b"").unwrap().body, content, "{tag}");
        }
        None => assert_eq!(found.code, 404, "{tag}"),
    }
}

#[test]
fn a_scrub_finds_what_is_damaged_or_gone_and_a_push_heals_it() {
    let work = tempfile::tempdir().unwrap();
    let mirror = Mirror::start(config(work.path(), KeepingConfig::default()));
    let contents: [&[u8]; 3] = [b"whole", b"to be damaged", b"to be lost"];
    for (number, content) in contents.iter().enumerate() {
        push(&mirror, "a", &number.to_string(), content);
    }
    let path = |content: &[u8]| work.path().join("blobs/sha256").join(Digest::sha256(content).hex());
    std::fs::write(path(contents[1]), b"to be DAMAGED").unwrap();
    std::fs::remove_file(path(contents[2])).unwrap();
    assert_eq!(mirror.order("scrub", "").text(), "a scrub is started");
    until("the scrub ends", || mirror.state()["scrub"]["endedMs"].as_u64() > Some(0));
    let state = mirror.state();
    assert_eq!((&state["scrub"]["blobs"], &state["damagedBlobs"]), (&json!(6), &json!(2)), "{state}");
    assert_eq!(state["owedBlobs"].as_array().unwrap().len(), 2, "{state}");
    let quarantine = work.path().join("quarantine").join(Digest::sha256(contents[1]).hex());
    assert_eq!(std::fs::read(quarantine).unwrap(), b"to be DAMAGED");
    let codes = |method: &str| contents.map(|content| mirror.ask(method, &blob("a", content).1, b"").code);
    assert_eq!((codes("HEAD"), codes("GET")), ([200, 404, 404], [200, 404, 404]));
    let refused = mirror.ask("PUT", "/v2/a/manifests/1", &manifest(contents[1]));
    assert!(refused.text().contains("MANIFEST_BLOB_UNKNOWN"), "a row without bytes is none: {refused:?}");
    for content in contents {
        assert_eq!(mirror.ask("POST", &blob("a", content).0, content).code, 201);
    }
    assert_eq!(codes("GET"), [200; 3]);
    assert_eq!(mirror.state()["owedBlobs"], json!([]));
    // A manifest is looked at when it is served.
    let of_manifest = path(&manifest(contents[0]));
    std::fs::write(&of_manifest, b"nonsense").unwrap();
    assert_eq!(mirror.ask("GET", "/v2/a/manifests/0", b"").code, 404);
    assert!(!of_manifest.exists());
    assert_eq!(mirror.ask("PUT", "/v2/a/manifests/0", &manifest(contents[0])).code, 201);
    assert_eq!(mirror.ask("GET", "/v2/a/manifests/0", b"").code, 200);
}

#[test]
fn a_scrub_goes_on_where_it_was() {
    let work = tempfile::tempdir().unwrap();
    let slow = KeepingConfig { scrub_bytes_per_second: 1, ..KeepingConfig::default() };
    let mirror = Mirror::start(config(work.path(), slow));
    // A byte in a second: it does not end of itself.
    push(&mirror, "a", "1", b"content");
    mirror.order("scrub", "");
    until("the scrub is under way", || mirror.order("scrub", "").text() == "a scrub is under way");
    drop(mirror);
    let memory = std::fs::read_to_string(work.path().join("keeping.json")).unwrap();
    assert!(memory.contains("cursor"), "{memory}");
    let mirror = Mirror::start(config(work.path(), KeepingConfig::default()));
    mirror.order("scrub", "");
    until("it ends", || mirror.state()["scrub"]["endedMs"].as_u64() > Some(0));
}

/// Pushes until one is refused, and gives that answer.
fn fill(address: SocketAddr, limit: u32) -> Answer {
    for number in 0..limit {
        let mut content = vec![7; 1 << 20];
        content[..4].copy_from_slice(&number.to_le_bytes());
        let answer = ask(address, "POST", &blob("fill", &content).0, &content).unwrap();
        if answer.code != 201 {
            return answer;
        }
    }
    panic!("{limit} MiB were taken");
}

#[test]
fn a_full_disk_refuses_writes_and_serves_reads_until_there_is_space_again() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP a_full_disk: mounting a small file system needs root");
        return;
    }
    for (held_back, message) in [(Some(0), "disk is full"), (None, "are held back")] {
        let work = tempfile::tempdir().unwrap();
        let keeping = KeepingConfig { min_free_bytes: held_back, ..KeepingConfig::default() };
        let config = config(work.path(), keeping);
        let process = Process::start_on_small_disk(&config, "size=24m");
        let address = process.address;
        change(address, "kept", Some(b"kept")).unwrap();
        let refused = fill(address, 32);
        assert!(refused.code == 507 && refused.text().contains(message), "{refused:?}");
        for _ in 0..3 {
            check(address, "kept", Some(b"kept"));
            assert_eq!(ask(address, "HEAD", &blob("a", b"kept").1, b"").unwrap().code, 200);
        }
        if held_back.is_none() {
            // What is held back lets the records be written.
            change(address, "kept", None).unwrap();
            check(address, "kept", None);
        }
        std::fs::remove_file(process.see(&config, "ballast")).unwrap();
        until("pushes are taken again", || change(address, "again", Some(b"again")).is_ok());
        check(address, "again", Some(b"again"));
    }
}
