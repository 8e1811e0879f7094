//! Which sysctls a pod may set (upstream: pkg/kubelet/sysctl).

use k8s_openapi::api::core::v1 as core;

/// Those that reach no other pod and not the node, and that the node's accounting knows.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Why a pod's sysctls are refused. `allowed` are the operator's unsafe ones, a trailing `*` for all with that beginning.
pub(crate) fn forbidden(spec: &core::PodSpec, allowed: &[String]) -> Option<String> {
    let sysctls = spec.security_context.as_ref()?.sysctls.as_ref()?;
    sysctls.iter().find_map(|sysctl| {
        // With slashes as separators a dot is part of a name, as in sysctl(8).
        let separator = sysctl.name.chars().find(|letter| matches!(letter, '.' | '/'));
        let name = if separator == Some('/') {
            sysctl.name.replace('.', "\0").replace('/', ".").replace('\0', "/")
        } else {
            sysctl.name.clone()
        };
        let listed = SAFE.contains(&name.as_str())
            || allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => *pattern == name,
            });
        let host =
            |namespace: &str| format!("forbidden sysctl: {name:?} not allowed with host {namespace} enabled");
        if !listed {
            Some(format!("forbidden sysctl: {name:?} not allowlisted"))
        } else if name.starts_with("net.") {
            (spec.host_network == Some(true)).then(|| host("net"))
        } else {
            (spec.host_ipc == Some(true)).then(|| host("ipc"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_sysctls_are_refused_unless_allowed() {
        let spec = |name: &str, host: bool| -> core::PodSpec {
            serde_json::from_value(serde_json::json!({
                "containers": [], "hostNetwork": host, "hostIPC": host,
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}
            }))
            .unwrap()
        };
        let allowed = ["kernel.sem".to_owned(), "net.core.*".to_owned()];
        for (name, host, expected) in [
            ("net.ipv4.ping_group_range", false, None),
            ("net/ipv4/ping_group_range", false, None),
            (
                "net.ipv4.ping_group_range",
                true,
                Some(r#""net.ipv4.ping_group_range" not allowed with host net enabled"#),
            ),
            (
                "kernel.shm_rmid_forced",
                true,
                Some(r#""kernel.shm_rmid_forced" not allowed with host ipc enabled"#),
            ),
            ("kernel.msgmax", false, Some(r#""kernel.msgmax" not allowlisted"#)),
            ("kernel.sem", false, None),
            ("kernel.semx", false, Some(r#""kernel.semx" not allowlisted"#)),
            ("net.core.somaxconn", false, None),
        ] {
            let expected = expected.map(|text| format!("forbidden sysctl: {text}"));
            assert_eq!(forbidden(&spec(name, host), &allowed), expected, "{name}");
        }
        assert_eq!(forbidden(&core::PodSpec::default(), &[]), None);
    }
}
