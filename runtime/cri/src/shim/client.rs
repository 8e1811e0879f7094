//! The asynchronous side of the shim protocol. One connection per request: a unix connection costs microseconds, and no
//! request can be stuck behind another one.

use std::path::PathBuf;
use std::time::Duration;

use orlop_shim::protocol::{ErrorKind, Event, FRAME_LIMIT_BYTES, Request, Response, VERSION, is_spoken};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::error::CriError;

/// How long a shim may take to accept and greet.
const GREETING: Duration = Duration::from_secs(5);

/// Why a shim did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// Nobody listens: the shim is gone or going.
    #[error("failed to connect to the pod's shim")]
    Connect(#[source] std::io::Error),
    /// The connection broke.
    #[error("the connection to the pod's shim broke")]
    Broken(#[source] std::io::Error),
    /// It did not answer in time.
    #[error("the pod's shim did not answer within {0:?}")]
    Timeout(Duration),
    /// It answered what no shim answers.
    #[error("the pod's shim answered out of protocol: {0}")]
    Protocol(String),
    /// It is more than one version away.
    #[error("the pod's shim speaks version {0} of its protocol, this daemon {VERSION} and its neighbours")]
    Version(u32),
    /// It refused.
    #[error("{message}")]
    Refused {
        /// For decisions.
        kind: ErrorKind,
        /// For people.
        message: String,
    },
}

impl ShimError {
    /// As the kubelet sees it; `kind` and `id` name the object.
    pub(crate) fn to_cri(&self, act: &str, id: &str) -> CriError {
        match self {
            Self::Refused { kind: ErrorKind::NotFound, .. } => CriError::no_container(id),
            Self::Refused { kind: ErrorKind::WrongState, message } => {
                CriError::WrongState(format!("{act}: {message}"))
            }
            Self::Refused { kind: ErrorKind::Invalid, message } => {
                CriError::Invalid(format!("{act}: {message}"))
            }
            Self::Refused { kind: ErrorKind::Failed, message } => {
                CriError::Failed { act: act.to_owned(), cause: message.as_str().into() }
            }
            Self::Timeout(_) => CriError::Timeout(format!("{act}: {self}")),
            Self::Connect(_) | Self::Broken(_) | Self::Protocol(_) | Self::Version(_) => {
                CriError::failed(act, self)
            }
        }
    }

    /// Whether the shim may be gone.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Broken(_))
    }
}

/// Talks to one shim; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ShimClient {
    socket: PathBuf,
}

impl ShimClient {
    /// For the shim behind this socket.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Sends one request and reads its answer; a refusal is an error.
    pub(crate) async fn call(&self, request: &Request, deadline: Duration) -> Result<Response, ShimError> {
        Ok(self.begin(request, deadline).await?.0)
    }

    /// Sends a request that turns its connection into a session, and hands over the connection.
    pub(crate) async fn open(&self, request: &Request, deadline: Duration) -> Result<UnixStream, ShimError> {
        match self.begin(request, deadline).await? {
            (Response::Ok, stream) => Ok(stream),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Sends a request that may turn its connection into a session: its answer, and the connection.
    pub(crate) async fn begin(
        &self,
        request: &Request,
        deadline: Duration,
    ) -> Result<(Response, UnixStream), ShimError> {
        let exchange = async {
            let mut stream = self.connect().await?;
            write_frame(&mut stream, request).await?;
            let response = answer(&mut stream).await?;
            Ok((response, stream))
        };
        tokio::time::timeout(deadline, exchange).await.map_err(|_| ShimError::Timeout(deadline))?
    }

    /// Greets, within the greeting's own deadline.
    async fn connect(&self) -> Result<UnixStream, ShimError> {
        let greet = async {
            let mut stream = UnixStream::connect(&self.socket).await.map_err(ShimError::Connect)?;
            write_frame(&mut stream, &Request::Hello { version: VERSION }).await?;
            match answer(&mut stream).await? {
                Response::Hello { version, .. } if is_spoken(version) => Ok(stream),
                Response::Hello { version, .. } => Err(ShimError::Version(version)),
                other => Err(unexpected(&other)),
            }
        };
        tokio::time::timeout(GREETING, greet).await.map_err(|_| ShimError::Timeout(GREETING))?
    }
}

fn unexpected(response: &Response) -> ShimError {
    let mut text = format!("unexpected {response:?}");
    text.truncate(200);
    ShimError::Protocol(text)
}

async fn answer(stream: &mut UnixStream) -> Result<Response, ShimError> {
    match read_frame(stream).await? {
        Response::Error { kind, message } => Err(ShimError::Refused { kind, message }),
        response => Ok(response),
    }
}

async fn write_frame(stream: &mut UnixStream, request: &Request) -> Result<(), ShimError> {
    let body = serde_json::to_vec(request).map_err(|error| ShimError::Protocol(error.to_string()))?;
    if body.len() > FRAME_LIMIT_BYTES {
        return Err(ShimError::Protocol(format!("a request of {} bytes is too large", body.len())));
    }
    let length = u32::try_from(body.len()).map_err(|error| ShimError::Protocol(error.to_string()))?;
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&body);
    stream.write_all(&frame).await.map_err(ShimError::Broken)
}

async fn read_frame<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> Result<T, ShimError> {
    let length = stream.read_u32().await.map_err(ShimError::Broken)? as usize;
    if length > FRAME_LIMIT_BYTES {
        return Err(ShimError::Protocol(format!("a frame of {length} bytes is too large")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(ShimError::Broken)?;
    serde_json::from_slice(&body).map_err(|error| ShimError::Protocol(error.to_string()))
}

/// Reads the next event of an events connection.
pub(crate) async fn read_event(stream: &mut UnixStream) -> Result<Event, ShimError> {
    read_frame(stream).await
}
