//! What an operator orders at the admin socket.

use std::sync::Arc;

use orlop_daemon::Frame;

use super::Keeper;
use super::mode::Mode;
use crate::records::{Kind, RecordsError, Row};

/// Rows in one change: pushes wait for no more.
const AT_ONCE: usize = 200;

impl Keeper {
    pub(super) fn offer(self: &Arc<Self>, frame: &Frame) {
        let keeper = self.clone();
        frame.command("mode", move |name| {
            let keeper = keeper.clone();
            async move { keeper.command_mode(name.trim()) }
        });
        let keeper = self.clone();
        frame.command("gc", move |_| {
            let keeper = keeper.clone();
            async move {
                keeper.writable()?;
                let collected = keeper.collect(true).await.map_err(|error| error.to_string())?;
                Ok(format!("{} files with {} bytes removed", collected.files, collected.bytes))
            }
        });
        let keeper = self.clone();
        frame.command("scrub", move |_| {
            let keeper = keeper.clone();
            async move { keeper.writable().map(|()| keeper.command_scrub()) }
        });
        let keeper = self.clone();
        frame.command("delete", move |name| {
            let keeper = keeper.clone();
            async move {
                keeper.writable()?;
                let name = name.trim();
                match keeper.delete_repository(name).await {
                    Ok(0) => Err(format!("repository {name:?} is not known to this registry")),
                    Ok(rows) => {
                        tracing::info!(repository = name, rows, "repository deleted");
                        Ok(format!(
                            "{rows} tags, manifests and blobs of {name} deleted; gc frees their bytes"
                        ))
                    }
                    Err(error) => Err(error.to_string()),
                }
            }
        });
    }

    /// Maintenance writes nothing.
    fn writable(&self) -> Result<(), String> {
        match self.mode() {
            Mode::Normal | Mode::ReadOnly => Ok(()),
            Mode::Maintenance => Err("the registry is in maintenance: change its mode first".to_owned()),
        }
    }

    /// Deletes every tag, manifest and blob of a repository, as a client would one by one: a pair's other half hears of it. Tags go
    /// first: one that is left never names a manifest that is gone.
    pub(crate) async fn delete_repository(&self, name: &str) -> Result<u64, RecordsError> {
        let mut deleted = 0;
        for kind in [Kind::Tag, Kind::FetchedTag, Kind::Manifest, Kind::Blob] {
            loop {
                let some = self.repositories.records.rows(kind, name, None, AT_ONCE)?;
                if some.is_empty() {
                    break;
                }
                let name = name.to_owned();
                let count = self.repositories.records.write(move |change| {
                    let mut count = 0;
                    for (key, _) in &some {
                        count += u64::from(change.set(&Row::new(kind, &name, key), None)?);
                    }
                    Ok(count)
                });
                deleted += count.await?;
            }
        }
        Ok(deleted)
    }
}
