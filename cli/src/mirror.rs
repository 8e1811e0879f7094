//! `orlop mirror`: the registry mirror, and what an operator asks of it.

mod orders;
mod status;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use orlop_daemon::config::{self, Validate as _};
use orlop_mirror::Config;

use crate::{node_admin_socket, run_daemon, supervise};

/// Flags win over the file; what neither says is the default.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct MirrorArgs {
    #[command(subcommand)]
    command: Option<MirrorCommand>,
    /// The daemon's configuration file
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where the registry is served: ADDRESS:PORT
    #[arg(long)]
    listen: Option<std::net::SocketAddr>,
    /// Directory of blobs and records
    #[arg(long)]
    root: Option<PathBuf>,
    /// A registry that is fetched from on a miss, for example docker.io=https://registry-1.docker.io; may be repeated
    #[arg(long, value_name = "NAME=URL")]
    upstream: Vec<String>,
    /// Base URL of another mirror that holds the same content; may be repeated
    #[arg(long, value_name = "URL")]
    peer: Vec<String>,
    /// The registry that a repository without one in front means: a name given by --upstream or in the file, or a URL
    #[arg(long, value_name = "NAME|URL")]
    default_upstream: Option<String>,
    /// The process that supervises this one; it ends when that one does.
    #[arg(long, hide = true)]
    supervisor: Option<i32>,
}

/// What is not serving.
#[derive(clap::Subcommand)]
enum MirrorCommand {
    /// Prints or writes the file that points a client at a mirror
    ClientConfig(orlop_airgap::ClientConfigArgs),
    /// Prints a line for `auth.htpasswdFile`; the password is the first line of the standard input
    User {
        /// The user's name
        name: String,
    },
    /// Prints what is wrong with a mirror that runs, and its state
    Status(orders::StatusArgs),
    /// Prints or changes what a mirror does: everything, no pushes, or serving alone
    Mode(orders::ModeArgs),
    /// Removes now what nobody needs
    Gc(orders::Which),
    /// Reads and hashes every blob now
    Scrub(orders::Which),
    /// Deletes all tags, manifests and blobs of a repository
    Delete(orders::DeleteArgs),
}

/// Serves until SIGTERM, or runs the command.
pub(crate) fn run(args: &MirrorArgs) -> anyhow::Result<()> {
    match &args.command {
        Some(MirrorCommand::ClientConfig(args)) => return orlop_airgap::client_config(args),
        Some(MirrorCommand::User { name }) => return user(name),
        Some(MirrorCommand::Status(args)) => return orders::status(args),
        Some(MirrorCommand::Mode(args)) => return orders::mode(args),
        Some(MirrorCommand::Gc(which)) => return orders::collect(which),
        Some(MirrorCommand::Scrub(which)) => return orders::scrub(which),
        Some(MirrorCommand::Delete(args)) => return orders::delete(args),
        None => {}
    }
    supervise::follow_supervisor(args.supervisor)?;
    orlop_daemon::init_tracing();
    let config = configuration(args)?;
    let socket = admin_socket(args.config.as_deref(), &config.root)?;
    run_daemon(
        "mirror",
        config,
        socket,
        |frame, config| async move { orlop_mirror::start(&frame, config).await },
    )
}

fn user(name: &str) -> anyhow::Result<()> {
    let mut password = String::new();
    std::io::stdin().read_line(&mut password).context("failed to read the password")?;
    let line = orlop_mirror::user_line(name, password.trim_end_matches(['\r', '\n']))?;
    std::io::stdout().write_all(line.as_bytes()).context("failed to print the line")
}

fn configuration(args: &MirrorArgs) -> anyhow::Result<Config> {
    let mut config = match &args.config {
        Some(file) => config::load(file)?,
        None => Config::default(),
    };
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    if let Some(root) = &args.root {
        config.root = std::path::absolute(root)?;
    }
    for upstream in &args.upstream {
        let (name, url) = upstream.split_once('=').with_context(|| {
            format!(
                "--upstream {upstream:?} is no NAME=URL, for example docker.io=https://registry-1.docker.io"
            )
        })?;
        config.upstreams.insert(name.to_owned(), url.to_owned());
    }
    config.peers.extend(args.peer.iter().cloned());
    if args.default_upstream.is_some() {
        config.default_upstream.clone_from(&args.default_upstream);
    }
    let problems = config.problems();
    anyhow::ensure!(problems.is_empty(), "the configuration is invalid:\n  {}", problems.join("\n  "));
    Ok(config)
}

/// Beside the node's or the daemon's other run state; a second mirror on a machine has its own in its root.
fn admin_socket(config: Option<&Path>, root: &Path) -> anyhow::Result<PathBuf> {
    let of_node = config.map(|file| node_admin_socket("mirror", file)).transpose()?.flatten();
    Ok(of_node.unwrap_or_else(|| match *root == Config::default().root {
        true => Path::new("/run/orlop/mirror").join("admin.sock"),
        false => root.join("admin.sock"),
    }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: MirrorArgs,
    }

    fn config_of(line: &[&str]) -> anyhow::Result<Config> {
        configuration(&Line::parse_from(std::iter::once(&"mirror").chain(line)).args)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mirror.yaml");
        let text = "root: /from/file\nlisten: 127.0.0.1:5001\nupstreams: {a.example: https://file, b.example: https://b}\n";
        std::fs::write(&file, text).unwrap();
        let flags = ["--config", file.to_str().unwrap(), "--listen", "127.0.0.1:5002"];
        let config = config_of(&[&flags[..], &["--upstream", "a.example=https://flag"]].concat()).unwrap();
        assert_eq!(config.listen.port(), 5002);
        assert_eq!(config.root, Path::new("/from/file"));
        assert_eq!(config.upstreams["a.example"], "https://flag");
        assert_eq!(config.upstreams["b.example"], "https://b");
        assert_eq!(config_of(&[]).unwrap().root, Config::default().root);
    }

    #[test]
    fn a_wrong_flag_is_named() {
        let error = config_of(&["--upstream", "docker.io"]).unwrap_err().to_string();
        assert!(error.contains("\"docker.io\" is no NAME=URL"), "{error}");
        let error = config_of(&["--listen", "192.0.2.1:5000"]).unwrap_err().to_string();
        assert!(error.contains("tlsCertFile"), "{error}");
    }
}
