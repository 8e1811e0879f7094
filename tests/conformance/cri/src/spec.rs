//! Specs and how they are run: several at a time on one subject, each with pods and files of its own that are removed after it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::future::LocalBoxFuture;
use orlop_cri::v1;

use crate::client::{Cri, Exec, code, image_spec};
use crate::differences::{self, Difference};
use crate::host::Host;
use crate::registry::ADDRESS;
use crate::subject::{Kind, Subject};

/// A spec that takes longer than this hangs.
const SPEC_LIMIT: Duration = Duration::from_secs(120);
pub(crate) const EVENTUALLY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const EXEC_SECONDS: i64 = 60;

/// One promise of the interface.
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

/// Why a spec says nothing on this machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// Ends a spec that this machine cannot run.
pub fn skip<T>(why: impl Into<String>) -> anyhow::Result<T> {
    Err(Skip(why.into()).into())
}

/// A pod that a spec made.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// What was asked for.
    pub config: v1::PodSandboxConfig,
}

impl Pod {
    /// A container's log.
    pub fn log(&self, name: &str) -> PathBuf {
        PathBuf::from(&self.config.log_directory).join(name)
    }
}

/// What a spec works with.
pub struct Test {
    /// The runtime.
    pub cri: Cri,
    subject: Arc<Subject>,
    name: String,
    pods: Mutex<Vec<String>>,
    made: Mutex<u32>,
}

impl Test {
    /// Whose runtime it is.
    pub fn kind(&self) -> Kind {
        self.subject.kind
    }

    /// The machine.
    pub fn host(&self) -> &Host {
        &self.subject.host
    }

    /// A directory of the spec's own, shared with the subject.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.host().path("specs").join(&self.name).join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// A name that no other spec uses.
    pub fn unique(&self, what: &str) -> String {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        *made += 1;
        format!("{what}-{}-{made}", self.name.replace('_', "-"))
    }

