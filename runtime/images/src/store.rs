use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_distribution::Credential;
use orlop_distribution::blobs::{BlobStore, Durability};
use orlop_distribution::manifest::{MANIFEST_LIMIT, Manifest};
use orlop_types::{Digest, Reference};

use crate::catalog::{Catalog, NameRecord};
use crate::files::Paths;
use crate::layers::LayerStore;
use crate::lease::Lease;
use crate::pull::{self, Puller};
use crate::rootfs::{self, RootfsInfo};
use crate::unpack::{Budget, Limits};
use crate::{
    ArchiveFormat, Collected, Config, ImageError, ImageRecord, PullProgress, Rootfs, Usage, garbage,
};

/// Handle to the images of one node; cheap to clone. Methods that are not `async` do file work and must run where blocking is
/// allowed (`tokio::task::spawn_blocking`).
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) paths: Paths,
    pub(crate) blobs: BlobStore,
    pub(crate) layers: LayerStore,
    pub(crate) catalog: Catalog,
    pub(crate) puller: Puller,
    pub(crate) image_bytes: u64,
}

impl ImageStore {
    /// Opens or makes the store and repairs what a kill left behind.
    ///
    /// # Errors
    /// A directory that cannot be made or read.
    pub fn open(config: Config) -> Result<Self, ImageError> {
        fs::create_dir_all(&config.root).map_err(|source| ImageError::io("create", &config.root, source))?;
        let root =
            config.root.canonicalize().map_err(|source| ImageError::io("open", &config.root, source))?;
        let paths = Paths { root };
        paths.make_all()?;
        let blobs = BlobStore::open(&paths.content(), Durability::Commit)?;
        let limits = Limits { bytes: config.max_unpacked_bytes, entries: config.max_unpacked_entries };
        let layers = LayerStore::new(paths.clone(), limits)?;
        let catalog = Catalog::new(paths.clone(), blobs.clone(), &config.pinned);
        let puller = Puller::new(&config);
        let image_bytes = config.max_unpacked_image_bytes;
        let store = Self { inner: Arc::new(Inner { paths, blobs, layers, catalog, puller, image_bytes }) };
        // Also drops what no record refers to: after a loss of power that may be half written.
        store.collect_garbage()?;
        store.inner.layers.settle()?;
        Ok(store)
    }

