use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// What a command that a person waits for says beside its answer: only what is wrong.
const COMMAND_FILTER: &str = "warn";
const DEFAULT_FILTER: &str = "info,kube_client=warn,hyper=warn,h2=warn,tower=warn,rustls=warn";

/// Starts tracing to stderr once per process; `$ORLOP_LOG` overrides the filter, `$ORLOP_LOG_FORMAT=json` the format.
///
/// Later calls do nothing.
pub fn init_tracing() {
    init(DEFAULT_FILTER);
}

/// As [`init_tracing`], for a command that a person waits for: warnings and errors unless `$ORLOP_LOG` wants more.
pub fn init_command_tracing() {
    init(COMMAND_FILTER);
}

fn init(default: &str) {
    let text = std::env::var("ORLOP_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = EnvFilter::try_new(&text).unwrap_or_else(|_| EnvFilter::new(default));
    let (filter, handle) = reload::Layer::new(filter);
    let json = std::env::var("ORLOP_LOG_FORMAT").is_ok_and(|format| format == "json");
    let registry = tracing_subscriber::registry().with(filter);
    let started = if json {
        registry.with(fmt::layer().json().with_writer(std::io::stderr).log_internal_errors(false)).try_init()
    } else {
        let layer = fmt::layer().with_ansi(false).with_writer(std::io::stderr);
        // A log that nobody reads any more is no reason to panic, which a report of it to the same place would.
        registry.with(layer.log_internal_errors(false)).try_init()
    };
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Replaces the filter (tracing's `EnvFilter` syntax), for example `debug,hyper=info`.
pub(crate) fn set_filter(text: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(text).map_err(|error| format!("invalid log filter {text:?}: {error}"))?;
    let handle = FILTER.get().ok_or("tracing was not started by this process")?;
    handle.reload(filter).map_err(|error| format!("could not replace the log filter: {error}"))
}

/// The filter in force.
pub(crate) fn filter() -> String {
    FILTER.get().and_then(|handle| handle.with_current(ToString::to_string).ok()).unwrap_or_default()
}
