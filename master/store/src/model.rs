//! Values of the store: revisions, encoded objects, and what is extracted from an object for selecting.

use bytes::{Bytes, BytesMut};

/// The one counter of the store: every committed write gets the next value.
pub type Revision = u64;

/// An object's encoding with the place where its revision belongs.
///
/// `bytes[..revision_at]` ends with the opening quote of the revision and `bytes[revision_at..]` starts with the closing one, so that the
/// revision can be put in without parsing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The encoding without the digits of the revision.
    pub bytes: Bytes,
    /// Where the digits go.
    pub revision_at: u32,
}

impl Encoded {
    /// The encoding with the revision put in.
    pub fn at(&self, revision: Revision) -> Bytes {
        splice(&self.bytes, self.revision_at as usize, 0, revision)
    }
}

/// Replaces `length` bytes at `offset` by the digits of `revision`.
pub(crate) fn splice(bytes: &Bytes, offset: usize, length: usize, revision: Revision) -> Bytes {
    let digits = revision.to_string();
    let mut out = BytesMut::with_capacity(bytes.len() - length + digits.len());
    out.extend_from_slice(&bytes[..offset]);
    out.extend_from_slice(digits.as_bytes());
    out.extend_from_slice(&bytes[offset + length..]);
    out.freeze()
}

/// How many decimal digits a revision has.
pub(crate) fn digits(revision: Revision) -> usize {
    revision.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// What lists and watches select by, kept beside the bytes so that nobody has to parse them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Empty for objects without a namespace.
    pub namespace: Box<str>,
    /// The object's name.
    pub name: Box<str>,
    /// The object's uid.
    pub uid: Box<str>,
    /// Labels in the order of their keys.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Selectable fields beside name and namespace, for example `spec.nodeName`.
    pub fields: Box<[(&'static str, Box<str>)]>,
    /// What this object uses, in a form that the caller chose, for example `secrets/token`.
    pub references: Box<[Box<str>]>,
}

impl Meta {
    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(candidate, _)| (**candidate).cmp(key)).ok()?;
        self.labels.get(at).map(|(_, value)| &**value)
    }

    /// The value of a selectable field.
    pub fn field(&self, field: &str) -> Option<&str> {
        match field {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            _ => self.fields.iter().find(|(name, _)| *name == field).map(|(_, value)| &**value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_put_between_the_quotes_and_can_be_replaced() {
        let text = r#"{"metadata":{"resourceVersion":"","name":"a"}}"#;
        let encoded = Encoded { bytes: Bytes::from_static(text.as_bytes()), revision_at: 32 };
        let nine = encoded.at(9);
        assert_eq!(nine, r#"{"metadata":{"resourceVersion":"9","name":"a"}}"#);
        let later = splice(&nine, 32, digits(9), 12_345);
        assert_eq!(later, r#"{"metadata":{"resourceVersion":"12345","name":"a"}}"#);
    }

    #[test]
    fn digits_of_a_revision() {
        for revision in [0, 1, 9, 10, 99, 100, 12_345, u64::MAX] {
            assert_eq!(digits(revision), revision.to_string().len(), "{revision}");
        }
    }
}
