//! Ways out of a container that runtimes have had to close. A runtime may refuse such a container or run it; what is outside stays as it is.
//!
//! | class | known cases | tests |
//! |---|---|---|
//! | the runtime's own file | CVE-2019-5736 | `the_runtimes_file_*` |
//! | links and mounts that change on the way | CVE-2019-19921, CVE-2021-30465, CVE-2023-27561, CVE-2024-45310 | `links_*` |
//! | descriptors and directories from outside | CVE-2024-21626 | `no_directory_*`, `no_descriptor_*` |
//! | masks made of something else than the null device | CVE-2025-31133 | `masks_*` |
//! | terminals on top of something else | CVE-2025-52565 | `a_terminal_*` |
//! | writes to a false /proc | CVE-2019-16884, CVE-2023-28642, CVE-2025-52881 | `a_false_proc_*` |
//! | links made below a false /dev | CVE-2026-41579, CVE-2026-47766 | `device_links_*` |
//! | inheritable capabilities | CVE-2022-29162 | `nothing_is_inheritable_*` |
//! | release_agent of v1 | CVE-2022-0492 | `no_release_agent_*` |

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use orlop_conformance_oci::{Rig, add_mount, differs, grant, is_unified, skip};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

/// A directory outside of the container with one file, and the look whether it is as it was.
struct Outside(PathBuf);

impl Outside {
    fn new(rig: &Rig) -> Self {
        let path = rig.path("outside");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("secret"), "of the machine").unwrap();
        Self(path)
    }

    #[track_caller]
    fn assert_untouched(&self) {
        let names: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(fs::read_to_string(self.0.join("secret")).unwrap(), "of the machine");
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains(self.0.to_str().unwrap()), "{mounts}");
    }
}

/// The subject's program becomes a copy that may be lost.
fn with_own_program(rig: &mut Rig) -> (PathBuf, Vec<u8>) {
    let copy = rig.path("program");
    fs::create_dir(&copy).unwrap();
    let copy = copy.join(rig.subject.program.file_name().unwrap());
    fs::copy(&rig.subject.program, &copy).unwrap();
    rig.subject.program = copy.clone();
    let bytes = fs::read(&copy).unwrap();
    (copy, bytes)
}

/// Holds every foreign program open, and writes to it through that descriptor once its process is gone.
const OVERWRITE: &str = "echo > /tmp/ready; while [ ! -e /tmp/stop ]; do for p in /proc/[0-9]*; do \
    case $(readlink $p/exe) in '' | */busybox) continue;; esac; \
    { echo seen >> /tmp/seen; n=0; while [ $n -lt 30 ]; do echo overwritten >> /proc/self/fd/3; n=$((n+1)); done; } 3< $p/exe; \
    done; done 2>/dev/null; sleep 1000";

