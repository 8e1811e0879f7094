//! `bundle load`: into a registry, or into the nodes of a cluster.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use orlop_types::Reference;

use super::{Bundle, Import, LoadArgs, Trust, spool};
use crate::accounts::Accounts;
use crate::copy::{Copier, Platforms};
use crate::source::Source;
use crate::sync::{self, ToArgs};

pub(super) async fn run(args: &LoadArgs, import: Import<'_>) -> anyhow::Result<()> {
    let trust = args.trust.trust()?;
    let base = args.name.as_deref().map(Reference::parse).transpose().context("--name")?;
    let mut failures = Vec::new();
    for path in &args.bundles {
        let loaded = if args.to.contains("://") {
            let accounts = Accounts::load(args.authfile.as_deref())?;
            load_into(path, &trust, &args.to, &args.at, &accounts, base.as_ref()).await
        } else {
            // The import hashes everything again before it keeps anything.
            let opened = Bundle::open(path, &spool(), &trust).map(drop);
            opened.and_then(|()| import(Path::new(&args.to), path, args.name.as_deref()))
        };
        failures.extend(loaded.err().map(|error| format!("{}: {error:#}", path.display())));
    }
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Pushes what an archive has names for. Every blob is compared with its digest by the registry and by its name in the list.
async fn load_into(
    path: &Path,
    trust: &Trust,
    url: &str,
    at: &ToArgs,
    accounts: &Accounts,
    base: Option<&Reference>,
) -> anyhow::Result<()> {
    let bundle = Bundle::open(path, &spool(), trust)?;
    let mut references = Vec::new();
    for root in bundle.archive.roots() {
        let digest = &root.descriptor.digest;
        let Some(name) = root.name_with(base) else {
            eprintln!("{}: {digest} has no name and is left out: --name gives one", path.display());
            continue;
        };
        let text = match name.digest() {
            None => format!("{name}@{digest}"),
            Some(_) => name.to_string(),
        };
        references.push(Reference::parse(&text).with_context(|| format!("{name}"))?);
    }
    anyhow::ensure!(!references.is_empty(), "no image in it has a name: --name gives one");
    // What refers to something is taken after it: names by digest come last.
    references.sort_by_key(|reference| reference.tag().is_none());
    let target = sync::registry(url, at, &references, accounts)?;
    let source = Source::Archive(Arc::new(bundle.archive));
    sync::copy(Copier::new(source, target, Platforms::default(), false), &references, url).await
}
