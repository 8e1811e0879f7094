//! The conditions of a namespace that is going away.

use std::collections::BTreeMap;

/// What was found in the namespace after a round of deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remains {
    /// Objects left, by `plural` or `plural.group`.
    pub(crate) objects: BTreeMap<String, usize>,
    /// Objects left that wait for a finalizer, by finalizer.
    pub(crate) finalizers: BTreeMap<String, usize>,
    /// Errors of the round.
    pub(crate) failures: Vec<String>,
}

impl Remains {
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty()
    }

    /// Conditions as (type, status, reason, message), in upstream's words.
    pub(crate) fn conditions(&self) -> Vec<(String, String, String, String)> {
        let row = |kind: &str, bad: bool, reason: [&str; 2], message: [String; 2]| {
            let [good_message, bad_message] = message;
            (
                kind.to_owned(),
                if bad { "True" } else { "False" }.to_owned(),
                reason[usize::from(bad)].to_owned(),
                if bad { bad_message } else { good_message },
            )
        };
        let list = |counts: &BTreeMap<String, usize>, word: &str| {
            let parts: Vec<_> = counts
                .iter()
                .map(|(name, count)| format!("{name}{word} {count} resource instances"))
                .collect();
            parts.join(", ")
        };
        vec![
            row(
                "NamespaceDeletionDiscoveryFailure",
                false,
                ["ResourcesDiscovered", ""],
                ["All resources successfully discovered".to_owned(), String::new()],
            ),
            row(
                "NamespaceDeletionGroupVersionParsingFailure",
                false,
                ["ParsedGroupVersions", ""],
                ["All legacy kube types successfully parsed".to_owned(), String::new()],
            ),
            row(
                "NamespaceDeletionContentFailure",
                !self.failures.is_empty(),
                ["ContentDeleted", "ContentDeletionFailed"],
                [
                    "All content successfully deleted, may be waiting on finalization".to_owned(),
                    format!(
                        "Failed to delete all resource types, {} remaining: {}",
                        self.failures.len(),
                        self.failures.join(", ")
                    ),
                ],
            ),
            row(
                "NamespaceContentRemaining",
                !self.objects.is_empty(),
                ["ContentRemoved", "SomeResourcesRemain"],
                [
                    "All content successfully removed".to_owned(),
                    format!("Some resources are remaining: {}", list(&self.objects, " has")),
                ],
            ),
            row(
                "NamespaceFinalizersRemaining",
                !self.finalizers.is_empty(),
                ["ContentHasNoFinalizers", "SomeFinalizersRemain"],
                [
                    "All content-preserving finalizers finished".to_owned(),
                    format!(
                        "Some content in the namespace has finalizers remaining: {}",
                        list(&self.finalizers, " in")
                    ),
                ],
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_speak_upstreams_words() {
        let remains = Remains {
            objects: [("pods".to_owned(), 2)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            failures: Vec::new(),
        };
        let conditions = remains.conditions();
        assert_eq!(conditions[2].2, "ContentDeleted");
        assert_eq!(conditions[3].1, "True");
        assert_eq!(conditions[3].3, "Some resources are remaining: pods has 2 resource instances");
        assert_eq!(
            conditions[4].3,
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );
        assert!(Remains::default().conditions().iter().all(|condition| condition.1 == "False"));
    }
}
