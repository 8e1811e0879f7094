//! What the daemon says to its streamer: one order and one reply per connection to `STATE/streamer.sock`, each a `u32` big
//! endian length and JSON.
//!
//! Versions: a daemon starts a streamer of its own binary and gives wishes to no other. To a predecessor's it says
//! [`Order::Retire`] alone, which therefore never changes.

use std::io;
use std::path::Path;
use std::time::Duration;

use orlop_shim::protocol::FRAME_LIMIT_BYTES;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::Wish;

/// A streamer answers from memory.
const DEADLINE: Duration = Duration::from_secs(5);

/// From the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "method", content = "params")]
pub(super) enum Order {
    /// A client with this token may come, once and soon.
    Expect {
        /// Last part of the URL's path.
        token: String,
        /// What it gets.
        wish: Wish,
    },
    /// Take no more orders; end with the last session.
    Retire {
        /// Give the address free now; otherwise clients that are expected may still come.
        at_once: bool,
    },
}

/// From the streamer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "result", content = "value")]
pub(super) enum Reply {
    /// Done.
    Ok,
    /// Not done; for people.
    Refused(String),
}

/// Says something to whoever listens at `socket`.
pub(super) async fn call(socket: &Path, order: &Order) -> io::Result<Reply> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        send(&mut stream, order).await?;
        receive(&mut stream).await
    };
    tokio::time::timeout(DEADLINE, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

pub(super) async fn send(stream: &mut UnixStream, value: &impl Serialize) -> io::Result<()> {
    stream.write_all(&orlop_shim::frame::encode(value)?).await
}

pub(super) async fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let length = stream.read_u32().await? as usize;
    if length > FRAME_LIMIT_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes is too large"),
        ));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}
