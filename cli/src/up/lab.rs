//! Nodes in network namespaces of their own, joined by a bridge: the tests' hosts, and a demo of several nodes on one machine.
//!
//! ```text
//!   machine: bridge orlop0 (first address) --- veth ol n1 ===== eth0 in /run/netns/orlop-node-1
//!                                          \-- veth ol n2 ===== eth0 in /run/netns/orlop-node-2
//! ```
//!
//! The namespaces are bind-mounted as `ip netns` does, so they outlive every process of ours and `ip netns exec` works.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::layout::Layout;
use super::spec::{ClusterSpec, LabSpec, nth};

const NETNS_DIRECTORY: &str = "/run/netns";

/// The file that pins a named network namespace.
pub(crate) fn netns_path(name: &str) -> PathBuf {
    Path::new(NETNS_DIRECTORY).join(name)
}

/// Makes what is missing of the lab: bridge, namespaces, links. Needs a tokio runtime.
pub(crate) async fn ensure(layout: &Layout, spec: &ClusterSpec, lab: &LabSpec) -> anyhow::Result<()> {
    let (connection, handle, _) = new_connection().context("failed to open a route socket")?;
    let driver = tokio::spawn(connection);
    let result = ensure_with(&handle, layout, spec, lab).await;
    driver.abort();
    result
}

async fn ensure_with(
    handle: &Handle,
    layout: &Layout,
    spec: &ClusterSpec,
    lab: &LabSpec,
) -> anyhow::Result<()> {
    let bridge = ensure_bridge(handle, layout, lab).await.context("failed to make the node bridge")?;
    for (position, node) in spec.nodes.iter().enumerate() {
        let index = u32::try_from(position + 1)?;
        let context = || format!("failed to make the network of {}", node.name);
        let namespace = ensure_namespace(&layout.netns(&node.name)).with_context(context)?;
        let link = layout.link(index);
        if link_index(handle, &link).await?.is_none() {
            connect(handle, &link, bridge, &namespace, index).await.with_context(context)?;
        }
        let gateway = nth(lab.network, 1).context("the node network is too small")?;
        let (address, prefix) = (node.address, lab.network.prefix_len());
        inside(namespace, move || async move { configure(address, prefix, gateway.into()).await })
            .with_context(context)?;
    }
    Ok(())
}

async fn ensure_bridge(handle: &Handle, layout: &Layout, lab: &LabSpec) -> anyhow::Result<u32> {
    let name = layout.bridge();
    if link_index(handle, &name).await?.is_none() {
        handle.link().add(LinkBridge::new(&name).build()).execute().await?;
    }
    let index = link_index(handle, &name).await?.context("the bridge vanished")?;
    let address = nth(lab.network, 1).context("the node network is too small")?;
    handle.address().add(index, address.into(), lab.network.prefix_len()).replace().execute().await?;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    Ok(index)
}

async fn connect(
    handle: &Handle,
    link: &str,
    bridge: u32,
    namespace: &File,
    index: u32,
) -> anyhow::Result<()> {
    let peer = format!("{link}p");
    let peer = if peer.len() > 15 { format!("olp{index}x{}", std::process::id() % 10_000) } else { peer };
    handle
        .link()
        .add(LinkVeth::new(link, &peer).build())
        .execute()
        .await
        .context("failed to add a veth pair")?;
    let moved = async {
        let peer = link_index(handle, &peer).await?.context("the veth peer vanished")?;
        let into = LinkUnspec::new_with_index(peer).name("eth0").setns_by_fd(namespace.as_raw_fd()).build();
        handle.link().set(into).execute().await.context("failed to move the link into the namespace")?;
        let outer = link_index(handle, link).await?.context("the veth link vanished")?;
        let attach = LinkUnspec::new_with_index(outer).controller(bridge).up().build();
        handle.link().set(attach).execute().await.context("failed to attach the link to the bridge")
    };
    if let Err(error) = moved.await {
        if let Ok(Some(outer)) = link_index(handle, link).await {
            let _ = handle.link().del(outer).execute().await;
        }
        return Err(error);
    }
    Ok(())
}

