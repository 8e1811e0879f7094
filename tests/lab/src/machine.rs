use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::command::{run, try_run};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A machine of the lab: a network namespace with one address and no way out.
#[derive(Debug)]
pub struct Machine {
    netns: String,
}

impl Machine {
    /// A new machine with the address 192.0.2.10/24.
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let netns = format!("olab-{}-{number}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &netns]));
        let machine = Self { netns };
        machine.run(&["ip", "link", "set", "lo", "up"]);
        machine.run(&["ip", "link", "add", "uplink0", "type", "bridge"]);
        machine.run(&["ip", "address", "add", "192.0.2.10/24", "dev", "uplink0"]);
        machine.run(&["ip", "link", "set", "uplink0", "up"]);
        machine
    }

    /// A command that runs in the machine's network namespace and nowhere else.
    pub fn command(&self, program: &str) -> Command {
        // Not `ip netns exec`: that hides mounts from everybody else.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg("--").arg(program);
        command
    }

    /// Moves the calling thread into the machine's network namespace, for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> std::io::Result<()> {
        let netns = std::fs::File::open(format!("/run/netns/{}", self.netns))?;
        Ok(nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs a command in the machine; it must succeed.
    pub fn run(&self, words: &[&str]) -> String {
        run(self.command(words[0]).args(&words[1..]))
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = try_run(Command::new("ip").args(["netns", "delete", &self.netns]), "");
    }
}
