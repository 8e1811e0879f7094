//! From registries to bundles to a registry behind the gap, with clients that we did not write.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;

use orlop_types::Digest;
use support::{
    Containerd, DockerRegistry, Layout, Mirror, client_config, get, image, noise, skopeo, spawn_image,
};

/// Not a test: what `spawn_image` runs.
#[test]
fn command_line() {
    let Ok(line) = std::env::var("ORLOP_TEST_LINE") else { return };
    let words: Vec<&str> = line.split('\n').collect();
    image(&words).unwrap();
}

/// `index` of two platforms with a signature, and a plain image that shares a layer.
struct Site {
    layout: Layout,
    index: Digest,
    amd: Digest,
    signature: Digest,
    shared: Vec<u8>,
}

fn site() -> Site {
    let mut layout = Layout::default();
    let shared = noise(1, 300_000);
    let amd = layout.image("amd64", &[&shared, b"amd"]);
    let arm = layout.image("arm64", &[&shared, b"arm"]);
    let index = layout.index(&[amd.clone(), arm]);
    let plain = layout.image("amd64", &[&shared, b"plain"]);
    let signature = layout.signature(&index);
    let digest = |value: &serde_json::Value| value["digest"].as_str().unwrap().parse::<Digest>().unwrap();
    let (index_digest, signature_digest) = (digest(&index), digest(&signature));
    layout.name("registry.example/team/app:1", &index);
    layout.name("docker.io/library/plain:2", &plain);
    layout.name(&format!("registry.example/team/app@{signature_digest}"), &signature);
    Site { layout, index: index_digest, amd: digest(&amd), signature: signature_digest, shared }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Round trip: archive -> registry -> signed bundle -> verified -> another registry -> skopeo by digest.
#[test]
fn a_site_behind_the_gap() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let site = site();
    let source = site.layout.write(&at("source"));
    let outside = Mirror::start(&at("outside"));
    image(&["bundle", "load", text(&source), "--insecure-unsigned", "--to", &outside.url()]).unwrap();
    let (status, referrers) =
        get(&format!("{}/v2/registry.example/team/app/referrers/{}", outside.url(), site.index));
    assert!(
        status == 200 && String::from_utf8_lossy(&referrers).contains(site.signature.as_str()),
        "{status}"
    );

    // One platform, with signatures, signed.
    image(&["bundle", "keygen", text(&at("keys"))]).unwrap();
    let (key, public) = (at("keys.key"), at("keys.pub"));
    let bundle = at("bundle.tar");
    let from = ["registry.example", "docker.io"].map(|name| format!("{name}={}", outside.url()));
    // The mirror is asked with ?ns=, for it is another host than the names say.
    let words = [
        "bundle",
        "create",
        "registry.example/team/app:1",
        "plain:2",
        "-o",
        text(&bundle),
        "--key",
        text(&key),
        "--from",
        &from[0],
        "--from",
        &from[1],
        "--platform",
        "linux/amd64",
        "--referrers",
    ];
    image(&words).unwrap();
    assert!(!at(".bundle.tar.parts").exists());
    let first = std::fs::read(&bundle).unwrap();
    image(&words).unwrap();
    assert_eq!(std::fs::read(&bundle).unwrap(), first, "the same images make the same bytes");
    image(&["bundle", "verify", text(&bundle), "--key", text(&public), "--print"]).unwrap();
    let inspected = skopeo(&[
        "inspect",
        "--raw",
        &format!("oci-archive:{}:registry.example/team/app:1", bundle.display()),
    ]);
    assert_eq!(Digest::sha256(inspected.as_bytes()), site.index, "the index is verbatim");

    // Behind the gap.
    let inside = Mirror::start(&at("inside"));
    image(&["bundle", "load", text(&bundle), "--key", text(&public), "--to", &inside.url()]).unwrap();
    let copy = format!("dir:{}", at("pulled").display());
    let by_digest = format!("docker://{}/registry.example/team/app@{}", inside.address, site.index);
    skopeo(&["copy", "--override-arch", "amd64", "--src-tls-verify=false", &by_digest, &copy]);
    assert_eq!(std::fs::read(at("pulled").join(Digest::sha256(&site.shared).hex())).unwrap(), site.shared);
    for path in [
        "docker.io/library/plain/manifests/2".to_owned(),
        format!("registry.example/team/app/manifests/{}", site.signature),
        format!("registry.example/team/app/manifests/{}", site.amd),
        "library/plain/manifests/2?ns=docker.io".to_owned(),
    ] {
        assert_eq!(get(&format!("{}/v2/{path}", inside.url())).0, 200, "{path}");
    }

    // A changed bit is seen; so is another key.
    let mut damaged = first.clone();
    let offset = damaged.windows(16).position(|window| window == &site.shared[..16]).unwrap();
    damaged[offset + 5] ^= 1;
    std::fs::write(&bundle, &damaged).unwrap();
    let error = image(&["bundle", "verify", text(&bundle), "--key", text(&public)]).unwrap_err().to_string();
    assert!(error.contains(Digest::sha256(&site.shared).as_str()), "{error}");
    let other = Mirror::start(&at("other"));
    assert!(image(&["bundle", "load", text(&bundle), "--key", text(&public), "--to", &other.url()]).is_err());
    assert_eq!(get(&format!("{}/v2/docker.io/library/plain/manifests/2", other.url())).0, 404);
    std::fs::write(&bundle, &first).unwrap();
    image(&["bundle", "keygen", text(&at("stranger"))]).unwrap();
    let error = image(&["bundle", "verify", text(&bundle), "--key", text(&at("stranger.pub"))]).unwrap_err();
    assert!(format!("{error:#}").contains("none of the trusted keys"), "{error:#}");
}

