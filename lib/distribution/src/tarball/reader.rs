use std::io::{self, Read, Seek, SeekFrom};

use super::header::{self, BLOCK, HeaderBlock};
use super::pax::{self, Records};
use super::sparse::{self, PaxSparse};
use super::{EXTENSION_LIMIT, SEGMENT_LIMIT, malformed, truncated};

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to `TarEntry::link`.
    Symlink,
    /// Another name of `TarEntry::link`.
    HardLink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// Something else; its type flag.
    Other(u8),
}

/// A run of data in a sparse file; everything between segments is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes of the entry's data.
    pub length: u64,
}

/// One member of a tar.
#[derive(Clone, Debug)]
pub struct TarEntry {
    /// Path as written, any bytes.
    pub path: Vec<u8>,
    /// Target of links, as written.
    pub link: Vec<u8>,
    /// What it makes.
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Device numbers, for devices.
    pub device: (u32, u32),
    /// Extended attributes in order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of the file, holes included.
    pub size: u64,
    /// The map of a sparse file.
    pub sparse: Option<Vec<Segment>>,
    /// Where the header starts in the uncompressed stream.
    pub offset: u64,
}

/// Reads a tar from front to back. [`TarReader::next_entry`] steps, `Read` gives the data of the current entry.
pub struct TarReader<R> {
    source: R,
    position: u64,
    remaining: u64,
    padding: u64,
    global: Records,
    ended: bool,
}

#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Records,
    sparse: PaxSparse,
}

impl<R: Read> TarReader<R> {
    /// A reader at the start of a tar.
    pub fn new(source: R) -> Self {
        Self { source, position: 0, remaining: 0, padding: 0, global: Records::new(), ended: false }
    }

    /// The underlying reader, for draining what follows the end marker.
    pub fn into_inner(self) -> R {
        self.source
    }

    /// Where the next byte of the current entry's data lies in the stream.
    pub fn data_position(&self) -> u64 {
        self.position
    }

    /// Passes over what is left of the current entry without reading it; the end of the stream is not noticed on the way.
    ///
    /// # Errors
    /// The source's own.
    pub fn pass_over(&mut self) -> io::Result<()>
    where
        R: Seek,
    {
        let left = self.remaining.saturating_add(std::mem::take(&mut self.padding));
        self.remaining = 0;
        let step = i64::try_from(left).map_err(|_| malformed(self.position, "size makes no sense"))?;
        self.position = self.source.seek(SeekFrom::Current(step))?;
        Ok(())
    }

    /// Skips what is left of the current entry and reads the next header; none at the end.
    ///
    /// # Errors
    /// `UnexpectedEof` when the stream ends inside an entry, `InvalidData` for headers that make no sense.
    pub fn next_entry(&mut self) -> io::Result<Option<TarEntry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            if self.ended {
                return Ok(None);
            }
            let offset = self.position;
            let Some(block) = self.read_block()? else {
                self.ended = true;
                return Ok(None);
            };
            let header = HeaderBlock(&block);
            if header.is_zero() {
                self.ended = true;
                return Ok(None);
            }
            if !header.checksum_is_right() {
                return Err(malformed(offset, "wrong checksum"));
            }
            let size = header.size().ok_or_else(|| malformed(offset, "size is not a number"))?;
            match header.type_flag() {
                b'x' | b'X' => self.read_local(size, offset, &mut extensions)?,
                b'g' => self.read_global(size, offset)?,
                b'L' => extensions.path = Some(self.read_long(size, offset)?),
                b'K' => extensions.link = Some(self.read_long(size, offset)?),
                _ => return self.entry(&header, size, offset, extensions).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &HeaderBlock<'_>,
        size: u64,
        offset: u64,
        extensions: Extensions,
    ) -> io::Result<TarEntry> {
        let record = |key: &[u8]| extensions.records.get(key).or_else(|| self.global.get(key));
        let number = |key: &[u8], field: Option<u64>, what: &str| match record(key) {
            Some(value) => {
                pax::number(value).ok_or_else(|| malformed(offset, format!("{what} is not a number")))
            }
            None => field.ok_or_else(|| malformed(offset, format!("{what} is not a number"))),
        };
        let stored = number(b"size", Some(size), "size")?;
        let path = extensions.sparse.name.clone().or_else(|| record(b"path").cloned()).or(extensions.path);
        let path = path.unwrap_or_else(|| header.path());
        let kind = kind(header.type_flag(), &path);
        let mode = header.mode().and_then(|mode| u32::try_from(mode).ok());
        let mut entry = TarEntry {
            link: record(b"linkpath").cloned().or(extensions.link).unwrap_or_else(|| header.link()),
            mode: mode.ok_or_else(|| malformed(offset, "mode is not a number"))? & 0o7777,
            uid: number(b"uid", header.uid(), "owner")?,
            gid: number(b"gid", header.gid(), "group")?,
            mtime: record(b"mtime").and_then(|value| pax::time(value)).unwrap_or((header.mtime(), 0)),
            device: (0, 0),
            xattrs: xattrs(&self.global, &extensions.records),
            size: stored,
            sparse: None,
            offset,
            path,
            kind,
        };
        if matches!(entry.kind, EntryKind::CharacterDevice | EntryKind::BlockDevice) {
            entry.device =
                header.device().ok_or_else(|| malformed(offset, "device number is not a number"))?;
        }
        // Links and devices have no data, whatever their size field says (POSIX.1-2008 pax, "size").
        // A directory of old writers is a file by its flag, and has what its size says.
        let has_data = !(b'1'..=b'6').contains(&header.type_flag());
        self.begin_data(if has_data { stored } else { 0 });
        if !matches!(entry.kind, EntryKind::File | EntryKind::Other(_)) {
            entry.size = 0;
        }
        if header.type_flag() == b'S' {
            self.old_sparse(header, &mut entry)?;
        } else if entry.kind == EntryKind::File && extensions.sparse.is_present() {
            self.pax_sparse(extensions.sparse, &mut entry)?;
        }
        Ok(entry)
    }

