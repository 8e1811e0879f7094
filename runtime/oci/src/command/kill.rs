//! `kill`: a signal to the first process, or to all.

use std::os::fd::AsFd;

use anyhow::{Context, bail};

use super::Call;
use super::arguments::Kill;
use super::container::{Container, Status};

pub(super) fn main(call: &Call, options: &Kill) -> anyhow::Result<()> {
    let signal = parse_signal(&options.signal)?;
    let container = Container::load(&call.store, &options.id)?;
    if options.all {
        return signal_all(&container, signal);
    }
    let Some(init) = container.init() else {
        // A container that shares its PID namespace may outlive its first process.
        if signal == libc::SIGKILL && has_survivors(&container)? {
            return container.kill_everything();
        }
        bail!("container not running");
    };
    if signal == libc::SIGKILL && !container.has_own_pid_namespace() {
        return container.kill_everything();
    }
    orlop_linux::process::send_signal_to(init.as_fd(), signal).context("unable to signal init")?;
    if signal == libc::SIGKILL && container.status()? == Status::Paused {
        // On v1 the frozen do not die before they are thawed.
        container.cgroup()?.set_frozen(false).context("failed to thaw the container")?;
    }
    Ok(())
}

fn has_survivors(container: &Container) -> anyhow::Result<bool> {
    Ok(!container.has_own_pid_namespace() && !container.cgroup()?.processes().is_empty())
}

fn signal_all(container: &Container, signal: i32) -> anyhow::Result<()> {
    if signal == libc::SIGKILL {
        return container.kill_everything();
    }
    let cgroup = container.cgroup()?;
    if container.status()? == Status::Paused {
        cgroup.signal(signal);
        return Ok(());
    }
    // Frozen, none can start another that we miss. Where nothing runs any more there is nothing to freeze.
    let frozen = cgroup.set_frozen(true).is_ok();
    cgroup.signal(signal);
    if frozen {
        cgroup.set_frozen(false).context("failed to thaw the container")?;
    }
    Ok(())
}

/// A number, or a name with or without SIG.
fn parse_signal(text: &str) -> anyhow::Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        // 0 only asks whether it lives.
        if (0..=libc::SIGRTMAX()).contains(&number) {
            return Ok(number);
        }
        bail!("unknown signal {text:?}");
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str| rest.parse::<i32>().ok();
    let number = match name {
        "RTMIN" => Some(libc::SIGRTMIN()),
        "RTMAX" => Some(libc::SIGRTMAX()),
        _ => match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
            (Some(rest), _) => real_time(rest).map(|offset| libc::SIGRTMIN().saturating_add(offset)),
            (_, Some(rest)) => real_time(rest).map(|offset| libc::SIGRTMAX().saturating_sub(offset)),
            _ => format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32),
        },
    };
    let in_range = |number: &i32| (1..=libc::SIGRTMAX()).contains(number);
    number.filter(in_range).with_context(|| format!("unknown signal {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("0", 0),
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("RTMIN+3", libc::SIGRTMIN() + 3),
            ("SIGRTMAX", 64),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "-1", "65", "NONE", "RTMIN+99"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
