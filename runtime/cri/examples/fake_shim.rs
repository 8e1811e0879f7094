//! A shim for tests of the daemon: it speaks the protocol and keeps real state, and runs containers as plain processes of the
//! host, without isolation. Started as the real one: `fake_shim --config FILE`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use orlop_shim::protocol::{
    ContainerState, ContainerStats, CreateContainer, ErrorKind, Event, ExecProcess, ExitStatus, Phase,
    Request, Response, ShimConfig, ShimState, channel,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::broadcast;

struct Shim {
    config: ShimConfig,
    containers: Mutex<BTreeMap<String, (CreateContainer, ContainerState)>>,
    events: broadcast::Sender<Event>,
}

/// The protocol's version that this one speaks: a shim of another binary.
fn version() -> u32 {
    std::env::var("FAKE_SHIM_VERSION").map_or(1, |text| text.parse().unwrap())
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let path = std::env::args().nth(2).expect("--config FILE");
    let config: ShimConfig = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let listener = UnixListener::bind(config.state_dir.join("shim.sock")).unwrap();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start_time: u64 = stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(19).unwrap().parse().unwrap();
    let identity =
        serde_json::json!({ "pid": std::process::id(), "startTime": start_time, "version": version() });
    std::fs::write(config.state_dir.join("shim.tmp"), identity.to_string()).unwrap();
    std::fs::rename(config.state_dir.join("shim.tmp"), config.state_dir.join("shim.json")).unwrap();
    let shim = Arc::new(Shim { config, containers: Mutex::default(), events: broadcast::channel(64).0 });
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let shim = shim.clone();
        tokio::spawn(async move { shim.serve(stream).await });
    }
}

async fn read<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let mut body = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}

async fn write<T: serde::Serialize>(stream: &mut UnixStream, value: &T) -> io::Result<()> {
    let body = serde_json::to_vec(value)?;
    stream.write_u32(u32::try_from(body.len()).unwrap()).await?;
    stream.write_all(&body).await
}

fn refuse(kind: ErrorKind, message: &str) -> Response {
    Response::Error { kind, message: message.to_owned() }
}