    fn begin_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    /// Extension blocks of the map lie between the header and the data and are not counted in the size.
    fn old_sparse(&mut self, header: &HeaderBlock<'_>, entry: &mut TarEntry) -> io::Result<()> {
        let bad = || malformed(entry.offset, "sparse map makes no sense");
        if !header.is_gnu() {
            return Err(bad());
        }
        let (mut segments, mut more, real_size) = header.gnu_sparse().ok_or_else(bad)?;
        while more {
            let block = self.read_block()?.ok_or_else(|| truncated(self.position, "a sparse map"))?;
            let (next, again) = header::extended_sparse(&block).ok_or_else(bad)?;
            segments.extend(next);
            more = again;
            if segments.len() > SEGMENT_LIMIT {
                return Err(bad());
            }
        }
        self.set_segments(segments, real_size, entry)
    }

    fn pax_sparse(&mut self, mut map: PaxSparse, entry: &mut TarEntry) -> io::Result<()> {
        let real_size = map.real_size.unwrap_or(entry.size);
        if map.map_in_data {
            map.segments = self.read_map(entry.offset)?;
        }
        self.set_segments(map.segments, real_size, entry)
    }

    fn set_segments(
        &mut self,
        segments: Vec<(u64, u64)>,
        real_size: u64,
        entry: &mut TarEntry,
    ) -> io::Result<()> {
        if sparse::total(&segments, real_size) != Some(self.remaining) {
            return Err(malformed(entry.offset, "sparse map does not fit the data"));
        }
        entry.size = real_size;
        entry.sparse =
            Some(segments.into_iter().map(|(offset, length)| Segment { offset, length }).collect());
        Ok(())
    }

    /// Version 1.0: decimal numbers, one a line, the count first, padded to a block.
    fn read_map(&mut self, offset: u64) -> io::Result<Vec<(u64, u64)>> {
        let bad = || malformed(offset, "sparse map makes no sense");
        let start = self.remaining;
        let next = |reader: &mut Self| -> io::Result<u64> {
            let mut value: Option<u64> = None;
            loop {
                let mut byte = [0u8];
                reader.read_exact(&mut byte)?;
                match byte[0] {
                    b'\n' => return value.ok_or_else(bad),
                    digit @ b'0'..=b'9' => {
                        let shifted = value.unwrap_or(0).checked_mul(10).ok_or_else(bad)?;
                        value = Some(shifted.checked_add(u64::from(digit - b'0')).ok_or_else(bad)?);
                    }
                    _ => return Err(bad()),
                }
            }
        };
        let count = next(self)?;
        if count > SEGMENT_LIMIT as u64 {
            return Err(bad());
        }
        let mut segments = Vec::new();
        for _ in 0..count {
            segments.push((next(self)?, next(self)?));
        }
        let used = start - self.remaining;
        let mut rest = vec![0u8; ((BLOCK as u64 - used % BLOCK as u64) % BLOCK as u64) as usize];
        self.read_exact(&mut rest)?;
        Ok(segments)
    }

    fn read_local(&mut self, size: u64, offset: u64, extensions: &mut Extensions) -> io::Result<()> {
        for (key, value) in self.read_records(size, offset)? {
            if key.starts_with(b"GNU.sparse.") {
                if !extensions.sparse.take(&key, &value) {
                    return Err(malformed(offset, "sparse record makes no sense"));
                }
            } else {
                extensions.records.insert(key, value);
            }
        }
        Ok(())
    }

    fn read_global(&mut self, size: u64, offset: u64) -> io::Result<()> {
        for (key, value) in self.read_records(size, offset)? {
            if value.is_empty() {
                self.global.remove(&key);
            } else if self.global.len() < 1024 {
                self.global.insert(key, value);
            }
        }
        Ok(())
    }

