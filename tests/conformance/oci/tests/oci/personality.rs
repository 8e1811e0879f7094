//! config-linux.md, "Personality".

use orlop_conformance_oci::{Rig, differs};
use serde_json::json;

#[test]
fn the_machine_is_32_bits_wide() {
    let Some(rig) = Rig::new() else { return };
    if differs("personality") {
        return;
    }
    let line = "cat /proc/self/personality";
    let seen = |domain: &str| {
        rig.shell(line, |config| {
            config["linux"]["personality"] = json!({"domain": domain});
            orlop_conformance_oci::grant(config, &["CAP_SYS_PTRACE"]);
        })
        .ok()
    };
    assert_eq!(seen("LINUX32"), "00000008\n");
    assert_eq!(seen("LINUX"), "00000000\n");
    let called = rig.shell("true", |config| config["linux"]["personality"] = json!({"domain": "BSD"}));
    assert_ne!(called.code, 0);
    rig.assert_nothing_left();
}
