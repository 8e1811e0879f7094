//! Service rules on nftables.
