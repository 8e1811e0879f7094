//! Streams: exec, attach, terminals, port forwarding, logs that rotate.

#![expect(clippy::unwrap_used, reason = "tests")]

mod rig;

use std::io::{Read, Write};
use std::time::Duration;

use orlop_shim::client::{Client, ClientError};
use orlop_shim::protocol::{ErrorKind, ExecEnd, ExecProcess, ExitStatus, Request, Response, channel};
use rig::{Pod, process};

const SECCOMP: &str = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
    "syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;

/// Reads a session to its end: standard output, standard error, exit.
fn drain(client: &mut Client) -> (String, String, i32) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match client.receive().unwrap() {
            (channel::STDOUT, data) => stdout.extend(data),
            (channel::STDERR, data) => stderr.extend(data),
            (channel::EXIT, data) => {
                let exit: ExitStatus = serde_json::from_slice(&data).unwrap();
                return (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), exit.code);
            }
            (other, _) => panic!("channel {other}"),
        }
    }
}

/// Reads until standard output has the text.
fn expect(client: &mut Client, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        let (channel, data) = client.receive().unwrap();
        assert_eq!(channel, channel::STDOUT, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&data));
    }
}

fn session(pod: &Pod, request: &Request) -> Client {
    let mut client = pod.client();
    assert!(matches!(client.call(request).unwrap(), Response::Ok));
    client
}

fn exec(pod: &Pod, process: ExecProcess) -> Client {
    session(pod, &Request::Exec { id: "c1".into(), process })
}

#[test]
fn exec_is_in_the_container_in_every_way() {
    needs_root!();
    let pod = Pod::start();
    pod.run_with("c1", &["sleep", "1000"], |config| {
        config["linux"]["seccomp"] = serde_json::from_str(SECCOMP).unwrap();
        config["process"]["user"] = serde_json::json!({"uid": 33, "gid": 33});
        config["process"]["cwd"] = "/tmp".into();
    });
    let script = "pwd; id -u; hostname; echo $WHO; ps | wc -l; grep -E 'Seccomp:|CapBnd' /proc/self/status; mkdir /tmp/x; echo $?; \
                  cat /proc/self/cgroup; readlink /proc/self/ns/*; echo done >&2; exit 5";
    let (stdout, stderr, code, timed_out) = pod.exec("c1", &["sh", "-c", script], 10_000).unwrap();
    assert_eq!((code, timed_out), (5, false), "{stdout} {stderr}");
    assert!(stdout.starts_with("/tmp\n33\npod-1\nme\n"), "{stdout}");
    assert!(stdout.contains("Seccomp:\t2\n") && stdout.contains("CapBnd:\t0000000008000020\n"), "{stdout}");
    assert!(stderr.contains("not permitted") && stderr.ends_with("done\n"), "{stderr}");
    assert!(
        stdout.contains(&format!("memory:{}/c1\n", pod.cgroup))
            || stdout.contains(&format!("0::{}/c1\n", pod.cgroup)),
        "{stdout}"
    );
    let (_, _, own, _) = pod
        .exec("c1", &["sh", "-c", "[ $(readlink /proc/self/ns/mnt) = $(readlink /proc/1/ns/mnt) ]"], 0)
        .unwrap();
    assert_eq!(own, 0, "the same mount namespace");
    pod.stop("c1", 0);
    assert!(matches!(
        pod.exec("c1", &["true"], 0),
        Err(ClientError::Refused { kind: ErrorKind::WrongState, .. })
    ));
    pod.end();
}

#[test]
fn exec_gets_no_descriptor_but_its_own_however_the_shim_was_started() {
    needs_root!();
    for pod in [Pod::start(), Pod::start_by_path()] {
        pod.run("c1", &["sleep", "1000"]);
        pod.run("c2", &["sleep", "1000"]);
        // Others are under way meanwhile.
        let _other = exec(&pod, process(&["sleep", "1000"]));
        let script = "ls /proc/self/fd; cat /proc/self/comm; grep -c . /proc/1/status >/dev/null && id -u";
        let (stdout, stderr, code, _) = pod.exec("c2", &["sh", "-c", script], 0).unwrap();
        // The fourth is the directory that ls itself reads.
        assert_eq!((stdout.as_str(), code), ("0\n1\n2\n3\ncat\n0\n", 0), "{stderr}");
        let exe = rustix::fs::statvfs(format!("/proc/{}/exe", pod.shim_pid)).unwrap();
        let read_only = exe.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
        let listed = std::fs::read_to_string(format!("/proc/{}/comm", pod.shim_pid)).unwrap();
        assert_eq!(listed.trim(), "orlop-shim");
        println!("started from a read-only mount: {read_only}");
        pod.end();
    }
}

