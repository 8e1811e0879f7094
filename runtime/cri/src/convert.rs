//! Images as CRI messages, and the image store's errors as the kubelet should see them.

use orlop_cri::v1;
use orlop_images::{Credential, ImageError, ImageErrorKind, ImageRecord};

use crate::error::{CriError, chain};

/// An image of the store.
pub(crate) fn image(record: &ImageRecord) -> v1::Image {
    let user = record.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default();
    let uid = if user.is_empty() { Some(0) } else { user.parse::<i64>().ok() };
    v1::Image {
        id: record.id.clone(),
        repo_tags: record.tags.clone(),
        repo_digests: record.digests.clone(),
        size: record.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        spec: None,
        pinned: record.pinned,
    }
}

/// The kubelet decides by the code and shows the text.
pub(crate) fn image_error(what: &str, error: &ImageError) -> CriError {
    let text = chain(error);
    match error.kind() {
        ImageErrorKind::NotFound => CriError::NotFound { kind: "image", id: format!("{what} ({text})") },
        ImageErrorKind::Invalid => CriError::Invalid(format!("image {what}: {text}")),
        ImageErrorKind::Unavailable => CriError::Unavailable(format!("image {what}: {text}")),
        ImageErrorKind::Unauthorized | ImageErrorKind::NoSpace | ImageErrorKind::Internal => {
            CriError::Failed { act: format!("image {what}"), cause: text.into() }
        }
    }
}

/// What the kubelet found in the pod's pull secrets.
pub(crate) fn credential(auth: v1::AuthConfig) -> Result<Option<Credential>, CriError> {
    let from_auth = match auth.auth.as_str() {
        "" => Credential::default(),
        text => Credential::from_auth(text).ok_or_else(|| {
            CriError::Invalid("the pull secret's \"auth\" is not base64 of user:password".to_owned())
        })?,
    };
    let or = |given: String, other: String| if given.is_empty() { other } else { given };
    let credential = Credential {
        username: or(auth.username, from_auth.username),
        password: or(auth.password, from_auth.password),
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
        server_address: auth.server_address,
    };
    Ok((!credential.is_empty()).then_some(credential))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_from_either_form() {
        assert!(credential(v1::AuthConfig::default()).unwrap().is_none());
        let plain = v1::AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() };
        let packed = v1::AuthConfig { auth: "dTpw".into(), ..Default::default() };
        for auth in [plain, packed] {
            let found = credential(auth).unwrap().unwrap();
            assert_eq!((found.username.as_str(), found.password.as_str()), ("u", "p"));
        }
        assert!(credential(v1::AuthConfig { auth: "!".into(), ..Default::default() }).is_err());
    }
}
