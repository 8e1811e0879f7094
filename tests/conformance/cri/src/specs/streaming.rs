//! Exec, attach and port-forward as kubelets reach them: a URL, then SPDY/3.1 or WebSocket.

use anyhow::{Context as _, ensure};
use orlop_cri::v1;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::images::PAGE;
use crate::spdy::{self, Spdy};
use crate::spec::{Pod, Test, image, namespaces, refused};
use crate::websocket;

crate::specs![
    exec,
    exec_with_terminal,
    exec_exit_code,
    exec_missing_program,
    exec_standard_input_ends,
    exec_large_data,
    exec_terminal_size,
    exec_older_protocols,
    exec_over_websocket_v4,
    exec_over_websocket_v5,
    exec_over_websocket_without_version,
    exec_over_websocket_base64,
    websocket_exit_code,
    attach,
    attach_over_websocket,
    attach_ends_with_the_container,
    standard_input_once,
    port_forward,
    port_forward_in_the_host_network,
    port_forward_several,
    port_forward_to_nobody,
    port_forward_over_websocket,
    port_forward_through_a_tunnel,
    url_works_once,
    url_that_is_guessed,
    impossible_streams,
    unknown_and_stopped,
    at_once,
];

const ALL: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const PORT_FORWARD: &str = "portforward.k8s.io";

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

async fn exec_url(t: &Test, id: &str, command: &[&str], stdin: bool, tty: bool) -> anyhow::Result<String> {
    let request = v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: words(command),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    Ok(t.cri.runtime().exec(request).await?.into_inner().url)
}

async fn container(t: &Test) -> anyhow::Result<String> {
    t.running(&t.pod().await?).await
}

/// The streams of a remote command.
struct Command<T> {
    spdy: Spdy<T>,
    error: u32,
    stdin: Option<u32>,
    stdout: u32,
    stderr: Option<u32>,
    resize: Option<u32>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Command<T> {
    async fn open(mut spdy: Spdy<T>, stdin: bool, tty: bool) -> anyhow::Result<Self> {
        let error = spdy.open(&[("streamtype", "error")]).await?;
        spdy.send(error, &[], true).await?;
        let stdin = if stdin { Some(spdy.open(&[("streamtype", "stdin")]).await?) } else { None };
        let stdout = spdy.open(&[("streamtype", "stdout")]).await?;
        let stderr = if tty { None } else { Some(spdy.open(&[("streamtype", "stderr")]).await?) };
        let resize = if tty { Some(spdy.open(&[("streamtype", "resize")]).await?) } else { None };
        Ok(Self { spdy, error, stdin, stdout, stderr, resize })
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        let ids: Vec<u32> =
            [Some(self.error), Some(self.stdout), self.stderr].into_iter().flatten().collect();
        self.spdy.read_ends(&ids).await
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.spdy.gathered(self.stdout).data).into_owned()
    }

    fn stderr(&self) -> String {
        let data = self.stderr.map(|id| self.spdy.gathered(id).data).unwrap_or_default();
        String::from_utf8_lossy(&data).into_owned()
    }

    fn status(&self) -> anyhow::Result<Value> {
        status(&self.spdy.gathered(self.error).data)
    }
}

/// A `metav1.Status`; nothing is a success.
fn status(text: &[u8]) -> anyhow::Result<Value> {
    if text.is_empty() {
        return Ok(serde_json::json!({"status": "Success"}));
    }
    serde_json::from_slice(text).with_context(|| String::from_utf8_lossy(text).into_owned())
}

fn exit_code(status: &Value) -> Option<&str> {
    let causes = status["details"]["causes"].as_array()?;
    causes.iter().find(|cause| cause["reason"] == "ExitCode")?["message"].as_str()
}

async fn run(
    t: &Test,
    id: &str,
    command: &[&str],
    stdin: bool,
    tty: bool,
) -> anyhow::Result<Command<tokio::net::TcpStream>> {
    let url = exec_url(t, id, command, stdin, tty).await?;
    ensure!(url.starts_with("http://127.0.0.1:"), "{url} has no address that a kubelet can reach");
    let (connection, chosen) = spdy::connect(&url, &ALL).await?;
    ensure!(chosen == ALL[0], "the server chose {chosen:?}");
    Command::open(connection, stdin, tty).await
}

