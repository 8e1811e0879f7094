//! The verbs on objects.

mod commit;
mod create;
mod decode;
mod delete;
mod delete_collection;
mod get;
mod list;
mod patch;
mod respond;
mod update;
mod watch;

pub(crate) use commit::{commit, now_text, store_failure};
pub(crate) use create::{create, create_object, generate_name};
pub(crate) use decode::{SCALE, decode_body, decode_options};
pub(crate) use delete::{DeleteOptions, delete, delete_named};
pub(crate) use delete_collection::delete_collection;
pub(crate) use get::get;
pub(crate) use list::list;
pub(crate) use patch::{Patch, patch};
pub(crate) use respond::{object_reply, value_reply};
pub(crate) use update::{Target, check_place, update, update_object};
pub(crate) use watch::watch;
