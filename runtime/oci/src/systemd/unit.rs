//! Names and properties of a container's scope. Pure.

use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;

use super::wire::{Property, Value};

/// A path that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// Not three parts.
    #[error("cgroupsPath {0:?} is not of the form slice:prefix:name, which --systemd-cgroup wants")]
    Form(String),
    /// systemd.slice(5) says which names there are.
    #[error("{0:?} is not the name of a slice")]
    Slice(String),
    /// It would be a path.
    #[error("{0:?} is not the name of a unit")]
    Unit(String),
}

/// A container's unit and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// `….scope`
    pub unit: String,
    /// `….slice`
    pub slice: String,
}

impl Scope {
    /// From `slice:prefix:name`; an empty slice is `system.slice`.
    ///
    /// # Errors
    /// Not of this form, or names that systemd does not take.
    pub fn parse(path: &str) -> Result<Self, ScopeError> {
        let parts: Vec<&str> = path.split(':').collect();
        let [slice, prefix, name] = parts[..] else { return Err(ScopeError::Form(path.to_owned())) };
        let unit = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        // Characters of unit names (systemd.unit(5)).
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\".contains(&byte);
        if name.is_empty() || unit.len() > 255 || !unit.bytes().all(is_allowed) {
            return Err(ScopeError::Unit(unit));
        }
        let slice = if slice.is_empty() { "system.slice" } else { slice }.to_owned();
        slice_path(&slice).ok_or_else(|| ScopeError::Slice(slice.clone()))?;
        Ok(Self { unit, slice })
    }

    /// Below each hierarchy's root.
    pub fn path(&self) -> PathBuf {
        slice_path(&self.slice).unwrap_or_else(|| PathBuf::from("/")).join(&self.unit)
    }
}

/// Where a slice is below each hierarchy's root, if it is one: `a-b.slice` is in `a.slice` (systemd.slice(5)).
pub fn slice_path(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice")?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Some(path);
    }
    let mut prefix = String::new();
    for part in name.split('-') {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\".contains(&byte);
        if part.is_empty() || !part.bytes().all(is_allowed) {
            return None;
        }
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
    }
    Some(path)
}

/// Limits that systemd has properties for, as runc maps them.
pub(super) fn limits(resources: &LinuxResources, unified: bool) -> Vec<Property> {
    let mut properties = Vec::new();
    // 0 is "not set"; below it there is no limit.
    let number = |value: Option<i64>| {
        value.filter(|value| *value != 0).map(|value| Value::Number(u64::try_from(value).unwrap_or(u64::MAX)))
    };
    let mut add = |name, value: Option<Value>| properties.extend(value.map(|value| (name, value)));
    if let Some(memory) = resources.memory() {
        add(if unified { "MemoryMax" } else { "MemoryLimit" }, number(memory.limit()));
        if unified {
            add("MemoryLow", number(memory.reservation()));
            // On v2 swap is counted alone.
            let swap = match (memory.swap(), memory.limit()) {
                (Some(swap), Some(limit)) if swap >= limit && limit > 0 => {
                    u64::try_from(swap - limit).ok().map(Value::Number)
                }
                (Some(-1), _) => Some(Value::Number(u64::MAX)),
                _ => None,
            };
            add("MemorySwapMax", swap);
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            let weight = crate::limits::weight_of_shares(shares);
            let (name, value) = if unified { ("CPUWeight", weight) } else { ("CPUShares", shares) };
            add(name, Some(Value::Number(value)));
        }
        let period = cpu.period().filter(|period| *period != 0);
        if unified {
            add("CPUQuotaPeriodUSec", period.map(Value::Number));
            add("AllowedCPUs", cpu.cpus().as_deref().and_then(bits).map(Value::Bits));
            add("AllowedMemoryNodes", cpu.mems().as_deref().and_then(bits).map(Value::Bits));
        }
        let quota = cpu.quota().filter(|quota| *quota != 0);
        add("CPUQuotaPerSecUSec", quota.map(|quota| Value::Number(per_second(quota, period))));
    }
    if let Some(pids) = resources.pids() {
        add("TasksMax", number(Some(pids.limit())));
    }
    if let Some(weight) =
        resources.block_io().as_ref().and_then(|block| block.weight()).filter(|weight| *weight != 0)
        && !unified
    {
        add("BlockIOWeight", Some(Value::Number(weight.into())));
    }
    properties
}

/// systemd counts in hundredths of a CPU.
fn per_second(quota: i64, period: Option<u64>) -> u64 {
    const STEP: u64 = 10_000;
    let Ok(quota) = u64::try_from(quota) else { return u64::MAX };
    let exact = quota.saturating_mul(1_000_000) / period.unwrap_or(100_000);
    exact.checked_next_multiple_of(STEP).unwrap_or(u64::MAX)
}

/// A list such as `0-3,7`, lowest bit first.
fn bits(list: &str) -> Option<Vec<u8>> {
    const BITS_LIMIT: usize = 1 << 16;
    let mut set: Vec<u8> = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= BITS_LIMIT {
            return None;
        }
        if set.len() <= last / 8 {
            set.resize(last / 8 + 1, 0);
        }
        for bit in first..=last {
            set[bit / 8] |= 1 << (bit % 8);
        }
    }
    (!set.is_empty()).then_some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes() {
        let scope = Scope::parse("kubepods-burstable-pod1.slice:cri:abc").unwrap();
        assert_eq!(scope.unit, "cri-abc.scope");
        let path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-abc.scope";
        assert_eq!(scope.path().to_str().unwrap(), path);
        assert_eq!(Scope::parse("::x").unwrap().path().to_str().unwrap(), "/system.slice/x.scope");
        assert_eq!(Scope::parse("-.slice:p:x").unwrap().path().to_str().unwrap(), "/p-x.scope");
        for bad in [
            "a",
            "a:b",
            "a:b:c:d",
            "a:b:c",
            "a--b.slice:p:x",
            "../x.slice:p:n",
            "a.slice:p:../x",
            "a.slice:p:",
        ] {
            assert!(Scope::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_are_mapped() {
        let resources: LinuxResources = serde_json::from_str(
            r#"{"memory":{"limit":100,"swap":300,"reservation":50},"cpu":{"shares":1024,"quota":5500,"period":10000,"cpus":"0,9-10","mems":"0"},
                "pids":{"limit":-1},"blockIO":{"weight":500}}"#,
        )
        .unwrap();
        let number = Value::Number;
        assert_eq!(
            limits(&resources, true),
            [
                ("MemoryMax", number(100)),
                ("MemoryLow", number(50)),
                ("MemorySwapMax", number(200)),
                ("CPUWeight", number(100)),
                ("CPUQuotaPeriodUSec", number(10_000)),
                ("AllowedCPUs", Value::Bits(vec![1, 6])),
                ("AllowedMemoryNodes", Value::Bits(vec![1])),
                ("CPUQuotaPerSecUSec", number(550_000)),
                ("TasksMax", number(u64::MAX)),
            ]
        );
        let names: Vec<&str> = limits(&resources, false).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["MemoryLimit", "CPUShares", "CPUQuotaPerSecUSec", "TasksMax", "BlockIOWeight"]);
        assert_eq!(per_second(1, Some(3)), 340_000);
        assert_eq!(per_second(-1, None), u64::MAX);
    }
}
