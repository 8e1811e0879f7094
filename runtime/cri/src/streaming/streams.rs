//! The daemon's side of sessions: gives out URLs and keeps a streamer that serves them.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use orlop_types::ProcessIdentity;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::Wish;
use super::control::{self, Order, Reply};
use super::streamer::StreamerConfig;
use crate::config::Config;
use crate::error::CriError;
use crate::{files, machine, process};

const TOKEN_DIGITS: usize = 32;
/// Sessions of a node at once.
const SESSION_LIMIT: usize = 1024;
/// A streamer without anything to do ends then.
const UNUSED_SECONDS: u64 = 60;
/// Orders in a row that a streamer left without a reply; then it hangs, and with it all that it serves.
const SILENCE_LIMIT: u32 = 3;
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Gives out URLs.
pub(crate) struct Streams {
    command: Vec<String>,
    config: StreamerConfig,
    address: SocketAddr,
    /// One order at a time: each takes less than a millisecond, and of two that find no streamer one starts it.
    server: Mutex<Server>,
}

/// The streamer that the next wish goes to.
struct Server {
    /// Bound when the daemon started, for the first streamer: what is wrong with the address shows at once.
    bound: Option<TcpListener>,
    running: Option<(Child, SocketAddr)>,
    /// How often in a row it did not reply.
    silences: u32,
}

impl Streams {
    /// Retires a predecessor's streamer and binds the address.
    pub(crate) async fn open(config: &Config) -> anyhow::Result<Self> {
        let tls = config.stream_tls();
        if let Some(tls) = &tls {
            tls.load().context("failed to set up TLS of streamAddress")?;
        }
        let config_of_streamer = StreamerConfig {
            state: config.state.clone(),
            tls,
            idle_timeout_seconds: config.stream_idle_timeout_seconds,
            session_limit: SESSION_LIMIT,
            unused_seconds: UNUSED_SECONDS,
        };
        let address = config.stream_address;
        retire(&config.state, address.port() != 0).await;
        let bound = bind(address).with_context(|| format!("failed to listen on {address}"))?;
        Ok(Self {
            command: program(&config.streamer_command, "streamer")
                .context("failed to find this program for the streamer")?,
            config: config_of_streamer,
            address,
            server: Mutex::new(Server { bound: Some(bound), running: None, silences: 0 }),
        })
    }

    /// A URL for one session.
    pub(crate) async fn url(&self, wish: Wish) -> Result<String, CriError> {
        let token = machine::random_id(TOKEN_DIGITS);
        let kind = wish.kind();
        let order = Order::Expect { token: token.clone(), wish };
        let mut server = self.server.lock().await;
        let address = match self.ask(&mut server, &order).await {
            Some(address) => address?,
            None => {
                self.start(&mut server).await.map_err(|error| {
                    CriError::failed("failed to start the streaming server", Plain(error))
                })?;
                self.ask(&mut server, &order).await.unwrap_or_else(|| {
                    Err(CriError::Unavailable("the streaming server ended right away".to_owned()))
                })?
            }
        };
        let scheme = if self.config.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{address}/{kind}/{token}"))
    }

    /// Hands a wish over; `None` when no streamer takes it.
    async fn ask(&self, server: &mut Server, order: &Order) -> Option<Result<SocketAddr, CriError>> {
        let address = server.running.as_ref().map(|(_, address)| *address)?;
        let reply = control::call(&socket(&self.config.state), order).await;
        let silent = matches!(&reply, Err(error) if error.kind() == std::io::ErrorKind::TimedOut);
        server.silences = if silent { server.silences + 1 } else { 0 };
        match reply {
            Ok(Reply::Ok) => Some(Ok(address)),
            Ok(Reply::Refused(why)) => Some(Err(CriError::Unavailable(why))),
            // A machine that is very busy is no reason to end everybody's sessions.
            Err(error) if silent && server.silences < SILENCE_LIMIT => {
                Some(Err(CriError::Timeout(format!("the streaming server does not answer: {error}"))))
            }
            Err(error) => {
                tracing::info!(%error, "the streaming server is gone");
                None
            }
        }
    }

