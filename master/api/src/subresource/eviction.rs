use http::StatusCode;
use orlop_resources::status::{self, ApiError};
use serde_json::{Value, json};

use crate::body::Reply;
use crate::context::Context;
use crate::rest::{DeleteOptions, decode_options, delete_named, value_reply};
use crate::rules::encode::text;

/// POST pods/NAME/eviction: a deletion that disruption budgets could refuse. There are none in this API, so none does.
pub(super) async fn evict(context: &mut Context) -> Result<Reply, ApiError> {
    let eviction = decode_options(context, "Eviction")?;
    let name = text(&eviction, "/metadata/name");
    if !name.is_empty() && name != context.info.name {
        return Err(status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = DeleteOptions::from_value(eviction.get("deleteOptions").unwrap_or(&Value::Null))?;
    options.dry_run |= context.dry_run()?;
    delete_named(&context.api, context.resource, &context.key(), &context.info.name, &options).await?;
    let mut success = status::success(None);
    success["code"] = json!(201);
    value_reply(context, StatusCode::CREATED, &success)
}
