//! `orlop image list-needed`: the images that Kubernetes objects refer to.
//!
//! No schema is asked: whatever has the shape of a pod's template counts, in workloads, lists and custom resources alike: the `image` of
//! each entry of `containers`, `initContainers` and `ephemeralContainers`, the `reference` of an image volume, and any other `image` or
//! `…Image` that is a text and a reference with a tag, a digest or a registry.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use orlop_types::Reference;
use serde_json::Value;

use crate::bundle::{Bundle, Trust};

/// Bytes of a file that are read.
const FILE_LIMIT: u64 = 64 << 20;
/// Deepest object.
const DEPTH: usize = 64;
/// Deepest directory.
const DIRECTORIES: usize = 32;
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// `image list-needed`
#[derive(Clone, Debug, Args)]
pub struct NeededArgs {
    /// Files, directories (with everything below), or - for standard input
    #[arg(short, long = "file", required = true, num_args = 1.., value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// Fails when a file cannot be read in full
    #[arg(long)]
    strict: bool,
    /// A bundle or archive: prints only what is missing in it, and fails when something is
    #[arg(long, value_name = "BUNDLE")]
    against: Vec<PathBuf>,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    images: BTreeSet<String>,
    problems: Vec<String>,
}

pub(crate) fn run(args: &NeededArgs) -> anyhow::Result<()> {
    let mut found = Found::default();
    for file in &args.files {
        if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().take(FILE_LIMIT).read_to_string(&mut text).context("standard input")?;
            found.read(&text, "-");
        } else {
            found.read_path(file, 0, true)?;
        }
    }
    for problem in &found.problems {
        eprintln!("{problem}");
    }
    let mut output = std::io::stdout();
    let mut missing = 0;
    let there = carried(&args.against)?;
    for image in &found.images {
        if args.against.is_empty() || !is_carried(image, &there) {
            missing += 1;
            writeln!(output, "{image}")?;
        }
    }
    anyhow::ensure!(args.against.is_empty() || missing == 0, "{missing} images are missing");
    let problems = found.problems.len();
    anyhow::ensure!(!args.strict || problems == 0, "{problems} problems, see above");
    Ok(())
}

/// Names and digests that bundles bring.
fn carried(bundles: &[PathBuf]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut there = BTreeMap::new();
    for path in bundles {
        let bundle = Bundle::open(path, &std::env::temp_dir(), &Trust::Anybody)?;
        there.extend(bundle.images().into_iter().map(|(name, digest)| (name, digest.to_string())));
    }
    Ok(there)
}

/// By digest an image may have come under any tag of its repository.
fn is_carried(image: &str, there: &BTreeMap<String, String>) -> bool {
    let Ok(reference) = Reference::parse(image) else { return false };
    match reference.digest() {
        None => there.contains_key(image),
        Some(digest) => there.iter().any(|(name, carried)| {
            carried == digest.as_str()
                && Reference::parse(name).is_ok_and(|name| name.name() == reference.name())
        }),
    }
}

impl Found {
    fn read_path(&mut self, path: &Path, depth: usize, named: bool) -> anyhow::Result<()> {
        let shown = path.display().to_string();
        anyhow::ensure!(depth < DIRECTORIES, "{shown}: directories are nested too deeply");
        let metadata = match named {
            // What is named may be a link; what is found may lead in circles.
            true => std::fs::metadata(path),
            false => std::fs::symlink_metadata(path),
        };
        let metadata = metadata.with_context(|| format!("failed to read {shown}"))?;
        if metadata.is_dir() {
            let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let mut paths: Vec<PathBuf> = entries
                .with_context(|| format!("failed to list {shown}"))?
                .iter()
                .map(std::fs::DirEntry::path)
                .collect();
            paths.sort();
            return paths.iter().try_for_each(|path| self.read_path(path, depth + 1, false));
        }
        let is_manifest =
            path.extension().is_some_and(|suffix| matches!(suffix.to_str(), Some("yaml" | "yml" | "json")));
        // What is named may be a pipe.
        if !(named || (metadata.is_file() && is_manifest)) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut bytes))
            .with_context(|| format!("failed to read {shown}"))?;
        match String::from_utf8(bytes) {
            Ok(text) if text.len() as u64 <= FILE_LIMIT => self.read(&text, &shown),
            _ => self.problems.push(format!("{shown}: is no text, or longer than {FILE_LIMIT} bytes")),
        }
        Ok(())
    }

    /// Each document of a file apart, so that a bad one hides no other.
    fn read(&mut self, text: &str, place: &str) {
        for (line, document) in documents(text) {
            match serde_saphyr::from_str::<Value>(&document) {
                Ok(value) => self.walk(&value, &format!("{place}:{line}"), 0),
                Err(error) => {
                    let location = error
                        .location()
                        .map_or(line, |at| line + usize::try_from(at.line()).unwrap_or(1) - 1);
                    let reason = error.to_string();
                    let reason = reason.lines().next().unwrap_or("is no YAML");
                    self.problems.push(format!("{place}:{location}: {reason}"));
                }
            }
        }
    }

    fn walk(&mut self, value: &Value, place: &str, depth: usize) {
        if depth > DEPTH {
            self.problems.push(format!("{place}: an object is nested too deeply"));
            return;
        }
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.walk(item, place, depth + 1)),
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value {
                        Value::Array(containers) if CONTAINERS.contains(&key.as_str()) => {
                            let images =
                                containers.iter().filter_map(|container| container.get("image")?.as_str());
                            images.for_each(|image| self.add(image, place));
                            containers.iter().for_each(|container| self.walk(container, place, depth + 1));
                        }
                        // An image volume; elsewhere `image` is a text, or an object of a chart's values.
                        Value::Object(volume) if key == "image" => {
                            if let Some(reference) = volume.get("reference").and_then(Value::as_str) {
                                self.add(reference, place);
                            }
                        }
                        Value::String(text) if is_image_key(key) && looks_like_image(text) => {
                            self.add(text, place);
                        }
                        _ => self.walk(value, place, depth + 1),
                    }
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, text: &str, place: &str) {
        match Reference::parse(text.trim()) {
            Ok(reference) => {
                self.images.insert(reference.to_string());
            }
            Err(error) => self.problems.push(format!("{place}: image {text:?}: {error}")),
        }
    }
}

