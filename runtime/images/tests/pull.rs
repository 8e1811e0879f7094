//! Pulls from Debian's docker-registry, straight and through a proxy that misbehaves.

#![allow(clippy::unwrap_used)]

mod support;

use orlop_images::{Config, Credential, ImageErrorKind, ImageStore};
use orlop_types::Reference;
use support::registry::{Fault, Proxy, Registry};
use support::{Tar, image};
use tempfile::TempDir;

struct Lab {
    directory: TempDir,
    registry: Registry,
    id: String,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::start();
        let busybox = std::fs::read("/usr/bin/busybox").unwrap();
        let layers = [
            Tar::new()
                .dir("usr/bin/", 0o755)
                .symlink("bin", "usr/bin")
                .mode("usr/bin/busybox", 0o755, &busybox)
                .dir("tmp/", 0o1777)
                .bytes(),
            // Only implied parents, one of them a link below: has to be unpacked on top.
            Tar::new().symlink("bin/sh", "busybox").file("tmp/x", b"x").bytes(),
            Tar::new().file("tmp/y", b"y").bytes(),
        ];
        let image = image(&layers, <[u8]>::to_vec);
        let archive = directory.path().join("archive.tar");
        std::fs::write(&archive, image.docker_archive(&["app:1"])).unwrap();
        registry.push(&archive, "team/app:1");
        Self { directory, registry, id: image.id() }
    }

    fn store(&self, change: impl FnOnce(&mut Config)) -> ImageStore {
        let mut config = Config { root: self.directory.path().join("store"), ..Config::default() };
        change(&mut config);
        let _ = std::fs::remove_dir_all(&config.root);
        ImageStore::open(config).unwrap()
    }

    fn reference(&self, port: u16, rest: &str) -> Reference {
        Reference::parse(&format!("127.0.0.1:{port}/team/{rest}")).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_tag_and_by_digest() {
    let lab = Lab::new();
    let store = lab.store(|_| ());
    let port = lab.registry.port;
    let reference = lab.reference(port, "app:1");
    let record = store.pull(&reference, None).await.unwrap();
    assert_eq!(record.id, lab.id);
    assert_eq!(record.tags, [reference.to_string()]);
    assert!(!record.pinned);
    let rootfs = store.prepare_rootfs("c", &record.id).unwrap();
    assert_eq!(rootfs.lower.len(), 3);
    assert!(rootfs.lower[1].join("usr/bin/sh").is_symlink(), "the link below is followed");
    assert!(!rootfs.lower[1].join("bin").exists());
    let mode = |layer: usize| {
        std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(rootfs.lower[layer].join("tmp")).unwrap())
    };
    assert_eq!(mode(0) & 0o7777, 0o1777, "an implied directory looks as below");
    assert_eq!(mode(1) & 0o7777, 0o1777);
    // The same by digest, into another store.
    let by_digest = Reference::parse(&record.digests[0]).unwrap();
    let other = lab.store(|config| config.root = lab.directory.path().join("other"));
    let again = other.pull(&by_digest, None).await.unwrap();
    assert_eq!((again.id, again.tags.len(), again.digests), (record.id.clone(), 0, record.digests.clone()));
    // Pulling what is there changes nothing.
    assert_eq!(store.pull(&reference, None).await.unwrap().chain, record.chain);
    assert_eq!(store.list().unwrap().len(), 1);
    store.remove(&reference.to_string()).unwrap();
    store.remove_rootfs("c").unwrap();
    store.collect_garbage().unwrap();
    assert_eq!(store.usage().unwrap().bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there() {
    let lab = Lab::new();
    let store = lab.store(|_| ());
    for name in ["app:none", "none:1"] {
        let error = store.pull(&lab.reference(lab.registry.port, name), None).await.unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("not found"), "{error}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = store.pull(&lab.reference(nobody, "app:1"), None).await.unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("failed to connect to 127.0.0.1"), "{error}");
    assert!(store.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_download_goes_on_where_it_was() {
    let lab = Lab::new();
    let proxy = Proxy::start(lab.registry.port, Fault::Cut);
    let store = lab.store(|_| ());
    let record = store.pull(&lab.reference(proxy.port, "app:1"), None).await.unwrap();
    assert_eq!(record.id, lab.id);
    let ranges = proxy.requests().iter().filter(|head| head.to_lowercase().contains("range: bytes=")).count();
    assert!(ranges >= 1, "no range was asked for");
    assert!(store.prepare_rootfs("c", &record.id).unwrap().lower[2].join("usr/bin/busybox").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_is_refused_and_the_next_host_asked() {
    let lab = Lab::new();
    let proxy = Proxy::start(lab.registry.port, Fault::Corrupt);
    let store = lab.store(|_| ());
    let error = store.pull(&lab.reference(proxy.port, "app:1"), None).await.unwrap_err();
    assert!(error.to_string().contains("wrong content"), "{error}");
    assert_eq!(error.kind(), ImageErrorKind::Unavailable);
    store.collect_garbage().unwrap();
    assert_eq!(store.usage().unwrap().bytes, 0, "nothing stays");
    // The same proxy as a mirror: the registry itself gives the right content.
    let store = lab.store(|config| config.mirror = Some(format!("http://127.0.0.1:{}", proxy.port)));
    let before = proxy.requests().len();
    let record = store.pull(&lab.reference(lab.registry.port, "app:1"), None).await.unwrap();
    assert_eq!(record.id, lab.id);
    let asked = proxy.requests().split_off(before);
    assert!(
        asked.iter().all(|head| head.contains(&format!("?ns=127.0.0.1:{}", lab.registry.port))),
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_go_to_the_registry_only() {
    let lab = Lab::new();
    let token = Proxy::start(lab.registry.port, Fault::Token);
    let reference = lab.reference(token.port, "app:1");
    let store = lab.store(|_| ());
    for credential in [None, Some(Credential::basic("user", "wrong"))] {
        let error = store.pull(&reference, credential).await.unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::Unauthorized, "{error}");
    }
    store.pull(&reference, Some(Credential::basic("user", "pass"))).await.unwrap();
    let tokens = token
        .requests()
        .iter()
        .filter(|head| head.starts_with("GET /token") && head.to_lowercase().contains("dxnlcjpwyxnz"))
        .count();
    assert_eq!(tokens, 1, "the token is kept");
    // A mirror that wants the password does not get it.
    let mirrored = lab.store(|config| config.mirror = Some(format!("http://127.0.0.1:{}", token.port)));
    let before = token.requests().len();
    mirrored
        .pull(&lab.reference(lab.registry.port, "app:1"), Some(Credential::basic("user", "pass")))
        .await
        .unwrap();
    let asked = token.requests().split_off(before);
    assert!(
        !asked.is_empty() && asked.iter().all(|head| !head.to_lowercase().contains("authorization: basic")),
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_gets_no_credential() {
    let lab = Lab::new();
    let storage = Proxy::start(lab.registry.port, Fault::None);
    let redirecting = Proxy::start(lab.registry.port, Fault::Redirect(storage.port));
    let front = Proxy::start(redirecting.port, Fault::Token);
    let store = lab.store(|_| ());
    store.pull(&lab.reference(front.port, "app:1"), Some(Credential::basic("user", "pass"))).await.unwrap();
    assert!(!storage.requests().is_empty());
    assert!(storage.requests().iter().all(|head| !head.to_lowercase().contains("authorization:")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_mirror_is_left_and_hosts_files_are_read() {
    let lab = Lab::new();
    let good = Proxy::start(lab.registry.port, Fault::None);
    let hosts = lab.directory.path().join("certs.d");
    let registry = format!("127.0.0.1:{}", lab.registry.port);
    std::fs::create_dir_all(hosts.join("_default")).unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "server = \"http://{registry}\"\n[host.\"http://127.0.0.1:{nobody}\"]\n[host.\"http://127.0.0.1:{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        good.port
    );
    std::fs::write(hosts.join("_default/hosts.toml"), text).unwrap();
    let store = lab.store(|config| config.hosts_dir = Some(hosts));
    store.pull(&lab.reference(lab.registry.port, "app:1"), None).await.unwrap();
    assert!(good.requests().iter().any(|head| head.contains("/manifests/1?ns=")), "the mirror was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_once_are_one() {
    let lab = Lab::new();
    let proxy = Proxy::start(lab.registry.port, Fault::None);
    let store = lab.store(|_| ());
    let reference = lab.reference(proxy.port, "app:1");
    let pulls = (0..8).map(|_| store.pull(&reference, None));
    for record in futures::future::join_all(pulls).await {
        assert_eq!(record.unwrap().id, lab.id);
    }
    let blobs = proxy.requests().iter().filter(|head| head.contains("/blobs/")).count();
    assert_eq!(blobs, 4, "a configuration and three layers, once each");
    // A pull that nobody waits for any more ends and leaves nothing that a collection would not find.
    let store = lab.store(|_| ());
    let hanging = Proxy::start(lab.registry.port, Fault::Hang);
    let reference = lab.reference(hanging.port, "app:1");
    let waiting = store.pull(&reference, None);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(300), waiting).await.is_err());
    store.collect_garbage().unwrap();
    assert_eq!(std::fs::read_dir(lab.directory.path().join("store/leases")).unwrap().count(), 0);
}
