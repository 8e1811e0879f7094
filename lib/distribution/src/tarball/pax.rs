//! PAX extended header records: `LENGTH KEYWORD=VALUE\n`, where LENGTH counts the whole record.

use std::collections::BTreeMap;

/// Records by keyword; values are bytes, because extended attributes are.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// One `(keyword, value)` per record, in order: the sparse forms 0.0 repeat keywords.
pub(super) fn parse(mut data: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    while !data.is_empty() {
        if data.iter().all(|byte| *byte == 0) {
            break;
        }
        let space = data.iter().take(20).position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
        let record = data.get(space + 1..length)?;
        let record = record.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        data = &data[length..];
    }
    Some(records)
}

pub(super) fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Seconds and nanoseconds of a decimal time such as `1700000000.25`, also before 1970.
pub(super) fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_may_hold_line_feeds() {
        let records = parse(b"13 path=a/b\nc\n6 x=1\n").unwrap_or_default();
        assert_eq!(records.len(), 0, "a wrong length is refused");
        let records = parse(b"14 path=a/b\nc\n6 x=1\n").unwrap();
        assert_eq!(records[0], (b"path".to_vec(), b"a/b\nc".to_vec()));
        assert_eq!(records[1], (b"x".to_vec(), b"1".to_vec()));
        for bad in
            [&b"99 a=b\n"[..], b"a=b\n", b"0 a=b\n", b"5 a=b", b"4 ab\n", b"18446744073709551616 a=b\n"]
        {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"1.x"), None);
    }
}
