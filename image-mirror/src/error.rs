//! Errors as clients of registries read them (specification, "Error Codes").

use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use orlop_distribution::blobs::BlobError;

use crate::records::RecordsError;

/// When to try again what is too much now.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A refused request.
#[derive(Clone, Debug)]
pub(crate) struct RegistryError {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    /// Where to log in would help: what follows the realm in the challenge.
    pub challenge: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

impl RegistryError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), challenge: None, retry_after: None }
    }

    pub(crate) fn name_unknown(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NAME_UNKNOWN",
            format!("repository {name} is not known to this registry"),
        )
    }

    pub(crate) fn manifest_unknown(reference: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", format!("manifest {reference} is not known"))
    }

    pub(crate) fn blob_unknown(digest: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("blob {digest} is not known"))
    }

    pub(crate) fn upload_unknown(session: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "BLOB_UPLOAD_UNKNOWN",
            format!("upload {session} is not known: start it again"),
        )
    }

    pub(crate) fn digest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    pub(crate) fn manifest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    pub(crate) fn internal(act: &str, error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, act, "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", format!("failed to {act}"))
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let body =
            serde_json::json!({"errors": [{"code": self.code, "message": self.message, "detail": null}]});
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let busy = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if let Some(after) = self.retry_after.or(Some(RETRY_AFTER).filter(|_| busy)) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

impl From<BlobError> for RegistryError {
    fn from(error: BlobError) -> Self {
        if error.is_no_space() {
            tracing::error!(%error, "the disk is full");
            return Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "UNKNOWN",
                "the registry's disk is full: free space or ask its operator",
            );
        }
        match error {
            BlobError::Digest(error) => Self::digest_invalid(error.to_string()),
            BlobError::Size { .. } => Self::new(StatusCode::BAD_REQUEST, "SIZE_INVALID", error.to_string()),
            BlobError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", error.to_string())
            }
            BlobError::Io { .. } => Self::internal("use the blob store", error),
        }
    }
}

impl From<RecordsError> for RegistryError {
    fn from(error: RecordsError) -> Self {
        match error {
            RecordsError::NoSpace => {
                tracing::error!("the disk is full");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN", error.to_string())
            }
            RecordsError::Storage(_) | RecordsError::Stopped => Self::internal("use the records", error),
        }
    }
}