async fn configure(address: IpAddr, prefix: u8, gateway: IpAddr) -> anyhow::Result<()> {
    let (connection, handle, _) = new_connection()?;
    let driver = tokio::spawn(connection);
    let loopback = link_index(&handle, "lo").await?.context("no loopback")?;
    handle.link().set(LinkUnspec::new_with_index(loopback).up().build()).execute().await?;
    let link = link_index(&handle, "eth0").await?.context("eth0 is missing in the namespace")?;
    handle.address().add(link, address, prefix).replace().execute().await?;
    handle.link().set(LinkUnspec::new_with_index(link).up().build()).execute().await?;
    let IpAddr::V4(gateway) = gateway else { bail!("the node network must be IPv4") };
    let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(gateway).build();
    handle.route().add(route).replace().execute().await?;
    driver.abort();
    Ok(())
}

/// Opens the named namespace, made if missing.
fn ensure_namespace(name: &str) -> anyhow::Result<File> {
    let path = netns_path(name);
    if let Some(namespace) = open_namespace(&path)? {
        return Ok(namespace);
    }
    share_directory().with_context(|| format!("failed to prepare {NETNS_DIRECTORY}"))?;
    File::create(&path).with_context(|| format!("failed to create {}", path.display()))?;
    let target = path.clone();
    let made = std::thread::spawn(move || -> anyhow::Result<()> {
        // Only this thread gets the new namespace, and it ends with it.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .context("failed to make a network namespace")?;
        mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("failed to pin the namespace at {}", target.display()))
    });
    if let Err(error) = made.join().unwrap_or_else(|_| bail!("the namespace thread panicked")) {
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    open_namespace(&path)?.context("the namespace vanished")
}

/// The namespace behind a file, unless the file is missing or a leftover without a namespace.
fn open_namespace(path: &Path) -> anyhow::Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("failed to open {}", path.display())),
    };
    let kind = rustix::fs::fstatfs(&file)?.f_type;
    Ok((kind == NSFS_MAGIC).then_some(file))
}

/// From linux/magic.h.
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// As `ip netns` does: a shared mount, so that namespaces mounted here are seen everywhere.
fn share_directory() -> anyhow::Result<()> {
    let directory = Path::new(NETNS_DIRECTORY);
    std::fs::create_dir_all(directory)?;
    let none = None::<&str>;
    if mount(none, directory, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).is_err() {
        mount(Some(directory), directory, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
        mount(none, directory, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none)?;
    }
    Ok(())
}

/// Runs `work` to its end on a thread of its own inside `namespace`.
fn inside<W, F>(namespace: File, work: W) -> anyhow::Result<()>
where
    W: FnOnce() -> F + Send + 'static,
    F: Future<Output = anyhow::Result<()>>,
{
    let thread = std::thread::spawn(move || -> anyhow::Result<()> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work())
    });
    thread.join().unwrap_or_else(|_| bail!("the namespace thread panicked"))
}

/// Enters a named namespace with the whole process, which must be single-threaded.
pub(crate) fn enter(name: &str) -> anyhow::Result<()> {
    let path = netns_path(name);
    let file =
        open_namespace(&path)?.with_context(|| format!("{} is no network namespace", path.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("failed to enter {}", path.display()))
}

async fn link_index(handle: &Handle, name: &str) -> anyhow::Result<Option<u32>> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to look up interface {name}")),
    }
}

/// Removes the bridge, the links and the namespaces of a layout. What is gone is fine.
pub(crate) async fn remove(layout: &Layout, nodes: &[String]) -> anyhow::Result<()> {
    let (connection, handle, _) = new_connection().context("failed to open a route socket")?;
    let driver = tokio::spawn(connection);
    let links = (1..=u32::try_from(nodes.len())?).map(|index| layout.link(index));
    for name in links.chain([layout.bridge()]) {
        if let Some(index) = link_index(&handle, &name).await? {
            handle
                .link()
                .del(index)
                .execute()
                .await
                .with_context(|| format!("failed to delete interface {name}"))?;
        }
    }
    driver.abort();
    for node in nodes {
        let path = netns_path(&layout.netns(node));
        if !path.exists() {
            continue;
        }
        // Not mounted any more is as good as unmounted.
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        std::fs::remove_file(&path).with_context(|| format!("failed to remove {}", path.display()))?;
    }
    Ok(())
}
