//! Debian's docker-registry on the machine's loopback, with the suite's images in it.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::host::Host;
use crate::images::{Image, digest};

/// Where it listens.
pub const ADDRESS: &str = "127.0.0.1:5000";
/// The same by another name: a registry of its own for whoever pulls.
pub const OTHER_NAME: &str = "localhost:5000";
const READY: Duration = Duration::from_secs(20);

/// Killed on drop.
#[derive(Debug)]
pub struct Registry {
    process: Child,
}

impl Registry {
    /// Starts it and pushes the images. The calling task runs in the machine's network namespace.
    ///
    /// # Errors
    /// What the registry or its start said.
    pub async fn start(host: &Host, images: &[Image]) -> anyhow::Result<Self> {
        let store = host.path("registry");
        std::fs::create_dir(&store)?;
        let config = host.path("registry.yaml");
        // JSON is YAML.
        let text = serde_json::json!({
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": store}, "delete": {"enabled": true}},
            "http": {"addr": ADDRESS},
        });
        std::fs::write(&config, text.to_string())?;
        let words = ["docker-registry", "serve", config.to_str().context("a path in UTF-8")?];
        let registry = Self { process: host.start(&words, &host.path("registry.log"))? };
        let push = Push { client: Client::builder(TokioExecutor::new()).build_http() };
        let end = Instant::now() + READY;
        while push.ask(Method::GET, "/v2/", None, Bytes::new()).await.is_err() {
            anyhow::ensure!(Instant::now() < end, "docker-registry does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for image in images {
            push.image(image).await.with_context(|| format!("failed to push {}", image.repository))?;
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Push {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Push {
    async fn ask(
        &self,
        method: Method,
        target: &str,
        kind: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Option<String>)> {
        let url =
            if target.starts_with('/') { format!("http://{ADDRESS}{target}") } else { target.to_owned() };
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header("Content-Type", kind.unwrap_or("application/octet-stream"))
            .body(Full::new(body))?;
        let answer = self.client.request(request).await?;
        let location =
            answer.headers().get("Location").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let status = answer.status();
        let text = answer.into_body().collect().await?.to_bytes();
        anyhow::ensure!(
            status.is_success() || status == StatusCode::NOT_FOUND,
            "{target}: {status} {}",
            String::from_utf8_lossy(&text)
        );
        Ok((status, location))
    }

    async fn blob(&self, repository: &str, content: Vec<u8>) -> anyhow::Result<()> {
        let digest = digest(&content);
        let known =
            self.ask(Method::HEAD, &format!("/v2/{repository}/blobs/{digest}"), None, Bytes::new()).await?;
        if known.0 == StatusCode::OK {
            return Ok(());
        }
        // Mounted from the repository that has it, where one does.
        let start = format!("/v2/{repository}/blobs/uploads/?mount={digest}&from=busybox");
        let (status, location) = self.ask(Method::POST, &start, None, Bytes::new()).await?;
        if status == StatusCode::CREATED {
            return Ok(());
        }
        let location = location.context("no upload location")?;
        let separator = if location.contains('?') { '&' } else { '?' };
        self.ask(Method::PUT, &format!("{location}{separator}digest={digest}"), None, content.into())
            .await
            .map(drop)
    }

    async fn image(&self, image: &Image) -> anyhow::Result<()> {
        let (config, manifest) = image.documents();
        for content in image.layers.iter().cloned().chain([config]) {
            self.blob(image.repository, content).await?;
        }
        for tag in image.tags {
            let target = format!("/v2/{}/manifests/{tag}", image.repository);
            let kind = Some("application/vnd.docker.distribution.manifest.v2+json");
            self.ask(Method::PUT, &target, kind, manifest.clone().into()).await?;
        }
        Ok(())
    }
}
