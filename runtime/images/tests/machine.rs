//! The store on a real kernel: overlayfs over unpacked layers, a full disk, two processes at once, a process that is killed.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use orlop_images::{Config, ImageErrorKind, ImageStore};
use support::{Tar, gzip, image, in_mount_namespace, tree};

fn open(root: &Path) -> ImageStore {
    ImageStore::open(Config { root: root.to_owned(), ..Config::default() }).unwrap()
}

fn mount(arguments: &[&str]) {
    let status = Command::new("mount").args(arguments).status().unwrap();
    assert!(status.success(), "{arguments:?}");
}

#[test]
fn overlayfs_shows_what_the_image_says() {
    in_mount_namespace("overlayfs_shows_what_the_image_says", || {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("store"));
        let layers = [
            Tar::new()
                .dir("usr/lib/", 0o755)
                .symlink("lib", "usr/lib")
                .file("usr/lib/old", b"old")
                .dir("gone/", 0o755)
                .file("gone/x", b"x")
                .dir("replaced/", 0o700)
                .file("replaced/below", b"below")
                .dir("var/spool/", 0o1777)
                .bytes(),
            Tar::new()
                .file("lib/new", b"new")
                .file(".wh.gone", b"")
                .file("replaced/.wh..wh..opq", b"")
                .file("replaced/above", b"above")
                .file("lib/.wh.old", b"")
                .file("var/spool/job", b"")
                .bytes(),
        ];
        let archive = directory.path().join("archive.tar");
        std::fs::write(&archive, image(&layers, gzip).docker_archive(&["app"])).unwrap();
        let id = store.import(&archive).unwrap()[0].id.clone();
        let rootfs = store.prepare_rootfs("c", &id).unwrap();
        let merged = directory.path().join("merged");
        std::fs::create_dir(&merged).unwrap();
        let lower: Vec<String> = rootfs.lower.iter().map(|path| path.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            rootfs.upper.display(),
            rootfs.work.display()
        );
        mount(&["-t", "overlay", "overlay", "-o", &options, merged.to_str().unwrap()]);
        let shown = tree(&merged);
        let expected = [
            "lib",
            "replaced",
            "replaced/above",
            "usr",
            "usr/lib",
            "usr/lib/new",
            "var",
            "var/spool",
            "var/spool/job",
        ];
        assert_eq!(shown, expected);
        assert_eq!(std::fs::read(merged.join("lib/new")).unwrap(), b"new");
        let mode =
            std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(merged.join("var/spool")).unwrap());
        assert_eq!(mode & 0o7777, 0o1777);
        std::fs::write(merged.join("lib/written"), "w").unwrap();
        assert!(rootfs.upper.join("usr/lib/written").is_file());
        let status = Command::new("umount").arg(&merged).status().unwrap();
        assert!(status.success());
    });
}

#[test]
fn a_full_disk_refuses_and_keeps_what_is_there() {
    in_mount_namespace("a_full_disk_refuses_and_keeps_what_is_there", || {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs", disk.to_str().unwrap()]);
        let store = open(&disk.join("store"));
        let small = image(&[Tar::new().file("x", &[7; 1000]).bytes()], <[u8]>::to_vec);
        let path = directory.path().join("archive.tar");
        std::fs::write(&path, small.docker_archive(&["small"])).unwrap();
        store.import(&path).unwrap();
        let before = tree(&disk);
        // Too big to stage; fits as a blob but not unpacked.
        let noise: Vec<u8> =
            (0..3_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let big = image(&[Tar::new().file("big", &noise).bytes()], <[u8]>::to_vec);
        let ones = image(&[Tar::new().file("ones", &vec![1u8; 12_000_000]).bytes()], gzip);
        for image in [&big, &ones] {
            std::fs::write(&path, image.docker_archive(&["big"])).unwrap();
            let error = store.import(&path).unwrap_err();
            assert_eq!(error.kind(), ImageErrorKind::NoSpace, "{error}");
            let after: Vec<String> = tree(&disk);
            assert_eq!(after, before, "space is given back");
        }
        assert_eq!(store.list().unwrap().len(), 1);
        assert!(store.prepare_rootfs("c", &small.id()).unwrap().lower[0].join("x").is_file());
        Command::new("umount").arg(&disk).status().unwrap();
    });
}

/// Not a test of its own: the process that the next one starts several times.
#[test]
fn helper_imports() {
    let (Some(root), Some(archive)) =
        (std::env::var_os("ORLOP_IMAGES_ROOT"), std::env::var_os("ORLOP_IMAGES_ARCHIVE"))
    else {
        return;
    };
    let store = open(Path::new(&root));
    store.import(Path::new(&archive)).unwrap();
}

fn importer(root: &Path, archive: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "helper_imports"])
        .env("ORLOP_IMAGES_ROOT", root)
        .env("ORLOP_IMAGES_ARCHIVE", archive)
        .stdout(Stdio::null());
    command
}

