//! DEL and GC: everything is found from the owner alone, and what is gone already is fine.

use std::collections::HashSet;

use super::error::{CniError, code};
use super::request::Configuration;
use super::{host_interface, route_socket};
use crate::hostports;
use crate::leases::Owner;

/// Takes one attachment apart. The address is freed last: until then nobody else can get it while a packet still finds the old pod.
pub(super) fn delete(configuration: &Configuration, owner: &Owner) -> Result<(), CniError> {
    let leases = configuration.leases();
    let addresses: Vec<_> =
        leases.all()?.into_iter().filter(|lease| &lease.owner == owner).map(|lease| lease.address).collect();
    hostports::close(&addresses)?;
    match route_socket()?.delete_link(&host_interface(owner)) {
        Err(error) if error.is_missing() => {}
        other => other?,
    }
    leases.release(owner)?;
    Ok(())
}

/// Takes every attachment apart that the request does not name.
pub(super) fn collect(configuration: &Configuration) -> Result<(), CniError> {
    let Some(valid) = &configuration.valid_attachments else {
        let text = "cni.dev/valid-attachments is missing: GC would remove everything";
        return Err(CniError::new(code::INVALID_CONFIGURATION, text));
    };
    let valid: HashSet<(&str, &str)> = valid
        .iter()
        .map(|attachment| (attachment.container_id.as_str(), attachment.ifname.as_str()))
        .collect();
    let mut failures = Vec::new();
    for lease in configuration.leases().all()? {
        let owner = lease.owner;
        if !valid.contains(&(owner.container_id.as_str(), owner.interface.as_str()))
            && let Err(error) = delete(configuration, &owner)
        {
            failures.push(format!("{}: {}", owner.container_id, error.message));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    let error = CniError::new(code::NETWORK_FAILURE, "failed to remove some attachments");
    Err(CniError { details: failures.join("; "), ..error })
}
