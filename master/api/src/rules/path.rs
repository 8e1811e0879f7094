//! What a request is about, from its method and path (apiserver `endpoints/request/requestinfo.go`).

use super::query::{Query, decode};

/// The parts of a resource path, and the verb.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    pub(crate) verb: &'static str,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) name: String,
    /// What follows a proxying subresource.
    pub(crate) rest: String,
}

/// What kind of path it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Objects of a resource.
    Resource(RequestInfo),
    /// Discovery, OpenAPI, health, version: anything else.
    Other,
}

/// Sorts a request. `name_field` is what a field selector demands of `metadata.name`: it makes a list a request for one name.
pub(crate) fn route(method: &str, path: &str, query: &Query, name_field: Option<&str>) -> Route {
    let segments: Vec<String> =
        path.trim_matches('/').split('/').map(|segment| decode(segment, false)).collect();
    let (group, version, mut rest) = match segments.iter().map(String::as_str).collect::<Vec<_>>().as_slice()
    {
        ["api", version, ..] if segments.len() > 2 => (String::new(), (*version).to_owned(), &segments[2..]),
        ["apis", group, version, ..] if segments.len() > 3 => {
            ((*group).to_owned(), (*version).to_owned(), &segments[3..])
        }
        _ => return Route::Other,
    };
    let mut watch = query.flag("watch");
    if rest[0] == "watch" && rest.len() > 1 {
        watch = true;
        rest = &rest[1..];
    }
    let mut info = RequestInfo { group, version, ..RequestInfo::default() };
    if rest[0] == "namespaces" {
        if let Some(namespace) = rest.get(1) {
            info.namespace.clone_from(namespace);
        }
        // namespaces/NAME and its own subresources are about the namespace itself.
        let below = rest.get(2).is_some_and(|next| !matches!(next.as_str(), "status" | "finalize"));
        if below {
            rest = &rest[2..];
        }
    }
    info.resource.clone_from(&rest[0]);
    info.name = rest.get(1).cloned().unwrap_or_default();
    info.subresource = rest.get(2).cloned().unwrap_or_default();
    info.rest = rest.get(3..).unwrap_or_default().join("/");
    let named = !info.name.is_empty();
    info.verb = match method {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if named => "delete",
        "DELETE" => "deletecollection",
        "GET" | "HEAD" if watch && info.subresource.is_empty() => "watch",
        "GET" | "HEAD" if named => "get",
        "GET" | "HEAD" => "list",
        _ => "",
    };
    if !named && matches!(info.verb, "list" | "watch" | "deletecollection") {
        info.name = name_field.unwrap_or_default().to_owned();
    }
    if info.resource == "namespaces" && info.namespace.is_empty() {
        info.namespace.clone_from(&info.name);
    }
    Route::Resource(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        let table = [
            ("GET", "/api/v1/pods", "", "list  v1   pods  "),
            ("GET", "/api/v1/namespaces/a/pods", "", "list  v1 a  pods  "),
            ("GET", "/api/v1/namespaces/a/pods?watch=1", "watch=1", "watch  v1 a  pods  "),
            ("GET", "/api/v1/watch/namespaces/a/pods/x", "", "watch  v1 a x pods  "),
            ("GET", "/api/v1/namespaces/a/pods/x/log", "", "get  v1 a x pods log "),
            ("GET", "/api/v1/namespaces/a/pods/x/log", "watch=true", "get  v1 a x pods log "),
            ("PUT", "/api/v1/namespaces/a/finalize", "", "update  v1 a a namespaces finalize "),
            ("GET", "/api/v1/namespaces/a", "", "get  v1 a a namespaces  "),
            ("GET", "/api/v1/namespaces", "", "list  v1   namespaces  "),
            (
                "DELETE",
                "/apis/coordination.k8s.io/v1/namespaces/a/leases",
                "",
                "deletecollection coordination.k8s.io v1 a  leases  ",
            ),
            ("PATCH", "/api/v1/nodes/n/status", "", "patch  v1  n nodes status "),
            ("GET", "/api/v1/nodes/n/proxy/logs/x", "", "get  v1  n nodes proxy logs/x"),
            (
                "POST",
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                "",
                "create authorization.k8s.io v1   selfsubjectaccessreviews  ",
            ),
        ];
        for (method, path, query, expected) in table {
            let path = path.split('?').next().unwrap();
            let Route::Resource(info) = route(method, path, &Query::parse(query), None) else {
                panic!("{path}")
            };
            let text = [
                info.verb,
                &info.group,
                &info.version,
                &info.namespace,
                &info.name,
                &info.resource,
                &info.subresource,
                &info.rest,
            ];
            assert_eq!(text.join(" "), expected, "{method} {path}");
        }
        for path in
            ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/healthz", "/version", "//"]
        {
            assert_eq!(route("GET", path, &Query::default(), None), Route::Other, "{path}");
        }
    }
}
