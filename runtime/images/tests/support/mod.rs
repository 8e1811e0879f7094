//! Images built in the test: tars by hand, archives of both forms.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod fake;
pub mod registry;

use std::io::Write as _;
use std::path::Path;

use orlop_types::Digest;
use serde_json::json;

pub struct Tar {
    builder: tar::Builder<Vec<u8>>,
}

impl Tar {
    pub fn new() -> Self {
        Self { builder: tar::Builder::new(Vec::new()) }
    }

    fn raw(mut self, path: &str, kind: tar::EntryType, mode: u32, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.builder.append(&header, content).unwrap();
        self
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.raw(path, tar::EntryType::Regular, 0o644, "", content)
    }

    pub fn mode(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.raw(path, tar::EntryType::Regular, mode, "", content)
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.raw(path, tar::EntryType::Directory, mode, "", b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(path, tar::EntryType::Symlink, 0o777, target, b"")
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        self.raw(path, tar::EntryType::Link, 0o644, target, b"")
    }

    pub fn device(self, path: &str) -> Self {
        self.raw(path, tar::EntryType::Char, 0o666, "", b"")
    }

    /// A device 1, 3 or a named pipe.
    pub fn special(self, path: &str, kind: tar::EntryType, mode: u32) -> Self {
        self.raw(path, kind, mode, "", b"")
    }

    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.builder.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

pub struct TestImage {
    pub config: Vec<u8>,
    /// As stored in the archive, maybe compressed.
    pub layers: Vec<Vec<u8>>,
    pub diff_ids: Vec<Digest>,
}

pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An image of uncompressed layers; `compress` makes what is stored.
pub fn image(layers: &[Vec<u8>], compress: impl Fn(&[u8]) -> Vec<u8>) -> TestImage {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::sha256(layer)).collect();
    let config = json!({
        "architecture": host_architecture(), "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": []
    });
    TestImage {
        config: serde_json::to_vec(&config).unwrap(),
        layers: layers.iter().map(|layer| compress(layer)).collect(),
        diff_ids,
    }
}

impl TestImage {
    pub fn id(&self) -> String {
        Digest::sha256(&self.config).to_string()
    }

    pub fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let config = format!("{}.json", Digest::sha256(&self.config).hex());
        let mut tar = Tar::new();
        let mut paths = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let path = format!("{index:064x}/layer.tar");
            tar = tar.file(&path, layer);
            paths.push(path);
        }
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": paths}]);
        tar.file(&config, &self.config).file("manifest.json", manifest.to_string().as_bytes()).bytes()
    }

    pub fn manifest(&self) -> Vec<u8> {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": Digest::sha256(layer), "size": layer.len()}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::sha256(&self.config), "size": self.config.len()},
            "layers": layers
        });
        serde_json::to_vec(&manifest).unwrap()
    }

    /// Name and content of every file of an OCI layout.
    pub fn oci_files(&self, annotations: &serde_json::Value) -> Vec<(String, Vec<u8>)> {
        let manifest = self.manifest();
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::sha256(&manifest), "size": manifest.len(), "annotations": annotations}]});
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
        ];
        for blob in [&manifest, &self.config].into_iter().chain(&self.layers) {
            files.push((format!("blobs/sha256/{}", Digest::sha256(blob).hex()), blob.clone()));
        }
        files
    }
}

/// Runs one test of its file again, in a mount namespace of its own: nothing mounted there is seen outside.
pub fn in_mount_namespace(test: &str, run: impl FnOnce()) {
    if std::env::var_os("ORLOP_IMAGES_NAMESPACE").is_some() {
        run();
        return;
    }
    let status = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("ORLOP_IMAGES_NAMESPACE", "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test}");
}

pub fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files.iter().fold(Tar::new(), |tar, (name, content)| tar.file(name, content)).bytes()
}

pub fn write_files(root: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

/// Every path below a directory but the store's fixed ones, for "nothing stored".
pub fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(root).unwrap().display().to_string());
            if path.is_dir() && !path.is_symlink() {
                pending.push(path);
            }
        }
    }
    found.sort();
    found
}
