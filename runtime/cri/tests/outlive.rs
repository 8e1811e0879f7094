//! Sessions outlive the daemon: killed with -9 and started anew while clients are connected, over real shims. And what sessions
//! leave behind when the client goes, the container ends or the pod is removed: nothing.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod support;

use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use orlop_cri::v1;
use orlop_runtime::Config;
use support::{Client, Daemon, Node, container, pod};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const DEADLINE: Duration = Duration::from_secs(30);

struct Lab {
    // Dropped last: it kills what runs.
    daemon: Daemon,
    client: Client,
    container: String,
    sandbox: String,
    node: Node,
}

fn config(node: &Node) -> Config {
    // As in production: the program that the daemon itself is.
    Config { shim_command: Vec::new(), streamer_command: Vec::new(), ..node.config() }
}

async fn lab(command: &[&str], stdin: bool) -> Option<Lab> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: root is missing");
        return None;
    }
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let (daemon, mut client) = node.spawn(config(&node)).await;
    let sandbox = client.run_pod(&pod(&node, "web")).await.unwrap();
    let config = v1::ContainerConfig { stdin, ..container("c", command) };
    let container = client.create(&sandbox, config).await.unwrap();
    client.start(&container).await.unwrap();
    Some(Lab { daemon, client, container, sandbox, node })
}

impl Lab {
    /// kill -9, and a new daemon.
    async fn restart(&mut self) {
        self.daemon.kill();
        (self.daemon, self.client) = self.node.spawn(config(&self.node)).await;
    }

    async fn exec(&mut self, command: &[&str], tty: bool) -> Session {
        let request = v1::ExecRequest {
            container_id: self.container.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        Session::open(&self.client.runtime.exec(request).await.unwrap().into_inner().url, "v5.channel.k8s.io")
            .await
    }

    async fn attach(&mut self) -> Session {
        let request = v1::AttachRequest {
            container_id: self.container.clone(),
            stdin: true,
            stdout: true,
            ..Default::default()
        };
        let url = self.client.runtime.attach(request).await.unwrap().into_inner().url;
        Session::open(&url, "v5.channel.k8s.io").await
    }

    async fn forward(&mut self, port: i32) -> Session {
        let request = v1::PortForwardRequest { pod_sandbox_id: self.sandbox.clone(), port: vec![port] };
        let url = self.client.runtime.port_forward(request).await.unwrap().into_inner().url;
        Session::open(&url, "v4.channel.k8s.io").await
    }

    /// Processes of the container, its first one included.
    fn processes(&self) -> usize {
        let groups = self.node.cgroups();
        let group =
            groups.iter().find(|path| path.ends_with(&self.container)).expect("the container's cgroup");
        std::fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().count()
    }
}

struct Session {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Output that was read and not looked at.
    unread: Vec<u8>,
}

impl Session {
    async fn open(url: &str, protocol: &str) -> Self {
        let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
        Self { socket: tokio_tungstenite::connect_async(request).await.unwrap().0, unread: Vec::new() }
    }

    async fn send(&mut self, channel: u8, data: &[u8]) {
        self.socket.send(Message::binary([&[channel], data].concat())).await.unwrap();
    }

    /// The next bytes on a channel; `None` at the end of the session.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let message =
                tokio::time::timeout(DEADLINE, self.socket.next()).await.expect("a message in time");
            match message {
                Some(Ok(Message::Binary(data))) if data.len() > 1 => {
                    return Some((data[0], data[1..].to_vec()));
                }
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    }

