//! The files of ConfigMap, Secret, downward API and projected volumes, as values. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;

use crate::container::env::{Downward, EnvError};

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
}

/// Files by path below the volume's root.
pub(crate) type Files = BTreeMap<String, File>;

/// Why a volume has no content.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PayloadError {
    #[error("{kind} {name:?} not found")]
    Missing { kind: &'static str, name: String },
    #[error("references non-existent {kind} key: {key}")]
    NoKey { kind: &'static str, key: String },
    #[error("invalid path {0:?}: must be relative and must not contain '..'")]
    Path(String),
    #[error(transparent)]
    Downward(#[from] EnvError),
}

/// Mode of files that say none.
pub(crate) const DEFAULT_MODE: i32 = 0o644;

fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o777
}

/// Paths stay below the volume.
pub(crate) fn check_path(path: &str) -> Result<(), PayloadError> {
    let bad = path.is_empty()
        || path.starts_with('/')
        || path.split('/').any(|part| part == "..")
        || path.starts_with("..");
    if bad { Err(PayloadError::Path(path.to_owned())) } else { Ok(()) }
}

fn select(
    kind: &'static str,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<core::KeyToPath>>,
    default_mode: Option<i32>,
    optional: bool,
) -> Result<Files, PayloadError> {
    let mut files = Files::new();
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, bytes) in data {
            files.insert(key.clone(), File { bytes: bytes.clone(), mode: mode(None, default_mode) });
        }
        return Ok(files);
    };
    for item in items {
        check_path(&item.path)?;
        match data.get(&item.key) {
            Some(bytes) => drop(files.insert(
                item.path.clone(),
                File { bytes: bytes.clone(), mode: mode(item.mode, default_mode) },
            )),
            None if optional => {}
            None => {
                return Err(PayloadError::NoKey { kind, key: item.key.clone() });
            }
        }
    }
    Ok(files)
}

/// `configMap`. `object` is `None` when it does not exist.
pub(crate) fn config_map(
    name: &str,
    object: Option<&core::ConfigMap>,
    items: Option<&Vec<core::KeyToPath>>,
    default_mode: Option<i32>,
    optional: bool,
) -> Result<Files, PayloadError> {
    let Some(object) = object else {
        return if optional {
            Ok(Files::new())
        } else {
            Err(PayloadError::Missing { kind: "configmap", name: name.to_owned() })
        };
    };
    let text = object.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    select("config", &text.chain(binary).collect(), items, default_mode, optional)
}

/// `secret`.
pub(crate) fn secret(
    name: &str,
    object: Option<&core::Secret>,
    items: Option<&Vec<core::KeyToPath>>,
    default_mode: Option<i32>,
    optional: bool,
) -> Result<Files, PayloadError> {
    let Some(object) = object else {
        return if optional {
            Ok(Files::new())
        } else {
            Err(PayloadError::Missing { kind: "secret", name: name.to_owned() })
        };
    };
    let data = object.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    select("secret", &data.collect(), items, default_mode, optional)
}

/// `downwardAPI`.
pub(crate) fn downward(
    items: Option<&Vec<core::DownwardAPIVolumeFile>>,
    default_mode: Option<i32>,
    facts: &Downward<'_>,
) -> Result<Files, PayloadError> {
    let mut files = Files::new();
    for item in items.into_iter().flatten() {
        check_path(&item.path)?;
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => facts.field(&field.field_path)?,
            (None, Some(selector)) => facts.resource(selector, None)?,
            (None, None) => String::new(),
        };
        files.insert(
            item.path.clone(),
            File { bytes: text.into_bytes(), mode: mode(item.mode, default_mode) },
        );
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, path: &str, mode: Option<i32>) -> core::KeyToPath {
        core::KeyToPath { key: key.into(), path: path.into(), mode }
    }

    #[test]
    fn items_modes_and_what_is_missing() {
        let map: core::ConfigMap =
            serde_json::from_value(serde_json::json!({"data": {"a": "1", "b": "2"}})).unwrap();
        let all = config_map("m", Some(&map), None, Some(0o400), false).unwrap();
        assert_eq!(all["a"], File { bytes: b"1".to_vec(), mode: 0o400 });
        assert_eq!(all.len(), 2);
        let picked =
            config_map("m", Some(&map), Some(&vec![item("a", "x/y", Some(0o600))]), None, false).unwrap();
        assert_eq!(picked.keys().collect::<Vec<_>>(), ["x/y"]);
        assert_eq!(picked["x/y"].mode, 0o600);
        let missing = vec![item("z", "z", None)];
        assert!(config_map("m", Some(&map), Some(&missing), None, true).unwrap().is_empty());
        let error = config_map("m", Some(&map), Some(&missing), None, false).unwrap_err();
        assert_eq!(error.to_string(), "references non-existent config key: z");
        assert_eq!(
            config_map("m", None, None, None, false).unwrap_err().to_string(),
            "configmap \"m\" not found"
        );
        assert!(config_map("m", None, None, None, true).unwrap().is_empty());
        for path in ["../x", "/x", "a/../b", "", "..data"] {
            assert!(check_path(path).is_err(), "{path}");
        }
    }
}
