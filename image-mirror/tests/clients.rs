//! The registry on loopback, used by skopeo and curl.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use orlop_daemon::{Frame, Settings};
use orlop_mirror::{Config, Mode};
use orlop_types::Digest;
use serde_json::json;

struct Registry {
    address: SocketAddr,
    frame: Frame,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Registry {
    fn start(root: &Path, read_only: bool) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mode = if read_only { Mode::ReadOnly } else { Mode::Normal };
        let config = Config { listen: address, root: root.to_owned(), mode, ..Config::default() };
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            orlop_daemon::run(Settings::new("mirror"), |frame| async move {
                orlop_mirror::start(&frame, config).await?;
                sender.send(frame)?;
                Ok(())
            })
            .unwrap();
        });
        let frame = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        Self { address, frame, thread: Some(thread) }
    }

    fn curl(&self, words: &[&str], path: &str) -> String {
        let url = format!("http://{}{path}", self.address);
        let output =
            Command::new("curl").args(["-s", "-i", "-m", "10"]).args(words).arg(url).output().expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn skopeo(&self, words: &[&str]) {
        let output = Command::new("skopeo").arg("--insecure-policy").args(words).output().expect("skopeo");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.frame.shutdown();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// An OCI layout with one image; gives the digests of layer and manifest.
fn layout(directory: &Path, layer: &[u8]) -> (Digest, Digest) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        digest
    };
    let layer_digest = put(layer);
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer_digest.as_str()]}}).to_string();
    let config_digest = put(config.as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest.as_str(), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest.as_str(), "size": layer.len()}],
    })
    .to_string();
    let manifest_digest = put(manifest.as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": manifest_digest.as_str(),
        "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "1"},
    }]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    (layer_digest, manifest_digest)
}

#[test]
fn skopeo_pushes_and_pulls_and_a_restart_keeps_everything() {
    let work = tempfile::tempdir().unwrap();
    let (source, target, root) =
        (work.path().join("source"), work.path().join("target"), work.path().join("root"));
    let layer: Vec<u8> = (0..700_000_u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
    let (layer_digest, manifest_digest) = layout(&source, &layer);
    let registry = Registry::start(&root, false);
    let image = |address: SocketAddr| format!("docker://{address}/team/app:1");
    registry.skopeo(&[
        "copy",
        "--preserve-digests",
        "--dest-tls-verify=false",
        &format!("oci:{}:1", source.display()),
        &image(registry.address),
    ]);
    drop(registry);

    let registry = Registry::start(&root, true);
    registry.skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &image(registry.address),
        &format!("dir:{}", target.display()),
    ]);
    assert_eq!(std::fs::read(target.join(layer_digest.hex())).unwrap(), layer);
    let head = registry.curl(&["-I"], "/v2/team/app/manifests/1");
    assert!(
        head.contains(&format!("docker-content-digest: {manifest_digest}"))
            && head.contains("content-length: "),
        "{head}"
    );
    let part = registry.curl(
        &["-r", "0-99", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"],
        &format!("/v2/team/app/blobs/{layer_digest}"),
    );
    assert_eq!(part, "206 100");
    let refused = registry.curl(&["-X", "POST"], "/v2/team/app/blobs/uploads/");
    assert!(refused.contains("405") && refused.contains("read-only"), "{refused}");
    assert!(registry.curl(&[], "/v2/team/app/tags/list").contains(r#""tags":["1"]"#));
    assert!(registry.curl(&[], "/v2/team/other/tags/list").contains("NAME_UNKNOWN"));
    let catalogue = registry.curl(&[], "/metrics");
    assert!(catalogue.contains("mirror_http_requests_total"), "{catalogue}");
}

#[test]
fn uploads_in_chunks_wrong_digests_mounts_and_referrers() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path(), false);
    let started = registry.curl(&["-X", "POST"], "/v2/a/blobs/uploads/");
    let location =
        started.lines().find_map(|line| line.strip_prefix("location: ")).unwrap().trim().to_owned();
    let chunk = |range: &str, data: &str| {
        registry.curl(
            &[
                "-X",
                "PATCH",
                "-H",
                &format!("Content-Range: {range}"),
                "-H",
                "Content-Type: application/octet-stream",
                "-d",
                data,
            ],
            &location,
        )
    };
    assert!(chunk("0-4", "hello").contains("range: 0-4"));
    assert!(chunk("9-10", "xx").contains("416"), "out of order");
    assert!(chunk("5-10", " world").contains("range: 0-10"));
    let digest = Digest::sha256(b"hello world");
    let wrong = registry.curl(&["-X", "PUT"], &format!("{location}?digest={}", Digest::sha256(b"other")));
    assert!(wrong.contains("DIGEST_INVALID"), "{wrong}");
    let whole =
        registry.curl(&["-X", "POST", "-d", "hello world"], &format!("/v2/a/blobs/uploads/?digest={digest}"));
    assert!(whole.contains("201"), "{whole}");
    let mounted = registry.curl(&["-X", "POST"], &format!("/v2/b/blobs/uploads/?mount={digest}&from=a"));
    assert!(mounted.contains("201"), "{mounted}");

    let manifest = |subject: Option<&Digest>| {
        let mut value = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/example",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest.as_str(), "size": 11},
            "layers": [],
        });
        if let Some(subject) = subject {
            value["subject"] = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": subject.as_str(), "size": 1});
        }
        value.to_string()
    };
    let put = |reference: &str, body: &str| {
        registry.curl(
            &["-X", "PUT", "-H", "Content-Type: application/vnd.oci.image.manifest.v1+json", "-d", body],
            &format!("/v2/b/manifests/{reference}"),
        )
    };
    let base = manifest(None);
    assert!(put("base", &base).contains("201"));
    let subject = Digest::sha256(base.as_bytes());
    let signature = manifest(Some(&subject));
    let stored = put(Digest::sha256(signature.as_bytes()).as_str(), &signature);
    assert!(stored.contains(&format!("oci-subject: {subject}")), "{stored}");
    let referrers =
        registry.curl(&[], &format!("/v2/b/referrers/{subject}?artifactType=application/example"));
    assert!(
        referrers.contains("oci-filters-applied: artifactType")
            && referrers.contains(Digest::sha256(signature.as_bytes()).as_str()),
        "{referrers}"
    );
    let missing = base.replace(digest.as_str(), Digest::sha256(b"absent").as_str());
    assert!(put("broken", &missing).contains("MANIFEST_BLOB_UNKNOWN"));
    assert!(put("noise", "no json").contains("MANIFEST_INVALID"));
    assert!(registry.curl(&["-X", "DELETE"], "/v2/b/manifests/base").contains("202"));
    assert!(registry.curl(&[], "/v2/b/manifests/base").contains("MANIFEST_UNKNOWN"));
    assert!(
        std::fs::read_dir(work.path().join("ingest")).unwrap().next().is_none(),
        "nothing unfinished is left"
    );
}

