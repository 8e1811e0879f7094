//! Images and snapshots of the runtime.
