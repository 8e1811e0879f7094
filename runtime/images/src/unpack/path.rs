//! Paths of tar entries as lists of names. Pure.

use std::collections::VecDeque;

/// Names from the root of the layer down; never `.`, `..` or empty.
pub(super) type Names = Vec<Vec<u8>>;

/// Cleans an entry's path the way every layer reader does: leading slashes and dots go away, `..` is resolved by name. None when
/// the path leads out of the layer or holds a zero byte.
pub(super) fn clean(path: &[u8]) -> Option<Names> {
    if path.contains(&0) {
        return None;
    }
    let mut names = Names::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop()?;
            }
            name => names.push(name.to_vec()),
        }
    }
    Some(names)
}

/// The steps of a symbolic link's target, to be walked one by one.
pub(super) fn steps(target: &[u8]) -> VecDeque<Vec<u8>> {
    target
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

pub(super) fn join(names: &[Vec<u8>]) -> Vec<u8> {
    names.join(&b'/')
}

pub(super) fn show(names: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(&join(names)).into_owned()
}

/// What a name says beyond itself (image-spec layer.md, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Marker<'a> {
    /// An ordinary name.
    None,
    /// The sibling of this name is deleted.
    Whiteout(&'a [u8]),
    /// The directory hides what is below it.
    Opaque,
    /// Left over from aufs (`.wh..wh.plnk` and the like): of no meaning.
    Ignored,
}

pub(super) fn marker(name: &[u8]) -> Marker<'_> {
    match name.strip_prefix(b".wh.") {
        None => Marker::None,
        Some(b".wh..opq") => Marker::Opaque,
        Some(rest) if rest.starts_with(b".wh.") => Marker::Ignored,
        Some(b"" | b"." | b"..") => Marker::Ignored,
        Some(rest) => Marker::Whiteout(rest),
    }
}

/// Extended attributes that an image may set. The overlay's own must never come from outside: they would redirect lookups.
pub(super) fn is_allowed_xattr(name: &[u8]) -> bool {
    name == b"security.capability"
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        let names = |text: &str| {
            text.split('/')
                .filter(|part| !part.is_empty())
                .map(|part| part.as_bytes().to_vec())
                .collect::<Names>()
        };
        for (given, expected) in [
            ("./a/b/", Some("a/b")),
            ("/etc/passwd", Some("etc/passwd")),
            ("a/../b", Some("b")),
            ("./", Some("")),
            ("../etc/passwd", None),
            ("a/../../b", None),
        ] {
            assert_eq!(clean(given.as_bytes()), expected.map(names), "{given}");
        }
        assert_eq!(clean(b"a\0b"), None);
    }

    #[test]
    fn markers() {
        assert_eq!(marker(b"a"), Marker::None);
        assert_eq!(marker(b".wh.a"), Marker::Whiteout(b"a"));
        assert_eq!(marker(b".wh..wh..opq"), Marker::Opaque);
        assert_eq!(marker(b".wh..wh.plnk"), Marker::Ignored);
        assert_eq!(marker(b".wh..."), Marker::Ignored);
        assert_eq!(marker(b".wh."), Marker::Ignored);
    }

    #[test]
    fn overlay_attributes_are_refused() {
        assert!(is_allowed_xattr(b"security.capability") && is_allowed_xattr(b"user.mime"));
        for name in
            [&b"trusted.overlay.redirect"[..], b"user.overlay.opaque", b"security.selinux", b"trusted.x"]
        {
            assert!(!is_allowed_xattr(name));
        }
    }
}
