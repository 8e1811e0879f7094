//! What a process is besides its user and its rights: priorities, execution domain, labels of security modules (runtime-spec config.md,
//! "Linux Process"; config-linux.md, "Personality").

use std::fs::File;
use std::io::{self, Write};

use nix::sched::CpuSet;
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Process, Scheduler,
};
use orlop_linux::process::SchedulerAttributes;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// `PER_LINUX32` (personality(2)).
const LINUX_32: u64 = 8;
const PROC_MAGIC: i64 = 0x9fa0;

/// Attributes that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AttributeError {
    /// Eight levels exist.
    #[error("ioPriority.priority {0} is not one of 0 to 7")]
    IoLevel(i64),
    /// A number that its field cannot hold.
    #[error("scheduler.{0} is out of range")]
    Scheduler(&'static str),
    /// A field of another policy.
    #[error("scheduler.{field} is not for the policy {policy}")]
    ForeignField {
        /// The field.
        field: &'static str,
        /// The policy.
        policy: LinuxSchedulerPolicy,
    },
    /// The specification has none.
    #[error("linux.personality.flags are not supported")]
    PersonalityFlags,
    /// No such module in this kernel.
    #[error("{0} is set, but SELinux is disabled or not supported on this machine")]
    NoSelinux(&'static str),
    /// No such module in this kernel.
    #[error("process.apparmorProfile is set, but AppArmor is disabled or not supported on this machine")]
    NoAppArmor,
    /// Neither a number nor a range.
    #[error("{0:?} is not a list of CPUs such as 0-3,7")]
    Cpus(String),
}

/// Checked attributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    io_priority: Option<(u8, u8)>,
    scheduler: Option<SchedulerAttributes>,
    personality: Option<u64>,
    selinux_label: Option<String>,
    apparmor_profile: Option<String>,
}

impl Attributes {
    /// Of a process, in a container with this execution domain.
    pub(crate) fn prepare(
        process: &Process,
        personality: Option<&LinuxPersonality>,
    ) -> Result<Self, AttributeError> {
        let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let attributes = Self {
            io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
            scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
            personality: personality.map(domain).transpose()?,
            selinux_label: named(process.selinux_label()),
            apparmor_profile: named(process.apparmor_profile()),
        };
        if attributes.selinux_label.is_some() && !has_selinux() {
            return Err(AttributeError::NoSelinux("process.selinuxLabel"));
        }
        if attributes.apparmor_profile.is_some() && !has_apparmor() {
            return Err(AttributeError::NoAppArmor);
        }
        Ok(attributes)
    }

    /// Gives them to the calling process, or to the program that it will execute; while it is still privileged. The error says which one
    /// could not be given.
    pub(crate) fn apply(&self) -> Result<(), (&'static str, io::Error)> {
        let done = |what, answer: io::Result<()>| answer.map_err(|error| (what, error));
        if let Some((class, level)) = self.io_priority {
            done("set the I/O priority", orlop_linux::process::set_io_priority(class, level))?;
        }
        if let Some(scheduler) = self.scheduler {
            done("set the scheduler", orlop_linux::process::set_scheduler(scheduler))?;
        }
        if let Some(domain) = self.personality {
            done("set the personality", orlop_linux::process::set_personality(domain))?;
        }
        if let Some(profile) = &self.apparmor_profile {
            let applied = libcontainer::apparmor::apply_profile(profile).map_err(io::Error::other);
            done("apply the AppArmor profile", applied)?;
        }
        if let Some(label) = &self.selinux_label {
            done("set the SELinux label", set_exec_label(label))?;
        }
        Ok(())
    }
}

/// Whether the kernel has it on.
pub(crate) fn has_selinux() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

/// Whether the kernel has it on.
pub(crate) fn has_apparmor() -> bool {
    libcontainer::apparmor::is_enabled().unwrap_or(false)
}

/// Of the next program. `/proc` is the container's by now: it must be a real one, and the file must be its own and not something mounted
/// upon it (CVE-2019-16884, CVE-2023-28642).
fn set_exec_label(label: &str) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = rustix::fs::openat(CWD, "/proc", flags, Mode::empty())?;
    #[allow(clippy::unnecessary_cast, reason = "the type differs between C libraries")]
    if rustix::fs::fstatfs(&proc)?.f_type as i64 != PROC_MAGIC {
        return Err(io::Error::other("/proc of the container is not a proc file system"));
    }
    let path = format!("{}/attr/exec", std::process::id());
    let inside = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let file = rustix::fs::openat2(&proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), inside)?;
    File::from(file).write_all(label.as_bytes())
}

