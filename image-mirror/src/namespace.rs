//! Which registry a client means. Pure.
//!
//! A mirror stands in for other registries. containerd names the registry it means by `?ns=` (containerd docs/hosts.md); clients
//! that cannot may put it in front of the repository. Either way the name is a key to look up, never a host to call: only the
//! configured upstreams are contacted, at the address that the configuration gives.

use std::collections::BTreeMap;

use orlop_types::{Digest, Reference};

use crate::error::RegistryError;
use crate::route::{Route, TagOrDigest};

/// A repository of a registry that may be fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    registry: String,
    path: String,
}

impl Origin {
    /// What a manifest is called there.
    pub(crate) fn manifest(&self, reference: &TagOrDigest) -> Option<Reference> {
        let name = self.name()?;
        match reference {
            TagOrDigest::Tag(tag) => name.with_tag(tag).ok(),
            TagOrDigest::Digest(digest) => Some(name.with_digest(digest.clone())),
        }
    }

    /// The repository of a blob there.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Reference> {
        Some(self.name()?.with_digest(digest.clone()))
    }

    /// The configured name of the registry.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// What the repository is called there.
    pub(crate) fn name(&self) -> Option<Reference> {
        Reference::parse(&format!("{}/{}", self.registry, self.path)).ok()
    }
}

/// The path without the registry in front, and that registry.
pub(crate) fn split<'a>(
    path: &'a str,
    namespace: Option<String>,
    upstreams: &BTreeMap<String, String>,
) -> Result<(std::borrow::Cow<'a, str>, Option<String>), RegistryError> {
    if let Some(namespace) = namespace {
        if !is_registry(&namespace) {
            let message = format!("ns={namespace:?} is no registry");
            return Err(RegistryError::new(http::StatusCode::BAD_REQUEST, "NAME_INVALID", message));
        }
        return Ok((path.into(), Some(namespace)));
    }
    let first = path
        .strip_prefix("/v2/")
        .and_then(|rest| rest.split_once('/'))
        // No repository name holds a colon, so a port shows a registry.
        .filter(|(first, _)| upstreams.contains_key(*first) || (first.contains(':') && is_registry(first)));
    match first {
        Some((registry, rest)) => Ok((format!("/v2/{rest}").into(), Some(registry.to_owned()))),
        None => Ok((path.into(), None)),
    }
}

/// The upstream that a request without a registry means, on an address of its own.
#[derive(Clone, Debug)]
pub(crate) struct StandIn(pub(crate) std::sync::Arc<str>);

/// The repository that is read.
pub(crate) fn read_name(route: &Route) -> Option<&str> {
    match route {
        Route::Manifest { name, .. }
        | Route::Blob { name, .. }
        | Route::Tags { name }
        | Route::Referrers { name, .. } => Some(name),
        Route::Base | Route::Catalog | Route::Uploads { .. } | Route::Upload { .. } => None,
    }
}

fn is_registry(text: &str) -> bool {
    !text.contains('/')
        && Reference::parse(&format!("{text}/x/y")).is_ok_and(|parsed| parsed.registry() == text)
}

/// Puts the registry in front of the repository name, which is how it is stored, and tells where it may be fetched.
pub(crate) fn apply(
    route: &mut Route,
    registry: Option<String>,
    upstreams: &BTreeMap<String, String>,
) -> Option<Origin> {
    let name = match route {
        Route::Base | Route::Catalog => return None,
        Route::Manifest { name, .. }
        | Route::Blob { name, .. }
        | Route::Uploads { name }
        | Route::Upload { name, .. }
        | Route::Tags { name }
        | Route::Referrers { name, .. } => name,
    };
    let registry = registry?;
    let path = std::mem::take(name);
    *name = format!("{registry}/{path}");
    upstreams.contains_key(&registry).then_some(Origin { registry, path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::route;

    fn upstreams() -> BTreeMap<String, String> {
        ["docker.io", "r.example:5000"].map(|name| (name.to_owned(), format!("https://{name}"))).into()
    }

    fn find(path: &str, namespace: Option<&str>) -> Option<(String, Option<Origin>)> {
        let upstreams = upstreams();
        let (path, registry) = split(path, namespace.map(str::to_owned), &upstreams).ok()?;
        let mut route = route(&path).ok()?;
        let origin = apply(&mut route, registry, &upstreams);
        match route {
            Route::Tags { name } => Some((name, origin)),
            _ => None,
        }
    }

    #[test]
    fn a_namespace_is_a_key() {
        let origin = |registry: &str, path: &str| {
            Some(Origin { registry: registry.to_owned(), path: path.to_owned() })
        };
        let table = [
            ("/v2/a/b/tags/list", None, Some(("a/b", None))),
            (
                "/v2/library/nginx/tags/list",
                Some("docker.io"),
                Some(("docker.io/library/nginx", origin("docker.io", "library/nginx"))),
            ),
            (
                "/v2/docker.io/library/nginx/tags/list",
                None,
                Some(("docker.io/library/nginx", origin("docker.io", "library/nginx"))),
            ),
            (
                "/v2/r.example:5000/a/tags/list",
                None,
                Some(("r.example:5000/a", origin("r.example:5000", "a"))),
            ),
            ("/v2/a/tags/list", Some("evil.example"), Some(("evil.example/a", None))),
            ("/v2/other.example:1/a/tags/list", None, Some(("other.example:1/a", None))),
            ("/v2/a/tags/list", Some(".."), None),
            ("/v2/a/tags/list", Some("a/b"), None),
            ("/v2/a/tags/list", Some(""), None),
            ("/v2/a/tags/list", Some("../../etc"), None),
            ("/v2/a/tags/list", Some("user@host"), None),
        ];
        for (path, namespace, expected) in table {
            let expected = expected.map(|(name, origin)| (name.to_owned(), origin));
            assert_eq!(find(path, namespace), expected, "{path} {namespace:?}");
        }
    }
}
