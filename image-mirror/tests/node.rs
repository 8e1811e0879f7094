//! What runs on nodes pulls through the mirror: containerd by hosts.toml, the client of our own runtime, skopeo's synchronisation.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use orlop_daemon::{Frame, Settings};
use orlop_distribution::client::{ClientConfig, RegistryClient};
use orlop_distribution::manifest::{Descriptor, Manifest};
use orlop_mirror::{AuthConfig, Config};
use orlop_types::{Digest, Reference};
use serde_json::{Value, json};

const UPSTREAM: &str = "up.example";

struct Registry {
    address: SocketAddr,
    frame: Frame,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Registry {
    fn start(root: &Path, config: Config) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = Config { listen: address, root: root.to_owned(), ..config };
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
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.frame.shutdown();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Runs a program to its end; gives what it said.
fn run(program: &str, words: &[&str]) -> String {
    let output =
        Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {words:?}: {text}");
    text
}

/// An OCI layout with one image that containerd can unpack.
fn layout(directory: &Path) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], kind: &str| {
        let digest = Digest::sha256(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": kind, "digest": digest.as_str(), "size": bytes.len()})
    };
    // An empty archive: two blocks of nothing.
    let layer = put(&[0; 1024], "layer.v1.tar");
    let rootfs = json!({"type": "layers", "diff_ids": [layer["digest"]]});
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(config.as_bytes(), "config.v1+json"),
        "layers": [layer],
    });
    let manifest = put(manifest.to_string().as_bytes(), "manifest.v1+json");
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

struct Containerd {
    child: Child,
    socket: PathBuf,
}

impl Containerd {
    fn start(work: &Path) -> Self {
        let socket = work.join("containerd.sock");
        let config = format!(
            "version = 2\nroot = \"{work}/root\"\nstate = \"{work}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{work}/ttrpc.sock\"\n",
            socket.display(),
            work = work.display()
        );
        std::fs::write(work.join("config.toml"), config).unwrap();
        let log = std::fs::File::create(work.join("log")).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(work.join("config.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd");
        let containerd = Self { child, socket };
        let begun = Instant::now();
        while !containerd.ctr(&["version"]).0 {
            let log = || std::fs::read_to_string(work.join("log")).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        containerd
    }

    fn ctr(&self, words: &[&str]) -> (bool, String) {
        let output =
            Command::new("ctr").arg("--address").arg(&self.socket).args(words).output().expect("ctr");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It has no containers: nothing is left behind.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Every blob of an image by our own client; gives their number.
fn pull(client: &RegistryClient, image: &Reference) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let manifest = client.manifest(image, None).await.unwrap();
        let Manifest::Image(parsed) = Manifest::parse(&manifest.bytes, None).unwrap() else {
            panic!("an index")
        };
        let blobs: Vec<Descriptor> = std::iter::once(parsed.config).chain(parsed.layers).collect();
        for blob in &blobs {
            let mut download = client.download(image, blob, None, 0).unwrap();
            let mut bytes = Vec::new();
            while let Some(chunk) = download.chunk().await.unwrap() {
                bytes.extend_from_slice(&chunk);
            }
            blob.digest.verify(&bytes).unwrap();
        }
        blobs.len()
    })
}

/// With accounts: who pulls on a node needs none.
#[test]
fn nodes_pull_through_the_mirror_with_the_upstream_gone() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name);
    layout(&path("source"));
    std::fs::write(path("users"), format!("ann:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
    let upstream = Registry::start(&path("upstream"), Config::default());
    let source = format!("oci:{}", path("source").display());
    // A mirror that another one fetches from is told by `?ns=` too.
    let target = format!("docker://{}/{UPSTREAM}/team/app:1", upstream.address);
    run("skopeo", &["--insecure-policy", "copy", "--dest-tls-verify=false", &source, &target]);
    let config = Config {
        upstreams: [(UPSTREAM.to_owned(), format!("http://{}", upstream.address))].into(),
        auth: Some(AuthConfig { htpasswd_file: Some(path("users")), ..AuthConfig::default() }),
        ..Config::default()
    };
    let mirror = Registry::start(&path("mirror"), config);

    // One file for every registry there is; the mirror is told by `?ns=` which one is meant.
    std::fs::create_dir_all(path("certs.d/_default")).unwrap();
    let hosts = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.address);
    std::fs::write(path("certs.d/_default/hosts.toml"), hosts).unwrap();
    let hosts = path("certs.d");
    let image = format!("{UPSTREAM}/team/app:1");
    let pull_by_containerd = |name: &str| {
        let directory = path(name);
        std::fs::create_dir(&directory).unwrap();
        let containerd = Containerd::start(&directory);
        let words =
            ["images", "pull", "--snapshotter", "native", "--hosts-dir", hosts.to_str().unwrap(), &image];
        let (done, text) = containerd.ctr(&words);
        assert!(done, "{text}");
        let (_, images) = containerd.ctr(&["images", "ls", "-q"]);
        assert_eq!(images.trim(), image);
    };
    pull_by_containerd("first");
    drop(upstream);
    pull_by_containerd("second");

    let client =
        RegistryClient::new(ClientConfig { hosts_dir: Some(hosts.clone()), ..ClientConfig::default() });
    assert_eq!(pull(&client, &Reference::parse(&image).unwrap()), 2);
}

