//! One file per verb that changes something.

mod create_container;
mod exec_output;
mod exec_sync;
mod remove_container;
mod remove_pod_sandbox;
mod run_pod_sandbox;
mod start_container;
mod stop_container;
mod stop_pod_sandbox;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod wishes;

pub(crate) use exec_output::OutputRoom;
