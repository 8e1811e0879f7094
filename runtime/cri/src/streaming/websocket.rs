//! Remote commands over WebSocket: `v5.channel.k8s.io` (with closing of standard input) down to `channel.k8s.io`, binary or
//! base64. The first byte of a message is its channel.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use orlop_shim::protocol::channel;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::task::AbortOnDropHandle;

use super::Wish;
use super::remote_command::{INPUT_LIMIT, Input, Output, bridge};
use super::status::Outcome;
use super::streamer::Streamer;

/// Larger than any client's write.
const MESSAGE_LIMIT_BYTES: usize = 4 * 1024 * 1024;
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Subprotocols of remote commands.
pub(super) const COMMAND_PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Over bytes whose HTTP handshake is done.
pub(super) async fn accept(transport: TokioIo<Upgraded>) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_LIMIT_BYTES))
        .max_frame_size(Some(MESSAGE_LIMIT_BYTES));
    WebSocketStream::from_raw_socket(transport, Role::Server, Some(config)).await
}

/// How a subprotocol writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    base64: bool,
    /// The error channel carries a `metav1.Status`.
    status: bool,
    /// Channel 255 closes another one.
    close: bool,
}

impl Dialect {
    pub(super) fn of(protocol: &str) -> Self {
        Self {
            base64: protocol.contains("base64"),
            status: protocol.starts_with("v4.") || protocol.starts_with("v5."),
            close: protocol.starts_with("v5."),
        }
    }

    pub(super) fn encode(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let text = format!("{}{}", char::from(b'0' + channel), STANDARD.encode(data));
            return Message::Text(text.into());
        }
        let mut message = BytesMut::with_capacity(data.len() + 1);
        message.put_u8(channel);
        message.put_slice(data);
        Message::Binary(message.freeze())
    }

    /// Channel and data; `None` for what makes no sense.
    pub(super) fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        let mut data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => return None,
        };
        if data.is_empty() {
            return None;
        }
        let channel = data.split_to(1)[0];
        if self.base64 {
            let data = STANDARD.decode(&data).ok()?;
            return Some((channel.checked_sub(b'0')?, data.into()));
        }
        Some((channel, data))
    }
}

fn input_of(dialect: Dialect, channel: u8, data: Bytes) -> Option<Input> {
    match channel {
        channel::STDIN if !data.is_empty() => Some(Input::Stdin(data)),
        channel::RESIZE => serde_json::from_slice(&data).ok().map(Input::Resize),
        channel::CLOSE_STDIN if dialect.close && data.first() == Some(&channel::STDIN) => {
            Some(Input::CloseStdin)
        }
        _ => None,
    }
}

/// Runs one session.
pub(super) async fn run(streamer: &Streamer, wish: Wish, protocol: &str, socket: Socket) {
    let (Wish::Exec { process, .. } | Wish::Attach { process, .. }) = &wish else {
        return;
    };
    let dialect = Dialect::of(protocol);
    let (sink, stream) = socket.split();
    let mut output = WebSocketOutput { sink, dialect };
    // Clients of the older protocols take the first message as the sign that the session stands.
    let first = match (process.stdout, process.stderr) {
        (true, _) => channel::STDOUT,
        (false, true) => channel::STDERR,
        (false, false) => channel::EXIT,
    };
    if output.send(first, &[]).await.is_err() {
        return;
    }
    let wants_stdin = process.stdin;
    let (sender, input) = mpsc::channel(INPUT_LIMIT);
    let reader = AbortOnDropHandle::new(tokio::spawn(read(stream, dialect, wants_stdin, sender)));
    bridge(streamer, &wish, input, &mut output).await;
    // The client answers the close; a moment later nothing of it matters any more, and one that takes nothing is not waited for.
    let goodbye = async {
        close(&mut output.sink).await;
        let _ = reader.await;
    };
    let _ = tokio::time::timeout(CLOSE_PATIENCE, goodbye).await;
}

