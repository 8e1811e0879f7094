//! Container logs: `TIME STREAM P|F TEXT`, one file per container, opened anew when asked.

use std::path::Path;

use anyhow::{Context as _, ensure};
use orlop_cri::v1;

use crate::spec::{Pod, Test, eventually, refused};

crate::specs![
    lines,
    both_streams,
    long_lines_are_partial,
    last_line_without_an_end,
    empty_lines,
    reopen,
    reopen_not_running,
    terminal_is_one_stream,
    two_containers,
    nothing_is_lost,
    times_ascend,
    restart_appends,
];

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    time: String,
    stream: String,
    partial: bool,
    text: String,
}

/// The lines of a log.
pub fn parse(text: &str) -> anyhow::Result<Vec<Line>> {
    text.lines()
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let mut word = || words.next().with_context(|| format!("{line:?} has too few words"));
            let (time, stream, tag, text) = (word()?, word()?, word()?, word()?);
            let shape: String =
                time.chars().map(|one| if one.is_ascii_digit() { '0' } else { one }).collect();
            ensure!(shape.starts_with("0000-00-00T00:00:00"), "{time:?} is no time of RFC 3339");
            ensure!(shape.ends_with('Z') || shape.ends_with("00:00"), "{time:?} has no offset");
            ensure!(stream == "stdout" || stream == "stderr", "{stream:?} is no stream");
            let flag = tag.split(':').next().unwrap_or_default();
            ensure!(flag == "P" || flag == "F", "{tag:?} is no tag");
            Ok(Line { time: time.into(), stream: stream.into(), partial: flag == "P", text: text.into() })
        })
        .collect()
}

/// Standard output as it was written, once the log is whole.
pub async fn stdout(log: &Path) -> anyhow::Result<String> {
    let lines = parse(&std::fs::read_to_string(log)?)?;
    let of_stdout = lines.iter().filter(|line| line.stream == "stdout");
    Ok(of_stdout
        .map(|line| if line.partial { line.text.clone() } else { format!("{}\n", line.text) })
        .collect())
}

async fn logged(t: &Test, pod: &Pod, script: &str) -> anyhow::Result<Vec<Line>> {
    let config = t.container_config(pod, &["sh", "-c", script]);
    let log = pod.log(&config.log_path);
    let id = t.create(pod, config).await?;
    t.cri.start(&id).await?;
    t.wait_state(&id, v1::ContainerState::ContainerExited).await?;
    parse(&std::fs::read_to_string(log)?)
}

async fn lines(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let seen = logged(t, &pod, "echo hello World").await?;
    ensure!(seen.len() == 1 && seen[0].text == "hello World", "{seen:?}");
    ensure!(seen[0].stream == "stdout" && !seen[0].partial, "{seen:?}");
    Ok(())
}

async fn both_streams(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let seen = logged(t, &pod, "echo out; echo err >&2").await?;
    for (stream, text) in [("stdout", "out"), ("stderr", "err")] {
        ensure!(seen.iter().any(|line| line.stream == stream && line.text == text), "{seen:?}");
    }
    Ok(())
}

async fn long_lines_are_partial(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let seen = logged(t, &pod, "head -c 40000 /dev/zero | tr '\\0' x; echo; echo after").await?;
    let (last, long) = seen.split_last().context("no lines")?;
    ensure!(last.text == "after" && !last.partial, "{last:?}");
    ensure!(long.iter().map(|line| line.text.len()).sum::<usize>() == 40000, "text was lost");
    let flags: Vec<bool> = long.iter().map(|line| line.partial).collect();
    ensure!(flags.len() > 1 && flags[..flags.len() - 1].iter().all(|partial| *partial), "{flags:?}");
    ensure!(!flags[flags.len() - 1], "the end of the line is not marked");
    ensure!(long.iter().all(|line| line.text.len() <= 16 * 1024), "a line is longer than 16 KiB");
    Ok(())
}

async fn last_line_without_an_end(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let seen = logged(t, &pod, "printf 'one\\ntwo'").await?;
    ensure!(seen.len() == 2 && seen[1].text == "two", "{seen:?}");
    Ok(())
}

async fn empty_lines(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let seen = logged(t, &pod, "echo; echo '  a  '; echo").await?;
    let texts: Vec<&str> = seen.iter().map(|line| line.text.as_str()).collect();
    ensure!(texts == ["", "  a  ", ""], "{texts:?}");
    Ok(())
}

