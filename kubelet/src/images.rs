//! Image references, pull policy and registry credentials. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use k8s_openapi::api::core::v1 as core;
use orlop_cri::v1 as cri;
use serde::Deserialize;

/// Whether to pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Always,
    IfNotPresent,
    Never,
}

/// A reference with its tag: `name` without tag or digest means `latest`. The error is the reference library's own.
pub(crate) fn normalize(image: &str) -> Result<String, String> {
    let problem = || {
        format!(
            "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: invalid reference format"
        )
    };
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[slash..].rfind(':') {
        Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
        None => (rest, None),
    };
    let tag_ok = tag.is_none_or(|tag| {
        let first = tag.bytes().next();
        tag.len() <= 128
            && first.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    });
    let digest_ok = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    });
    if !is_name(name) || !tag_ok || !digest_ok {
        return Err(if name.bytes().any(|byte| byte.is_ascii_uppercase()) && is_name(&name.to_lowercase()) {
            problem().replace(
                "invalid reference format",
                "invalid reference format: repository name must be lowercase",
            )
        } else {
            problem()
        });
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

/// `[host[:port]/]path`, the path in lower case (the grammar of the distribution reference).
fn is_name(name: &str) -> bool {
    let mut parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 1 && has_registry(name) {
        let host = parts.remove(0);
        let host = host
            .rsplit_once(':')
            .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
            .map_or(host, |(h, _)| h);
        if host.is_empty()
            || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-[]:_".contains(&byte))
        {
            return false;
        }
    }
    !parts.is_empty()
        && parts.iter().all(|part| {
            let edge = |byte: Option<u8>| {
                byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            };
            edge(part.bytes().next())
                && edge(part.bytes().last())
                && !part.contains("..")
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
        })
}

fn has_registry(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    name.contains('/')
        && (first.contains('.')
            || first.contains(':')
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase()))
}

/// The container's policy; the API server sets it, else it follows from the tag.
pub(crate) fn policy(container: &core::Container, normalized: &str) -> Policy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("Never") => Policy::Never,
        Some(_) => Policy::IfNotPresent,
        None if normalized.ends_with(":latest") => Policy::Always,
        None => Policy::IfNotPresent,
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

impl Entry {
    fn into_auth(self) -> cri::AuthConfig {
        let (mut username, mut password) = (self.username, self.password);
        if username.is_empty()
            && let Ok(plain) =
                base64::engine::general_purpose::STANDARD.decode(self.auth.trim_end_matches('\0'))
            && let Ok(plain) = String::from_utf8(plain)
            && let Some((user, secret)) = plain.split_once(':')
        {
            username = user.to_owned();
            password = secret.trim_end_matches('\0').to_owned();
        }
        cri::AuthConfig {
            username,
            password,
            identity_token: self.identity_token,
            registry_token: self.registry_token,
            ..Default::default()
        }
    }
}

/// `host/path` of a credential key or an image, with Docker Hub's many names made one.
fn location(text: &str) -> String {
    let text = text.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let text = text.strip_suffix("/v1").or_else(|| text.strip_suffix("/v2")).unwrap_or(text);
    match text {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

fn matches(pattern: &str, image: &str) -> bool {
    let pattern = location(pattern);
    let full = if has_registry(image) { image.to_owned() } else { format!("docker.io/{image}") };
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((&pattern, ""));
    let (host, path) = full.split_once('/').unwrap_or((&full, ""));
    let host_ok = match pattern_host.strip_prefix("*.") {
        // A star stands for one label (upstream: credentialprovider.URLsMatch).
        Some(suffix) => host.split_once('.').is_some_and(|(_, rest)| rest == suffix),
        None => host == pattern_host,
    };
    host_ok && path.starts_with(pattern_path)
}

/// Credentials for an image out of pull secrets, the most specific first. Secrets of other types are passed over.
pub(crate) fn credentials(image: &str, secrets: &[core::Secret]) -> Vec<cri::AuthConfig> {
    let mut found: Vec<(usize, cri::AuthConfig)> = Vec::new();
    for secret in secrets {
        let data = secret.data.as_ref();
        let get = |key: &str| data.and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
        let entries: BTreeMap<String, Entry> = if let Some(json) = get(".dockerconfigjson") {
            serde_json::from_slice::<DockerConfig>(json).map(|config| config.auths).unwrap_or_default()
        } else if let Some(json) = get(".dockercfg") {
            serde_json::from_slice(json).unwrap_or_default()
        } else {
            BTreeMap::new()
        };
        for (key, entry) in entries {
            if matches(&key, image) {
                found.push((key.len(), entry.into_auth()));
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (image, expected) in [
            ("nginx", Some("nginx:latest")),
            ("nginx:1.25", Some("nginx:1.25")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            ("registry.example/a:b", Some("registry.example/a:b")),
            ("a@sha256:0123456789abcdef0123456789abcdef", Some("a@sha256:0123456789abcdef0123456789abcdef")),
            ("Bad", None),
            ("bad image", None),
            ("", None),
            ("a:", None),
            (":x", None),
            ("a//b", None),
            ("a@sha256:xyz", None),
        ] {
            assert_eq!(normalize(image).ok().as_deref(), expected, "{image}");
        }
        assert!(normalize("Bad").unwrap_err().contains("must be lowercase"));
    }

    #[test]
    fn credentials_by_place() {
        let config = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": base64::engine::general_purpose::STANDARD.encode("hub:1")},
            "*.example.com": {"username": "star", "password": "2"},
            "a.example.com/team": {"username": "team", "password": "3"}}});
        let secret: core::Secret = serde_json::from_value(serde_json::json!({"data": {".dockerconfigjson":
            base64::engine::general_purpose::STANDARD.encode(config.to_string())}}))
        .unwrap();
        let users = |image: &str| -> Vec<String> {
            credentials(image, std::slice::from_ref(&secret)).into_iter().map(|auth| auth.username).collect()
        };
        assert_eq!(users("nginx"), ["hub"]);
        assert_eq!(users("docker.io/library/nginx"), ["hub"]);
        assert_eq!(users("a.example.com/team/x"), ["team", "star"]);
        assert_eq!(users("b.example.com/x"), ["star"]);
        assert!(users("other.org/x").is_empty());
    }
}
