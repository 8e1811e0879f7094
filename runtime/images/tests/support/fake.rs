//! A registry in memory, whose answers a test may replace one by one.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use orlop_types::Digest;

use super::TestImage;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Lower-case names.
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn is_blob(&self, digest: &Digest) -> bool {
        self.path.contains("/blobs/") && self.path.contains(digest.hex())
    }

    /// Where the asked-for range starts.
    pub fn range_start(&self) -> usize {
        let range = self.header("range").strip_prefix("bytes=").and_then(|rest| rest.strip_suffix('-'));
        range.and_then(|start| start.parse().ok()).unwrap_or(0)
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body that are sent; then the connection is closed, or hangs.
    pub sent: Option<usize>,
    pub hangs: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), sent: None, hangs: false }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// Sends only so much and closes.
    pub fn cut(mut self, sent: usize) -> Self {
        self.sent = Some(sent);
        self
    }

    /// Sends only so much and says nothing more.
    pub fn hang(mut self, sent: usize) -> Self {
        self.hangs = true;
        self.cut(sent)
    }
}

type Script = Box<dyn FnMut(&Request) -> Option<Reply> + Send>;

#[derive(Default)]
struct State {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    script: Option<Script>,
    log: Vec<Request>,
}

pub struct Fake {
    pub port: u16,
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
}

impl Fake {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, ended) = (Arc::<Mutex<State>>::default(), Arc::<AtomicBool>::default());
        let (shared, over) = (Arc::clone(&state), Arc::clone(&ended));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (state, over) = (Arc::clone(&shared), Arc::clone(&over));
                std::thread::spawn(move || serve(client, &state, &over));
            }
        });
        Self { port, state, ended }
    }

    pub fn put(&self, image: &TestImage, tag: &str) {
        let mut state = self.state.lock().unwrap();
        for blob in image.layers.iter().chain([&image.config]) {
            state.blobs.insert(Digest::sha256(blob).to_string(), blob.clone());
        }
        drop(state);
        self.put_manifest(tag, "application/vnd.oci.image.manifest.v1+json", &image.manifest());
    }

    pub fn put_manifest(&self, tag: &str, media_type: &str, content: &[u8]) {
        let mut state = self.state.lock().unwrap();
        let entry = (media_type.to_owned(), content.to_vec());
        state.manifests.insert(Digest::sha256(content).to_string(), entry.clone());
        state.manifests.insert(tag.to_owned(), entry);
    }

    pub fn put_blob(&self, content: &[u8]) {
        self.state.lock().unwrap().blobs.insert(Digest::sha256(content).to_string(), content.to_vec());
    }

    /// Asked about every request first.
    pub fn script(&self, script: impl FnMut(&Request) -> Option<Reply> + Send + 'static) {
        self.state.lock().unwrap().script = Some(Box::new(script));
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }

    pub fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn read_request(client: &mut TcpStream) -> Option<Request> {
    let mut head = Vec::new();
    let mut byte = [0u8];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut lines = text.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0u8; length];
    client.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

fn serve(mut client: TcpStream, state: &Mutex<State>, ended: &AtomicBool) {
    let Some(request) = read_request(&mut client) else { return };
    let reply = {
        let mut state = state.lock().unwrap();
        state.log.push(request.clone());
        let mut script = state.script.take();
        let reply = script.as_mut().and_then(|script| script(&request));
        state.script = script;
        reply.unwrap_or_else(|| state.answer(&request))
    };
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let sent = reply.sent.unwrap_or(reply.body.len()).min(reply.body.len());
    let _ = client.write_all(format!("{head}\r\n").as_bytes());
    if request.method != "HEAD" {
        let _ = client.write_all(&reply.body[..sent]);
    }
    while reply.hangs && !ended.load(Ordering::Relaxed) {
        // Until the other side has had enough.
        client.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
        match client.read(&mut [0]) {
            Ok(0) => return,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

impl State {
    fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        if path.contains("/manifests/")
            && let Some((media_type, content)) = self.manifests.get(last)
        {
            return Reply::new(200, content.clone())
                .header("Content-Type", media_type)
                .header("Docker-Content-Digest", Digest::sha256(content));
        }
        if path.contains("/blobs/")
            && let Some(content) = self.blobs.get(last)
        {
            let start = request.range_start();
            if request.header("range").is_empty() {
                return Reply::new(200, content.clone());
            }
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            return Reply::new(206, &content[start..]).header("Content-Range", range);
        }
        Reply::new(404, r#"{"errors":[{"code":"UNKNOWN","message":"unknown"}]}"#)
    }
}
