//! Why libcontainer failed. Its errors name the stage alone ("failed to prepare rootfs"); the reason is in what it logs at the place of the
//! failure, in whichever of its processes that was.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// One line of it.
const LINE_LIMIT_BYTES: usize = 1024;
/// Of all of it.
const TEXT_LIMIT_BYTES: u64 = 16 * 1024;

/// What was logged as an error, by this process and those cloned from it.
pub(super) struct Reasons(Arc<OwnedFd>);

impl Reasons {
    /// From now on, for the rest of this process.
    pub(super) fn collect() -> std::io::Result<Self> {
        let file = Arc::new(rustix::fs::memfd_create("reasons", MemfdFlags::CLOEXEC)?);
        // Another subscriber can only be a test's.
        let _ = tracing::subscriber::set_global_default(Collector(Arc::clone(&file)));
        Ok(Self(file))
    }

    /// The first one: the others repeat it further out.
    pub(super) fn first(&self) -> Option<String> {
        let mut file = File::from(self.0.try_clone().ok()?);
        file.rewind().ok()?;
        let mut text = String::new();
        file.take(TEXT_LIMIT_BYTES).read_to_string(&mut text).ok()?;
        text.lines().next().map(str::to_owned)
    }
}

struct Collector(Arc<OwnedFd>);

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let mut text = line.message + &line.fields;
        text = text.replace('\n', " ");
        if let Some((at, _)) = text.char_indices().find(|(at, _)| *at >= LINE_LIMIT_BYTES) {
            text.truncate(at);
        }
        text.push('\n');
        // The offset is shared by every process, so lines come one after the other.
        let _ = rustix::io::write(&self.0, text.as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, ", {name}: {value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_first_error() {
        let file = Arc::new(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        let reasons = Reasons(Arc::clone(&file));
        assert_eq!(reasons.first(), None);
        tracing::subscriber::with_default(Collector(file), || {
            tracing::debug!("not this");
            tracing::error!(path = ?"/x", "failed to mount\nit");
            tracing::error!("outer");
        });
        assert_eq!(reasons.first().unwrap(), "failed to mount it, path: \"/x\"");
    }
}
