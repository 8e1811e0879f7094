//! The way of a request: authenticate, authorize, find the handler, answer.

use std::sync::Arc;

use futures::future::BoxFuture;
use http::request::Parts;
use http::{Request, StatusCode, header};
use orlop_resources::selector::FieldSelector;
use orlop_resources::status::{self, ApiError, Attempt};

use crate::body::{self, Body, Reply, failure, text};
use crate::context::Context;
use crate::documents;
use crate::identity::Identity;
use crate::rest;
use crate::rules::authorize::{self, Attributes};
use crate::rules::impersonate::impersonated;
use crate::rules::path::{RequestInfo, Route, route};
use crate::rules::query::Query;
use crate::state::Api;
use crate::subresource;

/// Answers one request. `known` is the identity that the connection proved, if any.
pub(crate) fn answer(
    api: Arc<Api>,
    known: Option<Arc<Identity>>,
    request: Request<Body>,
) -> BoxFuture<'static, Reply> {
    Box::pin(async move {
        let head = request.method() == http::Method::HEAD;
        let reply = handle(api, known, request).await;
        if head { without_body(reply) } else { reply }
    })
}

async fn handle(api: Arc<Api>, known: Option<Arc<Identity>>, request: Request<Body>) -> Reply {
    let method = request.method().as_str().to_owned();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let name_field = name_field(&query);
    let target = route(&method, request.uri().path(), &query, name_field.as_deref());
    let (verb, resource) = match &target {
        Route::Resource(info) => {
            let known = orlop_resources::find(&info.group, &info.version, &info.resource);
            (info.verb, known.map_or("", |resource| resource.plural))
        }
        Route::Other => ("get", ""),
    };
    let (verb, resource) = (verb.to_owned(), resource.to_owned());
    let identity = identify(&api, known, &request).and_then(|identity| act_as(identity, request.headers()));
    let identity = match identity {
        Ok(identity) => identity,
        Err(error) => {
            api.metrics.count(&verb, &resource, error.code);
            return failure(&error);
        }
    };
    let reply = match target {
        Route::Resource(info) => {
            objects(&api, identity, info, query, request).await.unwrap_or_else(|error| failure(&error))
        }
        Route::Other => {
            let (parts, _) = request.into_parts();
            other(&api, &identity, &query, &parts).await
        }
    };
    api.metrics.count(&verb, &resource, reply.status().as_u16());
    reply
}

/// HTTP/2 clients take a body after HEAD for a broken connection (RFC 9110 section 9.3.2).
fn without_body(reply: Reply) -> Reply {
    let (parts, _) = reply.into_parts();
    Reply::from_parts(parts, body::full(""))
}

/// What a field selector demands of `metadata.name`.
fn name_field(query: &Query) -> Option<String> {
    required_field(query, "metadata.name")
}

fn required_field(query: &Query, field: &str) -> Option<String> {
    let selector = FieldSelector::parse(query.get("fieldSelector")?).ok()?;
    selector.required(field).map(str::to_owned)
}

fn identify(
    api: &Api,
    known: Option<Arc<Identity>>,
    request: &Request<Body>,
) -> Result<Arc<Identity>, ApiError> {
    if let Some(known) = known {
        return Ok(known);
    }
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .map(|(scheme, token)| (scheme, token.trim()))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty());
    match bearer {
        Some((_, token)) => match api.authenticate_token(token, &[]) {
            Ok((identity, _)) => Ok(Arc::new(identity)),
            Err(reason) => {
                tracing::debug!(%reason, "token refused");
                Err(status::unauthorized())
            }
        },
        None => Ok(Arc::new(Identity::anonymous())),
    }
}

/// Whom the request acts as: its own user, or another that a superuser names.
fn act_as(identity: Arc<Identity>, headers: &http::HeaderMap) -> Result<Arc<Identity>, ApiError> {
    Ok(impersonated(&identity, headers)?.map_or(identity, Arc::new))
}

