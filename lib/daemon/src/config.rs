//! Configuration files: one typed struct per daemon, read whole, validated whole.
//!
//! A struct derives `Serialize`, `Deserialize` and `Default` with `#[serde(default, rename_all = "camelCase")]` and does **not** use
//! `deny_unknown_fields`: unknown keys are found here by comparing the file with what the struct serializes to, at every depth, so
//! that all of them are reported at once, each with the nearest valid key. Optional fields therefore must serialize (as null)
//! when absent; maps with free keys are listed in [`Validate::FREE_MAPS`].

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("failed to read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not YAML, or a value has the wrong type.
    #[error("configuration {path} is invalid: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// Keys that no such daemon knows, or values that do not fit together.
    #[error("configuration {path} is invalid:\n  {}", .problems.join("\n  "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Every problem found.
        problems: Vec<String>,
    },
}

/// What a configuration says about itself.
pub trait Validate {
    /// Dotted paths of maps whose keys are the user's, for example `nodeLabels`.
    const FREE_MAPS: &'static [&'static str] = &[];

    /// Checks values across fields. Each string names the key, what is wrong and what to do.
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Reads and validates a YAML (or JSON) file.
///
/// # Errors
/// [`ConfigError`] names the file and every unknown key or wrong value.
pub fn load<T>(path: &Path) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + Default + Validate,
{
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// As [`load`], from text; `path` is only for messages.
///
/// # Errors
/// As [`load`].
pub fn parse<T>(text: &str, path: &Path) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + Default + Validate,
{
    let parse_error = |reason: String| ConfigError::Parse { path: path.to_owned(), reason };
    let given: Value = if text.trim().is_empty() {
        Value::Object(serde_json::Map::new())
    } else {
        serde_saphyr::from_str(text).map_err(|error| parse_error(error.to_string()))?
    };
    let config: T = serde_json::from_value(given.clone()).map_err(|error| parse_error(error.to_string()))?;
    let known = serde_json::to_value(&config).map_err(|error| parse_error(error.to_string()))?;
    let mut problems = Vec::new();
    unknown_keys(&given, &known, "", T::FREE_MAPS, &mut problems);
    problems.extend(config.problems());
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Invalid { path: path.to_owned(), problems })
    }
}

fn unknown_keys(given: &Value, known: &Value, prefix: &str, free: &[&str], problems: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            if free.contains(&prefix) {
                return;
            }
            for (key, value) in given {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                match known.get(key) {
                    Some(known) => unknown_keys(value, known, &path, free, problems),
                    None => problems.push(unknown_key(&path, key, known.keys())),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (index, (value, known)) in given.iter().zip(known).enumerate() {
                unknown_keys(value, known, &format!("{prefix}[{index}]"), free, problems);
            }
        }
        _ => {}
    }
}

fn unknown_key<'a>(path: &str, key: &str, known: impl Iterator<Item = &'a String>) -> String {
    let nearest = known
        .map(|candidate| {
            (strsim::damerau_levenshtein(&key.to_lowercase(), &candidate.to_lowercase()), candidate)
        })
        .min();
    match nearest {
        Some((_, candidate)) => format!("unknown key {path:?}, the nearest valid one is {candidate:?}"),
        None => format!("unknown key {path:?}, no key is valid here"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Sample {
        listen_address: String,
        max_pods: Option<u32>,
        labels: BTreeMap<String, String>,
        inner: Inner,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Inner {
        port: u16,
    }

    impl Validate for Sample {
        const FREE_MAPS: &'static [&'static str] = &["labels"];
        fn problems(&self) -> Vec<String> {
            if self.max_pods == Some(0) { vec!["maxPods is 0: give at least 1".into()] } else { Vec::new() }
        }
    }

    fn parse_sample(text: &str) -> Result<Sample, ConfigError> {
        parse(text, Path::new("sample.yaml"))
    }

    #[test]
    fn all_problems_are_reported_at_once_with_the_nearest_key() {
        let text = "listenAdress: a\nmaxPods: 0\nlabels: {any/key: v}\ninner: {prt: 1}\n";
        let error = parse_sample(text).unwrap_err().to_string();
        assert!(
            error.contains(r#"unknown key "listenAdress", the nearest valid one is "listenAddress""#),
            "{error}"
        );
        assert!(error.contains(r#"unknown key "inner.prt", the nearest valid one is "port""#), "{error}");
        assert!(error.contains("maxPods is 0"), "{error}");
        assert!(!error.contains("any/key"), "{error}");
    }

    #[test]
    fn a_wrong_type_names_the_value() {
        let error = parse_sample("inner: {port: many}").unwrap_err().to_string();
        assert!(error.contains("many"), "{error}");
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        assert!(parse_sample("").unwrap().listen_address.is_empty());
    }
}
