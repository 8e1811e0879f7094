//! `orlop mirror status`: what is wrong first, with what to do, then the state.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// A refusal is news for this long.
const NEWS_SECONDS: u64 = 600;
/// A peer that is further behind than this does not follow.
const BEHIND_CHANGES: u64 = 10_000;

/// The mirror's section of the state dump, and what its metrics say. Sections may be missing.
pub(super) struct Facts {
    dump: Value,
    /// Pulls through that were answered, and those of them from here.
    pulls: u64,
    hits: u64,
    now_ms: u64,
}

impl Facts {
    pub(super) fn new(dump: &Value, metrics: &str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::at(dump, metrics, u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn at(dump: &Value, metrics: &str, now_ms: u64) -> Self {
        let (mut pulls, mut hits) = (0, 0);
        for line in metrics.lines().filter(|line| line.starts_with("mirror_pulls_total{")) {
            let count = line.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
            // Counters are whole and not negative.
            let count = count as u64;
            pulls += count;
            hits += if line.contains("source=\"miss\"") { 0 } else { count };
        }
        Self { dump: dump.clone(), pulls, hits, now_ms }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut all = json!({"problems": self.problems(), "pulls": self.pulls, "hits": self.hits});
        if let (Some(all), Some(dump)) = (all.as_object_mut(), self.dump.as_object()) {
            all.extend(dump.clone());
        }
        all
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.dump.pointer(path)?.as_u64()
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.dump.pointer(path)?.as_str()
    }

    fn list(&self, path: &str) -> &[Value] {
        self.dump.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn ago(&self, ms: u64) -> String {
        format!("{} ago", duration(self.now_ms.saturating_sub(ms) / 1000))
    }

    /// What is wrong, and what to do.
    fn problems(&self) -> Vec<String> {
        let mut problems = self.problems_of_the_disk();
        match self.text("/keeping/mode") {
            Some("normal") | None => {}
            Some(mode) => problems.push(format!("the mode is {mode}: `orlop mirror mode normal` ends it")),
        }
        for upstream in self.list("/upstreams") {
            let name = upstream["name"].as_str().unwrap_or("?");
            if let Some(seconds) = upstream["restingSeconds"].as_u64() {
                let error = upstream["lastError"].as_str().unwrap_or("no reason is known");
                problems.push(format!(
                    "upstream {name} does not answer and is asked again in {seconds} s: what is here is served: {error}"
                ));
            } else if upstream["rateLimitRemaining"].as_u64() == Some(0) {
                problems.push(format!("upstream {name} allows no more pulls for now: give it credentials"));
            }
        }
        for peer in self.list("/peers") {
            let (url, error) = (peer["url"].as_str().unwrap_or("?"), peer["error"].as_str());
            let behind = peer["behindChanges"].as_u64().unwrap_or(0);
            if peer["state"] == "down" || error.is_some() {
                let error = error.unwrap_or("it does not answer");
                problems
                    .push(format!("peer {url} is not followed: {error}: look at its status and the network"));
            } else if behind > BEHIND_CHANGES {
                problems.push(format!("peer {url} is {behind} changes ahead of this one"));
            }
        }
        problems
    }

    fn problems_of_the_disk(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let (Some(at_ms), Some(message)) =
            (self.number("/keeping/lastRefusal/atMs"), self.text("/keeping/lastRefusal/message"))
            && self.now_ms.saturating_sub(at_ms) / 1000 < NEWS_SECONDS
        {
            problems.push(format!("a push or fetch was refused {}: {message}", self.ago(at_ms)));
        } else if let (Some(free), Some(reserved)) =
            (self.number("/keeping/freeBytes"), self.number("/keeping/reservedBytes"))
            && free < reserved
        {
            problems.push(format!(
                "the disk has {} free and {} must stay free: pushes and fetches are refused until space is freed",
                size(free),
                size(reserved)
            ));
        }
        let owed = self.list("/keeping/owedBlobs");
        if let Some(first) = owed.first() {
            problems.push(format!(
                "{} pushed blobs are lost here, such as {}: push them again, or connect a peer that has them",
                owed.len(),
                first.as_str().unwrap_or("?")
            ));
        }
        problems
    }
}

/// The text.
pub(super) fn render(facts: &Facts) -> String {
    let mut text = String::new();
    let problems = facts.problems();
    if problems.is_empty() {
        line(&mut text, "problems", "none");
    }
    for problem in &problems {
        line(&mut text, "PROBLEM", problem);
    }
    let count = |path: &str| facts.number(path).map_or_else(|| "?".to_owned(), |count| count.to_string());
    let bytes = |path: &str| facts.number(path).map_or_else(|| "?".to_owned(), size);
    let up = facts.number("/keeping/startedMs").map(|ms| facts.now_ms.saturating_sub(ms) / 1000);
    let mode = facts.text("/keeping/mode").unwrap_or("unknown");
    let up = up.map_or_else(|| "?".to_owned(), duration);
    line(&mut text, "mode", &format!("{mode}, up {up}"));
    let work = format!("{} uploads, {} fetches under way", count("/uploads"), count("/fetches"));
    line(&mut text, "work", &work);
    let quota = match facts.number("/keeping/quotaBytes") {
        Some(0) | None => "no quota".to_owned(),
        Some(quota) => format!("quota {}", size(quota)),
    };
    let disk = format!(
        "{} in {} blobs, {quota}; {} free, {} must stay free",
        bytes("/blobBytes"),
        count("/blobs"),
        bytes("/keeping/freeBytes"),
        bytes("/keeping/reservedBytes")
    );
    line(&mut text, "disk", &disk);
    let cache = match facts.pulls {
        0 => "nothing was pulled through since the start".to_owned(),
        pulls => format!("{} % of {pulls} pulls through answered from here", facts.hits * 100 / pulls),
    };
    line(&mut text, "cache", &cache);
    render_others(&mut text, facts);
    line(&mut text, "scrub", &scrub(facts));
    line(&mut text, "gc", &collection(facts));
    text.truncate(text.trim_end().len());
    text
}

fn render_others(text: &mut String, facts: &Facts) {
    for upstream in facts.list("/upstreams") {
        let (name, resting) = (upstream["name"].as_str().unwrap_or("?"), upstream["restingSeconds"].as_u64());
        let state = resting.map_or_else(|| "ok".to_owned(), |seconds| format!("resting for {seconds} s"));
        let got = upstream["bytes"].as_u64().map(|bytes| format!(", {} fetched", size(bytes)));
        let limit = upstream["rateLimitRemaining"].as_u64().map(|left| format!(", {left} pulls left"));
        let all = format!("{name} {state}{}{}", got.unwrap_or_default(), limit.unwrap_or_default());
        line(text, "upstream", &all);
    }
    for peer in facts.list("/peers") {
        let seen = peer["lastSeenSeconds"].as_u64();
        let seen =
            seen.map_or_else(|| "never seen".to_owned(), |seen| format!("seen {} ago", duration(seen)));
        let all = format!(
            "{} {}, {} changes behind, {seen}",
            peer["url"].as_str().unwrap_or("?"),
            peer["state"].as_str().unwrap_or("unknown"),
            peer["behindChanges"].as_u64().unwrap_or(0)
        );
        line(text, "peer", &all);
    }
}

fn scrub(facts: &Facts) -> String {
    let number = |name: &str| facts.number(&format!("/keeping/scrub/{name}")).unwrap_or(0);
    let read = format!("{} blobs, {}, {} damaged", number("blobs"), size(number("bytes")), number("damaged"));
    if facts.text("/keeping/scrub/cursor").is_some() {
        return format!("under way since {}: {read} of {}", facts.ago(number("startedMs")), of_all(facts));
    }
    match number("endedMs") {
        0 => "none yet".to_owned(),
        ended_ms => format!("ended {}: {read}", facts.ago(ended_ms)),
    }
}

fn of_all(facts: &Facts) -> String {
    facts.number("/blobBytes").map_or_else(|| "?".to_owned(), size)
}

fn collection(facts: &Facts) -> String {
    let number = |path: &str| facts.number(path).unwrap_or(0);
    let last = match facts.number("/keeping/lastCollection/endedMs") {
        None => "none since the start".to_owned(),
        Some(ended_ms) => format!(
            "ended {}: {} files, {} removed",
            facts.ago(ended_ms),
            number("/keeping/lastCollection/files"),
            size(number("/keeping/lastCollection/bytes"))
        ),
    };
    format!(
        "{last}; evicted since the start: {} images, {}",
        number("/keeping/evictedImages"),
        size(number("/keeping/evictedBytes"))
    )
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{name:<9} {value}");
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn a_mirror_that_is_well() {
        let dump = json!({
            "uploads": 1, "fetches": 2, "blobs": 3, "blobBytes": 5000,
            "upstreams": [{"name": "docker.io", "restingSeconds": null, "bytes": 2048, "rateLimitRemaining": 7}],
            "peers": [{"url": "https://b", "state": "connected", "behindChanges": 0, "lastSeenSeconds": 1, "error": null}],
            "keeping": {
                "mode": "normal", "startedMs": NOW - 7_200_000, "quotaBytes": 10_000, "freeBytes": 1 << 30, "reservedBytes": 1000,
                "scrub": {"endedMs": NOW - 60_000, "blobs": 3, "bytes": 5000, "damaged": 0},
                "lastCollection": {"endedMs": NOW - 1000, "files": 1, "bytes": 10}, "evictedImages": 4, "evictedBytes": 5,
            },
        });
        let metrics = "mirror_pulls_total{upstream=\"a\",kind=\"blob\",source=\"hit\"} 3\nmirror_pulls_total{upstream=\"a\",kind=\"blob\",source=\"miss\"} 1\n";
        let text = render(&Facts::at(&dump, metrics, NOW));
        let expected = "\
problems  none
mode      normal, up 2 h
work      1 uploads, 2 fetches under way
disk      4.9 KiB in 3 blobs, quota 9.8 KiB; 1.0 GiB free, 1000 B must stay free
cache     75 % of 4 pulls through answered from here
upstream  docker.io ok, 2.0 KiB fetched, 7 pulls left
peer      https://b connected, 0 changes behind, seen 1 s ago
scrub     ended 60 s ago: 3 blobs, 4.9 KiB, 0 damaged
gc        ended 1 s ago: 1 files, 10 B removed; evicted since the start: 4 images, 5 B";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_wrong_comes_first() {
        let dump = json!({
            "upstreams": [{"name": "docker.io", "restingSeconds": 12, "lastError": "connection refused"}],
            "peers": [{"url": "https://b", "state": "down", "error": null}],
            "keeping": {
                "mode": "readOnly", "freeBytes": 1, "reservedBytes": 1000, "owedBlobs": ["sha256:1"],
                "lastRefusal": {"atMs": NOW - 60_000, "message": "the disk is full"},
            },
        });
        let facts = Facts::at(&dump, "", NOW);
        let text = render(&facts);
        assert!(
            text.starts_with("PROBLEM   a push or fetch was refused 60 s ago: the disk is full\n"),
            "{text}"
        );
        for part in [
            "sha256:1",
            "the mode is readOnly",
            "docker.io does not answer",
            "peer https://b is not followed",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(facts.to_json()["problems"].as_array().unwrap().len(), 5);
    }

    #[test]
    fn sections_may_be_missing() {
        for dump in [json!(null), json!({}), json!({"keeping": null, "peers": {"a": 1}}), json!([1])] {
            let facts = Facts::at(&dump, "nonsense", NOW);
            assert!(render(&facts).starts_with("problems  none"), "{dump}");
            assert_eq!(facts.to_json()["problems"], json!([]));
        }
    }
}
