//! `orlop runtime`: the CRI server alone, for a kubelet of any make.

use std::path::PathBuf;

use orlop_daemon::config::{self, Validate as _};
use orlop_runtime::Config;

use crate::{node_admin_socket, run_daemon, supervise};

/// Flags win over the file; what neither says is the default.
#[derive(clap::Args)]
pub(crate) struct RuntimeArgs {
    /// The daemon's configuration file
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where the CRI is served: unix:///path/to.sock
    #[arg(long)]
    listen: Option<String>,
    /// Directory of what outlives a reboot: images, layers, snapshots
    #[arg(long)]
    root: Option<PathBuf>,
    /// Directory of what a reboot must forget (tmpfs): pods and containers
    #[arg(long)]
    state: Option<PathBuf>,
    /// The process that supervises this one; it ends when that one does.
    #[arg(long, hide = true)]
    supervisor: Option<i32>,
}

/// Serves until SIGTERM.
pub(crate) fn run(args: &RuntimeArgs) -> anyhow::Result<()> {
    supervise::follow_supervisor(args.supervisor)?;
    orlop_daemon::init_tracing();
    let config = configuration(args)?;
    let of_node =
        args.config.as_deref().map(|file| node_admin_socket("runtime", file)).transpose()?.flatten();
    let socket = of_node.unwrap_or_else(|| config.state.join("admin.sock"));
    run_daemon("runtime", config, socket, |frame, config| async move {
        orlop_runtime::start(&frame, config).await
    })
}

fn configuration(args: &RuntimeArgs) -> anyhow::Result<Config> {
    let mut config = match &args.config {
        Some(file) => config::load(file)?,
        None => Config::default(),
    };
    if let Some(listen) = &args.listen {
        config.listen.clone_from(listen);
    }
    if let Some(root) = &args.root {
        config.root = std::path::absolute(root)?;
    }
    if let Some(state) = &args.state {
        config.state = std::path::absolute(state)?;
    }
    let problems = config.problems();
    anyhow::ensure!(problems.is_empty(), "the configuration is invalid:\n  {}", problems.join("\n  "));
    Ok(config)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RuntimeArgs,
    }

    fn config_of(line: &[&str]) -> anyhow::Result<Config> {
        configuration(&Line::parse_from(std::iter::once(&"runtime").chain(line)).args)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("runtime.yaml");
        std::fs::write(&file, "root: /from/file\nstate: /run/from-file\n").unwrap();
        let file = file.to_str().unwrap();
        let config =
            config_of(&["--config", file, "--state", "/run/flag", "--listen", "unix:///run/x.sock"]).unwrap();
        assert_eq!(config.socket_path(), Some("/run/x.sock".into()));
        assert_eq!((config.root, config.state), ("/from/file".into(), "/run/flag".into()));
        assert_eq!(config_of(&[]).unwrap().root, Config::default().root);
    }

    #[test]
    fn a_wrong_flag_is_named() {
        let error = config_of(&["--listen", "tcp://127.0.0.1:1"]).unwrap_err().to_string();
        assert!(error.contains("listen \"tcp://127.0.0.1:1\" is not a unix socket"), "{error}");
    }
}
