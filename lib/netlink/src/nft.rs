//! nftables transactions.
