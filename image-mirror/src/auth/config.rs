//! What the configuration says about users and their rights.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rules::{AUTHENTICATED, EVERYBODY};

/// Who may do what. Without this section nobody is asked who he is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthConfig {
    /// Users and passwords, lines as `htpasswd -B` writes them (bcrypt only). It is read again when it changes.
    pub htpasswd_file: Option<PathBuf>,
    /// Everybody may pull everything. Where this is false, `rules` say who may pull.
    pub anonymous_pull: bool,
    /// Who may do what beyond that: the first rule that names the user and the repository decides. Without rules whoever has logged in
    /// may do everything.
    pub rules: Vec<Rule>,
    /// 32 bytes or more that sign the tokens, for mirrors that take each other's. Without it, `token.key` in the root directory, made at
    /// the first start.
    pub token_key_file: Option<PathBuf>,
    /// URL of `/token` as clients reach it, where something in front changes name or port, or of another token service. Without it, the
    /// host that the client asked.
    pub token_realm: Option<String>,
    /// Another token service whose tokens are taken too. What a token grants is granted as far as `rules` go.
    pub external_tokens: Option<ExternalTokens>,
}

/// A token service that is not ours.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExternalTokens {
    /// What its tokens name as their issuer.
    pub issuer: String,
    /// What they name as their audience: what this mirror is called there.
    pub service: String,
    /// Its public keys, RSA or P-256: PEM (keys or certificates) or a JSON Web Key Set. It is read again when it changes.
    pub public_keys_file: PathBuf,
}

/// One rule.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    /// Names, `authenticated` for whoever has logged in, or `*` for everybody.
    pub users: Vec<String>,
    /// Names of repositories as they are kept here, for example `team/app` or `docker.io/library/*`. A `*` at the end stands for anything.
    pub repositories: Vec<String>,
    /// What they may do there; none forbids it.
    pub actions: Vec<Action>,
}

/// What is done to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Read.
    Pull,
    /// Add content and move tags.
    Push,
    /// Remove tags and content.
    Delete,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            htpasswd_file: None,
            anonymous_pull: true,
            rules: Vec::new(),
            token_key_file: None,
            token_realm: None,
            external_tokens: None,
        }
    }
}

impl AuthConfig {
    /// What is wrong with it, for the operator.
    pub(crate) fn problems(&self, client_certificates: bool) -> Vec<String> {
        let mut problems = Vec::new();
        if self.htpasswd_file.is_none() && self.external_tokens.is_none() && !client_certificates {
            let message = "auth: nobody could log in: give htpasswdFile, clientCaFile or auth.externalTokens";
            problems.push(message.to_owned());
        }
        if let Some(realm) = &self.token_realm
            && !(realm.starts_with("https://") || realm.starts_with("http://"))
        {
            problems.push(format!("auth.tokenRealm: {realm:?} is no http or https URL"));
        }
        if let Some(external) = &self.external_tokens {
            let empty = |text: &str, key: &str| {
                text.is_empty().then(|| format!("auth.externalTokens.{key} is empty"))
            };
            problems.extend(empty(&external.issuer, "issuer"));
            problems.extend(empty(&external.service, "service"));
            problems.extend(empty(&external.public_keys_file.to_string_lossy(), "publicKeysFile"));
            if self.token_realm.is_none() {
                problems
                    .push("auth.externalTokens: clients must be told where: give auth.tokenRealm".to_owned());
            }
        }
        for (index, rule) in self.rules.iter().enumerate() {
            if rule.users.is_empty() {
                problems.push(format!(
                    "auth.rules[{index}].users is empty: name users, {AUTHENTICATED:?} or {EVERYBODY:?}"
                ));
            }
            if rule.repositories.is_empty() {
                problems.push(format!("auth.rules[{index}].repositories is empty: name some, or \"*\""));
            }
            for pattern in &rule.repositories {
                if pattern.is_empty() || pattern.strip_suffix('*').unwrap_or(pattern).contains('*') {
                    problems.push(format!(
                        "auth.rules[{index}].repositories: {pattern:?} is no name with at most one *, at its end"
                    ));
                }
            }
        }
        problems
    }
}
