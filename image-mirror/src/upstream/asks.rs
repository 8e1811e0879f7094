//! However many clients want to know the same at the same time, the upstream is asked once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Questions that are under way at the same time.
const ASK_LIMIT: usize = 256;

/// Questions under way, by what they are about.
pub(crate) struct Asks<T> {
    running: Arc<Mutex<HashMap<String, watch::Receiver<Option<T>>>>>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unasked {
    /// Too many others are under way.
    Busy,
    /// The one who asked failed.
    Failed,
}

impl<T> Default for Asks<T> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Asks<T> {
    /// Joins the question `what`, or puts it by `ask`, which goes on when this call is dropped.
    pub(crate) async fn once<F>(&self, what: &str, ask: impl FnOnce() -> F) -> Result<T, Unasked>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut answer = self.join(what, ask)?;
        let said = answer.wait_for(Option::is_some).await.map_err(|_| Unasked::Failed)?;
        said.clone().ok_or(Unasked::Failed)
    }

    fn join<F>(&self, what: &str, ask: impl FnOnce() -> F) -> Result<watch::Receiver<Option<T>>, Unasked>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = running.get(what) {
            return Ok(answer.clone());
        }
        if running.len() >= ASK_LIMIT {
            return Err(Unasked::Busy);
        }
        let (sender, answer) = watch::channel(None);
        running.insert(what.to_owned(), answer.clone());
        drop(running);
        let (entry, asking) = (Entry { running: self.running.clone(), what: what.to_owned() }, ask());
        // Bounded by ASK_LIMIT.
        tokio::spawn(async move {
            let said = asking.await;
            // First out of the map: whoever comes now asks anew.
            drop(entry);
            sender.send_replace(Some(said));
        });
        Ok(answer)
    }
}

/// Takes a question out of the map, also when its task panics.
struct Entry<T> {
    running: Arc<Mutex<HashMap<String, watch::Receiver<Option<T>>>>>,
    what: String,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.what);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn one_question_many_answers() {
        let (asks, asked, gate) = (Asks::default(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let ask = || {
            let (asked, gate) = (asked.clone(), gate.clone());
            async move {
                asked.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                7
            }
        };
        let answers = (0..50).map(|_| asks.once("x", ask));
        let open = async { gate.notify_one() };
        let (answers, ()) = futures::join!(futures::future::join_all(answers), open);
        assert!(answers.iter().all(|answer| *answer == Ok(7)));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        gate.notify_one();
        assert_eq!(asks.once("x", ask).await, Ok(7), "the next one is asked again");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_question_that_fails_is_over() {
        let asks: Asks<u8> = Asks::default();
        assert_eq!(asks.once("x", || async { panic!("as a test") }).await, Err(Unasked::Failed));
        assert_eq!(asks.once("x", || async { 1 }).await, Ok(1));
    }

    #[tokio::test]
    async fn questions_are_bounded() {
        let asks: Asks<u8> = Asks::default();
        let waiting: Vec<_> = (0..ASK_LIMIT)
            .map(|number| asks.join(&number.to_string(), std::future::pending).unwrap())
            .collect();
        assert_eq!(asks.once("more", || async { 1 }).await, Err(Unasked::Busy));
        assert_eq!(waiting.len(), ASK_LIMIT);
    }
}
