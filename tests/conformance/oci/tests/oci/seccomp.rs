//! config-linux.md, "Seccomp".

use orlop_conformance_oci::Rig;
use serde_json::{Value, json};

fn profile(rules: Value) -> impl FnOnce(&mut Value) {
    move |config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"], "syscalls": rules,
        });
    }
}

#[test]
fn errors_and_their_numbers() {
    let Some(rig) = Rig::new() else { return };
    for (number, text) in [
        (json!(null), "Operation not permitted"),
        (json!(38), "Function not implemented"),
        (json!(28), "No space left"),
    ] {
        let mut rule = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"});
        if !number.is_null() {
            rule["errnoRet"] = number;
        }
        let called = rig.shell("mkdir /tmp/x", profile(json!([rule])));
        assert!(called.code != 0 && called.error.contains(text), "{} {}", called.code, called.error);
    }
}

#[test]
fn killing_and_trapping() {
    let Some(rig) = Rig::new() else { return };
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"] {
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": action}]);
        let out = rig.shell("mkdir /tmp/x; echo $?; test -d /tmp/x; echo $?", profile(rules)).ok();
        // 128 + SIGSYS.
        assert_eq!(out, "159\n1\n", "{action}");
    }
}

#[test]
fn arguments_are_compared() {
    let Some(rig) = Rig::new() else { return };
    for (op, value, mask, refused) in [
        ("SCMP_CMP_EQ", 10, 0, "10"),
        ("SCMP_CMP_NE", 0, 0, "10 12"),
        ("SCMP_CMP_GE", 11, 0, "12"),
        ("SCMP_CMP_GT", 10, 0, "12"),
        ("SCMP_CMP_LT", 12, 0, "0 10"),
        ("SCMP_CMP_LE", 0, 0, "0"),
        ("SCMP_CMP_MASKED_EQ", 6, 4, "12"),
    ] {
        // With a mask the two are the other way round: value is the mask, valueTwo what it leaves.
        let argument = match op {
            "SCMP_CMP_MASKED_EQ" => json!({"index": 1, "value": value, "valueTwo": mask, "op": op}),
            _ => json!({"index": 1, "value": value, "op": op}),
        };
        let rules = json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [argument]}]);
        let line = "trap '' USR1 USR2; for s in 0 10 12; do kill -$s $$ 2>/dev/null || printf '%s ' $s; done";
        assert_eq!(rig.shell(line, profile(rules)).ok().trim(), refused, "{op}");
    }
}

#[test]
fn a_list_of_what_is_allowed() {
    let Some(rig) = Rig::new() else { return };
    // Everything below 1000 but one, by what is left: the default refuses.
    let out = rig
        .shell("mkdir /tmp/x 2>&1; grep Seccomp: /proc/self/status", |config| {
            config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_LOG",
                "syscalls": [
                    {"names": ["no_such_call", "mkdirat", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                    {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                ],
            });
        })
        .ok();
    assert!(out.contains("not permitted") && out.trim_end().ends_with('2'), "{out}");
}

#[test]
fn with_and_without_new_privileges_and_for_users() {
    let Some(rig) = Rig::new() else { return };
    for bit in [true, false] {
        let out = rig
            .shell("mkdir /tmp/x 2>&1; grep -E 'Seccomp:|NoNewPrivs|CapEff' /proc/self/status", |config| {
                profile(json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]))(config);
                config["process"]["noNewPrivileges"] = bit.into();
                config["process"]["user"] = json!({"uid": 9, "gid": 9});
                config["process"]["capabilities"] = json!({});
            })
            .ok();
        assert!(out.contains("not permitted") && out.contains("Seccomp:\t2"), "{out}");
        assert!(out.contains(&format!("NoNewPrivs:\t{}", u8::from(bit))), "{out}");
        assert!(out.contains("CapEff:\t0000000000000000"), "{out}");
    }
}

#[test]
fn bad_profiles_are_refused() {
    let Some(rig) = Rig::new() else { return };
    for bad in [
        json!({"defaultAction": "SCMP_ACT_NONE"}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NONE"]}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_NONE"}]}]}),
    ] {
        assert_ne!(rig.shell("true", |config| config["linux"]["seccomp"] = bad.clone()).code, 0, "{bad}");
        rig.assert_nothing_left();
    }
}
