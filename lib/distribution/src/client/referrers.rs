//! What refers to a manifest, by the API or by the tag that stands in for it (distribution-spec, "Listing Referrers").

use http::header::{ACCEPT, LINK};
use http::{HeaderValue, Method};
use orlop_types::{Digest, Reference};

use super::RegistryClient;
use super::error::RegistryError;
use super::hosts::Host;
use super::transport::{failure, read_body, resolve};
use crate::Credential;
use crate::manifest::{Descriptor, MANIFEST_LIMIT, Manifest, OCI_INDEX};

/// Pages of a list that are read.
const PAGE_LIMIT: usize = 100;

impl RegistryClient {
    /// The descriptors of manifests whose subject is `subject`, as the first host that knows says. None is an empty list.
    ///
    /// # Errors
    /// No host answered.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        credential: Option<&Credential>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let mut told = None;
        for host in self.hosts(reference)?.iter().filter(|host| host.can_pull) {
            match self.referrers_at(host, reference, subject, credential).await {
                Ok(Some(list)) => return Ok(list),
                // A registry without the API, or without such a repository.
                Ok(None) => told = None,
                Err(error) => told = Some(error),
            }
        }
        if let Some(error) = told {
            return Err(error);
        }
        let tag = format!("{}-{}", subject.algorithm().name(), subject.hex());
        let Ok(fallback) = reference.with_tag(&tag[..tag.len().min(128)]) else { return Ok(Vec::new()) };
        match self.manifest(&fallback, credential).await {
            Ok(found) => match found.manifest {
                Manifest::Index(index) => Ok(index.manifests),
                Manifest::Image(_) => Ok(Vec::new()),
            },
            Err(RegistryError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn referrers_at(
        &self,
        host: &Host,
        reference: &Reference,
        subject: &Digest,
        credential: Option<&Credential>,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let stall = self.inner.config.stall_timeout;
        let limit = usize::try_from(MANIFEST_LIMIT).unwrap_or(usize::MAX);
        let path = format!("{}/referrers/{subject}", reference.repository());
        let mut url = self.call(host, Method::GET, &path).url;
        let mut list = Vec::new();
        for _ in 0..PAGE_LIMIT {
            let mut call = self.call(host, Method::GET, &path);
            call.url.clone_from(&url);
            call.headers.insert(ACCEPT, HeaderValue::from_static(OCI_INDEX));
            let response = self.send_authorized(call, reference, credential).await?;
            if !response.status().is_success() {
                let status = response.status().as_u16();
                return match failure(&host.authority, "referrers", response, stall).await {
                    RegistryError::NotFound { .. } => Ok(None),
                    _ if matches!(status, 400 | 405 | 501) => Ok(None),
                    error => Err(error),
                };
            }
            let next = response.headers().get(LINK).and_then(|value| next_page(value.to_str().ok()?, &url));
            let bytes = read_body(&host.authority, response, limit, stall).await?;
            match Manifest::parse(&bytes, Some(OCI_INDEX)) {
                Ok(Manifest::Index(index)) => list.extend(index.manifests),
                // Registries without the API answer with pages of their own.
                _ => return Ok(None),
            }
            match next {
                Some(next) => url = next,
                None => return Ok(Some(list)),
            }
        }
        let reason = format!("a list of more than {PAGE_LIMIT} pages");
        Err(RegistryError::Protocol { host: host.authority.clone(), reason })
    }
}

/// The target of `<URL>; rel="next"` (RFC 8288), at the same host.
pub(super) fn next_page(header: &str, url: &str) -> Option<String> {
    let (target, rest) = header.trim().strip_prefix('<')?.split_once('>')?;
    if !rest.contains("next") {
        return None;
    }
    let base: http::Uri = url.parse().ok()?;
    let next = resolve(&base, target)?;
    (next.authority() == base.authority() && next.scheme() == base.scheme()).then(|| next.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let url = "https://r/v2/x/referrers/y";
        let next = |header| next_page(header, url);
        assert_eq!(next("</v2/x?n=1>; rel=\"next\"").as_deref(), Some("https://r/v2/x?n=1"));
        assert_eq!(next("<https://evil/v2>; rel=\"next\""), None);
        assert_eq!(next("</v2/x>; rel=\"prev\""), None);
        assert_eq!(next("nonsense"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_link_makes_it_panic(text in "<?.{0,60}") {
            let _ = next_page(&text, "https://r/v2/");
        }
    }
}
