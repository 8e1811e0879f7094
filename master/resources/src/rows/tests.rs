//! Tables over several rows: what is filled in, what is refused, what is printed.

use serde_json::{Value, json};

use crate::{Resource, discovery, find, resources, status};

fn row(plural: &str) -> &'static Resource {
    resources().iter().find(|row| row.plural == plural).expect("in the table")
}

/// The object with a name where names are due, and defaults.
fn made(row: &Resource, mut object: Value) -> Value {
    let metadata = object["metadata"].as_object().cloned().unwrap_or_default();
    object["metadata"] = Value::Object(metadata);
    if object["metadata"].get("name").is_none() {
        object["metadata"]["name"] = json!("a");
    }
    if row.namespaced && object["metadata"].get("namespace").is_none() {
        object["metadata"]["namespace"] = json!("default");
    }
    row.default(&mut object);
    object
}

fn faults(plural: &str, object: Value) -> Vec<String> {
    let row = row(plural);
    row.validate(&made(row, object), None, None).iter().map(ToString::to_string).collect()
}

#[test]
fn fields_are_filled_in() {
    let table = [
        (
            "services",
            json!({"spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}),
            "/spec",
            json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "selector": {"a": "b"}, "type": "ClusterIP", "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster", "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}),
        ),
        (
            "services",
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
            "/spec/externalTrafficPolicy",
            json!("Cluster"),
        ),
        ("services", json!({"spec": {"clusterIP": "None"}}), "/spec/clusterIPs", json!(["None"])),
        (
            "services",
            json!({"spec": {"sessionAffinity": "ClientIP"}}),
            "/spec/sessionAffinityConfig/clientIP/timeoutSeconds",
            json!(10_800),
        ),
        (
            "services",
            json!({"spec": {"type": "ExternalName", "externalName": "x.y"}}),
            "/spec",
            json!({"type": "ExternalName", "externalName": "x.y", "sessionAffinity": "None"}),
        ),
        ("secrets", json!({"stringData": {"k": "v"}}), "/data", json!({"k": "dg=="})),
        ("secrets", json!({}), "/type", json!("Opaque")),
        ("namespaces", json!({}), "/metadata/labels", json!({"kubernetes.io/metadata.name": "a"})),
        (
            "replicationcontrollers",
            json!({"spec": {"template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}}),
            "/spec/selector",
            json!({"app": "x"}),
        ),
        (
            "replicationcontrollers",
            json!({"spec": {"template": {"metadata": {"labels": {"app": "x"}}, "spec": {}}}}),
            "/metadata/labels",
            json!({"app": "x"}),
        ),
        ("replicationcontrollers", json!({"spec": {}}), "/spec/replicas", json!(1)),
        (
            "nodes",
            json!({"status": {"capacity": {"cpu": "2000m"}}}),
            "/status/allocatable",
            json!({"cpu": "2"}),
        ),
        (
            "networkpolicies",
            json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 1}]}]}}),
            "/spec/policyTypes",
            json!(["Ingress", "Egress"]),
        ),
        ("csidrivers", json!({"spec": {}}), "/spec/volumeLifecycleModes", json!(["Persistent"])),
    ];
    for (plural, object, pointer, wanted) in table {
        let row = row(plural);
        assert_eq!(made(row, object.clone()).pointer(pointer), Some(&wanted), "{plural} {object}");
    }
    let template = made(
        row("replicationcontrollers"),
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": 1}}}]}}}}),
    );
    assert_eq!(template.pointer("/spec/template/spec/enableServiceLinks"), None, "pods alone have it");
    assert_eq!(
        template.pointer("/spec/template/spec/containers/0/resources"),
        Some(&json!({"limits": {"cpu": "1"}}))
    );
    assert_eq!(template.pointer("/spec/template/spec/containers/0/imagePullPolicy"), Some(&json!("Always")));
}

