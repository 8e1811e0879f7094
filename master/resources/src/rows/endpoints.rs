//! Endpoints and EndpointSlices (upstream `pkg/apis/core/validation`, `pkg/apis/discovery/validation`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::shape::{AGE, NAME, age, column, fill, fill_text, joined, list, objects, text_or};
use super::{BASE, names};
use crate::fields::Errors;
use crate::resource::{Resource, text};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const ADDRESS_TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
const ENDPOINT_LIMIT: usize = 1000;
const ADDRESS_LIMIT: usize = 100;
const PORT_LIMIT: usize = 20_000;

pub(super) const ENDPOINTS: Resource = Resource {
    kind: "Endpoints",
    list_kind: "EndpointsList",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    storage: "services/endpoints",
    definition: "io.k8s.api.core.v1.Endpoints",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::Endpoints>(),
    defaults: |endpoints| {
        let subsets = endpoints.as_object_mut().into_iter().flat_map(|map| objects(map, "subsets"));
        for subset in subsets {
            for port in objects(subset, "ports") {
                fill_text(port, "protocol", "TCP");
            }
        }
    },
    check: check_endpoints,
    columns: &[NAME, column("Endpoints", "string", 0), AGE],
    cells: |endpoints, now| {
        let all = list(endpoints, "/subsets").iter().flat_map(socket_addresses).collect();
        vec![Value::from(text(endpoints, "/metadata/name")), shortened(all), age(endpoints, now)]
    },
    ..BASE
};

fn socket_addresses(subset: &Value) -> Vec<String> {
    let ports = list(subset, "/ports");
    let addresses = list(subset, "/addresses").iter().map(|address| text(address, "/ip"));
    let with_ports = addresses.flat_map(|ip| match ports {
        [] => vec![ip],
        ports => ports.iter().map(|port| socket_address(&ip, &text(port, "/port"))).collect(),
    });
    with_ports.collect()
}

fn socket_address(ip: &str, port: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn check_endpoints(endpoints: &Value, errors: &mut Errors) {
    let own = is_servers_own(endpoints);
    for (index, subset) in list(endpoints, "/subsets").iter().enumerate() {
        let path = format!("subsets[{index}]");
        if list(subset, "/addresses").is_empty() && list(subset, "/notReadyAddresses").is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (number, address) in list(subset, &format!("/{field}")).iter().enumerate() {
                check_address(&text(address, "/ip"), &format!("{path}.{field}[{number}].ip"), own, errors);
                let host = text(address, "/hostname");
                if !host.is_empty() {
                    let faults = names::label_faults(&host);
                    errors.faults(&format!("{path}.{field}[{number}].hostname"), &host, faults);
                }
            }
        }
        let ports = list(subset, "/ports");
        for (number, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{number}]");
            let name = text(port, "/name");
            if !name.is_empty() {
                errors.faults(&format!("{path}.name"), &name, names::label_faults(&name));
            } else if ports.len() > 1 {
                errors.required(format!("{path}.name"), "");
            }
            let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
            if !(1..=65_535).contains(&number) {
                errors.invalid(format!("{path}.port"), number, PORT_RANGE);
            }
            check_protocol(port, &path, errors);
        }
    }
}

/// The endpoints of the API server itself, which it writes: where a server listens on loopback alone, that is its address.
fn is_servers_own(object: &Value) -> bool {
    text(object, "/metadata/namespace") == "default" && text(object, "/metadata/name") == "kubernetes"
}

fn check_protocol(port: &Value, path: &str, errors: &mut Errors) {
    let protocol = text(port, "/protocol");
    if protocol.is_empty() {
        errors.required(format!("{path}.protocol"), "");
    } else {
        errors.one_of(format!("{path}.protocol"), &protocol, &PROTOCOLS);
    }
}

