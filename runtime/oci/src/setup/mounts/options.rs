//! Options of one mount as values (runtime-spec config.md, "Linux mount options"; mount(8)). Pure.

use oci_spec::runtime::Mount;

const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
/// The field that the three ways of access times share; `relatime` is 0 in it.
const ATIME: u64 = 0x70;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// Attributes of a mount (mount_setattr(2)): to set, and to clear before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) set: u64,
    pub(super) clear: u64,
}

impl Attributes {
    fn add(&mut self, (set, clear): (u64, u64)) {
        // A later option wins over an earlier one.
        self.set = self.set & !clear | set;
        self.clear = self.clear & !set | clear;
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// A propagation type (mount_namespaces(7)): one of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Propagation {
    pub(super) kind: u64,
    pub(super) recursive: bool,
}

/// What a mount's options say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `bind`, `rbind`, or the type `bind`.
    pub(super) bind: bool,
    /// `rbind`.
    pub(super) recursive: bool,
    /// Owners are mapped; `Some(true)` below it too.
    pub(super) idmap: Option<bool>,
    /// A tmpfs that begins with what it covers.
    pub(super) copy_up: bool,
    /// Not mounted anew but changed.
    pub(super) remount: bool,
    /// In the order given.
    pub(super) propagation: Vec<Propagation>,
    /// Of the mount itself.
    pub(super) own: Attributes,
    /// Of it and all below.
    pub(super) all: Attributes,
    /// For libcontainer, in words that it understands.
    pub(super) kept: Vec<String>,
}

impl Options {
    pub(super) fn of(mount: &Mount) -> Self {
        let mut options = Self { bind: mount.typ().as_deref() == Some("bind"), ..Self::default() };
        let given = mount.options().as_deref().unwrap_or_default();
        options.bind |= given.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"));
        for option in given {
            options.add(option);
        }
        let is_mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|list| !list.is_empty());
        if is_mapped(mount.uid_mappings()) || is_mapped(mount.gid_mappings()) {
            options.idmap.get_or_insert(false);
        }
        options
    }

    fn add(&mut self, option: &str) {
        match option {
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "remount" => self.remount = true,
            // Nothing that a kernel of today would do or leave (mount(8)): mandatory locks and version counters are history, and silence
            // is about the kernel's log.
            "silent" | "loud" | "mand" | "nomand" | "iversion" | "noiversion" | "defaults" => {}
            other => {
                if let Some(propagation) = propagation(other) {
                    self.propagation.push(propagation);
                } else {
                    self.recursive |= other == "rbind";
                    self.add_attribute(other);
                }
            }
        }
    }

    fn add_attribute(&mut self, option: &str) {
        if let Some(change) = attribute(option) {
            self.own.add(change);
        } else if let Some(change) = option.strip_prefix('r').and_then(attribute) {
            self.all.add(change);
        }
        self.kept.push(match option {
            // libcontainer knows the recursive forms alone; below a new file system there is nothing.
            "nosymfollow" | "symfollow" => format!("r{option}"),
            // It would drop these; with a value they reach fsconfig(2), which takes no value and ignores one.
            "sync" | "dirsync" if !self.bind => format!("{option}=1"),
            other => other.to_owned(),
        });
    }

    /// Nothing but a bind is left to do.
    pub(super) fn plain_bind(&self) -> Vec<String> {
        vec![if self.recursive { "rbind" } else { "bind" }.to_owned()]
    }
}

/// Bits to set and to clear.
fn attribute(option: &str) -> Option<(u64, u64)> {
    let set = |bit| Some((bit, 0));
    let clear = |bit| Some((0, bit));
    match option {
        "ro" => set(RDONLY),
        "rw" => clear(RDONLY),
        "nosuid" => set(NOSUID),
        "suid" => clear(NOSUID),
        "nodev" => set(NODEV),
        "dev" => clear(NODEV),
        "noexec" => set(NOEXEC),
        "exec" => clear(NOEXEC),
        "nodiratime" => set(NODIRATIME),
        "diratime" => clear(NODIRATIME),
        "nosymfollow" => set(NOSYMFOLLOW),
        "symfollow" => clear(NOSYMFOLLOW),
        "noatime" => Some((NOATIME, ATIME)),
        "strictatime" => Some((STRICTATIME, ATIME)),
        "relatime" => Some((0, ATIME)),
        _ => None,
    }
}

fn propagation(option: &str) -> Option<Propagation> {
    let kinds = [
        ("shared", libc::MS_SHARED),
        ("slave", libc::MS_SLAVE),
        ("private", libc::MS_PRIVATE),
        ("unbindable", libc::MS_UNBINDABLE),
    ];
    let of = |name: &str| kinds.iter().find(|kind| kind.0 == name).map(|kind| kind.1);
    let plain = of(option).map(|kind| (kind, false));
    let found = plain.or_else(|| Some((of(option.strip_prefix('r')?)?, true)));
    found.map(|(kind, recursive)| Propagation { kind, recursive })
}

/// Every option that is understood here or by libcontainer, sorted, for `features`.
pub(crate) const UNDERSTOOD: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn options(json: &str) -> Options {
        Options::of(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn reads_every_kind() {
        let read = options(
            r#"{"destination":"/a","type":"none","options":["rbind","rro","nosuid","rshared","idmap","private","noatime","x=1"]}"#,
        );
        assert!(read.bind && read.recursive && !read.copy_up);
        assert_eq!(read.idmap, Some(false));
        assert_eq!(read.own, Attributes { set: NOSUID | NOATIME, clear: ATIME });
        assert_eq!(read.all, Attributes { set: RDONLY, clear: 0 });
        let kinds: Vec<_> = read.propagation.iter().map(|p| (p.kind, p.recursive)).collect();
        assert_eq!(kinds, [(libc::MS_SHARED, true), (libc::MS_PRIVATE, false)]);
        assert_eq!(read.kept, ["rbind", "rro", "nosuid", "noatime", "x=1"]);

        let read = options(
            r#"{"destination":"/a","type":"tmpfs","options":["tmpcopyup","sync","silent","rw","ro"]}"#,
        );
        assert!(read.copy_up && !read.bind);
        assert_eq!(read.own, Attributes { set: RDONLY, clear: 0 });
        assert_eq!(read.kept, ["sync=1", "rw", "ro"]);

        let mapped = options(
            r#"{"destination":"/a","type":"bind","uidMappings":[{"containerID":0,"hostID":1,"size":1}],
                "gidMappings":[{"containerID":0,"hostID":1,"size":1}]}"#,
        );
        assert_eq!((mapped.bind, mapped.idmap), (true, Some(false)));
    }

    #[test]
    fn the_list_is_sorted_and_understood() {
        assert!(UNDERSTOOD.is_sorted());
        let by_libcontainer = ["async", "atime", "norelatime", "nostrictatime", "lazytime", "nolazytime"];
        for option in UNDERSTOOD {
            let mount = format!(r#"{{"destination":"/a","type":"tmpfs","options":["{option}"]}}"#);
            let read = options(&mount);
            let short = option.strip_prefix('r').unwrap_or(option);
            let unchanged =
                read.kept == [*option] && read.own.is_empty() && read.all.is_empty() && !read.bind;
            assert!(!unchanged || by_libcontainer.contains(&short), "{option}");
        }
    }
}
