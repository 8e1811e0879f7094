//! Who asks, and whether he may.
//!
//! ```text
//!   request --Authorization--> caller (user, what the token is for) --permit(rules)--> registry
//!      \--/token: password, refresh token or nothing --> access token
//! ```
//!
//! Clients of registries look at `/v2/` first and take the challenge from there, so it is answered with 401 even where pulls are free;
//! who has no account gets a token too, which lets him do what anybody may. A token says who somebody is and what it was asked for; what
//! he may do is looked up at each request, so that a changed rule, password or user counts at once.
//!
//! Invariant: without `auth` in the configuration nothing here is asked.

mod config;
mod external;
mod htpasswd;
mod rules;
mod scope;
mod service;
mod token;

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use orlop_daemon::prometheus_client::metrics::counter::Counter;
use orlop_distribution::Credential;

use self::external::External;
use self::htpasswd::{Denied, Passwords};
use self::rules::Rules;
use self::scope::{Resource, needed, scopes};
use self::token::{Purpose, Signer};
use crate::door::Client;
use crate::error::RegistryError;
use crate::route::Route;
use crate::watched::Refresh;

pub use self::config::{Action, AuthConfig, ExternalTokens, Rule};
pub(crate) use self::htpasswd::is_user_name;
pub use self::htpasswd::user_line;

/// The name of this service in challenges.
const SERVICE: &str = "orlop-mirror";
/// Bytes of a name that are logged.
const LOGGED_BYTES: usize = 64;

/// Who asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// None for somebody unknown.
    pub(crate) user: Option<Arc<str>>,
    /// What his token was asked for; none where he came without a token.
    scope: Option<String>,
}

/// Users and their rights.
pub(crate) struct Auth {
    /// None where users have certificates only.
    passwords: Option<Passwords>,
    signer: Signer,
    external: Option<External>,
    rules: Rules,
    realm: Option<String>,
    /// Credentials that were refused.
    pub(crate) failures: Counter,
}

