use nix::errno::Errno;

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {act}")]
pub struct NetlinkError {
    /// What was asked, with its object: `add link cni0`.
    pub act: String,
    /// What the kernel said.
    #[source]
    pub source: Errno,
}

impl NetlinkError {
    pub(crate) fn new(act: impl Into<String>, source: Errno) -> Self {
        Self { act: act.into(), source }
    }

    /// An interface that should be there is not.
    pub fn missing_link(name: &str) -> Self {
        Self::new(format!("find link {name}"), Errno::ENODEV)
    }

    /// The object is already there.
    pub fn is_exists(&self) -> bool {
        self.source == Errno::EEXIST
    }

    /// The object is in use, or there with another content.
    pub fn is_busy(&self) -> bool {
        self.source == Errno::EBUSY
    }

    /// The object (or one that the request names) is not there.
    pub fn is_missing(&self) -> bool {
        matches!(
            self.source,
            Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::ENXIO
        )
    }

    /// The kernel does not know this kind of object.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.source, Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT)
    }
}
