//! AppArmor: which profile a container's first process gets, where the kernel has AppArmor at all.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orlop_cri::v1;
use orlop_cri::v1::security_profile::ProfileType;

use crate::error::CriError;

/// Loaded for `RuntimeDefault` when it is first needed.
const DEFAULT_PROFILE: &str = "orlop-default";
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];

/// What a container may do under `RuntimeDefault`, in apparmor.d(5)'s language: everything but changing mounts, the kernel's settings and
/// its security file systems, and tracing or signalling what is not confined alike.
const DEFAULT_RULES: &str = "\
#include <tunables/global>
profile orlop-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer=orlop-default,
  ptrace (trace,read,tracedby,readby) peer=orlop-default,
  deny mount,
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,
  deny @{PROC}/sys/[^kn]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
";

/// What the kernel has and knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    /// AppArmor is on.
    pub enabled: bool,
    /// Loaded profiles, as `name (mode)` lines.
    pub profiles: String,
}

impl Kernel {
    /// Of this machine.
    pub(crate) fn detect() -> Self {
        let enabled = std::fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'));
        let profiles =
            if enabled { std::fs::read_to_string(LOADED).unwrap_or_default() } else { String::new() };
        Self { enabled: enabled && Path::new(LOADED).exists(), profiles }
    }

    fn has(&self, profile: &str) -> bool {
        let prefix = format!("{profile} (");
        self.profiles.lines().any(|line| line.starts_with(&prefix))
    }
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Confinement {
    /// No profile.
    None,
    /// This one, which is loaded.
    Profile(String),
    /// Ours, which may have to be loaded.
    Default,
}

/// Decides, as containerd does: without AppArmor only a profile of the administrator's is refused.
///
/// # Errors
/// A `Localhost` profile that cannot be enforced here.
pub(crate) fn decide(
    context: &v1::LinuxContainerSecurityContext,
    kernel: &Kernel,
) -> Result<Confinement, CriError> {
    let wanted = match &context.apparmor {
        Some(profile) => Some(profile.clone()),
        None => from_deprecated(context)?,
    };
    let kind = wanted.as_ref().map_or(ProfileType::RuntimeDefault, v1::SecurityProfile::profile_type);
    let reference = wanted.map(|profile| profile.localhost_ref).unwrap_or_default();
    let profile = reference.strip_prefix("localhost/").unwrap_or(&reference);
    match kind {
        ProfileType::Localhost if !kernel.enabled => Err(CriError::Invalid(format!(
            "apparmor is not supported: profile {profile:?} cannot be enforced"
        ))),
        ProfileType::Localhost if profile.is_empty() => {
            Err(CriError::Invalid("apparmor profile of type Localhost without a name".to_owned()))
        }
        ProfileType::Localhost if !kernel.has(profile) => {
            Err(CriError::Invalid(format!("apparmor profile not found {profile}")))
        }
        ProfileType::Localhost => Ok(Confinement::Profile(profile.to_owned())),
        ProfileType::RuntimeDefault if kernel.enabled && !context.privileged => Ok(Confinement::Default),
        ProfileType::RuntimeDefault | ProfileType::Unconfined => Ok(Confinement::None),
    }
}

/// The text form of kubelets before 1.30.
#[expect(deprecated, reason = "old kubelets send it")]
fn from_deprecated(
    context: &v1::LinuxContainerSecurityContext,
) -> Result<Option<v1::SecurityProfile>, CriError> {
    profile_from_text(&context.apparmor_profile)
}

/// `runtime/default`, `unconfined` or `localhost/NAME`; empty is no wish.
pub(crate) fn profile_from_text(text: &str) -> Result<Option<v1::SecurityProfile>, CriError> {
    let (kind, localhost_ref) = match text {
        "" => return Ok(None),
        "runtime/default" | "docker/default" => (ProfileType::RuntimeDefault, ""),
        "unconfined" => (ProfileType::Unconfined, ""),
        text => match text.strip_prefix("localhost/") {
            Some(name) => (ProfileType::Localhost, name),
            None => return Err(CriError::Invalid(format!("invalid security profile {text:?}"))),
        },
    };
    let localhost_ref = localhost_ref.to_owned();
    Ok(Some(v1::SecurityProfile { profile_type: kind as i32, localhost_ref }))
}

/// The name to write into the container's configuration; loads our profile if need be. Blocking.
///
/// # Errors
/// As [`decide`], and a profile that the kernel does not take.
pub(crate) fn profile(context: &v1::LinuxContainerSecurityContext) -> Result<Option<String>, CriError> {
    let kernel = Kernel::detect();
    match decide(context, &kernel)? {
        Confinement::None => Ok(None),
        Confinement::Profile(name) => Ok(Some(name)),
        Confinement::Default if kernel.has(DEFAULT_PROFILE) => Ok(Some(DEFAULT_PROFILE.to_owned())),
        Confinement::Default => load_default(),
    }
}

fn load_default() -> Result<Option<String>, CriError> {
    let Some(parser) = PARSERS.iter().map(PathBuf::from).find(|path| path.exists()) else {
        // As containerd: without the tool that compiles profiles there is no default one.
        tracing::debug!("apparmor_parser is not installed: containers have no default AppArmor profile");
        return Ok(None);
    };
    let failed = |cause: String| CriError::Failed {
        act: format!("failed to load AppArmor profile {DEFAULT_PROFILE}"),
        cause: cause.into(),
    };
    // -K: nothing is cached on disk; -r: another daemon may have loaded it just now.
    let mut child = Command::new(parser)
        .args(["-Kr"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(DEFAULT_RULES.as_bytes()));
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    match written {
        Some(Ok(())) if output.status.success() => Ok(Some(DEFAULT_PROFILE.to_owned())),
        _ => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_decided_as_containerd_does() {
        use Confinement::{Default as Ours, None as Nothing, Profile};
        let on = Kernel { enabled: true, profiles: "web (enforce)\nweb-more (complain)\n".to_owned() };
        let off = Kernel::default();
        let named = |kind: ProfileType, name: &str| {
            Some(v1::SecurityProfile { profile_type: kind as i32, localhost_ref: name.to_owned() })
        };
        for (apparmor, privileged, with, without) in [
            (None, false, Some(Ours), Some(Nothing)),
            (None, true, Some(Nothing), Some(Nothing)),
            (named(ProfileType::RuntimeDefault, ""), false, Some(Ours), Some(Nothing)),
            (named(ProfileType::Unconfined, ""), false, Some(Nothing), Some(Nothing)),
            (named(ProfileType::Localhost, "web"), false, Some(Profile("web".into())), None),
            (named(ProfileType::Localhost, "localhost/web"), true, Some(Profile("web".into())), None),
            (named(ProfileType::Localhost, "we"), false, None, None),
            (named(ProfileType::Localhost, ""), false, None, None),
        ] {
            let context = v1::LinuxContainerSecurityContext { apparmor, privileged, ..Default::default() };
            assert_eq!(decide(&context, &on).ok(), with, "{context:?}");
            assert_eq!(decide(&context, &off).ok(), without, "{context:?}");
        }
    }

    #[test]
    fn the_old_text_form_is_understood() {
        for (text, wanted) in [
            ("runtime/default", Some(ProfileType::RuntimeDefault)),
            ("unconfined", Some(ProfileType::Unconfined)),
            ("localhost/a", Some(ProfileType::Localhost)),
            ("", None),
        ] {
            assert_eq!(profile_from_text(text).unwrap().map(|profile| profile.profile_type()), wanted);
        }
        assert!(profile_from_text("else").is_err());
    }
}
