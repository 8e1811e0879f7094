//! The resource table: every API kind as a row. Pure.
