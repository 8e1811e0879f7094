//! `orlop runtime` and what it starts, without the rest of `orlop`: for runs in which the whole binary was not built.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use orlop_daemon::{Settings, config};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let rest = || arguments.get(2..).unwrap_or_default().to_vec();
    if called_as(&arguments) == Some("orlop-cni") {
        return orlop_cni::main_plugin();
    }
    let code = match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some("shim") => orlop_shim::main(rest()),
        Some("streamer") => orlop_runtime::streamer_main(rest()),
        Some("oci-setup") => orlop_oci::setup_main(rest()),
        Some("runtime") => match runtime(&rest()) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("cri-subject: {error:#}");
                1
            }
        },
        _ => {
            eprintln!("usage: cri-subject runtime --config=FILE | shim … | streamer … | oci-setup …");
            2
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn called_as(arguments: &[OsString]) -> Option<&str> {
    Path::new(arguments.first()?).file_name()?.to_str()
}

fn runtime(arguments: &[OsString]) -> anyhow::Result<()> {
    let file = match arguments {
        [one] => one.to_str().and_then(|text| text.strip_prefix("--config=")),
        _ => None,
    };
    let file = Path::new(file.ok_or_else(|| anyhow::anyhow!("give --config=FILE"))?);
    orlop_daemon::init_tracing();
    let config: orlop_runtime::Config = config::load(file)?;
    let mut settings = Settings::new("runtime");
    settings.admin_socket = Some(config.state.join("admin.sock"));
    orlop_daemon::run(settings, |frame| async move { orlop_runtime::start(&frame, config).await })
}