/// docker streams a body of unknown length and closes without one; oras sends everything with the closing request.
#[test]
fn uploads_as_docker_and_oras_send_them() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path(), false);
    let start = || {
        let started = registry.curl(&["-X", "POST"], "/v2/a/blobs/uploads/");
        started.lines().find_map(|line| line.strip_prefix("location: ")).unwrap().trim().to_owned()
    };
    let content: Vec<u8> = (0..3_000_000_u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
    let digest = Digest::sha256(&content);
    let file = work.path().join("content");
    std::fs::write(&file, &content).unwrap();
    let body = format!("@{}", file.display());
    let kind = "Content-Type: application/octet-stream";

    let location = start();
    let streamed = ["-X", "PATCH", "-H", "Transfer-Encoding: chunked", "-H", kind, "--data-binary", &body];
    let patched = registry.curl(&streamed, &location);
    assert!(patched.contains("202") && patched.contains("range: 0-2999999"), "{patched}");
    let closed = registry.curl(&["-X", "PUT"], &format!("{location}?digest={digest}"));
    assert!(closed.contains("201") && closed.contains(digest.as_str()), "{closed}");
    assert!(registry.curl(&["-X", "DELETE"], &format!("/v2/a/blobs/{digest}")).contains("202"));

    for more in [&[][..], &["-H", "Transfer-Encoding: chunked"]] {
        let whole = [&["-X", "PUT", "-H", kind, "--data-binary", &body], more].concat();
        let closed = registry.curl(&whole, &format!("{}?digest={digest}", start()));
        assert!(closed.contains("201"), "{closed}");
        assert!(registry.curl(&["-I"], &format!("/v2/a/blobs/{digest}")).contains("content-length: 3000000"));
        assert!(registry.curl(&["-X", "DELETE"], &format!("/v2/a/blobs/{digest}")).contains("202"));
    }
}