/// docker-registry: no referrers API, no mount without a name, indexes whole.
#[test]
fn sync_to_another_registry_is_incremental_and_names_what_failed() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let site = site();
    let source = site.layout.write(&at("source"));
    let outside = Mirror::start(&at("outside"));
    image(&["bundle", "load", text(&source), "--insecure-unsigned", "--to", &outside.url()]).unwrap();
    std::fs::create_dir(at("docker")).unwrap();
    let docker = DockerRegistry::start(&at("docker"));
    let from = ["registry.example", "docker.io"].map(|name| format!("{name}={}", outside.url()));
    let list = at("list");
    std::fs::write(&list, "registry.example/team/app:1\nplain:2\ndocker.io/library/absent:1\n").unwrap();
    let url = docker.url() + "/site";
    let words =
        ["sync", "-f", text(&list), "--to", &url, "--from", &from[0], "--from", &from[1], "--referrers"];
    for _ in 0..2 {
        let error = image(&words).unwrap_err().to_string();
        assert!(error.contains("1 images failed") && error.contains("library/absent:1"), "{error}");
    }
    let base = format!("{}/v2/site/registry.example/team/app", docker.url());
    assert_eq!(Digest::sha256(&get(&format!("{base}/manifests/1")).1), site.index);
    // The tag schema stands in for the API that it has not.
    let fallback = get(&format!("{base}/manifests/sha256-{}", site.index.hex()));
    assert!(String::from_utf8_lossy(&fallback.1).contains(site.signature.as_str()), "{fallback:?}");
    let error = image(&[
        "sync",
        "registry.example/team/app:1",
        "--to",
        &docker.url(),
        "--from",
        &format!("registry.example={}", outside.url()),
        "--platform",
        "linux/amd64",
    ])
    .unwrap_err()
    .to_string();
    assert!(error.contains("--platform all"), "a registry that wants whole indexes: {error}");
    assert!(image(&["sync", "--to", &docker.url()]).unwrap_err().to_string().contains("no image is named"));
}

