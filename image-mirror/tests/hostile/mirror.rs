//! The mirror under test, and a client of it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use orlop_daemon::{Frame, Settings};
use orlop_mirror::{Config, UpstreamTimeouts};

pub(crate) const NAME: &str = "up.example";

pub(crate) struct Mirror {
    pub(crate) address: SocketAddr,
    frame: Frame,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What a client saw.
#[derive(Debug)]
pub(crate) struct Seen {
    /// 0 when there was no answer.
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// The answer was not cut.
    pub(crate) whole: bool,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

pub(crate) fn config(upstream: SocketAddr) -> Config {
    Config {
        upstreams: [(NAME.to_owned(), format!("http://{upstream}"))].into(),
        tag_freshness_seconds: 0,
        negative_cache_seconds: 0,
        upstream_timeouts: UpstreamTimeouts { connect_seconds: 1, first_byte_seconds: 1, stall_seconds: 1 },
        ..Config::default()
    }
}

impl Mirror {
    pub(crate) fn start(root: &Path, mut config: Config) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        config.listen = address;
        config.root = root.to_owned();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            orlop_daemon::run(Settings::new("mirror"), |frame| async move {
                orlop_mirror::start(&frame, config).await?;
                sender.send(frame)?;
                Ok(())
            })
            .unwrap();
        });
        let frame = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        Self { address, frame, thread: Some(thread) }
    }

    pub(crate) fn curl(&self, words: &[&str], path: &str) -> Seen {
        let files = tempfile::tempdir().unwrap();
        let (head, body) = (files.path().join("head"), files.path().join("body"));
        let output = Command::new("curl")
            .args(["-s", "-m", "30", "-D", head.to_str().unwrap(), "-o", body.to_str().unwrap()])
            .args(words)
            .arg(format!("http://{}{path}", self.address))
            .output()
            .expect("curl");
        assert_ne!(output.status.code(), Some(28), "{path}: the client hangs");
        let head = std::fs::read_to_string(head).unwrap_or_default();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        Seen {
            status: status.unwrap_or(0),
            headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
            body: std::fs::read(body).unwrap_or_default(),
            whole: output.status.success(),
        }
    }

    /// Pulls something of `team/app` by `ns`.
    pub(crate) fn pull(&self, path: &str) -> Seen {
        self.curl(&[], &format!("/v2/team/app/{path}?ns={NAME}"))
    }

    /// The value of a metric, 0 while there is none.
    pub(crate) fn metric(&self, line: &str) -> u64 {
        let text = String::from_utf8(self.curl(&[], "/metrics").body).unwrap();
        let value = text.lines().find_map(|known| known.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.frame.shutdown();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
