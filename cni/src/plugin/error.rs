use serde::Serialize;

/// An error as the CNI specification wants it on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CniError {
    /// The version of the request, so that the caller can read the answer.
    #[serde(rename = "cniVersion")]
    pub cni_version: String,
    /// See [`code`].
    pub code: u32,
    /// Short text.
    #[serde(rename = "msg")]
    pub message: String,
    /// The chain of causes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// Error codes of the specification, section "Error"; 100 and above are the plugin's own.
pub mod code {
    /// Incompatible CNI version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Unsupported field in the network configuration.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Container unknown or does not exist: nothing to clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// Invalid necessary environment variables.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// I/O failure, for example reading the configuration from standard input.
    pub const IO_FAILURE: u32 = 5;
    /// The configuration is no JSON.
    pub const DECODE_FAILURE: u32 = 6;
    /// The configuration is invalid.
    pub const INVALID_CONFIGURATION: u32 = 7;
    /// Try again later: a transient condition.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin cannot take ADD requests.
    pub const NOT_AVAILABLE: u32 = 50;
    /// The kernel refused.
    pub const NETWORK_FAILURE: u32 = 100;
    /// CHECK: the attachment is not as ADD left it.
    pub const CHECK_FAILED: u32 = 101;
}

impl CniError {
    /// An error without causes.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { cni_version: String::new(), code, message: message.into(), details: String::new() }
    }

    /// An error with the chain of its causes as details.
    pub fn from_error(code: u32, error: &dyn std::error::Error) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        Self { details: causes.join(": "), ..Self::new(code, error.to_string()) }
    }
}

impl From<orlop_netlink::NetlinkError> for CniError {
    fn from(error: orlop_netlink::NetlinkError) -> Self {
        Self::from_error(code::NETWORK_FAILURE, &error)
    }
}

impl From<orlop_netlink::sysctl::SysctlError> for CniError {
    fn from(error: orlop_netlink::sysctl::SysctlError) -> Self {
        Self::from_error(code::NETWORK_FAILURE, &error)
    }
}

impl From<crate::leases::LeaseError> for CniError {
    fn from(error: crate::leases::LeaseError) -> Self {
        let code = match error {
            crate::leases::LeaseError::Exhausted { .. } => code::TRY_AGAIN_LATER,
            crate::leases::LeaseError::Store { .. } => code::IO_FAILURE,
        };
        Self::from_error(code, &error)
    }
}
