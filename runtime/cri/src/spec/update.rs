//! Limits changed in flight: what UpdateContainerResources writes, in an order that the kernel takes.

use orlop_cri::v1;

use super::resources::{CgroupFeatures, swap_limit};

/// Takes over every value of `change` that is given, as UpdateContainerResources wants it.
pub(crate) fn merge(current: &mut v1::LinuxContainerResources, change: &v1::LinuxContainerResources) {
    let fields: [(&mut i64, i64); 6] = [
        (&mut current.cpu_period, change.cpu_period),
        (&mut current.cpu_quota, change.cpu_quota),
        (&mut current.cpu_shares, change.cpu_shares),
        (&mut current.memory_limit_in_bytes, change.memory_limit_in_bytes),
        (&mut current.memory_swap_limit_in_bytes, change.memory_swap_limit_in_bytes),
        (&mut current.oom_score_adj, change.oom_score_adj),
    ];
    for (field, value) in fields {
        if value != 0 {
            *field = value;
        }
    }
    if change.memory_limit_in_bytes != 0 {
        // A new memory limit without one of swap has none (see `swap_limit`), whatever was before.
        current.memory_swap_limit_in_bytes = change.memory_swap_limit_in_bytes;
    }
    for (field, value) in
        [(&mut current.cpuset_cpus, &change.cpuset_cpus), (&mut current.cpuset_mems, &change.cpuset_mems)]
    {
        if !value.is_empty() {
            field.clone_from(value);
        }
    }
    current.unified.extend(change.unified.iter().map(|(key, value)| (key.clone(), value.clone())));
    if !change.hugepage_limits.is_empty() {
        current.hugepage_limits.clone_from(&change.hugepage_limits);
    }
}

/// One file of a cgroup to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    /// v1 controller whose hierarchy holds the file.
    pub controller: &'static str,
    /// File name.
    pub file: String,
    /// Content.
    pub value: String,
}

