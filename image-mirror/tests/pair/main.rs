//! Two mirrors that hold the same content: cut off from each other, killed, wiped, and asked at once.

#![expect(clippy::unwrap_used, reason = "tests")]

mod kill;
mod lab;
mod link;
mod mirror;
mod nodes;

use std::path::Path;

use link::Link;
use mirror::{Mirror, free_address, noise, wait_for};
use orlop_daemon::{Settings, config};
use orlop_types::Digest;

/// Names the configuration of a mirror that this program is to be.
pub(crate) const SUBJECT: &str = "ORLOP_TEST_MIRROR_CONFIG";

/// No test: `orlop mirror` in a process of its own, without the rest of `orlop`.
#[test]
#[ignore = "other tests start it"]
fn subject() {
    let Some(file) = std::env::var_os(SUBJECT) else { return };
    let config: orlop_mirror::Config = config::load(Path::new(&file)).unwrap();
    orlop_daemon::run(
        Settings::new("mirror"),
        |frame| async move { orlop_mirror::start(&frame, config).await },
    )
    .unwrap();
}

/// Two halves, and the links from each to the other.
struct Pair {
    halves: [Mirror; 2],
    links: [Link; 2],
    _work: tempfile::TempDir,
}

impl Pair {
    fn new(more: &serde_json::Value) -> Self {
        let work = tempfile::tempdir().unwrap();
        let addresses = [free_address(), free_address()];
        let links = [Link::to(addresses[1]), Link::to(addresses[0])];
        let half = |number: usize| {
            let mut more = more.clone();
            more["peers"] = serde_json::json!([format!("http://{}", links[number].address)]);
            Mirror::new(&work.path().join(number.to_string()), addresses[number], more)
        };
        Self { halves: [half(0), half(1)], links, _work: work }
    }

    fn started(more: &serde_json::Value) -> Self {
        let mut pair = Self::new(more);
        for half in &mut pair.halves {
            half.start();
        }
        pair.wait_connected();
        pair
    }

    fn wait_connected(&self) {
        for half in &self.halves {
            wait_for("the halves to meet", || (half.metric("mirror_peer_connected") == 1).then_some(()));
        }
    }

    fn cut(&self) {
        self.links.iter().for_each(Link::cut);
        for half in &self.halves {
            wait_for("the cut to be seen", || (half.metric("mirror_peer_connected") == 0).then_some(()));
        }
    }

