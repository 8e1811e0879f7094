//! A cheap HTTP/1.1 load: raw sockets that stay open, one question in flight on each.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;

const PATIENCE: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 1 << 20;
/// Of a head.
const HEAD_LIMIT: usize = 16 << 10;
const THREADS: usize = 8;

/// One connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came, beside the content.
pub(crate) struct Answer {
    /// `HTTP/1.1 200 …` and the headers.
    pub head: String,
    /// Of the content.
    pub length: usize,
}

impl Answer {
    pub(crate) fn status(&self) -> &str {
        self.head.get(9..12).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: vec![0; READ_BYTES] })
    }

    pub(crate) fn send(&mut self, head: &[u8], body: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(head)?;
        Ok(self.stream.write_all(body)?)
    }

    /// Reads an answer to its end, and throws its content away.
    pub(crate) fn receive(&mut self, has_content: bool) -> anyhow::Result<Answer> {
        let mut filled = 0;
        let end = loop {
            anyhow::ensure!(filled < HEAD_LIMIT, "a head without an end");
            let count = self.stream.read(&mut self.buffer[filled..])?;
            anyhow::ensure!(count > 0, "the connection was closed");
            let from = filled.saturating_sub(3);
            filled += count;
            let found = self.buffer[from..filled].windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(at) = found {
                break from + at + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        let mut answer = Answer { head, length: 0 };
        if has_content {
            answer.length = answer.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        }
        self.skip(answer.length.saturating_sub(filled - end))?;
        Ok(answer)
    }

    fn skip(&mut self, mut left: usize) -> anyhow::Result<()> {
        while left > 0 {
            let want = left.min(READ_BYTES);
            let count = self.stream.read(&mut self.buffer[..want])?;
            anyhow::ensure!(count > 0, "the connection was closed {left} bytes too early");
            left -= count;
        }
        Ok(())
    }

    pub(crate) fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &str,
        body: &[u8],
    ) -> anyhow::Result<Answer> {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: perf\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        self.send(head.as_bytes(), body)?;
        self.receive(method != "HEAD")
    }
}

/// GET, as all subjects are asked.
pub(crate) fn get(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: perf\r\nUser-Agent: perf\r\nAccept: application/vnd.oci.image.manifest.v1+json, */*\r\n\r\n"
    )
}

/// The same question on that many connections for that long; how many answers there were.
pub(crate) fn flood(
    address: SocketAddr,
    target: &str,
    connections: usize,
    duration: Duration,
) -> anyhow::Result<u64> {
    let question = get(target);
    let threads = THREADS.min(connections);
    let each = connections / threads;
    let end = Instant::now() + duration;
    std::thread::scope(|scope| {
        let question = question.as_bytes();
        let running: Vec<_> =
            (0..threads).map(|_| scope.spawn(move || ask_until(address, question, each, end))).collect();
        let mut sum = 0;
        for thread in running {
            sum += thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(sum)
    })
}

fn ask_until(address: SocketAddr, question: &[u8], connections: usize, end: Instant) -> anyhow::Result<u64> {
    let mut open = (0..connections).map(|_| Connection::open(address)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut count = 0;
    while Instant::now() < end {
        for connection in &mut open {
            connection.send(question, b"")?;
        }
        for connection in &mut open {
            let answer = connection.receive(true)?;
            anyhow::ensure!(answer.status() == "200", "{}", answer.head);
            count += 1;
        }
    }
    Ok(count)
}

/// How long one GET takes, connection and all its bytes.
pub(crate) fn timed(address: SocketAddr, target: &str) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut connection = Connection::open(address)?;
    connection.send(get(target).as_bytes(), b"")?;
    let answer = connection.receive(true).with_context(|| target.to_owned())?;
    anyhow::ensure!(answer.status() == "200", "{target}: {}", answer.head);
    Ok(started.elapsed())
}
