//! Service-account tokens: JWTs signed with ES256 (RFC 7518 section 3.4).
//!
//! Invariant: no algorithm but ES256 and no key but ours is ever considered, whatever the header says.

use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

/// Tokens longer than this are not looked at.
const TOKEN_LIMIT_BYTES: usize = 16 << 10;

/// Signs and verifies tokens.
pub(crate) struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
    pub(crate) issuer: String,
}

/// What a token is for.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) account_uid: String,
    /// Kind (`pod`, `secret`, `node`), name and uid of what the token dies with.
    pub(crate) bound: Option<(String, String, String)>,
    /// The node of a bound pod: name and uid.
    pub(crate) node: Option<(String, String)>,
    pub(crate) audiences: Vec<String>,
    pub(crate) issued: i64,
    pub(crate) expires: i64,
    pub(crate) id: String,
}

impl Tokens {
    pub(crate) fn load(path: &Path, issuer: &str) -> anyhow::Result<Self> {
        let place = || format!("failed to load the service-account key {}", path.display());
        let der = PrivatePkcs8KeyDer::from_pem_file(path)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .context("it must hold a PKCS#8 key (-----BEGIN PRIVATE KEY-----)")
            .with_context(place)?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            der.secret_pkcs8_der(),
            &random,
        )
        .map_err(|error| anyhow::anyhow!("it must be an ECDSA P-256 key: {error}"))
        .with_context(place)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self { key_id: BASE64.encode(digest), key, random, issuer: issuer.to_owned() })
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, String> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let message = format!("{}.{}", part(&header), part(&self.payload(claims)));
        let signature = self
            .key
            .sign(&self.random, message.as_bytes())
            .map_err(|_| "could not sign the token".to_owned())?;
        Ok(format!("{message}.{}", BASE64.encode(signature)))
    }

    fn payload(&self, claims: &Claims) -> Value {
        let mut about = json!({
            "namespace": claims.namespace,
            "serviceaccount": {"name": claims.account, "uid": claims.account_uid},
        });
        if let Some((kind, name, uid)) = &claims.bound {
            about[kind] = json!({"name": name, "uid": uid});
        }
        if let Some((name, uid)) = &claims.node {
            about["node"] = json!({"name": name, "uid": uid});
        }
        json!({
            "aud": claims.audiences, "exp": claims.expires, "iat": claims.issued, "nbf": claims.issued, "iss": self.issuer,
            "jti": claims.id, "kubernetes.io": about,
            "sub": format!("system:serviceaccount:{}:{}", claims.namespace, claims.account),
        })
    }

    /// The claims of a token that we signed and that is valid now. `now` is in seconds since the epoch.
    pub(crate) fn verify(&self, token: &str, now: i64) -> Result<Claims, &'static str> {
        if token.len() > TOKEN_LIMIT_BYTES {
            return Err("token is too long");
        }
        let (message, signature) = token.rsplit_once('.').ok_or("token has no signature")?;
        let (header, payload) = message.split_once('.').ok_or("token has no payload")?;
        let header = unpart(header).ok_or("token header is malformed")?;
        if header.get("alg").and_then(Value::as_str) != Some("ES256") {
            return Err("token is not signed with ES256");
        }
        let signature = BASE64.decode(signature).map_err(|_| "token signature is malformed")?;
        UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(message.as_bytes(), &signature)
            .map_err(|_| "token signature does not fit")?;
        let payload = unpart(payload).ok_or("token payload is malformed")?;
        let number = |key: &str| payload.get(key).and_then(Value::as_i64);
        if payload.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err("token has another issuer");
        }
        if number("exp").is_none_or(|expires| expires <= now) {
            return Err("token has expired");
        }
        if number("nbf").is_some_and(|begins| begins > now + 60) {
            return Err("token is not valid yet");
        }
        claims_of(&payload).ok_or("token payload lacks claims")
    }
}

fn claims_of(payload: &Value) -> Option<Claims> {
    let about = payload.get("kubernetes.io")?;
    let word = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let reference = |kind: &str| {
        let object = about.get(kind)?;
        Some((kind.to_owned(), word(object.get("name")), word(object.get("uid"))))
    };
    let account = about.get("serviceaccount")?;
    let pod = reference("pod");
    Some(Claims {
        namespace: word(about.get("namespace")),
        account: word(account.get("name")),
        account_uid: word(account.get("uid")),
        node: pod.as_ref().and_then(|_| reference("node")).map(|(_, name, uid)| (name, uid)),
        bound: pod.or_else(|| reference("secret")).or_else(|| reference("node")),
        audiences: match payload.get("aud")? {
            Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Value::String(one) => vec![one.clone()],
            _ => return None,
        },
        issued: payload.get("iat").and_then(Value::as_i64).unwrap_or_default(),
        expires: payload.get("exp").and_then(Value::as_i64)?,
        id: word(payload.get("jti")),
    })
}

fn part(value: &Value) -> String {
    BASE64.encode(value.to_string())
}

fn unpart(text: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64.decode(text).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sa.key");
        std::fs::write(&path, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        Tokens::load(&path, "https://issuer").unwrap()
    }

    fn claims() -> Claims {
        Claims {
            namespace: "a".into(),
            account: "default".into(),
            account_uid: "u".into(),
            bound: Some(("pod".into(), "web".into(), "p".into())),
            node: None,
            audiences: vec!["https://issuer".into()],
            issued: 1000,
            expires: 2000,
            id: "i".into(),
        }
    }

    #[test]
    fn a_signed_token_is_verified_and_expires() {
        let tokens = tokens();
        let token = tokens.sign(&claims()).unwrap();
        let verified = tokens.verify(&token, 1500).unwrap();
        assert_eq!((verified.account.as_str(), verified.bound.unwrap().1.as_str()), ("default", "web"));
        assert_eq!(tokens.verify(&token, 2000).unwrap_err(), "token has expired");
        assert_eq!(tokens.verify(&token, 10).unwrap_err(), "token is not valid yet");
    }

    #[test]
    fn forged_tokens_are_refused() {
        let (ours, other) = (tokens(), tokens());
        let token = other.sign(&claims()).unwrap();
        assert_eq!(ours.verify(&token, 1500).unwrap_err(), "token signature does not fit");
        let token = ours.sign(&claims()).unwrap();
        let mut parts: Vec<&str> = token.split('.').collect();
        let none = part(&json!({"alg": "none"}));
        parts[0] = &none;
        assert_eq!(ours.verify(&parts.join("."), 1500).unwrap_err(), "token is not signed with ES256");
        for token in ["", ".", "..", "a.b.c", "é.é.é"] {
            assert!(ours.verify(token, 1500).is_err(), "{token}");
        }
    }
}
