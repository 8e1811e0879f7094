//! The OCI runtimes alone: `run` and `exec` of /bin/true by command line, all three in turn.
//!
//! On a thread with a mount namespace of its own, where the state directories are in memory, as `/run` is, and where crun does not see the
//! second hierarchy of a machine with both kinds of control groups, which it refuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

use crate::interrupt;
use crate::report::{Measure, Row};
use crate::sample::Samples;

const BUSYBOX: &str = "/bin/busybox";
/// busybox takes the kernel's kilobytes for pages of 4 and multiplies.
const PAGES_TAKEN: f64 = 4.0;
const VERBS: [&str; 2] = ["run", "exec"];

/// One runtime and what was measured of it, by verb.
struct Subject {
    name: &'static str,
    program: PathBuf,
    wall: [Samples; 2],
    cpu: [Samples; 2],
    /// Of any one process, in 10^6 bytes.
    peak: [f64; 2],
}

/// Medians of `rounds` calls each.
pub(crate) fn measure(rounds: usize, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let measured = std::thread::scope(|scope| scope.spawn(|| alone(rounds)).join());
    let subjects = measured.map_err(|_| anyhow::anyhow!("the measuring thread panicked"))??;
    let [ours, crun, runc] = subjects;
    for (at, verb) in VERBS.into_iter().enumerate() {
        for (peer, reference) in [(&crun, "crun, same bundle"), (&runc, "runc, same bundle")] {
            let time = |samples: &[Samples; 2]| Measure::Time(samples[at].clone());
            let mut add = |what: &str, ours: Measure, theirs: Measure| {
                let what = format!("OCI {verb} of /bin/true, {what}");
                rows.push(Row { what, target: None, ours, reference: Some((theirs, reference)) });
            };
            add("wall", time(&ours.wall), time(&peer.wall));
            add("CPU of all processes", time(&ours.cpu), time(&peer.cpu));
            add("peak memory of one process", Measure::Size(ours.peak[at]), Measure::Size(peer.peak[at]));
        }
    }
    Ok(())
}

fn alone(rounds: usize) -> anyhow::Result<[Subject; 3]> {
    let directory = tempfile::tempdir()?;
    own_mounts(directory.path())?;
    let place = directory.path().join("state");
    let ours = place.join("orlop-oci");
    std::os::unix::fs::symlink(orlop_tests::orlop_binary(), &ours)?;
    let mut subjects =
        [("ours", ours), ("crun", "crun".into()), ("runc", "runc".into())].map(|(name, program)| Subject {
            name,
            program,
            wall: Default::default(),
            cpu: Default::default(),
            peak: [0.0; 2],
        });
    let (once, long) = (bundle(&place, "once", "/bin/true")?, bundle(&place, "long", "/bin/sleep")?);
    for subject in &subjects {
        call(
            subject.command(&place).args(["run", "--detach", "--bundle"]).arg(&long).arg(subject.id("long")),
        )?;
    }
    let measured = rounds_of(rounds, &mut subjects, &place, &once);
    for subject in &subjects {
        // What a failed round left as well; there is none after good ones.
        let _ = call(subject.command(&place).args(["delete", "--force"]).arg(subject.id("once")));
        call(subject.command(&place).args(["delete", "--force"]).arg(subject.id("long")))?;
    }
    measured?;
    umount2(&place, MntFlags::MNT_DETACH)?;
    Ok(subjects)
}

fn rounds_of(rounds: usize, subjects: &mut [Subject], place: &Path, once: &Path) -> anyhow::Result<()> {
    for round in 0..=rounds * 2 {
        interrupt::check()?;
        for subject in &mut *subjects {
            for at in 0..VERBS.len() {
                let mut command = subject.command(place);
                match at {
                    0 => command.args(["run", "--bundle"]).arg(once).arg(subject.id("once")),
                    _ => command.args(["exec", &subject.id("long"), "/bin/true"]),
                };
                let (wall, cpu) = timed(&mut command)?;
                subject.peak[at] = subject.peak[at].max(peak(&command)?);
                // The first round warms caches up and does not count, for anybody.
                if round > 0 {
                    subject.wall[at].push(wall);
                    subject.cpu[at].push(cpu);
                }
            }
        }
    }
    Ok(())
}

impl Subject {
    fn id(&self, name: &str) -> String {
        format!("orlop-perf-{}-{}-{name}", std::process::id(), self.name)
    }

    fn command(&self, place: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(place.join(self.name));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// Wall and CPU time, of the call and of what it waited for.
fn timed(command: &mut Command) -> anyhow::Result<(Duration, Duration)> {
    let used = || -> anyhow::Result<Duration> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let microseconds = [usage.user_time(), usage.system_time()]
            .map(|time| time.tv_sec() * 1_000_000 + time.tv_usec())
            .iter()
            .sum::<i64>();
        Ok(Duration::from_micros(u64::try_from(microseconds)?))
    };
    let (before, started) = (used()?, Instant::now());
    call(command)?;
    Ok((started.elapsed(), used()?.saturating_sub(before)))
}

fn call(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("failed to start {command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// The same call below busybox, whose own memory is small: a child begins with what its starter had (getrusage(2)).
fn peak(command: &Command) -> anyhow::Result<f64> {
    let mut outer = Command::new(BUSYBOX);
    outer.args(["time", "-f", "%M"]).arg(command.get_program()).args(command.get_args());
    let output = outer.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let kilobytes: f64 = text
        .trim()
        .lines()
        .last()
        .unwrap_or_default()
        .parse()
        .with_context(|| format!("{outer:?}: {text}"))?;
    Ok(kilobytes / PAGES_TAKEN * 1024.0 / 1e6)
}

fn own_mounts(directory: &Path) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let place = directory.join("state");
    std::fs::create_dir(&place)?;
    mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let second = Path::new("/sys/fs/cgroup/unified");
    if second.join("cgroup.procs").exists() {
        umount2(second, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// A bundle as `runc spec` writes it, without a terminal.
fn bundle(place: &Path, name: &str, program: &str) -> anyhow::Result<PathBuf> {
    let bundle = place.join(name);
    std::fs::create_dir_all(bundle.join("rootfs/bin"))?;
    std::fs::copy(BUSYBOX, bundle.join("rootfs/bin/busybox"))?;
    for link in ["true", "sleep"] {
        std::os::unix::fs::symlink("busybox", bundle.join("rootfs/bin").join(link))?;
    }
    call(Command::new("runc").args(["spec", "--bundle"]).arg(&bundle))?;
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!([program, "1000"]);
    config["process"]["rlimits"] = json!([]);
    std::fs::write(path, config.to_string())?;
    Ok(bundle)
}
