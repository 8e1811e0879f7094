//! Tokens of another token service (distribution spec/auth/jwt.md): RS256 or ES256, by the public keys of a file.

use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use serde::Deserialize;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::config::ExternalTokens;
use super::is_user_name;
use crate::watched::Watched;

const TOKEN_LIMIT_BYTES: usize = 16 << 10;
const KEY_LIMIT: usize = 32;
/// Between two clocks.
const LEEWAY_SECONDS: u64 = 60;
/// Who has a token that names nobody.
const NOBODY: &str = "anonymous";

/// A public key, and its name where it has one.
struct Key {
    name: Option<String>,
    value: KeyValue,
}

enum KeyValue {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
}

/// What a foreign token gives: a user, and scopes as one text.
pub(super) struct Granted {
    pub(super) user: Arc<str>,
    pub(super) scope: String,
}

/// Another token service.
pub(super) struct External {
    pub(super) keys: Arc<Watched<Keys>>,
    pub(super) service: String,
    issuer: String,
}

/// The keys of the file; opaque.
pub(crate) struct Keys(Vec<Key>);

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515 section 4.1.11): none are.
    crit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: Option<String>,
    aud: Audience,
    exp: u64,
    nbf: Option<u64>,
    #[serde(default)]
    access: Vec<Access>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Access {
    r#type: String,
    name: String,
    actions: Vec<String>,
}

impl External {
    pub(super) fn open(config: &ExternalTokens) -> anyhow::Result<Self> {
        let parse = |contents: &[Vec<u8>]| Ok(Keys(keys(&contents[0])?));
        let files = vec![config.public_keys_file.clone()];
        let keys = Arc::new(Watched::open("keys of tokens", files, parse)?);
        Ok(Self { keys, service: config.service.clone(), issuer: config.issuer.clone() })
    }

    /// What a token gives, if it is of that service, for this registry, and now.
    pub(super) fn verify(&self, token: &str, now: u64) -> Option<Granted> {
        if token.len() > TOKEN_LIMIT_BYTES {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
        if header.crit.is_some() || !self.keys.get().signed(&header, signed.as_bytes(), &decode(signature)?) {
            return None;
        }
        let claims: Claims = serde_json::from_slice(&decode(payload)?).ok()?;
        let for_us = match &claims.aud {
            Audience::One(one) => *one == self.service,
            Audience::Many(many) => many.contains(&self.service),
        };
        let begun = claims.nbf.is_none_or(|begin| begin <= now.saturating_add(LEEWAY_SECONDS));
        let ended = claims.exp.saturating_add(LEEWAY_SECONDS) <= now;
        if claims.iss != self.issuer || !for_us || !begun || ended {
            return None;
        }
        let user = claims.sub.filter(|user| !user.is_empty()).unwrap_or_else(|| NOBODY.to_owned());
        is_user_name(&user).then(|| Granted { user: user.into(), scope: scope(&claims.access) })
    }
}

impl Keys {
    fn signed(&self, header: &Header, signed: &[u8], signature: &[u8]) -> bool {
        // A name that none of them has says nothing: some services name keys by another rule.
        let named = |key: &Key| key.name.is_some() && key.name == header.kid;
        let one = self.0.iter().any(named);
        self.0.iter().filter(|key| !one || named(key)).any(|key| match (&key.value, header.alg.as_str()) {
            (KeyValue::Rsa { modulus, exponent }, "RS256") => {
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature).is_ok()
            }
            (KeyValue::P256(point), "ES256") => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature).is_ok()
            }
            _ => false,
        })
    }
}

