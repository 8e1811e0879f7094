//! Service account tokens bound to a pod (TokenRequest), kept until 80 % of their life or a day has passed (KEP-1205).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::core::v1 as core;
use kube::api::PostParams;

use crate::pod::model;

const MAX_AGE_HOURS: i64 = 24;
/// Tokens kept; a node's pods need a few each.
const CACHE_LIMIT: usize = 4096;

/// Pod UID, audience and seconds asked for.
type Key = (String, String, i64);

struct Entry {
    token: String,
    refresh_at: Timestamp,
    expires_at: Timestamp,
}

/// The tokens of this node's pods.
pub(crate) struct Tokens {
    client: kube::Client,
    cache: Mutex<BTreeMap<Key, Entry>>,
}

impl Tokens {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, cache: Mutex::default() }
    }

    /// A token that is valid now; asks for a new one when the old one ages.
    pub(crate) async fn get(
        &self,
        pod: &core::Pod,
        source: &core::ServiceAccountTokenProjection,
    ) -> Result<String, kube::Error> {
        let seconds = source.expiration_seconds.unwrap_or(3600);
        let audience = source.audience.clone().unwrap_or_default();
        let key = (model::uid(pod).to_owned(), audience.clone(), seconds);
        let now = Timestamp::now();
        let known = {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.get(&key).map(|entry| (entry.token.clone(), entry.refresh_at, entry.expires_at))
        };
        if let Some((token, refresh_at, _)) = &known
            && now < *refresh_at
        {
            return Ok(token.clone());
        }
        match self.request(pod, &audience, seconds).await {
            Ok(fresh) => Ok(self.keep(key, fresh, now)),
            Err(error) => match known {
                // An aged token is better than none while the API server is away.
                Some((token, _, expires_at)) if now < expires_at => Ok(token),
                _ => Err(error),
            },
        }
    }

    async fn request(
        &self,
        pod: &core::Pod,
        audience: &str,
        seconds: i64,
    ) -> Result<authentication::TokenRequestStatus, kube::Error> {
        let account = model::spec(pod).service_account_name.clone().unwrap_or_else(|| "default".to_owned());
        let request = authentication::TokenRequest {
            spec: Some(authentication::TokenRequestSpec {
                audiences: (!audience.is_empty()).then(|| vec![audience.to_owned()]),
                bound_object_ref: Some(authentication::BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(model::name(pod).to_owned()),
                    uid: Some(model::uid(pod).to_owned()),
                }),
                expiration_seconds: Some(seconds),
            }),
            ..Default::default()
        };
        let accounts =
            kube::Api::<core::ServiceAccount>::namespaced(self.client.clone(), model::namespace(pod));
        let answer = accounts.create_token_request(&account, &PostParams::default(), &request).await?;
        answer.status.ok_or_else(|| kube::Error::Service("the API server's answer holds no token".into()))
    }

    fn keep(&self, key: Key, status: authentication::TokenRequestStatus, now: Timestamp) -> String {
        let token = status.token.unwrap_or_default();
        let expires_at = status.expiration_timestamp.map_or(now, |time| time.0);
        let life = expires_at.duration_since(now);
        let refresh = (life * 4 / 5).min(SignedDuration::from_hours(MAX_AGE_HOURS));
        let entry = Entry { token: token.clone(), refresh_at: now + refresh, expires_at };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_LIMIT {
            cache.retain(|_, entry| entry.expires_at > now);
        }
        if cache.len() < CACHE_LIMIT {
            cache.insert(key, entry);
        }
        token
    }

    /// Forgets a pod's tokens.
    pub(crate) fn forget(&self, uid: &str) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).retain(|(pod, ..), _| pod != uid);
    }
}
