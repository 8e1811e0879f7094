//! `resume`: thaws a paused container.

use anyhow::{Context, bail};

use super::Call;
use super::container::{Container, Status};

pub(super) fn main(call: &Call, id: &str) -> anyhow::Result<()> {
    let container = Container::load(&call.store, id)?;
    let cgroup = container.cgroup()?;
    // A container may also be paused before it was started, and is `created` all the same.
    if container.status()? != Status::Paused && !cgroup.is_frozen() {
        bail!("container not paused");
    }
    cgroup.set_frozen(false).context("failed to thaw the container")
}
