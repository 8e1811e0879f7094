//! Pulls from a registry that fails, lies or is slow.

#![allow(clippy::unwrap_used)]

mod support;

use orlop_images::{Config, Credential, ImageErrorKind, ImageRecord, ImageStore};
use orlop_types::{Digest, Reference};
use serde_json::json;
use support::fake::{Fake, Reply, Request};
use support::{Tar, TestImage, gzip, image};
use tempfile::TempDir;

struct Lab {
    directory: TempDir,
    registry: Fake,
    image: TestImage,
}

const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

impl Lab {
    fn new() -> Self {
        let noise: Vec<u8> =
            (0..150_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let layers = [Tar::new().file("noise", &noise).bytes(), Tar::new().file("small", b"s").bytes()];
        let image = image(&layers, gzip);
        let registry = Fake::start();
        registry.put(&image, "1");
        Self { directory: tempfile::tempdir().unwrap(), registry, image }
    }

    fn open(&self, change: impl FnOnce(&mut Config)) -> ImageStore {
        let mut config = Config { root: self.directory.path().join("store"), ..Config::default() };
        change(&mut config);
        ImageStore::open(config).unwrap()
    }

    async fn pull(&self, store: &ImageStore) -> Result<ImageRecord, (ImageErrorKind, String)> {
        self.pull_as(store, None).await
    }

    async fn pull_as(
        &self,
        store: &ImageStore,
        credential: Option<Credential>,
    ) -> Result<ImageRecord, (ImageErrorKind, String)> {
        let reference = Reference::parse(&self.registry.name("team/app:1")).unwrap();
        store.pull(&reference, credential).await.map_err(|error| (error.kind(), error.to_string()))
    }

    fn layer(&self) -> Digest {
        Digest::sha256(&self.image.layers[0])
    }

    /// Requests for the large layer.
    fn asked(&self) -> Vec<Request> {
        let layer = self.layer();
        self.registry.requests().into_iter().filter(|request| request.is_blob(&layer)).collect()
    }

    /// Another manifest for tag 1; `change` gets it as JSON.
    fn rewrite(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let mut manifest: serde_json::Value = serde_json::from_slice(&self.image.manifest()).unwrap();
        change(&mut manifest);
        self.registry.put_manifest("1", MEDIA_TYPE, manifest.to_string().as_bytes());
    }
}

fn left(store: &ImageStore) -> u64 {
    store.collect_garbage().unwrap();
    store.usage().unwrap().bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_goes_on() {
    type Second = fn(&Request, &[u8]) -> Reply;
    let cases: [(&str, Second, bool); 5] = [
        (
            "a part",
            |request, blob| {
                let (start, size) = (request.range_start(), blob.len());
                Reply::new(206, &blob[start..])
                    .header("Content-Range", format!("bytes {start}-{}/{size}", size - 1))
            },
            true,
        ),
        ("the whole", |_, blob| Reply::new(200, blob), true),
        (
            "another part",
            |request, blob| {
                let (start, size) = (request.range_start() + 7, blob.len());
                Reply::new(206, &blob[start..])
                    .header("Content-Range", format!("bytes {start}-{}/{size}", size - 1))
            },
            false,
        ),
        (
            "a part of something else",
            |request, blob| {
                let start = request.range_start();
                Reply::new(206, &blob[start..])
                    .header("Content-Range", format!("bytes {start}-{}/{}", blob.len() - 2, blob.len() - 1))
            },
            false,
        ),
        ("no part", |_, _| Reply::new(416, ""), false),
    ];
    for (name, second, is_taken) in cases {
        let lab = Lab::new();
        let (layer, blob) = (lab.layer(), lab.image.layers[0].clone());
        let mut count = 0;
        lab.registry.script(move |request| {
            if !request.is_blob(&layer) {
                return None;
            }
            count += 1;
            match count {
                1 => Some(Reply::new(200, &blob[..]).cut(blob.len() / 2)),
                2 => Some(second(request, &blob)),
                _ => None,
            }
        });
        let store = lab.open(|_| ());
        let record = lab.pull(&store).await.unwrap();
        assert_eq!(record.id, lab.image.id(), "{name}");
        let asked = lab.asked();
        assert!(asked[1].range_start() > 0, "{name}: {asked:?}");
        assert_eq!(asked.len(), if is_taken { 2 } else { 3 }, "{name}");
        if !is_taken {
            assert_eq!(asked[2].header("range"), "", "{name}: the whole is asked for");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_never_gets_on_is_given_up() {
    // Half of it each time, never more: bounded.
    let lab = Lab::new();
    let (layer, blob) = (lab.layer(), lab.image.layers[0].clone());
    lab.registry.script(move |request| {
        request.is_blob(&layer).then(|| Reply::new(200, &blob[..]).cut(blob.len() / 2))
    });
    let store = lab.open(|_| ());
    let (kind, text) = lab.pull(&store).await.unwrap_err();
    assert!(kind == ImageErrorKind::Unavailable && text.contains("was cut"), "{text}");
    assert_eq!(lab.asked().len(), 5);
    assert_eq!(left(&store), 0);
    // It says nothing more: the error says so, and how long that was.
    let (layer, blob) = (lab.layer(), lab.image.layers[0].clone());
    lab.registry.script(move |request| {
        request.is_blob(&layer).then(|| Reply::new(200, &blob[..]).hang(blob.len() / 2))
    });
    drop(store);
    let store = lab.open(|config| config.pull_progress_timeout_seconds = 1);
    let watched = store.clone();
    let (pulled, seen) = tokio::join!(lab.pull(&store), async move {
        loop {
            if let Some(pull) =
                watched.pulls().into_iter().find(|pull| pull.bytes_done > 0 && pull.layers_done == 1)
            {
                return pull;
            }
            tokio::task::yield_now().await;
        }
    });
    let (kind, text) = pulled.unwrap_err();
    assert!(kind == ImageErrorKind::Unavailable && text.contains("gave no data for 1s"), "{text}");
    assert_eq!((seen.image.as_str(), seen.layers), (&*lab.registry.name("team/app:1"), 2));
    assert!(seen.bytes_done < seen.bytes);
    assert_eq!(store.pulls(), []);
    assert_eq!(left(&store), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_heeded_within_a_bound() {
    for status in [429, 503] {
        for kind in ["manifests", "blobs"] {
            let lab = Lab::new();
            let mut count = 0;
            lab.registry.script(move |request| {
                count += usize::from(request.path.contains(kind));
                (count == 1 && request.path.contains(kind))
                    .then(|| Reply::new(status, "").header("Retry-After", 0))
            });
            lab.pull(&lab.open(|_| ())).await.unwrap();
            let lab = Lab::new();
            lab.registry.script(move |request| {
                request.path.contains(kind).then(|| Reply::new(status, "").header("Retry-After", 3600))
            });
            let (error, text) = lab.pull(&lab.open(|_| ())).await.unwrap_err();
            assert_eq!(error, ImageErrorKind::Unavailable);
            assert!(text.contains("try again in 3600s"), "{text}");
            let first =
                lab.registry.requests().into_iter().find(|request| request.path.contains(kind)).unwrap();
            let same = lab.registry.requests().iter().filter(|request| request.path == first.path).count();
            assert_eq!(same, 1, "{status} {kind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_sizes_and_content() {
    let lab = Lab::new();
    let store = lab.open(|_| ());
    // Longer and shorter than announced: seen before the first byte.
    for change in [1i64, -1] {
        lab.rewrite(|manifest| {
            let size = manifest["layers"][0]["size"].as_i64().unwrap();
            manifest["layers"][0]["size"] = (size + change).into();
        });
        let (_, text) = lab.pull(&store).await.unwrap_err();
        assert!(text.contains("were announced"), "{text}");
        assert_eq!(left(&store), 0);
    }
    // A stream that is longer than its head says anything about.
    let (layer, mut blob) = (lab.layer(), lab.image.layers[0].clone());
    lab.rewrite(|_| ());
    blob.extend([0; 100]);
    let long = blob.clone();
    lab.registry.script(move |request| {
        request.is_blob(&layer).then(|| Reply::new(200, &long[..]).header("Transfer-Encoding", "identity"))
    });
    let (_, text) = lab.pull(&store).await.unwrap_err();
    assert!(text.contains("were announced"), "{text}");
    // The blob is there already, with another size than the manifest says.
    lab.registry.script(|_| None);
    lab.pull(&store).await.unwrap();
    lab.rewrite(|manifest| manifest["layers"][0]["size"] = 5.into());
    let (_, text) = lab.pull(&store).await.unwrap_err();
    assert!(text.contains("5 were announced"), "{text}");
    // Sizes that cannot be.
    for size in [json!(-1), json!(u64::MAX), json!(1.5)] {
        lab.rewrite(|manifest| manifest["layers"][0]["size"] = size.clone());
        let (kind, text) = lab.pull(&store).await.unwrap_err();
        assert!(kind == ImageErrorKind::Invalid && text.contains("malformed"), "{size}: {text}");
    }
    // An index that lies about its manifest, one in itself, and a manifest without end.
    let manifest = lab.image.manifest();
    let index = |digest: &Digest, size: usize| {
        let platform = json!({"architecture": support::host_architecture(), "os": "linux"});
        let entry = json!({"mediaType": MEDIA_TYPE, "digest": digest, "size": size, "platform": platform});
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}).to_string()
    };
    let digest = Digest::sha256(&manifest);
    lab.registry.put_manifest(
        "1",
        "application/vnd.oci.image.index.v1+json",
        index(&digest, manifest.len() + 1).as_bytes(),
    );
    let (_, text) = lab.pull(&store).await.unwrap_err();
    assert!(text.contains("the index says"), "{text}");
    let mut below = (digest, manifest.len());
    for _ in 0..6 {
        let text = index(&below.0, below.1);
        lab.registry.put_manifest("1", "application/vnd.oci.image.index.v1+json", text.as_bytes());
        below = (Digest::sha256(text.as_bytes()), text.len());
    }
    let (_, text) = lab.pull(&store).await.unwrap_err();
    assert!(text.contains("nested too deeply"), "{text}");
    let endless = format!("{{\"schemaVersion\":2,\"x\":\"{}\"}}", "x".repeat(9 << 20));
    lab.registry.put_manifest("1", MEDIA_TYPE, endless.as_bytes());
    let (_, text) = lab.pull(&store).await.unwrap_err();
    assert!(text.contains("a document of more than"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_not_for_here() {
    let lab = Lab::new();
    let store = lab.open(|_| ());
    for media_type in ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/x-squashfs", ""]
    {
        lab.rewrite(|manifest| manifest["layers"][1]["mediaType"] = media_type.into());
        let (kind, text) = lab.pull(&store).await.unwrap_err();
        assert!(kind == ImageErrorKind::Invalid && text.contains("unknown media type"), "{text}");
    }
    assert!(lab.registry.requests().iter().all(|request| !request.path.contains("/blobs/")));
    // A non-distributable layer is taken from the registry, never from the URLs that the manifest names.
    let elsewhere = Fake::start();
    let url = format!("http://{}", elsewhere.name("layer"));
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    lab.rewrite(|manifest| {
        manifest["layers"][1]["mediaType"] = foreign.into();
        manifest["layers"][1]["urls"] = json!([url]);
    });
    let layer = Digest::sha256(&lab.image.layers[1]);
    let missing = layer.clone();
    lab.registry.script(move |request| request.is_blob(&missing).then(|| Reply::new(404, "")));
    let (kind, text) = lab.pull(&store).await.unwrap_err();
    assert!(
        kind == ImageErrorKind::Invalid
            && text.contains(layer.as_str())
            && text.contains("non-distributable"),
        "{text}"
    );
    lab.registry.script(|_| None);
    lab.pull(&store).await.unwrap();
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_unpacks_to_no_more_than_allowed() {
    let lab = Lab::new();
    let store = lab.open(|config| config.max_unpacked_image_bytes = 601_000);
    let (kind, text) = lab.pull(&store).await.unwrap_err();
    assert!(kind == ImageErrorKind::Invalid && text.contains("more than 601000 bytes, together"), "{text}");
    assert_eq!(left(&store), 0);
    drop(store);
    lab.pull(&lab.open(|config| config.max_unpacked_image_bytes = 605_000)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_is_asked_before_the_registry() {
    let lab = Lab::new();
    let policy = lab.directory.path().join("policy.json");
    let store = lab.open(|config| config.signature_policy = Some(policy.clone()));
    let registry = format!("127.0.0.1:{}", lab.registry.port);
    let scoped = |requirement: &str| json!({"default": [{"type": "reject"}], "transports": {"docker": {format!("{registry}/team"): [{"type": requirement}]}}});
    for (content, words) in [
        (None, "No such file"),
        (Some("{".to_owned()), "malformed"),
        (
            Some(json!({"default": [{"type": "reject"}]}).to_string()),
            "images of the default policy are rejected",
        ),
        (Some(scoped("signedBy").to_string()), "need signedBy, which is not supported yet"),
        (Some(scoped("sigstoreSigned").to_string()), "need sigstoreSigned, which is not supported yet"),
    ] {
        if let Some(content) = content {
            std::fs::write(&policy, content).unwrap();
        }
        let (kind, text) = lab.pull(&store).await.unwrap_err();
        assert_eq!(kind, ImageErrorKind::Refused);
        assert!(text.starts_with("SignatureValidationFailed: ") && text.contains(words), "{text}");
        assert!(text.contains(policy.to_str().unwrap()), "{text}");
    }
    assert!(lab.registry.requests().is_empty(), "nothing was asked for");
    std::fs::write(&policy, scoped("insecureAcceptAnything").to_string()).unwrap();
    lab.pull(&store).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_by_configuration_and_by_record() {
    let lab = Lab::new();
    let name = lab.registry.name("team/app:1");
    for (pinned, expected) in
        [(name.clone(), true), (lab.registry.name("team/*"), true), (lab.registry.name("team/app:2"), false)]
    {
        let store = lab.open(|config| config.pinned = vec![pinned.clone()]);
        assert_eq!(lab.pull(&store).await.unwrap().pinned, expected, "{pinned}");
    }
    let store = lab.open(|_| ());
    for pinned in [true, false] {
        store.set_pinned(&name, pinned).unwrap();
        assert_eq!(store.find(&name).unwrap().unwrap().pinned, pinned);
        // A pull does not change it.
        assert_eq!(lab.pull(&store).await.unwrap().pinned, pinned);
    }
    assert!(store.set_pinned("nothing", true).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_credential() {
    let lab = Lab::new();
    let port = lab.registry.port;
    let wants = |good: &'static str, challenge: String| {
        move |request: &Request| {
            let granted = request.header("authorization") == good || !request.path.starts_with("/v2/");
            (!granted).then(|| Reply::new(401, "").header("WWW-Authenticate", &challenge))
        }
    };
    let store = lab.open(|_| ());
    // Basic, and a token that is sent as it is.
    lab.registry.script(wants("Basic dXNlcjpwYTpzcw==", "Basic realm=\"r\"".into()));
    assert_eq!(lab.pull(&store).await.unwrap_err().0, ImageErrorKind::Unauthorized);
    lab.pull_as(&store, Some(Credential::basic("user", "pa:ss"))).await.unwrap();
    lab.registry.script(wants("Bearer given", "Bearer realm=\"http://127.0.0.1:1/none\"".into()));
    let given = Credential { registry_token: "given".into(), ..Credential::default() };
    lab.pull_as(&store, Some(given)).await.unwrap();
    // A refresh token is exchanged by POST; its answer counts for the repository.
    let challenge = format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\"");
    let registry = wants("Bearer fresh", challenge.clone());
    lab.registry.script(move |request| match request.path.as_str() {
        "/token" => {
            let good = request.method == "POST" && request.body.contains("refresh_token=id%2Ftoken");
            Some(Reply::new(if good { 200 } else { 400 }, r#"{"access_token":"fresh"}"#))
        }
        _ => registry(request),
    });
    let identity = Credential { identity_token: "id/token".into(), ..Credential::default() };
    lab.pull_as(&store, Some(identity.clone())).await.unwrap();
    // A token service that sends the refresh token elsewhere is not followed.
    let elsewhere = Fake::start();
    let target = format!("http://{}", elsewhere.name("token"));
    let registry = wants("Bearer fresh2", challenge);
    lab.registry.script(move |request| match request.path.as_str() {
        "/token" => Some(Reply::new(307, "").header("Location", &target)),
        _ => registry(request),
    });
    let (_, text) = lab.pull_as(&store, Some(identity)).await.unwrap_err();
    assert!(text.contains("a redirect of a request with content"), "{text}");
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_may_do_what_its_file_says() {
    let lab = Lab::new();
    let hosts = lab.directory.path().join("certs.d");
    let directory = hosts.join(format!("127.0.0.1_{}_", lab.registry.port));
    std::fs::create_dir_all(&directory).unwrap();
    let store = lab.open(|config| config.hosts_dir = Some(hosts.clone()));
    let registry = format!("http://127.0.0.1:{}", lab.registry.port);
    for (capability, missing) in [("pull", "resolve"), ("resolve", "pull")] {
        std::fs::write(
            directory.join("hosts.toml"),
            format!("server = \"{registry}\"\ncapabilities = [\"{capability}\"]\n"),
        )
        .unwrap();
        let (kind, text) = lab.pull(&store).await.unwrap_err();
        assert!(
            kind == ImageErrorKind::Invalid && text.contains(&format!("may be used to {missing}")),
            "{text}"
        );
    }
    // A mirror resolves only, another gives content below a path of its own, with a header.
    let (first, second) = (Fake::start(), Fake::start());
    first.put(&lab.image, "1");
    second.put(&lab.image, "1");
    let text = format!(
        "server = \"{registry}\"\n[host.\"http://127.0.0.1:{}\"]\ncapabilities = [\"resolve\"]\n\
         [host.\"http://127.0.0.1:{}/v2/proxy\"]\ncapabilities = [\"pull\"]\noverride_path = true\n\
         [host.\"http://127.0.0.1:{}/v2/proxy\".header]\nx-token = [\"t\"]\n",
        first.port, second.port, second.port
    );
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
    lab.registry.script(|_| panic!("the registry itself is not needed"));
    lab.pull(&store).await.unwrap();
    assert!(first.requests().iter().all(|request| request.path.contains("/manifests/1?ns=127.0.0.1")));
    let asked = second.requests();
    assert!(asked.len() == 3 && asked.iter().all(|request| request.header("x-token") == "t"), "{asked:?}");
    assert!(asked.iter().all(|request| request.path.starts_with("/v2/proxy/team/app/blobs/")), "{asked:?}");
}
