//! Archives in, records, root file systems and archives out.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use orlop_images::{ArchiveFormat, Config, ImageErrorKind, ImageStore};
use orlop_types::Digest;
use serde_json::json;
use support::{Tar, gzip, image, tar_of, tree, write_files, zstd};
use tempfile::TempDir;

const BUSYBOX: &str = "/usr/bin/busybox";

fn open(root: &Path) -> ImageStore {
    ImageStore::open(Config { root: root.join("store"), ..Config::default() }).unwrap()
}

fn store() -> (TempDir, ImageStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    (directory, store)
}

fn layers() -> Vec<Vec<u8>> {
    let busybox = std::fs::read(BUSYBOX).unwrap();
    vec![
        Tar::new()
            .dir("bin/", 0o755)
            .mode("bin/busybox", 0o755, &busybox)
            .symlink("bin/sh", "busybox")
            .bytes(),
        Tar::new().dir("etc/", 0o755).file("etc/hostname", b"lab\n").bytes(),
    ]
}

#[test]
fn an_import_tells_of_its_own_names_only() {
    let (directory, store) = store();
    let path = directory.path().join("image.tar");
    for names in [&["b:1", "b:2"][..], &["a:1"]] {
        std::fs::write(&path, image(&layers(), <[u8]>::to_vec).docker_archive(names)).unwrap();
        let full: Vec<String> = names.iter().map(|name| format!("docker.io/library/{name}")).collect();
        assert_eq!(store.import(&path).unwrap()[0].tags, full);
    }
    assert_eq!(store.list().unwrap()[0].tags.len(), 3);
}

/// The layer's tree is there already, so nothing is unpacked; the new blob is still read.
#[test]
fn a_damaged_layer_of_a_known_image_is_refused() {
    let (directory, store) = store();
    let whole = image(&layers(), <[u8]>::to_vec);
    let path = directory.path().join("image.tar");
    std::fs::write(&path, whole.docker_archive(&["busybox:1"])).unwrap();
    store.import(&path).unwrap();
    let before = tree(&directory.path().join("store"));
    let mut damaged = image(&layers(), <[u8]>::to_vec);
    let middle = damaged.layers[0].len() / 2;
    damaged.layers[0][middle] ^= 1;
    std::fs::write(&path, damaged.docker_archive(&["busybox:2"])).unwrap();
    let error = store.import(&path).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("image configuration says"), "{error}");
    assert_eq!(tree(&directory.path().join("store")), before);
}

#[test]
fn every_form_gives_the_same_image() {
    let plain = image(&layers(), <[u8]>::to_vec);
    let docker = plain.docker_archive(&["busybox:1"]);
    let squeezed = image(&layers(), gzip);
    let annotations = json!({"org.opencontainers.image.ref.name": "busybox:1"});
    let oci = tar_of(&squeezed.oci_files(&annotations));
    for (name, archive) in [
        ("docker.tar", docker.clone()),
        ("docker.tar.gz", gzip(&docker)),
        ("docker.tar.zst", zstd(&docker)),
        ("oci.tar", oci.clone()),
        ("oci.tar.gz", gzip(&oci)),
        ("oci.tar.zst", zstd(&oci)),
    ] {
        let (directory, store) = store();
        let path = directory.path().join(name);
        std::fs::write(&path, archive).unwrap();
        let images = store.import(&path).unwrap();
        assert_eq!(images.len(), 1, "{name}");
        assert_eq!(images[0].id, plain.id(), "{name}");
        assert_eq!(images[0].tags, ["docker.io/library/busybox:1"], "{name}");
        assert_eq!(images[0].digests.len(), 1, "{name}");
        assert!(images[0].pinned);
        let rootfs = store.prepare_rootfs("container-1", &images[0].id).unwrap();
        assert_eq!(rootfs.lower.len(), 2, "{name}");
        assert_eq!(std::fs::read(rootfs.lower[0].join("etc/hostname")).unwrap(), b"lab\n");
        assert!(rootfs.lower[1].join("bin/busybox").is_file());
        assert!(rootfs.upper.is_dir() && rootfs.work.is_dir());
        assert_eq!(store.prepare_rootfs("container-1", "busybox:1").unwrap(), rootfs, "idempotent");
    }
}

