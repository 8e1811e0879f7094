//! Link flags of the one binary: relative relocations packed and equal functions folded make a tenth of the file.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Both are lld's, rustc's own linker for this target.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
}
