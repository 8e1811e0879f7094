//! What is not here is fetched from Debian's docker-registry, once, and is there when that registry is gone.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orlop_daemon::{Frame, Settings};
use orlop_mirror::Config;
use orlop_types::Digest;

const NAME: &str = "up.example:5000";
/// Names with a colon are not in every client's grammar of paths.
const SHORT: &str = "up.example";

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

struct Mirror {
    address: SocketAddr,
    frame: Frame,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mirror {
    fn start(root: &Path, upstream: SocketAddr) -> Self {
        let address = free_address();
        let config = Config {
            listen: address,
            root: root.to_owned(),
            upstreams: [NAME, SHORT].map(|name| (name.to_owned(), format!("http://{upstream}"))).into(),
            tag_freshness_seconds: 0,
            ..Config::default()
        };
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

    fn curl(&self, words: &[&str], path: &str) -> String {
        let url = format!("http://{}{path}", self.address);
        let output =
            Command::new("curl").args(["-s", "-m", "20"]).args(words).arg(url).output().expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn code(&self, path: &str) -> String {
        self.curl(&["-o", "/dev/null", "-w", "%{http_code}"], path)
    }

    fn fetches(&self) -> u64 {
        let metrics = self.curl(&[], "/metrics");
        let line =
            metrics.lines().find(|line| line.starts_with("mirror_upstream_blob_fetches_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
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

struct Upstream {
    child: Child,
    address: SocketAddr,
}

impl Upstream {
    fn start(directory: &Path) -> Self {
        let address = free_address();
        let config = directory.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
            directory.join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("docker-registry");
        let upstream = Self { child, address };
        for _ in 0..200 {
            if TcpStream::connect(address).is_ok() {
                return upstream;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("docker-registry does not listen");
    }

    /// Pushes an image of one incompressible layer; the layer's digest.
    fn push(&self, work: &Path, tag: &str, layer: &[u8]) -> Digest {
        let source = work.join(tag);
        let blobs = source.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            let digest = Digest::sha256(bytes);
            std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
            digest
        };
        let layer_digest = put(layer);
        let config = serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer_digest]}}).to_string();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(config.as_bytes()), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}],
        })
        .to_string();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": put(manifest.as_bytes()), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }]});
        std::fs::write(source.join("index.json"), index.to_string()).unwrap();
        std::fs::write(source.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:{tag}", source.display()))
            .arg(format!("docker://{}/team/app:{tag}", self.address))
            .output()
            .expect("skopeo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        layer_digest
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(&seed.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn a_miss_is_fetched_once_and_stays() {
    let work = tempfile::tempdir().unwrap();
    let upstream = Upstream::start(work.path());
    let (layer, other) = (noise(20 << 20, 1), noise(5 << 20, 2));
    let layer_digest = upstream.push(work.path(), "one", &layer);
    let other_digest = upstream.push(work.path(), "two", &other);
    let root = work.path().join("mirror");
    let mirror = Mirror::start(&root, upstream.address);

    // containerd's order: HEAD by tag, then blobs, all with ns.
    let head = mirror.curl(&["-I"], &format!("/v2/team/app/manifests/one?ns={NAME}"));
    assert!(head.contains("200 OK") && head.contains("docker-content-digest: sha256:"), "{head}");
    let blob = format!("/v2/team/app/blobs/{layer_digest}?ns={NAME}");
    let head = mirror.curl(&["-I"], &blob);
    assert!(head.contains("200 OK") && head.contains("content-length: 20971520"), "{head}");
    assert_eq!(mirror.fetches(), 0, "asking fetches nothing");
    std::thread::scope(|scope| {
        for index in 0..8 {
            let (mirror, blob, work, layer) = (&mirror, &blob, &work, &layer);
            scope.spawn(move || {
                let file = work.path().join(format!("got-{index}"));
                mirror.curl(&["-o", file.to_str().unwrap()], blob);
                assert!(std::fs::read(file).unwrap() == *layer, "client {index}");
            });
        }
    });
    assert_eq!(mirror.fetches(), 1, "eight clients, one download");

    // A part of a blob that is not here yet, without having seen its manifest.
    let part = ["-r", "100-199", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"];
    assert_eq!(mirror.curl(&part, &format!("/v2/team/app/blobs/{other_digest}?ns={NAME}")), "206 100");

    // The registry in front of the path, by a client that we did not write.
    let target = work.path().join("target");
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--src-tls-verify=false"])
        .arg(format!("docker://{}/{SHORT}/team/app:one", mirror.address))
        .arg(format!("dir:{}", target.display()))
        .output()
        .expect("skopeo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read(target.join(layer_digest.hex())).unwrap() == layer);
    assert_eq!(mirror.code(&format!("/v2/{NAME}/team/app/manifests/one")), "200");

    // Not there, not configured, not a registry.
    assert_eq!(mirror.code(&format!("/v2/team/app/manifests/none?ns={NAME}")), "404");
    assert_eq!(mirror.code(&format!("/v2/team/none/manifests/one?ns={NAME}")), "404");
    assert_eq!(mirror.code(&format!("/v2/team/app/blobs/{}?ns={NAME}", Digest::sha256(b"none"))), "404");
    assert_eq!(mirror.code(&format!("/v2/team/app/manifests/one?ns={}", upstream.address)), "404");
    assert_eq!(mirror.code("/v2/team/app/manifests/one?ns=../x"), "400");
    assert_eq!(mirror.code("/v2/team/app/manifests/one"), "404");

    // The upstream goes away; a restart must not need it.
    drop(upstream);
    drop(mirror);
    let mirror = Mirror::start(&root, free_address());
    assert_eq!(mirror.code(&format!("/v2/team/app/manifests/one?ns={NAME}")), "200", "as last seen");
    assert_eq!(mirror.code(&blob), "200");
    let code = mirror.code(&format!("/v2/team/app/manifests/two?ns={NAME}"));
    assert!(matches!(code.as_str(), "502" | "503"), "never seen, nobody to ask: {code}");
    assert_eq!(mirror.fetches(), 0);
}

#[test]
fn a_moved_tag_is_seen_and_a_pushed_one_is_ours() {
    let work = tempfile::tempdir().unwrap();
    let upstream = Upstream::start(work.path());
    upstream.push(work.path(), "latest", b"first");
    let mirror = Mirror::start(&work.path().join("mirror"), upstream.address);
    let digest = || {
        let head = mirror.curl(&["-I"], &format!("/v2/team/app/manifests/latest?ns={NAME}"));
        let line = head.lines().find_map(|line| line.strip_prefix("docker-content-digest: "));
        line.unwrap_or_else(|| panic!("{head}")).trim().to_owned()
    };
    let first = digest();
    std::fs::remove_dir_all(work.path().join("latest")).unwrap();
    upstream.push(work.path(), "latest", b"second");
    let second = digest();
    assert_ne!(first, second);
    assert_eq!(
        mirror.code(&format!("/v2/team/app/manifests/{first}?ns={NAME}")),
        "200",
        "by digest the old one"
    );
    // The operator pushes his own under the same name.
    let own = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let kind = "Content-Type: application/vnd.oci.image.index.v1+json";
    mirror.curl(&["-X", "PUT", "-H", kind, "-d", own], &format!("/v2/team/app/manifests/latest?ns={NAME}"));
    assert_eq!(digest(), Digest::sha256(own.as_bytes()).to_string(), "not overruled by the upstream");
}
