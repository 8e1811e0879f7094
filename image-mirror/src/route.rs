//! Paths of the OCI distribution specification 1.1, section "Endpoints".

use orlop_types::Digest;

/// What a path names. Names and digests are checked; tags too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/NAME/manifests/REFERENCE`
    Manifest { name: String, reference: TagOrDigest },
    /// `/v2/NAME/blobs/DIGEST`
    Blob { name: String, digest: Digest },
    /// `/v2/NAME/blobs/uploads/`
    Uploads { name: String },
    /// `/v2/NAME/blobs/uploads/SESSION`
    Upload { name: String, session: String },
    /// `/v2/NAME/tags/list`
    Tags { name: String },
    /// `/v2/NAME/referrers/DIGEST`
    Referrers { name: String, digest: Digest },
}

/// How a manifest is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TagOrDigest {
    Tag(String),
    Digest(Digest),
}

/// Why a path names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unroutable {
    /// No such endpoint.
    Unknown,
    /// The repository name breaks the grammar.
    Name,
    /// The digest breaks the grammar, or its algorithm is not known.
    Digest,
    /// The tag breaks the grammar.
    Tag,
}

impl Route {
    /// The repository, by the name in the path.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Base | Self::Catalog => None,
            Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. }
            | Self::Tags { name }
            | Self::Referrers { name, .. } => Some(name),
        }
    }
}

const NAME_LIMIT_BYTES: usize = 255;
const TAG_LIMIT_BYTES: usize = 128;

/// Sorts a path.
pub(crate) fn route(path: &str) -> Result<Route, Unroutable> {
    let rest = path.strip_prefix("/v2").ok_or(Unroutable::Unknown)?;
    if rest.is_empty() || rest == "/" {
        return Ok(Route::Base);
    }
    let segments: Vec<&str> = rest.strip_prefix('/').ok_or(Unroutable::Unknown)?.split('/').collect();
    if segments == ["_catalog"] {
        return Ok(Route::Catalog);
    }
    // From the end: a name may have any number of parts, even one called "blobs".
    match segments.as_slice() {
        [name @ .., "blobs", "uploads", ""] | [name @ .., "blobs", "uploads"] => {
            Ok(Route::Uploads { name: repository(name)? })
        }
        [name @ .., "blobs", "uploads", session] => {
            Ok(Route::Upload { name: repository(name)?, session: (*session).to_owned() })
        }
        [name @ .., "tags", "list"] => Ok(Route::Tags { name: repository(name)? }),
        [name @ .., "manifests", reference] => {
            Ok(Route::Manifest { name: repository(name)?, reference: tag_or_digest(reference)? })
        }
        [name @ .., "blobs", digest] => {
            Ok(Route::Blob { name: repository(name)?, digest: parse_digest(digest)? })
        }
        [name @ .., "referrers", digest] => {
            Ok(Route::Referrers { name: repository(name)?, digest: parse_digest(digest)? })
        }
        _ => Err(Unroutable::Unknown),
    }
}

/// Joins and checks a repository name (specification, "Pulling manifests").
pub(crate) fn repository(parts: &[&str]) -> Result<String, Unroutable> {
    let name = parts.join("/");
    let valid =
        !parts.is_empty() && name.len() <= NAME_LIMIT_BYTES && parts.iter().all(|part| is_component(part));
    if valid { Ok(name) } else { Err(Unroutable::Name) }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().copied().is_some_and(plain) || !bytes.last().copied().is_some_and(plain) {
        return false;
    }
    let separators =
        part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).filter(|text| !text.is_empty());
    separators
        .into_iter()
        .all(|text| matches!(text, "." | "_" | "__") || text.bytes().all(|byte| byte == b'-'))
}

fn tag_or_digest(text: &str) -> Result<TagOrDigest, Unroutable> {
    if text.contains(':') {
        return parse_digest(text).map(TagOrDigest::Digest);
    }
    if is_tag(text) { Ok(TagOrDigest::Tag(text.to_owned())) } else { Err(Unroutable::Tag) }
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
pub(crate) fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = text.bytes();
    text.len() <= TAG_LIMIT_BYTES
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn parse_digest(text: &str) -> Result<Digest, Unroutable> {
    text.parse().map_err(|_| Unroutable::Digest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_of_the_specification() {
        let digest = Digest::sha256(b"x");
        let name = || "library/blobs".to_owned();
        let table = [
            ("/v2/".to_owned(), Ok(Route::Base)),
            ("/v2/library/blobs/tags/list".to_owned(), Ok(Route::Tags { name: name() })),
            (
                format!("/v2/library/blobs/blobs/{digest}"),
                Ok(Route::Blob { name: name(), digest: digest.clone() }),
            ),
            ("/v2/library/blobs/blobs/uploads/".to_owned(), Ok(Route::Uploads { name: name() })),
            (
                "/v2/library/blobs/blobs/uploads/abc".to_owned(),
                Ok(Route::Upload { name: name(), session: "abc".into() }),
            ),
            (
                "/v2/a/manifests/latest".to_owned(),
                Ok(Route::Manifest { name: "a".into(), reference: TagOrDigest::Tag("latest".into()) }),
            ),
            ("/v2/Upper/manifests/latest".to_owned(), Err(Unroutable::Name)),
            ("/v2/a/../b/manifests/latest".to_owned(), Err(Unroutable::Name)),
            ("/v2/a/manifests/.hidden".to_owned(), Err(Unroutable::Tag)),
            ("/v2/a/blobs/sha256:12".to_owned(), Err(Unroutable::Digest)),
            ("/v1/a".to_owned(), Err(Unroutable::Unknown)),
            ("/v2/_catalog".to_owned(), Ok(Route::Catalog)),
        ];
        for (path, wanted) in table {
            assert_eq!(route(&path), wanted, "{path}");
        }
        for (part, valid) in [
            ("a", true),
            ("a--b", true),
            ("a__b", true),
            ("a.b_c-d", true),
            ("a___b", false),
            ("a..b", false),
            ("-a", false),
            ("_tags", false),
            ("", false),
        ] {
            assert_eq!(is_component(part), valid, "{part:?}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_sorted(path in "(/v2)?(/(_catalog|manifests|blobs|uploads|tags|list|referrers|[a-z]{1,3}|\\PC{0,6})){0,7}") {
            let _ = route(&path);
        }

        #[test]
        fn no_name_leaves_its_directory(path in "/v2/[a-zA-Z0-9./_%-]{0,40}/tags/list") {
            if let Ok(Route::Tags { name }) = route(&path) {
                prop_assert!(name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.starts_with('_')));
            }
        }
    }
}
