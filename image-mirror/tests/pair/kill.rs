//! Either half is killed with -9 at random points of pushes, pulls and replication. What was answered with success is at both in the end.
//!
//! `KILLS=N` kills (100), `SEED=N` at other points.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop_types::Digest;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::mirror::{Mirror, free_address, noise, wait_for};
use crate::{Pair, nothing, number};

/// The longest wait for the next kill: longer than a push and its replication.
const LONGEST: Duration = Duration::from_millis(600);
const FETCHED: u64 = 30;

#[test]
fn killed_at_any_point() {
    let (seed, kills) = (number("SEED", 20_261_129), number("KILLS", 100));
    eprintln!("replay with SEED={seed} KILLS={kills}");
    let work = tempfile::tempdir().unwrap();
    let mut upstream = Mirror::new(&work.path().join("upstream"), free_address(), nothing());
    upstream.start();
    let images: Vec<Digest> = (0..FETCHED)
        .map(|number| {
            let layer = noise(300_000, 5000 + number);
            upstream.push("up.example/team/app", &format!("up-{number}"), &layer).unwrap().0
        })
        .collect();
    let upstreams = serde_json::json!({"upstreams": {"up.example": format!("http://{}", upstream.address)}});
    let mut pair = Pair::started(&upstreams);
    let clients = pair.halves.each_ref().map(Mirror::client);
    let over = AtomicBool::new(false);
    let pushed: Mutex<BTreeMap<String, Digest>> = Mutex::default();
    std::thread::scope(|scope| {
        for worker in 0..2_u64 {
            let (clients, images, over, pushed) = (&clients, &images, &over, &pushed);
            scope.spawn(move || {
                for turn in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let tag = format!("tag-{worker}-{turn}");
                    let layer = noise(150_000, worker << 32 | turn);
                    let client = &clients[usize::from((turn + worker) % 2 == 0)];
                    if let Some((digest, code, _)) = client.push("team/app", &tag, &layer)
                        && code == "201"
                    {
                        pushed.lock().unwrap().insert(tag, digest);
                    }
                    let _ = client.push("team/app", "moving", &layer);
                    // A pull verifies what it gets whole.
                    let wanted = (turn + worker * 7) % FETCHED;
                    if let Some(found) = client.pull("up.example/team/app", &format!("up-{wanted}")) {
                        assert_eq!(found, images[usize::try_from(wanted).unwrap()]);
                    }
                }
            });
        }
        let mut random = StdRng::seed_from_u64(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..kills {
                std::thread::sleep(LONGEST.mul_f64(random.random::<f64>()));
                let half = &mut pair.halves[usize::from(random.random::<bool>())];
                half.kill();
                half.start();
            }
        }));
        over.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    let pushed = pushed.into_inner().unwrap();
    eprintln!("{kills} kills, {} pushes that were answered", pushed.len());
    assert!(!pushed.is_empty());
    // One start more: what was cut is swept there.
    for half in &mut pair.halves {
        half.kill();
        half.start();
    }
    pair.wait_connected();
    let [a, b] = &pair.halves;
    for half in [a, b] {
        for (tag, digest) in &pushed {
            wait_for(tag, || half.pull("team/app", tag).filter(|found| found == digest));
        }
        for (wanted, digest) in images.iter().enumerate() {
            assert_eq!(half.pull("up.example/team/app", &format!("up-{wanted}")).as_ref(), Some(digest));
        }
    }
    wait_for("one tag at both", || {
        (a.tag("team/app", "moving")? == b.tag("team/app", "moving")?).then_some(())
    });
    let lists = [a, b].map(|half| half.curl(&[], "/v2/team/app/tags/list").stdout);
    assert_eq!(lists[0], lists[1]);
    for half in [a, b] {
        wait_for("an empty ingest", || {
            let left = std::fs::read_dir(half.root.join("data/ingest")).unwrap().count();
            (left == 0).then_some(())
        });
    }
}
