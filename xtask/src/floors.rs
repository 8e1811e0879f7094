//! The house of ARCHITECTURE.md: a crate may use lower floors, and other crates of its own component.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::Deserialize;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: String,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

/// The floor of a folder, or `None` for what stands beside the house.
fn floor(folder: &str) -> anyhow::Result<Option<u8>> {
    let mut parts = folder.split('/');
    let floor = match (parts.next().unwrap_or(""), parts.next().unwrap_or("")) {
        ("lib", "linux" | "nft" | "types") => 0,
        ("lib", "netlink" | "daemon" | "cri") => 1,
        ("lib", "kube" | "distribution") => 2,
        ("kubelet" | "runtime" | "cni" | "proxy" | "dns" | "image-mirror" | "master", _) => 3,
        ("cli", _) => 4,
        ("tests" | "xtask" | "systemd", _) => return Ok(None),
        _ => bail!("{folder} is on no floor: add it to ARCHITECTURE.md and to xtask"),
    };
    Ok(Some(floor))
}

fn component(folder: &str) -> &str {
    folder.split('/').next().unwrap_or(folder)
}

pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("failed to run cargo metadata")?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("failed to read cargo metadata")?;
    let mut problems = Vec::new();
    for package in &metadata.packages {
        check_package(package, &metadata.workspace_root, &mut problems)?;
    }
    Ok(problems)
}

fn check_package(package: &Package, root: &str, problems: &mut Vec<String>) -> anyhow::Result<()> {
    let relative = |path: &str| path.strip_prefix(root).unwrap_or(path).trim_start_matches('/').to_owned();
    let folder = relative(package.manifest_path.trim_end_matches("/Cargo.toml"));
    let own = floor(&folder)?;
    for dependency in &package.dependencies {
        if dependency.name == "libcontainer" && folder != "runtime/oci" {
            problems.push(format!("{} uses libcontainer: only runtime/oci may", package.name));
        }
        // Tests may look at whatever they test.
        let (Some(path), false) = (&dependency.path, dependency.kind.as_deref() == Some("dev")) else {
            continue;
        };
        let target = relative(path);
        let (Some(own), Some(other)) = (own, floor(&target)?) else {
            continue;
        };
        // The ground under floor 0: plain values that everything may use.
        let ground = target == "lib/types" && folder != target;
        let sibling = own == 3 && component(&folder) == component(&target);
        if other >= own && !sibling && !ground {
            problems.push(format!(
                "{folder} (floor {own}) uses {target} (floor {other}): dependencies go strictly down"
            ));
        }
    }
    Ok(())
}