#[test]
fn the_runtimes_file_is_not_written_by_those_that_exec_joins() {
    let Some(mut rig) = Rig::new() else { return };
    let (copy, before) = with_own_program(&mut rig);
    fs::write(rig.rootfs().join("bin/script"), "#!/proc/self/exe\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(rig.rootfs().join("bin/script"), executable).unwrap();
    rig.configure(|config| {
        grant(config, &["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_KILL"]);
        config["process"]["args"] = json!(["sh", "-c", OVERWRITE]);
    });
    rig.up();
    orlop_conformance_oci::wait_for("it attacks", || rig.rootfs().join("tmp/ready").exists());
    for _ in 0..4 {
        // The runtime's own program inside of the container, by name and as an interpreter; what comes of it is of no interest.
        for program in [&["/proc/self/exe", "--help"][..], &["/bin/script"], &["true"]] {
            let _ = rig.exec(&[], program);
        }
    }
    fs::write(rig.rootfs().join("tmp/stop"), "").unwrap();
    rig.call(&["delete", "--force", &rig.id]).ok();
    assert!(fs::read(copy).unwrap() == before, "the runtime's file was changed from inside of the container");
}

#[test]
fn the_runtimes_file_is_not_the_containers_first_program() {
    let Some(mut rig) = Rig::new() else { return };
    let (copy, before) = with_own_program(&mut rig);
    fs::write(rig.rootfs().join("bin/script"), "#!/proc/self/exe\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(rig.rootfs().join("bin/script"), executable).unwrap();
    for program in [&["/proc/self/exe", "--help"][..], &["/bin/script"]] {
        rig.configure_program(program);
        // It says no, or runs a file that cannot be written.
        let _ = rig.run();
        let bundle = rig.bundle();
        let _ = rig.call(&["delete", "--force", &rig.id]);
        assert!(bundle.exists() && fs::read(&copy).unwrap() == before);
    }
    rig.assert_nothing_left();
}

#[test]
fn links_in_place_of_mount_points_lead_inside() {
    for name in ["data", "proc", "sys", "dev", "etc"] {
        let Some(rig) = Rig::new() else { return };
        let outside = Outside::new(&rig);
        let place = rig.rootfs().join(name);
        let _ = fs::remove_dir(&place);
        std::os::unix::fs::symlink(&outside.0, &place).unwrap();
        if name == "dev" && differs("device links stay inside when /dev is a link") {
            continue;
        }
        let _ = rig.shell("true", |config| {
            add_mount(config, json!({"destination": "/data/deep", "type": "tmpfs", "source": "tmpfs"}));
            add_mount(config, json!({"destination": "/etc/secret", "type": "bind", "source": "/dev/null", "options": ["bind"]}));
        });
        outside.assert_untouched();
        rig.assert_nothing_left();
    }
}

#[test]
fn links_upwards_lead_inside() {
    let Some(rig) = Rig::new() else { return };
    let outside = Outside::new(&rig);
    std::os::unix::fs::symlink("../../outside", rig.rootfs().join("up")).unwrap();
    for destination in ["/up/deep", "/../../outside/deep", "/tmp/../../../outside/deep"] {
        let _ = rig.shell("true", |config| {
            add_mount(config, json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}));
        });
        outside.assert_untouched();
    }
    rig.assert_nothing_left();
}

/// Exchanges two names again and again until it is dropped.
struct Swapper<'a>(&'a AtomicBool);

impl Drop for Swapper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn while_swapping(first: &Path, second: &Path, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, first, CWD, second, RenameFlags::EXCHANGE);
            }
        });
        let _end = Swapper(&stop);
        work();
    });
}

#[test]
fn links_that_come_and_go_lead_inside() {
    for name in ["data", "dev", "proc"] {
        let Some(rig) = Rig::new() else { return };
        let known = match name {
            "dev" => "device links stay inside while /dev changes",
            _ => "mount points stay inside while links change",
        };
        if differs(known) {
            continue;
        }
        let outside = Outside::new(&rig);
        let (place, other) = (rig.rootfs().join(name), rig.rootfs().join("swapped"));
        fs::create_dir_all(place.join("deep")).unwrap();
        std::os::unix::fs::symlink(&outside.0, &other).unwrap();
        rig.configure(|config| {
            config["process"]["args"] = json!(["true"]);
            add_mount(config, json!({"destination": "/data/deep", "type": "tmpfs", "source": "tmpfs"}));
            add_mount(config, json!({"destination": "/data/deep/er", "type": "tmpfs", "source": "tmpfs"}));
        });
        while_swapping(&place, &other, || {
            for _ in 0..8 {
                let _ = rig.run();
                let _ = rig.call(&["delete", "--force", &rig.id]);
            }
        });
        outside.assert_untouched();
        rig.assert_nothing_left();
    }
}

#[test]
fn no_directory_from_outside_is_a_working_directory() {
    let Some(rig) = Rig::new() else { return };
    let outside = Outside::new(&rig);
    // From a leaked directory enough steps up lead to the machine's root.
    let line = format!("cat ../../../../../../../../..{}/secret; cat secret", outside.0.display());
    let place = fs::File::open(&outside.0).unwrap();
    for number in 3..=12 {
        let called =
            rig.shell(&line, |config| config["process"]["cwd"] = format!("/proc/self/fd/{number}").into());
        assert!(!called.out.contains("machine"), "{number}: {}", called.out);
    }
    drop(place);
    rig.configure(|_| {});
    rig.up();
    for number in 3..=12 {
        let called = rig.exec(&["--cwd", &format!("/proc/self/fd/{number}")], &["sh", "-c", &line]);
        assert!(!called.out.contains("machine"), "{number}: {}", called.out);
    }
    outside.assert_untouched();
}

