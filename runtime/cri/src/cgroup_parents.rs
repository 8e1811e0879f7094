//! Control groups above the pods' own: a kubelet makes and removes its own; those that were not there are ours, and go with the
//! last pod in them.
//!
//! What is ours is in each pod's record (`madeCgroups`) before anything is made, so a kill at any line leaves no group without
//! somebody who removes it. A pod that comes into a parent of ours takes it over from the pod that made it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::cgroup::Hierarchies;

/// What one pod uses and owns.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    /// Its cgroup parent's directory in each hierarchy.
    parents: Vec<PathBuf>,
    /// The highest directory of ours above each of them; of a hierarchy without one, none.
    tops: Vec<PathBuf>,
}

/// The claims of all pods. Bounded by the number of sandboxes.
#[derive(Debug, Default)]
pub(crate) struct CgroupParents(Mutex<BTreeMap<String, Claim>>);

impl CgroupParents {
    /// Before a pod is made: what of `parent` is missing now, or belongs to other pods already, is (also) this pod's. Returns
    /// the highest such directory of each hierarchy, for the record.
    pub(crate) fn claim(&self, sandbox_id: &str, parent: &str, hierarchies: &Hierarchies) -> Vec<PathBuf> {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let parents = hierarchies.directories(parent);
        let roots = hierarchies.directories("/");
        let owned: Vec<&PathBuf> = claims.values().flat_map(|claim| &claim.tops).collect();
        let tops: Vec<PathBuf> = parents
            .iter()
            .zip(&roots)
            .filter_map(|(parent, root)| highest(parent, root, &owned, |path| !path.exists()))
            .collect();
        claims.insert(sandbox_id.to_owned(), Claim { parents, tops: tops.clone() });
        tops
    }

    /// After a restart: what the record says.
    pub(crate) fn restore(
        &self,
        sandbox_id: &str,
        parent: &str,
        tops: &[PathBuf],
        hierarchies: &Hierarchies,
    ) {
        let claim = Claim { parents: hierarchies.directories(parent), tops: tops.to_vec() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(sandbox_id.to_owned(), claim);
    }

    /// After the pod's own groups are gone: removes what is ours, empty, and not used by another pod. Blocking.
    pub(crate) fn release(&self, sandbox_id: &str) {
        // Held while removing: a pod that comes now sees what is left.
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(claim) = claims.remove(sandbox_id) else { return };
        let used: Vec<&PathBuf> = claims.values().flat_map(|other| &other.parents).collect();
        for directory in removable(&claim, &used) {
            match std::fs::remove_dir(&directory) {
                Ok(()) => tracing::debug!(cgroup = %directory.display(), "removed with the last pod in it"),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // Somebody put something in there; those above are then not empty either.
                Err(error) => {
                    tracing::info!(cgroup = %directory.display(), %error, "not ours alone any more");
                }
            }
        }
    }
}

/// The highest of `parent` and its ancestors below `root` that is missing or owned by a pod.
fn highest(
    parent: &Path,
    root: &Path,
    owned: &[&PathBuf],
    is_missing: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let below = parent.ancestors().take_while(|path| *path != root && path.starts_with(root));
    below.filter(|path| owned.iter().any(|top| path == top) || is_missing(path)).last().map(Path::to_owned)
}

/// Directories to remove, in this order: deepest first, up to the top of each hierarchy, as far as nobody else uses them.
fn removable(claim: &Claim, used: &[&PathBuf]) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for parent in &claim.parents {
        let Some(top) = claim.tops.iter().find(|top| parent.starts_with(top)) else { continue };
        let ours = parent.ancestors().take_while(|path| path.starts_with(top));
        let free = ours.take_while(|path| !used.iter().any(|other| other.starts_with(path)));
        directories.extend(free.map(Path::to_owned));
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> Vec<PathBuf> {
        texts.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn what_is_missing_or_a_neighbours_is_ours() {
        let there = ["/cg", "/cg/kubepods", "/cg/a", "/cg/a/b"];
        let missing = |path: &Path| !there.iter().any(|known| Path::new(known) == path);
        let of_neighbour = PathBuf::from("/cg/a");
        for (parent, owned, top) in [
            ("/cg/kubepods", vec![], None),
            ("/cg/kubepods/pod1", vec![], Some("/cg/kubepods/pod1")),
            ("/cg/x/y/z", vec![], Some("/cg/x")),
            ("/cg/a/b", vec![], None),
            ("/cg/a/b", vec![&of_neighbour], Some("/cg/a")),
            ("/cg/a/c", vec![&of_neighbour], Some("/cg/a")),
            ("/cg", vec![], None),
        ] {
            let found = highest(Path::new(parent), Path::new("/cg"), &owned, missing);
            assert_eq!(found.as_deref(), top.map(Path::new), "{parent}");
        }
    }

    #[test]
    fn the_last_pod_takes_them_along() {
        let claim = Claim { parents: paths(&["/m/a/b", "/p/a/b"]), tops: paths(&["/m/a"]) };
        assert_eq!(removable(&claim, &[]), paths(&["/m/a/b", "/m/a"]));
        let other = PathBuf::from("/m/a/c");
        assert_eq!(removable(&claim, &[&other]), paths(&["/m/a/b"]));
        let below = PathBuf::from("/m/a/b/c");
        assert_eq!(removable(&claim, &[&below]), paths(&[]));
        let like = PathBuf::from("/m/ab");
        assert_eq!(removable(&claim, &[&like]), paths(&["/m/a/b", "/m/a"]));
    }

    #[test]
    fn pods_that_come_and_go_leave_nothing() {
        let root = tempfile::tempdir().unwrap();
        let hierarchies = Hierarchies::at(&[root.path().join("memory"), root.path().join("cpu")]);
        let exists = |path: &str| root.path().join(path).exists();
        let make = |path: &str| std::fs::create_dir_all(root.path().join(path)).unwrap();
        make("memory/kubepods");
        make("cpu/kubepods");
        let parents = CgroupParents::default();
        let first = parents.claim("first", "/orlop", &hierarchies);
        make("memory/orlop");
        make("cpu/orlop");
        parents.claim("second", "/orlop/deep", &hierarchies);
        make("memory/orlop/deep");
        parents.release("first");
        assert!(exists("memory/orlop") && exists("cpu/orlop"));
        // The daemon was killed and started again.
        let again = CgroupParents::default();
        again.restore("second", "/orlop/deep", &first, &hierarchies);
        again.release("second");
        assert!(!exists("memory/orlop") && !exists("cpu/orlop"));
        again.claim("third", "/kubepods", &hierarchies);
        again.release("third");
        assert!(exists("memory/kubepods") && exists("cpu/kubepods"));
        // Not empty: somebody else's.
        again.claim("fourth", "/shared", &hierarchies);
        make("memory/shared/theirs");
        make("cpu/shared");
        again.release("fourth");
        assert!(exists("memory/shared/theirs") && !exists("cpu/shared"));
    }
}
