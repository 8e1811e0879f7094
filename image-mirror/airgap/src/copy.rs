//! Copies images: bottom up, what is there is not read again, every number of things at once has a bound.
//!
//! Manifests are copied verbatim. When only some platforms are wanted, the index is copied whole, so that its digest stays, and the images
//! of the other platforms are left out.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use futures::future::LocalBoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use orlop_distribution::manifest::{
    Descriptor, ImageIndex, Manifest, ManifestError, Platform, is_index, is_manifest,
};
use orlop_types::{Digest, Reference};
use tokio::sync::Semaphore;

use crate::source::{Document, Source};
use crate::target::{Came, Target};

/// Images at one time.
const IMAGES: usize = 4;
/// Blobs of one image at one time.
const BLOBS: usize = 4;
/// Blobs of all images at one time: each may hold a piece of an upload in memory.
const ALL_BLOBS: usize = 8;
/// Indexes in indexes, and signatures of signatures.
const DEPTH: usize = 4;
/// Manifests of one image, referrers included.
const MANIFESTS: u64 = 10_000;
/// Tags under which cosign keeps what belongs to an image.
const SIGNATURE_TAGS: [&str; 3] = ["sig", "att", "sbom"];
/// The image that an attestation of BuildKit is about.
const ATTESTED: &str = "vnd.docker.reference.digest";

/// Which images of an index are copied; none is all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Platforms(Vec<Platform>);

/// What was done.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) images: AtomicU64,
    pub(crate) copied_blobs: AtomicU64,
    pub(crate) copied_bytes: AtomicU64,
    pub(crate) had_blobs: AtomicU64,
    pub(crate) manifests: AtomicU64,
}

pub(crate) struct Copier {
    pub(crate) source: Source,
    pub(crate) target: Target,
    pub(crate) platforms: Platforms,
    pub(crate) referrers: bool,
    pub(crate) tally: Arc<Tally>,
    blobs: Semaphore,
    busy: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// One image of the list on its way.
struct Walk<'a> {
    copier: &'a Copier,
    reference: &'a Reference,
    manifests: AtomicU64,
}

impl Platforms {
    /// `linux/amd64`, `linux/arm64/v8`, …; `all` alone is everything.
    pub(crate) fn parse(texts: &[String]) -> anyhow::Result<Self> {
        let mut platforms = Vec::new();
        for text in texts.iter().flat_map(|text| text.split(',')) {
            if text == "all" {
                return Ok(Self::default());
            }
            let parts: Vec<&str> = text.split('/').collect();
            let (os, architecture, variant) = match parts.as_slice() {
                [os, architecture] => (os, architecture, None),
                [os, architecture, variant] => (os, architecture, Some((*variant).to_owned())),
                _ => anyhow::bail!(
                    "platform {text:?} is no OS/ARCHITECTURE such as linux/amd64, and not \"all\""
                ),
            };
            platforms.push(Platform {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant,
                ..Platform::default()
            });
        }
        Ok(Self(platforms))
    }

    fn wants(&self, platform: &Platform) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|wanted| {
                wanted.os == platform.os
                    && wanted.architecture == platform.architecture
                    && (wanted.variant.is_none() || wanted.variant == platform.variant)
            })
    }

    /// The entries of an index that are copied. Attestations go with their images.
    fn choose<'a>(&self, index: &'a ImageIndex) -> Result<Vec<&'a Descriptor>, ManifestError> {
        let manifests = || {
            index
                .manifests
                .iter()
                .filter(|entry| is_manifest(&entry.media_type) || is_index(&entry.media_type))
        };
        let is_wanted =
            |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|platform| self.wants(platform));
        let chosen: BTreeSet<&str> =
            manifests().filter(is_wanted).map(|entry| entry.digest.as_str()).collect();
        if chosen.is_empty() && manifests().next().is_some() {
            let offered =
                manifests().filter_map(|entry| Some(entry.platform.as_ref()?.to_string())).collect();
            return Err(ManifestError::NoPlatform {
                wanted: self.0.first().cloned().unwrap_or_default(),
                offered,
            });
        }
        let goes_along =
            |entry: &&Descriptor| entry.annotation(ATTESTED).is_some_and(|digest| chosen.contains(digest));
        Ok(manifests().filter(|entry| is_wanted(entry) || goes_along(entry)).collect())
    }
}

