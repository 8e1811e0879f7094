//! Containers: their life, what is told of them, what they run, and how they end.

use std::collections::HashMap;

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use orlop_cri::v1;
use orlop_cri::v1::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
use tonic::Code;

use crate::client::image_spec;
use crate::spec::{Test, eventually, image, namespaces, refused};

crate::specs![
    create,
    attributes,
    start,
    stop,
    remove_created,
    remove_running,
    remove_stopped,
    unknown_status,
    filters,
    verbose_status,
    times,
    exit_codes,
    killed_by_a_signal,
    start_of_a_missing_program,
    start_of_a_directory,
    create_with_an_unknown_image,
    create_in_an_unknown_pod,
    create_without_configuration,
    start_twice,
    start_ended,
    same_name_again,
    same_name_at_once,
    next_attempt,
    stop_with_grace,
    stop_without_grace,
    grace_that_runs_out,
    stop_signal_of_the_image,
    stop_signal_of_the_container,
    shorter_stop_overtakes,
    command_and_arguments,
    entry_point,
    environment,
    working_directory,
    missing_working_directory,
    terminal,
    image_of_the_status,
    two_containers,
    log_path_of_the_status,
    starts_after_many,
];

fn by_id(id: &str) -> v1::ContainerFilter {
    v1::ContainerFilter { id: id.to_owned(), ..Default::default() }
}

async fn listed(t: &Test, id: &str) -> anyhow::Result<bool> {
    Ok(t.cri.containers(by_id(id)).await?.iter().any(|container| container.id == id))
}

async fn create(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.create(&pod, t.container_config(&pod, &["sleep", "100"])).await?;
    ensure!(listed(t, &id).await?, "not listed");
    let status = t.cri.container_status(&id).await?;
    ensure!(status.state() == ContainerCreated && status.started_at == 0, "{status:?}");
    Ok(())
}

async fn attributes(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["sleep", "100"]);
    config.labels = HashMap::from([("foo".into(), "bar".into())]);
    config.annotations = HashMap::from([("a.b.c".into(), "d".into())]);
    config.metadata.as_mut().context("metadata")?.attempt = 3;
    let id = t.create(&pod, config.clone()).await?;
    let status = t.cri.container_status(&id).await?;
    ensure!(status.metadata == config.metadata && status.labels == config.labels, "{status:?}");
    ensure!(status.annotations == config.annotations, "{status:?}");
    let all = t.cri.containers(by_id(&id)).await?;
    ensure!(all.len() == 1 && all[0].pod_sandbox_id == pod.id, "{all:?}");
    ensure!(all[0].metadata == config.metadata && all[0].labels == config.labels, "{all:?}");
    ensure!(all[0].annotations == config.annotations, "{all:?}");
    Ok(())
}

async fn start(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let status = t.cri.container_status(&id).await?;
    ensure!(status.state() == ContainerRunning && status.started_at >= status.created_at, "{status:?}");
    Ok(())
}

async fn stop(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.command = trapping("exit 0")).await?;
    ready(t, &id).await?;
    t.cri.stop(&id, 60).await?;
    let status = t.wait_state(&id, ContainerExited).await?;
    ensure!(status.exit_code == 0 && status.reason == "Completed", "{status:?}");
    Ok(())
}

async fn remove_created(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.create(&pod, t.container_config(&pod, &["sleep", "100"])).await?;
    t.cri.remove(&id).await?;
    ensure!(!listed(t, &id).await?, "still listed");
    Ok(())
}

async fn remove_running(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    t.cri.remove(&id).await?;
    ensure!(!listed(t, &id).await?, "still listed");
    Ok(())
}

async fn remove_stopped(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    t.cri.stop(&id, 0).await?;
    t.cri.remove(&id).await?;
    ensure!(!listed(t, &id).await?, "still listed");
    let (code, _) = refused("the status of a removed container", t.cri.container_status(&id).await)?;
    ensure!(code == Code::NotFound, "{code:?}");
    Ok(())
}

async fn unknown_status(t: &Test) -> anyhow::Result<()> {
    let (code, said) = refused("an unknown container", t.cri.container_status("no-such-one").await)?;
    ensure!(code == Code::NotFound && said.contains("no-such-one"), "{code:?} {said}");
    Ok(())
}

