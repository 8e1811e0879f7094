use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::drain::{self, DrainTrigger};
use crate::{Drain, Ready, admin, notify, telemetry};

/// What differs between daemons before any of their own code runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon's name in logs, for example `kubelet`.
    pub name: &'static str,
    /// Where the admin socket is made; none without a path.
    pub admin_socket: Option<PathBuf>,
    /// How long tasks may take to end after the drain starts.
    pub drain_deadline: Duration,
    /// Threads of the async runtime; one is enough for daemons that mostly wait.
    pub worker_threads: usize,
}

impl Settings {
    /// Settings with a drain deadline of 10 seconds, two worker threads and no admin socket.
    pub const fn new(name: &'static str) -> Self {
        Self { name, admin_socket: None, drain_deadline: Duration::from_secs(10), worker_threads: 2 }
    }
}

pub(crate) type DumpFn = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;
pub(crate) type CommandFn = Arc<dyn Fn(String) -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// Handle to the running daemon; cheap to clone.
#[derive(Clone)]
pub struct Frame {
    inner: Arc<Inner>,
}

struct Inner {
    name: &'static str,
    drain: Drain,
    trigger: DrainTrigger,
    ready: Ready,
    registry: Mutex<Registry>,
    dumps: Mutex<BTreeMap<&'static str, DumpFn>>,
    commands: Mutex<BTreeMap<&'static str, CommandFn>>,
    tasks: Mutex<JoinSet<TaskEnd>>,
    failed: tokio::sync::mpsc::UnboundedSender<String>,
}

struct TaskEnd {
    name: String,
    result: Result<(), String>,
}

impl Frame {
    /// The daemon's name.
    pub fn name(&self) -> &'static str {
        self.inner.name
    }

    /// The drain that every task watches.
    pub fn drain(&self) -> Drain {
        self.inner.drain.clone()
    }

    /// Starts draining, as SIGTERM does.
    pub fn shutdown(&self) {
        self.inner.trigger.start();
    }

    /// Readiness guards.
    pub fn ready(&self) -> &Ready {
        &self.inner.ready
    }

    /// The registry behind `/metrics`; register at start, keep the metric.
    pub fn metrics(&self) -> MutexGuard<'_, Registry> {
        self.inner.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All metrics in the OpenMetrics text format.
    pub fn metrics_text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.metrics());
        text
    }

    /// Adds a section to the state dump of the admin socket. `dump` must be quick and must not block.
    pub fn dump(&self, section: &'static str, dump: impl Fn() -> serde_json::Value + Send + Sync + 'static) {
        let mut dumps = self.inner.dumps.lock().unwrap_or_else(PoisonError::into_inner);
        dumps.insert(section, Arc::new(dump));
    }

    pub(crate) fn dumps(&self) -> BTreeMap<&'static str, DumpFn> {
        self.inner.dumps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Offers a command at the admin socket: `PUT /commands/NAME`. `run` gets the body, at most 4096 bytes, and gives the answer or what is
    /// wrong; it goes on when the caller leaves.
    pub fn command<F>(&self, name: &'static str, run: impl Fn(String) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        let mut commands = self.inner.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.insert(name, Arc::new(move |body| run(body).boxed()));
    }

    pub(crate) fn commands(&self) -> BTreeMap<&'static str, CommandFn> {
        self.inner.commands.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a named task for the life of the daemon. An error or panic before the drain ends the process.
    pub fn spawn<F>(&self, name: impl Into<String>, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let name = name.into();
        let span = tracing::info_span!("task", name = %name);
        let failed = self.inner.failed.clone();
        let task = async move {
            let result = match std::panic::AssertUnwindSafe(task).catch_unwind().await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("{error:#}")),
                Err(_) => Err("panicked".to_owned()),
            };
            if let Err(error) = &result {
                // The receiver lives as long as the daemon.
                let _ = failed.send(format!("task {name}: {error}"));
            }
            TaskEnd { name, result }
        };
        let mut tasks = self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(task.instrument(span));
        while let Some(Ok(end)) = tasks.try_join_next() {
            tracing::debug!(task = %end.name, ok = end.result.is_ok(), "task ended");
        }
    }
}

/// Runs one daemon to its end: tracing, runtime, admin socket, `start`, signals, drain.
///
/// `start` wires the daemon, spawns its tasks and returns; it runs inside the async runtime.
///
/// # Errors
/// What `start` returned, the first failed task, or the admin socket that could not be made.
pub fn run<S, F>(settings: Settings, start: S) -> anyhow::Result<()>
where
    S: FnOnce(Frame) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    telemetry::init_tracing();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.worker_threads)
        .max_blocking_threads(64)
        .thread_name(settings.name)
        .enable_all()
        .build()
        .context("failed to start the async runtime")?;
    let result = runtime.block_on(run_async(settings, start));
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

async fn run_async<S, F>(settings: Settings, start: S) -> anyhow::Result<()>
where
    S: FnOnce(Frame) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    let (trigger, drain) = drain::channel();
    // Bounded by the number of tasks: each sends at most once.
    let (failed, mut failures) = tokio::sync::mpsc::unbounded_channel();
    let frame = Frame {
        inner: Arc::new(Inner {
            name: settings.name,
            drain: drain.clone(),
            trigger,
            ready: Ready::new(),
            registry: Mutex::default(),
            dumps: Mutex::default(),
            commands: Mutex::default(),
            tasks: Mutex::default(),
            failed,
        }),
    };
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    if let Some(path) = &settings.admin_socket {
        admin::serve(&frame, path)?;
    }
    tokio::select! {
        started = start(frame.clone()) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    frame.ready().publish();
    announce_ready(&frame);
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        () = drain.wait() => None,
        failure = failures.recv() => failure,
    };
    notify::sd_notify("STOPPING=1");
    tracing::info!(daemon = settings.name, "draining");
    frame.shutdown();
    drain_tasks(&frame, settings.drain_deadline).await;
    match failure {
        Some(failure) => Err(anyhow::anyhow!(failure)),
        None => Ok(()),
    }
}

fn announce_ready(frame: &Frame) {
    let ready = frame.ready().clone();
    let name = frame.name();
    let drain = frame.drain();
    frame.spawn("announce-ready", async move {
        tokio::select! {
            () = ready.wait() => {
                tracing::info!(daemon = name, "ready");
                notify::sd_notify("READY=1");
            }
            () = drain.wait() => {}
        }
        Ok(())
    });
}

async fn drain_tasks(frame: &Frame, deadline: Duration) {
    let mut tasks = std::mem::take(&mut *frame.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(deadline, all).await.is_err() {
        tracing::warn!(left = tasks.len(), "drain deadline passed, stopping the remaining tasks");
        tasks.shutdown().await;
    }
}
