//! Volumes of pods: set up before the sandbox, refreshed while the pod runs, taken down after its last container.
//!
//! ```text
//!   ROOT/pods/UID/volumes/kubernetes.io~KIND/NAME     on disk: emptyDir, configMap, downwardAPI
//!   MEMORY/pods/UID/volumes/kubernetes.io~KIND/NAME   on tmpfs: secret, projected (it holds tokens)
//!   ROOT/pods/UID/volume-subpaths/VOLUME/CONTAINER/N  bind mounts of sub paths
//! ```
//! Setting up is idempotent; refreshing is setting up again.

pub(crate) mod host;
pub(crate) mod payload;
mod tokens;
pub(crate) mod writer;

use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;
use orlop_cri::v1 as cri;

use crate::container::env::{self, Downward};
use crate::objects::ApiObjects;
use crate::pod::model;
use crate::quantity;
use payload::{File, Files, PayloadError};
use writer::Owner;

/// Why a volume cannot be used; shown in a FailedMount event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
    SetUp { volume: String, cause: String },
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}: {cause}")]
    SubPath { volume: String, container: String, cause: String },
    #[error("{0}")]
    NoSubPath(String),
    #[error("volumeMount {volume:?} of container {container:?} names no volume of the pod")]
    Unknown { volume: String, container: String },
}

/// All volumes of this node's pods.
pub(crate) struct Volumes {
    root: PathBuf,
    memory: PathBuf,
    objects: ApiObjects,
    tokens: tokens::Tokens,
    /// Set once the pods' directory hands its mounts on.
    shared: tokio::sync::OnceCell<()>,
}