async fn filters(t: &Test) -> anyhow::Result<()> {
    let (pod, other) = (t.pod().await?, t.pod().await?);
    let labels = |which: &str| {
        HashMap::from([("suite".to_owned(), "filters".to_owned()), ("which".to_owned(), which.to_owned())])
    };
    let running = t.running_with(&pod, |config| config.labels = labels("running")).await?;
    let ended = t
        .ended_with(&pod, |config| {
            config.labels = labels("ended");
            config.command = vec!["true".into()];
        })
        .await?
        .id;
    let mut config = t.container_config(&other, &["true"]);
    config.labels = labels("created");
    let created = t.create(&other, config).await?;
    let state = |state: v1::ContainerState| Some(v1::ContainerStateValue { state: state.into() });
    let suite = HashMap::from([("suite".to_owned(), "filters".to_owned())]);
    let table: [(v1::ContainerFilter, Vec<&String>); 8] = [
        (
            v1::ContainerFilter { label_selector: suite.clone(), ..Default::default() },
            vec![&running, &ended, &created],
        ),
        (
            v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() },
            vec![&running, &ended],
        ),
        (
            v1::ContainerFilter {
                pod_sandbox_id: pod.id.clone(),
                state: state(ContainerRunning),
                ..Default::default()
            },
            vec![&running],
        ),
        (
            v1::ContainerFilter {
                label_selector: suite.clone(),
                state: state(ContainerExited),
                ..Default::default()
            },
            vec![&ended],
        ),
        (
            v1::ContainerFilter {
                label_selector: suite,
                state: state(ContainerCreated),
                ..Default::default()
            },
            vec![&created],
        ),
        (v1::ContainerFilter { label_selector: labels("ended"), ..Default::default() }, vec![&ended]),
        (by_id(&running[..13]), vec![&running]),
        (
            v1::ContainerFilter {
                id: running.clone(),
                pod_sandbox_id: other.id.clone(),
                ..Default::default()
            },
            vec![],
        ),
    ];
    for (filter, wanted) in table {
        let all = t.cri.containers(filter.clone()).await?;
        let mut found: Vec<&String> = all.iter().map(|container| &container.id).collect();
        let mut wanted = wanted;
        found.sort();
        wanted.sort();
        ensure!(found == wanted, "{filter:?} found {found:?}, not {wanted:?}");
    }
    Ok(())
}

async fn verbose_status(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let container_id = t.running(&pod).await?;
    for verbose in [false, true] {
        let request = v1::ContainerStatusRequest { container_id: container_id.clone(), verbose };
        let answer = t.cri.runtime().container_status(request).await?.into_inner();
        ensure!(answer.info.is_empty() != verbose, "verbose {verbose}: {:?}", answer.info);
    }
    Ok(())
}

async fn times(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let status = t.ended_with(&pod, |config| config.command = vec!["true".into()]).await?;
    let ordered = [status.created_at, status.started_at, status.finished_at];
    ensure!(ordered[0] > 0 && ordered.is_sorted(), "{ordered:?}");
    ensure!(
        t.cri.containers(by_id(&status.id)).await?[0].created_at == ordered[0],
        "the list says otherwise"
    );
    Ok(())
}

async fn exit_codes(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    for (code, reason) in [(0, "Completed"), (1, "Error"), (42, "Error"), (255, "Error")] {
        let command = ["sh", "-c", &format!("exit {code}")].map(str::to_owned).to_vec();
        let status = t.ended_with(&pod, |config| config.command = command).await?;
        ensure!(status.exit_code == code && status.reason == reason, "{code}: {status:?}");
    }
    Ok(())
}

async fn killed_by_a_signal(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let command = ["sh", "-c", "sh -c 'kill -9 $$'; exit $?"].map(str::to_owned).to_vec();
    let status = t.ended_with(&pod, |config| config.command = command).await?;
    ensure!(status.exit_code == 137, "{status:?}");
    Ok(())
}

async fn failing_start(t: &Test, program: &str) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = t.container_config(&pod, &[program]);
    let id = match t.create(&pod, config).await {
        Ok(id) => id,
        Err(error) => {
            ensure!(format!("{error:#}").contains(program), "the error does not name it: {error:#}");
            return Ok(());
        }
    };
    let (_, said) = refused("its start", t.cri.start(&id).await)?;
    ensure!(said.contains(program), "the error does not name the program: {said}");
    let status = t.cri.container_status(&id).await?;
    ensure!(status.state() == ContainerExited && status.exit_code != 0, "{status:?}");
    ensure!(status.reason == "StartError" && status.finished_at > 0, "{status:?}");
    t.cri.remove(&id).await
}

async fn start_of_a_missing_program(t: &Test) -> anyhow::Result<()> {
    failing_start(t, "no-such-program").await
}

async fn start_of_a_directory(t: &Test) -> anyhow::Result<()> {
    failing_start(t, "/etc").await
}

async fn create_with_an_unknown_image(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    config.image = Some(image_spec(&image("no-such-image")));
    let (_, said) = refused("an unknown image", t.create(&pod, config.clone()).await)?;
    ensure!(said.contains("no-such-image") || said.contains("not found"), "{said}");
    let filter = v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    ensure!(t.cri.containers(filter).await?.is_empty(), "something was created");
    // The name is free again.
    config.image = Some(image_spec(&image("busybox")));
    t.create(&pod, config).await.map(drop)
}