#[test]
fn an_incremental_bundle_needs_its_base() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let large = noise(2, 400_000);
    let mut layout = Layout::default();
    let one = layout.image("amd64", &[&large, b"one"]);
    layout.name("team.example/app:1", &one);
    let old = layout.write(&at("old"));
    let two = layout.image("amd64", &[&large, b"two"]);
    layout.name("team.example/app:2", &two);
    let new = layout.write(&at("new"));
    let (base, more) = (at("base.tar"), at("more.tar"));
    image(&["bundle", "create", text(&old), "-o", text(&base)]).unwrap();
    image(&["bundle", "create", text(&new), "-o", text(&more), "--since", text(&base)]).unwrap();
    assert!(std::fs::metadata(&more).unwrap().len() < 20_000);
    image(&["bundle", "diff", text(&base), text(&more)]).unwrap();
    let verify =
        |words: &[&str]| image(&[&["bundle", "verify", text(&more), "--insecure-unsigned"], words].concat());
    verify(&["--base", text(&base)]).unwrap();
    let error = verify(&["--base", text(&more)]).unwrap_err().to_string();
    assert!(error.contains(Digest::sha256(&large).as_str()), "{error}");

    let mirror = Mirror::start(&at("mirror"));
    let load =
        |path: &Path| image(&["bundle", "load", text(path), "--insecure-unsigned", "--to", &mirror.url()]);
    let error = load(&more).unwrap_err().to_string();
    assert!(error.contains("is not in") && error.contains(Digest::sha256(&large).as_str()), "{error}");
    load(&base).unwrap();
    load(&more).unwrap();
    assert_eq!(get(&format!("{}/v2/team.example/app/manifests/2", mirror.url())).0, 200);
    let error =
        image(&["bundle", "load", text(&base), "--to", &mirror.url(), "--key", text(&base)]).unwrap_err();
    assert!(format!("{error:#}").contains("failed to read key"), "{error:#}");
}

/// Archives of others, made by skopeo, give the same images.
#[test]
fn archives_of_skopeo() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let mut layout = Layout::default();
    // skopeo's docker-archive wants a real tar.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    builder.append_data(&mut header, "hello", &b"hello"[..]).unwrap();
    let layer = builder.into_inner().unwrap();
    let plain = layout.image("amd64", &[&layer]);
    layout.name("x.example/plain:1", &plain);
    let source = format!("oci:{}:x.example/plain:1", layout.write(&at("source")).display());
    let mirror = Mirror::start(&at("mirror"));
    for (form, target) in [
        ("docker", format!("docker-archive:{}:x.example/docker:1", at("docker.tar").display())),
        ("layout", format!("oci-archive:{}:x.example/layout:1", at("layout.tar").display())),
        ("dir", format!("dir:{}", at("dir").display())),
    ] {
        skopeo(&["copy", &source, &target]);
        let path = if form == "dir" { at("dir") } else { at(&format!("{form}.tar")) };
        let name = format!("x.example/{form}:1");
        image(&[
            "bundle",
            "load",
            text(&path),
            "--insecure-unsigned",
            "--name",
            &name,
            "--to",
            &mirror.url(),
        ])
        .unwrap();
        let pulled = at(&format!("pulled-{form}"));
        let from = format!("docker://{}/x.example/{form}:1", mirror.address);
        skopeo(&["copy", "--src-tls-verify=false", &from, &format!("dir:{}", pulled.display())]);
        let manifest: serde_json::Value =
            serde_json::from_slice(&std::fs::read(pulled.join("manifest.json")).unwrap()).unwrap();
        let digest = manifest["layers"][0]["digest"].as_str().unwrap();
        assert!(pulled.join(digest.trim_start_matches("sha256:")).exists(), "{form}");
    }
    // The storage of docker-registry, as oc-mirror packs it.
    std::fs::create_dir(at("registry")).unwrap();
    let registry = DockerRegistry::start(&at("registry"));
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &source,
        &format!("docker://{}/x.example/tree:1", registry.address),
    ]);
    drop(registry);
    image(&["bundle", "load", text(&at("registry/storage")), "--insecure-unsigned", "--to", &mirror.url()])
        .unwrap();
    assert_eq!(get(&format!("{}/v2/x.example/tree/manifests/1", mirror.url())).0, 200);
}

