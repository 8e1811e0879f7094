//! What the runtime says of itself.

use anyhow::ensure;
use orlop_cri::v1;
use tonic::Code;

use crate::spec::{Test, refused};

crate::specs![
    version,
    conditions,
    verbose_status,
    runtime_config,
    update_runtime_config,
    unknown_handler,
    unfinished_calls
];

async fn version(t: &Test) -> anyhow::Result<()> {
    let request = v1::VersionRequest { version: "0.1.0".into() };
    let answer = t.cri.runtime().version(request).await?.into_inner();
    ensure!(answer.version == "0.1.0" && answer.runtime_api_version == "v1", "{answer:?}");
    ensure!(!answer.runtime_name.is_empty() && !answer.runtime_version.is_empty(), "{answer:?}");
    Ok(())
}

async fn conditions(t: &Test) -> anyhow::Result<()> {
    let answer = t.cri.runtime().status(v1::StatusRequest { verbose: false }).await?.into_inner();
    ensure!(answer.info.is_empty(), "information that was not asked for: {:?}", answer.info);
    let conditions = answer.status.unwrap_or_default().conditions;
    for wanted in ["RuntimeReady", "NetworkReady"] {
        ensure!(conditions.iter().any(|one| one.r#type == wanted && one.status), "{conditions:?}");
    }
    Ok(())
}

async fn verbose_status(t: &Test) -> anyhow::Result<()> {
    let answer = t.cri.runtime().status(v1::StatusRequest { verbose: true }).await?.into_inner();
    ensure!(!answer.info.is_empty(), "no information");
    Ok(())
}

async fn runtime_config(t: &Test) -> anyhow::Result<()> {
    let answer = t.cri.runtime().runtime_config(v1::RuntimeConfigRequest {}).await?.into_inner();
    let driver = answer.linux.unwrap_or_default().cgroup_driver();
    ensure!(driver == v1::CgroupDriver::Cgroupfs, "{driver:?}");
    Ok(())
}

async fn update_runtime_config(t: &Test) -> anyhow::Result<()> {
    let network = v1::NetworkConfig { pod_cidr: "10.88.0.0/16".into() };
    let config = v1::RuntimeConfig { network_config: Some(network) };
    let request = v1::UpdateRuntimeConfigRequest { runtime_config: Some(config) };
    t.cri.runtime().update_runtime_config(request).await?;
    t.cri.ready().await
}

async fn unknown_handler(t: &Test) -> anyhow::Result<()> {
    let request =
        v1::RunPodSandboxRequest { config: Some(t.pod_config()), runtime_handler: "no-such-handler".into() };
    let answer = t.cri.runtime().run_pod_sandbox(request).await.map_err(anyhow::Error::from);
    let (_, said) = refused("an unknown handler", answer)?;
    ensure!(said.contains("no-such-handler"), "the error does not name the handler: {said}");
    Ok(())
}

/// A call is done, or answers UNIMPLEMENTED as gRPC has it: the kubelet decides by that code.
async fn unfinished_calls(t: &Test) -> anyhow::Result<()> {
    let checkpoint = v1::CheckpointContainerRequest {
        container_id: "none".into(),
        location: "/nowhere".into(),
        timeout: 1,
    };
    let answer = t.cri.runtime().checkpoint_container(checkpoint).await;
    let code = answer.err().map(|status| status.code());
    ensure!(matches!(code, Some(Code::Unimplemented | Code::NotFound)), "{code:?}");
    Ok(())
}
