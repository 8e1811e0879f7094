//! Outside: builds the initramfs, boots it, and judges what comes out of the serial port.

mod archive;
mod kernel;
mod machine;
mod programs;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use crate::task::{TASK_FILE, Task};
use archive::Archive;

/// Runs tests in an emulated machine with cgroup v2.
#[derive(Parser)]
struct Options {
    /// Only tests whose name (`package::target::module::test`) contains this.
    #[arg(default_value = "")]
    filter: String,
    /// Build the tests of the whole workspace, as a run of all tests does: nothing is compiled twice then.
    #[arg(long)]
    workspace: bool,
    /// Debian's runc and crun pass all black-box tests, not only those of cgroup v2.
    #[arg(long)]
    peers: bool,
    /// Longest time for the machine, in seconds.
    #[arg(long, default_value_t = 1200)]
    limit_seconds: u64,
    /// Longest time for one test, in seconds.
    #[arg(long, default_value_t = 300)]
    test_seconds: u64,
    /// Processors of the machine, and tests at the same time.
    #[arg(long, default_value_t = 2)]
    processors: usize,
}

pub(crate) fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().context("failed to find the workspace")?;
    let cache = root.join("target/vm");
    fs::create_dir_all(&cache).context("failed to make target/vm")?;
    let kernel = kernel::prepare(&cache)?;
    let initramfs = cache.join("initramfs");
    build(&initramfs, &kernel, &options, &cache)?;
    let machine = machine::Machine {
        kernel: &kernel.image,
        initramfs: &initramfs,
        console: &cache.join("console.log"),
        processors: options.processors,
        limit: Duration::from_secs(options.limit_seconds),
    };
    report::judge(&machine)
}

fn build(path: &Path, kernel: &kernel::Kernel, options: &Options, cache: &Path) -> anyhow::Result<()> {
    let mut archive = Archive::create(path).context("failed to write the initramfs")?;
    // First: what is below a link needs it.
    add_links(&mut archive)?;
    let programs = programs::add(&mut archive, options.workspace, options.peers, cache)?;
    add_userland(&mut archive)?;
    let own = std::env::current_exe().context("failed to find this program")?;
    archive.copy(&own, Path::new("/init"))?;
    for module in &kernel.modules {
        archive.copy(&module.path, &module.path)?;
    }
    let task = Task {
        modules: kernel.modules.clone(),
        programs,
        filter: options.filter.clone(),
        workers: options.processors,
        test_seconds: options.test_seconds,
    };
    archive.text(Path::new(TASK_FILE), 0o644, &serde_json::to_vec(&task)?)?;
    archive.finish()?;
    Ok(())
}

/// Merged /usr, as Debian has it.
fn add_links(archive: &mut Archive<impl std::io::Write>) -> anyhow::Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        archive.directory(&Path::new("/usr").join(name))?;
        archive.link(&Path::new("/").join(name), &format!("usr/{name}"))?;
    }
    Ok(())
}

/// A small Debian: busybox for what is not there and not worth its libraries.
fn add_userland(archive: &mut Archive<impl std::io::Write>) -> anyhow::Result<()> {
    for name in ["proc", "sys", "dev", "tmp", "run", "var/tmp", "var/lib", "root"] {
        archive.directory(&Path::new("/").join(name))?;
    }
    archive.device(Path::new("/dev/console"), (5, 1))?;
    // Of these, busybox lacks something that the tests or a runtime use.
    for name in ["/usr/bin/ps", "/usr/bin/tar", "/usr/sbin/mke2fs"] {
        programs::add_dynamic(archive, Path::new(name))?;
    }
    let busybox = Path::new("/usr/bin/busybox");
    archive.copy(busybox, busybox).context("failed to add busybox (package busybox-static)")?;
    for applet in kernel::output(Command::new(busybox).arg("--list"))?.lines() {
        archive.link(&PathBuf::from(format!("/usr/bin/{applet}")), "busybox")?;
    }
    for (path, text) in [
        ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("/etc/group", "root:x:0:\ntty:x:5:\n"),
        ("/etc/hosts", "127.0.0.1 localhost\n"),
        ("/etc/resolv.conf", ""),
        ("/etc/hostname", "vm\n"),
    ] {
        archive.text(Path::new(path), 0o644, text.as_bytes())?;
    }
    Ok(())
}
