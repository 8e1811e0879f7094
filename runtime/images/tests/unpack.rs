//! Layers as overlayfs sees them, and layers that want out.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use orlop_images::{Config, ImageError, ImageStore, Rootfs};
use support::{Tar, image};
use tempfile::TempDir;

struct Lab {
    directory: TempDir,
    store: ImageStore,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            root: directory.path().join("store"),
            max_unpacked_bytes: 64 << 20,
            max_unpacked_entries: 1000,
            ..Config::default()
        };
        let store = ImageStore::open(config).unwrap();
        Self { directory, store }
    }

    fn import(&self, layers: &[Vec<u8>]) -> Result<Rootfs, ImageError> {
        let path = self.directory.path().join("archive.tar");
        std::fs::write(&path, image(layers, <[u8]>::to_vec).docker_archive(&["app"])).unwrap();
        let id = self.store.import(&path)?.remove(0).id;
        self.store.prepare_rootfs(&id[7..], &id)
    }

    fn top(&self, layers: &[Vec<u8>]) -> PathBuf {
        self.import(layers).unwrap().lower[0].clone()
    }
}

fn opaque(path: &Path) -> bool {
    xattr::get(path, "trusted.overlay.opaque").unwrap().as_deref() == Some(b"y")
}

fn is_whiteout(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|node| node.file_type().is_char_device() && node.rdev() == 0)
}

