//! Who may do what. Pure.

use super::config::{Action, AuthConfig, Rule};

/// Stands for everybody in a rule, asked or not.
pub(super) const EVERYBODY: &str = "*";
/// Stands for whoever has logged in.
pub(super) const AUTHENTICATED: &str = "authenticated";

/// A set of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Actions(u8);

impl Actions {
    pub(super) const NONE: Self = Self(0);
    pub(super) const ALL: Self = Self(0b111);

    pub(super) fn contains(self, action: Action) -> bool {
        self.0 & Self::from(action).0 != 0
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl From<Action> for Actions {
    fn from(action: Action) -> Self {
        match action {
            Action::Pull => Self(0b001),
            Action::Push => Self(0b010),
            Action::Delete => Self(0b100),
        }
    }
}

/// The rules in force.
pub(super) struct Rules {
    anonymous_pull: bool,
    rules: Vec<(Rule, Actions)>,
}

impl Rules {
    pub(super) fn new(config: &AuthConfig) -> Self {
        let actions = |rule: &Rule| {
            rule.actions.iter().fold(Actions::NONE, |set, action| set.with(Actions::from(*action)))
        };
        Self {
            anonymous_pull: config.anonymous_pull,
            rules: config.rules.iter().map(|rule| (rule.clone(), actions(rule))).collect(),
        }
    }

    /// Whether a pull needs no look at who asks for it.
    pub(super) fn pulls_are_free(&self) -> bool {
        self.anonymous_pull
    }

    /// What a user, or somebody unknown, may do to a repository.
    pub(super) fn allowed(&self, user: Option<&str>, repository: &str) -> Actions {
        let always = if self.anonymous_pull { Actions::from(Action::Pull) } else { Actions::NONE };
        if self.rules.is_empty() {
            return if user.is_some() { Actions::ALL } else { always };
        }
        let matching = self.rules.iter().find(|(rule, _)| {
            rule.users.iter().any(|name| names_user(name, user))
                && rule.repositories.iter().any(|pattern| names_repository(pattern, repository))
        });
        matching.map_or(Actions::NONE, |(_, actions)| *actions).with(always)
    }
}

fn names_user(name: &str, user: Option<&str>) -> bool {
    match name {
        EVERYBODY => true,
        AUTHENTICATED => user.is_some(),
        name => user == Some(name),
    }
}

fn names_repository(pattern: &str, repository: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => repository.starts_with(prefix),
        None => pattern == repository,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(anonymous_pull: bool, rules: &[(&[&str], &[&str], &[Action])]) -> Rules {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let rules = rules.iter().map(|(users, repositories, actions)| Rule {
            users: owned(users),
            repositories: owned(repositories),
            actions: actions.to_vec(),
        });
        Rules::new(&AuthConfig { anonymous_pull, rules: rules.collect(), ..AuthConfig::default() })
    }

    #[test]
    fn without_rules_a_user_may_do_everything() {
        for (anonymous_pull, user, wanted) in [
            (true, None, Actions::from(Action::Pull)),
            (false, None, Actions::NONE),
            (true, Some("ann"), Actions::ALL),
            (false, Some("ann"), Actions::ALL),
        ] {
            assert_eq!(rules(anonymous_pull, &[]).allowed(user, "a/b"), wanted, "{anonymous_pull} {user:?}");
        }
    }

    #[test]
    fn the_first_rule_that_names_both_decides() {
        use Action::{Delete, Pull, Push};
        let table = rules(
            false,
            &[
                (&["ann"], &["team/app"], &[Pull, Push]),
                (&["*"], &["team/secret*"], &[]),
                (&["*"], &["public/*"], &[Pull]),
                (&["authenticated"], &["team/*"], &[Pull]),
                (&["root"], &["*"], &[Pull, Push, Delete]),
            ],
        );
        let set = |actions: &[Action]| {
            actions.iter().fold(Actions::NONE, |set, action| set.with(Actions::from(*action)))
        };
        for (user, repository, wanted) in [
            (Some("ann"), "team/app", set(&[Pull, Push])),
            (Some("ann"), "team/app2", set(&[Pull])),
            (Some("ann"), "team/secret/x", set(&[])),
            (Some("bob"), "team/app", set(&[Pull])),
            (Some("bob"), "other", set(&[])),
            (Some("root"), "other", Actions::ALL),
            (Some("root"), "team/other", set(&[Pull])),
            (None, "public/x", set(&[Pull])),
            (None, "public", set(&[])),
            (None, "team/app", set(&[])),
            (Some("root"), "*", Actions::ALL),
            (Some("bob"), "*", Actions::NONE),
        ] {
            assert_eq!(table.allowed(user, repository), wanted, "{user:?} {repository}");
        }
        assert_eq!(rules(true, &[(&["ann"], &["a"], &[Push])]).allowed(None, "b"), set(&[Pull]));
    }
}
