//! `delete`: everything that `create` made goes.

use anyhow::{Context, bail};

use super::Call;
use super::arguments::Delete;
use super::container::{Container, DEATH_DEADLINE, Status};
use super::store::Lock;
use crate::hooks::{self, Kind};
use crate::systemd::Bus;

pub(super) fn main(call: &Call, options: &Delete) -> anyhow::Result<()> {
    let found = match call.store.lock(&options.id) {
        Ok(lock) => Container::load(&call.store, &options.id).map(|container| (container, lock)),
        Err(error) => Err(error),
    };
    let (container, lock) = match found {
        Ok(found) => found,
        Err(error) if options.force && error.to_string() == "container does not exist" => {
            // What a create that died left behind.
            return call.store.remove(&options.id).context("failed to remove the state directory");
        }
        Err(error) => return Err(error),
    };
    match container.status()? {
        Status::Stopped | Status::Created => {}
        // Nobody makes it any more: we have the lock.
        Status::Creating => {}
        Status::Running | Status::Paused if options.force => {}
        status @ (Status::Running | Status::Paused) => {
            bail!("cannot delete container {} that is not stopped: {}", options.id, status.name())
        }
    }
    destroy(call, &container, lock)
}

/// Kills what is left, removes control groups and state, and runs the last hooks. May be repeated when it fails.
pub(super) fn destroy(call: &Call, container: &Container, lock: Lock) -> anyhow::Result<()> {
    let cgroup = container.cgroup()?;
    let dead = container.is_known_dead();
    if let Some(unit) = &container.record.systemd_unit {
        if !dead {
            container.kill_and_wait()?;
        }
        let stopped = Bus::system().and_then(|mut bus| bus.stop_unit(unit));
        // The group goes all the same, and with its last process systemd's unit.
        if let Err(error) = stopped {
            call.log.warning(&format!("failed to stop the unit {unit}: {:#}", anyhow::Error::new(error)));
        }
    }
    let removed = if dead {
        // Its processes went with its PID namespace; whoever is in the group now came later and is somebody else's.
        cgroup.remove_empty(DEATH_DEADLINE)
    } else {
        container.kill_and_wait()?;
        cgroup.remove(DEATH_DEADLINE)
    };
    removed.context("failed to remove the control groups")?;
    let spec = container.spec();
    let mut state = container.hook_state("stopped");
    state.pid = 0;
    call.store.remove(&container.record.id).context("failed to remove the state directory")?;
    drop(lock);
    // Hooks of this kind may fail; the container is gone all the same (runtime-spec runtime.md, "Lifecycle").
    let hooks = spec.ok().and_then(|spec| spec.hooks().clone());
    for hook in hooks.iter().filter_map(|hooks| hooks.poststop().as_ref()).flatten() {
        if let Err(error) = hooks::run(Kind::Poststop, hook, &state, &container.record.bundle, None) {
            call.log.warning(&error.to_string());
        }
    }
    Ok(())
}
