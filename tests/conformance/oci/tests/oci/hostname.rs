//! config.md, "Hostname" and "Domainname".

use orlop_conformance_oci::{Rig, differs, drop_namespace};

#[test]
fn the_names_of_the_host() {
    let Some(rig) = Rig::new() else { return };
    let before = nix::unistd::gethostname().unwrap();
    let out = rig.shell("hostname", |config| config["hostname"] = "orlop-test".into()).ok();
    assert_eq!(out, "orlop-test\n");
    assert_eq!(nix::unistd::gethostname().unwrap(), before);
    if !differs("domainname") {
        let line = "cat /proc/sys/kernel/domainname";
        assert_eq!(rig.shell(line, |config| config["domainname"] = "orlop.test".into()).ok(), "orlop.test\n");
    }
}

#[test]
fn a_name_needs_a_namespace() {
    let Some(rig) = Rig::new() else { return };
    let before = nix::unistd::gethostname().unwrap();
    let called = rig.shell("true", |config| {
        config["hostname"] = "orlop-escaped".into();
        drop_namespace(config, "uts");
    });
    assert_ne!(called.code, 0);
    assert_eq!(nix::unistd::gethostname().unwrap(), before);
    rig.assert_nothing_left();
}
