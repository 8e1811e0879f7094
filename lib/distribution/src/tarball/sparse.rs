//! Sparse maps in PAX records (GNU tar manual, "PAX Format, Versions 0.0, 0.1 and 1.0").

use super::SEGMENT_LIMIT;
use super::pax::number;

/// What the PAX records of one entry say about holes.
#[derive(Default)]
pub(super) struct PaxSparse {
    pub(super) real_size: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// The map is at the start of the data (version 1.0).
    pub(super) map_in_data: bool,
    pub(super) segments: Vec<(u64, u64)>,
    pending_offset: Option<u64>,
    seen: bool,
}

impl PaxSparse {
    /// Takes a `GNU.sparse.*` record; false when it makes no sense.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> bool {
        self.seen = true;
        match key {
            b"GNU.sparse.major" => {
                self.map_in_data = value == b"1";
                true
            }
            b"GNU.sparse.name" => {
                self.name = Some(value.to_vec());
                true
            }
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.real_size = number(value);
                self.real_size.is_some()
            }
            b"GNU.sparse.offset" => {
                self.pending_offset = number(value);
                self.pending_offset.is_some()
            }
            b"GNU.sparse.numbytes" => match (self.pending_offset.take(), number(value)) {
                (Some(offset), Some(length)) if self.segments.len() < SEGMENT_LIMIT => {
                    self.segments.push((offset, length));
                    true
                }
                _ => false,
            },
            b"GNU.sparse.map" => match map(value) {
                Some(segments) => {
                    self.segments = segments;
                    true
                }
                None => false,
            },
            _ => true,
        }
    }

    pub(super) fn is_present(&self) -> bool {
        self.seen && self.real_size.is_some()
    }
}

/// `offset,length,offset,length…` of version 0.1.
fn map(value: &[u8]) -> Option<Vec<(u64, u64)>> {
    if value.is_empty() {
        return Some(Vec::new());
    }
    let numbers: Option<Vec<u64>> = value.split(|byte| *byte == b',').map(number).collect();
    let numbers = numbers?;
    (numbers.len() % 2 == 0 && numbers.len() / 2 <= SEGMENT_LIMIT)
        .then(|| numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Whether the segments rise, do not overlap and lie inside the file; their total length.
pub(super) fn total(segments: &[(u64, u64)], real_size: u64) -> Option<u64> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for (offset, length) in segments {
        if *offset < end {
            return None;
        }
        end = offset.checked_add(*length)?;
        sum = sum.checked_add(*length)?;
    }
    (end <= real_size).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        assert_eq!(map(b"0,5,10,5"), Some(vec![(0, 5), (10, 5)]));
        assert_eq!(map(b"0,5,10"), None);
        assert_eq!(total(&[(0, 5), (10, 5)], 15), Some(10));
        assert_eq!(total(&[(0, 5), (10, 5)], 14), None);
        assert_eq!(total(&[(5, 5), (0, 5)], 15), None);
        assert_eq!(total(&[(u64::MAX, 5)], 15), None);
    }
}