    fn heal(&self) {
        self.links.iter().for_each(Link::heal);
        self.wait_connected();
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

fn nothing() -> serde_json::Value {
    serde_json::json!({})
}

#[test]
fn what_one_half_gets_both_hold() {
    let pair = Pair::started(&nothing());
    let [a, b] = &pair.halves;
    let (first, code, _) = a.push("team/app", "one", &noise(300_000, 1)).unwrap();
    assert_eq!(code, "201");
    wait_for("the image at the other half", || b.pull("team/app", "one").filter(|digest| *digest == first));
    let (second, ..) = b.push("team/app", "two", &noise(3_000_000, 2)).unwrap();
    wait_for("the image at the first half", || a.pull("team/app", "two").filter(|digest| *digest == second));
    // Pushed again it says that the other half has it.
    wait_for("the report", || {
        let (_, _, replicated) = a.push("team/app", "one", &noise(300_000, 1))?;
        (replicated == "true").then_some(())
    });
    a.curl(&["-X", "DELETE"], "/v2/team/app/manifests/two");
    wait_for("the removal", || b.tag("team/app", "two").is_none().then_some(()));
    assert_eq!(b.tag("team/app", "one"), Some(first));
}

#[test]
fn a_cut_pair_heals_and_loses_nothing() {
    let pair = Pair::started(&nothing());
    let [a, b] = &pair.halves;
    let (old, ..) = a.push("team/app", "moving", &noise(1000, 1)).unwrap();
    wait_for("the tag", || (b.tag("team/app", "moving")? == old).then_some(()));
    pair.cut();
    let mut pushed = Vec::new();
    for (number, half) in [a, b, a, b].into_iter().enumerate() {
        let tag = format!("only-{number}");
        let (digest, _, replicated) =
            half.push("team/app", &tag, &noise(200_000, 10 + number as u64)).unwrap();
        assert_eq!(replicated, "false");
        pushed.push((tag, digest));
    }
    let (first, ..) = a.push("team/app", "moving", &noise(1000, 2)).unwrap();
    let (last, ..) = b.push("team/app", "moving", &noise(1000, 3)).unwrap();
    assert!(a.tag("team/app", "moving") == Some(first) && b.tag("team/app", "moving") == Some(last.clone()));
    pair.heal();
    // The later one wins, at both.
    pushed.push(("moving".to_owned(), last));
    for half in [a, b] {
        for (tag, digest) in &pushed {
            wait_for(tag, || half.pull("team/app", tag).filter(|found| found == digest));
        }
    }
    let lists = [a, b].map(|half| half.curl(&[], "/v2/team/app/tags/list").stdout);
    assert_eq!(lists[0], lists[1]);
}

#[test]
fn a_wiped_half_is_rebuilt() {
    let mut pair = Pair::started(&nothing());
    let mut pushed = Vec::new();
    for number in 0..20_u64 {
        let tag = format!("tag-{number}");
        let half = &pair.halves[usize::from(number % 2 == 0)];
        pushed.push((tag.clone(), half.push("team/app", &tag, &noise(50_000, number)).unwrap().0));
    }
    let check = |half: &Mirror| {
        for (tag, digest) in &pushed {
            wait_for(tag, || half.pull("team/app", tag).filter(|found| found == digest));
        }
    };
    pair.halves.iter().for_each(check);
    for wiped in [1, 0] {
        pair.halves[wiped].wipe();
        pair.halves[wiped].start();
        // Not by asking for each: what is asked for may come from the other half.
        wait_for("all blobs", || (pair.halves[wiped].metric("mirror_peer_blobs_total") >= 41).then_some(()));
        check(&pair.halves[wiped]);
    }
}

#[test]
fn what_one_half_lost_the_other_gives() {
    let pair = Pair::started(&nothing());
    let [a, b] = &pair.halves;
    let layer = noise(100_000, 1);
    let (digest, ..) = a.push("team/app", "one", &layer).unwrap();
    wait_for("the image", || b.pull("team/app", "one"));
    for lost in [&digest, &Digest::sha256(&layer)] {
        std::fs::remove_file(b.root.join("data/blobs/sha256").join(lost.hex())).unwrap();
    }
    assert_eq!(b.pull("team/app", "one"), Some(digest));
}

#[test]
fn wrong_content_of_a_peer_is_neither_kept_nor_whole() {
    let mut pair = Pair::new(&nothing());
    pair.halves[0].start();
    let layer = noise(500_000, 1);
    let wrong = Digest::sha256(&layer);
    pair.halves[0].push("team/app", "one", &layer).unwrap();
    let file = pair.halves[0].root.join("data/blobs/sha256").join(wrong.hex());
    std::fs::write(&file, noise(500_000, 2)).unwrap();
    let (right, ..) = pair.halves[0].push("team/app", "two", &noise(1000, 3)).unwrap();
    pair.halves[1].start();
    // It does not hold up what follows.
    let b = &pair.halves[1];
    wait_for("the other image", || b.pull("team/app", "two").filter(|digest| *digest == right));
    assert!(b.metric("mirror_replication_missing_blobs_total") >= 1);
    for _ in 0..3 {
        let pulled = b.curl(&["-f"], &format!("/v2/team/app/blobs/{wrong}"));
        assert!(!pulled.status.success() && wrong.verify(&pulled.stdout).is_err());
    }
    assert!(!b.root.join("data/blobs/sha256").join(wrong.hex()).exists());
    // It is owed, and comes when the peer comes back with what is right.
    pair.links[1].cut();
    std::fs::write(&file, layer).unwrap();
    wait_for("the cut", || (pair.halves[1].metric("mirror_peer_connected") == 0).then_some(()));
    pair.links[1].heal();
    let here = pair.halves[1].root.join("data/blobs/sha256").join(wrong.hex());
    wait_for("what was owed", || here.exists().then_some(()));
    assert!(pair.halves[1].pull("team/app", "one").is_some());
}

#[test]
fn changes_travel_in_chains() {
    let work = tempfile::tempdir().unwrap();
    let addresses: Vec<_> = (0..3).map(|_| free_address()).collect();
    let mut chain: Vec<Mirror> = (0..3_usize)
        .map(|number| {
            let beside = [number.checked_sub(1), Some(number + 1)].into_iter().flatten();
            let peers: Vec<_> = beside
                .filter_map(|other| addresses.get(other))
                .map(|other| format!("http://{other}"))
                .collect();
            let root = work.path().join(number.to_string());
            Mirror::new(&root, addresses[number], serde_json::json!({"peers": peers}))
        })
        .collect();
    chain.iter_mut().for_each(Mirror::start);
    let (from_start, ..) = chain[0].push("team/app", "start", &noise(10_000, 1)).unwrap();
    let (from_end, ..) = chain[2].push("team/app", "end", &noise(10_000, 2)).unwrap();
    wait_for("the other end", || chain[2].pull("team/app", "start").filter(|digest| *digest == from_start));
    wait_for("the first end", || chain[0].pull("team/app", "end").filter(|digest| *digest == from_end));
    // What came back from the others is no news: the numbers come to rest.
    let mut last = Vec::new();
    wait_for("rest", || {
        let now: Vec<_> = chain.iter().map(|mirror| mirror.metric("mirror_peer_behind_changes")).collect();
        let rests = now == last && now.iter().all(|behind| *behind == 0);
        last = now;
        rests.then_some(())
    });
}

#[test]
fn halves_on_other_machines_meet_by_tls() {
    let work = tempfile::tempdir().unwrap();
    let token = work.path().join("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (work.path().join("crt"), work.path().join("key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let addresses = [free_address(), free_address()];
    let half = |number: usize, trusted: bool| {
        let mut more = serde_json::json!({
            "tlsCertFile": certificate, "tlsKeyFile": key, "peerTokenFile": token,
            "peers": [format!("https://{}", addresses[1 - number])],
        });
        if trusted {
            more["peerCaFile"] = serde_json::json!(certificate);
        }
        Mirror::new(&work.path().join(number.to_string()), addresses[number], more).with_tls()
    };
    let (mut a, mut b) = (half(0, true), half(1, false));
    a.start();
    b.start();
    let (digest, ..) = b.push("team/app", "one", &noise(100_000, 1)).unwrap();
    wait_for("the image", || a.pull("team/app", "one").filter(|found| *found == digest));
    assert_eq!(b.metric("mirror_peer_connected"), 0, "a certificate of an unknown authority");
}

#[test]
fn a_runtimes_content_is_served_where_a_pull_may_ask_for_it() {
    let work = tempfile::tempdir().unwrap();
    let (content, lie) = (noise(300_000, 1), Digest::sha256(b"another"));
    let digest = Digest::sha256(&content);
    let blobs = work.path().join("runtime/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for name in [&digest, &lie] {
        std::fs::write(blobs.join(name.hex()), &content).unwrap();
    }
    let mut mirror = Mirror::new(
        &work.path().join("mirror"),
        free_address(),
        serde_json::json!({
            "contentStores": [work.path().join("runtime")],
            "upstreams": {"up.example": format!("http://{}", free_address())},
        }),
    );
    mirror.start();
    assert_eq!(mirror.pull_hashed("up.example/team/app", &digest), Some(digest.clone()));
    let part = mirror.curl(&["-f", "-r", "100-199"], &format!("/v2/up.example/team/app/blobs/{digest}"));
    assert_eq!(part.stdout, content[100..200]);
    assert_eq!(mirror.pull_hashed("up.example/team/app", &lie), None);
    assert_eq!(mirror.code(&format!("/v2/team/app/blobs/{digest}")), "404", "nobody pushed it there");
}

#[test]
fn strict_pushes_need_the_other_half() {
    let mut pair = Pair::new(&serde_json::json!({"strictReplication": true, "replicationTimeoutSeconds": 1}));
    pair.halves[0].start();
    let (digest, code, _) = pair.halves[0].push("team/app", "one", &noise(1000, 1)).unwrap();
    assert_eq!(code, "503");
    assert_eq!(pair.halves[0].pull("team/app", "one"), Some(digest.clone()), "the content stays");
    pair.halves[1].start();
    pair.wait_connected();
    wait_for("the other half", || (pair.halves[1].tag("team/app", "one")? == digest).then_some(()));
    let (_, code, replicated) = pair.halves[0].push("team/app", "two", &noise(1000, 2)).unwrap();
    assert_eq!((code.as_str(), replicated.as_str()), ("201", "true"));
}

#[test]
fn only_mirrors_that_know_the_secret_are_answered() {
    let work = tempfile::tempdir().unwrap();
    let token = work.path().join("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut mirror =
        Mirror::new(&work.path().join("a"), free_address(), serde_json::json!({"peerTokenFile": token}));
    mirror.start();
    let path = "/_orlop/v1/changes?node=0000000000000001&epoch=0000000000000000&since=0";
    assert_eq!(mirror.code(path), "401");
    let with = |secret: &str| {
        let header = format!("Authorization: Bearer {secret}");
        let output = mirror.curl(&["-H", &header, "-o", "/dev/null", "-w", "%{http_code}"], path);
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(with("0123456789abcdef0123456789abcdee"), "401");
    assert_eq!(with("0123456789abcdef0123456789abcdef"), "200");
    assert_eq!(mirror.code("/_orlop/v1/peek/blobs/sha256:12"), "401");
}

#[test]
fn both_halves_miss_at_once_and_the_upstream_is_asked_once() {
    let work = tempfile::tempdir().unwrap();
    let mut upstream = Mirror::new(&work.path().join("upstream"), free_address(), nothing());
    upstream.start();
    let pair = Pair::started(
        &serde_json::json!({"upstreams": {"up.example": format!("http://{}", upstream.address)}}),
    );
    for round in 0..8_u64 {
        let tag = format!("round-{round}");
        let (digest, ..) =
            upstream.push("up.example/team/app", &tag, &noise(8_000_000, 100 + round)).unwrap();
        std::thread::scope(|scope| {
            for client in 0..6 {
                let (half, tag) = (&pair.halves[client % 2], &tag);
                let pull = move || half.pull("up.example/team/app", tag);
                let digest = &digest;
                scope.spawn(move || assert_eq!(pull().as_ref(), Some(digest)));
            }
        });
    }
    // The same config blob in all rounds.
    let fetches: u64 = pair.halves.iter().map(|half| half.metric("mirror_upstream_blob_fetches_total")).sum();
    assert_eq!(fetches, 9);
    // What came from upstream is at both, and served when it is gone.
    upstream.kill();
    for half in &pair.halves {
        for round in 0..8 {
            let tag = format!("round-{round}");
            wait_for("the fetched image", || half.pull("up.example/team/app", &tag));
        }
    }
}
