//! Records of many blobs, for measurements: `MIRROR_ROOT=DIR MIRROR_BLOBS=1000000 cargo nextest run -p orlop-mirror --run-ignored only
//! records_of_many_blobs --no-capture`, then serve `DIR`.

use std::time::Instant;

use orlop_types::Digest;

use crate::records::{Kind, Records, Row, Value};

/// Rows in one change.
const AT_ONCE: u64 = 20_000;
/// Blobs of one repository.
const IN_REPOSITORY: u64 = 50;

#[test]
#[ignore = "makes records for measurements"]
fn records_of_many_blobs() {
    let root = std::env::var("MIRROR_ROOT").expect("MIRROR_ROOT names the mirror's directory");
    let blobs: u64 = std::env::var("MIRROR_BLOBS").map_or(1_000_000, |text| text.parse().unwrap());
    std::fs::create_dir_all(&root).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let records = Records::open(root.as_ref()).unwrap();
        for first in (0..blobs).step_by(AT_ONCE as usize) {
            let write = records.write(move |change| {
                for number in first..(first + AT_ONCE).min(blobs) {
                    let digest = Digest::sha256(&number.to_le_bytes());
                    let name = format!("team/app-{}", number / IN_REPOSITORY);
                    change.count(&digest, 1 << 20)?;
                    let value = Value::Blob { size: 1 << 20, fetched: false };
                    change.set(&Row::new(Kind::Blob, &name, digest.as_str()), Some(value))?;
                }
                Ok(())
            });
            write.await.unwrap();
        }
    });
    // The records' thread has let go of the file when it can be opened again.
    let started = Instant::now();
    let records = Records::open(root.as_ref()).unwrap();
    let (totals, took) = (records.totals().unwrap(), started.elapsed());
    println!("{} blobs, {} bytes, opened and counted in {took:?}", totals.count, totals.bytes);
    assert_eq!(totals.count, blobs);
}
