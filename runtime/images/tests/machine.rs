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
