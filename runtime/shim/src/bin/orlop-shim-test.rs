//! The shim and its set-up programs alone, for tests: `orlop-shim-test shim|oci-setup|oci …`, as in the real binary.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let rest = arguments.get(2..).unwrap_or_default().to_vec();
    let code = match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some("shim") => orlop_shim::main(rest),
        Some("oci-setup") => orlop_oci::setup_main(rest),
        _ => 2,
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
