//! `bundle diff`: names that came, went and moved, and how much is new.

use std::io::Write as _;

use anyhow::Context as _;
use orlop_distribution::archive::Archive;

use super::{Bundle, DiffArgs, Trust, spool};
use crate::sync::size;

pub(super) fn run(args: &DiffArgs) -> anyhow::Result<()> {
    let open = |path| Bundle::open(path, &spool(), &Trust::Anybody);
    let (old, new) = (open(&args.old)?, open(&args.new)?);
    let (before, after) = (old.images(), new.images());
    let mut output = std::io::stdout();
    for (name, digest) in &before {
        if !after.contains_key(name) {
            writeln!(output, "- {name} {digest}")?;
        }
    }
    for (name, digest) in &after {
        match before.get(name) {
            None => writeln!(output, "+ {name} {digest}")?,
            Some(old) if old != digest => writeln!(output, "~ {name} {old} -> {digest}")?,
            Some(_) => {}
        }
    }
    let (count, bytes) = more(&new.archive, &old.archive);
    let (gone, gone_bytes) = more(&old.archive, &new.archive);
    writeln!(output, "{count} blobs ({}) are new, {gone} ({}) are gone", size(bytes), size(gone_bytes))
        .context("failed to write")
}

/// Blobs of the first that the second has not.
fn more(first: &Archive, second: &Archive) -> (usize, u64) {
    let more = first.blobs().filter(|(digest, _)| second.size(digest).is_none());
    more.fold((0, 0), |(count, bytes), (_, size)| (count + 1, bytes + size))
}
