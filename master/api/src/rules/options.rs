//! What a request's options may say (apimachinery `pkg/apis/meta/v1/validation` and `internalversion/validation`).

use orlop_resources::FieldError;
use orlop_resources::status::{self, ApiError};
use serde_json::{Value, json};

use super::query::Query;

const OPTIONS_GROUP: &str = "meta.k8s.io";
const EXACT: &str = "Exact";
const NOT_OLDER: &str = "NotOlderThan";
const MATCH: &str = "resourceVersionMatch";
const INITIAL: &str = "sendInitialEvents";

/// How unknown and duplicate fields are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// 422 for faults in the options of a verb; `kind` is for example `CreateOptions`.
pub(crate) fn refused(kind: &str, faults: &[FieldError]) -> Result<(), ApiError> {
    if faults.is_empty() { Ok(()) } else { Err(status::invalid_kind(OPTIONS_GROUP, kind, "", faults)) }
}

/// The kind of the options that a verb takes.
pub(crate) fn kind_of(verb: &str) -> &'static str {
    match verb {
        "create" => "CreateOptions",
        "update" => "UpdateOptions",
        "patch" => "PatchOptions",
        "delete" | "deletecollection" => "DeleteOptions",
        _ => "ListOptions",
    }
}

/// `dryRun`, as query or in the body; whether it is on.
pub(crate) fn dry_run<'a>(kind: &str, values: impl Iterator<Item = &'a str>) -> Result<bool, ApiError> {
    let values: Vec<&str> = values.collect();
    if values.iter().any(|value| *value != "All") {
        let message = format!("Unsupported value: {}: supported values: \"All\"", json!(values));
        let fault = FieldError { cause: "FieldValueNotSupported", field: "dryRun".to_owned(), message };
        refused(kind, &[fault])?;
    }
    Ok(!values.is_empty())
}

/// `fieldValidation`.
pub(crate) fn field_validation(kind: &str, value: Option<&str>) -> Result<FieldValidation, ApiError> {
    match value {
        None | Some("Warn") => Ok(FieldValidation::Warn),
        Some("Ignore") => Ok(FieldValidation::Ignore),
        Some("Strict") => Ok(FieldValidation::Strict),
        Some(other) => {
            let known = ["Ignore", "Strict", "Warn"];
            refused(kind, &[FieldError::not_supported("fieldValidation", other, &known)])?;
            Ok(FieldValidation::Warn)
        }
    }
}

/// What is wrong with the options of a list.
pub(crate) fn list_faults(query: &Query) -> Vec<FieldError> {
    let mut faults = Vec::new();
    let revision = query.get("resourceVersion");
    if let Some(matching) = query.get(MATCH) {
        if revision.is_none() {
            let text = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            faults.push(FieldError::forbidden(MATCH, text));
        }
        not_with_continue(query, &mut faults);
        if matching != EXACT && matching != NOT_OLDER {
            faults.push(FieldError::not_supported(MATCH, matching, &[EXACT, NOT_OLDER, ""]));
        }
        if matching == EXACT && revision == Some("0") {
            let text = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            faults.push(FieldError::forbidden(MATCH, text));
        }
    }
    if query.get(INITIAL).is_some() {
        faults.push(FieldError::forbidden(INITIAL, "sendInitialEvents is forbidden for list"));
    }
    faults
}

/// What is wrong with the options of a watch.
pub(crate) fn watch_faults(query: &Query) -> Vec<FieldError> {
    let mut faults = Vec::new();
    let matching = query.get(MATCH);
    let initial = query.get(INITIAL).is_some();
    if initial && matching != Some(NOT_OLDER) {
        let text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        faults.push(FieldError::forbidden(MATCH, text));
    }
    if let Some(matching) = matching {
        if !initial {
            let text = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            faults.push(FieldError::forbidden(MATCH, text));
        }
        if matching != NOT_OLDER {
            faults.push(FieldError::not_supported(MATCH, matching, &[NOT_OLDER]));
        }
        not_with_continue(query, &mut faults);
    }
    faults
}

fn not_with_continue(query: &Query, faults: &mut Vec<FieldError>) {
    if query.get("continue").is_some() {
        let text = "resourceVersionMatch is forbidden when continue is provided";
        faults.push(FieldError::forbidden(MATCH, text));
    }
}

/// A patch that cannot be made an object (upstream names the patch as the invalid field).
pub(crate) fn patch_refused(shown: &str, why: &str) -> ApiError {
    status::invalid_kind("", "", "", &[FieldError::invalid("patch", &Value::from(shown), why)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(faults: &[FieldError]) -> String {
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn lists_and_watches_are_refused_as_upstream_refuses_them() {
        let list = [
            ("resourceVersion=5&resourceVersionMatch=Exact", ""),
            ("resourceVersion=0&resourceVersionMatch=NotOlderThan", ""),
            (
                "resourceVersionMatch=Exact",
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            (
                "resourceVersion=0&resourceVersionMatch=Exact",
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ),
            (
                "resourceVersion=1&resourceVersionMatch=X",
                "resourceVersionMatch: Unsupported value: \"X\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
            ),
            (
                "resourceVersion=1&resourceVersionMatch=Exact&continue=x",
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided",
            ),
            (
                "sendInitialEvents=true",
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
            ),
        ];
        for (query, expected) in list {
            assert_eq!(texts(&list_faults(&Query::parse(query))), expected, "{query}");
        }
        let watch = [
            ("", ""),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", ""),
            (
                "sendInitialEvents=true",
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            (
                "resourceVersionMatch=NotOlderThan",
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ),
        ];
        for (query, expected) in watch {
            assert_eq!(texts(&watch_faults(&Query::parse(query))), expected, "{query}");
        }
    }

    #[test]
    fn refusals_are_422_of_the_options_kind() {
        let error = dry_run("CreateOptions", ["Foo"].into_iter()).unwrap_err();
        assert_eq!(
            (error.code, error.reason(), error.message()),
            (
                422,
                "Invalid",
                "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"Foo\"]: supported values: \"All\""
            )
        );
        assert_eq!(error.body["details"]["kind"], "CreateOptions");
        let error = field_validation(kind_of("patch"), Some("Foo")).unwrap_err();
        assert_eq!(
            error.message(),
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Foo\": supported values: \"Ignore\", \"Strict\", \"Warn\""
        );
        assert_eq!(dry_run("CreateOptions", ["All"].into_iter()).ok(), Some(true));
        let error = patch_refused("{}", "strict decoding error: unknown field \"foo\"");
        assert_eq!(
            error.message(),
            " \"\" is invalid: patch: Invalid value: \"{}\": strict decoding error: unknown field \"foo\""
        );
        assert_eq!(error.body["details"]["causes"][0]["field"], "patch");
    }
}
