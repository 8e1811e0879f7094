//! Everything that is no object: discovery, OpenAPI, version, health, metrics.

use std::sync::Arc;

use http::{HeaderMap, StatusCode, header};
use orlop_resources::status::{self, ApiError};
use orlop_resources::{discovery, schema};
use serde_json::json;

use crate::body::{Reply, full, json, json_value, reply, text};
use crate::rules::accept;
use crate::rules::query::Query;
use crate::state::Api;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The document at a path; none when there is none.
pub(crate) async fn answer(
    api: &Arc<Api>,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Option<Reply>, ApiError> {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    Ok(Some(match segments.as_slice() {
        [""] => paths(),
        ["healthz" | "livez" | "readyz", rest @ ..] => match health(api, segments[0], rest, query) {
            Some(reply) => reply,
            None => return Ok(None),
        },
        ["version"] => version(),
        ["metrics"] => metrics(api),
        ["api"] | ["apis"] => groups(api, segments[0], accepted),
        ["api", version] => return Ok(legacy(discovery::resource_list("", version))),
        ["apis", group] => return Ok(legacy(discovery::group(group))),
        ["apis", group, version] => return Ok(legacy(discovery::resource_list(group, version))),
        ["openapi", "v2"] => openapi_v2(accepted).await?,
        ["openapi", "v3"] => json_value(StatusCode::OK, &schema::openapi_v3_index()),
        ["openapi", "v3", rest @ ..] => openapi_v3(rest.join("/"), accepted).await?,
        _ => return Ok(None),
    }))
}

fn paths() -> Reply {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(str::to_owned).to_vec();
    for group in discovery::group_names().into_iter().filter(|group| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(
            discovery::versions_of(group).into_iter().map(|version| format!("/apis/{group}/{version}")),
        );
    }
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
            .map(str::to_owned),
    );
    json_value(StatusCode::OK, &json!({"paths": paths}))
}

/// `ok`, or with `verbose` a line per check. Live means that requests are answered, ready also that the server is not stopping.
fn health(api: &Api, kind: &str, rest: &[&str], query: &Query) -> Option<Reply> {
    let draining = api.drain.is_draining();
    let mut checks = vec![("ping", true), ("store", true)];
    if kind == "readyz" {
        checks.push(("shutdown", !draining));
    }
    if let [one] = rest {
        let (_, good) = checks.iter().find(|(name, _)| name == one)?;
        return Some(if *good {
            text(StatusCode::OK, "ok")
        } else {
            text(StatusCode::INTERNAL_SERVER_ERROR, "failed")
        });
    }
    if !rest.is_empty() {
        return None;
    }
    let good = checks.iter().all(|(_, good)| *good);
    if good && !query.flag("verbose") {
        return Some(text(StatusCode::OK, "ok"));
    }
    let lines: String =
        checks
            .iter()
            .map(|(name, good)| {
                if *good { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") }
            })
            .collect();
    let (code, end) =
        if good { (StatusCode::OK, "passed") } else { (StatusCode::INTERNAL_SERVER_ERROR, "failed") };
    Some(text(code, format!("{lines}{kind} check {end}\n")))
}

fn version() -> Reply {
    let platform = format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
    let version = json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": platform,
    });
    json_value(StatusCode::OK, &version)
}

fn metrics(api: &Api) -> Reply {
    reply(
        StatusCode::OK,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        full(api.frame.metrics_text()),
    )
}

fn groups(api: &Api, root: &str, accepted: Option<&str>) -> Reply {
    if accept::wants_aggregated_discovery(accepted) {
        let document = discovery::aggregated(root == "api");
        return reply(StatusCode::OK, AGGREGATED, full(document.to_string()));
    }
    let document = if root == "api" {
        let address = api
            .config
            .advertised()
            .map_or_else(String::new, |address| format!("{address}:{}", api.config.port()));
        discovery::api_versions(&address)
    } else {
        discovery::group_list()
    };
    json_value(StatusCode::OK, &document)
}

fn legacy(document: Option<serde_json::Value>) -> Option<Reply> {
    document.map(|document| json_value(StatusCode::OK, &document))
}

/// The documents are made from the types when asked for: that takes a while, so not on the threads that serve.
async fn openapi_v2(accepted: Option<&str>) -> Result<Reply, ApiError> {
    let protobuf = accept::parse(accepted.unwrap_or_default()).first().is_some_and(|media| {
        media.essence.starts_with("application/com.github.proto-openapi.spec.v2")
            || media.essence.ends_with("+protobuf")
    });
    if protobuf {
        let document =
            tokio::task::spawn_blocking(schema::openapi_v2_protobuf).await.map_err(status::internal)?;
        return Ok(reply(StatusCode::OK, OPENAPI_V2_PROTOBUF, full(document)));
    }
    let document = tokio::task::spawn_blocking(schema::openapi_v2).await.map_err(status::internal)?;
    Ok(json(StatusCode::OK, document))
}

async fn openapi_v3(path: String, accepted: Option<&str>) -> Result<Reply, ApiError> {
    // Clients that insist on protobuf fall back to version 2.
    if accept::negotiate(accepted, true).is_none() {
        return Err(status::not_acceptable(&["application/json"]));
    }
    let document =
        tokio::task::spawn_blocking(move || schema::openapi_v3(&path)).await.map_err(status::internal)?;
    document.map(|document| json(StatusCode::OK, document)).ok_or_else(status::no_such_resource)
}