enum Source<'a> {
    EmptyDir(&'a core::EmptyDirVolumeSource),
    HostPath(&'a core::HostPathVolumeSource),
    ConfigMap(&'a core::ConfigMapVolumeSource),
    Secret(&'a core::SecretVolumeSource),
    Downward(&'a core::DownwardAPIVolumeSource),
    Projected(&'a core::ProjectedVolumeSource),
    Other,
}

fn source(volume: &core::Volume) -> Source<'_> {
    if let Some(source) = &volume.empty_dir {
        Source::EmptyDir(source)
    } else if let Some(source) = &volume.host_path {
        Source::HostPath(source)
    } else if let Some(source) = &volume.config_map {
        Source::ConfigMap(source)
    } else if let Some(source) = &volume.secret {
        Source::Secret(source)
    } else if let Some(source) = &volume.downward_api {
        Source::Downward(source)
    } else if let Some(source) = &volume.projected {
        Source::Projected(source)
    } else {
        Source::Other
    }
}

/// Name of a kind that is not supported, for the error.
fn kind_of(volume: &core::Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let key = value.as_object().and_then(|map| map.keys().find(|key| *key != "name").cloned());
    key.unwrap_or_else(|| "none".to_owned())
}

fn fs_group(pod: &core::Pod) -> Option<u32> {
    let group = model::spec(pod).security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The user of all containers, when they have the same: it may own token files.
fn common_user(pod: &core::Pod) -> Option<u32> {
    let shared = model::spec(pod).security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users = model::containers(pod).into_iter().map(|(_, container)| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(shared)
    });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

impl Volumes {
    pub(crate) fn new(root: PathBuf, memory: PathBuf, client: kube::Client) -> Self {
        let (objects, tokens) = (ApiObjects::new(client.clone()), tokens::Tokens::new(client));
        Self { root, memory, objects, tokens, shared: tokio::sync::OnceCell::new() }
    }

    /// A pod's directory on disk.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    fn memory_dir(&self, uid: &str) -> PathBuf {
        self.memory.join("pods").join(uid)
    }

    fn path(&self, uid: &str, volume: &core::Volume) -> PathBuf {
        let (base, kind) = match source(volume) {
            Source::EmptyDir(_) => (self.pod_dir(uid), "empty-dir"),
            Source::HostPath(source) => return PathBuf::from(&source.path),
            Source::ConfigMap(_) => (self.pod_dir(uid), "configmap"),
            Source::Secret(_) => (self.memory_dir(uid), "secret"),
            Source::Downward(_) => (self.pod_dir(uid), "downward-api"),
            Source::Projected(_) => (self.memory_dir(uid), "projected"),
            Source::Other => (self.pod_dir(uid), "unsupported"),
        };
        base.join("volumes").join(format!("kubernetes.io~{kind}")).join(&volume.name)
    }

    /// Makes every volume hold what it should.
    pub(crate) async fn set_up(&self, downward: &Downward<'_>) -> Result<(), VolumeError> {
        if let Some(volume) = volume_with_sub_path(downward.pod) {
            let pods = self.root.join("pods");
            let share = || blocking(move || host::share_mounts(&pods).map_err(|error| error.to_string()));
            let shared = self.shared.get_or_try_init(share).await;
            shared.map_err(|cause| VolumeError::SetUp { volume, cause })?;
        }
        let volumes = model::spec(downward.pod).volumes.iter().flatten();
        futures::future::try_join_all(volumes.map(|volume| self.set_up_one(volume, downward))).await?;
        Ok(())
    }

    async fn set_up_one(&self, volume: &core::Volume, downward: &Downward<'_>) -> Result<(), VolumeError> {
        let failed = |cause: String| VolumeError::SetUp { volume: volume.name.clone(), cause };
        let pod = downward.pod;
        let path = self.path(model::uid(pod), volume);
        let group = fs_group(pod);
        match source(volume) {
            Source::EmptyDir(source) => {
                let source = source.clone();
                let pod_memory = crate::container::resources::pod_limits(pod).memory_bytes;
                blocking(move || empty_dir(&path, &source, group, pod_memory)).await.map_err(failed)
            }
            Source::HostPath(source) => {
                let kind = source.type_.clone().unwrap_or_default();
                blocking(move || host::check_host_path(&path, &kind)).await.map_err(failed)
            }
            Source::Other => {
                Err(failed(format!("volumes of type {} are not supported by this kubelet", kind_of(volume))))
            }
            Source::ConfigMap(_) | Source::Secret(_) | Source::Downward(_) | Source::Projected(_) => {
                let mut files = self.files(volume, downward).await.map_err(failed)?;
                let mut owner = Owner { user: None, group };
                if let Source::Projected(_) = source(volume) {
                    owner.user = if group.is_none() { common_user(pod) } else { None };
                }
                if group.is_some() {
                    // Read-only volumes: the group may read what the owner may (upstream: roMask).
                    files.values_mut().for_each(|file| file.mode |= 0o440);
                }
                blocking(move || {
                    writer::write(&path, &files, owner).map(drop).map_err(|error| error.to_string())
                })
                .await
                .map_err(failed)
            }
        }
    }

    async fn files(&self, volume: &core::Volume, downward: &Downward<'_>) -> Result<Files, String> {
        let text = |error: PayloadError| error.to_string();
        let namespace = model::namespace(downward.pod);
        match source(volume) {
            Source::ConfigMap(source) => {
                let object = self
                    .objects
                    .config_map(namespace, &source.name)
                    .await
                    .map_err(|error| error.to_string())?;
                let optional = source.optional == Some(true);
                payload::config_map(
                    &source.name,
                    object.as_ref(),
                    source.items.as_ref(),
                    source.default_mode,
                    optional,
                )
                .map_err(text)
            }
            Source::Secret(source) => {
                let name = source.secret_name.clone().unwrap_or_default();
                let object = self
                    .objects
                    .secret(namespace, &name)
                    .await
                    .map_err(|error| crate::objects::words(&error))?;
                let optional = source.optional == Some(true);
                payload::secret(&name, object.as_ref(), source.items.as_ref(), source.default_mode, optional)
                    .map_err(text)
            }
            Source::Downward(source) => {
                payload::downward(source.items.as_ref(), source.default_mode, downward).map_err(text)
            }
            Source::Projected(source) => {
                let parts = source.sources.iter().flatten();
                let parts = futures::future::try_join_all(
                    parts.map(|part| self.projection(part, source.default_mode, downward)),
                )
                .await?;
                Ok(parts.into_iter().flatten().collect())
            }
            Source::EmptyDir(_) | Source::HostPath(_) | Source::Other => Ok(Files::new()),
        }
    }

    async fn projection(
        &self,
        part: &core::VolumeProjection,
        mode: Option<i32>,
        downward: &Downward<'_>,
    ) -> Result<Files, String> {
        let text = |error: PayloadError| error.to_string();
        let pod = downward.pod;
        let namespace = model::namespace(pod);
        if let Some(source) = &part.service_account_token {
            payload::check_path(&source.path).map_err(text)?;
            let token = self
                .tokens
                .get(pod, source)
                .await
                .map_err(|error| format!("failed to fetch token: {error}"))?;
            let narrow = fs_group(pod).is_some() || common_user(pod).is_some();
            let mode = if narrow {
                0o600
            } else {
                u32::try_from(mode.unwrap_or(payload::DEFAULT_MODE)).unwrap_or(0o644)
            };
            return Ok(Files::from([(source.path.clone(), File { bytes: token.into_bytes(), mode })]));
        }
        if let Some(source) = &part.config_map {
            let object = self
                .objects
                .config_map(namespace, &source.name)
                .await
                .map_err(|error| crate::objects::words(&error))?;
            let optional = source.optional == Some(true);
            return payload::config_map(&source.name, object.as_ref(), source.items.as_ref(), mode, optional)
                .map_err(text);
        }
        if let Some(source) = &part.secret {
            let object = self
                .objects
                .secret(namespace, &source.name)
                .await
                .map_err(|error| crate::objects::words(&error))?;
            let optional = source.optional == Some(true);
            return payload::secret(&source.name, object.as_ref(), source.items.as_ref(), mode, optional)
                .map_err(text);
        }
        if let Some(source) = &part.downward_api {
            return payload::downward(source.items.as_ref(), mode, downward).map_err(text);
        }
        Err("this kind of projected source is not supported by this kubelet".to_owned())
    }

    /// Whether something in the pod's volumes changes while it runs.
    pub(crate) fn has_live_content(pod: &core::Pod) -> bool {
        model::spec(pod).volumes.iter().flatten().any(is_live)
    }

    /// The mounts that a container asks for.
    pub(crate) async fn mounts(
        &self,
        pod: &core::Pod,
        container: &core::Container,
        env: &[(String, String)],
    ) -> Result<Vec<cri::Mount>, VolumeError> {
        let uid = model::uid(pod);
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let volume = model::spec(pod).volumes.iter().flatten().find(|volume| volume.name == mount.name);
            let Some(volume) = volume else {
                return Err(VolumeError::Unknown {
                    volume: mount.name.clone(),
                    container: container.name.clone(),
                });
            };
            let mut host_path = self.path(uid, volume);
            if let Some(sub_path) = sub_path(mount, env)? {
                let target = self
                    .pod_dir(uid)
                    .join("volume-subpaths")
                    .join(&volume.name)
                    .join(&container.name)
                    .join(index.to_string());
                let (root, bound) = (host_path, target.clone());
                blocking(move || {
                    host::bind_sub_path(&root, &sub_path, &bound).map_err(|error| error.to_string())
                })
                .await
                .map_err(|cause| VolumeError::SubPath {
                    volume: volume.name.clone(),
                    container: container.name.clone(),
                    cause,
                })?;
                host_path = target;
            }
            mounts.push(cri::Mount {
                container_path: mount.mount_path.clone(),
                host_path: host_path.to_string_lossy().into_owned(),
                // What the kubelet writes from the API no container changes (upstream: Attributes.ReadOnly).
                readonly: mount.read_only == Some(true) || is_live(volume),
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer as i32,
                    Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional as i32,
                    _ => cri::MountPropagation::PropagationPrivate as i32,
                },
                recursive_read_only: mount.recursive_read_only.as_deref() == Some("Enabled"),
                ..Default::default()
            });
        }
        Ok(mounts)
    }

    /// Takes a pod's volumes and all other files of it away.
    pub(crate) async fn tear_down(&self, uid: &str) -> Result<(), String> {
        self.tokens.forget(uid);
        let dirs = [self.pod_dir(uid), self.memory_dir(uid)];
        blocking(move || {
            dirs.iter().try_for_each(|dir| host::remove_tree(dir)).map_err(|error| error.to_string())
        })
        .await
    }

    /// As [`Volumes::tear_down`], for callers off the async threads.
    pub(crate) fn tear_down_now(&self, uid: &str) -> io::Result<()> {
        [self.pod_dir(uid), self.memory_dir(uid)].iter().try_for_each(|dir| host::remove_tree(dir))
    }

    /// UIDs that have directories.
    pub(crate) fn known_uids(&self) -> Vec<String> {
        let dirs = [self.root.join("pods"), self.memory.join("pods")];
        let entries = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// Content of the API, kept up to date by the kubelet.
fn is_live(volume: &core::Volume) -> bool {
    matches!(
        source(volume),
        Source::ConfigMap(_) | Source::Secret(_) | Source::Downward(_) | Source::Projected(_)
    )
}

/// The first volume that a container mounts a part of.
fn volume_with_sub_path(pod: &core::Pod) -> Option<String> {
    let given = |path: &Option<String>| path.as_ref().is_some_and(|path| !path.is_empty());
    model::containers(pod).iter().find_map(|(_, container)| {
        let mut mounts = container.volume_mounts.iter().flatten();
        mounts
            .find(|mount| given(&mount.sub_path) || given(&mount.sub_path_expr))
            .map(|mount| mount.name.clone())
    })
}

/// The part of a volume that a mount is of. An expression with a variable that is not set is an error, never a directory named like it.
fn sub_path(mount: &core::VolumeMount, env: &[(String, String)]) -> Result<Option<String>, VolumeError> {
    let given = |path: &Option<String>| path.clone().filter(|path| !path.is_empty());
    let path = match (given(&mount.sub_path), given(&mount.sub_path_expr)) {
        (Some(path), _) => path,
        (None, None) => return Ok(None),
        (None, Some(expression)) => {
            let missing = std::cell::RefCell::new(Vec::new());
            let path = env::expand(&expression, |name| {
                let value = env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
                if value.is_none() {
                    missing.borrow_mut().push(name.to_owned());
                }
                value
            });
            let missing = missing.into_inner();
            if !missing.is_empty() {
                return Err(VolumeError::NoSubPath(format!("missing value for {}", missing.join(", "))));
            }
            path
        }
    };
    if path.starts_with('/') {
        return Err(VolumeError::NoSubPath(format!("error SubPath `{path}` must not be an absolute path")));
    }
    if path.split('/').any(|part| part == "..") {
        let text = format!("unable to provision SubPath `{path}`: must not contain '..'");
        return Err(VolumeError::NoSubPath(text));
    }
    Ok(Some(path).filter(|path| !path.is_empty()))
}

fn empty_dir(
    path: &Path,
    source: &core::EmptyDirVolumeSource,
    group: Option<u32>,
    pod_memory: Option<i64>,
) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    use std::os::unix::fs::PermissionsExt as _;
    let fresh = !path.exists();
    std::fs::create_dir_all(path).map_err(text)?;
    let limit =
        source.size_limit.as_ref().and_then(|limit| quantity::bytes(&limit.0)).filter(|limit| *limit > 0);
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => {
            let pod_memory = pod_memory.and_then(|bytes| u64::try_from(bytes).ok());
            let size = match (limit, pod_memory) {
                (Some(limit), Some(memory)) => Some(limit.min(memory)),
                (limit, memory) => limit.or(memory),
            };
            host::mount_tmpfs(path, size).map_err(text)?;
        }
        other => {
            return Err(format!("emptyDir of medium {other:?} is not supported by this kubelet"));
        }
    }
    if fresh {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).map_err(text)?;
        if let Some(group) = group {
            host::give_to_group(path, group).map_err(text)?;
        }
    }
    Ok(())
}

/// Runs file system work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These are mounted read-only whatever the mount asks for.
    #[test]
    fn content_of_the_api_is_told_from_volumes_of_the_pod() {
        for (kind, live) in [
            ("configMap", true),
            ("secret", true),
            ("downwardAPI", true),
            ("projected", true),
            ("emptyDir", false),
            ("hostPath", false),
        ] {
            let volume: core::Volume =
                serde_json::from_value(serde_json::json!({"name": "v", kind: {"path": "/p"}})).unwrap();
            assert_eq!(is_live(&volume), live, "{kind}");
        }
    }

    #[test]
    fn sub_paths_are_expanded_whole_or_not_at_all() {
        let env = [
            ("A".to_owned(), "a".to_owned()),
            ("UP".to_owned(), "..".to_owned()),
            ("E".to_owned(), String::new()),
        ];
        for (path, expression, expected) in [
            (Some("plain/$(A)"), None, Ok(Some("plain/$(A)"))),
            (None, Some("x/$(A)"), Ok(Some("x/a"))),
            (None, Some("$$(A)"), Ok(Some("$(A)"))),
            (None, None, Ok(None)),
            (None, Some("$(E)"), Ok(None)),
            (None, Some("$(A)/$(B)"), Err("missing value for B")),
            (None, Some("$(E)/$(A)"), Err("error SubPath `/a` must not be an absolute path")),
            (None, Some("$(UP)"), Err("unable to provision SubPath `..`: must not contain '..'")),
        ] {
            let mount = core::VolumeMount {
                sub_path: path.map(str::to_owned),
                sub_path_expr: expression.map(str::to_owned),
                ..Default::default()
            };
            let found = sub_path(&mount, &env).map_err(|error| error.to_string());
            let expected = expected.map(|path| path.map(str::to_owned)).map_err(str::to_owned);
            assert_eq!(found, expected, "{expression:?}");
        }
    }
}
