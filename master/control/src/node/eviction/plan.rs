//! When a pod must leave a node with NoExecute taints.

use jiff::{SignedDuration, Timestamp};

use crate::model::{Pod, Taint, Toleration};

/// Whether a toleration bears a taint (KEP-166; `Exists` with an empty key bears all).
pub(crate) fn bears(toleration: &Toleration, taint: &Taint) -> bool {
    (toleration.effect.is_empty() || toleration.effect == taint.effect)
        && (toleration.key.is_empty() || toleration.key == taint.key)
        && match toleration.operator.as_str() {
            "Exists" => true,
            "" | "Equal" => !toleration.key.is_empty() && toleration.value == taint.value,
            _ => false,
        }
}

/// How long a pod may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    ForEver,
    Until(Timestamp),
}

/// The pod's stay on a node with these taints: the earliest end over all NoExecute taints.
pub(crate) fn stay(pod: &Pod, taints: &[Taint], now: Timestamp) -> Stay {
    let mut end: Option<Timestamp> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let bearing: Vec<_> = pod.tolerations.iter().filter(|toleration| bears(toleration, taint)).collect();
        let until = if bearing.is_empty() {
            now
        } else {
            // The shortest of all that bear it; one without seconds sets no end.
            let Some(seconds) = bearing.iter().filter_map(|toleration| toleration.seconds).min() else {
                continue;
            };
            let since = taint.added.unwrap_or(now);
            since.checked_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX)
        };
        end = Some(end.map_or(until, |end| end.min(until)));
    }
    end.map_or(Stay::ForEver, Stay::Until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_end_by_the_shortest_toleration() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let taint = |key: &str, effect: &str| Taint {
            key: key.into(),
            value: "v".into(),
            effect: effect.into(),
            added: Some(now),
        };
        let toleration = |key: &str, operator: &str, seconds: Option<i64>| Toleration {
            key: key.into(),
            operator: operator.into(),
            value: if operator == "Exists" { "" } else { "v" }.into(),
            effect: "NoExecute".into(),
            seconds,
        };
        let pod = |tolerations: &[Toleration]| Pod { tolerations: tolerations.to_vec(), ..Pod::default() };
        let after = |seconds: i64| Stay::Until(now + SignedDuration::from_secs(seconds));
        let unreachable = [taint("u", "NoExecute")];
        for (name, tolerations, taints, expected) in [
            ("no taint", vec![], vec![taint("u", "NoSchedule")], Stay::ForEver),
            ("not borne", vec![], unreachable.to_vec(), after(0)),
            ("for ever", vec![toleration("u", "Exists", None)], unreachable.to_vec(), Stay::ForEver),
            ("a while", vec![toleration("u", "Exists", Some(300))], unreachable.to_vec(), after(300)),
            ("by value", vec![toleration("u", "Equal", Some(9))], unreachable.to_vec(), after(9)),
            ("another key", vec![toleration("x", "Exists", None)], unreachable.to_vec(), after(0)),
            ("all keys", vec![toleration("", "Exists", None)], unreachable.to_vec(), Stay::ForEver),
            (
                "two taints",
                vec![toleration("u", "Exists", Some(300)), toleration("n", "Exists", Some(30))],
                vec![taint("u", "NoExecute"), taint("n", "NoExecute")],
                after(30),
            ),
        ] {
            assert_eq!(stay(&pod(&tolerations), &taints, now), expected, "{name}");
        }
    }
}
