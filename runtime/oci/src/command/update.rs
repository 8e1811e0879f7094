//! `update`: new limits for a running container.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::Call;
use super::arguments::{Limits, Update};
use super::container::{Container, Status};
use crate::cgroup::{Cgroup, Hierarchies};
use crate::limits;
use crate::systemd::{self, Bus};

pub(super) fn main(call: &Call, options: &Update) -> anyhow::Result<()> {
    let container = Container::load(&call.store, &options.id)?;
    if matches!(container.status()?, Status::Stopped | Status::Creating) {
        bail!("container not running");
    }
    let _lock = call.store.lock(&options.id)?;
    let resources = match &options.resources {
        Some(path) => read(path)?,
        None => from_limits(&options.limits)?,
    };
    let hierarchies = Hierarchies::detect_once().context("failed to find the control groups")?;
    let cgroup = hierarchies.cgroup(&container.record.cgroup.to_string_lossy());
    check_before_update(&cgroup, &resources)?;
    if let Some(unit) = &container.record.systemd_unit {
        let told = Bus::system()
            .and_then(|mut bus| systemd::update(&mut bus, unit, &resources, hierarchies.is_unified()));
        told.with_context(|| format!("failed to change the unit {unit}"))?;
    }
    limits::apply(&cgroup, &resources, hierarchies.is_unified())
}

fn read(path: &Path) -> anyhow::Result<LinuxResources> {
    let text = if path == Path::new("-") {
        io::read_to_string(io::stdin().lock()).context("failed to read standard input")?
    } else {
        fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?
    };
    serde_json::from_str(&text).context("failed to parse the resources")
}

fn from_limits(limits: &Limits) -> anyhow::Result<LinuxResources> {
    if limits.l3_cache_schema.is_some() || limits.mem_bw_schema.is_some() {
        bail!("Intel RDT (--l3-cache-schema, --mem-bw-schema) is not supported");
    }
    let bytes = |text: &Option<String>| text.as_deref().map(parse_bytes).transpose();
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(bytes(&limits.memory)?)
        .set_swap(bytes(&limits.memory_swap)?)
        .set_reservation(bytes(&limits.memory_reservation)?);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(limits.cpu_shares)
        .set_quota(limits.cpu_quota)
        .set_period(limits.cpu_period)
        .set_burst(limits.cpu_burst)
        .set_idle(limits.cpu_idle)
        .set_realtime_period(limits.cpu_rt_period)
        .set_realtime_runtime(limits.cpu_rt_runtime)
        .set_cpus(limits.cpuset_cpus.clone())
        .set_mems(limits.cpuset_mems.clone());
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources.set_memory(Some(memory)).set_cpu(Some(cpu));
    if let Some(limit) = limits.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if let Some(weight) = limits.blkio_weight {
        let mut block = LinuxBlockIo::default();
        block.set_weight(Some(weight));
        resources.set_block_io(Some(block));
    }
    Ok(resources)
}

/// `memory.checkBeforeUpdate`: rather no change than the OOM killer.
fn check_before_update(cgroup: &Cgroup, resources: &LinuxResources) -> anyhow::Result<()> {
    let Some(memory) = resources.memory() else { return Ok(()) };
    let limit = memory.limit().and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0);
    let used = cgroup.usage().memory_bytes;
    match limit {
        Some(limit) if memory.check_before_update() == Some(true) && limit < used => {
            bail!("rejecting memory limit {limit}: {used} bytes are in use")
        }
        _ => Ok(()),
    }
}

/// Bytes with an optional unit (as Docker's: k, m, g, t, each 1024 times the one before; a `b` behind it changes nothing).
fn parse_bytes(text: &str) -> anyhow::Result<i64> {
    let lower = text.trim().to_ascii_lowercase();
    if lower == "-1" {
        return Ok(-1);
    }
    let short = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let units = [('k', 10), ('m', 20), ('g', 30), ('t', 40), ('p', 50)];
    let (digits, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((short.strip_suffix(*unit)?, *shift)))
        .unwrap_or((short, 0));
    let number: i64 = digits.trim().parse().with_context(|| format!("invalid size: {text:?}"))?;
    if number < 0 {
        bail!("invalid size: {text:?}");
    }
    number.checked_mul(1 << shift).with_context(|| format!("invalid size: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("100", 100), ("64m", 64 << 20), ("1G", 1 << 30), ("2kb", 2048), ("-1", -1)] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "x", "-2", "9999999999999g"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
