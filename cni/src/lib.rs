//! The pod network of a node: the CNI plugin, its addresses, and the overlay between nodes.
//!
//! ```text
//!   runtime --exec, JSON on stdin--> plugin::main_plugin   veth pair, address, route in the pod's network namespace
//!   Node watch --> overlay::start_overlay                  bridge, VXLAN interface, peers, masquerade, conflist
//!                        \--writes--> conflist (the plugin's configuration)
//! ```
//!
//! The two meet only over files: the conflist, and one lease file per address ([`leases`]). The plugin works without the daemon, and the
//! daemon may be killed at any line: interfaces and routes stay, and the next start repairs them.
//!
//! A pod's address has the prefix length of a single host. All its traffic goes to the bridge's address, also to its neighbours on
//! the node: so replies of a Service backend pass the host's connection tracking, whether or not the kernel has br_netfilter on.
//!
//! Invariants: an address has at most one lease file, made by an exclusive link; everything that ADD makes can be found again by
//! DEL from container id and interface name alone; no table, route or interface of anybody else is changed.
//!
//! It deliberately does no NetworkPolicy, knows no pods, and serves no Services (the proxy does).

pub mod hostports;
pub mod leases;
pub mod overlay;
pub mod plugin;

pub use overlay::{OverlayConfig, cleanup, ensure_local_address, remove_local_address, start_overlay};
pub use plugin::main_plugin;
