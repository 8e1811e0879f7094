//! What a container sees and may do, over the real shim: `orlop-shim-test` of the same build, else SKIP.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod support;

use std::collections::HashMap;

use futures::{SinkExt as _, StreamExt as _};
use orlop_cri::v1;
use support::{Client, Node, container, pod, privileged_pod};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

async fn lab() -> Option<(Node, Client)> {
    support::real_node(|_| {}).await
}

fn shell(name: &str, script: &str) -> v1::ContainerConfig {
    container(name, &["/bin/busybox", "sh", "-c", script])
}

fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

/// Runs a container to its end; exit status and what its log says.
async fn run(
    client: &mut Client,
    node: &Node,
    sandbox: &str,
    config: v1::ContainerConfig,
) -> (v1::ContainerStatus, String) {
    let log = node.path("logs").join(&config.log_path);
    let id = client.create(sandbox, config).await.unwrap();
    client.start(&id).await.unwrap();
    let status = client.wait_state(&id, v1::ContainerState::ContainerExited).await;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default()).collect();
    (status, lines.join("\n"))
}

#[tokio::test]
async fn identity_rights_and_files() {
    let Some((node, mut client)) = lab().await else { return };
    let mut config = pod(&node, "web");
    config.dns_config = Some(v1::DnsConfig { servers: vec!["10.96.0.10".into()], ..Default::default() });
    let sandbox = client.run_pod(&config).await.unwrap();
    std::fs::create_dir(node.path("volume")).unwrap();
    std::fs::write(node.path("volume/file"), "from the host").unwrap();
    let script = "busybox id; busybox hostname; cat /etc/resolv.conf; cat /etc/hosts; echo $FROM_IMAGE $HOME $PWD; \
        grep -E 'Seccomp:|NoNewPrivs:|CapEff:' /proc/self/status; cat /ro/file; echo; \
        (echo x > /ro/file) 2>/dev/null && echo WROTE-RO; (echo x > /root-file) 2>/dev/null && echo WROTE-ROOT; \
        echo changed > /rw/file; busybox unshare -m true 2>/dev/null && echo UNSHARED; \
        busybox touch /sys/fs/cgroup/*/cgroup.procs 2>/dev/null && echo WROTE-CGROUP; \
        busybox ip -o link | busybox wc -l; ls /dev/shm /dev/pts/ptmx; cat /proc/1/comm"
        .replace("cat ", "busybox cat ").replace("grep ", "busybox grep ").replace("ls ", "busybox ls ");
    let mut wanted =
        shell("c", &script.replace("busybox busybox", "busybox").replace("busybox ", "/bin/busybox "));
    let mount = |path: &str, readonly| v1::Mount {
        container_path: path.into(),
        host_path: node.path("volume").to_string_lossy().into_owned(),
        readonly,
        recursive_read_only: readonly,
        ..Default::default()
    };
    wanted.mounts = vec![mount("/ro", true), mount("/rw", false)];
    wanted.working_dir = "/tmp".into();
    {
        let context = context(&mut wanted);
        context.run_as_username = "web".into();
        context.supplemental_groups = vec![77];
        context.no_new_privs = true;
        context.readonly_rootfs = true;
        context.seccomp = Some(v1::SecurityProfile::default());
    }
    std::os::unix::fs::chown(node.path("volume/file"), Some(33), Some(34)).unwrap();
    let (status, log) = run(&mut client, &node, &sandbox, wanted).await;
    println!("{log}");
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"), "{log}");
    for line in [
        "uid=33(web) gid=34(web) groups=34(web),50(more),77",
        "web",
        "nameserver 10.96.0.10",
        "10.9.8.7\tweb",
        "yes /srv /tmp",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapEff:\t0000000000000000",
        "from the host",
    ] {
        assert!(log.lines().any(|found| found.contains(line)), "{line}: {log}");
    }
    assert!(!log.contains("WROTE") && !log.contains("UNSHARED"), "{log}");
    assert_eq!(std::fs::read_to_string(node.path("volume/file")).unwrap(), "changed\n");
    let linux = status.user.unwrap().linux.unwrap();
    assert_eq!((linux.uid, linux.gid, linux.supplemental_groups), (33, 34, vec![34, 50, 77]));
    client.remove_pod(&sandbox).await.unwrap();
}

#[tokio::test]
async fn a_pods_containers_share_what_they_should() {
    let Some((node, mut client)) = lab().await else { return };
    let mut config = pod(&node, "web");
    let options = v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..Default::default() };
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options =
        Some(options.clone());
    let sandbox = client.run_pod(&config).await.unwrap();
    let mut first = shell("first", "echo shared > /dev/shm/note; exec /bin/busybox sleep 600");
    context(&mut first).namespace_options = Some(options.clone());
    let first = client.create(&sandbox, first).await.unwrap();
    client.start(&first).await.unwrap();
    let mut second = shell(
        "second",
        "/bin/busybox sleep 0.3; /bin/busybox cat /dev/shm/note; /bin/busybox ps -o args | /bin/busybox cat",
    );
    context(&mut second).namespace_options = Some(options);
    let (_, log) = run(&mut client, &node, &sandbox, second).await;
    assert!(log.contains("shared") && log.contains("sleep 600"), "{log}");
    let target = v1::NamespaceOption {
        pid: v1::NamespaceMode::Target as i32,
        target_id: first.clone(),
        ..Default::default()
    };
    let mut debugger = shell("debugger", "/bin/busybox ps -o args | /bin/busybox cat");
    context(&mut debugger).namespace_options = Some(target);
    let (_, log) = run(&mut client, &node, &sandbox, debugger).await;
    assert!(log.contains("sleep 600"), "{log}");
    let (_, log) =
        run(&mut client, &node, &sandbox, shell("alone", "/bin/busybox ps -o args | /bin/busybox cat")).await;
    assert!(!log.contains("sleep 600"), "{log}");
    client.remove_pod(&sandbox).await.unwrap();
}