fn io_priority(given: &LinuxIOPriority) -> Result<(u8, u8), AttributeError> {
    let class = match given.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u8::try_from(given.priority()).ok().filter(|level| *level <= 7);
    Ok((class, level.ok_or_else(|| AttributeError::IoLevel(given.priority()))?))
}

fn scheduler(given: &Scheduler) -> Result<SchedulerAttributes, AttributeError> {
    use LinuxSchedulerPolicy::{
        SchedBatch, SchedDeadline, SchedFifo, SchedIdle, SchedIso, SchedOther, SchedRr,
    };
    let policy = *given.policy();
    let number = match policy {
        SchedOther => 0,
        SchedFifo => 1,
        SchedRr => 2,
        SchedBatch => 3,
        SchedIso => 4,
        SchedIdle => 5,
        SchedDeadline => 6,
    };
    let foreign = |field| Err(AttributeError::ForeignField { field, policy });
    let nice = given.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(AttributeError::Scheduler("nice"));
    }
    let priority =
        u32::try_from(given.priority().unwrap_or(0)).map_err(|_| AttributeError::Scheduler("priority"))?;
    if priority != 0 && !matches!(policy, SchedFifo | SchedRr) {
        return foreign("priority");
    }
    let times = [
        ("runtime", given.runtime().unwrap_or(0)),
        ("deadline", given.deadline().unwrap_or(0)),
        ("period", given.period().unwrap_or(0)),
    ];
    if let Some((field, _)) = times.iter().find(|(_, time)| *time != 0 && policy != SchedDeadline) {
        return foreign(field);
    }
    let bit = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let mut attributes = SchedulerAttributes::default();
    attributes.policy = number;
    attributes.flags = given.flags().iter().flatten().map(bit).fold(0, |all, bit: u64| all | bit);
    attributes.nice = nice;
    attributes.priority = priority;
    [attributes.runtime, attributes.deadline, attributes.period] = times.map(|(_, time)| time);
    Ok(attributes)
}

fn domain(given: &LinuxPersonality) -> Result<u64, AttributeError> {
    if given.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(AttributeError::PersonalityFlags);
    }
    Ok(match given.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => LINUX_32,
    })
}

/// A list such as `0-3,7` (config.md, `execCPUAffinity`).
pub(crate) fn cpus(list: &str) -> Result<CpuSet, AttributeError> {
    let refused = || AttributeError::Cpus(list.to_owned());
    let mut set = CpuSet::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|cpu| *cpu < CpuSet::count());
        let (first, last) = number(first).zip(number(last)).filter(|(a, b)| a <= b).ok_or_else(refused)?;
        for cpu in first..=last {
            set.set(cpu).map_err(|_| refused())?;
        }
    }
    if (0..CpuSet::count()).all(|cpu| !set.is_set(cpu).unwrap_or(false)) {
        return Err(refused());
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(json: &str) -> Result<Attributes, AttributeError> {
        let process = format!(r#"{{"user":{{}},"args":["x"],"cwd":"/",{json}}}"#);
        Attributes::prepare(&serde_json::from_str(&process).unwrap(), None)
    }

    #[test]
    fn reads() {
        let read = prepare(
            r#""ioPriority":{"class":"IOPRIO_CLASS_IDLE","priority":7},
            "scheduler":{"policy":"SCHED_DEADLINE","runtime":1,"deadline":2,"period":3,"flags":["SCHED_FLAG_RECLAIM"]}"#,
        )
        .unwrap();
        assert_eq!(read.io_priority, Some((3, 7)));
        let scheduler = read.scheduler.unwrap();
        assert_eq!((scheduler.policy, scheduler.flags, scheduler.period), (6, 2, 3));
        let other = prepare(r#""scheduler":{"policy":"SCHED_BATCH","nice":-3},"selinuxLabel":"""#).unwrap();
        assert_eq!(other.scheduler.unwrap().nice, -3);
        assert!(cpus("0-1, 1").unwrap().is_set(1).unwrap());
    }

    #[test]
    fn refuses() {
        for json in [
            r#""ioPriority":{"class":"IOPRIO_CLASS_BE","priority":8}"#,
            r#""scheduler":{"policy":"SCHED_OTHER","priority":1}"#,
            r#""scheduler":{"policy":"SCHED_FIFO","priority":1,"period":5}"#,
            r#""scheduler":{"policy":"SCHED_OTHER","nice":20}"#,
        ] {
            assert!(prepare(json).is_err(), "{json}");
        }
        for list in ["", "x", "3-1", "0-99999999", "-1"] {
            assert!(cpus(list).is_err(), "{list}");
        }
        let persona: LinuxPersonality = serde_json::from_str(r#"{"domain":"LINUX","flags":["X"]}"#).unwrap();
        assert!(domain(&persona).is_err());
    }
}
