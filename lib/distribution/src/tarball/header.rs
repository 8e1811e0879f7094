//! Fields of a 512-byte header block.

pub(super) const BLOCK: usize = 512;

/// Offset and length of the runs of data in a sparse file.
pub(super) type Runs = Vec<(u64, u64)>;

pub(super) struct HeaderBlock<'a>(pub(super) &'a [u8; BLOCK]);

impl HeaderBlock<'_> {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// The sum counts the checksum field as spaces; old writers summed signed bytes.
    pub(super) fn checksum_is_right(&self) -> bool {
        let Some(stored) = number(&self.0[148..156]) else { return false };
        let byte_at = |index: usize| if (148..156).contains(&index) { b' ' } else { self.0[index] };
        let unsigned: u64 = (0..BLOCK).map(|index| u64::from(byte_at(index))).sum();
        let signed: i64 = (0..BLOCK).map(|index| i64::from(byte_at(index).cast_signed())).sum();
        stored == unsigned || i64::try_from(stored).is_ok_and(|stored| stored == signed)
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    fn is_posix(&self) -> bool {
        &self.0[257..263] == b"ustar\0"
    }

    pub(super) fn is_gnu(&self) -> bool {
        &self.0[257..265] == b"ustar  \0"
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[0..100]);
        let prefix = text(&self.0[345..500]);
        if !self.is_posix() || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Option<u64> {
        number(&self.0[100..108])
    }

    pub(super) fn uid(&self) -> Option<u64> {
        number(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Option<u64> {
        number(&self.0[116..124])
    }

    pub(super) fn size(&self) -> Option<u64> {
        number(&self.0[124..136])
    }

    pub(super) fn mtime(&self) -> i64 {
        signed_number(&self.0[136..148])
    }

    pub(super) fn device(&self) -> Option<(u32, u32)> {
        let major = number(&self.0[329..337])?;
        let minor = number(&self.0[337..345])?;
        Some((u32::try_from(major).ok()?, u32::try_from(minor).ok()?))
    }

    /// The four sparse segments of an old GNU header, whether more blocks follow, and the file's real size.
    pub(super) fn gnu_sparse(&self) -> Option<(Runs, bool, u64)> {
        let segments = segments(&self.0[386..482])?;
        Some((segments, self.0[482] != 0, number(&self.0[483..495])?))
    }
}

/// Segments of an extension block of an old GNU sparse header, and whether another block follows.
pub(super) fn extended_sparse(block: &[u8; BLOCK]) -> Option<(Runs, bool)> {
    Some((segments(&block[0..504])?, block[504] != 0))
}

fn segments(bytes: &[u8]) -> Option<Runs> {
    let mut found = Vec::new();
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        found.push((number(&pair[..12])?, number(&pair[12..])?));
    }
    Some(found)
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal digits, or big-endian binary when the top bit is set. Blank is zero.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let (last, rest) = field.split_last_chunk::<8>().map(|(rest, last)| (last, rest))?;
        let lead_is_zero =
            rest.iter().enumerate().all(|(i, byte)| if i == 0 { byte & 0x7f == 0 } else { *byte == 0 });
        // A field of eight bytes has its flag in the number itself.
        let value = u64::from_be_bytes(*last);
        let value = if rest.is_empty() { value & (u64::MAX >> 1) } else { value };
        return lead_is_zero.then_some(value);
    }
    let digits: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ')
        .take_while(|byte| !matches!(byte, b' ' | 0))
        .collect();
    if digits.is_empty() {
        return Some(0);
    }
    let digits = std::str::from_utf8(&digits).ok()?;
    u64::from_str_radix(digits, 8).ok()
}

/// Times may lie before 1970: binary fields are two's complement. What cannot be read is the epoch.
fn signed_number(field: &[u8]) -> i64 {
    match field.split_last_chunk::<8>() {
        Some((rest, last)) if field[0] == 0xff && rest.iter().all(|byte| *byte == 0xff) => {
            i64::from_be_bytes(*last)
        }
        _ => number(field).and_then(|value| i64::try_from(value).ok()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"x"), None);
        assert_eq!(number(b"999"), None);
        let mut wide = [0u8; 12];
        wide[0] = 0x80;
        wide[11] = 7;
        assert_eq!(number(&wide), Some(7));
        assert_eq!(number(&wide[..]).unwrap(), 7);
        let mut eight = [0u8; 8];
        eight[0] = 0x80;
        eight[6] = 1;
        assert_eq!(number(&eight), Some(256));
        assert_eq!(signed_number(&[0xff; 12]), -1);
    }
}
