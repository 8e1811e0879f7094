//! DNS.
pub mod model;
mod config;
pub use config::Config;
