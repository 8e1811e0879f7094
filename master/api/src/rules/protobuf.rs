//! Reads `application/vnd.kubernetes.protobuf` bodies of the kinds that clients write by default in that encoding.
//!
//! kubectl since 1.32 sends what its own subcommands make (`create configmap`, `create token`, `auth can-i`, `drain`) this way and does not
//! fall back to JSON. Answers are JSON, which those clients accept too. The wire format is `k8s\0` and an envelope (apimachinery `runtime.Unknown`);
//! field numbers are those of the public API. Kinds that are not in the table are refused, never read in part.

use std::collections::HashMap;

use base64::Engine as _;
use serde_json::{Map, Value};

/// What every body starts with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages; no kind here has more than six.
const DEPTH_LIMIT: usize = 16;

/// How a field is read.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// Zero means absent.
    Number,
    /// Zero means zero.
    OptionalNumber,
    Flag,
    Message(&'static str),
    /// Text to text.
    TextMap,
    /// Text to bytes.
    BytesMap,
    Time,
    /// A number or a text.
    NumberOrText,
    /// What the server says, not the client.
    Skipped,
}

use Kind::{BytesMap, Flag, Message, Number, NumberOrText, OptionalNumber, Skipped, Text, TextMap, Time};

/// Number, JSON name, kind, repeated.
type Field = (u64, &'static str, Kind, bool);

const META: Field = (1, "metadata", Message("ObjectMeta"), false);
const STATUS: Field = (3, "status", Skipped, false);

fn fields(message: &str) -> Option<&'static [Field]> {
    Some(match message {
        "v1 Namespace" => &[META, (2, "spec", Message("NamespaceSpec"), false), STATUS],
        "NamespaceSpec" => &[(1, "finalizers", Text, true)],
        "v1 ConfigMap" => &[
            META,
            (2, "data", TextMap, false),
            (3, "binaryData", BytesMap, false),
            (4, "immutable", Flag, false),
        ],
        "v1 Secret" => &[
            META,
            (2, "data", BytesMap, false),
            (3, "type", Text, false),
            (4, "stringData", TextMap, false),
            (5, "immutable", Flag, false),
        ],
        "v1 ServiceAccount" => &[
            META,
            (2, "secrets", Message("ObjectReference"), true),
            (3, "imagePullSecrets", Message("Named"), true),
            (4, "automountServiceAccountToken", Flag, false),
        ],
        "scheduling.k8s.io/v1 PriorityClass" => &[
            META,
            (2, "value", OptionalNumber, false),
            (3, "globalDefault", Flag, false),
            (4, "description", Text, false),
            (5, "preemptionPolicy", Text, false),
        ],
        "v1 Binding" => &[META, (2, "target", Message("ObjectReference"), false)],
        "v1 Service" => &[META, (2, "spec", Message("ServiceSpec"), false), STATUS],
        "policy/v1 Eviction" => &[META, (2, "deleteOptions", Message("v1 DeleteOptions"), false)],
        "autoscaling/v1 Scale" => &[META, (2, "spec", Message("ScaleSpec"), false), STATUS],
        "ScaleSpec" => &[(1, "replicas", OptionalNumber, false)],
        "coordination.k8s.io/v1 Lease" => &[META, (2, "spec", Message("LeaseSpec"), false)],
        "authentication.k8s.io/v1 TokenRequest" => {
            &[META, (2, "spec", Message("TokenRequestSpec"), false), STATUS]
        }
        "authentication.k8s.io/v1 TokenReview" => {
            &[META, (2, "spec", Message("TokenReviewSpec"), false), STATUS]
        }
        "authentication.k8s.io/v1 SelfSubjectReview" => &[META, (2, "status", Skipped, false)],
        "authorization.k8s.io/v1 SelfSubjectRulesReview" => {
            &[META, (2, "spec", Message("RulesReviewSpec"), false), STATUS]
        }
        "authorization.k8s.io/v1 SelfSubjectAccessReview"
        | "authorization.k8s.io/v1 SubjectAccessReview"
        | "authorization.k8s.io/v1 LocalSubjectAccessReview" => {
            &[META, (2, "spec", Message("AccessReviewSpec"), false), STATUS]
        }
        other => return parts(other),
    })
}

