//! File content with its holes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use orlop_distribution::tarball::Segment;

use super::UnpackError;

const BUFFER: usize = 128 * 1024;
const PAGE: usize = 4096;

/// What went wrong: the stream or the disk.
pub(super) enum CopyError {
    Stream(io::Error),
    Disk(io::Error),
}

impl CopyError {
    pub(super) fn of(self, path: &str) -> UnpackError {
        match self {
            CopyError::Stream(source) => UnpackError::Stream(source),
            CopyError::Disk(source) => UnpackError::Write { act: "write", path: path.to_owned(), source },
        }
    }
}

/// Writes `size` bytes at the places that `segments` says; pages of zeros become holes. Returns the bytes that take up disk.
pub(super) fn write_content(
    file: &File,
    source: &mut impl Read,
    size: u64,
    segments: Option<&[Segment]>,
) -> Result<u64, CopyError> {
    let whole = [Segment { offset: 0, length: size }];
    let mut buffer = vec![0u8; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER)).max(1)];
    let mut on_disk = 0u64;
    for segment in segments.unwrap_or(&whole) {
        let mut offset = segment.offset;
        let mut left = segment.length;
        while left > 0 {
            let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            source.read_exact(&mut buffer[..want]).map_err(CopyError::Stream)?;
            on_disk += write_pages(file, &buffer[..want], offset).map_err(CopyError::Disk)?;
            offset += want as u64;
            left -= want as u64;
        }
    }
    // Also makes the hole at the end.
    file.set_len(size).map_err(CopyError::Disk)?;
    Ok(on_disk)
}

/// Writes runs of pages that are not all zero.
fn write_pages(file: &File, data: &[u8], offset: u64) -> io::Result<u64> {
    let mut on_disk = 0u64;
    let mut start = 0;
    while start < data.len() {
        let is_zero = |at: usize| data[at..data.len().min(at + PAGE)].iter().all(|byte| *byte == 0);
        let mut end = start;
        while end < data.len() && !is_zero(end) {
            end += PAGE;
        }
        let stop = end.min(data.len());
        if stop > start {
            file.write_all_at(&data[start..stop], offset + start as u64)?;
            on_disk += (stop - start).next_multiple_of(PAGE) as u64;
            start = stop;
        } else {
            start += PAGE;
        }
    }
    Ok(on_disk)
}
