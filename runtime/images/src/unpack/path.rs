//! Paths inside a layer. Pure.

use std::collections::VecDeque;

/// Names from the root of the layer down, joined by slashes; never `.`, `..` or an empty name. The root itself is empty.
pub(super) type LayerPath = Vec<u8>;

/// Cleans an entry's path the way every layer reader does: leading slashes and dots go away, `..` is resolved by name. None when
/// the path leads out of the layer or holds a zero byte.
pub(super) fn clean(path: &[u8]) -> Option<LayerPath> {
    if path.contains(&0) {
        return None;
    }
    let mut cleaned = LayerPath::with_capacity(path.len());
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." if cleaned.is_empty() => return None,
            b".." => cleaned.truncate(parent(&cleaned).len()),
            name => push(&mut cleaned, name),
        }
    }
    Some(cleaned)
}

/// Adds a name.
pub(super) fn push(path: &mut LayerPath, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// The path with a name added.
pub(super) fn child(path: &[u8], name: &[u8]) -> LayerPath {
    let mut path = path.to_vec();
    push(&mut path, name);
    path
}

/// The path without its last name; the root of the root is the root.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |slash| &path[..slash])
}

/// Parent and last name; none for the root.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let above = parent(path);
    let name = if above.is_empty() { path } else { &path[above.len() + 1..] };
    (!path.is_empty()).then_some((above, name))
}

/// The directories above a path, the root first, without the path itself.
pub(super) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
    (!path.is_empty()).then_some(&path[..0]).into_iter().chain(slashes)
}

/// How many names.
pub(super) fn depth(path: &[u8]) -> usize {
    ancestors(path).count()
}

/// The first and the first one past the paths below `path`, in the order of bytes.
pub(super) fn below(path: &[u8]) -> (LayerPath, Option<LayerPath>) {
    if path.is_empty() {
        return (vec![0], None);
    }
    ([path, b"/"].concat(), Some([path, &[b'/' + 1]].concat()))
}

/// The steps of a symbolic link's target, to be walked one by one.
pub(super) fn steps(target: &[u8]) -> VecDeque<Vec<u8>> {
    target
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

pub(super) fn show(path: &[u8]) -> String {
    if path.is_empty() {
        return "/".to_owned();
    }
    String::from_utf8_lossy(path).into_owned()
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
        for (given, expected) in [
            ("./a/b/", Some("a/b")),
            ("/etc/passwd", Some("etc/passwd")),
            ("a/../b", Some("b")),
            ("./", Some("")),
            ("../etc/passwd", None),
            ("a/../../b", None),
        ] {
            assert_eq!(clean(given.as_bytes()), expected.map(|text| text.as_bytes().to_vec()), "{given}");
        }
        assert_eq!(clean(b"a\0b"), None);
    }

    #[test]
    fn parts_of_paths() {
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b""), None);
        assert_eq!(ancestors(b"a/b/c").collect::<Vec<_>>(), [&b""[..], b"a", b"a/b"]);
        assert_eq!((depth(b""), depth(b"a"), depth(b"a/b")), (0, 1, 2));
        let (first, past) = below(b"a/b");
        let past = past.unwrap();
        for (path, inside) in
            [("a/b/c", true), ("a/b", false), ("a/b-", false), ("a/b0", false), ("a/c", false)]
        {
            assert_eq!((&first[..]..&past[..]).contains(&path.as_bytes()), inside, "{path}");
        }
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
