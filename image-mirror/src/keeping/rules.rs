//! How much must go, and what must not.

use orlop_types::{Digest, Reference};

/// Eviction goes on to this part of the quota, so that not every pull evicts.
const GOAL_PERCENT: u64 = 90;
/// What is held back when nobody says how much: this part of the file system, at most [`RESERVE_LIMIT`].
const RESERVE_PERCENT: u64 = 5;
const RESERVE_LIMIT: u64 = 1 << 30;

/// What a disk holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    /// 0 is none.
    pub(crate) quota: u64,
    pub(crate) used: u64,
    /// Held back, so that the records can always be written.
    pub(crate) reserve: u64,
    pub(crate) free: u64,
}

/// What stands against more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    Quota,
    Disk,
}

impl Space {
    /// Why `more` bytes do not fit; none when they do.
    pub(crate) fn lack(&self, more: u64) -> Option<Lack> {
        if self.free < self.reserve.saturating_add(more) {
            Some(Lack::Disk)
        } else if self.quota > 0 && self.used.saturating_add(more) > self.quota {
            Some(Lack::Quota)
        } else {
            None
        }
    }

    /// Bytes that should go when `more` do not fit.
    pub(crate) fn plan_eviction(&self, more: u64) -> u64 {
        let disk = match self.lack(more) {
            None => return 0,
            Some(Lack::Disk) => {
                let goal = self.reserve.saturating_add(self.reserve / 10);
                goal.saturating_add(more).saturating_sub(self.free)
            }
            Some(Lack::Quota) => 0,
        };
        let quota = match self.quota {
            0 => 0,
            quota if self.used.saturating_add(more) <= quota => 0,
            quota => self.used.saturating_add(more).saturating_sub(quota / 100 * GOAL_PERCENT),
        };
        disk.max(quota)
    }
}

/// What is held back of a file system of `total` bytes.
pub(crate) fn plan_reserve(wanted: Option<u64>, total: u64) -> u64 {
    wanted.unwrap_or_else(|| (total / 100 * RESERVE_PERCENT).min(RESERVE_LIMIT))
}

/// An image, a repository or everything below a prefix that is never evicted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pin {
    /// `registry.example/team/`
    Below(String),
    /// `docker.io/library/busybox` or `docker.io/library/busybox:*`
    Repository(String),
    /// `docker.io/library/busybox:1.36`
    Tag { repository: String, tag: String },
    /// `docker.io/library/busybox@sha256:…`
    Digest { repository: String, digest: Digest },
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins(Vec<Pin>);

impl Pins {
    /// The second part names the pins that are none.
    pub(crate) fn parse(texts: &[String]) -> (Self, Vec<String>) {
        let (mut pins, mut wrong) = (Vec::new(), Vec::new());
        for text in texts {
            match Pin::parse(text) {
                Some(pin) => pins.push(pin),
                None => wrong.push(text.clone()),
            }
        }
        (Self(pins), wrong)
    }

    /// The tags of a repository whose manifests are pinned: they must be looked up first.
    pub(crate) fn tags<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter_map(move |pin| match pin {
            Pin::Tag { repository, tag } if repository == name => Some(tag.as_str()),
            Pin::Below(_) | Pin::Repository(_) | Pin::Tag { .. } | Pin::Digest { .. } => None,
        })
    }

    /// Whether a manifest stays. `related` are it, the indexes that name it and its subject; `tagged` what the pinned tags name now.
    pub(crate) fn is_pinned(&self, name: &str, related: &[Digest], tagged: &[Digest]) -> bool {
        related.iter().any(|digest| tagged.contains(digest))
            || self.0.iter().any(|pin| match pin {
                Pin::Below(prefix) => name.starts_with(prefix),
                Pin::Repository(repository) => repository == name,
                Pin::Tag { .. } => false,
                Pin::Digest { repository, digest } => repository == name && related.contains(digest),
            })
    }
}

