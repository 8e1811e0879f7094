//! Who a container runs as: names and numbers of the kubelet and the image, looked up in the image's own files.

use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use orlop_cri::v1;

use crate::error::CriError;
use crate::layers;
use crate::model::ContainerUser;

const FILE_LIMIT_BYTES: u64 = 1024 * 1024;

/// The identity with the home directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Numbers.
    pub user: ContainerUser,
    /// `/` when the image does not say.
    pub home: String,
}

/// Reads `/etc/passwd` and `/etc/group` of the image (layers top first) and applies the security context.
///
/// # Errors
/// [`CriError::Invalid`] when a name is in neither file, or a group is given without a user.
pub(crate) fn resolve(
    context: &v1::LinuxContainerSecurityContext,
    image: &ImageConfiguration,
    image_layers: &[PathBuf],
) -> Result<Resolved, CriError> {
    let read = |path: &str| {
        layers::read_file(image_layers, path, FILE_LIMIT_BYTES)
            .map(|content| String::from_utf8_lossy(&content.unwrap_or_default()).into_owned())
            .map_err(|error| CriError::failed(format!("failed to read {path} of the image"), error))
    };
    let of_image = image.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    decide(context, &of_image, &read("etc/passwd")?, &read("etc/group")?)
}

fn decide(
    context: &v1::LinuxContainerSecurityContext,
    of_image: &str,
    passwd: &str,
    group: &str,
) -> Result<Resolved, CriError> {
    let given = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(uid), _) => uid.value.to_string(),
        (None, "") => String::new(),
        (None, name) => name.to_owned(),
    };
    if given.is_empty() && context.run_as_group.is_some() && of_image.is_empty() {
        return Err(CriError::Invalid("runAsGroup is specified without a user".to_owned()));
    }
    let (user_text, group_text) = if given.is_empty() {
        of_image.split_once(':').map_or((of_image, ""), |(user, group)| (user, group))
    } else {
        (given.as_str(), "")
    };
    let entry = passwd_entry(passwd, user_text);
    let uid = match (&entry, user_text) {
        (Some(entry), _) => entry.uid,
        (None, "") => 0,
        (None, text) => number(text, "user")?,
    };
    let gid = match (&context.run_as_group, group_text) {
        (Some(gid), _) => u32::try_from(gid.value)
            .map_err(|_| CriError::Invalid(format!("runAsGroup {} is out of range", gid.value)))?,
        (None, "") => entry.as_ref().map_or(0, |entry| entry.gid),
        (None, text) => match group_entries(group).find(|entry| entry.0 == text) {
            Some((_, gid, _)) => gid,
            None => number(text, "group")?,
        },
    };
    let mut groups = vec![gid];
    let merge = context.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Merge;
    if merge && let Some(entry) = &entry {
        groups.extend(
            group_entries(group)
                .filter(|(_, _, members)| members.split(',').any(|member| member == entry.name))
                .map(|(_, gid, _)| gid),
        );
    }
    for gid in &context.supplemental_groups {
        groups.push(
            u32::try_from(*gid)
                .map_err(|_| CriError::Invalid(format!("supplemental group {gid} is out of range")))?,
        );
    }
    groups.sort_unstable();
    groups.dedup();
    let home =
        entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or_else(|| "/".to_owned());
    Ok(Resolved { user: ContainerUser { uid, gid, groups }, home })
}

struct PasswdEntry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

fn passwd_entry(passwd: &str, user: &str) -> Option<PasswdEntry> {
    let wanted_uid = if user.is_empty() { Some(0) } else { user.parse::<u32>().ok() };
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, uid, gid, home) = (
            fields.next()?,
            fields.nth(1)?.parse().ok()?,
            fields.next()?.parse().ok()?,
            fields.nth(1).unwrap_or_default(),
        );
        let matches = wanted_uid.map_or(name == user, |wanted| uid == wanted);
        matches.then(|| PasswdEntry { name: name.to_owned(), uid, gid, home: home.to_owned() })
    })
}

fn group_entries(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?.parse().ok()?, fields.next().unwrap_or_default()))
    })
}

fn number(text: &str, kind: &str) -> Result<u32, CriError> {
    text.parse().map_err(|_| {
        CriError::Invalid(format!("unable to find {kind} {text}: no matching entry in the image"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:www:/var/www:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nextra:x:50:other,www\nbroken\n";

    fn context(user: Option<i64>, group: Option<i64>) -> v1::LinuxContainerSecurityContext {
        v1::LinuxContainerSecurityContext {
            run_as_user: user.map(|value| v1::Int64Value { value }),
            run_as_group: group.map(|value| v1::Int64Value { value }),
            ..Default::default()
        }
    }

    #[test]
    fn users_as_kubelet_and_image_say() {
        let table = [
            (context(None, None), "", (0, 0, vec![0], "/root")),
            (context(None, None), "www", (33, 34, vec![34, 50], "/var/www")),
            (context(None, None), "33:extra", (33, 50, vec![50], "/var/www")),
            (context(None, None), "1000:1001", (1000, 1001, vec![1001], "/")),
            (context(Some(33), None), "root", (33, 34, vec![34, 50], "/var/www")),
            (context(Some(1234), None), "www", (1234, 0, vec![0], "/")),
            (context(Some(1234), Some(9)), "", (1234, 9, vec![9], "/")),
            (context(None, Some(9)), "www", (33, 9, vec![9, 50], "/var/www")),
        ];
        for (context, of_image, (uid, gid, groups, home)) in table {
            let resolved = decide(&context, of_image, PASSWD, GROUP).unwrap();
            assert_eq!(
                (resolved.user.uid, resolved.user.gid, resolved.home.as_str()),
                (uid, gid, home),
                "{of_image}"
            );
            assert_eq!(resolved.user.groups, groups, "{of_image}");
        }
    }

    #[test]
    fn strict_policy_keeps_the_images_groups_out() {
        let mut context = context(Some(33), None);
        context.supplemental_groups = vec![7];
        context.set_supplemental_groups_policy(v1::SupplementalGroupsPolicy::Strict);
        assert_eq!(decide(&context, "", PASSWD, GROUP).unwrap().user.groups, [7, 34]);
    }

    #[test]
    fn unknown_names_are_refused() {
        let error = decide(&context(None, None), "nobody-here", PASSWD, GROUP).unwrap_err();
        assert!(error.to_string().contains("nobody-here"), "{error}");
        assert!(decide(&context(None, Some(1)), "", PASSWD, GROUP).is_err());
        assert!(decide(&context(None, Some(-1)), "www", PASSWD, GROUP).is_err());
    }
}
