use std::path::PathBuf;

use ipnet::IpNet;
use orlop_daemon::config::Validate;
use serde::{Deserialize, Serialize};

/// Configuration of the scheduler and the controllers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Config {
    /// Pod addresses of the whole cluster; every node gets a part of it.
    pub cluster_cidr: IpNet,
    /// Prefix length of a node's part.
    pub node_cidr_mask_size: u8,
    /// Whether nodes get a part at all; off when the network gives out ranges itself.
    pub allocate_node_cidrs: bool,
    /// PEM file published to every namespace as ConfigMap `kube-root-ca.crt`; none publishes nothing.
    pub root_ca_file: Option<PathBuf>,
    /// How old a node's lease may be before the node counts as gone.
    pub node_monitor_grace_period_seconds: u32,
    /// How often leases are looked at.
    pub node_monitor_period_seconds: u32,
    /// How long a node may be missing before its pods are removed.
    pub orphan_pod_grace_seconds: u32,
    /// Finished pods kept in the whole cluster; the oldest above it are removed.
    pub terminated_pod_threshold: u32,
    /// Workers of each controller.
    pub concurrency: u32,
    /// The `spec.schedulerName` that our scheduler answers to.
    pub scheduler_name: String,
    /// Longest backoff of an unschedulable pod.
    pub pod_max_backoff_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster_cidr: IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 244, 0, 0), 16)),
            node_cidr_mask_size: 24,
            allocate_node_cidrs: true,
            root_ca_file: None,
            node_monitor_grace_period_seconds: 40,
            node_monitor_period_seconds: 5,
            orphan_pod_grace_seconds: 40,
            terminated_pod_threshold: 12_500,
            concurrency: 4,
            scheduler_name: "default-scheduler".to_owned(),
            pod_max_backoff_seconds: 10,
        }
    }
}

impl Validate for Config {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (prefix, longest) = (self.cluster_cidr.prefix_len(), self.cluster_cidr.max_prefix_len());
        if self.node_cidr_mask_size < prefix || self.node_cidr_mask_size > longest {
            problems.push(format!(
                "nodeCidrMaskSize is {}: clusterCidr {} needs a value from {prefix} to {longest}",
                self.node_cidr_mask_size, self.cluster_cidr
            ));
        } else if self.node_cidr_mask_size - prefix > 16 {
            problems.push(format!(
                "nodeCidrMaskSize {} splits clusterCidr {} into more than 65536 parts: give a smaller one",
                self.node_cidr_mask_size, self.cluster_cidr
            ));
        }
        for (key, value) in [
            ("nodeMonitorGracePeriodSeconds", self.node_monitor_grace_period_seconds),
            ("nodeMonitorPeriodSeconds", self.node_monitor_period_seconds),
            ("concurrency", self.concurrency),
            ("podMaxBackoffSeconds", self.pod_max_backoff_seconds),
        ] {
            if value == 0 {
                problems.push(format!("{key} is 0: give at least 1"));
            }
        }
        if self.concurrency > 64 {
            problems.push("concurrency is above 64: give at most 64".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_bad_masks_are_named() {
        assert!(Config::default().problems().is_empty());
        let config = Config { node_cidr_mask_size: 8, concurrency: 0, ..Config::default() };
        let problems = config.problems();
        assert!(problems[0].starts_with("nodeCidrMaskSize is 8"), "{problems:?}");
        assert!(problems[1].starts_with("concurrency is 0"), "{problems:?}");
    }
}
