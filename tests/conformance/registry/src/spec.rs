//! Specs and how they are run: several at a time on one registry, each in repositories of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::future::LocalBoxFuture;
use hyper::Method;

use crate::client::{Answer, Registry, with};
use crate::content::{IMAGE, Image, digest};
use crate::differences;
use crate::subject::{Kind, Subject};

/// A spec that takes longer than this hangs.
const SPEC_LIMIT: Duration = Duration::from_secs(120);
const AT_ONCE: usize = 4;

/// One promise of the specification.
#[derive(Clone, Copy)]
pub struct Spec {
    /// The function's name.
    pub name: &'static str,
    /// What it does.
    pub run: for<'a> fn(&'a Test) -> LocalBoxFuture<'a, anyhow::Result<()>>,
}

/// The specs of a module, by the names of their functions.
#[macro_export]
macro_rules! specs {
    ($($name:ident),* $(,)?) => {
        /// What is promised here.
        pub const SPECS: &[$crate::spec::Spec] = &[$($crate::spec::Spec {
            name: stringify!($name),
            run: |test| Box::pin($name(test)),
        }),*];
    };
}

/// What a spec works with.
#[derive(Debug)]
pub struct Test {
    /// The registry.
    pub registry: Registry,
    /// A repository that no other spec uses.
    pub repository: String,
}

impl Test {
    /// A path in the spec's repository.
    pub fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.repository)
    }

    /// Another repository of the spec.
    #[must_use]
    pub fn other(&self) -> Self {
        Self { registry: self.registry.clone(), repository: format!("{}/other", self.repository) }
    }

    /// Begins an upload; where it goes on.
    ///
    /// # Errors
    /// It was refused.
    pub async fn begin(&self) -> anyhow::Result<String> {
        let begun = self.registry.ask(Method::POST, &self.path("blobs/uploads/"), &[], "").await?;
        begun.is(&[202])?.location()
    }

    /// Pushes a blob; its digest.
    ///
    /// # Errors
    /// It was refused.
    pub async fn push_blob(&self, content: &[u8]) -> anyhow::Result<String> {
        let digest = digest(content);
        let location = self.begin().await?;
        let target = with(&location, &format!("digest={digest}"));
        let headers = [("content-type", "application/octet-stream")];
        self.registry.ask(Method::PUT, &target, &headers, content.to_vec()).await?.is(&[201])?;
        Ok(digest)
    }

    /// Puts a manifest, whatever comes.
    ///
    /// # Errors
    /// No answer.
    pub async fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: impl Into<bytes::Bytes>,
    ) -> anyhow::Result<Answer> {
        let path = self.path(&format!("manifests/{reference}"));
        self.registry.ask(Method::PUT, &path, &[("content-type", media_type)], bytes).await
    }

    /// Pushes the blobs of an image.
    ///
    /// # Errors
    /// One was refused.
    pub async fn push_blobs(&self, image: &Image) -> anyhow::Result<()> {
        for blob in &image.blobs {
            self.push_blob(blob).await?;
        }
        Ok(())
    }

    /// Pushes an image whole; its digest.
    ///
    /// # Errors
    /// Something was refused.
    pub async fn push(&self, image: &Image, reference: &str) -> anyhow::Result<String> {
        self.push_blobs(image).await?;
        self.put_manifest(reference, IMAGE, image.bytes()).await?.is(&[201])?;
        Ok(image.digest())
    }

    /// DELETE of a path in the repository.
    ///
    /// # Errors
    /// No answer.
    pub async fn delete(&self, rest: &str) -> anyhow::Result<Answer> {
        self.registry.ask(Method::DELETE, &self.path(rest), &[], "").await
    }

    /// GET of a path in the repository.
    ///
    /// # Errors
    /// No answer.
    pub async fn get(&self, rest: &str) -> anyhow::Result<Answer> {
        self.registry.get(&self.path(rest)).await
    }

    /// HEAD of a path in the repository.
    ///
    /// # Errors
    /// No answer.
    pub async fn head(&self, rest: &str) -> anyhow::Result<Answer> {
        self.registry.head(&self.path(rest)).await
    }
}

/// Runs the specs of one section on a registry of its own.
///
/// # Panics
/// When a spec fails that is not among the known differences, or one passes that is.
pub fn run_section(section: &'static str, specs: &'static [Spec], stand_in: &Path) {
    let kind = Kind::chosen().expect("a known subject");
    let subject = Subject::start(kind, stand_in).expect("a registry that runs");
    let filter = std::env::var("SPEC").unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let verdicts: Vec<(&str, anyhow::Result<()>)> = runtime.block_on(
        futures::stream::iter(specs.iter().filter(|spec| spec.name.contains(&filter)))
            .map(|spec| judge(section, spec, &subject))
            .buffered(AT_ONCE)
            .collect(),
    );
    let failures = report(section, kind, verdicts);
    if !failures.is_empty() {
        eprintln!("--- the registry's last words\n{}", subject.log());
    }
    assert!(failures.is_empty(), "{section}:\n{}", failures.join("\n"));
}

async fn judge<'a>(section: &str, spec: &'a Spec, subject: &Subject) -> (&'a str, anyhow::Result<()>) {
    let name = format!("conformance/{section}/{}", spec.name.replace('_', "-"));
    let test = Test { registry: Registry::new(subject.address), repository: name };
    let ran = tokio::time::timeout(SPEC_LIMIT, (spec.run)(&test)).await;
    (spec.name, ran.context("it hangs").and_then(|result| result))
}

/// Prints every verdict that is not plain; gives those that count as failures.
fn report(section: &str, kind: Kind, verdicts: Vec<(&str, anyhow::Result<()>)>) -> Vec<String> {
    let mut failures = Vec::new();
    let (mut passed, mut differing) = (0, 0);
    for (name, verdict) in verdicts {
        match (verdict, differences::of(kind, section, name)) {
            (Ok(()), None) => passed += 1,
            (Ok(()), Some(_)) => {
                failures.push(format!("{name}: passes, but is in the table of differences"));
            }
            (Err(error), Some(known)) => {
                differing += 1;
                eprintln!("DIFF {section}::{name}: {} ({error:#})", known.reason);
            }
            (Err(error), None) => failures.push(format!("{name}: {error:#}")),
        }
    }
    eprintln!(
        "{section} on {kind:?}: {passed} passed, {} failed, {differing} known differences",
        failures.len()
    );
    failures
}
