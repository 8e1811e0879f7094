//! Builds the test images and prints where they are: `cargo run --package orlop-tests --bin test-images`.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{}", orlop_tests::image::busybox().display())?;
    writeln!(out, "{}", orlop_tests::image::nginx().display())
}
