//! CRI `ContainerConfig` → OCI `config.json`. Pure: everything read from the machine comes in through [`plan::Input`].

pub mod capabilities;
pub mod mounts;
pub mod plan;
pub mod resources;
pub mod seccomp;
mod seccomp_table;
pub mod signals;
