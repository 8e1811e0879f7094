//! Limits of containers: `linux.resources` to files of control groups, when a container is made (v2) and when they change.
//!
//! libcontainer's own way cannot be used for a change: on v1 it sets the device policy anew each time, to one without rules. On v2 it is not used
//! for creation either: it takes a swap limit that leaves no swap for none at all, and does not know RDMA.

mod plan;

use std::fs;
use std::io;

use anyhow::Context;
use oci_spec::runtime::LinuxResources;

use crate::cgroup::Cgroup;
pub use plan::weight_of_shares;
use plan::{Present, Without, Write};

/// Sets what is set in `resources`, but for the device policy. What cannot be had is an error that names the file.
pub fn apply(cgroup: &Cgroup, resources: &LinuxResources, unified: bool) -> anyhow::Result<()> {
    write_all(cgroup, plan::plan(resources, unified, &present(cgroup))?)
}

fn present(cgroup: &Cgroup) -> Present {
    let read = |controller: &str, v1: &str, v2: &str| {
        let (directory, unified) = cgroup.controller_directory(controller)?;
        fs::read_to_string(directory.join(if unified { v2 } else { v1 })).ok()
    };
    let quota = read("cpu", "cpu.cfs_quota_us", "cpu.max");
    Present {
        memory: read("memory", "memory.limit_in_bytes", "memory.max")
            .and_then(|text| text.trim().parse().ok()),
        quota: quota.and_then(|text| text.split_whitespace().next().map(str::to_owned)),
    }
}

/// Limits that depend on each other (memory, and memory with swap; CPU quota and period) fail in one order and pass in the other, so what
/// the kernel refuses is tried once more when the rest is written.
fn write_all(cgroup: &Cgroup, writes: Vec<Write>) -> anyhow::Result<()> {
    let mut refused = Vec::new();
    for write in writes {
        match write_one(cgroup, &write) {
            Err(error) if is_order(&error) => refused.push(write),
            other => other.with_context(|| described(&write))?,
        }
    }
    for write in refused {
        write_one(cgroup, &write).with_context(|| described(&write))?;
    }
    Ok(())
}

fn described(write: &Write) -> String {
    format!("failed to write {:?} to {}", write.value, write.file)
}

fn is_order(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBUSY))
}

fn write_one(cgroup: &Cgroup, write: &Write) -> io::Result<()> {
    let Some((directory, _)) = cgroup.controller_directory(write.controller) else {
        let text = format!("the container is in no {} control group", write.controller);
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    };
    let path = directory.join(&write.file);
    match &write.without {
        Without::Skip if !path.exists() => Ok(()),
        Without::Instead(file, value) if !path.exists() => fs::write(directory.join(file), value),
        Without::Skip | Without::Instead(..) | Without::Fail => fs::write(path, &write.value),
    }
}
