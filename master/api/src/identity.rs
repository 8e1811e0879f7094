//! Who makes a request.

/// The group of superusers.
pub(crate) const MASTERS: &str = "system:masters";
/// Everybody who proved who they are.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// Everybody else.
pub(crate) const ANONYMOUS_USER: &str = "system:anonymous";
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";

/// A user and the groups it is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user's name.
    pub user: String,
    /// Its uid, for service accounts.
    pub uid: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// What else the authenticator learned, for example the pod of a token.
    pub extra: Vec<(String, Vec<String>)>,
}

impl Identity {
    /// A user that proved who it is.
    pub fn authenticated(user: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { user: user.into(), groups, ..Self::default() }
    }

    pub(crate) fn anonymous() -> Self {
        Self { user: ANONYMOUS_USER.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    pub(crate) fn superuser(user: &str) -> Self {
        Self::authenticated(user, [MASTERS.to_owned()])
    }

    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|mine| mine == group)
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.is_in(UNAUTHENTICATED)
    }

    /// The node that this identity is the kubelet of.
    pub(crate) fn node(&self) -> Option<&str> {
        self.user.strip_prefix(NODE_PREFIX).filter(|name| !name.is_empty() && self.is_in(NODES))
    }
}