async fn exec(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let mut session = run(t, &id, &["sh", "-c", "echo hello; echo error >&2"], false, false).await?;
    session.end().await?;
    ensure!(session.stdout() == "hello\n" && session.stderr() == "error\n", "{}", session.stdout());
    let status = session.status()?;
    ensure!(status["status"] == "Success", "{status}");
    Ok(())
}

async fn exec_with_terminal(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let mut session = run(t, &id, &["sh"], true, true).await?;
    let stdin = session.stdin.context("stdin")?;
    session.spdy.send(stdin, b"echo hel''lo; tty; exit\n", false).await?;
    session.end().await?;
    let seen = session.stdout();
    ensure!(seen.contains("hello") && seen.contains("/dev/pts/"), "{seen}");
    Ok(())
}

async fn exec_exit_code(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let mut session = run(t, &id, &["sh", "-c", "exit 42"], false, false).await?;
    session.end().await?;
    let status = session.status()?;
    ensure!(status["status"] == "Failure" && status["reason"] == "NonZeroExitCode", "{status}");
    ensure!(exit_code(&status) == Some("42"), "{status}");
    Ok(())
}

async fn exec_missing_program(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let mut session = run(t, &id, &["no-such-program"], false, false).await?;
    session.end().await?;
    let text = session.spdy.gathered(session.error).data;
    let text = String::from_utf8_lossy(&text);
    ensure!(!text.is_empty() && !text.contains("Success"), "{text}");
    Ok(())
}

async fn exec_standard_input_ends(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let mut session = run(t, &id, &["cat"], true, false).await?;
    let stdin = session.stdin.context("stdin")?;
    session.spdy.send(stdin, b"through\n", true).await?;
    session.end().await?;
    ensure!(session.stdout() == "through\n", "{}", session.stdout());
    Ok(())
}

async fn exec_large_data(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let mut session = run(t, &id, &["sh", "-c", "cat | md5sum; seq 1 100000"], true, false).await?;
    let stdin = session.stdin.context("stdin")?;
    let block = vec![b'x'; 1 << 20];
    session.spdy.send(stdin, &block, true).await?;
    session.end().await?;
    let seen = session.stdout();
    // md5 of 2^20 times "x".
    ensure!(seen.starts_with("b561f87202d04959e37588ee05cf5b10"), "{}", &seen[..seen.len().min(64)]);
    ensure!(
        seen.lines().count() == 100_001 && seen.ends_with("\n100000\n"),
        "{} lines",
        seen.lines().count()
    );
    Ok(())
}

async fn exec_terminal_size(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let mut session = run(t, &id, &["sh"], true, true).await?;
    let (stdin, resize) = (session.stdin.context("stdin")?, session.resize.context("resize")?);
    session.spdy.send(resize, b"{\"Width\":123,\"Height\":45}\n", false).await?;
    let script =
        b"while ! stty size | grep -q '45 123'; do sleep 0.05; done; echo the size is r''ight; exit\n";
    session.spdy.send(stdin, script, false).await?;
    session.end().await?;
    ensure!(session.stdout().contains("the size is right"), "{}", session.stdout());
    Ok(())
}

async fn exec_older_protocols(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    for protocol in &ALL[1..] {
        let url = exec_url(t, &id, &["echo", "hello"], false, false).await?;
        let (connection, chosen) = spdy::connect(&url, &[protocol]).await?;
        ensure!(chosen == *protocol, "the server chose {chosen:?}");
        let mut session = Command::open(connection, false, false).await?;
        session.end().await?;
        ensure!(session.stdout() == "hello\n", "{protocol}: {}", session.stdout());
    }
    Ok(())
}

async fn over_websocket(t: &Test, protocol: &str) -> anyhow::Result<()> {
    let id = container(t).await?;
    let url = exec_url(t, &id, &["sh", "-c", "echo hello; echo error >&2"], false, false).await?;
    let mut session = websocket::connect(&url, protocol).await?;
    session.read_end().await?;
    ensure!(session.text(1) == "hello\n" && session.text(2) == "error\n", "{}", session.text(1));
    ensure!(
        status(session.received(3)).is_ok_and(|status| status["status"] == "Success"),
        "{}",
        session.text(3)
    );
    Ok(())
}