/// zarf's layout in a directory of a tar, a registry's storage as oc-mirror packs it, skopeo's `dir`.
#[test]
fn archives_of_other_tools_give_the_same_image() {
    let image = image(&layers(), gzip);
    let manifest = image.manifest();
    let base = json!({"org.opencontainers.image.base.name": "busybox:1"});
    let zarf: Vec<(String, Vec<u8>)> = image
        .oci_files(&base)
        .into_iter()
        .map(|(name, content)| (format!("images/{name}"), content))
        .collect();
    let digest = Digest::sha256(&manifest);
    let blobs = || [&manifest, &image.config].into_iter().chain(&image.layers);
    let tree_name = "docker/v2/repositories/library/busybox/_manifests/tags/1/current/link".to_owned();
    let mut oc_mirror = vec![(tree_name, digest.as_str().as_bytes().to_vec())];
    oc_mirror.extend(blobs().map(|blob| {
        let digest = Digest::sha256(blob);
        (format!("docker/v2/blobs/sha256/{}/{}/data", &digest.hex()[..2], digest.hex()), blob.clone())
    }));
    let mut skopeo = vec![("busybox:1/manifest.json".to_owned(), manifest.clone())];
    skopeo.extend(
        blobs().skip(1).map(|blob| (format!("busybox:1/{}", Digest::sha256(blob).hex()), blob.clone())),
    );
    for (name, files) in [("zarf", zarf), ("oc-mirror", oc_mirror), ("skopeo", skopeo)] {
        let (directory, store) = store();
        let path = directory.path().join("archive");
        std::fs::write(&path, zstd(&tar_of(&files))).unwrap();
        let images = store.import(&path).unwrap();
        assert_eq!((images.len(), images[0].id.clone()), (1, image.id()), "{name}");
        assert_eq!(images[0].tags, ["docker.io/library/busybox:1"], "{name}");
        let rootfs = store.prepare_rootfs("container-1", &images[0].id).unwrap();
        assert_eq!(std::fs::read(rootfs.lower[0].join("etc/hostname")).unwrap(), b"lab\n", "{name}");
    }
}

#[test]
fn an_oci_layout_directory_is_imported_and_found_by_every_name() {
    let (directory, store) = store();
    let image = image(&layers(), zstd);
    let layout = directory.path().join("layout");
    write_files(
        &layout,
        &image.oci_files(&json!({"io.containerd.image.name": "registry.example/team/app:v1"})),
    );
    let record = store.import(&layout).unwrap().remove(0);
    let digest = record.digests[0].clone();
    let id = record.id.clone();
    for text in ["registry.example/team/app:v1", &digest, &id, &id[7..], &id[..19], &id[7..11]] {
        assert_eq!(store.find(text).unwrap().map(|image| image.id), Some(id.clone()), "{text}");
    }
    for text in ["registry.example/team/app:v2", "registry.example/team/app", "app", "sha256:0000", ""] {
        assert!(store.find(text).unwrap().is_none(), "{text}");
    }
    assert_eq!(store.list().unwrap().len(), 1);
    let another_handle = open(directory.path());
    assert_eq!(another_handle.list().unwrap()[0].id, id);
}

