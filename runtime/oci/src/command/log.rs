//! Telling errors: a line on standard error, and one in the `--log` file, where containerd and Docker look for the reason.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::arguments::LogFormat;

/// The log of one call.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) file: Option<PathBuf>,
    pub(super) format: LogFormat,
    pub(super) debug: bool,
}

impl Log {
    /// Why the call failed.
    pub(super) fn error(&self, message: &str) {
        let _ = writeln!(io::stderr(), "{message}");
        self.append("error", message);
    }

    /// Something that did not go as asked and does not fail the call.
    pub(super) fn warning(&self, message: &str) {
        if self.file.is_none() {
            let _ = writeln!(io::stderr(), "warning: {message}");
        }
        self.append("warning", message);
    }

    pub(super) fn debug(&self, message: &str) {
        if self.debug {
            self.append("debug", message);
        }
    }

    /// A log that cannot be written must not hide the error itself, nor fail the call.
    fn append(&self, level: &str, message: &str) {
        let Some(path) = &self.file else { return };
        let line = render(self.format, level, message, &jiff::Timestamp::now().to_string());
        let file = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            let _ = writeln!(io::stderr(), "failed to write {}: {error}", path.display());
        }
    }
}

/// As logrus writes: containerd decodes `level` and `msg`.
fn render(format: LogFormat, level: &str, message: &str, time: &str) -> String {
    match format {
        LogFormat::Json => {
            format!("{}\n", serde_json::json!({"level": level, "msg": message, "time": time}))
        }
        LogFormat::Text => format!("time={time:?} level={level} msg={message:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_containerd_reads() {
        let line = render(LogFormat::Json, "error", "a \"b\"", "2026-01-01T00:00:00Z");
        assert_eq!(line, "{\"level\":\"error\",\"msg\":\"a \\\"b\\\"\",\"time\":\"2026-01-01T00:00:00Z\"}\n");
        let text = render(LogFormat::Text, "error", "x", "t");
        assert_eq!(text, "time=\"t\" level=error msg=\"x\"\n");
    }
}
