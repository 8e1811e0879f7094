//! What a daemon says of itself right after it has taken over its predecessor's pods.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use orlop_conformance_cri::host::Host;
use orlop_conformance_cri::load::{container_config, pod_config};
use orlop_conformance_cri::spec::{image, on_machine};
use orlop_conformance_cri::subject::{Kind, Subject};

#[test]
fn gauges_count_what_was_taken_over() {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_cri-subject"));
    let program = std::env::var_os("ORLOP_BIN").map_or(built, PathBuf::from);
    let host = Host::new("restart").unwrap();
    on_machine(host, async move |host| {
        let mut subject = Subject::start(Kind::Orlop, host, program).await.unwrap();
        let cri = subject.client().unwrap();
        cri.pull(&image("busybox")).await.unwrap();
        let logs = subject.host.path("logs");
        let config = pod_config("gauges", subject.host.pod_cgroup("gauges"), &logs);
        let pod = cri.run_pod(config.clone()).await.unwrap();
        let container =
            cri.create(&pod, &config, container_config("sleep", &["sleep", "1000"])).await.unwrap();
        cri.start(&container).await.unwrap();
        for _ in 0..2 {
            let text = metrics(&subject);
            for line in ["runtime_shims 1", "runtime_running_containers 1"] {
                assert!(text.lines().any(|said| said == line), "no {line:?} in {text}");
            }
            subject.kill();
            subject.launch().await.unwrap();
        }
    });
}

fn metrics(subject: &Subject) -> String {
    // Below the daemon's own /run.
    let socket = format!("/proc/{}/root/run/state/admin.sock", subject.pid().unwrap());
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
