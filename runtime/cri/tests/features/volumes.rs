//! Where mounts come from: trees shared with the host, images; over the real shim.

use std::path::{Path, PathBuf};

use orlop_cri::v1;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::support::{self, container, context, pod, say};

/// A shared mount of the machine, with all below it gone when dropped.
struct Shared(PathBuf);

impl Shared {
    fn new(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let shared = Self(path);
        rustix::mount::mount("test", &shared.0, "tmpfs", MountFlags::empty(), None).unwrap();
        rustix::mount::mount_change(&shared.0, MountPropagationFlags::SHARED).unwrap();
        shared
    }

    fn mounts_below(&self) -> Vec<PathBuf> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = text.lines().map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
        points.filter(|point| *point != self.0 && point.starts_with(&self.0)).collect()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for point in self.mounts_below() {
            let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
        }
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn volume(host: &Path, inside: &str, propagation: v1::MountPropagation) -> v1::Mount {
    v1::Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: inside.into(),
        propagation: propagation as i32,
        ..Default::default()
    }
}

fn sleeper(name: &str, mounts: Vec<v1::Mount>) -> v1::ContainerConfig {
    let mut config = container(name, &["/bin/busybox", "sleep", "600"]);
    config.mounts = mounts;
    config
}

#[tokio::test]
async fn mounts_cross_over_both_ways() {
    use v1::MountPropagation::{
        PropagationBidirectional as Both, PropagationHostToContainer as Down, PropagationPrivate as Private,
    };
    let Some((node, mut client)) = support::real_node(|_| {}).await else { return };
    let shared = Shared::new(node.path("shared"));
    let below = shared.0.join("csi");
    for name in ["made-inside", "made-outside", "kept"] {
        std::fs::create_dir_all(below.join(name)).unwrap();
    }
    let sandbox = client.run_pod(&support::privileged_pod(&node, "csi")).await.unwrap();
    // A volume on a mount that is not shared would silently not propagate.
    let alone = client.create(&sandbox, sleeper("alone", vec![volume(&node.path("logs"), "/v", Both)])).await;
    assert!(alone.unwrap_err().message().contains("is not a shared mount"));
    let mut plugin =
        sleeper("plugin", vec![volume(&below, "/csi", Both), volume(&shared.0, "/private", Private)]);
    context(&mut plugin).privileged = true;
    let plugin = client.create(&sandbox, plugin).await.unwrap();
    client.start(&plugin).await.unwrap();
    let user = client.create(&sandbox, sleeper("user", vec![volume(&below, "/csi", Down)])).await.unwrap();
    client.start(&user).await.unwrap();
    // A mount that is younger than its pod: a kubelet binds sub paths of volumes just before it makes a container.
    let late = node.path("late");
    std::fs::create_dir(&late).unwrap();
    let late = Shared::new(late);
    std::fs::write(late.0.join("file"), "late").unwrap();
    let reader =
        client.create(&sandbox, sleeper("reader", vec![volume(&late.0, "/late", Private)])).await.unwrap();
    client.start(&reader).await.unwrap();
    assert_eq!(say(&mut client, &reader, "/bin/busybox cat /late/file").await, "late");

    let mount = "/bin/busybox mount -t tmpfs test";
    assert_eq!(
        say(&mut client, &plugin, &format!("{mount} /csi/made-inside && echo x > /csi/made-inside/file"))
            .await,
        ""
    );
    assert_eq!(shared.mounts_below(), [below.join("made-inside")]);
    assert_eq!(std::fs::read_to_string(below.join("made-inside/file")).unwrap(), "x\n");
    assert_eq!(say(&mut client, &user, "/bin/busybox cat /csi/made-inside/file").await, "x");

    rustix::mount::mount("test", below.join("made-outside"), "tmpfs", MountFlags::empty(), None).unwrap();
    std::fs::write(below.join("made-outside/file"), "y").unwrap();
    for id in [&plugin, &user] {
        assert_eq!(say(&mut client, id, "/bin/busybox cat /csi/made-outside/file").await, "y");
    }
    rustix::mount::unmount(below.join("made-outside"), UnmountFlags::empty()).unwrap();
    assert_eq!(say(&mut client, &plugin, "/bin/busybox umount /csi/made-inside").await, "");
    assert!(shared.mounts_below().is_empty());

    // What a plugin has mounted for others outlives it, and nothing of its own does.
    assert_eq!(say(&mut client, &plugin, &format!("{mount} /csi/kept")).await, "");
    client.stop(&plugin, 0).await.unwrap();
    client.remove(&plugin).await.unwrap();
    assert_eq!(shared.mounts_below(), [below.join("kept")]);
    client.remove_pod(&sandbox).await.unwrap();
    assert_eq!(shared.mounts_below(), [below.join("kept")]);
}

