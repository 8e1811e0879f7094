//! Finds out how a stream is compressed, by its first bytes, and reads through it.
//!
//! Media types and file names are not asked: they are wrong often enough.

use std::io::{self, BufRead, BufReader, Read};

const BUFFER: usize = 128 * 1024;

/// The compression of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// None.
    None,
    /// gzip, any number of members (RFC 1952 section 2.2).
    Gzip,
    /// Zstandard, any number of frames (RFC 8878 section 3.1).
    Zstd,
}

impl Compression {
    /// Tells by the first bytes of a stream.
    ///
    /// # Errors
    /// A compression that is known but not supported, with its name.
    pub fn detect(start: &[u8]) -> io::Result<Self> {
        let unsupported = |name: &str| {
            let text = format!("compressed with {name}, which is not supported (gzip and zstd are)");
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        };
        match start {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => unsupported("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => unsupported("bzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => unsupported("lz4"),
            _ => Ok(Compression::None),
        }
    }

    /// The suffix of an OCI layer media type.
    pub fn media_type_suffix(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        }
    }
}

/// A stream with its compression taken off.
pub enum Decompressed<R: Read> {
    /// It had none.
    Plain(BufReader<R>),
    /// It was gzip.
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<R>>>),
    /// It was Zstandard.
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Decompressed<R> {
    /// Looks at the first bytes of `source` and sets up what reads it.
    ///
    /// # Errors
    /// The source's own, or an unsupported compression.
    pub fn new(source: R) -> io::Result<Self> {
        let mut source = BufReader::with_capacity(BUFFER, source);
        let start = fill(&mut source)?;
        match Compression::detect(start)? {
            Compression::None => Ok(Decompressed::Plain(source)),
            Compression::Gzip => {
                Ok(Decompressed::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source))))
            }
            Compression::Zstd => {
                Ok(Decompressed::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(source)?)))
            }
        }
    }

    /// How it was compressed.
    pub fn compression(&self) -> Compression {
        match self {
            Decompressed::Plain(_) => Compression::None,
            Decompressed::Gzip(_) => Compression::Gzip,
            Decompressed::Zstd(_) => Compression::Zstd,
        }
    }
}

fn fill<R: Read>(source: &mut BufReader<R>) -> io::Result<&[u8]> {
    loop {
        match source.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(source.buffer()),
        }
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decompressed::Plain(source) => source.read(buffer),
            Decompressed::Gzip(source) => source.read(buffer),
            Decompressed::Zstd(source) => source.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decompressed::new(data)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn every_form_in_any_number_of_pieces() {
        let zstd = |data: &[u8]| zstd::encode_all(data, 1).unwrap();
        assert_eq!(read(b"plain").unwrap(), b"plain");
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(&[gzip(b"one "), gzip(b"two")].concat()).unwrap(), b"one two");
        assert_eq!(read(&[zstd(b"one "), zstd(b"two")].concat()).unwrap(), b"one two");
        assert!(read(b"\xfd7zXZ\0").unwrap_err().to_string().contains("xz"));
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let data: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for whole in [gzip(&data), zstd::encode_all(&data[..], 1).unwrap()] {
            assert!(read(&whole[..whole.len() / 2]).is_err());
            assert!(read(&whole[..whole.len() - 1]).is_err());
        }
    }
}
