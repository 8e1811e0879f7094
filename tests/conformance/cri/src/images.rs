//! The images that the suite needs, from Debian's busybox-static alone, in the form of a registry.

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// One image: its layers as tar archives, and its configuration.
#[derive(Clone, Debug)]
pub struct Image {
    /// Repository and tags.
    pub repository: &'static str,
    /// Tags.
    pub tags: &'static [&'static str],
    /// Uncompressed layers, lowest first.
    pub layers: Vec<Vec<u8>>,
    /// The `config` of its configuration.
    pub config: Value,
}

impl Image {
    /// Configuration and manifest (Docker's schema 2: both subjects and Debian's registry know it).
    pub fn documents(&self) -> (Vec<u8>, Vec<u8>) {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": self.layers.iter().map(|_| json!({"created_by": "orlop"})).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                    "size": layer.len(),
                    "digest": digest(layer),
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": config.len(),
                "digest": digest(&config),
            },
            "layers": layers,
        });
        (config, manifest.to_string().into_bytes())
    }
}

/// `sha256:…`
pub fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

/// What the image `web` serves.
pub const PAGE: &str = "it works";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PASSWD: &str = "root::0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n";
const GROUP: &str =
    "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n";

/// All of them.
///
/// # Errors
/// Without busybox-static.
pub fn all() -> anyhow::Result<Vec<Image>> {
    let base = base_layer()?;
    let plain = |repository, tags, extra: Value| {
        let mut config = json!({"Cmd": ["sleep", "2147483647"], "Env": [PATH, "FROM_IMAGE=yes"]});
        if let (Some(config), Some(extra)) = (config.as_object_mut(), extra.as_object()) {
            config.extend(extra.clone());
        }
        Image { repository, tags, layers: vec![base.clone()], config }
    };
    let small = |repository, tags, content: &str, extra: Value| {
        let mut layer = Layer::default();
        layer.file("content", content.as_bytes(), 0o644)?;
        anyhow::Ok(Image { repository, tags, layers: vec![layer.finish()?], config: extra })
    };
    let mut volume = Layer::default();
    volume.directory("subdirectory")?;
    volume.file("subdirectory/inner", b"inner\n", 0o644)?;
    volume.file("top", b"top\n", 0o644)?;
    Ok(vec![
        plain("busybox", &["latest", "1"], json!({})),
        plain("pause", &["latest"], json!({"Entrypoint": ["sleep", "2147483647"], "Cmd": null})),
        plain(
            "entry",
            &["latest"],
            json!({
                "Entrypoint": ["echo", "entry"], "Cmd": ["from-image"], "WorkingDir": "/tmp", "StopSignal": "SIGUSR1",
            }),
        ),
        plain(
            "web",
            &["latest"],
            json!({"Cmd": ["httpd", "-f", "-p", "80", "-h", "/www"], "ExposedPorts": {"80/tcp": {}}}),
        ),
        plain("as-user", &["latest"], json!({"User": "default-user"})),
        Image { repository: "volume", tags: &["latest"], layers: vec![volume.finish()?], config: json!({}) },
        small("same", &["1", "2", "3"], "same", json!({}))?,
        small("different-1", &["latest"], "one", json!({}))?,
        small("different-2", &["latest"], "two", json!({}))?,
        small("different-3", &["latest"], "three", json!({}))?,
        small("tagged", &["1.0", "latest"], "tagged", json!({}))?,
        small("user-uid", &["latest"], "user-uid", json!({"User": "1002"}))?,
        small("user-name", &["latest"], "user-name", json!({"User": "www-data"}))?,
        small("user-uid-group", &["latest"], "user-uid-group", json!({"User": "1003:users"}))?,
        small("user-name-group", &["latest"], "user-name-group", json!({"User": "www-data:100"}))?,
    ])
}

/// Busybox with every applet, users, a page for httpd, and a `su` that has the set-uid bit.
fn base_layer() -> anyhow::Result<Vec<u8>> {
    let busybox = std::fs::read("/usr/bin/busybox")
        .or_else(|_| std::fs::read("/bin/busybox"))
        .context("busybox-static is not installed")?;
    let mut layer = Layer::default();
    for name in
        ["bin", "dev", "etc", "home", "home/default-user", "proc", "root", "run", "sys", "tmp", "var", "www"]
    {
        layer.directory(name)?;
    }
    layer.file("bin/busybox", &busybox, 0o755)?;
    layer.file("bin/su", &busybox, 0o4755)?;
    let applets = orlop_tests::run(std::process::Command::new("busybox").arg("--list"));
    for applet in applets.lines().filter(|applet| !["busybox", "su"].contains(applet)) {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.file("etc/passwd", PASSWD.as_bytes(), 0o644)?;
    layer.file("etc/group", GROUP.as_bytes(), 0o644)?;
    layer.file("www/index.html", format!("{PAGE}\n").as_bytes(), 0o644)?;
    layer.finish()
}

struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Layer {
    fn header(kind: tar::EntryType, size: usize, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(mode);
        header.set_mtime(1_700_000_000);
        header
    }

    fn directory(&mut self, name: &str) -> anyhow::Result<()> {
        let mode = if name == "tmp" { 0o1777 } else { 0o755 };
        let mut header = Self::header(tar::EntryType::Directory, 0, mode);
        Ok(self.0.append_data(&mut header, format!("{name}/"), std::io::empty())?)
    }

    fn file(&mut self, name: &str, content: &[u8], mode: u32) -> anyhow::Result<()> {
        let mut header = Self::header(tar::EntryType::Regular, content.len(), mode);
        Ok(self.0.append_data(&mut header, name, content)?)
    }

    fn link(&mut self, name: &str, target: &str) -> anyhow::Result<()> {
        let mut header = Self::header(tar::EntryType::Symlink, 0, 0o777);
        Ok(self.0.append_link(&mut header, name, target)?)
    }

    fn finish(self) -> anyhow::Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}
