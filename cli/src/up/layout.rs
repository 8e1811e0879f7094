//! Where a cluster keeps its files. The table is in ARCHITECTURE.md.

use std::io;
use std::path::{Path, PathBuf};

use orlop_types::Digest;

/// The data directory when none is given.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/orlop";

/// Paths and names derived from one data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    data: PathBuf,
    suffix: String,
}

impl Layout {
    /// The layout of a data directory, which is made if missing so that it has a canonical path.
    pub(crate) fn create(data: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(data)?;
        Ok(Self::of(std::fs::canonicalize(data)?))
    }

    /// The layout of an existing or already removed data directory.
    pub(crate) fn existing(data: &Path) -> io::Result<Self> {
        match std::fs::canonicalize(data) {
            Ok(path) => Ok(Self::of(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::path::absolute(data).map(Self::of),
            Err(error) => Err(error),
        }
    }

    fn of(data: PathBuf) -> Self {
        let suffix = if data == Path::new(DEFAULT_DATA_DIR) {
            String::new()
        } else {
            let digest = Digest::sha256(data.as_os_str().as_encoded_bytes());
            format!("-{}", &digest.hex()[..8])
        };
        Self { data, suffix }
    }

    /// `DATA`.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// `RUN`, on tmpfs.
    pub(crate) fn run(&self) -> PathBuf {
        PathBuf::from(format!("/run/orlop{}", self.suffix))
    }

    /// The cgroup that holds every process of the cluster, relative to each hierarchy's root.
    pub(crate) fn cgroup(&self) -> String {
        format!("/orlop{}", self.suffix)
    }

    /// The name of a node's network namespace in `/run/netns`, when it has one of its own.
    pub(crate) fn netns(&self, node: &str) -> String {
        format!("orlop{}-{node}", self.suffix)
    }

    /// The bridge that joins nodes with namespaces of their own. At most 15 bytes (IFNAMSIZ).
    pub(crate) fn bridge(&self) -> String {
        format!("orlop{}", if self.suffix.is_empty() { "0" } else { &self.suffix })
    }

    /// The host side of a node's link to the bridge. At most 15 bytes.
    pub(crate) fn link(&self, index: u32) -> String {
        let cluster = self.suffix.trim_start_matches('-');
        format!("ol{}n{index}", &cluster[..cluster.len().min(8)])
    }

    pub(crate) fn cluster_file(&self) -> PathBuf {
        self.data.join("cluster.json")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.data.join("admin.kubeconfig")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.data.join("log")
    }

    pub(crate) fn master_dir(&self) -> PathBuf {
        self.data.join("master")
    }

    pub(crate) fn node(&self, name: &str) -> PathBuf {
        self.data.join("nodes").join(name)
    }

    pub(crate) fn node_run(&self, name: &str) -> PathBuf {
        self.run().join(name)
    }

    /// The root of a node's images and snapshots.
    pub(crate) fn runtime_root(&self, name: &str) -> PathBuf {
        self.node(name).join("runtime")
    }

    /// The names of the nodes that have a directory, sorted.
    pub(crate) fn node_names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.data.join("nodes")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_directory_has_plain_names_and_any_other_its_own() {
        let default = Layout::of(PathBuf::from(DEFAULT_DATA_DIR));
        assert_eq!(default.run(), Path::new("/run/orlop"));
        assert_eq!(default.cgroup(), "/orlop");
        assert_eq!(default.bridge(), "orlop0");
        let other = Layout::of(PathBuf::from("/tmp/a"));
        assert_ne!(other.run(), Layout::of(PathBuf::from("/tmp/b")).run());
        assert!(other.bridge().len() <= 15 && other.link(250).len() <= 15);
    }
}