/// Messages that only occur within others, and the two forms of events.
fn parts(message: &str) -> Option<&'static [Field]> {
    Some(match message {
        "ObjectMeta" => &[
            (1, "name", Text, false),
            (2, "generateName", Text, false),
            (3, "namespace", Text, false),
            (4, "selfLink", Skipped, false),
            (5, "uid", Text, false),
            (6, "resourceVersion", Text, false),
            (7, "generation", Number, false),
            (8, "creationTimestamp", Time, false),
            (9, "deletionTimestamp", Time, false),
            (10, "deletionGracePeriodSeconds", OptionalNumber, false),
            (11, "labels", TextMap, false),
            (12, "annotations", TextMap, false),
            (13, "ownerReferences", Message("OwnerReference"), true),
            (14, "finalizers", Text, true),
            (17, "managedFields", Skipped, true),
        ],
        "OwnerReference" => &[
            (1, "kind", Text, false),
            (3, "name", Text, false),
            (4, "uid", Text, false),
            (5, "apiVersion", Text, false),
            (6, "controller", Flag, false),
            (7, "blockOwnerDeletion", Flag, false),
        ],
        "ObjectReference" => &[
            (1, "kind", Text, false),
            (2, "namespace", Text, false),
            (3, "name", Text, false),
            (4, "uid", Text, false),
            (5, "apiVersion", Text, false),
            (6, "resourceVersion", Text, false),
            (7, "fieldPath", Text, false),
        ],
        "Named" => &[(1, "name", Text, false)],
        "v1 DeleteOptions" | "meta.k8s.io/v1 DeleteOptions" => &[
            (1, "gracePeriodSeconds", OptionalNumber, false),
            (2, "preconditions", Message("Preconditions"), false),
            (3, "orphanDependents", Flag, false),
            (4, "propagationPolicy", Text, false),
            (5, "dryRun", Text, true),
            (6, "ignoreStoreReadErrorWithClusterBreakingPotential", Skipped, false),
        ],
        "Preconditions" => &[(1, "uid", Text, false), (2, "resourceVersion", Text, false)],
        "LeaseSpec" => &[
            (1, "holderIdentity", Text, false),
            (2, "leaseDurationSeconds", Number, false),
            (3, "acquireTime", Time, false),
            (4, "renewTime", Time, false),
            (5, "leaseTransitions", OptionalNumber, false),
            (6, "strategy", Text, false),
            (7, "preferredHolder", Text, false),
        ],
        other => {
            return services(other).or_else(|| events(other)).or_else(|| reviews(other));
        }
    })
}

fn services(message: &str) -> Option<&'static [Field]> {
    Some(match message {
        "ServiceSpec" => &[
            (1, "ports", Message("ServicePort"), true),
            (2, "selector", TextMap, false),
            (3, "clusterIP", Text, false),
            (4, "type", Text, false),
            (5, "externalIPs", Text, true),
            (7, "sessionAffinity", Text, false),
            (8, "loadBalancerIP", Text, false),
            (9, "loadBalancerSourceRanges", Text, true),
            (10, "externalName", Text, false),
            (11, "externalTrafficPolicy", Text, false),
            (12, "healthCheckNodePort", Number, false),
            (13, "publishNotReadyAddresses", Flag, false),
            (14, "sessionAffinityConfig", Message("AffinityConfig"), false),
            (17, "ipFamilyPolicy", Text, false),
            (18, "clusterIPs", Text, true),
            (19, "ipFamilies", Text, true),
            (20, "allocateLoadBalancerNodePorts", Flag, false),
            (21, "loadBalancerClass", Text, false),
            (22, "internalTrafficPolicy", Text, false),
            (23, "trafficDistribution", Text, false),
        ],
        "AffinityConfig" => &[(1, "clientIP", Message("ClientAffinity"), false)],
        "ClientAffinity" => &[(1, "timeoutSeconds", OptionalNumber, false)],
        "ServicePort" => &[
            (1, "name", Text, false),
            (2, "protocol", Text, false),
            (3, "port", Number, false),
            (4, "targetPort", NumberOrText, false),
            (5, "nodePort", Number, false),
            (6, "appProtocol", Text, false),
        ],
        _ => return None,
    })
}

