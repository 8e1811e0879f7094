//! Identifiers and values that every floor may use: content digests, image references, quantities, process identities.
//!
//! Pure: no file, no socket, no clock. Each type is parsed once, at the border, and carries the proof from there on.
//!
//! - [`Digest`]: `sha256:…`/`sha512:…`, with a streaming [`Digester`] that verifies while bytes pass by.
//! - [`Reference`]: an image name, normalised the way Docker and containerd do it (`nginx` is
//!   `docker.io/library/nginx:latest`).
//! - [`Quantity`]: a Kubernetes resource quantity (`100m`, `1.5Gi`), exact to 10⁻⁹.
//! - [`ProcessIdentity`]: pid and start time together, because pids are used again.

mod digest;
mod process;
mod quantity;
mod reference;

pub use digest::{Algorithm, Digest, DigestError, Digester};
pub use process::ProcessIdentity;
pub use quantity::{Format, Quantity, QuantityError};
pub use reference::{Reference, ReferenceError};
