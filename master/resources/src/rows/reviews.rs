//! Kinds that are answered, not stored: bindings and reviews.

use super::BASE;
use crate::resource::{NameRule, Resource};

const CREATE: &[&str] = &["create"];

const fn review(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    namespaced: bool,
) -> Resource {
    Resource { group, kind, plural, singular, namespaced, verbs: CREATE, name: NameRule::Free, ..BASE }
}

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";

pub(super) const BINDINGS: Resource = Resource {
    definition: "io.k8s.api.core.v1.Binding",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::core::v1::Binding>(),
    ..review("", "Binding", "bindings", "binding", true)
};

pub(super) const SELF_SUBJECT_ACCESS_REVIEWS: Resource = Resource {
    definition: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    schema: |generator| {
        generator.subschema_for::<k8s_openapi::api::authorization::v1::SelfSubjectAccessReview>()
    },
    ..review(
        AUTHORIZATION,
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        false,
    )
};

pub(super) const SELF_SUBJECT_RULES_REVIEWS: Resource = Resource {
    definition: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    schema: |generator| {
        generator.subschema_for::<k8s_openapi::api::authorization::v1::SelfSubjectRulesReview>()
    },
    ..review(
        AUTHORIZATION,
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        false,
    )
};

pub(super) const SUBJECT_ACCESS_REVIEWS: Resource = Resource {
    definition: "io.k8s.api.authorization.v1.SubjectAccessReview",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::authorization::v1::SubjectAccessReview>(),
    ..review(AUTHORIZATION, "SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview", false)
};

pub(super) const LOCAL_SUBJECT_ACCESS_REVIEWS: Resource = Resource {
    definition: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    schema: |generator| {
        generator.subschema_for::<k8s_openapi::api::authorization::v1::LocalSubjectAccessReview>()
    },
    ..review(
        AUTHORIZATION,
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        true,
    )
};

pub(super) const TOKEN_REVIEWS: Resource = Resource {
    definition: "io.k8s.api.authentication.v1.TokenReview",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::authentication::v1::TokenReview>(),
    ..review(AUTHENTICATION, "TokenReview", "tokenreviews", "tokenreview", false)
};

pub(super) const SELF_SUBJECT_REVIEWS: Resource = Resource {
    definition: "io.k8s.api.authentication.v1.SelfSubjectReview",
    schema: |generator| generator.subschema_for::<k8s_openapi::api::authentication::v1::SelfSubjectReview>(),
    ..review(AUTHENTICATION, "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview", false)
};