/// An endpoint must be a machine's or a pod's address, so that nobody can point a service at a node's own loopback
/// (upstream `ValidateEndpointIP`).
fn check_address(ip: &str, path: &str, own: bool, errors: &mut Errors) {
    // An IPv4 address written as IPv6 is the IPv4 address.
    let Ok(address) = ip.parse::<IpAddr>().map(|address| address.to_canonical()) else {
        errors.invalid(path, ip, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        return;
    };
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let link_local_multicast = match address {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    };
    if address.is_unspecified() {
        errors.invalid(path, ip, "may not be unspecified (0.0.0.0 or ::)");
    }
    if address.is_loopback() && !own {
        errors.invalid(path, ip, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        errors.invalid(path, ip, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_multicast {
        errors.invalid(path, ip, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// Three at most, as upstream shows them.
fn shortened(all: Vec<String>) -> Value {
    let more = all.len().saturating_sub(3);
    let shown = joined(all.into_iter().take(3));
    if more == 0 {
        shown
    } else {
        Value::from(format!("{} + {more} more...", shown.as_str().unwrap_or_default()))
    }
}

pub(super) const ENDPOINT_SLICES: Resource = Resource {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    list_kind: "EndpointSliceList",
    plural: "endpointslices",
    singular: "endpointslice",
    storage: "endpointslices",
    definition: "io.k8s.api.discovery.v1.EndpointSlice",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::discovery::v1::EndpointSlice>(),
    generation: true,
    defaults: |slice| {
        for port in slice.as_object_mut().into_iter().flat_map(|map| objects(map, "ports")) {
            fill_text(port, "protocol", "TCP");
            fill(port, "name", "");
        }
    },
    check: check_slice,
    check_update: |new, old, _, errors| {
        errors.immutable("addressType", new.get("addressType"), old.get("addressType"))
    },
    columns: &[
        NAME,
        column("AddressType", "string", 0),
        column("Ports", "string", 0),
        column("Endpoints", "string", 0),
        AGE,
    ],
    cells: |slice, now| {
        let ports = list(slice, "/ports").iter().map(|port| {
            let number = text(port, "/port");
            if number.is_empty() { "*".to_owned() } else { number }
        });
        let addresses = list(slice, "/endpoints").iter().flat_map(|endpoint| list(endpoint, "/addresses"));
        let addresses = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
        let or_unset = |value: Value| {
            if value == "<none>" { Value::from("<unset>") } else { value }
        };
        vec![
            Value::from(text(slice, "/metadata/name")),
            text_or(slice, "/addressType", ""),
            or_unset(shortened(ports.collect())),
            or_unset(shortened(addresses)),
            age(slice, now),
        ]
    },
    ..BASE
};

fn check_slice(slice: &Value, errors: &mut Errors) {
    let own = is_servers_own(slice);
    let kind = text(slice, "/addressType");
    if kind.is_empty() {
        errors.required("addressType", "");
    } else {
        errors.one_of("addressType", &kind, &ADDRESS_TYPES);
    }
    let endpoints = list(slice, "/endpoints");
    if endpoints.len() > ENDPOINT_LIMIT {
        errors.too_many("endpoints", endpoints.len(), ENDPOINT_LIMIT);
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        check_slice_endpoint(endpoint, &kind, &format!("endpoints[{index}]"), own, errors);
    }
    let ports = list(slice, "/ports");
    if ports.len() > PORT_LIMIT {
        errors.too_many("ports", ports.len(), PORT_LIMIT);
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("ports[{index}]");
        let name = text(port, "/name");
        if !name.is_empty() {
            errors.faults(&format!("{path}.name"), &name, names::label_faults(&name));
        }
        if !seen.insert(name.clone()) {
            errors.duplicate(format!("{path}.name"), name);
        }
        check_protocol(port, &path, errors);
        if let Some(number) =
            port.get("port").and_then(Value::as_i64).filter(|number| !(1..=65_535).contains(number))
        {
            errors.invalid(format!("{path}.port"), number, PORT_RANGE);
        }
    }
}

fn check_slice_endpoint(endpoint: &Value, kind: &str, path: &str, own: bool, errors: &mut Errors) {
    let addresses = list(endpoint, "/addresses");
    if addresses.is_empty() {
        errors.required(format!("{path}.addresses"), "must contain at least 1 address");
    }
    if addresses.len() > ADDRESS_LIMIT {
        errors.too_many(format!("{path}.addresses"), addresses.len(), ADDRESS_LIMIT);
    }
    for (number, address) in addresses.iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let path = format!("{path}.addresses[{number}]");
        match (kind, address.parse::<IpAddr>()) {
            ("FQDN", _) => errors.faults(&path, address, names::subdomain_faults(address)),
            ("IPv4", Ok(IpAddr::V6(_))) => errors.invalid(path, address, "must be an IPv4 address"),
            ("IPv6", Ok(IpAddr::V4(_))) => errors.invalid(path, address, "must be an IPv6 address"),
            _ => check_address(address, &path, own, errors),
        }
    }
    let host = text(endpoint, "/hostname");
    if !host.is_empty() {
        errors.faults(&format!("{path}.hostname"), &host, names::label_faults(&host));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(row: &Resource, mut object: Value) -> Vec<String> {
        row.default(&mut object);
        row.validate(&object, None, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_are_of_machines_and_pods() {
        let table = [
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("127.0.0.1", Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")),
            ("169.254.169.254", Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")),
            ("224.0.0.1", Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")),
            ("0.0.0.0", Some("may not be unspecified (0.0.0.0 or ::)")),
            ("nowhere", Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")),
        ];
        for (ip, fault) in table {
            let endpoints = json!({"metadata": {"name": "e", "namespace": "default"}, "subsets": [{"addresses": [{"ip": ip}], "ports": [{"port": 80}]}]});
            let wanted =
                fault.map(|fault| format!("subsets[0].addresses[0].ip: Invalid value: \"{ip}\": {fault}"));
            assert_eq!(faults(&ENDPOINTS, endpoints), wanted.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn slices_fit_their_address_type() {
        let slice = json!({"metadata": {"name": "s", "namespace": "default"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["2001:db8::1"]}, {"addresses": []}], "ports": [{"port": 80}, {"port": 0}]});
        assert_eq!(
            faults(&ENDPOINT_SLICES, slice),
            [
                "endpoints[1].addresses[0]: Invalid value: \"2001:db8::1\": must be an IPv4 address",
                "endpoints[2].addresses: Required value: must contain at least 1 address",
                "ports[1].name: Duplicate value: \"\"",
                "ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
    }

    #[test]
    fn cells_name_three_at_most() {
        let addresses: Vec<Value> =
            (1..=5).map(|number| json!({"addresses": [format!("10.0.0.{number}")]})).collect();
        let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": addresses, "ports": [{"port": 80}, {}]});
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let cells = ENDPOINT_SLICES.table_cells(&slice, now);
        assert_eq!(cells[2..4], [json!("80,*"), json!("10.0.0.1,10.0.0.2,10.0.0.3 + 2 more...")]);
    }
}