#[test]
fn whiteouts_become_overlay_marks() {
    let lab = Lab::new();
    let below = Tar::new()
        .dir("a/", 0o755)
        .file("a/one", b"1")
        .file("a/two", b"2")
        .dir("b/", 0o755)
        .file("b/x", b"x")
        .bytes();
    let above = Tar::new()
        .file("a/.wh.one", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/y", b"y")
        .file(".wh..wh.plnk", b"")
        .file("c/new", b"")
        .file(".wh.c", b"")
        .file(".wh.d", b"")
        .file("d/inside", b"")
        .bytes();
    let top = lab.top(&[below, above]);
    assert!(is_whiteout(&top.join("a/one")) && !top.join("a/.wh.one").exists());
    assert!(opaque(&top.join("b")) && top.join("b/y").is_file() && !top.join("b/.wh..wh..opq").exists());
    assert!(!top.join(".wh..wh.plnk").exists());
    assert!(
        opaque(&top.join("c")) && top.join("c/new").is_file(),
        "a whiteout does not hide what the same layer brings"
    );
    assert!(opaque(&top.join("d")) && top.join("d/inside").is_file(), "deleted, then made again");
}

#[test]
fn metadata_is_kept() {
    let lab = Lab::new();
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    // A capability whose bytes hold a line feed: bit 10, CAP_NET_BIND_SERVICE, and 0x0a elsewhere.
    let with_line_feed = b"\x01\x00\x00\x02\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let layer = Tar::new()
        .pax(&[("mtime", b"1600000001.5"), ("uid", b"70000"), ("gid", b"5")])
        .dir("d/", 0o1777)
        .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.k", b"v\n=v")])
        .mode("d/ping", 0o4755, b"elf")
        .pax(&[
            ("SCHILY.xattr.security.capability", with_line_feed),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .file("d/other", b"")
        .link("d/again", "d/ping")
        .symlink("d/link", "/nowhere")
        .device("d/null")
        .dir("e/", 0o700)
        .file("e/late", b"")
        .bytes();
    let top = lab.top(&[layer]);
    let directory = std::fs::metadata(top.join("d")).unwrap();
    assert_eq!((directory.mode() & 0o7777, directory.uid(), directory.gid()), (0o1777, 70000, 5));
    assert_eq!(
        (directory.mtime(), directory.mtime_nsec()),
        (1_600_000_001, 500_000_000),
        "not touched by its children"
    );
    let file = std::fs::metadata(top.join("d/ping")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.nlink(), file.mtime()), (0o4755, 2, 1_600_000_000));
    assert_eq!(xattr::get(top.join("d/ping"), "security.capability").unwrap().unwrap(), capability);
    assert_eq!(xattr::get(top.join("d/ping"), "user.k").unwrap().unwrap(), b"v\n=v");
    assert_eq!(xattr::get(top.join("d/other"), "security.capability").unwrap().unwrap(), with_line_feed);
    assert_eq!(xattr::get(top.join("d/other"), "trusted.overlay.redirect").unwrap(), None);
    assert_eq!(std::fs::read_link(top.join("d/link")).unwrap(), Path::new("/nowhere"));
    let device = std::fs::metadata(top.join("d/null")).unwrap();
    assert_eq!((device.rdev(), device.mode() & 0o777), (rustix::fs::makedev(1, 3), 0o666));
    assert_eq!(std::fs::metadata(top.join("e")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn implied_directories_look_as_below() {
    let lab = Lab::new();
    let below = Tar::new()
        .pax(&[("uid", b"7"), ("gid", b"8"), ("mtime", b"1500000000")])
        .dir("var/tmp/", 0o1777)
        .dir("usr/lib/", 0o755)
        .symlink("lib", "usr/lib")
        .file("usr/lib/libc", b"c")
        .file("etc/passwd", b"root")
        .bytes();
    let above = Tar::new()
        .file("var/tmp/x", b"")
        .file("lib/libm", b"m")
        .link("etc/shadow", "etc/passwd")
        .file("fresh/x", b"")
        .bytes();
    let top = lab.top(&[below, above]);
    let tmp = std::fs::metadata(top.join("var/tmp")).unwrap();
    assert_eq!((tmp.mode() & 0o7777, tmp.uid(), tmp.gid(), tmp.mtime()), (0o1777, 7, 8, 1_500_000_000));
    assert!(top.join("usr/lib/libm").is_file(), "a link below is followed");
    assert!(!top.join("lib").exists(), "and not shadowed");
    assert_eq!(std::fs::read(top.join("etc/shadow")).unwrap(), b"root", "a hard link to a file below");
    assert_eq!(std::fs::metadata(top.join("etc/passwd")).unwrap().nlink(), 2);
    assert_eq!(std::fs::metadata(top.join("fresh")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn nothing_gets_out() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    std::fs::write(outside.path().join("victim"), "safe").unwrap();
    let refused: Vec<Vec<u8>> = vec![
        Tar::new().file("../evil", b"x").bytes(),
        Tar::new().file("a/../../evil", b"x").bytes(),
        Tar::new().link("x", "../../../../etc/passwd").bytes(),
        Tar::new().link("x", "a/nothing").bytes(),
        Tar::new().file("f", b"").file("f/x", b"x").bytes(),
        Tar::new().symlink("l", "l").file("l/x", b"x").bytes(),
        Tar::new().symlink(".", "/etc").bytes(),
        Tar::new().link("x", "/").bytes(),
    ];
    for (index, layer) in refused.into_iter().enumerate() {
        let lab = Lab::new();
        let error = lab.import(&[layer]).unwrap_err();
        assert!(matches!(error, ImageError::Unpack { .. }), "{index}: {error}");
    }
    // Links that point out are made, but what goes through them stays in the layer.
    let inside = Tar::new()
        .symlink("abs", target)
        .file("abs/victim", b"changed")
        .symlink("up", "../../../../../../../../../../../..")
        .file("up/tmp/evil", b"x")
        .file("abs/.wh.victim2", b"")
        .link("abs/linked", "abs/victim")
        .file("/absolute", b"x")
        .bytes();
    let lab = Lab::new();
    let top = lab.top(&[inside]);
    assert_eq!(std::fs::read_to_string(outside.path().join("victim")).unwrap(), "safe");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    let relative = target.trim_start_matches('/');
    assert_eq!(std::fs::read(top.join(relative).join("victim")).unwrap(), b"changed");
    assert!(top.join("tmp/evil").is_file() && top.join("absolute").is_file());
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let lab = Lab::new();
    let layer = Tar::new()
        .dir("a/", 0o755)
        .file("a/x", b"x")
        .file("a", b"now a file")
        .file("b", b"file")
        .dir("b/", 0o755)
        .file("c", b"1")
        .file("c", b"2")
        .symlink("d", "/etc/passwd")
        .file("d", b"not through the link")
        .bytes();
    let top = lab.top(&[layer]);
    assert_eq!(std::fs::read(top.join("a")).unwrap(), b"now a file");
    assert!(top.join("b").is_dir() && opaque(&top.join("b")));
    assert_eq!(std::fs::read(top.join("c")).unwrap(), b"2");
    assert_eq!(std::fs::read(top.join("d")).unwrap(), b"not through the link");
}

#[test]
fn bombs_are_bounded() {
    let lab = Lab::new();
    let zeros = Tar::new().file("zeros", &vec![0u8; 65 << 20]).bytes();
    let error = lab.import(&[zeros]).unwrap_err().to_string();
    assert!(error.contains("more than 67108864 bytes"), "{error}");
    let many = (0..1001).fold(Tar::new(), |tar, index| tar.file(&format!("f{index}"), b"")).bytes();
    let error = lab.import(&[many]).unwrap_err().to_string();
    assert!(error.contains("more than 1000 entries"), "{error}");
}

#[test]
fn holes_stay_holes() {
    let lab = Lab::new();
    let source = lab.directory.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let sparse = std::fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 4 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"tail", (8 << 20) - 4).unwrap();
    let expected = std::fs::read(source.join("sparse")).unwrap();
    for arguments in [
        &["--format=gnu", "--sparse"][..],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=gnu"],
    ] {
        let output = std::process::Command::new("tar")
            .args(arguments)
            .args(["-C", source.to_str().unwrap(), "-cf", "-", "."])
            .output()
            .unwrap();
        assert!(output.status.success());
        let top = lab.top(&[output.stdout]);
        assert!(std::fs::read(top.join("sparse")).unwrap() == expected, "{arguments:?}");
        let metadata = std::fs::metadata(top.join("sparse")).unwrap();
        assert!(metadata.blocks() * 512 < 64 << 10, "{arguments:?}: {} blocks", metadata.blocks());
    }
}

#[test]
fn long_names_of_both_kinds() {
    let lab = Lab::new();
    let source = lab.directory.path().join("source");
    let long = ["x".repeat(120), "y".repeat(120), "z".repeat(120)].join("/");
    std::fs::create_dir_all(source.join(&long)).unwrap();
    std::fs::write(source.join(&long).join("file"), "content").unwrap();
    std::os::unix::fs::symlink(&long, source.join("link")).unwrap();
    for format in ["gnu", "posix"] {
        let output = std::process::Command::new("tar")
            .args([&format!("--format={format}"), "-C", source.to_str().unwrap(), "-cf", "-", "."])
            .output()
            .unwrap();
        let top = lab.top(&[output.stdout]);
        assert_eq!(std::fs::read_to_string(top.join(&long).join("file")).unwrap(), "content", "{format}");
        assert_eq!(std::fs::read_link(top.join("link")).unwrap(), Path::new(&long), "{format}");
    }
}
