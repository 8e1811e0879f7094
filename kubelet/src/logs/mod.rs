//! Container logs in the CRI format: `2016-10-06T00:17:09.669794202Z stdout F text`, one file per start, rotated by rename.

pub(crate) mod follow;
pub(crate) mod rotation;

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use jiff::Timestamp;

/// The longest line a runtime writes is 16 KiB and its stamp; longer ones are not log lines.
pub(crate) const LINE_LIMIT_BYTES: usize = 128 * 1024;
const BLOCK_BYTES: u64 = 64 * 1024;

/// One line, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) stamp: &'a str,
    pub(crate) stream: &'a str,
    /// The text goes on in the next line.
    pub(crate) partial: bool,
    pub(crate) text: &'a [u8],
}

/// Takes a line (without its newline) apart; `None` for what is none.
pub(crate) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let stamp = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    if !matches!(stream, "stdout" | "stderr") {
        return None;
    }
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    let partial = tag.split(|byte| *byte == b':').next() == Some(b"P");
    Some(Line { stamp, stream, partial, text })
}

/// What a reader wants (`PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    pub(crate) timestamps: bool,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) limit_bytes: Option<u64>,
    pub(crate) since: Option<Timestamp>,
    /// `stdout` or `stderr`; both when absent.
    pub(crate) stream: Option<String>,
}

/// Turns lines of a file into what a client gets, keeping count of the byte limit.
#[derive(Debug)]
pub(crate) struct Renderer {
    options: Options,
    left: Option<u64>,
    /// The last line was partial: no stamp in the middle of a line.
    inside: bool,
}

impl Renderer {
    pub(crate) fn new(options: Options) -> Self {
        Self { left: options.limit_bytes, options, inside: false }
    }

    /// Whether the byte limit is reached.
    pub(crate) fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Appends one line's rendering.
    pub(crate) fn line(&mut self, line: &[u8], output: &mut Vec<u8>) {
        let Some(line) = parse(line) else { return };
        if self.options.stream.as_ref().is_some_and(|wanted| wanted != line.stream) {
            return;
        }
        if let Some(since) = self.options.since
            && line.stamp.parse::<Timestamp>().is_ok_and(|stamp| stamp < since)
        {
            return;
        }
        let start = output.len();
        if self.options.timestamps && !self.inside {
            output.extend_from_slice(line.stamp.as_bytes());
            output.push(b' ');
        }
        output.extend_from_slice(line.text);
        if !line.partial {
            output.push(b'\n');
        }
        self.inside = line.partial;
        if let Some(left) = &mut self.left {
            let added = (output.len() - start) as u64;
            if added > *left {
                output.truncate(start + usize::try_from(*left).unwrap_or(usize::MAX));
            }
            *left = left.saturating_sub(added);
        }
    }
}

/// Where the last `lines` lines of a file begin.
pub(crate) fn tail_offset(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut end = length;
    let mut newlines = 0;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(end - start).read_to_end(&mut block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let position = start + index as u64;
            if position + 1 == length {
                // The newline that ends the last line begins none.
                continue;
            }
            newlines += 1;
            if newlines == lines {
                return Ok(position + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

/// The text of the last lines, at most `limit` bytes of it: a termination message out of the log.
pub(crate) fn tail_text(path: &Path, lines: usize, limit: usize) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let start = tail_offset(&mut file, lines as u64)?;
        let length = file.metadata()?.len();
        // A tail of long lines is cut to what can still be part of the message.
        let start = start.max(length.saturating_sub(4 * LINE_LIMIT_BYTES as u64));
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(4 * LINE_LIMIT_BYTES as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = read() else { return String::new() };
    let mut renderer = Renderer::new(Options::default());
    let mut text = Vec::new();
    bytes.split(|byte| *byte == b'\n').for_each(|line| renderer.line(line, &mut text));
    let start = text.len().saturating_sub(limit);
    String::from_utf8_lossy(&text[start..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr P tw\n2026-01-01T00:00:02Z stderr F o\n\
                       not a line\n2026-01-01T00:00:03Z stdout F \n2026-01-01T00:00:04Z stdout F four\n";

    fn render(options: Options) -> String {
        let mut renderer = Renderer::new(options);
        let mut output = Vec::new();
        LOG.as_bytes().split(|byte| *byte == b'\n').for_each(|line| renderer.line(line, &mut output));
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn what_clients_get() {
        let plain = Options::default;
        assert_eq!(render(plain()), "one\ntwo\n\nfour\n");
        assert_eq!(
            render(Options { timestamps: true, ..plain() }),
            "2026-01-01T00:00:01Z one\n2026-01-01T00:00:02Z two\n2026-01-01T00:00:03Z \n2026-01-01T00:00:04Z four\n"
        );
        assert_eq!(
            render(Options { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..plain() }),
            "\nfour\n"
        );
        assert_eq!(render(Options { limit_bytes: Some(6), ..plain() }), "one\ntw");
        assert_eq!(render(Options { stream: Some("stderr".into()), ..plain() }), "two\n");
    }

    #[test]
    fn tails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let mut file = File::open(&path).unwrap();
        for (lines, start) in [(0, LOG.len()), (1, LOG.len() - 35), (100, 0)] {
            assert_eq!(tail_offset(&mut file, lines).unwrap(), start as u64, "{lines}");
        }
        assert_eq!(tail_text(&path, 2, 100), "\nfour\n");
        assert_eq!(tail_text(&path, 80, 5), "four\n");
        assert_eq!(tail_text(&dir.path().join("none"), 80, 5), "");
    }
}
