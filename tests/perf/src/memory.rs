//! Resident memory of a set of processes.
//!
//! Definition: the physical pages that at least one process of the set has mapped, each counted once however many of them map it:
//! private + shared once. What processes outside of the set map too is counted in full, so the number is what this set would
//! need alone on a machine; for one process it is its resident set. Beside it stands Pss, which divides a shared page by all
//! processes of the machine that map it.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use anyhow::Context as _;

/// Printed with the numbers.
pub(crate) const DEFINITION: &str = "Memory: resident pages of all processes of the set, each physical page counted once \
    (/proc/PID/pagemap): private + shared once. In brackets the sum of their Pss.";

const PAGE_BYTES: u64 = 4096;
const ENTRY_BYTES: u64 = 8;
/// Pages whose entries are read at once.
const CHUNK_PAGES: u64 = 1 << 16;
/// Bits of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// What a set of processes holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Resident {
    /// Each physical page once, in 10^6 bytes.
    pub distinct: f64,
    /// Sum of the proportional set sizes, in 10^6 bytes.
    pub proportional: f64,
}

impl Resident {
    /// Of these processes.
    pub(crate) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        anyhow::ensure!(!pids.is_empty(), "there is no process whose memory could be measured");
        let mut frames = HashSet::new();
        let mut proportional = 0.0;
        for pid in pids {
            collect_frames(*pid, &mut frames)
                .with_context(|| format!("failed to read the pages of {pid}"))?;
            proportional += pss_bytes(*pid)?;
        }
        Ok(Self {
            distinct: (frames.len() as u64 * PAGE_BYTES) as f64 / 1e6,
            proportional: proportional / 1e6,
        })
    }

    /// A part of it, for what several pods need together.
    pub(crate) fn per(self, count: usize) -> Self {
        Self { distinct: self.distinct / count as f64, proportional: self.proportional / count as f64 }
    }
}

fn collect_frames(pid: u32, frames: &mut HashSet<u64>) -> anyhow::Result<()> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    for line in maps.lines().filter(|line| !line.ends_with("[vsyscall]")) {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let (start, end) = range.with_context(|| format!("{line:?} is no mapping"))?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let (mut page, last) = (start / PAGE_BYTES, end / PAGE_BYTES);
        while page < last {
            let pages = CHUNK_PAGES.min(last - page);
            let mut entries = vec![0; usize::try_from(pages * ENTRY_BYTES)?];
            let read = pagemap.read_at(&mut entries, page * ENTRY_BYTES)?;
            frames.extend(present_frames(&entries[..read]));
            page += pages;
        }
    }
    Ok(())
}

fn present_frames(entries: &[u8]) -> impl Iterator<Item = u64> {
    entries
        .as_chunks::<8>()
        .0
        .iter()
        .map(|entry| u64::from_ne_bytes(*entry))
        .filter(|entry| entry & PRESENT != 0 && entry & FRAME != 0)
        .map(|entry| entry & FRAME)
}

fn pss_bytes(pid: u32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kibibytes = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|line| line.split_whitespace().next())
        .with_context(|| format!("smaps_rollup of {pid} has no Pss"))?;
    Ok(kibibytes.parse::<f64>()? * 1024.0)
}

/// Processes whose command line satisfies `is_wanted`; its words are joined by spaces.
pub(crate) fn processes(is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let path: PathBuf = entry.path().join("cmdline");
        // A process may end while we look.
        let Ok(words) = std::fs::read(path) else { continue };
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        if is_wanted(line.trim_end()) {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_present_pages_count() {
        let entries: Vec<u8> = [PRESENT | 7, 9, 0, PRESENT | 7, PRESENT]
            .iter()
            .flat_map(|entry: &u64| entry.to_ne_bytes())
            .collect();
        assert_eq!(present_frames(&entries).collect::<Vec<_>>(), [7, 7]);
    }

    #[test]
    fn a_process_named_twice_counts_once() {
        let this = std::process::id();
        let (once, twice) = (Resident::of(&[this]).unwrap(), Resident::of(&[this, this]).unwrap());
        assert!(once.distinct > 0.0 && twice.distinct < 2.0 * once.distinct);
    }
}
