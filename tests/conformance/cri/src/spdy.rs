//! A client of SPDY/3.1 (draft-mbelshe-httpbis-spdy-00, as kubectl's library speaks it), for sessions alone: it opens streams,
//! sends, and gathers what comes. Written from the draft: it shares no line with the server that it judges.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A session that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

/// Section 2.6.10.1: length-prefixed words, then text without lengths.
const DICTIONARY_WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
accept-ranges age allow authorization cache-control connection content-base content-encoding content-language content-length \
content-location content-md5 content-range content-type date etag expect expires from host if-match if-modified-since \
if-none-match if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization \
range referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get \
status 200+OK version HTTP/1.1 url public set-cookie keep-alive origin";
const DICTIONARY_TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in DICTIONARY_WORDS.split(' ') {
        put_text(&mut bytes, &word.replace('+', " "));
    }
    bytes.extend_from_slice(DICTIONARY_TEXT.as_bytes());
    bytes
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// What came on one stream.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Bytes so far.
    pub data: Vec<u8>,
    /// Whether the server sends no more.
    pub ended: bool,
    answered: bool,
}

/// One connection.
pub struct Spdy<T> {
    transport: T,
    deflate: Compress,
    inflate: Decompress,
    next: u32,
    streams: BTreeMap<u32, Gathered>,
    closed: bool,
}

/// Upgrades a connection to a session's URL; the protocol that the server chose.
///
/// # Errors
/// Any other answer than 101.
pub async fn connect(url: &str, protocols: &[&str]) -> anyhow::Result<(Spdy<TcpStream>, String)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is no http URL"))?;
    let (authority, path) = rest.split_once('/').context("no path")?;
    let mut stream = TcpStream::connect(authority).await?;
    let mut request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n"
    );
    for protocol in protocols {
        request.push_str(&format!("X-Stream-Protocol-Version: {protocol}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(PATIENCE, stream.read_u8()).await.context("no answer")??;
        head.push(byte);
        ensure!(head.len() < 16 * 1024, "an endless head");
    }
    let head = String::from_utf8(head)?;
    ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
    let chosen = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("X-Stream-Protocol-Version").then(|| value.trim().to_owned())
    });
    Ok((Spdy::new(stream)?, chosen.unwrap_or_default()))
}

