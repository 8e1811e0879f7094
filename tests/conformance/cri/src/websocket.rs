//! Sessions over WebSocket: the first byte of a message is its channel.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const PATIENCE: Duration = Duration::from_secs(60);

/// One session.
pub struct Channels {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    received: [Vec<u8>; 8],
    ended: bool,
}

/// Opens a session with one subprotocol.
///
/// # Errors
/// A server that refuses it or chooses another one.
pub async fn connect(url: &str, protocol: &str) -> anyhow::Result<Channels> {
    let mut request = url.replacen("http://", "ws://", 1).into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse()?);
    let (socket, answer) = tokio_tungstenite::connect_async(request).await?;
    let chosen = answer.headers().get("Sec-WebSocket-Protocol").and_then(|value| value.to_str().ok());
    ensure!(chosen == Some(protocol), "the server chose {chosen:?}");
    Ok(Channels { socket, received: Default::default(), ended: false })
}

impl Channels {
    /// Sends bytes on a channel.
    ///
    /// # Errors
    /// A connection that is gone.
    pub async fn send(&mut self, channel: u8, data: &[u8]) -> anyhow::Result<()> {
        let message = Message::binary([&[channel], data].concat());
        Ok(self.socket.send(message).await?)
    }

    /// What came on a channel so far.
    pub fn received(&self, channel: u8) -> &[u8] {
        &self.received[usize::from(channel)]
    }

    /// As text.
    pub fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(self.received(channel)).into_owned()
    }

    /// Reads until `enough` says so, or the server closes the session.
    ///
    /// # Errors
    /// Silence, or a session that ends before.
    pub async fn read_until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        while !enough(self) {
            ensure!(!self.ended, "the session ended before: {what}");
            self.step().await.with_context(|| format!("waiting for: {what}"))?;
        }
        Ok(())
    }

    /// Reads until the server closes the session.
    ///
    /// # Errors
    /// Silence.
    pub async fn read_end(&mut self) -> anyhow::Result<()> {
        self.read_until("the end", |channels| channels.ended).await
    }

    async fn step(&mut self) -> anyhow::Result<()> {
        match tokio::time::timeout(PATIENCE, self.socket.next()).await.context("silence")? {
            Some(Ok(Message::Binary(data))) => {
                if let Some((channel, data)) = data.split_first() {
                    let of_channel = self.received.get_mut(usize::from(*channel));
                    of_channel.with_context(|| format!("channel {channel}"))?.extend_from_slice(data);
                }
            }
            Some(Ok(Message::Close(_))) | None => self.ended = true,
            // A server that closes the connection without ceremony after the last message.
            Some(Err(_)) => self.ended = true,
            Some(Ok(_)) => {}
        }
        Ok(())
    }
}

/// The bytes of the binary messages, as `SPDY/3.1+portforward.k8s.io` tunnels them (KEP-4006).
///
/// # Errors
/// As [`connect`].
pub async fn tunnel(url: &str, protocol: &str) -> anyhow::Result<DuplexStream> {
    let Channels { mut socket, .. } = connect(url, protocol).await?;
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let mut chunk = vec![0; 16 * 1024];
        loop {
            tokio::select! {
                read = far.read(&mut chunk) => match read {
                    Ok(count) if count > 0 => {
                        let message = Message::Binary(Bytes::copy_from_slice(&chunk[..count]));
                        if socket.send(message).await.is_err() {
                            return;
                        }
                    }
                    _ => return drop(socket.close(None).await),
                },
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(data))) => {
                        if far.write_all(&data).await.is_err() {
                            return;
                        }
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => {}
                },
            }
        }
    });
    Ok(near)
}

/// A session whose messages are base64 behind the channel's digit.
pub struct TextChannels {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// As [`connect`], for the base64 protocols.
///
/// # Errors
/// As [`connect`].
pub async fn connect_text(url: &str, protocol: &str) -> anyhow::Result<TextChannels> {
    let Channels { socket, .. } = connect(url, protocol).await?;
    Ok(TextChannels { socket })
}

impl TextChannels {
    /// Sends one message.
    ///
    /// # Errors
    /// A connection that is gone.
    pub async fn send_text(&mut self, channel: char, text: &str) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text(format!("{channel}{text}"))).await?)
    }

    /// The next message of a channel that is not empty.
    ///
    /// # Errors
    /// Silence, or the end of the session.
    pub async fn next_text(&mut self, channel: char) -> anyhow::Result<String> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await.context("silence")?;
            if let Message::Text(text) = next.context("the session ended")??
                && let Some(rest) = text.strip_prefix(channel).filter(|rest| !rest.is_empty())
            {
                return Ok(rest.to_owned());
            }
        }
    }
}
