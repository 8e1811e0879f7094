//! What a container may do: privileged, capabilities, root file system, paths, seccomp, no_new_privs, LSMs.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use orlop_cri::v1;
use orlop_cri::v1::security_profile::ProfileType;
use serde_json::json;

use crate::spec::{Test, refused, security, skip};

crate::specs![
    root_is_writable,
    root_is_read_only,
    privileged,
    sys_of_the_privileged,
    not_privileged,
    privileged_in_a_plain_pod,
    capability_added,
    capability_dropped,
    all_capabilities_added,
    all_capabilities_dropped,
    ambient_capabilities,
    unknown_capability,
    default_capabilities,
    masked_paths,
    read_only_paths,
    no_new_privileges,
    new_privileges,
    seccomp_unconfined,
    seccomp_default,
    seccomp_localhost,
    seccomp_absent,
    seccomp_missing_profile,
    seccomp_broken_profile,
    seccomp_allows_host_name,
    seccomp_blocks_host_name,
    seccomp_does_not_bind_the_privileged,
    seccomp_binds_exec,
    apparmor_of_an_unloaded_profile,
    apparmor_deprecated_field,
    apparmor_enforced,
    selinux,
    devices_are_few,
    proc_and_sys_are_safe,
];

async fn container(
    t: &Test,
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> anyhow::Result<String> {
    let pod = t.pod().await?;
    t.running_with(&pod, |config| change(security(config))).await
}

async fn field(t: &Test, id: &str, name: &str) -> anyhow::Result<String> {
    let line = t.sh(id, &format!("grep ^{name}: /proc/1/status")).await?;
    Ok(line.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

async fn capabilities(t: &Test, id: &str, set: &str) -> anyhow::Result<u64> {
    Ok(u64::from_str_radix(&field(t, id, set).await?, 16)?)
}

const NET_ADMIN: u64 = 1 << 12;
const NET_BIND_SERVICE: u64 = 1 << 10;
const CHOWN: u64 = 1;
const SYS_ADMIN: u64 = 1 << 21;
/// What docker and containerd give: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW
/// SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

async fn root_is_writable(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |_| {}).await?;
    t.sh(&id, "touch /file").await.map(drop)
}

async fn root_is_read_only(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |context| context.readonly_rootfs = true).await?;
    let done = t.exec(&id, &["touch", "/file"]).await?;
    ensure!(done.code != 0 && done.stderr.contains("Read-only file system"), "{done:?}");
    t.sh(&id, "echo fine > /dev/shm/file").await.map(drop)
}

async fn privileged(t: &Test) -> anyhow::Result<()> {
    let pod = t.privileged_pod().await?;
    let id = t.running_with(&pod, |config| security(config).privileged = true).await?;
    t.sh(&id, "ip link add dummy-of-test type bridge && ip link delete dummy-of-test").await?;
    let own = std::fs::read_to_string("/proc/self/status")?;
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).context("CapBnd")?;
    ensure!(capabilities(t, &id, "CapEff").await? == u64::from_str_radix(own, 16)?, "not all capabilities");
    ensure!(t.exec(&id, &["test", "-e", "/dev/kmsg"]).await?.code == 0, "not the machine's devices");
    Ok(())
}

async fn sys_of_the_privileged(t: &Test) -> anyhow::Result<()> {
    let pod = t.privileged_pod().await?;
    let id = t.running_with(&pod, |config| security(config).privileged = true).await?;
    let sys = t.sh(&id, "grep ' /sys ' /proc/mounts").await?;
    ensure!(sys.contains(" rw"), "{sys}");
    Ok(())
}

async fn not_privileged(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |_| {}).await?;
    let done = t.exec(&id, &["ip", "link", "add", "dummy-of-test", "type", "bridge"]).await?;
    ensure!(done.code != 0, "{done:?}");
    let done = t.exec(&id, &["mount", "-t", "tmpfs", "none", "/tmp"]).await?;
    ensure!(done.code != 0, "{done:?}");
    Ok(())
}

/// A sandbox that was not announced as privileged holds no privileged container, or holds it as what it is.
async fn privileged_in_a_plain_pod(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["sleep", "100"]);
    security(&mut config).privileged = true;
    let (_, said) = refused("a privileged container in a plain pod", t.create(&pod, config).await)?;
    ensure!(said.contains("privileged"), "{said}");
    Ok(())
}

fn adding(names: &[&str]) -> Option<v1::Capability> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Some(v1::Capability { add_capabilities: names, ..Default::default() })
}

fn dropping(names: &[&str]) -> Option<v1::Capability> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Some(v1::Capability { drop_capabilities: names, ..Default::default() })
}

