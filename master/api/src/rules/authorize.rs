//! Who may do what: a table by group, and upstream's Node authorizer for kubelets
//! (`plugin/pkg/auth/authorizer/node`, behaviour of 1.36 with field selectors).

use crate::identity::{AUTHENTICATED, Identity, MASTERS};

const NETWORK: &str = "system:orlop:network";
const NODE_LEASES: &str = "kube-node-lease";

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attributes<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// What the field selector demands of `spec.nodeName`.
    pub(crate) node_name: Option<&'a str>,
}

/// What the Node authorizer must know of the objects.
pub(crate) trait Pods {
    /// Whether this pod is bound to the node.
    fn is_on(&self, namespace: &str, pod: &str, node: &str) -> bool;
    /// Whether a pod of the node refers to this, for example `secrets/x`.
    fn is_referenced(&self, namespace: &str, reference: &str, node: &str) -> bool;
}

/// Whether a request for objects is allowed.
pub(crate) fn may(identity: &Identity, asked: &Attributes<'_>, pods: &dyn Pods) -> bool {
    if identity.is_in(MASTERS) {
        return true;
    }
    (identity.is_in(AUTHENTICATED) && is_self_review(asked))
        || identity.node().is_some_and(|node| node_may(node, asked, pods))
        || (identity.is_in(NETWORK) && network_may(asked))
}

/// Whether a request for a path that is no object is allowed.
pub(crate) fn may_path(identity: &Identity, verb: &str, path: &str) -> bool {
    if identity.is_in(MASTERS) {
        return true;
    }
    let read = matches!(verb, "get" | "head");
    let open =
        |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    let everybody = ["/healthz", "/livez", "/readyz", "/version"].into_iter().any(open);
    let members = ["/api", "/apis", "/openapi"].into_iter().any(open);
    read && (everybody || (members && identity.is_in(AUTHENTICATED)))
}

fn is_self_review(asked: &Attributes<'_>) -> bool {
    asked.verb == "create"
        && asked.subresource.is_empty()
        && matches!(
            (asked.group, asked.resource),
            ("authorization.k8s.io", "selfsubjectaccessreviews" | "selfsubjectrulesreviews")
                | ("authentication.k8s.io", "selfsubjectreviews")
        )
}

/// The network process reads what rules and names are made of, and annotates its Node.
fn network_may(asked: &Attributes<'_>) -> bool {
    let read = matches!(asked.verb, "get" | "list" | "watch") && asked.subresource.is_empty();
    match (asked.group, asked.resource) {
        ("", "nodes") => read || (asked.verb == "patch" && matches!(asked.subresource, "" | "status")),
        ("", "services" | "endpoints" | "pods" | "namespaces")
        | ("discovery.k8s.io", "endpointslices")
        | ("networking.k8s.io", "networkpolicies") => read,
        ("" | "events.k8s.io", "events") => matches!(asked.verb, "create" | "patch" | "update"),
        _ => false,
    }
}

