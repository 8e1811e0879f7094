//! Who runs: users, groups, supplemental groups and their policy (KEP-3619).

use anyhow::ensure;
use orlop_cri::v1;
use tonic::Code;

use crate::client::image_spec;
use crate::spec::{Test, image, refused, security, skip};

crate::specs![
    user,
    user_by_name,
    group,
    group_without_user,
    user_of_the_image,
    user_name_that_is_missing,
    user_that_is_negative,
    supplemental_groups,
    groups_merged,
    groups_strict,
    groups_of_the_status,
    user_without_entry,
];

fn value(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

async fn ids(
    t: &Test,
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> anyhow::Result<(String, v1::ContainerStatus)> {
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| change(security(config))).await?;
    let seen = t.sh(&id, "echo $(id -u):$(id -g):$(id -G)").await?;
    Ok((seen, t.cri.container_status(&id).await?))
}

async fn user(t: &Test) -> anyhow::Result<()> {
    let (seen, _) = ids(t, |context| context.run_as_user = value(1001)).await?;
    ensure!(seen.starts_with("1001:"), "{seen}");
    Ok(())
}

async fn user_by_name(t: &Test) -> anyhow::Result<()> {
    let (seen, _) = ids(t, |context| context.run_as_username = "www-data".into()).await?;
    ensure!(seen.starts_with("33:33:"), "{seen}");
    Ok(())
}

async fn group(t: &Test) -> anyhow::Result<()> {
    let (seen, _) = ids(t, |context| {
        context.run_as_user = value(1001);
        context.run_as_group = value(1002);
    })
    .await?;
    ensure!(seen.starts_with("1001:1002:"), "{seen}");
    Ok(())
}

async fn group_without_user(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    security(&mut config).run_as_group = value(1001);
    refused("a group without a user", t.create(&pod, config).await).map(drop)
}

async fn user_of_the_image(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.image = Some(image_spec(&image("as-user")))).await?;
    let seen = t.sh(&id, "echo $(id -u):$(id -g) $HOME").await?;
    ensure!(seen == "1000:1000 /home/default-user", "{seen}");
    Ok(())
}

async fn user_name_that_is_missing(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    security(&mut config).run_as_username = "nobody-knows".into();
    let (_, said) = refused("an unknown user name", t.create(&pod, config).await)?;
    ensure!(said.contains("nobody-knows") || said.contains("no users found"), "{said}");
    Ok(())
}

async fn user_that_is_negative(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    security(&mut config).run_as_user = value(-5);
    let made = async {
        let id = t.create(&pod, config).await?;
        t.cri.start(&id).await
    };
    refused("a negative user", made.await).map(drop)
}

async fn supplemental_groups(t: &Test) -> anyhow::Result<()> {
    let (seen, _) = ids(t, |context| context.supplemental_groups = vec![1234, 5678]).await?;
    let groups = seen.rsplit(':').next().unwrap_or_default();
    ensure!(["1234", "5678"].iter().all(|group| groups.split(' ').any(|one| one == *group)), "{seen}");
    Ok(())
}

async fn with_policy(
    t: &Test,
    policy: v1::SupplementalGroupsPolicy,
) -> anyhow::Result<(String, v1::ContainerStatus)> {
    let answer = t.cri.runtime().status(v1::StatusRequest { verbose: false }).await?.into_inner();
    if !answer.features.unwrap_or_default().supplemental_groups_policy {
        return skip("the runtime does not claim supplementalGroupsPolicy");
    }
    ids(t, |context| {
        context.run_as_user = value(1000);
        context.supplemental_groups = vec![60000];
        context.supplemental_groups_policy = policy.into();
    })
    .await
}

async fn groups_merged(t: &Test) -> anyhow::Result<()> {
    let (seen, status) = with_policy(t, v1::SupplementalGroupsPolicy::Merge).await?;
    ensure!(seen == "1000:1000:1000 50000 60000", "{seen}");
    told(&status, &[1000, 50000, 60000])
}

async fn groups_strict(t: &Test) -> anyhow::Result<()> {
    let (seen, status) = with_policy(t, v1::SupplementalGroupsPolicy::Strict).await?;
    ensure!(seen == "1000:1000:1000 60000", "{seen}");
    told(&status, &[1000, 60000])
}

fn told(status: &v1::ContainerStatus, groups: &[i64]) -> anyhow::Result<()> {
    let user = status.user.clone().unwrap_or_default().linux.unwrap_or_default();
    let mut shown = user.supplemental_groups.clone();
    shown.sort_unstable();
    ensure!(user.uid == 1000 && user.gid == 1000, "{user:?}");
    let without_own: Vec<i64> = groups.iter().copied().filter(|group| *group != user.gid).collect();
    ensure!(shown == groups || shown == without_own, "{user:?}");
    Ok(())
}

async fn groups_of_the_status(t: &Test) -> anyhow::Result<()> {
    let (_, status) = ids(t, |context| context.run_as_user = value(4321)).await?;
    let Some(user) = status.user.and_then(|user| user.linux) else {
        anyhow::bail!("the status does not tell the user");
    };
    ensure!(user.uid == 4321 && user.gid == 0, "{user:?}");
    Ok(())
}

async fn user_without_entry(t: &Test) -> anyhow::Result<()> {
    let (seen, _) = ids(t, |context| context.run_as_user = value(987_654)).await?;
    ensure!(seen.starts_with("987654:0:"), "{seen}");
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    security(&mut config).run_as_user = value(i64::MAX);
    let made = async {
        let id = t.create(&pod, config).await?;
        t.cri.start(&id).await
    };
    let (code, _) = refused("a user beyond the kernel's", made.await)?;
    ensure!(code != Code::Unavailable, "{code:?}");
    Ok(())
}
