//! What peers changed: the later change of a row wins, whatever it says, so that all registries end with the same rows.
//!
//! Of two changes that did not know of each other the one with the later time of day wins. One exception keeps a promise: a fetch at one
//! registry does not turn what was pushed at another into something that an upstream can give again.

use redb::ReadableTable as _;

use super::journal::cursor_name;
use super::row::{Cell, Kind, Row, Value, decode_cell};
use super::{Change, RecordsError};

/// Removed rows are remembered for 30 days. What a registry holds that was away for longer comes back.
const REMEMBERED_MS: u64 = 30 * 24 * 3_600_000;

impl Change<'_> {
    /// Takes a peer's row over if it was changed later than ours; whether it was.
    pub(crate) fn merge(&mut self, row: &Row, cell: Cell) -> Result<bool, RecordsError> {
        if !self.clock.see(cell.stamp, self.now_ms) {
            let peer = format!("{:016x}", cell.stamp.node);
            tracing::warn!(
                peer,
                ?row,
                "the clock of the registry that changed this is more than a day ahead"
            );
        }
        let old = self.numbered(row)?;
        if old.as_ref().is_some_and(|(_, old)| old.stamp >= cell.stamp) {
            return Ok(false);
        }
        let pushed = old.as_ref().and_then(|(_, cell)| cell.value.clone()).filter(|old| !old.is_fetched());
        let demoted = cell.value.as_ref().is_some_and(Value::is_fetched);
        if row.kind == Kind::Blob {
            // The manifest that names it comes later: the row's old stamp must not make it garbage until then.
            self.touch(&row.key, self.now_ms)?;
        }
        self.store(row, old, cell)?;
        if let Some(pushed) = pushed.filter(|_| demoted) {
            self.set(row, Some(pushed))?;
        }
        Ok(true)
    }

    /// Notes that the changes of a peer are applied up to `number`.
    pub(crate) fn set_cursor(&mut self, peer: u64, number: u64) -> Result<(), RecordsError> {
        self.numbers.insert(cursor_name(peer).as_str(), number)?;
        Ok(())
    }

    /// Notes bytes that a row names and nobody has now.
    pub(crate) fn owe(&mut self, digest: &str) -> Result<(), RecordsError> {
        if self.contents.get(digest)?.is_none() && self.owed.get(digest)?.is_none() {
            self.owed.insert(digest, self.now_ms)?;
        }
        Ok(())
    }

    /// Notes that nobody wants these bytes any more.
    pub(crate) fn owe_no_more(&mut self, digest: &str) -> Result<(), RecordsError> {
        self.owed.remove(digest)?;
        Ok(())
    }

    /// Forgets a row that was removed long ago.
    pub(crate) fn forget(&mut self, row: &Row) -> Result<(), RecordsError> {
        let key = row.encode();
        let old = self.cells.get(key.as_slice())?.and_then(|bytes| decode_cell(bytes.value()));
        if let Some((number, cell)) = old
            && is_forgettable(&cell, self.now_ms)
        {
            self.journal.remove(number)?;
            self.cells.remove(key.as_slice())?;
        }
        Ok(())
    }
}

