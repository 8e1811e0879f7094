//! The OCI distribution specification 1.1 as a black box, filed by its sections. The subject is `orlop mirror` (`ORLOP_BIN`, or the
//! crate's own small stand-in) or, with `SUBJECT=docker-registry`, Debian's docker-registry 2.8: a spec that it fails is wrong, or is
//! in the table of [`differences`] with its reason.
//!
//! ```text
//!   tests/suite.rs   one test per section: Subject on loopback → specs, several at once → verdicts
//! ```
//!
//! `cargo nextest run -p orlop-conformance-registry` runs all on ours; `SPEC=text` picks specs by name.
//!
//! Invariant: the suite asks by HTTP alone; it imports nothing of the mirror (only the stand-in binary does).
//!
//! # What the project's own suite checks (opencontainers/distribution-spec, `conformance`), and where it is here
//!
//! | there | here |
//! |---|---|
//! | ping, empty repository | `pull` `base`, `tags` `unknown_repository` |
//! | blobs of sha256 and sha512: post only, post and put, chunked, streamed, out of order, cancelled, bad digests | `uploads` |
//! | mount, mount without a source, mount of what is missing | `mounts` |
//! | ranges | `ranges` |
//! | images, indices, nested and empty ones, artifacts, no layers, data field, unknown fields, large manifests, non-distributable layers | `manifests` |
//! | subjects, missing subjects, referrers, filters | `referrers` |
//! | tag lists, tag parameters beside a digest | `tags`, `manifests` `tags_beside_a_digest` |
//! | deletion of tags, manifests, blobs, at once | `deletes` |
//! | manifests that are no manifests, of the wrong digest | `manifests`, `errors` |

pub mod client;
pub mod content;
pub mod differences;
pub mod spec;
pub mod specs;
pub mod subject;
