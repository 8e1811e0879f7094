//! Container logs in CRI format: `RFC3339Nano stdout|stderr P|F line` (cri-api, `logging`).
//!
//! Invariant: a log that cannot be written never stops the container. What a full disk refuses is counted and left out.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Longest piece of a line (the kubelet reads no longer ones at once).
const PIECE_LIMIT_BYTES: usize = 16 * 1024;

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Cuts a stream into lines; holds what has no end yet.
#[derive(Debug, Default)]
struct Splitter {
    pending: Vec<u8>,
}

impl Splitter {
    /// Formats what is complete. The held rest is shorter than a piece.
    fn feed(&mut self, stamp: &str, stream: &str, data: &[u8], out: &mut Vec<u8>) {
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let mut text = text;
            while self.pending.len() + text.len() > PIECE_LIMIT_BYTES {
                let (now, later) = text.split_at(PIECE_LIMIT_BYTES - self.pending.len());
                self.pending.extend_from_slice(now);
                self.emit(stamp, stream, 'P', out);
                text = later;
            }
            self.pending.extend_from_slice(text);
            if complete {
                if self.pending.last() == Some(&b'\r') {
                    self.pending.pop();
                }
                self.emit(stamp, stream, 'F', out);
            }
        }
    }

    /// What is left at the end of the stream is a piece without an end.
    fn finish(&mut self, stamp: &str, stream: &str, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.emit(stamp, stream, 'P', out);
        }
        self.pending = Vec::new();
    }

    fn emit(&mut self, stamp: &str, stream: &str, tag: char, out: &mut Vec<u8>) {
        // Writing to memory cannot fail.
        let _ = write!(out, "{stamp} {stream} {tag} ");
        out.extend_from_slice(&self.pending);
        out.push(b'\n');
        self.pending.clear();
    }
}

/// One container's log.
#[derive(Debug, Default)]
pub(crate) struct ContainerLog {
    path: Option<PathBuf>,
    file: Option<File>,
    stdout: Splitter,
    stderr: Splitter,
    /// The file ends inside of a line that the disk cut.
    torn: bool,
    /// Lines that the disk refused.
    dropped: u64,
}

impl ContainerLog {
    /// Opens the file; no path keeps no log.
    pub(crate) fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let mut log = Self { path, ..Self::default() };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file anew, between lines. The old one stays in use when that fails.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        self.file = Some(file);
        self.torn = false;
        Ok(())
    }

    /// Takes output.
    pub(crate) fn write(&mut self, stream: Stream, data: &[u8]) {
        if self.file.is_none() {
            return;
        }
        let mut out = Vec::with_capacity(data.len() + 128);
        let (splitter, name) = match stream {
            Stream::Stdout => (&mut self.stdout, "stdout"),
            Stream::Stderr => (&mut self.stderr, "stderr"),
        };
        splitter.feed(&stamp(), name, data, &mut out);
        self.append(&out);
    }

    /// The streams have ended.
    pub(crate) fn finish(&mut self) {
        let mut out = Vec::new();
        let stamp = stamp();
        self.stdout.finish(&stamp, "stdout", &mut out);
        self.stderr.finish(&stamp, "stderr", &mut out);
        self.append(&out);
        if self.dropped > 0 {
            crate::say(&format!("log {:?}: {} lines could not be written", self.path, self.dropped));
            self.dropped = 0;
        }
    }

    fn append(&mut self, out: &[u8]) {
        let Some(file) = &mut self.file else { return };
        if out.is_empty() {
            return;
        }
        if self.torn && file.write_all(b"\n").is_ok() {
            self.torn = false;
        }
        if self.torn {
            self.dropped += lines(out);
            return;
        }
        let mut rest = out;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => break,
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let written = out.len() - rest.len();
        self.torn = written > 0 && out[written - 1] != b'\n';
        self.dropped += lines(rest);
    }
}

fn lines(out: &[u8]) -> u64 {
    out.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

fn stamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(pieces: &[&[u8]]) -> String {
        let mut splitter = Splitter::default();
        let mut out = Vec::new();
        for piece in pieces {
            splitter.feed("T", "stdout", piece, &mut out);
        }
        splitter.finish("T", "stdout", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn cuts_lines() {
        let table: [(&[&[u8]], &str); 6] = [
            (&[b"a\nb\n"], "T stdout F a\nT stdout F b\n"),
            (&[b"a", b"b", b"c\n"], "T stdout F abc\n"),
            (&[b"\n\n"], "T stdout F \nT stdout F \n"),
            (&[b"x\r\n", b"y\r", b"\n"], "T stdout F x\nT stdout F y\n"),
            (&[b"no end"], "T stdout P no end\n"),
            (&[], ""),
        ];
        for (given, expected) in table {
            assert_eq!(feed(given), expected);
        }
    }

    #[test]
    fn cuts_long_lines_into_pieces() {
        let long = vec![b'x'; PIECE_LIMIT_BYTES * 2 + 5];
        let text = feed(&[&long, b"\n"]);
        let sizes: Vec<(char, usize)> = text
            .lines()
            .map(|line| (line.chars().nth(9).unwrap(), line.len() - "T stdout F ".len()))
            .collect();
        assert_eq!(sizes, [('P', PIECE_LIMIT_BYTES), ('P', PIECE_LIMIT_BYTES), ('F', 5)]);
        let exact = vec![b'x'; PIECE_LIMIT_BYTES];
        assert_eq!(feed(&[&exact, b"\n"]).lines().count(), 1);
    }

    #[test]
    fn survives_a_full_disk_and_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = ContainerLog::open(Some(path.clone())).unwrap();
        log.write(Stream::Stdout, b"one\n");
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        log.write(Stream::Stderr, b"two\n");
        log.reopen().unwrap();
        log.write(Stream::Stdout, b"three\n");
        assert_eq!(std::fs::read_to_string(directory.path().join("old")).unwrap().lines().count(), 2);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with(" stdout F three\n") && text.contains("T") && text.contains("Z "), "{text}");
        log.file = Some(OpenOptions::new().append(true).open("/dev/full").unwrap());
        log.write(Stream::Stdout, b"lost\nlost\n");
        assert_eq!(log.dropped, 2);
        log.reopen().unwrap();
        log.write(Stream::Stdout, b"four\n");
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("F four\n"));
    }

    proptest::proptest! {
        /// What the pieces say, put together again, is what went in, however it arrived; no piece is too long.
        #[test]
        fn nothing_is_lost_in_any_cut(
            lengths in proptest::collection::vec(0_usize..40_000, 0..6),
            ended: bool,
            cuts in proptest::collection::vec(0_usize..200_000, 0..6),
        ) {
            let mut text = Vec::new();
            for (number, length) in lengths.iter().enumerate() {
                text.extend(std::iter::repeat_n(b'a' + u8::try_from(number).unwrap(), *length));
                text.push(b'\n');
            }
            if !ended {
                text.extend_from_slice(b"rest");
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let mut back = Vec::new();
            for line in feed(&pieces).lines() {
                let (head, content) = line.split_at("T stdout F ".len());
                assert!(content.len() <= PIECE_LIMIT_BYTES);
                back.extend_from_slice(content.as_bytes());
                if head.ends_with("F ") {
                    back.push(b'\n');
                }
            }
            proptest::prop_assert_eq!(back, text);
        }
    }
}