/// Killed at many points and run again, a copy is whole, and nothing half is named.
#[test]
fn killed_and_taken_up_again() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let mut layout = Layout::default();
    let layers: Vec<Vec<u8>> = (0..6).map(|seed| noise(seed + 10, 2 << 20)).collect();
    for number in 0..4_usize {
        let own = format!("own {number}");
        let plain = layout.image("amd64", &[&layers[number], &layers[number + 1], own.as_bytes()]);
        layout.name(&format!("k.example/app{number}:1"), &plain);
    }
    let source = layout.write(&at("source"));
    let outside = Mirror::start(&at("outside"));
    image(&["bundle", "load", text(&source), "--insecure-unsigned", "--to", &outside.url()]).unwrap();
    let from = format!("k.example={}", outside.url());
    let names: Vec<String> = (0..4).map(|number| format!("k.example/app{number}:1")).collect();
    let bundle = at("bundle.tar");
    let mut words = vec!["bundle", "create", "-o", text(&bundle), "--from", &from];
    words.extend(names.iter().map(String::as_str));
    let inside = Mirror::start(&at("inside"));
    let load = ["bundle", "load", text(&bundle), "--insecure-unsigned", "--to", &inside.url()];
    for round in 0..12_u64 {
        let mut child = spawn_image(&words);
        // Not a wait for anything: the kill comes at another point each time.
        std::thread::sleep(std::time::Duration::from_millis(round * 23));
        child.kill().unwrap();
        child.wait().unwrap();
        if bundle.exists() {
            image(&["bundle", "verify", text(&bundle), "--insecure-unsigned"]).unwrap();
        }
    }
    image(&words).unwrap();
    for round in 0..12_u64 {
        let mut child = spawn_image(&load);
        std::thread::sleep(std::time::Duration::from_millis(round * 17));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    image(&load).unwrap();
    for number in 0..4 {
        let pulled = format!("dir:{}", at(&format!("pulled{number}")).display());
        let name = format!("docker://{}/k.example/app{number}:1", inside.address);
        skopeo(&["copy", "--src-tls-verify=false", &name, &pulled]);
    }
    let left: Vec<_> =
        std::fs::read_dir(work.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter().all(|name| !name.to_string_lossy().starts_with('.')),
        "nothing unfinished is left: {left:?}"
    );
}

/// What is put into the mirror's directory is served, what is not signed is refused, and a restart reads nothing again.
#[test]
fn a_directory_of_bundles() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let site = site();
    let source = site.layout.write(&at("source"));
    image(&["bundle", "keygen", text(&at("keys"))]).unwrap();
    std::fs::create_dir(at("bundles")).unwrap();
    let signed = at("bundles/signed.tar");
    image(&["bundle", "create", text(&source), "-o", text(&signed), "--key", text(&at("keys.key"))]).unwrap();
    image(&["bundle", "create", text(&source), "-o", text(&at("bundles/unsigned.tar"))]).unwrap();
    let config = || orlop_mirror::Config {
        root: at("root"),
        bundles: Some(at("bundles")),
        bundle_key_file: Some(at("keys.pub")),
        ..orlop_mirror::Config::default()
    };
    let mirror = Mirror::with(config());
    let metrics = |mirror: &Mirror| String::from_utf8(get(&format!("{}/metrics", mirror.url())).1).unwrap();
    let wait = |mirror: &Mirror, line: &str| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(90);
        while !metrics(mirror).contains(line) {
            assert!(std::time::Instant::now() < deadline, "{line}: {}", metrics(mirror));
        }
    };
    wait(&mirror, "mirror_bundle_failures_total 1");
    wait(&mirror, "mirror_bundles_loaded_total 1");
    let base = format!("{}/v2/registry.example/team/app", mirror.url());
    assert_eq!(Digest::sha256(&get(&format!("{base}/manifests/1")).1), site.index);
    let referrers = get(&format!("{base}/referrers/{}", site.index)).1;
    assert!(String::from_utf8_lossy(&referrers).contains(site.signature.as_str()));
    let layer = Digest::sha256(&site.shared);
    assert_eq!(get(&format!("{}/v2/docker.io/library/plain/blobs/{layer}", mirror.url())).1, site.shared);
    drop(mirror);

    let mirror = Mirror::with(config());
    wait(&mirror, "mirror_bundle_failures_total 1");
    assert!(metrics(&mirror).contains("mirror_bundles_loaded_total 0"), "{}", metrics(&mirror));
    assert_eq!(get(&format!("{}/v2/docker.io/library/plain/manifests/2", mirror.url())).0, 200);
}

