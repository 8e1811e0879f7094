//! Requests that name no registry.

use std::net::TcpListener;

use orlop_mirror::{Config, UpstreamListener};

use crate::mirror::{Mirror, NAME, config};
use crate::upstream::Upstream;

#[test]
fn a_bare_name_means_the_default_upstream() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let (digest, layer) = upstream.image("one", b"layer");
    let default = Some(format!("http://{}", upstream.address));
    let mirror = Mirror::start(work.path(), Config { default_upstream: default, ..config(upstream.address) });
    // Who pushes asks for blobs first.
    assert_eq!(mirror.curl(&["-I"], &format!("/v2/team/app/blobs/{layer}")).status, 404);
    assert_eq!(upstream.asked(), [""; 0]);
    let seen = mirror.curl(&[], "/v2/team/app/manifests/one");
    assert_eq!((seen.status, seen.header("docker-content-digest")), (200, digest.as_str()));
    assert_eq!(mirror.curl(&["-I"], &format!("/v2/team/app/blobs/{layer}")).status, 200);
    assert_eq!(mirror.curl(&[], &format!("/v2/team/app/blobs/{layer}")).body, b"layer");
    assert_eq!(
        mirror.pull(&format!("manifests/{digest}")).header("orlop-cache"),
        "hit",
        "one store for both"
    );
    // Other registries stay apart, and what is pushed is ours.
    assert_eq!(mirror.curl(&[], "/v2/team/app/manifests/one?ns=other.example").status, 404);
    let kind = "Content-Type: application/vnd.oci.image.index.v1+json";
    let own = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let put = ["-X", "PUT", "-H", kind, "-d", own];
    assert_eq!(mirror.curl(&put, "/v2/team/app/manifests/own").status, 201);
    assert_eq!(mirror.curl(&[], "/v2/team/app/manifests/own").status, 200);
    assert_eq!(mirror.curl(&[], "/v2/team/app/manifests/one").status, 404, "the pushed repository");
    assert_eq!(mirror.pull("manifests/one").status, 200);
}

#[test]
fn an_address_may_be_for_one_upstream() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let (_, layer) = upstream.image("one", b"layer");
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listeners = vec![UpstreamListener { listen, upstream: NAME.to_owned() }];
    let mut mirror = Mirror::start(work.path(), Config { listeners, ..config(upstream.address) });
    assert_eq!(mirror.curl(&[], "/v2/team/app/manifests/one").status, 404);
    let main = std::mem::replace(&mut mirror.address, listen);
    assert_eq!(mirror.curl(&[], "/v2/team/app/manifests/one").status, 200);
    assert_eq!(mirror.curl(&[], &format!("/v2/team/app/blobs/{layer}")).body, b"layer");
    mirror.address = main;
    assert_eq!(mirror.curl(&[], "/v2/team/app/manifests/one").status, 404);
    assert_eq!(mirror.pull("manifests/one").status, 200);
}