    /// Reads until the output contains `text`, which and what was before it is taken.
    async fn read_until(&mut self, text: &str) {
        loop {
            let found = self.unread.windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(at) = found {
                self.unread.drain(..at + text.len());
                return;
            }
            let next = self.next().await;
            let (_, data) = next.unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&self.unread)));
            self.unread.extend_from_slice(&data);
        }
    }

    /// Reads to the end: output and the exit code (0 is Success).
    async fn finish(mut self) -> (String, Option<i32>) {
        let (mut output, mut code) = (std::mem::take(&mut self.unread), None);
        while let Some((channel, data)) = self.next().await {
            if channel == 3 {
                let status: serde_json::Value = serde_json::from_slice(&data).unwrap();
                let told = status["details"]["causes"][0]["message"].as_str();
                code = match status["status"].as_str().unwrap() {
                    "Success" => Some(0),
                    _ => told.and_then(|code| code.parse().ok()),
                };
            } else {
                output.extend_from_slice(&data);
            }
        }
        (String::from_utf8_lossy(&output).into_owned(), code)
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_exec_goes_on_through_restarts_and_tells_its_exit_code() {
    let Some(mut lab) = lab(&["/bin/busybox", "sleep", "600"], false).await else { return };
    let script = "read a; echo got $a; read b; echo got $b; exit 7";
    let mut session = lab.exec(&["/bin/busybox", "sh", "-c", script], false).await;
    session.send(0, b"one\n").await;
    session.read_until("got one\n").await;
    lab.restart().await;
    session.send(0, b"two\n").await;
    assert_eq!(session.finish().await, ("got two\n".to_owned(), Some(7)));
    // Its streamer was retired by the new daemon and ends with it.
    eventually("the old streamer ends", || lab.node.streamers().is_empty()).await;
    let (out, code) = lab.exec(&["/bin/busybox", "echo", "new"], false).await.finish().await;
    assert_eq!((out.as_str(), code), ("new\n", Some(0)));
    assert_eq!(lab.node.streamers().len(), 1);
}

#[tokio::test]
async fn the_program_of_a_shim_cannot_be_written_to() {
    let Some(lab) = lab(&["/bin/busybox", "sleep", "600"], false).await else { return };
    let mount = rustix::fs::statvfs(format!("/proc/{}/exe", lab.node.shim_pid(&lab.sandbox))).unwrap();
    assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
}

#[tokio::test]
async fn a_terminal_goes_on_through_a_restart() {
    let Some(mut lab) = lab(&["/bin/busybox", "sleep", "600"], false).await else { return };
    let mut session = lab.exec(&["/bin/busybox", "sh"], true).await;
    lab.restart().await;
    session.send(4, br#"{"Width":101,"Height":33}"#).await;
    session.send(0, b"/bin/busybox stty size; echo $((40+2))\n").await;
    session.read_until("33 101").await;
    session.read_until("42").await;
    session.send(0, b"exit 3\n").await;
    assert_eq!(session.finish().await.1, Some(3));
}

#[tokio::test]
async fn an_attach_goes_on_through_a_restart_and_ends_with_the_container() {
    let Some(mut lab) = lab(&["/bin/busybox", "cat"], true).await else { return };
    let mut session = lab.attach().await;
    session.send(0, b"before\n").await;
    session.read_until("before").await;
    lab.restart().await;
    session.send(0, b"after\n").await;
    session.read_until("after").await;
    let container = lab.container.clone();
    lab.client.stop(&container, 0).await.unwrap();
    assert_eq!(session.finish().await.1, Some(0));
    eventually("the old streamer ends", || lab.node.streamers().is_empty()).await;
}

#[tokio::test]
async fn a_port_forward_goes_on_through_a_restart_and_ends_with_the_pod() {
    let server = ["/bin/busybox", "nc", "-ll", "-p", "7777", "-e", "/bin/busybox", "cat"];
    let Some(mut lab) = lab(&server, false).await else { return };
    let mut session = lab.forward(7777).await;
    session.send(0, b"before").await;
    session.read_until("before").await;
    lab.restart().await;
    session.send(0, b"after").await;
    session.read_until("after").await;
    // A client that holds a connection and forwards nothing.
    let mut holding = lab.forward(7777).await;
    let sandbox = lab.sandbox.clone();
    lab.client.stop_pod(&sandbox).await.unwrap();
    while session.next().await.is_some() {}
    while holding.next().await.is_some() {}
    lab.client.remove_pod(&sandbox).await.unwrap();
    assert!(lab.node.cgroups().is_empty());
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_processes_along() {
    let Some(mut lab) = lab(&["/bin/busybox", "sleep", "600"], false).await else { return };
    // With a terminal it hangs up, without one its output has no reader any more.
    let terminal = lab.exec(&["/bin/busybox", "sh"], true).await;
    let script = "while echo x; do /bin/busybox sleep 0.05; done";
    let mut plain = lab.exec(&["/bin/busybox", "sh", "-c", script], false).await;
    plain.read_until("x").await;
    assert!(lab.processes() >= 3);
    lab.restart().await;
    drop((terminal, plain));
    eventually("the processes end", || lab.processes() == 1).await;
    eventually("the old streamer ends", || lab.node.streamers().is_empty()).await;
}

#[tokio::test]
async fn urls_given_out_before_a_restart_are_good_after_it() {
    let Some(mut lab) = lab(&["/bin/busybox", "sleep", "600"], false).await else { return };
    let request = v1::ExecRequest {
        container_id: lab.container.clone(),
        cmd: vec!["/bin/busybox".into(), "echo".into(), "late".into()],
        stdout: true,
        ..Default::default()
    };
    let url = lab.client.runtime.exec(request).await.unwrap().into_inner().url;
    lab.restart().await;
    let (out, code) = Session::open(&url, "v4.channel.k8s.io").await.finish().await;
    assert_eq!((out.as_str(), code), ("late\n", Some(0)));
    eventually("the old streamer ends", || lab.node.streamers().is_empty()).await;
}

#[tokio::test]
async fn a_fixed_address_moves_to_the_new_daemon_and_a_dead_streamer_is_replaced() {
    let Some(mut lab) = lab(&["/bin/busybox", "sleep", "600"], false).await else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fixed = Config { stream_address: port, ..config(&lab.node) };
    for _ in 0..2 {
        lab.daemon.kill();
        (lab.daemon, lab.client) = lab.node.spawn(fixed.clone()).await;
        let mut session = lab.exec(&["/bin/busybox", "cat"], false).await;
        for pid in lab.node.streamers() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
        while session.next().await.is_some() {}
        let mut session = lab.exec(&["/bin/busybox", "cat"], false).await;
        session.send(0, b"x").await;
        session.read_until("x").await;
        session.send(255, &[0]).await;
        assert_eq!(session.finish().await.1, Some(0));
        assert_eq!(lab.node.streamers().len(), 1);
    }
}