#[test]
fn damage_is_named_and_nothing_is_stored() {
    let image = image(&layers(), gzip);
    let files = image.oci_files(&json!({"org.opencontainers.image.ref.name": "busybox:1"}));
    let layer_name = files[4].0.clone();
    let mut flipped = files.clone();
    let middle = flipped[4].1.len() / 2;
    flipped[4].1[middle] ^= 1;
    let whole = tar_of(&files);
    let docker = image.docker_archive(&["busybox:1"]);
    let mut without_layer = files.clone();
    without_layer.remove(4);
    let wrong_diff_id = {
        let mut other = support::image(&layers(), gzip);
        other.layers[0] = gzip(&layers()[1]);
        tar_of(&other.oci_files(&json!({"org.opencontainers.image.ref.name": "busybox:1"})))
    };
    for (name, archive, expected) in [
        ("flipped.tar", tar_of(&flipped), layer_name.as_str()),
        ("missing.tar", tar_of(&without_layer), "incomplete"),
        ("cut.tar", whole[..whole.len() / 2].to_vec(), "cut off"),
        ("cut.tar.gz", gzip(&whole)[..whole.len() / 8].to_vec(), "cut.tar.gz"),
        ("cut.tar.zst", zstd(&whole)[..whole.len() / 8].to_vec(), "cut.tar.zst"),
        ("cut-docker.tar", docker[..docker.len() / 2].to_vec(), "cut-docker.tar"),
        ("diff-id.tar", wrong_diff_id, "image configuration says"),
        ("noise.tar", vec![7; 4096], "checksum"),
        ("empty.tar", Vec::new(), "no images are found"),
        ("text.tar", b"hello".to_vec(), "cut off"),
    ] {
        let (directory, store) = store();
        let before = tree(&directory.path().join("store"));
        let path = directory.path().join(name);
        std::fs::write(&path, archive).unwrap();
        let error = store.import(&path).unwrap_err();
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(error.kind(), ImageErrorKind::Invalid, "{name}: {error}");
        assert_eq!(tree(&directory.path().join("store")), before, "{name} left something");
        assert!(store.list().unwrap().is_empty());
    }
    let (directory, store) = store();
    let error = store.import(&directory.path().join("absent.tar")).unwrap_err();
    assert!(error.to_string().contains("absent.tar"), "{error}");
}

#[test]
fn several_images_share_layers_and_removal_keeps_what_is_needed() {
    let (directory, store) = store();
    let base = layers();
    let one = image(&base, gzip);
    let more = [base.clone(), vec![Tar::new().file("extra", b"x").bytes()]].concat();
    let two = image(&more, gzip);
    for (name, image) in [("one", &one), ("two", &two)] {
        let path = directory.path().join(name);
        std::fs::write(&path, image.docker_archive(&[&format!("{name}:1"), &format!("{name}:2")])).unwrap();
        store.import(&path).unwrap();
    }
    assert_eq!(store.list().unwrap().len(), 2);
    let rootfs = store.prepare_rootfs("c", &two.id()).unwrap();
    store.remove("two:1").unwrap();
    assert_eq!(store.find("two:2").unwrap().unwrap().tags, ["docker.io/library/two:2"]);
    store.remove("two:2").unwrap();
    assert!(store.find(&two.id()).unwrap().is_none());
    assert!(rootfs.lower.iter().all(|layer| layer.is_dir()), "a container keeps its layers");
    assert_eq!(store.prepare_rootfs("c", &two.id()).unwrap(), rootfs);
    store.remove("nobody:knows").unwrap();
    store.remove_rootfs("c").unwrap();
    store.remove_rootfs("c").unwrap();
    assert!(store.rootfs_keys().unwrap().is_empty());
    let collected = store.collect_garbage().unwrap();
    assert_eq!(collected.layers, 1, "{collected:?}");
    assert!(rootfs.lower[2].is_dir() && rootfs.lower[1].is_dir() && !rootfs.lower[0].is_dir());
    store.remove(&one.id()).unwrap();
    let usage = store.usage().unwrap();
    assert_eq!((usage.bytes, usage.inodes), (0, 0));
}

#[test]
fn a_moved_tag_leaves_the_old_image_by_digest() {
    let (directory, store) = store();
    let path = directory.path().join("archive.tar");
    let one = image(&layers(), gzip);
    let two = image(&layers()[..1], gzip);
    for image in [&one, &two] {
        std::fs::write(&path, image.docker_archive(&["app:latest"])).unwrap();
        store.import(&path).unwrap();
    }
    assert_eq!(store.find("app").unwrap().unwrap().id, two.id());
    let old = store.find(&one.id()).unwrap().unwrap();
    assert!(old.tags.is_empty() && old.digests.len() == 1);
}

