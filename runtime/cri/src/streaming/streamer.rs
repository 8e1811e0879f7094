//! `orlop streamer`: the process that serves sessions, started by the daemon and outliving it.
//!
//! ```text
//!   serving ──a minute without session or wish──▶ gone
//!      └──Retire (a new daemon)──▶ retiring: expected clients still come, no new wishes ──last session over──▶ gone
//! ```
//!
//! Inherited: the listening TCP socket as standard input, the listening control socket as standard output, the daemon's standard
//! error for logs. Bounds: [`StreamerConfig::session_limit`] connections, the wishes of `waiting.rs`, per session those of its protocol.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::activity::{Activity, Watched};
use super::control::{self, Order, Reply};
use super::tls::{Tls, TlsFiles};
use super::waiting::Waiting;
use super::{Wish, http, streams};
use crate::files::{self, SandboxDir};
use crate::shim::ShimClient;

/// Orders at once: the daemon gives one at a time.
const ORDER_LIMIT: usize = 16;
const ORDER_DEADLINE: Duration = Duration::from_secs(5);
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the daemon hands to `orlop streamer`: a JSON file named on its command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StreamerConfig {
    /// The daemon's state directory: shims' sockets are below it.
    pub(super) state: PathBuf,
    /// Sessions are encrypted.
    pub(super) tls: Option<TlsFiles>,
    /// A session that moves no byte for this long ends.
    pub(super) idle_timeout_seconds: u64,
    /// Connections at once, authorised or not; more are closed.
    pub(super) session_limit: usize,
    /// A streamer that has had nothing to do for this long ends.
    pub(super) unused_seconds: u64,
}

/// The entry of `orlop streamer --config FILE`; arguments after the subcommand.
pub fn main(arguments: Vec<OsString>) -> i32 {
    let [flag, path] = arguments.as_slice() else {
        return usage();
    };
    if flag != "--config" {
        return usage();
    }
    match run(Path::new(path)) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "orlop streamer: {error:#}");
            1
        }
    }
}

fn usage() -> i32 {
    let _ = writeln!(std::io::stderr(), "orlop streamer is started by orlop runtime: --config FILE");
    2
}

fn run(path: &Path) -> anyhow::Result<()> {
    orlop_linux::fd::close_inherited().context("failed to close inherited descriptors")?;
    let config: StreamerConfig =
        files::read_json(path).with_context(|| format!("failed to read {}", path.display()))?;
    let (clients, orders) = take_sockets().context("failed to take the listening sockets over")?;
    // The daemon's terminal and its signals are not ours. Already a session's leader: nothing to leave.
    let _ = rustix::process::setsid();
    orlop_daemon::init_tracing();
    raise_descriptor_limit();
    let tls = config.tls.clone().map(Tls::new).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let streamer = Arc::new(Streamer::new(config));
        let clients = TcpListener::from_std(clients)?;
        let orders = UnixListener::from_std(orders)?;
        streamer.serve(clients, orders, tls).await;
        Ok(())
    })
}

/// A session needs two descriptors, a port forward more; the usual soft limit is 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Below the hard limit it cannot fail, and with fewer descriptors there are fewer sessions.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Standard input and output, which become the null device.
fn take_sockets() -> std::io::Result<(std::net::TcpListener, std::os::unix::net::UnixListener)> {
    let clients = std::io::stdin().as_fd().try_clone_to_owned()?;
    let orders = std::io::stdout().as_fd().try_clone_to_owned()?;
    let null: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/null")?.into();
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    let (clients, orders) = (std::net::TcpListener::from(clients), orders.into());
    clients.local_addr()?;
    let orders: std::os::unix::net::UnixListener = orders;
    orders.set_nonblocking(true)?;
    Ok((clients, orders))
}

/// What is under way.
#[derive(Default)]
struct Book {
    waiting: Waiting,
    retiring: bool,
}

/// What sessions share.
pub(super) struct Streamer {
    config: StreamerConfig,
    book: Mutex<Book>,
    sessions: Arc<Semaphore>,
    /// Something that the main loop decides by is different.
    changed: Arc<Notify>,
}

/// One connection's place; the main loop hears when it is free again.
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    changed: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.changed.notify_one();
    }
}

impl Streamer {
    fn new(config: StreamerConfig) -> Self {
        let sessions = Arc::new(Semaphore::new(config.session_limit));
        Self { config, book: Mutex::default(), sessions, changed: Arc::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shim of a sandbox.
    pub(super) fn shim(&self, sandbox_id: &str) -> ShimClient {
        ShimClient::new(SandboxDir::new(&self.config.state, sandbox_id).shim_socket())
    }

    /// How long a session may be silent.
    pub(super) fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.config.idle_timeout_seconds)
    }

    /// Takes the wish behind a path; each token works once.
    pub(super) fn take(&self, path: &str) -> Option<Wish> {
        let wish = self.book().waiting.take(path, Instant::now());
        self.changed.notify_one();
        wish
    }

