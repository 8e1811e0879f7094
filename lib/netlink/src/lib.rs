//! Route and nftables netlink sockets.
