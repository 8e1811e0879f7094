//! The CRI server: what a kubelet calls to run pods and containers, and the sessions that `kubectl exec` ends up in.
//!
//! It decides and remembers; the work near a container is done by one [shim](orlop_shim) per pod, which outlives this daemon.
//! Images and layers are [`orlop_images`]'s; networks are made by CNI plugins.
//!
//! Invariant: no libcontainer, no mount and no namespace change happens in this process. Every request to a shim has a
//! deadline. What must survive a kill is on disk before a verb answers; everything else is asked of the shims at the start.
//!
//! ```text
//!   RunPodSandbox:  record(Making) → shim → CNI ADD → record(Ready)        any failure: undone in reverse
//!   CreateContainer: rootfs → config.json → record → shim Create
//!   StartContainer → shim Start;  exit: shim writes exit.json → Event → model → record → subscribers
//!   StopPodSandbox: containers killed → CNI DEL → shim ends → record(Stopped)
//! ```
//!
//! Tasks: `cri` (gRPC server), one watcher per live shim (its events). Verbs run in [flights] of their own, so a kubelet's
//! deadline cuts none off halfway and a retry joins. Sessions are served by a process of their own, see `streaming/mod.rs`.
//!
//! Read next: [`runtime`] (shared state), `verbs/` (one file per verb), `spec/plan.rs` (CRI → OCI), `adopt.rs` (restart).

#![warn(missing_docs)]

mod adopt;
mod apparmor;
mod cdi;
mod cgroup;
mod cgroup_parents;
mod cni;
mod config;
mod convert;
mod error;
mod files;
mod flights;
mod groups;
mod image_service;
mod layers;
mod machine;
mod metrics;
mod model;
mod pod_metrics;
mod process;
mod runtime;
mod runtime_service;
mod shim;
mod spec;
mod stats;
mod streaming;
mod usage;
mod users;
mod verbs;
mod volumes;
mod watcher;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use anyhow::Context as _;
use orlop_cri::v1::image_service_server::ImageServiceServer;
use orlop_cri::v1::runtime_service_server::RuntimeServiceServer;
use orlop_daemon::Frame;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

pub use config::{CgroupDriver, Config, RuntimeHandler};
pub use error::CriError;
pub use streaming::streamer_main;

/// What open connections may take after the drain started.
const DRAIN_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// Wires the daemon: opens the image store, adopts what runs, serves.
///
/// # Errors
/// A directory, socket or cgroup hierarchy that cannot be used, by name.
pub async fn start(frame: &Frame, config: Config) -> anyhow::Result<()> {
    let guard = frame.ready().guard("pods-adopted");
    let socket = config.socket_path().context("listen is not a unix socket")?;
    for directory in [&config.root, &config.state] {
        files::make_private_dir(directory)
            .with_context(|| format!("failed to create {}", directory.display()))?;
    }
    let streams = streaming::Streams::open(&config).await?;
    let runtime = runtime::Runtime::open(frame, config, streams)?;
    adopt::adopt(&runtime).await.context("failed to take over what runs")?;
    let listener = bind(&socket)?;
    guard.set();
    let dumped = runtime.clone();
    frame.dump("runtime", move || dumped.dump());
    let drain = frame.drain();
    frame.spawn("cri", async move { serve(runtime, listener, drain).await });
    Ok(())
}

fn bind(socket: &std::path::Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = socket.parent() {
        files::make_private_dir(parent).with_context(|| format!("failed to create {}", parent.display()))?;
    }
    // A predecessor that was killed leaves its socket file.
    files::remove_tree(socket).with_context(|| format!("failed to remove {}", socket.display()))?;
    let listener =
        UnixListener::bind(socket).with_context(|| format!("failed to listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(
    runtime: Arc<runtime::Runtime>,
    listener: UnixListener,
    drain: orlop_daemon::Drain,
) -> anyhow::Result<()> {
    let limit = orlop_cri::MESSAGE_LIMIT_BYTES;
    let runtime_service = RuntimeServiceServer::new(runtime_service::RuntimeApi::new(runtime.clone()))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let image_service = ImageServiceServer::new(image_service::ImageApi::new(runtime))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let soft = drain.clone();
    let server = tonic::transport::Server::builder()
        .add_service(runtime_service)
        .add_service(image_service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move { soft.wait().await });
    // Verbs go on in flights of their own; a client that keeps its connection open must not hold up the drain.
    let hard = async {
        drain.wait().await;
        tokio::time::sleep(DRAIN_PATIENCE).await;
    };
    tokio::select! {
        served = server => served.context("the CRI server failed"),
        () = hard => Ok(()),
    }
}