    async fn start(&self, server: &mut Server) -> anyhow::Result<()> {
        if let Some((mut child, _)) = server.running.take() {
            // It ended by itself, or hangs and holds the address.
            child.kill().await.context("failed to end the streaming server that does not answer")?;
        }
        let listener = match server.bound.take() {
            Some(listener) => listener,
            None => bind(self.address).with_context(|| format!("failed to listen on {}", self.address))?,
        };
        let address = listener.local_addr()?;
        let socket = socket(&self.config.state);
        files::remove_tree(&socket).with_context(|| format!("failed to remove {}", socket.display()))?;
        let control = UnixListener::bind(&socket)
            .with_context(|| format!("failed to listen on {}", socket.display()))?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        let file = self.config.state.join("streamer-config.json");
        files::write_json(&file, &self.config)
            .with_context(|| format!("failed to write {}", file.display()))?;
        let (program, arguments) = self.command.split_first().expect("the command is never empty, see open");
        // Both sockets listen already: nobody has to wait until the streamer is ready.
        let child = Command::new(program)
            .args(arguments)
            .arg("--config")
            .arg(&file)
            .current_dir("/")
            .stdin(OwnedFd::from(listener))
            .stdout(OwnedFd::from(control))
            .stderr(Stdio::inherit())
            .process_group(0)
            .spawn()
            .with_context(|| format!("failed to start {program}"))?;
        if let Some(pid) = child.id()
            && let Some(start_time) = process::start_time(pid)
        {
            // For a successor that finds it hanging.
            files::write_json(&identity(&self.config.state), &ProcessIdentity { pid, start_time })?;
        }
        tracing::info!(%address, pid = child.id(), "streaming server started");
        server.running = Some((child, address));
        Ok(())
    }
}

/// `anyhow::Error` is no `std::error::Error`.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct Plain(anyhow::Error);

/// A configured command; an empty one is this program with `subcommand`.
pub(crate) fn program(command: &[String], subcommand: &str) -> std::io::Result<Vec<String>> {
    if !command.is_empty() {
        return Ok(command.to_vec());
    }
    // The link follows the program when a package manager replaces it; the path is what a new process should run.
    let program: PathBuf = std::env::current_exe()?;
    let program = program.to_string_lossy().into_owned();
    let program = program.strip_suffix(" (deleted)").unwrap_or(&program).to_owned();
    Ok(vec![program, subcommand.to_owned()])
}

pub(super) fn socket(state: &Path) -> PathBuf {
    state.join("streamer.sock")
}

fn identity(state: &Path) -> PathBuf {
    state.join("streamer.json")
}

/// With SO_REUSEADDR, as std and tokio bind: connections that are just over do not hold the address.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // Both sides of the handover are event loops.
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Tells a predecessor's streamer that its sessions are its last ones; kills one that does not even hear that.
async fn retire(state: &Path, at_once: bool) {
    let socket = socket(state);
    let mut reply = control::call(&socket, &Order::Retire { at_once }).await;
    for _ in 1..SILENCE_LIMIT {
        if matches!(&reply, Err(error) if error.kind() == std::io::ErrorKind::TimedOut) {
            reply = control::call(&socket, &Order::Retire { at_once }).await;
        }
    }
    match reply {
        Ok(_) => tracing::info!("the streaming server of before ends with its last session"),
        // Nobody is there: the usual case.
        Err(error) if error.kind() != std::io::ErrorKind::TimedOut => {}
        Err(_) => {
            if let Ok(identity) = files::read_json::<ProcessIdentity>(&identity(state)) {
                tracing::warn!(pid = identity.pid, "the streaming server of before hangs, killing it");
                process::kill(identity, KILL_DEADLINE).await;
            }
        }
    }
    for file in [socket, identity(state)] {
        if let Err(error) = files::remove_tree(&file) {
            tracing::warn!(file = %file.display(), %error, "could not remove");
        }
    }
}
