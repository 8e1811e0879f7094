use http::StatusCode;
use orlop_resources::status::{self, ApiError};
use orlop_store::{At, Entry, PageRequest};
use serde_json::json;

use super::respond::object_of;
use super::{DeleteOptions, delete_named, value_reply};
use crate::body::Reply;
use crate::context::Context;
use crate::state::prefix_in;

/// DELETE of everything selected; answers with the list of what was there.
pub(crate) async fn delete_collection(context: &mut Context) -> Result<Reply, ApiError> {
    let options = DeleteOptions::read(context)?;
    let selection = context.selection()?;
    let prefix = prefix_in(context.resource, &context.info.namespace);
    let page = {
        let matches = |entry: &Entry| selection.matches(entry);
        let request = PageRequest { at: At::Now, prefix: &prefix, start: "", limit: 0, matches: &matches };
        context.api.cache.list(&request).map_err(status::internal)?
    };
    let mut items = Vec::with_capacity(page.entries.len());
    for entry in page.entries {
        match delete_named(&context.api, context.resource, &entry.key, &entry.meta.name, &options).await {
            Ok(_) => items.push(object_of(context.resource, &entry)),
            // Somebody else was faster.
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let list = json!({
        "kind": context.resource.list_kind, "apiVersion": context.resource.api_version(),
        "metadata": {"resourceVersion": context.api.cache.revision().to_string()}, "items": items,
    });
    value_reply(context, StatusCode::OK, &list)
}
