//! A small static server for test images: says who it is, echoes, exits, takes memory and looks names up, on demand.
//!
//! | command | does |
//! |---|---|
//! | `probe serve [PORT]` | HTTP/1.0: `/hostname`, `/env`, `/echo?TEXT`, `/exit?CODE`, `/allocate?MIB`; SIGTERM ends it with 0 |
//! | `probe lookup NAME [TYPE]` | asks the first server of /etc/resolv.conf, prints one answer a line |
//! | `probe sleep` | waits for SIGTERM |

mod dns;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;

use anyhow::{Context as _, bail};

/// Memory that `/allocate` holds on to until the process ends.
static HELD: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve"] => serve(80),
        ["serve", port] => serve(port.parse().with_context(|| format!("{port:?} is no port"))?),
        ["lookup", name] => dns::lookup(name, "A"),
        ["lookup", name, kind] => dns::lookup(name, kind),
        ["sleep"] => loop {
            std::thread::park();
        },
        _ => bail!("usage: probe serve [PORT] | lookup NAME [TYPE] | sleep"),
    }
}

fn serve(port: u16) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("failed to listen on {port}"))?;
    for stream in listener.incoming() {
        // One at a time: a test server needs no more, and nothing can pile up.
        if let Err(error) = stream.map_err(anyhow::Error::from).and_then(answer) {
            eprintln!("{error:#}");
        }
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let target = line.split(' ').nth(1).unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let body = match path {
        "/hostname" | "/" => format!("{}\n", rustix::system::uname().nodename().to_string_lossy()),
        "/env" => std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect(),
        "/echo" => format!("{query}\n"),
        "/exit" => std::process::exit(query.parse().unwrap_or(1)),
        "/allocate" => allocate(query)?,
        _ => "unknown path\n".to_owned(),
    };
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    Ok(())
}

fn allocate(mebibytes: &str) -> anyhow::Result<String> {
    let count: usize = mebibytes.parse().with_context(|| format!("{mebibytes:?} is no number"))?;
    // Written to, so that the pages are real.
    let block = vec![1_u8; count << 20];
    let mut held = HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    held.push(block);
    Ok(format!("{}\n", held.iter().map(Vec::len).sum::<usize>() >> 20))
}
