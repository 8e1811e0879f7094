//! A cluster on a machine with cgroup v2 alone (`./test --vm`); elsewhere SKIP.

use std::path::Path;

use orlop_tests::{Cluster, eventually, image};

const LIMITED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: limited, labels: {app: limited}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, '100000']
    resources: {limits: {cpu: 200m, memory: 64Mi}}
";

const HUNGRY: &str = "
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    # A child is killed; that the shell dies with it is memory.oom.group's doing.
    command: [sh, -c, \"sh -c 'x=a; while true; do x=$x$x; done'; sleep 100000\"]
    resources: {limits: {memory: 24Mi}}
";

#[test]
fn limits_of_pods_hold() {
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        eprintln!("SKIP needs cgroup v2 alone");
        return;
    }
    let cluster = Cluster::prepare(&[]);
    cluster.up();
    cluster.import(&image::busybox());
    cluster.create(LIMITED);
    cluster.create(HUNGRY);
    cluster.ready_pods("app=limited", 1, 100);
    let read = |file: &str| {
        let path = format!("/sys/fs/cgroup/{file}");
        cluster.kubectl(&["exec", "limited", "--", "cat", &path]).trim().to_owned()
    };
    let seen = ["memory.max", "memory.swap.max", "memory.oom.group", "cpu.max"].map(read);
    assert_eq!(seen, ["67108864", "0", "1", "20000 100000"]);
    assert_eq!(cluster.kubectl(&["exec", "limited", "--", "cat", "/proc/self/cgroup"]), "0::/\n");
    eventually("the hungry pod is killed", 60, || {
        let pod = cluster.get(&["pod", "hungry"]);
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        if ended["reason"] == "OOMKilled" && ended["exitCode"] == 137 {
            return Ok(());
        }
        Err(pod["status"].to_string())
    });
    cluster.down_clean();
}
