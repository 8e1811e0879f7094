//! Shims: starting one per pod, talking to it, and ending it when it does not listen any more.

mod client;
mod launch;
mod session;

pub(crate) use client::read_event;
pub(crate) use client::{ShimClient, ShimError};
pub(crate) use launch::{Launcher, end};
pub(crate) use session::{Frame, Session, SessionWriter};