    /// Fetches an image from its registry (or a mirror) and unpacks it.
    ///
    /// # Errors
    /// [`ImageError::kind`] tells whose fault it is.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<Credential>,
    ) -> Result<ImageRecord, ImageError> {
        pull::pull(&self.inner, reference, auth.filter(|credential| !credential.is_empty())).await
    }

    /// Every image, sorted by id.
    ///
    /// # Errors
    /// Records that cannot be read.
    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        Ok(self.inner.catalog.snapshot()?.images.values().cloned().collect())
    }

    /// The image that `text` names: a reference, an id, a prefix of an id (at least 4 hex digits), or a reference with digest.
    ///
    /// # Errors
    /// Records that cannot be read, or a prefix of several ids.
    pub fn find(&self, text: &str) -> Result<Option<ImageRecord>, ImageError> {
        Ok(self.inner.catalog.snapshot()?.find(text)?.cloned())
    }

    /// Removes the tag, or the whole image where `text` is an id or its last tag. What is unknown is removed already: Ok.
    /// Blobs and layers that nothing needs any more are removed, too; containers keep the layers they stand on.
    ///
    /// # Errors
    /// Records that cannot be read or removed.
    pub fn remove(&self, text: &str) -> Result<(), ImageError> {
        let inner = &self.inner;
        {
            let lock = inner.paths.lock_exclusive()?;
            let snapshot = inner.catalog.snapshot()?;
            let Some(image) = snapshot.find(text)? else { return Ok(()) };
            let tag = snapshot
                .find_name(text)
                .map(|record| record.name.as_str())
                .filter(|name| image.tags.iter().any(|tag| tag == name));
            let names: Vec<&str> = match tag {
                Some(tag) if image.tags.len() > 1 => vec![tag],
                _ => {
                    let ours = snapshot.names.iter().filter(|record| record.config.as_str() == image.id);
                    ours.map(|record| record.name.as_str()).collect()
                }
            };
            inner.catalog.change(&lock, || names.iter().try_for_each(|name| inner.catalog.delete(name)))?;
            tracing::info!(image = text, id = %image.id, names = names.len(), "image names removed");
        }
        self.collect_garbage()?;
        Ok(())
    }

    /// Removes every blob and layer that neither an image, nor a container, nor a running operation needs.
    ///
    /// # Errors
    /// Files that cannot be read or removed.
    pub fn collect_garbage(&self) -> Result<Collected, ImageError> {
        self.inner.collect_garbage()
    }

    /// The pulls that run now, oldest first.
    pub fn pulls(&self) -> Vec<PullProgress> {
        self.inner.puller.progress()
    }

    /// Sets or takes away the pin of the image that `text` names, under all its names. A pin by configuration stays.
    ///
    /// # Errors
    /// An unknown image, or records that cannot be changed.
    pub fn set_pinned(&self, text: &str, pinned: bool) -> Result<(), ImageError> {
        let Inner { paths, catalog, .. } = &*self.inner;
        let lock = paths.lock_exclusive()?;
        let snapshot = catalog.snapshot()?;
        let image = snapshot.find(text)?.ok_or_else(|| ImageError::Unknown(text.to_owned()))?;
        catalog.change(&lock, || {
            let ours = snapshot.names.iter().filter(|record| record.config.as_str() == image.id);
            ours.cloned().try_for_each(|record| catalog.put(&NameRecord { pinned, ..record }))
        })
    }

    /// Disk use of blobs and layers, without the containers' writable layers.
    ///
    /// # Errors
    /// Directories that cannot be read.
    pub fn usage(&self) -> Result<Usage, ImageError> {
        let mut usage = Usage::default();
        for (_, size) in self.inner.blobs.list()? {
            usage.bytes += size;
            usage.inodes += 1;
        }
        for layer in self.inner.layers.list()? {
            usage.bytes += layer.usage.bytes;
            usage.inodes += layer.usage.inodes;
        }
        Ok(usage)
    }

    /// Makes the writable directories of container `key` over image `image_id`. Idempotent for the same image. Mounts nothing.
    ///
    /// # Errors
    /// An unknown image, a key that belongs to a container of another image, or a full disk.
    pub fn prepare_rootfs(&self, key: &str, image_id: &str) -> Result<Rootfs, ImageError> {
        self.inner.prepare_rootfs(key, image_id)
    }

    /// The layers of image `image_id`, top first, for container `key` to mount as a volume. They stay until the container's directories are
    /// removed, also when the image is removed before. Mounts nothing.
    ///
    /// # Errors
    /// An unknown image or container, or a full disk.
    pub fn prepare_volume(&self, key: &str, image_id: &str) -> Result<Vec<PathBuf>, ImageError> {
        self.inner.prepare_volume(key, image_id)
    }

    /// Removes a container's directories. What is unknown is removed already: Ok.
    ///
    /// # Errors
    /// Files that cannot be removed.
    pub fn remove_rootfs(&self, key: &str) -> Result<(), ImageError> {
        let directory = rootfs::directory(&self.inner.paths, key)?;
        self.inner.paths.discard(&directory)?;
        self.inner.paths.empty_trash()
    }

    /// The keys that have directories.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn rootfs_keys(&self) -> Result<Vec<String>, ImageError> {
        rootfs::keys(&self.inner.paths)
    }

    /// Disk use of a container's writable layer; zero for an unknown key.
    ///
    /// # Errors
    /// Directories that cannot be read.
    pub fn rootfs_usage(&self, key: &str) -> Result<Usage, ImageError> {
        rootfs::disk_usage(&rootfs::directory(&self.inner.paths, key)?.join("fs"))
    }

    /// Imports every image of an archive or OCI layout directory; all or nothing. Imported images are pinned.
    ///
    /// # Errors
    /// The archive is refused with the entry or digest that is wrong; nothing is stored then.
    pub fn import(&self, path: &Path) -> Result<Vec<ImageRecord>, ImageError> {
        self.inner.import(path, None)
    }

    /// As [`ImageStore::import`], with a name for images that carry none (and a repository for those that carry only a tag).
    ///
    /// # Errors
    /// As [`ImageStore::import`].
    pub fn import_named(&self, path: &Path, name: Reference) -> Result<Vec<ImageRecord>, ImageError> {
        self.inner.import(path, Some(name))
    }

    /// Writes images to an archive.
    ///
    /// # Errors
    /// An unknown image, a damaged blob, or the output file's own error.
    pub fn export(
        &self,
        references: &[String],
        path: &Path,
        format: ArchiveFormat,
    ) -> Result<(), ImageError> {
        self.inner.export(references, path, format)
    }
}

