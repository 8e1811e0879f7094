//! Pods with a user namespace of their own (Kubernetes' `hostUsers: false`).

#![expect(clippy::unwrap_used, reason = "tests")]

mod rig;

use std::os::unix::fs::MetadataExt;

use orlop_shim::protocol::{IdMapping, UserNamespace};
use rig::Pod;
use serde_json::json;

const FIRST: u32 = 200_000;

fn pod() -> Pod {
    Pod::start_with(|config| {
        let all = vec![IdMapping { container_id: 0, host_id: FIRST, length: 65_536 }];
        config.user_namespace = Some(UserNamespace { uid_mappings: all.clone(), gid_mappings: all });
        config.shared_pid_namespace = true;
        config.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        config.sysctls.insert("kernel.domainname".into(), "example".into());
    })
}

fn in_pod(config: &mut serde_json::Value) {
    config["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "cgroup"}, {"type": "pid", "path": "pod"}, {"type": "network", "path": "pod"},
        {"type": "ipc", "path": "pod"}, {"type": "uts", "path": "pod"}, {"type": "user", "path": "pod"},
    ]);
    let capabilities = json!(["CAP_CHOWN", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID"]);
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = capabilities.clone();
    }
    config["linux"]["readonlyPaths"] = json!([]);
}

#[test]
fn containers_rule_over_their_pod_and_nothing_else() {
    needs_root!();
    let pod = pod();
    let volume = pod.directory.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let script = "cat /proc/self/uid_map; id -u; stat=$(ls -ldn / /bin/busybox /volume /dev/shm | while read a b u r; do echo $u; done); \
        echo owners $stat; echo x > /volume/x && echo y > /y; cat /proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/domainname; \
        hostname changed && hostname; echo 5 > /proc/sys/net/ipv4/conf/lo/tag && echo net; \
        mkdir /m && /bin/busybox mount -t tmpfs t /m && echo mounted; mknod /tty c 4 64 || echo no device; \
        exit 3";
    pod.run_with("c1", &["sh", "-c", script], |config| {
        in_pod(config);
        config["mounts"].as_array_mut().unwrap().push(
            json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "idmap"]}),
        );
    });
    assert_eq!(pod.wait("c1").code, 3);
    let done = pod.log("c1");
    let has = |text: &str| done.iter().any(|line| line.contains(text));
    assert!(has(&format!("{FIRST}      65536")), "{done:?}");
    assert!(has("stdout F owners 0 0 0 0"), "{done:?}");
    assert!(has("stdout F changed") && has("stdout F net") && has("stdout F mounted"), "{done:?}");
    assert!(has("stdout F example") && has("stdout F 1"), "{done:?}");
    assert!(has("no device"), "{done:?}");
    // On the machine: volumes keep the owners that the container sees, the pod's own files have the pod's.
    assert_eq!(std::fs::metadata(volume.join("x")).unwrap().uid(), 0);
    assert_eq!(std::fs::metadata(pod.directory.path().join("data/c1/upper/y")).unwrap().uid(), FIRST);

    let init = pod.run_with("c2", &["sleep", "1000"], in_pod).pid.unwrap();
    assert_eq!(std::fs::metadata(format!("/proc/{init}")).unwrap().uid(), FIRST);
    let script = "cat /proc/self/uid_map; ps; kill -9 1; echo still";
    let (out, error, code, _) = pod.exec("c2", &["sh", "-c", script], 20_000).unwrap();
    assert_eq!(code, 0, "{error}");
    assert!(out.contains(&format!("{FIRST}      65536")) && out.contains("still"), "{out}");
    assert!(out.contains("oci-setup"), "the reaper is process 1: {out}");
    pod.stop("c2", 0);
    pod.remove("c2");
    pod.remove("c1");
    pod.end();
}
