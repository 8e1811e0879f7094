//! The systemd cgroup driver, over the real shim and a bus with a systemd on it that makes control groups.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use orlop_cri::v1;
use orlop_runtime::CgroupDriver;
use support::{Node, pod, shell};

/// What was asked: method and unit.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// Answers on a socket; its slice is removed when it is dropped.
struct FakeSystemd {
    address: String,
    slice: String,
    asked: Asked,
    _directory: tempfile::TempDir,
}

impl FakeSystemd {
    fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("bus").tempdir_in("/tmp").unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let asked = Asked::default();
        let seen = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, seen) = (stream.unwrap(), seen.clone());
                std::thread::spawn(move || serve(stream, &seen));
            }
        });
        let slice = format!("orloptest{}.slice", std::process::id());
        Self { address: format!("unix:path={}", path.display()), slice, asked, _directory: directory }
    }

    fn was_asked(&self, method: &str, unit: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| *asked == (method.to_owned(), unit.to_owned()))
    }

    /// Control groups in the slice, in any hierarchy.
    fn groups(&self) -> Vec<PathBuf> {
        let slices = hierarchies().into_iter().map(|root| root.join(&self.slice));
        let entries = slices.filter_map(|slice| std::fs::read_dir(slice).ok()).flatten();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for FakeSystemd {
    fn drop(&mut self) {
        for root in hierarchies() {
            let _ = std::fs::remove_dir(root.join(&self.slice));
        }
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    if root.join("cgroup.procs").exists() {
        return vec![root];
    }
    std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}

/// One client (D-Bus Specification, "Message Protocol"): it speaks little endian, as this machine does.
fn serve(mut stream: UnixStream, asked: &Asked) {
    read_line(&mut stream);
    stream.write_all(b"OK 0123456789abcdef\r\n").unwrap();
    read_line(&mut stream);
    loop {
        let mut fixed = [0_u8; 16];
        if stream.read_exact(&mut fixed).is_err() {
            return;
        }
        let number = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().unwrap());
        let (body_bytes, serial, field_bytes) = (number(4), number(8), number(12));
        let mut fields = vec![0_u8; field_bytes.next_multiple_of(8) as usize];
        stream.read_exact(&mut fields).unwrap();
        let mut body = vec![0_u8; body_bytes as usize];
        stream.read_exact(&mut body).unwrap();
        let methods = ["Hello", "AddMatch", "StartTransientUnit", "StopUnit", "SetUnitProperties"];
        let method = methods.into_iter().find(|name| find(&fields, name).is_some()).unwrap();
        if !method.ends_with("Unit") {
            let unit = if method == "SetUnitProperties" { text_at(&body, 0) } else { String::new() };
            asked.lock().unwrap().push((method.to_owned(), unit));
            stream.write_all(&message(2, serial, &[], &body[..0])).unwrap();
            continue;
        }
        let unit = text_at(&body, 0);
        match method {
            "StartTransientUnit" => make(&unit, &body),
            _ => assert!(unit.ends_with(".scope"), "{unit}"),
        }
        asked.lock().unwrap().push((method.to_owned(), unit.clone()));
        let job = "/org/freedesktop/systemd1/job/7";
        stream.write_all(&message(2, serial, &[(8, "g", "o")], &texts(&[job]))).unwrap();
        let removed = [1_u32.to_le_bytes().to_vec(), texts(&[job, &unit, "done"])].concat();
        stream.write_all(&message(4, 0, &[(3, "s", "JobRemoved"), (8, "g", "uoss")], &removed)).unwrap();
    }
}

fn read_line(stream: &mut UnixStream) {
    let mut byte = [0_u8];
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte).unwrap();
    }
}

fn make(unit: &str, body: &[u8]) {
    let slice = text_at(body, property(body, "Slice", "s"));
    let pids = property(body, "PIDs", "au");
    assert_eq!(&body[pids..pids + 4], 4_u32.to_le_bytes());
    let pid = u32::from_le_bytes(body[pids + 4..pids + 8].try_into().unwrap());
    for root in hierarchies() {
        let group = root.join(&slice).join(unit);
        std::fs::create_dir_all(&group).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"] {
            for below in [root.join(&slice), group.clone()] {
                if let Ok(value) = std::fs::read_to_string(root.join(file)) {
                    let _ = std::fs::write(below.join(file), value.trim());
                }
            }
        }
        std::fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|part| part == text.as_bytes())
}

/// Where the value of a property begins.
fn property(body: &[u8], name: &str, signature: &str) -> usize {
    let pattern = format!("{name}\0{}{signature}\0", char::from(u8::try_from(signature.len()).unwrap()));
    (find(body, &pattern).unwrap() + pattern.len()).next_multiple_of(4)
}

