//! Mirrors as processes of their own, so that they can be killed.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use orlop_types::Digest;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Tries until it is so.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited {}s for: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One mirror; killed when dropped.
pub(crate) struct Mirror {
    pub(crate) address: SocketAddr,
    pub(crate) root: PathBuf,
    /// The network namespace that it and its clients are in.
    netns: Option<String>,
    scheme: &'static str,
    config: serde_json::Value,
    child: Option<Child>,
}

impl Mirror {
    /// `more` are keys of the configuration.
    pub(crate) fn new(root: &Path, address: SocketAddr, more: serde_json::Value) -> Self {
        let mut config = serde_json::json!({"listen": address, "root": root.join("data")});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        std::fs::create_dir_all(root).unwrap();
        Self { address, root: root.to_owned(), netns: None, scheme: "http", config, child: None }
    }

    pub(crate) fn with_tls(mut self) -> Self {
        self.scheme = "https";
        self
    }

    pub(crate) fn in_namespace(mut self, netns: &str) -> Self {
        self.netns = Some(netns.to_owned());
        self
    }

    /// The same mirror for those who only ask it.
    pub(crate) fn client(&self) -> Self {
        let (root, netns, config) = (self.root.clone(), self.netns.clone(), self.config.clone());
        Self { address: self.address, root, netns, scheme: self.scheme, config, child: None }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let Some(netns) = &self.netns else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{netns}")).arg("--").arg(program);
        command
    }

    pub(crate) fn start(&mut self) {
        self.launch();
        wait_for("the mirror to listen", || {
            assert!(self.child.as_mut().unwrap().try_wait().unwrap().is_none(), "{}", self.log());
            (self.curl(&["-f"], "/healthz").status.success()).then_some(())
        });
    }

    pub(crate) fn launch(&mut self) {
        // YAML takes JSON.
        let file = self.root.join("mirror.yaml");
        std::fs::write(&file, self.config.to_string()).unwrap();
        let mut command = match std::env::var_os("ORLOP_BIN") {
            Some(orlop) => {
                let mut command = self.command(orlop);
                command.arg("mirror").arg("--config").arg(&file);
                command
            }
            None => {
                let mut command = self.command(std::env::current_exe().unwrap());
                command.args(["--exact", "subject", "--ignored", "--nocapture"]);
                command.env(crate::SUBJECT, &file);
                command
            }
        };
        let log = std::fs::File::options().create(true).append(true).open(self.root.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.root.join("data")).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        let text = std::fs::read_to_string(self.root.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub(crate) fn curl(&self, words: &[&str], path: &str) -> Output {
        let url = format!("{}://{}{path}", self.scheme, self.address);
        self.command("curl").args(["-sk", "-m", "60"]).args(words).arg(url).output().expect("curl")
    }

    pub(crate) fn code(&self, path: &str) -> String {
        let output = self.curl(&["-o", "/dev/null", "-w", "%{http_code}"], path);
        String::from_utf8(output.stdout).unwrap()
    }

    /// A counter or gauge; all its labels together.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = String::from_utf8(self.curl(&[], "/metrics").stdout).unwrap();
        let lines = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Sends bytes; status, and the value of `Orlop-Replicated`.
    pub(crate) fn send(&self, method: &str, path: &str, kind: &str, bytes: &[u8]) -> (String, String) {
        let file = tempfile::NamedTempFile::new_in(&self.root).unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let data = format!("@{}", file.path().display());
        let kind = format!("Content-Type: {kind}");
        let words = [
            "-X",
            method,
            "-H",
            &kind,
            "--data-binary",
            &data,
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %header{orlop-replicated}",
        ];
        let text = String::from_utf8(self.curl(&words, path).stdout).unwrap();
        let (code, replicated) = text.split_once(' ').unwrap_or_default();
        (code.to_owned(), replicated.to_owned())
    }

    pub(crate) fn push_blob(&self, name: &str, bytes: &[u8]) -> Option<Digest> {
        let digest = Digest::sha256(bytes);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let (code, _) = self.send("POST", &path, "application/octet-stream", bytes);
        (code == "201").then_some(digest)
    }

    /// Pushes an image of one layer; its digest, the status of the manifest, and whether it was replicated.
    pub(crate) fn push(&self, name: &str, tag: &str, layer: &[u8]) -> Option<(Digest, String, String)> {
        let (config, layer_digest) = (self.push_blob(name, b"{}")?, self.push_blob(name, layer)?);
        let manifest = image(&config, &layer_digest, layer.len());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let (code, replicated) =
            self.send("PUT", &format!("/v2/{name}/manifests/{tag}"), kind, manifest.as_bytes());
        Some((Digest::sha256(manifest.as_bytes()), code, replicated))
    }

    pub(crate) fn tag(&self, name: &str, tag: &str) -> Option<Digest> {
        let output = self.curl(
            &["-I", "-f", "-w", "%header{docker-content-digest}", "-o", "/dev/null"],
            &format!("/v2/{name}/manifests/{tag}"),
        );
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().parse().unwrap())
    }

    /// Pulls by tag, with everything that the manifest names; the manifest's digest if all of it is whole.
    pub(crate) fn pull(&self, name: &str, reference: &str) -> Option<Digest> {
        let manifest = self.curl(&["-f"], &format!("/v2/{name}/manifests/{reference}"));
        let manifest = manifest.status.success().then_some(manifest.stdout)?;
        let parsed: serde_json::Value = serde_json::from_slice(&manifest).ok()?;
        let parts = [&parsed["config"], &parsed["layers"][0]];
        for part in parts {
            let digest: Digest = part["digest"].as_str()?.parse().ok()?;
            let blob = self.curl(&["-f"], &format!("/v2/{name}/blobs/{digest}"));
            if !blob.status.success() {
                return None;
            }
            digest.verify(&blob.stdout).expect("wrong content is never whole");
        }
        Some(Digest::sha256(&manifest))
    }
}

impl Mirror {
    /// The digest of what a blob's bytes are as they come; they are not kept.
    pub(crate) fn pull_hashed(&self, name: &str, digest: &Digest) -> Option<Digest> {
        let url = format!("http://{}/v2/{name}/blobs/{digest}", self.address);
        let script = r#"set -o pipefail; curl -sf -m 300 "$0" | sha256sum | cut -d' ' -f1"#;
        let output = self.command("bash").args(["-c", script, &url]).output().expect("bash");
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| format!("sha256:{}", text.trim()).parse().unwrap())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.address, self.log());
        }
    }
}

pub(crate) fn image(config: &Digest, layer: &Digest, size: usize) -> String {
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size}],
    })
    .to_string()
}

pub(crate) fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < length {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend_from_slice(&seed.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
