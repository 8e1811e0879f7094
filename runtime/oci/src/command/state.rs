//! `state`, and how a container is shown elsewhere.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::Call;
use super::container::Container;

/// runtime-spec runtime.md, "State", with runc's additions, in runc's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    oci_version: &'static str,
    pub(super) id: String,
    pub(super) pid: u32,
    pub(super) status: &'static str,
    pub(super) bundle: PathBuf,
    rootfs: PathBuf,
    pub(super) created: jiff::Timestamp,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(super) owner: String,
}

pub(super) fn show(container: &Container, owner: String) -> anyhow::Result<Shown> {
    let record = &container.record;
    Ok(Shown {
        oci_version: crate::SPECIFICATION_VERSION,
        id: record.id.clone(),
        status: container.status()?.name(),
        pid: container.pid(),
        bundle: record.bundle.clone(),
        rootfs: record.rootfs.clone(),
        created: record.created,
        annotations: record.annotations.clone(),
        owner,
    })
}

pub(super) fn main(call: &Call, id: &str) -> anyhow::Result<()> {
    let container = Container::load(&call.store, id)?;
    // runc fills the owner in for `list` alone.
    let shown = show(&container, String::new())?;
    super::print(&format!("{}\n", serde_json::to_string_pretty(&shown)?))
}
