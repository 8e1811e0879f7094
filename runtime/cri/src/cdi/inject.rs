//! Edits of CDI devices made to a container's configuration, as the CDI project's own library makes them.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Hook, HookBuilder, HooksBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, Mount, MountBuilder, Spec,
};

use super::model::{self, DeviceNode, Edits};
use crate::error::CriError;
use crate::machine;
use crate::spec::mounts::clean;

/// Makes the edits, in order.
///
/// # Errors
/// A device node that is not there, or an edit that makes no sense.
pub(crate) fn inject(spec: &mut Spec, edits: &[&Edits]) -> Result<(), CriError> {
    for edits in edits {
        add_environment(spec, &edits.env);
        for node in &edits.device_nodes {
            add_device(spec, node)?;
        }
        for mount in &edits.mounts {
            add_mount(spec, mount)?;
        }
        for hook in &edits.hooks {
            add_hook(spec, hook)?;
        }
        add_groups(spec, &edits.additional_gids);
        if let (Some(rdt), Some(linux)) = (&edits.intel_rdt, spec.linux_mut()) {
            linux.set_intel_rdt(Some(rdt.clone()));
        }
    }
    // Parents before children, as everywhere in the table.
    if let Some(mounts) = spec.mounts_mut() {
        mounts.sort_by_key(|mount| mount.destination().components().count());
    }
    Ok(())
}

fn invalid(problem: impl std::fmt::Display) -> CriError {
    CriError::Invalid(format!("CDI device injection failed: {problem}"))
}

fn wrap(error: OciSpecError) -> CriError {
    CriError::failed("CDI device injection failed", error)
}

fn add_environment(spec: &mut Spec, variables: &[String]) {
    let Some(process) = spec.process_mut() else { return };
    let mut environment = process.env().clone().unwrap_or_default();
    for variable in variables {
        let name = variable.split('=').next().unwrap_or_default();
        environment.retain(|known| known.split('=').next() != Some(name));
        environment.push(variable.clone());
    }
    process.set_env(Some(environment));
}

fn add_groups(spec: &mut Spec, groups: &[u32]) {
    let Some(process) = spec.process_mut() else { return };
    let mut user = process.user().clone();
    let mut all = user.additional_gids().clone().unwrap_or_default();
    for group in groups {
        if *group != 0 && !all.contains(group) {
            all.push(*group);
        }
    }
    user.set_additional_gids(Some(all));
    process.set_user(user);
}

fn add_device(spec: &mut Spec, node: &DeviceNode) -> Result<(), CriError> {
    let path = clean(Path::new(&node.path));
    let access = node.permissions.clone().unwrap_or_else(|| "rwm".to_owned());
    let device = device(spec, node, &path)?;
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    if matches!(device.typ(), LinuxDeviceType::B | LinuxDeviceType::C) {
        let rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(device.typ())
            .major(device.major())
            .minor(device.minor())
            .access(access)
            .build()
            .map_err(wrap)?;
        let mut resources = linux.resources().clone().unwrap_or_default();
        let mut rules = resources.devices().clone().unwrap_or_default();
        rules.push(rule);
        resources.set_devices(Some(rules));
        linux.set_resources(Some(resources));
    }
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|known| *known.path() != path);
    devices.push(device);
    linux.set_devices(Some(devices));
    Ok(())
}

/// What the file leaves out is as on the host; the owner is the container's user, who asked for the device.
fn device(spec: &Spec, node: &DeviceNode, path: &Path) -> Result<LinuxDevice, CriError> {
    let host = Path::new(node.host_path.as_deref().unwrap_or(&node.path));
    let kind = match node.kind.as_deref() {
        None | Some("") => None,
        Some("b") => Some(LinuxDeviceType::B),
        Some("c") => Some(LinuxDeviceType::C),
        Some("u") => Some(LinuxDeviceType::U),
        Some("p") => Some(LinuxDeviceType::P),
        Some(other) => {
            return Err(invalid(format_args!("device {}: unknown type {other:?}", node.path)));
        }
    };
    let found = machine::look_up_device(host, path, "rwm");
    let (kind, major, minor) = match (kind, node.major, &found) {
        (Some(LinuxDeviceType::P), ..) => (LinuxDeviceType::P, 0, 0),
        (Some(kind), Some(major), _) => (kind, major, node.minor.unwrap_or_default()),
        (wanted, _, Some(found)) => {
            let kind = if found.block { LinuxDeviceType::B } else { LinuxDeviceType::C };
            if wanted.is_some_and(|wanted| wanted != kind) {
                return Err(invalid(format_args!(
                    "device {} is not of the type that is given",
                    host.display()
                )));
            }
            (kind, node.major.unwrap_or(found.major), node.minor.unwrap_or(found.minor))
        }
        _ => return Err(invalid(format_args!("{} is not a device", host.display()))),
    };
    let user = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    let (uid, gid) = user.unwrap_or_default();
    let mode = node.file_mode.or(found.as_ref().map(|found| found.mode)).unwrap_or(0o666);
    let uid = node.uid.or((uid > 0).then_some(uid)).or(found.as_ref().map(|found| found.uid));
    let gid = node.gid.or((gid > 0).then_some(gid)).or(found.as_ref().map(|found| found.gid));
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(kind)
        .major(major)
        .minor(minor)
        .file_mode(mode)
        .uid(uid.unwrap_or_default())
        .gid(gid.unwrap_or_default())
        .build()
        .map_err(wrap)
}

