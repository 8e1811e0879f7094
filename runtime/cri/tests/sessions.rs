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

#[tokio::test]
async fn every_dialect_of_websocket_is_spoken() {
    let mut lab = lab().await;
    let script = ["/bin/busybox", "sh", "-c", "echo out; exit 3"];
    for protocol in ["channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let url = exec_url(&mut lab, &script, false).await;
        let (output, status) = websocket(&url, protocol, &[]).await;
        assert_eq!(output, b"out\n", "{protocol}");
        assert!(
            status.contains('3') && status.starts_with('{') != (protocol == "channel.k8s.io"),
            "{protocol}: {status}"
        );
    }
    for protocol in ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let url = exec_url(&mut lab, &script, false).await;
        let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
        let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
        let mut texts = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(text) = message {
                texts.push(text.to_string());
            }
        }
        // The first message is the sign that the session stands, then "out\n" on channel 1 and the status on 3.
        assert_eq!(texts[..2], ["1".to_owned(), "1b3V0Cg==".to_owned()], "{protocol}");
        assert!(texts[2].starts_with('3'), "{protocol}: {texts:?}");
    }
    // Without a subprotocol it is the oldest one.
    let url = exec_url(&mut lab, &script, false).await;
    let (mut socket, response) =
        tokio_tungstenite::connect_async(url.replace("http://", "ws://")).await.unwrap();
    assert!(response.headers().get("Sec-WebSocket-Protocol").is_none());
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(vec![1]));
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(b"\x01out\n".to_vec()));
}

/// Sends bytes and reads what comes back until the server closes.
async fn raw(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    let exchange = async {
        // A server that has seen enough closes before it has read everything.
        let _ = stream.write_all(bytes).await;
        let _ = stream.read_to_end(&mut answer).await;
    };
    tokio::time::timeout(Duration::from_secs(20), exchange).await.expect("the server closes");
    answer
}

#[tokio::test]
async fn garbage_ends_its_own_session_alone() {
    let mut lab = lab().await;
    let cat = ["/bin/busybox", "cat"];
    let url = exec_url(&mut lab, &cat, true).await;
    let mut good = url.replace("http://", "ws://").into_client_request().unwrap();
    good.headers_mut().insert("Sec-WebSocket-Protocol", "v5.channel.k8s.io".parse().unwrap());
    let (mut good, _) = tokio_tungstenite::connect_async(good).await.unwrap();
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    let table: [(&str, &[u8], &str); 7] = [
        ("", b"", "400"),
        ("Upgrade: websocket\r\n", b"", "400"),
        ("Upgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 8\r\n", b"", "426"),
        ("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9\r\n", b"", "403"),
        (websocket, &[0xff; 4096], "101"),
        // A masked binary frame that claims 1 TiB.
        (websocket, b"\x82\xff\x00\x00\x01\x00\x00\x00\x00\x00\0\0\0\0", "101"),
        (spdy, b"\x80\x03\x00\x01\x00\xff\xff\xff", "101"),
    ];
    for (headers, bytes, status) in table {
        let url = exec_url(&mut lab, &cat, true).await;
        let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let mut sent =
            format!("GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").into_bytes();
        sent.extend_from_slice(bytes);
        let answer = raw(address, &sent).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{headers:?}: {answer}");
    }
    let (address, _) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    assert!(
        String::from_utf8_lossy(
            &raw(address, b"GET /exec/guess HTTP/1.1\r\nConnection: close\r\n\r\n").await
        )
        .contains("404")
    );
    raw(address, b"\x16\x03\x01 not HTTP at all \r\n\r\n").await;
    good.send(Message::binary(b"\0still here".to_vec())).await.unwrap();
    loop {
        match good.next().await.unwrap().unwrap() {
            Message::Binary(data) if data.len() > 1 => break assert_eq!(&data[..], b"\x01still here"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn sessions_may_be_encrypted_and_ask_for_certificates() {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let certificate = |name: &str| rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let (server, client) = (certificate("127.0.0.1"), certificate("kubelet"));
    std::fs::write(node.path("tls.crt"), server.cert.pem()).unwrap();
    std::fs::write(node.path("tls.key"), server.signing_key.serialize_pem()).unwrap();
    std::fs::write(node.path("ca.crt"), client.cert.pem()).unwrap();
    let config = orlop_runtime::Config {
        stream_tls_cert_file: Some(node.path("tls.crt")),
        stream_tls_private_key_file: Some(node.path("tls.key")),
        stream_client_ca_file: Some(node.path("ca.crt")),
        ..node.config()
    };
    let mut api = node.start_with(config).await;
    let sandbox = api.run_pod(&pod(&node, "web")).await.unwrap();
    let container = api.create(&sandbox, container("c", &SHELL)).await.unwrap();
    api.start(&container).await.unwrap();
    let mut lab = Lab { client: api, container, sandbox, _node: node };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(server.cert.der().to_vec())).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = || {
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(client.signing_key.serialize_der()));
    let known = builder().with_client_auth_cert(vec![client.cert.der().clone()], key).unwrap();
    let stranger = builder().with_no_client_auth();
    for (config, welcome) in [(stranger, false), (known, true)] {
        let url = exec_url(&mut lab, &["/bin/busybox", "echo", "secret"], false).await;
        let address = url.strip_prefix("https://").unwrap().split_once('/').unwrap().0;
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        // In TLS 1.3 a client hears of its refusal with the first answer.
        let stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await;
        let mut request = url.replace("https://", "ws://").into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", "v4.channel.k8s.io".parse().unwrap());
        let opened = match stream {
            Ok(stream) => tokio_tungstenite::client_async(request, stream).await.ok(),
            Err(_) => None,
        };
        assert_eq!(opened.is_some(), welcome);
        let Some((mut socket, _)) = opened else { continue };
        let mut output = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(data) = message
                && data[0] == 1
            {
                output.extend_from_slice(&data[1..]);
            }
        }
        assert_eq!(output, b"secret\n");
    }
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