async fn create_in_an_unknown_pod(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = t.container_config(&pod, &["true"]);
    let (_, said) = refused("an unknown pod", t.cri.create("no-such-pod", &pod.config, config).await)?;
    ensure!(said.contains("no-such-pod"), "{said}");
    Ok(())
}

async fn create_without_configuration(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    config.metadata = None;
    refused("a container without metadata", t.create(&pod, config).await)?;
    let mut config = t.container_config(&pod, &["true"]);
    config.image = None;
    refused("a container without an image", t.create(&pod, config).await).map(drop)
}

async fn start_twice(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    refused("a second start", t.cri.start(&id).await)?;
    ensure!(t.cri.container_status(&id).await?.state() == ContainerRunning, "it suffered");
    Ok(())
}

async fn start_ended(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.ended_with(&pod, |config| config.command = vec!["true".into()]).await?.id;
    refused("the start of an ended container", t.cri.start(&id).await).map(drop)
}

async fn same_name_again(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = t.container_config(&pod, &["sleep", "100"]);
    let id = t.create(&pod, config.clone()).await?;
    if let Ok(again) = t.create(&pod, config.clone()).await {
        ensure!(again == id, "two containers of one name");
    }
    t.cri.start(&id).await?;
    refused("the name of a running container", t.create(&pod, config).await)?;
    let filter = v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    ensure!(t.cri.containers(filter).await?.len() == 1, "more than one");
    Ok(())
}

async fn same_name_at_once(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = t.container_config(&pod, &["sleep", "100"]);
    let answers = join_all((0..6).map(|_| t.create(&pod, config.clone()))).await;
    let ids: Vec<String> = answers.into_iter().flatten().collect();
    ensure!(!ids.is_empty() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let filter = v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let all = t.cri.containers(filter).await?;
    ensure!(all.len() == 1 && all[0].id == ids[0], "{all:?}");
    Ok(())
}

async fn next_attempt(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    let first = t.create(&pod, config.clone()).await?;
    t.cri.start(&first).await?;
    t.wait_state(&first, ContainerExited).await?;
    config.metadata.as_mut().context("metadata")?.attempt = 1;
    let second = t.create(&pod, config).await?;
    ensure!(
        first != second && t.cri.container_status(&first).await?.state() == ContainerExited,
        "one of both"
    );
    Ok(())
}

/// A shell that does `action` on SIGTERM, and says when it is ready for it.
fn trapping(action: &str) -> Vec<String> {
    let script = format!("trap '{action}' TERM; touch /ready; while true; do sleep 0.05; done");
    ["sh", "-c", &script].map(str::to_owned).to_vec()
}

async fn ready(t: &Test, id: &str) -> anyhow::Result<()> {
    eventually("the shell has set its trap", async || t.sh(id, "test -e /ready").await.map(drop)).await
}

async fn stop_with_grace(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.command = trapping("exit 7")).await?;
    ready(t, &id).await?;
    t.cri.stop(&id, 60).await?;
    let status = t.cri.container_status(&id).await?;
    ensure!(status.state() == ContainerExited && status.exit_code == 7, "{status:?}");
    Ok(())
}

async fn stop_without_grace(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.command = trapping("exit 7")).await?;
    ready(t, &id).await?;
    t.cri.stop(&id, 0).await?;
    let status = t.cri.container_status(&id).await?;
    ensure!(status.state() == ContainerExited && status.exit_code == 137, "{status:?}");
    Ok(())
}

async fn grace_that_runs_out(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.command = trapping(":")).await?;
    ready(t, &id).await?;
    t.cri.stop(&id, 1).await?;
    let status = t.cri.container_status(&id).await?;
    ensure!(status.state() == ContainerExited && status.exit_code == 137, "{status:?}");
    Ok(())
}

fn waiting_for_usr1() -> Vec<String> {
    let script = "trap 'exit 9' USR1; touch /ready; while true; do sleep 0.05; done";
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

async fn stop_signal_of_the_image(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t
        .running_with(&pod, |config| {
            config.image = Some(image_spec(&image("entry")));
            config.command = waiting_for_usr1();
        })
        .await?;
    ready(t, &id).await?;
    t.cri.stop(&id, 60).await?;
    ensure!(t.cri.container_status(&id).await?.exit_code == 9, "another signal was sent");
    Ok(())
}

async fn stop_signal_of_the_container(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t
        .running_with(&pod, |config| {
            config.stop_signal = v1::Signal::Sigusr1.into();
            config.command = waiting_for_usr1();
        })
        .await?;
    ready(t, &id).await?;
    t.cri.stop(&id, 2).await?;
    let status = t.cri.container_status(&id).await?;
    ensure!(status.exit_code == 9 && status.stop_signal() == v1::Signal::Sigusr1, "{status:?}");
    Ok(())
}

async fn shorter_stop_overtakes(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.command = trapping("touch /told")).await?;
    ready(t, &id).await?;
    let (patient, id_of_patient) = (t.cri.clone(), id.clone());
    let patient = tokio::spawn(async move { patient.stop(&id_of_patient, 3600).await });
    eventually("the signal arrives", async || t.sh(&id, "test -e /told").await.map(drop)).await?;
    t.cri.stop(&id, 0).await?;
    t.wait_state(&id, ContainerExited).await?;
    patient.await?
}

