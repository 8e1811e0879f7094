//! Archives of every form, whole, hostile and damaged.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use orlop_distribution::archive::{Archive, Form, Strictness};
use orlop_types::Digest;
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

type Files = BTreeMap<String, Vec<u8>>;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &[u8] = b"a layer";

/// Manifest and its blobs by digest.
fn image() -> (Digest, BTreeMap<Digest, Vec<u8>>) {
    let mut blobs = BTreeMap::new();
    let mut put = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        blobs.insert(digest.clone(), bytes.to_vec());
        digest
    };
    let layer = put(LAYER);
    let config = json!({"rootfs": {"diff_ids": [layer]}}).to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(config.as_bytes()), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": LAYER.len()}],
    });
    let digest = put(manifest.to_string().as_bytes());
    (digest, blobs)
}

fn layout(prefix: &str, annotations: &serde_json::Value) -> Files {
    let (digest, blobs) = image();
    let size = blobs[&digest].len();
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": MANIFEST, "digest": digest, "size": size, "annotations": annotations,
    }]});
    let mut files = Files::from([(format!("{prefix}index.json"), index.to_string().into_bytes())]);
    for (digest, bytes) in blobs {
        files.insert(format!("{prefix}blobs/sha256/{}", digest.hex()), bytes);
    }
    files
}

fn registry_tree() -> Files {
    let (digest, blobs) = image();
    let mut files = Files::new();
    let root = "docker/registry/v2";
    for (digest, bytes) in blobs {
        files.insert(format!("{root}/blobs/sha256/{}/{}/data", &digest.hex()[..2], digest.hex()), bytes);
    }
    let link = digest.as_str().as_bytes().to_vec();
    let names = format!("{root}/repositories/quay.io/a/b/_manifests");
    files.insert(format!("{names}/tags/1/current/link"), link.clone());
    files.insert(format!("{names}/revisions/sha256/{}/link", digest.hex()), link);
    files
}

fn docker_save() -> Files {
    let manifest = json!([{"Config": "c.json", "RepoTags": ["a/b:1", "a/b:2"], "Layers": ["x/layer.tar"]}]);
    let config = json!({"rootfs": {"diff_ids": [Digest::sha256(LAYER)]}}).to_string();
    [
        ("manifest.json", manifest.to_string().into_bytes()),
        ("c.json", config.into_bytes()),
        ("x/layer.tar", LAYER.to_vec()),
    ]
    .map(|(name, content)| (name.to_owned(), content))
    .into()
}

fn skopeo_dir() -> Files {
    let (digest, blobs) = image();
    let mut files = Files::new();
    for (blob, bytes) in blobs {
        let name = if blob == digest { "manifest.json".to_owned() } else { blob.hex().to_owned() };
        files.insert(format!("quay.io/a/b:1/{name}"), bytes);
    }
    files
}

fn tar_of(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

struct Work(TempDir);

impl Work {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("archive");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn tree(&self, files: &Files) -> PathBuf {
        let root = self.0.path().join("tree");
        for (name, content) in files {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), content).unwrap();
        }
        root
    }

    fn open(&self, path: &Path, strictness: Strictness) -> Result<Archive, String> {
        let spool = self.0.path().join("spool");
        std::fs::create_dir_all(&spool).unwrap();
        let opened = Archive::open(path, &spool, strictness).map_err(|error| error.to_string());
        assert!(std::fs::read_dir(&spool).unwrap().next().is_none(), "nothing stays in the spool");
        opened
    }
}

