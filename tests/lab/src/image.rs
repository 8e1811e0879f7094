//! Test images from Debian packages (busybox-static, nginx-light), as docker-save archives. Built once per machine.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::run;

const NGINX_CONFIG: &str = "daemon off;
worker_processes 1;
error_log /dev/stderr notice;
pid /tmp/nginx.pid;
events {}
http {
    access_log /dev/stdout;
    default_type text/plain;
    server {
        listen 80;
        location / { return 200 \"$hostname\\n\"; }
    }
}
";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// `busybox:latest`, with every applet linked.
pub fn busybox() -> PathBuf {
    cached("busybox", |layer| {
        busybox_files(layer);
        vec!["sh".to_owned()]
    })
}

/// `pause:latest`: the infra container of runtimes that need one, from the same layer as `busybox:latest`.
pub fn pause() -> PathBuf {
    cached("pause", |layer| {
        busybox_files(layer);
        ["sleep", "2147483647"].map(str::to_owned).to_vec()
    })
}

/// `nginx:latest`: Debian's nginx, answering every request with its hostname, and busybox beside it.
pub fn nginx() -> PathBuf {
    cached("nginx", |layer| {
        busybox_files(layer);
        for path in shared_objects("/usr/sbin/nginx") {
            copy(layer, &path);
        }
        copy(layer, "/usr/sbin/nginx");
        text(layer, "etc/nginx/nginx.conf", NGINX_CONFIG);
        for directory in ["var/log/nginx", "var/lib/nginx", "var/www"] {
            folder(layer, directory, 0o755);
        }
        ["/usr/sbin/nginx", "-c", "/etc/nginx/nginx.conf"].map(str::to_owned).to_vec()
    })
}

type Layer = tar::Builder<Vec<u8>>;

fn cached(name: &str, build: impl FnOnce(&mut Layer) -> Vec<String>) -> PathBuf {
    let directory = std::env::temp_dir().join("orlop-test-images");
    std::fs::create_dir_all(&directory).expect("a directory for images");
    let path = directory.join(format!("{name}.tar"));
    if !path.exists() {
        let mut layer = tar::Builder::new(Vec::new());
        let command = build(&mut layer);
        let layer = layer.into_inner().expect("a layer");
        let temporary = directory.join(format!("{name}.{}", std::process::id()));
        write_archive(&temporary, &format!("{name}:latest"), &layer, &command);
        std::fs::rename(&temporary, &path).expect("an image file");
    }
    path
}

/// Writes a docker-save archive with one layer.
pub fn write_archive(path: &Path, reference: &str, layer: &[u8], command: &[String]) {
    let diff_id = hex::encode(Sha256::digest(layer));
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": command, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
        "history": [{"created_by": "orlop tests"}],
    })
    .to_string();
    let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
    let layer_name = format!("{diff_id}/layer.tar");
    let manifest =
        json!([{"Config": config_name, "RepoTags": [reference], "Layers": [layer_name]}]).to_string();
    let mut archive = tar::Builder::new(File::create(path).expect("an archive file"));
    for (name, content) in [
        (config_name.as_str(), config.as_bytes()),
        (layer_name.as_str(), layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = header(content.len() as u64, 0o644, tar::EntryType::Regular);
        archive.append_data(&mut header, name, content).expect("an archive entry");
    }
    archive.into_inner().and_then(|mut file| file.flush()).expect("a written archive");
}

fn busybox_files(layer: &mut Layer) {
    for (directory, mode) in
        [("tmp", 0o1777), ("root", 0o700), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755)]
    {
        folder(layer, directory, mode);
    }
    text(layer, "etc/passwd", PASSWD);
    text(layer, "etc/group", GROUP);
    let mut content = Vec::new();
    File::open("/usr/bin/busybox")
        .or_else(|_| File::open("/bin/busybox"))
        .and_then(|mut file| file.read_to_end(&mut content))
        .expect("busybox-static is installed");
    let mut binary = header(content.len() as u64, 0o755, tar::EntryType::Regular);
    layer.append_data(&mut binary, "bin/busybox", content.as_slice()).expect("busybox in the layer");
    for applet in run(Command::new("busybox").arg("--list")).lines().filter(|applet| *applet != "busybox") {
        let mut link = header(0, 0o777, tar::EntryType::Symlink);
        layer.append_link(&mut link, format!("bin/{applet}"), "busybox").expect("an applet");
    }
}

/// The libraries that a dynamic program needs, with its loader.
fn shared_objects(program: &str) -> BTreeSet<String> {
    let listing = run(Command::new("ldd").arg(program));
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}

fn copy(layer: &mut Layer, path: impl AsRef<Path>) {
    let path = path.as_ref();
    let content = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut file = header(content.len() as u64, 0o755, tar::EntryType::Regular);
    let name = path.strip_prefix("/").expect("an absolute path");
    layer.append_data(&mut file, name, content.as_slice()).expect("a file in the layer");
}

fn text(layer: &mut Layer, name: &str, content: &str) {
    let mut file = header(content.len() as u64, 0o644, tar::EntryType::Regular);
    layer.append_data(&mut file, name, content.as_bytes()).expect("a file in the layer");
}

fn folder(layer: &mut Layer, name: &str, mode: u32) {
    let mut header = header(0, mode, tar::EntryType::Directory);
    layer.append_data(&mut header, format!("{name}/"), std::io::empty()).expect("a directory in the layer");
}

fn header(size: u64, mode: u32, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_entry_type(kind);
    header.set_mtime(1_700_000_000);
    header
}
