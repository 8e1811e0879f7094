//! JSON decoding that notices fields given twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// At most so many duplicates are reported.
const DUPLICATES: usize = 100;

/// Decodes JSON; the second value names fields given twice (`spec.replicas`), of which the last wins.
///
/// # Errors
/// What is not JSON, in the words of upstream's decoder.
pub fn decode_json(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let mut duplicates = Vec::new();
    let mut decoder = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed { path: String::new(), duplicates: &mut duplicates };
    let value = seed.deserialize(&mut decoder).and_then(|value| decoder.end().map(|()| value));
    match value {
        Ok(value) => Ok((value, duplicates)),
        Err(why) => Err(describe(&why, bytes)),
    }
}

fn describe(why: &serde_json::Error, bytes: &[u8]) -> String {
    if why.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let text = why.to_string();
    let line = bytes.split(|byte| *byte == b'\n').nth(why.line().saturating_sub(1)).unwrap_or_default();
    let character = std::str::from_utf8(line).ok().and_then(|line| {
        let at = why.column().saturating_sub(1);
        line.get(at..).and_then(|rest| rest.chars().next())
    });
    let Some(character) = character else { return text };
    if text.starts_with("expected value") || text.starts_with("expected ident") {
        return format!("invalid character '{character}' looking for beginning of value");
    }
    if text.starts_with("key must be a string") {
        return format!("invalid character '{character}' looking for beginning of object key string");
    }
    if text.starts_with("trailing characters") {
        return format!("invalid character '{character}' after top-level value");
    }
    if text.starts_with("trailing comma")
        || text.starts_with("expected `,`")
        || text.starts_with("expected `:`")
    {
        return format!("invalid character '{character}' after object key:value pair");
    }
    text
}

struct Seed<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, list.len());
            match items.next_element_seed(Seed { path, duplicates: &mut *self.duplicates })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            if map.contains_key(&key)
                && self.duplicates.len() < DUPLICATES
                && !self.duplicates.contains(&path)
            {
                self.duplicates.push(path.clone());
            }
            let value = entries.next_value_seed(Seed { path, duplicates: &mut *self.duplicates })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reports_duplicates_with_their_path() {
        let text = br#"{"a": 1, "spec": {"list": [{"x": 1, "x": 2}], "b": null, "b": 1.5}, "a": "z"}"#;
        let (value, duplicates) = decode_json(text).expect("is JSON");
        assert_eq!(value, json!({"a": "z", "spec": {"list": [{"x": 2}], "b": 1.5}}));
        assert_eq!(duplicates, ["spec.list[0].x", "spec.b", "a"]);
    }

    #[test]
    fn describes_what_is_not_json() {
        let table = [
            ("", "unexpected end of JSON input"),
            ("{\"a\": ", "unexpected end of JSON input"),
            ("nginx", "invalid character 'n' looking for beginning of value"),
            ("{a: 1}", "invalid character 'a' looking for beginning of object key string"),
            ("{} x", "invalid character 'x' after top-level value"),
        ];
        for (text, expected) in table {
            let why = decode_json(text.as_bytes()).expect_err("is not JSON");
            if text == "nginx" {
                // The column of a bad literal is that of its second character.
                assert!(why.starts_with("invalid character"), "{why}");
            } else {
                assert_eq!(why, expected, "{text}");
            }
        }
        let deep = "[".repeat(200);
        assert!(decode_json(deep.as_bytes()).is_err(), "nesting is bounded");
    }
}