async fn capability_added(t: &Test) -> anyhow::Result<()> {
    for name in ["NET_ADMIN", "CAP_NET_ADMIN"] {
        let Ok(id) = container(t, |context| context.capabilities = adding(&[name])).await else {
            ensure!(name == "CAP_NET_ADMIN", "NET_ADMIN was refused");
            continue;
        };
        if name == "NET_ADMIN" {
            ensure!(capabilities(t, &id, "CapEff").await? & NET_ADMIN != 0, "{name} is missing");
            t.sh(&id, "ip link set lo down").await?;
        }
    }
    Ok(())
}

async fn capability_dropped(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |context| context.capabilities = dropping(&["CHOWN"])).await?;
    ensure!(capabilities(t, &id, "CapBnd").await? & CHOWN == 0, "CHOWN is still there");
    let done = t.exec(&id, &["sh", "-c", "touch /file && chown 1 /file"]).await?;
    ensure!(done.code != 0, "{done:?}");
    Ok(())
}

async fn all_capabilities_added(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |context| context.capabilities = adding(&["ALL"])).await?;
    let has = capabilities(t, &id, "CapEff").await?;
    ensure!(has & SYS_ADMIN != 0 && has & NET_ADMIN != 0, "{has:x}");
    let id = container(t, |context| {
        context.capabilities = Some(v1::Capability {
            add_capabilities: vec!["ALL".into()],
            drop_capabilities: vec!["NET_ADMIN".into()],
            ..Default::default()
        });
    })
    .await?;
    let has = capabilities(t, &id, "CapEff").await?;
    ensure!(has & SYS_ADMIN != 0 && has & NET_ADMIN == 0, "{has:x}");
    Ok(())
}

async fn all_capabilities_dropped(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |context| context.capabilities = dropping(&["ALL"])).await?;
    for set in ["CapEff", "CapPrm", "CapBnd", "CapInh"] {
        let has = capabilities(t, &id, set).await?;
        ensure!(has == 0, "{set} {has:x}");
    }
    let id = container(t, |context| {
        context.capabilities = Some(v1::Capability {
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        });
    })
    .await?;
    let has = capabilities(t, &id, "CapEff").await?;
    ensure!(has == NET_BIND_SERVICE, "{has:x}");
    Ok(())
}

async fn ambient_capabilities(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |context| {
        context.run_as_user = Some(v1::Int64Value { value: 1000 });
        context.capabilities = Some(v1::Capability {
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
            ..Default::default()
        });
    })
    .await?;
    let has = (capabilities(t, &id, "CapAmb").await?, capabilities(t, &id, "CapEff").await?);
    ensure!(has == (NET_BIND_SERVICE, NET_BIND_SERVICE), "{has:x?}");
    Ok(())
}

async fn unknown_capability(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    security(&mut config).capabilities = adding(&["NO_SUCH_CAPABILITY"]);
    let made = async {
        let id = t.create(&pod, config).await?;
        t.cri.start(&id).await
    };
    let (_, said) = refused("an unknown capability", made.await)?;
    ensure!(said.contains("NO_SUCH_CAPABILITY"), "{said}");
    Ok(())
}

async fn default_capabilities(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |_| {}).await?;
    for (set, wanted) in
        [("CapEff", DEFAULT_CAPABILITIES), ("CapBnd", DEFAULT_CAPABILITIES), ("CapInh", 0), ("CapAmb", 0)]
    {
        let has = capabilities(t, &id, set).await?;
        ensure!(has == wanted, "{set} is {has:x}, not {wanted:x}");
    }
    Ok(())
}

async fn masked_paths(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |context| {
        context.masked_paths = ["/etc/passwd", "/www", "/no/such/path"].map(str::to_owned).to_vec();
    })
    .await?;
    ensure!(t.sh(&id, "cat /etc/passwd").await?.is_empty(), "the file can be read");
    ensure!(t.sh(&id, "ls /www").await?.is_empty(), "the directory can be read");
    let done = t.exec(&id, &["touch", "/www/file"]).await?;
    ensure!(done.code != 0, "{done:?}");
    Ok(())
}

async fn read_only_paths(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |context| context.readonly_paths = vec!["/tmp".into(), "/no/such".into()]).await?;
    let done = t.exec(&id, &["touch", "/tmp/file"]).await?;
    ensure!(done.code != 0 && done.stderr.contains("Read-only"), "{done:?}");
    t.sh(&id, "ls /tmp").await.map(drop)
}