#[test]
fn faults_have_upstreams_texts() {
    let template = |labels: Value| json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let table = [
        ("services", json!({"spec": {}}), "spec.ports: Required value"),
        (
            "services",
            json!({"spec": {"ports": [{"port": 0}]}}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            "services",
            json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}}),
            "spec.ports[0].name: Required value",
        ),
        (
            "services",
            json!({"spec": {"type": "X", "ports": [{"port": 80}]}}),
            "spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            "services",
            json!({"metadata": {"name": "1a"}, "spec": {"ports": [{"port": 80}]}}),
            "metadata.name: Invalid value: \"1a\": a DNS-1035 label must consist of",
        ),
        (
            "services",
            json!({"spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        (
            "services",
            json!({"spec": {"clusterIP": "foo", "ports": [{"port": 80}]}}),
            "spec.clusterIPs[0]: Invalid value: \"foo\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            "configmaps",
            json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}}),
            "data[a]: Invalid value: \"a\": duplicate of key present in binaryData",
        ),
        ("replicationcontrollers", json!({"spec": {}}), "spec.selector: Required value"),
        (
            "replicationcontrollers",
            json!({"spec": {"replicas": -1, "selector": {"a": "b"}, "template": template(json!({"a": "b"}))}}),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "replicationcontrollers",
            json!({"spec": {"selector": {"a": "b"}, "template": template(json!({"a": "c"}))}}),
            "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
        ),
        (
            "replicationcontrollers",
            json!({"spec": {"selector": {"a": "b"}}}),
            "spec.template: Required value",
        ),
        (
            "configmaps",
            json!({"data": {"a b": ""}}),
            "data[a b]: Invalid value: \"a b\": a valid config key must consist of",
        ),
        (
            "configmaps",
            json!({"metadata": {"name": "A"}}),
            "metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of",
        ),
        (
            "configmaps",
            json!({"metadata": {"labels": {"a": "b c"}}}),
            "metadata.labels: Invalid value: \"b c\": a valid label must be an empty string or consist of",
        ),
        (
            "configmaps",
            json!({"metadata": {"labels": {"-": ""}}}),
            "metadata.labels: Invalid value: \"-\": name part must consist of",
        ),
        (
            "configmaps",
            json!({"metadata": {"annotations": {"a": "x".repeat(256 << 10)}}}),
            "metadata.annotations: Too long: may not be more than 262144 bytes",
        ),
        (
            "configmaps",
            json!({"metadata": {"finalizers": ["x"]}}),
            "metadata.finalizers: Invalid value: \"x\": name is neither a standard finalizer name nor is it fully qualified",
        ),
        (
            "configmaps",
            json!({"metadata": {"generateName": "A-"}}),
            "metadata.generateName: Invalid value: \"A-\": a lowercase RFC 1123 subdomain",
        ),
        (
            "namespaces",
            json!({"metadata": {"namespace": "x"}}),
            "metadata.namespace: Forbidden: not allowed on this type",
        ),
        ("secrets", json!({"type": "kubernetes.io/tls"}), "data[tls.crt]: Required value"),
        (
            "leases",
            json!({"spec": {"leaseDurationSeconds": 0}}),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            "nodes",
            json!({"spec": {"taints": [{"key": "k", "effect": "Maybe"}]}}),
            "spec.taints[0].effect: Unsupported value: \"Maybe\"",
        ),
    ];
    for (plural, object, wanted) in table {
        let found = faults(plural, object);
        assert!(found.iter().any(|fault| fault.starts_with(wanted)), "{wanted}\n{found:#?}");
    }
    let generated =
        json!({"metadata": {"generateName": "a-", "finalizers": ["x.y/z"], "labels": {"x.y/z": ""}}});
    assert_eq!(faults("configmaps", generated), Vec::<String>::new());
}