async fn exec_over_websocket_v4(t: &Test) -> anyhow::Result<()> {
    over_websocket(t, "v4.channel.k8s.io").await
}

/// Version 5 can close standard input (KEP-4006).
async fn exec_over_websocket_v5(t: &Test) -> anyhow::Result<()> {
    over_websocket(t, "v5.channel.k8s.io").await?;
    let id = container(t).await?;
    let url = exec_url(t, &id, &["cat"], true, false).await?;
    let mut session = websocket::connect(&url, "v5.channel.k8s.io").await?;
    session.send(0, b"through\n").await?;
    session.send(255, &[0]).await?;
    session.read_end().await?;
    ensure!(session.text(1) == "through\n", "{}", session.text(1));
    Ok(())
}

async fn exec_over_websocket_without_version(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let url = exec_url(t, &id, &["echo", "hello"], false, false).await?;
    let mut session = websocket::connect(&url, "channel.k8s.io").await?;
    session.read_end().await?;
    ensure!(session.text(1) == "hello\n", "{}", session.text(1));
    Ok(())
}

async fn exec_over_websocket_base64(t: &Test) -> anyhow::Result<()> {
    use base64::Engine as _;
    let id = container(t).await?;
    let url = exec_url(t, &id, &["cat"], true, false).await?;
    let mut session = websocket::connect_text(&url, "v4.base64.channel.k8s.io").await?;
    session.send_text('0', &base64::engine::general_purpose::STANDARD.encode("through\n")).await?;
    let seen = session.next_text('1').await?;
    ensure!(base64::engine::general_purpose::STANDARD.decode(&seen)? == b"through\n", "{seen}");
    Ok(())
}

async fn websocket_exit_code(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let url = exec_url(t, &id, &["sh", "-c", "exit 42"], false, false).await?;
    let mut session = websocket::connect(&url, "v4.channel.k8s.io").await?;
    session.read_end().await?;
    let status = status(session.received(3))?;
    ensure!(exit_code(&status) == Some("42"), "{status}");
    Ok(())
}

/// A shell that reads its commands from whoever attaches.
async fn shell(t: &Test, once: bool) -> anyhow::Result<String> {
    let pod = t.pod().await?;
    t.running_with(&pod, |config| {
        config.command = words(&["sh"]);
        config.stdin = true;
        config.stdin_once = once;
    })
    .await
}

async fn attach_url(t: &Test, id: &str) -> anyhow::Result<String> {
    let request = v1::AttachRequest {
        container_id: id.to_owned(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    };
    Ok(t.cri.runtime().attach(request).await?.into_inner().url)
}

async fn attach(t: &Test) -> anyhow::Result<()> {
    let id = shell(t, false).await?;
    let (connection, _) = spdy::connect(&attach_url(t, &id).await?, &ALL).await?;
    let mut session = Command::open(connection, true, false).await?;
    let stdin = session.stdin.context("stdin")?;
    session.spdy.send(stdin, b"echo hello\n", false).await?;
    let stdout = session.stdout;
    session.spdy.read_until("the answer", |all| all.gathered(stdout).data == b"hello\n").await
}

async fn attach_over_websocket(t: &Test) -> anyhow::Result<()> {
    let id = shell(t, false).await?;
    let mut session = websocket::connect(&attach_url(t, &id).await?, "v4.channel.k8s.io").await?;
    session.send(0, b"echo hello; echo error >&2\n").await?;
    session
        .read_until("the answer", |all| all.received(1) == b"hello\n" && all.received(2) == b"error\n")
        .await
}

async fn attach_ends_with_the_container(t: &Test) -> anyhow::Result<()> {
    let id = shell(t, false).await?;
    let (connection, _) = spdy::connect(&attach_url(t, &id).await?, &ALL).await?;
    let mut session = Command::open(connection, true, false).await?;
    let stdin = session.stdin.context("stdin")?;
    session.spdy.send(stdin, b"echo last words; exit 0\n", false).await?;
    session.end().await?;
    ensure!(session.stdout() == "last words\n", "{}", session.stdout());
    t.wait_state(&id, v1::ContainerState::ContainerExited).await.map(drop)
}

async fn standard_input_once(t: &Test) -> anyhow::Result<()> {
    let id = shell(t, true).await?;
    let (connection, _) = spdy::connect(&attach_url(t, &id).await?, &ALL).await?;
    let mut session = Command::open(connection, true, false).await?;
    let stdin = session.stdin.context("stdin")?;
    session.spdy.send(stdin, b"echo hello\n", true).await?;
    // The shell reads the end of its input, and ends.
    let status = t.wait_state(&id, v1::ContainerState::ContainerExited).await?;
    ensure!(status.exit_code == 0, "{status:?}");
    Ok(())
}

async fn web(t: &Test, pod: &Pod, port: u16) -> anyhow::Result<()> {
    let port = port.to_string();
    let id = t
        .running_with(pod, |config| {
            config.image = Some(crate::client::image_spec(&image("web")));
            config.command = words(&["httpd", "-f", "-p", &port, "-h", "/www"]);
        })
        .await?;
    let hexadecimal = format!(":{:04X}", port.parse::<u16>()?);
    crate::spec::eventually("the server listens", async || {
        t.sh(&id, &format!("cat /proc/net/tcp /proc/net/tcp6 | grep -q '{hexadecimal} .* 0A '"))
            .await
            .map(drop)
    })
    .await
}

async fn port_forward_url(t: &Test, pod: &Pod, ports: &[i32]) -> anyhow::Result<String> {
    let request = v1::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: ports.to_vec() };
    Ok(t.cri.runtime().port_forward(request).await?.into_inner().url)
}

