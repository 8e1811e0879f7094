//! An initramfs: cpio in the "newc" form (Linux, driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes entries; parents are made as they are needed. Everything belongs to root.
pub(crate) struct Archive<W: Write> {
    out: W,
    written: u64,
    inode: u32,
    known: BTreeSet<PathBuf>,
}

impl Archive<BufWriter<File>> {
    /// Into a new file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Archive::new(BufWriter::with_capacity(1 << 20, File::create(path)?)))
    }
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Self { out, written: 0, inode: 0, known: BTreeSet::from([PathBuf::from("/")]) }
    }

    /// Whether there is something at this path.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.known.contains(path)
    }

    /// A directory.
    pub(crate) fn directory(&mut self, path: &Path) -> io::Result<()> {
        if self.known.contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.entry(path, DIRECTORY | 0o755, (0, 0), 0, &mut io::empty())
    }

    /// A file with this content.
    pub(crate) fn text(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        self.content(path, mode, content.len() as u64, &mut &content[..])
    }

    /// A copy of a file. What is there already stays.
    pub(crate) fn copy(&mut self, from: &Path, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        if self.known.contains(path) {
            return Ok(());
        }
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", from.display()));
        let mut file = File::open(from).map_err(named)?;
        let found = file.metadata().map_err(named)?;
        self.content(path, found.permissions().mode() & 0o7777, found.len(), &mut file)
    }

    /// A symbolic link. What is there already stays.
    pub(crate) fn link(&mut self, path: &Path, target: &str) -> io::Result<()> {
        if self.known.contains(path) {
            return Ok(());
        }
        self.parent(path)?;
        self.entry(path, LINK | 0o777, (0, 0), target.len() as u64, &mut target.as_bytes())
    }

    /// A character device.
    pub(crate) fn device(&mut self, path: &Path, number: (u32, u32)) -> io::Result<()> {
        self.parent(path)?;
        self.entry(path, CHARACTER_DEVICE | 0o600, number, 0, &mut io::empty())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, (0, 0), 0, &mut io::empty())?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn content(&mut self, path: &Path, mode: u32, length: u64, content: &mut dyn io::Read) -> io::Result<()> {
        self.parent(path)?;
        self.entry(path, FILE | mode, (0, 0), length, content)
    }

    fn parent(&mut self, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), |parent| self.directory(parent))
    }

    fn entry(
        &mut self,
        path: &Path,
        mode: u32,
        device: (u32, u32),
        length: u64,
        content: &mut dyn io::Read,
    ) -> io::Result<()> {
        let size = u32::try_from(length)
            .map_err(|_| io::Error::other(format!("{} is too large for cpio", path.display())))?;
        let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_encoded_bytes();
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1).map_err(io::Error::other)?,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name)?;
        self.put(&[0])?;
        self.align()?;
        let copied = io::copy(&mut io::Read::take(content, length), &mut self.out)?;
        if copied != length {
            return Err(io::Error::other(format!("{} became shorter", path.display())));
        }
        self.written += copied;
        self.align()?;
        self.known.insert(path.to_path_buf());
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let behind = usize::try_from(self.written.next_multiple_of(4) - self.written).unwrap_or(0);
        self.put(&[0; 4][..behind])
    }
}

/// The size of a file, for people.
pub(crate) fn mebibytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len() >> 20)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn busybox_reads_what_was_written() {
        let mut archive = Archive::new(Vec::new());
        archive.text(Path::new("/a/b/odd"), 0o640, b"12345").unwrap();
        archive.link(Path::new("/a/to"), "b/odd").unwrap();
        archive.directory(Path::new("/a/b")).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let mut child = Command::new("busybox")
            .args(["cpio", "-tv"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[0].last(), Some(&"a"));
        assert!(lines[2][0] == "-rw-r-----" && lines[2][2] == "5", "{text}");
        assert_eq!(lines[3][lines[3].len() - 3..], ["a/to", "->", "b/odd"]);
    }
}
