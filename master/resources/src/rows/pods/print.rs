//! What `kubectl get pods` shows (upstream `pkg/printers/internalversion/printers.go`, printPod).

use jiff::Timestamp;
use serde_json::Value;

use crate::resource::text;
use crate::rows::shape::{age, human, list, text_or};

/// One row.
pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match (summary.restarts, summary.last_restart) {
        (count, Some(then)) if count > 0 => {
            format!("{count} ({} ago)", human(now.as_second() - then.as_second()))
        }
        (count, _) => count.to_string(),
    };
    let address =
        list(pod, "/status/podIPs").first().map(|entry| text(entry, "/ip")).filter(|ip| !ip.is_empty());
    let address = address.map_or_else(|| text_or(pod, "/status/podIP", "<none>"), Value::from);
    vec![
        Value::from(text(pod, "/metadata/name")),
        Value::from(format!("{}/{}", summary.ready, summary.total)),
        Value::from(summary.reason),
        Value::from(restarts),
        age(pod, now),
        address,
        text_or(pod, "/spec/nodeName", "<none>"),
        text_or(pod, "/status/nominatedNodeName", "<none>"),
        gates(pod),
    ]
}

fn gates(pod: &Value) -> Value {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return Value::from("<none>");
    }
    let holds = |gate: &Value| is_true(pod, &text(gate, "/conditionType"));
    Value::from(format!("{}/{}", gates.iter().filter(|gate| holds(gate)).count(), gates.len()))
}

fn is_true(pod: &Value, condition: &str) -> bool {
    let mut conditions = list(pod, "/status/conditions").iter();
    conditions.any(|found| text(found, "/type") == condition && text(found, "/status") == "True")
}

#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn count_restarts(&mut self, status: &Value) {
        self.restarts += status.get("restartCount").and_then(Value::as_i64).unwrap_or(0);
        let ended = text(status, "/lastState/terminated/finishedAt").parse().ok();
        self.last_restart = self.last_restart.max(ended);
    }
}

fn summarize(pod: &Value) -> Summary {
    let phase = text(pod, "/status/phase");
    let reason = text(pod, "/status/reason");
    let mut summary = Summary { total: list(pod, "/spec/containers").len(), ..Summary::default() };
    summary.reason = if reason.is_empty() { phase.clone() } else { reason.clone() };
    let mut conditions = list(pod, "/status/conditions").iter();
    if conditions.any(|condition| {
        text(condition, "/type") == "PodScheduled" && text(condition, "/reason") == "SchedulingGated"
    }) {
        summary.reason = "SchedulingGated".to_owned();
    }
    let initializing = init_reason(pod, &mut summary);
    if !initializing || is_true(pod, "Initialized") {
        app_reason(pod, &mut summary);
    }
    if pod.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null()) {
        if reason == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if phase != "Failed" && phase != "Succeeded" {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

/// The state of the init containers; true while they hold the pod back.
fn init_reason(pod: &Value, summary: &mut Summary) -> bool {
    let specs = list(pod, "/spec/initContainers");
    let sidecar = |name: &str| {
        specs.iter().any(|spec| text(spec, "/name") == name && text(spec, "/restartPolicy") == "Always")
    };
    summary.total += specs.iter().filter(|spec| text(spec, "/restartPolicy") == "Always").count();
    for (index, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
        summary.count_restarts(status);
        let is_sidecar = sidecar(&text(status, "/name"));
        if is_sidecar && status.get("started") == Some(&Value::Bool(true)) {
            if status.get("ready") == Some(&Value::Bool(true)) {
                summary.ready += 1;
            }
            continue;
        }
        if let Some(ended) = status.pointer("/state/terminated") {
            if ended.get("exitCode") == Some(&Value::from(0)) {
                continue;
            }
            summary.reason = format!("Init:{}", ended_reason(ended));
            return true;
        }
        let waiting = text(status, "/state/waiting/reason");
        summary.reason = if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", specs.len())
        };
        return true;
    }
    false
}

fn ended_reason(ended: &Value) -> String {
    let number = |key: &str| ended.get(key).and_then(Value::as_i64).unwrap_or(0);
    match text(ended, "/reason") {
        reason if !reason.is_empty() => reason,
        _ if number("signal") != 0 => format!("Signal:{}", number("signal")),
        _ => format!("ExitCode:{}", number("exitCode")),
    }
}

fn app_reason(pod: &Value, summary: &mut Summary) {
    let mut running = false;
    // From the last to the first: the first container that has something to say wins.
    for status in list(pod, "/status/containerStatuses").iter().rev() {
        summary.count_restarts(status);
        let waiting = text(status, "/state/waiting/reason");
        if !waiting.is_empty() {
            summary.reason = waiting;
        } else if let Some(ended) = status.pointer("/state/terminated") {
            summary.reason = ended_reason(ended);
        } else if status.get("ready") == Some(&Value::Bool(true))
            && status.pointer("/state/running").is_some()
        {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && running {
        summary.reason = if is_true(pod, "Ready") { "Running".to_owned() } else { "NotReady".to_owned() };
    }
}
