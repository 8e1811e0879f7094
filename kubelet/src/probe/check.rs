//! One check or hook: a command, a request, a connection.

use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use super::{grpc, http};
use crate::pod::model::{self, Container};
use crate::runtime::Runtime;

/// Output kept of a failed command.
const OUTPUT_LIMIT_BYTES: usize = 10 * 1024;
/// A hook's request is given up then; the grace bounds it further.
const HOOK_LIMIT: Duration = Duration::from_secs(30);

/// Resolves a port number or the name of a container port.
fn port(pod: &core::Pod, container: &str, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => match name.parse() {
            Ok(number) => Some(number),
            Err(_) => model::container(pod, container).and_then(|(_, spec)| {
                let ports = spec.ports.iter().flatten();
                ports.filter(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port).next()
            }),
        },
    };
    number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0).ok_or_else(
        || match port {
            IntOrString::Int(number) => format!("invalid port number: {number}"),
            IntOrString::String(name) => format!("couldn't find port: {name}"),
        },
    )
}

fn host_or(host: Option<&String>, address: &str) -> String {
    host.filter(|host| !host.is_empty()).cloned().unwrap_or_else(|| address.to_owned())
}

fn http_request(
    pod: &core::Pod,
    container: &str,
    address: &str,
    action: &core::HTTPGetAction,
) -> Result<http::Request, String> {
    let path = action.path.clone().unwrap_or_default();
    Ok(http::Request {
        https: action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        host: host_or(action.host.as_ref(), address),
        port: port(pod, container, &action.port)?,
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        headers: action
            .http_headers
            .iter()
            .flatten()
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect(),
    })
}

async fn exec(runtime: &Runtime, id: &str, command: &[String], limit: Duration) -> Result<(), String> {
    let answer = runtime.exec_sync(id, command, limit).await.map_err(|error| error.to_string())?;
    if answer.exit_code == 0 {
        return Ok(());
    }
    let output = [answer.stdout, answer.stderr].concat();
    let text = String::from_utf8_lossy(&output[..output.len().min(OUTPUT_LIMIT_BYTES)]).into_owned();
    Err(if text.is_empty() { format!("command exited with code {}", answer.exit_code) } else { text })
}

async fn tcp(host: &str, port: u16) -> Result<(), String> {
    match TcpStream::connect((host, port)).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("dial tcp {host}:{port}: {}", dial_problem(&error))),
    }
}

/// The words that upstream's events have, which people and alerts look for.
pub(super) fn dial_problem(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    }
}

/// What a probe says that got no answer in time.
fn timeout_problem(
    pod: &core::Pod,
    container: &str,
    address: &str,
    spec: &core::Probe,
    limit: Duration,
) -> String {
    if let Some(request) =
        spec.http_get.as_ref().and_then(|action| http_request(pod, container, address, action).ok())
    {
        let shown = request.shown();
        return format!(
            "{shown}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        );
    }
    if let Some(action) = &spec.tcp_socket {
        let host = host_or(action.host.as_ref(), address);
        let port = port(pod, container, &action.port).unwrap_or_default();
        return format!("dial tcp {host}:{port}: i/o timeout");
    }
    if let Some(action) = &spec.grpc {
        let (port, seconds) = (action.port, limit.as_secs());
        return format!(
            "timeout: failed to connect service \"{address}:{port}\" within {seconds}s: context deadline exceeded"
        );
    }
    "context deadline exceeded".to_owned()
}

/// Runs one probe within its limit.
pub(crate) async fn probe(
    runtime: &Runtime,
    container: &Container,
    pod: &core::Pod,
    address: &str,
    spec: &core::Probe,
    limit: Duration,
) -> Result<(), String> {
    if let Some(action) = &spec.exec {
        let command = action.command.clone().unwrap_or_default();
        return match tokio::time::timeout(limit, exec(runtime, &container.id, &command, limit)).await {
            Ok(result) => result,
            Err(_) => {
                let line = command.join(" ");
                Err(format!("command timed out: {line:?} timed out after {}s", limit.as_secs()))
            }
        };
    }
    let work = async {
        if let Some(action) = &spec.http_get {
            let request = http_request(pod, &container.name, address, action)?;
            let status = http::get(&request).await?;
            if (200..400).contains(&status) {
                Ok(())
            } else {
                Err(format!("HTTP probe failed with statuscode: {status}"))
            }
        } else if let Some(action) = &spec.tcp_socket {
            tcp(&host_or(action.host.as_ref(), address), port(pod, &container.name, &action.port)?).await
        } else if let Some(action) = &spec.grpc {
            let number =
                u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
            grpc::check(address, number, action.service.as_deref().unwrap_or_default()).await
        } else {
            Err("missing probe handler".to_owned())
        }
    };
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(timeout_problem(pod, &container.name, address, spec, limit)),
    }
}

/// Runs a lifecycle hook to its end.
pub(crate) async fn hook(
    runtime: &Runtime,
    pod: &core::Pod,
    id: &str,
    container: &str,
    address: &str,
    hook: &core::LifecycleHandler,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        return exec(runtime, id, action.command.as_deref().unwrap_or_default(), Duration::ZERO).await;
    }
    if let Some(action) = &hook.http_get {
        let request = http_request(pod, container, address, action)?;
        return match tokio::time::timeout(HOOK_LIMIT, http::get(&request)).await {
            // As upstream: an answer is a success whatever its status.
            Ok(result) => result.map(drop),
            Err(_) => Err("context deadline exceeded".to_owned()),
        };
    }
    if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("this kind of lifecycle hook is not supported".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refusals_have_upstreams_words() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(tcp("127.0.0.1", port).await.unwrap_err(), refused);
        let request = http::Request {
            https: false,
            host: "127.0.0.1".to_owned(),
            port,
            path: "/healthz".to_owned(),
            headers: Vec::new(),
        };
        let expected = format!("Get \"http://127.0.0.1:{port}/healthz\": {refused}");
        assert_eq!(http::get(&request).await.unwrap_err(), expected);
        let error = grpc::check("127.0.0.1", port, "").await.unwrap_err();
        assert!(error.ends_with("connect: connection refused"), "{error}");
    }
}
