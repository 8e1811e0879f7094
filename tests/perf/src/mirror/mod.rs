//! The registry mirror beside Debian's docker-registry: the same content, the same questions, in turn. CPU is the server's alone.

mod load;
mod server;
mod upstream;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::interrupt;
use crate::memory::Resident;
use crate::report::{Measure, Row};
use crate::sample::Samples;
use load::{Connection, flood, timed};
use server::{Kind, Server};

const PEER: &str = "docker-registry 2.8";
const LARGE_BYTES: usize = 200_000_000;
const SMALL_BYTES: usize = 700;
const MEDIUM_BYTES: usize = 32 << 10;
const SETTLE: Duration = Duration::from_secs(2);
/// Connections of a flood.
const CONNECTIONS: usize = 16;
const MANY_CONNECTIONS: usize = 256;
/// Single questions, for their median.
const QUESTIONS: usize = 1000;
/// Promises: docker-registry's part of CPU time.
const MANIFEST_PART: f64 = 1.0 / 50.0;
const SMALL_PART: f64 = 1.0 / 20.0;
const LARGE_PART: f64 = 1.0 / 2.0;
const PUSH_PART: f64 = 1.0 / 3.0;
/// What a mirror may add to its upstream's time.
const COLD_FACTOR: f64 = 1.05;

/// What is pushed to both.
struct Content {
    large: Arc<Vec<u8>>,
    medium: Vec<u8>,
    small: Vec<u8>,
    manifest: Vec<u8>,
}

/// Ours, then the peer's.
type Pair<T> = [T; 2];

/// Everything about the mirror.
pub(crate) fn measure(rounds: usize, flood_time: Duration, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let directory = tempfile::Builder::new().prefix("orlop-perf-mirror-").tempdir()?;
    let content = Content::new();
    let place = |name: &str| directory.path().join(name);
    let ours = Server::start(Kind::Ours, &place("ours"), None)?;
    let docker = Server::start(Kind::Docker, &place("docker"), None)?;
    std::thread::sleep(SETTLE);
    let servers = [&ours, &docker];
    memory("idle", Some(12.0), servers, rows)?;
    push(servers, &content, rounds, rows)?;
    floods(servers, &content, flood_time, rows)?;
    latency(servers, &content, rows)?;
    large(servers, &content, rounds, rows)?;
    memory("after load", Some(40.0), servers, rows)?;
    drop((ours, docker));
    cold(&place("cold"), &content, rounds, rows)
}

impl Content {
    fn new() -> Self {
        let random = |length: usize| {
            let mut bytes = vec![0_u8; length];
            rand::fill(bytes.as_mut_slice());
            bytes
        };
        let (large, medium, small) = (random(LARGE_BYTES), random(MEDIUM_BYTES), random(SMALL_BYTES));
        let layer = |bytes: &[u8]| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&small), "size": small.len()},
            "layers": [layer(&large), layer(&medium)],
        });
        Self { large: Arc::new(large), medium, small, manifest: manifest.to_string().into_bytes() }
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn row(what: impl Into<String>, target: Option<f64>, [ours, docker]: Pair<Measure>) -> Row {
    Row { what: format!("mirror: {}", what.into()), target, ours, reference: Some((docker, PEER)) }
}

fn memory(
    what: &str,
    target: Option<f64>,
    [ours, docker]: Pair<&Server>,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    let memory: Pair<Resident> = [ours.memory()?, docker.memory()?];
    rows.push(row(format!("memory {what}"), target, memory.map(Measure::Memory)));
    Ok(())
}

/// Wall and CPU time of one PUT of 200 MB, which is also how the content comes there.
fn push(servers: Pair<&Server>, content: &Content, rounds: usize, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let (mut wall, mut cpu) = (Pair::<Samples>::default(), Pair::<Samples>::default());
    let mut pass = Samples::new();
    let large = digest(&content.large);
    for _ in 0..rounds {
        interrupt::check()?;
        for (at, server) in servers.iter().enumerate() {
            let before = server.cpu()?;
            wall[at].push(server.push_blob(&large, &content.large)?);
            cpu[at].push(server.cpu()?.saturating_sub(before));
        }
        let started = Instant::now();
        std::hint::black_box(Sha256::digest(content.large.as_slice()));
        pass.push(started.elapsed());
    }
    for server in servers {
        for blob in [&content.medium, &content.small] {
            server.push_blob(&digest(blob), blob)?;
        }
        server.push_manifest("latest", &content.manifest)?;
    }
    let target = cpu[1].median() * PUSH_PART;
    rows.push(row("push of 200 MB, wall", None, wall.clone().map(Measure::Time)));
    rows.push(Row {
        what: "mirror: push of 200 MB, wall".to_owned(),
        target: None,
        ours: Measure::Time(wall[0].clone()),
        reference: Some((Measure::Time(pass), "one SHA-256 pass over them")),
    });
    rows.push(row("push of 200 MB, CPU", Some(target), cpu.map(Measure::Time)));
    Ok(())
}

