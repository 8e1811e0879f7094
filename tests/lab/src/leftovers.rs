use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// What a cluster may leave on a machine.
#[derive(Debug)]
pub struct Leftovers;

impl Leftovers {
    /// Everything that can still be found of the cluster of a data directory; empty is clean.
    pub fn of(data: &Path) -> Vec<String> {
        let data = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
        let suffix = hex::encode(Sha256::digest(data.as_os_str().as_encoded_bytes()))[..8].to_owned();
        let mut found = Vec::new();
        processes(&data, &suffix, &mut found);
        mounts(&data, &suffix, &mut found);
        cgroups(Path::new("/sys/fs/cgroup"), &suffix, &mut found);
        for directory in ["/run", "/run/netns"] {
            entries(Path::new(directory), &suffix, &mut found);
        }
        if data.exists() {
            found.push(format!("data directory {}", data.display()));
        }
        found
    }
}

fn processes(data: &Path, suffix: &str, found: &mut Vec<String>) {
    let data = data.to_string_lossy().into_owned();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(command) = std::fs::read(path.join("cmdline")) else {
            continue;
        };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if entry.file_name().to_string_lossy().parse::<u32>().is_ok_and(|pid| pid != std::process::id())
            && (command.contains(&data) || command.contains(suffix))
        {
            found.push(format!("process {}: {command}", path.display()));
        }
    }
}

fn mounts(data: &Path, suffix: &str, found: &mut Vec<String>) {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let data = data.to_string_lossy().into_owned();
    found.extend(
        text.lines()
            .filter(|line| line.contains(&data) || line.contains(suffix))
            .map(|line| format!("mount {line}")),
    );
}

fn cgroups(directory: &Path, suffix: &str, found: &mut Vec<String>) {
    // The cluster's cgroup is at the top of each hierarchy.
    for hierarchy in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        entries(&hierarchy.path(), suffix, found);
    }
    entries(directory, suffix, found);
}

fn entries(directory: &Path, suffix: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path: PathBuf = entry.path();
        if entry.file_name().to_string_lossy().contains(suffix) {
            found.push(format!("file {}", path.display()));
        }
    }
}
