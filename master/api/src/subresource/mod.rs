//! What lies below an object, and kinds that are answered but not stored.

mod binding;
mod connect;
mod eviction;
mod review;
mod scale;
mod token;

use orlop_resources::status::{self, ApiError};

use crate::body::Reply;
use crate::context::Context;
use crate::rest;

/// A request for a subresource.
pub(crate) async fn answer(context: &mut Context, method: &str) -> Result<Reply, ApiError> {
    let subresource = context.info.subresource.clone();
    if subresource == "proxy" && context.resource.group.is_empty() {
        return Err(status::not_implemented(format!(
            "{}/proxy is not served: use kubectl port-forward",
            context.resource.plural
        )));
    }
    let known = context.resource.subresource(&subresource).ok_or_else(status::no_such_resource)?;
    match (context.resource.plural, subresource.as_str(), method) {
        ("pods", "binding", "POST") => binding::bind(context).await,
        ("pods", "eviction", "POST") => eviction::evict(context).await,
        ("pods", "log", "GET") => connect::log(context).await,
        ("pods", "exec" | "attach" | "portforward", "GET" | "POST") => connect::tunnel(context, method).await,
        ("serviceaccounts", "token", "POST") => token::request(context).await,
        ("replicationcontrollers", "scale", _) => scale::answer(context).await,
        (_, "status" | "finalize" | "ephemeralcontainers", _) if known.kind == context.resource.kind => {
            match context.info.verb {
                "get" => rest::get(context),
                "update" => rest::update(context, Some(known.name)).await,
                "patch" => rest::patch(context, Some(known.name)).await,
                _ => Err(status::method_not_allowed()),
            }
        }
        _ => Err(status::method_not_allowed()),
    }
}

/// A request for a kind that is not stored: reviews and bindings, which can only be created.
pub(crate) async fn answer_virtual(context: &mut Context) -> Result<Reply, ApiError> {
    if context.info.verb != "create" || !context.info.name.is_empty() {
        return Err(status::method_not_allowed());
    }
    match context.resource.plural {
        "bindings" => binding::bind(context).await,
        _ => review::answer(context).await,
    }
}
