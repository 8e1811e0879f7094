//! runc's command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(
    name = "orlop-oci",
    about = "The OCI runtime of Orlop, with runc's command line",
    disable_version_flag = true
)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// Where the state of containers is kept.
    #[arg(long, global = true, default_value = "/run/orlop-oci")]
    pub(super) root: PathBuf,
    /// Errors are appended to this file too.
    #[arg(long, global = true)]
    pub(super) log: Option<PathBuf>,
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub(super) log_format: LogFormat,
    /// More in the log.
    #[arg(long, global = true)]
    pub(super) debug: bool,
    /// Let systemd make the control groups.
    #[arg(long, global = true)]
    pub(super) systemd_cgroup: bool,
    #[arg(long, global = true, default_value = "auto", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) rootless: String,
    /// Accepted for old callers.
    #[arg(long, global = true, hide = true)]
    pub(super) criu: Option<PathBuf>,
    /// Prints the version.
    #[arg(long, short)]
    pub(super) version: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Makes a container that waits to be started.
    Create(Create),
    /// Starts the program of a created container.
    Start { id: String },
    /// Makes, starts, and waits unless detached.
    Run(Run),
    /// Prints the state of a container.
    State { id: String },
    /// Sends a signal to a container.
    Kill(Kill),
    /// Removes a stopped container.
    Delete(Delete),
    /// Runs one more process in a container.
    Exec(Exec),
    /// Lists the processes of a container.
    Ps(Ps),
    /// Lists the containers.
    #[command(alias = "ls")]
    List(List),
    /// Prints what a container uses and its OOM events.
    Events(Events),
    /// Freezes every process of a container.
    Pause { id: String },
    /// Thaws a paused container.
    Resume { id: String },
    /// Changes the limits of a container.
    Update(Update),
    /// Prints what this runtime can do.
    Features,
    /// Writes a config.json to start from.
    Spec(SpecFile),
    /// Not supported.
    #[command(disable_help_flag = true)]
    Checkpoint(Ignored),
    /// Not supported.
    #[command(disable_help_flag = true)]
    Restore(Ignored),
}

