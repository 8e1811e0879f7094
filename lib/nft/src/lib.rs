//! nftables as values, encoded to netlink messages. Pure.
pub mod wire;
