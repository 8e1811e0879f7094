//! Exec, attach and port-forward as clients speak them: raw WebSocket, and the real kubectl over WebSocket and SPDY through a
//! server that stands in for API server and kubelet (it answers for one pod and tunnels bytes).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod support;

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use orlop_cri::v1;
use support::{Client, Node, container, pod};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

const SHELL: [&str; 3] = ["/bin/busybox", "sleep", "600"];

struct Lab {
    // Dropped last: it kills what runs.
    client: Client,
    container: String,
    sandbox: String,
    _node: Node,
}

async fn lab() -> Lab {
    lab_running(&SHELL).await
}

async fn lab_running(command: &[&str]) -> Lab {
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let mut client = node.start().await;
    let sandbox = client.run_pod(&pod(&node, "web")).await.unwrap();
    let container = client.create(&sandbox, container("c", command)).await.unwrap();
    client.start(&container).await.unwrap();
    Lab { client, container, sandbox, _node: node }
}

async fn exec_url(lab: &mut Lab, command: &[&str], stdin: bool) -> String {
    let request = v1::ExecRequest {
        container_id: lab.container.clone(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: false,
        stdin,
        stdout: true,
        stderr: true,
    };
    lab.client.runtime.exec(request).await.unwrap().into_inner().url
}

/// Runs a session and returns standard output and the error channel.
async fn websocket(url: &str, protocol: &str, input: &[Message]) -> (Vec<u8>, String) {
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    let (mut socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], protocol);
    for message in input {
        socket.send(message.clone()).await.unwrap();
    }
    let (mut output, mut status) = (Vec::new(), String::new());
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(data) = message else { continue };
        match data[0] {
            1 => output.extend_from_slice(&data[1..]),
            3 => status.push_str(std::str::from_utf8(&data[1..]).unwrap()),
            _ => {}
        }
    }
    (output, status)
}

#[tokio::test]
async fn websocket_exec_closes_input_and_tells_the_exit_code() {
    let mut lab = lab().await;
    let url = exec_url(&mut lab, &["/bin/busybox", "cat"], true).await;
    let big = vec![b'x'; 300_000];
    let mut input: Vec<Message> =
        big.chunks(30_000).map(|part| Message::binary([&[0], part].concat())).collect();
    input.push(Message::binary(vec![255, 0]));
    let (output, status) = websocket(&url, "v5.channel.k8s.io", &input).await;
    assert_eq!((output.len(), status.as_str()), (300_000, r#"{"metadata":{},"status":"Success"}"#));
    let url = exec_url(&mut lab, &["/bin/busybox", "sh", "-c", "echo hi; exit 42"], false).await;
    let (output, status) = websocket(&url, "v4.channel.k8s.io", &[]).await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        (&output[..], &status["details"]["causes"][0]["message"]),
        (&b"hi\n"[..], &serde_json::json!("42"))
    );
    let refused = tokio_tungstenite::connect_async(url.replace("http://", "ws://")).await;
    assert!(refused.is_err(), "a token works once");
}

#[tokio::test]
async fn attach_ends_with_the_container() {
    let mut lab = lab().await;
    let request =
        v1::AttachRequest { container_id: lab.container.clone(), stdout: true, ..Default::default() };
    let url = lab.client.runtime.attach(request).await.unwrap().into_inner().url;
    let mut client = lab.client.clone();
    let id = lab.container.clone();
    let stopper = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.stop(&id, 0).await.unwrap();
    });
    let (_, status) = websocket(&url, "v5.channel.k8s.io", &[]).await;
    assert!(status.contains("Success"), "{status}");
    stopper.await.unwrap();
}

/// One pod of an API server, with the kubelet behind it.
async fn serve_api(lab: &Lab) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, container, sandbox) = (lab.client.clone(), lab.container.clone(), lab.sandbox.clone());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (client, container, sandbox) = (client.clone(), container.clone(), sandbox.clone());
            tokio::spawn(async move { answer(stream, client, &container, &sandbox).await });
        }
    });
    address
}

