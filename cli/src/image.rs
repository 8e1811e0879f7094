//! `orlop image`: the images of a cluster on this machine, with and without its daemons running.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use orlop_images::ImageStore;
use orlop_images::command::ImageCommand;

use crate::up::layout::{DEFAULT_DATA_DIR, Layout};

/// Arguments of `orlop image`.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// The cluster's data directory; every node in it is meant.
    #[arg(long, global = true, default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Only this node of the cluster.
    #[arg(long, global = true, value_name = "NAME")]
    node: Option<String>,
    #[command(subcommand)]
    command: ImageCommand,
}

/// Runs the command on the image store of every node that is meant.
pub(crate) fn run(args: &ImageArgs) -> anyhow::Result<()> {
    crate::require_root("orlop image")?;
    orlop_daemon::init_command_tracing();
    let layout = Layout::existing(&args.data_dir)?;
    let mut names = layout.node_names()?;
    if let Some(node) = &args.node {
        anyhow::ensure!(
            names.contains(node),
            "no node {node:?} in {}: there are {names:?}",
            layout.data().display()
        );
        names = vec![node.clone()];
    }
    anyhow::ensure!(
        !names.is_empty(),
        "there is no cluster in {}: start one with `orlop up --data-dir {0}` first",
        layout.data().display()
    );
    for name in &names {
        let config =
            orlop_images::Config { root: layout.runtime_root(name), ..orlop_images::Config::default() };
        let store =
            ImageStore::open(config).with_context(|| format!("failed to open the images of node {name}"))?;
        orlop_images::command::run(&store, args.command.clone()).with_context(|| format!("node {name}"))?;
    }
    Ok(())
}
