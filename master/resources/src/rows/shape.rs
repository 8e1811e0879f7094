//! What defaults, checks and printers of many rows share: reading JSON, filling fields in, ages.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::resource::{Column, text};

/// The first column of most kinds.
pub(crate) const NAME: Column =
    Column { name: "Name", kind: "string", format: "name", description: "Name of the object.", priority: 0 };
/// The column of [`age`].
pub(crate) const AGE: Column = column("Age", "string", 0);

/// A column; priority 1 shows with `-o wide` alone.
pub(crate) const fn column(name: &'static str, kind: &'static str, priority: u8) -> Column {
    Column { name, kind, format: "", description: "", priority }
}

/// The elements at a pointer; none where there is no list.
pub(crate) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Sets a field that is absent or null.
pub(crate) fn fill(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_owned(), value.into());
    }
}

/// Sets a field that is absent, null or the empty string: what Go's zero value of a string is.
pub(crate) fn fill_text(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(|value| value.is_null() || value == "") {
        map.insert(key.to_owned(), value.into());
    }
}

/// The object under a key, made when absent; `None` when something else is there.
pub(crate) fn object<'a>(map: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    fill(map, key, json!({}));
    map.get_mut(key).and_then(Value::as_object_mut)
}

/// `spec`, made when absent.
pub(crate) fn spec(value: &mut Value) -> Option<&mut Map<String, Value>> {
    value.as_object_mut().and_then(|map| object(map, "spec"))
}

/// The objects of a list field.
pub(crate) fn objects<'a>(
    map: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// `5m` since a timestamp in the object; `<unknown>` without one.
pub(crate) fn since(object: &Value, pointer: &str, now: Timestamp) -> Value {
    let Ok(then) = text(object, pointer).parse::<Timestamp>() else {
        return Value::from("<unknown>");
    };
    Value::from(human(now.as_second() - then.as_second()))
}

/// The age of an object.
pub(crate) fn age(object: &Value, now: Timestamp) -> Value {
    since(object, "/metadata/creationTimestamp", now)
}

/// Upstream's `duration.HumanDuration`: two units at most, fewer the longer it is.
pub(crate) fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

fn two(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit}{small}{small_unit}")
    }
}

/// `a=b,c=d`, or `<none>`.
pub(crate) fn labels_text(labels: Option<&Value>) -> Value {
    let mut pairs: Vec<String> = labels
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    Value::from(if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") })
}

/// A list joined by commas, or `<none>`.
pub(crate) fn joined(items: impl Iterator<Item = String>) -> Value {
    let items: Vec<String> = items.collect();
    Value::from(if items.is_empty() { "<none>".to_owned() } else { items.join(",") })
}

/// The text at a pointer, or something to show instead.
pub(crate) fn text_or(object: &Value, pointer: &str, absent: &str) -> Value {
    let found = text(object, pointer);
    Value::from(if found.is_empty() { absent.to_owned() } else { found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_as_kubectl_shows_them() {
        let table = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (-5, "<invalid>"),
        ];
        for (seconds, wanted) in table {
            assert_eq!(human(seconds), wanted, "{seconds}");
        }
    }
}
