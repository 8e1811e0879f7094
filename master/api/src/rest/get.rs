use http::StatusCode;
use orlop_resources::status::ApiError;

use super::respond::bytes_of;
use crate::body::Reply;
use crate::context::Context;

/// One object.
pub(crate) fn get(context: &Context) -> Result<Reply, ApiError> {
    let entry = context.entry()?;
    super::object_reply(context, StatusCode::OK, bytes_of(context.resource, &entry))
}
