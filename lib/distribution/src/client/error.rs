use std::time::Duration;

use orlop_types::Digest;

use super::hosts::HostsError;
use crate::manifest::ManifestError;

/// Longest wait that a host may ask for (`Retry-After`, RFC 9110 section 10.2.3).
pub(super) const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(30);

fn later(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |after| format!(" (try again in {}s)", after.as_secs()))
}

/// Why a registry did not give what was asked for. Texts are fit for an event that a user reads.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry has no such manifest or blob.
    #[error("{what}: not found at {host}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Who said so.
        host: String,
    },
    /// The registry wants an account, or another one. Registries say so for repositories that do not exist, too.
    #[error("pull access denied by {host}, repository does not exist or may require authorization: {reason}")]
    Unauthorized {
        /// Who said so.
        host: String,
        /// Its words.
        reason: String,
    },
    /// Too many requests.
    #[error("{host} limits the rate of requests: {reason}{}", later(*retry_after))]
    RateLimited {
        /// Who said so.
        host: String,
        /// Its words.
        reason: String,
        /// When it may be asked again.
        retry_after: Option<Duration>,
    },
    /// Any other answer that is no success.
    #[error("{host} answered {status}: {reason}{}", later(*retry_after))]
    Status {
        /// Who said so.
        host: String,
        /// HTTP status.
        status: u16,
        /// Its words.
        reason: String,
        /// When it may be asked again.
        retry_after: Option<Duration>,
    },
    /// The hosts file leaves nobody to ask.
    #[error("no host of {registry} may be used to {capability}: see capabilities in its hosts.toml")]
    NoHost {
        /// The registry.
        registry: String,
        /// What is missing.
        capability: &'static str,
    },
    /// No connection.
    #[error("failed to connect to {host}: {reason}")]
    Connect {
        /// To whom.
        host: String,
        /// Why, as far as known.
        reason: String,
    },
    /// Nothing happened for too long.
    #[error("{host} gave no {what} for {}s", .after.as_secs())]
    Timeout {
        /// Who.
        host: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// It did not answer lately, or wants to be left alone: it is not asked now.
    #[error("{host} is not asked for the next {}s: {reason}", .after.as_secs() + 1)]
    Resting {
        /// Who.
        host: String,
        /// What happened before.
        reason: String,
        /// For how long.
        after: Duration,
        /// Because it limits the rate of requests.
        limited: bool,
    },
    /// The connection ended early.
    #[error("connection to {host} was cut: {reason}")]
    Cut {
        /// Whose.
        host: String,
        /// Why, as far as known.
        reason: String,
    },
    /// The content is not what was asked for.
    #[error("{host} gave wrong content for {digest}: {reason}")]
    Content {
        /// Who.
        host: String,
        /// What was asked for.
        digest: Digest,
        /// How it differs.
        reason: String,
    },
    /// The answer breaks the protocol.
    #[error("{host} gave an answer that makes no sense: {reason}")]
    Protocol {
        /// Who.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The manifest is of no use.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The hosts file is of no use.
    #[error(transparent)]
    Hosts(#[from] HostsError),
}

impl RegistryError {
    /// Whether a later attempt at the same host may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            RegistryError::RateLimited { .. }
            | RegistryError::Connect { .. }
            | RegistryError::Timeout { .. }
            | RegistryError::Cut { .. } => true,
            RegistryError::Status { status, .. } => *status >= 500 || *status == 408,
            // Not now: that is what it says.
            RegistryError::Resting { .. }
            | RegistryError::NotFound { .. }
            | RegistryError::Unauthorized { .. }
            | RegistryError::Content { .. }
            | RegistryError::Protocol { .. }
            | RegistryError::Manifest(_)
            | RegistryError::NoHost { .. }
            | RegistryError::Hosts(_) => false,
        }
    }

    /// Whether it pays to wait for the next attempt here: a host that wants more patience than [`RETRY_AFTER_LIMIT`] is given up.
    pub(super) fn may_retry(&self) -> bool {
        self.is_retryable() && self.retry_after().is_none_or(|after| after <= RETRY_AFTER_LIMIT)
    }

    /// Its kind in one word, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            RegistryError::NotFound { .. } => "not_found",
            RegistryError::Unauthorized { .. } => "unauthorized",
            RegistryError::RateLimited { .. } => "rate_limited",
            RegistryError::Status { .. } => "status",
            RegistryError::NoHost { .. } => "no_host",
            RegistryError::Connect { .. } => "connect",
            RegistryError::Timeout { .. } => "timeout",
            RegistryError::Resting { .. } => "resting",
            RegistryError::Cut { .. } => "cut",
            RegistryError::Content { .. } => "content",
            RegistryError::Protocol { .. } => "protocol",
            RegistryError::Manifest(_) => "manifest",
            RegistryError::Hosts(_) => "hosts",
        }
    }

    /// When the host wants to be asked again, as far as known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            RegistryError::Resting { after, .. } => Some(*after),
            RegistryError::RateLimited { retry_after, .. } | RegistryError::Status { retry_after, .. } => {
                *retry_after
            }
            RegistryError::NotFound { .. }
            | RegistryError::Unauthorized { .. }
            | RegistryError::NoHost { .. }
            | RegistryError::Connect { .. }
            | RegistryError::Timeout { .. }
            | RegistryError::Cut { .. }
            | RegistryError::Content { .. }
            | RegistryError::Protocol { .. }
            | RegistryError::Manifest(_)
            | RegistryError::Hosts(_) => None,
        }
    }
}