async fn command_and_arguments(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["echo", "a"]);
    config.args = vec!["b c".into()];
    ensure!(output(t, &pod, config).await? == "a b c\n", "another output");
    Ok(())
}

async fn output(t: &Test, pod: &crate::spec::Pod, config: v1::ContainerConfig) -> anyhow::Result<String> {
    let log = pod.log(&config.log_path);
    let id = t.create(pod, config).await?;
    t.cri.start(&id).await?;
    t.wait_state(&id, ContainerExited).await?;
    super::logs::stdout(&log).await
}

async fn entry_point(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let table: [(&[&str], &[&str], &str); 3] =
        [(&[], &[], "entry from-image\n"), (&[], &["given"], "entry given\n"), (&["pwd"], &[], "/tmp\n")];
    for (command, args, wanted) in table {
        let mut config = t.container_config(&pod, command);
        config.image = Some(image_spec(&image("entry")));
        config.args = args.iter().map(|word| (*word).to_owned()).collect();
        let seen = output(t, &pod, config).await?;
        ensure!(seen == wanted, "{command:?} {args:?}: {seen:?}");
    }
    Ok(())
}

async fn environment(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let variable = |key: &str, value: &str| v1::KeyValue { key: key.into(), value: value.into() };
    let id = t
        .running_with(&pod, |config| {
            config.envs = vec![variable("ONE", "1"), variable("FROM_IMAGE", "no"), variable("EMPTY", "")];
        })
        .await?;
    let seen = t.sh(&id, "env").await?;
    for wanted in ["ONE=1", "FROM_IMAGE=no", "EMPTY="] {
        ensure!(seen.lines().any(|line| line == wanted), "{wanted} is missing in {seen}");
    }
    ensure!(seen.lines().any(|line| line.starts_with("PATH=/")), "{seen}");
    Ok(())
}

async fn working_directory(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["pwd"]);
    config.working_dir = "/var".into();
    ensure!(output(t, &pod, config).await? == "/var\n", "another directory");
    Ok(())
}

/// As docker: it is made.
async fn missing_working_directory(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["pwd"]);
    config.working_dir = "/no/such/directory".into();
    ensure!(output(t, &pod, config).await? == "/no/such/directory\n", "another directory");
    Ok(())
}

async fn terminal(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["sh", "-c", "test -t 0 && test -t 1 && echo $TERM"]);
    config.tty = true;
    config.stdin = true;
    let seen = output(t, &pod, config).await?;
    ensure!(seen.trim_end() == "xterm", "{seen:?}");
    Ok(())
}

async fn image_of_the_status(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.create(&pod, t.container_config(&pod, &["true"])).await?;
    let known = t.cri.image(&image("busybox")).await?.context("the image")?;
    let status = t.cri.container_status(&id).await?;
    ensure!(status.image.clone().unwrap_or_default().image == image("busybox"), "{status:?}");
    ensure!(known.repo_digests.contains(&status.image_ref), "{} is none of {known:?}", status.image_ref);
    Ok(())
}

async fn two_containers(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod_with(namespaces()).await?;
    let one = t.running(&pod).await?;
    let other = t.running(&pod).await?;
    t.sh(&one, "echo one > /here").await?;
    let done = t.exec(&other, &["cat", "/here"]).await?;
    ensure!(done.code != 0, "they share their root: {done:?}");
    ensure!(t.sh(&one, "hostname").await? == t.sh(&other, "hostname").await?, "two host names");
    t.cri.stop(&one, 0).await?;
    ensure!(t.cri.container_status(&other).await?.state() == ContainerRunning, "the other one suffered");
    Ok(())
}

async fn log_path_of_the_status(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = t.container_config(&pod, &["true"]);
    let wanted = pod.log(&config.log_path);
    let id = t.create(&pod, config).await?;
    let shown = t.cri.container_status(&id).await?.log_path;
    ensure!(wanted.as_os_str() == shown.as_str(), "{shown}");
    Ok(())
}

async fn starts_after_many(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let ended =
        join_all((0..8).map(|_| t.ended_with(&pod, |config| config.command = vec!["true".into()]))).await;
    for status in ended {
        ensure!(status?.exit_code == 0, "one of them failed");
    }
    Ok(())
}
