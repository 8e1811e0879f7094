//! Addresses and node ports of Services: what is asked for is checked, what is not is chosen.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use orlop_resources::status::{self, ApiError};
use orlop_resources::{FieldError, Resource};
use orlop_store::{At, PageRequest};
use rand::RngExt as _;
use serde_json::{Value, json};
use tokio::sync::MutexGuard;

use crate::rules::allocate::{free_address, free_port};
use crate::rules::encode::text;
use crate::state::{Api, core, prefix};

/// Held until the object is stored.
pub(crate) type Allocation<'a> = Option<MutexGuard<'a, ()>>;

/// Gives a Service its address and ports. Other resources pass.
pub(crate) async fn allocate<'a>(
    api: &'a Api,
    resource: &Resource,
    service: &mut Value,
    old: Option<&Value>,
) -> Result<Allocation<'a>, ApiError> {
    if !resource.group.is_empty() || resource.plural != "services" {
        return Ok(None);
    }
    let guard = api.allocation.lock().await;
    let used = Used::of(api, text(service, "/metadata/uid"));
    let mut errors = Vec::new();
    address(api, service, old, &used, &mut errors);
    ports(api, service, old, &used, &mut errors);
    if errors.is_empty() {
        Ok(Some(guard))
    } else {
        Err(status::invalid(resource, text(service, "/metadata/name"), &errors))
    }
}

/// What the other Services hold.
#[derive(Default)]
struct Used {
    addresses: HashSet<Ipv4Addr>,
    /// Number and protocol.
    ports: HashSet<(u16, String)>,
}

impl Used {
    fn of(api: &Api, except_uid: &str) -> Self {
        let prefix = prefix(core("services"));
        let request = PageRequest {
            at: At::Now,
            prefix: &prefix,
            start: "",
            limit: 0,
            matches: &|entry| *entry.meta.uid != *except_uid,
        };
        let mut used = Self::default();
        // The newest state is always there.
        for entry in api.cache.list(&request).map(|page| page.entries).unwrap_or_default() {
            for reference in &entry.meta.references {
                if let Some(address) = reference.strip_prefix("ip/").and_then(|address| address.parse().ok())
                {
                    used.addresses.insert(address);
                } else if let Some((port, protocol)) =
                    reference.strip_prefix("port/").and_then(|port| port.split_once('/'))
                    && let Ok(port) = port.parse()
                {
                    used.ports.insert((port, protocol.to_owned()));
                }
            }
        }
        used
    }
}

fn field_error(cause: &'static str, field: impl Into<String>, message: String) -> FieldError {
    FieldError { cause, field: field.into(), message }
}

fn address(api: &Api, service: &mut Value, old: Option<&Value>, used: &Used, errors: &mut Vec<FieldError>) {
    let kind = text(service, "/spec/type").to_owned();
    if kind == "ExternalName" {
        return;
    }
    let mut asked = text(service, "/spec/clusterIP").to_owned();
    if asked.is_empty() {
        // `kubectl apply` sends no address; the Service keeps its own.
        let kept = old
            .filter(|old| text(old, "/spec/type") != "ExternalName")
            .map(|old| text(old, "/spec/clusterIP"));
        asked = kept.unwrap_or_default().to_owned();
    }
    if asked.is_empty() {
        asked = service.pointer("/spec/clusterIPs/0").and_then(Value::as_str).unwrap_or_default().to_owned();
    }
    let range = api.config.service_cidr;
    let chosen = match asked.as_str() {
        "None" => "None".to_owned(),
        "" => match free_address(range, &used.addresses, rand::rng().random()) {
            Some(address) => address.to_string(),
            None => {
                let message = "failed to allocate a serviceIP: range is full".to_owned();
                errors.push(field_error("InternalError", "spec.clusterIPs", message));
                return;
            }
        },
        asked => {
            // What is no IPv4 address at all is the validation's to refuse.
            let Ok(address) = asked.parse::<Ipv4Addr>() else {
                return;
            };
            let invalid = |why: &str| {
                let message = format!("Invalid value: {:?}: failed to allocate IP {address}: {why}", [asked]);
                field_error("FieldValueInvalid", "spec.clusterIPs", message)
            };
            if !range.contains(&address) || address == range.network() || address == range.broadcast() {
                errors.push(invalid(&format!(
                    "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
                )));
            } else if used.addresses.contains(&address) {
                errors.push(invalid("provided IP is already allocated"));
            }
            asked.to_owned()
        }
    };
    service["spec"]["clusterIP"] = json!(chosen);
    service["spec"]["clusterIPs"] = json!([chosen]);
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
    spec.entry("ipFamilyPolicy").or_insert_with(|| json!("SingleStack"));
}

