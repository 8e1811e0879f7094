//! From a pod's specification to what CRI is asked for: environment, resolver, resources, security context. All pure.

pub(crate) mod config;
pub(crate) mod dns;
pub(crate) mod env;
pub(crate) mod resources;
pub(crate) mod security;