/// The page through one pair of streams.
async fn forwarded<T: AsyncRead + AsyncWrite + Unpin>(
    spdy: &mut Spdy<T>,
    port: &str,
    request: &str,
) -> anyhow::Result<String> {
    let error = spdy.open(&[("streamtype", "error"), ("port", port), ("requestid", request)]).await?;
    spdy.send(error, &[], true).await?;
    let data = spdy.open(&[("streamtype", "data"), ("port", port), ("requestid", request)]).await?;
    spdy.send(data, b"GET / HTTP/1.0\r\n\r\n", false).await?;
    spdy.read_until("the page", |all| {
        let seen = all.gathered(data);
        seen.ended || String::from_utf8_lossy(&seen.data).contains(PAGE) || all.gathered(error).ended
    })
    .await?;
    let said = spdy.gathered(error).data;
    ensure!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    Ok(String::from_utf8_lossy(&spdy.gathered(data).data).into_owned())
}

async fn port_forward(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    web(t, &pod, 80).await?;
    let (mut spdy, chosen) = spdy::connect(&port_forward_url(t, &pod, &[]).await?, &[PORT_FORWARD]).await?;
    ensure!(chosen == PORT_FORWARD, "the server chose {chosen:?}");
    let seen = forwarded(&mut spdy, "80", "0").await?;
    ensure!(seen.contains(PAGE), "{seen}");
    Ok(())
}

async fn port_forward_in_the_host_network(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.hostname.clear();
    let network = v1::NamespaceMode::Node.into();
    crate::spec::security_of_pod(&mut config).namespace_options =
        Some(v1::NamespaceOption { network, ..namespaces() });
    let pod = t.run_pod(config).await?;
    web(t, &pod, 12003).await?;
    let (mut spdy, _) = spdy::connect(&port_forward_url(t, &pod, &[]).await?, &[PORT_FORWARD]).await?;
    let seen = forwarded(&mut spdy, "12003", "0").await?;
    ensure!(seen.contains(PAGE), "{seen}");
    Ok(())
}

async fn port_forward_several(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    web(t, &pod, 80).await?;
    web(t, &pod, 8080).await?;
    let (mut spdy, _) = spdy::connect(&port_forward_url(t, &pod, &[]).await?, &[PORT_FORWARD]).await?;
    for (request, port) in [("0", "80"), ("1", "8080"), ("2", "80")] {
        let seen = forwarded(&mut spdy, port, request).await?;
        ensure!(seen.contains(PAGE), "{port}: {seen}");
    }
    Ok(())
}

