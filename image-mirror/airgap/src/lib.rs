//! Images without a network: copies of lists of images, bundles, what manifests need, and the files that point clients at a mirror.
//!
//! ```text
//!   registries --sync--> registry | oci:DIRECTORY | bundle --(carried over)--> load --> registry | nodes of a cluster
//!   archives of other tools --------------------------------------------------/
//! ```
//!
//! Invariants: bytes are copied verbatim, so digests stay; what needs something comes after it, so that a copy that is killed leaves only
//! whole images and is taken up where it was; nothing is believed of a bundle but what a trusted key signed.
//!
//! Where to read next: `copy.rs` (the walk), `bundle/mod.rs` (the format), `needed.rs`.

mod accounts;
pub mod bundle;
mod clients;
mod copy;
mod layout;
mod needed;
mod source;
mod sync;
mod target;

pub use clients::{ClientConfigArgs, client_config};

use clap::Subcommand;

/// Commands beside those on a cluster's own images; none needs root or a cluster.
#[derive(Clone, Debug, Subcommand)]
pub enum AirgapCommand {
    /// Copy images from registries to a mirror, an image layout or a bundle
    Sync(sync::SyncArgs),
    /// Make, check, load and compare bundles of images
    #[command(subcommand)]
    Bundle(bundle::BundleCommand),
    /// Print the images that Kubernetes objects in YAML or JSON files refer to
    ListNeeded(needed::NeededArgs),
}

/// Runs a command. `import` takes an archive into the nodes of a cluster.
///
/// # Errors
/// Everything that failed, by name.
pub fn run(command: &AirgapCommand, import: bundle::Import<'_>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        AirgapCommand::Sync(args) => runtime.block_on(sync::run(args)),
        AirgapCommand::Bundle(command) => runtime.block_on(bundle::run(command, import)),
        AirgapCommand::ListNeeded(args) => needed::run(args),
    }
}
