//! A pod's network: addresses, names, host ports.

use anyhow::{Context as _, ensure};
use orlop_cri::v1;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::images::PAGE;
use crate::spec::{Pod, Test, eventually, image, namespaces, security_of_pod};
use crate::subject::GATEWAY;

crate::specs![
    address,
    gone_after_stop,
    dns_config,
    dns_of_the_machine,
    hostname,
    container_port,
    host_port,
    host_port_udp,
    host_port_goes_with_the_pod,
    host_network,
    pod_network_is_its_own,
    pods_reach_each_other,
    containers_share,
    loopback,
    egress_to_the_machine,
    hosts_file,
];

async fn web(t: &Test, pod: &Pod) -> anyhow::Result<String> {
    let mut config = t.container_config(pod, &[]);
    config.image = Some(crate::client::image_spec(&image("web")));
    let id = t.create(pod, config).await?;
    t.cri.start(&id).await?;
    Ok(id)
}

/// The page behind an address, by a client on the machine.
pub async fn page(address: &str) -> anyhow::Result<String> {
    eventually(&format!("a page from {address}"), async || {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        ensure!(text.contains(PAGE), "{text:?}");
        Ok(text)
    })
    .await
}

/// A script that prints the page behind an address. (Debian's static wget cannot resolve names, and crashes over it.)
fn fetch(address: &str) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {address} 80")
}

async fn ip(t: &Test, pod: &Pod) -> anyhow::Result<String> {
    let network = t.cri.pod_status(&pod.id).await?.network.context("no network in the status")?;
    ensure!(!network.ip.is_empty(), "no address");
    Ok(network.ip)
}

async fn address(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let ip = ip(t, &pod).await?;
    let container = t.running(&pod).await?;
    let shown = t.sh(&container, "ip -o -4 address show dev eth0").await?;
    ensure!(shown.contains(&format!("inet {ip}")), "the status says {ip}, the pod has {shown}");
    Ok(())
}

async fn gone_after_stop(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let ip = ip(t, &pod).await?;
    t.cri.stop_pod(&pod.id).await?;
    let status = t.cri.pod_status(&pod.id).await?;
    let shown = status.network.unwrap_or_default().ip;
    ensure!(shown.is_empty() || shown == ip, "another address: {shown}");
    let mut search = t.host().command("grep");
    let leases =
        orlop_tests::try_run(search.args(["-r", "-l", &pod.id]).arg(t.host().path("ipam")), "").stdout;
    ensure!(leases.is_empty(), "the pod still has a lease: {leases}");
    Ok(())
}

async fn dns_config(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.10.10.10".into(), "10.10.10.11".into()],
        searches: vec!["google.com".into(), "example.org".into()],
        options: vec!["ndots:8".into(), "timeout:1".into()],
    });
    let pod = t.run_pod(config).await?;
    let container = t.running(&pod).await?;
    let text = t.sh(&container, "cat /etc/resolv.conf").await?;
    for wanted in [
        "nameserver 10.10.10.10",
        "nameserver 10.10.10.11",
        "search google.com example.org",
        "options ndots:8 timeout:1",
    ] {
        ensure!(text.lines().any(|line| line.trim() == wanted), "{wanted:?} is missing in {text:?}");
    }
    Ok(())
}

async fn dns_of_the_machine(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.dns_config = None;
    let pod = t.run_pod(config).await?;
    let container = t.running(&pod).await?;
    let seen = t.exec(&container, &["cat", "/etc/resolv.conf"]).await?.stdout;
    let own = t.host().run(&["cat", "/etc/resolv.conf"]).stdout;
    ensure!(seen == own, "{seen:?} is not the machine's {own:?}");
    Ok(())
}

async fn hostname(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.hostname = "test-hostname".into();
    let pod = t.run_pod(config).await?;
    let container = t.running(&pod).await?;
    for command in ["hostname", "cat /etc/hostname", "echo $HOSTNAME"] {
        let seen = t.sh(&container, command).await?;
        ensure!(seen == "test-hostname", "{command}: {seen:?}");
    }
    Ok(())
}

async fn container_port(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.port_mappings = vec![v1::PortMapping { container_port: 80, ..Default::default() }];
    let pod = t.run_pod(config).await?;
    web(t, &pod).await?;
    page(&format!("{}:80", ip(t, &pod).await?)).await.map(drop)
}

fn mapping(protocol: v1::Protocol, host_port: i32) -> Vec<v1::PortMapping> {
    let protocol = protocol.into();
    vec![v1::PortMapping { protocol, container_port: 80, host_port, ..Default::default() }]
}

async fn host_port(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.port_mappings = mapping(v1::Protocol::Tcp, 12000);
    let pod = t.run_pod(config).await?;
    web(t, &pod).await?;
    page(&format!("{}:80", ip(t, &pod).await?)).await?;
    page("192.0.2.10:12000").await.map(drop)
}