    /// A pod without special wishes, as a kubelet asks for one.
    pub fn pod_config(&self) -> v1::PodSandboxConfig {
        let name = self.unique("pod");
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.clone(),
                uid: format!("uid-{name}"),
                namespace: "conformance".to_owned(),
                attempt: 0,
            }),
            // A hostname has at most 63 characters (RFC 1123).
            hostname: name[name.len().saturating_sub(50)..].trim_start_matches('-').to_owned(),
            log_directory: self.host().path("logs").join(&name).to_string_lossy().into_owned(),
            labels: HashMap::from([("spec".to_owned(), name.clone())]),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: self.host().pod_cgroup(&name),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Notes a pod that is to be removed after the spec.
    pub fn remember(&self, id: &str) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    /// Runs a pod.
    ///
    /// # Errors
    /// RunPodSandbox's.
    pub async fn run_pod(&self, config: v1::PodSandboxConfig) -> anyhow::Result<Pod> {
        if !config.log_directory.is_empty() {
            std::fs::create_dir_all(&config.log_directory)?;
        }
        let id = self.cri.run_pod(config.clone()).await?;
        self.remember(&id);
        Ok(Pod { id, config })
    }

    /// Runs a pod without special wishes.
    ///
    /// # Errors
    /// RunPodSandbox's.
    pub async fn pod(&self) -> anyhow::Result<Pod> {
        self.run_pod(self.pod_config()).await
    }

    /// Runs a pod with other namespaces.
    ///
    /// # Errors
    /// RunPodSandbox's.
    pub async fn pod_with(&self, options: v1::NamespaceOption) -> anyhow::Result<Pod> {
        let mut config = self.pod_config();
        security_of_pod(&mut config).namespace_options = Some(options);
        self.run_pod(config).await
    }

    /// Runs a pod whose containers may be privileged.
    ///
    /// # Errors
    /// RunPodSandbox's.
    pub async fn privileged_pod(&self) -> anyhow::Result<Pod> {
        let mut config = self.pod_config();
        security_of_pod(&mut config).privileged = true;
        self.run_pod(config).await
    }

    /// A container of busybox, in the namespaces of its pod.
    pub fn container_config(&self, pod: &Pod, command: &[&str]) -> v1::ContainerConfig {
        let name = self.unique("container");
        let options = pod
            .config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|context| context.namespace_options.clone());
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.clone(), attempt: 0 }),
            image: Some(image_spec(&image("busybox"))),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: options,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Creates a container.
    ///
    /// # Errors
    /// CreateContainer's.
    pub async fn create(&self, pod: &Pod, config: v1::ContainerConfig) -> anyhow::Result<String> {
        self.cri.create(&pod.id, &pod.config, config).await
    }

    /// Creates and starts a container that sleeps, changed by `change`.
    ///
    /// # Errors
    /// CreateContainer's and StartContainer's.
    pub async fn running_with(
        &self,
        pod: &Pod,
        change: impl FnOnce(&mut v1::ContainerConfig),
    ) -> anyhow::Result<String> {
        let mut config = self.container_config(pod, &["sleep", "2147483647"]);
        change(&mut config);
        let id = self.create(pod, config).await?;
        self.cri.start(&id).await?;
        Ok(id)
    }

    /// Creates and starts a container that sleeps.
    ///
    /// # Errors
    /// CreateContainer's and StartContainer's.
    pub async fn running(&self, pod: &Pod) -> anyhow::Result<String> {
        self.running_with(pod, |_| {}).await
    }

    /// Creates and starts a container, and waits for its end.
    ///
    /// # Errors
    /// CreateContainer's and StartContainer's; a container that does not end.
    pub async fn ended_with(
        &self,
        pod: &Pod,
        change: impl FnOnce(&mut v1::ContainerConfig),
    ) -> anyhow::Result<v1::ContainerStatus> {
        let id = self.running_with(pod, change).await?;
        self.wait_state(&id, v1::ContainerState::ContainerExited).await
    }

    /// Runs a command in a container.
    ///
    /// # Errors
    /// ExecSync's.
    pub async fn exec(&self, id: &str, command: &[&str]) -> anyhow::Result<Exec> {
        self.cri.exec(id, command, EXEC_SECONDS).await
    }

    /// Runs a script in a container; it must succeed. Its output without spaces around.
    ///
    /// # Errors
    /// ExecSync's; another exit code than 0.
    pub async fn sh(&self, id: &str, script: &str) -> anyhow::Result<String> {
        let done = self.exec(id, &["sh", "-c", script]).await?;
        anyhow::ensure!(done.code == 0, "{script:?} ended with {done:?}");
        Ok(done.stdout.trim().to_owned())
    }

    /// Waits for a container's state.
    ///
    /// # Errors
    /// A container that does not get there.
    pub async fn wait_state(
        &self,
        id: &str,
        state: v1::ContainerState,
    ) -> anyhow::Result<v1::ContainerStatus> {
        eventually(&format!("container in state {}", state.as_str_name()), async || {
            let status = self.cri.container_status(id).await?;
            anyhow::ensure!(status.state() == state, "{status:?}");
            Ok(status)
        })
        .await
    }

    async fn clean_up(&self) -> anyhow::Result<()> {
        let pods = std::mem::take(&mut *self.pods.lock().unwrap_or_else(PoisonError::into_inner));
        for pod in pods {
            match self.cri.stop_pod(&pod).await {
                Ok(()) => self.cri.remove_pod(&pod).await?,
                // The spec removed it.
                Err(error) if code(&error) == tonic::Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The namespaces that a kubelet asks for when a pod wishes nothing.
pub fn namespaces() -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: v1::NamespaceMode::Pod.into(),
        pid: v1::NamespaceMode::Container.into(),
        ipc: v1::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// The security context of a pod, made where there is none.
pub fn security_of_pod(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The security context of a container, made where there is none.
pub fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The limits of a container, made where there are none.
pub fn resources(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// The suite's image of that repository.
pub fn image(repository: &str) -> String {
    if repository.contains(':') {
        format!("{ADDRESS}/{repository}")
    } else {
        format!("{ADDRESS}/{repository}:latest")
    }
}

/// Asks until the answer is good.
///
/// # Errors
/// The last answer, after a minute.
pub async fn eventually<T>(
    what: &str,
    mut check: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + EVENTUALLY;
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("not within {} s: {what}", EVENTUALLY.as_secs())));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// A call that must be refused.
///
/// # Errors
/// When it was not.
pub fn refused<T: std::fmt::Debug>(
    what: &str,
    answer: anyhow::Result<T>,
) -> anyhow::Result<(tonic::Code, String)> {
    match answer {
        Ok(value) => anyhow::bail!("{what} was not refused: {value:?}"),
        Err(error) => {
            let text = format!("{error:#}");
            anyhow::ensure!(
                !text.contains("transport error") && !text.contains("panicked"),
                "{what} ended the connection: {text}"
            );
            Ok((code(&error), text))
        }
    }
}

enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Runs the specs of one area on a subject of its own.
///
/// # Panics
/// When a spec fails that is not among the known differences, or something is left behind.
pub fn run_area(area: &'static str, specs: &'static [Spec], at_once: usize, program: PathBuf) {
    let kind = Kind::chosen().expect("a known subject");
    let host = Host::new(area).expect("a machine");
    let filter = std::env::var("SPEC").unwrap_or_default();
    let program = match kind {
        Kind::Orlop => std::env::var_os("ORLOP_BIN").map_or(program, PathBuf::from),
        Kind::Containerd => PathBuf::from("containerd"),
    };
    let failures = on_machine(host, async move |host| {
        let subject = Arc::new(Subject::start(kind, host, program).await?);
        let cri = subject.client()?;
        for repository in ["busybox", "pause", "web", "entry", "as-user"] {
            cri.pull(&image(repository)).await?;
        }
        let before = subject.host.inventory();
        let chosen = specs.iter().filter(|spec| spec.name.contains(&filter));
        let verdicts: Vec<(&Spec, Verdict)> = futures::stream::iter(chosen)
            .map(|spec| judge(area, *spec, subject.clone()))
            .buffered(at_once)
            .collect()
            .await;
        let mut failures = report(area, kind, verdicts);
        let left = left_after(&subject, &before).await;
        if kind == Kind::Orlop && !left.is_empty() {
            failures.push(format!("left behind: {left:#?}"));
        }
        if !failures.is_empty() {
            eprintln!("--- the daemon's last words\n{}", last_lines(&subject.log(), 60));
        }
        anyhow::Ok(failures)
    })
    .expect("a subject that runs");
    assert!(failures.is_empty(), "{area}:\n{}", failures.join("\n"));
}

/// Runs `work` with threads that are all in the machine's network namespace.
pub fn on_machine<T: Send + 'static>(host: Host, work: impl AsyncFnOnce(Host) -> T + Send + 'static) -> T {
    // A thread of its own: the caller's stays where it is.
    std::thread::spawn(move || {
        host.enter_network().expect("the machine's network");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
        runtime.block_on(work(host))
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What the specs left that goes away by itself is waited for.
pub async fn left_after(subject: &Subject, before: &crate::host::Inventory) -> Vec<String> {
    let mut left = Vec::new();
    for _ in 0..100 {
        if subject.kind == Kind::Containerd {
            subject.host.remove_pod_cgroups();
        }
        let now = subject.host.inventory();
        left = now.since(before);
        // What the suite itself wrote, the images that specs pulled, and orlop's server of sessions, which goes when it is idle.
        left.retain(|line| {
            !["/specs", "/logs", "/registry", "/root/", "interface cni0", "/ipam", "streamer"]
                .iter()
                .any(|own| line.contains(own))
        });
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    left
}

async fn judge(area: &str, spec: Spec, subject: Arc<Subject>) -> (&'static Spec, Verdict) {
    let spec: &'static Spec = Box::leak(Box::new(spec));
    let verdict = async {
        let cri = subject.client()?;
        let name = format!("{area}-{}", spec.name);
        let test = Test { cri, subject, name, pods: Mutex::default(), made: Mutex::default() };
        let ran = tokio::time::timeout(SPEC_LIMIT, (spec.run)(&test)).await;
        let cleaned = tokio::time::timeout(SPEC_LIMIT, test.clean_up()).await;
        ran.context("it hangs")??;
        cleaned.context("removing its pods hangs")?.context("its pods could not be removed")
    };
    let verdict = match verdict.await {
        Ok(()) => Verdict::Passed,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(skip) => Verdict::Skipped(skip.0.clone()),
            None => Verdict::Failed(format!("{error:#}")),
        },
    };
    (spec, verdict)
}

/// Prints every verdict that is not plain; gives those that count as failures.
fn report(area: &str, kind: Kind, verdicts: Vec<(&Spec, Verdict)>) -> Vec<String> {
    let mut failures = Vec::new();
    let (mut passed, mut skipped, mut differing) = (0, 0, 0);
    for (spec, verdict) in verdicts {
        let known: Option<&Difference> = differences::of(kind, area, spec.name);
        match (verdict, known) {
            (Verdict::Passed, None) => passed += 1,
            (Verdict::Passed, Some(known)) if known.always => {
                failures.push(format!("{}: passes, but is in the table of differences", spec.name));
            }
            (Verdict::Passed, Some(_)) => {
                passed += 1;
                eprintln!("NOTE {area}::{}: passes now, take it from the table of differences", spec.name);
            }
            (Verdict::Skipped(why), _) => {
                skipped += 1;
                eprintln!("SKIP {area}::{}: {why}", spec.name);
            }
            (Verdict::Failed(said), Some(known)) => {
                differing += 1;
                eprintln!("DIFF {area}::{}: {} ({said})", spec.name, known.reason);
            }
            (Verdict::Failed(said), None) => {
                eprintln!("FAIL {area}::{}: {said}", spec.name);
                failures.push(format!("{}: {said}", spec.name));
            }
        }
    }
    eprintln!(
        "{area} on {kind:?}: {passed} passed, {} failed, {differing} known differences, {skipped} skipped",
        failures.len()
    );
    failures
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