/// The files of `mirror client-config`, read by those they are for; the mirror wants an account for pushes.
#[test]
fn clients_read_their_files_and_pushes_need_an_account() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let mut layout = Layout::default();
    // An empty archive: two blocks of nothing.
    let plain = layout.image("amd64", &[&[0; 1024]]);
    layout.name("registry.example/team/app:1", &plain);
    let source = layout.write(&at("source"));
    std::fs::write(at("users"), orlop_mirror::user_line("ann", "ann-pw").unwrap()).unwrap();
    let auth = orlop_mirror::AuthConfig { htpasswd_file: Some(at("users")), ..Default::default() };
    let config = orlop_mirror::Config { root: at("mirror"), auth: Some(auth), ..Default::default() };
    let mirror = Mirror::with(config);
    let load = |more: &[&str]| {
        let url = mirror.url();
        image(&[&["bundle", "load", text(&source), "--insecure-unsigned", "--to", &url], more].concat())
    };
    std::fs::write(at("nobody.json"), "{}").unwrap();
    let error = load(&["--authfile", text(&at("nobody.json"))]).unwrap_err().to_string();
    assert!(error.contains("denied"), "{error}");
    let accounts =
        format!(r#"{{"auths": {{"{}": {{"username": "ann", "password": "ann-pw"}}}}}}"#, mirror.address);
    std::fs::write(at("ann.json"), accounts).unwrap();
    load(&["--authfile", text(&at("ann.json"))]).unwrap();

    // The first half of the pair is down.
    let down = ["--mirror", "http://127.0.0.1:1", "--peer", &mirror.url()];
    let write = |client: &str| {
        client_config(
            &[&down[..], &["--for", client, "--registry", "registry.example", "--write", text(&at(client))]]
                .concat(),
        )
        .unwrap();
    };
    ["containerd", "podman", "docker"].into_iter().for_each(write);
    let containerd = Containerd::start(work.path());
    let hosts = at("containerd");
    let name = "registry.example/team/app:1";
    containerd.ctr(&["images", "pull", "--snapshotter", "native", "--hosts-dir", text(&hosts), name]);
    let conf = at("podman/50-orlop-mirror.conf");
    let name = format!("docker://{name}");
    let inspected = skopeo(&["--registries-conf", text(&conf), "inspect", "--raw", &name]);
    assert_eq!(Digest::sha256(inspected.as_bytes()).as_str(), plain["digest"].as_str().unwrap());
    let docker: serde_json::Value =
        serde_json::from_slice(&std::fs::read(at("docker/daemon.json")).unwrap()).unwrap();
    assert_eq!(docker["registry-mirrors"][1], mirror.url());
}

