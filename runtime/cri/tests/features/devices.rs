//! CDI devices, runtime handlers, security profiles.

use orlop_cri::v1;
use orlop_runtime::RuntimeHandler;

use crate::support::{self, container, context, pod, say};

#[tokio::test]
async fn cdi_devices_change_a_container() {
    let found = support::real_node(|config| {
        let directory = config.root.parent().unwrap().join("cdi");
        std::fs::create_dir(&directory).unwrap();
        config.cdi_spec_dirs = vec![directory];
    })
    .await;
    let Some((node, mut client)) = found else { return };
    std::fs::write(node.path("driver"), "library").unwrap();
    // A device (fuse) that only the cgroup's rule makes usable.
    let text = format!(
        "cdiVersion: 0.6.0\nkind: vendor.com/gpu\ncontainerEdits:\n  env: [\"DRIVER=1\"]\ndevices:\n- name: \"0\"\n  containerEdits:\n    deviceNodes:\n    - path: /dev/gpu0\n      type: c\n      major: 10\n      minor: 229\n      fileMode: 438\n    mounts:\n    - hostPath: {}\n      containerPath: /usr/lib/driver\n      options: [ro, nosuid]\n",
        node.path("driver").display()
    );
    std::fs::write(node.path("cdi/vendor.yaml"), text).unwrap();
    let sandbox = client.run_pod(&pod(&node, "gpu")).await.unwrap();
    let with = |name: &str, device: &str| {
        let mut config = container(name, &["/bin/busybox", "sleep", "600"]);
        config.cdi_devices = vec![v1::CdiDevice { name: device.into() }];
        config
    };
    let id = client.create(&sandbox, with("user", "vendor.com/gpu=0")).await.unwrap();
    client.start(&id).await.unwrap();
    let script = "echo $DRIVER; /bin/busybox cat /usr/lib/driver; /bin/busybox stat -c ' %t:%T %a' /dev/gpu0; \
        /bin/busybox head -c 0 /dev/gpu0 && echo opened; echo x > /usr/lib/driver";
    let said = say(&mut client, &id, script).await;
    for wanted in ["1\n", "library", "a:e5 666", "opened", "Read-only"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let unknown = client.create(&sandbox, with("other", "vendor.com/gpu=7")).await.unwrap_err();
    assert!(unknown.message().contains("unresolvable CDI devices vendor.com/gpu=7"), "{unknown}");
    client.remove_pod(&sandbox).await.unwrap();
}

#[tokio::test]
async fn handlers_and_profiles_that_are_not_there_are_refused() {
    let found = support::real_node(|config| {
        let handler = RuntimeHandler { privileged_without_host_devices: true, ..RuntimeHandler::default() };
        config.runtime_handlers.insert("plain".to_owned(), handler);
    })
    .await;
    let Some((node, mut client)) = found else { return };
    let run = |handler: &str| v1::RunPodSandboxRequest {
        config: Some(support::privileged_pod(&node, "web")),
        runtime_handler: handler.to_owned(),
    };
    let refused = client.runtime.run_pod_sandbox(run("kata")).await.unwrap_err();
    assert_eq!(refused.message(), "failed to get sandbox runtime: no runtime for \"kata\" is configured");
    let sandbox = client.runtime.run_pod_sandbox(run("plain")).await.unwrap().into_inner().pod_sandbox_id;
    assert_eq!(client.pod_status(&sandbox).await.runtime_handler, "plain");
    let status = client.runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    let names: Vec<String> = status.runtime_handlers.into_iter().map(|handler| handler.name).collect();
    assert_eq!(names, ["", "plain"]);

    let mut privileged = container("privileged", &["/bin/busybox", "sleep", "600"]);
    context(&mut privileged).privileged = true;
    let id = client.create(&sandbox, privileged).await.unwrap();
    client.start(&id).await.unwrap();
    let said = say(&mut client, &id, "/bin/busybox ls /dev | /bin/busybox wc -l; /bin/busybox ls /dev").await;
    assert!(!said.contains("kmsg") && said.contains("null"), "{said}");
    if !std::path::Path::new("/sys/kernel/security/apparmor").exists() {
        let mut confined = container("confined", &["/bin/busybox", "true"]);
        context(&mut confined).apparmor = Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::Localhost as i32,
            localhost_ref: "web".into(),
        });
        let refused = client.create(&sandbox, confined).await.unwrap_err();
        assert!(refused.message().contains("apparmor is not supported"), "{refused}");
    }
    client.remove_pod(&sandbox).await.unwrap();
}