/// Whether a row was removed so long ago that every peer knows.
pub(crate) fn is_forgettable(cell: &Cell, now_ms: u64) -> bool {
    cell.value.is_none() && cell.stamp.ms().saturating_add(REMEMBERED_MS) < now_ms
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use orlop_types::Digest;
    use proptest::prelude::*;
    use redb::{Database, ReadableDatabase as _, ReadableTable as _};

    use super::super::journal::page;
    use super::super::row::{ManifestRow, Part};
    use super::super::stamp::Stamp;
    use super::super::tables::{CELLS, JOURNAL, NODE, NUMBERS, OWNERS, PARTS, open};
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    struct Replica {
        database: Database,
        cursors: BTreeMap<usize, u64>,
        /// How wrong its clock is.
        offset_ms: i64,
        _directory: tempfile::TempDir,
    }

    impl Replica {
        fn new(node: u64, offset_ms: i64) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let database = open(&directory.path().join("records.redb")).unwrap();
            let write = database.begin_write().unwrap();
            write.open_table(NUMBERS).unwrap().insert(NODE, node).unwrap();
            write.commit().unwrap();
            Self { database, cursors: BTreeMap::new(), offset_ms, _directory: directory }
        }

        fn change<T>(&self, step: u64, work: impl FnOnce(&mut Change<'_>) -> T) -> T {
            let mut write = self.database.begin_write().unwrap();
            write.set_durability(redb::Durability::None).unwrap();
            let now = (NOW + step).saturating_add_signed(self.offset_ms);
            let mut change = Change::begin(&write, now).unwrap();
            let result = work(&mut change);
            change.finish().unwrap();
            write.commit().unwrap();
            result
        }

        fn cells(&self) -> BTreeMap<Row, Cell> {
            let read = self.database.begin_read().unwrap();
            let cells = read.open_table(CELLS).unwrap();
            let entries = cells.iter().unwrap().map(|entry| {
                let (key, cell) = entry.unwrap();
                (Row::decode(key.value()).unwrap(), decode_cell(cell.value()).unwrap().1)
            });
            entries.collect()
        }

        /// Reads the journal of another as a peer does; whether anything was new.
        fn follow(&mut self, other: usize, from: &Replica, rows: usize, step: u64) -> bool {
            let since = self.cursors.get(&other).copied().unwrap_or(0);
            let found = page(&from.database.begin_read().unwrap(), since, rows, usize::MAX).unwrap();
            self.cursors.insert(other, found.through);
            self.change(step, |change| {
                for (row, cell) in found.changes {
                    change.merge(&row, cell).unwrap();
                }
            });
            found.through > since
        }

        /// What is derived from the rows is what the rows say.
        fn check(&self) {
            let read = self.database.begin_read().unwrap();
            let cells = self.cells();
            let journal = read.open_table(JOURNAL).unwrap();
            let listed: Vec<Row> =
                journal.iter().unwrap().map(|entry| Row::decode(entry.unwrap().1.value()).unwrap()).collect();
            assert_eq!(listed.len(), cells.len(), "each row stands in the journal once");
            assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), cells.keys().cloned().collect());
            let owners = read.open_table(OWNERS).unwrap().iter().unwrap().count();
            let owning = |(row, cell): &(&Row, &Cell)| {
                matches!(row.kind, Kind::Blob | Kind::Manifest) && cell.value.is_some()
            };
            assert_eq!(owners, cells.iter().filter(owning).count());
            let parts = read.open_table(PARTS).unwrap().iter().unwrap().count();
            let wanted = cells.values().filter(|cell| matches!(cell.value, Some(Value::Manifest(_)))).count();
            assert_eq!(parts, wanted);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set { replica: usize, row: usize, value: Option<u8> },
        Follow { replica: usize, other: usize, rows: usize },
    }

    fn steps(replicas: usize) -> impl Strategy<Value = Vec<Step>> {
        let set = (0..replicas, 0_usize..6, proptest::option::of(0_u8..3));
        let follow = (0..replicas, 0..replicas, 1_usize..4);
        let step = prop_oneof![
            set.prop_map(|(replica, row, value)| Step::Set { replica, row, value }),
            follow.prop_map(|(replica, other, rows)| Step::Follow { replica, other, rows }),
        ];
        proptest::collection::vec(step, 0..40)
    }

    fn row(number: usize) -> Row {
        let kind = [Kind::Tag, Kind::Manifest, Kind::Blob][number % 3];
        let key = match kind {
            Kind::Tag => format!("tag-{number}"),
            _ => Digest::sha256(&[u8::try_from(number).unwrap()]).to_string(),
        };
        Row::new(kind, "team/app", &key)
    }

    fn value(row: &Row, number: u8) -> Value {
        let fetched = number == 0;
        match row.kind {
            Kind::Tag | Kind::FetchedTag => Value::Tag(Digest::sha256(&[number])),
            Kind::Blob => Value::Blob { size: 1, fetched },
            Kind::Manifest => Value::Manifest(ManifestRow {
                media_type: "application/json".to_owned(),
                size: 1,
                fetched,
                subject: None,
                artifact_type: None,
                annotations: None,
                parts: vec![Part { digest: Digest::sha256(&[number]), size: 1 }],
            }),
        }
    }

    fn follow(all: &mut Vec<Replica>, asking: usize, other: usize, rows: usize, step: u64) -> bool {
        let mut replica = all.remove(asking);
        let news = replica.follow(other, &all[other - usize::from(other > asking)], rows, step);
        all.insert(asking, replica);
        news
    }

    fn run(replicas: usize, offsets: &[i64], steps: &[Step]) {
        let mut all: Vec<Replica> =
            (0..replicas).map(|number| Replica::new(number as u64 + 1, offsets[number])).collect();
        // The model: of every cell there ever was, the latest one of its row.
        let mut latest: BTreeMap<Row, Cell> = BTreeMap::new();
        let mut note = |replica: &Replica| {
            for (row, cell) in replica.cells() {
                let known = latest.entry(row).or_insert_with(|| cell.clone());
                if known.stamp < cell.stamp {
                    *known = cell;
                } else if known.stamp == cell.stamp {
                    assert_eq!(*known, cell, "one stamp, one change");
                }
            }
        };
        for (time, step) in steps.iter().enumerate() {
            let time = time as u64;
            let changed = match step {
                Step::Set { replica, row: number, value: what } => {
                    let row = row(*number);
                    let new = what.map(|number| value(&row, number));
                    all[*replica].change(time, |change| change.set(&row, new).unwrap());
                    *replica
                }
                Step::Follow { replica, other, rows } => {
                    follow(&mut all, *replica, *other, *rows, time);
                    *replica
                }
            };
            note(&all[changed]);
        }
        // The link heals: each follows each other from the start, as often as there is something new.
        for replica in &mut all {
            replica.cursors.clear();
        }
        for round in 0..20 {
            let mut news = false;
            for asking in 0..replicas {
                for other in (0..replicas).filter(|other| *other != asking) {
                    while follow(&mut all, asking, other, 2, 1000 + round) {
                        news = true;
                    }
                    note(&all[asking]);
                }
            }
            if !news {
                break;
            }
            assert!(round < 19, "changes go round for ever");
        }
        for replica in &all {
            replica.check();
            assert_eq!(replica.cells(), latest);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn whatever_happens_all_end_with_the_latest(
            replicas in 2_usize..4,
            offsets in proptest::collection::vec(-3_600_000_i64..3_600_000, 3),
            steps in steps(3),
        ) {
            let of_these = |step: &Step| match step {
                Step::Set { replica, .. } => *replica < replicas,
                Step::Follow { replica, other, .. } => {
                    replica != other && *replica < replicas && *other < replicas
                }
            };
            let steps: Vec<Step> = steps.into_iter().filter(of_these).collect();
            run(replicas, &offsets, &steps);
        }
    }

    #[test]
    fn a_clock_an_hour_off_does_not_keep_a_later_change_out() {
        let hour = 3_600_000;
        let (mut fast, mut slow) = (Replica::new(1, hour), Replica::new(2, 0));
        let tag = row(0);
        fast.change(0, |change| change.set(&tag, Some(value(&tag, 1))).unwrap());
        assert!(slow.follow(0, &fast, 10, 1));
        slow.change(2, |change| change.set(&tag, Some(value(&tag, 2))).unwrap());
        assert!(fast.follow(1, &slow, 10, 3));
        assert_eq!(fast.cells(), slow.cells());
        assert_eq!(fast.cells()[&tag].value, Some(value(&tag, 2)));
    }

    #[test]
    fn a_push_outlives_a_fetch_elsewhere() {
        let (mut pushed, mut fetched) = (Replica::new(1, 0), Replica::new(2, 0));
        let blob = row(2);
        pushed.change(0, |change| change.set(&blob, Some(value(&blob, 1))).unwrap());
        fetched.change(5, |change| change.set(&blob, Some(value(&blob, 0))).unwrap());
        pushed.follow(1, &fetched, 10, 6);
        fetched.follow(0, &pushed, 10, 7);
        assert_eq!(pushed.cells(), fetched.cells());
        assert_eq!(pushed.cells()[&blob].value, Some(value(&blob, 1)));
    }

    #[test]
    fn removals_are_remembered_for_a_month() {
        let replica = Replica::new(1, 0);
        let tag = row(0);
        replica.change(0, |change| change.set(&tag, Some(value(&tag, 1))).unwrap());
        replica.change(1, |change| change.set(&tag, None).unwrap());
        let day = 24 * 3_600_000;
        for (days, left) in [(29, 1), (31, 0)] {
            replica.change(days * day, |change| change.forget(&tag).unwrap());
            assert_eq!(replica.cells().len(), left, "{days}");
            replica.check();
        }
        let kept = Cell { stamp: Stamp { time: 1, node: 1 }, value: Some(value(&tag, 1)) };
        assert!(!is_forgettable(&kept, NOW));
    }
}
