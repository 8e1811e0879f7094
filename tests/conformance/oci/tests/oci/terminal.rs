use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use orlop_conformance_oci::{Rig, differs, is_ours, wait_for};

/// The terminal that comes over a console socket.
fn receive(listener: &UnixListener) -> File {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    wait_for("somebody connects", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (connection, _) = accepted.unwrap();
    connection.set_nonblocking(false).unwrap();
    let mut name = [0_u8; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&connection, &mut [IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let message = ancillary.drain().next().expect("a descriptor");
    let RecvAncillaryMessage::ScmRights(mut descriptors) = message else { panic!("no descriptor") };
    File::from(descriptors.next().unwrap())
}

/// Until the text appears.
fn read_until(terminal: &mut File, text: &str) -> String {
    let mut seen = Vec::new();
    let mut chunk = [0_u8; 1024];
    while !String::from_utf8_lossy(&seen).contains(text) {
        match terminal.read(&mut chunk) {
            Ok(count) if count > 0 => seen.extend_from_slice(&chunk[..count]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&seen)),
        }
    }
    String::from_utf8_lossy(&seen).into_owned()
}

fn listen(path: &Path) -> UnixListener {
    UnixListener::bind(path).unwrap()
}

#[test]
fn a_containers_terminal_comes_over_the_console_socket() {
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| {
        config["process"]["terminal"] = true.into();
        config["process"]["consoleSize"] = serde_json::json!({"width": 91, "height": 17});
        config["process"]["args"] =
            serde_json::json!(["sh", "-c", "tty; stty size; read line; echo got $line"]);
    });
    if !differs("create with a terminal needs a console socket") {
        rig.create().fails("console");
        rig.assert_nothing_left();
    }
    let socket = rig.path("console.sock");
    let listener = listen(&socket);
    let bundle = rig.bundle();
    let (socket, bundle) = (socket.to_str().unwrap(), bundle.to_str().unwrap());
    rig.call(&["create", "-b", bundle, "--console-socket", socket, &rig.id]).ok();
    let mut terminal = receive(&listener);
    rig.verb("start").ok();
    let seen = read_until(&mut terminal, "17 91");
    assert!(seen.contains("/dev/pts/0") || seen.contains("/dev/console"), "{seen}");
    terminal.write_all(b"word\n").unwrap();
    read_until(&mut terminal, "got word");
    rig.wait_for_status("stopped");
    rig.verb("delete").ok();
    rig.assert_nothing_left();
    if differs("create with a terminal needs a console socket") {
        return;
    }
    rig.configure(|_| {});
    rig.call(&["create", "-b", bundle, "--console-socket", socket, &rig.id]).fails("console socket");
    rig.assert_nothing_left();
}

#[test]
fn an_execs_terminal_comes_over_the_console_socket() {
    let Some(rig) = Rig::new() else { return };
    rig.up();
    rig.exec(&["--tty", "--detach"], &["sh"]).fails("console socket");
    let socket = rig.path("console.sock");
    let listener = listen(&socket);
    let options = ["--tty", "--detach", "--console-socket", socket.to_str().unwrap()];
    rig.exec(&options, &["sh", "-c", "tty; read line; echo got $line"]).ok();
    let mut terminal = receive(&listener);
    read_until(&mut terminal, "/dev/pts/0");
    terminal.write_all(b"word\n").unwrap();
    read_until(&mut terminal, "got word");
}

/// A pair of our own, as a user's shell would have.
fn pair() -> (File, OwnedFd) {
    use rustix::pty::OpenptFlags;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
    let size = rustix::termios::Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size).unwrap();
    (File::from(master), slave)
}

fn in_foreground(rig: &Rig, arguments: &[&str]) {
    let (mut master, slave) = pair();
    let mut command = rig.command(arguments);
    let stream = || File::from(slave.as_fd().try_clone_to_owned().unwrap());
    command.stdin(stream()).stdout(stream()).stderr(stream());
    let mut child = orlop_conformance_oci::Child(command.spawn().unwrap());
    drop(command);
    read_until(&mut master, "33 77");
    master.write_all(b"word\r").unwrap();
    read_until(&mut master, "got word");
    assert_eq!(child.0.wait().unwrap().code(), Some(6));
    // Ours is as it was.
    let modes = rustix::termios::tcgetattr(&slave).unwrap().local_modes;
    assert!(modes.contains(rustix::termios::LocalModes::ECHO | rustix::termios::LocalModes::ICANON));
}

const ASK: &str = "while [ \"$(stty size)\" != '33 77' ]; do sleep 0.05; done; stty size; read line; echo got $line; exit 6";

#[test]
fn run_and_exec_in_the_foreground_join_terminals() {
    let Some(rig) = Rig::new() else { return };
    if differs("a terminal in the foreground has the caller's size") {
        return;
    }
    rig.configure(|config| {
        config["process"]["terminal"] = true.into();
        config["process"]["args"] = serde_json::json!(["sh", "-c", ASK]);
    });
    let bundle = rig.bundle();
    in_foreground(&rig, &["run", "-b", bundle.to_str().unwrap(), &rig.id]);
    rig.assert_nothing_left();
    rig.configure(|_| {});
    rig.up();
    in_foreground(&rig, &["exec", "-t", &rig.id, "sh", "-c", ASK]);
}

#[test]
fn a_terminal_without_one_on_our_side() {
    let Some(rig) = Rig::new() else { return };
    if !is_ours() {
        return;
    }
    rig.up();
    let called =
        rig.call_with_input(&["exec", "-t", &rig.id, "sh", "-c", "read line; echo got $line"], "word\n");
    assert!(called.ok().contains("got word"));
}
