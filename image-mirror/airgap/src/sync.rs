//! `orlop image sync`: lists of images from registries into a registry, an image layout or a bundle.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use orlop_distribution::CredentialSource;
use orlop_distribution::client::{ClientConfig, RegistryClient};
use orlop_types::{Digest, Reference};

use crate::accounts::Accounts;
use crate::bundle;
use crate::copy::{Copier, Platforms, Tally};
use crate::source::Source;
use crate::target::{Address, LayoutTarget, RegistryTarget, Target};

/// A list of images that is read.
const LIST_LIMIT: u64 = 16 << 20;
/// A registry far away may need long to take a piece in, or to put an upload in its place.
const PUSH_PATIENCE: Duration = Duration::from_secs(300);

/// `image sync`
#[derive(Clone, Debug, Args)]
pub struct SyncArgs {
    /// Names of images
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// A file with one name per line, # for comments; - for standard input; may be repeated
    #[arg(short, long = "file", value_name = "LIST")]
    files: Vec<PathBuf>,
    /// A registry's URL such as https://mirror.example:5000, oci:DIRECTORY for an image layout, or FILE.tar for a bundle
    #[arg(long, value_name = "URL|oci:DIR|FILE.tar")]
    to: String,
    #[command(flatten)]
    from: FromArgs,
    #[command(flatten)]
    at: ToArgs,
    /// Signs a bundle with this key (see `bundle keygen`)
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// How images are read from registries.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct FromArgs {
    /// Images of which platforms: OS/ARCHITECTURE[/VARIANT], may be repeated; an index is copied verbatim, its other images are left out
    #[arg(long, value_name = "PLATFORM|all", default_value = "all")]
    platform: Vec<String>,
    /// Also copies signatures and whatever else refers to the images
    #[arg(long)]
    referrers: bool,
    /// A registry that is not where its name says, for example docker.io=http://mirror:5000; may be repeated
    #[arg(long, value_name = "NAME=URL")]
    from: Vec<String>,
    /// containerd's certs.d directory: where registries are, with which certificates
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<PathBuf>,
    /// Accounts as docker login writes them; default: podman's or docker's own file
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

/// How a registry is written to.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ToArgs {
    /// Certificate authority of the target, PEM
    #[arg(long, value_name = "FILE")]
    to_ca: Vec<PathBuf>,
    /// Drops the registry's name: docker.io/library/x becomes library/x
    #[arg(long)]
    flat: bool,
}

impl FromArgs {
    /// Accounts go to the registries that they are for; what stands in for one gets none.
    fn client(&self, references: &[Reference]) -> anyhow::Result<RegistryClient> {
        let mut config = ClientConfig { hosts_dir: self.hosts_dir.clone(), ..ClientConfig::default() };
        for entry in &self.from {
            let (name, url) =
                entry.split_once('=').with_context(|| format!("--from {entry:?} is no NAME=URL"))?;
            config.servers.insert(name.to_owned(), url.to_owned());
        }
        if let Some(file) = Accounts::file(self.authfile.as_deref()) {
            let registries = references.iter().map(Reference::registry);
            for registry in registries.filter(|registry| !config.servers.contains_key(*registry)) {
                let source = CredentialSource::DockerConfig(file.clone());
                config.credentials.insert(registry.to_owned(), source);
            }
        }
        Ok(RegistryClient::new(config))
    }
}

/// Runs the command.
pub(crate) async fn run(args: &SyncArgs) -> anyhow::Result<()> {
    let references = references(&args.images, &args.files)?;
    anyhow::ensure!(!references.is_empty(), "no image is named: give names, or a list with -f");
    if let Some(directory) = args.to.strip_prefix("oci:") {
        return into_layout(&args.from, &references, Path::new(directory)).await;
    }
    if args.to.contains("://") {
        let accounts = Accounts::load(args.from.authfile.as_deref())?;
        let target = registry(&args.to, &args.at, &references, &accounts)?;
        let source = Source::Registries(args.from.client(&references)?);
        let platforms = Platforms::parse(&args.from.platform)?;
        return copy(Copier::new(source, target, platforms, args.from.referrers), &references, &args.to)
            .await;
    }
    let file = PathBuf::from(&args.to);
    let parts = bundle::parts_dir(&file)?;
    into_layout(&args.from, &references, &parts).await?;
    bundle::pack(std::slice::from_ref(&parts), &file, args.key.as_deref(), None)?;
    bundle::discard(&parts)
}

/// Copies images of registries into an image layout.
pub(crate) async fn into_layout(
    from: &FromArgs,
    references: &[Reference],
    directory: &Path,
) -> anyhow::Result<()> {
    let source = Source::Registries(from.client(references)?);
    let target = Target::Layout(LayoutTarget::open(directory)?);
    let platforms = Platforms::parse(&from.platform)?;
    let shown = directory.display().to_string();
    copy(Copier::new(source, target, platforms, from.referrers), references, &shown).await
}