fn text_at(body: &[u8], at: usize) -> String {
    let length = u32::from_le_bytes(body[at..at + 4].try_into().unwrap()) as usize;
    String::from_utf8(body[at + 4..at + 4 + length].to_vec()).unwrap()
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn texts(all: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    all.iter().for_each(|text| push_text(&mut bytes, text));
    bytes
}

/// A message with header fields of texts, and the answered serial if it is an answer.
fn message(kind: u8, answers: u32, fields: &[(u8, &str, &str)], body: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    if answers > 0 {
        header.extend([5, 1, b'u', 0]);
        header.extend(answers.to_le_bytes());
    }
    for (code, signature, text) in fields {
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend([*code, 1, signature.as_bytes()[0], 0]);
        match *signature {
            "g" => {
                header.push(u8::try_from(text.len()).unwrap());
                header.extend(text.as_bytes());
                header.push(0);
            }
            _ => push_text(&mut header, text),
        }
    }
    let length = |bytes: usize| u32::try_from(bytes).unwrap().to_le_bytes();
    let mut bytes = vec![b'l', kind, 0, 1];
    bytes.extend([length(body.len()), 1_u32.to_le_bytes(), length(header.len())].concat());
    bytes.extend(header);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(body);
    bytes
}

fn groups_of(pid: i64) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

#[tokio::test]
async fn pods_live_in_scopes_of_their_slice() {
    let Some(shim) = support::built_shim() else { return };
    let systemd = FakeSystemd::start();
    let mut node = Node::new();
    node.write_network();
    node.import_image();
    let mut config = node.config();
    config.shim_command = shim;
    config.cgroup_driver = CgroupDriver::Systemd;
    let bus = [("DBUS_SYSTEM_BUS_ADDRESS", systemd.address.as_str())];
    let (_daemon, mut client) = node.spawn_with(config, &bus).await;
    let driver = client.runtime.runtime_config(v1::RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(driver.linux.unwrap().cgroup_driver(), v1::CgroupDriver::Systemd);

    let mut wanted = pod(&node, "web");
    let error = client.run_pod(&wanted).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().contains("is no slice, but this runtime's cgroupDriver is systemd"), "{error}");

    wanted.linux.as_mut().unwrap().cgroup_parent = format!("/{}", systemd.slice);
    let sandbox = client.run_pod(&wanted).await.unwrap();
    let shim_unit = format!("orlop-shim-{sandbox}.scope");
    assert!(systemd.was_asked("StartTransientUnit", &shim_unit));
    let found = groups_of(node.shim_pid(&sandbox).into());
    let place = format!("/{}/{shim_unit}", systemd.slice);
    assert!(found.lines().all(|line| line.ends_with(&place)), "{found}");

    let container = client.create(&sandbox, shell("c", "exec /bin/busybox sleep 600")).await.unwrap();
    client.start(&container).await.unwrap();
    let unit = format!("cri-orlop-{container}.scope");
    assert!(systemd.was_asked("StartTransientUnit", &unit));
    let answer = client.exec_sync(&container, &["/bin/busybox", "cat", "/proc/self/cgroup"]).await.unwrap();
    let inside = String::from_utf8(answer.stdout).unwrap();
    assert!(inside.contains(&format!("/{}/{unit}", systemd.slice)) || inside.contains("0::/"), "{inside}");
    assert!(systemd.groups().iter().any(|path| path.ends_with(&unit)), "{:?}", systemd.groups());

    let limits = v1::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    let change = v1::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(limits),
        ..Default::default()
    };
    client.runtime.update_container_resources(change).await.unwrap();
    assert!(systemd.was_asked("SetUnitProperties", &unit));

    client.remove_pod(&sandbox).await.unwrap();
    assert!(systemd.was_asked("StopUnit", &shim_unit));
    assert_eq!(systemd.groups(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn without_systemd_the_driver_is_refused() {
    let node = Node::new();
    let mut config = node.config();
    config.cgroup_driver = CgroupDriver::Systemd;
    let frame = orlop_daemon::Settings::new("runtime");
    let started = std::thread::spawn(move || {
        orlop_daemon::run(frame, |frame| async move { orlop_runtime::start(&frame, config).await })
    });
    let outcome = tokio::task::spawn_blocking(move || started.join().unwrap());
    if std::path::Path::new("/run/dbus/system_bus_socket").exists() {
        println!("SKIP there is a system bus");
        return;
    }
    let error = format!("{:#}", outcome.await.unwrap().unwrap_err());
    assert!(error.contains("cgroupDriver is systemd, but systemd cannot be asked"), "{error}");
}
