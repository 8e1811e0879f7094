//! orlop-oci: the OCI runtime over libcontainer.

pub mod devices;
pub mod seccomp;