impl Copier {
    pub(crate) fn new(source: Source, target: Target, platforms: Platforms, referrers: bool) -> Self {
        Self {
            source,
            target,
            platforms,
            referrers,
            tally: Arc::default(),
            blobs: Semaphore::new(ALL_BLOBS),
            busy: Mutex::default(),
        }
    }

    /// Copies a list; gives the failures. `done` is told of each image when it ends.
    pub(crate) async fn copy_all(
        &self,
        references: &[Reference],
        done: &(dyn Fn(&Reference, &anyhow::Result<Digest>) + Sync),
    ) -> Vec<(Reference, anyhow::Error)> {
        let copies = futures::stream::iter(references).map(|reference| async move {
            let result = self.copy(reference).await;
            self.tally.images.fetch_add(1, Ordering::Relaxed);
            done(reference, &result);
            result.err().map(|error| (reference.clone(), error))
        });
        copies.buffer_unordered(IMAGES).filter_map(|failed| async { failed }).collect().await
    }

    /// Copies one image; gives its digest.
    async fn copy(&self, reference: &Reference) -> anyhow::Result<Digest> {
        let walk = Walk { copier: self, reference, manifests: AtomicU64::new(0) };
        let root = self.source.manifest(reference).await?;
        // An image that is there is whole; an index may have come with fewer of its images.
        let is_image = matches!(root.manifest, Manifest::Image(_));
        if !(is_image && self.target.has(reference, &root.digest).await?) {
            walk.below(&root, 0).await?;
        }
        self.target.put_named(reference, &root).await?;
        if self.referrers && !self.source.names_everything() {
            walk.referrers(&root, 0).await?;
        }
        Ok(root.digest)
    }
}

