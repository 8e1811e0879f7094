//! The pod network by CNI's exec protocol (SPEC.md 1.1.0): the first valid configuration by name, its plugins in a chain.

mod exec;
pub(crate) mod plan;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

pub(crate) use plan::{Attachment, NetworkList};

/// Why the network of a pod could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    /// No usable configuration.
    #[error("cni plugin not initialized: {0}")]
    NotInitialized(String),
    /// A plugin could not be run.
    #[error("failed to run CNI plugin {plugin}: {reason}")]
    Run {
        /// Its type.
        plugin: String,
        /// Why.
        reason: String,
    },
    /// A plugin reported an error.
    #[error("CNI plugin {plugin} failed ({command}): {message} (code {code})")]
    Plugin {
        /// Its type.
        plugin: String,
        /// ADD or DEL.
        command: &'static str,
        /// Error code of the specification or the plugin's own.
        code: u64,
        /// What it said.
        message: String,
    },
    /// The attachment could not be remembered.
    #[error("failed to keep the network's state")]
    State(#[source] std::io::Error),
}

/// Runs plugins.
#[derive(Clone, Debug)]
pub(crate) struct Cni {
    conf_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
    timeout: Duration,
}

impl Cni {
    /// With these directories.
    pub(crate) fn new(conf_dir: PathBuf, bin_dirs: Vec<PathBuf>, timeout: Duration) -> Self {
        Self { conf_dir, bin_dirs, timeout }
    }

    /// The configuration in force: the first `*.conflist`, `*.conf` or `*.json` by name that is valid.
    ///
    /// # Errors
    /// [`CniError::NotInitialized`] says why there is none.
    pub(crate) fn network(&self) -> Result<NetworkList, CniError> {
        let mut names: Vec<PathBuf> = match std::fs::read_dir(&self.conf_dir) {
            Ok(entries) => entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| plan::is_configuration(path))
                .collect(),
            Err(error) => {
                return Err(CniError::NotInitialized(format!(
                    "failed to read {}: {error}",
                    self.conf_dir.display()
                )));
            }
        };
        names.sort();
        let mut problems = Vec::new();
        for path in names {
            match std::fs::read_to_string(&path)
                .map_err(|error| error.to_string())
                .and_then(|text| plan::parse(&text))
            {
                Ok(list) => return Ok(list),
                Err(problem) => problems.push(format!("{}: {problem}", path.display())),
            }
        }
        Err(CniError::NotInitialized(if problems.is_empty() {
            format!("no network configuration in {}", self.conf_dir.display())
        } else {
            problems.join("; ")
        }))
    }

    /// ADD through the chain. The attachment is on disk at `state` before the first plugin runs; on failure the caller
    /// detaches.
    pub(crate) async fn attach(
        &self,
        mut attachment: Attachment,
        state: &Path,
    ) -> Result<Attachment, CniError> {
        crate::files::write_json(state, &attachment).map_err(CniError::State)?;
        let mut result: Option<Value> = None;
        for plugin in &attachment.network.plugins {
            let config = attachment.plugin_config(plugin, result.as_ref());
            let answer = self.run("ADD", plugin, &attachment, &config).await?;
            if !answer.is_null() {
                result = Some(answer);
            }
        }
        attachment.result = result;
        crate::files::write_json(state, &attachment).map_err(CniError::State)?;
        Ok(attachment)
    }

    /// DEL through the chain backwards, with the configuration of the ADD. Every plugin is asked even when one fails.
    pub(crate) async fn detach(&self, state: &Path, netns_lives: bool) -> Result<(), CniError> {
        let mut attachment: Attachment = match crate::files::read_json(state) {
            Ok(attachment) => attachment,
            // Nothing was begun.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(CniError::State(error)),
        };
        if !netns_lives {
            // DEL without a namespace frees addresses; the interfaces went with it.
            attachment.netns = String::new();
        }
        let mut failure = None;
        for plugin in attachment.network.plugins.iter().rev() {
            let config = attachment.plugin_config(plugin, attachment.result.as_ref());
            if let Err(error) = self.run("DEL", plugin, &attachment, &config).await {
                failure.get_or_insert(error);
            }
        }
        match failure {
            None => crate::files::remove_tree(state).map_err(CniError::State),
            Some(error) => Err(error),
        }
    }

    async fn run(
        &self,
        command: &'static str,
        plugin: &plan::Plugin,
        attachment: &Attachment,
        config: &Value,
    ) -> Result<Value, CniError> {
        exec::run(command, plugin, attachment, config, &self.bin_dirs, self.timeout).await
    }
}
