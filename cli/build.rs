//! Link flags of the one binary. Loaded at a fixed address it needs no relocation at its start, which for a file of this size was a third
//! of what a short command costs (`orlop-oci exec`), in time and in pages of its own; runc, containerd and kubectl are linked so, too. Stack,
//! heap and mappings stay at random addresses. Equal functions are folded.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        // The last of these words counts for the compiler driver, so `-no-pie` undoes rustc's `-static-pie`.
        println!("cargo:rustc-link-arg-bins=-no-pie");
        println!("cargo:rustc-link-arg-bins=-static");
        // lld's, rustc's own linker for this target.
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
}
