//! The systemd cgroup driver: a container's control group as a transient scope, so that systemd knows it and does not take it for its own
//! mistake. systemd makes the group and is told the limits that it knows; the rest is done in the group's files, as without it.

mod bus;
mod unit;
mod wire;

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

pub(crate) use bus::{Bus, BusError};
pub(crate) use unit::{Scope, ScopeError};
use wire::{Property, Value};

/// Makes the scope with one first process.
pub(crate) fn start(
    bus: &mut Bus,
    scope: &Scope,
    id: &str,
    pid: u32,
    resources: Option<&LinuxResources>,
    unified: bool,
) -> Result<(), BusError> {
    let mut properties: Vec<Property> = vec![
        ("Description", Value::Text(format!("orlop-oci container {id}"))),
        ("Slice", Value::Text(scope.slice.clone())),
        ("Delegate", Value::Flag(true)),
        ("PIDs", Value::Pids(vec![pid])),
        ("DefaultDependencies", Value::Flag(false)),
        ("CPUAccounting", Value::Flag(true)),
        ("MemoryAccounting", Value::Flag(true)),
        (if unified { "IOAccounting" } else { "BlockIOAccounting" }, Value::Flag(true)),
        ("TasksAccounting", Value::Flag(true)),
    ];
    properties.extend(resources.map(|resources| unit::limits(resources, unified)).unwrap_or_default());
    bus.start_transient_unit(&scope.unit, &properties)
}

/// Tells systemd of new limits, or it would set the old ones again when it next looks at the unit.
pub(crate) fn update(
    bus: &mut Bus,
    unit: &str,
    resources: &LinuxResources,
    unified: bool,
) -> Result<(), BusError> {
    match unit::limits(resources, unified) {
        properties if properties.is_empty() => Ok(()),
        properties => bus.set_unit_properties(unit, &properties),
    }
}

/// systemd is the machine's first process.
pub(crate) fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Where a group is, if its path has systemd's form.
pub(crate) fn path_of(given: &Path) -> Result<Option<PathBuf>, ScopeError> {
    let text = given.to_string_lossy();
    if !text.contains(':') {
        return Ok(None);
    }
    Scope::parse(&text).map(|scope| Some(scope.path()))
}

#[cfg(test)]
mod tests;
