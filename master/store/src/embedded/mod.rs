//! The embedded store: one redb file, one writer thread, group commit.

mod file;
mod writer;

use std::path::Path;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::{Record, Revision, Sink, Store, StoreError, Write};

use file::Opener;
use writer::{Command, Writer};

/// How many commands may wait for the writer thread; more make their callers wait.
const QUEUE_LIMIT: usize = 1024;

/// A store in one file. Cheap to clone; the writer thread ends when the last clone is gone.
#[derive(Clone, Debug)]
pub struct EmbeddedStore {
    commands: mpsc::Sender<Command>,
}

impl EmbeddedStore {
    /// Opens or creates the store in `path`. A file that was cut off by a crash is repaired.
    ///
    /// # Errors
    /// [`StoreError::Open`] names the file; another process that has it open is an error too.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(Opener::file(path)).await
    }

    async fn open_with(opener: Opener) -> Result<Self, StoreError> {
        let writer = tokio::task::spawn_blocking(move || Writer::open(opener))
            .await
            .map_err(|_| StoreError::Closed)??;
        let (commands, inbox) = mpsc::channel(QUEUE_LIMIT);
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(inbox))
            .map_err(|error| StoreError::Io { reason: error.to_string() })?;
        Ok(Self { commands })
    }

    /// Resolves when the writer thread is gone while this handle still exists: that is a fault, the process should end.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn write(&self, write: Write) -> Result<Revision, StoreError> {
        self.ask(|answer| Command::Write { write, answer }).await
    }

    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        let key = key.to_owned();
        self.ask(|answer| Command::Get { key, answer }).await
    }

    async fn follow(&self, prefix: &str, sink: Box<dyn Sink>) -> Result<Revision, StoreError> {
        let prefix = prefix.to_owned();
        self.ask(|answer| Command::Follow { prefix, sink, answer }).await
    }
}

#[cfg(test)]
mod tests;
