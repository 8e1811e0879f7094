//! Which images may be pulled: the file format of containers-policy.json(5). Pure.
//!
//! What is known is `insecureAcceptAnything` and `reject`. Requirements that verify signatures are parsed and then not met: an
//! image that they cover is refused. As upstream, parsing is strict: what is unknown or said twice makes the whole file invalid.

use std::collections::BTreeMap;
use std::fmt;

use orlop_types::Reference;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A parsed policy file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    default: Requirements,
    #[serde(default)]
    transports: Unique<Unique<Requirements>>,
}

/// Why an image may not be pulled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The file is no policy.
    #[error("malformed: {0}")]
    Malformed(String),
    /// `reject`.
    #[error("images of {scope} are rejected")]
    Rejected {
        /// Which part of the policy says so.
        scope: String,
    },
    /// A signature would have to be verified.
    #[error(
        "images of {scope} need {requirement}, which is not supported yet: no signature is verified here"
    )]
    Unsupported {
        /// Which part of the policy says so.
        scope: String,
        /// What it wants.
        requirement: &'static str,
    },
}

/// All of them have to be met; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirements(Vec<Requirement>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Requirement {
    Accept,
    Reject,
    Unsupported(&'static str),
}

impl Policy {
    /// Parses a policy file.
    ///
    /// # Errors
    /// [`PolicyError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        serde_json::from_str(text).map_err(|error| PolicyError::Malformed(error.to_string()))
    }

    /// Whether the image may be pulled from a registry: the most specific scope of transport `docker` decides, then the
    /// transport's own default, then the default of all.
    ///
    /// # Errors
    /// [`PolicyError`] names the scope.
    pub fn check(&self, reference: &Reference) -> Result<(), PolicyError> {
        let docker = self.transports.0.get("docker");
        let scoped = docker.and_then(|scopes| {
            let found = scopes_of(reference).into_iter().find_map(|scope| {
                let requirements = scopes.0.get(&scope)?;
                Some((format!("scope {scope:?}"), requirements))
            });
            let default =
                || scopes.0.get("").map(|requirements| ("transport \"docker\"".to_owned(), requirements));
            found.or_else(default)
        });
        let (scope, requirements) =
            scoped.unwrap_or_else(|| ("the default policy".to_owned(), &self.default));
        for requirement in &requirements.0 {
            match requirement {
                Requirement::Accept => {}
                Requirement::Reject => return Err(PolicyError::Rejected { scope }),
                Requirement::Unsupported(requirement) => {
                    return Err(PolicyError::Unsupported { scope, requirement });
                }
            }
        }
        Ok(())
    }
}

/// The scopes that cover an image, most specific first: the image, its repository and the namespaces above it, its host, and
/// wildcards for the domains above the host.
fn scopes_of(reference: &Reference) -> Vec<String> {
    let name = reference.name();
    let mut scopes = Vec::new();
    // With tag and digest only the digest is pulled.
    scopes.push(match reference.digest() {
        Some(digest) => format!("{name}@{digest}"),
        None => format!("{name}:{}", reference.identifier()),
    });
    let mut above = name.as_str();
    scopes.push(above.to_owned());
    while let Some((rest, _)) = above.rsplit_once('/') {
        above = rest;
        scopes.push(above.to_owned());
    }
    let mut domain = above.split(':').next().unwrap_or_default();
    while let Some((_, rest)) = domain.split_once('.') {
        domain = rest;
        scopes.push(format!("*.{domain}"));
    }
    scopes
}

impl<'de> Deserialize<'de> for Requirements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = Vec::<Unique<serde_json::Value>>::deserialize(deserializer)?;
        if list.is_empty() {
            return Err(D::Error::custom("a list of requirements is empty"));
        }
        list.into_iter()
            .map(|members| requirement(&members.0).map_err(D::Error::custom))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn requirement(members: &BTreeMap<String, serde_json::Value>) -> Result<Requirement, String> {
    let kind = members.get("type").and_then(serde_json::Value::as_str).ok_or("a requirement has no type")?;
    let plain = |requirement| match members.keys().find(|key| *key != "type") {
        Some(key) => Err(format!("requirement {kind:?} has the unknown field {key:?}")),
        None => Ok(requirement),
    };
    match kind {
        "insecureAcceptAnything" => plain(Requirement::Accept),
        "reject" => plain(Requirement::Reject),
        "signedBy" => Ok(Requirement::Unsupported("signedBy")),
        "sigstoreSigned" => Ok(Requirement::Unsupported("sigstoreSigned")),
        "signedBaseLayer" => Ok(Requirement::Unsupported("signedBaseLayer")),
        other => Err(format!("unknown requirement {other:?}")),
    }
}

