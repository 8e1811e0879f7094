//! Who may do what, as curl, skopeo and podman see it. The docker client is not among them: it leaves logging in, pushing and pulling
//! to a daemon that the test machines do not have. What it sends to the token service is sent by curl.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use orlop_daemon::{Frame, Settings};
use orlop_mirror::{Action, AuthConfig, Config, Rule};
use orlop_types::Digest;
use serde_json::{Value, json};

struct Registry {
    address: SocketAddr,
    frame: Frame,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Registry {
    /// With the users ann, bob and carl, whose passwords are their names with a `-pw` behind.
    fn start(work: &Path, auth: AuthConfig) -> Self {
        let users = work.join("users");
        let line = |user: &str| format!("{user}:{}\n", bcrypt::hash(format!("{user}-pw"), 4).unwrap());
        if !users.exists() {
            std::fs::write(&users, ["ann", "bob", "carl"].map(line).concat()).unwrap();
        }
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = Config {
            listen: address,
            root: work.join("root"),
            auth: Some(AuthConfig { htpasswd_file: Some(users), ..auth }),
            ..Config::default()
        };
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

    /// The answer with its head.
    fn curl(&self, words: &[&str], path: &str) -> String {
        let url = format!("http://{}{path}", self.address);
        let output =
            Command::new("curl").args(["-s", "-i", "-m", "10"]).args(words).arg(url).output().expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn status(&self, words: &[&str], path: &str) -> u16 {
        let answer = self.curl(words, path);
        answer.split(' ').nth(1).unwrap_or_else(|| panic!("{answer}")).parse().unwrap()
    }

    /// The document of the token service.
    fn token(&self, words: &[&str], query: &str) -> Value {
        let answer = self.curl(words, &format!("/token{query}"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str(answer.split("\r\n\r\n").last().unwrap()).unwrap()
    }

    fn push(&self, name: &str, words: &[&str]) -> u16 {
        let digest = Digest::sha256(b"blob");
        let words = [&["-X", "POST", "-d", "blob"], words].concat();
        self.status(&words, &format!("/v2/{name}/blobs/uploads/?digest={digest}"))
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

fn rule(user: &str, repository: &str, actions: &[Action]) -> Rule {
    Rule { users: vec![user.into()], repositories: vec![repository.into()], actions: actions.to_vec() }
}

/// carl may pull only.
fn shop() -> AuthConfig {
    let rules = vec![
        rule("bob", "team/*", &[Action::Pull, Action::Push]),
        rule("carl", "*", &[Action::Pull]),
        rule("authenticated", "*", &[Action::Pull, Action::Push, Action::Delete]),
    ];
    AuthConfig { rules, ..AuthConfig::default() }
}

fn bearer(document: &Value) -> String {
    format!("Authorization: Bearer {}", document["token"].as_str().unwrap())
}

#[test]
fn passwords_by_curl() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path(), shop());
    // Clients find the way to the tokens at /v2/.
    let ping = registry.curl(&[], "/v2/");
    let realm = format!(
        r#"www-authenticate: Bearer realm="http://{}/token",service="orlop-mirror""#,
        registry.address
    );
    assert!(
        ping.starts_with("HTTP/1.1 401") && ping.contains(&realm) && ping.contains("UNAUTHORIZED"),
        "{ping}"
    );
    assert_eq!(registry.status(&["-u", "ann:ann-pw"], "/v2/"), 200);
    assert_eq!(registry.status(&["-u", "ann:wrong"], "/v2/"), 401);
    assert_eq!(registry.status(&["-u", "nobody:ann-pw"], "/v2/"), 401);
    assert_eq!(registry.status(&["-H", "Authorization: Basic !"], "/v2/"), 401);
    assert_eq!(registry.status(&["-H", "Authorization: Negotiate x"], "/v2/"), 401);
    // HTTP/2 has no Host field.
    let ping = registry.curl(&["--http2-prior-knowledge"], "/v2/");
    assert!(ping.starts_with("HTTP/2 401") && ping.contains(&realm), "{ping}");

    assert_eq!(registry.push("team/app", &[]), 401);
    let push = registry.curl(&["-X", "POST"], "/v2/team/app/blobs/uploads/");
    assert!(push.contains(r#",scope="repository:team/app:pull,push""#), "{push}");
    assert_eq!(registry.push("team/app", &["-u", "carl:carl-pw"]), 403);
    assert_eq!(registry.push("team/app", &["-u", "ann:bob-pw"]), 401);
    assert_eq!(registry.push("team/app", &["-u", "bob:bob-pw"]), 201);
    assert_eq!(registry.push("other", &["-u", "ann:ann-pw"]), 201);

    // Whoever is there may pull, but a wrong password is told.
    let blob = format!("/v2/team/app/blobs/{}", Digest::sha256(b"blob"));
    assert_eq!(registry.status(&[], &blob), 200);
    assert_eq!(registry.status(&["-u", ":"], &blob), 200);
    assert_eq!(registry.status(&["-u", "ann:wrong"], &blob), 401);
    let denied = registry.curl(&["-X", "DELETE", "-u", "bob:bob-pw"], &blob);
    assert!(
        denied.contains("403") && denied.contains("DENIED") && denied.contains("bob may not delete"),
        "{denied}"
    );
    assert_eq!(
        registry.status(&["-X", "DELETE", "-u", "ann:ann-pw"], &blob.replace("team/app", "other")),
        202
    );
    // Loopback sees metrics.
    assert!(registry.curl(&[], "/metrics").contains("mirror_auth_failures_total 6"));
}

#[test]
fn tokens_by_curl() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path(), shop());
    let anybody = registry.token(&[], "?service=orlop-mirror&scope=repository:a:pull");
    assert_eq!(registry.status(&["-H", &bearer(&anybody)], "/v2/"), 200);
    assert_eq!(registry.push("a", &["-H", &bearer(&anybody)]), 401);
    assert_eq!(registry.status(&["-u", "ann:wrong"], "/token"), 401);

    let narrow = registry.token(&["-u", "bob:bob-pw"], "?scope=repository%3Ateam%2Fapp%3Apull%2Cpush");
    assert_eq!(registry.push("team/app", &["-H", &bearer(&narrow)]), 201);
    let elsewhere = registry.curl(&["-X", "POST", "-H", &bearer(&narrow)], "/v2/team/b/blobs/uploads/");
    assert!(elsewhere.contains("401") && elsewhere.contains(r#"error="insufficient_scope""#), "{elsewhere}");
    // What was asked for is not what is allowed.
    let wide = registry.token(&["-u", "carl:carl-pw"], "?scope=repository:team/app:*");
    assert_eq!(registry.push("team/app", &["-H", &bearer(&wide)]), 403);

    // A mount needs the right to read there too, and both scopes come in one token.
    let digest = Digest::sha256(b"blob");
    let two = registry
        .token(&["-u", "bob:bob-pw"], "?scope=repository:team/b:pull,push&scope=repository:team/app:pull");
    let mount = format!("/v2/team/b/blobs/uploads/?mount={digest}&from=team/app");
    assert_eq!(registry.status(&["-X", "POST", "-H", &bearer(&two)], &mount), 201);

    // As docker does it: a password gives a token that gives tokens.
    let form =
        ["-d", "grant_type=password&username=ann&password=ann-pw&service=s&client_id=c&access_type=offline"];
    let login = registry.token(&form, "");
    let refresh = login["refresh_token"].as_str().unwrap().to_owned();
    let form = format!(
        "grant_type=refresh_token&refresh_token={refresh}&service=s&client_id=c&scope=repository:a:push+repository:b:push"
    );
    let fresh = registry.token(&["-d", &form], "");
    assert!(
        registry.push("a", &["-H", &bearer(&fresh)]) == 201
            && registry.push("b", &["-H", &bearer(&fresh)]) == 201
    );
    assert_eq!(registry.push("a", &["-H", &format!("Authorization: Bearer {refresh}")]), 401);
    let access = fresh["token"].as_str().unwrap();
    assert_eq!(
        registry.status(&["-d", &format!("grant_type=refresh_token&refresh_token={access}")], "/token"),
        401
    );
    assert_eq!(registry.status(&["-d", "grant_type=code"], "/token"), 400);
    assert_eq!(registry.status(&["-X", "PUT"], "/token"), 405);
    let damaged = format!("Authorization: Bearer {}x", &access[..access.len() - 1]);
    let refused = registry.curl(&["-H", &damaged], "/v2/");
    assert!(refused.contains(r#"error="invalid_token""#), "{refused}");

    // Tokens outlive the process, but not the password.
    drop(registry);
    let registry = Registry::start(work.path(), shop());
    assert_eq!(registry.push("a", &["-H", &bearer(&fresh)]), 201);
    drop(registry);
    std::fs::remove_file(work.path().join("users")).unwrap();
    let registry = Registry::start(work.path(), shop());
    assert_eq!(registry.push("a", &["-H", &bearer(&fresh)]), 401);
    assert_eq!(registry.status(&["-d", &form], "/token"), 401);
    assert_eq!(registry.status(&["-H", &bearer(&anybody)], "/v2/"), 200);
}

#[test]
fn where_pulls_are_not_free() {
    let work = tempfile::tempdir().unwrap();
    let rules = vec![
        rule("*", "public/*", &[Action::Pull]),
        rule("ann", "*", &[Action::Pull, Action::Push]),
        rule("bob", "team/b", &[Action::Pull, Action::Push]),
    ];
    let auth = AuthConfig { anonymous_pull: false, rules, ..AuthConfig::default() };
    let registry = Registry::start(work.path(), auth);
    let digest = Digest::sha256(b"blob");
    for name in ["team/a", "team/b"] {
        assert_eq!(registry.push(name, &["-u", "ann:ann-pw"]), 201);
    }
    let blob = |name: &str| format!("/v2/{name}/blobs/{digest}");
    assert_eq!(registry.status(&[], &blob("public/x")), 404);
    assert_eq!(registry.status(&[], &blob("team/a")), 401);
    assert_eq!(registry.status(&["-u", "bob:bob-pw"], &blob("team/a")), 403);
    assert_eq!(registry.status(&["-u", "bob:bob-pw"], &blob("team/b")), 200);
    // A token for anybody is enough for what anybody may, and for nothing else.
    let token = registry.token(&[], "?scope=repository:team/a:pull");
    assert_eq!(registry.status(&["-H", &bearer(&token)], &blob("public/x")), 404);
    assert_eq!(registry.status(&["-H", &bearer(&token)], &blob("team/a")), 401);
    // What may not be read is not mounted either, not even from wherever it happens to be.
    for from in ["&from=team/a", ""] {
        let mount = format!("/v2/team/b/blobs/uploads/?mount={digest}{from}");
        assert_eq!(registry.status(&["-X", "POST", "-u", "bob:bob-pw"], &mount), 202, "{from}");
    }
    // Nor is it given to whoever says that he is another mirror.
    assert_eq!(registry.status(&[], &format!("/_orlop/v1/peek/blobs/{digest}")), 403);
    assert_eq!(registry.status(&[], "/_orlop/v1/changes?node=1&epoch=0&since=0"), 403);
    assert_eq!(registry.status(&[], "/v2/_catalog"), 401);
    assert_eq!(registry.status(&["-u", "bob:bob-pw"], "/v2/_catalog"), 403);
    assert_eq!(registry.status(&["-u", "ann:ann-pw"], "/v2/_catalog"), 200);
}

/// An OCI layout with one image.
fn layout(directory: &Path) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"digest": digest.as_str(), "size": bytes.len()})
    };
    let with_type = |mut descriptor: Value, kind: &str| {
        descriptor["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        descriptor
    };
    // An empty archive: two blocks of nothing.
    let layer = put(&[0; 1024]);
    let rootfs = json!({"type": "layers", "diff_ids": [layer["digest"]]});
    let config =
        put(json!({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": with_type(config, "config.v1+json"),
        "layers": [with_type(layer, "layer.v1.tar")],
    });
    let manifest = put(manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [with_type(manifest, "manifest.v1+json")]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn output(program: &str, words: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr } =
        Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

#[test]
fn skopeo_logs_in_pushes_and_deletes() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path(), shop());
    layout(&work.path().join("source"));
    let source = format!("oci:{}", work.path().join("source").display());
    let image = |name: &str| format!("docker://{}/{name}", registry.address);
    let authfile = work.path().join("auth.json");
    let authfile = authfile.to_str().unwrap();
    let copy = |more: &[&str], to: &str| {
        output(
            "skopeo",
            &[
                &["--insecure-policy", "copy", "--dest-tls-verify=false", "--src-tls-verify=false"],
                more,
                &[&source, to],
            ]
            .concat(),
        )
    };
    let (done, text) = copy(&["--dest-no-creds"], &image("team/app:1"));
    assert!(!done && text.contains("log in for this"), "{text}");
    let (done, text) = copy(&["--dest-creds", "ann:wrong"], &image("team/app:1"));
    assert!(!done && text.contains("another password"), "{text}");
    let (done, text) = copy(&["--dest-creds", "carl:carl-pw"], &image("team/app:1"));
    assert!(!done && text.contains("carl may not push to team/app"), "{text}");

    let address = registry.address.to_string();
    let login = |password: &str| {
        let words =
            ["login", "--tls-verify=false", "--authfile", authfile, "-u", "ann", "-p", password, &address];
        output("skopeo", &words)
    };
    assert!(!login("wrong").0);
    let (done, text) = login("ann-pw");
    assert!(done, "{text}");
    for (name, to) in [("team/app:1", "team/app:1"), ("team/copy:1", "team/copy:1")] {
        let (done, text) = copy(&["--authfile", authfile], &image(to));
        assert!(done, "{name}: {text}");
    }
    // Without an account.
    let target = format!("dir:{}", work.path().join("target").display());
    let words = [
        "--insecure-policy",
        "copy",
        "--src-no-creds",
        "--src-tls-verify=false",
        &image("team/app:1"),
        &target,
    ];
    let (done, text) = output("skopeo", &words);
    assert!(done, "{text}");
    let delete = |more: &[&str]| {
        output(
            "skopeo",
            &[&["--insecure-policy", "delete", "--tls-verify=false"], more, &[image("team/app:1").as_str()]]
                .concat(),
        )
    };
    assert!(!delete(&["--creds", "bob:bob-pw"]).0);
    let (done, text) = delete(&["--authfile", authfile]);
    assert!(done, "{text}");
}

#[test]
fn podman_logs_in_pushes_and_pulls() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start(work.path(), shop());
    layout(&work.path().join("source"));
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    let (root, runroot, authfile) = (path("storage"), path("run"), path("auth.json"));
    std::fs::create_dir_all(path(".config/containers")).unwrap();
    let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
    std::fs::write(path(".config/containers/policy.json"), policy).unwrap();
    let podman = |words: &[&str]| {
        let home = format!("HOME={}", work.path().display());
        let store = [&home, "podman", "--root", &root, "--runroot", &runroot, "--storage-driver", "vfs"];
        output("env", &[&store, words].concat())
    };
    let image = format!("{}/team/app:1", registry.address);
    let (source, base) = (format!("oci:{}", path("source")), format!("{}/base:1", registry.address));
    let to = ["--dest-tls-verify=false", "--dest-creds=ann:ann-pw", &source, &format!("docker://{base}")];
    let (done, text) = output("skopeo", &[&["--insecure-policy", "copy"], &to[..]].concat());
    assert!(done, "{text}");
    let (done, text) = podman(&["pull", "-q", "--tls-verify=false", &base]);
    assert!(done, "{text}");
    let id = text.trim().to_owned();
    let push = ["push", "--tls-verify=false", "--authfile", &authfile, &id, &image];
    std::fs::write(&authfile, "{}").unwrap();
    let (done, text) = podman(&push);
    assert!(!done && text.contains("log in for this"), "{text}");
    let address = registry.address.to_string();
    let login = |user: &str, password: &str| {
        podman(&[
            "login",
            "--tls-verify=false",
            "--authfile",
            &authfile,
            "-u",
            user,
            "-p",
            password,
            &address,
        ])
    };
    assert!(!login("bob", "ann-pw").0);
    for (user, may) in [("carl", false), ("bob", true)] {
        let (done, text) = login(user, &format!("{user}-pw"));
        assert!(done, "{text}");
        let (done, text) = podman(&push);
        assert_eq!(done, may, "{user}: {text}");
    }
    let (done, text) = podman(&["rmi", "-f", &id]);
    assert!(done, "{text}");
    std::fs::write(&authfile, "{}").unwrap();
    let (done, text) = podman(&["pull", "-q", "--tls-verify=false", "--authfile", &authfile, &image]);
    assert!(done && text.trim() == id, "{text}");
}
