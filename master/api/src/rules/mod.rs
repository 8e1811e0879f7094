//! What can be decided without looking anything up: paths, queries, media types, who may do what, encodings, free addresses.

pub(crate) mod accept;
pub(crate) mod allocate;
pub(crate) mod authorize;
pub(crate) mod describe;
pub(crate) mod encode;
pub(crate) mod impersonate;
pub(crate) mod options;
pub(crate) mod path;
pub(crate) mod protobuf;
pub(crate) mod query;
pub(crate) mod unreadable;