impl<T: AsyncRead + AsyncWrite + Unpin> Spdy<T> {
    /// Over bytes that are SPDY from the first on.
    ///
    /// # Errors
    /// When zlib refuses the dictionary.
    pub fn new(transport: T) -> anyhow::Result<Self> {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&dictionary())?;
        let (inflate, streams) = (Decompress::new(true), BTreeMap::new());
        Ok(Self { transport, deflate, inflate, next: 1, streams, closed: false })
    }

    /// Opens a stream and waits for the server's reply.
    ///
    /// # Errors
    /// A stream that is refused.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> anyhow::Result<u32> {
        let id = self.next;
        self.next += 2;
        let mut plain = u32::try_from(headers.len())?.to_be_bytes().to_vec();
        for (name, value) in headers {
            put_text(&mut plain, name);
            put_text(&mut plain, value);
        }
        let mut block = Vec::with_capacity(plain.len() + 256);
        self.deflate.compress_vec(&plain, &mut block, FlushCompress::Sync)?;
        let mut payload = [id.to_be_bytes(), [0; 4]].concat();
        payload.extend_from_slice(&[0, 0]);
        payload.extend_from_slice(&block);
        self.streams.insert(id, Gathered::default());
        self.control(SYN_STREAM, &payload).await?;
        while !self.gathered(id).answered {
            self.step().await?;
            ensure!(!self.gathered(id).ended || self.gathered(id).answered, "stream {headers:?} was refused");
        }
        Ok(id)
    }

    async fn control(&mut self, kind: u16, payload: &[u8]) -> anyhow::Result<()> {
        let mut frame = vec![0x80, 0x03];
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&u32::try_from(payload.len())?.to_be_bytes());
        frame.extend_from_slice(payload);
        Ok(self.transport.write_all(&frame).await?)
    }

    /// Sends bytes; `last` closes our direction.
    ///
    /// # Errors
    /// A connection that is gone.
    pub async fn send(&mut self, id: u32, data: &[u8], last: bool) -> anyhow::Result<()> {
        let mut parts = data.chunks(16 * 1024).peekable();
        if parts.peek().is_none() && last {
            return self.data(id, &[], FIN).await;
        }
        while let Some(part) = parts.next() {
            let flags = if last && parts.peek().is_none() { FIN } else { 0 };
            self.data(id, part, flags).await?;
        }
        Ok(())
    }

    async fn data(&mut self, id: u32, part: &[u8], flags: u8) -> anyhow::Result<()> {
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend_from_slice(&(u32::try_from(part.len())? | u32::from(flags) << 24).to_be_bytes());
        frame.extend_from_slice(part);
        Ok(self.transport.write_all(&frame).await?)
    }

    /// What came on a stream so far.
    pub fn gathered(&self, id: u32) -> Gathered {
        self.streams.get(&id).cloned().unwrap_or_default()
    }

    /// Reads until `enough` says so.
    ///
    /// # Errors
    /// The end of the connection before that, silence, or bytes that are no SPDY.
    pub async fn read_until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        while !enough(self) {
            ensure!(!self.closed, "the connection ended before: {what}");
            self.step().await.with_context(|| format!("waiting for: {what}"))?;
        }
        Ok(())
    }

    /// Reads until the server has closed all of these streams.
    ///
    /// # Errors
    /// As [`Spdy::read_until`].
    pub async fn read_ends(&mut self, ids: &[u32]) -> anyhow::Result<()> {
        let ids = ids.to_vec();
        self.read_until("the ends of the streams", move |all| ids.iter().all(|id| all.gathered(*id).ended))
            .await
    }

    /// One frame.
    async fn step(&mut self) -> anyhow::Result<()> {
        let mut head = [0; 8];
        let read = tokio::time::timeout(PATIENCE, self.transport.read_exact(&mut head)).await;
        match read.context("silence")? {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && !self.closed => {
                self.closed = true;
                self.streams.values_mut().for_each(|stream| stream.ended = true);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
        ensure!(length < 1 << 20, "a frame of {length} bytes");
        let mut payload = vec![0; length as usize];
        self.transport.read_exact(&mut payload).await?;
        let (flags, word) = (head[4], u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
        if word & 0x8000_0000 == 0 {
            let stream = self.streams.get_mut(&word).with_context(|| format!("data for stream {word}"))?;
            ensure!(!stream.ended, "data after the end of stream {word}");
            stream.data.extend_from_slice(&payload);
            stream.ended |= flags & FIN != 0;
            return Ok(());
        }
        ensure!(word >> 16 == 0x8003, "version {:x}", word >> 16);
        self.on_control(u16::try_from(word & 0xffff)?, flags, &payload).await
    }

    async fn on_control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> anyhow::Result<()> {
        let id =
            || payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).context("a frame too short");
        match kind {
            SYN_REPLY => {
                let block = payload.get(4..).context("a reply too short")?;
                self.check_block(block)?;
                let stream = self.streams.get_mut(&id()?).context("a reply for no stream")?;
                stream.answered = true;
                stream.ended |= flags & FIN != 0;
            }
            RST_STREAM => {
                if let Some(stream) = self.streams.get_mut(&id()?) {
                    stream.ended = true;
                }
            }
            PING => self.control(PING, payload).await?,
            GOAWAY => {}
            // SETTINGS, HEADERS, WINDOW_UPDATE: a client may pass over them.
            4 | 8 | 9 => {}
            other => bail!("a frame of type {other}"),
        }
        Ok(())
    }

    /// The server's blocks are one zlib stream with the dictionary: one that is not breaks kubectl.
    fn check_block(&mut self, block: &[u8]) -> anyhow::Result<()> {
        let mut plain = Vec::with_capacity(16 * 1024);
        let before = self.inflate.total_in();
        if let Err(error) = self.inflate.decompress_vec(block, &mut plain, FlushDecompress::Sync) {
            ensure!(error.needs_dictionary().is_some(), "a header block that is no zlib: {error}");
            self.inflate.set_dictionary(&dictionary())?;
            let taken = usize::try_from(self.inflate.total_in() - before)?;
            self.inflate.decompress_vec(&block[taken..], &mut plain, FlushDecompress::Sync)?;
        }
        ensure!(plain.len() >= 4, "a header block of {} bytes", plain.len());
        Ok(())
    }
}
