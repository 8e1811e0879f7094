//! An API server that keeps objects, revisions and a watch history, and knows nothing else.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

type Body = BoxBody<Bytes, Infallible>;
/// Resource, namespace, name.
type Key = (String, String, String);

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    history: Vec<(u64, String, &'static str, Value)>,
    revision: u64,
}

#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

fn body(value: &Value) -> Body {
    Full::new(Bytes::from(value.to_string())).boxed()
}

fn answer(code: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(body(value));
    *response.status_mut() = code.try_into().unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

fn failure(code: u16, reason: &str) -> Response<Body> {
    answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code}),
    )
}

/// Strategic merge, as far as pod and node statuses need it.
fn merge(target: &mut Value, patch: &Value) {
    let (Value::Object(map), Value::Object(patch)) = (&mut *target, patch) else {
        *target = patch.clone();
        return;
    };
    for (key, value) in patch {
        let by = match key.as_str() {
            "conditions" | "addresses" => Some("type"),
            "podIPs" | "hostIPs" => Some("ip"),
            _ => None,
        };
        match (by, value) {
            (_, Value::Null) => drop(map.remove(key)),
            (Some(by), Value::Array(list)) => {
                let known = map.entry(key.clone()).or_insert_with(|| json!([])).as_array_mut().unwrap();
                for entry in list {
                    if entry.get("$patch").is_some() {
                        known.retain(|old| old[by] != entry[by]);
                        continue;
                    }
                    match known.iter_mut().find(|old| old[by] == entry[by]) {
                        Some(old) => merge(old, entry),
                        None => known.push(entry.clone()),
                    }
                }
            }
            (_, Value::Object(_)) => merge(map.entry(key.clone()).or_insert_with(|| json!({})), value),
            _ => drop(map.insert(key.clone(), value.clone())),
        }
    }
}

impl FakeApi {
    /// Serves and returns a client.
    pub(crate) async fn serve(&self) -> kube::Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let api = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let api = api.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let api = api.clone();
                        async move { Ok::<_, Infallible>(api.handle(request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        orlop_kube::client_from_config(kube::Config::new(format!("http://{address}").parse().unwrap()))
            .unwrap()
    }

    fn put(&self, key: Key, kind: &'static str, mut object: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let revision = state.revision;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        if kind == "ADDED" && object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{revision}"));
        }
        state.history.push((revision, key.0.clone(), kind, object.clone()));
        match kind {
            "DELETED" => drop(state.objects.remove(&key)),
            _ => drop(state.objects.insert(key, object.clone())),
        }
        drop(state);
        self.changed.notify_waiters();
        object
    }

    fn key(resource: &str, object: &Value) -> Key {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        (resource.to_owned(), text("namespace"), text("name"))
    }

    pub(crate) fn create(&self, resource: &str, object: Value) -> Value {
        self.put(Self::key(resource, &object), "ADDED", object)
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(&(resource.into(), namespace.into(), name.into())).cloned()
    }

    pub(crate) fn all(&self, resource: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.objects.iter().filter(|(key, _)| key.0 == resource).map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn patch(&self, resource: &str, namespace: &str, name: &str, patch: &Value) {
        let mut object = self.get(resource, namespace, name).unwrap();
        merge(&mut object, patch);
        self.put(Self::key(resource, &object), "MODIFIED", object);
    }

    pub(crate) fn remove(&self, resource: &str, namespace: &str, name: &str) {
        let object = self.get(resource, namespace, name).unwrap();
        self.put(Self::key(resource, &object), "DELETED", object);
    }

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let skip = if parts[0] == "api" { 2 } else { 3 };
        let parts = &parts[skip..];
        let (namespace, rest) =
            if parts[0] == "namespaces" && parts.len() > 2 { (parts[1], &parts[2..]) } else { ("", parts) };
        let resource = rest[0];
        let text = request.into_body().collect().await.unwrap().to_bytes();
        let sent: Value = serde_json::from_slice(&text).unwrap_or(Value::Null);
        match (method, rest) {
            (Method::GET, [_]) if query.contains("watch=") => self.watch(resource, &query),
            (Method::GET, [_]) => {
                let revision = self.state.lock().unwrap().revision.to_string();
                answer(
                    200,
                    &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": revision}, "items": self.all(resource)}),
                )
            }
            (Method::GET, [_, name]) => match self.get(resource, namespace, name) {
                Some(object) => answer(200, &object),
                None => failure(404, "NotFound"),
            },
            (Method::POST, [_, _, "token"]) => answer(
                201,
                &json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": sent["spec"],
                    "status": {"token": "the-token", "expirationTimestamp": "2099-01-01T00:00:00Z"}}),
            ),
            (Method::POST, [_]) => {
                let mut object = sent;
                if !namespace.is_empty() {
                    object["metadata"]["namespace"] = json!(namespace);
                }
                answer(201, &self.create(resource, object))
            }
            (Method::PUT, [_, _]) => answer(200, &self.put(Self::key(resource, &sent), "MODIFIED", sent)),
            (Method::PATCH, [_, name, ..]) => {
                let Some(known) = self.get(resource, namespace, name) else {
                    return failure(404, "NotFound");
                };
                let uid = &sent["metadata"]["uid"];
                if !uid.is_null() && *uid != known["metadata"]["uid"] {
                    return failure(409, "Conflict");
                }
                self.patch(resource, namespace, name, &sent);
                answer(200, &self.get(resource, namespace, name).unwrap())
            }
            (Method::DELETE, [_, name]) => match self.get(resource, namespace, name) {
                Some(object) => {
                    self.remove(resource, namespace, name);
                    answer(200, &object)
                }
                None => failure(404, "NotFound"),
            },
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn watch(&self, resource: &str, query: &str) -> Response<Body> {
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let mut seen: u64 = from.and_then(|text| text.parse().ok()).unwrap_or(0);
        let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(64);
        let (api, resource) = (self.clone(), resource.to_owned());
        tokio::spawn(async move {
            loop {
                let changed = api.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let fresh: Vec<_> = {
                    let state = api.state.lock().unwrap();
                    state
                        .history
                        .iter()
                        .filter(|(revision, kind, ..)| *revision > seen && *kind == resource)
                        .cloned()
                        .collect()
                };
                for (revision, _, kind, object) in fresh {
                    seen = revision;
                    let line = format!("{}\n", json!({"type": kind, "object": object}));
                    if sender.send(Ok(Frame::data(Bytes::from(line)))).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = &mut changed => {}
                    () = sender.closed() => return,
                }
            }
        });
        let mut response =
            Response::new(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)).boxed());
        response.headers_mut().insert("content-type", "application/json".parse().unwrap());
        response
    }
}
