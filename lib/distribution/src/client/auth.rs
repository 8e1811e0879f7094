//! Bearer tokens and basic authentication (distribution spec/auth/token.md, spec/auth/oauth.md).

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use orlop_types::Reference;
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::error::RegistryError;
use super::hosts::Host;
use super::transport::{Call, failure, is_private, read_body};
use super::{Inner, RegistryClient};
use crate::Credential;

/// Headers that are kept: one per host, repository and account.
const TOKEN_LIMIT: usize = 512;
/// A token service's answer.
const TOKEN_BODY_LIMIT: usize = 64 * 1024;

#[derive(Default)]
pub(super) struct Tokens {
    headers: Mutex<HashMap<TokenKey, (HeaderValue, Instant)>>,
    hasher: RandomState,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    host: String,
    repository: String,
    /// Of the credential; its text need not stay in memory here.
    account: u64,
}

impl Tokens {
    fn key(&self, host: &Host, repository: &str, credential: Option<&Credential>) -> TokenKey {
        let account = credential.map_or(0, |credential| self.hasher.hash_one(credential));
        TokenKey { host: host.url.clone(), repository: repository.to_owned(), account }
    }

    fn get(&self, key: &TokenKey) -> Option<HeaderValue> {
        let headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        headers.get(key).filter(|(_, until)| *until > Instant::now()).map(|(header, _)| header.clone())
    }

    fn put(&self, key: TokenKey, header: HeaderValue, lifetime: Duration) {
        let mut headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        if headers.len() >= TOKEN_LIMIT {
            let now = Instant::now();
            headers.retain(|_, (_, until)| *until > now);
        }
        if headers.len() < TOKEN_LIMIT {
            headers.insert(key, (header, Instant::now() + lifetime));
        }
    }

    fn forget(&self, key: &TokenKey) {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[derive(Deserialize)]
struct TokenDocument {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// The part of a credential that a host may see.
fn for_host<'a>(host: &Host, credential: Option<&'a Credential>) -> Option<&'a Credential> {
    let credential = credential.filter(|credential| !credential.is_empty())?;
    if credential.server_address.is_empty() {
        return Some(credential).filter(|_| host.is_own);
    }
    let address = credential.server_address.as_str();
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let address = address.split('/').next().unwrap_or_default();
    // Docker's configuration names the hub by its index.
    let is_hub = matches!(address, "index.docker.io" | "docker.io" | "registry-1.docker.io");
    let matches = address == host.authority || (is_hub && host.authority == "registry-1.docker.io");
    Some(credential).filter(|_| matches)
}

impl RegistryClient {
    /// Sends a request; when the host wants authorization, gets it and sends the request once more.
    pub(super) async fn send_authorized(
        &self,
        mut call: Call<'_>,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let Inner { transport, tokens, keyring, config } = &*self.inner;
        let repository = reference.repository();
        let known = match credential {
            Some(_) => None,
            None => keyring.credential(reference.registry()).await,
        };
        // It is for the server that the configuration gives the registry.
        let server = config.servers.get(reference.registry()).cloned().unwrap_or_default();
        let known = known.map(|known| Credential { server_address: server, ..known });
        let credential = for_host(call.host, credential.or(known.as_ref()));
        let key = tokens.key(call.host, repository, credential);
        if let Some(header) = tokens.get(&key) {
            call.headers.insert(AUTHORIZATION, header);
        } else if let Some(token) =
            credential.map(|credential| &credential.registry_token).filter(|token| !token.is_empty())
        {
            call.headers.insert(AUTHORIZATION, secret(&call.host.authority, &format!("Bearer {token}"))?);
        }
        let response = transport.send(&call).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        tokens.forget(&key);
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let Some(challenge) = challenge::parse(challenges.iter().filter_map(|value| value.to_str().ok()))
        else {
            return Ok(response);
        };
        let Some((header, lifetime)) = self.answer(&call, &challenge, repository, credential).await? else {
            return Ok(response);
        };
        tokens.put(key, header.clone(), lifetime);
        call.headers.insert(AUTHORIZATION, header);
        transport.send(&call).await
    }

    async fn answer(
        &self,
        call: &Call<'_>,
        challenge: &Challenge,
        repository: &str,
        credential: Option<&Credential>,
    ) -> Result<Option<(HeaderValue, Duration)>, RegistryError> {
        match challenge {
            Challenge::Basic => {
                let Some(credential) = credential.filter(|credential| !credential.username.is_empty()) else {
                    return Ok(None);
                };
                let header = secret(&call.host.authority, &basic(credential))?;
                Ok(Some((header, Duration::from_secs(3600))))
            }
            Challenge::Bearer { realm, service, scope } => {
                let scope = scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
                self.fetch_token(call, realm, service.as_deref(), &scope, credential).await.map(Some)
            }
        }
    }