#[test]
fn exec_that_takes_too_long_or_says_too_much() {
    needs_root!();
    let pod = Pod::start();
    pod.run("c1", &["sleep", "1000"]);
    let (stdout, _, code, timed_out) =
        pod.exec("c1", &["sh", "-c", "echo first; sleep 1001; echo never"], 300).unwrap();
    assert_eq!((stdout.as_str(), code, timed_out), ("first\n", 137, true));
    let (stdout, ..) = pod.exec("c1", &["ps"], 0).unwrap();
    assert!(!stdout.contains("1001"), "{stdout}");
    let (stdout, _, code, _) = pod.exec("c1", &["sh", "-c", "head -c 9000000 /dev/zero"], 0).unwrap();
    assert_eq!((stdout.len(), code), (1400 * 1024, 0));
    // A child that keeps the pipe open does not keep the caller waiting.
    let (stdout, _, code, _) = pod.exec("c1", &["sh", "-c", "sleep 1002 & echo here"], 0).unwrap();
    assert_eq!((stdout.as_str(), code), ("here\n", 0));
    match pod.exec("c1", &["no-such-program"], 0) {
        Err(ClientError::Refused { kind: ErrorKind::Failed, message }) => {
            assert!(message.contains("no-such-program"), "{message}")
        }
        other => panic!("{other:?}"),
    }
    pod.end();
}

/// A streamed exec that answers with `Ok`.
fn streamed(pod: &Pod, script: &str, timeout_millis: u64) -> Client {
    let process = process(&["sh", "-c", script]);
    session(pod, &Request::ExecSync { id: "c1".into(), process, timeout_millis, stream: true })
}

fn anonymous_kibibytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn output_of_a_streamed_exec_is_whole_and_not_kept() {
    needs_root!();
    let pod = Pod::start();
    pod.run("c1", &["sleep", "1000"]);
    let before = anonymous_kibibytes(pod.shim_pid);
    let mut client = streamed(&pod, "head -c 20000000 /dev/zero; echo end >&2; exit 3", 60_000);
    let (stdout, stderr, code) = drain(&mut client);
    assert_eq!((stdout.len(), stderr.as_str(), code), (20_000_000, "end\n", 3));
    let grown = anonymous_kibibytes(pod.shim_pid).saturating_sub(before);
    assert!(grown < 1024, "{grown} KiB more");

    // One that reads late: longer than the time that what a dead process left behind is waited for.
    let mut client = streamed(&pod, "head -c 300000 /dev/zero; echo over", 60_000);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(drain(&mut client).0.len(), 300_005);
    pod.end();
}

#[test]
fn a_streamed_exec_ends_by_its_time_limit_and_outlives_its_client() {
    needs_root!();
    let pod = Pod::start();
    pod.run("c1", &["sleep", "1000"]);
    let mut client = streamed(&pod, "echo first; sleep 1003", 300);
    expect(&mut client, "first");
    let (channel, data) = client.receive().unwrap();
    let end: ExecEnd = serde_json::from_slice(&data).unwrap();
    assert_eq!((channel, end.exit.code, end.timed_out), (channel::EXIT, 137, true));
    let mut client = streamed(&pod, "echo x; sleep 0.3; echo y; echo z > /tmp/done", 0);
    expect(&mut client, "x");
    drop(client);
    while pod.exec("c1", &["cat", "/tmp/done"], 0).unwrap().0 != "z\n" {
        std::thread::sleep(Duration::from_millis(10));
    }
    let process = process(&["no-such-program"]);
    let request = Request::ExecSync { id: "c1".into(), process, timeout_millis: 0, stream: true };
    assert!(matches!(pod.call(&request), Err(ClientError::Refused { kind: ErrorKind::Failed, .. })));
    pod.end();
}

#[test]
fn exec_sessions_carry_streams_both_ways() {
    needs_root!();
    let pod = Pod::start();
    pod.run("c1", &["sleep", "1000"]);
    let mut client =
        exec(&pod, ExecProcess { stdin: true, ..process(&["sh", "-c", "cat; echo end >&2; exit 9"]) });
    let big = "0123456789abcdef".repeat(4096 * 8);
    for part in big.as_bytes().chunks(60_000) {
        client.send(channel::STDIN, part).unwrap();
    }
    client.send(channel::CLOSE_STDIN, b"").unwrap();
    let (stdout, stderr, code) = drain(&mut client);
    assert_eq!((stdout == big, stderr.as_str(), code), (true, "end\n", 9));
    let mut client = exec(&pod, process(&["sh", "-c", "wc -c"]));
    assert_eq!(drain(&mut client), ("0\n".into(), String::new(), 0), "no input is an empty one");
    pod.end();
}