fn events(message: &str) -> Option<&'static [Field]> {
    Some(match message {
        "v1 Event" => &[
            META,
            (2, "involvedObject", Message("ObjectReference"), false),
            (3, "reason", Text, false),
            (4, "message", Text, false),
            (5, "source", Message("EventSource"), false),
            (6, "firstTimestamp", Time, false),
            (7, "lastTimestamp", Time, false),
            (8, "count", Number, false),
            (9, "type", Text, false),
            (10, "eventTime", Time, false),
            (11, "series", Message("EventSeries"), false),
            (12, "action", Text, false),
            (13, "related", Message("ObjectReference"), false),
            (14, "reportingComponent", Text, false),
            (15, "reportingInstance", Text, false),
        ],
        "events.k8s.io/v1 Event" => &[
            META,
            (2, "eventTime", Time, false),
            (3, "series", Message("EventSeries"), false),
            (4, "reportingController", Text, false),
            (5, "reportingInstance", Text, false),
            (6, "action", Text, false),
            (7, "reason", Text, false),
            (8, "regarding", Message("ObjectReference"), false),
            (9, "related", Message("ObjectReference"), false),
            (10, "note", Text, false),
            (11, "type", Text, false),
            (12, "deprecatedSource", Message("EventSource"), false),
            (13, "deprecatedFirstTimestamp", Time, false),
            (14, "deprecatedLastTimestamp", Time, false),
            (15, "deprecatedCount", Number, false),
        ],
        "EventSource" => &[(1, "component", Text, false), (2, "host", Text, false)],
        "EventSeries" => &[(1, "count", Number, false), (2, "lastObservedTime", Time, false)],
        _ => return None,
    })
}

fn reviews(message: &str) -> Option<&'static [Field]> {
    Some(match message {
        "TokenRequestSpec" => &[
            (1, "audiences", Text, true),
            (3, "boundObjectRef", Message("BoundReference"), false),
            (4, "expirationSeconds", OptionalNumber, false),
        ],
        "BoundReference" => &[
            (1, "kind", Text, false),
            (2, "apiVersion", Text, false),
            (3, "name", Text, false),
            (4, "uid", Text, false),
        ],
        "TokenReviewSpec" => &[(1, "token", Text, false), (2, "audiences", Text, true)],
        "RulesReviewSpec" => &[(1, "namespace", Text, false)],
        // What a user has beside its groups decides nothing here.
        "AccessReviewSpec" => &[
            (1, "resourceAttributes", Message("ResourceAttributes"), false),
            (2, "nonResourceAttributes", Message("PathAttributes"), false),
            (3, "user", Text, false),
            (4, "groups", Text, true),
            (5, "extra", Skipped, true),
            (6, "uid", Text, false),
        ],
        "PathAttributes" => &[(1, "path", Text, false), (2, "verb", Text, false)],
        "ResourceAttributes" => &[
            (1, "namespace", Text, false),
            (2, "verb", Text, false),
            (3, "group", Text, false),
            (4, "version", Text, false),
            (5, "resource", Text, false),
            (6, "subresource", Text, false),
            (7, "name", Text, false),
            (8, "fieldSelector", Message("SelectorAttributes"), false),
            (9, "labelSelector", Message("SelectorAttributes"), false),
        ],
        "SelectorAttributes" => {
            &[(1, "rawSelector", Text, false), (2, "requirements", Message("Requirement"), true)]
        }
        "Requirement" => &[(1, "key", Text, false), (2, "operator", Text, false), (3, "values", Text, true)],
        _ => return None,
    })
}

/// Why a body was not read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not in the table: the client must send JSON.
    Unsupported(String),
    /// Not protobuf at all, or cut off.
    Malformed(&'static str),
}

