//! What a kubelet may ask of pods and containers beyond the ordinary, over the real shim: `orlop-shim-test` of the same build, else SKIP.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

#[path = "../support/mod.rs"]
mod support;

mod devices;
mod resources;
mod users;
mod volumes;
