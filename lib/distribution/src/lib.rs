//! OCI distribution: references, registry client, blob store, archives.
