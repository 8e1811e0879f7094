//! Identifiers and values: digests, image references, quantities. Pure.