impl Auth {
    pub(crate) fn open(config: &AuthConfig, root: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            passwords: config.htpasswd_file.clone().map(Passwords::open).transpose()?,
            signer: Signer::open(config.token_key_file.as_deref(), root)?,
            external: config.external_tokens.as_ref().map(External::open).transpose()?,
            rules: Rules::new(config),
            realm: config.token_realm.clone(),
            failures: Counter::default(),
        })
    }

    /// The files that are read again when they change.
    pub(crate) fn watched(&self) -> Vec<Arc<dyn Refresh>> {
        let users = self.passwords.iter().map(|passwords| passwords.file.clone() as Arc<dyn Refresh>);
        let keys = self.external.iter().map(|external| external.keys.clone() as Arc<dyn Refresh>);
        users.chain(keys).collect()
    }

    /// Who sends a request. What he says in it counts more than his certificate.
    pub(crate) async fn caller(&self, headers: &HeaderMap, client: &Client) -> Result<Caller, RegistryError> {
        let caller = self.credential(headers, client).await?;
        match caller.user.is_none() && client.user.is_some() {
            true => Ok(Caller { user: client.user.clone(), scope: None }),
            false => Ok(caller),
        }
    }

    /// Who a request says it is from.
    async fn credential(&self, headers: &HeaderMap, client: &Client) -> Result<Caller, RegistryError> {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Ok(Caller::default());
        };
        let (scheme, rest) = value.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
        if scheme.eq_ignore_ascii_case("basic") {
            let credential = Credential::from_auth(rest);
            let credential =
                credential.ok_or_else(|| self.refused(client, "", "the credential cannot be read", ""))?;
            return self.log_in(&credential.username, &credential.password, client).await;
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            let caller = self.bearer(rest.trim());
            return caller.ok_or_else(|| {
                self.refused(
                    client,
                    "",
                    "the token is damaged, has ended, or the user has another password now",
                    r#",error="invalid_token""#,
                )
            });
        }
        Err(self.refused(client, "", "Authorization is neither Basic nor Bearer", ""))
    }

    /// Who has a name and a password. Some clients send both empty when they have none.
    async fn log_in(&self, user: &str, password: &str, client: &Client) -> Result<Caller, RegistryError> {
        if user.is_empty() && password.is_empty() {
            return Ok(Caller::default());
        }
        let verified = match &self.passwords {
            Some(passwords) => passwords.verify(user, password).await,
            None => Err(Denied::Wrong),
        };
        match verified {
            Ok(user) => Ok(Caller { user: Some(user), scope: None }),
            Err(Denied::Wrong) => Err(self.refused(client, user, "no such user, or another password", "")),
            Err(Denied::Busy) => {
                let message = "too many passwords are being checked: try again later";
                Err(RegistryError::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message))
            }
        }
    }

    fn bearer(&self, token: &str) -> Option<Caller> {
        if let Some(granted) = self.external.as_ref().and_then(|external| external.verify(token, now())) {
            return Some(Caller { user: Some(granted.user), scope: Some(granted.scope) });
        }
        let claims = self.signer.verify(token, now()).filter(|claims| claims.purpose == Purpose::Access)?;
        let user = match claims.sub {
            None => None,
            Some(user) => Some(self.still(&user, claims.password.as_deref())?),
        };
        Some(Caller { user, scope: Some(claims.scope) })
    }

    /// The user, if he is still there with the password that his token was given for.
    fn still(&self, user: &str, password: Option<&str>) -> Option<Arc<str>> {
        password.filter(|password| self.password(user).as_deref() == Some(*password)).map(|_| user.into())
    }

    /// Which password a user has now.
    fn password(&self, user: &str) -> Option<String> {
        self.passwords.as_ref()?.with_hash(user, |hash| self.signer.password(user, hash))
    }

    fn refused(&self, client: &Client, user: &str, why: &str, challenge: &str) -> RegistryError {
        self.failures.inc();
        let user = &user[..user.floor_char_boundary(LOGGED_BYTES)];
        tracing::info!(client = %client.address.ip(), user = ?user, why, "credential refused");
        unauthorized(why, challenge.to_owned())
    }

    /// Whether a request may be done. `registry` is what the client put in front of the name, or beside it.
    pub(crate) fn permit(
        &self,
        caller: &Caller,
        method: &Method,
        route: &Route,
        registry: Option<&str>,
    ) -> Result<(), RegistryError> {
        let action = action(method, route);
        if action == Action::Pull && self.rules.pulls_are_free() && *route != Route::Base {
            return Ok(());
        }
        let (resource, kept) = match (route, route.name()) {
            (Route::Base, _) => return self.greet(caller),
            (Route::Catalog, _) | (_, None) => (Resource::Catalog, "*".to_owned()),
            (_, Some(name)) => (
                Resource::Repository(name),
                registry.map_or_else(|| name.to_owned(), |registry| format!("{registry}/{name}")),
            ),
        };
        let challenge = |error: &str| format!(",scope=\"{}\"{error}", needed(resource, action));
        let user = caller.user.as_deref();
        if !self.rules.allowed(user, &kept).contains(action) {
            return Err(match user {
                None => unauthorized("log in for this", challenge("")),
                Some(user) => {
                    let message = format!("{user} may not {} {kept}", word(action));
                    RegistryError::new(StatusCode::FORBIDDEN, "DENIED", message)
                }
            });
        }
        let Some(scope) = &caller.scope else {
            return Ok(());
        };
        // By the name that the client used, or by the one that it is kept under.
        let covered = scopes(scope).any(|scope| {
            scope.covers(resource, action)
                || (resource != Resource::Catalog && scope.covers(Resource::Repository(&kept), action))
        });
        if covered || self.rules.allowed(None, &kept).contains(action) {
            return Ok(());
        }
        Err(unauthorized("the token is for something else", challenge(r#",error="insufficient_scope""#)))
    }

    /// `/v2/` is where clients find out that there is something to log in to.
    fn greet(&self, caller: &Caller) -> Result<(), RegistryError> {
        match caller.user.is_some() || caller.scope.is_some() {
            true => Ok(()),
            false => Err(unauthorized("log in, or get a token for anybody", String::new())),
        }
    }

    /// Whether a caller may read a repository that he only mentions.
    pub(crate) fn may_pull(&self, caller: &Caller, kept: &str) -> bool {
        self.rules.allowed(caller.user.as_deref(), kept).contains(Action::Pull)
    }

    /// Whether a caller may see how the mirror is. On this machine everybody may.
    pub(crate) fn permit_metrics(&self, caller: &Caller, client: &Client) -> Result<(), RegistryError> {
        match caller.user.is_some() || client.address.ip().to_canonical().is_loopback() {
            true => Ok(()),
            false => Err(unauthorized("log in for this", String::new())),
        }
    }

    /// The header that tells a client how to log in. `host` is what it called us.
    pub(crate) fn challenge(&self, host: &Host, parameters: &str) -> Option<HeaderValue> {
        let realm = match &self.realm {
            Some(realm) => realm.clone(),
            None => format!("{}://{}/token", if host.tls { "https" } else { "http" }, host.name()?),
        };
        let service = self.external.as_ref().map_or(SERVICE, |external| external.service.as_str());
        HeaderValue::from_str(&format!(r#"Bearer realm="{realm}",service="{service}"{parameters}"#)).ok()
    }
}

/// What a client calls this host.
pub(crate) struct Host {
    header: Option<HeaderValue>,
    uri: Uri,
    tls: bool,
}

impl Host {
    pub(crate) fn of(headers: &HeaderMap, uri: &Uri, client: &Client) -> Self {
        Self { header: headers.get(header::HOST).cloned(), uri: uri.clone(), tls: client.tls }
    }

    fn name(&self) -> Option<&str> {
        let of_header = self.header.as_ref().and_then(|value| value.to_str().ok());
        let name = self.uri.authority().map(http::uri::Authority::as_str).or(of_header)?;
        // It goes into a quoted string, and comes back as a URL.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
        (!name.is_empty() && name.bytes().all(plain)).then_some(name)
    }
}

fn action(method: &Method, route: &Route) -> Action {
    match (method, route) {
        (_, Route::Uploads { .. } | Route::Upload { .. }) => Action::Push,
        (&Method::GET | &Method::HEAD, _) => Action::Pull,
        (&Method::DELETE, _) => Action::Delete,
        _ => Action::Push,
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Pull => "pull",
        Action::Push => "push to",
        Action::Delete => "delete in",
    }
}

fn unauthorized(message: &str, challenge: String) -> RegistryError {
    let mut error = RegistryError::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message);
    error.challenge = Some(challenge);
    error
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    use super::*;

    fn auth(root: &Path) -> Auth {
        let users = root.join("users");
        std::fs::write(&users, format!("ann:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
        Auth::open(&AuthConfig { htpasswd_file: Some(users), ..AuthConfig::default() }, root).unwrap()
    }

    #[test]
    fn no_header_but_the_right_one_makes_a_user() {
        let root = tempfile::tempdir().unwrap();
        let auth = auth(root.path());
        let client = Client::new(([127, 0, 0, 1], 1).into(), false, None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let parts = ("(?i)(basic|bearer|negotiate|)", "[ -~]{0,60}|[A-Za-z0-9+/]{0,24}={0,2}");
        TestRunner::default()
            .run(&parts, |(scheme, rest)| {
                let mut headers = HeaderMap::new();
                let value = HeaderValue::from_str(&format!("{scheme} {rest}")).unwrap();
                headers.insert(header::AUTHORIZATION, value);
                let caller = runtime.block_on(auth.caller(&headers, &client));
                prop_assert!(caller.is_err() || caller.is_ok_and(|caller| caller.user.is_none()));
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn no_host_breaks_out_of_the_challenge() {
        let root = tempfile::tempdir().unwrap();
        let auth = auth(root.path());
        let client = Client::new(([127, 0, 0, 1], 1).into(), false, None);
        TestRunner::default()
            .run(&"[ -~]{0,40}", |host| {
                let mut headers = HeaderMap::new();
                headers.insert(header::HOST, HeaderValue::from_str(&host).unwrap());
                let host = Host::of(&headers, &Uri::from_static("/v2/"), &client);
                if let Some(value) = auth.challenge(&host, "") {
                    prop_assert_eq!(value.to_str().unwrap().matches('"').count(), 4);
                }
                Ok(())
            })
            .unwrap();
    }
}
