//! Floors, tidy, code generation.
fn main() {}
