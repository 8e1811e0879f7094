use std::fmt;

use base64::Engine as _;

/// What a caller knows about an account at a registry; every field may be empty.
///
/// The fields are those of CRI's `AuthConfig`. A credential is sent to the registry that the image is named after (or to
/// `server_address` where that is given), never to a mirror or to the target of a redirect.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credential {
    /// Account.
    pub username: String,
    /// Password or personal token.
    pub password: String,
    /// OAuth2 refresh token, exchanged for a bearer token.
    pub identity_token: String,
    /// Bearer token that is sent as it is.
    pub registry_token: String,
    /// Host that the credential is for; empty for the image's own registry.
    pub server_address: String,
}

impl Credential {
    /// An account and its password.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: username.into(), password: password.into(), ..Self::default() }
    }

    /// The `auth` field of a docker `config.json`: base64 of `user:password`. None when it is not that.
    pub fn from_auth(auth: &str) -> Option<Self> {
        let decoded = base64::engine::general_purpose::STANDARD.decode(auth.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(Self::basic(username, password.trim_end_matches('\0')))
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.username.is_empty()
            && self.password.is_empty()
            && self.identity_token.is_empty()
            && self.registry_token.is_empty()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the secrets: this ends up in logs.
        f.debug_struct("Credential")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auth_is_base64_of_user_and_password() {
        assert_eq!(Credential::from_auth("dXNlcjpwYTpzcw=="), Some(Credential::basic("user", "pa:ss")));
        assert_eq!(Credential::from_auth("not base64!"), None);
        assert_eq!(Credential::from_auth("dXNlcg=="), None);
    }

    #[test]
    fn debug_hides_secrets() {
        let text = format!("{:?}", Credential::basic("user", "hunter2"));
        assert!(text.contains("user") && !text.contains("hunter2"));
    }
}
