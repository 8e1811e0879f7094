//! Checks of `metadata`, the same for every kind.

use serde_json::Value;

use crate::fields::Errors;
use crate::resource::Resource;

pub(crate) fn check(_row: &Resource, _object: &Value, _errors: &mut Errors) {}

pub(crate) fn check_update(_new: &Value, _old: &Value, _errors: &mut Errors) {}