#[test]
fn no_descriptor_from_outside_comes_in() {
    let Some(rig) = Rig::new() else { return };
    let look = "for f in /proc/self/fd/*; do echo \"${f##*/} $(readlink $f)\"; done; true";
    let check = |out: &str| {
        for line in out.lines().filter(|line| line.contains(' ')) {
            let (number, target) = line.split_once(' ').unwrap();
            let standard = ["0", "1", "2"].contains(&number);
            assert!(standard || target.starts_with("/proc") || target.is_empty(), "{out}");
        }
    };
    check(&rig.shell(look, |_| {}).ok());
    rig.configure(|_| {});
    rig.up();
    check(&rig.exec(&[], &["sh", "-c", look]).ok());
}

#[test]
fn masks_are_made_of_the_null_device_or_nothing() {
    let Some(rig) = Rig::new() else { return };
    // Without a /dev of its own the container has the image's.
    fs::create_dir(rig.rootfs().join("dev")).unwrap();
    fs::write(rig.rootfs().join("target"), "open").unwrap();
    std::os::unix::fs::symlink("/target", rig.rootfs().join("dev/null")).unwrap();
    if differs("masks with a false null device") {
        return;
    }
    let called = rig.shell("cat /proc/uptime; echo through > /proc/uptime", |config| {
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        config["linux"]["maskedPaths"] = json!(["/proc/uptime"]);
    });
    assert!(called.out.is_empty(), "{}", called.out);
    assert_eq!(fs::read_to_string(rig.rootfs().join("target")).unwrap(), "open");
    rig.assert_nothing_left();
}

