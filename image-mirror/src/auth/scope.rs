//! What a token is for (distribution spec/auth/scope.md). Pure.

use super::config::Action;
use super::rules::Actions;

/// Scopes in one token, and bytes of each name: a client names one repository, and another when it mounts a blob.
const SCOPE_LIMIT: usize = 32;
const NAME_LIMIT_BYTES: usize = 512;

/// What actions are done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource<'a> {
    /// A repository, by its name as the client says it.
    Repository(&'a str),
    /// The list of repositories.
    Catalog,
}

/// One scope: a resource and the actions on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scope<'a> {
    resource: Resource<'a>,
    actions: Actions,
}

/// The scopes of a text; what is not understood gives no right.
pub(super) fn scopes(text: &str) -> impl Iterator<Item = Scope<'_>> {
    text.split(' ').filter_map(scope).take(SCOPE_LIMIT)
}

fn scope(text: &str) -> Option<Scope<'_>> {
    // A name may hold colons: those of a registry's port.
    let (kind, rest) = text.split_once(':')?;
    let (name, words) = rest.rsplit_once(':')?;
    let resource = match kind {
        "repository" if !name.is_empty() && name.len() <= NAME_LIMIT_BYTES => Resource::Repository(name),
        "registry" if name == "catalog" => Resource::Catalog,
        _ => return None,
    };
    let actions = words.split(',').fold(Actions::NONE, |set, word| {
        set.with(match word {
            "pull" => Action::Pull.into(),
            "push" => Action::Push.into(),
            "delete" => Action::Delete.into(),
            "*" => Actions::ALL,
            _ => Actions::NONE,
        })
    });
    Some(Scope { resource, actions })
}

impl Scope<'_> {
    /// Whether it lets a caller act on a repository, or list them.
    pub(super) fn covers(&self, resource: Resource<'_>, action: Action) -> bool {
        self.resource == resource && self.actions.contains(action)
    }
}

/// The scope that an action needs, as a challenge says it. Who pushes looks first what is there.
pub(super) fn needed(resource: Resource<'_>, action: Action) -> String {
    let name = match resource {
        Resource::Catalog => return "registry:catalog:*".to_owned(),
        Resource::Repository(name) => name,
    };
    let words = match action {
        Action::Pull => "pull",
        Action::Push => "pull,push",
        Action::Delete => "delete",
    };
    format!("repository:{name}:{words}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scopes_of_clients() {
        let found = |text: &str, name: &str, action: Action| {
            scopes(text).any(|scope| scope.covers(Resource::Repository(name), action))
        };
        let text = "repository:a/b:pull,push repository:r.example:5000/c:delete repository:d:* repository(plugin):e:pull";
        for (name, action, wanted) in [
            ("a/b", Action::Pull, true),
            ("a/b", Action::Push, true),
            ("a/b", Action::Delete, false),
            ("a", Action::Pull, false),
            ("r.example:5000/c", Action::Delete, true),
            ("d", Action::Delete, true),
            ("e", Action::Pull, false),
        ] {
            assert_eq!(found(text, name, action), wanted, "{name} {action:?}");
        }
        assert!(scopes("registry:catalog:*").any(|scope| scope.covers(Resource::Catalog, Action::Pull)));
        let many = "repository:a:pull ".repeat(100);
        assert_eq!(scopes(&many).count(), SCOPE_LIMIT);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(repository|registry|\\PC{0,4})?(:|\\PC{0,8}| ){0,20}") {
            let _ = scopes(&text).count();
        }

        #[test]
        fn what_is_needed_is_covered(name in "[a-z0-9.:/_-]{1,40}", which in 0..3_usize) {
            let action = [Action::Pull, Action::Push, Action::Delete][which];
            let text = needed(Resource::Repository(&name), action);
            prop_assert!(scopes(&text).any(|scope| scope.covers(Resource::Repository(&name), action)));
        }
    }
}
