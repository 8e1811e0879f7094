//! The registry mirror.
