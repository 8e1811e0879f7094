//! CDI devices: what vendors' files on this machine say a device does to a container (Container Device Interface).
//!
//! Files are read anew for every container that asks for devices: drivers write them at any time, and few containers ask.

mod inject;
mod model;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use orlop_cri::v1;

use crate::error::CriError;
use model::{Edits, Specification};

pub(crate) use inject::inject;

/// Larger files were not written by a driver.
const FILE_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
/// Files of one directory.
const FILE_LIMIT: usize = 1024;
/// Annotations with this prefix name devices too: the way before the CRI had a field.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// The devices that a container asks for, qualified names, each once: those of the CRI's field first.
///
/// # Errors
/// An annotation that names no device.
pub(crate) fn wanted(config: &v1::ContainerConfig) -> Result<Vec<String>, CriError> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    };
    for device in &config.cdi_devices {
        add(&device.name);
    }
    let mut annotations: Vec<_> = config.annotations.iter().collect();
    annotations.sort();
    for (key, value) in annotations.into_iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX)) {
        for name in value.split(',') {
            split_name(name).map_err(|problem| {
                CriError::Invalid(format!("failed to parse CDI device annotations: {key}: {problem}"))
            })?;
            add(name);
        }
    }
    Ok(names)
}

/// `vendor/class=name` as kind and name.
fn split_name(qualified: &str) -> Result<(&str, &str), String> {
    let wrong = || format!("{qualified:?} is not a qualified device name, vendor/class=name");
    let (kind, name) = qualified.split_once('=').ok_or_else(wrong)?;
    let (vendor, class) = kind.split_once('/').ok_or_else(wrong)?;
    model::check_name("vendor", vendor, "_-.", false)?;
    model::check_name("class", class, "_-.", false)?;
    model::check_name("device name", name, "_-.:", true)?;
    Ok((kind, name))
}

/// A device of a file: which file, and its place in it.
type Place = (usize, usize);

/// All devices of the machine.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    specifications: Vec<Specification>,
    devices: BTreeMap<String, Place>,
}

impl Registry {
    /// Reads directories, least important first. Files that are wrong are logged and left out: another vendor's device must not fail for them.
    pub(crate) fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for directory in directories {
            let mut of_directory: BTreeMap<String, Option<Place>> = BTreeMap::new();
            for path in files(directory) {
                match read_file(&path) {
                    Ok(specification) => registry.take(specification, &path, &mut of_directory),
                    Err(problem) => {
                        tracing::warn!(file = %path.display(), problem, "a CDI specification is left out");
                    }
                }
            }
            for (name, place) in of_directory {
                match place {
                    Some(place) => registry.devices.insert(name, place),
                    None => registry.devices.remove(&name),
                };
            }
        }
        registry
    }

    /// Two files of one directory with the same device: neither can be preferred.
    fn take(
        &mut self,
        specification: Specification,
        path: &Path,
        known: &mut BTreeMap<String, Option<Place>>,
    ) {
        let at = self.specifications.len();
        for (index, device) in specification.devices.iter().enumerate() {
            let name = format!("{}={}", specification.kind, device.name);
            match known.get_mut(&name) {
                None => {
                    known.insert(name, Some((at, index)));
                }
                Some(place) => {
                    tracing::warn!(file = %path.display(), device = name, "two CDI specifications define one device");
                    *place = None;
                }
            }
        }
        self.specifications.push(specification);
    }

    /// The edits of these devices in order, each file's own before its first device's.
    ///
    /// # Errors
    /// The names that are unknown, in containerd's words.
    pub(crate) fn edits(&self, names: &[String]) -> Result<Vec<&Edits>, CriError> {
        let unknown: Vec<&str> =
            names.iter().map(String::as_str).filter(|name| !self.devices.contains_key(*name)).collect();
        if !unknown.is_empty() {
            return Err(CriError::Invalid(format!(
                "CDI device injection failed: unresolvable CDI devices {}",
                unknown.join(", ")
            )));
        }
        let mut edits = Vec::new();
        let mut begun = Vec::new();
        for (at, index) in names.iter().filter_map(|name| self.devices.get(name)).copied() {
            if !begun.contains(&at) {
                begun.push(at);
                edits.push(&self.specifications[at].container_edits);
            }
            edits.push(&self.specifications[at].devices[index].container_edits);
        }
        Ok(edits)
    }
}

