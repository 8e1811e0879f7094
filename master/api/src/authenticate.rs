//! Who a request comes from: client certificate, service-account token, or nobody.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::FromDer as _;

use crate::identity::Identity;
use crate::state::{Api, parse};
use crate::token::Claims;

/// The identity in a client certificate that the TLS layer has verified: CN is the user, O are the groups.
pub(crate) fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    if user.is_empty() {
        return None;
    }
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned);
    Some(Identity::authenticated(user, groups))
}

impl Api {
    /// The identity of a token that is valid now for one of `audiences` (none asked: this server), and those it is valid for.
    ///
    /// # Errors
    /// Why the token is refused.
    pub(crate) fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(Identity, Vec<String>), String> {
        let claims = self.tokens.verify(token, jiff::Timestamp::now().as_second())?;
        let own = [self.tokens.issuer.clone()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let valid: Vec<String> =
            wanted.iter().filter(|audience| claims.audiences.contains(audience)).cloned().collect();
        if valid.is_empty() {
            return Err("token is for another audience".to_owned());
        }
        self.check_account(&claims)?;
        Ok((account_identity(&claims), valid))
    }

    /// The account and what the token is bound to must still be the same objects.
    fn check_account(&self, claims: &Claims) -> Result<(), String> {
        let account = self.core_entry("serviceaccounts", &claims.namespace, &claims.account);
        if account.is_none_or(|account| *account.meta.uid != *claims.account_uid) {
            return Err("service account of the token is gone".to_owned());
        }
        if let Some((kind, name, uid)) = &claims.bound {
            let (plural, namespace) = match kind.as_str() {
                "pod" => ("pods", claims.namespace.as_str()),
                "secret" => ("secrets", claims.namespace.as_str()),
                _ => ("nodes", ""),
            };
            let bound = self.core_entry(plural, namespace, name).filter(|entry| *entry.meta.uid == **uid);
            let Some(bound) = bound else {
                return Err(format!("{kind} of the token is gone"));
            };
            // Upstream: a pod that has been dying for more than a minute has no token any more.
            let deleted = parse(&bound)
                .pointer("/metadata/deletionTimestamp")
                .and_then(|time| time.as_str()?.parse().ok());
            let now = jiff::Timestamp::now().as_second();
            if deleted.is_some_and(|deleted: jiff::Timestamp| deleted.as_second() + 60 < now) {
                return Err(format!("{kind} of the token is being deleted"));
            }
        }
        Ok(())
    }
}

fn account_identity(claims: &Claims) -> Identity {
    let groups =
        ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{}", claims.namespace)];
    let mut identity = Identity::authenticated(
        format!("system:serviceaccount:{}:{}", claims.namespace, claims.account),
        groups,
    );
    identity.uid.clone_from(&claims.account_uid);
    let mut extra = |key: &str, value: &str| {
        identity.extra.push((format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]));
    };
    extra("credential-id", &format!("JTI={}", claims.id));
    if let Some((kind, name, uid)) = &claims.bound {
        extra(&format!("{kind}-name"), name);
        extra(&format!("{kind}-uid"), uid);
    }
    if let Some((name, uid)) = &claims.node {
        extra("node-name", name);
        extra("node-uid", uid);
    }
    identity
}
