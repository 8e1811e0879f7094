//! The daemon and everything that it starts, as processes, for tests: `runtime FILE` (its configuration as JSON), `streamer`,
//! `shim` and `oci-setup`, as in the real binary.
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::ffi::OsString;

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let rest = arguments[1..].to_vec();
    let code = match arguments[0].to_str().unwrap() {
        "runtime" => runtime(&rest[0]),
        "streamer" => orlop_runtime::streamer_main(rest),
        "shim" => orlop_shim::main(rest),
        "oci-setup" => orlop_oci::setup_main(rest),
        other => panic!("{other}?"),
    };
    std::process::exit(code);
}

fn runtime(file: &OsString) -> i32 {
    let config: orlop_runtime::Config = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let settings = orlop_daemon::Settings::new("runtime");
    orlop_daemon::run(settings, |frame| async move { orlop_runtime::start(&frame, config).await }).unwrap();
    0
}
