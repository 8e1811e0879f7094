//! From a Service and its pods to addresses, and from addresses to Endpoints subsets and EndpointSlices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as SubsetPort, EndpointSubset, ObjectReference,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};

use crate::model::{EndpointSlice, Labels, Pod, Service, ServicePort, TargetPort, selects};

/// Most endpoints of one slice.
pub(crate) const SLICE_ENDPOINTS: usize = 100;
/// Most addresses of one Endpoints object; what is above is left out and marked.
pub(crate) const ENDPOINTS_ADDRESSES: usize = 1000;

/// One address of a Service with the ports it serves. Equal ports share one group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    pub(crate) hostname: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) target: Option<ObjectReference>,
    pub(crate) ports: Vec<Port>,
}

/// A resolved port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) number: u16,
    pub(crate) app_protocol: Option<String>,
}

/// The addresses of a Service in one family, ordered by address.
pub(crate) fn addresses(service: &Service, pods: &[Arc<Pod>], family: &str) -> Vec<Address> {
    let mut addresses: Vec<_> = pods
        .iter()
        .filter(|pod| selects(&service.selector, &pod.meta.labels) && !pod.is_finished())
        .filter_map(|pod| address(service, pod, family))
        .collect();
    addresses.sort_by_key(|address| address.ip);
    addresses
}

fn address(service: &Service, pod: &Pod, family: &str) -> Option<Address> {
    let ip = *pod.ips.iter().find(|ip| ip.is_ipv6() == (family == "IPv6"))?;
    let terminating = pod.meta.deleting.is_some();
    let publish = service.publish_not_ready;
    let ports = service.ports.iter().filter_map(|port| resolve(port, pod)).collect::<Vec<_>>();
    let by_name = !pod.hostname.is_empty() && pod.subdomain == service.meta.name;
    Some(Address {
        ip,
        ready: publish || (pod.ready && !terminating),
        serving: pod.ready,
        terminating,
        hostname: by_name.then(|| pod.hostname.clone()),
        node: pod.node.clone(),
        target: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.meta.namespace.clone()),
            name: Some(pod.meta.name.clone()),
            uid: Some(pod.meta.uid.clone()),
            ..ObjectReference::default()
        }),
        ports,
    })
}

/// A port of the Service on this pod; `None` when the pod declares no port of the wanted name.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let number = match &port.target {
        TargetPort::Number(number) => *number,
        TargetPort::Name(name) => {
            pod.ports
                .iter()
                .find(|declared| declared.name == *name && declared.protocol == port.protocol)?
                .port
        }
    };
    Some(Port {
        name: port.name.clone(),
        protocol: port.protocol.clone(),
        number,
        app_protocol: port.app_protocol.clone(),
    })
}

/// Endpoints subsets: addresses that serve the same ports together. The second value says that addresses were left out.
///
/// Terminating pods are in no subset unless the Service publishes not-ready addresses, as upstream.
pub(crate) fn subsets(service: &Service, addresses: &[Address]) -> (Vec<EndpointSubset>, bool) {
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let shown = addresses.iter().filter(|address| !address.terminating || service.publish_not_ready);
    let mut taken: Vec<&Address> =
        shown.filter(|address| !address.ports.is_empty() || service.headless).collect();
    let over = taken.len() > ENDPOINTS_ADDRESSES;
    // Ready addresses first when not all fit.
    taken.sort_by_key(|address| (!address.ready, address.ip));
    for address in taken.into_iter().take(ENDPOINTS_ADDRESSES) {
        let mut ports = address.ports.clone();
        ports.sort();
        let (ready, not_ready) = groups.entry(ports).or_default();
        let entry = EndpointAddress {
            ip: address.ip.to_string(),
            hostname: address.hostname.clone(),
            node_name: address.node.clone(),
            target_ref: address.target.clone(),
        };
        if address.ready { ready.push(entry) } else { not_ready.push(entry) }
    }
    let some = |list: Vec<EndpointAddress>| (!list.is_empty()).then_some(list);
    let subsets = groups.into_iter().map(|(ports, (ready, not_ready))| EndpointSubset {
        addresses: some(ready),
        not_ready_addresses: some(not_ready),
        ports: (!ports.is_empty()).then(|| ports.into_iter().map(subset_port).collect()),
    });
    (subsets.collect(), over)
}