/// The image's `su` has the set-uid bit, and root has no password.
async fn becomes_root(t: &Test, no_new_privs: bool) -> anyhow::Result<(crate::client::Exec, String)> {
    let id = container(t, |context| {
        context.no_new_privs = no_new_privs;
        context.run_as_user = Some(v1::Int64Value { value: 1000 });
    })
    .await?;
    let done = t.exec(&id, &["su", "-c", "id -u", "root"]).await?;
    Ok((done, field(t, &id, "NoNewPrivs").await?))
}

async fn no_new_privileges(t: &Test) -> anyhow::Result<()> {
    let (done, flag) = becomes_root(t, true).await?;
    ensure!(done.stdout != "0\n" && flag == "1", "{flag} {done:?}");
    Ok(())
}

async fn new_privileges(t: &Test) -> anyhow::Result<()> {
    let (done, flag) = becomes_root(t, false).await?;
    ensure!(done.stdout == "0\n" && flag == "0", "{flag} {done:?}");
    Ok(())
}

fn profile(kind: ProfileType, reference: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: reference.to_owned() })
}

/// A profile that forbids some system calls.
fn blocking(t: &Test, calls: &[&str]) -> anyhow::Result<PathBuf> {
    let path = t.directory("profiles")?.join("profile.json");
    let text = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": calls, "action": "SCMP_ACT_ERRNO"}],
    });
    std::fs::write(&path, text.to_string())?;
    Ok(path)
}

async fn seccomp_mode(t: &Test, given: Option<v1::SecurityProfile>, wanted: &str) -> anyhow::Result<()> {
    let id = container(t, |context| context.seccomp = given).await?;
    let mode = field(t, &id, "Seccomp").await?;
    ensure!(mode == wanted, "mode {mode}");
    Ok(())
}

async fn seccomp_unconfined(t: &Test) -> anyhow::Result<()> {
    seccomp_mode(t, profile(ProfileType::Unconfined, ""), "0").await
}

async fn seccomp_default(t: &Test) -> anyhow::Result<()> {
    seccomp_mode(t, profile(ProfileType::RuntimeDefault, ""), "2").await?;
    let id = container(t, |context| context.seccomp = profile(ProfileType::RuntimeDefault, "")).await?;
    let done = t.exec(&id, &["unshare", "-U", "true"]).await?;
    ensure!(done.code != 0, "a user namespace was made: {done:?}");
    Ok(())
}

async fn seccomp_localhost(t: &Test) -> anyhow::Result<()> {
    let path = blocking(t, &["chmod", "fchmod", "fchmodat", "fchmodat2"])?;
    let given = profile(ProfileType::Localhost, &path.to_string_lossy());
    let id = container(t, |context| context.seccomp = given).await?;
    let done = t.exec(&id, &["chmod", "400", "/"]).await?;
    ensure!(done.code != 0 && done.stderr.contains("Operation not permitted"), "{done:?}");
    Ok(())
}

async fn seccomp_absent(t: &Test) -> anyhow::Result<()> {
    seccomp_mode(t, None, "0").await
}

async fn refused_profile(t: &Test, path: &str) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    security(&mut config).seccomp = profile(ProfileType::Localhost, path);
    let (_, said) = refused("a profile that cannot be read", t.create(&pod, config).await)?;
    ensure!(said.contains("seccomp") || said.contains(path), "{said}");
    Ok(())
}

async fn seccomp_missing_profile(t: &Test) -> anyhow::Result<()> {
    let path = t.directory("profiles")?.join("missing.json");
    refused_profile(t, &path.to_string_lossy()).await
}

async fn seccomp_broken_profile(t: &Test) -> anyhow::Result<()> {
    let path = t.directory("profiles")?.join("broken.json");
    std::fs::write(&path, "{ no JSON")?;
    refused_profile(t, &path.to_string_lossy()).await
}

async fn sets_host_name(
    t: &Test,
    seccomp: Option<v1::SecurityProfile>,
    privileged: bool,
) -> anyhow::Result<bool> {
    let pod = if privileged { t.privileged_pod().await? } else { t.pod().await? };
    let id = t
        .running_with(&pod, |config| {
            let context = security(config);
            context.seccomp = seccomp;
            context.privileged = privileged;
            context.capabilities = (!privileged).then(|| adding(&["SYS_ADMIN"])).flatten();
        })
        .await?;
    Ok(t.exec(&id, &["hostname", "another-name"]).await?.code == 0)
}

async fn seccomp_allows_host_name(t: &Test) -> anyhow::Result<()> {
    ensure!(sets_host_name(t, profile(ProfileType::Unconfined, ""), false).await?, "not allowed");
    Ok(())
}

async fn seccomp_blocks_host_name(t: &Test) -> anyhow::Result<()> {
    let path = blocking(t, &["sethostname"])?;
    let given = profile(ProfileType::Localhost, &path.to_string_lossy());
    ensure!(!sets_host_name(t, given, false).await?, "not blocked");
    Ok(())
}

