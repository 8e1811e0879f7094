//! CRI `ContainerConfig` → OCI `config.json`. Pure: everything read from the machine comes in through [`plan::Input`].

pub(crate) mod capabilities;
pub(crate) mod mounts;
pub(crate) mod plan;
pub(crate) mod resources;
pub(crate) mod seccomp;
mod seccomp_table;
pub(crate) mod signals;
pub(crate) mod update;
