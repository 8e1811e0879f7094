//! Which tags are asked for again, and what is served when there is no answer.

use orlop_mirror::Config;
use orlop_types::Digest;

use crate::mirror::{Mirror, NAME, config};
use crate::upstream::{Answer, Then, Upstream};

const STALE: &str = "110 - \"Response is Stale\"";

#[test]
fn a_fresh_tag_is_not_asked_for() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let (digest, _) = upstream.image("one", b"layer");
    let config = Config { tag_freshness_seconds: 3600, ..config(upstream.address) };
    let mirror = Mirror::start(work.path(), config.clone());
    for (expected, asked) in [("miss", vec!["GET manifests/one"]), ("hit", vec![]), ("hit", vec![])] {
        let seen = mirror.pull("manifests/one");
        assert_eq!((seen.status, seen.header("orlop-cache")), (200, expected));
        assert_eq!(seen.header("docker-content-digest"), digest.as_str());
        assert_eq!(upstream.asked(), asked);
    }
    drop(mirror);
    let mirror = Mirror::start(work.path(), config);
    for (expected, asked) in [("revalidated", vec!["HEAD manifests/one"]), ("hit", vec![])] {
        assert_eq!(mirror.pull("manifests/one").header("orlop-cache"), expected);
        assert_eq!(upstream.asked(), asked, "after a restart it is asked for once, by HEAD");
    }
    assert_eq!(mirror.pull(&format!("manifests/{digest}")).header("orlop-cache"), "hit");
    assert_eq!(upstream.asked(), [""; 0]);
}

#[test]
fn an_old_tag_is_asked_for_by_head() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let (first, _) = upstream.image("one", b"first");
    let mirror = Mirror::start(work.path(), config(upstream.address));
    mirror.pull("manifests/one");
    let (second, _) = upstream.image("one", b"second");
    upstream.asks();
    let seen = mirror.pull("manifests/one");
    assert_eq!((seen.header("orlop-cache"), seen.header("docker-content-digest")), ("miss", second.as_str()));
    assert_eq!(upstream.asked(), ["HEAD manifests/one", "GET manifests/one"]);
    // Back to what is here: nothing to fetch.
    upstream.image("one", b"first");
    assert_eq!(mirror.pull("manifests/one").header("docker-content-digest"), first.as_str());
    assert_eq!(upstream.asked(), ["HEAD manifests/one"]);
    // An upstream that knows no HEAD, and one that says no digest.
    upstream.bend(|ask, usual| if ask.method == "HEAD" { Answer::new(405, "") } else { usual });
    assert_eq!(mirror.pull("manifests/one").header("docker-content-digest"), first.as_str());
    assert_eq!(upstream.asked(), ["HEAD manifests/one", "GET manifests/one"]);
    upstream.bend(|_, mut usual| {
        usual.headers.retain(|(name, _)| name != "docker-content-digest");
        usual
    });
    upstream.image("one", b"second");
    assert_eq!(mirror.pull("manifests/one").header("docker-content-digest"), second.as_str());
}

#[test]
fn what_is_here_is_served_stale() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let (digest, _) = upstream.image("one", b"layer");
    let mirror = Mirror::start(work.path(), config(upstream.address));
    mirror.pull("manifests/one");
    let stale = |why: &str| {
        let seen = mirror.pull("manifests/one");
        assert!(seen.status == 200 && seen.whole, "{why}");
        assert_eq!(seen.header("docker-content-digest"), digest.as_str(), "{why}");
        assert_eq!((seen.header("orlop-cache"), seen.header("warning")), ("stale", STALE), "{why}");
    };
    for status in [401, 403, 404, 429, 500, 502, 503] {
        upstream.bend(move |_, _| Answer::new(status, ""));
        stale(&status.to_string());
    }
    upstream.bend(|_, usual| usual.cut(0));
    stale("cut");
    upstream.bend(|_, usual| usual.cut(0).then(Then::Hang));
    stale("silent");
    upstream.behave();
    let seen = mirror.pull("manifests/one");
    assert_eq!((seen.header("orlop-cache"), seen.header("warning")), ("revalidated", ""));
    drop(upstream);
    stale("gone");
    assert_eq!(mirror.metric(&format!("mirror_stale_served_total{{upstream=\"{NAME}\"}}")), 10);
    assert!(matches!(mirror.pull("manifests/other").status, 502 | 503), "nothing here");
}

#[test]
fn many_clients_ask_once() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    upstream.image("one", b"layer");
    let mirror =
        Mirror::start(work.path(), Config { tag_freshness_seconds: 3600, ..config(upstream.address) });
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(mirror.pull("manifests/one").status, 200));
        }
    });
    assert_eq!(upstream.asked(), ["GET manifests/one"]);
}

#[test]
fn a_refusal_holds_for_a_while() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let mirror =
        Mirror::start(work.path(), Config { negative_cache_seconds: 3600, ..config(upstream.address) });
    for _ in 0..5 {
        assert_eq!(mirror.pull("manifests/none").status, 404);
    }
    assert_eq!(upstream.asked(), ["GET manifests/none"]);
    let blob = format!("/v2/team/app/blobs/{}?ns={NAME}", Digest::sha256(b"none"));
    for words in [&["-I"][..], &[], &["-I"], &[]] {
        assert_eq!(mirror.curl(words, &blob).status, 404);
    }
    assert_eq!(upstream.asks().len(), 1);
    // What is pushed under the name is there at once.
    let kind = "Content-Type: application/vnd.oci.image.index.v1+json";
    let own = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let path = format!("/v2/team/app/manifests/none?ns={NAME}");
    assert_eq!(mirror.curl(&["-X", "PUT", "-H", kind, "-d", own], &path).status, 201);
    assert_eq!(mirror.pull("manifests/none").status, 200);
    // An error that may pass is not remembered.
    upstream.bend(|_, _| Answer::new(500, ""));
    assert_eq!(mirror.pull("manifests/one").status, 502);
    upstream.behave();
    upstream.image("one", b"layer");
    assert_eq!(mirror.pull("manifests/one").status, 200);
}

#[test]
fn no_client_hangs_for_a_manifest() {
    let upstream = Upstream::start();
    upstream.image("one", b"layer");
    for bytes in [0, 10, 100, 400] {
        let work = tempfile::tempdir().unwrap();
        let mirror = Mirror::start(work.path(), config(upstream.address));
        upstream.bend(move |_, usual| usual.cut(bytes).then(Then::Hang));
        let seen = mirror.pull("manifests/one");
        assert_eq!(seen.status, 504, "{bytes} bytes: {}", String::from_utf8_lossy(&seen.body));
    }
}
