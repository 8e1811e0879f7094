//! The writer thread: takes what waits in the queue, commits it in one transaction, publishes, answers.

use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, Table};
use tokio::sync::{mpsc, oneshot};

use crate::{Condition, Event, Record, Revision, Sink, StoreError, Write};

use super::file::{self, COUNTERS, OBJECTS, Opener, REVISION};

/// Writes that share one transaction and one fsync.
const BATCH_LIMIT: usize = 256;
/// How long a file that failed stays closed: opening it again may have to read all of it.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Command {
    Write { write: Write, answer: Answer<Revision> },
    Get { key: String, answer: Answer<Option<Record>> },
    Follow { prefix: String, sink: Box<dyn Sink>, answer: Answer<Revision> },
}

/// The file as the writer has it.
enum Open {
    Yes(Database),
    /// It failed; the reason is what writes are answered with until it is open again.
    No {
        since: Instant,
        reason: StoreError,
    },
}

pub(super) struct Writer {
    opener: Opener,
    file: Open,
    revision: Revision,
    sinks: Vec<(String, Box<dyn Sink>)>,
    /// A batch whose commit failed, and which may be on disk all the same.
    in_doubt: Vec<Event>,
}

type Pending = (Write, Answer<Revision>);

impl Writer {
    pub(super) fn open(opener: Opener) -> Result<Self, StoreError> {
        let (database, revision) = opener.open().map_err(|error| opener.open_error(&error))?;
        Ok(Self { opener, file: Open::Yes(database), revision, sinks: Vec::new(), in_doubt: Vec::new() })
    }

