//! Checks of one container.

use std::collections::BTreeSet;

use orlop_types::Quantity;
use serde_json::Value;

use crate::fields::Errors;
use crate::resource::text;
use crate::rows::names;
use crate::rows::shape::list;

const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const TERMINATION_POLICIES: [&str; 2] = ["File", "FallbackToLogsOnError"];
const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

/// Checks a container at `path`; `volumes` are the names of the pod's volumes.
pub(super) fn check(container: &Value, path: &str, volumes: &BTreeSet<String>, errors: &mut Errors) {
    let name = text(container, "/name");
    if name.is_empty() {
        errors.required(format!("{path}.name"), "");
    } else {
        for fault in names::label_faults(&name) {
            errors.invalid(format!("{path}.name"), Value::from(name.as_str()), &fault);
        }
    }
    let image = text(container, "/image");
    if image.is_empty() {
        errors.required(format!("{path}.image"), "");
    } else if image.trim() != image {
        errors.invalid(
            format!("{path}.image"),
            Value::from(image),
            "must not have leading or trailing whitespace",
        );
    }
    for (field, known) in
        [("imagePullPolicy", &PULL_POLICIES[..]), ("terminationMessagePolicy", &TERMINATION_POLICIES[..])]
    {
        let value = text(container, &format!("/{field}"));
        if !known.contains(&value.as_str()) {
            errors.not_supported(format!("{path}.{field}"), &value, known);
        }
    }
    check_ports(container, path, errors);
    check_environment(container, path, errors);
    check_mounts(container, path, volumes, errors);
    check_resources(container, path, errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = container.get(probe).filter(|found| found.is_object()) {
            check_probe(found, &format!("{path}.{probe}"), probe != "readinessProbe", errors);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(found) =
            container.pointer(&format!("/lifecycle/{hook}")).filter(|found| found.is_object())
        {
            check_handler(found, &format!("{path}.lifecycle.{hook}"), errors);
        }
    }
}

fn check_ports(container: &Value, path: &str, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, port) in list(container, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = text(port, "/name");
        if !name.is_empty() {
            for fault in names::port_name_faults(&name) {
                errors.invalid(format!("{path}.name"), Value::from(name.as_str()), &fault);
            }
            if !seen.insert(name.clone()) {
                errors.duplicate(format!("{path}.name"), Value::from(name));
            }
        }
        let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
        if number == 0 {
            errors.required(format!("{path}.containerPort"), "");
        } else if !(1..=65_535).contains(&number) {
            errors.invalid(format!("{path}.containerPort"), Value::from(number), PORT_RANGE);
        }
        let host = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0);
        if host != 0 && !(1..=65_535).contains(&host) {
            errors.invalid(format!("{path}.hostPort"), Value::from(host), PORT_RANGE);
        }
        let protocol = text(port, "/protocol");
        if !PROTOCOLS.contains(&protocol.as_str()) {
            errors.not_supported(format!("{path}.protocol"), &protocol, &PROTOCOLS);
        }
    }
}

fn check_environment(container: &Value, path: &str, errors: &mut Errors) {
    for (index, variable) in list(container, "/env").iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let name = text(variable, "/name");
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else {
            for fault in names::variable_faults(&name) {
                errors.invalid(format!("{path}.name"), Value::from(name.as_str()), &fault);
            }
        }
        let Some(source) = variable.get("valueFrom").filter(|source| !source.is_null()) else {
            continue;
        };
        let count = source.as_object().map_or(0, serde_json::Map::len);
        let path = format!("{path}.valueFrom");
        if count == 0 {
            errors.invalid(
                &path,
                Value::from(""),
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            );
        } else if !text(variable, "/value").is_empty() {
            errors.invalid(&path, Value::from(""), "may not be specified when `value` is not empty");
        } else if count > 1 {
            errors.invalid(&path, Value::from(""), "may not have more than one field specified at a time");
        }
        for kind in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = source.get(kind)
                && text(reference, "/key").is_empty()
            {
                errors.required(format!("{path}.{kind}.key"), "");
            }
        }
    }
}

