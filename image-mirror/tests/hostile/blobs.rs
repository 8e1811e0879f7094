//! Blobs from upstreams that break off, lie or send elsewhere.

use std::path::{Path, PathBuf};

use orlop_types::Digest;

use crate::mirror::{Mirror, NAME, Seen, config};
use crate::upstream::{Answer, Then, Upstream};

fn noise(length: usize) -> Vec<u8> {
    let mut seed = 7_u64;
    let next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Whether the bytes of a digest are kept.
fn is_kept(root: &Path, digest: &Digest) -> bool {
    files(&root.join("blobs")).iter().any(|path| path.ends_with(digest.hex()))
}

/// Never whole, unless it is right.
fn check(seen: &Seen, right: &[u8], what: &str) {
    let complete = seen.whole && seen.status == 200;
    assert!(!complete || seen.body == right, "{what}: wrong content was completed: {seen:?}");
}

#[test]
fn a_cut_is_taken_up_where_it_was() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let layer = noise(3_000_000);
    let (_, digest) = upstream.image("one", &layer);
    let mirror = Mirror::start(work.path(), config(upstream.address));
    mirror.pull("manifests/one");
    upstream.asks();
    let mut cuts = 0;
    upstream.bend(move |ask, usual| match ask.method.as_str() {
        "GET" if cuts < 3 => {
            cuts += 1;
            usual.cut(1_000_000)
        }
        _ => usual,
    });
    let seen = mirror.pull(&format!("blobs/{digest}"));
    assert!(seen.whole && seen.body == layer);
    let ranges: Vec<_> =
        upstream.asks().iter().map(|ask| ask.header("range").unwrap_or("").to_owned()).collect();
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert!(
        ranges[0].is_empty() && ranges[1..].iter().all(|range| range.starts_with("bytes=")),
        "{ranges:?}"
    );
    assert!(is_kept(work.path(), &digest));
}

#[test]
fn a_token_that_ends_on_the_way_is_fetched_again() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let layer = noise(2_000_000);
    let (_, digest) = upstream.image("one", &layer);
    let mirror = Mirror::start(work.path(), config(upstream.address));
    let (address, mut tokens, mut good) = (upstream.address, 0, String::new());
    upstream.bend(move |ask, usual| {
        if ask.path.starts_with("/token") {
            tokens += 1;
            good = format!("Bearer t{tokens}");
            return Answer::new(200, format!(r#"{{"token":"t{tokens}","expires_in":3600}}"#));
        }
        if ask.header("authorization") != Some(good.as_str()) || good.is_empty() {
            let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"s\"");
            return Answer::new(401, "").with("www-authenticate", challenge);
        }
        if ask.path.contains(digest.hex()) && ask.header("range").is_none() && ask.method == "GET" {
            // The connection ends, and so does the token.
            good = "none".to_owned();
            return usual.cut(1_000_000);
        }
        usual
    });
    let (_, digest) = (mirror.pull("manifests/one"), Digest::sha256(&layer));
    let seen = mirror.pull(&format!("blobs/{digest}"));
    assert!(seen.whole && seen.body == layer, "{}", seen.status);
    let tokens = upstream.asks().iter().filter(|ask| ask.path.starts_with("/token")).count();
    assert_eq!(tokens, 2);
}

#[test]
fn wrong_content_is_never_completed_and_never_kept() {
    let upstream = Upstream::start();
    let layer = noise(300_000);
    let (_, digest) = upstream.image("one", &layer);
    let mut flipped = layer.clone();
    flipped[150_000] ^= 1;
    let mut last = layer.clone();
    *last.last_mut().unwrap() ^= 1;
    let longer = [layer.as_slice(), b"more"].concat();
    let lies: Vec<(&str, Answer)> = vec![
        ("another byte", Answer::new(200, flipped.clone())),
        ("another last byte", Answer::new(200, last)),
        ("shorter", Answer::new(200, &layer[..299_999])),
        ("longer", Answer::new(200, longer)),
        (
            "announced longer",
            Answer::new(200, layer.as_slice()).with("content-length", 400_000).then(Then::Close),
        ),
        (
            "announced shorter",
            Answer::new(200, layer.as_slice()).with("content-length", 100).then(Then::Close),
        ),
        ("nothing", Answer::new(200, "")),
        ("a page", Answer::new(200, "<html>log in</html>").with("content-type", "text/html")),
        ("another encoding", Answer::new(200, flipped).with("content-encoding", "gzip")),
        ("a part", Answer::new(206, &layer[5..]).with("content-range", "bytes 5-299999/300000")),
    ];
    for (what, answer) in lies {
        let work = tempfile::tempdir().unwrap();
        let mirror = Mirror::start(work.path(), config(upstream.address));
        assert_eq!(mirror.pull("manifests/one").status, 200);
        let hex = digest.hex().to_owned();
        upstream.bend(move |ask, usual| if ask.path.contains(&hex) { answer.clone() } else { usual });
        check(&mirror.pull(&format!("blobs/{digest}")), &layer, what);
        assert!(!is_kept(work.path(), &digest), "{what}");
        upstream.behave();
        let seen = mirror.pull(&format!("blobs/{digest}"));
        assert!(seen.whole && seen.body == layer, "{what}: nothing of the lie is left");
    }
}