fn node_may(node: &str, asked: &Attributes<'_>, pods: &dyn Pods) -> bool {
    let read = matches!(asked.verb, "get" | "list" | "watch");
    let write = matches!(asked.verb, "update" | "patch");
    let own = asked.name == node;
    match (asked.group, asked.resource, asked.subresource) {
        ("", "nodes", "") => asked.verb == "create" || ((read || write) && own),
        ("", "nodes", "status") => write && own,
        ("", "pods", _) => node_may_pod(node, asked, pods),
        ("", "services", "")
        | ("node.k8s.io", "runtimeclasses", "")
        | ("storage.k8s.io", "csidrivers", "") => read,
        ("", "secrets" | "configmaps", "") => {
            let reference = format!("{}/{}", asked.resource, asked.name);
            read && !asked.name.is_empty() && pods.is_referenced(asked.namespace, &reference, node)
        }
        ("", "serviceaccounts", "token") => {
            asked.verb == "create"
                && pods.is_referenced(asked.namespace, &format!("serviceaccounts/{}", asked.name), node)
        }
        ("coordination.k8s.io", "leases", "") => {
            asked.namespace == NODE_LEASES
                // The name of a new object is in its body; admission compares it.
                && (asked.verb == "create" || (own && (write || matches!(asked.verb, "get" | "delete"))))
        }
        ("storage.k8s.io", "csinodes", "") => {
            asked.verb == "create" || (own && (write || matches!(asked.verb, "get" | "delete")))
        }
        ("" | "events.k8s.io", "events", "") => matches!(asked.verb, "create" | "update" | "patch"),
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => {
            asked.verb == "create"
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") => read || asked.verb == "create",
        _ => false,
    }
}

fn node_may_pod(node: &str, asked: &Attributes<'_>, pods: &dyn Pods) -> bool {
    let bound = || pods.is_on(asked.namespace, asked.name, node);
    match (asked.verb, asked.subresource) {
        ("list" | "watch", "") => asked.node_name == Some(node) || (!asked.name.is_empty() && bound()),
        ("get" | "delete", "") | ("update" | "patch", "status") | ("create", "eviction") => bound(),
        // Mirror pods; admission compares the node.
        ("create", "") => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World;
    impl Pods for World {
        fn is_on(&self, namespace: &str, pod: &str, node: &str) -> bool {
            (namespace, pod, node) == ("a", "web", "n1")
        }
        fn is_referenced(&self, namespace: &str, reference: &str, node: &str) -> bool {
            (namespace, reference, node) == ("a", "secrets/key", "n1")
        }
    }

    /// `verb resource[.group][/subresource] [namespace/]name [nodeName]`
    fn asked(text: &str) -> Attributes<'_> {
        let mut words = text.split(' ');
        let verb = words.next().unwrap();
        let full = words.next().unwrap();
        let (full, subresource) = full.split_once('/').unwrap_or((full, ""));
        let (resource, group) = full.split_once('.').unwrap_or((full, ""));
        let (namespace, name) = words.next().unwrap_or("/").split_once('/').unwrap();
        Attributes { verb, group, resource, subresource, namespace, name, node_name: words.next() }
    }

    #[test]
    fn a_kubelet_may_only_touch_what_is_its_own() {
        let node = Identity::authenticated("system:node:n1", ["system:nodes".to_owned()]);
        let table = [
            (true, "get nodes /n1"),
            (false, "get nodes /n2"),
            (false, "list nodes"),
            (true, "patch nodes/status /n1"),
            (true, "create nodes"),
            (false, "delete nodes /n1"),
            (true, "list pods / n1"),
            (false, "list pods"),
            (false, "watch pods / n2"),
            (true, "get pods a/web"),
            (false, "get pods a/other"),
            (true, "patch pods/status a/web"),
            (true, "delete pods a/web"),
            (false, "patch pods a/web"),
            (true, "get secrets a/key"),
            (true, "watch secrets a/key"),
            (false, "list secrets a/"),
            (false, "get secrets a/other"),
            (false, "get configmaps a/key"),
            (true, "watch services"),
            (false, "list endpointslices.discovery.k8s.io"),
            (true, "update leases.coordination.k8s.io kube-node-lease/n1"),
            (false, "update leases.coordination.k8s.io kube-node-lease/n2"),
            (false, "update leases.coordination.k8s.io a/n1"),
            (true, "create events"),
            (true, "create selfsubjectaccessreviews.authorization.k8s.io"),
            (true, "create tokenreviews.authentication.k8s.io"),
            (false, "list namespaces"),
        ];
        for (allowed, text) in table {
            assert_eq!(may(&node, &asked(text), &World), allowed, "{text}");
        }
    }

    #[test]
    fn the_other_groups() {
        let network = Identity::authenticated("system:orlop:network:n1", [NETWORK.to_owned()]);
        let account =
            Identity::authenticated("system:serviceaccount:a:b", ["system:serviceaccounts".to_owned()]);
        let root = Identity::superuser("root");
        let table = [
            ("list endpointslices.discovery.k8s.io", true, false),
            ("watch nodes", true, false),
            ("patch nodes /n1", true, false),
            ("delete nodes /n1", false, false),
            ("list secrets", false, false),
            ("create selfsubjectrulesreviews.authorization.k8s.io", true, true),
        ];
        for (text, for_network, for_account) in table {
            assert!(may(&root, &asked(text), &World));
            assert!(!may(&Identity::anonymous(), &asked(text), &World));
            assert_eq!(may(&network, &asked(text), &World), for_network, "network: {text}");
            assert_eq!(may(&account, &asked(text), &World), for_account, "account: {text}");
        }
        for (path, anonymous, known) in [
            ("/livez", true, true),
            ("/readyz/store", true, true),
            ("/version", true, true),
            ("/apis", false, true),
            ("/openapi/v2", false, true),
            ("/metrics", false, false),
            ("/versions", false, false),
        ] {
            assert_eq!(may_path(&Identity::anonymous(), "get", path), anonymous, "{path}");
            assert_eq!(may_path(&account, "get", path), known, "{path}");
        }
    }
}
