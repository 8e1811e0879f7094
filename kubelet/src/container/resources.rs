//! Requests and limits as cgroup values (upstream: pkg/kubelet/cm/helpers_linux.go, qos/policy.go). Pure.

use k8s_openapi::api::core::v1 as core;
use orlop_cri::v1 as cri;

use crate::pod::model::{self, Qos, Role};
use crate::quantity;

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const PERIOD_MICROSECONDS: i64 = 100_000;
const MIN_QUOTA_MICROSECONDS: i64 = 1000;

/// CPU shares of thousandths of a CPU.
pub(crate) fn shares(milli_cpu: i64) -> i64 {
    (milli_cpu.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CFS quota of thousandths of a CPU.
pub(crate) fn quota(milli_cpu: i64) -> i64 {
    (milli_cpu.saturating_mul(PERIOD_MICROSECONDS) / 1000).max(MIN_QUOTA_MICROSECONDS)
}

/// cgroup v2 weight of v1 shares (the kernel's default 1024 becomes 100; KEP-2254 as revised by runc and crun).
pub(crate) fn weight(shares: i64) -> u64 {
    if shares <= MIN_SHARES {
        return 1;
    }
    if shares >= MAX_SHARES {
        return 10_000;
    }
    #[expect(clippy::cast_precision_loss, reason = "shares are below 2^18")]
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the exponent lies between 0 and 4"
    )]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight.clamp(1, 10_000)
}

/// What the kernel should kill first.
pub(crate) fn oom_score_adj(pod: &core::Pod, container: &core::Container, memory_capacity_bytes: i64) -> i64 {
    let spec = model::spec(pod);
    if spec.priority.is_some_and(|priority| priority >= 2_000_001_000) {
        return -997;
    }
    match model::qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let resources = container.resources.as_ref();
            let request =
                quantity::whole_of(resources.and_then(|r| r.requests.as_ref()), "memory").unwrap_or(0);
            let capacity = i128::from(memory_capacity_bytes.max(1));
            let score = 1000 - i64::try_from(1000 * i128::from(request) / capacity).unwrap_or(1000);
            score.clamp(3, 999)
        }
    }
}

/// The CRI resources of one container.
pub(crate) fn container(
    pod: &core::Pod,
    container: &core::Container,
    memory_capacity_bytes: i64,
    unified: bool,
) -> cri::LinuxContainerResources {
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    let cpu_limit = quantity::milli_of(limits, "cpu").filter(|limit| *limit > 0);
    let cpu_request = quantity::milli_of(requests, "cpu").or(cpu_limit).unwrap_or(0);
    let mut linux = cri::LinuxContainerResources {
        cpu_shares: shares(cpu_request),
        cpu_period: PERIOD_MICROSECONDS,
        cpu_quota: cpu_limit.map_or(0, quota),
        memory_limit_in_bytes: quantity::whole_of(limits, "memory").unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, container, memory_capacity_bytes),
        ..Default::default()
    };
    for (name, amount) in limits.into_iter().flatten() {
        let Some(size) = name.strip_prefix("hugepages-") else {
            continue;
        };
        let page_size = size.replace("Ki", "KB").replace("Mi", "MB").replace("Gi", "GB");
        linux
            .hugepage_limits
            .push(cri::HugepageLimit { page_size, limit: quantity::bytes(&amount.0).unwrap_or(0) });
    }
    if unified {
        // One process killed for memory takes its container along (KEP-4191's default).
        linux.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    linux
}

/// Limits of a whole pod, as its cgroup gets them; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodLimits {
    pub(crate) cpu_shares: i64,
    pub(crate) cpu_quota: Option<i64>,
    pub(crate) cpu_period: i64,
    pub(crate) memory_bytes: Option<i64>,
}

/// A pod is bounded when all of its containers are.
pub(crate) fn pod_limits(pod: &core::Pod) -> PodLimits {
    let requests = crate::pod::admission::requests(pod);
    let limit = |name: &str| -> Option<i64> {
        let mut total = 0_i64;
        let mut largest_init = 0_i64;
        for (role, container) in model::containers(pod) {
            let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
            let value = if name == "cpu" {
                quantity::milli_of(limits, name)
            } else {
                quantity::whole_of(limits, name)
            };
            let value = value.filter(|value| *value > 0);
            match role {
                Role::App | Role::Sidecar => total = total.saturating_add(value?),
                Role::Init => largest_init = largest_init.max(value?),
                Role::Ephemeral => {}
            }
        }
        let overhead = model::spec(pod).overhead.as_ref();
        let overhead = if name == "cpu" {
            quantity::milli_of(overhead, name)
        } else {
            quantity::whole_of(overhead, name)
        };
        Some(total.max(largest_init).saturating_add(overhead.unwrap_or(0)))
    };
    PodLimits {
        cpu_shares: shares(requests.get("cpu").copied().unwrap_or(0)),
        cpu_quota: limit("cpu").map(quota),
        cpu_period: PERIOD_MICROSECONDS,
        memory_bytes: limit("memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: serde_json::Value) -> core::Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "resources": resources}]}})).unwrap()
    }

    #[test]
    fn classes_and_scores() {
        let gib = 1_i64 << 30;
        for (resources, class, score) in [
            (serde_json::json!({}), Qos::BestEffort, 1000),
            (serde_json::json!({"requests": {"cpu": "100m"}}), Qos::Burstable, 999),
            (serde_json::json!({"requests": {"memory": "512Mi"}}), Qos::Burstable, 500),
            (serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), Qos::Guaranteed, -997),
        ] {
            let pod = pod(resources);
            assert_eq!(model::qos(&pod), class);
            assert_eq!(oom_score_adj(&pod, &model::spec(&pod).containers[0], gib), score);
        }
    }

    #[test]
    fn cgroup_values() {
        assert_eq!((shares(0), shares(100), shares(1000)), (2, 102, 1024));
        assert_eq!((quota(1), quota(500)), (1000, 50_000));
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 100, 10_000));
        let limits = pod_limits(&pod(serde_json::json!({"limits": {"cpu": "500m", "memory": "1Mi"}})));
        assert_eq!(
            limits,
            PodLimits {
                cpu_shares: 512,
                cpu_quota: Some(50_000),
                cpu_period: 100_000,
                memory_bytes: Some(1 << 20)
            }
        );
        assert_eq!(pod_limits(&pod(serde_json::json!({}))).memory_bytes, None);
    }
}
