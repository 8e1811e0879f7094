//! Ctrl-C and SIGTERM end the benchmark between two measurements, so that everything is taken down.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

static CAUGHT: AtomicBool = AtomicBool::new(false);

/// From now on both signals only set a flag.
pub(crate) fn watch(runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
    let _guard = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signal = signal(kind)?;
        runtime.spawn(async move {
            signal.recv().await;
            CAUGHT.store(true, Ordering::Relaxed);
        });
    }
    Ok(())
}

/// Fails once a signal was caught.
pub(crate) fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!CAUGHT.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