async fn other(api: &Arc<Api>, identity: &Identity, query: &Query, request: &Parts) -> Reply {
    let path = request.uri.path();
    let verb = request.method.as_str().to_ascii_lowercase();
    if !authorize::may_path(identity, &verb, path) {
        if identity.is_anonymous() {
            return failure(&status::unauthorized());
        }
        return failure(&status::forbidden_path(&identity.user, &verb, path));
    }
    if !matches!(verb.as_str(), "get" | "head") {
        return failure(&status::method_not_allowed());
    }
    match documents::answer(api, path, query, &request.headers).await {
        Ok(Some(reply)) => reply,
        Ok(None) => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        Err(error) => failure(&error),
    }
}

async fn objects(
    api: &Arc<Api>,
    identity: Arc<Identity>,
    info: RequestInfo,
    query: Query,
    mut request: Request<Body>,
) -> Result<Reply, ApiError> {
    if identity.is_anonymous() {
        return Err(status::unauthorized());
    }
    let resource = orlop_resources::find(&info.group, &info.version, &info.resource);
    let node_name = required_field(&query, "spec.nodeName");
    let asked = Attributes {
        verb: info.verb,
        group: &info.group,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        node_name: node_name.as_deref(),
    };
    if !authorize::may(&identity, &asked, &**api) {
        let namespace = if info.resource == "namespaces" { "" } else { &info.namespace };
        return Err(status::forbidden(Attempt {
            user: &identity.user,
            verb: info.verb,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace,
            name: &info.name,
        }));
    }
    if is_definitions_list(&info) {
        return Ok(no_definitions(api));
    }
    let Some(resource) = resource else { return nowhere(&info) };
    if !resource.namespaced && !info.namespace.is_empty() && resource.plural != "namespaces" {
        return Err(status::no_such_resource());
    }
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let (parts, body) = request.into_parts();
    // Taken until the answer is there: the object that the body becomes is larger than the body.
    let _room = api.room.take(body::largest(&body)).await?;
    let mut context = Context {
        api: api.clone(),
        identity,
        resource,
        info,
        query,
        headers: parts.headers,
        warnings: Vec::new(),
        upgrade,
        body: body::read(body).await?,
    };
    if resource.plural == "namespaces" && resource.group.is_empty() {
        context.info.namespace = String::new();
    }
    let reply = dispatch(&mut context, parts.method.as_str()).await?;
    Ok(context.warn(reply))
}

/// A group and version that are served say what is missing; elsewhere nothing is mounted at all.
fn nowhere(info: &RequestInfo) -> Result<Reply, ApiError> {
    let mut rows = orlop_resources::resources().iter();
    if rows.any(|row| row.group == info.group && row.version == info.version) {
        return Err(status::no_such_resource());
    }
    Ok(text(StatusCode::NOT_FOUND, "404 page not found\n"))
}

/// kubectl lists CustomResourceDefinitions before it says that it does not know a kind.
fn is_definitions_list(info: &RequestInfo) -> bool {
    let path = (info.group.as_str(), info.version.as_str(), info.resource.as_str());
    path == ("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        && info.verb == "list"
        && info.name.is_empty()
}

/// There are none.
fn no_definitions(api: &Api) -> Reply {
    let list = serde_json::json!({
        "kind": "CustomResourceDefinitionList", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"resourceVersion": api.cache.revision().to_string()}, "items": [],
    });
    body::json_value(StatusCode::OK, &list)
}

async fn dispatch(context: &mut Context, method: &str) -> Result<Reply, ApiError> {
    if !context.info.subresource.is_empty() {
        return subresource::answer(context, method).await;
    }
    if context.resource.storage.is_empty() {
        return subresource::answer_virtual(context).await;
    }
    if !context.resource.verbs.contains(&context.info.verb) {
        return Err(status::method_not_allowed());
    }
    let in_all_namespaces = context.resource.namespaced && context.info.namespace.is_empty();
    if in_all_namespaces && !matches!(context.info.verb, "list" | "watch") {
        return Err(status::method_not_allowed());
    }
    let named = !context.info.name.is_empty();
    match context.info.verb {
        "get" => rest::get(context),
        "list" => rest::list(context).await,
        "watch" => rest::watch(context).await,
        "create" if !named => rest::create(context).await,
        "update" if named => rest::update(context, None).await,
        "patch" if named => rest::patch(context, None).await,
        "delete" => rest::delete(context).await,
        "deletecollection" => rest::delete_collection(context).await,
        _ => Err(status::method_not_allowed()),
    }
}
