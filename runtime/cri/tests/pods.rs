//! Pods through the CRI socket: life, idempotence, restart of the daemon, death of a shim.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod support;

use std::time::Duration;

use orlop_cri::v1;
use support::{Node, container, pod};
use tokio_stream::StreamExt as _;

const SLEEP: [&str; 3] = ["/bin/busybox", "sleep", "600"];

fn assert_nothing_left(node: &Node) {
    assert!(node.entries("state/sandboxes").is_empty(), "{:?}", node.entries("state/sandboxes"));
    assert!(node.entries("root/snapshots/containers").is_empty());
    let calls = node.cni_calls();
    let count = |verb: &str| calls.iter().filter(|call| call.starts_with(verb)).count();
    assert!(count("DEL") >= count("ADD"), "{calls:?}");
}

#[tokio::test]
async fn without_a_network_configuration_pods_wait() {
    let mut node = Node::new();
    let mut client = node.start().await;
    let status = client.runtime.status(v1::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    assert!(conditions[0].status && !conditions[1].status, "{conditions:?}");
    assert!(conditions[1].message.contains("cni plugin not initialized"), "{conditions:?}");
    let error = client.run_pod(&pod(&node, "a")).await.unwrap_err();
    assert!(error.message().contains("cni plugin not initialized"), "{error}");
    assert_nothing_left(&node);
    node.write_network();
    let status = client.runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    assert!(status.status.unwrap().conditions.iter().all(|condition| condition.status));
    let version = client.runtime.version(v1::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("orlop", "v1"));
}

#[tokio::test]
async fn a_pod_lives_and_leaves_nothing() {
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let mut client = node.start().await;
    let mut events = client.runtime.get_container_events(v1::GetEventsRequest {}).await.unwrap().into_inner();

    let sandbox = client.run_pod(&pod(&node, "a")).await.unwrap();
    assert_eq!(client.run_pod(&pod(&node, "a")).await.unwrap(), sandbox, "a retry gets the same sandbox");
    let status = client.pod_status(&sandbox).await;
    assert_eq!(
        (status.state(), status.network.unwrap().ip.as_str()),
        (v1::PodSandboxState::SandboxReady, "10.9.8.7")
    );

    let id = client.create(&sandbox, container("c", &SLEEP)).await.unwrap();
    assert_eq!(
        client.create(&sandbox, container("c", &SLEEP)).await.unwrap(),
        id,
        "a retry gets the same container"
    );
    assert_eq!(client.status(&id).await.state(), v1::ContainerState::ContainerCreated);
    client.start(&id).await.unwrap();
    let status = client.wait_state(&id, v1::ContainerState::ContainerRunning).await;
    assert!(status.started_at > 0 && status.image_id.starts_with("sha256:"));
    assert_eq!(status.image.unwrap().image, support::IMAGE);

    let output =
        client.exec_sync(&id, &["/bin/busybox", "sh", "-c", "echo out; echo err >&2; exit 3"]).await.unwrap();
    assert_eq!((&output.stdout[..], &output.stderr[..], output.exit_code), (&b"out\n"[..], &b"err\n"[..], 3));
    let late = v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: SLEEP.iter().map(|word| (*word).to_owned()).collect(),
        timeout: 1,
    };
    assert_eq!(client.runtime.exec_sync(late).await.unwrap_err().code(), tonic::Code::DeadlineExceeded);
    let stats =
        client.runtime.container_stats(v1::ContainerStatsRequest { container_id: id.clone() }).await.unwrap();
    assert_eq!(stats.into_inner().stats.unwrap().attributes.unwrap().id, id);

    client.stop(&id, 5).await.unwrap();
    let status = client.status(&id).await;
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert!(status.exit_code == 143 || status.exit_code == 137, "{status:?}");
    client.stop(&id, 5).await.unwrap();
    client.remove(&id).await.unwrap();
    client.remove(&id).await.unwrap();
    client.stop_pod(&sandbox).await.unwrap();
    client.stop_pod(&sandbox).await.unwrap();
    assert_eq!(client.pod_status(&sandbox).await.state(), v1::PodSandboxState::SandboxNotready);
    client.remove_pod(&sandbox).await.unwrap();
    client.remove_pod(&sandbox).await.unwrap();
    assert_nothing_left(&node);

    use v1::ContainerEventType::{
        ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
    };
    let wanted = [
        (&sandbox, ContainerCreatedEvent),
        (&sandbox, ContainerStartedEvent),
        (&id, ContainerCreatedEvent),
        (&id, ContainerStartedEvent),
        (&id, ContainerStoppedEvent),
        (&id, ContainerDeletedEvent),
        (&sandbox, ContainerStoppedEvent),
        (&sandbox, ContainerDeletedEvent),
    ];
    for (object, kind) in wanted {
        let event = events.next().await.unwrap().unwrap();
        assert_eq!((&event.container_id, event.container_event_type()), (object, kind));
    }
}