fn write(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Write {
    Write { controller, file: file.into(), value: value.to_string() }
}

/// What to write for `change`; `current` is in force, `wanted` is `current` with the change.
pub(crate) fn plan_update(
    change: &v1::LinuxContainerResources,
    current: &v1::LinuxContainerResources,
    wanted: &v1::LinuxContainerResources,
    features: &CgroupFeatures,
) -> Vec<Write> {
    let mut writes = plan_cpu(change, wanted, features.unified);
    if change.memory_limit_in_bytes != 0 || change.memory_swap_limit_in_bytes != 0 {
        writes.extend(plan_memory(current, wanted, features));
    }
    if features.hugetlb {
        let suffix = if features.unified { "max" } else { "limit_in_bytes" };
        for limit in &change.hugepage_limits {
            writes.push(write("hugetlb", format!("hugetlb.{}.{suffix}", limit.page_size), limit.limit));
        }
    }
    if features.unified {
        let mut given: Vec<_> = change.unified.iter().collect();
        given.sort();
        writes.extend(given.into_iter().map(|(file, value)| write("unified", file, value)));
    }
    writes
}

fn plan_cpu(
    change: &v1::LinuxContainerResources,
    wanted: &v1::LinuxContainerResources,
    unified: bool,
) -> Vec<Write> {
    let mut writes = Vec::new();
    if change.cpu_shares > 0 {
        writes.push(match unified {
            true => write("cpu", "cpu.weight", weight(change.cpu_shares)),
            false => write("cpu", "cpu.shares", change.cpu_shares),
        });
    }
    if change.cpu_quota != 0 || change.cpu_period != 0 {
        let period = if wanted.cpu_period > 0 { wanted.cpu_period } else { 100_000 };
        if unified {
            let quota = if wanted.cpu_quota > 0 { wanted.cpu_quota.to_string() } else { "max".to_owned() };
            writes.push(write("cpu", "cpu.max", format!("{quota} {period}")));
        } else {
            writes.push(write("cpu", "cpu.cfs_period_us", period));
            if wanted.cpu_quota != 0 {
                writes.push(write("cpu", "cpu.cfs_quota_us", wanted.cpu_quota));
            }
        }
    }
    for (file, value) in [("cpuset.mems", &change.cpuset_mems), ("cpuset.cpus", &change.cpuset_cpus)] {
        if !value.is_empty() {
            writes.push(write("cpuset", file, value));
        }
    }
    writes
}

fn plan_memory(
    current: &v1::LinuxContainerResources,
    wanted: &v1::LinuxContainerResources,
    features: &CgroupFeatures,
) -> Vec<Write> {
    let limit = wanted.memory_limit_in_bytes;
    let both = swap_limit(wanted);
    let mut writes = Vec::new();
    if features.unified {
        let or_max = |bytes: i64, none: bool| if none { "max".to_owned() } else { bytes.to_string() };
        if limit != 0 {
            writes.push(write("memory", "memory.max", or_max(limit, limit < 0)));
        }
        if features.swap && both != 0 {
            // v2 limits swap alone.
            writes.push(write("memory", "memory.swap.max", or_max((both - limit.max(0)).max(0), both < 0)));
        }
        return writes;
    }
    if limit != 0 {
        writes.push(write("memory", "memory.limit_in_bytes", limit));
    }
    if features.swap && both != 0 {
        writes.push(write("memory", "memory.memsw.limit_in_bytes", both));
        let unlimited = |bytes: i64| if bytes > 0 { bytes } else { i64::MAX };
        // The kernel keeps memory ≤ memory and swap together at every step.
        if unlimited(both) >= unlimited(swap_limit(current)) {
            writes.reverse();
        }
    }
    writes
}

/// cgroup v1 shares (2..262144) as v2 weight (1..10000): one conversion for a container that is made and one that changes.
fn weight(shares: i64) -> u64 {
    orlop_oci::limits::weight_of_shares(shares.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(limit: i64, both: i64) -> v1::LinuxContainerResources {
        v1::LinuxContainerResources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: both,
            ..Default::default()
        }
    }

    fn files(
        change: &v1::LinuxContainerResources,
        current: &v1::LinuxContainerResources,
        unified: bool,
    ) -> Vec<String> {
        let features = CgroupFeatures { unified, swap: true, hugetlb: true, v1_names: Vec::new() };
        let mut wanted = current.clone();
        merge(&mut wanted, change);
        let writes = plan_update(change, current, &wanted, &features);
        writes.iter().map(|write| format!("{}={}", write.file, write.value)).collect()
    }

    #[test]
    fn updates_write_only_what_changed() {
        let change = v1::LinuxContainerResources { cpu_quota: 50_000, ..memory(1 << 20, 0) };
        let current =
            v1::LinuxContainerResources { cpu_period: 200_000, cpu_shares: 512, ..Default::default() };
        assert_eq!(
            files(&change, &current, true),
            ["cpu.max=50000 200000", "memory.max=1048576", "memory.swap.max=0"]
        );
        assert_eq!(
            files(&change, &current, false),
            [
                "cpu.cfs_period_us=200000",
                "cpu.cfs_quota_us=50000",
                "memory.limit_in_bytes=1048576",
                "memory.memsw.limit_in_bytes=1048576"
            ]
        );
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 100, 10_000));
        let rest = v1::LinuxContainerResources {
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 4 }],
            unified: [("memory.high".to_owned(), "9".to_owned()), ("io.weight".to_owned(), "7".to_owned())]
                .into(),
            ..Default::default()
        };
        assert_eq!(
            files(&rest, &current, true),
            ["cpuset.mems=0", "cpuset.cpus=0-1", "hugetlb.2MB.max=4", "io.weight=7", "memory.high=9"]
        );
        assert_eq!(
            files(&rest, &current, false),
            ["cpuset.mems=0", "cpuset.cpus=0-1", "hugetlb.2MB.limit_in_bytes=4"]
        );
    }

    #[test]
    fn memory_never_passes_memory_and_swap_together() {
        for (current, change, v1, v2) in [
            // Growing: the outer limit first. Shrinking: the inner one.
            (memory(10, 10), memory(20, 0), "memsw limit", "max=20 swap=0"),
            (memory(20, 30), memory(10, 15), "limit memsw", "max=10 swap=5"),
            (memory(10, 10), memory(10, -1), "memsw limit", "max=10 swap=max"),
            (memory(10, -1), memory(-1, 0), "memsw limit", "max=max swap=max"),
        ] {
            let order: Vec<&str> = files(&change, &current, false)
                .iter()
                .map(|file| if file.contains("memsw") { "memsw" } else { "limit" })
                .collect();
            let unified: Vec<String> = files(&change, &current, true)
                .iter()
                .map(|file| file.replace("memory.swap.max", "swap").replace("memory.max", "max"))
                .collect();
            assert_eq!(
                (order.join(" ").as_str(), unified.join(" ").as_str()),
                (v1, v2),
                "{current:?} {change:?}"
            );
        }
    }

    #[test]
    fn absent_values_stay() {
        let mut current = v1::LinuxContainerResources { cpu_shares: 512, ..memory(5, 0) };
        merge(&mut current, &v1::LinuxContainerResources { cpu_quota: 50_000, ..Default::default() });
        assert_eq!((current.cpu_quota, current.cpu_shares, current.memory_limit_in_bytes), (50_000, 512, 5));
    }
}
