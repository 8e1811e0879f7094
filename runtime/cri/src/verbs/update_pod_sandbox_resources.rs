//! UpdatePodSandboxResources: what the kubelet has set on the pod's cgroup, remembered.

use std::sync::Arc;

use orlop_cri::v1;

use crate::error::CriError;
use crate::runtime::Runtime;

impl Runtime {
    /// The verb. The pod's cgroup is the kubelet's, which has changed it before it calls (cri-api, UpdatePodSandboxResources).
    pub(crate) fn update_pod_sandbox_resources(
        self: &Arc<Self>,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<(), CriError> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.is_ready() {
            return Err(CriError::WrongState(format!("sandbox {} is not ready", sandbox.id)));
        }
        self.change_sandbox(&sandbox.id, |sandbox| {
            let linux = sandbox.config.linux.get_or_insert_default();
            if request.overhead.is_some() {
                linux.overhead = request.overhead;
            }
            if request.resources.is_some() {
                linux.resources = request.resources;
            }
        });
        Ok(())
    }
}
