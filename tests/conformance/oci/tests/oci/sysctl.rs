//! config-linux.md, "Sysctl".

use std::fs;

use orlop_conformance_oci::{Rig, drop_namespace};
use serde_json::json;

#[test]
fn set_inside_and_not_outside() {
    let Some(rig) = Rig::new() else { return };
    let outside = || {
        (
            fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap(),
            fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(),
        )
    };
    let before = outside();
    let out = rig
        .shell("cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/msgmax", |config| {
            config["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "33", "kernel.msgmax": "4321"});
        })
        .ok();
    assert_eq!(out, "33\n4321\n");
    assert_eq!(outside(), before);
}

#[test]
fn the_machines_are_refused() {
    let Some(rig) = Rig::new() else { return };
    let before = fs::read_to_string("/proc/sys/vm/swappiness").unwrap();
    for (name, value, without) in [
        ("vm.swappiness", before.trim(), ""),
        ("net.ipv4.ip_default_ttl", "64", "network"),
        ("kernel.msgmax", "8192", "ipc"),
        ("no.such", "1", ""),
    ] {
        let called = rig.shell("true", |config| {
            config["linux"]["sysctl"] = json!({name: value});
            if !without.is_empty() {
                drop_namespace(config, without);
                config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
            }
        });
        assert_ne!(called.code, 0, "{name}");
        rig.assert_nothing_left();
    }
}
