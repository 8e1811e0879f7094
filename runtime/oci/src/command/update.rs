//! `update`: new limits for a running container.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::Call;
use super::arguments::{Limits, Update};
use super::container::{Container, Status};
use super::limits::{Write, parse_bytes, plan};
use crate::cgroup::{Cgroup, Hierarchies};

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
    let hierarchies = Hierarchies::detect().context("failed to find the control groups")?;
    let cgroup = hierarchies.cgroup(&container.record.cgroup.to_string_lossy());
    check_before_update(&cgroup, &resources)?;
    let writes = plan(&resources, hierarchies.is_unified(), memory_limit(&cgroup))?;
    apply(&cgroup, writes)
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

/// Bytes; nothing when there is no limit.
fn memory_limit(cgroup: &Cgroup) -> Option<i64> {
    let (directory, unified) = cgroup.controller_directory("memory")?;
    let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
    fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
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

/// Limits that depend on each other (memory, and memory with swap; CPU quota and period) fail in one order and pass in the other, so what
/// the kernel refuses is tried once more when the rest is written.
fn apply(cgroup: &Cgroup, writes: Vec<Write>) -> anyhow::Result<()> {
    let mut refused = Vec::new();
    for write in writes {
        match apply_one(cgroup, &write) {
            Err(error) if is_order(&error) => refused.push(write),
            other => other.with_context(|| described(&write))?,
        }
    }
    for write in refused {
        apply_one(cgroup, &write).with_context(|| described(&write))?;
    }
    Ok(())
}

fn described(write: &Write) -> String {
    format!("failed to write {:?} to {}", write.value, write.file)
}

fn is_order(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBUSY))
}

fn apply_one(cgroup: &Cgroup, write: &Write) -> io::Result<()> {
    let Some((directory, _)) = cgroup.controller_directory(write.controller) else {
        let text = format!("the container is in no {} control group", write.controller);
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    };
    let path = directory.join(&write.file);
    if write.optional && !path.exists() {
        return Ok(());
    }
    fs::write(path, &write.value)
}
