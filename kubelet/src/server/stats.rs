//! `/stats/summary`: what the runtime measures, in upstream's shape (kubelet/pkg/apis/stats/v1alpha1).

use std::collections::BTreeMap;

use hyper::StatusCode;
use jiff::Timestamp;
use orlop_cri::v1 as cri;
use serde_json::{Value, json};

use super::{Answer, json as answer_json, text};
use crate::Kubelet;
use crate::labels;
use crate::node::machine;

fn time(nanoseconds: i64) -> Value {
    let time = Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH);
    Value::String(Timestamp::from_second(time.as_second()).unwrap_or(time).to_string())
}

fn value(number: Option<&cri::UInt64Value>) -> Value {
    number.map_or(Value::Null, |number| Value::from(number.value))
}

fn cpu(usage: &cri::CpuUsage) -> Value {
    json!({
        "time": time(usage.timestamp),
        "usageCoreNanoSeconds": value(usage.usage_core_nano_seconds.as_ref()),
        "usageNanoCores": value(usage.usage_nano_cores.as_ref()),
    })
}

fn memory(usage: &cri::MemoryUsage) -> Value {
    json!({
        "time": time(usage.timestamp),
        "workingSetBytes": value(usage.working_set_bytes.as_ref()),
        "usageBytes": value(usage.usage_bytes.as_ref()),
        "rssBytes": value(usage.rss_bytes.as_ref()),
    })
}

/// The node and every container of its pods.
pub(crate) async fn summary(kubelet: &Kubelet) -> Answer {
    let stats = match kubelet.runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await {
        Ok(answer) => answer.stats,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let mut pods: BTreeMap<(String, String, String), Vec<Value>> = BTreeMap::new();
    for entry in stats {
        let Some(attributes) = entry.attributes else {
            continue;
        };
        let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
        let key = (label(labels::POD_NAMESPACE), label(labels::POD_NAME), label(labels::POD_UID));
        if key.2.is_empty() {
            continue;
        }
        let mut container = json!({"name": label(labels::CONTAINER_NAME)});
        if let Some(usage) = &entry.cpu {
            container["cpu"] = cpu(usage);
        }
        if let Some(usage) = &entry.memory {
            container["memory"] = memory(usage);
        }
        pods.entry(key).or_default().push(container);
    }
    let pods: Vec<Value> = pods
        .into_iter()
        .map(|((namespace, name, uid), containers)| {
            json!({"podRef": {"name": name, "namespace": namespace, "uid": uid}, "containers": containers})
        })
        .collect();
    answer_json(&json!({"node": node(kubelet), "pods": pods}))
}

fn node(kubelet: &Kubelet) -> Value {
    let now =
        Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH).to_string();
    let available = machine::meminfo("MemAvailable").unwrap_or(0);
    let total = kubelet.machine.memory_bytes;
    let disk = machine::disk(&kubelet.config.root_dir);
    json!({
        "nodeName": kubelet.config.node_name,
        "memory": {"time": now, "availableBytes": available, "workingSetBytes": total.saturating_sub(available)},
        "fs": {"time": now, "capacityBytes": disk.map(|(size, _)| size), "availableBytes": disk.map(|(_, free)| free)},
    })
}
