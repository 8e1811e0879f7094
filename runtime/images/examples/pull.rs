//! Pulls one image into a new store and says what that took: `pull ROOT REFERENCE`. For measuring by hand.

#![expect(clippy::print_stdout, reason = "that is its output")]

use anyhow::Context as _;
use orlop_images::{Config, ImageStore};
use orlop_types::Reference;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().context("first argument: directory of the store")?;
    let reference = arguments.next().context("second argument: image reference")?;
    let store = ImageStore::open(Config { root: root.into(), ..Config::default() })?;
    let started = std::time::Instant::now();
    let image = store.pull(&Reference::parse(&reference)?, None).await?;
    let took = started.elapsed();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("{} {} ms, {peak}", image.id, took.as_millis());
    Ok(())
}
