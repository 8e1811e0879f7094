//! A connection to the system bus: EXTERNAL authentication, calls, and the one signal that is waited for.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::wire::{Call, ERROR, FIXED_BYTES, Message, Property, RETURN, SIGNAL, Writer, rest_of};

/// For everything that is asked of systemd in one go (runc waits as long for a job).
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest message; ours and their answers are a hundredth of it.
const MESSAGE_LIMIT_BYTES: usize = 1 << 20;
/// Signals that came before the answer that says which is ours.
const EARLY_LIMIT: usize = 1024;
const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const BUS: &str = "org.freedesktop.DBus";

/// The environment variable that names another bus than the system's (D-Bus Specification, "Well-known Message Bus Instances").
pub const ADDRESS_VARIABLE: &str = "DBUS_SYSTEM_BUS_ADDRESS";

/// Why systemd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The socket.
    #[error("failed to talk to the system bus at {path}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a message.
    #[error("the system bus sent what is no D-Bus message")]
    Garbage,
    /// The bus or systemd said no.
    #[error("{member}: {name}: {text}")]
    Refused {
        /// What was called.
        member: &'static str,
        /// `org.freedesktop.…`
        name: String,
        /// For people.
        text: String,
    },
    /// A job that ended otherwise than `done`.
    #[error("systemd's job for {unit} ended: {result}")]
    Job {
        /// Unit.
        unit: String,
        /// `failed`, `timeout`, `canceled`, …
        result: String,
    },
}

impl BusError {
    /// There is no such unit: for who wants it gone, as good as done.
    pub(crate) fn is_no_such_unit(&self) -> bool {
        matches!(self, BusError::Refused { name, .. } if name.ends_with(".NoSuchUnit"))
    }
}

/// A connection that has said hello.
pub(crate) struct Bus {
    stream: UnixStream,
    path: PathBuf,
    serial: u32,
    end: Instant,
    /// Of jobs, in the order they came.
    early: Vec<Message>,
}

impl Bus {
    /// The system's, or the one that the environment names.
    pub(crate) fn system() -> Result<Self, BusError> {
        let named = std::env::var(ADDRESS_VARIABLE).unwrap_or_default();
        let named = named.split(';').find_map(|address| address.strip_prefix("unix:path="));
        let path = named.and_then(|rest| rest.split(',').next()).unwrap_or("/run/dbus/system_bus_socket");
        Self::connect(Path::new(path))
    }

    /// Connects and says hello.
    pub(crate) fn connect(path: &Path) -> Result<Self, BusError> {
        let failed = |source| BusError::Io { path: path.to_path_buf(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        let end = Instant::now() + DEADLINE;
        let mut bus = Self { stream, path: path.to_path_buf(), serial: 0, end, early: Vec::new() };
        bus.authenticate().map_err(failed)?;
        bus.call(BUS, "/org/freedesktop/DBus", BUS, "Hello", "", &Writer::default())?;
        let mut rule = Writer::default();
        rule.text(&format!("type='signal',interface='{MANAGER}',member='JobRemoved',path='{MANAGER_PATH}'"));
        bus.call(BUS, "/org/freedesktop/DBus", BUS, "AddMatch", "s", &rule)?;
        Ok(bus)
    }

    /// By the credentials of the socket (D-Bus Specification, "Authentication Protocol").
    fn authenticate(&mut self) -> io::Result<()> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0_u8];
            self.limit_read()?;
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 512 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        if !line.starts_with(b"OK ") {
            let said = String::from_utf8_lossy(&line).trim().to_owned();
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, said));
        }
        self.stream.write_all(b"BEGIN\r\n")
    }

    fn limit_read(&self) -> io::Result<()> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))
    }

    fn receive(&mut self) -> Result<Message, BusError> {
        let mut bytes = vec![0_u8; FIXED_BYTES];
        let read = |bus: &mut Self, into: &mut [u8]| -> Result<(), BusError> {
            let answer = bus.limit_read().and_then(|()| bus.stream.read_exact(into));
            answer.map_err(|source| BusError::Io { path: bus.path.clone(), source })
        };
        read(self, &mut bytes)?;
        let fixed: [u8; FIXED_BYTES] = bytes.as_slice().try_into().map_err(|_| BusError::Garbage)?;
        let rest = rest_of(&fixed, MESSAGE_LIMIT_BYTES).ok_or(BusError::Garbage)?;
        bytes.resize(FIXED_BYTES + rest, 0);
        read(self, &mut bytes[FIXED_BYTES..])?;
        Message::decode(&bytes).ok_or(BusError::Garbage)
    }

    fn call(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &'static str,
        signature: &str,
        body: &Writer,
    ) -> Result<Message, BusError> {
        self.serial += 1;
        let message = Call { destination, path, interface, member, signature }.encode(self.serial, body);
        let sent = self.stream.write_all(&message);
        sent.map_err(|source| BusError::Io { path: self.path.clone(), source })?;
        loop {
            let message = self.receive()?;
            match message.kind {
                RETURN if message.reply_to == self.serial => return Ok(message),
                ERROR if message.reply_to == self.serial => {
                    let text = message.texts().into_iter().next().unwrap_or_default();
                    return Err(BusError::Refused { member, name: message.error, text });
                }
                SIGNAL if message.member == "JobRemoved" && self.early.len() < EARLY_LIMIT => {
                    self.early.push(message);
                }
                _ => {}
            }
        }
    }

    /// Calls a method that answers with a job, and waits for the job's end.
    fn job(
        &mut self,
        unit: &str,
        member: &'static str,
        signature: &str,
        body: &Writer,
    ) -> Result<(), BusError> {
        self.early.clear();
        let answer = self.call(SYSTEMD, MANAGER_PATH, MANAGER, member, signature, body)?;
        let job = answer.texts().into_iter().next().ok_or(BusError::Garbage)?;
        let mut waiting = std::mem::take(&mut self.early).into_iter();
        loop {
            let message = match waiting.next() {
                Some(message) => message,
                None => self.receive()?,
            };
            if message.kind != SIGNAL || message.member != "JobRemoved" {
                continue;
            }
            // Number, job, unit, result.
            match message.texts().as_slice() {
                [_, ended, _, result] if *ended == job => {
                    return match result.as_str() {
                        "done" => Ok(()),
                        other => Err(BusError::Job { unit: unit.to_owned(), result: other.to_owned() }),
                    };
                }
                _ => {}
            }
        }
    }

    /// Makes a unit that ends with its last process.
    pub(crate) fn start_transient_unit(
        &mut self,
        unit: &str,
        properties: &[Property],
    ) -> Result<(), BusError> {
        let mut body = Writer::default();
        body.text(unit).text("replace").properties(properties).no_more_units();
        self.job(unit, "StartTransientUnit", "ssa(sv)a(sa(sv))", &body)
    }

    /// Ends a unit; one that does not exist is no error.
    pub(crate) fn stop_unit(&mut self, unit: &str) -> Result<(), BusError> {
        let mut body = Writer::default();
        body.text(unit).text("replace");
        match self.job(unit, "StopUnit", "ss", &body) {
            Err(error) if !error.is_no_such_unit() => Err(error),
            _ => Ok(()),
        }
    }

    /// Changes a unit until it ends.
    pub(crate) fn set_unit_properties(
        &mut self,
        unit: &str,
        properties: &[Property],
    ) -> Result<(), BusError> {
        let mut body = Writer::default();
        body.text(unit).flag(true).properties(properties);
        self.call(SYSTEMD, MANAGER_PATH, MANAGER, "SetUnitProperties", "sba(sv)", &body).map(drop)
    }
}