    async fn fetch_token(
        &self,
        call: &Call<'_>,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credential: Option<&Credential>,
    ) -> Result<(HeaderValue, Duration), RegistryError> {
        let host = &call.host.authority;
        let protocol = |reason: String| RegistryError::Protocol { host: host.clone(), reason };
        let uri: http::Uri = realm.parse().map_err(|_| protocol(format!("token realm {realm:?}")))?;
        let plain_registry = call.url.starts_with("http://");
        let credential = credential
            .filter(|credential| !credential.username.is_empty() || !credential.identity_token.is_empty());
        // A registry on TLS must not lure a password into the clear.
        if credential.is_some() && !is_private(&uri) && !plain_registry {
            return Err(protocol(format!(
                "token realm {realm:?} is not https, the credential is not sent there"
            )));
        }
        let mut token_call = Call {
            host: call.host,
            method: Method::GET,
            url: String::new(),
            headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]),
            body: Bytes::new(),
            connect_timeout: call.connect_timeout,
        };
        let mut query: Vec<(&str, &str)> = service.iter().map(|service| ("service", *service)).collect();
        query.extend(scope.split(' ').filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope)));
        match credential.filter(|credential| !credential.identity_token.is_empty()) {
            Some(credential) => {
                query.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "orlop"),
                    ("refresh_token", credential.identity_token.as_str()),
                ]);
                token_call.method = Method::POST;
                token_call.url = realm.to_owned();
                token_call.body = Bytes::from(form(&query));
                token_call
                    .headers
                    .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            }
            None => {
                if let Some(credential) = credential {
                    query.push(("account", &credential.username));
                    token_call.headers.insert(AUTHORIZATION, secret(host, &basic(credential))?);
                }
                let separator = if realm.contains('?') { '&' } else { '?' };
                token_call.url = format!("{realm}{separator}{}", form(&query));
            }
        }
        let stall = self.inner.config.stall_timeout;
        let response = self.inner.transport.send(&token_call).await?;
        let name = uri.authority().map_or_else(|| host.clone(), ToString::to_string);
        if !response.status().is_success() {
            return Err(failure(&name, "token", response, stall).await);
        }
        let body = read_body(&name, response, TOKEN_BODY_LIMIT, stall).await;
        self.inner.transport.observe(&name, &body);
        let body = body?;
        let document: TokenDocument =
            serde_json::from_slice(&body).map_err(|error| protocol(format!("token document: {error}")))?;
        let token = document.token.or(document.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| protocol("a token document without a token".into()))?;
        // Without a lifetime it is 60 seconds (token.md, "expires_in"); a little is taken off for clocks and travel.
        let lifetime = Duration::from_secs(document.expires_in.unwrap_or(60).clamp(10, 86_400));
        Ok((secret(host, &format!("Bearer {token}"))?, lifetime.mul_f64(0.8)))
    }
}

fn basic(credential: &Credential) -> String {
    let pair = format!("{}:{}", credential.username, credential.password);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

fn secret(host: &str, text: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| RegistryError::Protocol {
        host: host.to_owned(),
        reason: "a credential or token that does not fit into a header".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// `application/x-www-form-urlencoded`.
fn form(pairs: &[(&str, &str)]) -> String {
    let encode = |text: &str| {
        let mut out = String::with_capacity(text.len());
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    out.push(char::from(byte))
                }
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
        out
    };
    pairs
        .iter()
        .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
        .collect::<Vec<_>>()
        .join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::plan_hosts;

    #[test]
    fn a_credential_goes_to_its_own_host_only() {
        let hosts = plan_hosts("docker.io", None, Some("https://mirror.example")).unwrap();
        let mut credential = Credential::basic("user", "secret");
        assert!(for_host(&hosts[0], Some(&credential)).is_none());
        assert!(for_host(&hosts[1], Some(&credential)).is_some());
        credential.server_address = "https://index.docker.io/v1/".to_owned();
        assert!(for_host(&hosts[0], Some(&credential)).is_none());
        assert!(for_host(&hosts[1], Some(&credential)).is_some());
        credential.server_address = "mirror.example".to_owned();
        assert!(for_host(&hosts[0], Some(&credential)).is_some());
        assert!(for_host(&hosts[1], Some(&credential)).is_none());
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(
            form(&[("scope", "repository:a/b:pull"), ("x", "é&=")]),
            "scope=repository%3Aa%2Fb%3Apull&x=%C3%A9%26%3D"
        );
    }
}
