//! The object store: one revision counter, durable writes, watch history.