fn add_mount(spec: &mut Spec, given: &model::Mount) -> Result<(), CriError> {
    let destination = clean(Path::new(&given.container_path));
    let kind = given.kind.clone().filter(|kind| !kind.is_empty()).unwrap_or_else(|| "bind".to_owned());
    let mut options = given.options.clone();
    if kind == "bind" && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("rbind".to_owned());
    }
    let mount: Mount = MountBuilder::default()
        .destination(&destination)
        .source(PathBuf::from(&given.host_path))
        .typ(kind)
        .options(options)
        .build()
        .map_err(wrap)?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|known| *known.destination() != destination);
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn add_hook(spec: &mut Spec, given: &model::Hook) -> Result<(), CriError> {
    let mut builder = HookBuilder::default().path(&given.path);
    if !given.args.is_empty() {
        builder = builder.args(given.args.clone());
    }
    if !given.env.is_empty() {
        builder = builder.env(given.env.clone());
    }
    if let Some(timeout) = given.timeout {
        builder = builder.timeout(timeout);
    }
    let hook = builder.build().map_err(wrap)?;
    let mut hooks = match spec.hooks() {
        Some(hooks) => hooks.clone(),
        None => HooksBuilder::default().build().map_err(wrap)?,
    };
    let with = |known: &Option<Vec<Hook>>| {
        Some(known.iter().flatten().cloned().chain([hook.clone()]).collect::<Vec<_>>())
    };
    match given.hook_name.as_str() {
        "createRuntime" => hooks.set_create_runtime(with(hooks.create_runtime())),
        "createContainer" => hooks.set_create_container(with(hooks.create_container())),
        "startContainer" => hooks.set_start_container(with(hooks.start_container())),
        stage @ ("poststart" | "poststop") => {
            return Err(CriError::Unimplemented(format!(
                "CDI device injection failed: {stage} hooks are not run in pods"
            )));
        }
        // Deprecated by OCI, and where the libraries of some vendors still are.
        "prestart" => hooks.set_prestart(with(hooks.prestart())),
        other => return Err(invalid(format_args!("unknown hook {other:?}"))),
    };
    spec.set_hooks(Some(hooks));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(json: &str) -> Edits {
        serde_json::from_str(json).unwrap()
    }

    fn spec() -> Spec {
        serde_json::from_str(
            r#"{"ociVersion":"1.2.0","process":{"user":{"uid":33,"gid":0},"args":["x"],"cwd":"/","env":["A=1","B=2"]},
            "mounts":[{"destination":"/data/deep","source":"/h","type":"bind"}],
            "linux":{"devices":[{"path":"/dev/zero","type":"c","major":9,"minor":9}],"resources":{"devices":[{"allow":false,"access":"rwm"}]}}}"#,
        )
        .unwrap()
    }

    #[test]
    fn everything_that_a_device_may_change() {
        let mut spec = spec();
        let first = edits(
            r#"{"env":["A=new"],"additionalGids":[0,7],"intelRdt":{"closID":"gold"},
            "deviceNodes":[{"path":"/dev/zero","permissions":"rw"},{"path":"/dev/made","type":"c","major":1,"minor":3,"fileMode":384,"gid":5}]}"#,
        );
        let second = edits(
            r#"{"mounts":[{"hostPath":"/lib/driver","containerPath":"/data","options":["ro"]}],
            "hooks":[{"hookName":"createContainer","path":"/bin/link","args":["link","-x"],"timeout":5}]}"#,
        );
        inject(&mut spec, &[&first, &second]).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.env().as_ref().unwrap(), &["B=2", "A=new"]);
        assert_eq!(process.user().additional_gids().as_ref().unwrap(), &[7]);
        let linux = spec.linux().as_ref().unwrap();
        let devices: Vec<_> = linux.devices().iter().flatten().collect();
        assert_eq!(devices.len(), 2);
        // The host's numbers, the container's user.
        assert_eq!((devices[0].major(), devices[0].minor(), devices[0].uid()), (1, 5, Some(33)));
        assert_eq!((devices[1].minor(), devices[1].file_mode(), devices[1].gid()), (3, Some(0o600), Some(5)));
        let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
        let last: Vec<_> =
            rules[1..].iter().map(|rule| (rule.minor(), rule.access().clone().unwrap())).collect();
        assert_eq!(last, [(Some(5), "rw".to_owned()), (Some(3), "rwm".to_owned())]);
        let mounts = spec.mounts().as_ref().unwrap();
        assert_eq!(mounts[0].destination(), Path::new("/data"));
        assert_eq!(mounts[0].options().as_ref().unwrap(), &["ro", "rbind"]);
        let hooks = spec.hooks().as_ref().unwrap().create_container().as_ref().unwrap();
        assert_eq!((hooks[0].path().as_path(), hooks[0].timeout()), (Path::new("/bin/link"), Some(5)));
        assert!(linux.intel_rdt().is_some());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (json, word) in [
            (r#"{"deviceNodes":[{"path":"/dev/no-such-thing"}]}"#, "/dev/no-such-thing"),
            (r#"{"deviceNodes":[{"path":"/dev/null","type":"b"}]}"#, "type"),
            (r#"{"deviceNodes":[{"path":"/dev/null","type":"x"}]}"#, "\"x\""),
            (r#"{"hooks":[{"hookName":"never","path":"/bin/true"}]}"#, "never"),
        ] {
            let error = inject(&mut spec(), &[&edits(json)]).unwrap_err().to_string();
            assert!(error.starts_with("CDI device injection failed") && error.contains(word), "{error}");
        }
    }
}