fn ports(api: &Api, service: &mut Value, old: Option<&Value>, used: &Used, errors: &mut Vec<FieldError>) {
    let kind = text(service, "/spec/type").to_owned();
    let wants_all =
        service.pointer("/spec/allocateLoadBalancerNodePorts").and_then(Value::as_bool).unwrap_or(true);
    let wanted = kind == "NodePort" || (kind == "LoadBalancer" && wants_all);
    let Some(range) = api.config.node_ports() else {
        return;
    };
    let mut taken = used.ports.clone();
    let before = old_ports(old);
    let Some(list) = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut) else {
        return;
    };
    // Ports that are asked for by number come first: none of them may be given away.
    for (index, port) in list.iter().enumerate() {
        let Some(number) = node_port(port) else { continue };
        let place = format!("spec.ports[{index}].nodePort");
        let in_range = (range.0..=range.1).contains(&number);
        if !in_range {
            let message = format!(
                "Invalid value: {number}: provided port is not in the valid range. The range of valid ports is {}-{}",
                range.0, range.1
            );
            errors.push(field_error("FieldValueInvalid", place, message));
        } else if !taken.insert((number, protocol(port))) {
            let message = format!("Invalid value: {number}: provided port is already allocated");
            errors.push(field_error("FieldValueInvalid", place, message));
        }
    }
    if !wanted {
        // A Service that is no longer a NodePort gives its ports back.
        let was = old.is_some_and(|old| matches!(text(old, "/spec/type"), "NodePort" | "LoadBalancer"));
        if was && !matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            for port in list
                .iter_mut()
                .filter(|port| before.iter().any(|(_, _, number)| Some(*number) == node_port(port)))
            {
                port.as_object_mut().map(|port| port.shift_remove("nodePort"));
            }
        }
        return;
    }
    for port in list.iter_mut().filter(|port| node_port(port).is_none()) {
        let number = port.get("port").and_then(Value::as_u64).unwrap_or_default();
        let kept = before.iter().find(|(other, name, kept)| {
            *other == number && *name == protocol(port) && !taken.contains(&(*kept, name.clone()))
        });
        let busy: HashSet<u16> = taken.iter().map(|(port, _)| *port).collect();
        let chosen = kept.map(|(_, _, kept)| *kept).or_else(|| free_port(range, &busy, rand::rng().random()));
        match chosen {
            Some(chosen) => {
                taken.insert((chosen, protocol(port)));
                port["nodePort"] = json!(chosen);
            }
            None => {
                let message = "failed to allocate a nodePort: range is full".to_owned();
                errors.push(field_error("InternalError", "spec.ports[0].nodePort", message));
                return;
            }
        }
    }
}

/// Port, protocol and node port of each port that the Service had.
fn old_ports(old: Option<&Value>) -> Vec<(u64, String, u16)> {
    let list = old.and_then(|old| old.pointer("/spec/ports")).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|port| Some((port.get("port")?.as_u64()?, protocol(port), node_port(port)?))).collect()
}

fn node_port(port: &Value) -> Option<u16> {
    port.get("nodePort")
        .and_then(Value::as_u64)
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0)
}

fn protocol(port: &Value) -> String {
    Some(text(port, "/protocol")).filter(|protocol| !protocol.is_empty()).unwrap_or("TCP").to_owned()
}
