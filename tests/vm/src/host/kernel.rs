//! Debian's cloud kernel: fetched once, never installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::task::Module;

/// The package that depends on the present kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// What containers, their network and these tests use (zram asks for its compression by itself); what they depend on comes along.
const WANTED: [(&str, &str); 21] = [
    ("overlay", ""),
    ("veth", ""),
    ("bridge", ""),
    ("vxlan", ""),
    ("dummy", ""),
    ("tun", ""),
    ("nf_tables", ""),
    ("nft_chain_nat", ""),
    ("nft_masq", ""),
    ("nft_nat", ""),
    ("nft_ct", ""),
    ("nft_numgen", ""),
    ("nft_reject_inet", ""),
    ("nft_fib_inet", ""),
    ("nf_conntrack_netlink", ""),
    ("xt_comment", ""),
    ("fuse", ""),
    ("loop", ""),
    ("lzo_rle", ""),
    ("zram", ""),
    // A disk of 1 GiB; it takes memory as it fills.
    ("brd", "rd_nr=1 rd_size=1048576"),
];

/// A kernel and its modules.
pub(crate) struct Kernel {
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// Modules, each behind those that it needs.
    pub(crate) modules: Vec<Module>,
}

/// Takes the kernel from the cache directory, or fetches it.
pub(crate) fn prepare(cache: &Path) -> anyhow::Result<Kernel> {
    let root = cache.join("kernel");
    if !root.is_dir() {
        let unpacked = cache.join("kernel.part");
        fetch(cache, &unpacked)?;
        fs::rename(&unpacked, &root).context("failed to keep the kernel")?;
    }
    let image = one_entry(&root.join("boot"), "vmlinuz-")?;
    let release = one_entry(&root.join("lib/modules"), "")?;
    let mut files = BTreeMap::new();
    collect(&release, &mut files)?;
    let mut modules = Vec::new();
    for (name, parameters) in WANTED {
        add_module(name, parameters, &files, &mut modules, 0)?;
    }
    Ok(Kernel { image, modules })
}

fn fetch(cache: &Path, unpacked: &Path) -> anyhow::Result<()> {
    let depends = output(Command::new("apt-cache").args(["depends", "--important", META_PACKAGE]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("{META_PACKAGE} is unknown: run apt-get update"))?;
    let downloads = cache.join("download");
    let _ = fs::remove_dir_all(&downloads);
    let _ = fs::remove_dir_all(unpacked);
    fs::create_dir_all(&downloads).with_context(|| format!("failed to make {}", downloads.display()))?;
    // As root: apt's own user may not reach this directory.
    let mut apt = Command::new("apt-get");
    apt.args(["download", "-qq", "-o", "APT::Sandbox::User=root", package]).current_dir(&downloads);
    output(&mut apt)?;
    let archive = one_entry(&downloads, "linux-image-")?;
    output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(unpacked))?;
    fs::remove_dir_all(&downloads).context("failed to remove the package")
}

/// Standard output of a program that must succeed.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("failed to start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn one_entry(directory: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("failed to list {}", directory.display()))?;
    let mut found = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        _ => bail!("{} does not hold exactly one {prefix}*: remove it", directory.display()),
    }
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("failed to list {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && let Some(stem) = path.file_stem()
        {
            files.insert(stem.to_string_lossy().replace('-', "_"), path);
        }
    }
    Ok(())
}

/// Depth first; modules form no cycles, and a chain is short.
fn add_module(
    name: &str,
    parameters: &str,
    files: &BTreeMap<String, PathBuf>,
    found: &mut Vec<Module>,
    depth: usize,
) -> anyhow::Result<()> {
    ensure!(depth < 32, "kernel modules depend on each other in a circle at {name}");
    let path =
        files.get(&name.replace('-', "_")).with_context(|| format!("the kernel has no module {name}"))?;
    if found.iter().any(|module| module.path == *path) {
        return Ok(());
    }
    let content = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    for needed in dependencies(&content) {
        add_module(&needed, "", files, found, depth + 1)?;
    }
    found.push(Module { path: path.clone(), parameters: parameters.to_owned() });
    Ok(())
}

/// The `depends=` entry of a module's `.modinfo` section: strings that end with a zero byte.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_module_needs() {
        assert_eq!(
            dependencies(b"ELF\0license=GPL\0depends=udp_tunnel,ip6_udp_tunnel\0x"),
            ["udp_tunnel", "ip6_udp_tunnel"]
        );
        assert!(dependencies(b"\0depends=\0retpoline=Y\0").is_empty());
        assert!(dependencies(b"").is_empty());
    }
}