fn names(archive: &Archive) -> Vec<String> {
    archive.roots().iter().filter_map(|root| Some(root.name.as_ref()?.to_string())).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_form_is_read_by_its_content() {
    let annotated = |key: &str, name: &str| json!({ key: name });
    let containerd = annotated("io.containerd.image.name", "quay.io/a/b:1");
    for (files, form, expected) in [
        (layout("", &containerd), Form::Layout, &["quay.io/a/b:1"][..]),
        (
            layout("images/", &annotated("org.opencontainers.image.base.name", "quay.io/a/b:1")),
            Form::Layout,
            &["quay.io/a/b:1"],
        ),
        (layout("", &annotated("org.opencontainers.image.ref.name", "1")), Form::Layout, &[]),
        (docker_save(), Form::DockerSave, &["docker.io/a/b:1", "docker.io/a/b:2"]),
        (registry_tree(), Form::RegistryTree, &["quay.io/a/b:1"]),
        (skopeo_dir(), Form::SkopeoDir, &["quay.io/a/b:1"]),
    ] {
        let plain = tar_of(&files);
        for (kind, bytes) in [
            ("tar", plain.clone()),
            ("gzip", gzip(&plain)),
            ("zstd", zstd::encode_all(&plain[..], 1).unwrap()),
        ] {
            let work = Work::new();
            check(&work.open(&work.file(&bytes), Strictness::Strict).unwrap(), form, expected, kind);
        }
        let work = Work::new();
        check(&work.open(&work.tree(&files), Strictness::Lenient).unwrap(), form, expected, "directory");
    }
}

fn check(archive: &Archive, form: Form, expected: &[&str], kind: &str) {
    assert_eq!(
        (archive.form(), names(archive).as_slice()),
        (form, &expected.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()[..]),
        "{kind}"
    );
    let root = &archive.roots()[0];
    let manifest = archive.read(&root.descriptor.digest, 1 << 20).unwrap().expect("the manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layer: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    assert_eq!(archive.read(&layer, 100).unwrap().expect("the layer"), LAYER, "{kind}");
    archive.verify(&layer).unwrap().expect("the layer");
    assert_eq!(archive.read(&Digest::sha256(b"other"), 100).unwrap(), None);
}

#[test]
fn signatures_of_hauler_get_the_tag_that_registries_know() {
    let (digest, blobs) = image();
    let entry = |kind: &str| {
        json!({
            "mediaType": MANIFEST, "digest": digest, "size": blobs[&digest].len(),
            "annotations": {"io.containerd.image.name": "a/b:1", "kind": kind},
        })
    };
    let index = json!({"schemaVersion": 2, "manifests": [entry("dev.cosignproject.cosign/image"), entry("dev.cosignproject.cosign/sigs")]});
    let mut files = layout("", &json!({}));
    files.insert("index.json".into(), index.to_string().into_bytes());
    let work = Work::new();
    let archive = work.open(&work.file(&tar_of(&files)), Strictness::Lenient).unwrap();
    assert_eq!(
        names(&archive),
        ["docker.io/a/b:1".to_owned(), format!("docker.io/a/b:sha256-{}.sig", digest.hex())]
    );
}

#[test]
fn damage_is_named() {
    let work = Work::new();
    let mut files = layout("", &json!({}));
    let layer = Digest::sha256(LAYER);
    files.insert(format!("blobs/sha256/{}", layer.hex()), b"a lAyer".to_vec());
    let archive = work.open(&work.file(&tar_of(&files)), Strictness::Strict).unwrap();
    assert!(archive.verify(&layer).unwrap_err().to_string().contains(layer.as_str()));
    let whole = tar_of(&files);
    let cut = work.open(&work.file(&whole[..700]), Strictness::Lenient).err().unwrap();
    assert!(cut.contains("ends inside"), "{cut}");
    let none = work.open(&work.file(&tar_of(&Files::from([("a".into(), vec![])]))), Strictness::Lenient);
    assert!(none.err().unwrap().contains("no images"));
    let noise = work.open(&work.file(&[7; 2048]), Strictness::Lenient);
    assert!(noise.err().unwrap().contains("checksum"));
}

#[test]
fn nothing_outside_is_opened() {
    let work = Work::new();
    let secret = work.0.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let digest = Digest::sha256(b"secret");
    let member = format!("blobs/sha256/{}", digest.hex());
    // A directory with a link that leads out.
    let tree = work.tree(&layout("", &json!({})));
    std::os::unix::fs::symlink(&secret, tree.join(&member)).unwrap();
    assert_eq!(work.open(&tree, Strictness::Lenient).unwrap().size(&digest), None);
    // Tars with names and links that do.
    for (name, target) in [
        ("../secret", None),
        (member.as_str(), Some("../../../../secret")),
        (member.as_str(), Some("/secret")),
    ] {
        let mut whole = tar_of(&layout("", &json!({})));
        whole.truncate(whole.len() - 1024);
        let mut builder = tar::Builder::new(whole);
        let mut header = tar::Header::new_ustar();
        let field = &mut header.as_mut_bytes()[..100];
        field[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(target) = target {
            header.set_entry_type(tar::EntryType::Symlink);
            header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        let path = work.file(&builder.into_inner().unwrap());
        assert!(work.open(&path, Strictness::Strict).is_err(), "{name} {target:?}");
        if let Ok(archive) = work.open(&path, Strictness::Lenient) {
            assert_eq!(archive.size(&digest), None, "{name} {target:?}");
        }
    }
}

#[test]
fn links_in_a_circle_and_bombs_are_refused() {
    let work = Work::new();
    let mut builder = tar::Builder::new(Vec::new());
    for (name, target) in [("manifest.json", "b"), ("b", "manifest.json")] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, name, target).unwrap();
    }
    assert!(work.open(&work.file(&builder.into_inner().unwrap()), Strictness::Lenient).is_err());
    // 1.2 GiB of zeros in some hundred kilobytes.
    let path = work.0.path().join("bomb");
    let mut encoder = zstd::Encoder::new(std::fs::File::create(&path).unwrap(), 1).unwrap();
    for _ in 0..1300 {
        encoder.write_all(&[0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap();
    assert!(work.open(&path, Strictness::Lenient).err().unwrap().contains("bomb"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn damage_makes_no_panic_and_no_wrong_content(
        which in 0..5_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        summed in any::<bool>(),
    ) {
        let files = [layout("", &json!({"io.containerd.image.name": "a:1"})), docker_save(), registry_tree(), skopeo_dir(), layout("x/", &json!({}))];
        let mut bytes = tar_of(&files[which]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if summed {
                let block = &mut bytes[at / 512 * 512..][..512];
                block[148..156].fill(b' ');
                let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let work = Work::new();
        for strictness in [Strictness::Lenient, Strictness::Strict] {
            let Ok(archive) = work.open(&work.file(&bytes), strictness) else { continue };
            for (digest, size) in archive.blobs() {
                prop_assert!(size <= bytes.len() as u64);
                if let Ok(Some(content)) = archive.read(digest, 1 << 20) {
                    prop_assert!(digest.verify(&content).is_ok());
                }
            }
        }
    }
}
