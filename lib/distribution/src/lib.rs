//! OCI distribution: registry client, hosts files, blob store, archives, tar.
//!
//! What is here is shared by the runtime's image store and by the mirror, and knows neither.

#![warn(missing_docs)]

mod credential;

pub use credential::Credential;
