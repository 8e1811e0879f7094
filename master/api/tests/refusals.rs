//! What a client is told when a request is wrong: code, reason and text as upstream's.

#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;

use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use harness::Master;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Method, path, media type of the body, body, extra header, then code, reason and a part of the text.
type Case<'a> = (&'a str, String, &'a str, &'a str, (&'a str, &'a str), u16, &'a str, &'a str);

const PLAIN: (&str, &str) = ("accept", JSON);

fn cases<'a>() -> Vec<Case<'a>> {
    let map = |rest: &str| format!("{MAPS}{rest}");
    let at = str::to_owned;
    vec![
        ("GET", at("/apis/apps/v1/deployments"), JSON, "", PLAIN, 404, "", "404 page not found"),
        ("GET", at("/apis/apps/v1"), JSON, "", PLAIN, 404, "", "404 page not found"),
        (
            "GET",
            at("/api/v1/nothing"),
            JSON,
            "",
            PLAIN,
            404,
            "NotFound",
            "could not find the requested resource",
        ),
        (
            "POST",
            map(""),
            JSON,
            "{",
            PLAIN,
            400,
            "BadRequest",
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind",
        ),
        (
            "POST",
            map(""),
            JSON,
            "[]",
            PLAIN,
            400,
            "BadRequest",
            "json: cannot unmarshal array into Go value of type struct",
        ),
        (
            "POST",
            map(""),
            "application/yaml",
            "a: {b",
            PLAIN,
            400,
            "BadRequest",
            "error converting YAML to JSON: yaml: line 1: ",
        ),
        (
            "POST",
            map(""),
            JSON,
            r#"{"kind":"Pod","apiVersion":"v1"}"#,
            PLAIN,
            400,
            "BadRequest",
            "converting (v1.Pod) to (core.ConfigMap): unknown conversion",
        ),
        (
            "POST",
            map("?fieldValidation=X"),
            JSON,
            r#"{"metadata":{"name":"x"}}"#,
            PLAIN,
            422,
            "Invalid",
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"X\"",
        ),
        (
            "POST",
            map("?dryRun=X"),
            JSON,
            r#"{"metadata":{"name":"x"}}"#,
            PLAIN,
            422,
            "Invalid",
            "dryRun: Unsupported value",
        ),
        (
            "PUT",
            map("/a"),
            JSON,
            "{}",
            PLAIN,
            400,
            "BadRequest",
            "the name of the object (a based on URL) was undeterminable: name must be provided",
        ),
        (
            "PUT",
            map("/a"),
            JSON,
            r#"{"metadata":{"name":"a","namespace":"x"}}"#,
            PLAIN,
            400,
            "BadRequest",
            "the namespace of the object (x) does not match the namespace on the request (default)",
        ),
        (
            "PATCH",
            map("/a?fieldValidation=Strict"),
            STRATEGIC,
            r#"{"foo":{"b":1}}"#,
            PLAIN,
            422,
            "Invalid",
            " \"\" is invalid: patch: Invalid value: \"map[foo:map[b:1]]\": strict decoding error: unknown field \"foo\"",
        ),
        (
            "PATCH",
            map("/a"),
            MERGE,
            r#"{"data":{"a":5}}"#,
            PLAIN,
            422,
            "Invalid",
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
        (
            "PATCH",
            map("/a?force=true"),
            MERGE,
            "{}",
            PLAIN,
            422,
            "Invalid",
            "force: Forbidden: may not be specified for non-apply patch",
        ),
        (
            "DELETE",
            map("/a"),
            JSON,
            r#"{"kind":"Foo","apiVersion":"v1"}"#,
            PLAIN,
            400,
            "BadRequest",
            "no kind \"Foo\" is registered",
        ),
        (
            "DELETE",
            map("/a"),
            JSON,
            r#"{"propagationPolicy":"Foo"}"#,
            PLAIN,
            422,
            "Invalid",
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value",
        ),
        (
            "GET",
            map("?fieldSelector=foo%3Dx"),
            JSON,
            "",
            PLAIN,
            400,
            "BadRequest",
            "\"foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        (
            "GET",
            at("/api/v1/pods?fieldSelector=foo%3Dx"),
            JSON,
            "",
            PLAIN,
            400,
            "BadRequest",
            "field label not supported: foo",
        ),
        (
            "GET",
            map("?limit=x"),
            JSON,
            "",
            PLAIN,
            400,
            "BadRequest",
            "strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        (
            "GET",
            map("?resourceVersionMatch=Exact"),
            JSON,
            "",
            PLAIN,
            422,
            "Invalid",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden",
        ),
        (
            "GET",
            map("?watch=1&sendInitialEvents=true"),
            JSON,
            "",
            PLAIN,
            422,
            "Invalid",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (
            "GET",
            map("?continue=x&resourceVersion=5"),
            JSON,
            "",
            PLAIN,
            400,
            "BadRequest",
            "specifying resource version is not allowed when using continue",
        ),
        (
            "GET",
            map(""),
            JSON,
            "",
            ("impersonate-user", "bob"),
            403,
            "Forbidden",
            "configmaps is forbidden: User \"bob\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"",
        ),
        (
            "GET",
            map(""),
            JSON,
            "",
            ("impersonate-group", "devs"),
            400,
            "BadRequest",
            "without impersonating a user",
        ),
        (
            "PUT",
            at("/api/v1/namespaces/default/replicationcontrollers/r/scale"),
            JSON,
            r#"{"metadata":{"name":"r"},"spec":{"replicas":"2"}}"#,
            PLAIN,
            400,
            "BadRequest",
            "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal string into Go struct field ScaleSpec.spec.replicas of type int32",
        ),
        (
            "PATCH",
            at("/api/v1/namespaces/default/replicationcontrollers/r/scale"),
            MERGE,
            r#"{"spec":{"replicas":"2"}}"#,
            PLAIN,
            422,
            "Invalid",
            "json: cannot unmarshal string into Go struct field ScaleSpec.spec.replicas of type int32",
        ),
        (
            "POST",
            at("/api/v1/namespaces/default/serviceaccounts/robot/token"),
            JSON,
            r#"{"spec":{"audiences":"x"}}"#,
            PLAIN,
            400,
            "BadRequest",
            "cannot unmarshal string into Go struct field TokenRequestSpec.spec.audiences of type []string",
        ),
        (
            "DELETE",
            map("/a"),
            JSON,
            r#"{"gracePeriodSeconds":"soon"}"#,
            PLAIN,
            400,
            "BadRequest",
            "cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64",
        ),
        (
            "POST",
            at("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"),
            JSON,
            r#"{"spec":{}}"#,
            PLAIN,
            422,
            "Invalid",
            "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
    ]
}

#[test]
fn refusals_have_upstreams_codes_reasons_and_texts() {
    let master = Master::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = master.server.client("admin", ["system:masters"]);
        let controller = r#"{"metadata":{"name":"r"},"spec":{"replicas":1,"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
        for (path, object) in [
            (MAPS, r#"{"metadata":{"name":"a"}}"#),
            ("/api/v1/namespaces/default/serviceaccounts", r#"{"metadata":{"name":"robot"}}"#),
            ("/api/v1/namespaces/default/replicationcontrollers", controller),
        ] {
            let made = http::Request::post(path).header("content-type", JSON);
            client.request_text(made.body(object.as_bytes().to_vec()).unwrap()).await.unwrap();
        }
        for (method, path, media, body, (header, value), code, reason, text) in cases() {
            let request = http::Request::builder().method(method).uri(&path).header("content-type", media);
            let request = request.header(header, value).body(body.as_bytes().to_vec()).unwrap();
            let error = client.request_text(request).await.err();
            let Some(kube::Error::Api(status)) = error else { panic!("{method} {path}: {error:?}") };
            let found = (status.code, status.reason.as_str());
            // The client makes up a reason where the server gives plain text.
            let reason = if reason.is_empty() { status.reason.as_str() } else { reason };
            assert_eq!(found, (code, reason), "{method} {path}: {}", status.message);
            assert!(status.message.contains(text), "{method} {path}: {}", status.message);
        }
    });
}

#[test]
fn head_has_no_body_and_what_every_cluster_has_comes_back() {
    let master = Master::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = master.server.client("admin", ["system:masters"]);
        let service = "/api/v1/namespaces/default/services/kubernetes";
        let request = |method: &str| http::Request::builder().method(method).uri(service).body(Vec::new()).unwrap();
        assert_eq!(client.request_text(request("HEAD")).await.unwrap(), "");
        client.request_text(request("DELETE")).await.unwrap();
        let watch = "/api/v1/namespaces/default/services?watch=1&fieldSelector=metadata.name%3Dkubernetes&timeoutSeconds=60";
        let watch = http::Request::get(watch).body(Vec::new()).unwrap();
        let mut lines = std::pin::pin!(client.request_stream(watch).await.unwrap().lines());
        let line = lines.try_next().await.unwrap().unwrap();
        assert!(line.contains("ADDED") && line.contains("\"kubernetes\""), "{line}");
    });
}

#[test]
fn a_key_given_twice_is_one_line_of_warning() {
    let master = Master::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = master.server.client("admin", ["system:masters"]);
        let body = b"metadata: {name: twice}\ndata:\n  a: b\n  a: c\n".to_vec();
        let request = http::Request::post(MAPS).header("content-type", "application/yaml");
        let reply = client.send(request.body(kube::client::Body::from(body)).unwrap()).await.unwrap();
        assert_eq!(reply.status(), 201);
        let warning = reply.headers()["warning"].to_str().unwrap();
        assert_eq!(warning, "299 - \"yaml: unmarshal errors:   line 4: key \\\"a\\\" already set in map\"");
    });
}
