//! Ed25519 keys and signatures (RFC 8032), in the files that openssl reads and writes (RFC 8410).

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orlop_types::Digest;
use ring::rand::SecureRandom as _;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

/// What stands before the 32 bytes of a private key (RFC 8410 section 7).
const PRIVATE_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// What stands before the 32 bytes of a public key (RFC 8410 section 4).
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Bytes of a key file that are read.
const FILE_LIMIT: u64 = 64 << 10;

/// Who may have signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// `orlop-bundle.sig`
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Signature {
    algorithm: String,
    key_id: String,
    signature: String,
}

/// Writes `NAME.key` and `NAME.pub`; neither may be there.
pub(super) fn generate(name: &Path) -> anyhow::Result<()> {
    let mut seed = [0; 32];
    let failed = |_| anyhow::anyhow!("the kernel gave no random bytes");
    ring::rand::SystemRandom::new().fill(&mut seed).map_err(failed)?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|error| anyhow::anyhow!("{error}"))?;
    let private = pem("PRIVATE KEY", &[&PRIVATE_PREFIX[..], &seed].concat());
    let public = pem("PUBLIC KEY", &[&PUBLIC_PREFIX[..], pair.public_key().as_ref()].concat());
    for (suffix, mode, text) in [("key", 0o600, private), ("pub", 0o644, public)] {
        let mut path = name.as_os_str().to_owned();
        path.push(format!(".{suffix}"));
        let file = std::fs::File::options().write(true).create_new(true).mode(mode).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .with_context(|| format!("failed to write {}", path.to_string_lossy()))?;
    }
    Ok(())
}

/// Signs a list; gives the content of the signature file.
pub(super) fn sign(list: &[u8], key: &Path) -> anyhow::Result<Vec<u8>> {
    let der = from_pem(key, "PRIVATE KEY")?;
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
        .map_err(|error| anyhow::anyhow!("{} is no Ed25519 key: {error}", key.display()))?;
    let public: [u8; 32] = pair.public_key().as_ref().try_into().context("a public key of 32 bytes")?;
    let signature = Signature {
        algorithm: "ed25519".to_owned(),
        key_id: PublicKey(public).id(),
        signature: STANDARD.encode(pair.sign(list)),
    };
    Ok(serde_json::to_vec(&signature)?)
}

impl PublicKey {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// Unreadable, or no Ed25519 key.
    pub fn load(file: &Path) -> anyhow::Result<Self> {
        let der = from_pem(file, "PUBLIC KEY")?;
        let key = der.strip_prefix(&PUBLIC_PREFIX).and_then(|key| key.try_into().ok());
        key.map(Self).with_context(|| format!("{} is no Ed25519 public key", file.display()))
    }

    /// The start of the key's hash.
    fn id(&self) -> String {
        Digest::sha256(&self.0).hex()[..16].to_owned()
    }
}

/// Checks a signature file against the keys.
pub(super) fn verify(list: &[u8], signature: &[u8], keys: &[PublicKey]) -> anyhow::Result<()> {
    let signature: Signature = serde_json::from_slice(signature).context("the signature makes no sense")?;
    anyhow::ensure!(
        signature.algorithm == "ed25519",
        "signature algorithm {:?} is not known",
        signature.algorithm
    );
    let bytes = STANDARD.decode(&signature.signature).context("the signature is not base64")?;
    let is_good = |key: &PublicKey| UnparsedPublicKey::new(&ED25519, &key.0[..]).verify(list, &bytes).is_ok();
    if keys.iter().any(is_good) {
        return Ok(());
    }
    let ids: Vec<String> = keys.iter().map(PublicKey::id).collect();
    let id: String = signature.key_id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    anyhow::bail!(
        "the signature (by key {id}) is by none of the trusted keys {}, or the list was changed",
        ids.join(", ")
    )
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

fn from_pem(file: &Path, label: &str) -> anyhow::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(FILE_LIMIT).read_to_string(&mut text))
        .with_context(|| format!("failed to read key {}", file.display()))?;
    let body = text.split_once(&format!("-----BEGIN {label}-----")).and_then(|(_, rest)| {
        Some(rest.split_once(&format!("-----END {label}-----"))?.0.split_whitespace().collect::<String>())
    });
    let der = body.and_then(|body| STANDARD.decode(body).ok());
    der.with_context(|| format!("{} holds no PEM block {label:?}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_signed_and_changes_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        generate(&one).unwrap();
        generate(&two).unwrap();
        assert!(generate(&one).is_err(), "keys are not written over");
        let public = |name: &Path| PublicKey::load(&name.with_extension("pub")).unwrap();
        let signature = sign(b"list", &one.with_extension("key")).unwrap();
        verify(b"list", &signature, &[public(&two), public(&one)]).unwrap();
        assert!(verify(b"List", &signature, &[public(&one)]).is_err());
        assert!(
            verify(b"list", &signature, &[public(&two)])
                .unwrap_err()
                .to_string()
                .contains("none of the trusted")
        );
        assert!(verify(b"list", b"{}", &[public(&one)]).is_err());
        assert!(PublicKey::load(&one.with_extension("key")).is_err());
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(one.with_extension("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