/// `*.json` and `*.yaml`, by name. A directory that is not there has none.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let named = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "json" || kind == "yaml");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(named).take(FILE_LIMIT).collect();
    paths.sort();
    paths
}

fn read_file(path: &Path) -> Result<Specification, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > FILE_LIMIT_BYTES {
        return Err(format!("{size} bytes are too many"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let specification: Specification = if path.extension().is_some_and(|kind| kind == "json") {
        serde_json::from_str(&text).map_err(|error| error.to_string())?
    } else {
        serde_saphyr::from_str(&text).map_err(|error| error.to_string())?
    };
    specification.check()?;
    Ok(specification)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join(name), text).unwrap();
    }

    fn yaml(kind: &str, device: &str, variable: &str) -> String {
        format!(
            "cdiVersion: \"0.6.0\"\nkind: {kind}\ncontainerEdits:\n  env: [\"ALL={variable}\"]\ndevices:\n- name: {device}\n  containerEdits:\n    env: [\"ONE={variable}\"]\n"
        )
    }

    #[test]
    fn later_directories_win_and_conflicts_lose() {
        let directory = tempfile::tempdir().unwrap();
        let (etc, run) = (directory.path().join("etc"), directory.path().join("run"));
        write(&etc, "a.yaml", &yaml("vendor.com/gpu", "0", "etc"));
        write(
            &etc,
            "b.json",
            r#"{"cdiVersion":"0.3.0","kind":"vendor.com/net","devices":[{"name":"x"},{"name":"y"}]}"#,
        );
        write(&run, "a.yaml", &yaml("vendor.com/gpu", "0", "run"));
        write(&run, "c.yaml", &yaml("vendor.com/twice", "0", "c"));
        write(&run, "d.yaml", &yaml("vendor.com/twice", "0", "d"));
        for (name, text) in [
            ("e.yaml", "cdiVersion: \"9.0.0\"\nkind: a/b\ndevices: [{name: x}]\n"),
            ("f.json", r#"{"cdiVersion":"0.3.0","kind":"a/c","devices":[{"name":"x","surprise":1}]}"#),
            ("g.yaml", "no: [yaml"),
            ("h.json", r#"{"cdiVersion":"0.3.0","kind":"bad","devices":[{"name":"x"}]}"#),
            ("i.txt", "not looked at"),
        ] {
            write(&run, name, text);
        }
        let registry = Registry::read(&[etc, run, directory.path().join("missing")]);
        let known: Vec<&String> = registry.devices.keys().collect();
        assert_eq!(known, ["vendor.com/gpu=0", "vendor.com/net=x", "vendor.com/net=y"]);
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let edits = registry.edits(&names(&["vendor.com/gpu=0", "vendor.com/net=x"])).unwrap();
        let env: Vec<&String> = edits.iter().flat_map(|edits| &edits.env).collect();
        assert_eq!(env, ["ALL=run", "ONE=run"]);
        let error = registry.edits(&names(&["vendor.com/gpu=0", "a/b=x", "vendor.com/twice=0"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "CDI device injection failed: unresolvable CDI devices a/b=x, vendor.com/twice=0"
        );
    }

    #[test]
    fn devices_come_from_the_field_and_from_annotations() {
        let device = |name: &str| v1::CdiDevice { name: name.to_owned() };
        let mut config = v1::ContainerConfig {
            cdi_devices: vec![device("v.com/gpu=1"), device("v.com/gpu=1")],
            annotations: [
                ("cdi.k8s.io/b".to_owned(), "v.com/gpu=1,v.com/net=eth:0".to_owned()),
                ("other".to_owned(), "v.com/gpu=7".to_owned()),
            ]
            .into(),
            ..Default::default()
        };
        assert_eq!(wanted(&config).unwrap(), ["v.com/gpu=1", "v.com/net=eth:0"]);
        for bad in ["gpu", "v.com/gpu=", "v.com=1", "1v/gpu=1", "v.com/gpu=1,"] {
            config.annotations.insert("cdi.k8s.io/b".to_owned(), bad.to_owned());
            assert!(wanted(&config).unwrap_err().to_string().contains("cdi.k8s.io/b"), "{bad}");
        }
    }
}
