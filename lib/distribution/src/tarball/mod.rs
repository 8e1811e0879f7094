//! Streaming tar reader: ustar, PAX (local and global), GNU long names, sparse files of every GNU form.
//!
//! Written here because layers are hostile input: an extension record must not claim gigabytes of memory, extended
//! attributes are binary (a capability may contain a line feed), and an entry's error must name where it happened.
//! Format: POSIX.1-2008 "pax Interchange Format" and the GNU tar manual, "Basic Tar Format" and "Storing Sparse Files".

mod header;
mod pax;
mod reader;
mod sparse;

pub use reader::{EntryKind, Segment, TarEntry, TarReader};

use std::io;

/// Most bytes of one extension record (PAX header or GNU long name).
const EXTENSION_LIMIT: u64 = 1 << 20;
/// Most segments of one sparse file.
const SEGMENT_LIMIT: usize = 65_536;

fn malformed(offset: u64, reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("tar header at byte {offset}: {reason}"))
}

fn truncated(offset: u64, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("tar is cut off at byte {offset}, inside {what}"))
}