impl Inner {
    pub(crate) fn collect_garbage(&self) -> Result<Collected, ImageError> {
        garbage::collect(&self.paths, &self.blobs, &self.layers, &self.catalog)
    }

    /// Makes images visible. Their blobs are on disk for good; their layers can be had from those.
    pub(crate) fn commit_records(&self, records: &[NameRecord]) -> Result<(), ImageError> {
        let lock = self.paths.lock_exclusive()?;
        self.catalog.change(&lock, || {
            for record in records {
                let known = crate::files::read_json::<NameRecord>(&self.catalog.path(&record.name))?;
                // A pull of what was imported does not take the pin away.
                let pinned =
                    record.pinned || known.is_some_and(|known| known.pinned && known.config == record.config);
                self.catalog.put(&NameRecord { pinned, ..record.clone() })?;
            }
            Ok(())
        })
    }

    fn prepare_rootfs(&self, key: &str, image_id: &str) -> Result<Rootfs, ImageError> {
        let directory = rootfs::directory(&self.paths, key)?;
        let info = match rootfs::read(&directory)? {
            Some(info) if info.image == image_id || self.is_image(image_id, &info.image)? => info,
            Some(info) => {
                return Err(ImageError::Invalid {
                    what: "container key",
                    text: key.to_owned(),
                    reason: format!("it stands on image {}", info.image),
                });
            }
            None => self.create_rootfs(&directory, image_id)?,
        };
        if !info.chain.iter().all(|chain_id| self.layers.exists(chain_id)) {
            self.restore_layers(&info)?;
        }
        let lower = self.trees(&info.chain)?;
        Ok(Rootfs { lower, upper: directory.join("fs"), work: directory.join("work") })
    }

    /// The directories of a chain, top first; at least one.
    fn trees(&self, chain: &[Digest]) -> Result<Vec<PathBuf>, ImageError> {
        let mut trees: Vec<PathBuf> = self.layers.visible(chain)?;
        if trees.is_empty() {
            trees.push(self.layers.empty_tree()?);
        }
        Ok(trees)
    }

    fn prepare_volume(&self, key: &str, image_id: &str) -> Result<Vec<PathBuf>, ImageError> {
        let directory = rootfs::directory(&self.paths, key)?;
        let info = rootfs::read(&directory)?.ok_or_else(|| ImageError::Invalid {
            what: "container key",
            text: key.to_owned(),
            reason: "no such container".to_owned(),
        })?;
        let lease = Lease::new(&self.paths)?;
        let snapshot = self.catalog.snapshot()?;
        let image = snapshot.find(image_id)?.ok_or_else(|| ImageError::Unknown(image_id.to_owned()))?;
        for chain_id in &image.chain {
            lease.keep_layer(chain_id)?;
        }
        self.ensure_layers(&lease, image)?;
        rootfs::keep_volume(&directory, info, &image.chain)?;
        self.trees(&image.chain)
    }

