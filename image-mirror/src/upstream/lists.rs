//! Lists that upstreams give: asked for once at a time, kept for a while, and as they were last seen when there is no answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orlop_distribution::client::RegistryError as ClientError;

use super::asks::Asks;
use super::{PATIENCE, is_missing};

/// Lists that are kept.
const LIST_LIMIT: usize = 64;

type Known<T> = Arc<Mutex<HashMap<String, (Instant, Arc<Vec<T>>)>>>;

/// Lists by what they are of.
pub(crate) struct Lists<T> {
    freshness: Duration,
    known: Known<T>,
    asks: Asks<Result<Arc<Vec<T>>, ClientError>>,
}

impl<T: Send + Sync + 'static> Lists<T> {
    pub(crate) fn new(freshness: Duration) -> Self {
        Self { freshness, known: Arc::default(), asks: Asks::default() }
    }

    /// The list; none when nobody says anything in time.
    pub(crate) async fn get<F>(
        &self,
        what: &str,
        ask: impl FnOnce() -> F,
    ) -> Option<Result<Arc<Vec<T>>, ClientError>>
    where
        F: Future<Output = Result<Vec<T>, ClientError>> + Send + 'static,
    {
        let last = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(what).cloned();
        if let Some((at, list)) = &last
            && at.elapsed() < self.freshness
        {
            return Some(Ok(list.clone()));
        }
        let (known, name) = (self.known.clone(), what.to_owned());
        let answer = self.asks.once(what, move || {
            let asking = ask();
            async move {
                let list = Arc::new(asking.await?);
                keep(&known, name, &list);
                Ok(list)
            }
        });
        match (tokio::time::timeout(PATIENCE, answer).await, last) {
            (Ok(Ok(Ok(list))), _) => Some(Ok(list)),
            (Ok(Ok(Err(error))), Some((_, list))) if !is_missing(&error) => Some(Ok(list)),
            (Ok(Ok(Err(error))), _) => Some(Err(error)),
            (Ok(Err(_)) | Err(_), last) => last.map(|(_, list)| Ok(list)),
        }
    }
}

fn keep<T>(known: &Known<T>, name: String, list: &Arc<Vec<T>>) {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= LIST_LIMIT && !known.contains_key(&name) {
        let oldest = known.iter().min_by_key(|(_, (at, _))| *at).map(|(name, _)| name.clone());
        oldest.and_then(|name| known.remove(&name));
    }
    known.insert(name, (Instant::now(), list.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_is_kept_and_serves_when_there_is_no_answer() {
        let lists = Lists::new(Duration::from_secs(3600));
        async fn none() -> Result<Vec<u8>, ClientError> {
            Err(ClientError::NotFound { what: "x".to_owned(), host: "r".to_owned() })
        }
        let silence = ClientError::Cut { host: "r".to_owned(), reason: "test".to_owned() };
        assert!(lists.get("a", none).await.unwrap().is_err());
        assert_eq!(*lists.get("a", || async { Ok(vec![1]) }).await.unwrap().unwrap(), [1]);
        assert_eq!(*lists.get("a", || async { Ok(vec![2]) }).await.unwrap().unwrap(), [1], "fresh");
        let old = Lists { freshness: Duration::ZERO, ..lists };
        let error = silence.clone();
        assert_eq!(*old.get("a", || async { Err(error) }).await.unwrap().unwrap(), [1]);
        assert!(old.get("b", || async { Err(silence) }).await.unwrap().is_err());
        assert!(old.get("a", none).await.unwrap().is_err(), "it is gone");
        for number in 0..2 * LIST_LIMIT {
            old.get(&number.to_string(), || async { Ok(vec![3]) }).await.unwrap().unwrap();
        }
        assert!(old.known.lock().unwrap().len() <= LIST_LIMIT);
    }
}
