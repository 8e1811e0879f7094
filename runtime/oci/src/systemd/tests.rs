use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::wire::{ERROR, FIXED_BYTES, Message, RETURN, SIGNAL, Writer, encode_answer, rest_of, serial};
use super::*;

/// A call: its name, the texts it begins with, and its body.
type Asked = (String, Vec<String>, Vec<u8>);

/// A bus with a systemd on it that knows its units; returns what it was asked.
struct FakeBus {
    directory: tempfile::TempDir,
    thread: Option<std::thread::JoinHandle<Vec<Asked>>>,
}

impl FakeBus {
    fn start(result: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("bus")).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            serve(stream, result)
        });
        Self { directory, thread: Some(thread) }
    }

    fn connect(&self) -> Result<Bus, BusError> {
        Bus::connect(&self.directory.path().join("bus"))
    }

    fn asked(mut self) -> Vec<Asked> {
        self.thread.take().unwrap().join().unwrap()
    }
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0_u8];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn serve(mut stream: UnixStream, result: &str) -> Vec<Asked> {
    let uid: String =
        rustix::process::geteuid().as_raw().to_string().bytes().map(|b| format!("{b:02x}")).collect();
    if line(&mut stream) != format!("\0AUTH EXTERNAL {uid}\r\n") || result == "stranger" {
        stream.write_all(b"REJECTED EXTERNAL\r\n").unwrap();
        return Vec::new();
    }
    stream.write_all(b"OK 0123456789abcdef\r\n").unwrap();
    assert_eq!(line(&mut stream), "BEGIN\r\n");
    let mut units: Vec<String> = Vec::new();
    let mut asked = Vec::new();
    loop {
        let mut bytes = vec![0_u8; FIXED_BYTES];
        if stream.read_exact(&mut bytes).is_err() {
            return asked;
        }
        let rest = rest_of(bytes.as_slice().try_into().unwrap(), 1 << 20).unwrap();
        bytes.resize(FIXED_BYTES + rest, 0);
        stream.read_exact(&mut bytes[FIXED_BYTES..]).unwrap();
        let (message, number) = (Message::decode(&bytes).unwrap(), serial(&bytes));
        let texts = message.texts();
        let unit = texts.first().cloned().unwrap_or_default();
        let job = format!("/org/freedesktop/systemd1/job/{number}");
        let mut removed = Writer::default();
        let ended = |body: &mut Writer, job: &str| {
            body.number(1).text(job).text(&unit).text(result);
        };
        let mut body = Writer::default();
        let mut answers = Vec::new();
        match message.member.as_str() {
            "Hello" => {
                body.text(":1.5");
                answers.push(encode_answer(RETURN, number, "", "s", &body));
            }
            "StopUnit" if !units.contains(&unit) => {
                body.text("Unit not loaded.");
                answers.push(encode_answer(ERROR, number, "org.freedesktop.systemd1.NoSuchUnit", "s", &body));
            }
            "StartTransientUnit" | "StopUnit" => {
                units.retain(|known| *known != unit);
                if message.member == "StartTransientUnit" {
                    units.push(unit.clone());
                }
                // Somebody else's job, and ours sooner than the answer that names it.
                let mut other = Writer::default();
                ended(&mut other, "/org/freedesktop/systemd1/job/77");
                answers.push(encode_answer(SIGNAL, 0, "JobRemoved", "uoss", &other));
                ended(&mut removed, &job);
                answers.push(encode_answer(SIGNAL, 0, "JobRemoved", "uoss", &removed));
                body.text(&job);
                answers.push(encode_answer(RETURN, number, "", "o", &body));
            }
            _ => answers.push(encode_answer(RETURN, number, "", "", &body)),
        }
        // In pieces: a stream has no messages.
        for piece in answers.concat().chunks(7) {
            stream.write_all(piece).unwrap();
        }
        asked.push((message.member, texts, message.body));
    }
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|part| part == text.as_bytes())
}

#[test]
fn a_life_of_a_scope() {
    let fake = FakeBus::start("done");
    let mut bus = fake.connect().unwrap();
    let scope = Scope::parse("a.slice:p:x").unwrap();
    let resources: LinuxResources = serde_json::from_str(r#"{"memory":{"limit":4096}}"#).unwrap();
    start(&mut bus, &scope, "x", 4711, Some(&resources), true).unwrap();
    update(&mut bus, &scope.unit, &resources, true).unwrap();
    update(&mut bus, &scope.unit, &LinuxResources::default(), true).unwrap();
    bus.stop_unit(&scope.unit).unwrap();
    bus.stop_unit(&scope.unit).unwrap();
    drop(bus);
    let asked = fake.asked();
    let names: Vec<&str> = asked.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(
        names,
        ["Hello", "AddMatch", "StartTransientUnit", "SetUnitProperties", "StopUnit", "StopUnit"]
    );
    let (_, texts, body) = &asked[2];
    assert_eq!(texts, &["p-x.scope", "replace"]);
    for name in ["Slice", "a.slice", "Delegate", "PIDs", "IOAccounting", "MemoryMax"] {
        assert!(contains(body, name), "{name}");
    }
    assert!(body.windows(4).any(|part| part == 4711_u32.to_le_bytes()));
}

#[test]
fn failures_have_names() {
    let fake = FakeBus::start("failed");
    let mut bus = fake.connect().unwrap();
    let error = bus.start_transient_unit("x.scope", &[]).unwrap_err();
    assert_eq!(error.to_string(), "systemd's job for x.scope ended: failed");
    drop(bus);
    fake.asked();

    let fake = FakeBus::start("stranger");
    assert!(matches!(fake.connect().err().unwrap(), BusError::Io { .. }));
    fake.asked();
    assert!(Bus::connect(Path::new("/nowhere/bus")).is_err());
}