/// A close with a status: without one clients report an error (1005) instead of the session's end.
pub(super) async fn close(sink: &mut SplitSink<Socket, Message>) {
    let normal = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
    let _ = sink.send(Message::Close(Some(normal))).await;
    let _ = sink.close().await;
}

async fn read(
    mut stream: SplitStream<Socket>,
    dialect: Dialect,
    wants_stdin: bool,
    sender: mpsc::Sender<Input>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let Some((channel, data)) = dialect.decode(message) else {
            continue;
        };
        let Some(input) = input_of(dialect, channel, data) else {
            continue;
        };
        if !wants_stdin && matches!(input, Input::Stdin(_) | Input::CloseStdin) {
            continue;
        }
        // After the session's end the socket is still read, so that the closing handshake finishes.
        let _ = sender.send(input).await;
    }
}

struct WebSocketOutput {
    sink: SplitSink<Socket, Message>,
    dialect: Dialect,
}

impl WebSocketOutput {
    async fn send(&mut self, channel: u8, data: &[u8]) -> io::Result<()> {
        self.sink.send(self.dialect.encode(channel, data)).await.map_err(to_io)
    }
}

fn to_io(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[async_trait::async_trait]
impl Output for WebSocketOutput {
    async fn stdout(&mut self, data: Bytes) -> io::Result<()> {
        self.send(channel::STDOUT, &data).await
    }

    async fn stderr(&mut self, data: Bytes) -> io::Result<()> {
        self.send(channel::STDERR, &data).await
    }

    async fn end(&mut self, outcome: &Outcome) -> io::Result<()> {
        let text = if self.dialect.status { outcome.status() } else { outcome.text() };
        if text.is_empty() {
            return Ok(());
        }
        self.send(channel::EXIT, text.as_bytes()).await
    }
}

#[cfg(test)]
mod tests {
    use orlop_shim::protocol::TerminalSize;

    use super::*;

    #[test]
    fn dialects_write_and_read_their_own() {
        for protocol in COMMAND_PROTOCOLS {
            let dialect = Dialect::of(protocol);
            let message = dialect.encode(1, b"hi\xff");
            assert_eq!(message.is_text(), protocol.contains("base64"));
            assert_eq!(dialect.decode(message), Some((1, Bytes::from_static(b"hi\xff"))), "{protocol}");
            assert_eq!(dialect.decode(Message::Binary(Bytes::new())), None);
        }
        assert_eq!(Dialect::of("base64.channel.k8s.io").decode(Message::Text("0***".into())), None);
    }

    #[test]
    fn only_v5_closes_standard_input() {
        let (v5, v4) = (Dialect::of("v5.channel.k8s.io"), Dialect::of("v4.channel.k8s.io"));
        let close = Bytes::from_static(&[0]);
        assert!(matches!(input_of(v5, 255, close.clone()), Some(Input::CloseStdin)));
        assert!(input_of(v4, 255, close).is_none());
        let size = input_of(v4, 4, Bytes::from_static(br#"{"Width":80,"Height":24}"#));
        assert!(matches!(size, Some(Input::Resize(TerminalSize { width: 80, height: 24 }))));
        assert!(input_of(v4, 4, Bytes::from_static(b"{")).is_none());
        assert!(input_of(v4, 1, Bytes::from_static(b"x")).is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_message_is_understood_or_ignored(data in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100), text in ".{0,100}") {
            for protocol in COMMAND_PROTOCOLS {
                let dialect = Dialect::of(protocol);
                for message in [Message::Binary(data.clone().into()), Message::Text(text.as_str().into())] {
                    if let Some((channel, data)) = dialect.decode(message) {
                        let _ = input_of(dialect, channel, data);
                    }
                }
                let channel = data.first().copied().unwrap_or(0) % 5;
                proptest::prop_assert_eq!(dialect.decode(dialect.encode(channel, &data)), Some((channel, data.clone().into())));
            }
        }
    }
}