#[test]
fn a_terminal_is_not_put_on_top_of_something_else() {
    let Some(rig) = Rig::new() else { return };
    let outside = Outside::new(&rig);
    fs::create_dir(rig.rootfs().join("dev")).unwrap();
    let link = format!("../../../outside{}", "/secret");
    std::os::unix::fs::symlink(link, rig.rootfs().join("dev/console")).unwrap();
    rig.configure(|config| {
        config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev");
        config["process"]["terminal"] = true.into();
        config["process"]["args"] = json!(["sh", "-c", "echo written > /dev/console; cat /dev/console"]);
    });
    let socket = rig.path("console.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (bundle, socket) = (rig.bundle(), socket.to_str().unwrap().to_owned());
    let created = rig.call(&["create", "-b", bundle.to_str().unwrap(), "--console-socket", &socket, &rig.id]);
    if created.code == 0 {
        rig.verb("start").ok();
        rig.wait_for_status("stopped");
    }
    let _ = rig.call(&["delete", "--force", &rig.id]);
    outside.assert_untouched();
}

#[test]
fn a_terminal_of_exec_is_a_terminal() {
    let Some(rig) = Rig::new() else { return };
    if differs("exec refuses a false /dev/pts") {
        return;
    }
    let fake = rig.path("fake");
    fs::create_dir(&fake).unwrap();
    fs::write(fake.join("ptmx"), "no terminal").unwrap();
    fs::write(fake.join("0"), "no terminal").unwrap();
    rig.configure(|config| {
        config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev/pts");
        add_mount(
            config,
            json!({"destination": "/dev/pts", "type": "bind", "source": fake, "options": ["bind"]}),
        );
    });
    rig.up();
    let called = rig.exec(&["--tty"], &["sh", "-c", "echo written > /dev/tty"]);
    assert_ne!(called.code, 0);
    assert_eq!(fs::read_to_string(fake.join("ptmx")).unwrap(), "no terminal");
}

#[test]
fn a_false_proc_gets_no_writes() {
    let Some(rig) = Rig::new() else { return };
    let fake = rig.path("fake");
    for directory in ["sys/net/ipv4", "self/attr", "thread-self/attr", "self/fd"] {
        fs::create_dir_all(fake.join(directory)).unwrap();
    }
    let files =
        ["sys/net/ipv4/ip_default_ttl", "self/attr/exec", "thread-self/attr/exec", "self/oom_score_adj"];
    for file in files {
        fs::write(fake.join(file), "untouched").unwrap();
    }
    let before = fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
    for as_link in [false, true] {
        if as_link {
            let _ = fs::remove_dir(rig.rootfs().join("proc"));
            std::os::unix::fs::symlink("/fake", rig.rootfs().join("proc")).unwrap();
            fs::create_dir_all(rig.rootfs().join("fake/sys/net/ipv4")).unwrap();
            fs::write(rig.rootfs().join("fake/sys/net/ipv4/ip_default_ttl"), "untouched").unwrap();
        }
        let _ = rig.shell("true", |config| {
            if !as_link {
                config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/proc");
                add_mount(
                    config,
                    json!({"destination": "/proc", "type": "bind", "source": fake, "options": ["rbind"]}),
                );
            }
            config["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "33"});
            config["process"]["oomScoreAdj"] = 500.into();
        });
        for file in files {
            assert_eq!(fs::read_to_string(fake.join(file)).unwrap(), "untouched", "{file}");
        }
        if as_link {
            let inner = rig.rootfs().join("fake/sys/net/ipv4/ip_default_ttl");
            assert_eq!(fs::read_to_string(inner).unwrap(), "untouched");
        }
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap(), before);
        rig.assert_nothing_left();
    }
}

#[test]
fn a_false_proc_below_a_real_one_is_refused_or_harmless() {
    let Some(rig) = Rig::new() else { return };
    let fake = rig.path("fake");
    fs::create_dir(&fake).unwrap();
    for destination in ["/proc/self", "/proc/sys", "/proc/1", "/proc/thread-self/attr"] {
        let _ = rig.shell("true", |config| {
            add_mount(
                config,
                json!({"destination": destination, "type": "bind", "source": fake, "options": ["rbind"]}),
            );
            config["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "33"});
        });
        assert_eq!(fs::read_dir(&fake).unwrap().count(), 0, "{destination}");
        let _ = rig.call(&["delete", "--force", &rig.id]);
    }
    rig.assert_nothing_left();
}

#[test]
fn device_links_are_not_made_elsewhere() {
    let Some(rig) = Rig::new() else { return };
    if differs("device links stay inside when /dev is a link") {
        return;
    }
    let outside = Outside::new(&rig);
    let _ = fs::remove_dir(rig.rootfs().join("dev"));
    for target in [outside.0.to_str().unwrap(), "../../outside", "../../../../../../../../tmp"] {
        let _ = fs::remove_file(rig.rootfs().join("dev"));
        std::os::unix::fs::symlink(target, rig.rootfs().join("dev")).unwrap();
        for with_mount in [true, false] {
            let _ = rig.shell("true", |config| {
                if !with_mount {
                    let is_below = |mount: &serde_json::Value| {
                        mount["destination"].as_str().unwrap().starts_with("/dev")
                    };
                    config["mounts"].as_array_mut().unwrap().retain(|mount| !is_below(mount));
                }
                config["linux"]["devices"] =
                    json!([{"path": "/dev/orlop-escaped", "type": "c", "major": 1, "minor": 3}]);
            });
            outside.assert_untouched();
            for name in ["ptmx", "fd", "stdin", "core", "orlop-escaped", "null"] {
                assert!(fs::symlink_metadata(Path::new("/tmp").join(name)).is_err(), "/tmp/{name}");
            }
        }
    }
    rig.assert_nothing_left();
}

#[test]
fn nothing_is_inheritable_that_was_not_asked_for() {
    let Some(rig) = Rig::new() else { return };
    rig.configure(|config| grant(config, &["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]));
    rig.up();
    let look = ["grep", "-E", "CapInh|CapAmb", "/proc/self/status", "/proc/1/status"];
    for options in [&[][..], &["--cap", "CAP_NET_RAW"]] {
        let out = rig.exec(options, &look).ok();
        assert_eq!(out.lines().count(), 4, "{out}");
        assert!(out.lines().all(|line| line.ends_with("0000000000000000")), "{out}");
    }
}

#[test]
fn no_release_agent_is_in_reach() {
    let Some(rig) = Rig::new() else { return };
    if is_unified() {
        skip("release_agent is a thing of cgroup v1");
        return;
    }
    let line = "find /sys/fs/cgroup -name release_agent; for d in /sys/fs/cgroup/*; do echo /x > $d/release_agent; done 2>/dev/null; \
        mkdir /tmp/c; mount -t cgroup -o memory cgroup /tmp/c && echo mounted";
    for options in [json!(["ro"]), json!(["rw"])] {
        let called = rig.shell(line, |config| {
            add_mount(config, json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}));
        });
        let _ = fs::remove_dir(rig.rootfs().join("tmp/c"));
        assert!(!called.out.contains("release_agent") && !called.out.contains("mounted"), "{}", called.out);
    }
    rig.assert_nothing_left();
}
