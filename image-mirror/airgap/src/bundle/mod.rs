//! Bundles: an OCI image layout in one plain tar, with a signed list of what is in it.
//!
//! ```text
//!   oci-layout  index.json  orlop-bundle.json  [orlop-bundle.sig]  blobs/ALGORITHM/HEX …
//! ```
//!
//! `orlop-bundle.json` lists images, blobs, blobs that must be there before (of an incremental bundle), and the digest of `index.json`; the
//! signature (Ed25519) is over its bytes, so that it covers all. The same images make the same bytes.

mod check;
mod diff;
mod load;
mod pack;
mod sign;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use orlop_types::Digest;
use serde::{Deserialize, Serialize};

pub use check::{Bundle, Trust};
pub(crate) use pack::pack;
pub use sign::PublicKey;

use crate::sync::{self, FromArgs, ToArgs};

/// The list of what is in a bundle.
const LIST: &str = "orlop-bundle.json";
/// Its signature.
const SIGNATURE: &str = "orlop-bundle.sig";
/// Most bytes of a list: about a million blobs.
const LIST_BYTES: u64 = 128 << 20;

/// `orlop-bundle.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Always 1.
    version: u32,
    /// `index.json`.
    index: Sized,
    /// Names and what they stand for.
    images: Vec<Image>,
    /// What is in here.
    blobs: Vec<Sized>,
    /// What images need that is not in here.
    needs: Vec<Sized>,
}

/// An image by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Full name.
    pub reference: String,
    /// Manifest or index.
    pub digest: Digest,
    media_type: String,
}

/// A blob and its size.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sized {
    digest: Digest,
    size: u64,
}

/// `image bundle`
#[derive(Clone, Debug, Subcommand)]
pub enum BundleCommand {
    /// Makes a pair of keys: NAME.key signs, NAME.pub verifies
    Keygen(KeygenArgs),
    /// Packs images of registries and of archives into one file
    Create(CreateArgs),
    /// Hashes everything in a bundle and compares it with the signed list
    Verify(VerifyArgs),
    /// Pushes a bundle, or any archive of images, to a registry, or imports it into a cluster's nodes
    Load(LoadArgs),
    /// Tells what one bundle has and another has not
    Diff(DiffArgs),
}

/// `bundle keygen`
#[derive(Clone, Debug, Args)]
pub struct KeygenArgs {
    /// Path without a suffix
    #[arg(value_name = "NAME")]
    name: PathBuf,
}

/// `bundle create`
#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    /// Archives or directories of any form, or names of images
    #[arg(value_name = "ARCHIVE|IMAGE")]
    sources: Vec<String>,
    /// A file with one image name per line; may be repeated
    #[arg(short, long = "file", value_name = "LIST")]
    files: Vec<PathBuf>,
    /// The bundle to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The key that signs
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Leaves out the layers that this bundle has: it must be loaded before
    #[arg(long, value_name = "BUNDLE")]
    since: Option<PathBuf>,
    #[command(flatten)]
    from: FromArgs,
}

/// Whose bundles are taken.
#[derive(Clone, Debug, Args)]
pub struct TrustArgs {
    /// Public key of who may have signed it; may be repeated
    #[arg(long, value_name = "FILE", required_unless_present = "insecure_unsigned")]
    key: Vec<PathBuf>,
    /// Takes what nobody signed
    #[arg(long, conflicts_with = "key")]
    insecure_unsigned: bool,
}

/// `bundle verify`
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// The bundle
    bundle: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
    /// A bundle or archive that has what an incremental bundle needs; may be repeated
    #[arg(long, value_name = "BUNDLE")]
    base: Vec<PathBuf>,
    /// Prints the name and the digest of each image
    #[arg(long)]
    print: bool,
}

/// `bundle load`
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// A bundle; or docker-save, OCI layout, k3s, hauler, zarf, oc-mirror archives or directories, with --insecure-unsigned
    #[arg(required = true, value_name = "BUNDLE")]
    bundles: Vec<PathBuf>,
    #[command(flatten)]
    trust: TrustArgs,
    /// A registry's URL, or the data directory of a cluster on this machine
    #[arg(long, value_name = "URL|DATA_DIR")]
    to: String,
    /// Name for an image that carries none, and repository for one that carries only a tag
    #[arg(long)]
    name: Option<String>,
    /// Accounts as docker login writes them; default: podman's or docker's own file
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    #[command(flatten)]
    at: ToArgs,
}

/// `bundle diff`
#[derive(Clone, Debug, Args)]
pub struct DiffArgs {
    /// The earlier bundle or archive
    old: PathBuf,
    /// The later one
    new: PathBuf,
}

/// Takes an archive into the nodes of a cluster: data directory, archive, name for what has none.
pub type Import<'a> = &'a dyn Fn(&Path, &Path, Option<&str>) -> anyhow::Result<()>;

/// Runs one command.
pub(crate) async fn run(command: &BundleCommand, import: Import<'_>) -> anyhow::Result<()> {
    match command {
        BundleCommand::Keygen(args) => sign::generate(&args.name),
        BundleCommand::Create(args) => create(args).await,
        BundleCommand::Verify(args) => check::verify(args),
        BundleCommand::Load(args) => load::run(args, import).await,
        BundleCommand::Diff(args) => diff::run(args),
    }
}

async fn create(args: &CreateArgs) -> anyhow::Result<()> {
    let is_path = |text: &&String| Path::new(text.as_str()).exists();
    let (paths, names): (Vec<&String>, Vec<&String>) = args.sources.iter().partition(is_path);
    let names: Vec<String> = names.into_iter().cloned().collect();
    let references = sync::references(&names, &args.files)?;
    let mut sources: Vec<PathBuf> = paths.into_iter().map(PathBuf::from).collect();
    let parts = parts_dir(&args.output)?;
    if !references.is_empty() {
        sync::into_layout(&args.from, &references, &parts).await?;
        sources.push(parts.clone());
    }
    anyhow::ensure!(!sources.is_empty(), "nothing is named: give archives or image names, or a list with -f");
    pack(&sources, &args.output, args.key.as_deref(), args.since.as_deref())?;
    if !references.is_empty() {
        discard(&parts)?;
    }
    Ok(())
}

/// Where images wait until a bundle is packed; a run that was killed is taken up there again.
pub(crate) fn parts_dir(bundle: &Path) -> anyhow::Result<PathBuf> {
    let name = bundle.file_name().with_context(|| format!("{} is no file name", bundle.display()))?;
    let mut parts = std::ffi::OsString::from(".");
    parts.push(name);
    parts.push(".parts");
    let parts = bundle.with_file_name(parts);
    remove(&gone(&parts))?;
    Ok(parts)
}

/// Removes that directory. A kill in the middle must leave no layout that looks whole, so it loses its name first.
pub(crate) fn discard(parts: &Path) -> anyhow::Result<()> {
    let gone = gone(parts);
    std::fs::rename(parts, &gone).with_context(|| format!("failed to rename {}", parts.display()))?;
    remove(&gone)
}

fn gone(parts: &Path) -> PathBuf {
    parts.with_extension("gone")
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("failed to remove {}", directory.display())),
    }
}

/// Where compressed archives are unpacked.
fn spool() -> PathBuf {
    std::env::temp_dir()
}

impl TrustArgs {
    fn trust(&self) -> anyhow::Result<Trust> {
        if self.insecure_unsigned {
            return Ok(Trust::Anybody);
        }
        Ok(Trust::Keys(self.key.iter().map(|file| PublicKey::load(file)).collect::<Result<_, _>>()?))
    }
}
