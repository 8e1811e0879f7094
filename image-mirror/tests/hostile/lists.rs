//! Lists of tags and referrers: the upstream's and ours together.

use crate::mirror::{Mirror, NAME, config};
use crate::upstream::{Answer, Upstream};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn put(mirror: &Mirror, tag: &str, text: &str) {
    let kind = format!("Content-Type: {INDEX}");
    let path = format!("/v2/team/app/manifests/{tag}?ns={NAME}");
    assert_eq!(mirror.curl(&["-X", "PUT", "-H", &kind, "-d", text], &path).status, 201);
}

#[test]
fn tags_of_both() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let mirror = Mirror::start(work.path(), config(upstream.address));
    let tags = |query: &str| {
        let seen = mirror.curl(&[], &format!("/v2/team/app/tags/list?ns={NAME}{query}"));
        let list: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let names = list["tags"]
            .as_array()
            .map(|tags| tags.iter().map(|tag| tag.as_str().unwrap()).collect::<Vec<_>>().join(" "));
        (seen.status, names.unwrap_or_default())
    };
    assert_eq!(tags("").0, 404, "nobody has it");
    put(&mirror, "own", &format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#));
    upstream.bend(|ask, usual| match (ask.path.contains("/tags/list"), ask.path.contains("last=b")) {
        (true, false) => Answer::new(200, r#"{"name":"team/app","tags":["b","a","../../x"]}"#)
            .with("link", "</v2/team/app/tags/list?last=b>; rel=\"next\""),
        (true, true) => Answer::new(200, r#"{"name":"team/app","tags":["c"]}"#),
        _ => usual,
    });
    assert_eq!(tags(""), (200, "a b c own".to_owned()));
    assert_eq!(tags("&n=2"), (200, "a b".to_owned()));
    assert_eq!(tags("&last=b"), (200, "c own".to_owned()));
    // One that goes on for ever, one that says nothing of use, and none: as last seen.
    upstream.bend(|_, _| Answer::new(200, r#"{"tags":["z"]}"#).with("link", "</v2/x?y>; rel=\"next\""));
    assert_eq!(tags(""), (200, "a b c own".to_owned()));
    assert!(upstream.asks().len() < 120);
    upstream.bend(|_, _| Answer::new(200, "<html>"));
    assert_eq!(tags(""), (200, "a b c own".to_owned()));
    upstream.bend(|_, _| Answer::new(500, ""));
    assert_eq!(tags(""), (200, "a b c own".to_owned()));
}

#[test]
fn referrers_of_both() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let (subject, _) = upstream.image("one", b"layer");
    let mirror = Mirror::start(work.path(), config(upstream.address));
    let count = || {
        let seen = mirror.pull(&format!("referrers/{subject}"));
        let index: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        index["manifests"].as_array().unwrap().len()
    };
    assert_eq!(count(), 0);
    let own = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[],"subject":{{"mediaType":"{INDEX}","digest":"{subject}","size":1}}}}"#
    );
    put(&mirror, "own", &own);
    assert_eq!(count(), 1);
    let theirs = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{INDEX}","digest":"{subject}","size":1,"artifactType":"x/y"}}]}}"#
    );
    let list = theirs.clone();
    upstream.bend(move |ask, usual| match ask.path.contains("/referrers/") {
        true => Answer::new(200, list.as_str()).with("content-type", INDEX),
        false => usual,
    });
    assert_eq!(count(), 2);
    // By the tag that stands in for the API.
    upstream.behave();
    upstream.manifest(&format!("sha256-{}", subject.hex()), INDEX, &theirs);
    assert_eq!(count(), 2);
    drop(upstream);
    assert_eq!(count(), 2, "as last seen");
}