/// A JSON object in which no key stands twice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unique<T>(BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut members = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value()?;
                    if members.insert(key.clone(), value).is_some() {
                        return Err(A::Error::custom(format!("{key:?} stands there twice")));
                    }
                }
                Ok(Unique(members))
            }
        }

        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPT: &str = r#"[{"type":"insecureAcceptAnything"}]"#;
    const REJECT: &str = r#"[{"type":"reject"}]"#;

    fn check(policy: &str, image: &str) -> Result<(), PolicyError> {
        Policy::parse(policy).unwrap().check(&Reference::parse(image).unwrap())
    }

    #[test]
    fn the_most_specific_scope_decides() {
        let digest = orlop_types::Digest::sha256(b"x");
        let at = |scope: &str| {
            format!(r#"{{"default":{REJECT},"transports":{{"docker":{{"{scope}":{ACCEPT}}}}}}}"#)
        };
        for (scope, image, good) in [
            ("docker.io/library/nginx:1", "nginx:1", true),
            ("docker.io/library/nginx:1", "nginx:2", false),
            ("docker.io/library/nginx", "nginx:2", true),
            ("docker.io/library", "nginx", true),
            ("docker.io", "nginx", true),
            ("docker.io/lib", "nginx", false),
            ("*.io", "nginx", true),
            ("*.example.com", "a.b.example.com/x", true),
            ("*.example.com", "a.example.com:5000/x", true),
            ("*.example.com", "example.com/x", false),
            ("example.com", "example.com:5000/x", false),
            ("example.com:5000", "example.com:5000/x", true),
            ("", "nginx", true),
            (&format!("docker.io/library/nginx@{digest}"), &format!("nginx:1@{digest}"), true),
            ("docker.io/library/nginx:1", &format!("nginx:1@{digest}"), false),
        ] {
            assert_eq!(check(&at(scope), image).is_ok(), good, "{scope} {image}");
        }
        let nested = format!(
            r#"{{"default":{ACCEPT},"transports":{{"docker":{{"":{REJECT},"q.io":{ACCEPT},"q.io/bad":{REJECT}}},"atomic":{{"":{ACCEPT}}}}}}}"#
        );
        assert_eq!(check(&nested, "q.io/good"), Ok(()));
        assert_eq!(
            check(&nested, "q.io/bad/x"),
            Err(PolicyError::Rejected { scope: "scope \"q.io/bad\"".into() })
        );
        assert_eq!(
            check(&nested, "nginx"),
            Err(PolicyError::Rejected { scope: "transport \"docker\"".into() })
        );
    }

    #[test]
    fn signatures_are_not_waved_through() {
        for kind in ["signedBy", "sigstoreSigned"] {
            let policy = format!(
                r#"{{"default":[{{"type":"insecureAcceptAnything"}},{{"type":"{kind}","keyType":"GPGKeys","keyPath":"/k"}}]}}"#
            );
            let error = check(&policy, "nginx").unwrap_err();
            assert!(
                error.to_string().contains(kind) && error.to_string().contains("not supported yet"),
                "{error}"
            );
        }
    }

    #[test]
    fn parsing_is_strict() {
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"default":[]}"#,
            r#"{"default":[{}]}"#,
            r#"{"default":[{"type":"accept"}]}"#,
            r#"{"default":[{"type":"reject","x":1}]}"#,
            r#"{"default":[{"type":"reject","type":"reject"}]}"#,
            r#"{"default":[{"type":"reject"}],"more":1}"#,
            r#"{"default":[{"type":"reject"}],"default":[{"type":"reject"}]}"#,
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[]}}}"#,
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"reject"}],"a":[{"type":"reject"}]}}}"#,
        ] {
            assert!(matches!(Policy::parse(bad), Err(PolicyError::Malformed(_))), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}:,\"a-z]{0,80}") {
            let _ = Policy::parse(&text);
        }
    }
}
