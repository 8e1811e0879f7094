use std::io::Write as _;
use std::process::{Command, Stdio};

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; -1 after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end with `input` on its standard input.
///
/// # Panics
/// When it cannot be started.
pub fn try_run(command: &mut Command, input: &str) -> Output {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_owned();
    // A writer of its own: a child that answers before it has read all must not block us.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("{shown}: {error}"));
    let _ = writer.join();
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// As [`try_run`] without input; the command must succeed.
///
/// # Panics
/// With both outputs when it fails.
pub fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = try_run(command, "");
    assert!(output.code == 0, "{shown} ended with {}:\n{}{}", output.code, output.stdout, output.stderr);
    output.stdout
}