impl Shim {
    async fn serve(self: Arc<Self>, mut stream: UnixStream) {
        while let Ok(request) = read::<Request>(&mut stream).await {
            match request {
                Request::Events => return self.send_events(stream).await,
                Request::Exec { id, process } => return self.exec(&id, process, stream).await,
                Request::Attach { id, .. } => return self.attach(&id, stream).await,
                Request::PortForward { port } => return forward(port, stream).await,
                Request::Shutdown => {
                    self.kill_all().await;
                    let _ = write(&mut stream, &Response::Ok).await;
                    std::process::exit(0);
                }
                other => {
                    let answer = self.clone().answer(other).await;
                    if write(&mut stream, &answer).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn answer(self: Arc<Self>, request: Request) -> Response {
        match request {
            Request::Hello { .. } => Response::Hello { version: version(), pid: std::process::id() },
            Request::State => {
                let containers =
                    self.containers.lock().unwrap().values().map(|(_, state)| state.clone()).collect();
                Response::State(ShimState { sandbox_id: self.config.sandbox_id.clone(), containers })
            }
            Request::Create(create) => self.create(*create),
            Request::Start { id } => self.start(&id),
            Request::Stop { id, grace_millis } => self.stop(&id, grace_millis).await,
            Request::Remove { id } => {
                self.containers.lock().unwrap().remove(&id);
                Response::Ok
            }
            Request::ExecSync { id, process, timeout_millis, stream: _ } => {
                self.exec_sync(&id, process, timeout_millis).await
            }
            Request::Stats { .. } => Response::Stats(ContainerStats {
                timestamp: now(),
                cpu_nanos: 5,
                memory_bytes: 7,
                ..Default::default()
            }),
            Request::ReopenLog { .. } => Response::Ok,
            _ => refuse(ErrorKind::Invalid, "not of this fake"),
        }
    }

    fn create(&self, create: CreateContainer) -> Response {
        assert!(create.bundle.join("config.json").exists() && !create.rootfs.lower.is_empty());
        let state = ContainerState {
            id: create.id.clone(),
            phase: Phase::Created,
            pid: None,
            created_at: now(),
            started_at: 0,
            exit: None,
        };
        self.containers.lock().unwrap().insert(create.id.clone(), (create, state.clone()));
        Response::Container(state)
    }

    fn start(self: &Arc<Self>, id: &str) -> Response {
        let Some((create, _)) = self.containers.lock().unwrap().get(id).cloned() else {
            return refuse(ErrorKind::NotFound, "no such container");
        };
        let spec: serde_json::Value =
            serde_json::from_slice(&std::fs::read(create.bundle.join("config.json")).unwrap()).unwrap();
        let args: Vec<String> = serde_json::from_value(spec["process"]["args"].clone()).unwrap();
        let log = create.log_path.as_deref().unwrap_or(Path::new("/dev/null"));
        let log = std::fs::File::create(log).unwrap();
        let child =
            Command::new(&args[0]).args(&args[1..]).stdin(Stdio::null()).stdout(log).process_group(0).spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => return refuse(ErrorKind::Failed, &format!("exec {}: {error}", args[0])),
        };
        let state = self.update(id, |state| {
            state.phase = Phase::Running;
            state.pid = child.id();
            state.started_at = now();
        });
        tokio::spawn(self.clone().wait(id.to_owned(), child));
        Response::Container(state.unwrap())
    }

    async fn wait(self: Arc<Self>, id: String, mut child: Child) {
        let exit = exit_of(child.wait().await.unwrap());
        let directory: PathBuf = self.config.state_dir.join("containers").join(&id);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("exit.json"), serde_json::to_vec(&exit).unwrap()).unwrap();
        self.update(&id, |state| {
            state.phase = Phase::Exited;
            state.pid = None;
            state.exit = Some(exit);
        });
    }

    fn update(&self, id: &str, change: impl FnOnce(&mut ContainerState)) -> Option<ContainerState> {
        let mut containers = self.containers.lock().unwrap();
        let (_, state) = containers.get_mut(id)?;
        change(state);
        let _ = self.events.send(Event { container: state.clone() });
        Some(state.clone())
    }

    fn pid(&self, id: &str) -> Option<i32> {
        let containers = self.containers.lock().unwrap();
        containers.get(id)?.1.pid.and_then(|pid| i32::try_from(pid).ok())
    }

    async fn stop(&self, id: &str, grace_millis: u64) -> Response {
        use nix::sys::signal::{Signal, killpg};
        let mut left = grace_millis;
        let mut signal = if grace_millis == 0 { Signal::SIGKILL } else { Signal::SIGTERM };
        while let Some(pid) = self.pid(id) {
            let _ = killpg(nix::unistd::Pid::from_raw(pid), signal);
            tokio::time::sleep(Duration::from_millis(10)).await;
            left = left.saturating_sub(10);
            if left == 0 {
                signal = Signal::SIGKILL;
            }
        }
        Response::Ok
    }

    async fn kill_all(&self) {
        let ids: Vec<String> = self.containers.lock().unwrap().keys().cloned().collect();
        for id in ids {
            self.stop(&id, 0).await;
        }
    }

    async fn send_events(&self, mut stream: UnixStream) {
        let mut events = self.events.subscribe();
        let _ = write(&mut stream, &Response::Ok).await;
        let exited: Vec<ContainerState> =
            self.containers.lock().unwrap().values().map(|(_, state)| state.clone()).collect();
        for container in exited.into_iter().filter(|state| state.exit.is_some()) {
            let _ = write(&mut stream, &Event { container }).await;
        }
        while let Ok(event) = events.recv().await {
            if write(&mut stream, &event).await.is_err() {
                return;
            }
        }
    }

    async fn exec_sync(&self, id: &str, process: ExecProcess, timeout_millis: u64) -> Response {
        if self.pid(id).is_none() {
            return refuse(ErrorKind::WrongState, "not running");
        }
        let output = Command::new(&process.args[0]).args(&process.args[1..]).kill_on_drop(true).output();
        let limit =
            Duration::from_millis(if timeout_millis == 0 { u64::from(u32::MAX) } else { timeout_millis });
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        match tokio::time::timeout(limit, output).await {
            Ok(Ok(output)) => Response::ExecSync {
                stdout: encode(&output.stdout),
                stderr: encode(&output.stderr),
                exit: exit_of(output.status),
                timed_out: false,
            },
            Ok(Err(error)) => refuse(ErrorKind::Failed, &error.to_string()),
            Err(_) => Response::ExecSync {
                stdout: String::new(),
                stderr: String::new(),
                exit: ExitStatus { code: 137, finished_at: now(), oom_killed: false },
                timed_out: true,
            },
        }
    }

    async fn exec(&self, id: &str, process: ExecProcess, mut stream: UnixStream) {
        if self.pid(id).is_none() {
            let _ = write(&mut stream, &refuse(ErrorKind::WrongState, "not running")).await;
            return;
        }
        let child = Command::new(&process.args[0])
            .args(&process.args[1..])
            .stdin(if process.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        match child {
            Ok(child) => {
                let _ = write(&mut stream, &Response::Ok).await;
                session(child, stream).await;
            }
            Err(error) => {
                let _ = write(&mut stream, &refuse(ErrorKind::Failed, &error.to_string())).await;
            }
        }
    }

    /// Says where it is attached, then waits for the end.
    async fn attach(&self, id: &str, mut stream: UnixStream) {
        let mut events = self.events.subscribe();
        let _ = write(&mut stream, &Response::Ok).await;
        let _ = send(&mut stream, channel::STDOUT, b"attached\n").await;
        while let Ok(event) = events.recv().await {
            if event.container.id == id
                && let Some(exit) = event.container.exit
            {
                let _ = send(&mut stream, channel::EXIT, &serde_json::to_vec(&exit).unwrap()).await;
                return;
            }
        }
    }
}

fn exit_of(status: std::process::ExitStatus) -> ExitStatus {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitStatus { code, finished_at: now(), oom_killed: false }
}

async fn send(stream: &mut (impl tokio::io::AsyncWrite + Unpin), kind: u8, data: &[u8]) -> io::Result<()> {
    stream.write_u8(kind).await?;
    stream.write_u32(u32::try_from(data.len()).unwrap()).await?;
    stream.write_all(data).await
}

async fn session(mut child: Child, stream: UnixStream) {
    let (mut read, mut write) = stream.into_split();
    let mut stdin = child.stdin.take();
    let feeder = tokio::spawn(async move {
        loop {
            let Ok(kind) = read.read_u8().await else { return };
            let Ok(length) = read.read_u32().await else { return };
            let mut data = vec![0; length as usize];
            if read.read_exact(&mut data).await.is_err() {
                return;
            }
            match kind {
                channel::STDIN => {
                    if let Some(stdin) = &mut stdin {
                        let _ = stdin.write_all(&data).await;
                    }
                }
                channel::CLOSE_STDIN => stdin = None,
                _ => {}
            }
        }
    });
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut out_buffer, mut err_buffer) = (vec![0; 16384], vec![0; 16384]);
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        tokio::select! {
            length = out.read(&mut out_buffer), if out_open => match length {
                Ok(length @ 1..) => { let _ = send(&mut write, channel::STDOUT, &out_buffer[..length]).await; }
                _ => out_open = false,
            },
            length = err.read(&mut err_buffer), if err_open => match length {
                Ok(length @ 1..) => { let _ = send(&mut write, channel::STDERR, &err_buffer[..length]).await; }
                _ => err_open = false,
            },
        }
    }
    let exit = exit_of(child.wait().await.unwrap());
    let _ = send(&mut write, channel::EXIT, &serde_json::to_vec(&exit).unwrap()).await;
    feeder.abort();
}

async fn forward(port: u16, mut stream: UnixStream) {
    match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(mut pod) => {
            let _ = write(&mut stream, &Response::Ok).await;
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut pod).await;
        }
        Err(error) => {
            let _ = write(&mut stream, &refuse(ErrorKind::Failed, &error.to_string())).await;
        }
    }
}
