use serde_json::{Value, json};

use crate::find;

fn row() -> &'static crate::Resource {
    find("", "v1", "pods").unwrap()
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "a", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec});
    row().default(&mut pod);
    pod
}

#[test]
fn defaults_are_filled_in_once() {
    let mut made = pod(
        json!({"containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}, "readinessProbe": {"httpGet": {"port": 80}}}]}),
    );
    let container = &made["spec"]["containers"][0];
    assert_eq!(container["imagePullPolicy"], "Always");
    assert_eq!(container["ports"][0]["protocol"], "TCP");
    assert_eq!(container["resources"]["requests"]["cpu"], "1");
    assert_eq!(container["readinessProbe"]["periodSeconds"], 10);
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/");
    assert_eq!(made["spec"]["terminationGracePeriodSeconds"], 30);
    let once = made.clone();
    row().default(&mut made);
    assert_eq!(made, once);
    row().prepare_create(&mut made);
    assert_eq!(made["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
}

#[test]
fn faults_have_upstream_texts() {
    let faults = |spec: Value| -> Vec<String> {
        row().validate(&pod(spec), None, None).iter().map(ToString::to_string).collect()
    };
    let table = [
        (json!({"containers": []}), "spec.containers: Required value"),
        (
            json!({"containers": [{"name": "A", "image": "i"}]}),
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of",
        ),
        (json!({"containers": [{"name": "a"}]}), "spec.containers[0].image: Required value"),
        (
            json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}),
            "spec.containers[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            json!({"restartPolicy": "Maybe", "containers": [{"name": "a", "image": "i"}]}),
            "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}),
            "must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "livenessProbe": {}}]}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
    ];
    for (spec, wanted) in table {
        let found = faults(spec.clone());
        assert!(found.iter().any(|fault| fault.contains(wanted)), "{wanted} not in {found:?}");
    }
    assert!(faults(json!({"containers": [{"name": "a", "image": "i"}]})).is_empty());
}

#[test]
fn a_specification_is_fixed_but_for_images_and_more_tolerations() {
    let old = pod(
        json!({"containers": [{"name": "a", "image": "1"}], "tolerations": [{"key": "k", "operator": "Exists"}]}),
    );
    let faults = |change: fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new["spec"]);
        row().validate(&new, Some(&old), None).len()
    };
    assert_eq!(faults(|spec| spec["containers"][0]["image"] = json!("2")), 0);
    assert_eq!(
        faults(|spec| spec["tolerations"]
            .as_array_mut()
            .unwrap()
            .push(json!({"key": "l", "operator": "Exists"}))),
        0
    );
    assert_eq!(faults(|spec| spec["tolerations"] = json!([])), 1);
    assert_eq!(faults(|spec| spec["containers"][0]["args"] = json!(["x"])), 1);
    assert_eq!(faults(|spec| spec["nodeName"] = json!("n")), 1);
}

#[test]
fn the_status_column() {
    let now = "2026-01-01T00:05:00Z".parse().unwrap();
    let shown = |status: Value, deleted: bool| {
        let mut pod = pod(
            json!({"containers": [{"name": "a", "image": "i"}], "initContainers": [{"name": "i", "image": "i"}]}),
        );
        pod["status"] = status;
        if deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:01:00Z");
        }
        let cells = row().table_cells(&pod, now);
        let text = |index: usize| cells[index].as_str().unwrap().to_owned();
        format!("{} {} {} {}", text(1), text(2), text(3), text(4))
    };
    let running = json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}}]});
    assert_eq!(shown(running.clone(), false), "1/1 Running 0 5m");
    assert_eq!(shown(running, true), "1/1 Terminating 0 5m");
    assert_eq!(shown(json!({"phase": "Pending"}), false), "0/1 Pending 0 5m");
    let crash = json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:04:30Z"}}}]});
    assert_eq!(shown(crash, false), "0/1 CrashLoopBackOff 3 (30s ago) 5m");
    let init = json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 0, "state": {"running": {}}}]});
    assert_eq!(shown(init, false), "0/1 Init:0/1 0 5m");
    let done = json!({"phase": "Succeeded", "containerStatuses": [{"name": "a", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]});
    assert_eq!(shown(done, false), "0/1 Completed 0 5m");
}
