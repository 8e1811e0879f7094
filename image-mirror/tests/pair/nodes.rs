//! Many nodes, each with a mirror, in network namespaces of their own.
//!
//! `NODES=N` (50), `LAYER_MB=N` (20): the whole measure is `LAYER_MB=200`.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::lab::Lab;
use crate::mirror::{Mirror, noise, wait_for};
use crate::number;

fn secret(directory: &Path) -> PathBuf {
    let file = directory.join("token");
    std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    file
}

fn mirror(lab: &Lab, work: &Path, host: u8, mut more: serde_json::Value) -> Mirror {
    let address: SocketAddr = format!("{}:5000", lab.address(host)).parse().unwrap();
    more["plainHttp"] = true.into();
    Mirror::new(&work.join(host.to_string()), address, more).in_namespace(&lab.netns(host))
}

#[test]
fn many_nodes_pull_one_image_and_the_upstream_gives_it_once() {
    let nodes = u8::try_from(number("NODES", 50)).unwrap();
    let layer = noise(usize::try_from(number("LAYER_MB", 20)).unwrap() << 20, 7);
    let work = tempfile::tempdir().unwrap();
    let lab = Lab::new(nodes + 1);
    let upstream_host = nodes + 1;
    let mut upstream = mirror(&lab, work.path(), upstream_host, serde_json::json!({"anonymousPush": true}));
    upstream.start();
    let (image, ..) = upstream.push("up.example/team/app", "1", &layer).unwrap();
    let list = work.path().join("nodes");
    let urls: Vec<String> = (1..=nodes).map(|host| format!("http://{}:5000", lab.address(host))).collect();
    std::fs::write(&list, urls.join("\n")).unwrap();
    let token = secret(work.path());
    let mut mirrors: Vec<Mirror> = (1..=nodes)
        .map(|host| {
            let more = serde_json::json!({
                "upstreams": {"up.example": format!("http://{}", upstream.address)},
                "nodes": {"file": list, "own": urls[usize::from(host) - 1]},
                "peerTokenFile": token,
            });
            mirror(&lab, work.path(), host, more)
        })
        .collect();
    mirrors.iter_mut().for_each(Mirror::launch);
    for node in &mirrors {
        wait_for("a node", || node.curl(&["-f"], "/healthz").status.success().then_some(()));
    }
    let before = lab.sent_bytes(upstream_host);
    let digest = orlop_types::Digest::sha256(&layer);
    std::thread::scope(|scope| {
        for node in &mirrors {
            scope.spawn(|| {
                assert_eq!(node.tag("up.example/team/app", "1"), Some(image.clone()));
                assert_eq!(node.pull_hashed("up.example/team/app", &digest), Some(digest.clone()));
            });
        }
    });
    let sent = lab.sent_bytes(upstream_host) - before;
    let fetches: u64 = mirrors.iter().map(|node| node.metric("mirror_upstream_blob_fetches_total")).sum();
    eprintln!(
        "{nodes} nodes, {} bytes each, {sent} bytes from the upstream in {fetches} fetches",
        layer.len()
    );
    assert_eq!(fetches, 1);
    assert!(sent < layer.len() as u64 * 5 / 4, "the upstream sent {sent} bytes");
    // Without the first node that has it, and without the upstream, what a node has it serves.
    upstream.kill();
    mirrors[0].kill();
    assert_eq!(mirrors[1].tag("up.example/team/app", "1"), Some(image));
}

#[test]
fn a_link_that_loses_everything_is_cut_and_heals() {
    let work = tempfile::tempdir().unwrap();
    let lab = Lab::new(2);
    let token = secret(work.path());
    let half = |host: u8| {
        let peer = format!("http://{}:5000", lab.address(3 - host));
        let more = serde_json::json!({"peers": [peer], "peerTokenFile": token, "anonymousPush": true});
        mirror(&lab, work.path(), host, more)
    };
    let mut halves = [half(1), half(2)];
    halves.iter_mut().for_each(Mirror::start);
    let [a, b] = &halves;
    let (old, ..) = a.push("team/app", "moving", &noise(1000, 1)).unwrap();
    wait_for("the tag", || (b.tag("team/app", "moving")? == old).then_some(()));
    lab.connect(2, false);
    let (on_a, ..) = a.push("team/app", "a", &noise(400_000, 2)).unwrap();
    let (on_b, ..) = b.push("team/app", "b", &noise(400_000, 3)).unwrap();
    a.push("team/app", "moving", &noise(1000, 4)).unwrap();
    let (last, ..) = b.push("team/app", "moving", &noise(1000, 5)).unwrap();
    for half in [a, b] {
        wait_for("the cut", || (half.metric("mirror_peer_connected") == 0).then_some(()));
    }
    lab.connect(2, true);
    for half in [a, b] {
        for (tag, digest) in [("a", &on_a), ("b", &on_b), ("moving", &last)] {
            wait_for(tag, || half.pull("team/app", tag).filter(|found| found == digest));
        }
    }
}
