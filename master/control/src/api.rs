//! The thin seam to the API: errors that name the act, and the few request shapes that several controllers share.

use std::fmt::Write as _;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde::Serialize;

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {act}")]
pub(crate) struct ApplyError {
    act: String,
    #[source]
    source: kube::Error,
}

impl ApplyError {
    /// Conflicts, objects that are gone and namespaces that end: the next plan deals with them.
    pub(crate) fn is_expected(&self) -> bool {
        is_conflict(&self.source) || is_not_found(&self.source) || is_namespace_terminating(&self.source)
    }

    /// The kube error behind it.
    pub(crate) fn cause(&self) -> &kube::Error {
        &self.source
    }

    /// The error with its sources.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = match cause.downcast_ref::<kube::Error>() {
                Some(kube::Error::Api(status)) => status.message.clone(),
                _ => cause.to_string(),
            };
            let _ = write!(text, ": {cause_text}");
            if matches!(cause.downcast_ref::<kube::Error>(), Some(kube::Error::Api(_))) {
                break;
            }
            source = cause.source();
        }
        text
    }
}

/// Names the act of a failed request.
pub(crate) trait Act<T> {
    fn act(self, act: impl FnOnce() -> String) -> Result<T, ApplyError>;
    /// As `act`, with an object that is gone as success.
    fn act_or_gone(self, act: impl FnOnce() -> String) -> Result<Option<T>, ApplyError>;
}

impl<T> Act<T> for Result<T, kube::Error> {
    fn act(self, act: impl FnOnce() -> String) -> Result<T, ApplyError> {
        self.map_err(|source| ApplyError { act: act(), source })
    }

    fn act_or_gone(self, act: impl FnOnce() -> String) -> Result<Option<T>, ApplyError> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(source) => Err(ApplyError { act: act(), source }),
        }
    }
}

fn status(error: &kube::Error) -> Option<&kube::core::Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| status.code == 404)
}

/// 409 for whatever cause: stale version, precondition or existing object.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| status.code == 409)
}

pub(crate) fn is_already_there(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| status.code == 409 && status.reason == "AlreadyExists")
}

/// The namespace is being deleted, so nothing can be made in it.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| {
        let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
        status.code == 403
            && (causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
                || status.message.contains("is being terminated"))
    })
}

/// The server's message, or the transport's.
pub(crate) fn message(error: &kube::Error) -> String {
    status(error).map_or_else(|| error.to_string(), |status| status.message.clone())
}

pub(crate) fn post() -> PostParams {
    PostParams::default()
}

pub(crate) fn patch() -> PatchParams {
    PatchParams::default()
}

/// Deletes only the object of this uid.
pub(crate) fn delete_uid(uid: &str) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None })
}

pub(crate) fn merge<T: Serialize>(value: T) -> Patch<T> {
    Patch::Merge(value)
}

pub(crate) fn strategic<T: Serialize>(value: T) -> Patch<T> {
    Patch::Strategic(value)
}
