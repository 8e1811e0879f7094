//! Remote commands over SPDY/3.1: one stream per standard stream, one for errors, one for the terminal's size.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use orlop_shim::protocol::{ExecProcess, TerminalSize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::Wish;
use super::remote_command::{INPUT_LIMIT, Input, Output, bridge};
use super::spdy::connection::{Connection, Stream, StreamWriter};
use super::status::Outcome;
use super::streamer::Streamer;

/// A client opens all its streams at once.
const STREAMS_DEADLINE: Duration = Duration::from_secs(30);
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// Sizes that were not understood up to here are noise.
const SIZE_LIMIT_BYTES: usize = 4096;

/// Runs one session.
pub(super) async fn run<T>(streamer: &Streamer, wish: Wish, protocol: &str, transport: T)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (Wish::Exec { process, .. } | Wish::Attach { process, .. }) = &wish else {
        return;
    };
    let mut connection = Connection::serve(transport);
    let gathered =
        tokio::time::timeout(STREAMS_DEADLINE, Gathered::gather(&mut connection, process, protocol)).await;
    let Ok(Some(streams)) = gathered else {
        tracing::debug!(kind = wish.kind(), "the client did not open the streams of its session");
        return connection.close(CLOSE_PATIENCE).await;
    };
    let (sender, input) = mpsc::channel(INPUT_LIMIT);
    if let Some(stdin) = streams.stdin {
        tokio::spawn(read_stdin(stdin, sender.clone()));
    }
    if let Some(resize) = streams.resize {
        tokio::spawn(read_sizes(resize, sender.clone()));
    }
    let mut output = SpdyOutput {
        stdout: streams.stdout.map(|stream| stream.outgoing),
        stderr: streams.stderr.map(|stream| stream.outgoing),
        error: streams.error.outgoing,
        status: protocol.starts_with("v4."),
    };
    // No more streams come; the end of this channel is the end of the connection.
    let gone = async {
        while let Some(extra) = connection.streams.recv().await {
            let _ = extra.outgoing.reset().await;
        }
        drop(sender);
    };
    {
        let mut session = std::pin::pin!(bridge(streamer, &wish, input, &mut output));
        tokio::select! {
            () = &mut session => {}
            () = gone => session.await,
        }
    }
    drop(output);
    connection.close(CLOSE_PATIENCE).await;
}

struct Gathered {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Gathered {
    async fn gather(connection: &mut Connection, process: &ExecProcess, protocol: &str) -> Option<Self> {
        let resizes = process.terminal && (protocol.starts_with("v3.") || protocol.starts_with("v4."));
        let wanted = [process.stdin, process.stdout, process.stderr, resizes]
            .into_iter()
            .filter(|wanted| *wanted)
            .count()
            + 1;
        let (mut error, mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None, None);
        for _ in 0..wanted {
            let stream = connection.streams.recv().await?;
            let place = match stream.headers.get("streamtype") {
                Some("error") => &mut error,
                Some("stdin") => &mut stdin,
                Some("stdout") => &mut stdout,
                Some("stderr") => &mut stderr,
                Some("resize") => &mut resize,
                _ => {
                    let _ = stream.outgoing.reset().await;
                    return None;
                }
            };
            *place = Some(stream);
        }
        Some(Self { error: error?, stdin, stdout, stderr, resize })
    }
}

async fn read_stdin(mut stream: Stream, sender: mpsc::Sender<Input>) {
    while let Some(data) = stream.incoming.recv().await {
        if sender.send(Input::Stdin(data)).await.is_err() {
            return;
        }
    }
    let _ = sender.send(Input::CloseStdin).await;
}

async fn read_sizes(mut stream: Stream, sender: mpsc::Sender<Input>) {
    let mut pending = BytesMut::new();
    while let Some(data) = stream.incoming.recv().await {
        pending.extend_from_slice(&data);
        for size in take_sizes(&mut pending) {
            if sender.send(Input::Resize(size)).await.is_err() {
                return;
            }
        }
    }
}

/// Takes whole JSON objects off the front; what is broken or too long is thrown away.
fn take_sizes(pending: &mut BytesMut) -> Vec<TerminalSize> {
    let mut sizes = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(pending).into_iter::<TerminalSize>();
    let mut taken = 0;
    loop {
        match stream.next() {
            Some(Ok(size)) => {
                sizes.push(size);
                taken = stream.byte_offset();
            }
            Some(Err(error)) if error.is_eof() && pending.len() - taken <= SIZE_LIMIT_BYTES => break,
            Some(Err(_)) | None => {
                taken = pending.len();
                break;
            }
        }
    }
    let _ = pending.split_to(taken);
    sizes
}

struct SpdyOutput {
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
    error: StreamWriter,
    status: bool,
}

async fn write(stream: Option<&StreamWriter>, data: Bytes) -> io::Result<()> {
    match stream {
        Some(stream) => stream.write(data).await,
        None => Ok(()),
    }
}

#[async_trait::async_trait]
impl Output for SpdyOutput {
    async fn stdout(&mut self, data: Bytes) -> io::Result<()> {
        write(self.stdout.as_ref(), data).await
    }

    async fn stderr(&mut self, data: Bytes) -> io::Result<()> {
        write(self.stderr.as_ref(), data).await
    }

    async fn end(&mut self, outcome: &Outcome) -> io::Result<()> {
        let text = if self.status { outcome.status() } else { outcome.text() };
        self.error.write(text.into()).await?;
        for stream in [self.stdout.as_ref(), self.stderr.as_ref(), Some(&self.error)].into_iter().flatten() {
            stream.finish().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_arrive_in_any_cut() {
        let text = br#"{"Width":80,"Height":24}{"Width":81,"Height":25}
"#;
        for cut in 0..text.len() {
            let mut pending = BytesMut::from(&text[..cut]);
            let mut sizes = take_sizes(&mut pending);
            pending.extend_from_slice(&text[cut..]);
            sizes.extend(take_sizes(&mut pending));
            let widths: Vec<u16> = sizes.iter().map(|size| size.width).collect();
            assert_eq!(widths, [80, 81], "cut at {cut}");
        }
        let mut noise = BytesMut::from(&b"]]]]"[..]);
        assert!(take_sizes(&mut noise).is_empty() && noise.is_empty());
    }
}