/// containerd's way to a token: a form first, by the scope of the challenge, which holds the registry's name too.
#[test]
fn containerd_logs_in_where_pulls_are_not_free() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name);
    layout(&path("source"));
    std::fs::write(path("users"), format!("ann:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
    let auth =
        AuthConfig { htpasswd_file: Some(path("users")), anonymous_pull: false, ..AuthConfig::default() };
    let mirror = Registry::start(&path("mirror"), Config { auth: Some(auth), ..Config::default() });
    let source = format!("oci:{}", path("source").display());
    let target = format!("docker://{}/{UPSTREAM}/team/app:1", mirror.address);
    let to = ["--dest-tls-verify=false", "--dest-creds=ann:secret", &source, &target];
    run("skopeo", &[&["--insecure-policy", "copy"], &to[..]].concat());
    let back = ["--src-tls-verify=false", "--src-creds=ann:secret", &target];
    let out = format!("dir:{}", path("out").display());
    run("skopeo", &[&["--insecure-policy", "copy"], &back[..], &[&out]].concat());

    std::fs::create_dir_all(path("certs.d/_default")).unwrap();
    let hosts = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.address);
    std::fs::write(path("certs.d/_default/hosts.toml"), hosts).unwrap();
    std::fs::create_dir(path("containerd")).unwrap();
    let containerd = Containerd::start(&path("containerd"));
    let (hosts, image) = (path("certs.d").display().to_string(), format!("{UPSTREAM}/team/app:1"));
    let pull = |user: &[&str]| {
        let words = ["images", "pull", "--snapshotter", "native", "--hosts-dir", &hosts];
        containerd.ctr(&[&words[..], user, &[&image]].concat())
    };
    let (done, text) = pull(&[]);
    assert!(!done, "{text}");
    let (done, text) = pull(&["--user", "ann:wrong"]);
    assert!(!done, "{text}");
    let (done, text) = pull(&["--user", "ann:secret"]);
    assert!(done, "{text}");
}

#[test]
fn skopeo_synchronises_in_and_out() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).display().to_string();
    layout(&work.path().join("source"));
    let registry = Registry::start(&work.path().join("root"), Config::default());
    for tag in ["1", "2"] {
        let target = format!("docker://{}/team/app:{tag}", registry.address);
        let source = format!("oci:{}", path("source"));
        run("skopeo", &["--insecure-policy", "copy", "--dest-tls-verify=false", &source, &target]);
    }
    let repository = format!("{}/team/app", registry.address);
    let out = ["--src", "docker", "--dest", "dir", "--src-tls-verify=false", &repository, &path("out")];
    run("skopeo", &[&["--insecure-policy", "sync"], &out[..]].concat());
    let copy = format!("{}/copy", registry.address);
    let into = ["--src", "dir", "--dest", "docker", "--dest-tls-verify=false", &path("out"), &copy];
    run("skopeo", &[&["--insecure-policy", "sync"], &into[..]].concat());
    let listed = run("curl", &["-s", &format!("http://{}/v2/copy/app/tags/list", registry.address)]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["tags"], json!(["1", "2"]));
}
