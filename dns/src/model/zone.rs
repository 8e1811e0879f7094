use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use orlop_kube::Key;
use orlop_kube::network as kube;

/// An endpoint under its name in the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its hostname, or its address with dashes.
    pub label: String,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Named and unnamed ports as (name, protocol, port).
    pub ports: Vec<(String, &'static str, u16)>,
}

/// What a Service's own name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Its cluster addresses.
    Cluster(Vec<IpAddr>),
    /// Its ready endpoints.
    Headless,
    /// Another name, outside or inside the zone.
    External(String),
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Lower-case name of its namespace.
    pub namespace: String,
    /// Lower-case name.
    pub name: String,
    /// Where it leads.
    pub target: Target,
    /// Its ports as (name, protocol, port).
    pub ports: Vec<(String, &'static str, u16)>,
    /// Ready endpoints by label; those of several slices with one label are one.
    pub endpoints: BTreeMap<String, Endpoint>,
}

/// Who has an address, for reverse names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) service: Arc<Service>,
    /// Absent for a cluster address.
    pub(super) endpoint: Option<String>,
}

/// One immutable state of the zone.
#[derive(Debug, Default)]
pub struct Zone {
    pub(super) namespaces: HashMap<String, HashMap<String, Arc<Service>>>,
    pub(super) reverse: HashMap<IpAddr, Vec<Holder>>,
    /// Grows with every change; the SOA's serial number.
    pub serial: u32,
}

impl Zone {
    /// Builds the zone. Cost: one pass over all Services and endpoints.
    pub fn build<'a>(
        services: impl IntoIterator<Item = (&'a Key, &'a kube::Service)>,
        slices: impl IntoIterator<Item = (&'a Key, &'a kube::EndpointSlice)>,
        serial: u32,
    ) -> Self {
        let mut by_service: HashMap<(&str, &str), Vec<&kube::EndpointSlice>> = HashMap::new();
        for (key, slice) in slices {
            by_service.entry((&key.namespace, &slice.service)).or_default().push(slice);
        }
        let mut zone = Self { serial, ..Self::default() };
        for (key, service) in services {
            let slices = by_service.get(&(key.namespace.as_str(), key.name.as_str()));
            if let Some(service) = build_service(key, service, slices.map(Vec::as_slice).unwrap_or_default())
            {
                zone.add(service);
            }
        }
        zone
    }

    fn add(&mut self, service: Service) {
        let service = Arc::new(service);
        if let Target::Cluster(ips) = &service.target {
            for ip in ips {
                let holder = Holder { service: service.clone(), endpoint: None };
                // The Service's own name comes before those of endpoints.
                self.reverse.entry(*ip).or_default().insert(0, holder);
            }
        }
        for endpoint in service.endpoints.values() {
            for ip in &endpoint.ips {
                let holder = Holder { service: service.clone(), endpoint: Some(endpoint.label.clone()) };
                self.reverse.entry(*ip).or_default().push(holder);
            }
        }
        let namespace = self.namespaces.entry(service.namespace.clone()).or_default();
        namespace.insert(service.name.clone(), service);
    }

    /// How many Services it holds.
    pub fn len(&self) -> usize {
        self.namespaces.values().map(HashMap::len).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }
}

fn build_service(key: &Key, service: &kube::Service, slices: &[&kube::EndpointSlice]) -> Option<Service> {
    let target = if service.kind == "ExternalName" {
        Target::External(service.external_name.clone()?)
    } else if service.headless {
        Target::Headless
    } else if service.cluster_ips.is_empty() {
        return None;
    } else {
        Target::Cluster(service.cluster_ips.clone())
    };
    let ports = service.ports.iter().map(|port| (port.name.to_lowercase(), port.protocol.name(), port.port));
    let mut endpoints: BTreeMap<String, Endpoint> = BTreeMap::new();
    for slice in slices {
        let ports: Vec<_> = slice
            .ports
            .iter()
            .map(|port| (port.name.to_lowercase(), port.protocol.name(), port.port))
            .collect();
        let shown = slice.endpoints.iter().filter(|endpoint| endpoint.ready || service.publish_not_ready);
        for endpoint in shown {
            add_endpoint(&mut endpoints, endpoint, &ports);
        }
    }
    Some(Service {
        namespace: key.namespace.to_lowercase(),
        name: key.name.to_lowercase(),
        target,
        ports: ports.collect(),
        endpoints,
    })
}

fn add_endpoint(
    endpoints: &mut BTreeMap<String, Endpoint>,
    endpoint: &kube::Endpoint,
    ports: &[(String, &'static str, u16)],
) {
    let Some(first) = endpoint.addresses.first() else {
        return;
    };
    let label = match &endpoint.hostname {
        Some(hostname) if !hostname.is_empty() => hostname.to_lowercase(),
        _ => dashed(*first),
    };
    let entry = endpoints.entry(label.clone()).or_insert_with(|| Endpoint {
        label,
        ips: Vec::new(),
        ports: Vec::new(),
    });
    for ip in &endpoint.addresses {
        if !entry.ips.contains(ip) {
            entry.ips.push(*ip);
        }
    }
    for port in ports {
        if !entry.ports.contains(port) {
            entry.ports.push(port.clone());
        }
    }
}

/// An address as one label: dots and colons become dashes.
pub(super) fn dashed(ip: IpAddr) -> String {
    let text = ip.to_string().replace(['.', ':'], "-");
    // A label may not begin or end with a dash (RFC 1123), as `::1` or `1::` would: those zeroes are written out.
    match (text.starts_with('-'), text.ends_with('-')) {
        (true, true) => format!("0{text}0"),
        (true, false) => format!("0{text}"),
        (false, true) => format!("{text}0"),
        (false, false) => text,
    }
}

/// The address that a dashed label stands for.
pub(super) fn undashed(label: &str) -> Option<IpAddr> {
    let dotted = label.replace('-', ".");
    dotted.parse().ok().or_else(|| label.replace('-', ":").parse().ok())
}
