//! The process frame that every Orlop daemon runs in.
//!
//! A daemon is `orlop_daemon::run(settings, |frame| async move { wire; Ok(()) })`. The frame gives it: typed configuration
//! ([`config`]), tracing, named tasks ([`Frame::spawn`]), drain ([`Drain`]), readiness guards ([`Ready`]), an admin unix
//! socket ([`admin`]: healthz, readyz, metrics, log level, state dump), sd_notify and [`backoff`].
//!
//! ```text
//!   starting --all guards set--> ready --SIGTERM/SIGINT--> draining --tasks ended or deadline--> stopped
//! ```
//!
//! Invariant: a task that ends with an error or a panic before the drain ends the process with a non-zero code: the
//! supervisor restarts it, and the next plan repairs what was cut off.
//!
//! It deliberately does not know Kubernetes, TLS or any component.

#![warn(missing_docs)]

pub mod admin;
pub mod backoff;
pub mod config;
mod drain;
mod frame;
mod notify;
mod ready;
mod telemetry;

pub use drain::Drain;
pub use frame::{Frame, Settings, run};
pub use notify::sd_notify;
pub use prometheus_client;
pub use ready::{Ready, ReadyGuard};
pub use telemetry::{init_command_tracing, init_tracing};
