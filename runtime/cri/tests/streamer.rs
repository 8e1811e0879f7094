//! The streamer alone: bounds, hostile orders and clients, and its end.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

struct Streamer {
    process: Child,
    address: SocketAddr,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Streamer {
    /// As the daemon starts it, with bounds of our own.
    fn start(session_limit: usize, unused_seconds: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "state": directory.path(), "tls": null, "idleTimeoutSeconds": 3600,
            "sessionLimit": session_limit, "unusedSeconds": unused_seconds,
        });
        let file = directory.path().join("streamer-config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let clients = TcpListener::bind("127.0.0.1:0").unwrap();
        clients.set_nonblocking(true).unwrap();
        let address = clients.local_addr().unwrap();
        let socket = directory.path().join("streamer.sock");
        let orders = UnixListener::bind(&socket).unwrap();
        let command = support::real("streamer");
        let process = Command::new(&command[0])
            .args([&command[1], "--config"])
            .arg(&file)
            .stdin(OwnedFd::from(clients))
            .stdout(OwnedFd::from(orders))
            .spawn()
            .unwrap();
        Self { process, address, socket, _directory: directory }
    }

    /// Sends bytes as an order; what comes back.
    fn order(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = stream.write_all(bytes);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        reply
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn frame(order: &serde_json::Value) -> Vec<u8> {
    let body = order.to_string();
    let length = u32::try_from(body.len()).unwrap();
    [&length.to_be_bytes()[..], body.as_bytes()].concat()
}

fn expect(token: &str) -> Vec<u8> {
    let wish = serde_json::json!({ "portForward": { "sandboxId": "s", "ports": [80] } });
    frame(&serde_json::json!({ "method": "expect", "params": { "token": token, "wish": wish } }))
}

/// Asks for a path that is unknown; empty when the connection was closed instead of answered.
fn ask(stream: &mut TcpStream) -> String {
    let _ = stream.write_all(b"GET /exec/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn connections_are_bounded_and_free_again_when_they_end() {
    let streamer = Streamer::start(2, 60);
    let (first, mut second) = (streamer.connect(), streamer.connect());
    assert_eq!(ask(&mut streamer.connect()), "");
    drop(first);
    // The end of the first one is noticed in the streamer's own time.
    while ask(&mut streamer.connect()).is_empty() {}
    assert!(ask(&mut second).starts_with("HTTP/1.1 404"));
}

#[test]
fn what_is_no_order_changes_nothing_and_waiting_clients_are_bounded() {
    let streamer = Streamer::start(4, 60);
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{}", b"\0\0\0\x03not", b"GET / HTTP/1.1\r\n\r\n"] {
        assert!(streamer.order(bytes).is_empty());
    }
    for number in 0..1000 {
        let reply = streamer.order(&expect(&number.to_string()));
        assert!(reply.ends_with(br#"{"result":"ok"}"#), "{}", String::from_utf8_lossy(&reply));
    }
    let reply = streamer.order(&expect("one more"));
    assert!(String::from_utf8_lossy(&reply).contains("too many"));
    assert!(ask(&mut streamer.connect()).starts_with("HTTP/1.1 404"));
}

#[test]
fn it_ends_when_nobody_needs_it() {
    let mut unused = Streamer::start(4, 1);
    assert!(unused.process.wait().unwrap().success());
    assert!(!unused.socket.exists());
    // Retired, it waits for the client that is still expected, unless the address is needed.
    let mut retired = Streamer::start(4, 3600);
    assert!(retired.order(&expect("t")).ends_with(br#"{"result":"ok"}"#));
    let retire =
        |at_once: bool| frame(&serde_json::json!({ "method": "retire", "params": { "atOnce": at_once } }));
    assert!(retired.order(&retire(false)).ends_with(br#"{"result":"ok"}"#));
    let mut client = retired.connect();
    client.write_all(b"GET /portforward/t HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(retired.process.wait().unwrap().success());
    let mut evicted = Streamer::start(4, 3600);
    evicted.order(&expect("t"));
    evicted.order(&retire(true));
    assert!(evicted.process.wait().unwrap().success());
    assert!(TcpStream::connect(evicted.address).is_err());
}
