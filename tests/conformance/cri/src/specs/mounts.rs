//! Mounts of the host: where they come from, what may be written, what crosses over.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use orlop_cri::v1;
use orlop_cri::v1::MountPropagation::{
    PropagationBidirectional, PropagationHostToContainer, PropagationPrivate,
};

use crate::spec::{Pod, Test, eventually, refused, security, skip};

crate::specs![
    host_path,
    host_path_that_is_a_link,
    host_path_that_is_missing,
    single_file,
    read_only,
    read_only_is_not_recursive,
    recursive_read_only,
    recursive_needs_private_not_host_to_container,
    recursive_needs_private_not_bidirectional,
    recursive_needs_read_only,
    propagation_private,
    propagation_host_to_container,
    propagation_bidirectional,
    bidirectional_goes_with_the_container,
    one_inside_the_other,
    over_a_file_of_the_pod,
    status_tells_mounts,
    container_path_that_leaves_the_root,
    link_in_the_image_does_not_leave_the_root,
    no_mount_reaches_the_machine,
    tmpfs_of_the_pod_is_shared,
    same_destination_twice,
];

fn bind(host: &std::path::Path, container: &str) -> v1::Mount {
    v1::Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

async fn mounted(t: &Test, pod: &Pod, mounts: Vec<v1::Mount>) -> anyhow::Result<String> {
    t.running_with(pod, |config| config.mounts = mounts).await
}

async fn host_path(t: &Test) -> anyhow::Result<()> {
    let directory = t.directory("volume")?;
    std::fs::write(directory.join("flag"), "here\n")?;
    let pod = t.pod().await?;
    let id = mounted(t, &pod, vec![bind(&directory, "/data")]).await?;
    ensure!(t.sh(&id, "cat /data/flag").await? == "here", "another content");
    t.sh(&id, "echo back > /data/answer").await?;
    ensure!(std::fs::read_to_string(directory.join("answer"))? == "back\n", "not the host's directory");
    Ok(())
}

async fn host_path_that_is_a_link(t: &Test) -> anyhow::Result<()> {
    let directory = t.directory("volume")?;
    std::fs::write(directory.join("flag"), "here\n")?;
    let link = t.directory("links")?.join("link");
    std::os::unix::fs::symlink(&directory, &link)?;
    let pod = t.pod().await?;
    let id = mounted(t, &pod, vec![bind(&link, "/data")]).await?;
    ensure!(t.sh(&id, "cat /data/flag").await? == "here", "another content");
    Ok(())
}

async fn host_path_that_is_missing(t: &Test) -> anyhow::Result<()> {
    let path = t.directory("missing")?.join("deep/down");
    let pod = t.pod().await?;
    let id = mounted(t, &pod, vec![bind(&path, "/data")]).await?;
    ensure!(path.is_dir(), "it was not made");
    t.sh(&id, "touch /data/file").await?;
    ensure!(path.join("file").exists(), "not the host's directory");
    Ok(())
}

async fn single_file(t: &Test) -> anyhow::Result<()> {
    let file = t.directory("file")?.join("one");
    std::fs::write(&file, "here\n")?;
    let pod = t.pod().await?;
    let id = mounted(t, &pod, vec![bind(&file, "/etc/deep/inside/one")]).await?;
    ensure!(t.sh(&id, "cat /etc/deep/inside/one").await? == "here", "another content");
    Ok(())
}

async fn read_only(t: &Test) -> anyhow::Result<()> {
    let directory = t.directory("volume")?;
    let pod = t.pod().await?;
    let mount = v1::Mount { readonly: true, ..bind(&directory, "/data") };
    let id = mounted(t, &pod, vec![mount]).await?;
    let done = t.exec(&id, &["touch", "/data/file"]).await?;
    ensure!(done.code != 0 && done.stderr.contains("Read-only file system"), "{done:?}");
    Ok(())
}

/// A directory with a tmpfs in it, in the machine's mount table.
fn with_tmpfs(t: &Test) -> anyhow::Result<PathBuf> {
    let directory = t.directory("deep")?;
    let inner = t.directory("deep/tmpfs")?;
    t.host().must(&["mount", "-t", "tmpfs", "none", inner.to_str().context("UTF-8")?])?;
    Ok(directory)
}

async fn recursively(t: &Test, recursive_read_only: bool) -> anyhow::Result<crate::client::Exec> {
    let directory = with_tmpfs(t)?;
    let pod = t.pod().await?;
    let mount = v1::Mount { readonly: true, recursive_read_only, ..bind(&directory, "/mnt") };
    let made = mounted(t, &pod, vec![mount]).await;
    let done = match made {
        Ok(id) => t.exec(&id, &["touch", "/mnt/tmpfs/file"]).await,
        Err(error) => Err(error),
    };
    t.cri.stop_pod(&pod.id).await?;
    t.host().must(&["umount", directory.join("tmpfs").to_str().context("UTF-8")?])?;
    done
}

async fn supports_recursive(t: &Test) -> anyhow::Result<()> {
    let answer = t.cri.runtime().status(v1::StatusRequest { verbose: false }).await?.into_inner();
    let default = answer.runtime_handlers.into_iter().find(|handler| handler.name.is_empty());
    if default.and_then(|handler| handler.features).is_some_and(|all| all.recursive_read_only_mounts) {
        return Ok(());
    }
    skip("the runtime does not claim recursive read-only mounts")
}

async fn read_only_is_not_recursive(t: &Test) -> anyhow::Result<()> {
    let done = recursively(t, false).await?;
    ensure!(done.code == 0, "{done:?}");
    Ok(())
}

async fn recursive_read_only(t: &Test) -> anyhow::Result<()> {
    supports_recursive(t).await?;
    let done = recursively(t, true).await?;
    ensure!(done.code != 0 && done.stderr.contains("Read-only file system"), "{done:?}");
    Ok(())
}

async fn refused_recursive(t: &Test, mount: v1::Mount) -> anyhow::Result<()> {
    supports_recursive(t).await?;
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    let mount = v1::Mount { recursive_read_only: true, ..mount };
    config.mounts = vec![v1::Mount { ..bind(&t.directory("volume")?, "/mnt") }];
    config.mounts[0] = v1::Mount { host_path: config.mounts[0].host_path.clone(), ..mount };
    let (_, said) = refused("a recursive read-only mount", t.create(&pod, config).await)?;
    ensure!(said.contains("/mnt"), "the error does not name the mount: {said}");
    Ok(())
}

async fn recursive_needs_private_not_host_to_container(t: &Test) -> anyhow::Result<()> {
    let mount = v1::Mount { container_path: "/mnt".into(), readonly: true, ..Default::default() };
    refused_recursive(t, v1::Mount { propagation: PropagationHostToContainer.into(), ..mount }).await
}

async fn recursive_needs_private_not_bidirectional(t: &Test) -> anyhow::Result<()> {
    let mount = v1::Mount { container_path: "/mnt".into(), readonly: true, ..Default::default() };
    refused_recursive(t, v1::Mount { propagation: PropagationBidirectional.into(), ..mount }).await
}

async fn recursive_needs_read_only(t: &Test) -> anyhow::Result<()> {
    refused_recursive(t, v1::Mount { container_path: "/mnt".into(), ..Default::default() }).await
}

/// What a mount of `mode` lets through: the host's mount into the container, the container's onto the host.
async fn crossings(t: &Test, mode: v1::MountPropagation) -> anyhow::Result<(bool, bool)> {
    let (directory, source) = (t.directory("volume")?, t.directory("source")?);
    for name in ["from-host", "from-container"] {
        t.directory(&format!("volume/{name}"))?;
    }
    std::fs::write(source.join("flag"), "")?;
    let path = directory.to_str().context("UTF-8")?;
    t.host().must(&["mount", "--bind", path, path])?;
    let kind = if mode == PropagationPrivate { "--make-private" } else { "--make-shared" };
    t.host().must(&["mount", kind, path])?;
    let answer = cross(t, mode, path, source.to_str().context("UTF-8")?).await;
    t.host().must(&["umount", "--recursive", path])?;
    answer
}

async fn cross(
    t: &Test,
    mode: v1::MountPropagation,
    path: &str,
    source: &str,
) -> anyhow::Result<(bool, bool)> {
    let pod = t.privileged_pod().await?;
    let mount = v1::Mount { propagation: mode.into(), ..bind(std::path::Path::new(path), path) };
    let id = t
        .running_with(&pod, |config| {
            security(config).privileged = true;
            config.mounts = vec![mount];
        })
        .await?;
    let shown = t.cri.container_status(&id).await?.mounts;
    ensure!(shown.len() == 1 && shown[0].propagation() == mode, "{shown:?}");
    ensure!(shown[0].container_path == path && shown[0].host_path == path, "{shown:?}");
    t.host().must(&["mount", "--bind", source, &format!("{path}/from-host")])?;
    let inward = t.exec(&id, &["test", "-e", &format!("{path}/from-host/flag")]).await?.code == 0;
    t.sh(&id, &format!("mount -t tmpfs none {path}/from-container && touch {path}/from-container/flag"))
        .await?;
    let outward = t.host().run(&["test", "-e", &format!("{path}/from-container/flag")]).code == 0;
    t.sh(&id, &format!("umount {path}/from-container")).await?;
    t.cri.stop_pod(&pod.id).await?;
    t.cri.remove_pod(&pod.id).await?;
    Ok((inward, outward))
}

async fn propagation_private(t: &Test) -> anyhow::Result<()> {
    let seen = crossings(t, PropagationPrivate).await?;
    ensure!(seen == (false, false), "{seen:?}");
    Ok(())
}

async fn propagation_host_to_container(t: &Test) -> anyhow::Result<()> {
    let seen = crossings(t, PropagationHostToContainer).await?;
    ensure!(seen == (true, false), "{seen:?}");
    Ok(())
}

async fn propagation_bidirectional(t: &Test) -> anyhow::Result<()> {
    let seen = crossings(t, PropagationBidirectional).await?;
    ensure!(seen == (true, true), "{seen:?}");
    Ok(())
}

/// The pod's own mounts stay its own, also beside one that crosses over.
async fn bidirectional_goes_with_the_container(t: &Test) -> anyhow::Result<()> {
    let before = t.host().inventory().mounts;
    crossings(t, PropagationBidirectional).await?;
    let name = t.directory("")?.to_string_lossy().into_owned();
    let after = t.host().inventory().mounts;
    let left: Vec<&String> =
        after.iter().filter(|path| !before.contains(path) && path.contains(&name)).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

async fn one_inside_the_other(t: &Test) -> anyhow::Result<()> {
    let (outer, inner) = (t.directory("outer")?, t.directory("inner")?);
    std::fs::create_dir(outer.join("sub"))?;
    std::fs::write(inner.join("flag"), "inner\n")?;
    let pod = t.pod().await?;
    // The inner one first: the order of the list does not decide.
    let id = mounted(t, &pod, vec![bind(&inner, "/data/sub"), bind(&outer, "/data")]).await?;
    ensure!(t.sh(&id, "cat /data/sub/flag").await? == "inner", "the outer mount covers the inner one");
    Ok(())
}

async fn over_a_file_of_the_pod(t: &Test) -> anyhow::Result<()> {
    let file = t.directory("files")?.join("hosts");
    std::fs::write(&file, "1.2.3.4 kubelet\n")?;
    let pod = t.pod().await?;
    let id = mounted(t, &pod, vec![bind(&file, "/etc/hosts")]).await?;
    ensure!(t.sh(&id, "cat /etc/hosts").await? == "1.2.3.4 kubelet", "not the kubelet's file");
    Ok(())
}

async fn status_tells_mounts(t: &Test) -> anyhow::Result<()> {
    let directory = t.directory("volume")?;
    let pod = t.pod().await?;
    let wanted = v1::Mount { readonly: true, ..bind(&directory, "/data") };
    let id = mounted(t, &pod, vec![wanted.clone()]).await?;
    let shown = t.cri.container_status(&id).await?.mounts;
    ensure!(shown == [wanted], "{shown:?}");
    Ok(())
}

async fn container_path_that_leaves_the_root(t: &Test) -> anyhow::Result<()> {
    let directory = t.directory("volume")?;
    std::fs::write(directory.join("flag"), "here\n")?;
    let outside = t.directory("outside")?;
    let pod = t.pod().await?;
    let path = format!("/../../../../../..{}", outside.display());
    match mounted(t, &pod, vec![bind(&directory, &path)]).await {
        Ok(id) => {
            let seen = t.sh(&id, &format!("cat {}/flag", outside.display())).await?;
            ensure!(seen == "here", "the mount is nowhere");
        }
        Err(error) => ensure!(format!("{error:#}").contains("/.."), "{error:#}"),
    }
    ensure!(!outside.join("flag").exists(), "the host's directory was mounted over");
    Ok(())
}

/// `/var/run` of the pod's image leads to the host only by name.
async fn link_in_the_image_does_not_leave_the_root(t: &Test) -> anyhow::Result<()> {
    let (volume, outside) = (t.directory("volume")?, t.directory("outside")?);
    let pod = t.pod().await?;
    // A volume with a link in it is a root file system that the pod's author wrote.
    std::os::unix::fs::symlink(&outside, volume.join("link"))?;
    let inner = t.directory("inner")?;
    std::fs::write(inner.join("flag"), "")?;
    let made = mounted(t, &pod, vec![bind(&volume, "/data"), bind(&inner, "/data/link/deep")]).await;
    ensure!(!outside.join("deep").exists(), "a directory was made on the host through a link");
    if let Err(error) = made {
        ensure!(!format!("{error:#}").contains("transport error"), "{error:#}");
    }
    Ok(())
}

async fn no_mount_reaches_the_machine(t: &Test) -> anyhow::Result<()> {
    if t.kind() == crate::subject::Kind::Containerd {
        return skip("containerd keeps root file systems in the machine's table");
    }
    let directory = t.directory("volume")?;
    let pod = t.pod().await?;
    let id = mounted(t, &pod, vec![bind(&directory, "/data")]).await?;
    let table = t.host().inventory().mounts;
    let found: Vec<&String> =
        table.iter().filter(|path| path.contains(&pod.id) || path.contains(&id)).collect();
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

async fn tmpfs_of_the_pod_is_shared(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let (one, other) = (t.running(&pod).await?, t.running(&pod).await?);
    t.sh(&one, "echo shared > /dev/shm/file").await?;
    ensure!(t.sh(&other, "cat /dev/shm/file").await? == "shared", "two /dev/shm in one pod");
    let stranger = t.running(&t.pod().await?).await?;
    ensure!(t.exec(&stranger, &["test", "-e", "/dev/shm/file"]).await?.code != 0, "shared between pods");
    eventually("sticky /dev/shm", async || {
        let mode = t.sh(&one, "stat -c %a /dev/shm").await?;
        ensure!(mode == "1777", "{mode}");
        Ok(())
    })
    .await
}

async fn same_destination_twice(t: &Test) -> anyhow::Result<()> {
    let (one, two) = (t.directory("one")?, t.directory("two")?);
    std::fs::write(one.join("flag"), "one\n")?;
    std::fs::write(two.join("flag"), "two\n")?;
    let pod = t.pod().await?;
    match mounted(t, &pod, vec![bind(&one, "/data"), bind(&two, "/data/")]).await {
        Ok(id) => {
            let seen = t.sh(&id, "cat /data/flag").await?;
            ensure!(seen == "two", "the later one does not win: {seen}");
        }
        Err(error) => ensure!(format!("{error:#}").contains("/data"), "{error:#}"),
    }
    Ok(())
}
