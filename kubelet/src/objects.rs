//! ConfigMaps and Secrets by name: the Node authorizer grants no lists.

use k8s_openapi::api::core::v1 as core;
use kube::Api;

/// Fetches single objects; what it returns is as fresh as the API server.
#[derive(Clone)]
pub(crate) struct ApiObjects {
    client: kube::Client,
}

impl ApiObjects {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client }
    }

    pub(crate) async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<core::ConfigMap>, kube::Error> {
        Api::<core::ConfigMap>::namespaced(self.client.clone(), namespace).get_opt(name).await
    }

    pub(crate) async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<core::Secret>, kube::Error> {
        Api::<core::Secret>::namespaced(self.client.clone(), namespace).get_opt(name).await
    }
}

/// What the API server said, without the frame that the client's own text puts around it.
pub(crate) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