#[test]
fn exec_with_a_terminal() {
    needs_root!();
    let pod = Pod::start();
    pod.run("c1", &["sleep", "1000"]);
    let mut client = exec(
        &pod,
        ExecProcess {
            terminal: true,
            stdin: true,
            ..process(&["sh", "-c", "read x; tty; stty size; exit $x"])
        },
    );
    client.send(channel::RESIZE, br#"{"Width":111,"Height":33}"#).unwrap();
    client.send(channel::STDIN, b"4\n").unwrap();
    let (stdout, _, code) = drain(&mut client);
    assert!(stdout.contains("/dev/pts/0\r\n") && stdout.contains("33 111\r\n"), "{stdout:?}");
    assert_eq!(code, 4);
    // A terminal whose client goes hangs up.
    let client =
        exec(&pod, ExecProcess { terminal: true, stdin: true, ..process(&["sh", "-c", "sleep 1003"]) });
    drop(client);
    for _ in 0..100 {
        if !pod.exec("c1", &["ps"], 0).unwrap().0.contains("1003") {
            pod.end();
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the process outlived its terminal");
}

#[test]
fn attach_follows_and_feeds() {
    needs_root!();
    let pod = Pod::start();
    let mut request = pod.container(
        "c1",
        &["sh", "-c", "while read line; do echo got $line; done; echo over; exit 6"],
        |_| {},
    );
    request.stdin = true;
    request.stdin_once = true;
    pod.create(request).unwrap();
    let attach = Request::Attach { id: "c1".into(), stdin: true, stdout: true, stderr: true };
    let watch = Request::Attach { id: "c1".into(), stdin: false, stdout: true, stderr: false };
    let mut watcher = session(&pod, &watch);
    let mut client = session(&pod, &attach);
    pod.start_container("c1").unwrap();
    client.send(channel::STDIN, b"one\n").unwrap();
    expect(&mut client, "got one\n");
    client.send(channel::CLOSE_STDIN, b"").unwrap();
    assert_eq!(drain(&mut client), ("over\n".into(), String::new(), 6));
    assert_eq!(drain(&mut watcher), ("got one\nover\n".into(), String::new(), 6));
    assert_eq!(pod.log("c1"), ["stdout F got one", "stdout F over"]);
    pod.end();
}

#[test]
fn a_container_with_a_terminal() {
    needs_root!();
    let pod = Pod::start();
    let mut request = pod.container("c1", &["sh"], |config| config["process"]["terminal"] = true.into());
    request.stdin = true;
    pod.create(request).unwrap();
    pod.start_container("c1").unwrap();
    let attach = Request::Attach { id: "c1".into(), stdin: true, stdout: true, stderr: false };
    let mut client = session(&pod, &attach);
    client.send(channel::RESIZE, br#"{"Width":90,"Height":20}"#).unwrap();
    client.send(channel::STDIN, b"tty; stty size\n").unwrap();
    expect(&mut client, "20 90\r\n");
    drop(client);
    let mut client = session(&pod, &attach);
    client.send(channel::STDIN, b"exit 8\n").unwrap();
    assert_eq!(drain(&mut client).2, 8);
    let log = pod.log("c1");
    assert!(log.iter().any(|line| line.ends_with("/dev/console") || line.ends_with("/dev/pts/0")), "{log:?}");
    pod.end();
}

#[test]
fn a_client_that_does_not_read_stops_nobody() {
    needs_root!();
    let pod = Pod::start();
    pod.run("c1", &["sh", "-c", "sleep 0.3; head -c 20000000 /dev/zero | cat; echo; echo over"]);
    let attach = Request::Attach { id: "c1".into(), stdin: false, stdout: true, stderr: true };
    let _sleeper = session(&pod, &attach);
    assert_eq!(pod.wait("c1").code, 0);
    assert_eq!(pod.log("c1").last().unwrap(), "stdout F over");
    assert!(pod.shim_log().contains("cut"));
    pod.end();
}

#[test]
fn ports_are_forwarded_into_the_pod() {
    needs_root!();
    let pod = Pod::start();
    // One server on IPv4, one on IPv6, both on the pod's loopback alone.
    let network = orlop_linux::netns::open(format!("/proc/{}/ns/net", pod.shim_pid).as_ref()).unwrap();
    let bind = |address: &'static str| {
        orlop_linux::netns::run(&network, move || std::net::TcpListener::bind(address)).unwrap().unwrap()
    };
    let (four, six) = (bind("127.0.0.1:80"), bind("[::1]:81"));
    let servers = std::thread::spawn(move || {
        let (mut client, _) = four.accept().unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).unwrap();
        client.write_all(&heard).unwrap();
        drop(client);
        six.accept().unwrap().0.write_all(b"six\n").unwrap();
    });
    for (port, says, hears) in [(80, "hello", "hello"), (81, "", "six\n")] {
        let mut client = loop {
            let mut client = pod.client();
            match client.call(&Request::PortForward { port }) {
                Ok(_) => break client.into_stream(),
                Err(ClientError::Refused { message, .. }) => {
                    assert!(message.contains(&port.to_string()), "{message}")
                }
                Err(error) => panic!("{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        client.write_all(says.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = String::new();
        client.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, hears);
    }
    servers.join().unwrap();
    assert!(
        matches!(pod.call(&Request::PortForward { port: 4 }), Err(ClientError::Refused { message, .. }) if message.contains("port 4"))
    );
    pod.end();
}

#[test]
fn logs_rotate_without_losing_or_doubling_a_line() {
    needs_root!();
    let pod = Pod::start();
    pod.run("c1", &["sh", "-c", "seq 1 200000; echo end"]);
    // As the kubelet does: rename, then reopen, again and again while the container writes.
    let mut rotated = Vec::new();
    while pod.log("c1").last().is_none_or(|line| !line.ends_with("F end")) {
        let old = pod.directory.path().join(format!("old-{}", rotated.len()));
        std::fs::rename(pod.log_path("c1"), &old).unwrap();
        pod.call(&Request::ReopenLog { id: "c1".into() }).unwrap();
        rotated.push(old);
        if rotated.len() > 300 {
            break;
        }
    }
    assert_eq!(pod.wait("c1").code, 0);
    rotated.push(pod.log_path("c1"));
    let text: String = rotated.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let lines: Vec<&str> = text.lines().map(|line| line.split_once(" stdout F ").unwrap().1).collect();
    assert_eq!(lines.len(), 200_001);
    for (at, line) in lines[..200_000].iter().enumerate() {
        assert_eq!(*line, (at + 1).to_string());
    }
    pod.end();
}

#[test]
fn a_full_disk_stops_no_container() {
    needs_root!();
    let pod = Pod::start();
    let mut container = pod.container("c1", &["sh", "-c", "seq 1 100000; exit 4"], |_| {});
    container.log_path = Some("/dev/full".into());
    pod.create(container).unwrap();
    pod.start_container("c1").unwrap();
    assert_eq!(pod.wait("c1").code, 4);
    assert!(pod.shim_log().contains("100000 lines could not be written"), "{}", pod.shim_log());
    pod.end();
}

#[test]
fn sessions_are_bounded_and_leave_room_for_requests() {
    needs_root!();
    let pod = Pod::start();
    pod.run("c1", &["sleep", "1000"]);
    let attach = Request::Attach { id: "c1".into(), stdin: false, stdout: true, stderr: true };
    let mut open = Vec::new();
    let refused = loop {
        let mut client = pod.client();
        match client.call(&attach) {
            Ok(_) => open.push(client),
            Err(error) => break error,
        }
    };
    assert_eq!(open.len(), 128);
    assert!(
        matches!(&refused, ClientError::Refused { message, .. } if message.contains("too many")),
        "{refused}"
    );
    assert_eq!(pod.exec("c1", &["true"], 0).unwrap().2, 0);
    drop(open);
    // The shim hears of their ends in its own time.
    while pod.client().call(&attach).is_err() {}
    pod.end();
}

#[test]
fn a_client_that_leaves_ends_what_only_talks_to_it() {
    needs_root!();
    let pod = Pod::start();
    pod.run("c1", &["sleep", "1000"]);
    let mut client = exec(&pod, process(&["sh", "-c", "while echo x; do sleep 0.01; done"]));
    expect(&mut client, "x");
    drop(client);
    while pod.exec("c1", &["ps"], 0).unwrap().0.contains("echo x") {
        std::thread::sleep(Duration::from_millis(10));
    }
    pod.end();
}

#[test]
fn hostile_clients_hurt_only_themselves() {
    needs_root!();
    let pod = Pod::start();
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{}", b"\0\0\0\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = pod.client().into_stream();
        stream.write_all(bytes).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    assert!(
        matches!(pod.call(&Request::State).unwrap(), Response::State(state) if state.containers.is_empty())
    );
    pod.end();
}
