//! Upstreams that want to know who asks, and settings of their hosts.

use orlop_mirror::{Config, UpstreamCredential};

use crate::mirror::{Mirror, NAME, config};
use crate::upstream::{Answer, Upstream};

fn wants(upstream: &Upstream, authorization: &'static str) {
    upstream.bend(move |ask, usual| match ask.header("authorization") == Some(authorization) {
        true => usual,
        false => Answer::new(401, "").with("www-authenticate", "Basic realm=\"x\""),
    });
}

#[test]
fn a_credential_is_read_again() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    let (_, layer) = upstream.image("one", b"layer");
    let file = work.path().join("config.json");
    let write = |auth: &str| {
        let text = format!(r#"{{"auths":{{"{NAME}":{{"auth":"{auth}"}}}}}}"#);
        std::fs::write(&file, text).unwrap();
    };
    let credential = UpstreamCredential { docker_config_file: Some(file.clone()), ..Default::default() };
    let credentials = [(NAME.to_owned(), credential)].into();
    let root = work.path().join("mirror");
    let mirror =
        Mirror::start(&root, Config { upstream_credentials: credentials, ..config(upstream.address) });
    wants(&upstream, "Basic dTpw");
    assert_eq!(mirror.pull("manifests/one").status, 404, "no file yet");
    write("dTpw");
    assert_eq!(mirror.pull("manifests/one").status, 200);
    assert_eq!(mirror.pull(&format!("blobs/{layer}")).body, b"layer");
    wants(&upstream, "Basic dTpxcQ==");
    assert_eq!(mirror.pull("manifests/one").header("orlop-cache"), "stale");
    write("dTpxcQ==");
    assert_eq!(mirror.pull("manifests/one").header("orlop-cache"), "revalidated");
}

#[test]
fn a_hosts_file_says_more_of_an_upstream() {
    let (work, upstream) = (tempfile::tempdir().unwrap(), Upstream::start());
    upstream.image("one", b"layer");
    let hosts = work.path().join("hosts");
    std::fs::create_dir_all(hosts.join(NAME)).unwrap();
    std::fs::write(hosts.join(NAME).join("hosts.toml"), "[header]\nx-key = \"value\"\n").unwrap();
    let root = work.path().join("mirror");
    let mirror = Mirror::start(&root, Config { hosts_directory: Some(hosts), ..config(upstream.address) });
    assert_eq!(mirror.pull("manifests/one").status, 200);
    assert_eq!(upstream.asks()[0].header("x-key"), Some("value"));
}