#[test]
fn export_and_import_again() {
    let (directory, store) = store();
    let image = image(&layers(), gzip);
    let path = directory.path().join("archive.tar");
    std::fs::write(&path, image.docker_archive(&["app:1", "app:2"])).unwrap();
    store.import(&path).unwrap();
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let exported = directory.path().join("exported.tar");
        store.export(&["app:1".to_owned()], &exported, format).unwrap();
        let other = tempfile::tempdir().unwrap();
        let images = open(other.path()).import(&exported).unwrap();
        assert_eq!(images[0].id, image.id());
        assert_eq!(images[0].tags, ["docker.io/library/app:1"]);
        store.export(&[image.id()], &exported, format).unwrap();
        assert_eq!(open(other.path()).import(&exported).unwrap()[0].tags.len(), 2);
    }
    let error =
        store.export(&["none:1".to_owned()], &directory.path().join("x"), ArchiveFormat::Oci).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::NotFound);
    assert!(!directory.path().join("x").exists());
}

#[test]
fn an_index_gives_this_machine_its_image() {
    let (directory, store) = store();
    let image = image(&layers(), gzip);
    let manifest = image.manifest();
    let digest = orlop_types::Digest::sha256(&manifest);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let absent = orlop_types::Digest::sha256(b"not in the archive");
    let nested = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        {"mediaType": kind, "digest": absent, "size": 5, "platform": {"architecture": "s390x", "os": "linux"}},
        {"mediaType": kind, "digest": digest, "size": manifest.len(),
         "platform": {"architecture": support::host_architecture(), "os": "linux"}},
        {"mediaType": kind, "digest": absent, "size": 5, "platform": {"architecture": "unknown", "os": "unknown"}},
    ]});
    let nested = serde_json::to_vec(&nested).unwrap();
    let index_digest = orlop_types::Digest::sha256(&nested);
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": index_digest, "size": nested.len(), "annotations": {"io.containerd.image.name": "docker.io/library/app:1"}}]});
    let mut files = image.oci_files(&json!({}));
    files[1].1 = serde_json::to_vec(&index).unwrap();
    files.push((format!("blobs/sha256/{}", index_digest.hex()), nested));
    let path = directory.path().join("multi.tar");
    std::fs::write(&path, tar_of(&files)).unwrap();
    let record = store.import(&path).unwrap().remove(0);
    assert_eq!(record.digests, [format!("docker.io/library/app@{index_digest}")]);
    for digest in [&index_digest, &digest] {
        assert!(store.find(&format!("app@{digest}")).unwrap().is_some(), "{digest}");
    }
}

#[test]
fn a_killed_import_is_repaired_at_start() {
    let (directory, store) = store();
    let root = directory.path().join("store");
    let image = image(&layers(), gzip);
    let path = directory.path().join("archive.tar");
    std::fs::write(&path, image.docker_archive(&["app:1"])).unwrap();
    store.import(&path).unwrap();
    let before = tree(&root);
    // What a process leaves that dies in the middle: an unlocked lease, staged blobs and layers, loose blobs, a record's temporary file.
    std::fs::write(root.join("leases/00dead"), "blob sha256:00\n").unwrap();
    std::fs::write(root.join("content/ingest/00dead.1"), "x").unwrap();
    let loose = orlop_types::Digest::sha256(b"loose");
    std::fs::write(root.join("content/blobs/sha256").join(loose.hex()), "loose").unwrap();
    std::fs::create_dir_all(root.join("snapshots/layers/.00dead.1/fs/bin")).unwrap();
    std::fs::create_dir_all(root.join("snapshots/containers/.00dead.1/fs")).unwrap();
    std::fs::create_dir_all(root.join("trash/1/2/3")).unwrap();
    std::fs::write(root.join("images/.tmp"), "{").unwrap();
    std::fs::remove_file(root.join("images/.generation")).unwrap();
    let store = open(directory.path());
    assert_eq!(store.list().unwrap().len(), 1);
    let after = tree(&root);
    assert_eq!(after, before);
    // A layer that got lost is unpacked again from its blob.
    let chain = store.list().unwrap()[0].chain[0].clone();
    std::fs::remove_dir_all(root.join("snapshots/layers").join(chain.hex())).unwrap();
    let rootfs = store.prepare_rootfs("c", &image.id()).unwrap();
    assert!(rootfs.lower[1].join("bin/busybox").is_file());
}