#[test]
fn processes_share_the_store_and_may_be_killed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let daemon = open(&root);
    let base: Vec<u8> = Tar::new().file("base", &vec![3u8; 4_000_000]).bytes();
    let archives: Vec<_> = (0..4u8)
        .map(|number| {
            let own = Tar::new().file("own", &[number; 1_000_000]).bytes();
            let image = image(&[base.clone(), own], gzip);
            let path = directory.path().join(format!("{number}.tar"));
            std::fs::write(&path, image.docker_archive(&[&format!("app:{number}"), "app:shared"])).unwrap();
            path
        })
        .collect();
    // Killed at ever later moments, while a collection runs here.
    for step in 0..12u64 {
        let mut child = importer(&root, &archives[0]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(step * 12));
        daemon.collect_garbage().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        for image in daemon.list().unwrap() {
            daemon.prepare_rootfs("probe", &image.id).unwrap();
            daemon.remove_rootfs("probe").unwrap();
        }
    }
    let children: Vec<_> = archives.iter().map(|archive| importer(&root, archive).spawn().unwrap()).collect();
    for _ in 0..20 {
        daemon.collect_garbage().unwrap();
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let images = daemon.list().unwrap();
    assert_eq!(images.len(), 4);
    assert_eq!(
        images.iter().filter(|image| image.tags.iter().any(|tag| tag.ends_with(":shared"))).count(),
        1
    );
    for image in &images {
        let key = image.id[7..].to_owned();
        let rootfs = daemon.prepare_rootfs(&key, &image.id).unwrap();
        assert_eq!(std::fs::metadata(rootfs.lower[1].join("base")).unwrap().len(), 4_000_000);
    }
    for image in &images {
        daemon.remove_rootfs(&image.id[7..]).unwrap();
        daemon.remove(&image.id).unwrap();
    }
    assert_eq!(daemon.usage().unwrap().bytes, 0);
    assert_eq!(std::fs::read_dir(root.join("leases")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(root.join("content/ingest")).unwrap().count(), 0);
}

/// An image with several layers of many small files.
fn bushy(number: u8) -> support::TestImage {
    let layers: Vec<Vec<u8>> = (0..4u8)
        .map(|layer| {
            (0..150).fold(Tar::new().dir("d/", 0o755), |tar, file| {
                tar.file(&format!("d/{number}-{layer}-{file}"), &[file; 3000])
            })
        })
        .map(Tar::bytes)
        .collect();
    image(&layers, gzip)
}

/// Not a test of its own: the process that is killed. Pulls, prepares, removes and collects, over and over.
#[test]
fn helper_pulls() {
    let (Some(root), Some(name)) =
        (std::env::var_os("ORLOP_IMAGES_ROOT"), std::env::var("ORLOP_IMAGES_NAME").ok())
    else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = open(Path::new(&root));
    for _ in 0..100 {
        let image =
            runtime.block_on(store.pull(&orlop_types::Reference::parse(&name).unwrap(), None)).unwrap();
        store.prepare_rootfs("c", &image.id).unwrap();
        store.remove_rootfs("c").unwrap();
        store.remove(&name).unwrap();
    }
}

/// Killed at many different moments of pull, unpack, prepare, remove and collect: each time the image is whole or absent, and nothing
/// else is there.
#[test]
fn a_killed_pull_leaves_the_image_whole_or_absent() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let registry = support::fake::Fake::start();
    let wanted = bushy(0);
    registry.put(&wanted, "1");
    let name = registry.name("bushy:1");
    let (mut whole, mut absent) = (0, 0);
    for step in 0..40u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helper_pulls"])
            .env("ORLOP_IMAGES_ROOT", &root)
            .env("ORLOP_IMAGES_NAME", &name)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The moment differs each time; when it falls between two requests is up to the machine.
        let asked = registry.requests().len() + usize::try_from(step % 13).unwrap();
        while registry.requests().len() < asked {
            assert!(child.try_wait().unwrap().is_none(), "the helper ended by itself");
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(step * 7 % 50));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(&root);
        match store.find(&name).unwrap() {
            Some(image) => {
                whole += 1;
                let rootfs = store.prepare_rootfs("probe", &image.id).unwrap();
                for (layer, path) in rootfs.lower.iter().rev().enumerate() {
                    let names = tree(path);
                    assert_eq!(names.len(), 151, "layer {layer}");
                    assert_eq!(std::fs::metadata(path.join(format!("d/0-{layer}-149"))).unwrap().len(), 3000);
                }
                store.remove_rootfs("probe").unwrap();
                store.remove_rootfs("c").unwrap();
                store.remove(&image.id).unwrap();
            }
            None => absent += 1,
        }
        store.remove_rootfs("c").unwrap();
        store.collect_garbage().unwrap();
        assert_eq!(store.usage().unwrap().bytes, 0, "step {step}");
        for place in ["leases", "trash", "content/ingest", "snapshots/layers", "snapshots/containers"] {
            assert_eq!(std::fs::read_dir(root.join(place)).unwrap().count(), 0, "step {step}: {place}");
        }
    }
    assert!(absent > 0, "whole {whole}, absent {absent}");
}