#[test]
fn updates_keep_what_was_given_out_and_refuse_what_is_fixed() {
    let services = row("services");
    let old = made(
        services,
        json!({"metadata": {"uid": "u"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80, "nodePort": 30_000}]}, "status": {"loadBalancer": {}}}),
    );
    let mut new = made(
        services,
        json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}, "status": {"forged": true}}),
    );
    services.prepare_update(&mut new, &old, None);
    assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
    assert_eq!(new["spec"]["ports"][0]["nodePort"], 30_000);
    assert_eq!(new["status"], old["status"]);
    assert_eq!(services.validate(&new, Some(&old), None), []);
    new["spec"]["clusterIP"] = json!("10.96.0.10");
    let found: Vec<String> =
        services.validate(&new, Some(&old), None).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.10\"]: may not change once set"]);

    let balanced = made(
        services,
        json!({"metadata": {"uid": "u"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30_000}]}}),
    );
    let mut plain = balanced.clone();
    plain["spec"]["type"] = json!("ClusterIP");
    services.prepare_update(&mut plain, &balanced, None);
    for gone in ["externalTrafficPolicy", "allocateLoadBalancerNodePorts"] {
        assert_eq!(plain["spec"].get(gone), None, "{gone}");
    }

    let maps = row("configmaps");
    let old = made(maps, json!({"data": {"a": "1"}, "immutable": true, "metadata": {"uid": "u"}}));
    let new = made(maps, json!({"data": {"a": "2"}, "immutable": true, "metadata": {"uid": "v"}}));
    let found: Vec<String> = maps.validate(&new, Some(&old), None).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "metadata.uid: Invalid value: \"v\": field is immutable",
            "data: Forbidden: field is immutable when `immutable` is set"
        ]
    );
}

#[test]
fn status_and_generation_are_the_servers() {
    let controllers = row("replicationcontrollers");
    let object = json!({"spec": {"replicas": 1, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}, "status": {"replicas": 9}});
    let mut first = made(controllers, object);
    controllers.prepare_create(&mut first);
    assert_eq!((&first["metadata"]["generation"], &first["status"]), (&json!(1), &json!({"replicas": 0})));
    let mut scaled = first.clone();
    scaled["spec"]["replicas"] = json!(2);
    scaled["status"]["replicas"] = json!(7);
    let request = scaled.clone();
    controllers.prepare_update(&mut scaled, &first, None);
    assert_eq!((&scaled["metadata"]["generation"], &scaled["status"]["replicas"]), (&json!(2), &json!(0)));
    let mut observed = request;
    controllers.prepare_update(&mut observed, &first, Some("status"));
    assert_eq!((&observed["spec"]["replicas"], &observed["status"]["replicas"]), (&json!(1), &json!(7)));
    assert_eq!(observed["metadata"]["generation"], 1);

    let slices = row("endpointslices");
    let mut slice = made(slices, json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}));
    slices.prepare_create(&mut slice);
    let mut next = slice.clone();
    next["metadata"]["labels"] = json!({"a": "b"});
    slices.prepare_update(&mut next, &slice, None);
    assert_eq!(next["metadata"]["generation"], 1, "labels are not asked for");
    next["endpoints"] = json!([]);
    slices.prepare_update(&mut next, &slice, None);
    assert_eq!(next["metadata"]["generation"], 2);
}