#[test]
fn keys_are_file_names_and_belong_to_one_image() {
    let (directory, store) = store();
    let path = directory.path().join("archive.tar");
    for (name, layers) in [("one", &layers()[..]), ("two", &layers()[..1])] {
        std::fs::write(&path, image(layers, gzip).docker_archive(&[name])).unwrap();
        store.import(&path).unwrap();
    }
    for key in ["", "../x", "a/b", ".hidden", &"x".repeat(129)] {
        assert_eq!(store.prepare_rootfs(key, "one").unwrap_err().kind(), ImageErrorKind::Invalid, "{key}");
    }
    store.prepare_rootfs("c", "one").unwrap();
    assert!(store.prepare_rootfs("c", "two").unwrap_err().to_string().contains("stands on image"));
    assert_eq!(store.prepare_rootfs("d", "three").unwrap_err().kind(), ImageErrorKind::NotFound);
    std::fs::write(directory.path().join("store/snapshots/containers/c/fs/big"), vec![1u8; 100_000]).unwrap();
    let usage = store.rootfs_usage("c").unwrap();
    assert!(usage.bytes >= 100_000 && usage.inodes == 2, "{usage:?}");
    assert_eq!(store.rootfs_keys().unwrap(), ["c"]);
}

#[test]
fn a_container_is_prepared_quickly() {
    let (directory, store) = store();
    let layers: Vec<Vec<u8>> =
        (0..20).map(|index| Tar::new().file(&format!("f{index}"), b"x").bytes()).collect();
    let image = image(&layers, gzip);
    let path = directory.path().join("archive.tar");
    std::fs::write(&path, image.docker_archive(&["app"])).unwrap();
    store.import(&path).unwrap();
    let started = std::time::Instant::now();
    for index in 0..20 {
        store.prepare_rootfs(&format!("c{index}"), &image.id()).unwrap();
    }
    // No assertion on time: the figure is for whoever looks for where a pod's start goes.
    eprintln!("prepare_rootfs over 20 layers: {:?} each", started.elapsed() / 20);
    assert_eq!(store.rootfs_keys().unwrap().len(), 20);
}

#[test]
fn a_layer_that_a_loss_of_power_may_have_cut_is_unpacked_again() {
    let (directory, store) = store();
    let root = directory.path().join("store");
    let image = image(&layers(), gzip);
    let path = directory.path().join("archive.tar");
    std::fs::write(&path, image.docker_archive(&["app:1"])).unwrap();
    let chain = store.import(&path).unwrap()[0].chain.clone();
    let layer = root.join("snapshots/layers").join(chain[0].hex());
    let read = || -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(layer.join("layer.json")).unwrap()).unwrap()
    };
    assert_eq!(read().get("boot"), None, "an import waits for the disk");
    let this_boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for (boot, stays) in [(this_boot.trim(), true), ("another", false)] {
        let mut info = read();
        info["boot"] = boot.into();
        std::fs::write(layer.join("layer.json"), info.to_string()).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(layer.join("fs")).unwrap());
        let store = open(directory.path());
        assert_eq!(layer.exists(), stays, "{boot}");
        let rootfs = store.prepare_rootfs("c", &image.id()).unwrap();
        assert!(rootfs.lower[1].join("bin/busybox").is_file());
        let now = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(layer.join("fs")).unwrap());
        assert!(now == inode || !stays);
        store.remove_rootfs("c").unwrap();
        assert_eq!(read().get("boot").is_none(), stays, "{boot}: settled when opened, or fresh");
    }
}

#[test]
fn skopeo_reads_what_is_exported() {
    let (directory, store) = store();
    let image = image(&layers(), gzip);
    let path = directory.path().join("archive.tar");
    std::fs::write(&path, image.docker_archive(&["app:1"])).unwrap();
    store.import(&path).unwrap();
    for (format, transport) in
        [(ArchiveFormat::Oci, "oci-archive"), (ArchiveFormat::Docker, "docker-archive")]
    {
        let exported = directory.path().join(transport);
        store.export(&["app:1".to_owned()], &exported, format).unwrap();
        let copied = directory.path().join(format!("{transport}.copy"));
        let output = std::process::Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet"])
            .arg(format!("{transport}:{}", exported.display()))
            .arg(format!("dir:{}", copied.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{transport}: {}", String::from_utf8_lossy(&output.stderr));
        // What skopeo names by digest is there, the configuration among it.
        assert_eq!(std::fs::read(copied.join(&image.id()[7..])).unwrap(), image.config, "{transport}");
    }
}
