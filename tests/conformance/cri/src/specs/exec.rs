//! ExecSync.

use anyhow::ensure;
use orlop_cri::v1;
use tonic::Code;

use crate::spec::{Test, eventually, refused, security};

crate::specs![
    output_and_exit_code,
    streams_are_apart,
    timeout_ends_the_command,
    no_timeout,
    large_output,
    missing_command,
    missing_program,
    unknown_container,
    not_running,
    as_the_container,
    a_child_that_stays,
    at_once,
    binary_output,
    kill_by_a_signal,
    many_arguments,
];

async fn output_and_exit_code(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let done = t.exec(&id, &["echo", "hello"]).await?;
    ensure!((done.stdout.as_str(), done.stderr.as_str(), done.code) == ("hello\n", "", 0), "{done:?}");
    let done = t.exec(&id, &["sh", "-c", "exit 42"]).await?;
    ensure!(done.code == 42, "{done:?}");
    Ok(())
}

async fn streams_are_apart(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let done = t.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 3"]).await?;
    ensure!((done.stdout.as_str(), done.stderr.as_str(), done.code) == ("out\n", "err\n", 3), "{done:?}");
    Ok(())
}

async fn timeout_ends_the_command(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let (code, _) = refused("a command beyond its time", t.cri.exec(&id, &["sleep", "4321"], 1).await)?;
    ensure!(code == Code::DeadlineExceeded, "{code:?}");
    eventually("the command is gone", async || {
        let all = t.sh(&id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await?;
        ensure!(!all.contains("sleep 4321"), "{all}");
        Ok(())
    })
    .await
}

async fn no_timeout(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let done = t.cri.exec(&id, &["sh", "-c", "sleep 1; echo late"], 0).await?;
    ensure!(done.stdout == "late\n", "{done:?}");
    Ok(())
}

/// The rest beyond 16 MiB is dropped without an error (api.proto, ExecSyncResponse).
async fn large_output(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    // CRI's "16MB", read as the decimal or the binary one.
    for (mebibytes, wanted) in [(1, 1 << 20..=1 << 20), (17, 16_000_000..=16 << 20)] {
        let script = format!("dd if=/dev/zero bs=1048576 count={mebibytes} 2>/dev/null; echo end >&2");
        let done = t.exec(&id, &["sh", "-c", &script]).await?;
        let length = done.stdout.len();
        ensure!(wanted.contains(&length) && done.code == 0, "{mebibytes} MiB: {length}");
        ensure!(done.stderr == "end\n", "{:?}", done.stderr);
    }
    Ok(())
}

async fn missing_command(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    refused("no command", t.cri.exec(&id, &[], 5).await).map(drop)
}

/// Probes tell a missing program by an error or by the shell's code for it.
async fn missing_program(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    match t.exec(&id, &["no-such-program"]).await {
        Ok(done) => ensure!(done.code == 126 || done.code == 127, "{done:?}"),
        Err(error) => ensure!(format!("{error:#}").contains("no-such-program"), "{error:#}"),
    }
    ensure!(t.sh(&id, "echo fine").await? == "fine", "the container suffered");
    Ok(())
}

async fn unknown_container(t: &Test) -> anyhow::Result<()> {
    let (code, said) = refused("an unknown container", t.exec("no-such-one", &["true"]).await)?;
    ensure!(code == Code::NotFound && said.contains("no-such-one"), "{code:?} {said}");
    Ok(())
}

async fn not_running(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let created = t.create(&pod, t.container_config(&pod, &["sleep", "100"])).await?;
    refused("a created container", t.exec(&created, &["true"]).await)?;
    let ended = t.ended_with(&pod, |config| config.command = vec!["true".into()]).await?.id;
    refused("an ended container", t.exec(&ended, &["true"]).await).map(drop)
}

async fn as_the_container(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t
        .running_with(&pod, |config| {
            config.envs = vec![v1::KeyValue { key: "GIVEN".into(), value: "yes".into() }];
            config.working_dir = "/tmp".into();
            let context = security(config);
            context.run_as_user = Some(v1::Int64Value { value: 1234 });
            context.run_as_group = Some(v1::Int64Value { value: 5678 });
            context.supplemental_groups = vec![9999];
        })
        .await?;
    let seen = t.sh(&id, "echo $GIVEN $(pwd) $(id -u) $(id -g) $(id -G)").await?;
    ensure!(seen == "yes /tmp 1234 5678 5678 9999", "{seen}");
    let same =
        "for f in CapInh CapPrm CapEff CapBnd CapAmb Seccomp NoNewPrivs; do grep $f: /proc/$1/status; done";
    let own = t.sh(&id, &format!("set -- self; {same}")).await?;
    let first = t.sh(&id, &format!("set -- 1; {same}")).await?;
    ensure!(own == first, "the command has {own}, the container {first}");
    Ok(())
}

/// A background process that keeps the pipes open does not hold up the answer.
async fn a_child_that_stays(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let container_id = t.running(&pod).await?;
    let cmd = ["sh", "-c", "sleep 5000 & echo started"].map(str::to_owned).to_vec();
    let mut request = tonic::Request::new(v1::ExecSyncRequest { container_id, cmd, timeout: 60 });
    request.set_timeout(std::time::Duration::from_secs(20));
    let answer = t.cri.runtime().exec_sync(request).await?.into_inner();
    ensure!(answer.stdout == b"started\n" && answer.exit_code == 0, "{answer:?}");
    Ok(())
}

async fn at_once(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let words: Vec<String> = (0..12).map(|number| number.to_string()).collect();
    let commands: Vec<[&str; 2]> = words.iter().map(|word| ["echo", word.as_str()]).collect();
    let answers = futures::future::join_all(commands.iter().map(|command| t.exec(&id, command))).await;
    for (word, done) in words.iter().zip(answers) {
        ensure!(done?.stdout.trim() == word, "the answers are mixed up");
    }
    Ok(())
}

async fn binary_output(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let container_id = t.running(&pod).await?;
    let cmd = ["printf", "\\000\\377\\n"].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id, cmd, timeout: 20 };
    let answer = t.cri.runtime().exec_sync(request).await?.into_inner();
    ensure!(answer.stdout == [0, 255, b'\n'], "{:?}", answer.stdout);
    Ok(())
}

async fn kill_by_a_signal(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let done = t.exec(&id, &["sh", "-c", "kill -9 $$"]).await?;
    ensure!(done.code == 137, "{done:?}");
    Ok(())
}

async fn many_arguments(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running(&pod).await?;
    let word = "x".repeat(60_000);
    let done = t.exec(&id, &["sh", "-c", "echo ${#1} ${#2}", "sh", &word, &word]).await?;
    ensure!(done.stdout == "60000 60000\n", "{done:?}");
    Ok(())
}
