//! Netlink sockets: interfaces, addresses, routes and neighbours ([`RouteSocket`]), nftables ([`nft`]), conntrack ([`conntrack`]).
//!
//! Everything here blocks, and nothing needs an async runtime: one request is some microseconds of kernel work, and the CNI plugin
//! must be up and gone within milliseconds. Async daemons call it from a blocking thread when it can take longer (a large batch).
//!
//! A socket belongs to the network namespace of the thread that opened it, for ever: [`namespace::inside`] runs a closure in another
//! namespace on a thread of its own, and the sockets it returns stay there.
//!
//! Invariant: a request is answered (acknowledged, refused or timed out) before the next one is sent; a socket after a timeout is not
//! used again by its owner.
//!
//! It deliberately does not listen for events and keeps no state: callers read what is, compare, and ask for the difference.

#![warn(missing_docs)]

pub mod conntrack;
mod error;
pub mod namespace;
pub mod nft;
pub mod route;
mod socket;
pub mod sysctl;

pub use error::NetlinkError;
pub use route::RouteSocket;