impl Pin {
    fn parse(text: &str) -> Option<Self> {
        if let Some(prefix) = text.strip_suffix('/') {
            return is_name(&format!("{prefix}/x")).then(|| Pin::Below(text.to_owned()));
        }
        if let Some((repository, digest)) = text.split_once('@') {
            let digest = digest.parse().ok()?;
            return is_name(repository).then(|| Pin::Digest { repository: repository.to_owned(), digest });
        }
        match text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
            Some((repository, "*")) => is_name(repository).then(|| Pin::Repository(repository.to_owned())),
            Some((repository, tag)) => (is_name(repository) && crate::route::is_tag(tag))
                .then(|| Pin::Tag { repository: repository.to_owned(), tag: tag.to_owned() }),
            None => is_name(text).then(|| Pin::Repository(text.to_owned())),
        }
    }
}

/// A repository as it is stored: with its registry in front when it is an upstream's.
fn is_name(text: &str) -> bool {
    let rest = match text.split_once('/') {
        Some((registry, rest)) if registry.contains(['.', ':']) || registry == "localhost" => {
            if !Reference::parse(&format!("{registry}/x/y")).is_ok_and(|parsed| parsed.registry() == registry)
            {
                return false;
            }
            rest
        }
        _ => text,
    };
    crate::route::repository(&rest.split('/').collect::<Vec<_>>()).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pins(texts: &[&str]) -> (Pins, Vec<String>) {
        Pins::parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_pinned() {
        let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let exact = format!("quay.io/x/y@{one}");
        let (pins, wrong) = pins(&[
            "docker.io/library/busybox:*",
            "registry.k8s.io/",
            "docker.io/a/b:1.0",
            "r.example:5000/c",
            &exact,
        ]);
        assert!(wrong.is_empty(), "{wrong:?}");
        let table = [
            ("docker.io/library/busybox", &one, true),
            ("docker.io/library/busybox2", &one, false),
            ("registry.k8s.io/pause", &one, true),
            ("registry.k8s.io.evil/pause", &one, false),
            ("docker.io/a/b", &one, false),
            ("r.example:5000/c", &two, true),
            ("quay.io/x/y", &one, true),
            ("quay.io/x/y", &two, false),
        ];
        for (name, digest, pinned) in table {
            assert_eq!(pins.is_pinned(name, std::slice::from_ref(digest), &[]), pinned, "{name} {digest}");
        }
        assert_eq!(pins.tags("docker.io/a/b").collect::<Vec<_>>(), ["1.0"]);
        assert!(pins.is_pinned("docker.io/a/b", &[two.clone(), one.clone()], &[one]), "by its index");
    }

    #[test]
    fn what_is_no_pin() {
        for text in ["", "/", ":*", "a b", "docker.io/library/busybox:", "UPPER/x", "a@sha256:1", "a/../b"] {
            assert_eq!(pins(&[text]).1, [text], "{text}");
        }
    }

    #[test]
    fn eviction_ends_below_the_quota_and_above_the_reserve() {
        let space = Space { quota: 1000, used: 950, reserve: 100, free: 500 };
        assert_eq!((space.lack(50), space.plan_eviction(50)), (None, 0));
        assert_eq!((space.lack(51), space.plan_eviction(51)), (Some(Lack::Quota), 101));
        let full = Space { quota: 0, used: 950, reserve: 100, free: 120 };
        assert_eq!((full.lack(20), full.plan_eviction(20)), (None, 0));
        assert_eq!((full.lack(30), full.plan_eviction(30)), (Some(Lack::Disk), 20));
        assert_eq!(plan_reserve(None, 10 << 30), (10 << 30) / 100 * 5);
        assert_eq!(plan_reserve(None, 1 << 50), 1 << 30);
        assert_eq!(plan_reserve(Some(7), 1 << 50), 7);
    }

    proptest! {
        #[test]
        fn what_is_planned_is_enough(quota in 0..1000_u64, used in 0..2000_u64, reserve in 0..1000_u64, free in 0..2000_u64, more in 0..2000_u64) {
            let space = Space { quota, used, reserve, free };
            let gone = space.plan_eviction(more);
            prop_assert_eq!(gone == 0, space.lack(more).is_none());
            let after = Space { used: used.saturating_sub(gone), free: free.saturating_add(gone), ..space };
            // What is larger than everything never fits.
            if more <= quota {
                prop_assert_eq!(after.lack(more), None);
            }
        }

        #[test]
        fn nonsense_pins_do_no_harm(text in "\\PC{0,40}") {
            let _ = Pin::parse(&text);
        }
    }
}
