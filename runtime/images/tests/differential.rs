//! Layers unpacked alone, or in order, and mounted by overlayfs must show what applying them one by one to one tree gives.
//!
//! The reference is a tree in memory. Its rules: entries in the order of the tar; links on the way to a parent are followed inside the
//! root; missing parents are made; a whiteout hides what layers below brought, never what its own layer brought; a hard link to a
//! file of a layer below gives that name a new inode, as overlayfs' copy-up does.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use orlop_images::{Config, ImageStore, Rootfs};
use orlop_types::Reference;
use proptest::prelude::*;
use proptest::test_runner::{Config as PropConfig, TestRunner};
use support::fake::Fake;
use support::{Tar, gzip, image, in_mount_namespace};

#[derive(Clone, Debug)]
enum Op {
    Dir { path: String, look: Look },
    File { path: String, content: u8, look: Look },
    Symlink { path: String, target: String },
    Link { path: String, target: String },
    Fifo { path: String, look: Look },
    Device { path: String, look: Look },
    Whiteout { path: String },
    Opaque { path: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    mode: u32,
    uid: u32,
    mtime: i64,
    xattr: Option<u8>,
}

const IMPLIED: Look = Look { mode: 0o755, uid: 0, mtime: -1, xattr: None };

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Dir(BTreeMap<String, Node>),
    File(u8),
    Symlink(String),
    Fifo,
    Device,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    kind: Kind,
    look: Look,
    inode: usize,
    layer: usize,
    /// Only there for the sake of others: made for a child, or copied up for a link.
    incidental: bool,
}

struct Model {
    root: Node,
    layer: usize,
    inodes: usize,
}

type Failed = &'static str;

