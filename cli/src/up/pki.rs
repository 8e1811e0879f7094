//! The cluster's certificates: one CA, one leaf per role, the service-account key. Idempotent.
//!
//! Leaves last a year and are made anew by an `up` that finds less than 60 days left; the CA lasts ten years.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::file::write_atomic;

const CA_DAYS: u64 = 3650;
const LEAF_DAYS: u64 = 365;
const RENEW_BEFORE_DAYS: u64 = 60;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate and its key on disk.
#[derive(Clone, Debug)]
pub(crate) struct CertificateFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What a leaf says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leaf<'a> {
    pub(crate) common_name: &'a str,
    pub(crate) organization: Option<&'a str>,
    pub(crate) dns_names: &'a [String],
    pub(crate) addresses: &'a [IpAddr],
    pub(crate) server: bool,
}

/// The cluster's CA, loaded.
pub(crate) struct Authority {
    directory: PathBuf,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Loads the CA of `directory`, or makes it.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let files = files(directory, "ca");
        if !files.certificate.exists() || !files.key.exists() {
            create_authority(&files).context("failed to create the cluster CA")?;
        }
        let certificate_pem = read(&files.certificate)?;
        let key = KeyPair::from_pem(&read(&files.key)?)
            .with_context(|| format!("{} is not a private key", files.key.display()))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
            .with_context(|| format!("{} is not a CA certificate", files.certificate.display()))?;
        Ok(Self { directory: directory.to_owned(), certificate_pem, issuer })
    }

    /// Path of the CA certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        files(&self.directory, "ca").certificate
    }

    /// The CA certificate as PEM.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The leaf `name`, as it is on disk when it still fits, else made anew.
    pub(crate) fn leaf(&self, name: &str, leaf: &Leaf<'_>) -> anyhow::Result<CertificateFiles> {
        let files = files(&self.directory, name);
        if !is_current(&files, leaf) {
            self.issue(&files, leaf).with_context(|| format!("failed to issue certificate {name}"))?;
        }
        Ok(files)
    }

    fn issue(&self, files: &CertificateFiles, leaf: &Leaf<'_>) -> anyhow::Result<()> {
        let mut params = CertificateParams::new(leaf.dns_names.to_vec())?;
        params.subject_alt_names.extend(leaf.addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = name(leaf.common_name, leaf.organization);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if leaf.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        validity(&mut params, LEAF_DAYS);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        // The key first: a certificate without its key is made anew, the other way round too.
        write_atomic(&files.key, key.serialize_pem().as_bytes(), 0o600)?;
        write_atomic(&files.certificate, certificate.pem().as_bytes(), 0o644)
    }
}

/// The key that signs service-account tokens (ECDSA P-256, PKCS#8 PEM), made if missing.
pub(crate) fn service_account_key(directory: &Path) -> anyhow::Result<PathBuf> {
    let path = directory.join("sa.key");
    if !path.exists() {
        write_atomic(&path, KeyPair::generate()?.serialize_pem().as_bytes(), 0o600)?;
    }
    Ok(path)
}

fn create_authority(files: &CertificateFiles) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = name("kubernetes", None);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, CA_DAYS);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    write_atomic(&files.key, key.serialize_pem().as_bytes(), 0o600)?;
    write_atomic(&files.certificate, certificate.pem().as_bytes(), 0o644)
}

fn validity(params: &mut CertificateParams, days: u64) {
    let now = SystemTime::now();
    // A clock that is set back a little must not make a fresh certificate invalid.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * u32::try_from(days).unwrap_or(u32::MAX)).into();
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// Whether the certificate on disk has the names asked for and enough time left.
fn is_current(files: &CertificateFiles, leaf: &Leaf<'_>) -> bool {
    let (Ok(text), true) = (std::fs::read(&files.certificate), files.key.exists()) else {
        return false;
    };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&text) else {
        return false;
    };
    let Ok(certificate) = pem.parse_x509() else {
        return false;
    };
    let left = certificate.validity().time_to_expiration().map_or(0, |left| left.whole_seconds());
    if left < i64::try_from(RENEW_BEFORE_DAYS * 24 * 3600).unwrap_or(i64::MAX) {
        return false;
    }
    let mut names = Vec::new();
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        for general in &extension.value.general_names {
            match general {
                x509_parser::extensions::GeneralName::DNSName(name) => names.push((*name).to_owned()),
                x509_parser::extensions::GeneralName::IPAddress(bytes) => names.push(format!("{bytes:?}")),
                _ => {}
            }
        }
    }
    let addresses = leaf.addresses.iter().map(|address| match address {
        IpAddr::V4(address) => format!("{:?}", &address.octets()[..]),
        IpAddr::V6(address) => format!("{:?}", &address.octets()[..]),
    });
    leaf.dns_names.iter().cloned().chain(addresses).all(|wanted| names.contains(&wanted))
}

fn files(directory: &Path, name: &str) -> CertificateFiles {
    CertificateFiles {
        certificate: directory.join(format!("{name}.crt")),
        key: directory.join(format!("{name}.key")),
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn leaves_are_kept_until_their_names_change() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::open(directory.path()).unwrap();
        let addresses = ["10.0.0.1".parse().unwrap()];
        let mut leaf = Leaf { common_name: "a", addresses: &addresses, server: true, ..Leaf::default() };
        let files = authority.leaf("api", &leaf).unwrap();
        let first = std::fs::read(&files.certificate).unwrap();
        assert_eq!(std::fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
        Authority::open(directory.path()).unwrap().leaf("api", &leaf).unwrap();
        assert_eq!(std::fs::read(&files.certificate).unwrap(), first);
        let more = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        leaf.addresses = &more;
        authority.leaf("api", &leaf).unwrap();
        assert_ne!(std::fs::read(&files.certificate).unwrap(), first);
    }
}
