//! Port forwarding: `portforward.k8s.io` over SPDY, the same tunnelled through a WebSocket
//! (`SPDY/3.1+portforward.k8s.io`, KEP-4006), and the older channels over WebSocket, binary or base64.
//!
//! A client keeps its connection without forwarding anything; so that it ends with its pod, the shim's events are followed meanwhile.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use orlop_shim::protocol::Request;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::spdy::connection::{Connection, Incoming, Stream, StreamWriter};
use super::websocket::{self, Dialect, Socket};
use crate::error::chain;
use crate::shim::{ShimClient, ShimError, read_event};

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Subprotocols of port forwarding.
pub(super) const WEBSOCKET_PROTOCOLS: [&str; 4] =
    [TUNNEL, "portforward.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
const BUFFER_BYTES: usize = 32 * 1024;
/// Connections of one client at once.
const FORWARD_LIMIT: usize = 128;
/// Ports that a client of the channel protocol may name.
const CHANNEL_PORT_LIMIT: usize = 100;
const CHANNEL_QUEUE: usize = 16;

async fn connect(shim: &ShimClient, port: u16) -> Result<UnixStream, ShimError> {
    shim.open(&Request::PortForward { port }, CONNECT_DEADLINE).await
}

/// Returns when the pod's shim is gone, or cannot be talked to.
async fn pod_end(shim: &ShimClient) {
    if let Ok(mut events) = shim.open(&Request::Events, CONNECT_DEADLINE).await {
        while read_event(&mut events).await.is_ok() {}
    }
}

/// Serves one client until its connection or the pod ends.
pub(super) async fn over_spdy<T>(shim: ShimClient, transport: T)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut connection = Connection::serve(transport);
    tokio::select! {
        () = serve_streams(&shim, &mut connection) => {}
        () = pod_end(&shim) => tracing::info!("port forward ended with its pod"),
    }
    connection.close(CLOSE_PATIENCE).await;
}

async fn serve_streams(shim: &ShimClient, connection: &mut Connection) {
    // A pair is joined by its request id; whichever of the two comes first waits here.
    let mut halves: HashMap<String, Stream> = HashMap::new();
    let mut forwards = JoinSet::new();
    while let Some(stream) = connection.streams.recv().await {
        while forwards.try_join_next().is_some() {}
        let Some(key) = request_key(&stream) else {
            let _ = stream.outgoing.reset().await;
            continue;
        };
        match halves.remove(&key) {
            Some(other) if forwards.len() < FORWARD_LIMIT => {
                let (data, error) = match stream.headers.get("streamtype") {
                    Some("data") => (stream, other),
                    _ => (other, stream),
                };
                forwards.spawn(forward(shim.clone(), data, error));
            }
            None if halves.len() < FORWARD_LIMIT => {
                halves.insert(key, stream);
            }
            _ => {
                let _ = stream.outgoing.reset().await;
            }
        }
    }
    forwards.shutdown().await;
}

/// Clients older than request ids open the error stream right before its data stream.
fn request_key(stream: &Stream) -> Option<String> {
    if !matches!(stream.headers.get("streamtype"), Some("data" | "error")) {
        return None;
    }
    let port = stream.headers.get("port")?;
    let request = stream.headers.get("requestid").unwrap_or_default();
    Some(format!("{request}/{port}"))
}

async fn forward(shim: ShimClient, data: Stream, error: Stream) {
    let port = data.headers.get("port").unwrap_or_default().to_owned();
    let result = match port.parse::<u16>() {
        Ok(number) if number != 0 => match connect(&shim, number).await {
            Ok(pod) => copy(pod, data.incoming, &data.outgoing).await.map_err(|error| error.to_string()),
            Err(error) => Err(chain(&error)),
        },
        _ => Err("not a port number".to_owned()),
    };
    if let Err(reason) = result {
        let text = format!("an error occurred forwarding port {port}: {reason}");
        tracing::debug!(port, reason, "port forward failed");
        let _ = error.outgoing.write(text.into()).await;
    }
    let _ = error.outgoing.finish().await;
    let _ = data.outgoing.finish().await;
}