fn is_image_key(key: &str) -> bool {
    key == "image" || key.ends_with("Image")
}

/// A custom resource's `image: yes` is no image, and an empty one is the operator's default.
fn looks_like_image(text: &str) -> bool {
    text.contains([':', '/', '@']) && !text.contains(char::is_whitespace) && !text.contains("://")
}

/// The documents of a stream and the line where each begins.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut documents = vec![(1, String::new())];
    for (number, line) in text.lines().enumerate() {
        let separator =
            line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        match (separator, documents.last_mut()) {
            (Some(rest), _) => documents.push((number + 1, format!("{rest}\n"))),
            (None, _) if line.trim_end() == "..." => documents.push((number + 2, String::new())),
            (None, Some((_, document))) => {
                document.push_str(line);
                document.push('\n');
            }
            (None, None) => {}
        }
    }
    let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    documents.retain(|(_, document)| document.lines().any(is_content));
    documents
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(text: &str) -> (Vec<String>, Vec<String>) {
        let mut found = Found::default();
        found.read(text, "f");
        (found.images.into_iter().collect(), found.problems)
    }

    #[test]
    fn every_kind_of_object() {
        let text = r#"
# a comment
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      initContainers: [{name: i, image: quay.io/i:1}]
      containers:
      - {name: a, image: nginx}
      - {name: b, image: "nginx:latest"}
      volumes:
      - {name: v, image: {reference: "quay.io/volume:2", pullPolicy: Always}}
--- # the next
kind: CronJob
spec: {jobTemplate: {spec: {template: {spec: {containers: [{image: "registry.k8s.io/job:3"}]}}}}}
---
{"kind": "List", "items": [{"kind": "Pod", "spec": {"ephemeralContainers": [{"image": "e:4"}]}}]}
...
---
kind: Prometheus
spec: {image: "quay.io/prometheus/prometheus:v3", baseImage: "on", proxyImage: "envoy:1", url: "http://x/image", image2: "no:1"}
"#;
        let (images, problems) = found(text);
        assert_eq!(problems, Vec::<String>::new());
        let expected = [
            "docker.io/library/e:4",
            "docker.io/library/envoy:1",
            "docker.io/library/nginx:latest",
            "quay.io/i:1",
            "quay.io/prometheus/prometheus:v3",
            "quay.io/volume:2",
            "registry.k8s.io/job:3",
        ];
        assert_eq!(images, expected);
    }

    #[test]
    fn what_does_not_parse_is_named_and_hides_nothing() {
        let text = "kind: Pod\nspec: {containers: [{image: a:1}]}\n---\nkind: Pod\nname: {{ .Values.name }}x\n---\nspec: {containers: [{image: 'B A D'}, {image: c:1}]}\n";
        let (images, problems) = found(text);
        assert_eq!(images, ["docker.io/library/a:1", "docker.io/library/c:1"]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("f:5: ") || problems[0].starts_with("f:4: "), "{problems:?}");
        assert!(problems[1].starts_with("f:6: image \"B A D\""), "{problems:?}");
    }

    #[test]
    fn by_digest_any_tag_will_do() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let there = BTreeMap::from([("docker.io/library/a:1".to_owned(), digest.clone())]);
        assert!(is_carried("docker.io/library/a:1", &there));
        assert!(!is_carried("docker.io/library/a:2", &there));
        assert!(is_carried(&format!("docker.io/library/a@{digest}"), &there));
        assert!(!is_carried(&format!("docker.io/library/b@{digest}"), &there));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z:{}\\[\\]&*\"'|> \n-]{0,200}") {
            let _ = found(&text);
        }
    }
}
