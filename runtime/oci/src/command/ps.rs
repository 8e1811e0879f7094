//! `ps`: the processes of a container.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::Call;
use super::arguments::{Format, Ps};
use super::container::Container;

pub(super) fn main(call: &Call, options: &Ps) -> anyhow::Result<()> {
    let container = Container::load(&call.store, &options.id)?;
    let pids = container.cgroup()?.processes();
    match options.format {
        Format::Json => super::print(&format!("{}\n", serde_json::to_string(&pids)?)),
        Format::Table => {
            let given: Vec<&str> = options.options.iter().map(String::as_str).collect();
            let given = if given.is_empty() { vec!["-ef"] } else { given };
            let output = Command::new("ps")
                .args(given)
                .stdin(Stdio::null())
                .stderr(Stdio::inherit())
                .output()
                .context("failed to run ps")?;
            if !output.status.success() {
                bail!("ps failed: {}", output.status);
            }
            super::print(&of_processes(&String::from_utf8_lossy(&output.stdout), &pids)?)
        }
    }
}

/// The title and the lines whose PID is one of ours.
fn of_processes(table: &str, pids: &[u32]) -> anyhow::Result<String> {
    let mut lines = table.lines();
    let title = lines.next().unwrap_or_default();
    let column = title
        .split_whitespace()
        .position(|name| name == "PID")
        .context("couldn't find PID field in ps output")?;
    let is_ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse::<u32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    Ok(std::iter::once(title).chain(lines.filter(is_ours)).fold(String::new(), |all, line| all + line + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_containers_lines() {
        let table = "UID   PID  PPID CMD\nroot    1     0 init\nroot   12     1 a 1\n";
        assert_eq!(of_processes(table, &[12]).unwrap(), "UID   PID  PPID CMD\nroot   12     1 a 1\n");
        assert!(of_processes("A B\n", &[1]).is_err());
    }
}
