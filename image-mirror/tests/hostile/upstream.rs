//! A registry with content of its own, whose answers can be bent.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use orlop_types::Digest;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

/// What a client asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Ask {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What happens after the bytes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    KeepAlive,
    Close,
    /// Nothing more comes, for as long as the test lasts.
    Hang,
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) then: Then,
    /// Only so many bytes are sent of the whole answer.
    pub(crate) cut: Option<usize>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), then: Then::KeepAlive, cut: None }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }

    /// Ends the connection after so many bytes, head included.
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self.then(Then::Close)
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(&self, head: bool) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {} X\r\n", self.status);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            text.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut bytes = format!("{text}\r\n").into_bytes();
        if !head {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

type Bend = Box<dyn FnMut(&Ask, Answer) -> Answer + Send>;

#[derive(Default)]
struct State {
    /// Manifests and blobs by digest, with the type of the manifests.
    content: BTreeMap<String, (Option<String>, Vec<u8>)>,
    tags: BTreeMap<String, String>,
    asks: Vec<Ask>,
    bend: Option<Bend>,
    connections: Vec<TcpStream>,
}

/// The registry; everything is in the repository `team/app`.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (state, stopped): (Arc<Mutex<State>>, Arc<AtomicBool>) = Default::default();
        let (shared, stop) = (state.clone(), stopped.clone());
        let thread = std::thread::spawn(move || {
            let mut clients = Vec::new();
            for stream in listener.incoming() {
                let Ok(stream) = stream else { break };
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                shared.lock().unwrap().connections.push(stream.try_clone().unwrap());
                let (state, stop) = (shared.clone(), stop.clone());
                clients.push(std::thread::spawn(move || serve(stream, &state, &stop)));
            }
            for client in clients {
                client.join().unwrap();
            }
        });
        Self { address, state, stopped, thread: Some(thread) }
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        self.state.lock().unwrap().content.insert(digest.to_string(), (None, bytes.to_vec()));
        digest
    }

    pub(crate) fn manifest(&self, tag: &str, media_type: &str, text: &str) -> Digest {
        let digest = Digest::sha256(text.as_bytes());
        let mut state = self.state.lock().unwrap();
        state.content.insert(digest.to_string(), (Some(media_type.to_owned()), text.as_bytes().to_vec()));
        state.tags.insert(tag.to_owned(), digest.to_string());
        digest
    }

    /// An image of one layer: the digests of manifest and layer.
    pub(crate) fn image(&self, tag: &str, layer: &[u8]) -> (Digest, Digest) {
        let (config, layer_digest) = (self.blob(b"{}"), self.blob(layer));
        let text = serde_json::json!({
            "schemaVersion": 2, "mediaType": IMAGE,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}],
        });
        (self.manifest(tag, IMAGE, &text.to_string()), layer_digest)
    }

    /// From now on answers are what this makes of them.
    pub(crate) fn bend(&self, bend: impl FnMut(&Ask, Answer) -> Answer + Send + 'static) {
        self.state.lock().unwrap().bend = Some(Box::new(bend));
    }

    pub(crate) fn behave(&self) {
        self.state.lock().unwrap().bend = None;
    }

    /// What was asked since the last call.
    pub(crate) fn asks(&self) -> Vec<Ask> {
        std::mem::take(&mut self.state.lock().unwrap().asks)
    }

    /// Method and path of [`Upstream::asks`], without the query.
    pub(crate) fn asked(&self) -> Vec<String> {
        let line = |ask: Ask| {
            let path = ask.path.split('?').next().unwrap_or_default();
            format!("{} {}", ask.method, path.strip_prefix("/v2/team/app/").unwrap_or(path))
        };
        self.asks().into_iter().map(line).collect()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        for connection in self.state.lock().unwrap().connections.drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>, stopped: &AtomicBool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(ask) = read(&mut reader) {
        let answer = {
            let mut state = state.lock().unwrap();
            let usual = usual(&state, &ask);
            state.asks.push(ask.clone());
            match &mut state.bend {
                Some(bend) => bend(&ask, usual),
                None => usual,
            }
        };
        let mut bytes = answer.bytes(ask.method == "HEAD");
        bytes.truncate(answer.cut.unwrap_or(usize::MAX));
        if writer.write_all(&bytes).is_err() {
            return;
        }
        match answer.then {
            Then::KeepAlive => {}
            Then::Close => {
                let _ = writer.shutdown(std::net::Shutdown::Both);
                return;
            }
            Then::Hang => {
                // Ends with the client's or the test's patience.
                let mut nothing = [0];
                while !stopped.load(Ordering::SeqCst) && matches!(reader.read(&mut nothing), Ok(1)) {}
                return;
            }
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Ask> {
    let mut line = || {
        let mut text = String::new();
        reader.read_line(&mut text).ok().filter(|count| *count > 0)?;
        Some(text.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let mut ask = Ask { method: words.next()?.to_owned(), path: words.next()?.to_owned(), ..Ask::default() };
    loop {
        let text = line()?;
        let Some((name, value)) = text.split_once(':') else { break };
        ask.headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = ask.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    ask.body = String::from_utf8_lossy(&body).into_owned();
    Some(ask)
}

/// What an honest registry says.
fn usual(state: &State, ask: &Ask) -> Answer {
    let none = || Answer::new(404, r#"{"errors":[{"code":"NOT_FOUND","message":"not here"}]}"#);
    let path = ask.path.split('?').next().unwrap_or_default();
    let Some((kind, name)) = path.strip_prefix("/v2/team/app/").and_then(|rest| rest.split_once('/')) else {
        return none();
    };
    let digest = state.tags.get(name).filter(|_| kind == "manifests").map_or(name, String::as_str);
    let Some((media_type, bytes)) = state.content.get(digest) else { return none() };
    let answer = match ask.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')) {
        Some(start) => {
            let start: usize = start.parse().unwrap();
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Answer::new(206, &bytes[start..]).with("content-range", range)
        }
        None => Answer::new(200, bytes.as_slice()),
    };
    let media_type = media_type.as_deref().unwrap_or("application/octet-stream");
    answer.with("content-type", media_type).with("docker-content-digest", digest)
}

/// Looks until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < until, "{what}: not within a minute");
        std::thread::yield_now();
    }
}