/// As the scopes of our own tokens. A name with a space would be two scopes.
fn scope(access: &[Access]) -> String {
    let plain = |access: &&Access| !access.name.contains(' ') && !access.r#type.contains([' ', ':']);
    let texts = access.iter().filter(plain).map(|access| {
        let actions: Vec<&str> =
            access.actions.iter().map(String::as_str).filter(|action| !action.contains([' ', ':'])).collect();
        format!("{}:{}:{}", access.r#type, access.name, actions.join(","))
    });
    texts.collect::<Vec<_>>().join(" ")
}

/// A JSON Web Key Set (RFC 7517), or PEM: public keys and certificates.
fn keys(bytes: &[u8]) -> anyhow::Result<Vec<Key>> {
    let keys = match bytes.trim_ascii_start().first() {
        Some(b'{') => of_set(bytes)?,
        _ => of_pem(bytes)?,
    };
    anyhow::ensure!(!keys.is_empty(), "it holds no RSA or P-256 key: give a key set or PEM");
    anyhow::ensure!(keys.len() <= KEY_LIMIT, "it holds more than {KEY_LIMIT} keys");
    Ok(keys)
}

fn of_set(bytes: &[u8]) -> anyhow::Result<Vec<Key>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        kty: String,
        kid: Option<String>,
        crv: Option<String>,
        n: Option<String>,
        e: Option<String>,
        x: Option<String>,
        y: Option<String>,
    }
    let set: Set = serde_json::from_slice(bytes).context("it is no JSON Web Key Set")?;
    let number = |text: Option<String>| {
        let text = text.context("a key of the set lacks a number")?;
        URL_SAFE_NO_PAD.decode(text).context("a number of the set is not base64url")
    };
    let mut keys = Vec::new();
    for one in set.keys {
        let value = match (one.kty.as_str(), one.crv.as_deref()) {
            ("RSA", _) => rsa(&number(one.n)?, &number(one.e)?),
            ("EC", Some("P-256")) => KeyValue::P256([&[4][..], &number(one.x)?, &number(one.y)?].concat()),
            // A set may hold keys for others.
            _ => continue,
        };
        keys.push(Key { name: one.kid, value });
    }
    Ok(keys)
}

fn of_pem(bytes: &[u8]) -> anyhow::Result<Vec<Key>> {
    let mut keys = Vec::new();
    for key in SubjectPublicKeyInfoDer::pem_slice_iter(bytes) {
        let key = key.context("it is neither a key set nor PEM")?;
        let (_, info) = SubjectPublicKeyInfo::from_der(&key).context("a public key is damaged")?;
        keys.extend(of_info(&info)?);
    }
    for certificate in CertificateDer::pem_slice_iter(bytes) {
        let certificate = certificate.context("it is neither a key set nor PEM")?;
        let (_, certificate) =
            x509_parser::parse_x509_certificate(&certificate).context("a certificate is damaged")?;
        keys.extend(of_info(certificate.public_key())?);
    }
    Ok(keys)
}

fn of_info(info: &SubjectPublicKeyInfo<'_>) -> anyhow::Result<Option<Key>> {
    let value = match info.parsed().context("a public key is damaged")? {
        PublicKey::RSA(key) => rsa(key.modulus, key.exponent),
        PublicKey::EC(point) if point.data().len() == 65 => KeyValue::P256(point.data().to_vec()),
        _ => return Ok(None),
    };
    Ok(Some(Key { name: None, value }))
}

