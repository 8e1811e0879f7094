//! One HTTP exchange with a host, redirects included.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE, HOST, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::error::RegistryError;
use super::health::{Class, Health};
use super::hosts::{Host, is_loopback};
use super::tls::TlsKey;

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Registries redirect blobs once, to their storage.
const REDIRECT_LIMIT: usize = 5;
/// Different TLS settings that are kept.
const CLIENT_LIMIT: usize = 32;
/// Bytes of an error body that are read.
const ERROR_BODY_LIMIT: usize = 16 * 1024;

pub(super) struct Transport {
    clients: Mutex<HashMap<(TlsKey, Duration), HttpClient>>,
    first_byte: Duration,
    pub(super) health: Health,
}

/// A request to one host.
#[derive(Clone, Debug)]
pub(super) struct Call<'a> {
    pub(super) host: &'a Host,
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) connect_timeout: Duration,
}

impl Transport {
    pub(super) fn new(first_byte: Duration, rest_after: u32) -> Self {
        Self { clients: Mutex::default(), first_byte, health: Health::new(rest_after) }
    }

    /// Sends a request and follows redirects. Any status is an answer.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Response<Incoming>, RegistryError> {
        let name = &call.host.authority;
        let protocol = |reason: String| RegistryError::Protocol { host: name.clone(), reason };
        let mut uri: Uri =
            call.url.parse().map_err(|error| protocol(format!("URL {:?}: {error}", call.url)))?;
        let mut headers = call.headers.clone();
        add_headers(&mut headers, &call.host.headers);
        let first = uri.clone();
        for _ in 0..=REDIRECT_LIMIT {
            let response = self.exchange(call, &uri, &headers).await?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| protocol("a redirect without a location".into()))?;
            let next =
                resolve(&uri, location).ok_or_else(|| protocol(format!("a redirect to {location:?}")))?;
            if first.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(protocol(format!("a redirect from https to {next}")));
            }
            if next.scheme() != uri.scheme() || next.authority() != uri.authority() {
                // A body holds a token.
                if !call.body.is_empty() {
                    return Err(protocol(format!("a redirect of a request with content, to {next}")));
                }
                // Whoever is behind the redirect must not learn the credential (RFC 9110 section 15.4).
                headers.remove(AUTHORIZATION);
                headers.remove(COOKIE);
                for (header, _) in &call.host.headers {
                    headers.remove(header.as_str());
                }
            }
            uri = next;
        }
        Err(protocol(format!("more than {REDIRECT_LIMIT} redirects")))
    }

    async fn exchange(
        &self,
        call: &Call<'_>,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, RegistryError> {
        let host = uri.authority().map_or_else(|| call.host.authority.clone(), ToString::to_string);
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers.clone();
        request.headers_mut().remove(HOST);
        let client = self.client(call)?;
        let class = match call.method == Method::GET && uri.path().contains("/manifests/") {
            true => Class::Pull,
            false => Class::Other,
        };
        self.health.admit(&host, class, Instant::now())?;
        let name = host.clone();
        let answer = match tokio::time::timeout(self.first_byte, client.request(request)).await {
            Err(_) => Err(RegistryError::Timeout { host, what: "answer", after: self.first_byte }),
            Ok(Err(error)) if error.is_connect() => {
                Err(RegistryError::Connect { host, reason: chain(&error) })
            }
            Ok(Err(error)) => Err(RegistryError::Cut { host, reason: chain(&error) }),
            Ok(Ok(response)) => Ok(response),
        };
        match &answer {
            Ok(response) => {
                self.health.heed(&name, class, (response.status(), response.headers()), Instant::now());
                // Of the others the body is still to come.
                if call.method == Method::HEAD || !response.status().is_success() {
                    self.health.succeed(&name);
                }
            }
            Err(error) => self.observe_error(&name, error),
        }
        answer
    }

    /// Notes whether the body of an answer came.
    pub(super) fn observe<T>(&self, host: &str, result: &Result<T, RegistryError>) {
        match result {
            Ok(_) => self.health.succeed(host),
            Err(error) => self.observe_error(host, error),
        }
    }

    /// Silence costs those who wait for it; a quick refusal costs nobody.
    pub(super) fn observe_error(&self, host: &str, error: &RegistryError) {
        if matches!(error, RegistryError::Connect { .. } | RegistryError::Timeout { .. }) {
            self.health.fail(host, error, Instant::now(), rand::random());
        }
    }

    fn client(&self, call: &Call<'_>) -> Result<HttpClient, RegistryError> {
        let key = (TlsKey::of(call.host), call.connect_timeout);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let tls = key
            .0
            .config()
            .map_err(|reason| RegistryError::Connect { host: call.host.authority.clone(), reason })?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(call.connect_timeout));
        http.set_keepalive(Some(Duration::from_secs(30)));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(http);
        let client: HttpClient = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(8)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .build(connector);
        if clients.len() >= CLIENT_LIMIT {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

fn add_headers(headers: &mut HeaderMap, more: &[(String, String)]) {
    headers.entry(http::header::USER_AGENT).or_insert(HeaderValue::from_static("orlop"));
    for (name, value) in more {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            headers.append(name, value);
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// An absolute or relative reference against its base (RFC 3986 section 5), as far as servers use them.
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with("//") {
        return format!("{}:{location}", base.scheme_str()?).parse().ok();
    }
    if location.contains("://") {
        return location.parse().ok().filter(|uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")));
    }
    let root = format!("{}://{}", base.scheme_str()?, base.authority()?);
    if location.starts_with('/') {
        return format!("{root}{location}").parse().ok();
    }
    let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
    format!("{root}{directory}/{location}").parse().ok()
}

/// Whether a secret may travel there: TLS, or the machine itself.
pub(super) fn is_private(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
        || uri.authority().is_some_and(|authority| is_loopback(authority.as_str()))
}

/// The causes of an error, innermost last, without repetition.
pub(super) fn chain(error: &ClientError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// Reads a body with a bound on size and time.
pub(super) async fn read_body(
    host: &str,
    response: Response<Incoming>,
    limit: usize,
    stall: Duration,
) -> Result<Vec<u8>, RegistryError> {
    let mut body = response.into_body();
    let mut content = Vec::new();
    loop {
        let frame = match tokio::time::timeout(stall, body.frame()).await {
            Err(_) => {
                return Err(RegistryError::Timeout { host: host.to_owned(), what: "data", after: stall });
            }
            Ok(None) => return Ok(content),
            Ok(Some(Err(error))) => {
                return Err(RegistryError::Cut { host: host.to_owned(), reason: error.to_string() });
            }
            Ok(Some(Ok(frame))) => frame,
        };
        if let Ok(data) = frame.into_data() {
            if content.len() + data.len() > limit {
                let reason = format!("a document of more than {limit} bytes");
                return Err(RegistryError::Protocol { host: host.to_owned(), reason });
            }
            content.extend_from_slice(&data);
        }
    }
}

/// Turns an answer that is no success into an error with the registry's own words.
pub(super) async fn failure(
    host: &str,
    what: &str,
    response: Response<Incoming>,
    stall: Duration,
) -> RegistryError {
    let status = response.status();
    let retry_after = response.headers().get(http::header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| retry_after_of(value.to_str().ok()?));
    let body = read_body(host, response, ERROR_BODY_LIMIT, stall.min(Duration::from_secs(5)))
        .await
        .unwrap_or_default();
    let reason =
        words(&body).unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given").to_owned());
    let host = host.to_owned();
    match status.as_u16() {
        404 => RegistryError::NotFound { what: what.to_owned(), host },
        401 | 403 => RegistryError::Unauthorized { host, reason },
        429 => RegistryError::RateLimited { host, reason, retry_after },
        status => RegistryError::Status { host, status, reason, retry_after },
    }
}

/// Seconds, or a date (RFC 9110 section 10.2.3).
pub(super) fn retry_after_of(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    Some(Duration::try_from(until.duration_since(jiff::Timestamp::now())).unwrap_or(Duration::ZERO))
}

/// The first message of an error document (distribution-spec, "Error Codes").
fn words(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let document: Document = serde_json::from_slice(body).ok()?;
    let item = document.errors.into_iter().next()?;
    let text = if item.message.is_empty() { item.code } else { item.message };
    Some(text.chars().filter(|c| !c.is_control()).take(300).collect())
        .filter(|text: &String| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base: Uri = "https://r:5000/v2/x/blobs/y?ns=z".parse().unwrap();
        for (location, expected) in [
            ("https://s/blob?sig=1", "https://s/blob?sig=1"),
            ("//s/blob", "https://s/blob"),
            ("/blob", "https://r:5000/blob"),
            ("blob", "https://r:5000/v2/x/blobs/blob"),
        ] {
            assert_eq!(resolve(&base, location).unwrap().to_string(), expected);
        }
        assert!(resolve(&base, "file:///etc/passwd").is_none());
    }

    #[test]
    fn when_to_ask_again() {
        assert_eq!(retry_after_of("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after_of("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(
            retry_after_of("Wed, 21 Oct 2150 07:28:00 GMT").is_some_and(|after| after.as_secs() > 1_000_000)
        );
        assert_eq!(retry_after_of("soon"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_it_panic(text in ".{0,60}") {
            let base: Uri = "https://r:5000/v2/x/blobs/y".parse().unwrap();
            let _ = (retry_after_of(&text), resolve(&base, &text), words(text.as_bytes()));
        }
    }

    #[test]
    fn the_words_of_a_registry() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\u0007 unknown"}]}"#;
        assert_eq!(words(body).unwrap(), "manifest unknown");
        assert_eq!(words(b"<html>"), None);
    }
}