    fn read_records(&mut self, size: u64, offset: u64) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let data = self.read_extension(size, offset)?;
        pax::parse(&data).ok_or_else(|| malformed(offset, "extended header makes no sense"))
    }

    fn read_long(&mut self, size: u64, offset: u64) -> io::Result<Vec<u8>> {
        let mut data = self.read_extension(size, offset)?;
        if let Some(end) = data.iter().position(|byte| *byte == 0) {
            data.truncate(end);
        }
        Ok(data)
    }

    fn read_extension(&mut self, size: u64, offset: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_LIMIT {
            return Err(malformed(offset, format!("extended header of {size} bytes")));
        }
        self.begin_data(size);
        let mut data = Vec::new();
        self.read_to_end(&mut data)?;
        Ok(data)
    }

    fn skip_data(&mut self) -> io::Result<()> {
        let mut left = self.remaining.saturating_add(std::mem::take(&mut self.padding));
        self.remaining = 0;
        let mut scratch = [0u8; 16 * 1024];
        while left > 0 {
            let want = scratch.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = read_some(&mut self.source, &mut scratch[..want])?;
            if count == 0 {
                return Err(truncated(self.position, "an entry"));
            }
            self.position += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    /// A whole block, or none when the stream ends exactly here.
    fn read_block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let count = read_some(&mut self.source, &mut block[filled..])?;
            if count == 0 {
                if filled == 0 {
                    return Ok(None);
                }
                return Err(truncated(self.position, "a header"));
            }
            filled += count;
            self.position += count as u64;
        }
        Ok(Some(block))
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.remaining == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let want = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        let count = read_some(&mut self.source, &mut buffer[..want])?;
        if count == 0 {
            return Err(truncated(self.position, "an entry"));
        }
        self.position += count as u64;
        self.remaining -= count as u64;
        Ok(count)
    }
}

fn read_some(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn kind(flag: u8, path: &[u8]) -> EntryKind {
    match flag {
        // Pre-POSIX writers mark a directory by a trailing slash only.
        0 | b'0' | b'7' if path.ends_with(b"/") && flag != b'7' => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharacterDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => EntryKind::Other(other),
    }
}

/// `SCHILY.xattr.NAME` records: what GNU tar, Go and libarchive all write.
fn xattrs(global: &Records, local: &Records) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut merged = Records::new();
    for (key, value) in global.iter().chain(local) {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|name| !name.is_empty()) {
            merged.insert(name.to_vec(), value.clone());
        }
    }
    merged.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An archive with every kind of extension.
    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let records: [(&str, &[u8]); 4] =
            [("path", b"pax/name"), ("mtime", b"1.5"), ("SCHILY.xattr.user.k", b"v"), ("size", b"3")];
        builder.append_pax_extensions(records).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        header.set_cksum();
        builder.append(&header, &b"abc"[..]).unwrap();
        let sparse: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"9000"),
            ("GNU.sparse.name", b"hole"),
        ];
        builder.append_pax_extensions(sparse).unwrap();
        let mut content = b"1\n0\n4\n".to_vec();
        content.resize(512, 0);
        content.extend(b"data");
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, &content[..]).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        builder.append_data(&mut header, "long/".repeat(60), &b"12345"[..]).unwrap();
        builder.append_link(&mut tar::Header::new_gnu(), "link", "target/".repeat(40)).unwrap();
        builder.into_inner().unwrap()
    }

    /// Reads everything; how many entries and bytes of data there were.
    fn read_all(bytes: &[u8]) -> io::Result<(usize, u64)> {
        let mut tar = TarReader::new(bytes);
        let (mut entries, mut data) = (0, 0);
        while let Some(entry) = tar.next_entry()? {
            entries += 1;
            let segments = entry.sparse.as_ref().map_or(0, Vec::len);
            assert!(entry.path.len() + entry.link.len() + segments <= bytes.len(), "more than there was");
            data += io::copy(&mut tar, &mut io::sink())?;
        }
        Ok((entries, data))
    }

    #[test]
    fn every_extension_is_read() {
        assert_eq!(read_all(&archive()).unwrap(), (4, 3 + 4 + 5));
    }

    proptest! {
        #[test]
        fn damage_makes_an_error_and_no_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in proptest::option::of(any::<prop::sample::Index>()),
            summed in any::<bool>(),
        ) {
            let mut bytes = archive();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
                if summed {
                    // As if the block were a header that somebody meant.
                    let block = &mut bytes[at / BLOCK * BLOCK..][..BLOCK];
                    block[148..156].fill(b' ');
                    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok((_, data)) = read_all(&bytes) {
                prop_assert!(data <= bytes.len() as u64);
            }
        }

        #[test]
        fn noise_makes_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = read_all(&bytes);
            let _ = pax::parse(&bytes);
        }
    }
}
