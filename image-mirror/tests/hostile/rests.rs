//! Upstreams that are left alone for a while: they are silent, or they ask for it.

use orlop_mirror::Config;

use crate::mirror::{Mirror, NAME, config};
use crate::upstream::{Answer, Then, Upstream, eventually};

#[test]
fn a_silent_upstream_is_not_waited_for_by_everybody() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    upstream.image("one", b"layer");
    let mirror = Mirror::start(work.path(), config(upstream.address));
    mirror.pull("manifests/one");
    upstream.bend(|_, usual| usual.cut(0).then(Then::Hang));
    // Two attempts each, and three silences are enough.
    assert_eq!(mirror.pull("manifests/none").status, 504);
    assert_eq!(mirror.pull("manifests/none").status, 503);
    upstream.asks();
    for _ in 0..10 {
        let seen = mirror.pull("manifests/none");
        assert_eq!(seen.status, 503, "{}", String::from_utf8_lossy(&seen.body));
        assert_ne!(seen.header("retry-after"), "");
        assert_eq!(mirror.pull("manifests/one").header("orlop-cache"), "stale");
    }
    assert!(upstream.asks().len() <= 2, "a probe and its repetition");
    assert_eq!(mirror.metric(&format!("mirror_upstream_resting{{upstream=\"{NAME}\"}}")), 1);
    upstream.behave();
    eventually("the upstream is asked again", || {
        mirror.pull("manifests/one").header("orlop-cache") == "revalidated"
    });
    assert_eq!(mirror.metric(&format!("mirror_upstream_resting{{upstream=\"{NAME}\"}}")), 0);
    assert!(
        mirror.metric(&format!("mirror_upstream_errors_total{{upstream=\"{NAME}\",kind=\"timeout\"}}")) >= 3
    );
}

#[test]
fn an_upstream_that_wants_patience_gets_it() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let (_, layer) = upstream.image("one", b"layer");
    let mirror = Mirror::start(work.path(), config(upstream.address));
    upstream.bend(|ask, usual| match ask.path.contains("/manifests/") {
        true => Answer::new(429, "").with("retry-after", 3600),
        false => usual,
    });
    for _ in 0..3 {
        let seen = mirror.pull("manifests/one");
        assert_eq!((seen.status, seen.header("orlop-cache")), (429, ""));
        assert!((1..=3600).contains(&seen.header("retry-after").parse::<u64>().unwrap()));
    }
    assert_eq!(upstream.asked(), ["GET manifests/one"], "once");
    assert_eq!(mirror.pull(&format!("blobs/{layer}")).body, b"layer", "blobs are not limited");
}

#[test]
fn the_last_pull_of_a_limit_is_seen() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    upstream.image("one", b"layer");
    upstream.image("two", b"layer");
    let limits = Config { tag_freshness_seconds: 0, ..config(upstream.address) };
    let mirror = Mirror::start(work.path(), limits);
    let gauge = format!("mirror_upstream_rate_limit_remaining{{upstream=\"{NAME}\"}}");
    for (tag, left, status) in [("one", "3", 200), ("two", "0", 200), ("three", "0", 429)] {
        upstream.bend(move |_, usual| {
            usual
                .with("ratelimit-limit", "100;w=21600")
                .with("ratelimit-remaining", format!("{left};w=21600"))
        });
        assert_eq!(mirror.pull(&format!("manifests/{tag}")).status, status, "{tag}");
        assert_eq!(mirror.metric(&gauge).to_string(), left);
    }
    assert_eq!(upstream.asked(), ["GET manifests/one", "GET manifests/two"]);
    // HEAD costs nothing.
    assert_eq!(mirror.pull("manifests/one").header("orlop-cache"), "revalidated");
    upstream.image("one", b"other");
    assert_eq!(mirror.pull("manifests/one").header("orlop-cache"), "stale");
}
