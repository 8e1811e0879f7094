//! The plugin `orlop-cni`: CNI specification 1.1.0, container networking without a daemon.

mod add;
mod answer;
mod check;
mod delete;
mod error;
mod request;

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use orlop_netlink::RouteSocket;
use serde_json::{Value, json};

pub(crate) use add::mac_of;
pub use answer::{Attached, Interface};
pub use error::{CniError, code};
pub use request::{Attachment, Configuration, Environment, Ipam, PortMapping, RuntimeConfig, VERSIONS};

use crate::leases::Owner;

/// A configuration is some hundred bytes; what is longer is no configuration.
const INPUT_LIMIT_BYTES: u64 = 1 << 20;

/// The whole plugin: request from environment and standard input, answer on standard output.
pub fn main_plugin() -> ExitCode {
    let environment = Environment::read();
    let mut input = String::new();
    let read = std::io::stdin().take(INPUT_LIMIT_BYTES).read_to_string(&mut input);
    let outcome = match read {
        Ok(_) => run(&environment, &input),
        Err(error) => {
            Err(CniError::new(code::IO_FAILURE, format!("failed to read the configuration: {error}")))
        }
    };
    let (text, exit) = match outcome {
        Ok(Some(value)) => (value.to_string(), ExitCode::SUCCESS),
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => (json!(error).to_string(), ExitCode::FAILURE),
    };
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => exit,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One request; `None` is a success without words.
///
/// # Errors
/// The error to print, with the version to print it in.
pub fn run(environment: &Environment, input: &str) -> Result<Option<Value>, CniError> {
    let version = serde_json::from_str::<Value>(input)
        .ok()
        .and_then(|value| Some(value.get("cniVersion")?.as_str()?.to_owned()))
        .unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned());
    answer(environment, input, &version).map_err(|error| CniError { cni_version: version, ..error })
}

fn answer(environment: &Environment, input: &str, version: &str) -> Result<Option<Value>, CniError> {
    match environment.command.as_str() {
        "VERSION" => {
            return Ok(Some(json!({"cniVersion": version, "supportedVersions": VERSIONS})));
        }
        "ADD" | "DEL" | "CHECK" | "GC" | "STATUS" => {}
        "" => return Err(CniError::new(code::INVALID_ENVIRONMENT, "CNI_COMMAND is not set")),
        other => {
            return Err(CniError::new(
                code::INVALID_ENVIRONMENT,
                format!("CNI_COMMAND {other:?} is unknown"),
            ));
        }
    }
    let configuration = Configuration::parse(input)?;
    configuration.check_version(&environment.command)?;
    configuration.check()?;
    match environment.command.as_str() {
        "ADD" => {
            let attached = add::add(&configuration, &environment.owner()?, &environment.netns()?)?;
            Ok(Some(attached.to_json(&configuration.cni_version, &configuration.dns)))
        }
        "DEL" => delete::delete(&configuration, &environment.owner()?).map(|()| None),
        "CHECK" => check::check(&configuration, &environment.owner()?, &environment.netns()?).map(|()| None),
        "GC" => delete::collect(&configuration).map(|()| None),
        _ => check::status(&configuration).map(|()| None),
    }
}

/// The name of the host's end of a pair: found again from the owner alone.
pub fn host_interface(owner: &Owner) -> String {
    // FNV-1a; 44 bits are what fits a name, enough to tell a node's pods apart.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in owner.container_id.bytes().chain([0]).chain(owner.interface.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("veth{:011x}", hash >> 20)
}

fn route_socket() -> Result<RouteSocket, CniError> {
    Ok(RouteSocket::open()?)
}