/// Both directions, until both have ended.
async fn copy(pod: UnixStream, mut incoming: Incoming, outgoing: &StreamWriter) -> io::Result<()> {
    let (mut read, mut write) = pod.into_split();
    let to_pod = async {
        while let Some(data) = incoming.recv().await {
            if write.write_all(&data).await.is_err() {
                // The pod closed; what the client still sends goes nowhere.
                break;
            }
        }
        let _ = write.shutdown().await;
    };
    let to_client = async {
        let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
        loop {
            buffer.reserve(BUFFER_BYTES);
            if read.read_buf(&mut buffer).await? == 0 {
                return outgoing.finish().await;
            }
            outgoing.write(buffer.split().freeze()).await?;
        }
    };
    // When the pod has said everything the client is told at once; its own half may go on until it closes.
    let (_, sent) = tokio::join!(to_pod, to_client);
    sent
}

/// Serves one client over WebSocket.
pub(super) async fn over_websocket(shim: ShimClient, ports: Vec<u16>, protocol: &str, socket: Socket) {
    if protocol == TUNNEL {
        let (near, far) = tokio::io::duplex(BUFFER_BYTES * 2);
        tokio::join!(over_spdy(shim, near), tunnel(socket, far));
    } else {
        over_channels(&shim, ports, Dialect::of(protocol), socket).await;
    }
}

/// Binary messages are a byte stream.
async fn tunnel(socket: Socket, stream: tokio::io::DuplexStream) {
    let (mut sink, mut source) = socket.split();
    let (mut read, mut write) = tokio::io::split(stream);
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(data) => {
                    if write.write_all(&data).await.is_err() {
                        break;
                    }
                }
                Message::Close(_) => break,
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        let _ = write.shutdown().await;
    };
    let outward = async {
        let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
        loop {
            buffer.reserve(BUFFER_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                break;
            }
        }
        websocket::close(&mut sink).await;
    };
    tokio::join!(inward, outward);
}

/// Channel 2n carries the bytes of the n-th port, 2n+1 its errors; each begins with the port, little endian.
async fn over_channels(shim: &ShimClient, ports: Vec<u16>, dialect: Dialect, socket: Socket) {
    let (mut sink, mut source) = socket.split();
    let (sender, mut messages) = mpsc::channel::<Message>(CHANNEL_QUEUE);
    let mut inputs = Vec::new();
    let mut forwards = JoinSet::new();
    for (index, port) in ports.into_iter().take(CHANNEL_PORT_LIMIT).enumerate() {
        let (input, incoming) = mpsc::channel::<Bytes>(CHANNEL_QUEUE);
        inputs.push(input);
        let data = u8::try_from(index * 2).unwrap_or(u8::MAX);
        let client = Channel { number: data, dialect, messages: sender.clone() };
        forwards.spawn(forward_channel(shim.clone(), port, client, incoming));
    }
    drop(sender);
    let writer = async {
        while let Some(message) = messages.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        websocket::close(&mut sink).await;
    };
    let reader = async {
        while let Some(Ok(message)) = source.next().await {
            let Some((channel, data)) = dialect.decode(message) else {
                continue;
            };
            let channel = usize::from(channel);
            // A port that has ended takes nothing more.
            if channel % 2 == 0
                && let Some(input) = inputs.get(channel / 2)
            {
                let _ = input.send(data).await;
            }
        }
    };
    tokio::select! {
        () = writer => {}
        () = reader => {}
        () = pod_end(shim) => {}
    }
    forwards.shutdown().await;
}

/// A pair of channels of one client.
struct Channel {
    /// Of the bytes; errors have the next one.
    number: u8,
    dialect: Dialect,
    messages: mpsc::Sender<Message>,
}

impl Channel {
    /// False when the client is gone.
    async fn data(&self, data: &[u8]) -> bool {
        self.messages.send(self.dialect.encode(self.number, data)).await.is_ok()
    }

    async fn error(&self, data: &[u8]) -> bool {
        self.messages.send(self.dialect.encode(self.number + 1, data)).await.is_ok()
    }
}

async fn forward_channel(shim: ShimClient, port: u16, client: Channel, mut incoming: mpsc::Receiver<Bytes>) {
    let name = port.to_le_bytes();
    if !(client.data(&name).await && client.error(&name).await) {
        return;
    }
    let pod = match connect(&shim, port).await {
        Ok(pod) => pod,
        Err(error) => {
            client.error(chain(&error).as_bytes()).await;
            return;
        }
    };
    let (mut read, mut write) = pod.into_split();
    let to_pod = async {
        while let Some(data) = incoming.recv().await {
            if write.write_all(&data).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    let to_client = async {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(length @ 1..) = read.read(&mut buffer).await {
            if !client.data(&buffer[..length]).await {
                return;
            }
        }
    };
    tokio::select! {
        () = to_client => {}
        () = async { to_pod.await; std::future::pending().await } => {}
    }
}
