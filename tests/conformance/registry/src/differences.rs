//! What a subject is known not to do, with the reason. An entry that passes fails the run: the table stays true.

use crate::subject::Kind;

/// One known difference.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    kind: Kind,
    section: &'static str,
    spec: &'static str,
    /// Why.
    pub reason: &'static str,
}

const fn docker(section: &'static str, spec: &'static str, reason: &'static str) -> Difference {
    Difference { kind: Kind::DockerRegistry, section, spec, reason }
}

const REFERRERS: &str = "2.8 does not know referrers (distribution specification 1.1)";
const OUT_OF_ORDER: &str = "2.8 does not look at Content-Range";
const RANGES: &str =
    "2.8 sends the header of the whole and the bytes of nothing: Go's ServeContent answers 416 into it";
const TAGS: &str = "2.8 lists tags as the directory gives them, and all of them";
const TAG_DELETE: &str = "2.8 deletes no tags";
const SHA512: &str = "2.8 knows blobs by sha256 alone";

/// Every spec of a section.
const EVERY: &str = "*";

/// The table.
pub const DIFFERENCES: &[Difference] = &[
    docker("referrers", EVERY, REFERRERS),
    docker("uploads", "out_of_order", OUT_OF_ORDER),
    docker("uploads", "out_of_order_at_the_end", OUT_OF_ORDER),
    docker("uploads", "bad_content_range", OUT_OF_ORDER),
    docker("uploads", "single_post", "2.8 begins an upload instead, as the specification lets it"),
    docker(
        "uploads",
        "wrong_digest_in_one_post",
        "2.8 begins an upload instead, as the specification lets it",
    ),
    docker(
        "uploads",
        "resumed_after_a_cut",
        "2.8 signs into the location how far it was: after a cut its client begins anew",
    ),
    docker("uploads", "sha512", SHA512),
    docker("uploads", "unknown_algorithm", "2.8 does not know digest-algorithm"),
    docker("manifests", "sha512", SHA512),
    docker("ranges", "backwards", RANGES),
    docker("ranges", "beyond_the_end", RANGES),
    docker("ranges", "other_unit", RANGES),
    docker("tags", "listed_in_order", TAGS),
    docker("tags", "none_of_them", TAGS),
    docker("tags", "paged", TAGS),
    docker("tags", "paged_to_the_end", TAGS),
    docker("tags", "from_a_tag", TAGS),
    docker("tags", "from_a_tag_that_is_not", TAGS),
    docker("tags", "bad_count", TAGS),
    docker("deletes", "tag", TAG_DELETE),
    docker("deletes", "everything_that_an_image_needs", TAG_DELETE),
    docker("deletes", "unknown_things", TAG_DELETE),
    docker("errors", "digests", "2.8 takes a reference with a bad digest for a tag, and fails at its file"),
    docker("errors", "long_names", "2.8 answers 500"),
    docker(
        "manifests",
        "layers_that_live_elsewhere",
        "2.8 fails with 500 at addresses of layers that it was not told to allow",
    ),
    docker("manifests", "no_json", "2.8 answers 500 to some documents that are no JSON"),
    docker("manifests", "no_manifest", "2.8 answers 500 to some documents that are no manifests"),
    docker("manifests", "no_type", "2.8 takes what has no Content-Type for schema 1"),
    docker("manifests", "tags_beside_a_digest", "2.8 does not know tags beside a digest"),
    docker("manifests", "too_large", "2.8 answers 400"),
    docker("pull", "manifest_of_another_type", "2.8 hides what the client does not say it takes"),
];

/// The entry of a spec.
pub fn of(kind: Kind, section: &str, spec: &str) -> Option<&'static Difference> {
    let mut of_section = DIFFERENCES.iter().filter(|entry| entry.kind == kind && entry.section == section);
    of_section.find(|entry| [spec, EVERY].contains(&entry.spec))
}