fn image(name: &str, sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: "/v".into(),
        readonly: true,
        image: Some(v1::ImageSpec { image: name.into(), ..Default::default() }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_image_is_a_volume() {
    let Some((node, mut client)) = support::real_node(|_| {}).await else { return };
    let name = "docker.io/library/data:1";
    let bottom: &[(&str, &str)] = &[
        ("model/weights", "old"),
        ("model/gone", "hidden"),
        ("link", "-> model"),
        ("out", "-> ../../../etc"),
        ("absolute", "-> /etc"),
    ];
    let top: &[(&str, &str)] = &[("model/weights", "new"), ("model/.wh.gone", "")];
    support::import_files(&node, name, &[bottom, top]);
    support::import_files(&node, "docker.io/library/flat:1", &[bottom]);
    let sandbox = client.run_pod(&pod(&node, "ai")).await.unwrap();
    let list = "/bin/busybox ls /v; /bin/busybox cat /v/weights /v/model/weights; echo x > /v/file";
    for (at, (image_name, sub_path, wanted)) in [
        (name, "", ["model", "new", "Read-only"]),
        (name, "model", ["weights", "new", "Read-only"]),
        (name, "link", ["weights", "new", "Read-only"]),
        ("docker.io/library/flat:1", "", ["model", "old", "Read-only"]),
        ("docker.io/library/flat:1", "model", ["gone", "old", "Read-only"]),
    ]
    .into_iter()
    .enumerate()
    {
        let id =
            client.create(&sandbox, sleeper(&format!("good-{at}"), vec![image(image_name, sub_path)])).await;
        let id = id.unwrap();
        client.start(&id).await.unwrap();
        let said = say(&mut client, &id, list).await;
        assert!(wanted.iter().all(|word| said.contains(word)), "{image_name} {sub_path}: {said}");
        let mounted = client.status(&id).await.mounts.remove(0).image.unwrap();
        assert!(mounted.image_ref.starts_with("sha256:"), "{mounted:?}");
        assert_eq!(said.contains("gone"), wanted.contains(&"gone"), "{said}");
    }
    for (at, (image_name, sub_path, word)) in [
        (name, "missing", "No such file"),
        (name, "..", "path escapes"),
        (name, "model/../../..", "path escapes"),
        (name, "out", "path escapes"),
        (name, "absolute", "path escapes"),
        (name, "model/weights", "only directory"),
        ("docker.io/library/none:1", "", "failed to resolve image"),
    ]
    .into_iter()
    .enumerate()
    {
        let refused =
            client.create(&sandbox, sleeper(&format!("bad-{at}"), vec![image(image_name, sub_path)])).await;
        let said = refused.unwrap_err();
        let said = said.message();
        assert!(said.contains("ImageVolumeMountFailed") && said.contains(word), "{sub_path}: {said}");
    }
    // A container keeps what it mounts, also when the image's name goes.
    let id = client.create(&sandbox, sleeper("keeper", vec![image(name, "")])).await.unwrap();
    let spec = v1::ImageSpec { image: name.into(), ..Default::default() };
    client.images.remove_image(v1::RemoveImageRequest { image: Some(spec) }).await.unwrap();
    client.start(&id).await.unwrap();
    assert_eq!(say(&mut client, &id, "/bin/busybox cat /v/model/weights").await, "new");
    client.remove_pod(&sandbox).await.unwrap();
    let layers = node.entries("root/snapshots/layers").len();
    let spec = v1::ImageSpec { image: "docker.io/library/flat:1".into(), ..Default::default() };
    client.images.remove_image(v1::RemoveImageRequest { image: Some(spec) }).await.unwrap();
    assert!(node.entries("root/snapshots/layers").len() < layers, "nothing was collected");
}