fn check_mounts(container: &Value, path: &str, volumes: &BTreeSet<String>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let name = text(mount, "/name");
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else if !volumes.contains(&name) {
            errors.not_found(format!("{path}.name"), &name);
        }
        let target = text(mount, "/mountPath");
        if target.is_empty() {
            errors.required(format!("{path}.mountPath"), "");
        } else if !seen.insert(target.clone()) {
            errors.invalid(format!("{path}.mountPath"), Value::from(target), "must be unique");
        }
        for field in ["subPath", "subPathExpr"] {
            let below = text(mount, &format!("/{field}"));
            if below.starts_with('/') {
                errors.invalid(format!("{path}.{field}"), Value::from(below), "must be a relative path");
            } else if below.split('/').any(|part| part == "..") {
                errors.invalid(format!("{path}.{field}"), Value::from(below), "must not contain '..'");
            }
        }
        if !text(mount, "/subPath").is_empty() && !text(mount, "/subPathExpr").is_empty() {
            errors.invalid(
                format!("{path}.subPathExpr"),
                Value::from(text(mount, "/subPathExpr")),
                "subPathExpr and subPath are mutually exclusive",
            );
        }
    }
}

fn check_resources(container: &Value, path: &str, errors: &mut Errors) {
    let amounts = |kind: &str| container.pointer(&format!("/resources/{kind}")).and_then(Value::as_object);
    let parse = |value: &Value| {
        value.as_str().map_or_else(|| value.to_string(), str::to_owned).parse::<Quantity>().ok()
    };
    for kind in ["limits", "requests"] {
        for (name, value) in amounts(kind).into_iter().flatten() {
            let path = format!("{path}.resources.{kind}[{name}]");
            for fault in names::qualified_name_faults(name) {
                errors.invalid(&path, Value::from(name.as_str()), &fault);
            }
            if parse(value).is_some_and(|quantity| quantity.to_string().starts_with('-')) {
                errors.invalid(&path, value.clone(), "must be greater than or equal to 0");
            }
        }
    }
    let limits = amounts("limits");
    for (name, request) in amounts("requests").into_iter().flatten() {
        let Some(limit) = limits.and_then(|limits| limits.get(name)) else {
            continue;
        };
        if let (Some(request_amount), Some(limit_amount)) = (parse(request), parse(limit))
            && request_amount > limit_amount
        {
            let why = format!("must be less than or equal to {name} limit of {limit_amount}");
            errors.invalid(format!("{path}.resources.requests"), request.clone(), &why);
        }
    }
}

fn check_probe(probe: &Value, path: &str, single_success: bool, errors: &mut Errors) {
    check_handler(probe, path, errors);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        if let Some(number) = probe.get(field).and_then(Value::as_i64).filter(|number| *number < 0) {
            errors.invalid(
                format!("{path}.{field}"),
                Value::from(number),
                "must be greater than or equal to 0",
            );
        }
    }
    let success = probe.get("successThreshold").and_then(Value::as_i64).unwrap_or(1);
    if single_success && success != 1 {
        errors.invalid(format!("{path}.successThreshold"), Value::from(success), "must be 1");
    }
}

fn check_handler(handler: &Value, path: &str, errors: &mut Errors) {
    let present: Vec<&str> =
        HANDLERS.into_iter().filter(|kind| handler.get(kind).is_some_and(|found| !found.is_null())).collect();
    if present.is_empty() {
        errors.required(path, "must specify a handler type");
    }
    for extra in present.iter().skip(1) {
        errors.forbidden(format!("{path}.{extra}"), "may not specify more than 1 handler type");
    }
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        let Some(found) = handler.get(kind).filter(|found| found.is_object()) else {
            continue;
        };
        let port = found.get("port").unwrap_or(&Value::Null);
        let valid = match port {
            Value::Number(number) => number.as_i64().is_some_and(|number| (1..=65_535).contains(&number)),
            Value::String(name) => names::port_name_faults(name).is_empty(),
            _ => false,
        };
        if !valid {
            errors.invalid(format!("{path}.{kind}.port"), port.clone(), PORT_RANGE);
        }
    }
    if let Some(exec) = handler.get("exec").filter(|exec| exec.is_object())
        && list(exec, "/command").is_empty()
    {
        errors.required(format!("{path}.exec.command"), "");
    }
}
