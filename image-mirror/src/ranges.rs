//! `Range` of downloads (RFC 9110 section 14), `Content-Range` of upload chunks (distribution specification, "Pushing a blob in
//! chunks") and `If-None-Match`. Pure.

use http::{HeaderMap, header};

/// What a client wants of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    Whole,
    /// Both ends are in it.
    Part {
        begin: u64,
        end: u64,
    },
    /// Nothing that is there.
    Outside,
}

/// What the headers ask for. With `If-Range` of something else the whole is wanted (RFC 9110 section 13.1.5).
pub(crate) fn wanted(headers: &HeaderMap, etag: &str, size: u64) -> Range {
    let Some(range) = headers.get(header::RANGE) else { return Range::Whole };
    if headers.get(header::IF_RANGE).is_some_and(|value| value.as_bytes() != etag.as_bytes()) {
        return Range::Whole;
    }
    range.to_str().map_or(Range::Whole, |text| byte_range(text, size))
}

/// One range of bytes. Other units are not known, and of several ranges the whole may be sent instead (section 14.2); a range that
/// ends before it begins, or that is no range, is refused as Go's servers do (section 15.5.17).
pub(crate) fn byte_range(text: &str, size: u64) -> Range {
    let Some((unit, set)) = text.split_once('=') else { return Range::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Range::Whole;
    }
    let Some((begin, end)) = set.trim().split_once('-') else { return Range::Outside };
    let last = size.saturating_sub(1);
    let range = match (number(begin), number(end)) {
        (Some(begin), Some(end)) if begin <= end => (begin, end.min(last)),
        (Some(begin), None) if end.is_empty() => (begin, last),
        (None, Some(count)) if begin.is_empty() && count > 0 => (size.saturating_sub(count), last),
        _ => return Range::Outside,
    };
    if range.0 >= size { Range::Outside } else { Range::Part { begin: range.0, end: range.1 } }
}

/// First and last position of a chunk, `^[0-9]+-[0-9]+$`; what RFC 9110 would write (`bytes 0-9/*`) is understood too.
///
/// # Errors
/// It is there and is neither.
pub(crate) fn content_range(headers: &HeaderMap) -> Result<Option<(u64, u64)>, ()> {
    let Some(value) = headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| {
        let text = text.strip_prefix("bytes ").unwrap_or(text);
        let (begin, end) = text.split('/').next()?.split_once('-')?;
        Some((number(begin)?, number(end)?))
    });
    parsed.filter(|(begin, end)| begin <= end).map(Some).ok_or(())
}

/// Digits alone: `parse` would take a sign, too.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Whether the client has this already (RFC 9110 section 13.1.2, weak comparison).
pub(crate) fn none_match(headers: &HeaderMap, etag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_as_rfc_9110_reads_them() {
        let table = [
            ("bytes=0-99", Range::Part { begin: 0, end: 99 }),
            ("bytes=90-500", Range::Part { begin: 90, end: 199 }),
            ("bytes=150-", Range::Part { begin: 150, end: 199 }),
            ("bytes=-50", Range::Part { begin: 150, end: 199 }),
            ("bytes=-500", Range::Part { begin: 0, end: 199 }),
            ("bytes=200-", Range::Outside),
            ("bytes=9-1", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=x", Range::Outside),
            ("bytes=+1-2", Range::Outside),
            ("bytes=0-1,5-6", Range::Whole),
            ("lines=0-1", Range::Whole),
            ("bytes", Range::Whole),
        ];
        for (text, wanted) in table {
            assert_eq!(byte_range(text, 200), wanted, "{text}");
        }
        assert_eq!(byte_range("bytes=0-", 0), Range::Outside);
    }

    #[test]
    fn chunks_name_their_place() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(text).unwrap());
            content_range(&headers)
        };
        assert_eq!(read("0-9"), Ok(Some((0, 9))));
        assert_eq!(read("bytes 5-9/*"), Ok(Some((5, 9))));
        for wrong in ["", "-", "9-0", "0-x", "+0-9", "lines 0-9", "0"] {
            assert_eq!(read(wrong), Err(()), "{wrong:?}");
        }
        assert_eq!(content_range(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn conditions() {
        let mut headers = HeaderMap::new();
        assert!(!none_match(&headers, "\"a\""));
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"b\", W/\"a\""));
        assert!(none_match(&headers, "\"a\"") && !none_match(&headers, "\"c\""));
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
        assert_eq!(wanted(&headers, "\"a\"", 5), Range::Part { begin: 0, end: 0 });
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"b\""));
        assert_eq!(wanted(&headers, "\"a\"", 5), Range::Whole);
    }

    proptest! {
        #[test]
        fn a_part_lies_in_the_blob(text in "(bytes|b)?=?[0-9+,x-]{0,12}", size in 0_u64..300) {
            if let Range::Part { begin, end } = byte_range(&text, size) {
                prop_assert!(begin <= end && end < size);
            }
        }

        #[test]
        fn any_header_is_read(value in proptest::collection::vec(32_u8..=255, 0..40), size in any::<u64>()) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(header::CONTENT_RANGE, value.clone());
                headers.insert(header::RANGE, value.clone());
                headers.insert(header::IF_NONE_MATCH, value);
                let _ = (content_range(&headers), wanted(&headers, "\"x\"", size), none_match(&headers, "\"x\""));
            }
        }
    }
}
