//! Opens bundles: what is in one must be what its list says, and the list what a trusted key signed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use orlop_distribution::archive::{Archive, Strictness};
use orlop_distribution::manifest::MANIFEST_LIMIT;
use orlop_types::Digest;

use super::{Image, LIST, LIST_BYTES, List, PublicKey, SIGNATURE, VerifyArgs, sign, spool};
use crate::sync::size;

/// Bytes of a signature file.
const SIGNATURE_BYTES: u64 = 4096;

/// Whose bundles are taken.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Those that one of these keys signed.
    Keys(Vec<PublicKey>),
    /// Everything, archives of other tools too.
    Anybody,
}

/// An archive whose list and signature are right; its blobs are not hashed yet.
pub struct Bundle {
    /// What is in it.
    pub archive: Archive,
    list: Option<List>,
}

impl List {
    /// The list of an archive that is a bundle.
    pub(super) fn of(archive: &Archive) -> anyhow::Result<Option<Self>> {
        let Some(bytes) = archive.document(LIST, LIST_BYTES)? else { return Ok(None) };
        let list: List = serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: {LIST} makes no sense", archive.path().display()))?;
        anyhow::ensure!(
            list.version == 1,
            "{}: version {} of {LIST} is not known",
            archive.path().display(),
            list.version
        );
        Ok(Some(list))
    }
}

impl Bundle {
    /// Opens a bundle, or with [`Trust::Anybody`] any archive. Compressed ones are spooled in `spool`.
    ///
    /// # Errors
    /// Unreadable, not signed by a trusted key, or its members are not those of its list.
    pub fn open(path: &Path, spool: &Path, trust: &Trust) -> anyhow::Result<Self> {
        let strictness = match trust {
            Trust::Keys(_) => Strictness::Strict,
            Trust::Anybody => Strictness::Lenient,
        };
        let archive = Archive::open(path, spool, strictness)?;
        let shown = path.display();
        let bytes = archive.document(LIST, LIST_BYTES)?;
        if let Trust::Keys(keys) = trust {
            let signature = archive.document(SIGNATURE, SIGNATURE_BYTES)?;
            let (Some(bytes), Some(signature)) = (&bytes, signature) else {
                anyhow::bail!("{shown} is not signed: it has no {LIST} with a {SIGNATURE}");
            };
            sign::verify(bytes, &signature, keys).with_context(|| shown.to_string())?;
        }
        let list = List::of(&archive)?;
        if let Some(list) = &list {
            let problems = differences(&archive, list)?;
            anyhow::ensure!(
                problems.is_empty(),
                "{shown} is not what its list says:\n  {}",
                problems.join("\n  ")
            );
        }
        Ok(Self { archive, list })
    }

    /// Names and digests.
    pub(crate) fn images(&self) -> BTreeMap<String, Digest> {
        match &self.list {
            Some(list) => {
                list.images.iter().map(|image| (image.reference.clone(), image.digest.clone())).collect()
            }
            None => named(&self.archive),
        }
    }
}

fn named(archive: &Archive) -> BTreeMap<String, Digest> {
    let named =
        archive.roots().iter().filter_map(|root| Some((root.name_with(None)?, &root.descriptor.digest)));
    named.map(|(name, digest)| (name.to_string(), digest.clone())).collect()
}

/// How an archive and its list differ.
fn differences(archive: &Archive, list: &List) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    let index = archive.document("index.json", MANIFEST_LIMIT)?.unwrap_or_default();
    if Digest::sha256(&index) != list.index.digest {
        problems.push("index.json is another one".to_owned());
    }
    let listed: BTreeMap<String, Digest> = list
        .images
        .iter()
        .map(|Image { reference, digest, .. }| (reference.clone(), digest.clone()))
        .collect();
    if listed != named(archive) {
        problems.push("index.json names other images".to_owned());
    }
    let blobs: BTreeMap<&Digest, u64> = list.blobs.iter().map(|blob| (&blob.digest, blob.size)).collect();
    for (digest, size) in &blobs {
        match archive.size(digest) {
            None => problems.push(format!("blob {digest} is missing")),
            Some(actual) if actual != *size => {
                problems.push(format!("blob {digest} has {actual} bytes and not {size}"))
            }
            Some(_) => {}
        }
    }
    let mut more: Vec<&Digest> =
        archive.blobs().map(|(digest, _)| digest).filter(|digest| !blobs.contains_key(digest)).collect();
    more.sort();
    problems.extend(more.iter().map(|digest| format!("blob {digest} is not listed")));
    let known = ["oci-layout", "index.json", LIST, SIGNATURE];
    let strange = archive.members().filter(|name| !known.contains(name) && !name.starts_with("blobs/"));
    problems.extend(strange.map(|name| format!("{name} is not listed")));
    Ok(problems)
}

