//! Label selectors.

use std::collections::BTreeSet;

use serde_json::Value;

use super::token::{Token, tokens};
use crate::rows::names::{label_value_faults, qualified_name_faults};
use crate::status::quote;

/// A conjunction of requirements on labels. Without requirements it matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// The values compared with, sorted.
    pub values: Vec<String>,
}

/// What is asked of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// Present with one of the values.
    In,
    /// Absent, or with none of the values.
    NotIn,
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
    /// Present and an integer greater than the value.
    Greater,
    /// Present and an integer less than the value.
    Less,
}

impl LabelSelector {
    /// Matches everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches nothing: the meaning of an absent `metav1.LabelSelector`.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Whether it matches every object.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// The requirements.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Parses the query parameter's grammar: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// Upstream's text of what was found and what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        let mut requirements = parser.parse()?;
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From a `metav1.LabelSelector`; null selects nothing, `{}` everything.
    ///
    /// # Errors
    /// An unknown operator or a requirement upstream refuses.
    pub fn from_object(selector: &Value) -> Result<Self, String> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(requirement(key.clone(), Operator::In, vec![value])?);
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression.get("key").and_then(Value::as_str).unwrap_or_default();
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            let operator = match expression.get("operator").and_then(Value::as_str).unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{} is not a valid label selector operator", quote(other))),
            };
            requirements.push(requirement(key.to_owned(), operator, values)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// From a plain map, as a Service's or a ReplicationController's `spec.selector`. An absent or empty map selects nothing.
    pub fn from_map(selector: &Value) -> Self {
        let Some(map) = selector.as_object().filter(|map| !map.is_empty()) else {
            return Self::nothing();
        };
        let requirements = map.iter().map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.as_str().unwrap_or_default().to_owned()],
        });
        Self { requirements: requirements.collect(), nothing: false }
    }

    /// Whether the labels that `label` looks up satisfy every requirement.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing
            && self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }

    /// Whether an object's `metadata.labels` satisfy it.
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels");
        self.matches(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str))
    }
}

impl Requirement {
    fn matches(&self, label: Option<&str>) -> bool {
        match (self.operator, label) {
            (Operator::Exists, label) => label.is_some(),
            (Operator::DoesNotExist, label) => label.is_none(),
            (Operator::In, label) => label.is_some_and(|label| self.has(label)),
            (Operator::NotIn, label) => label.is_none_or(|label| !self.has(label)),
            (Operator::Greater | Operator::Less, None) => false,
            (Operator::Greater | Operator::Less, Some(label)) => self.compares(label),
        }
    }

    fn has(&self, label: &str) -> bool {
        self.values.iter().any(|value| value == label)
    }

    fn compares(&self, label: &str) -> bool {
        let Some(Ok(bound)) = self.values.first().map(|value| value.parse::<i64>()) else {
            return false;
        };
        let Ok(label) = label.parse::<i64>() else {
            return false;
        };
        if self.operator == Operator::Greater { label > bound } else { label < bound }
    }
}

/// Builds a requirement the way upstream's `NewRequirement` does, with its refusals.
fn requirement(key: String, operator: Operator, values: Vec<String>) -> Result<Requirement, String> {
    check_key(&key)?;
    match operator {
        Operator::In | Operator::NotIn if values.is_empty() => {
            return Err("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty"
                .to_owned());
        }
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
            return Err(format!(
                "values: Invalid value: {values:?}: values set must be empty for exists and does not exist"
            ));
        }
        Operator::Greater | Operator::Less if values.len() != 1 => {
            return Err(format!(
                "values: Invalid value: {values:?}: for 'Gt', 'Lt' operators, exactly one value is required"
            ));
        }
        Operator::Greater | Operator::Less if values[0].parse::<i64>().is_err() => {
            return Err(format!(
                "values[0]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                quote(&values[0])
            ));
        }
        _ => {}
    }
    for (index, value) in values.iter().enumerate() {
        let faults = label_value_faults(value);
        if !faults.is_empty() {
            return Err(format!(
                "values[{index}][{key}]: Invalid value: {}: {}",
                quote(value),
                faults.join("; ")
            ));
        }
    }
    Ok(Requirement { key, operator, values })
}

fn check_key(key: &str) -> Result<(), String> {
    let faults = qualified_name_faults(key);
    if faults.is_empty() {
        Ok(())
    } else {
        Err(format!("<nil>: Invalid value: {}: {}", quote(key), faults.join("; ")))
    }
}

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    at: usize,
}

impl<'a> Parser<'a> {
    /// The next token where a value may stand: there, keywords are identifiers.
    fn peek(&self) -> (Token, &'a str) {
        match self.tokens[self.at] {
            (Token::In | Token::NotIn, text) => (Token::Identifier, text),
            token => token,
        }
    }

    fn next(&mut self) -> (Token, &'a str) {
        let token = self.peek();
        self.advance();
        token
    }

    fn advance(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }

