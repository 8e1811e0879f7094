//! Pods with a user namespace of their own.

use std::os::unix::fs::MetadataExt as _;

use orlop_cri::v1;

use crate::support::{self, container, pod, say};

const FIRST: u32 = 300_000;

#[tokio::test]
async fn a_pods_root_is_nobody_on_the_machine() {
    let Some((node, mut client)) = support::real_node(|_| {}).await else { return };
    let range = vec![v1::IdMapping { container_id: 0, host_id: FIRST, length: 65_536 }];
    let user =
        v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: range.clone(), gids: range.clone() };
    let options = v1::NamespaceOption {
        pid: v1::NamespaceMode::Container as i32,
        userns_options: Some(user.clone()),
        ..Default::default()
    };
    let mut config = pod(&node, "mapped");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options =
        Some(options.clone());
    let sandbox = client.run_pod(&config).await.unwrap();
    let bottom: &[(&str, &str)] = &[("model/weights", "old")];
    let top: &[(&str, &str)] = &[("model/weights", "new")];
    support::import_files(&node, "docker.io/library/data:1", &[bottom, top]);
    std::fs::create_dir(node.path("volume")).unwrap();
    let mut config = container("c", &["/bin/busybox", "sleep", "600"]);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(options);
    // What only rules over namespaces of the pod's.
    let capabilities = &mut crate::support::context(&mut config).capabilities;
    capabilities.get_or_insert_default().add_capabilities.push("SYS_ADMIN".to_owned());
    let mapped =
        |mount: v1::Mount| v1::Mount { uid_mappings: range.clone(), gid_mappings: range.clone(), ..mount };
    config.mounts = vec![
        mapped(v1::Mount {
            host_path: node.path("volume").to_string_lossy().into_owned(),
            container_path: "/volume".into(),
            ..Default::default()
        }),
        mapped(v1::Mount {
            image: Some(v1::ImageSpec { image: "docker.io/library/data:1".into(), ..Default::default() }),
            image_sub_path: "model".into(),
            container_path: "/model".into(),
            readonly: true,
            ..Default::default()
        }),
    ];
    let id = client.create(&sandbox, config.clone()).await.unwrap();
    client.start(&id).await.unwrap();
    let script = "/bin/busybox id -u; /bin/busybox cat /proc/self/uid_map; echo x > /volume/x && echo y > /y; \
        /bin/busybox stat -c '%n=%u' / /bin/busybox /volume /volume/x /model/weights /etc/hosts /etc/resolv.conf; \
        /bin/busybox cat /model/weights; echo; /bin/busybox hostname changed && /bin/busybox hostname";
    let said = say(&mut client, &id, script).await;
    println!("{said}");
    for name in
        ["/", "/bin/busybox", "/volume", "/volume/x", "/model/weights", "/etc/hosts", "/etc/resolv.conf"]
    {
        assert!(said.lines().any(|line| line == format!("{name}=0")), "{name}: {said}");
    }
    assert!(said.contains(&FIRST.to_string()) && said.contains("new") && said.contains("changed"), "{said}");
    assert_eq!(std::fs::metadata(node.path("volume/x")).unwrap().uid(), 0);
    let status = client.pod_status(&sandbox).await.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(status.userns_options, Some(user));
    // Mapped otherwise than its pod.
    config.metadata.as_mut().unwrap().name = "other".into();
    config.mounts[0].uid_mappings[0].host_id += 1;
    let refused = client.create(&sandbox, config).await.unwrap_err();
    assert!(refused.message().contains("id mappings"), "{refused}");
    let status = client.runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    assert!(status.runtime_handlers[0].features.unwrap().user_namespaces);
    client.remove_pod(&sandbox).await.unwrap();
}