async fn port_forward_to_nobody(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    t.running(&pod).await?;
    let (mut spdy, _) = spdy::connect(&port_forward_url(t, &pod, &[]).await?, &[PORT_FORWARD]).await?;
    let answer = forwarded(&mut spdy, "81", "0").await;
    ensure!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(String::is_empty), "{answer:?}");
    // The connection lives on for the next port.
    web(t, &pod, 80).await?;
    let seen = forwarded(&mut spdy, "80", "1").await;
    if let Ok(seen) = seen {
        ensure!(seen.contains(PAGE), "{seen}");
    }
    Ok(())
}

async fn port_forward_over_websocket(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    web(t, &pod, 80).await?;
    let url = port_forward_url(t, &pod, &[80]).await?;
    let mut session = websocket::connect(&url, "v4.channel.k8s.io").await?;
    // Both channels begin with their port, little endian.
    session.read_until("the ports", |all| all.received(0).len() >= 2 && all.received(1).len() >= 2).await?;
    ensure!(session.received(0)[..2] == [80, 0] && session.received(1)[..2] == [80, 0], "another port");
    session.send(0, b"GET / HTTP/1.0\r\n\r\n").await?;
    session.read_until("the page", |all| all.text(0).contains(PAGE)).await
}

async fn port_forward_through_a_tunnel(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    web(t, &pod, 80).await?;
    let url = port_forward_url(t, &pod, &[]).await?;
    let mut spdy = Spdy::new(websocket::tunnel(&url, "SPDY/3.1+portforward.k8s.io").await?)?;
    let seen = forwarded(&mut spdy, "80", "0").await?;
    ensure!(seen.contains(PAGE), "{seen}");
    Ok(())
}

async fn url_works_once(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let url = exec_url(t, &id, &["echo", "hello"], false, false).await?;
    let mut session = Command::open(spdy::connect(&url, &ALL).await?.0, false, false).await?;
    session.end().await?;
    ensure!(spdy::connect(&url, &ALL).await.is_err(), "the URL worked twice");
    Ok(())
}

async fn url_that_is_guessed(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let url = exec_url(t, &id, &["echo", "hello"], false, false).await?;
    let (base, token) = url.rsplit_once('/').context("a token")?;
    ensure!(token.len() >= 8, "a short token: {token}");
    ensure!(spdy::connect(&format!("{base}/guessed1"), &ALL).await.is_err(), "a guess worked");
    let other = url.replace("/exec/", "/attach/");
    ensure!(spdy::connect(&other, &ALL).await.is_err(), "an exec token worked for attach");
    Ok(())
}

async fn impossible_streams(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    for (tty, stdin, stdout, stderr) in [(true, false, true, true), (false, false, false, false)] {
        let cmd = words(&["true"]);
        let request = v1::ExecRequest { container_id: id.clone(), cmd, tty, stdin, stdout, stderr };
        let answer = t.cri.runtime().exec(request).await.map_err(anyhow::Error::from);
        let (code, _) = refused("impossible streams", answer)?;
        ensure!(code == tonic::Code::InvalidArgument, "{code:?}");
    }
    Ok(())
}

async fn unknown_and_stopped(t: &Test) -> anyhow::Result<()> {
    refused("an unknown container", exec_url(t, "no-such-one", &["true"], false, false).await)?;
    refused("an unknown container", attach_url(t, "no-such-one").await)?;
    let pod = t.pod().await?;
    let ended = t.ended_with(&pod, |config| config.command = words(&["true"])).await?.id;
    refused("an ended container", exec_url(t, &ended, &["true"], false, false).await)?;
    refused("an ended container", attach_url(t, &ended).await)?;
    t.cri.stop_pod(&pod.id).await?;
    refused("a stopped pod", port_forward_url(t, &pod, &[]).await).map(drop)
}

async fn at_once(t: &Test) -> anyhow::Result<()> {
    let id = container(t).await?;
    let numbers: Vec<String> = (0..8).map(|number| number.to_string()).collect();
    let sessions = numbers.iter().map(async |number| -> anyhow::Result<()> {
        let mut session = run(t, &id, &["echo", number], false, false).await?;
        session.end().await?;
        ensure!(session.stdout().trim() == number, "{number}: {}", session.stdout());
        Ok(())
    });
    futures::future::try_join_all(sessions).await.map(drop)
}
