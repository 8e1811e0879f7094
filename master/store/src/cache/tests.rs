use bytes::Bytes;

use super::*;
use crate::Encoded;

fn record(key: &str, revision: Revision, label: &str) -> Event {
    Event::Put(Record {
        key: Arc::from(key),
        create_revision: revision,
        mod_revision: revision,
        object: Encoded { bytes: Bytes::from_static(b"{\"rv\":\"\"}"), revision_at: 7 },
        meta: Some(Arc::new(Meta { labels: Box::new([("app".into(), label.into())]), ..Meta::default() })),
    })
}

fn loaded() -> (Arc<Cache>, Box<dyn Sink>) {
    let cache = Cache::new(["/registry/a/".to_owned()], |_, _| Meta::default());
    let mut sink = cache.sink();
    sink.loaded(10);
    (cache, sink)
}

#[test]
fn pages_continue_in_the_state_in_which_they_began() {
    let (cache, mut sink) = loaded();
    sink.apply((1..=5).map(|number| record(&format!("/registry/a/{number}"), 10 + number, "x")).collect());
    let request =
        PageRequest { at: At::Now, prefix: "/registry/a/", start: "", limit: 2, matches: &|_| true };
    let first = cache.list(&request).unwrap();
    assert_eq!((first.entries.len(), first.remaining, first.revision), (2, 3, 15));
    sink.apply(vec![
        record("/registry/a/25", 16, "new"),
        Event::Delete { key: Arc::from("/registry/a/4"), revision: 17 },
        record("/registry/a/5", 18, "changed"),
    ]);
    let next = first.next.unwrap();
    let request = PageRequest { at: At::Revision(15), start: &next, ..request };
    let second = cache.list(&PageRequest { limit: 0, ..request }).unwrap();
    let keys: Vec<_> =
        second.entries.iter().map(|entry| (entry.key.to_string(), entry.mod_revision)).collect();
    let expected = [("/registry/a/3", 13), ("/registry/a/4", 14), ("/registry/a/5", 15)];
    assert_eq!(keys, expected.map(|(key, revision)| (key.to_owned(), revision)));
}

#[test]
fn a_watch_replays_history_and_then_goes_on_without_a_gap() {
    let (cache, mut sink) = loaded();
    sink.apply(vec![record("/registry/a/1", 11, "x"), record("/registry/a/1", 12, "x")]);
    let mut watch = cache.watch("/registry/a/", Some(11), Arc::new(|_| true)).unwrap();
    sink.apply(vec![Event::Delete { key: Arc::from("/registry/a/1"), revision: 13 }]);
    assert_eq!(watch.replay.iter().map(|change| change.revision()).collect::<Vec<_>>(), [12]);
    let deleted = watch.changes.try_recv().unwrap();
    assert_eq!((deleted.kind, &deleted.entry.bytes[..]), (ChangeKind::Deleted, &b"{\"rv\":\"13\"}"[..]));
    assert!(cache.watch("/registry/a/", Some(9), Arc::new(|_| true)).is_err());
}

#[test]
fn a_watcher_that_does_not_read_is_cut_off_and_no_other() {
    let (cache, mut sink) = loaded();
    let mut slow = cache.watch("/registry/a/", None, Arc::new(|_| true)).unwrap();
    let mut other = cache.watch("/registry/a/", None, Arc::new(|_| true)).unwrap();
    for number in 0..=WATCH_QUEUE_LIMIT as u64 {
        sink.apply(vec![record("/registry/a/1", 11 + number, "x")]);
        other.changes.try_recv().unwrap();
    }
    let mut delivered = 0;
    while slow.changes.try_recv().is_ok() {
        delivered += 1;
    }
    assert_eq!(delivered, WATCH_QUEUE_LIMIT);
    assert_eq!(slow.changes.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    assert_eq!(other.changes.try_recv(), Err(mpsc::error::TryRecvError::Empty));
}

impl PartialEq for Change {
    fn eq(&self, other: &Self) -> bool {
        self.revision() == other.revision()
    }
}
