//! A small static server for test images.
fn main() {}