#[derive(Debug, Args)]
pub(super) struct Ignored {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) _arguments: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Directory with config.json.
    #[arg(long, short, default_value = ".")]
    pub(super) bundle: PathBuf,
    /// Unix socket that takes the terminal's master side.
    #[arg(long)]
    pub(super) console_socket: Option<PathBuf>,
    /// The first process's pid is written here.
    #[arg(long)]
    pub(super) pid_file: Option<PathBuf>,
    /// Unix socket that takes a pidfd of the first process.
    #[arg(long)]
    pub(super) pidfd_socket: Option<PathBuf>,
    /// Descriptors beyond standard error that the container keeps.
    #[arg(long, default_value_t = 0)]
    pub(super) preserve_fds: u32,
    /// Change the root by moving a mount (in an initramfs).
    #[arg(long)]
    pub(super) no_pivot: bool,
    /// Leave the container in the caller's session keyring.
    #[arg(long)]
    pub(super) no_new_keyring: bool,
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) create: Create,
    /// Do not wait for the end.
    #[arg(long, short)]
    pub(super) detach: bool,
    /// Do not delete the container at its end.
    #[arg(long)]
    pub(super) keep: bool,
    /// Do not adopt the container's orphans.
    #[arg(long)]
    pub(super) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(super) struct Kill {
    /// Every process of the container.
    #[arg(long, short)]
    pub(super) all: bool,
    pub(super) id: String,
    /// Name or number.
    #[arg(default_value = "SIGTERM")]
    pub(super) signal: String,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Kill it first if it runs; a container that does not exist is no error.
    #[arg(long, short)]
    pub(super) force: bool,
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct Exec {
    /// Unix socket that takes the terminal's master side.
    #[arg(long)]
    pub(super) console_socket: Option<PathBuf>,
    /// Working directory.
    #[arg(long)]
    pub(super) cwd: Option<PathBuf>,
    /// NAME=VALUE.
    #[arg(long, short)]
    pub(super) env: Vec<String>,
    /// Give it a terminal.
    #[arg(long, short)]
    pub(super) tty: bool,
    /// UID or UID:GID.
    #[arg(long, short)]
    pub(super) user: Option<String>,
    /// More groups.
    #[arg(long, short = 'g')]
    pub(super) additional_gids: Vec<u32>,
    /// A file with the whole process (config.json's `process`).
    #[arg(long, short)]
    pub(super) process: Option<PathBuf>,
    /// Do not wait for the end.
    #[arg(long, short)]
    pub(super) detach: bool,
    /// The process's pid is written here.
    #[arg(long)]
    pub(super) pid_file: Option<PathBuf>,
    /// Unix socket that takes a pidfd of the process.
    #[arg(long)]
    pub(super) pidfd_socket: Option<PathBuf>,
    /// SELinux label.
    #[arg(long)]
    pub(super) process_label: Option<String>,
    /// AppArmor profile.
    #[arg(long)]
    pub(super) apparmor: Option<String>,
    /// Set no_new_privs.
    #[arg(long)]
    pub(super) no_new_privs: bool,
    /// One more capability.
    #[arg(long, short)]
    pub(super) cap: Vec<String>,
    /// Descriptors beyond standard error that the process keeps.
    #[arg(long, default_value_t = 0)]
    pub(super) preserve_fds: u32,
    /// A control group below the container's own, of every controller or (v1) as CONTROLLER,...:PATH of some.
    #[arg(long)]
    pub(super) cgroup: Vec<String>,
    /// Also in a paused container; the process waits until it is resumed.
    #[arg(long)]
    pub(super) ignore_paused: bool,
    pub(super) id: String,
    /// Program and arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Ps {
    #[arg(long, short, value_enum, default_value = "table")]
    pub(super) format: Format,
    pub(super) id: String,
    /// Options of ps(1).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) options: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Ids alone.
    #[arg(long, short)]
    pub(super) quiet: bool,
    #[arg(long, short, value_enum, default_value = "table")]
    pub(super) format: Format,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Once, and no events.
    #[arg(long)]
    pub(super) stats: bool,
    /// Time between two prints, such as 5s.
    #[arg(long, default_value = "5s")]
    pub(super) interval: String,
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// `linux.resources` as JSON; `-` is standard input.
    #[arg(long, short)]
    pub(super) resources: Option<PathBuf>,
    #[command(flatten)]
    pub(super) limits: Limits,
    pub(super) id: String,
}

/// Numbers as runc takes them; sizes may end in k, m, g.
#[derive(Debug, Default, Args)]
pub(super) struct Limits {
    #[arg(long)]
    pub(super) blkio_weight: Option<u16>,
    /// Microseconds.
    #[arg(long)]
    pub(super) cpu_period: Option<u64>,
    /// Microseconds.
    #[arg(long, allow_hyphen_values = true)]
    pub(super) cpu_quota: Option<i64>,
    /// Microseconds.
    #[arg(long)]
    pub(super) cpu_burst: Option<u64>,
    #[arg(long, alias = "cpu-share")]
    pub(super) cpu_shares: Option<u64>,
    #[arg(long)]
    pub(super) cpu_idle: Option<i64>,
    #[arg(long)]
    pub(super) cpuset_cpus: Option<String>,
    #[arg(long)]
    pub(super) cpuset_mems: Option<String>,
    /// Bytes.
    #[arg(long, allow_hyphen_values = true)]
    pub(super) memory: Option<String>,
    /// Bytes.
    #[arg(long, allow_hyphen_values = true)]
    pub(super) memory_reservation: Option<String>,
    /// Bytes, memory and swap together.
    #[arg(long, allow_hyphen_values = true)]
    pub(super) memory_swap: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub(super) pids_limit: Option<i64>,
    /// Not supported.
    #[arg(long, hide = true)]
    pub(super) cpu_rt_period: Option<u64>,
    /// Not supported.
    #[arg(long, hide = true)]
    pub(super) cpu_rt_runtime: Option<i64>,
    /// Obsolete, ignored.
    #[arg(long, hide = true)]
    pub(super) kernel_memory: Option<String>,
    /// Obsolete, ignored.
    #[arg(long, hide = true)]
    pub(super) kernel_memory_tcp: Option<String>,
    /// Not supported.
    #[arg(long, hide = true)]
    pub(super) l3_cache_schema: Option<String>,
    /// Not supported.
    #[arg(long, hide = true)]
    pub(super) mem_bw_schema: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct SpecFile {
    /// Where to write it.
    #[arg(long, short, default_value = ".")]
    pub(super) bundle: PathBuf,
}