/// Numbers without leading zeros.
fn rsa(modulus: &[u8], exponent: &[u8]) -> KeyValue {
    let plain = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect();
    KeyValue::Rsa { modulus: plain(modulus), exponent: plain(exponent) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    use serde_json::{Value, json};

    use super::*;

    fn external(directory: &std::path::Path, keys: &str) -> External {
        let file = directory.join("keys");
        std::fs::write(&file, keys).unwrap();
        External::open(&ExternalTokens {
            issuer: "https://tokens.example".into(),
            service: "mirror".into(),
            public_keys_file: file,
        })
        .unwrap()
    }

    struct Issuer(rcgen::KeyPair);

    impl Issuer {
        fn token(&self, header: &Value, claims: &Value) -> String {
            let random = SystemRandom::new();
            let key = self.0.serialize_der();
            let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &random).unwrap();
            let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let signed = format!("{}.{}", encode(header), encode(claims));
            let signature = key.sign(&random, signed.as_bytes()).unwrap();
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
        }

        /// The key as a set.
        fn set(&self, name: &str) -> String {
            let point = self.0.public_key_raw();
            let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            let ours = json!({"kty": "EC", "crv": "P-256", "kid": name, "x": number(&point[1..33]), "y": number(&point[33..])});
            json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AA"}, ours]}).to_string()
        }
    }

    fn claims() -> Value {
        json!({
            "iss": "https://tokens.example", "sub": "ann", "aud": "mirror", "exp": 1000, "nbf": 500,
            "access": [
                {"type": "repository", "name": "team/app", "actions": ["pull", "push"]},
                {"type": "repository", "name": "x:pull repository:y", "actions": ["pull"]},
            ],
        })
    }

    #[test]
    fn a_token_of_the_issuer_for_us_and_now() {
        let directory = tempfile::tempdir().unwrap();
        let issuer = Issuer(rcgen::KeyPair::generate().unwrap());
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": "one"});
        for keys in [issuer.0.public_key_pem(), issuer.set("one"), issuer.set("another")] {
            let external = external(directory.path(), &keys);
            let granted = external.verify(&issuer.token(&header, &claims()), 999).unwrap();
            assert_eq!((&*granted.user, granted.scope.as_str()), ("ann", "repository:team/app:pull,push"));
        }
        let external = external(directory.path(), &issuer.set("one"));
        let other = |changes: &[(&str, Value)]| {
            let mut claims = claims();
            for (key, value) in changes {
                claims[*key] = value.clone();
            }
            issuer.token(&header, &claims)
        };
        let user = |token: &str, now| external.verify(token, now).map(|granted| granted.user.to_string());
        for (token, now, wanted) in [
            (other(&[]), 1059, Some("ann")),
            (other(&[]), 1060, None),
            (other(&[]), 439, None),
            (other(&[("iss", "https://evil.example".into())]), 999, None),
            (other(&[("aud", "another".into())]), 999, None),
            (other(&[("aud", json!(["another", "mirror"]))]), 999, Some("ann")),
            (other(&[("sub", "".into())]), 999, Some("anonymous")),
            (other(&[("sub", "*".into())]), 999, None),
            (other(&[("exp", Value::Null)]), 999, None),
            (issuer.token(&json!({"alg": "RS256"}), &claims()), 999, None),
            (issuer.token(&json!({"alg": "none"}), &claims()), 999, None),
            (issuer.token(&json!({"alg": "ES256", "crit": ["x"]}), &claims()), 999, None),
            (Issuer(rcgen::KeyPair::generate().unwrap()).token(&header, &claims()), 999, None),
        ] {
            assert_eq!(user(&token, now).as_deref(), wanted, "{token} {now}");
        }
    }

    #[test]
    fn rsa_signatures() {
        let found = Keys(keys(RSA.as_bytes()).unwrap());
        let header = Header { alg: "RS256".into(), kid: None, crit: None };
        let signature = URL_SAFE_NO_PAD.decode(SIGNATURE).unwrap();
        assert!(found.signed(&header, b"signed.text", &signature));
        assert!(!found.signed(&header, b"signed.texts", &signature));
        assert!(keys(b"").is_err() && keys(b"{}").is_err() && keys(b"{\"keys\":[]}").is_err());
    }

    proptest! {
        #[test]
        fn any_keys_are_read(text in "(\\{\"keys\":\\[)?\\PC{0,40}", body in "[A-Za-z0-9+/=]{0,60}") {
            let _ = keys(text.as_bytes());
            let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
            let _ = keys(pem.as_bytes());
        }
    }

    /// Made with openssl for this test; the private half is gone.
    const RSA: &str = "-----BEGIN PUBLIC KEY-----\n\
        MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAkGdKvyDAFUFeuYrX8FmB\n\
        mRHpnxjOvKkMgSE57PMnJdHgF2CzXdjjKUuzLa0Yd9wlE7MIQEGdk/jk5h448Jnf\n\
        5r9dzYGMTXgHHJA+DQrxBPgaIgrY821zLQusnReyM9lJlPWYbz7rbBXBxZSjL553\n\
        ktLN4UsdSVaw6Jq4ZV5H7rhsjJuEb9QfP9p9ZUkmKkNqzXfOXs3bMO2DtOvfFjts\n\
        amcVswKOm6lD7qJkJwC6SAs+9GuHZENOIUYklryXAJtycwZDFx7terXFDVal7smg\n\
        CViGqTwZc4+5BQtvpSBHW6KA9ip4iOwq9mMV+AKwcOvh4nSc+krts+g76tWANKgA\n\
        yQIDAQAB\n\
        -----END PUBLIC KEY-----";
    const SIGNATURE: &str = "fc6E3i4m9YSxY2UmV0sSBwLD5aVgYcCdGbPxcHgXuQLovO27USCYijEwhHaRmCfQrzzIEgZHe6BrdqV_36Uiy7Xf2ZPh1maPe-hv\
        tAfcg-7eDZqTzxm9qwP2o3InNd1fZVBD-EkIKw1KZNfS8T0xm-hvjyzERMH6vznh4o9u3xrtcE6eXCnIWzh6ihdv1ygmSnxoLrM6\
        RA6dIxmjQtBEnR203JLhZWdL5UVOsytZlkpf5SNJF61hTAqjZRGmlmuiKp5P2YVq5UAvBCEdsYfOajxSejN8sZ-io4LJIgZqn40m\
        Yi2LrUWGl90ylnI8Ecz0BgC3WcyvPooQcyalYmHz8Q";
}
