//! One flight per key: a verb that is asked again while it runs is joined, not repeated.
//!
//! The work runs in a task of its own, so a client that gives up (the kubelet's deadline) does not cut it off halfway; its
//! retry finds either the flight or the result. Bounded by the number of objects that verbs work on.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::error::CriError;

type Landing<V> = watch::Receiver<Option<Result<V, CriError>>>;

/// Flights in the air, by key.
pub(crate) struct Flights<K, V> {
    in_air: Arc<Mutex<HashMap<K, Landing<V>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { in_air: Arc::default() }
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Runs `work` for `key`, or waits for the flight that already does.
    pub(crate) async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<V, CriError>
    where
        F: Future<Output = Result<V, CriError>> + Send + 'static,
    {
        let mut landing = {
            let mut in_air = self.in_air.lock().unwrap_or_else(PoisonError::into_inner);
            match in_air.get(&key) {
                Some(landing) => landing.clone(),
                None => {
                    let (sender, landing) = watch::channel(None);
                    in_air.insert(key.clone(), landing.clone());
                    let flights = self.in_air.clone();
                    let work = work();
                    tokio::spawn(async move {
                        // Removes the key also when the work panics.
                        let _entry = Entry { flights, key };
                        let result = work.await;
                        sender.send_replace(Some(result));
                    });
                    landing
                }
            }
        };
        let landed = landing.wait_for(Option::is_some).await;
        match landed {
            Ok(result) => result.clone().expect("wait_for returned because the value is there"),
            Err(_) => Err(CriError::Unavailable("the operation was cut off; try again".to_owned())),
        }
    }
}

struct Entry<K: Eq + Hash, V> {
    flights: Arc<Mutex<HashMap<K, Landing<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_second_call_joins_and_a_third_flies_again() {
        let flights = Arc::new(Flights::<&str, u32>::default());
        let runs = Arc::new(AtomicU32::new(0));
        let (open, gate) = watch::channel(false);
        let fly = || {
            let (flights, runs, mut gate) = (flights.clone(), runs.clone(), gate.clone());
            async move {
                flights
                    .join("a", move || async move {
                        let run = runs.fetch_add(1, Ordering::SeqCst);
                        let _ = gate.wait_for(|open| *open).await;
                        Ok(run)
                    })
                    .await
            }
        };
        let first = tokio::spawn(fly());
        let second = tokio::spawn(fly());
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        open.send_replace(true);
        assert_eq!(first.await.unwrap().unwrap(), 0);
        assert_eq!(second.await.unwrap().unwrap(), 0);
        while !flights.in_air.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(fly().await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_does_not_stop_the_work() {
        let flights = Flights::<u8, ()>::default();
        let (done, finished) = tokio::sync::oneshot::channel();
        {
            let call = flights.join(1, move || async move {
                tokio::task::yield_now().await;
                let _ = done.send(());
                Ok(())
            });
            let call = std::pin::pin!(call);
            let _ = futures::poll!(call);
        }
        finished.await.unwrap();
    }
}