/// `bundle verify`: every blob is hashed, every bad one named.
pub(super) fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.bundle, &spool(), &args.trust.trust()?)?;
    let archive = &bundle.archive;
    let mut problems = Vec::new();
    let mut blobs: Vec<(&Digest, u64)> = archive.blobs().collect();
    blobs.sort();
    for (digest, _) in &blobs {
        if let Err(error) = archive.verify(digest) {
            problems.push(format!("{error}"));
        }
    }
    let needs: BTreeSet<Digest> =
        bundle.list.iter().flat_map(|list| &list.needs).map(|blob| blob.digest.clone()).collect();
    problems.extend(missing_below(archive, &needs)?);
    if !needs.is_empty() {
        problems.extend(missing_in(&needs, args)?);
    }
    let mut output = std::io::stdout();
    anyhow::ensure!(problems.is_empty(), "{} is bad:\n  {}", args.bundle.display(), problems.join("\n  "));
    if args.print {
        for (name, digest) in bundle.images() {
            writeln!(output, "{name} {digest}")?;
        }
    }
    let bytes = blobs.iter().map(|(_, size)| size).sum();
    let (images, count) = (bundle.images().len(), blobs.len());
    eprintln!("{}: {images} images, {count} blobs ({}), all good", args.bundle.display(), size(bytes));
    Ok(())
}

/// What images need and neither have here nor had before.
fn missing_below(archive: &Archive, needs: &BTreeSet<Digest>) -> anyhow::Result<Vec<String>> {
    use orlop_distribution::manifest::Manifest;
    let mut problems = Vec::new();
    let mut waiting: Vec<Digest> =
        archive.roots().iter().map(|root| root.descriptor.digest.clone()).collect();
    let mut seen = BTreeSet::new();
    while let Some(digest) = waiting.pop() {
        if !seen.insert(digest.clone()) {
            continue;
        }
        let Ok(Some(bytes)) = archive.read(&digest, MANIFEST_LIMIT) else {
            problems.push(format!("manifest {digest} is missing"));
            continue;
        };
        match Manifest::parse(&bytes, None) {
            Err(error) => problems.push(format!("manifest {digest}: {error}")),
            Ok(Manifest::Index(index)) => {
                let children = index.manifests.into_iter().map(|child| child.digest);
                waiting.extend(children.filter(|child| archive.size(child).is_some()));
            }
            Ok(Manifest::Image(image)) => {
                let layers = image.layers.iter().filter(|layer| layer.urls.is_empty());
                for blob in std::iter::once(&image.config).chain(layers) {
                    if archive.size(&blob.digest).is_none() && !needs.contains(&blob.digest) {
                        problems.push(format!("blob {} of manifest {digest} is missing", blob.digest));
                    }
                }
            }
        }
    }
    Ok(problems)
}

fn missing_in(needs: &BTreeSet<Digest>, args: &VerifyArgs) -> anyhow::Result<Vec<String>> {
    if args.base.is_empty() {
        let count = needs.len();
        eprintln!(
            "{count} blobs must be at the target before: name the bundles that brought them with --base"
        );
        return Ok(Vec::new());
    }
    let open = |path| Archive::open(path, &spool(), Strictness::Lenient);
    let bases = args.base.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let is_missing = |digest: &&Digest| bases.iter().all(|base| base.size(digest).is_none());
    Ok(needs
        .iter()
        .filter(is_missing)
        .map(|digest| format!("blob {digest} is needed and in no base"))
        .collect())
}