#[test]
fn wrong_manifests_are_never_kept() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let (digest, _) = upstream.image("one", b"layer");
    let mirror = Mirror::start(work.path(), config(upstream.address));
    let other = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let lies: Vec<(&str, String, Answer)> = vec![
        ("another by digest", digest.to_string(), Answer::new(200, other)),
        (
            "not as announced",
            "one".to_owned(),
            Answer::new(200, other).with("docker-content-digest", &digest),
        ),
        ("no manifest", "one".to_owned(), Answer::new(200, "<html>")),
        ("nothing", "one".to_owned(), Answer::new(200, "")),
        ("endless", "one".to_owned(), Answer::new(200, vec![b' '; 40 << 20])),
        ("endless head", "one".to_owned(), Answer::new(200, other).with("x", "y".repeat(4 << 20))),
        ("no http", "one".to_owned(), Answer::new(200, other).with("content-length", "many")),
    ];
    for (what, name, answer) in lies {
        upstream.bend(move |_, _| answer.clone());
        let seen = mirror.pull(&format!("manifests/{name}"));
        assert!((400..600).contains(&seen.status), "{what}: {}", seen.status);
        assert!(files(&work.path().join("blobs")).is_empty(), "{what}");
    }
    upstream.behave();
    assert_eq!(mirror.pull("manifests/one").header("docker-content-digest"), digest.as_str());
}

#[test]
fn whatever_byte_is_the_last_no_client_hangs_or_gets_wrong_content() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let content = b"a small blob";
    let digest = upstream.blob(content);
    let whole = Answer::new(200, content.as_slice())
        .with("content-type", "application/octet-stream")
        .with("docker-content-digest", &digest)
        .bytes(false)
        .len();
    let mirror = Mirror::start(work.path(), config(upstream.address));
    for bytes in 0..whole {
        let blob = noise(bytes + 1);
        let (_, digest) = upstream.image("one", &blob);
        upstream.bend(move |_, usual| usual.cut(bytes));
        check(&mirror.pull(&format!("blobs/{digest}")), &blob, &format!("{bytes} bytes"));
        upstream.behave();
        let seen = mirror.pull(&format!("blobs/{digest}"));
        assert!(seen.whole && seen.body == blob, "after {bytes} bytes: {}", seen.status);
    }
}

#[test]
fn a_stall_ends() {
    let upstream = Upstream::start();
    let layer = noise(500_000);
    let (_, digest) = upstream.image("one", &layer);
    for bytes in [0, 50, 1000, 400_000] {
        let work = tempfile::tempdir().unwrap();
        let mirror = Mirror::start(work.path(), config(upstream.address));
        mirror.pull("manifests/one");
        upstream.bend(move |_, usual| usual.cut(bytes).then(Then::Hang));
        let seen = mirror.pull(&format!("blobs/{digest}"));
        check(&seen, &layer, "a stall");
        // What is taken up where it stalled may be whole in the end.
        assert_eq!(is_kept(work.path(), &digest), seen.whole && seen.body == layer, "{bytes}");
        if bytes == 0 {
            assert!(matches!(seen.status, 503 | 504), "a clean error before the first byte: {}", seen.status);
        }
        upstream.behave();
    }
}

#[test]
fn redirects_lead_to_content_but_credentials_stay() {
    let (work, upstream, storage) = (tempfile::tempdir().unwrap(), Upstream::start(), Upstream::start());
    let layer = noise(100_000);
    let (_, digest) = upstream.image("one", &layer);
    storage.blob(&layer);
    let (own, other, hex) = (upstream.address, storage.address, digest.hex().to_owned());
    let mirror = Mirror::start(work.path(), config(own));
    upstream.bend(move |ask, usual| match ask.header("authorization") {
        _ if ask.path.starts_with("/token") => Answer::new(200, r#"{"token":"secret"}"#),
        None => Answer::new(401, "").with("www-authenticate", format!("Bearer realm=\"http://{own}/token\"")),
        Some(_) if ask.path.contains(&hex) => {
            Answer::new(307, "").with("location", format!("http://{other}/v2/team/app/blobs/sha256:{hex}"))
        }
        Some(_) => usual,
    });
    mirror.pull("manifests/one");
    let seen = mirror.pull(&format!("blobs/{digest}"));
    assert!(seen.whole && seen.body == layer, "{}", seen.status);
    let asks = storage.asks();
    assert!(!asks.is_empty() && asks.iter().all(|ask| ask.header("authorization").is_none()), "{asks:?}");
    // Round in a circle.
    let (_, digest) = upstream.image("two", b"other layer");
    upstream.bend(move |ask, usual| match ask.path.contains("/blobs/") {
        true => Answer::new(307, "").with("location", &ask.path),
        false => usual,
    });
    mirror.pull("manifests/two");
    upstream.asks();
    let seen = mirror.pull(&format!("blobs/{digest}"));
    check(&seen, b"other layer", "a circle");
    assert!(upstream.asks().len() < 30);
}

#[test]
fn who_is_never_satisfied_is_not_asked_for_ever() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let address = upstream.address;
    let mirror = Mirror::start(work.path(), config(address));
    upstream.bend(move |ask, _| match ask.path.starts_with("/token") {
        true => Answer::new(200, r#"{"token":"never right"}"#),
        false => {
            Answer::new(401, "").with("www-authenticate", format!("Bearer realm=\"http://{address}/token\""))
        }
    });
    assert_eq!(mirror.pull("manifests/one").status, 404);
    assert!(upstream.asks().len() <= 3);
    assert_eq!(
        mirror.metric(&format!("mirror_upstream_errors_total{{upstream=\"{NAME}\",kind=\"unauthorized\"}}")),
        1
    );
}