    fn is_image(&self, text: &str, id: &str) -> Result<bool, ImageError> {
        Ok(self.catalog.snapshot()?.find(text)?.is_some_and(|image| image.id == id))
    }

    fn create_rootfs(&self, directory: &Path, image_id: &str) -> Result<RootfsInfo, ImageError> {
        let lease = Lease::new(&self.paths)?;
        let snapshot = self.catalog.snapshot()?;
        let image = snapshot.find(image_id)?.ok_or_else(|| ImageError::Unknown(image_id.to_owned()))?;
        for chain_id in &image.chain {
            lease.keep_layer(chain_id)?;
        }
        self.ensure_layers(&lease, image)?;
        let top = match image.chain.last() {
            Some(chain_id) => self.layers.tree(chain_id),
            None => self.layers.empty_tree()?,
        };
        let info = RootfsInfo {
            version: 1,
            image: image.id.clone(),
            chain: image.chain.clone(),
            volumes: Vec::new(),
        };
        rootfs::create(&self.paths, directory, lease.session(), &info, &top)?;
        Ok(info)
    }

    /// For a container that is older than the running system: its layers may have been doubtful.
    fn restore_layers(&self, info: &RootfsInfo) -> Result<(), ImageError> {
        let lease = Lease::new(&self.paths)?;
        let snapshot = self.catalog.snapshot()?;
        let image = snapshot.find(&info.image)?.ok_or_else(|| ImageError::Unknown(info.image.clone()))?;
        self.ensure_layers(&lease, image)
    }

    /// Unpacks layers again that a record needs and that are gone.
    fn ensure_layers(&self, lease: &Lease, image: &ImageRecord) -> Result<(), ImageError> {
        if image.chain.iter().all(|chain_id| self.layers.exists(chain_id)) {
            return Ok(());
        }
        let damaged =
            |digest: &Digest, reason: String| ImageError::Damaged { digest: digest.clone(), reason };
        let bytes = self.blobs.read(&image.manifest, MANIFEST_LIMIT)?;
        let bytes = bytes.ok_or_else(|| damaged(&image.manifest, "it is missing".to_owned()))?;
        let Ok(Manifest::Image(manifest)) = Manifest::parse(&bytes, None) else {
            return Err(damaged(&image.manifest, "it is no image manifest".to_owned()));
        };
        let diff_ids: Vec<Digest> =
            image.config.rootfs().diff_ids().iter().filter_map(|text| text.parse().ok()).collect();
        let budget = Budget::new(self.image_bytes);
        for (index, ((chain_id, layer), diff_id)) in
            image.chain.iter().zip(&manifest.layers).zip(&diff_ids).enumerate()
        {
            if !self.layers.exists(chain_id) {
                self.unpack_stored(lease, &layer.digest, diff_id, &image.chain[..=index], &budget)?;
            }
        }
        Ok(())
    }

    /// Unpacks a layer from its blob onto those below it. `chain` ends with the layer's own chain id.
    pub(crate) fn unpack_stored(
        &self,
        lease: &Lease,
        layer: &Digest,
        diff_id: &Digest,
        chain: &[Digest],
        budget: &Budget,
    ) -> Result<(), ImageError> {
        let (chain_id, below) = chain.split_last().expect("the chain holds at least the layer itself");
        let missing = || ImageError::Damaged { digest: layer.clone(), reason: "it is missing".to_owned() };
        let blob = self.blobs.open_blob(layer)?.ok_or_else(missing)?;
        let lower = self.layers.lower_view(below)?;
        let staged = self.layers.stage(lease.session(), blob, diff_id, Some(&lower), budget);
        let staged = staged.map_err(|source| ImageError::Unpack { digest: layer.clone(), source })?;
        self.layers.commit(staged, chain_id)
    }
}
