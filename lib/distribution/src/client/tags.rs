//! The tags of a repository (distribution-spec, "Listing Tags").

use http::Method;
use http::header::LINK;
use orlop_types::Reference;
use serde::Deserialize;

use super::RegistryClient;
use super::error::RegistryError;
use super::hosts::Host;
use super::referrers::next_page;
use super::transport::{failure, read_body};
use crate::Credential;

/// Pages of a list that are read, and their bytes.
const PAGE_LIMIT: usize = 100;
const PAGE_BYTES: usize = 8 << 20;
/// Tags that a list may hold.
const TAG_LIMIT: usize = 200_000;

#[derive(Deserialize)]
struct Page {
    // Registries of Go say null for none.
    tags: Option<Vec<String>>,
}

impl RegistryClient {
    /// The tags of the repository of a reference, as the first host that resolves tags says.
    ///
    /// # Errors
    /// What the last host said.
    pub async fn tags(
        &self,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<Vec<String>, RegistryError> {
        let mut told =
            RegistryError::NoHost { registry: reference.registry().to_owned(), capability: "resolve" };
        for host in self.hosts(reference)?.iter().filter(|host| host.can_resolve) {
            match self.tags_at(host, reference, credential).await {
                Ok(tags) => return Ok(tags),
                Err(error) => {
                    self.inner.transport.health.count_error(&host.authority, &error);
                    told = error;
                }
            }
        }
        Err(told)
    }

    async fn tags_at(
        &self,
        host: &Host,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<Vec<String>, RegistryError> {
        let stall = self.inner.config.stall_timeout;
        let protocol = |reason: String| RegistryError::Protocol { host: host.authority.clone(), reason };
        let path = format!("{}/tags/list", reference.repository());
        let mut url = self.call(host, Method::GET, &path).url;
        let mut tags = Vec::new();
        for _ in 0..PAGE_LIMIT {
            let mut call = self.call(host, Method::GET, &path);
            call.url.clone_from(&url);
            let response = self.send_authorized(call, reference, credential).await?;
            if !response.status().is_success() {
                return Err(failure(&host.authority, &reference.name(), response, stall).await);
            }
            let next = response.headers().get(LINK).and_then(|value| next_page(value.to_str().ok()?, &url));
            let bytes = read_body(&host.authority, response, PAGE_BYTES, stall).await;
            self.inner.transport.observe(&host.authority, &bytes);
            let page: Page = serde_json::from_slice(&bytes?)
                .map_err(|error| protocol(format!("a list of tags: {error}")))?;
            // Whatever else it lists cannot be asked for.
            tags.extend(
                page.tags.unwrap_or_default().into_iter().filter(|tag| reference.with_tag(tag).is_ok()),
            );
            match next {
                _ if tags.len() > TAG_LIMIT => break,
                Some(next) => url = next,
                None => return Ok(tags),
            }
        }
        Err(protocol(format!("a list of more than {PAGE_LIMIT} pages or {TAG_LIMIT} tags")))
    }
}
