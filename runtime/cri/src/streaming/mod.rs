//! Sessions of `kubectl exec`, `attach` and `port-forward`: the CRI verb gives out a URL with a one-time token, the kubelet
//! tunnels its client's upgraded connection there, and there it is bridged to the pod's shim.
//!
//! The server behind the URLs is a process of its own, `orlop streamer`, so that sessions outlive this daemon:
//!
//! ```text
//!   daemon ──Expect(token, wish)──▶ STATE/streamer.sock ─▶ streamer ◀──HTTP, then SPDY or WebSocket── kubelet
//!     │ starts it on demand, retires its predecessor's        └──shim protocol──▶ the pod's shim
//! ```
//!
//! One process for all sessions of a node, not one for each: the token is behind TLS where TLS is configured, and a connection
//! cannot change its process after the handshake; 1000 sessions cost buffers, not 1000 processes. Not the shim: SPDY, WebSocket
//! and TLS would more than double what every pod pays for what few pods use. It starts with the first session and ends when it
//! has had none for a minute, so a node without sessions pays nothing. A new daemon starts a new one (an upgrade's
//! code serves the next session) and retires the old one, which ends with its last session.
//!
//! The token is the authority, as in every CRI runtime: on loopback without TLS, elsewhere with it.
//!
//! Read next: [`streams`] (the daemon's side), [`streamer`] (the process), `http.rs`, then the protocols.

mod activity;
mod control;
mod http;
mod port_forward;
mod remote_command;
pub(crate) mod spdy;
mod spdy_command;
mod status;
mod streamer;
mod streams;
mod tls;
mod waiting;
mod websocket;
mod wish;

pub use streamer::main as streamer_main;
pub(crate) use streams::{Streams, program};
pub(crate) use tls::TlsFiles;
pub(crate) use wish::Wish;
