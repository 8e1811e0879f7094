//! What the host asks of the guest, and what the guest answers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the guest finds its [`Task`].
pub(crate) const TASK_FILE: &str = "/etc/orlop-vm.json";
/// Where the guest writes [`Event`]s: the second serial port. The first has the kernel's messages.
pub(crate) const EVENT_DEVICE: &str = "/dev/ttyS1";

/// All that is to be done.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Kernel modules, in the order of loading.
    pub(crate) modules: Vec<Module>,
    /// Test executables.
    pub(crate) programs: Vec<Program>,
    /// Only tests whose name (`program::test`) contains this.
    pub(crate) filter: String,
    /// Tests at the same time.
    pub(crate) workers: usize,
    /// Longest time for one test.
    pub(crate) test_seconds: u64,
}

/// A kernel module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Module {
    /// The file.
    pub(crate) path: PathBuf,
    /// As modprobe takes them.
    pub(crate) parameters: String,
}

/// One test executable (libtest's command line).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    /// For people: package, target and subject.
    pub(crate) name: String,
    /// The executable.
    pub(crate) path: PathBuf,
    /// Its package's directory.
    pub(crate) directory: PathBuf,
    /// Additions to the environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// Only tests whose name contains this.
    pub(crate) only: String,
}

/// One line of the guest's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// The machine is up.
    Booted {
        /// Release of the kernel.
        kernel: String,
        /// Content of the root's `cgroup.controllers`.
        controllers: String,
        /// Tests that will run.
        tests: usize,
    },
    /// A test ended.
    Test {
        /// `program::test`.
        name: String,
        /// How.
        outcome: Outcome,
        /// How long it took.
        millis: u64,
        /// What it wrote, when it failed or skipped; its end, when that is long.
        output: String,
    },
    /// Something went wrong outside of any test.
    Problem {
        /// What.
        text: String,
    },
    /// Everything was run.
    End,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Passed.
    Passed,
    /// Passed after saying that this machine lacks something.
    Skipped,
    /// Failed.
    Failed,
    /// Was killed at its time limit.
    TimedOut,
    /// Failed beside others, and will be run again alone.
    Retried,
}
