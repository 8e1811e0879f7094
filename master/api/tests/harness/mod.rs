//! A master of its own for each test: PKI, store in a temporary directory, HTTPS on a free loopback port, kubectl.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use orlop_api::{Config, Server};
use orlop_daemon::{Frame, Settings};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

pub struct Master {
    pub directory: tempfile::TempDir,
    pub config: Config,
    pub server: Server,
    frame: Frame,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Master {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        pki(directory.path());
        Self::start_in(directory)
    }

    pub fn start_in(directory: tempfile::TempDir) -> Self {
        let path = |name: &str| directory.path().join(name);
        let config = Config {
            // An address for documentation (RFC 5737): nothing is ever sent there.
            advertise_address: Some("192.0.2.1".parse().unwrap()),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], free_port()))],
            data_dir: path("master"),
            tls_cert_file: path("server.crt"),
            tls_key_file: path("server.key"),
            client_ca_file: path("ca.crt"),
            service_account_key_file: path("sa.key"),
            kubelet_client_cert_file: Some(path("apiserver-kubelet.crt")),
            kubelet_client_key_file: Some(path("apiserver-kubelet.key")),
            kubelet_ca_file: Some(path("ca.crt")),
            insecure_port: free_port(),
            ..Config::default()
        };
        for (user, file) in [("admin", "admin"), ("node", "node"), ("network", "network")] {
            kubeconfig(directory.path(), &config, user, &path(&format!("{file}.kubeconfig")));
        }
        // The store of a predecessor in the same process is closed a moment after the last handle is gone.
        for _ in 0..100 {
            if let Some((frame, server, thread)) = run(&config) {
                return Self { directory, config, server, frame, thread: Some(thread) };
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the master does not start");
    }

    /// Stops the master and gives its directory back.
    pub fn stop(mut self) -> tempfile::TempDir {
        self.end();
        std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap())
    }

    fn end(&mut self) {
        self.frame.shutdown();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Runs kubectl as the superuser and returns its output; panics when it fails.
    pub fn kubectl(&self, arguments: &str) -> String {
        self.kubectl_with(arguments, "")
    }

    pub fn kubectl_with(&self, arguments: &str, stdin: &str) -> String {
        let output = self.try_kubectl("admin", arguments, stdin);
        let text = text(&output);
        assert!(output.status.success(), "kubectl {arguments}\n{text}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs kubectl and returns what it says when it fails.
    pub fn refused(&self, arguments: &str, stdin: &str) -> String {
        let output = self.try_kubectl("admin", arguments, stdin);
        assert!(!output.status.success(), "kubectl {arguments} succeeded:\n{}", text(&output));
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn try_kubectl(&self, user: &str, arguments: &str, stdin: &str) -> Output {
        let mut child = self.command(user).args(words(arguments)).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub fn command(&self, user: &str) -> Command {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.directory.path().join(format!("{user}.kubeconfig")))
            .env("HOME", self.directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(config: &Config) -> Option<(Frame, Server, std::thread::JoinHandle<()>)> {
    let (sender, receiver) = mpsc::channel();
    let config = config.clone();
    let thread = std::thread::spawn(move || {
        let result = orlop_daemon::run(Settings::new("master"), |frame| async move {
            let server = orlop_api::start(&frame, &config).await?;
            let _ = sender.send((frame, server));
            Ok(())
        });
        if let Err(error) = result {
            eprintln!("master: {error:#}");
        }
    });
    let (frame, server) = receiver.recv().ok()?;
    Some((frame, server, thread))
}

/// Splits at spaces, except inside of single quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in text.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn pki(directory: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    let authority = params.self_signed(&key).unwrap();
    std::fs::write(directory.join("ca.crt"), authority.pem()).unwrap();
    let issuer = Issuer::new(params, key);
    leaf(directory, &issuer, "server", "kube-apiserver", &[], ExtendedKeyUsagePurpose::ServerAuth);
    leaf(directory, &issuer, "admin", "admin", &["system:masters"], ExtendedKeyUsagePurpose::ClientAuth);
    leaf(
        directory,
        &issuer,
        "node",
        "system:node:n1",
        &["system:nodes"],
        ExtendedKeyUsagePurpose::ClientAuth,
    );
    leaf(
        directory,
        &issuer,
        "apiserver-kubelet",
        "kube-apiserver-kubelet-client",
        &[],
        ExtendedKeyUsagePurpose::ClientAuth,
    );
    let network = ["system:orlop:network"];
    leaf(
        directory,
        &issuer,
        "network",
        "system:orlop:network:n1",
        &network,
        ExtendedKeyUsagePurpose::ClientAuth,
    );
    std::fs::write(directory.join("sa.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
}

fn leaf(
    directory: &Path,
    issuer: &Issuer<'_, KeyPair>,
    file: &str,
    name: &str,
    groups: &[&str],
    usage: ExtendedKeyUsagePurpose,
) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.extended_key_usages = vec![usage];
    let certificate = params.signed_by(&key, issuer).unwrap();
    std::fs::write(directory.join(format!("{file}.crt")), certificate.pem()).unwrap();
    std::fs::write(directory.join(format!("{file}.key")), key.serialize_pem()).unwrap();
}

fn kubeconfig(directory: &Path, config: &Config, user: &str, path: &PathBuf) {
    let file = |name: String| directory.join(name).display().to_string();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: '{}'}}}}]\n\
         users: [{{name: u, user: {{client-certificate: '{}', client-key: '{}'}}}}]\n",
        config.listen[0],
        file("ca.crt".to_owned()),
        file(format!("{user}.crt")),
        file(format!("{user}.key")),
    );
    std::fs::write(path, text).unwrap();
}
