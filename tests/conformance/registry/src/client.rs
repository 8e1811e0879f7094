//! A raw HTTP client: what is asked is what is sent, and nothing is followed or repeated.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::HeaderMap;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(30);
/// What every client of images takes; docker-registry converts or hides what is not in it.
const ACCEPT: (&str, &str) = (
    "accept",
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, */*",
);

/// The registry as a client sees it.
#[derive(Clone, Debug)]
pub struct Registry {
    client: Client<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
}

/// What it said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The question, for messages.
    pub question: String,
    /// How it went.
    pub status: StatusCode,
    /// Everything beside it.
    pub headers: HeaderMap,
    /// The content.
    pub body: Bytes,
}

impl Registry {
    /// The one at an address.
    pub fn new(address: SocketAddr) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), address }
    }

    /// Asks. `target` is a path with a query, or what a `Location` header said.
    ///
    /// # Errors
    /// No answer, or none within half a minute.
    pub async fn ask(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let url =
            if target.starts_with('/') { format!("http://{}{target}", self.address) } else { target.into() };
        let question = format!("{method} {target} {headers:?}");
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into()))?;
        let asked = async {
            let answer = self.client.request(request).await?;
            let (parts, body) = answer.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok(Answer {
                question: question.clone(),
                status: parts.status,
                headers: parts.headers,
                body,
            })
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        answer.with_context(|| format!("{question}: hangs"))?.with_context(|| question.clone())
    }

    /// GET as clients of images do.
    ///
    /// # Errors
    /// As [`Registry::ask`].
    pub async fn get(&self, target: &str) -> anyhow::Result<Answer> {
        self.ask(Method::GET, target, &[ACCEPT], "").await
    }

    /// HEAD as clients of images do.
    ///
    /// # Errors
    /// As [`Registry::ask`].
    pub async fn head(&self, target: &str) -> anyhow::Result<Answer> {
        self.ask(Method::HEAD, target, &[ACCEPT], "").await
    }

    /// Sends the begin of a request whose body ends too early, and closes.
    ///
    /// # Errors
    /// A connection that is refused.
    pub async fn cut(&self, method: &str, target: &str, announced: usize, sent: &[u8]) -> anyhow::Result<()> {
        let path = target.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
        let path = path.unwrap_or(target);
        let mut stream = TcpStream::connect(self.address).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/octet-stream\r\nContent-Length: {announced}\r\n\r\n",
            self.address
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(sent).await?;
        stream.shutdown().await?;
        Ok(())
    }
}

impl Answer {
    /// Fails unless the status is one of these.
    ///
    /// # Errors
    /// Another status.
    pub fn is(self, wanted: &[u16]) -> anyhow::Result<Self> {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(400)]).into_owned();
        anyhow::ensure!(
            wanted.contains(&self.status.as_u16()),
            "{}: {} instead of {wanted:?}: {text}",
            self.question,
            self.status.as_u16()
        );
        Ok(self)
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Fails unless a header says this.
    ///
    /// # Errors
    /// It is missing or says something else.
    pub fn says(self, name: &str, wanted: &str) -> anyhow::Result<Self> {
        let said = self.header(name);
        anyhow::ensure!(said == Some(wanted), "{}: {name} is {said:?}, not {wanted:?}", self.question);
        Ok(self)
    }

    /// Fails unless the content is this.
    ///
    /// # Errors
    /// It is another one.
    pub fn holds(self, wanted: &[u8]) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.body == wanted,
            "{}: {} other bytes instead of {}",
            self.question,
            self.body.len(),
            wanted.len()
        );
        Ok(self)
    }

    /// Where to go on.
    ///
    /// # Errors
    /// It does not say.
    pub fn location(&self) -> anyhow::Result<String> {
        let said = self.header("location");
        Ok(said.with_context(|| format!("{}: no Location", self.question))?.to_owned())
    }

    /// The content as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("{}: no JSON", self.question))
    }

    /// Fails unless the content is an error body with one of these codes ("Error Codes").
    ///
    /// # Errors
    /// Another content.
    pub fn refuses(self, codes: &[&str]) -> anyhow::Result<Self> {
        let body = self.json()?;
        let errors = body.get("errors").and_then(Value::as_array).filter(|errors| !errors.is_empty());
        let errors = errors.with_context(|| format!("{}: no errors in {body}", self.question))?;
        let first = errors[0].get("code").and_then(Value::as_str).unwrap_or_default();
        anyhow::ensure!(codes.contains(&first), "{}: {first:?} instead of {codes:?}", self.question);
        anyhow::ensure!(
            errors.iter().all(|error| error.get("message").is_none_or(Value::is_string)),
            "{}: {body}",
            self.question
        );
        Ok(self)
    }
}

/// A parameter more.
pub fn with(target: &str, parameter: &str) -> String {
    let separator = if target.contains('?') { '&' } else { '?' };
    format!("{target}{separator}{parameter}")
}