async fn seccomp_does_not_bind_the_privileged(t: &Test) -> anyhow::Result<()> {
    let path = blocking(t, &["sethostname"])?;
    let given = profile(ProfileType::Localhost, &path.to_string_lossy());
    ensure!(sets_host_name(t, given, true).await?, "blocked");
    Ok(())
}

async fn seccomp_binds_exec(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |context| context.seccomp = profile(ProfileType::RuntimeDefault, "")).await?;
    let seen = t.sh(&id, "grep ^Seccomp: /proc/self/status").await?;
    ensure!(seen.ends_with('2'), "{seen}");
    Ok(())
}

fn apparmor_here() -> anyhow::Result<()> {
    match std::fs::read_to_string("/sys/module/apparmor/parameters/enabled") {
        Ok(text) if text.starts_with('Y') => Ok(()),
        _ => skip("this kernel has no AppArmor"),
    }
}

async fn apparmor_of_an_unloaded_profile(t: &Test) -> anyhow::Result<()> {
    apparmor_here()?;
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    security(&mut config).apparmor = profile(ProfileType::Localhost, "no-such-profile");
    refused("an unloaded profile", t.create(&pod, config).await).map(drop)
}

#[expect(deprecated, reason = "kubelets before 1.30 use the old field")]
async fn apparmor_deprecated_field(t: &Test) -> anyhow::Result<()> {
    apparmor_here()?;
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    security(&mut config).apparmor_profile = "localhost/no-such-profile".into();
    refused("an unloaded profile", t.create(&pod, config).await).map(drop)
}

async fn apparmor_enforced(t: &Test) -> anyhow::Result<()> {
    apparmor_here()?;
    let file = t.directory("profiles")?.join("deny-write");
    let text = "profile orlop-deny-write flags=(attach_disconnected) {\n  file,\n  deny /tmp/** w,\n}\n";
    std::fs::write(&file, text)?;
    let path = file.to_str().context("UTF-8")?;
    t.host().must(&["apparmor_parser", "-r", "-W", path])?;
    let given = profile(ProfileType::Localhost, "orlop-deny-write");
    let id = container(t, |context| context.apparmor = given).await?;
    let done = t.exec(&id, &["touch", "/tmp/file"]).await?;
    t.host().must(&["apparmor_parser", "-R", path])?;
    ensure!(done.code != 0, "{done:?}");
    Ok(())
}

async fn selinux(t: &Test) -> anyhow::Result<()> {
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return skip("this kernel has no SELinux");
    }
    let id = container(t, |context| {
        context.selinux_options = Some(v1::SeLinuxOption { level: "s0:c4,c5".into(), ..Default::default() });
    })
    .await?;
    let label = t.sh(&id, "cat /proc/1/attr/current").await?;
    ensure!(label.contains("s0:c4,c5"), "{label}");
    Ok(())
}

async fn devices_are_few(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |_| {}).await?;
    let seen = t.sh(&id, "cd /dev && ls -1").await?;
    for name in
        ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr", "shm"]
    {
        ensure!(seen.lines().any(|line| line == name), "{name} is missing in {seen}");
    }
    for name in ["kmsg", "mem", "vda", "loop-control", "fuse"] {
        ensure!(!seen.lines().any(|line| line == name), "{name} is in the container");
    }
    // The device cgroup holds also against a node that the container makes itself.
    let done = t.exec(&id, &["sh", "-c", "mknod /tmp/fuse c 10 229 && : < /tmp/fuse"]).await?;
    ensure!(done.code != 0, "a device of the machine was opened: {done:?}");
    Ok(())
}

async fn proc_and_sys_are_safe(t: &Test) -> anyhow::Result<()> {
    let id = container(t, |context| {
        context.masked_paths = vec!["/proc/kcore".into(), "/proc/keys".into()];
        context.readonly_paths = vec!["/proc/sys".into(), "/proc/sysrq-trigger".into()];
    })
    .await?;
    for script in [
        "echo 1 > /proc/sys/kernel/panic",
        "echo h > /proc/sysrq-trigger",
        "echo 0 > /sys/kernel/mm/transparent_hugepage/enabled",
        "if test -d /sys/fs/cgroup/pids; then mkdir /sys/fs/cgroup/pids/escape; else mkdir /sys/fs/cgroup/escape; fi",
    ] {
        let done = t.exec(&id, &["sh", "-c", script]).await?;
        ensure!(done.code != 0, "{script} was allowed");
    }
    ensure!(t.sh(&id, "cat /proc/keys").await?.is_empty(), "/proc/keys can be read");
    Ok(())
}
