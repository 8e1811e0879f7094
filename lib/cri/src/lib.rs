//! The Container Runtime Interface, v1 (KEP-2040): messages, server traits and client, generated from `proto/runtime.proto`.
//!
//! The kubelet and the runtime meet here and nowhere else. [`connect`] opens a client channel over a unix socket.

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

/// Generated messages, `runtime_service_server`, `runtime_service_client`, `image_service_server`, `image_service_client`.
#[allow(missing_docs, clippy::all, unreachable_pub, clippy::unwrap_used)] // generated code
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// The largest message either side accepts, in bytes: a full node's container list stays far below.
pub const MESSAGE_LIMIT_BYTES: usize = 16 * 1024 * 1024;

/// Why no channel could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Only unix sockets are spoken.
    #[error("CRI endpoint {endpoint:?} is not a unix socket: use unix:///path/to.sock")]
    NotUnix {
        /// What was given.
        endpoint: String,
    },
    /// The channel could not be set up.
    #[error("failed to set up the CRI channel to {endpoint:?}")]
    Channel {
        /// What was given.
        endpoint: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

/// A lazy channel to `unix:///path` (or a bare absolute path): it connects on first use and reconnects by itself.
///
/// # Errors
/// [`ConnectError::NotUnix`] for any other scheme.
pub fn connect(endpoint: &str) -> Result<Channel, ConnectError> {
    let path = match endpoint.strip_prefix("unix://") {
        Some(path) => PathBuf::from(path),
        None if endpoint.starts_with('/') => PathBuf::from(endpoint),
        None => {
            return Err(ConnectError::NotUnix { endpoint: endpoint.to_owned() });
        }
    };
    let channel = Endpoint::try_from("http://cri.invalid")
        .map_err(|source| ConnectError::Channel { endpoint: endpoint.to_owned(), source })?
        .connect_with_connector_lazy(tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        }));
    Ok(channel)
}