fn child_path(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Model {
    fn new() -> Self {
        let kind = Kind::Dir(BTreeMap::new());
        let root = Node { kind, look: IMPLIED, inode: 0, layer: 0, incidental: true };
        Self { root, layer: 0, inodes: 0 }
    }

    fn node(&mut self, kind: Kind, look: Look, incidental: bool) -> Node {
        self.inodes += 1;
        Node { kind, look, inode: self.inodes, layer: self.layer, incidental }
    }

    /// The children of the directory at a path without links.
    fn children(&mut self, path: &str) -> &mut BTreeMap<String, Node> {
        let mut node = &mut self.root;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let Kind::Dir(children) = &mut node.kind else { panic!("{path}") };
            node = children.get_mut(name).unwrap();
        }
        let Kind::Dir(children) = &mut node.kind else { panic!("{path}") };
        children
    }

    fn get(&mut self, path: &str) -> Option<&mut Node> {
        if path.is_empty() {
            return Some(&mut self.root);
        }
        let (above, name) = split(path);
        self.children(above).get_mut(name)
    }

    fn put(&mut self, path: &str, node: Node) {
        let (above, name) = split(path);
        self.children(above).insert(name.to_owned(), node);
    }

    /// Follows and makes a path of directories; its path without links.
    fn walk(&mut self, path: &str) -> Result<String, Failed> {
        let mut queue: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut here = String::new();
        let mut links = 0;
        while let Some(name) = queue.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    here = split(&here).0.to_owned();
                    continue;
                }
                _ => {}
            }
            let next = child_path(&here, &name);
            let layer = self.layer;
            match self.get(&next).map(|node| (node.kind.clone(), node.layer)) {
                Some((Kind::Dir(_), _)) => here = next,
                Some((Kind::Symlink(target), _)) => {
                    links += 1;
                    if links > 40 {
                        return Err("too many links");
                    }
                    if target.starts_with('/') {
                        here.clear();
                    }
                    queue.extend(target.split('/').rev().map(str::to_owned));
                }
                Some((_, at)) if at == layer => return Err("not a directory"),
                Some(_) | None => {
                    let node = self.node(Kind::Dir(BTreeMap::new()), IMPLIED, true);
                    self.put(&next, node);
                    here = next;
                }
            }
        }
        Ok(here)
    }

    /// Removes what layers below brought; true when something of this layer stays.
    fn prune(node: &mut Node, layer: usize) -> bool {
        let mut stays = node.layer == layer && !node.incidental;
        if let Kind::Dir(children) = &mut node.kind {
            children.retain(|_, child| Self::prune(child, layer));
            stays |= !children.is_empty();
        }
        stays
    }

    fn apply(&mut self, op: &Op) -> Result<(), Failed> {
        let layer = self.layer;
        let (path, kind, look) = match op {
            Op::Opaque { path } => {
                let path = self.walk(path)?;
                self.children(&path).retain(|_, child| Self::prune(child, layer));
                return Ok(());
            }
            Op::Whiteout { path } => {
                let (above, name) = split(path);
                let above = self.walk(above)?;
                let children = self.children(&above);
                if children.get_mut(name).is_some_and(|node| !Self::prune(node, layer)) {
                    children.remove(name);
                }
                return Ok(());
            }
            Op::Link { path, target } => return self.link(path, target),
            Op::Dir { path, look } => {
                let (above, name) = split(path);
                let path = child_path(&self.walk(above)?, name);
                match self.get(&path) {
                    Some(node) if matches!(node.kind, Kind::Dir(_)) => {
                        (node.look, node.layer, node.incidental) = (look.clone(), layer, false);
                    }
                    _ => {
                        let node = self.node(Kind::Dir(BTreeMap::new()), look.clone(), false);
                        self.put(&path, node);
                    }
                }
                return Ok(());
            }
            Op::File { path, content, look } => (path, Kind::File(*content), look.clone()),
            Op::Symlink { path, target } => (
                path,
                Kind::Symlink(target.clone()),
                Look { mode: 0o777, uid: 0, mtime: 1_600_000_000, xattr: None },
            ),
            Op::Fifo { path, look } => (path, Kind::Fifo, Look { xattr: None, ..look.clone() }),
            Op::Device { path, look } => (path, Kind::Device, Look { xattr: None, ..look.clone() }),
        };
        let (above, name) = split(path);
        let path = child_path(&self.walk(above)?, name);
        let node = self.node(kind, look, false);
        self.put(&path, node);
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str) -> Result<(), Failed> {
        let (above, name) = split(path);
        let path = child_path(&self.walk(above)?, name);
        let (above, name) = split(target);
        let target = child_path(&self.walk(above)?, name);
        if path == target {
            return Ok(());
        }
        let layer = self.layer;
        let fresh = self.inodes + 1;
        let Some(node) = self.get(&target) else { return Err("links to nothing") };
        if matches!(node.kind, Kind::Dir(_)) {
            return Err("links to a directory");
        }
        if target.starts_with(&format!("{path}/")) {
            return Err("replaces its own target");
        }
        if node.layer != layer {
            (node.layer, node.inode, node.incidental) = (layer, fresh, true);
        }
        let mut node = node.clone();
        node.incidental = false;
        self.inodes = fresh;
        self.put(&path, node);
        Ok(())
    }
}

/// What can be seen of a tree: one line a path, and which paths are one inode.
fn shown(
    node: &Node,
    path: &str,
    lines: &mut BTreeMap<String, String>,
    inodes: &mut BTreeMap<String, usize>,
) {
    let Look { mode, uid, mtime, xattr } = &node.look;
    let times = if node.look.mtime < 0 { String::new() } else { mtime.to_string() };
    let look = format!("{mode:o} {uid} {times} {xattr:?}");
    let line = match &node.kind {
        Kind::Dir(children) => {
            for (name, child) in children {
                shown(child, &child_path(path, name), lines, inodes);
            }
            format!("dir {look}")
        }
        Kind::File(content) => format!("file {content} {look}"),
        Kind::Symlink(target) => format!("link {target} {times}"),
        Kind::Fifo => format!("fifo {look}"),
        Kind::Device => format!("device {look}"),
    };
    if !matches!(node.kind, Kind::Dir(_)) {
        inodes.insert(path.to_owned(), node.inode);
    }
    if !path.is_empty() {
        lines.insert(path.to_owned(), line);
    }
}

