use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// Hash functions that the OCI image specification registers (image-spec descriptor.md, "Registered Algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, the one everybody uses.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name in front of the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Number of hexadecimal characters.
    pub fn hex_length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// Why a text is not a digest, or content not what a digest says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No colon.
    #[error("digest {0:?} has no algorithm")]
    NoAlgorithm(String),
    /// Neither sha256 nor sha512.
    #[error("digest algorithm {0:?} is not supported (sha256 and sha512 are)")]
    UnknownAlgorithm(String),
    /// Wrong length or characters other than 0-9 and a-f.
    #[error("digest {0:?} is not lower-case hexadecimal of the right length")]
    BadHex(String),
    /// The content hashes to something else.
    #[error("content hashes to {actual} but {expected} was expected")]
    Mismatch {
        /// What was asked for.
        expected: Digest,
        /// What arrived.
        actual: Digest,
    },
}

/// The digest of some content, such as `sha256:44136fa3…`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    text: Box<str>,
    algorithm: Algorithm,
}

impl Digest {
    /// SHA-256 of these bytes.
    pub fn sha256(content: &[u8]) -> Self {
        let mut digester = Digester::new(Algorithm::Sha256);
        digester.update(content);
        digester.finish()
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The part after the colon, lower-case hexadecimal.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Hashes `content` and compares.
    pub fn verify(&self, content: &[u8]) -> Result<(), DigestError> {
        let mut digester = Digester::new(self.algorithm);
        digester.update(content);
        digester.verify(self)
    }

    fn from_parts(algorithm: Algorithm, hex: &str) -> Self {
        Self { text: format!("{}:{hex}", algorithm.name()).into(), algorithm }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(text.to_owned()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnknownAlgorithm(name.to_owned())),
        };
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != algorithm.hex_length() || !hex.bytes().all(lower_hex) {
            return Err(DigestError::BadHex(text.to_owned()));
        }
        Ok(Self::from_parts(algorithm, hex))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

/// Hashes bytes as they pass by.
#[derive(Clone)]
pub struct Digester {
    state: State,
}

impl Digester {
    /// Nothing hashed yet.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::new(sha2::Sha512::new())),
        };
        Self { state }
    }

    /// The next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(hash) => hash.update(bytes),
            State::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of everything that passed by.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(hash) => Digest::from_parts(Algorithm::Sha256, &hex::encode(hash.finalize())),
            State::Sha512(hash) => Digest::from_parts(Algorithm::Sha512, &hex::encode(hash.finalize())),
        }
    }

    /// Compares with what was expected.
    pub fn verify(self, expected: &Digest) -> Result<(), DigestError> {
        let actual = self.finish();
        if actual == *expected {
            return Ok(());
        }
        Err(DigestError::Mismatch { expected: expected.clone(), actual })
    }
}

impl std::io::Write for Digester {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashes_and_parses() {
        let digest = Digest::sha256(b"");
        assert_eq!(digest.as_str(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.hex(), &EMPTY[7..]);
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("{EMPTY:?}"));
        assert_eq!(serde_json::from_str::<Digest>(&format!("{EMPTY:?}")).unwrap(), digest);
    }

    #[test]
    fn refuses_what_is_not_a_digest() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for text in ["", "sha256", "sha256:", "sha256:zz", "md5:00", &upper, &EMPTY[..70], "sha512:00"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn verifies_in_pieces() {
        let expected = Digest::sha256(b"hello world");
        let mut digester = Digester::new(Algorithm::Sha256);
        digester.update(b"hello ");
        digester.update(b"world");
        assert!(digester.clone().verify(&expected).is_ok());
        digester.update(b"!");
        assert!(matches!(digester.verify(&expected), Err(DigestError::Mismatch { .. })));
        let mut long = Digester::new(Algorithm::Sha512);
        long.update(b"x");
        let digest = long.finish();
        assert!(digest.verify(b"x").is_ok());
        assert_eq!(digest.hex().len(), 128);
    }
}
