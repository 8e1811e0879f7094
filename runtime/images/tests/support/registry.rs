//! Debian's docker-registry on loopback, and a proxy in front of it that misbehaves on demand.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct Registry {
    child: Child,
    pub port: u16,
    _directory: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            directory.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, port, _directory: directory };
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("docker-registry does not listen");
    }

    /// Pushes an archive with a client that we did not write.
    pub fn push(&self, archive: &Path, name: &str) {
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false", "--quiet"])
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(format!("docker://127.0.0.1:{}/{name}", self.port))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the proxy does to answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Cuts every second blob answer after half of what it would send.
    Cut,
    /// Flips a bit in the middle of every blob above a kilobyte.
    Corrupt,
    /// Wants a bearer token, given for user:pass.
    Token,
    /// Sends blobs to another host.
    Redirect(u16),
    /// Accepts and says nothing.
    Hang,
}

#[derive(Default)]
pub struct Log {
    pub requests: Vec<String>,
    blobs: usize,
}

pub struct Proxy {
    pub port: u16,
    pub log: Arc<Mutex<Log>>,
}

impl Proxy {
    /// Runs until the test's process ends.
    pub fn start(upstream: u16, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(Log::default()));
        let shared = Arc::clone(&log);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let log = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let _ = serve(client, upstream, fault, &log, port);
                });
            }
        });
        Self { port, log }
    }

    pub fn requests(&self) -> Vec<String> {
        self.log.lock().unwrap().requests.clone()
    }
}

fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0u8];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn serve(
    mut client: TcpStream,
    upstream: u16,
    fault: Fault,
    log: &Mutex<Log>,
    port: u16,
) -> std::io::Result<()> {
    let head = read_head(&mut client)?;
    log.lock().unwrap().requests.push(head.clone());
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let lower = head.to_lowercase();
    if fault == Fault::Hang {
        std::thread::sleep(Duration::from_secs(3600));
    }
    if fault == Fault::Token {
        if path.starts_with("/token") {
            let good = lower.contains("authorization: basic dxnlcjpwyxnz");
            let body = if good { r#"{"token":"good","expires_in":300}"# } else { "{}" };
            let status = if good { "200 OK" } else { "401 Unauthorized" };
            return write!(
                client,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
        if !lower.contains("authorization: bearer good") {
            let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            return write!(
                client,
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    }
    let is_blob = path.contains("/blobs/");
    if let (true, Fault::Redirect(target)) = (is_blob, fault) {
        return write!(
            client,
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:{target}{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    let forwarded: String = head
        .split("\r\n")
        .filter(|line| {
            !line.to_lowercase().starts_with("connection:")
                && !line.to_lowercase().starts_with("authorization:")
                && !line.is_empty()
        })
        .map(|line| format!("{line}\r\n"))
        .collect();
    write!(server, "{forwarded}Connection: close\r\n\r\n")?;
    let answer = read_head(&mut server)?;
    let mut body = Vec::new();
    server.read_to_end(&mut body)?;
    if is_blob && body.len() > 1024 {
        match fault {
            Fault::Cut => {
                let mut log = log.lock().unwrap();
                log.blobs += 1;
                if log.blobs % 2 == 1 {
                    body.truncate(body.len() / 2);
                }
            }
            Fault::Corrupt => {
                let middle = body.len() / 2;
                body[middle] ^= 1;
            }
            _ => {}
        }
    }
    client.write_all(answer.as_bytes())?;
    client.write_all(&body)
}