/// The same of a mounted tree. `timeless` are directories whose time nobody said.
fn found(
    root: &Path,
    path: &str,
    timeless: &BTreeMap<String, String>,
    lines: &mut BTreeMap<String, String>,
    inodes: &mut BTreeMap<String, usize>,
) {
    let full = root.join(path);
    let metadata = std::fs::symlink_metadata(&full).unwrap();
    let kind = metadata.file_type();
    let is_timeless = timeless.get(path).is_some_and(|line| line.starts_with("dir") && line.contains("  "));
    let times = if is_timeless { String::new() } else { metadata.mtime().to_string() };
    let xattr = if kind.is_symlink() {
        None
    } else {
        xattr::get(&full, "user.k").unwrap_or(None).map(|value| value[0])
    };
    let look = format!("{:o} {} {times} {xattr:?}", metadata.mode() & 0o7777, metadata.uid());
    let line = if kind.is_dir() {
        let mut names: Vec<_> = std::fs::read_dir(&full)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        for name in names {
            found(root, &child_path(path, &name), timeless, lines, inodes);
        }
        format!("dir {look}")
    } else if kind.is_file() {
        let content = std::fs::read(&full).unwrap();
        assert_eq!(content.len(), 5000);
        format!("file {} {look}", content[0])
    } else if kind.is_symlink() {
        format!("link {} {times}", std::fs::read_link(&full).unwrap().display())
    } else if std::os::unix::fs::FileTypeExt::is_fifo(&kind) {
        format!("fifo {look}")
    } else {
        assert_eq!(metadata.rdev(), rustix::fs::makedev(1, 3));
        format!("device {look}")
    };
    if !kind.is_dir() {
        inodes.insert(path.to_owned(), usize::try_from(metadata.ino()).unwrap());
    }
    if !path.is_empty() {
        lines.insert(path.to_owned(), line);
    }
}

/// Groups of paths that share an inode.
fn groups(inodes: &BTreeMap<String, usize>) -> Vec<Vec<String>> {
    let mut by_inode: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (path, inode) in inodes {
        by_inode.entry(*inode).or_default().push(path.clone());
    }
    let mut groups: Vec<_> = by_inode.into_values().collect();
    groups.sort();
    groups
}

fn tar_of(ops: &[Op]) -> Vec<u8> {
    let look_of = |tar: Tar, look: &Look| {
        let (uid, mtime) = (look.uid.to_string(), look.mtime.to_string());
        let value = [look.xattr.unwrap_or(0)];
        let mut records: Vec<(&str, &[u8])> = vec![("uid", uid.as_bytes()), ("mtime", mtime.as_bytes())];
        if look.xattr.is_some() {
            records.push(("SCHILY.xattr.user.k", &value));
        }
        tar.pax(&records)
    };
    ops.iter()
        .fold(Tar::new(), |tar, op| match op {
            Op::Dir { path, look } => look_of(tar, look).dir(&format!("{path}/"), look.mode),
            Op::File { path, content, look } => look_of(tar, look).mode(path, look.mode, &[*content; 5000]),
            Op::Symlink { path, target } => tar.symlink(path, target),
            Op::Link { path, target } => tar.link(path, target),
            Op::Fifo { path, look } => look_of(tar, &Look { xattr: None, ..look.clone() }).special(
                path,
                tar::EntryType::Fifo,
                look.mode,
            ),
            Op::Device { path, look } => look_of(tar, &Look { xattr: None, ..look.clone() }).special(
                path,
                tar::EntryType::Char,
                look.mode,
            ),
            Op::Whiteout { path } => {
                let (above, name) = split(path);
                tar.file(&child_path(above, &format!(".wh.{name}")), b"")
            }
            Op::Opaque { path } => tar.file(&child_path(path, ".wh..wh..opq"), b""),
        })
        .bytes()
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    let look = || {
        let modes = prop::sample::select(vec![0o755u32, 0o700, 0o4755, 0o1777, 0o2750, 0o644]);
        let xattr = prop::option::weighted(0.3, 1u8..4);
        (modes, prop::sample::select(vec![0u32, 7, 70_000]), 1_000_000_000i64..1_000_000_100, xattr)
            .prop_map(|(mode, uid, mtime, xattr)| Look { mode, uid, mtime, xattr })
    };
    let target = prop_oneof![
        path(),
        path().prop_map(|path| format!("/{path}")),
        path().prop_map(|path| format!("../{path}"))
    ];
    prop_oneof![
        4 => (path(), look()).prop_map(|(path, look)| Op::Dir { path, look }),
        5 => (path(), 1u8.., look()).prop_map(|(path, content, look)| Op::File { path, content, look }),
        1 => (path(), target).prop_map(|(path, target)| Op::Symlink { path, target }),
        2 => (path(), path()).prop_map(|(path, target)| Op::Link { path, target }),
        1 => (path(), look()).prop_map(|(path, look)| Op::Fifo { path, look }),
        1 => (path(), look()).prop_map(|(path, look)| Op::Device { path, look }),
        4 => path().prop_map(|path| Op::Whiteout { path }),
        1 => prop_oneof![path(), Just(String::new())].prop_map(|path| Op::Opaque { path }),
    ]
}

