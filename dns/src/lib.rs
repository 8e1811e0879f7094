//! Node-local cluster DNS.
