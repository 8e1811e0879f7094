//! `orlop image`: the images of a cluster on this machine, with and without its daemons running; and images on their way to one.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use orlop_airgap::AirgapCommand;
use orlop_images::ImageStore;
use orlop_images::command::{ImageCommand, ImportArgs};

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
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Store(ImageCommand),
    #[command(flatten)]
    Airgap(AirgapCommand),
}

/// Runs the command.
pub(crate) fn run(args: &ImageArgs) -> anyhow::Result<()> {
    orlop_daemon::init_command_tracing();
    match &args.command {
        Command::Store(command) => on_stores(&args.data_dir, args.node.as_deref(), command),
        Command::Airgap(command) => orlop_airgap::run(command, &|data_dir, archive, name| {
            let (paths, name) = (vec![archive.to_owned()], name.map(str::to_owned));
            on_stores(data_dir, args.node.as_deref(), &ImageCommand::Import(ImportArgs { paths, name }))
        }),
    }
}

/// Runs the command on the image store of every node that is meant.
fn on_stores(data_dir: &Path, node: Option<&str>, command: &ImageCommand) -> anyhow::Result<()> {
    crate::require_root("orlop image on a cluster")?;
    let layout = Layout::existing(data_dir)?;
    let mut names = layout.node_names()?;
    if let Some(node) = node {
        anyhow::ensure!(
            names.iter().any(|name| name == node),
            "no node {node:?} in {}: there are {names:?}",
            layout.data().display()
        );
        names = vec![node.to_owned()];
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
        orlop_images::command::run(&store, command.clone()).with_context(|| format!("node {name}"))?;
    }
    Ok(())
}
