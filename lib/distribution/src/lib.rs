//! OCI distribution: manifests, blob store, archives, tar.
//!
//! What is here is shared by the runtime's image store and by the mirror, and knows neither.

#![warn(missing_docs)]

pub mod archive;
pub mod blobs;
pub mod client;
pub mod compression;
mod credential;
mod keyring;
pub mod manifest;
pub mod policy;
pub mod tarball;

pub use credential::Credential;
pub use keyring::CredentialSource;
