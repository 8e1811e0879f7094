//! Pod cgroups: `ROOT/kubepods[/burstable|/besteffort]/podUID` in every hierarchy, with the limits of the whole pod.
//!
//! Both cgroup v2 and v1 (also hybrid) are known; the runtime makes the containers' cgroups below.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;

use crate::container::resources::{self, PodLimits};
use crate::pod::model::{self, Qos};

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    mount: PathBuf,
    /// v1 controllers; empty for v2.
    controllers: Vec<String>,
    unified: bool,
}

/// The hierarchies of this machine and where pods go in them.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    root: String,
    enabled: bool,
    pids_limit: Option<i64>,
}

/// Reads the hierarchies out of mountinfo(5).
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mount) = before.split(' ').nth(4) else {
            continue;
        };
        let mut words = after.split(' ');
        let kind = words.next();
        let options = words.nth(1).unwrap_or_default();
        let known = [
            "cpu",
            "cpuacct",
            "cpuset",
            "memory",
            "pids",
            "blkio",
            "devices",
            "freezer",
            "hugetlb",
            "net_cls",
            "net_prio",
            "perf_event",
        ];
        let hierarchy = match kind {
            Some("cgroup2") => Hierarchy { mount: mount.into(), controllers: Vec::new(), unified: true },
            Some("cgroup") => {
                let controllers =
                    options.split(',').filter(|option| known.contains(option) || option.starts_with("name="));
                Hierarchy {
                    mount: mount.into(),
                    controllers: controllers.map(str::to_owned).collect(),
                    unified: false,
                }
            }
            _ => continue,
        };
        if !found
            .iter()
            .any(|other| other.unified == hierarchy.unified && other.controllers == hierarchy.controllers)
        {
            found.push(hierarchy);
        }
    }
    found
}

impl Cgroups {
    /// Looks at the machine.
    pub(crate) fn detect(root: &str, enabled: bool, pids_limit: Option<i64>) -> io::Result<Self> {
        let found = hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
        Ok(Self { hierarchies: found, root: root.trim_end_matches('/').to_owned(), enabled, pids_limit })
    }

    /// Whether limits are set through cgroup v2.
    pub(crate) fn is_unified(&self) -> bool {
        !self.hierarchies.is_empty() && self.hierarchies.iter().all(|hierarchy| hierarchy.unified)
    }

    /// Which hierarchies hold pods: v1 ones with controllers we set, or v2 when it is alone.
    fn used(&self) -> impl Iterator<Item = &Hierarchy> {
        let unified = self.is_unified();
        self.hierarchies.iter().filter(move |hierarchy| {
            if hierarchy.unified {
                unified
            } else {
                hierarchy
                    .controllers
                    .iter()
                    .any(|controller| matches!(controller.as_str(), "cpu" | "memory" | "pids"))
            }
        })
    }

    fn kubepods(&self) -> String {
        format!("{}/kubepods", self.root)
    }

    fn class(&self, qos: Qos) -> String {
        match qos {
            Qos::Guaranteed => self.kubepods(),
            Qos::Burstable => format!("{}/burstable", self.kubepods()),
            Qos::BestEffort => format!("{}/besteffort", self.kubepods()),
        }
    }

    /// What the runtime is told as parent of the pod's containers; empty when cgroups are the runtime's own business.
    pub(crate) fn pod_parent(&self, pod: &core::Pod) -> String {
        if !self.enabled {
            return String::new();
        }
        format!("{}/pod{}", self.class(model::qos(pod)), model::uid(pod))
    }

