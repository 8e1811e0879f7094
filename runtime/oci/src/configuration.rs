//! Reading `config.json`.

use std::path::Path;

use anyhow::Context;
use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;

/// Names as the specification has them, and as the library that reads them expects them.
const NAMES: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// A whole configuration.
pub(crate) fn parse(text: &[u8]) -> serde_json::Result<Spec> {
    parse_with(text, "/process/scheduler/flags")
}

/// `process` alone.
pub(crate) fn parse_process(text: &[u8]) -> serde_json::Result<Process> {
    parse_with(text, "/scheduler/flags")
}

/// From a file.
pub(crate) fn load(path: &Path) -> anyhow::Result<Spec> {
    let text = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    parse(&text).with_context(|| format!("failed to parse {}", path.display()))
}

fn parse_with<T: DeserializeOwned>(text: &[u8], flags: &str) -> serde_json::Result<T> {
    let has = |name: &str| text.windows(name.len()).any(|part| part == name.as_bytes());
    if !has("SCHED_FLAG_") {
        return serde_json::from_slice(text);
    }
    let mut value: serde_json::Value = serde_json::from_slice(text)?;
    let list = value.pointer_mut(flags).and_then(serde_json::Value::as_array_mut);
    for flag in list.into_iter().flatten() {
        if let Some((_, name)) = NAMES.iter().find(|(name, _)| flag.as_str() == Some(name)) {
            *flag = (*name).into();
        }
    }
    serde_json::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_specifications_names() {
        let flags = r#"["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_RECLAIM","SCHED_FLAG_DL_OVERRUN"]"#;
        let text = format!(
            r#"{{"user":{{}},"args":["SCHED_FLAG_DL_OVERRUN"],"cwd":"/","scheduler":{{"policy":"SCHED_OTHER","flags":{flags}}}}}"#
        );
        let process = parse_process(text.as_bytes()).unwrap();
        assert_eq!(process.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(), 3);
        assert_eq!(process.args().as_ref().unwrap(), &["SCHED_FLAG_DL_OVERRUN"]);
        let spec = format!(r#"{{"ociVersion":"1.2.0","process":{text}}}"#);
        assert!(parse(spec.as_bytes()).unwrap().process().as_ref().unwrap().scheduler().is_some());
    }
}