#[test]
fn cells_as_kubectl_shows_them() {
    let now = "2026-01-01T01:00:00Z".parse().expect("a time");
    let created = json!({"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"});
    let table = [
        (
            "services",
            json!({"spec": {"type": "NodePort", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "nodePort": 30_000, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}], "selector": {"b": "c", "a": "b"}}}),
            json!(["a", "NodePort", "10.96.0.1", "<none>", "80:30000/TCP,53/UDP", "60m", "a=b,b=c"]),
        ),
        (
            "services",
            json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1"}}),
            json!(["a", "LoadBalancer", "10.96.0.1", "<pending>", "<none>", "60m", "<none>"]),
        ),
        (
            "endpoints",
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 80}, {"port": 81}]}]}),
            json!(["a", "10.0.0.1:80,10.0.0.1:81,10.0.0.2:80 + 1 more...", "60m"]),
        ),
        ("endpoints", json!({}), json!(["a", "<none>", "60m"])),
        (
            "nodes",
            json!({"spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}, "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}}),
            json!([
                "a",
                "Ready,SchedulingDisabled",
                "<none>",
                "60m",
                "v1.36.0",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ]),
        ),
        ("configmaps", json!({"data": {"a": "1"}, "binaryData": {"b": "MQ=="}}), json!(["a", 2, "60m"])),
        ("secrets", json!({"type": "Opaque", "data": {"a": "MQ=="}}), json!(["a", "Opaque", 1, "60m"])),
        ("namespaces", json!({"status": {"phase": "Active"}}), json!(["a", "Active", "60m"])),
        ("leases", json!({"spec": {"holderIdentity": "n"}}), json!(["a", "n", "60m"])),
        (
            "replicationcontrollers",
            json!({"spec": {"replicas": 2, "selector": {"a": "b"}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}}}, "status": {"replicas": 1}}),
            json!(["a", 2, 1, 0, "60m", "c,d", "i,j", "a=b"]),
        ),
    ];
    for (plural, mut object, wanted) in table {
        object["metadata"] = created.clone();
        assert_eq!(Value::Array(row(plural).table_cells(&object, now)), wanted, "{plural}");
    }
}

#[test]
fn the_table_is_whole() {
    for row in resources() {
        assert!(
            !row.definition.is_empty() && !row.plural.is_empty() && !row.singular.is_empty(),
            "{}",
            row.kind
        );
        assert_eq!(row.verbs.contains(&"list"), !row.list_kind.is_empty(), "{}", row.kind);
        assert_eq!(row.verbs.contains(&"list"), !row.storage.is_empty(), "{}", row.kind);
        assert!(std::ptr::eq(find(row.group, row.version, row.plural).expect("found"), row));
    }
    let list = discovery::resource_list("", "v1").expect("served");
    let names: Vec<&str> = list["resources"]
        .as_array()
        .expect("list")
        .iter()
        .filter_map(|entry| entry["name"].as_str())
        .collect();
    for wanted in [
        "pods",
        "pods/log",
        "pods/exec",
        "services",
        "serviceaccounts/token",
        "replicationcontrollers/scale",
        "namespaces/finalize",
        "bindings",
    ] {
        assert!(names.contains(&wanted), "{wanted}");
    }
    assert_eq!(discovery::aggregated(true)["items"][0]["versions"][0]["version"], "v1");
    assert_eq!(discovery::group("nothing"), None);
}

#[test]
fn statuses_are_upstreams() {
    let pods = row("pods");
    assert_eq!(
        status::not_found(pods, "a").body,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "pods \"a\" not found", "reason": "NotFound",
            "details": {"name": "a", "kind": "pods"}, "code": 404})
    );
    let slices = row("endpointslices");
    assert_eq!(
        status::already_exists(slices, "a").message(),
        "endpointslices.discovery.k8s.io \"a\" already exists"
    );
    let attempt = status::Attempt {
        user: "u",
        verb: "get",
        resource: "pods",
        subresource: "log",
        namespace: "n",
        name: "a",
        ..status::Attempt::default()
    };
    assert_eq!(
        status::forbidden(attempt).message(),
        "pods \"a\" is forbidden: User \"u\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"n\""
    );
    let errors = [
        crate::FieldError::required("spec.containers", ""),
        crate::FieldError::required("metadata.name", "x"),
    ];
    let error = status::invalid(pods, "a", &errors);
    assert_eq!(
        error.message(),
        "Pod \"a\" is invalid: [spec.containers: Required value, metadata.name: Required value: x]"
    );
    assert_eq!(
        error.body["details"]["causes"][0],
        json!({"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers"})
    );
    assert_eq!(status::too_large_resource_version(9, 1).retry_after, Some(1));
}
