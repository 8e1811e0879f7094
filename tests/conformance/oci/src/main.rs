//! The OCI runtime alone, for tests: `orlop-oci-test [oci-setup] …`, as in the real binary.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let code = match arguments.first().and_then(|argument| argument.to_str()) {
        Some("oci-setup") => orlop_oci::setup_main(arguments[1..].to_vec()),
        _ => orlop_oci::main(arguments),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
