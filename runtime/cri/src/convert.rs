//! Images as CRI messages, and the image store's errors as the kubelet should see them.

use orlop_cri::v1;
use orlop_images::{Credential, ImageError, ImageErrorKind, ImageRecord};
use orlop_types::Reference;

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
    let (act, cause) = match text.split_once(": ") {
        // Errors of pulls name the image themselves.
        Some((act, cause)) if act.contains(what) => (act.to_owned(), cause),
        _ => (format!("image {what}"), text.as_str()),
    };
    let whole = format!("{act}: {cause}");
    match error.kind() {
        ImageErrorKind::NotFound => CriError::NoImage(whole),
        ImageErrorKind::Invalid => CriError::Invalid(whole),
        // The kubelet knows it by its first word.
        ImageErrorKind::Refused => CriError::Invalid(text.clone()),
        ImageErrorKind::Unavailable => CriError::Unavailable(whole),
        ImageErrorKind::Unauthorized | ImageErrorKind::NoSpace | ImageErrorKind::Internal => {
            CriError::Failed { act, cause: cause.into() }
        }
    }
}

/// The tag that was asked for if the image has it, else any of its names.
pub(crate) fn image_name(record: &ImageRecord, asked: &str) -> String {
    match Reference::parse(asked).map(|name| name.to_string()) {
        Ok(name) if record.tags.contains(&name) => name,
        _ => record.display_name().to_owned(),
    }
}

/// The image by digest, of the repository of `name` if it is known there; the id of an image without any.
pub(crate) fn image_ref(record: &ImageRecord, name: &str) -> String {
    let repository = Reference::parse(name).map(|name| name.name());
    let by_name = record.digests.iter().find(|digest| {
        let other = Reference::parse(digest).map(|digest| digest.name());
        matches!((&repository, other), (Ok(repository), Ok(other)) if *repository == other)
    });
    by_name.or(record.digests.first()).unwrap_or(&record.id).clone()
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
    fn an_image_of_two_repositories_is_shown_as_it_was_asked_for() {
        let digest = orlop_types::Digest::sha256(b"manifest");
        let record = ImageRecord {
            id: "sha256:1".into(),
            tags: vec!["docker.io/library/a:1".into(), "localhost:5000/b:2".into()],
            digests: vec![format!("docker.io/library/a@{digest}"), format!("localhost:5000/b@{digest}")],
            size: 1,
            config: std::sync::Arc::default(),
            manifest: digest,
            chain: Vec::new(),
            pinned: false,
        };
        for (asked, name, reference) in [("localhost:5000/b:2", 1, 1), ("a:1", 0, 0), ("c", 0, 0)] {
            let found = image_name(&record, asked);
            assert_eq!(found, record.tags[name]);
            assert_eq!(image_ref(&record, &found), record.digests[reference]);
        }
    }

    #[test]
    fn an_error_names_its_image_once() {
        let unknown = image_error("a:1", &ImageError::Unknown("a:1".into()));
        assert!(matches!(unknown, CriError::NoImage(_)), "{unknown}");
        assert_eq!(tonic::Status::from(unknown.clone()).code(), tonic::Code::NotFound);
        assert!(unknown.to_string().matches("a:1").count() <= 2, "{unknown}");
    }

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
