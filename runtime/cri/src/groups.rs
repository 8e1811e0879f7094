//! What the control groups of a pod are called, with either driver. Pure.

use orlop_oci::systemd::slice_path;

use crate::config::CgroupDriver;
use crate::error::CriError;
use crate::model::Sandbox;

/// Parents of pods whose kubelet names none.
const PARENT: &str = "/orlop";
const SLICE: &str = "orlop.slice";

/// One control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// In the form of `linux.cgroupsPath`: a path, or `slice:prefix:name`.
    pub named: String,
    /// Below each hierarchy's root.
    pub path: String,
}

impl Sandbox {
    /// The group that the pod's containers live below.
    pub(crate) fn cgroup_parent(&self) -> String {
        if self.systemd {
            let path = slice_path(self.slice()).unwrap_or_default();
            return path.to_string_lossy().trim_end_matches('/').to_owned();
        }
        match self.wanted_parent() {
            "" => PARENT.to_owned(),
            parent => parent.to_owned(),
        }
    }

    fn wanted_parent(&self) -> &str {
        let parent = self.config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        parent.trim_end_matches('/')
    }

    /// The kubelet gives a slice with those that it is in, which its name tells anyway.
    fn slice(&self) -> &str {
        match self.wanted_parent().rsplit('/').next() {
            None | Some("") => SLICE,
            Some(slice) => slice,
        }
    }

    /// The shim's own group.
    pub(crate) fn shim_group(&self) -> Group {
        self.group("orlop-shim", &self.id)
    }

    /// A container's group.
    pub(crate) fn container_group(&self, id: &str) -> Group {
        self.group("cri-orlop", id)
    }

    fn group(&self, prefix: &str, id: &str) -> Group {
        let parent = self.cgroup_parent();
        match self.systemd {
            true => Group {
                named: format!("{}:{prefix}:{id}", self.slice()),
                path: format!("{parent}/{prefix}-{id}.scope"),
            },
            false => Group { named: format!("{parent}/{id}"), path: format!("{parent}/{id}") },
        }
    }
}

/// The unit that a group of systemd's is.
pub(crate) fn unit(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Whether the driver can make groups in the parent that a kubelet names.
///
/// # Errors
/// [`CriError::Invalid`] says what the kubelet has to be told.
pub(crate) fn check_parent(driver: CgroupDriver, sandbox: &Sandbox) -> Result<(), CriError> {
    if driver == CgroupDriver::Systemd && slice_path(sandbox.slice()).is_none() {
        return Err(CriError::Invalid(format!(
            "cgroup_parent {:?} is no slice, but this runtime's cgroupDriver is systemd: the kubelet's has to be the same",
            sandbox.wanted_parent()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::sandbox;

    fn pod(systemd: bool, parent: &str) -> Sandbox {
        let mut pod = sandbox("0f");
        pod.systemd = systemd;
        pod.config.linux.get_or_insert_default().cgroup_parent = parent.to_owned();
        pod
    }

    #[test]
    fn names_of_groups() {
        let slice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for (systemd, given, named, path) in [
            (false, "", "/orlop/c", "/orlop/c".to_owned()),
            (false, "/kubepods/pod1/", "/kubepods/pod1/c", "/kubepods/pod1/c".to_owned()),
            (true, "", "orlop.slice:cri-orlop:c", "/orlop.slice/cri-orlop-c.scope".to_owned()),
            (
                true,
                slice,
                "kubepods-burstable-pod1_2.slice:cri-orlop:c",
                format!("{slice}/cri-orlop-c.scope"),
            ),
            (
                true,
                "kubepods-burstable-pod1_2.slice",
                "kubepods-burstable-pod1_2.slice:cri-orlop:c",
                format!("{slice}/cri-orlop-c.scope"),
            ),
            (true, "-.slice", "-.slice:cri-orlop:c", "/cri-orlop-c.scope".to_owned()),
        ] {
            let pod = pod(systemd, given);
            let group = pod.container_group("c");
            assert_eq!((group.named.as_str(), &group.path), (named, &path));
            let found = orlop_oci::systemd::path_of(std::path::Path::new(named)).unwrap();
            assert_eq!(found.is_some(), systemd);
            assert!(found.is_none_or(|found| found.to_str() == Some(path.as_str())), "{path}");
        }
        let shim = pod(true, slice).shim_group();
        assert_eq!(unit(&shim.path), "orlop-shim-0f.scope");
        assert_eq!(pod(false, "/a").shim_group().path, "/a/0f");
    }

    #[test]
    fn the_drivers_have_to_be_the_same() {
        for (driver, parent, fits) in [
            (CgroupDriver::Systemd, "", true),
            (CgroupDriver::Systemd, "/kubepods.slice/kubepods-pod1.slice", true),
            (CgroupDriver::Systemd, "/kubepods/pod1", false),
            (CgroupDriver::Systemd, "/kubepods.slice/.slice", false),
            (CgroupDriver::Systemd, "a--b.slice", false),
            (CgroupDriver::Cgroupfs, "/kubepods/pod1", true),
            (CgroupDriver::Cgroupfs, "/kubepods.slice", true),
        ] {
            let pod = pod(driver == CgroupDriver::Systemd, parent);
            assert_eq!(check_parent(driver, &pod).is_ok(), fits, "{driver:?} {parent}");
        }
    }
}