    /// Makes the classes.
    pub(crate) fn set_up(&self) -> io::Result<()> {
        if !self.enabled {
            return Ok(());
        }
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            for hierarchy in self.used() {
                make(hierarchy, &self.class(qos))?;
            }
        }
        let class = self.class(Qos::BestEffort);
        self.write_limits(
            &class,
            &PodLimits { cpu_shares: 2, cpu_quota: None, cpu_period: 100_000, memory_bytes: None },
            None,
        );
        Ok(())
    }

    /// Makes a pod's cgroup and sets its limits.
    pub(crate) fn create_pod(&self, pod: &core::Pod) -> io::Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let path = self.pod_parent(pod);
        for hierarchy in self.used() {
            make(hierarchy, &path)?;
        }
        self.write_limits(&path, &resources::pod_limits(pod), self.pids_limit);
        Ok(())
    }

    fn write_limits(&self, path: &str, limits: &PodLimits, pids: Option<i64>) {
        for hierarchy in self.used() {
            let dir = below(&hierarchy.mount, path);
            for (file, value) in settings(hierarchy, limits, pids) {
                if let Err(error) = fs::write(dir.join(file), &value) {
                    tracing::warn!(cgroup = %dir.display(), file, value, %error, "could not set a limit");
                }
            }
        }
    }

    /// Removes a pod's cgroups of any class in every hierarchy, with what the runtime left below.
    pub(crate) fn remove_pod(&self, uid: &str) -> io::Result<()> {
        if !self.enabled {
            return Ok(());
        }
        for hierarchy in &self.hierarchies {
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                let dir = below(&hierarchy.mount, &self.class(qos)).join(format!("pod{uid}"));
                if dir.is_dir() {
                    remove(&dir)?;
                }
            }
        }
        Ok(())
    }

    /// UIDs that have a cgroup.
    pub(crate) fn known_uids(&self) -> BTreeSet<String> {
        let mut uids = BTreeSet::new();
        if !self.enabled {
            return uids;
        }
        for hierarchy in &self.hierarchies {
            for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
                let entries =
                    fs::read_dir(below(&hierarchy.mount, &self.class(qos))).into_iter().flatten().flatten();
                uids.extend(
                    entries.filter_map(|entry| {
                        Some(entry.file_name().to_str()?.strip_prefix("pod")?.to_owned())
                    }),
                );
            }
        }
        uids
    }
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// Makes a cgroup with its ancestors; in v2 each ancestor hands its controllers down.
fn make(hierarchy: &Hierarchy, path: &str) -> io::Result<()> {
    let mut dir = hierarchy.mount.clone();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if hierarchy.unified {
            let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
            for controller in controllers.split_whitespace() {
                // A controller that cannot be handed down shows when its limit is set.
                let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn settings(hierarchy: &Hierarchy, limits: &PodLimits, pids: Option<i64>) -> Vec<(&'static str, String)> {
    let pids = pids.filter(|limit| *limit > 0);
    let mut values = Vec::new();
    if hierarchy.unified {
        values.push(("cpu.weight", resources::weight(limits.cpu_shares).to_string()));
        let quota = limits.cpu_quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        values.push(("cpu.max", format!("{quota} {}", limits.cpu_period)));
        values.push((
            "memory.max",
            limits.memory_bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string()),
        ));
        values.extend(pids.map(|limit| ("pids.max", limit.to_string())));
        return values;
    }
    for controller in &hierarchy.controllers {
        match controller.as_str() {
            "cpu" => {
                values.push(("cpu.shares", limits.cpu_shares.to_string()));
                if let Some(quota) = limits.cpu_quota {
                    values.push(("cpu.cfs_period_us", limits.cpu_period.to_string()));
                    values.push(("cpu.cfs_quota_us", quota.to_string()));
                }
            }
            "memory" => {
                values.extend(limits.memory_bytes.map(|bytes| ("memory.limit_in_bytes", bytes.to_string())))
            }
            "pids" => values.extend(pids.map(|limit| ("pids.max", limit.to_string()))),
            _ => {}
        }
    }
    values
}

/// Removes a cgroup tree, deepest first. Only rmdir: what still holds a process stays and is reported.
fn remove(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_machine() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let cgroups = |table: &str| Cgroups {
            hierarchies: hierarchies(table),
            root: String::new(),
            enabled: true,
            pids_limit: None,
        };
        let one = cgroups(hybrid);
        assert!(!one.is_unified());
        assert_eq!(one.used().count(), 2);
        let two = cgroups("30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(two.is_unified());
        assert_eq!(two.used().count(), 1);
        let limits =
            PodLimits { cpu_shares: 1024, cpu_quota: Some(50_000), cpu_period: 100_000, memory_bytes: None };
        assert_eq!(
            settings(&two.hierarchies[0], &limits, Some(10)),
            [
                ("cpu.weight", "100".into()),
                ("cpu.max", "50000 100000".into()),
                ("memory.max", "max".into()),
                ("pids.max", "10".into())
            ]
        );
        assert_eq!(
            settings(&one.hierarchies[0], &limits, None),
            [
                ("cpu.shares", "1024".into()),
                ("cpu.cfs_period_us", "100000".into()),
                ("cpu.cfs_quota_us", "50000".into())
            ]
        );
    }

    /// On the machine's own hierarchies, below a name that only this test uses.
    #[test]
    fn pod_cgroups_come_and_go() {
        let root = format!("/orlop-kubelet-test-{}", std::process::id());
        let cgroups = Cgroups::detect(&root, true, Some(50)).unwrap();
        if cgroups.used().next().is_none() {
            println!("SKIP: no cgroup hierarchy is mounted");
            return;
        }
        let pod: core::Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "uid": "u1"},
            "spec": {"containers": [{"name": "a", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "1"}}}]}
        }))
        .unwrap();
        cgroups.set_up().unwrap();
        cgroups.create_pod(&pod).unwrap();
        cgroups.create_pod(&pod).unwrap();
        assert_eq!(cgroups.pod_parent(&pod), format!("{root}/kubepods/burstable/podu1"));
        assert_eq!(cgroups.known_uids().into_iter().collect::<Vec<_>>(), ["u1"]);
        for hierarchy in cgroups.used() {
            let dir = below(&hierarchy.mount, &cgroups.pod_parent(&pod));
            for (file, expected) in settings(hierarchy, &resources::pod_limits(&pod), Some(50)) {
                assert_eq!(fs::read_to_string(dir.join(file)).unwrap().trim(), expected, "{file}");
            }
            fs::create_dir_all(dir.join("left-by-the-runtime")).unwrap();
        }
        cgroups.remove_pod("u1").unwrap();
        cgroups.remove_pod("u1").unwrap();
        assert!(cgroups.known_uids().is_empty());
        for hierarchy in cgroups.used() {
            remove(&below(&hierarchy.mount, &root)).unwrap();
        }
    }
}