/// The pod's kernel counts a datagram to a port that nobody listens on: it arrived.
async fn host_port_udp(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.port_mappings = mapping(v1::Protocol::Udp, 12001);
    let pod = t.run_pod(config).await?;
    let container = t.running(&pod).await?;
    let arrived = async || -> anyhow::Result<u64> {
        let counters = t.sh(&container, "grep '^Udp: [0-9]' /proc/net/snmp").await?;
        Ok(counters.split(' ').nth(2).context("NoPorts")?.parse()?)
    };
    let before = arrived().await?;
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await?;
    eventually("a datagram arrives", async || {
        socket.send_to(b"datagram", "192.0.2.10:12001").await?;
        ensure!(arrived().await? > before, "nothing arrived");
        Ok(())
    })
    .await
}

async fn host_port_goes_with_the_pod(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.port_mappings = mapping(v1::Protocol::Tcp, 12002);
    let pod = t.run_pod(config.clone()).await?;
    web(t, &pod).await?;
    page("192.0.2.10:12002").await?;
    t.cri.stop_pod(&pod.id).await?;
    ensure!(TcpStream::connect("192.0.2.10:12002").await.is_err(), "somebody answers on the port");
    // The port is free for the next one.
    config.metadata.get_or_insert_default().attempt = 1;
    let next = t.run_pod(config).await?;
    web(t, &next).await?;
    page("192.0.2.10:12002").await.map(drop)
}

/// What a container is told by a server of the machine.
async fn greeted(t: &Test, listener: TcpListener, container: &str, target: &str) -> anyhow::Result<String> {
    let server = tokio::spawn(async move {
        if let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"hello\n").await;
        }
    });
    let seen = t.sh(container, &format!("nc -w 20 {target} </dev/null || true")).await;
    server.abort();
    seen
}

async fn host_network(t: &Test) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut config = t.pod_config();
    // As a kubelet: the pod has the machine's name.
    config.hostname.clear();
    let network = v1::NamespaceMode::Node.into();
    security_of_pod(&mut config).namespace_options = Some(v1::NamespaceOption { network, ..namespaces() });
    let pod = t.run_pod(config).await?;
    let container = t.running(&pod).await?;
    let seen = greeted(t, listener, &container, &format!("127.0.0.1 {port}")).await?;
    ensure!(seen == "hello", "the machine's port was not reached: {seen:?}");
    let status = t.cri.pod_status(&pod.id).await?;
    let shown = status.linux.and_then(|linux| linux.namespaces).and_then(|all| all.options);
    ensure!(shown.unwrap_or_default().network() == v1::NamespaceMode::Node, "the status says otherwise");
    ensure!(status.network.unwrap_or_default().ip.is_empty(), "an address of its own");
    Ok(())
}

async fn pod_network_is_its_own(t: &Test) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let pod = t.pod().await?;
    let container = t.running(&pod).await?;
    let done = t.exec(&container, &["nc", "-w", "2", "127.0.0.1", &port.to_string()]).await?;
    ensure!(done.code != 0, "the machine's loopback was reached: {done:?}");
    Ok(())
}

async fn pods_reach_each_other(t: &Test) -> anyhow::Result<()> {
    let (server, client) = (t.pod().await?, t.pod().await?);
    web(t, &server).await?;
    let address = ip(t, &server).await?;
    page(&format!("{address}:80")).await?;
    let container = t.running(&client).await?;
    let seen = t.sh(&container, &fetch(&address)).await?;
    ensure!(seen.ends_with(PAGE), "{seen:?}");
    Ok(())
}

async fn containers_share(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    web(t, &pod).await?;
    let container = t.running(&pod).await?;
    eventually("the other container's page", async || {
        let seen = t.sh(&container, &fetch("127.0.0.1")).await?;
        ensure!(seen.ends_with(PAGE), "{seen:?}");
        Ok(())
    })
    .await
}

async fn loopback(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let container = t.running(&pod).await?;
    let seen = t.sh(&container, "ip -o address show dev lo").await?;
    ensure!(seen.contains("inet 127.0.0.1/8"), "{seen}");
    Ok(())
}

async fn egress_to_the_machine(t: &Test) -> anyhow::Result<()> {
    let listener = TcpListener::bind((GATEWAY, 0)).await;
    let pod = t.pod().await?;
    // The bridge has its address only once a pod was there.
    let listener = match listener {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind((GATEWAY, 0)).await?,
    };
    let port = listener.local_addr()?.port();
    let container = t.running(&pod).await?;
    let seen = greeted(t, listener, &container, &format!("{GATEWAY} {port}")).await?;
    ensure!(seen == "hello", "the gateway was not reached: {seen:?}");
    Ok(())
}

/// For containers whose kubelet mounts no hosts file.
async fn hosts_file(t: &Test) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    security_of_pod(&mut config).readonly_rootfs = false;
    let pod = t.run_pod(config).await?;
    let container = t.running(&pod).await?;
    let seen = t.sh(&container, "cat /etc/hosts").await?;
    ensure!(seen.lines().any(|line| line.starts_with("127.0.0.1") && line.contains("localhost")), "{seen:?}");
    Ok(())
}
