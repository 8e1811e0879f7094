//! nftables as values, encoded to netlink messages.
//!
//! ```text
//!   Table, Chain(Rule(Statement)), Set, Element --Command--> batch::encode --> bytes for one sendmsg (lib/netlink sends them)
//!                                                                 kernel's answers --> read::elements
//! ```
//!
//! [`Statement`]s speak the words of `nft`; the private `expression` module lowers them to what the kernel runs, with the registers
//! `nft` would choose.
//!
//! Invariant: whatever can be written with these types, `nft list ruleset` can print and `nft -f` can load again. That is why
//! there is no public expression type: not every sequence that the kernel takes has words in `nft`.
//!
//! It deliberately does no I/O, keeps no state, and knows no Kubernetes.

#![warn(missing_docs)]

pub mod batch;
mod expression;
mod object;
pub mod read;
mod statement;
mod value;
pub mod wire;

pub use object::{
    BaseChain, Chain, ChainKind, Command, Datum, Element, Family, Hook, PRIORITY_DNAT, PRIORITY_FILTER,
    PRIORITY_SNAT, Rule, Set, SetData, Table,
};
pub use statement::{IpVersion, Selector, Statement};
pub use value::{DataType, Tuple, Value, Verdict};