/// What the OCI distribution conformance suite asks beyond what clients do (specification sections in the names).
#[test]
fn conformance_beyond_clients() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path(), false);
    let blob = Digest::sha256(b"{}");
    let pushed = registry.curl(&["-X", "POST", "-d", "{}"], &format!("/v2/a/x/blobs/uploads/?digest={blob}"));
    assert!(pushed.contains("201"), "{pushed}");
    // Mounting: anywhere without `from`, never from where it is not.
    let mounted = registry.curl(&["-X", "POST"], &format!("/v2/b/blobs/uploads/?mount={blob}"));
    assert!(mounted.contains("201"), "{mounted}");
    let absent = registry.curl(&["-X", "POST"], &format!("/v2/c/blobs/uploads/?mount={blob}&from=none"));
    assert!(absent.contains("202"), "{absent}");
    let unknown = registry.curl(&["-X", "POST"], "/v2/c/blobs/uploads/?digest-algorithm=md5");
    assert!(unknown.contains("400") && unknown.contains("DIGEST_INVALID"), "{unknown}");
    // Ranges and conditions.
    let path = format!("/v2/b/blobs/{blob}");
    for (range, status) in
        [("bytes=1-0", "416"), ("bytes=5-9", "416"), ("bytes=-1", "206"), ("bytes=0-0,1-1", "200")]
    {
        let answer = registry.curl(&["-H", &format!("Range: {range}")], &path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{range}: {answer}");
    }
    let etag = format!("If-None-Match: \"{blob}\"");
    assert!(registry.curl(&["-H", &etag], &path).starts_with("HTTP/1.1 304"));
    assert!(registry.curl(&[], &path.replace(':', "%3A")).starts_with("HTTP/1.1 200"), "an escaped digest");

    // Manifests: tags beside a digest, sha512 of a tag, the size.
    let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let kind = "Content-Type: application/vnd.oci.image.index.v1+json";
    let put = |path: &str, body: &str| registry.curl(&["-X", "PUT", "-H", kind, "--data-binary", body], path);
    let digest = Digest::sha256(index.as_bytes());
    let tagged = put(&format!("/v2/b/manifests/{digest}?tag=1.0&tag=latest"), index);
    assert!(tagged.contains("201") && tagged.contains("oci-tag: 1.0, latest"), "{tagged}");
    assert!(registry.curl(&["-I"], "/v2/b/manifests/latest").contains(digest.as_str()));
    assert!(put(&format!("/v2/b/manifests/{digest}?tag=.x"), index).contains("MANIFEST_INVALID"));
    let mut long = orlop_types::Digester::new(orlop_types::Algorithm::Sha512);
    long.update(index.as_bytes());
    let long = long.finish();
    let stored = put(&format!("/v2/b/manifests/long?digest={long}"), index);
    assert!(stored.contains("201") && stored.contains(long.as_str()), "{stored}");
    let wrong = put(&format!("/v2/b/manifests/long?digest={}", Digest::sha256(b"other")), index);
    assert!(wrong.contains("400") && wrong.contains("DIGEST_INVALID"), "{wrong}");
    for (length, status) in [(4 << 20, "201"), ((4 << 20) + 1, "413")] {
        let file = work.path().join("large.json");
        std::fs::write(&file, format!("{index}{}", " ".repeat(length - index.len()))).unwrap();
        let answer = put("/v2/b/manifests/large", &format!("@{}", file.display()));
        assert!(answer.contains(&format!("HTTP/1.1 {status}")), "{length}: {answer}");
    }

    // Lists.
    assert!(put(&format!("/v2/a/x/manifests/{digest}"), index).contains("201"));
    let catalog = registry.curl(&[], "/v2/_catalog?n=1");
    assert!(catalog.contains(r#"{"repositories":["a/x"]}"#), "{catalog}");
    assert!(catalog.contains("link: </v2/_catalog?n=1&last=a/x>; rel=\"next\""), "{catalog}");
    let rest = registry.curl(&[], "/v2/_catalog?n=1&last=a/x");
    assert!(rest.contains(r#"["b"]"#) && !rest.contains("link:"), "{rest}");
    let none = registry.curl(&[], "/v2/b/tags/list?n=0");
    assert!(none.contains(r#""tags":[]"#) && !none.contains("link:"), "{none}");
    assert!(registry.curl(&[], "/v2/b/tags/list?n=x").starts_with("HTTP/1.1 400"));
}

#[test]
fn records_of_an_older_version_are_taken_over() {
    let work = tempfile::tempdir().unwrap();
    let (source, root) = (work.path().join("source"), work.path().join("root"));
    let (layer_digest, manifest_digest) = layout(&source, b"layer");
    let old = root.join("repositories/team/app");
    let write = |path: &str, text: &str| {
        let path = old.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    std::fs::create_dir_all(root.join("blobs/sha256")).unwrap();
    for entry in std::fs::read_dir(source.join("blobs/sha256")).unwrap() {
        let entry = entry.unwrap();
        let (name, size) = (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len());
        std::fs::copy(entry.path(), root.join("blobs/sha256").join(&name)).unwrap();
        write(&format!("_blobs/sha256/{name}"), &size.to_string());
    }
    let kind = "application/vnd.oci.image.manifest.v1+json";
    write(&format!("_manifests/sha256/{}", manifest_digest.hex()), kind);
    write("_tags/1", manifest_digest.as_str());
    write("_tags/seen", &format!("{manifest_digest} fetched"));
    write("_tags/.new-cut", "");

    let registry = Registry::start(&root, false);
    for path in ["manifests/1", "manifests/seen", &format!("blobs/{layer_digest}")] {
        let head = registry.curl(&["-I"], &format!("/v2/team/app/{path}"));
        assert!(head.contains("200 OK"), "{path}: {head}");
    }
    assert!(registry.curl(&[], "/v2/team/app/tags/list").contains(r#"["1","seen"]"#));
    assert!(!root.join("repositories").exists());
    drop(registry);
    let registry = Registry::start(&root, false);
    assert!(registry.curl(&["-I"], "/v2/team/app/manifests/1").contains(kind));
}
