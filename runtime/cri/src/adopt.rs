//! The start: what a predecessor left is taken over or undone.
//!
//! Level-triggered: records say what was wanted, shims what is. A cut verb leaves one of the two without the other.

use std::collections::BTreeSet;
use std::sync::Arc;

use orlop_shim::protocol::{Request, Response};

use crate::error::chain;
use crate::files;
use crate::model::{Container, RECORD_VERSION, Sandbox, Stage};
use crate::process;
use crate::runtime::{QUESTION_DEADLINE, Runtime};

/// Takes over everything below the state directory.
pub(crate) async fn adopt(runtime: &Arc<Runtime>) -> anyhow::Result<()> {
    let mut adoptions = Vec::new();
    for entry in std::fs::read_dir(runtime.sandboxes_dir())? {
        let id = entry?.file_name().to_string_lossy().into_owned();
        adoptions.push(adopt_sandbox(runtime, id));
    }
    // All shims are asked at once: one that hangs costs its own deadline, not everybody's.
    futures::future::join_all(adoptions).await;
    let known: BTreeSet<String> = runtime.model().containers.keys().cloned().collect();
    let images = runtime.images.clone();
    tokio::task::spawn_blocking(move || sweep_root_file_systems(&images, &known)).await?;
    runtime.count();
    let model = runtime.model();
    tracing::info!(
        sandboxes = model.sandboxes.len(),
        containers = model.containers.len(),
        "took over what runs"
    );
    Ok(())
}

fn sweep_root_file_systems(images: &orlop_images::ImageStore, known: &BTreeSet<String>) {
    let keys = match images.rootfs_keys() {
        Ok(keys) => keys,
        Err(error) => return tracing::warn!(error = chain(&error), "could not list root file systems"),
    };
    for key in keys.into_iter().filter(|key| !known.contains(key)) {
        tracing::info!(container = key, "removing a root file system without a container");
        if let Err(error) = images.remove_rootfs(&key) {
            tracing::warn!(container = key, error = chain(&error), "could not remove a root file system");
        }
    }
}

async fn adopt_sandbox(runtime: &Arc<Runtime>, id: String) {
    let directory = runtime.directory(&id);
    let record: Sandbox = match files::read_json(&directory.record()) {
        Ok(record) => record,
        Err(error) => {
            // The record is the first thing written and the last one removed.
            tracing::warn!(sandbox = id, %error, "removing a sandbox without a readable record");
            return forget_unreadable(runtime, &id).await;
        }
    };
    if record.version > RECORD_VERSION {
        return tracing::error!(
            sandbox = id,
            version = record.version,
            "this sandbox was made by a newer version; left alone"
        );
    }
    runtime.cgroup_parents.restore(&id, &record.cgroup_parent(), &record.made_cgroups, &runtime.hierarchies);
    let containers = read_containers(runtime, &id);
    {
        let mut model = runtime.model();
        model.containers.extend(containers.into_iter().map(|container| (container.id.clone(), container)));
    }
    match record.stage {
        Stage::Making => {
            tracing::info!(sandbox = id, "undoing a sandbox that was never finished");
            runtime.model().containers.retain(|_, container| container.sandbox_id != id);
            runtime.discard(&record).await;
        }
        Stage::Stopped => {
            runtime.model().sandboxes.insert(id.clone(), record.clone());
            // A stop that was cut off: its own next call finishes the network, nothing may run until then.
            if runtime.end_shim(&record, record.shim).await {
                runtime.change_sandbox(&id, Sandbox::forget_shim);
            }
            runtime.settle_containers(&id);
        }
        Stage::Ready => {
            runtime.model().sandboxes.insert(id.clone(), record.clone());
            adopt_ready(runtime, &record).await;
        }
    }
}

async fn forget_unreadable(runtime: &Arc<Runtime>, id: &str) {
    let directory = runtime.directory(id);
    if let Ok(identity) = files::read_json(&directory.shim_identity())
        && !crate::shim::end(&runtime.shim(id), identity).await
    {
        return;
    }
    if let Err(error) = runtime.cni.detach(&directory.network(), false).await {
        tracing::warn!(sandbox = id, error = chain(&error), "could not remove the pod's network");
    }
    if let Err(error) = files::remove_tree(directory.path()) {
        tracing::warn!(sandbox = id, %error, "could not remove the sandbox's state");
    }
}

fn read_containers(runtime: &Runtime, sandbox_id: &str) -> Vec<Container> {
    let directory = runtime.directory(sandbox_id);
    let Ok(entries) = std::fs::read_dir(directory.pod_file("bundles")) else {
        return Vec::new();
    };
    let mut containers = Vec::new();
    for entry in entries.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        match files::read_json::<Container>(&directory.container_record(&id)) {
            Ok(container) if container.version <= RECORD_VERSION => containers.push(container),
            Ok(container) => {
                tracing::error!(container = id, version = container.version, "made by a newer version")
            }
            // Cut before its record: it was never announced.
            Err(_) => {
                if let Err(error) = files::remove_tree(&directory.bundle(&id)) {
                    tracing::warn!(container = id, %error, "could not remove a bundle without a record");
                }
            }
        }
    }
    containers
}

async fn adopt_ready(runtime: &Arc<Runtime>, sandbox: &Sandbox) {
    let id = &sandbox.id;
    if !sandbox.shim.is_some_and(process::is_alive) {
        return runtime.lose_shim(id).await;
    }
    let state = match runtime.shim(id).call(&Request::State, QUESTION_DEADLINE).await {
        Ok(Response::State(state)) => state,
        Ok(_) => return runtime.lose_shim(id).await,
        Err(error) => {
            tracing::error!(sandbox = id, error = chain(&error), "the shim does not answer");
            return runtime.lose_shim(id).await;
        }
    };
    let held: BTreeSet<&str> = state.containers.iter().map(|container| container.id.as_str()).collect();
    let recorded: Vec<String> =
        runtime.model().containers_of(id).map(|container| container.id.clone()).collect();
    for seen in &state.containers {
        if recorded.contains(&seen.id) {
            runtime.observe(seen);
        } else {
            tracing::info!(container = seen.id, "removing a container without a record");
            runtime.discard_container(id, &seen.id).await;
        }
    }
    for container in recorded.iter().filter(|container| !held.contains(container.as_str())) {
        let open = runtime.container(container).is_ok_and(|container| container.exit.is_none());
        if open {
            // Recorded, and cut before the shim made it: never announced.
            tracing::info!(container, "removing a container that was never made");
            runtime.discard_container(id, container).await;
            runtime.model().containers.remove(container);
        }
    }
    runtime.watch_shim(id);
}
