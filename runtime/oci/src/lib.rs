//! orlop-oci: the OCI runtime over libcontainer.