#[tokio::test]
async fn what_is_unknown_or_wrong_is_said_so() {
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let mut client = node.start().await;
    client.stop("nope", 1).await.unwrap();
    client.remove("nope").await.unwrap();
    client.stop_pod("nope").await.unwrap();
    client.remove_pod("nope").await.unwrap();
    let missing = v1::ContainerStatusRequest { container_id: "nope".into(), verbose: false };
    assert_eq!(client.runtime.container_status(missing).await.unwrap_err().code(), tonic::Code::NotFound);

    let sandbox = client.run_pod(&pod(&node, "a")).await.unwrap();
    let mut no_image = container("c", &SLEEP);
    no_image.image = Some(v1::ImageSpec { image: "nothing:here".into(), ..Default::default() });
    assert_eq!(client.create(&sandbox, no_image).await.unwrap_err().code(), tonic::Code::NotFound);
    let mut bad_user = container("c", &SLEEP);
    let context = bad_user.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.run_as_username = "stranger".into();
    let error = client.create(&sandbox, bad_user).await.unwrap_err();
    assert!(error.code() == tonic::Code::InvalidArgument && error.message().contains("stranger"), "{error}");
    let id = client.create(&sandbox, container("c", &["/no/such/program"])).await.unwrap();
    assert!(client.start(&id).await.is_err() || real_exit(&mut client, &id).await);
    let checkpoint = v1::CheckpointContainerRequest::default();
    assert_eq!(
        client.runtime.checkpoint_container(checkpoint).await.unwrap_err().code(),
        tonic::Code::Unimplemented
    );
    client.remove_pod(&sandbox).await.unwrap();
    assert_nothing_left(&node);
}

async fn real_exit(client: &mut support::Client, id: &str) -> bool {
    client.wait_state(id, v1::ContainerState::ContainerExited).await.exit_code >= 126
}

#[tokio::test]
async fn simultaneous_retries_make_one_sandbox() {
    let mut node = Node::new();
    node.write_network();
    let client = node.start().await;
    let config = pod(&node, "a");
    let runs = (0..8).map(|_| {
        let (mut client, config) = (client.clone(), config.clone());
        async move { client.run_pod(&config).await.unwrap() }
    });
    let ids = futures::future::join_all(runs).await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(node.entries("state/sandboxes").len(), 1);
    client.clone().remove_pod(&ids[0]).await.unwrap();
    assert_nothing_left(&node);
}

#[tokio::test]
async fn a_restarted_daemon_takes_over_what_runs_and_what_ended() {
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let mut client = node.start().await;
    let sandbox = client.run_pod(&pod(&node, "a")).await.unwrap();
    let stays = client.create(&sandbox, container("stays", &SLEEP)).await.unwrap();
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 7", "/tmp/orlop-never");
    let ends = client
        .create(&sandbox, container("ends", &["/bin/busybox", "sh", "-c", "sleep 1; exit 7"]))
        .await
        .unwrap();
    let waits =
        client.create(&sandbox, container("waits", &["/bin/busybox", "sh", "-c", &script])).await.unwrap();
    client.start(&stays).await.unwrap();
    client.start(&ends).await.unwrap();
    let started = client.status(&stays).await.started_at;
    let shim = node.shim_pid(&sandbox);
    node.stop().await;
    // Left by a daemon that was killed in the middle of a verb.
    std::fs::create_dir_all(node.path("state/sandboxes/0123456789abcdef0123456789abcdef")).unwrap();
    std::fs::create_dir_all(node.path("state/sandboxes").join(&sandbox).join("bundles/half")).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut client = node.start().await;
    assert_eq!(node.shim_pid(&sandbox), shim);
    assert_eq!(client.pod_status(&sandbox).await.state(), v1::PodSandboxState::SandboxReady);
    let status = client.status(&stays).await;
    assert_eq!((status.state(), status.started_at), (v1::ContainerState::ContainerRunning, started));
    let status = client.status(&ends).await;
    assert_eq!((status.state(), status.exit_code), (v1::ContainerState::ContainerExited, 7));
    assert_eq!(client.status(&waits).await.state(), v1::ContainerState::ContainerCreated);
    assert_eq!(node.entries("state/sandboxes"), std::slice::from_ref(&sandbox));
    // The new watcher hears the shim.
    client.start(&waits).await.unwrap();
    client.stop(&waits, 0).await.unwrap();
    client.remove_pod(&sandbox).await.unwrap();
    assert_nothing_left(&node);
}