impl Walk<'_> {
    fn name(&self, digest: &Digest) -> Reference {
        self.reference.with_digest(digest.clone())
    }

    /// Everything that a manifest names.
    fn below<'a>(&'a self, document: &'a Document, depth: usize) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            let counted = self.manifests.fetch_add(1, Ordering::Relaxed);
            anyhow::ensure!(counted < MANIFESTS, "it has more than {MANIFESTS} manifests");
            anyhow::ensure!(depth < DEPTH, "indexes are nested too deeply");
            match &document.manifest {
                Manifest::Index(index) => {
                    for child in self.children(index, depth)? {
                        self.manifest(child, depth + 1)
                            .await
                            .with_context(|| format!("manifest {}", child.digest))?;
                    }
                    Ok(())
                }
                Manifest::Image(image) => {
                    // What has addresses of its own need not be in a registry (image-spec, non-distributable layers).
                    let layers = image.layers.iter().filter(|layer| layer.urls.is_empty());
                    let mut seen = BTreeSet::new();
                    let blobs: Vec<&Descriptor> = std::iter::once(&image.config)
                        .chain(layers)
                        .filter(|blob| seen.insert(&blob.digest))
                        .collect();
                    let copies = futures::stream::iter(blobs).map(|blob| self.blob(blob));
                    copies.buffer_unordered(BLOBS).try_collect::<()>().await
                }
            }
        }
        .boxed_local()
    }

    /// What is not in an incremental archive must be at the target, which `manifest` finds out.
    fn children<'b>(&self, index: &'b ImageIndex, depth: usize) -> anyhow::Result<Vec<&'b Descriptor>> {
        let source = &self.copier.source;
        if source.names_everything() {
            let here = index.manifests.iter().filter(|entry| source.may_have(&entry.digest));
            return Ok(here.collect());
        }
        if depth > 0 {
            return Ok(index.manifests.iter().collect());
        }
        Ok(self.copier.platforms.choose(index)?)
    }

    async fn manifest(&self, descriptor: &Descriptor, depth: usize) -> anyhow::Result<()> {
        let name = self.name(&descriptor.digest);
        let Copier { source, target, tally, .. } = self.copier;
        // An image that is there is whole; an index may have come with fewer of its images.
        let here = target.has(self.reference, &descriptor.digest).await?;
        if here && !is_index(&descriptor.media_type) {
            return Ok(());
        }
        let document = match here {
            true => target.manifest(self.reference, &descriptor.digest).await?,
            false => source.manifest(&name).await?,
        };
        self.below(&document, depth).await?;
        if !here {
            target.put(self.reference, &document).await?;
            tally.manifests.fetch_add(1, Ordering::Relaxed);
        }
        if self.copier.referrers && !source.names_everything() {
            self.referrers(&document, depth).await?;
        }
        Ok(())
    }

    async fn blob(&self, descriptor: &Descriptor) -> anyhow::Result<()> {
        let Copier { source, target, tally, blobs, busy, .. } = self.copier;
        let digest = &descriptor.digest;
        // Two images may share it: the second one finds it there.
        let turn =
            busy.lock().unwrap_or_else(PoisonError::into_inner).entry(digest.clone()).or_default().clone();
        let came = {
            let _turn = turn.lock().await;
            let _permit = blobs.acquire().await.context("the copy was ended")?;
            let name = self.name(digest);
            let open = || source.blob(&name, descriptor);
            target.blob(self.reference, descriptor, open).await.with_context(|| format!("blob {digest}"))?
        };
        match came {
            Came::Had | Came::Mounted => tally.had_blobs.fetch_add(1, Ordering::Relaxed),
            Came::Copied => {
                tally.copied_bytes.fetch_add(descriptor.size, Ordering::Relaxed);
                tally.copied_blobs.fetch_add(1, Ordering::Relaxed)
            }
        };
        let mut busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
        // Two holders: the map and this one.
        if Arc::strong_count(&turn) <= 2 {
            busy.remove(digest);
        }
        Ok(())
    }

    /// Signatures and whatever else refers to a manifest, by the API and by cosign's tags.
    fn referrers<'a>(
        &'a self,
        document: &'a Document,
        depth: usize,
    ) -> LocalBoxFuture<'a, anyhow::Result<()>> {
        async move {
            if depth >= DEPTH {
                return Ok(());
            }
            let Copier { source, target, .. } = self.copier;
            let digest = &document.digest;
            let found = source.referrers(self.reference, digest).await;
            for referrer in found.with_context(|| format!("referrers of {digest}"))? {
                let name = self.name(&referrer.digest);
                let document =
                    source.manifest(&name).await.with_context(|| format!("referrer {}", referrer.digest))?;
                self.below(&document, depth + 1).await?;
                target.put_named(&name, &document).await?;
                self.referrers(&document, depth + 1).await?;
            }
            for suffix in SIGNATURE_TAGS {
                let tag = format!("{}-{}.{suffix}", digest.algorithm().name(), digest.hex());
                let Ok(name) = self.reference.with_tag(&tag) else { continue };
                if let Some(document) = source.find(&name).await.with_context(|| format!("tag {tag}"))? {
                    self.below(&document, depth + 1).await?;
                    target.put_named(&name, &document).await?;
                }
            }
            Ok(())
        }
        .boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_and_what_belongs_to_them() {
        let digest = |text: &str| Digest::sha256(text.as_bytes());
        let entry = |text: &str, os: &str, architecture: &str, variant: Option<&str>| {
            let media_type = orlop_distribution::manifest::OCI_MANIFEST;
            let mut descriptor = Descriptor::new(media_type, digest(text), 1);
            descriptor.platform =
                Some(Platform { os: os.to_owned(), ..Platform::linux(architecture, variant) });
            descriptor
        };
        let mut attestation = entry("att", "unknown", "unknown", None);
        attestation.annotations = Some([(ATTESTED.to_owned(), digest("amd").to_string())].into());
        let index = ImageIndex {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests: vec![
                entry("amd", "linux", "amd64", None),
                entry("v7", "linux", "arm", Some("v7")),
                entry("v6", "linux", "arm", Some("v6")),
                attestation,
            ],
            subject: None,
            annotations: None,
        };
        let chosen = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            let chosen = Platforms::parse(&texts).unwrap().choose(&index).map(|chosen| {
                chosen
                    .into_iter()
                    .map(|entry| index.manifests.iter().position(|other| other == entry).unwrap())
                    .collect::<Vec<_>>()
            });
            chosen.map_err(|error| error.to_string())
        };
        assert_eq!(chosen(&["linux/amd64"]).unwrap(), [0, 3]);
        assert_eq!(chosen(&["linux/arm"]).unwrap(), [1, 2]);
        assert_eq!(chosen(&["linux/arm/v6,linux/amd64"]).unwrap(), [0, 2, 3]);
        assert_eq!(chosen(&["all"]).unwrap(), [0, 1, 2, 3]);
        assert!(chosen(&["linux/s390x"]).unwrap_err().contains("linux/arm/v7"));
        assert!(Platforms::parse(&["amd64".to_owned()]).is_err());
    }
}
