use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, DigestError};

/// The registry that a name without one means.
const DEFAULT_REGISTRY: &str = "docker.io";
/// What Docker called the same registry long ago.
const LEGACY_REGISTRY: &str = "index.docker.io";
/// Where one-part names of the default registry live.
const OFFICIAL_PREFIX: &str = "library/";
/// The tag of a name that has neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Longest registry and repository together (distribution `reference.NameTotalLengthMax`).
const NAME_LIMIT: usize = 255;
/// Longest tag.
const TAG_LIMIT: usize = 128;

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("image reference is empty")]
    Empty,
    /// The registry part does not follow the grammar.
    #[error("image reference has a bad registry {0:?}")]
    BadRegistry(String),
    /// The repository part does not follow the grammar.
    #[error("image reference has a bad repository {0:?} (lower-case letters, digits and . _ - between them)")]
    BadRepository(String),
    /// 64 hexadecimal characters could be an image id just as well.
    #[error("image reference {0:?} is an image id")]
    LooksLikeId(String),
    /// Name longer than 255 characters.
    #[error("image name is longer than 255 characters")]
    TooLong,
    /// The tag does not follow the grammar.
    #[error("image reference has a bad tag {0:?}")]
    BadTag(String),
    /// The digest is not one.
    #[error("image reference has a bad digest")]
    BadDigest(#[source] DigestError),
}

/// A normalised image reference: always a registry, a repository, and a tag or a digest or both.
///
/// Grammar and normalisation are those of `github.com/distribution/reference`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses and normalises.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(ReferenceError::BadDigest)?)),
            None => (text, None),
        };
        let (registry, remainder) = split_registry(rest);
        let (repository, tag) = match remainder.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (remainder.as_str(), None),
        };
        if !is_registry(&registry) {
            return Err(ReferenceError::BadRegistry(registry));
        }
        if !is_repository(repository) {
            return Err(ReferenceError::BadRepository(repository.to_owned()));
        }
        if registry.len() + 1 + repository.len() > NAME_LIMIT {
            return Err(ReferenceError::TooLong);
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::BadTag(tag.to_owned()));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { repository: repository.to_owned(), registry, tag, digest })
    }

    /// Host and optional port, such as `docker.io` or `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path in the registry, such as `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag, if one was given (or `latest`, if nothing was).
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What goes into a manifest URL: the digest if there is one, else the tag.
    pub fn identifier(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// The same name by digest alone.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// The same name by tag alone.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::BadTag(tag.to_owned()));
        }
        Ok(Self {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: Some(tag.to_owned()),
            digest: None,
        })
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The first part is a registry only if it could not be a repository's part: a dot, a colon, a capital, or `localhost`.
fn split_registry(text: &str) -> (String, String) {
    let (registry, remainder) = match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, text),
    };
    let registry = if registry == LEGACY_REGISTRY { DEFAULT_REGISTRY } else { registry };
    if registry == DEFAULT_REGISTRY && !remainder.contains('/') {
        return (registry.to_owned(), format!("{OFFICIAL_PREFIX}{remainder}"));
    }
    (registry.to_owned(), remainder.to_owned())
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => return is_ipv6(address),
            Some((address, port)) => (is_ipv6(address), port.strip_prefix(':')),
            None => return false,
        },
        None => match registry.split_once(':') {
            Some((host, port)) => (is_host(host), Some(port)),
            None => return is_host(registry),
        },
    };
    host && port.is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

fn is_ipv6(address: &str) -> bool {
    !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
}

fn is_host(host: &str) -> bool {
    host.split('.').all(|part| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    })
}

fn is_repository(repository: &str) -> bool {
    repository.split('/').all(is_path_part)
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn is_path_part(part: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let mut at = 0;
    loop {
        let word = bytes[at..].iter().take_while(|b| is_word(**b)).count();
        if word == 0 {
            return false;
        }
        at += word;
        if at == bytes.len() {
            return true;
        }
        let separator = bytes[at..].iter().take_while(|b| !is_word(**b)).count();
        let text = &bytes[at..at + separator];
        let good = matches!(text, b"." | b"_" | b"__") || text.iter().all(|b| *b == b'-');
        if !good {
            return false;
        }
        at += separator;
    }
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_LIMIT
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn normalises() {
        let by_digest = format!("busybox@{SHA}");
        let both = format!("localhost/a:1@{SHA}");
        let table = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.2", "docker.io/library/nginx:1.2".to_owned()),
            ("a/b", "docker.io/a/b:latest".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/nginx", "localhost/nginx:latest".to_owned()),
            ("Foo/bar", "Foo/bar:latest".to_owned()),
            ("host:5000/a", "host:5000/a:latest".to_owned()),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1".to_owned()),
            ("[fd00::1]:5000/x", "[fd00::1]:5000/x:latest".to_owned()),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10".to_owned()),
            ("a--b__c.d_e", "docker.io/library/a--b__c.d_e:latest".to_owned()),
            (&by_digest, format!("docker.io/library/busybox@{SHA}")),
            (&both, format!("localhost/a:1@{SHA}")),
        ];
        for (given, expected) in table {
            let reference = Reference::parse(given).unwrap();
            assert_eq!(reference.to_string(), expected, "{given}");
            assert_eq!(Reference::parse(&expected).unwrap(), reference, "stable: {given}");
        }
    }

    #[test]
    fn refuses() {
        let long = "a".repeat(300);
        let id = "a".repeat(64);
        let long_tag = format!("nginx:{}", "t".repeat(129));
        for text in [
            "",
            "/",
            "a//b",
            "A",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "nginx:",
            "nginx:-x",
            "nginx@sha256:1",
            "host:port/a",
            "ho_st.io/a",
            "host:5000/",
            "https://x.io/a",
            " nginx",
            "[fd00::1/a",
            &long,
            &id,
            &long_tag,
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn parts() {
        let reference = Reference::parse("quay.io/a/b:c").unwrap();
        assert_eq!((reference.registry(), reference.repository()), ("quay.io", "a/b"));
        assert_eq!(reference.identifier(), "c");
        let pinned = reference.with_digest(SHA.parse().unwrap());
        assert_eq!(pinned.identifier(), SHA);
        assert_eq!(pinned.tag(), None);
        assert_eq!(pinned.with_tag("x").unwrap().to_string(), "quay.io/a/b:x");
    }
}