    async fn serve(self: Arc<Self>, clients: TcpListener, orders: UnixListener, mut tls: Option<Tls>) {
        let (sender, mut received) = mpsc::channel(ORDER_LIMIT);
        let (mut clients, mut orders) = (Some(clients), Some(orders));
        let unused = Duration::from_secs(self.config.unused_seconds);
        let mut idle_since = Instant::now();
        loop {
            let now = Instant::now();
            let (retiring, expected, next_expiry) = {
                let mut book = self.book();
                book.waiting.expire(now);
                (book.retiring, !book.waiting.is_empty(), book.waiting.next_expiry())
            };
            if retiring {
                orders = None;
                if !expected {
                    clients = None;
                }
            }
            let busy = expected || self.sessions.available_permits() < self.config.session_limit;
            if busy {
                idle_since = now;
            } else if retiring {
                return;
            } else if now >= idle_since + unused {
                // Before the socket closes: whoever finds it closed makes a new one in its place.
                let _ = files::remove_tree(&streams::socket(&self.config.state));
                return;
            }
            let wake = if busy { next_expiry } else { Some(idle_since + unused) };
            tokio::select! {
                accepted = accept_client(clients.as_ref()) => match accepted {
                    Ok(stream) => self.admit(stream, &mut tls),
                    Err(error) => pause("client", &error).await,
                },
                accepted = accept_order(orders.as_ref()) => match accepted {
                    Ok(stream) => read_order(stream, &sender),
                    Err(error) => pause("daemon", &error).await,
                },
                Some((order, reply)) = received.recv() => {
                    if matches!(order, Order::Retire { at_once: true }) {
                        // Before the reply: who gets it may bind the address.
                        clients = None;
                    }
                    // A daemon that is gone needs no reply.
                    let _ = reply.send(self.obey(order));
                }
                () = self.changed.notified() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, tls: &mut Option<Tls>) {
        // Refused by closing: the client sees the end of its connection at once.
        let Ok(permit) = self.sessions.clone().try_acquire_owned() else {
            return;
        };
        let place = Place { permit: Some(permit), changed: self.changed.clone() };
        // Keystrokes are small; clients whose machine is gone are noticed.
        let _ = stream.set_nodelay(true);
        let _ = keep_alive(&stream);
        let acceptor = tls.as_mut().map(|tls| TlsAcceptor::from(tls.current()));
        let streamer = self.clone();
        tokio::spawn(async move {
            let activity = Activity::new();
            let Some(acceptor) = acceptor else {
                let stream = Watched::new(stream, activity.clone());
                return http::serve_connection(streamer, stream, activity, place).await;
            };
            match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let stream = Watched::new(stream, activity.clone());
                    http::serve_connection(streamer, stream, activity, place).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "a client's TLS handshake failed"),
                Err(_) => tracing::debug!("a client did not finish its TLS handshake"),
            }
        });
    }

    fn obey(&self, order: Order) -> Reply {
        let mut book = self.book();
        match order {
            Order::Expect { .. } if book.retiring => Reply::Refused("this server is retiring".to_owned()),
            Order::Expect { token, wish } => match book.waiting.add(token, wish, Instant::now()) {
                true => Reply::Ok,
                false => Reply::Refused("too many sessions wait for their client".to_owned()),
            },
            Order::Retire { at_once } => {
                book.retiring = true;
                if at_once {
                    book.waiting.clear();
                }
                Reply::Ok
            }
        }
    }
}

type Orders = mpsc::Sender<(Order, oneshot::Sender<Reply>)>;

/// Reads one order, for the main loop, and sends its reply.
fn read_order(mut stream: UnixStream, orders: &Orders) {
    // More at once than a daemon ever gives: turned away by closing.
    let Ok(place) = orders.clone().try_reserve_owned() else {
        return;
    };
    tokio::spawn(async move {
        let exchange = async {
            let order = control::receive(&mut stream).await?;
            let (sender, reply) = oneshot::channel();
            place.send((order, sender));
            let reply = reply.await.map_err(std::io::Error::other)?;
            control::send(&mut stream, &reply).await
        };
        match tokio::time::timeout(ORDER_DEADLINE, exchange).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "unreadable order"),
            Err(_) => tracing::debug!("an order never came"),
        }
    });
}

async fn accept_client(listener: Option<&TcpListener>) -> std::io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _): (_, SocketAddr)| stream),
        None => std::future::pending().await,
    }
}

async fn accept_order(listener: Option<&UnixListener>) -> std::io::Result<UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Out of descriptors, usually: trying again at once would only burn time.
async fn pause(whom: &str, error: &std::io::Error) {
    tracing::warn!(%error, "could not accept a {whom}");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn keep_alive(stream: &TcpStream) -> Result<(), rustix::io::Errno> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(stream, 4)
}