#[test]
fn a_pull_onto_a_full_disk_says_so_and_gives_the_space_back() {
    in_mount_namespace("a_pull_onto_a_full_disk_says_so_and_gives_the_space_back", || {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs", disk.to_str().unwrap()]);
        let registry = support::fake::Fake::start();
        let noise = |seed: u32, words: u32| -> Vec<u8> {
            (0..words).flat_map(|n| (n ^ seed).wrapping_mul(2_654_435_761).to_le_bytes()).collect()
        };
        // One fits, the second as a blob only, the third not at all.
        for (tag, words) in [("small", 100_000u32), ("blob", 900_000), ("big", 3_000_000)] {
            let layers = [
                Tar::new().file("a", &noise(7, 1000)).bytes(),
                Tar::new().file("b", &noise(9, words)).bytes(),
            ];
            registry.put(&image(&layers, gzip), tag);
        }
        let store = open(&disk.join("store"));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let pull = |tag: &str| {
            let reference = orlop_types::Reference::parse(&registry.name(&format!("app:{tag}"))).unwrap();
            runtime.block_on(store.pull(&reference, None))
        };
        let before = tree(&disk);
        let filler = disk.join("filler");
        for tag in ["blob", "big"] {
            std::fs::write(&filler, vec![1; if tag == "blob" { 2 << 20 } else { 0 }]).unwrap();
            let error = pull(tag).unwrap_err();
            assert_eq!(error.kind(), ImageErrorKind::NoSpace, "{error}");
            assert!(error.to_string().contains("No space left"), "{error}");
            std::fs::remove_file(&filler).unwrap();
            assert_eq!(tree(&disk), before, "{tag}: space is given back");
        }
        let small = pull("small").unwrap();
        let rootfs = store.prepare_rootfs("c", &small.id).unwrap();
        assert!(std::fs::read(rootfs.lower[0].join("b")).unwrap() == noise(9, 100_000));
        drop(store);
        Command::new("umount").arg(&disk).status().unwrap();
    });
}

#[test]
fn pulls_beside_collections_keep_what_they_need() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("store"));
    let registry = support::fake::Fake::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for number in 0..4 {
        registry.put(&bushy(number), &number.to_string());
    }
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                store.collect_garbage().unwrap();
            }
        });
        for round in 0..3 {
            for number in 0..4 {
                let reference =
                    orlop_types::Reference::parse(&registry.name(&format!("bushy:{number}"))).unwrap();
                let image = runtime.block_on(store.pull(&reference, None)).unwrap();
                let key = format!("c{round}{number}");
                // In use: the image goes, the layers stay.
                let rootfs = store.prepare_rootfs(&key, &image.id).unwrap();
                store.remove(&image.id).unwrap();
                assert!(store.find(&image.id).unwrap().is_none());
                store.collect_garbage().unwrap();
                assert!(rootfs.lower.iter().all(|path| tree(path).len() == 151));
                store.remove_rootfs(&key).unwrap();
            }
        }
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    store.collect_garbage().unwrap();
    assert_eq!(store.usage().unwrap().bytes, 0);
}
