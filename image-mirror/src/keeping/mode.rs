//! What the registry does at all: changed at run time, and remembered.

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Keeper;
use crate::error::RegistryError;

/// What the registry does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Everything.
    #[default]
    Normal,
    /// Pushes and deletes are refused; fetching goes on.
    ReadOnly,
    /// What is here is served; nothing is fetched, and nothing is written.
    Maintenance,
}

impl Mode {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Normal => "normal",
            Mode::ReadOnly => "readOnly",
            Mode::Maintenance => "maintenance",
        }
    }

    fn of_name(text: &str) -> Option<Self> {
        [Mode::Normal, Mode::ReadOnly, Mode::Maintenance].into_iter().find(|mode| mode.name() == text)
    }

    /// Why a push or a delete is refused.
    pub(crate) fn refusal(self) -> Option<RegistryError> {
        match self {
            Mode::Normal => None,
            Mode::ReadOnly => Some(RegistryError::unsupported("this registry is read-only")),
            Mode::Maintenance => Some(maintained()),
        }
    }

    /// In maintenance what is not here may be at the next host; it is not unknown.
    pub(crate) fn miss(self, error: RegistryError) -> RegistryError {
        match self {
            Mode::Maintenance if error.status == StatusCode::NOT_FOUND => maintained(),
            Mode::Normal | Mode::ReadOnly | Mode::Maintenance => error,
        }
    }
}

fn maintained() -> RegistryError {
    let message = "this registry is maintained: it serves what it has, and fetches and takes nothing";
    RegistryError::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
}

impl Keeper {
    /// What is done now. Whoever fetches or writes of himself (a pair's replication) rests in maintenance.
    pub(crate) fn mode(&self) -> Mode {
        self.memory().mode.unwrap_or(self.configured_mode)
    }

    /// The command `mode`: without a name it tells; `configured` goes back to the configuration's.
    pub(super) fn command_mode(&self, name: &str) -> Result<String, String> {
        let wanted = match name {
            "" => return Ok(self.mode().name().to_owned()),
            "configured" => None,
            name => match Mode::of_name(name) {
                Some(mode) => Some(mode),
                None => {
                    return Err(format!("{name:?} is no mode: normal, readOnly, maintenance or configured"));
                }
            },
        };
        let remembered = self.remember(|memory| memory.mode = wanted);
        tracing::info!(mode = self.mode().name(), "mode changed");
        match remembered {
            Ok(()) => Ok(self.mode().name().to_owned()),
            Err(error) => {
                Err(format!("the mode is {} now, but a restart forgets it: {error}", self.mode().name()))
            }
        }
    }
}
