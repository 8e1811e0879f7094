//! Impersonation: a superuser acts as somebody else (`kubectl --as`), or the request is refused; the headers are never ignored.

use http::HeaderMap;
use orlop_resources::status::{self, ApiError, Attempt};

use super::query::decode;
use crate::identity::{ANONYMOUS_USER, AUTHENTICATED, Identity, MASTERS, UNAUTHENTICATED};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const ACCOUNT: &str = "system:serviceaccount:";

/// Who the request acts as; `None` without such headers.
///
/// # Errors
/// 400 without a user to act as and for what is not UTF-8, 403 for everybody who is no superuser.
pub(crate) fn impersonated(identity: &Identity, headers: &HeaderMap) -> Result<Option<Identity>, ApiError> {
    // A value that cannot be read refuses the request: without it, it would be the superuser's own.
    let values = |name: &str| -> Result<Vec<String>, ApiError> {
        let texts = headers.get_all(name).into_iter().map(|value| std::str::from_utf8(value.as_bytes()));
        let texts = texts.collect::<Result<Vec<&str>, _>>();
        let texts = texts.map_err(|_| status::bad_request(format!("header {name} is not UTF-8")))?;
        Ok(texts.into_iter().filter(|text| !text.is_empty()).map(str::to_owned).collect())
    };
    let (user, groups, uid) = (values(USER)?, values(GROUP)?, values(UID)?);
    let mut extra: Vec<(String, Vec<String>)> = Vec::new();
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            // Header names cannot hold every character of a key: the rest is percent-encoded.
            extra.push((decode(key, false), values(name.as_str())?));
        }
    }
    let Some(user) = user.into_iter().next() else {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        return Err(status::bad_request("requested groups, uid or extra without impersonating a user"));
    };
    if !identity.is_in(MASTERS) {
        return Err(refused(identity, &user));
    }
    let uid = uid.into_iter().next().unwrap_or_default();
    Ok(Some(Identity { groups: complete(&user, groups), user, uid, extra }))
}

fn refused(identity: &Identity, user: &str) -> ApiError {
    let account = user.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':'));
    let (resource, namespace, name) = match account {
        Some((namespace, name)) => ("serviceaccounts", namespace, name),
        None => ("users", "", user),
    };
    status::forbidden(Attempt {
        user: &identity.user,
        verb: "impersonate",
        resource,
        namespace,
        name,
        ..Attempt::default()
    })
}

/// The groups that authentication would have added.
fn complete(user: &str, mut groups: Vec<String>) -> Vec<String> {
    if groups.is_empty()
        && let Some((namespace, _)) = user.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':'))
    {
        groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let everybody = if user == ANONYMOUS_USER { UNAUTHENTICATED } else { AUTHENTICATED };
    if !groups.iter().any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED) {
        groups.push(everybody.to_owned());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_superuser_becomes_somebody_else() {
        type Row<'a> = (&'a [(&'static str, &'static str)], &'a str, &'a [&'a str]);
        let admin = Identity::superuser("admin");
        let table: [Row<'_>; 4] = [
            (&[(USER, "bob")], "bob", &["system:authenticated"]),
            (&[(USER, "bob"), (GROUP, "a"), (GROUP, "b")], "bob", &["a", "b", "system:authenticated"]),
            (
                &[(USER, "system:serviceaccount:ns:x")],
                "system:serviceaccount:ns:x",
                &["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"],
            ),
            (&[(USER, "system:anonymous")], "system:anonymous", &["system:unauthenticated"]),
        ];
        for (pairs, user, groups) in table {
            let identity = impersonated(&admin, &headers(pairs)).unwrap().unwrap();
            assert_eq!(
                (identity.user.as_str(), identity.groups),
                (user, groups.iter().map(|group| (*group).to_owned()).collect())
            );
        }
        let pairs = [(USER, "bob"), (UID, "7"), ("impersonate-extra-acme.com%2fproject", "p")];
        let identity = impersonated(&admin, &headers(&pairs)).unwrap().unwrap();
        assert_eq!(identity.uid, "7");
        assert_eq!(identity.extra, [("acme.com/project".to_owned(), vec!["p".to_owned()])]);
        assert_eq!(impersonated(&admin, &HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn others_are_refused_and_half_a_request_too() {
        let bob = Identity::authenticated("bob", []);
        let error = impersonated(&bob, &headers(&[(USER, "alice")])).unwrap_err();
        assert_eq!(
            (error.code, error.message()),
            (
                403,
                "users \"alice\" is forbidden: User \"bob\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
            )
        );
        let admin = Identity::superuser("admin");
        assert_eq!(impersonated(&admin, &headers(&[(GROUP, "g")])).unwrap_err().code, 400);
        let bytes = |value: &[u8]| {
            let value = http::HeaderValue::from_bytes(value).unwrap();
            impersonated(&admin, &HeaderMap::from_iter([(http::HeaderName::from_static(USER), value)]))
        };
        assert_eq!(bytes("jürgen".as_bytes()).unwrap().unwrap().user, "jürgen");
        assert_eq!(bytes(b"\xff\xfe").unwrap_err().code, 400);
    }
}