async fn reopen(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let script = "n=0; while true; do echo line $n; n=$((n+1)); sleep 0.05; done";
    let config = t.container_config(&pod, &["sh", "-c", script]);
    let log = pod.log(&config.log_path);
    let container_id = t.create(&pod, config).await?;
    t.cri.start(&container_id).await?;
    let filled = async |path: &Path| -> anyhow::Result<()> {
        ensure!(!std::fs::read(path)?.is_empty(), "empty");
        Ok(())
    };
    eventually("a log", async || filled(&log).await).await?;
    let rotated = log.with_extension("rotated");
    std::fs::rename(&log, &rotated)?;
    let request = v1::ReopenContainerLogRequest { container_id };
    t.cri.runtime().reopen_container_log(request).await?;
    ensure!(log.exists(), "the new log is not there when the call returns");
    eventually("a new log", async || filled(&log).await).await?;
    let old = std::fs::read_to_string(&rotated)?;
    // Lines of the new log only after the last of the old one: nothing is lost, nothing is twice.
    let last = parse(&old)?.last().map(|line| line.text.clone()).context("the old log is empty")?;
    let first = parse(&std::fs::read_to_string(&log)?)?.first().map(|line| line.text.clone());
    let number = |text: &str| text.trim_start_matches("line ").parse::<u32>().unwrap_or(u32::MAX);
    ensure!(number(&first.clone().unwrap_or_default()) == number(&last) + 1, "{last:?}, then {first:?}");
    Ok(())
}

async fn reopen_not_running(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let ended = t.ended_with(&pod, |config| config.command = vec!["true".into()]).await?.id;
    for container_id in [ended, "no-such-one".to_owned()] {
        let request = v1::ReopenContainerLogRequest { container_id };
        let answer = t.cri.runtime().reopen_container_log(request).await.map_err(anyhow::Error::from);
        refused("the log of what does not run", answer)?;
    }
    Ok(())
}

async fn terminal_is_one_stream(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["sh", "-c", "echo out; echo err >&2"]);
    config.tty = true;
    let log = pod.log(&config.log_path);
    let id = t.create(&pod, config).await?;
    t.cri.start(&id).await?;
    t.wait_state(&id, v1::ContainerState::ContainerExited).await?;
    let seen = parse(&std::fs::read_to_string(log)?)?;
    ensure!(seen.len() == 2 && seen.iter().all(|line| line.stream == "stdout"), "{seen:?}");
    Ok(())
}

async fn two_containers(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    for word in ["first", "second"] {
        let seen = logged(t, &pod, &format!("echo {word}")).await?;
        ensure!(seen.len() == 1 && seen[0].text == word, "{seen:?}");
    }
    Ok(())
}

async fn nothing_is_lost(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = t.container_config(&pod, &["seq", "1", "20000"]);
    let log = pod.log(&config.log_path);
    let id = t.create(&pod, config).await?;
    t.cri.start(&id).await?;
    let seen = eventually("20000 lines", async || {
        let seen = parse(&std::fs::read_to_string(&log)?)?;
        ensure!(seen.len() >= 20000, "{} lines", seen.len());
        Ok(seen)
    })
    .await?;
    ensure!(seen.len() == 20000, "{} lines", seen.len());
    for (number, line) in seen.iter().enumerate() {
        ensure!(line.text == (number + 1).to_string(), "{line:?} at {number}");
    }
    Ok(())
}

async fn times_ascend(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let seen = logged(t, &pod, "seq 1 50").await?;
    // All of one offset: their texts sort as the times do, up to trailing zeros that Go drops.
    let seconds: Vec<&str> = seen.iter().map(|line| &line.time[..19]).collect();
    ensure!(seconds.is_sorted(), "{seconds:?}");
    Ok(())
}

/// A kubelet gives each attempt a file of its own; a runtime that is given the same one does not cut it.
async fn restart_appends(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    for attempt in 0..2 {
        let mut config = t.container_config(&pod, &["echo", "again"]);
        config.log_path = "same.log".into();
        config.metadata.get_or_insert_default().attempt = attempt;
        let id = t.create(&pod, config).await?;
        t.cri.start(&id).await?;
        t.wait_state(&id, v1::ContainerState::ContainerExited).await?;
    }
    let seen = parse(&std::fs::read_to_string(pod.log("same.log"))?)?;
    ensure!(seen.len() == 2, "{seen:?}");
    Ok(())
}
