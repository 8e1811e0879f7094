//! The Kubernetes API as clients see it: a client from a kubeconfig, and informers that keep only what their user needs.
//!
//! ```text
//!   API server --list+watch--> informer task --project()--> map key -> Arc<V>   (snapshot, read any time)
//!                                                   \-----> dirty keys per subscription (never lost, coalesced)
//! ```
//!
//! Invariant: an informer that is not synced says so ([`Informer::is_synced`]); its users must not take an empty map for the truth.
//!
//! It deliberately does not cache whole objects: a parsed pod costs ten times its JSON, so [`informer`] takes a projection.

#![warn(missing_docs)]

mod client;
mod informer;
pub mod network;

pub use client::{ClientError, client_from_config, client_from_kubeconfig};
pub use informer::{Informer, Key, Subscription, informer};
pub use {k8s_openapi, kube};
