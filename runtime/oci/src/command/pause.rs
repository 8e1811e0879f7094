//! `pause`: freezes every process of a container.

use anyhow::{Context, bail};

use super::Call;
use super::container::{Container, Status};

pub(super) fn main(call: &Call, id: &str) -> anyhow::Result<()> {
    let container = Container::load(&call.store, id)?;
    match container.status()? {
        Status::Running | Status::Created => {}
        Status::Paused | Status::Creating | Status::Stopped => bail!("container not running"),
    }
    container.cgroup()?.set_frozen(true).context("failed to freeze the container")
}
