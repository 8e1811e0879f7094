//! `orlop mirror client-config`: the file that points a client at a mirror, or at both halves of a pair.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::layout::replace;
use crate::target::Address;

/// A mirror that is down must cost a pull no more.
const DIAL_TIMEOUT: &str = "1s";

/// `mirror client-config`
#[derive(Clone, Debug, Args)]
pub struct ClientConfigArgs {
    /// The mirror's URL
    #[arg(long, value_name = "URL")]
    mirror: String,
    /// The other half of a pair, asked when the mirror does not answer; may be repeated
    #[arg(long, value_name = "URL")]
    peer: Vec<String>,
    /// Whose file
    #[arg(long = "for", value_enum)]
    client: Client,
    /// Certificate authority of the mirrors, PEM: its path on the client
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Nothing is fetched from the registries themselves
    #[arg(long)]
    only: bool,
    /// Registries that podman asks the mirrors for; it knows no default
    #[arg(long, value_name = "NAME", default_values = ["docker.io", "quay.io", "registry.k8s.io", "ghcr.io", "gcr.io"])]
    registry: Vec<String>,
    /// Writes into this directory (/etc/docker, /etc/containerd/certs.d, /etc/containers/registries.conf.d, …) instead of printing
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
}

/// A client of the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Client {
    /// daemon.json; docker asks mirrors for Docker Hub alone
    Docker,
    /// certs.d/_default/hosts.toml
    Containerd,
    /// The same for Orlop's runtime (hostsDir)
    Orlop,
    /// registries.conf.d/, also for CRI-O and skopeo
    Podman,
}

/// Prints or writes the file.
///
/// # Errors
/// A URL that is none, or a file that cannot be read or written.
pub fn client_config(args: &ClientConfigArgs) -> anyhow::Result<()> {
    let mut mirrors = Vec::new();
    for url in std::iter::once(&args.mirror).chain(&args.peer) {
        mirrors.push(Address::parse(url, false)?);
    }
    let file = match args.client {
        Client::Docker => "daemon.json",
        Client::Containerd | Client::Orlop => "_default/hosts.toml",
        Client::Podman => "50-orlop-mirror.conf",
    };
    let existing = match (&args.write, args.client) {
        (Some(directory), Client::Docker) => read(&directory.join(file))?,
        _ => None,
    };
    let text = match args.client {
        Client::Docker => docker(&mirrors, existing.as_deref())?,
        Client::Containerd | Client::Orlop => containerd(&mirrors, args.ca.as_deref(), args.only),
        Client::Podman => podman(&mirrors, &args.registry),
    };
    let Some(directory) = &args.write else {
        std::io::stdout().write_all(text.as_bytes())?;
        return Ok(());
    };
    let path = directory.join(file);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("failed to make {}", parent.display()))?;
    }
    replace(&path, text.as_bytes())?;
    writeln!(std::io::stdout(), "wrote {}", path.display())?;
    match (args.client, &args.ca) {
        (Client::Docker, Some(ca)) => trust(Path::new("/etc/docker/certs.d"), &mirrors, ca),
        (Client::Podman, Some(ca)) => trust(Path::new("/etc/containers/certs.d"), &mirrors, ca),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
    }
}

/// Both take authorities from a directory of their own, which is not ours to fill.
fn trust(directory: &Path, mirrors: &[Address], ca: &Path) -> anyhow::Result<()> {
    for mirror in mirrors {
        let place = directory.join(&mirror.authority).join("ca.crt");
        writeln!(std::io::stdout(), "copy {} to {}", ca.display(), place.display())?;
    }
    Ok(())
}

/// What else the file says stays.
fn docker(mirrors: &[Address], existing: Option<&str>) -> anyhow::Result<String> {
    let mut document: Value = match existing.map(str::trim).filter(|text| !text.is_empty()) {
        Some(text) => serde_json::from_str(text).context("the daemon.json that is there is no JSON")?,
        None => json!({}),
    };
    let fields = document.as_object_mut().context("the daemon.json that is there is no object")?;
    let urls: Vec<&str> = mirrors.iter().map(|mirror| mirror.url.as_str()).collect();
    fields.insert("registry-mirrors".to_owned(), json!(urls));
    Ok(format!("{}\n", serde_json::to_string_pretty(&document)?))
}

