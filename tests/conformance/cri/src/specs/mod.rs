//! The specs, by area as critest files them.

pub mod containers;
pub mod events;
pub mod exec;
pub mod idempotence;
pub mod image_volumes;
pub mod images;
pub mod logs;
pub mod mounts;
pub mod namespaces;
pub mod networking;
pub mod pods;
pub mod resources;
pub mod runtime_info;
pub mod security;
pub mod stats;
pub mod streaming;
pub mod streaming_lists;
pub mod users;
