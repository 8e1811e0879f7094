//! An upstream as far away as a gigabit line: one blob, sent no faster than that.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BYTES_PER_SECOND: f64 = 125e6;
const PIECE: usize = 256 << 10;

/// Serves until the process ends; `blobs` are found by the digest at the end of the path.
pub(crate) fn start(blobs: Vec<(String, Arc<Vec<u8>>)>) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let blobs = Arc::new(blobs);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let blobs = blobs.clone();
            // A client that goes away is no fault.
            std::thread::spawn(move || drop(serve(&stream, &blobs)));
        }
    });
    Ok(address)
}

fn serve(stream: &TcpStream, blobs: &[(String, Arc<Vec<u8>>)]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let question = std::mem::take(&mut line);
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        line.clear();
        let mut words = question.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        match blobs.iter().find(|(digest, _)| path.ends_with(digest.as_str())) {
            Some((_, blob)) => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
                    blob.len()
                );
                (&*stream).write_all(head.as_bytes())?;
                if method == "GET" {
                    send(stream, blob)?;
                }
            }
            None => (&*stream).write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
    Ok(())
}

fn send(mut stream: &TcpStream, blob: &[u8]) -> std::io::Result<()> {
    let started = Instant::now();
    for (number, piece) in blob.chunks(PIECE).enumerate() {
        let due = Duration::from_secs_f64((number * PIECE) as f64 / BYTES_PER_SECOND);
        std::thread::sleep(due.saturating_sub(started.elapsed()));
        stream.write_all(piece)?;
    }
    Ok(())
}
