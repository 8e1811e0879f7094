//! The resolver configuration and the hosts file of a pod. Pure.

use k8s_openapi::api::core::v1 as core;

use crate::pod::model;

/// What a resolver file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;

/// Reads resolv.conf(5): the last `search` line counts.
pub(crate) fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace();
        let key = words.next();
        let values = words.map(str::to_owned);
        match key {
            Some("nameserver") => resolver.servers.extend(values.take(1)),
            Some("search") => {
                resolver.searches = values
                    .map(
                        |domain| {
                            if domain == "." { domain } else { domain.trim_end_matches('.').to_owned() }
                        },
                    )
                    .collect()
            }
            Some("options") => resolver.options = values.collect(),
            _ => {}
        }
    }
    resolver
}

/// The resolver of a pod after its `dnsPolicy` and `dnsConfig`.
pub(crate) fn resolver(pod: &core::Pod, node: &Resolver, cluster_dns: &[String], domain: &str) -> Resolver {
    let spec = model::spec(pod);
    let host_network = model::host_network(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "Default" | "None" => false,
        _ => !host_network,
    } && !cluster_dns.is_empty();
    let mut resolver = if policy == "None" {
        Resolver::default()
    } else if cluster {
        let namespace = model::namespace(pod);
        let mut searches = Vec::new();
        if !domain.is_empty() {
            searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        }
        searches.extend(node.searches.iter().cloned());
        Resolver { servers: cluster_dns.to_vec(), searches, options: vec!["ndots:5".to_owned()] }
    } else {
        node.clone()
    };
    if let Some(config) = &spec.dns_config {
        merge(&mut resolver, config);
    }
    bound(&mut resolver);
    resolver
}

fn merge(resolver: &mut Resolver, config: &core::PodDNSConfig) {
    resolver.servers.extend(config.nameservers.iter().flatten().cloned());
    resolver.searches.extend(config.searches.iter().flatten().cloned());
    for option in config.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        let text = match &option.value {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name.clone(),
        };
        let same = |known: &String| known.split(':').next() == Some(name);
        resolver.options.retain(|known| !same(known));
        resolver.options.push(text);
    }
}

/// Removes duplicates and what resolvers would ignore (upstream: formDNSNameserversFitsLimits, formDNSSearchFitsLimits).
fn bound(resolver: &mut Resolver) {
    let mut servers: Vec<String> = Vec::new();
    for server in resolver.servers.drain(..) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers.truncate(MAX_SERVERS);
    resolver.servers = servers;
    let mut searches: Vec<String> = Vec::new();
    let mut bytes = 0;
    for search in resolver.searches.drain(..) {
        if searches.contains(&search) {
            continue;
        }
        bytes += search.len() + 1;
        if searches.len() == MAX_SEARCHES || bytes > MAX_SEARCH_BYTES {
            break;
        }
        searches.push(search);
    }
    resolver.searches = searches;
}

/// Hostname and domain (empty for none) of a pod.
pub(crate) fn hostname(pod: &core::Pod, domain: &str, node: &str) -> (String, String) {
    let spec = model::spec(pod);
    if let Some(name) = spec.hostname_override.as_ref().filter(|name| !name.is_empty()) {
        return (name.clone(), String::new());
    }
    if model::host_network(pod) {
        return (node.to_owned(), String::new());
    }
    let hostname = match spec.hostname.as_ref().filter(|name| !name.is_empty()) {
        Some(name) => name.clone(),
        // A label has at most 63 characters and does not end in a dash or dot.
        None => model::name(pod).chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned(),
    };
    let pod_domain = spec
        .subdomain
        .as_ref()
        .filter(|sub| !sub.is_empty())
        .map(|sub| format!("{sub}.{}.svc.{domain}", model::namespace(pod)))
        .unwrap_or_default();
    (hostname, pod_domain)
}

/// The name that goes into the UTS namespace.
pub(crate) fn kernel_hostname(pod: &core::Pod, domain: &str, node: &str) -> String {
    let (hostname, pod_domain) = self::hostname(pod, domain, node);
    let qualified = format!("{hostname}.{pod_domain}");
    if model::spec(pod).set_hostname_as_fqdn == Some(true) && !pod_domain.is_empty() && qualified.len() <= 64
    {
        qualified
    } else {
        hostname
    }
}

/// The hosts file of a pod with a network of its own, or of one in the host's (`host_file` is the host's then).
pub(crate) fn hosts_file(
    pod: &core::Pod,
    ips: &[String],
    hostname: &str,
    domain: &str,
    host_file: Option<&str>,
) -> String {
    let mut text = match host_file {
        Some(host_file) => format!("# Kubernetes-managed hosts file (host network).\n{host_file}"),
        None => String::from(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        ),
    };
    if host_file.is_none() {
        for ip in ips {
            if domain.is_empty() {
                text.push_str(&format!("{ip}\t{hostname}\n"));
            } else {
                text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n"));
            }
        }
    }
    let aliases = model::spec(pod).host_aliases.iter().flatten();
    for (index, alias) in aliases.enumerate() {
        if index == 0 {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        let names: Vec<&str> = alias.hostnames.iter().flatten().map(String::as_str).collect();
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> core::Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"name": "web-0", "namespace": "shop", "uid": "u"}, "spec": spec}),
        )
        .unwrap()
    }

    fn lines(resolver: &Resolver) -> String {
        format!(
            "{} | {} | {}",
            resolver.servers.join(" "),
            resolver.searches.join(" "),
            resolver.options.join(" ")
        )
    }

    #[test]
    fn policies() {
        let node = parse("# x\nnameserver 9.9.9.9\nsearch corp. lan\noptions timeout:1\n");
        let cluster = ["10.96.0.10".to_owned()];
        let first = "10.96.0.10 | shop.svc.cluster.local svc.cluster.local cluster.local corp lan | ndots:5";
        let default = "9.9.9.9 | corp lan | timeout:1";
        for (spec, expected) in [
            (serde_json::json!({"containers": []}), first),
            (serde_json::json!({"containers": [], "hostNetwork": true}), default),
            (
                serde_json::json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                first,
            ),
            (serde_json::json!({"containers": [], "dnsPolicy": "Default"}), default),
            (
                serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1", "1.1.1.1"],
                    "searches": ["a"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "1.1.1.1 | a | ndots:2 edns0",
            ),
            (
                serde_json::json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}),
                "10.96.0.10 | shop.svc.cluster.local svc.cluster.local cluster.local corp lan | ndots:2",
            ),
        ] {
            assert_eq!(
                lines(&resolver(&pod(spec.clone()), &node, &cluster, "cluster.local")),
                expected,
                "{spec}"
            );
        }
    }

    #[test]
    fn names_and_hosts() {
        let plain = pod(serde_json::json!({"containers": []}));
        assert_eq!(hostname(&plain, "cluster.local", "n1"), ("web-0".into(), String::new()));
        let named = pod(
            serde_json::json!({"containers": [], "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true,
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        );
        assert_eq!(kernel_hostname(&named, "cluster.local", "n1"), "h.s.shop.svc.cluster.local");
        let text = hosts_file(&named, &["10.0.0.9".into()], "h", "s.shop.svc.cluster.local", None);
        assert!(text.contains("10.0.0.9\th.s.shop.svc.cluster.local\th\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\ta\tb\n"), "{text}");
    }
}
