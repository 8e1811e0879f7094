//! Host ports of pods.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::plugin::{CniError, PortMapping, code};

/// Opens the host ports of a pod.
///
/// # Errors
/// Code 2.
pub fn open(mappings: &[PortMapping], _addresses: &[(IpNet, IpAddr)]) -> Result<(), CniError> {
    if mappings.is_empty() { Ok(()) } else { Err(CniError::new(code::UNSUPPORTED_FIELD, "portMappings are not supported")) }
}

/// Closes the host ports that lead to these addresses.
///
/// # Errors
/// When the kernel refuses.
pub fn close(_addresses: &[IpAddr]) -> Result<(), CniError> {
    Ok(())
}

/// The tables that hold host ports.
pub fn tables() -> Vec<orlop_nft::Table> {
    Vec::new()
}
