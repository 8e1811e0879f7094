//! Logs and tunnels go to the kubelet of the pod's node: a small one plays its part here, with TLS and client certificates.

#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;

use std::sync::Arc;

use harness::{Master, text};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Answers logs with the path that was asked for, and echoes on tunnels. Every connection must show the server's client certificate.
async fn kubelet(listener: TcpListener, tls: tokio_rustls::TlsAcceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        let tls = tls.clone();
        tokio::spawn(async move {
            let mut stream = tls.accept(stream).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap().to_owned();
            assert!(!head.to_lowercase().contains("authorization"), "{head}");
            if path.starts_with("/exec/") {
                assert!(head.to_lowercase().contains("upgrade: test"), "{head}");
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n{path}\n"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
                let (mut reader, mut writer) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
                return;
            } else if path.contains("missing") {
                let _ = stream
                    .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 17\r\n\r\nno such container")
                    .await;
            } else {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}\n", path.len() + 1);
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            let _ = stream.shutdown().await;
        });
    }
}

fn acceptor(master: &Master) -> tokio_rustls::TlsAcceptor {
    let path = |name: &str| master.directory.path().join(name);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(path("ca.crt")).unwrap()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_file(path("server.crt")).unwrap()],
            PrivateKeyDer::from_pem_file(path("server.key")).unwrap(),
        )
        .unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

fn cluster(master: &Master, port: u16) {
    master.kubectl("create serviceaccount default");
    let node = serde_json::json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1"}});
    master.kubectl_with("create -f -", &node.to_string());
    let status = serde_json::json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    master.kubectl(&format!("patch node n1 --subresource=status --type=merge -p '{status}'"));
    let pod = serde_json::json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web"},
        "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "i"}, {"name": "missing", "image": "i"}]},
    });
    master.kubectl_with("create -f -", &pod.to_string());
}

#[test]
fn logs_and_tunnels_reach_the_kubelet() {
    let master = Master::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).unwrap();
    cluster(&master, listener.local_addr().unwrap().port());
    runtime.spawn(kubelet(listener, acceptor(&master)));
    assert_eq!(master.kubectl("logs web -c a --tail=5"), "/containerLogs/default/web/a?tailLines=5\n");
    assert!(master.refused("logs web -c missing", "").contains("no such container"));
    assert!(master.refused("logs web -c other", "").contains("container other is not valid for pod web"));
    let raw = master.refused("get --raw /api/v1/namespaces/default/pods/web/log", "");
    assert!(
        raw.contains("a container name must be specified for pod web, choose one of: [a missing]"),
        "{raw}"
    );
    let plain = master.refused("get --raw /api/v1/namespaces/default/pods/web/exec?container=a", "");
    assert!(plain.contains("Upgrade request required"), "{plain}");
    let echoed = runtime.block_on(tunnel(&master));
    assert_eq!(echoed, "/exec/default/web/a?output=1&command=ls&command=a%20b\nhello");
}

/// Upgrades over the plain listener and says hello.
async fn tunnel(master: &Master) -> String {
    let mut stream =
        tokio::net::TcpStream::connect(("127.0.0.1", master.config.insecure_port)).await.unwrap();
    let path = "/api/v1/namespaces/default/pods/web/exec?container=a&stdout=true&command=ls&command=a+b";
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: test\r\nAuthorization: Bearer x\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = String::new();
    stream.read_to_string(&mut echoed).await.unwrap();
    echoed
}

#[test]
fn a_node_that_does_not_answer_is_named() {
    let master = Master::start();
    // Nothing listens on the discard port.
    cluster(&master, 9);
    let refused = master.try_kubectl("admin", "logs web -c a", "");
    assert!(
        text(&refused).contains("error dialing backend") && text(&refused).contains("node n1"),
        "{}",
        text(&refused)
    );
}