fn subset_port(port: Port) -> SubsetPort {
    SubsetPort {
        name: Some(port.name).filter(|name| !name.is_empty()),
        port: i32::from(port.number),
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

/// Content of a slice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SliceContent {
    pub(crate) address_type: String,
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// What to do with the slices of a Service.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SlicePlan {
    pub(crate) create: Vec<SliceContent>,
    pub(crate) update: Vec<(Arc<EndpointSlice>, SliceContent)>,
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
}

/// Turns existing slices (only our own) into the wanted addresses with few writes: endpoints that stay keep their slice, new ones fill
/// the gaps, and only what is left over makes a new slice.
///
/// `families` are the address types wanted; a family without addresses keeps one empty slice, as upstream.
pub(crate) fn plan_slices(existing: &[Arc<EndpointSlice>], families: &[(String, Vec<Address>)]) -> SlicePlan {
    let mut plan = SlicePlan::default();
    let mut left: Vec<Arc<EndpointSlice>> = existing.to_vec();
    for (family, addresses) in families {
        let mut groups: BTreeMap<Vec<Port>, Vec<&Address>> = BTreeMap::new();
        for address in addresses {
            groups.entry(address.ports.clone()).or_default().push(address);
        }
        if groups.is_empty() {
            groups.insert(Vec::new(), Vec::new());
        }
        for (ports, members) in groups {
            let ports: Vec<EndpointPort> = ports.into_iter().map(slice_port).collect();
            let same: Vec<_> = left
                .extract_if(.., |slice| slice.address_type == *family && (same_ports(&slice.ports, &ports)))
                .collect();
            plan_group(&mut plan, family, &ports, &members, same);
        }
    }
    plan.delete.extend(left);
    plan
}

/// Adds an update for every slice that would stay as it is but carries other labels than its Service asks for.
pub(crate) fn relabel(plan: &mut SlicePlan, existing: &[Arc<EndpointSlice>], labels: &Labels) {
    for slice in existing.iter().filter(|slice| slice.meta.labels != *labels) {
        let touched =
            plan.update.iter().map(|(old, _)| old).chain(&plan.delete).any(|old| Arc::ptr_eq(old, slice));
        if !touched {
            let content = SliceContent {
                address_type: slice.address_type.clone(),
                ports: slice.ports.clone(),
                endpoints: slice.endpoints.clone(),
            };
            plan.update.push((slice.clone(), content));
        }
    }
}

fn same_ports(left: &[EndpointPort], right: &[EndpointPort]) -> bool {
    let key = |port: &EndpointPort| {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        (text(&port.name), text(&port.protocol), port.port, port.app_protocol.clone())
    };
    let set = |ports: &[EndpointPort]| ports.iter().map(key).collect::<BTreeSet<_>>();
    set(left) == set(right)
}

fn plan_group(
    plan: &mut SlicePlan,
    family: &str,
    ports: &[EndpointPort],
    members: &[&Address],
    existing: Vec<Arc<EndpointSlice>>,
) {
    let mut wanted: BTreeMap<String, Endpoint> =
        members.iter().map(|address| (address.ip.to_string(), slice_endpoint(address))).collect();
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in existing {
        let stay = slice
            .endpoints
            .iter()
            .filter_map(|endpoint| wanted.remove(endpoint.addresses.first()?))
            .collect();
        kept.push((slice, stay));
    }
    // Slices that are written anyway take new endpoints first; then those with the least room.
    kept.sort_by_key(|(slice, stay)| (slice.endpoints == *stay, std::cmp::Reverse(stay.len())));
    let mut fresh = wanted.into_values();
    for (_, stay) in &mut kept {
        let room = SLICE_ENDPOINTS.saturating_sub(stay.len());
        stay.extend(fresh.by_ref().take(room));
    }
    let content = |endpoints: Vec<Endpoint>| SliceContent {
        address_type: family.to_owned(),
        ports: ports.to_vec(),
        endpoints,
    };
    let rest: Vec<_> = fresh.collect();
    plan.create.extend(rest.chunks(SLICE_ENDPOINTS).map(|chunk| content(chunk.to_vec())));
    let is_only = rest.is_empty() && kept.iter().all(|(_, stay)| stay.is_empty());
    let mut kept = kept.into_iter();
    if is_only {
        match kept.next() {
            Some((slice, _)) if slice.endpoints.is_empty() => {}
            Some((slice, _)) => plan.update.push((slice, content(Vec::new()))),
            None => plan.create.push(content(Vec::new())),
        }
    }
    for (slice, stay) in kept {
        if stay.is_empty() {
            plan.delete.push(slice);
        } else if slice.endpoints != stay {
            plan.update.push((slice, content(stay)));
        }
    }
}

fn slice_port(port: Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name),
        protocol: Some(port.protocol),
        port: Some(i32::from(port.number)),
        app_protocol: port.app_protocol,
    }
}

