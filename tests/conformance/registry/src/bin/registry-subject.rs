//! `orlop mirror` without the rest of `orlop`: for runs in which the whole binary was not built.

use std::path::Path;
use std::process::ExitCode;

use orlop_daemon::{Settings, config};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["mirror", file] => mirror(file.strip_prefix("--config=").unwrap_or(file)),
        _ => {
            eprintln!("usage: registry-subject mirror --config=FILE");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("registry-subject: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn mirror(file: &str) -> anyhow::Result<()> {
    orlop_daemon::init_tracing();
    let config: orlop_mirror::Config = config::load(Path::new(file))?;
    let mut settings = Settings::new("mirror");
    settings.admin_socket = Some(config.root.join("admin.sock"));
    orlop_daemon::run(settings, |frame| async move { orlop_mirror::start(&frame, config).await })
}