/// A registry as target of these images.
pub(crate) fn registry(
    url: &str,
    args: &ToArgs,
    references: &[Reference],
    accounts: &Accounts,
) -> anyhow::Result<Target> {
    let address = Address::parse(url, args.flat)?;
    let mut config = ClientConfig {
        servers_ca: args.to_ca.clone(),
        first_byte_timeout: PUSH_PATIENCE,
        ..ClientConfig::default()
    };
    config.servers.insert(address.authority.clone(), address.url.clone());
    for reference in references.iter().filter(|reference| reference.registry().contains(':')) {
        config.servers.insert(reference.registry().to_owned(), address.url.clone());
    }
    let credential = accounts.of(&address.authority).cloned();
    Ok(Target::Registry(RegistryTarget::new(RegistryClient::new(config), credential, &address)))
}

/// Copies and tells; an error names every image that failed.
pub(crate) async fn copy(copier: Copier, references: &[Reference], to: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    let shown = Shown::start(copier.tally.clone(), references.len());
    let done = |reference: &Reference, result: &anyhow::Result<Digest>| shown.tell(reference, result);
    let failed = copier.copy_all(references, &done).await;
    shown.end();
    let Copier { tally, target, .. } = copier;
    target.finish()?;
    let count = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
    let mut output = std::io::stdout();
    writeln!(
        output,
        "{} of {} images are in {to}: {} blobs ({}) copied, {} were there, {:.1}s",
        references.len() - failed.len(),
        references.len(),
        count(&tally.copied_blobs),
        size(count(&tally.copied_bytes)),
        count(&tally.had_blobs),
        started.elapsed().as_secs_f64(),
    )?;
    if failed.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> =
        failed.iter().map(|(reference, error)| format!("{reference}: {error:#}")).collect();
    lines.sort();
    anyhow::bail!("{} images failed:\n  {}", lines.len(), lines.join("\n  "))
}

/// Names from the command line and from lists, in order, each once.
pub(crate) fn references(images: &[String], files: &[PathBuf]) -> anyhow::Result<Vec<Reference>> {
    let mut references = Vec::new();
    let mut problems = Vec::new();
    let mut add = |text: &str, place: &str| match Reference::parse(text) {
        Ok(reference) if references.contains(&reference) => {}
        Ok(reference) => references.push(reference),
        Err(error) => problems.push(format!("{place}{text:?}: {error}")),
    };
    for image in images {
        add(image, "");
    }
    for file in files {
        for (number, line) in read_list(file)?.lines().enumerate() {
            let text = line.split(" #").next().unwrap_or_default().trim();
            if !text.is_empty() && !text.starts_with('#') {
                add(text, &format!("{}:{}: ", file.display(), number + 1));
            }
        }
    }
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(references)
}

fn read_list(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let failed = || format!("failed to read {}", file.display());
    let count = if file == Path::new("-") {
        std::io::stdin().take(LIST_LIMIT + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).with_context(failed)?.take(LIST_LIMIT + 1).read_to_string(&mut text)
    };
    anyhow::ensure!(count.with_context(failed)? as u64 <= LIST_LIMIT, "{} is too long", file.display());
    Ok(text)
}

/// One line that is written over on a terminal, else a line per image; on standard error.
struct Shown {
    ticker: Option<tokio::task::JoinHandle<()>>,
}

impl Shown {
    fn start(tally: Arc<Tally>, images: usize) -> Self {
        let ticker = std::io::stderr().is_terminal().then(|| {
            tokio::spawn(async move {
                let mut ticks = tokio::time::interval(Duration::from_millis(250));
                let started = Instant::now();
                loop {
                    ticks.tick().await;
                    let bytes = tally.copied_bytes.load(Ordering::Relaxed);
                    let done = tally.images.load(Ordering::Relaxed);
                    let rate = bytes as f64 / started.elapsed().as_secs_f64().max(0.1);
                    eprint!(
                        "\r\x1b[K{done}/{images} images, {} copied, {}/s",
                        size(bytes),
                        size(rate as u64)
                    );
                }
            })
        });
        Self { ticker }
    }

    fn tell(&self, reference: &Reference, result: &anyhow::Result<Digest>) {
        let clear = if self.ticker.is_some() { "\r\x1b[K" } else { "" };
        match result {
            Ok(digest) => eprintln!("{clear}{reference} {digest}"),
            Err(error) => eprintln!("{clear}{reference} failed: {error:#}"),
        }
    }

    fn end(self) {
        if let Some(ticker) = self.ticker {
            ticker.abort();
            eprint!("\r\x1b[K");
        }
    }
}

/// Decimal units with three digits.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            let digits = usize::from(unit != "B" && value < 100.0);
            return format!("{value:.digits$}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1}TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("list");
        std::fs::write(&list, "# all\nnginx:1 # web\n\nquay.io/a/b\nnginx:1\n").unwrap();
        let found = references(&["nginx:1".to_owned()], std::slice::from_ref(&list)).unwrap();
        let texts: Vec<String> = found.iter().map(Reference::to_string).collect();
        assert_eq!(texts, ["docker.io/library/nginx:1", "quay.io/a/b:latest"]);
        std::fs::write(&list, "ok\nNOT ok\n").unwrap();
        assert!(references(&[], &[list]).unwrap_err().to_string().contains("list:2: \"NOT ok\""));
        assert_eq!([size(999), size(1000), size(123_456_789)], ["999B", "1.0kB", "123MB"]);
    }
}