fn slice_endpoint(address: &Address) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(address.ready),
            serving: Some(address.serving),
            terminating: Some(address.terminating),
        }),
        hostname: address.hostname.clone(),
        node_name: address.node.clone(),
        target_ref: address.target.clone(),
        ..Endpoint::default()
    }
}

/// The addresses of an Endpoints object that somebody else keeps, for mirroring into slices.
pub(crate) fn mirrored(subsets: &[EndpointSubset], family: &str) -> Vec<Address> {
    let mut addresses = Vec::new();
    for subset in subsets {
        let ports: Vec<Port> = subset.ports.iter().flatten().filter_map(mirrored_port).collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                continue;
            };
            if ip.is_ipv6() == (family == "IPv6") {
                addresses.push(Address {
                    ip,
                    ready,
                    serving: ready,
                    terminating: false,
                    hostname: address.hostname.clone(),
                    node: address.node_name.clone(),
                    target: address.target_ref.clone(),
                    ports: ports.clone(),
                });
            }
        }
    }
    addresses.truncate(ENDPOINTS_ADDRESSES);
    addresses
}

fn mirrored_port(port: &SubsetPort) -> Option<Port> {
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        number: u16::try_from(port.port).ok()?,
        app_protocol: port.app_protocol.clone(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{ContainerPort, Meta, Phase};

    fn service(ports: Vec<ServicePort>) -> Service {
        Service {
            meta: Meta { name: "web".into(), ..Meta::default() },
            selector: Labels::from([("app".into(), "web".into())]),
            ports,
            families: vec!["IPv4".into()],
            ..Service::default()
        }
    }

    fn port(name: &str, target: TargetPort) -> ServicePort {
        ServicePort { name: name.into(), protocol: "TCP".into(), app_protocol: None, target }
    }

    fn pod(number: u8, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
        let mut pod = Pod {
            meta: Meta {
                name: format!("p{number}"),
                namespace: "default".into(),
                uid: format!("u{number}"),
                labels: Labels::from([("app".into(), "web".into())]),
                ..Meta::default()
            },
            ips: vec![format!("10.0.0.{number}").parse().unwrap()],
            phase: Phase::Running,
            ready: true,
            node: Some("n1".into()),
            ..Pod::default()
        };
        change(&mut pod);
        Arc::new(pod)
    }

    #[test]
    fn addresses_say_ready_serving_terminating() {
        let pods = [
            pod(2, |pod| pod.ready = false),
            pod(1, |pod| {
                pod.hostname = "db-0".into();
                pod.subdomain = "web".into();
            }),
            pod(3, |pod| pod.meta.deleting = Some(jiff::Timestamp::UNIX_EPOCH)),
            pod(4, |pod| pod.phase = Phase::Succeeded),
            pod(5, |pod| pod.ips.clear()),
            pod(6, |pod| pod.meta.labels.clear()),
        ];
        let mut service = service(vec![port("http", TargetPort::Number(80))]);
        let found = addresses(&service, &pods, "IPv4");
        let states: Vec<_> =
            found.iter().map(|a| (a.ip.to_string(), a.ready, a.serving, a.terminating)).collect();
        assert_eq!(
            states,
            [
                ("10.0.0.1".to_owned(), true, true, false),
                ("10.0.0.2".to_owned(), false, false, false),
                ("10.0.0.3".to_owned(), false, true, true),
            ]
        );
        assert_eq!(found[0].hostname.as_deref(), Some("db-0"));
        let (subsets, over) = subsets(&service, &found);
        assert!(!over);
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 1);
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap().len(), 1);
        service.publish_not_ready = true;
        assert!(addresses(&service, &pods, "IPv4").iter().all(|address| address.ready));
        assert!(addresses(&service, &pods, "IPv6").is_empty());
    }

    #[test]
    fn named_ports_split_pods_into_groups() {
        let named = |number: u16| {
            move |pod: &mut Pod| {
                pod.ports = vec![ContainerPort { name: "web".into(), port: number, protocol: "TCP".into() }];
            }
        };
        let pods = [pod(1, named(80)), pod(2, named(8080)), pod(3, named(80))];
        let service = service(vec![port("http", TargetPort::Name("web".into()))]);
        let found = addresses(&service, &pods, "IPv4");
        let (subsets, _) = subsets(&service, &found);
        assert_eq!(subsets.len(), 2);
        let plan = plan_slices(&[], &[("IPv4".into(), found)]);
        let sizes: Vec<_> =
            plan.create.iter().map(|slice| (slice.ports[0].port.unwrap(), slice.endpoints.len())).collect();
        assert_eq!(sizes, [(80, 2), (8080, 1)]);
    }

    #[test]
    fn a_headless_service_without_ports_has_addresses() {
        let mut headless = service(Vec::new());
        headless.headless = true;
        let found = addresses(&headless, &[pod(1, |_| {})], "IPv4");
        let (subsets, _) = subsets(&headless, &found);
        assert_eq!((subsets.len(), subsets[0].ports.clone()), (1, None));
        assert_eq!(plan_slices(&[], &[("IPv4".into(), found)]).create[0].endpoints.len(), 1);
    }

    fn apply(existing: &[Arc<EndpointSlice>], plan: SlicePlan, next: &mut u32) -> Vec<Arc<EndpointSlice>> {
        let gone: Vec<_> =
            plan.delete.iter().chain(plan.update.iter().map(|(old, _)| old)).cloned().collect();
        let mut slices: Vec<_> = existing
            .iter()
            .filter(|slice| !gone.iter().any(|old| Arc::ptr_eq(old, slice)))
            .cloned()
            .collect();
        for content in plan.create.into_iter().chain(plan.update.into_iter().map(|(_, content)| content)) {
            *next += 1;
            slices.push(Arc::new(EndpointSlice {
                meta: Meta { name: format!("s{next}"), ..Meta::default() },
                address_type: content.address_type,
                endpoints: content.endpoints,
                ports: content.ports,
            }));
        }
        slices
    }

    #[test]
    fn a_hundred_endpoints_fill_a_slice_and_small_changes_write_one() {
        let many = |count: u8| {
            let pods: Vec<_> = (1..=count).map(|number| pod(number, |_| {})).collect();
            vec![(
                "IPv4".to_owned(),
                addresses(&service(vec![port("", TargetPort::Number(80))]), &pods, "IPv4"),
            )]
        };
        let mut next = 0;
        let slices = apply(&[], plan_slices(&[], &many(230)), &mut next);
        assert_eq!(slices.iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [100, 100, 30]);
        assert_eq!(plan_slices(&slices, &many(230)), SlicePlan::default());
        let plan = plan_slices(&slices, &many(231));
        assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
        let plan = plan_slices(&slices, &many(0));
        assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (1, 0, 3));
        let empty = apply(&slices, plan, &mut next);
        assert_eq!(plan_slices(&empty, &many(0)), SlicePlan::default());
    }

    proptest! {
        /// Whatever the slices were, one plan makes them the wanted set, each address once, and a second plan does nothing.
        #[test]
        fn slices_converge_in_one_step(before in proptest::collection::btree_set(1u8..250, 0..250), after in proptest::collection::btree_set(1u8..250, 0..250)) {
            let wanted = |numbers: &BTreeSet<u8>| {
                let pods: Vec<_> = numbers.iter().map(|number| pod(*number, |_| {})).collect();
                vec![("IPv4".to_owned(), addresses(&service(vec![port("", TargetPort::Number(80))]), &pods, "IPv4"))]
            };
            let mut next = 0;
            let slices = apply(&[], plan_slices(&[], &wanted(&before)), &mut next);
            let slices = apply(&slices, plan_slices(&slices, &wanted(&after)), &mut next);
            let mut found: Vec<_> = slices.iter().flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.addresses[0].clone())).collect();
            found.sort();
            let mut expected: Vec<_> = after.iter().map(|number| format!("10.0.0.{number}")).collect();
            expected.sort();
            prop_assert_eq!(found, expected);
            prop_assert!(slices.iter().all(|slice| slice.endpoints.len() <= SLICE_ENDPOINTS));
            prop_assert_eq!(plan_slices(&slices, &wanted(&after)), SlicePlan::default());
        }
    }
}
