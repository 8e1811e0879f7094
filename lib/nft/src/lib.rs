//! nftables as values, encoded to netlink messages. Pure.
