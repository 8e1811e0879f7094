//! Query strings. Pure.

/// The first value of a parameter, decoded. A `+` stays one: media types hold it, and what is asked for here never holds a space.
pub(crate) fn parameter(query: &str, name: &str) -> Option<String> {
    parameters(query, name).next()
}

/// Every value of a parameter, in order.
pub(crate) fn parameters<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(move |(key, _)| *key == name).map(|(_, value)| lossy(percent_decode(value)))
}

/// A path with its escapes decoded; none when that is no text.
pub(crate) fn decode_path(path: &str) -> Option<std::borrow::Cow<'_, str>> {
    if !path.contains('%') {
        return Some(path.into());
    }
    String::from_utf8(percent_decode(path)).ok().map(Into::into)
}

/// RFC 3986 section 2.1; an escape that is none stays as it is.
fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let digit = |index: usize| {
        let digit = char::from(*bytes.get(index)?).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escaped = (bytes[index] == b'%').then(|| Some(digit(index + 1)? << 4 | digit(index + 2)?));
        match escaped.flatten() {
            Some(byte) => {
                out.push(byte);
                index += 3;
            }
            None => {
                out.push(bytes[index]);
                index += 1;
            }
        }
    }
    out
}

fn lossy(bytes: Vec<u8>) -> String {
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_decoded() {
        let query = "n=5&last=a%2Fb&artifactType=application/x%2Bjson&raw=a+b&tag=1&tag=2&bad=%+1%zz%4";
        assert_eq!(parameter(query, "last").as_deref(), Some("a/b"));
        assert_eq!(parameter(query, "artifactType").as_deref(), Some("application/x+json"));
        assert_eq!(parameter(query, "raw").as_deref(), Some("a+b"));
        assert_eq!(parameter(query, "bad").as_deref(), Some("%+1%zz%4"));
        assert_eq!(parameter(query, "absent"), None);
        assert_eq!(parameters(query, "tag").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(decode_path("/v2/a/blobs/sha256%3Aab").as_deref(), Some("/v2/a/blobs/sha256:ab"));
        assert_eq!(decode_path("/v2/%ff"), None);
    }

    proptest! {
        #[test]
        fn what_was_escaped_comes_back(text in "\\PC{0,40}") {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(parameter(&format!("x=1&k={escaped}"), "k"), Some(text));
        }

        #[test]
        fn any_text_is_read(text in "\\PC{0,60}", name in "[a-z]{0,3}") {
            let _ = (parameter(&text, &name), decode_path(&text));
        }
    }
}