/// containerd docs/hosts.md. The mirrors learn the registry by `?ns=`, so that one file is for all.
fn containerd(mirrors: &[Address], ca: Option<&Path>, only: bool) -> String {
    let mut text = String::new();
    if only {
        // Without `server` the registry itself comes last.
        text.push_str(&format!("server = {}\n\n", quoted(&mirrors[mirrors.len() - 1].url)));
        if let Some(ca) = ca {
            text = format!("ca = {}\n{text}", quoted(&ca.to_string_lossy()));
        }
    }
    for mirror in mirrors {
        let _ = write!(
            text,
            "[host.{}]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"{DIAL_TIMEOUT}\"\n",
            quoted(&mirror.url)
        );
        if let Some(ca) = ca {
            let _ = writeln!(text, "  ca = {}", quoted(&ca.to_string_lossy()));
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// containers-registries.conf(5): without `?ns=`, so the registry stands in the path.
fn podman(mirrors: &[Address], registries: &[String]) -> String {
    let mut text = String::new();
    for registry in registries {
        let _ = writeln!(text, "[[registry]]\nprefix = {0}\nlocation = {0}\n", quoted(registry));
        for mirror in mirrors {
            let location = quoted(&format!("{}/{registry}", mirror.authority));
            let _ = writeln!(text, "[[registry.mirror]]\nlocation = {location}");
            if mirror.url.starts_with("http://") {
                text.push_str("insecure = true\n");
            }
            text.push('\n');
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use orlop_distribution::client::{HostsFile, plan_hosts};

    use super::*;

    fn pair() -> Vec<Address> {
        ["https://a:5000", "http://b:5000/"].map(|url| Address::parse(url, false).unwrap()).into()
    }

    #[test]
    fn containerd_and_our_own_reader() {
        let text = containerd(&pair(), Some(Path::new("/etc/ca \"1\".pem")), false);
        let golden = r#"[host."https://a:5000"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "1s"
  ca = "/etc/ca \"1\".pem"

[host."http://b:5000"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "1s"
  ca = "/etc/ca \"1\".pem"
"#;
        assert_eq!(text, golden);
        let hosts = |text: &str| {
            let file = HostsFile::parse(text, Path::new("/certs.d/_default/hosts.toml")).unwrap();
            plan_hosts("quay.io", Some(file), None).unwrap()
        };
        let read = hosts(&text);
        let urls: Vec<&str> = read.iter().map(|host| host.url.as_str()).collect();
        assert_eq!(urls, ["https://a:5000/v2", "http://b:5000/v2", "https://quay.io/v2"]);
        assert_eq!(read[0].namespace.as_deref(), Some("quay.io"));
        assert_eq!(read[0].dial_timeout, Some(std::time::Duration::from_secs(1)));
        assert_eq!(read[1].ca, [Path::new("/etc/ca \"1\".pem")]);
        let only = hosts(&containerd(&pair(), None, true));
        let urls: Vec<&str> = only.iter().map(|host| host.url.as_str()).collect();
        assert_eq!(urls, ["https://a:5000/v2", "http://b:5000/v2"]);
    }

    #[test]
    fn docker_keeps_what_is_there() {
        let text = docker(&pair(), Some(r#"{"debug": true, "registry-mirrors": ["https://old"]}"#)).unwrap();
        assert_eq!(
            text,
            "{\n  \"debug\": true,\n  \"registry-mirrors\": [\n    \"https://a:5000\",\n    \"http://b:5000\"\n  ]\n}\n"
        );
        assert!(docker(&pair(), Some("[]")).is_err());
        assert!(docker(&pair(), Some(" \n")).unwrap().starts_with("{\n  \"registry-mirrors\""));
    }

    #[test]
    fn podman_names_each_registry() {
        let text = podman(&pair(), &["quay.io".to_owned()]);
        let golden = r#"[[registry]]
prefix = "quay.io"
location = "quay.io"

[[registry.mirror]]
location = "a:5000/quay.io"

[[registry.mirror]]
location = "b:5000/quay.io"
insecure = true
"#;
        assert_eq!(text, golden);
    }
}