async fn answer(mut stream: TcpStream, mut client: Client, container: &str, sandbox: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let (line, headers) = head.split_once("\r\n").unwrap();
    let target = line.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let flag = |name: &str| query.split('&').any(|pair| pair == format!("{name}=true"));
    let url = if path.ends_with("/exec") {
        let cmd = query.split('&').filter_map(|pair| pair.strip_prefix("command=")).map(unescape).collect();
        let request = v1::ExecRequest {
            container_id: container.to_owned(),
            cmd,
            tty: flag("tty"),
            stdin: flag("stdin"),
            stdout: flag("stdout"),
            stderr: flag("stderr"),
        };
        client.runtime.exec(request).await.unwrap().into_inner().url
    } else if path.ends_with("/portforward") {
        let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: Vec::new() };
        client.runtime.port_forward(request).await.unwrap().into_inner().url
    } else {
        let body = object(path);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        return;
    };
    let url = url.strip_prefix("http://").unwrap();
    let (address, path) = url.split_once('/').unwrap();
    let mut runtime = TcpStream::connect(address).await.unwrap();
    let method = line.split(' ').next().unwrap();
    runtime.write_all(format!("{method} /{path} HTTP/1.1\r\n{headers}").as_bytes()).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut runtime).await;
}

/// application/x-www-form-urlencoded.
fn unescape(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(plain).unwrap()
}

fn object(path: &str) -> String {
    let value = match path {
        "/api" => serde_json::json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => serde_json::json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] }),
        "/api/v1" => serde_json::json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": [
            { "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"] }] }),
        _ => {
            serde_json::json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "web", "namespace": "default" },
            "spec": { "containers": [{ "name": "c", "image": "busybox" }] }, "status": { "phase": "Running" } })
        }
    };
    value.to_string()
}

fn kubectl(api: SocketAddr, websockets: bool, words: &[&str]) -> Option<tokio::process::Command> {
    if std::process::Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        println!("SKIP kubectl is not installed");
        return None;
    }
    let mut command = tokio::process::Command::new("kubectl");
    command
        .args(["-s", &format!("http://{api}"), "-n", "default"])
        .args(words)
        .env("KUBECONFIG", "/dev/null")
        .env("HOME", std::env::temp_dir().join("orlop-no-home"))
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets.to_string())
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Some(command)
}

async fn run(mut command: tokio::process::Command, input: &[u8]) -> Output {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    tokio::time::timeout(Duration::from_secs(30), child.wait_with_output())
        .await
        .expect("kubectl ends")
        .unwrap()
}

#[tokio::test]
async fn kubectl_exec_over_websocket_and_spdy() {
    let lab = lab().await;
    let api = serve_api(&lab).await;
    for websockets in [true, false] {
        let words = ["exec", "web", "--", "/bin/busybox", "sh", "-c", "echo out; echo err >&2; exit 5"];
        let Some(command) = kubectl(api, websockets, &words) else {
            return;
        };
        let output = run(command, b"").await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            (output.status.code(), &output.stdout[..]),
            (Some(5), &b"out\n"[..]),
            "{websockets}: {told}"
        );
        assert!(told.contains("err\n") && told.contains("exit code 5"), "{websockets}: {told}");
        let big: Vec<u8> = (0..2_000_000u32).map(|number| (number % 251) as u8).collect();
        let command = kubectl(api, websockets, &["exec", "-i", "web", "--", "/bin/busybox", "cat"]).unwrap();
        let output = run(command, &big).await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && output.stdout == big,
            "{websockets}: {} bytes, {told}",
            output.stdout.len()
        );
        let command = kubectl(api, websockets, &["exec", "web", "--", "/no/such/program"]).unwrap();
        let output = run(command, b"").await;
        assert!(!output.status.success(), "{websockets}");
    }
}

#[tokio::test]
async fn kubectl_port_forward_over_websocket_and_spdy() {
    // The server is in the pod: with a real shim nobody else can reach it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let lab = lab_running(&["/bin/busybox", "nc", "-ll", "-p", &port, "-e", "/bin/busybox", "cat"]).await;
    let api = serve_api(&lab).await;
    for websockets in [true, false] {
        let Some(mut command) = kubectl(api, websockets, &["port-forward", "web", &format!(":{port}")])
        else {
            return;
        };
        let mut child = command.spawn().unwrap();
        let mut out = tokio::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        tokio::io::AsyncBufReadExt::read_line(&mut out, &mut line).await.unwrap();
        let local: u16 =
            line.split(':').nth(1).unwrap().split(' ').next().unwrap().parse().expect("Forwarding from …");
        let sessions = (0..4).map(|seed| async move {
            let mut stream = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
            let sent: Vec<u8> = (0..500_000u32).map(|number| (number + seed) as u8).collect();
            let (mut read, mut write) = stream.split();
            let mut got = Vec::new();
            let send = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(send, async { read.read_to_end(&mut got).await.unwrap() });
            assert!(got == sent, "{} of {}", got.len(), sent.len());
        });
        tokio::time::timeout(Duration::from_secs(30), futures::future::join_all(sessions))
            .await
            .expect("forwards end");
        child.kill().await.unwrap();
    }
}