    fn parse(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::Identifier | Token::Not, _) => {
                    let one = self
                        .parse_requirement()
                        .map_err(|why| format!("unable to parse requirement: {why}"))?;
                    requirements.push(one);
                    match self.next() {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => {
                            let (token, text) = self.peek();
                            if token != Token::Identifier && token != Token::Not {
                                return Err(format!("found '{text}', expected: identifier after ','"));
                            }
                        }
                        (_, text) => return Err(format!("found '{text}', expected: ',' or 'end of string'")),
                    }
                }
                (Token::End, _) => return Ok(requirements),
                (_, text) => {
                    return Err(format!("found '{text}', expected: !, identifier, or 'end of string'"));
                }
            }
        }
    }

    fn parse_requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut text) = self.next();
        let absent = token == Token::Not;
        if absent {
            (token, text) = self.next();
        }
        if token != Token::Identifier {
            return Err(format!("found '{text}', expected: identifier"));
        }
        check_key(text)?;
        let key = text.to_owned();
        if absent {
            return requirement(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return requirement(key, Operator::Exists, Vec::new());
        }
        let (operator, text) = self.tokens[self.at];
        self.advance();
        let (operator, values) = match operator {
            Token::In => (Operator::In, self.parse_values()?),
            Token::NotIn => (Operator::NotIn, self.parse_values()?),
            Token::Equals | Token::DoubleEquals => (Operator::In, self.parse_exact_value()?),
            Token::NotEquals => (Operator::NotIn, self.parse_exact_value()?),
            Token::Greater => (Operator::Greater, self.parse_exact_value()?),
            Token::Less => (Operator::Less, self.parse_exact_value()?),
            _ => return Err(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        requirement(key, operator, values)
    }

    fn parse_exact_value(&mut self) -> Result<Vec<String>, String> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(vec![String::new()]);
        }
        match self.next() {
            (Token::Identifier, text) => Ok(vec![text.to_owned()]),
            (_, text) => Err(format!("found '{text}', expected: identifier")),
        }
    }

    fn parse_values(&mut self) -> Result<Vec<String>, String> {
        let (token, text) = self.next();
        if token != Token::Open {
            return Err(format!("found '{text}' expected: '('"));
        }
        let values = match self.peek() {
            (Token::Identifier | Token::Comma, _) => self.parse_identifiers()?,
            (Token::Close, _) => BTreeSet::new(),
            (_, text) => return Err(format!("found '{text}', expected: ',', ')' or identifier")),
        };
        let (token, text) = self.next();
        if token != Token::Close {
            return Err(format!("found '{text}', expected: ')'"));
        }
        Ok(values.into_iter().collect())
    }

    /// Identifiers between commas; an empty place is the empty value.
    fn parse_identifiers(&mut self) -> Result<BTreeSet<String>, String> {
        let mut values = BTreeSet::new();
        loop {
            match self.next() {
                (Token::Identifier, text) => {
                    values.insert(text.to_owned());
                    match self.peek() {
                        (Token::Comma, _) => continue,
                        (Token::Close, _) => return Ok(values),
                        (_, text) => return Err(format!("found '{text}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.peek() {
                        (Token::Close, _) => {
                            values.insert(String::new());
                            return Ok(values);
                        }
                        (Token::Comma, _) => {
                            self.advance();
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                (_, text) => return Err(format!("found '{text}', expected: ',', or identifier")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(selector: &str, labels: &Value) -> bool {
        LabelSelector::parse(selector)
            .unwrap_or_else(|why| panic!("{selector}: {why}"))
            .matches(|key| labels.get(key).and_then(Value::as_str))
    }

    #[test]
    fn selects_by_equality_and_sets() {
        let labels = json!({"app": "nginx", "tier": "web", "n": "5", "in": "x"});
        let table = [
            ("", true),
            ("app=nginx", true),
            ("app==nginx,tier!=db", true),
            ("app=nginx,tier=db", false),
            ("missing!=x", true),
            ("app", true),
            ("missing", false),
            ("!missing", true),
            ("!app", false),
            ("app in (nginx, apache)", true),
            ("app in (apache)", false),
            ("app notin (apache,)", true),
            ("missing notin (a)", true),
            ("missing in (a)", false),
            ("n>4", true),
            ("n<5", false),
            ("app=", false),
            ("in=x", true),
            ("in in (x)", true),
            (" app = nginx , tier ", true),
        ];
        for (selector, expected) in table {
            assert_eq!(matches(selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn refuses_with_upstreams_texts() {
        let table = [
            ("app=a b", "found 'b', expected: ',' or 'end of string'"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            (
                "a>b",
                "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ];
        for (selector, expected) in table {
            assert_eq!(LabelSelector::parse(selector), Err(expected.to_owned()), "{selector}");
        }
        let why = LabelSelector::parse("a=-b").expect_err("label values start with an alphanumeric");
        assert!(
            why.starts_with(
                "unable to parse requirement: values[0][a]: Invalid value: \"-b\": a valid label must be"
            ),
            "{why}"
        );
    }

    #[test]
    fn reads_the_object_form() {
        let selector = LabelSelector::from_object(&json!({"matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["d"]}, {"key": "e", "operator": "DoesNotExist"}]}))
        .expect("valid");
        assert!(selector.matches_object(&json!({"metadata": {"labels": {"a": "b", "c": "x"}}})));
        assert!(!selector.matches_object(&json!({"metadata": {"labels": {"a": "b", "e": "x"}}})));
        assert!(LabelSelector::from_object(&json!({})).expect("valid").is_everything());
        assert!(!LabelSelector::from_object(&Value::Null).expect("valid").matches_object(&json!({})));
        assert!(!LabelSelector::from_map(&json!({})).matches_object(&json!({})));
    }
}
