//! Field selectors: `a=b,c!=d` with backslash escapes for comma, equals sign and backslash.

/// A conjunction of comparisons of fields with values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRequirement {
    /// Field label, as `spec.nodeName`.
    pub field: String,
    /// Whether the field must equal the value, or must not.
    pub equal: bool,
    /// The value.
    pub value: String,
}

impl FieldSelector {
    /// Parses the query parameter.
    ///
    /// # Errors
    /// Upstream's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let Some((field, equal, value)) = split_term(term) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            let requirement = FieldRequirement { field: field.to_owned(), equal, value: unescape(value)? };
            requirements.push(requirement);
        }
        Ok(Self { requirements })
    }

    /// The comparisons.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// Whether it matches every object.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether the fields that `field` looks up satisfy every comparison; an absent field is empty.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| {
            (field(&requirement.field).unwrap_or_default() == requirement.value) == requirement.equal
        })
    }

    /// The value a field must equal, if one comparison says so: what an index lookup can use.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|requirement| requirement.equal && requirement.field == field)
            .map(|requirement| requirement.value.as_str())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (at, _) in term.char_indices() {
        let rest = &term[at..];
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..at], equal, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(value.len());
    let mut escaped = false;
    for character in value.chars() {
        match (escaped, character) {
            (true, '\\' | ',' | '=') => {
                plain.push(character);
                escaped = false;
            }
            (true, other) => {
                return Err(format!("invalid field selector: invalid escape sequence: \\{other}"));
            }
            (false, '\\') => escaped = true,
            (false, ',' | '=') => {
                return Err(format!("invalid field selector: unescaped character in value: {character}"));
            }
            (false, other) => plain.push(other),
        }
    }
    if escaped { Err("invalid field selector: invalid escape sequence: \\".to_owned()) } else { Ok(plain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_terms_and_escapes() {
        let selector =
            FieldSelector::parse(r"spec.nodeName=n1,status.phase!=Running,a==b\,c\=d\\").expect("valid");
        let found: Vec<_> = selector
            .requirements()
            .iter()
            .map(|one| (one.field.as_str(), one.equal, one.value.as_str()))
            .collect();
        assert_eq!(
            found,
            [("spec.nodeName", true, "n1"), ("status.phase", false, "Running"), ("a", true, r"b,c=d\")]
        );
        assert_eq!(selector.required("spec.nodeName"), Some("n1"));
        assert!(FieldSelector::parse("").expect("valid").is_everything());
        assert!(FieldSelector::parse("a!=").expect("valid").matches(|_| Some("x")));
    }

    #[test]
    fn refuses_with_upstreams_texts() {
        assert_eq!(
            FieldSelector::parse("a,b=c"),
            Err("invalid selector: 'a,b=c'; can't understand 'a'".to_owned())
        );
        assert_eq!(
            FieldSelector::parse(r"a=\x"),
            Err(r"invalid field selector: invalid escape sequence: \x".to_owned())
        );
        assert_eq!(
            FieldSelector::parse("a=b=c"),
            Err("invalid field selector: unescaped character in value: =".to_owned())
        );
    }
}