fn floods(
    servers: Pair<&Server>,
    content: &Content,
    duration: Duration,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    let manifest = |reference: &str| format!("/v2/perf/manifests/{reference}");
    let blob = |bytes: &[u8]| format!("/v2/perf/blobs/{}", digest(bytes));
    let table = [
        ("manifest by tag", manifest("latest"), CONNECTIONS, MANIFEST_PART),
        ("manifest by digest", manifest(&digest(&content.manifest)), CONNECTIONS, MANIFEST_PART),
        ("manifest by tag, 256 connections", manifest("latest"), MANY_CONNECTIONS, MANIFEST_PART),
        ("blob of 0.7 kB", blob(&content.small), CONNECTIONS, SMALL_PART),
        ("blob of 32 kB", blob(&content.medium), CONNECTIONS, SMALL_PART),
    ];
    for (what, target, connections, part) in table {
        interrupt::check()?;
        let (mut cpu, mut rate) = (Pair::<f64>::default(), Pair::<f64>::default());
        for (at, server) in servers.iter().enumerate() {
            let (before, started) = (server.cpu()?, Instant::now());
            let count = flood(server.address, &target, connections, duration)? as f64;
            rate[at] = count / started.elapsed().as_secs_f64();
            cpu[at] = server.cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / count;
        }
        let rates = rate.map(|rate| format!("{rate:.0}"));
        let what = format!("GET of a {what}, CPU ({} and {} a second)", rates[0], rates[1]);
        rows.push(row(what, Some(cpu[1] * part), cpu.map(Measure::Micros)));
    }
    Ok(())
}

fn latency(servers: Pair<&Server>, content: &Content, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let mut samples = Pair::<Samples>::default();
    let question = load::get(&format!("/v2/perf/blobs/{}", digest(&content.small)));
    for (at, server) in servers.iter().enumerate() {
        let mut connection = Connection::open(server.address)?;
        let mut all = Vec::with_capacity(QUESTIONS);
        for _ in 0..QUESTIONS {
            let started = Instant::now();
            connection.send(question.as_bytes(), b"")?;
            connection.receive(true)?;
            all.push(started.elapsed());
        }
        samples[at] = all.into_iter().collect();
    }
    rows.push(row("GET of a blob of 0.7 kB, one after the other", Some(1.0), samples.map(Measure::Time)));
    Ok(())
}

fn large(
    servers: Pair<&Server>,
    content: &Content,
    rounds: usize,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    let target = format!("/v2/perf/blobs/{}", digest(&content.large));
    let (mut wall, mut cpu) = (Pair::<Samples>::default(), Pair::<Samples>::default());
    for _ in 0..rounds {
        interrupt::check()?;
        for (at, server) in servers.iter().enumerate() {
            let before = server.cpu()?;
            wall[at].push(timed(server.address, &target)?);
            cpu[at].push(server.cpu()?.saturating_sub(before));
        }
    }
    let limit = cpu[1].median() * LARGE_PART;
    rows.push(row("GET of a blob of 200 MB, wall", None, wall.map(Measure::Time)));
    rows.push(row("GET of a blob of 200 MB, CPU", Some(limit), cpu.map(Measure::Time)));
    Ok(())
}

/// Through a mirror that has nothing, from an upstream behind a gigabit line, beside the upstream alone.
fn cold(place: &Path, content: &Content, rounds: usize, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let large = digest(&content.large);
    let upstream = upstream::start(vec![(large.clone(), content.large.clone())])?;
    let (mut ours, mut alone) = (Samples::new(), Samples::new());
    for round in 0..rounds {
        interrupt::check()?;
        let path = format!("/v2/perf/blobs/{large}");
        alone.push(timed(upstream, &path)?);
        let directory = place.join(round.to_string());
        let server = Server::start(Kind::Ours, &directory, Some(upstream))?;
        ours.push(timed(server.address, &format!("{path}?ns=up.example"))?);
        drop(server);
        std::fs::remove_dir_all(directory)?;
    }
    rows.push(Row {
        what: "mirror: cold GET of 200 MB through it, 1 Gbit/s upstream".to_owned(),
        target: Some(alone.median() * COLD_FACTOR),
        ours: Measure::Time(ours),
        reference: Some((Measure::Time(alone), "the upstream alone")),
    });
    Ok(())
}
