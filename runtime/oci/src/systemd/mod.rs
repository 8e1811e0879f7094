//! The systemd cgroup driver: a container's control group as a transient scope, so that systemd knows it and does not take it for its own
//! mistake. systemd makes the group and is told the limits that it knows; the rest is done in the group's files, as without it.

mod bus;
mod unit;
mod wire;

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

pub(crate) use bus::Bus;
pub use bus::{ADDRESS_VARIABLE, BusError};
pub use unit::{Scope, ScopeError, slice_path};
use wire::{Property, Value};

/// Whether there is a bus that would take a request.
///
/// # Errors
/// [`BusError`] says what is wrong with it.
pub fn check() -> Result<(), BusError> {
    Bus::system().map(drop)
}

/// Makes a scope around a process that is no container's.
///
/// # Errors
/// The bus cannot be reached, or systemd refused.
pub fn enclose(scope: &Scope, description: &str, pid: u32, unified: bool) -> Result<(), BusError> {
    start(&mut Bus::system()?, scope, description, pid, None, unified)
}

/// Tells systemd the limits of a container's scope; see [`update`].
///
/// # Errors
/// The bus cannot be reached, or systemd refused.
pub fn change(unit: &str, resources: &LinuxResources, unified: bool) -> Result<(), BusError> {
    update(&mut Bus::system()?, unit, resources, unified)
}

/// Ends units; those that have ended are no error.
///
/// # Errors
/// The bus cannot be reached, or systemd refused one.
pub fn stop<'u>(units: impl IntoIterator<Item = &'u str>) -> Result<(), BusError> {
    let mut bus = Bus::system()?;
    units.into_iter().try_for_each(|unit| bus.stop_unit(unit))
}

/// Makes the scope with one first process.
pub(crate) fn start(
    bus: &mut Bus,
    scope: &Scope,
    description: &str,
    pid: u32,
    resources: Option<&LinuxResources>,
    unified: bool,
) -> Result<(), BusError> {
    let mut properties: Vec<Property> = vec![
        ("Description", Value::Text(description.to_owned())),
        // A unit that failed, by the OOM killer for example, would stay until somebody resets it.
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
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
///
/// # Errors
/// It has three parts, but they name no scope.
pub fn path_of(given: &Path) -> Result<Option<PathBuf>, ScopeError> {
    let text = given.to_string_lossy();
    if !text.contains(':') {
        return Ok(None);
    }
    Scope::parse(&text).map(|scope| Some(scope.path()))
}

#[cfg(test)]
mod tests;
