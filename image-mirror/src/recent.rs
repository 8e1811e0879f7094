//! Small contents that were pulled lately, whole in memory with their headers ready.
//!
//! Invariant: an entry is good only for the generation of the records that it was made in: after any change the records are asked
//! again, so that nothing is answered that was deleted, moved or evicted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use orlop_types::Digest;

/// Bytes of contents in one of the two halves.
const HALF_BYTES: usize = 4 << 20;
/// What an entry costs beside its content.
const ENTRY_BYTES: usize = 1024;
/// A larger content is not worth its place.
const CONTENT_BYTES: usize = 64 << 10;

/// A content and what is said of it.
pub(crate) struct Kept {
    generation: u64,
    pub(crate) digest: Digest,
    pub(crate) etag: String,
    headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Kept {
    pub(crate) fn new(generation: u64, digest: &Digest, media_type: &str, bytes: Vec<u8>) -> Self {
        let etag = format!("\"{digest}\"");
        let mut headers = HeaderMap::with_capacity(4);
        for (name, value) in [
            (header::CONTENT_TYPE, media_type),
            (header::CONTENT_LENGTH, &bytes.len().to_string()),
            (header::HeaderName::from_static("docker-content-digest"), digest.as_str()),
            (header::ETAG, &etag),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        Self { generation, digest: digest.clone(), etag, headers, bytes: bytes.into() }
    }

    /// 200 with the whole content, or its headers alone.
    pub(crate) fn whole(&self, head: bool) -> Response<Body> {
        let body = if head { Body::empty() } else { Body::from(self.bytes.clone()) };
        let mut response = Response::new(body);
        *response.headers_mut() = self.headers.clone();
        response
    }
}

/// Two halves: what is used is young; when the young are too many they become the old, and the old go.
#[derive(Default)]
pub(crate) struct Recent {
    halves: Mutex<Halves>,
}

#[derive(Default)]
struct Halves {
    young: HashMap<String, Arc<Kept>>,
    old: HashMap<String, Arc<Kept>>,
    young_bytes: usize,
}

impl Recent {
    /// What is known under a key, unless the records have changed since.
    pub(crate) fn get(&self, key: &str, generation: u64) -> Option<Arc<Kept>> {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = halves.young.get(key) {
            return Some(kept.clone()).filter(|kept| kept.generation == generation);
        }
        let (key, kept) = halves.old.remove_entry(key)?;
        if kept.generation != generation {
            return None;
        }
        halves.insert(key, kept.clone());
        Some(kept)
    }

    pub(crate) fn keep(&self, key: String, kept: &Arc<Kept>) {
        if kept.bytes.len() <= CONTENT_BYTES {
            self.halves.lock().unwrap_or_else(PoisonError::into_inner).insert(key, kept.clone());
        }
    }

    /// Whether a content of that size would be kept.
    pub(crate) fn takes(size: u64) -> bool {
        size <= CONTENT_BYTES as u64
    }
}

impl Halves {
    fn insert(&mut self, key: String, kept: Arc<Kept>) {
        let cost = |kept: &Kept| kept.bytes.len() + ENTRY_BYTES;
        self.young_bytes += cost(&kept);
        if let Some(before) = self.young.insert(key, kept) {
            self.young_bytes -= cost(&before);
        }
        if self.young_bytes > HALF_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(generation: u64, length: usize) -> Arc<Kept> {
        let bytes = vec![7; length];
        Arc::new(Kept::new(generation, &Digest::sha256(&bytes), "text/plain", bytes))
    }

    #[test]
    fn an_entry_is_good_for_its_generation_alone() {
        let recent = Recent::default();
        recent.keep("a".to_owned(), &kept(1, 10));
        assert!(recent.get("a", 1).is_some() && recent.get("a", 2).is_none() && recent.get("b", 1).is_none());
        recent.keep("a".to_owned(), &kept(2, 10));
        assert!(recent.get("a", 2).is_some());
        recent.keep("large".to_owned(), &kept(2, CONTENT_BYTES + 1));
        assert!(recent.get("large", 2).is_none());
        assert!(Recent::takes(CONTENT_BYTES as u64) && !Recent::takes(CONTENT_BYTES as u64 + 1));
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let recent = Recent::default();
        recent.keep("used".to_owned(), &kept(1, 100));
        for number in 0..1000 {
            recent.keep(number.to_string(), &kept(1, CONTENT_BYTES));
            assert!(recent.get("used", 1).is_some(), "{number}");
            let halves = recent.halves.lock().unwrap();
            let sum =
                |half: &HashMap<String, Arc<Kept>>| half.values().map(|kept| kept.bytes.len()).sum::<usize>();
            assert!(sum(&halves.young) + sum(&halves.old) <= 2 * HALF_BYTES + CONTENT_BYTES);
        }
        assert!(recent.get("0", 1).is_none());
        // A name that is kept again costs once.
        for _ in 0..10_000 {
            recent.keep("same".to_owned(), &kept(1, 2000));
        }
        assert!(recent.get("used", 1).is_some());
    }
}
