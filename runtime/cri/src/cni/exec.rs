//! Runs one plugin once.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::CniError;
use super::plan::{Attachment, Plugin, plugin_type};

/// A result or error of a plugin is a few hundred bytes.
const OUTPUT_LIMIT_BYTES: u64 = 1024 * 1024;

pub(super) async fn run(
    command: &'static str,
    plugin: &Plugin,
    attachment: &Attachment,
    config: &Value,
    directories: &[PathBuf],
    timeout: Duration,
) -> Result<Value, CniError> {
    let kind = plugin_type(plugin).to_owned();
    let failed = |reason: String| CniError::Run { plugin: kind.clone(), reason };
    let program = find(&kind, directories)
        .ok_or_else(|| failed(format!("it is in none of the plugin directories {directories:?}")))?;
    let search_path: Vec<String> = directories.iter().map(|path| path.display().to_string()).collect();
    let mut child = Command::new(&program)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(attachment.environment(command, &search_path.join(":")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("failed to start {}: {error}", program.display())))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let input = config.to_string();
    let conversation = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A plugin that does not read its input still answers for itself.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let (_, output, said) = tokio::join!(feed, read_all(stdout), read_all(stderr));
        (child.wait().await, output, said)
    };
    let (status, output, said) = tokio::time::timeout(timeout, conversation)
        .await
        .map_err(|_| failed(format!("{command} did not finish within {timeout:?}")))?;
    let status = status.map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        return Err(plugin_error(&kind, command, &output, &said, &status.to_string()));
    }
    if output.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output).map_err(|error| failed(format!("{command} answered no JSON: {error}")))
}

fn find(kind: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    directories.iter().map(|directory| directory.join(kind)).find(|path: &PathBuf| Path::is_file(path))
}

async fn read_all(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut output = Vec::new();
    if let Some(pipe) = pipe {
        // What was read before an error still tells something.
        let _ = pipe.take(OUTPUT_LIMIT_BYTES).read_to_end(&mut output).await;
    }
    output
}

fn plugin_error(plugin: &str, command: &'static str, output: &[u8], said: &[u8], status: &str) -> CniError {
    let report: Value = serde_json::from_slice(output).unwrap_or_default();
    let text = |key: &str| report.get(key).and_then(Value::as_str).unwrap_or_default();
    let (message, details) = (text("msg"), text("details"));
    let message = match (message.is_empty(), details.is_empty()) {
        (false, true) => message.to_owned(),
        (false, false) => format!("{message}: {details}"),
        (true, _) => format!("{status}: {}", String::from_utf8_lossy(said).trim()),
    };
    let code = report.get("code").and_then(Value::as_u64).unwrap_or(999);
    CniError::Plugin { plugin: plugin.to_owned(), command, code, message }
}
