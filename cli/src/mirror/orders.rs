//! What an operator asks of a mirror that runs, at its admin socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use orlop_daemon::config;
use orlop_mirror::Config;

use super::status::{Facts, render};

/// The daemon answers within 10 seconds or not at all.
const PATIENCE: Duration = Duration::from_secs(15);
const ANSWER_LIMIT_BYTES: u64 = 16 << 20;

/// Which mirror.
#[derive(clap::Args)]
pub(crate) struct Which {
    /// The mirror's configuration file
    #[arg(long)]
    config: Option<PathBuf>,
    /// The mirror's directory of blobs and records
    #[arg(long)]
    root: Option<PathBuf>,
    /// The mirror's admin socket, where it is somewhere else
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

#[derive(clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    which: Which,
    /// How it is printed
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(clap::Args)]
pub(crate) struct ModeArgs {
    /// normal, readOnly, maintenance, or configured for what the configuration says; without it the mode is printed
    mode: Option<String>,
    #[command(flatten)]
    which: Which,
}

#[derive(clap::Args)]
pub(crate) struct DeleteArgs {
    /// With the registry in front when it is an upstream's, for example docker.io/library/busybox
    repository: String,
    #[command(flatten)]
    which: Which,
}

pub(crate) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let socket = args.which.socket()?;
    let dump: serde_json::Value = serde_json::from_str(&ask(&socket, "GET", "/dump", "")?)
        .context("the mirror's answer is no JSON: is this its admin socket?")?;
    let facts = Facts::new(&dump["mirror"], &ask(&socket, "GET", "/metrics", "")?);
    crate::println_stdout(&match args.output {
        Output::Text => render(&facts),
        Output::Json => serde_json::to_string_pretty(&facts.to_json())?,
    });
    Ok(())
}

pub(crate) fn mode(args: &ModeArgs) -> anyhow::Result<()> {
    order(&args.which, "mode", args.mode.as_deref().unwrap_or_default())
}

pub(crate) fn collect(which: &Which) -> anyhow::Result<()> {
    order(which, "gc", "")
}

pub(crate) fn scrub(which: &Which) -> anyhow::Result<()> {
    order(which, "scrub", "")
}

pub(crate) fn delete(args: &DeleteArgs) -> anyhow::Result<()> {
    order(&args.which, "delete", &args.repository)
}

fn order(which: &Which, command: &str, argument: &str) -> anyhow::Result<()> {
    let answer = ask(&which.socket()?, "PUT", &format!("/commands/{command}"), argument)?;
    crate::println_stdout(&answer);
    Ok(())
}

impl Which {
    fn socket(&self) -> anyhow::Result<PathBuf> {
        if let Some(socket) = &self.admin_socket {
            return Ok(socket.clone());
        }
        let mut config: Config = match &self.config {
            Some(file) => config::load(file)?,
            None => Config::default(),
        };
        if let Some(root) = &self.root {
            config.root = std::path::absolute(root)?;
        }
        super::admin_socket(self.config.as_deref(), &config.root)
    }
}

/// One request; the body of the answer when it is a good one.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "no mirror answers at {}: start it, or name it by --root, --config or --admin-socket",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection.
    write!(stream, "{method} {path} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_LIMIT_BYTES).read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let parts = read.ok().and_then(|_| answer.split_once("\r\n\r\n"));
    let Some((head, body)) = parts else {
        anyhow::bail!(
            "the mirror did not answer in time; what was begun goes on: look at orlop mirror status"
        );
    };
    anyhow::ensure!(head.split(' ').nth(1) == Some("200"), "{}", body.trim());
    Ok(body.to_owned())
}
