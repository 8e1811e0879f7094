//! Signed tokens: JSON Web Tokens (RFC 7519) with HS256, made and read here alone.

use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::{Deserialize, Serialize};

/// Of every token; another one is refused before it is read.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
const TOKEN_LIMIT_BYTES: usize = 16 << 10;
const KEY_BYTES: usize = 32;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Purpose {
    /// Requests to the registry.
    Access,
    /// Getting other tokens, instead of the password.
    Refresh,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claims {
    /// The user; none for somebody unknown.
    pub(super) sub: Option<String>,
    /// Seconds since 1970 when it ends.
    pub(super) exp: u64,
    pub(super) purpose: Purpose,
    /// Which password the user had then: with another one the token ends.
    pub(super) password: Option<String>,
    /// What it was asked for; space between scopes.
    pub(super) scope: String,
}

/// Signs tokens and knows its own.
pub(super) struct Signer {
    key: hmac::Key,
}

impl Signer {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    /// With the key of a file that the operator keeps, or of one that is made in `root`.
    pub(super) fn open(given: Option<&Path>, root: &Path) -> anyhow::Result<Self> {
        let secret = match given {
            Some(file) => {
                std::fs::read(file).with_context(|| format!("failed to read {}", file.display()))?
            }
            None => own_key(root)?,
        };
        anyhow::ensure!(
            secret.len() >= KEY_BYTES,
            "the key of tokens in {} is shorter than {KEY_BYTES} bytes: make it with head -c {KEY_BYTES} /dev/urandom",
            given.map_or_else(|| root.join(KEY_FILE), Path::to_path_buf).display()
        );
        Ok(Self::new(&secret))
    }

    pub(super) fn sign(&self, claims: &Claims) -> anyhow::Result<String> {
        let payload = serde_json::to_vec(claims).context("failed to write a token")?;
        let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(payload));
        let signature = hmac::sign(&self.key, token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }

    /// What a token of ours says, unless it has ended.
    pub(super) fn verify(&self, token: &str, now: u64) -> Option<Claims> {
        if token.len() > TOKEN_LIMIT_BYTES {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&self.key, signed.as_bytes(), &signature).ok()?;
        let (header, payload) = signed.split_once('.')?;
        if URL_SAFE_NO_PAD.decode(header).ok()? != HEADER.as_bytes() {
            return None;
        }
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        (claims.exp > now).then_some(claims)
    }

    /// Which password a user has, without telling it.
    pub(super) fn password(&self, user: &str, hash: &str) -> String {
        let signature = hmac::sign(&self.key, format!("password\0{user}\0{hash}").as_bytes());
        URL_SAFE_NO_PAD.encode(&signature.as_ref()[..12])
    }
}

const KEY_FILE: &str = "token.key";

fn own_key(root: &Path) -> anyhow::Result<Vec<u8>> {
    let file = root.join(KEY_FILE);
    match std::fs::read(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        read => return read.with_context(|| format!("failed to read {}", file.display())),
    }
    let mut secret = [0; KEY_BYTES];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut secret)
        .map_err(|_| anyhow::anyhow!("the kernel gives no random numbers"))?;
    // A temporary file has mode 0600, and is whole before it has its name. The next start removes what is left among unfinished blobs.
    let unfinished = root.join("ingest");
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(&unfinished)?;
        let mut unnamed = tempfile::NamedTempFile::new_in(&unfinished)?;
        std::io::Write::write_all(&mut unnamed, &secret)?;
        unnamed.as_file().sync_all()?;
        unnamed.persist(&file)?;
        std::fs::File::open(root)?.sync_all()
    };
    write().with_context(|| format!("failed to make {}", file.display()))?;
    Ok(secret.to_vec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn claims() -> Claims {
        Claims {
            sub: Some("ann".into()),
            exp: 1000,
            purpose: Purpose::Access,
            password: Some("p".into()),
            scope: "repository:a/b:pull,push".into(),
        }
    }

    #[test]
    fn a_token_lives_until_its_end_and_with_its_key() {
        let signer = Signer::new(&[1; 32]);
        let token = signer.sign(&claims()).unwrap();
        assert_eq!(signer.verify(&token, 999), Some(claims()));
        assert_eq!(signer.verify(&token, 1000), None);
        assert_eq!(Signer::new(&[2; 32]).verify(&token, 0), None);
        // Signed rightly, but by another algorithm's name.
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let signed = format!("{header}.{}", token.split('.').nth(1).unwrap());
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&signer.key, signed.as_bytes()).as_ref());
        assert_eq!(signer.verify(&format!("{signed}.{signature}"), 0), None);
    }

    #[test]
    fn the_key_is_made_once_and_for_its_owner_only() {
        let root = tempfile::tempdir().unwrap();
        let token = Signer::open(None, root.path()).unwrap().sign(&claims()).unwrap();
        assert!(Signer::open(None, root.path()).unwrap().verify(&token, 0).is_some());
        let file = root.path().join(KEY_FILE);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Signer::open(Some(&file), Path::new("/nowhere")).unwrap().verify(&token, 0).is_some());
        std::fs::write(&file, "short").unwrap();
        assert!(Signer::open(None, root.path()).err().unwrap().to_string().contains("shorter than 32 bytes"));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_refused(at in 0..400_usize, to in 0..=127_u8) {
            let signer = Signer::new(&[1; 32]);
            let token = signer.sign(&claims()).unwrap();
            let mut bytes = token.clone().into_bytes();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            prop_assert_eq!(signer.verify(&String::from_utf8(bytes).unwrap(), 0), None);
        }

        #[test]
        fn any_text_is_read(text in "[A-Za-z0-9_.-]{0,80}|\\PC{0,40}") {
            prop_assert_eq!(Signer::new(&[1; 32]).verify(&text, 0), None);
        }
    }
}