#[tokio::test]
async fn a_killed_shim_ends_its_pod() {
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let mut client = node.start().await;
    let sandbox = client.run_pod(&pod(&node, "a")).await.unwrap();
    let id = client.create(&sandbox, container("c", &["/bin/busybox", "sleep", "5"])).await.unwrap();
    client.start(&id).await.unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(node.shim_pid(&sandbox)),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let status = client.wait_state(&id, v1::ContainerState::ContainerExited).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    assert_eq!(client.pod_status(&sandbox).await.state(), v1::PodSandboxState::SandboxNotready);
    // The kubelet then stops it and makes another one.
    client.stop_pod(&sandbox).await.unwrap();
    let mut next = pod(&node, "a");
    next.metadata.as_mut().unwrap().attempt = 1;
    let second = client.run_pod(&next).await.unwrap();
    client.remove_pod(&sandbox).await.unwrap();
    client.remove_pod(&second).await.unwrap();
    assert_nothing_left(&node);
}

#[tokio::test]
async fn shims_of_a_neighbouring_version_are_taken_over_and_no_others() {
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let speaking = |node: &Node, version: u32| {
        let mut config = node.config();
        let fake = config.shim_command.join(" ");
        config.shim_command = vec!["/usr/bin/env".into(), format!("FAKE_SHIM_VERSION={version}"), fake];
        config
    };
    if support::real_shim().is_some() {
        println!("SKIP: a real shim speaks one version");
        return;
    }
    let config = speaking(&node, 0);
    let mut client = node.start_with(config).await;
    let sandbox = client.run_pod(&pod(&node, "old")).await.unwrap();
    let id = client.create(&sandbox, container("c", &["/bin/busybox", "sleep", "600"])).await.unwrap();
    client.start(&id).await.unwrap();
    node.stop().await;
    let mut client = node.start().await;
    assert_eq!(client.status(&id).await.state(), v1::ContainerState::ContainerRunning);
    assert_eq!(client.exec_sync(&id, &["/bin/busybox", "true"]).await.unwrap().exit_code, 0);
    client.remove_pod(&sandbox).await.unwrap();
    node.stop().await;
    let config = speaking(&node, 3);
    let mut client = node.start_with(config).await;
    let sandbox = client.run_pod(&pod(&node, "strange")).await.unwrap();
    let refused =
        client.create(&sandbox, container("c", &["/bin/busybox", "sleep", "600"])).await.unwrap_err();
    assert!(refused.message().contains("version 3"), "{refused}");
    client.remove_pod(&sandbox).await.unwrap();
    assert_nothing_left(&node);
}

#[tokio::test]
async fn images_are_listed_found_and_removed() {
    let mut node = Node::new();
    node.import_image();
    let mut client = node.start().await;
    let images =
        client.images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].repo_tags, [support::IMAGE]);
    for name in ["busybox:test", support::IMAGE, images[0].id.as_str()] {
        let image = Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
        let request = v1::ImageStatusRequest { image, verbose: false };
        let found = client.images.image_status(request).await.unwrap().into_inner().image;
        assert_eq!(found.map(|image| image.id).as_ref(), Some(&images[0].id), "{name}");
    }
    let absent = v1::ImageSpec { image: "absent:1".into(), ..Default::default() };
    let request = v1::ImageStatusRequest { image: Some(absent.clone()), verbose: false };
    assert!(client.images.image_status(request).await.unwrap().into_inner().image.is_none());
    let invalid = v1::PullImageRequest {
        image: Some(v1::ImageSpec { image: "UPPER CASE".into(), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(client.images.pull_image(invalid).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let usage = client.images.image_fs_info(v1::ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(usage.image_filesystems[0].used_bytes.unwrap().value > 0);
    for image in [v1::ImageSpec { image: support::IMAGE.into(), ..Default::default() }, absent] {
        client.images.remove_image(v1::RemoveImageRequest { image: Some(image) }).await.unwrap();
    }
    let images =
        client.images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert!(images.is_empty());
}

#[tokio::test]
async fn a_hung_shim_is_killed_and_its_pod_stopped() {
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let mut client = node.start().await;
    let sandbox = client.run_pod(&pod(&node, "a")).await.unwrap();
    let id = client.create(&sandbox, container("c", &["/bin/busybox", "sleep", "20"])).await.unwrap();
    client.start(&id).await.unwrap();
    let shim = nix::unistd::Pid::from_raw(node.shim_pid(&sandbox));
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGSTOP).unwrap();
    client.stop(&id, 0).await.unwrap();
    assert_eq!(client.status(&id).await.exit_code, 137);
    client.remove_pod(&sandbox).await.unwrap();
    assert_nothing_left(&node);
}