#[test]
fn what_manifests_need_and_a_bundle_has() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let bundle = at("bundle.tar");
    image(&["bundle", "create", text(&site().layout.write(&at("source"))), "-o", text(&bundle)]).unwrap();
    std::fs::create_dir_all(at("manifests/deep")).unwrap();
    let pod = |name: &str| format!("kind: Pod\nspec: {{containers: [{{image: '{name}'}}]}}\n");
    std::fs::write(at("manifests/deep/a.yaml"), pod("plain:2")).unwrap();
    std::fs::write(at("manifests/notes.txt"), pod("notes:1")).unwrap();
    let needed = |more: &[&str]| {
        image(&[&["list-needed", "-f", text(&at("manifests")), "--against", text(&bundle)], more].concat())
    };
    needed(&["--strict"]).unwrap();
    std::fs::write(at("manifests/b.yaml"), format!("{}---\nbad: {{{{ x }}}}y\n", pod("absent:1"))).unwrap();
    assert!(needed(&[]).unwrap_err().to_string().contains("1 images are missing"));
    std::fs::write(at("manifests/b.yaml"), "bad: {{ x }}y\n").unwrap();
    needed(&[]).unwrap();
    assert!(needed(&["--strict"]).unwrap_err().to_string().contains("1 problems"));
}

/// A registry without the referrers API as source; a layout and a bundle as targets.
#[test]
fn sync_from_another_registry_into_a_layout_and_a_bundle() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let site = site();
    let source = site.layout.write(&at("source"));
    std::fs::create_dir(at("docker")).unwrap();
    let docker = DockerRegistry::start(&at("docker"));
    image(&["bundle", "load", text(&source), "--insecure-unsigned", "--flat", "--to", &docker.url()])
        .unwrap();
    let from = ["registry.example", "docker.io"].map(|name| format!("{name}={}", docker.url()));
    let (layout, bundle) = (format!("oci:{}", at("layout").display()), at("bundle.tar"));
    for to in [layout.as_str(), &layout, text(&bundle)] {
        let words = ["sync", "registry.example/team/app:1", "plain:2", "--to", to, "--referrers"];
        image(&[&words[..], &["--from", &from[0], "--from", &from[1]]].concat()).unwrap();
    }
    let names = |path: &str| {
        let index = std::fs::read(Path::new(path).join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let name = |entry: &serde_json::Value| {
            entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().to_owned()
        };
        index["manifests"].as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    let signature = format!("registry.example/team/app@{}", site.signature);
    let expected = ["docker.io/library/plain:2", "registry.example/team/app:1", &signature];
    assert_eq!(names(text(&at("layout"))), expected);
    assert!(!at("layout/ingest").exists() && !at(".bundle.tar.parts").exists());
    image(&["bundle", "verify", text(&bundle), "--insecure-unsigned", "--print"]).unwrap();
    // What came by way of the registry is what went in, byte for byte.
    let again = at("again.tar");
    image(&["bundle", "create", text(&at("layout")), "-o", text(&again)]).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&bundle).unwrap());
}

#[test]
fn pulls_with_an_account() {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    let mut layout = Layout::default();
    let plain = layout.image("amd64", &[b"layer"]);
    layout.name("team/app:1", &plain);
    let source = layout.write(&at("source"));
    std::fs::write(at("users"), orlop_mirror::user_line("ann", "ann-pw").unwrap()).unwrap();
    let auth = orlop_mirror::AuthConfig {
        htpasswd_file: Some(at("users")),
        anonymous_pull: false,
        ..Default::default()
    };
    let mirror =
        Mirror::with(orlop_mirror::Config { root: at("mirror"), auth: Some(auth), ..Default::default() });
    let accounts =
        format!(r#"{{"auths": {{"{}": {{"username": "ann", "password": "ann-pw"}}}}}}"#, mirror.address);
    std::fs::write(at("ann.json"), accounts).unwrap();
    std::fs::write(at("nobody.json"), "{}").unwrap();
    let load = ["bundle", "load", text(&source), "--insecure-unsigned", "--flat", "--to", &mirror.url()];
    image(&[&load[..], &["--authfile", text(&at("ann.json"))]].concat()).unwrap();
    let (name, to) = (format!("{}/team/app:1", mirror.address), format!("oci:{}", at("layout").display()));
    let sync = |accounts: &str| image(&["sync", &name, "--to", &to, "--authfile", text(&at(accounts))]);
    assert!(sync("nobody.json").unwrap_err().to_string().contains("denied"));
    sync("ann.json").unwrap();
}