#[tokio::test]
async fn limits_hold_and_can_be_changed() {
    let Some((node, mut client)) = lab().await else { return };
    let sandbox = client.run_pod(&pod(&node, "web")).await.unwrap();
    let mut hungry = shell("hungry", "x=a; while true; do x=$x$x; done");
    hungry.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        cpu_shares: 512,
        oom_score_adj: 900,
        ..Default::default()
    });
    let (status, _) = run(&mut client, &node, &sandbox, hungry.clone()).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let mut calm = hungry;
    calm.metadata.as_mut().unwrap().name = "calm".into();
    calm.command = ["/bin/busybox", "sleep", "600"].map(str::to_owned).to_vec();
    let calm = client.create(&sandbox, calm).await.unwrap();
    client.start(&calm).await.unwrap();
    let output = client.exec_sync(&calm, &["/bin/busybox", "cat", "/proc/1/oom_score_adj"]).await.unwrap();
    assert_eq!(output.stdout, b"900\n");
    let change = v1::LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        cpu_shares: 256,
        ..Default::default()
    };
    let request = v1::UpdateContainerResourcesRequest {
        container_id: calm.clone(),
        linux: Some(change),
        windows: None,
        annotations: HashMap::new(),
    };
    client.runtime.update_container_resources(request).await.unwrap();
    let limits = client.status(&calm).await.resources.unwrap().linux.unwrap();
    assert_eq!((limits.memory_limit_in_bytes, limits.cpu_shares), (32 << 20, 256));
    let stats = client
        .runtime
        .container_stats(v1::ContainerStatsRequest { container_id: calm.clone() })
        .await
        .unwrap();
    let memory = stats.into_inner().stats.unwrap().memory.unwrap();
    assert!(memory.usage_bytes.unwrap().value > 0 && memory.available_bytes.unwrap().value > 0);
    client.remove_pod(&sandbox).await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_a_size_and_a_privileged_container_its_devices() {
    let Some((node, mut client)) = lab().await else { return };
    let sandbox = client.run_pod(&privileged_pod(&node, "web")).await.unwrap();
    let mut config = container("c", &["/bin/busybox", "sleep", "600"]);
    context(&mut config).privileged = true;
    let id = client.create(&sandbox, config).await.unwrap();
    client.start(&id).await.unwrap();
    let output = client.exec_sync(&id, &["/bin/busybox", "ls", "/dev"]).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).lines().any(|name| name == "kmsg"), "{output:?}");
    let script = "while [ \"$(/bin/busybox stty size)\" != '33 101' ]; do /bin/busybox sleep 0.05; done; /bin/busybox stty size; read line; echo got $line";
    let request = v1::ExecRequest {
        container_id: id.clone(),
        cmd: ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec(),
        tty: true,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let url = client.runtime.exec(request).await.unwrap().into_inner().url;
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "v5.channel.k8s.io".parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    let size = [&[4u8][..], br#"{"Width":101,"Height":33}"#].concat();
    socket.send(Message::binary(size)).await.unwrap();
    socket.send(Message::binary([&[0u8][..], b"hello\r"].concat())).await.unwrap();
    let mut output = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(data) = message {
            output.extend_from_slice(&data[1..]);
        }
    }
    let output = String::from_utf8_lossy(&output).into_owned();
    assert!(
        output.contains("33 101") && output.contains("got hello") && output.contains("Success"),
        "{output}"
    );
    client.remove_pod(&sandbox).await.unwrap();
}

#[tokio::test]
async fn many_pods_leave_nothing() {
    let Some((node, client)) = lab().await else { return };
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let before = mounts();
    let pods = (0..20).map(|number| {
        let (mut client, config) = (client.clone(), pod(&node, &format!("p{number}")));
        async move {
            let sandbox = client.run_pod(&config).await.unwrap();
            let id =
                client.create(&sandbox, container("c", &["/bin/busybox", "sleep", "600"])).await.unwrap();
            client.start(&id).await.unwrap();
            client.remove_pod(&sandbox).await.unwrap();
        }
    });
    futures::future::join_all(pods).await;
    assert_eq!(mounts(), before);
    assert!(
        node.entries("state/sandboxes").is_empty() && node.entries("root/snapshots/containers").is_empty()
    );
    assert!(node.cgroups().is_empty(), "{:?}", node.cgroups());
}
