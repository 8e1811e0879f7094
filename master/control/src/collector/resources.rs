//! The kinds that the API server has, by discovery.

use kube::Client;
use kube::api::ApiResource;
use kube::discovery::{Discovery, Scope};

/// A kind in its preferred version.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    verbs: Vec<String>,
}

impl Kind {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }
}

/// All kinds, each in the preferred version of its group.
pub(crate) async fn discover(client: &Client) -> Result<Vec<Kind>, kube::Error> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let resources = discovery.groups().flat_map(|group| group.recommended_resources());
    Ok(resources
        .map(|(resource, capabilities)| Kind {
            resource,
            namespaced: capabilities.scope == Scope::Namespaced,
            verbs: capabilities.operations,
        })
        .collect())
}
