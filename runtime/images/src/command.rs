//! `orlop image …`: the command line over stores. The caller chooses the stores (a cluster has one per node).

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use orlop_types::Reference;

use crate::{ArchiveFormat, ImageRecord, ImageStore};

/// What to do with images.
#[derive(Clone, Debug, Subcommand)]
pub enum ImageCommand {
    /// Import images from archives or OCI layout directories
    Import(ImportArgs),
    /// List images
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Remove images by name or id
    #[command(alias = "remove")]
    Rm(RemoveArgs),
    /// Write images to an archive
    Export(ExportArgs),
    /// Keep images when the kubelet makes room
    Pin(RemoveArgs),
    /// Let the kubelet remove images when it makes room
    Unpin(RemoveArgs),
}

/// `image import`
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// docker-save or OCI archives (plain, gzip or zstd), or OCI layout directories
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// Name for an image that carries none, or repository for one that carries only a tag
    #[arg(long)]
    pub name: Option<String>,
}

/// `image ls`
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Print image ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print whole ids and digests
    #[arg(long)]
    pub no_trunc: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// `image rm`
#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    /// Names, ids or prefixes of ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// `image export`
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// Names, ids or prefixes of ids
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// The archive to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Form of the archive
    #[arg(long, value_enum, default_value_t = FormatArg::Oci)]
    pub format: FormatArg,
}

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// OCI image layout
    Oci,
    /// As docker save
    Docker,
}

/// Runs one command on one store and writes its output to standard output.
///
/// # Errors
/// What the store says; of several files or names, every failure, after the rest was done.
pub fn run(store: &ImageStore, command: ImageCommand) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    run_with(store, command, &mut output)
}

/// As [`run`], with another output.
///
/// # Errors
/// As [`run`].
pub fn run_with(store: &ImageStore, command: ImageCommand, output: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import(args) => import(store, &args, output),
        ImageCommand::Ls(args) => list(store, &args, output),
        ImageCommand::Rm(args) => remove(store, &args, output),
        ImageCommand::Export(args) => export(store, &args, output),
        ImageCommand::Pin(args) => pin(store, &args, true),
        ImageCommand::Unpin(args) => pin(store, &args, false),
    }
}

fn import(store: &ImageStore, args: &ImportArgs, output: &mut dyn Write) -> anyhow::Result<()> {
    let name = args.name.as_deref().map(Reference::parse).transpose().context("--name")?;
    let mut failures = Vec::new();
    for path in &args.paths {
        let imported = match &name {
            Some(name) => store.import_named(path, name.clone()),
            None => store.import(path),
        };
        match imported {
            Ok(images) => {
                for image in images {
                    for name in shown_names(&image) {
                        writeln!(output, "imported {name} ({})", short(&image.id))?;
                    }
                }
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    report(failures)
}

fn shown_names(image: &ImageRecord) -> Vec<&str> {
    if image.tags.is_empty() {
        return vec![image.display_name()];
    }
    image.tags.iter().map(String::as_str).collect()
}

fn list(store: &ImageStore, args: &ListArgs, output: &mut dyn Write) -> anyhow::Result<()> {
    let images = store.list()?;
    if args.json {
        let values: Vec<serde_json::Value> = images.iter().map(json).collect();
        writeln!(output, "{}", serde_json::to_string_pretty(&values)?)?;
        return Ok(());
    }
    let id = |image: &ImageRecord| if args.no_trunc { image.id.clone() } else { short(&image.id).to_owned() };
    if args.quiet {
        for image in &images {
            writeln!(output, "{}", id(image))?;
        }
        return Ok(());
    }
    let mut rows =
        vec![["IMAGE".to_owned(), "TAG".into(), "IMAGE ID".into(), "SIZE".into(), "PINNED".into()]];
    for image in &images {
        let pinned = if image.pinned { "yes" } else { "no" };
        for (name, tag) in names(image) {
            rows.push([name, tag, id(image), size(image.size), pinned.to_owned()]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    for row in &rows {
        let mut line = String::new();
        for (text, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{text:<width$}  "));
        }
        writeln!(output, "{line}{}", row[4])?;
    }
    Ok(())
}

/// Name and tag of every row: one per tag, or one for an image without tags.
fn names(image: &ImageRecord) -> Vec<(String, String)> {
    let tags: Vec<(String, String)> = image
        .tags
        .iter()
        .filter_map(|tag| Reference::parse(tag).ok())
        .map(|tag| (tag.name(), tag.tag().unwrap_or_default().to_owned()))
        .collect();
    if !tags.is_empty() {
        return tags;
    }
    let digest = image.digests.first().and_then(|digest| Reference::parse(digest).ok());
    vec![(digest.map_or_else(|| "<none>".to_owned(), |digest| digest.name()), "<none>".to_owned())]
}

fn json(image: &ImageRecord) -> serde_json::Value {
    serde_json::json!({
        "id": image.id,
        "repoTags": image.tags,
        "repoDigests": image.digests,
        "size": image.size,
        "pinned": image.pinned,
    })
}

fn remove(store: &ImageStore, args: &RemoveArgs, output: &mut dyn Write) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for image in &args.images {
        match store.find(image) {
            // A person who mistypes a name wants to know.
            Ok(None) => failures.push(format!("image {image:?} is not in the store")),
            Ok(Some(_)) => match store.remove(image) {
                Ok(()) => writeln!(output, "removed {image}")?,
                Err(error) => failures.push(error.to_string()),
            },
            Err(error) => failures.push(error.to_string()),
        }
    }
    report(failures)
}

fn pin(store: &ImageStore, args: &RemoveArgs, pinned: bool) -> anyhow::Result<()> {
    let results = args.images.iter().map(|image| store.set_pinned(image, pinned));
    report(results.filter_map(|result| result.err().map(|error| error.to_string())).collect())
}

fn export(store: &ImageStore, args: &ExportArgs, output: &mut dyn Write) -> anyhow::Result<()> {
    let format = match args.format {
        FormatArg::Oci => ArchiveFormat::Oci,
        FormatArg::Docker => ArchiveFormat::Docker,
    };
    store.export(&args.images, &args.output, format)?;
    writeln!(output, "exported {} to {}", args.images.join(", "), args.output.display())?;
    Ok(())
}

fn report(failures: Vec<String>) -> anyhow::Result<()> {
    if failures.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(failures.join("\n"))) }
}

/// The first 12 hex digits of an id.
fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..12).unwrap_or(hex)
}

/// Decimal units with three digits, as docker and crictl print sizes.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" || value >= 100.0 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1}TB")
}