/// Applies the layers; entries that no reader could apply are left out, so that most stacks are good ones.
fn expected(layers: &mut [Vec<Op>]) -> Model {
    let mut model = Model::new();
    for (index, ops) in layers.iter_mut().enumerate() {
        model.layer = index + 1;
        ops.retain(|op| {
            let before = (model.root.clone(), model.inodes);
            let good = model.apply(op).is_ok();
            if !good {
                (model.root, model.inodes) = before;
            }
            good
        });
    }
    model
}

fn compare(rootfs: &Rootfs, merged: &Path, model: &Model) -> Result<(), TestCaseError> {
    let lower: Vec<String> = rootfs.lower.iter().map(|path| path.display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        rootfs.upper.display(),
        rootfs.work.display()
    );
    let status =
        Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(merged).status();
    prop_assert!(status.unwrap().success());
    let (mut lines, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    shown(&model.root, "", &mut lines, &mut inodes);
    let seen = std::panic::catch_unwind(|| {
        let (mut seen_lines, mut seen_inodes) = (BTreeMap::new(), BTreeMap::new());
        found(merged, "", &lines, &mut seen_lines, &mut seen_inodes);
        (seen_lines, seen_inodes)
    });
    assert!(Command::new("umount").arg(merged).status().unwrap().success());
    let Ok((seen_lines, seen_inodes)) = seen else { return Err(TestCaseError::fail("unreadable")) };
    prop_assert_eq!(&seen_lines, &lines);
    prop_assert_eq!(groups(&seen_inodes), groups(&inodes));
    Ok(())
}

#[test]
fn layers_show_what_applying_them_in_order_gives() {
    in_mount_namespace("layers_show_what_applying_them_in_order_gives", || {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&disk).status().unwrap();
        assert!(mounted.success());
        let merged = disk.join("merged");
        std::fs::create_dir(&merged).unwrap();
        let open =
            |name: &str| ImageStore::open(Config { root: disk.join(name), ..Config::default() }).unwrap();
        let (in_order, alone) = (open("in-order"), open("alone"));
        let registry = Fake::start();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
        let mut runner =
            TestRunner::new(PropConfig { cases, failure_persistence: None, ..PropConfig::default() });
        let stacks = prop::collection::vec(prop::collection::vec(op(), 1..10), 1..5);
        runner
            .run(&stacks, |mut layers| {
                let model = expected(&mut layers);
                let tars: Vec<Vec<u8>> = layers.iter().map(|ops| tar_of(ops)).collect();
                let image = image(&tars, gzip);
                let archive = disk.join("archive.tar");
                std::fs::write(&archive, image.docker_archive(&["a"])).unwrap();
                let imported = in_order.import(&archive);
                prop_assert!(imported.is_ok(), "{}", imported.unwrap_err());
                registry.put(&image, "1");
                let reference = Reference::parse(&registry.name("a:1")).unwrap();
                let pulled = runtime.block_on(alone.pull(&reference, None));
                prop_assert!(pulled.is_ok(), "{}", pulled.unwrap_err());
                for store in [&in_order, &alone] {
                    let result = compare(&store.prepare_rootfs("c", &image.id()).unwrap(), &merged, &model);
                    store.remove_rootfs("c").unwrap();
                    store.remove(&image.id()).unwrap();
                    result?;
                }
                Ok(())
            })
            .unwrap();
        for store in [&in_order, &alone] {
            assert_eq!(store.usage().unwrap().bytes, 0);
        }
        assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    });
}