    /// Runs until every handle of the store is gone.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut batch: Vec<Pending> = Vec::new();
        while let Some(command) = inbox.blocking_recv() {
            let mut next = Some(command);
            while let Some(command) = next.take() {
                match command {
                    Command::Write { write, answer } => batch.push((write, answer)),
                    Command::Get { key, answer } => {
                        self.commit(&mut batch);
                        let _ = answer.send(self.get(&key));
                    }
                    Command::Follow { prefix, sink, answer } => {
                        self.commit(&mut batch);
                        let _ = answer.send(self.follow(prefix, sink));
                    }
                }
                if batch.len() < BATCH_LIMIT {
                    next = inbox.try_recv().ok();
                }
            }
            self.commit(&mut batch);
        }
    }

    fn get(&mut self, key: &str) -> Result<Option<Record>, StoreError> {
        let database = self.database()?;
        let result = (|| -> Result<_, redb::Error> {
            let read = database.begin_read()?;
            let objects = read.open_table(OBJECTS)?;
            let value = objects.get(key)?;
            value.map(|value| file::decode(key, value.value())).transpose()
        })();
        result.map_err(|error| self.fail(&error))
    }

    fn follow(&mut self, prefix: String, mut sink: Box<dyn Sink>) -> Result<Revision, StoreError> {
        let revision = self.revision;
        let database = self.database()?;
        let result = (|| -> Result<_, redb::Error> {
            let read = database.begin_read()?;
            let objects = read.open_table(OBJECTS)?;
            for item in objects.range(prefix.as_str()..)? {
                let (key, value) = item?;
                if !key.value().starts_with(&prefix) {
                    break;
                }
                sink.load(file::decode(key.value(), value.value())?);
            }
            Ok(())
        })();
        result.map_err(|error| self.fail(&error))?;
        sink.loaded(revision);
        self.sinks.push((prefix, sink));
        Ok(revision)
    }

    /// Commits the batch, publishes it and answers every write in it.
    fn commit(&mut self, batch: &mut Vec<Pending>) {
        if batch.is_empty() {
            return;
        }
        let batch = std::mem::take(batch);
        match self.try_commit(&batch) {
            Ok((outcomes, events)) => {
                if let Some(last) = events.last() {
                    self.revision = last.revision();
                }
                self.publish(events);
                for ((_, answer), outcome) in batch.into_iter().zip(outcomes) {
                    // The caller may have gone; the write stands.
                    let _ = answer.send(outcome);
                }
            }
            Err(error) => {
                for (_, answer) in batch {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    #[expect(
        clippy::type_complexity,
        reason = "one answer per write, and the events of those that took effect"
    )]
    fn try_commit(
        &mut self,
        batch: &[Pending],
    ) -> Result<(Vec<Result<Revision, StoreError>>, Vec<Event>), StoreError> {
        let mut events = Vec::with_capacity(batch.len());
        let mut revision = self.revision;
        let database = self.database()?;
        let result = (|| -> Result<_, redb::Error> {
            let transaction = database.begin_write()?;
            let mut outcomes = Vec::with_capacity(batch.len());
            {
                let mut objects = transaction.open_table(OBJECTS)?;
                for (write, _) in batch {
                    let outcome = apply(&mut objects, write, revision + 1)?;
                    outcomes.push(outcome.map(|event| {
                        revision += 1;
                        events.push(event);
                        revision
                    }));
                }
                let mut counters = transaction.open_table(COUNTERS)?;
                counters.insert(REVISION, revision)?;
            }
            if events.is_empty() {
                transaction.abort()?;
            } else {
                transaction.commit()?;
            }
            Ok(outcomes)
        })();
        match result {
            Ok(outcomes) => Ok((outcomes, events)),
            Err(error) => {
                let error = self.fail(&error);
                self.in_doubt = events;
                Err(error)
            }
        }
    }

    fn publish(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        for (prefix, sink) in &mut self.sinks {
            let mine: Vec<Event> =
                events.iter().filter(|event| key_of(event).starts_with(prefix.as_str())).cloned().collect();
            if !mine.is_empty() {
                sink.apply(mine);
            }
        }
    }

    /// The open file; opens it again when it had failed long enough ago.
    fn database(&mut self) -> Result<&Database, StoreError> {
        if let Open::No { since, reason } = &self.file {
            if since.elapsed() < REOPEN_PAUSE {
                return Err(reason.clone());
            }
            match self.opener.open() {
                Ok((database, revision)) => self.reopened(database, revision),
                Err(error) => {
                    let reason = file::storage_error(&error);
                    self.file = Open::No { since: Instant::now(), reason: reason.clone() };
                    return Err(reason);
                }
            }
        }
        match &self.file {
            Open::Yes(database) => Ok(database),
            Open::No { reason, .. } => Err(reason.clone()),
        }
    }

    /// Takes over what the failed commit did: redb commits all of a batch or nothing.
    fn reopened(&mut self, database: Database, revision: Revision) {
        tracing::info!(revision, "store is open again");
        self.file = Open::Yes(database);
        let in_doubt = std::mem::take(&mut self.in_doubt);
        if revision > self.revision && in_doubt.last().map(Event::revision) == Some(revision) {
            self.revision = revision;
            self.publish(in_doubt);
        }
    }

    /// Closes the file after a fault: redb does not go on after one.
    fn fail(&mut self, error: &redb::Error) -> StoreError {
        let reason = file::storage_error(error);
        tracing::error!(error = %reason, "store failed, it refuses writes until it can be opened again");
        let failed = Open::No { since: Instant::now(), reason: reason.clone() };
        if let Open::Yes(database) = std::mem::replace(&mut self.file, failed) {
            // Closing after a fault reports the fault again.
            let _ = database.close();
        }
        reason
    }
}

fn key_of(event: &Event) -> &str {
    match event {
        Event::Put(record) => &record.key,
        Event::Delete { key, .. } => key,
    }
}

/// Checks the condition and changes the table. The inner result is the answer to the writer of this one write.
fn apply(
    objects: &mut Table<'_, &'static str, &'static [u8]>,
    write: &Write,
    revision: Revision,
) -> Result<Result<Event, StoreError>, redb::Error> {
    let key = || write.key.to_string();
    let current = match objects.get(&*write.key)? {
        Some(value) => Some(file::revisions(&write.key, value.value())?),
        None => None,
    };
    let create_revision = match (write.condition, current) {
        (Condition::Absent, None) => revision,
        (Condition::Absent, Some(_)) => return Ok(Err(StoreError::Exists { key: key() })),
        (Condition::At(_), None) => return Ok(Err(StoreError::NotFound { key: key() })),
        (Condition::At(expected), Some((created, current))) if expected == current => created,
        (Condition::At(expected), Some((_, current))) => {
            return Ok(Err(StoreError::Conflict { key: key(), expected, current }));
        }
    };
    Ok(Ok(match &write.object {
        Some((object, meta)) => {
            objects.insert(&*write.key, file::encode(create_revision, revision, object).as_slice())?;
            Event::Put(Record {
                key: write.key.clone(),
                create_revision,
                mod_revision: revision,
                object: object.clone(),
                meta: Some(meta.clone()),
            })
        }
        None => {
            objects.remove(&*write.key)?;
            Event::Delete { key: write.key.clone(), revision }
        }
    }))
}