/// The object in a body; apiVersion and kind are those of the envelope.
pub(crate) fn decode(body: &[u8]) -> Result<Value, Refusal> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Refusal::Malformed("it does not start with k8s\\0"))?;
    let (mut type_meta, mut raw): (&[u8], &[u8]) = (&[], &[]);
    for item in Items(envelope) {
        match item? {
            (1, Wire::Bytes(bytes)) => type_meta = bytes,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let mut words = HashMap::new();
    for item in Items(type_meta) {
        if let (number, Wire::Bytes(bytes)) = item? {
            words.insert(number, text(bytes)?);
        }
    }
    let (api_version, kind) = (words.remove(&1).unwrap_or_default(), words.remove(&2).unwrap_or_default());
    // Options are of every group.
    let name =
        if kind == "DeleteOptions" { "v1 DeleteOptions".to_owned() } else { format!("{api_version} {kind}") };
    let mut object = message(&name, raw, 0)?;
    object.insert("apiVersion".to_owned(), Value::from(api_version));
    object.insert("kind".to_owned(), Value::from(kind));
    Ok(Value::Object(object))
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, Refusal> {
    let known = fields(name).ok_or_else(|| Refusal::Unsupported(name.to_owned()))?;
    if depth > DEPTH_LIMIT {
        return Err(Refusal::Malformed("it is nested too deeply"));
    }
    let mut object = Map::new();
    for item in Items(bytes) {
        let (number, wire) = item?;
        let Some((_, key, kind, repeated)) = known.iter().find(|(known, ..)| *known == number) else {
            return Err(Refusal::Unsupported(format!("field {number} of {name}")));
        };
        match (kind, wire) {
            (Skipped, _) => {}
            (TextMap | BytesMap, Wire::Bytes(bytes)) => {
                let (map_key, value) = entry(bytes, matches!(kind, BytesMap))?;
                let map = object.entry(*key).or_insert_with(|| Value::Object(Map::new()));
                map.as_object_mut().expect("a map field is only ever made an object").insert(map_key, value);
            }
            (_, wire) => {
                let Some(value) = value(*kind, wire, *repeated, depth)? else {
                    continue;
                };
                if *repeated {
                    let list = object.entry(*key).or_insert_with(|| Value::Array(Vec::new()));
                    list.as_array_mut().expect("a repeated field is only ever made an array").push(value);
                } else {
                    object.insert((*key).to_owned(), value);
                }
            }
        }
    }
    Ok(object)
}

/// One field's value; none for what Go writes although it is absent.
fn value(kind: Kind, wire: Wire<'_>, repeated: bool, depth: usize) -> Result<Option<Value>, Refusal> {
    Ok(match (kind, wire) {
        (Text, Wire::Bytes(bytes)) => {
            let text = text(bytes)?;
            (repeated || !text.is_empty()).then(|| Value::from(text))
        }
        // A negative int32 is written as ten bytes, like an int64: the cast gives both back.
        (Number, Wire::Number(number)) => (number != 0).then(|| Value::from(number.cast_signed())),
        (OptionalNumber, Wire::Number(number)) => Some(Value::from(number.cast_signed())),
        (Flag, Wire::Number(number)) => Some(Value::from(number != 0)),
        (Message(name), Wire::Bytes(bytes)) => Some(Value::Object(message(name, bytes, depth + 1)?)),
        (Time, Wire::Bytes(bytes)) => time(bytes)?,
        (NumberOrText, Wire::Bytes(bytes)) => number_or_text(bytes)?,
        _ => return Err(Refusal::Malformed("a field has the wrong wire type")),
    })
}

fn time(bytes: &[u8]) -> Result<Option<Value>, Refusal> {
    let (mut seconds, mut nanos) = (None, 0);
    for item in Items(bytes) {
        match item? {
            (1, Wire::Number(number)) => seconds = Some(number.cast_signed()),
            (2, Wire::Number(number)) => nanos = i32::try_from(number.cast_signed()).unwrap_or_default(),
            _ => {}
        }
    }
    let Some(seconds) = seconds else { return Ok(None) };
    let time =
        jiff::Timestamp::new(seconds, nanos).map_err(|_| Refusal::Malformed("a time is out of range"))?;
    let format = if nanos == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%6fZ" };
    Ok(Some(Value::from(time.strftime(format).to_string())))
}

fn number_or_text(bytes: &[u8]) -> Result<Option<Value>, Refusal> {
    let (mut is_text, mut number, mut word) = (false, 0, String::new());
    for item in Items(bytes) {
        match item? {
            (1, Wire::Number(kind)) => is_text = kind == 1,
            (2, Wire::Number(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => word = text(bytes)?,
            _ => {}
        }
    }
    // The zero value is what Go writes for an absent port.
    Ok(if is_text { Some(Value::from(word)) } else { (number != 0).then(|| Value::from(number)) })
}

fn entry(bytes: &[u8], binary: bool) -> Result<(String, Value), Refusal> {
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    for item in Items(bytes) {
        match item? {
            (1, Wire::Bytes(bytes)) => key = bytes,
            (2, Wire::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Ok((text(key)?, if binary { base64(value) } else { Value::from(text(value)?) }))
}

fn base64(bytes: &[u8]) -> Value {
    Value::from(base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn text(bytes: &[u8]) -> Result<String, Refusal> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Refusal::Malformed("a text is not UTF-8"))
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in their order.
struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = Result<(u64, Wire<'a>), Refusal>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let item = self.read();
        if item.is_none() {
            // Nothing after damage means anything.
            self.0 = &[];
        }
        Some(item.ok_or(Refusal::Malformed("it is cut off")))
    }
}

impl<'a> Items<'a> {
    fn read(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((tag >> 3, wire))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_body_of_kubectl_is_read() {
        let body = b"k8s\0\n\x14\n\x02v1\x12\x0eServiceAccount\x12\x19\n\x17\n\x07default\x12\0\x1a\0\"\0*\x002\x008\0B\0\x1a\0\"\0";
        let expected = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        assert_eq!(decode(body), Ok(expected));
    }

    #[test]
    fn numbers_times_maps_and_ports() {
        let port = b"\n\x04http\x18\x50\x22\x04\x08\0\x10\x50\x28\0";
        let spec = [&b"\x0a"[..], &[port.len() as u8], port, b"\x12\x08\n\x03app\x12\x01x"].concat();
        let read = message("ServiceSpec", &spec, 0).unwrap();
        assert_eq!(
            Value::Object(read),
            json!({"ports": [{"name": "http", "port": 80, "targetPort": 80}], "selector": {"app": "x"}})
        );
        assert_eq!(time(b"\x08\x00").unwrap(), Some(json!("1970-01-01T00:00:00Z")));
        assert_eq!(time(b"").unwrap(), None);
        let data = message("v1 Secret", b"\x12\x07\n\x01k\x12\x02\xff\xfe", 0).unwrap();
        assert_eq!(Value::Object(data), json!({"data": {"k": "//4="}}));
        let class = message("scheduling.k8s.io/v1 PriorityClass", b"\x10\x05\x22\x01d", 0).unwrap();
        assert_eq!(Value::Object(class), json!({"value": 5, "description": "d"}));
    }

    #[test]
    fn what_is_not_known_is_refused_whole() {
        let pod = b"k8s\0\n\x09\n\x02v1\x12\x03Pod\x12\0";
        assert_eq!(decode(pod), Err(Refusal::Unsupported("v1 Pod".to_owned())));
        assert!(matches!(message("Named", b"\x12\x01x", 0), Err(Refusal::Unsupported(_))));
        assert!(matches!(decode(b"{}"), Err(Refusal::Malformed(_))));
        assert!(matches!(decode(b"k8s\0\n\x20x"), Err(Refusal::Malformed(_))));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[MAGIC, &bytes].concat());
            for name in ["v1 Service", "v1 Event", "authorization.k8s.io/v1 SubjectAccessReview", "ObjectMeta", "v1 Secret"] {
                let _ = message(name, &bytes, 0);
            }
        }
    }
}
