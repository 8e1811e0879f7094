//! The image service. One spec at a time: they pull and remove the same images.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use orlop_cri::v1;

use crate::client::{code, image_spec};
use crate::images;
use crate::registry::{ADDRESS, OTHER_NAME};
use crate::spec::{Test, image, refused};

crate::specs![
    by_tag,
    without_tag,
    by_digest,
    times_out,
    all_kinds_of_references,
    user_of_the_configuration,
    three_images_have_their_tags,
    one_image_has_three_tags,
    removed_by_one_tag,
    removed_from_other_registries,
    gone_at_once,
    there_at_once,
    removals_at_once,
    same_identifier_everywhere,
    same_identifier_of_two_registries,
    pulls_at_once,
    unknown_image,
    unknown_registry,
    bad_references,
    filter_by_name,
    filter_that_finds_nothing,
    verbose_status,
    sizes,
    removed_while_in_use,
    file_system_shrinks,
];

async fn absent(t: &Test, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        if let Some(known) = t.cri.image(name).await? {
            t.cri.remove_image(&known.id).await?;
        }
        ensure!(t.cri.image(name).await?.is_none(), "{name} is still there");
    }
    Ok(())
}

async fn pulled_and_removed(
    t: &Test,
    name: &str,
    check: impl FnOnce(&v1::Image) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    absent(t, &[name.to_owned()]).await?;
    t.cri.pull(name).await?;
    let known = t.cri.image(name).await?.context("it was pulled")?;
    ensure!(!known.id.is_empty() && known.size > 0, "{known:?}");
    check(&known)?;
    absent(t, &[name.to_owned()]).await
}

async fn by_tag(t: &Test) -> anyhow::Result<()> {
    let name = image("tagged:1.0");
    pulled_and_removed(t, &name, |known| {
        ensure!(known.repo_tags == [name.clone()], "{known:?}");
        Ok(())
    })
    .await
}

async fn without_tag(t: &Test) -> anyhow::Result<()> {
    let name = format!("{ADDRESS}/tagged");
    pulled_and_removed(t, &name, |known| {
        ensure!(known.repo_tags == [format!("{name}:latest")], "{known:?}");
        Ok(())
    })
    .await
}

/// The digest of the manifest that the registry has.
fn digest_of(repository: &str) -> anyhow::Result<String> {
    let all = images::all()?;
    let found = all.iter().find(|image| image.repository == repository).context("the suite's image")?;
    Ok(images::digest(&found.documents().1))
}

async fn by_digest(t: &Test) -> anyhow::Result<()> {
    let name = format!("{ADDRESS}/tagged@{}", digest_of("tagged")?);
    pulled_and_removed(t, &name, |known| {
        ensure!(known.repo_tags.is_empty() && known.repo_digests == [name.clone()], "{known:?}");
        Ok(())
    })
    .await
}

async fn times_out(t: &Test) -> anyhow::Result<()> {
    let mut request = tonic::Request::new(v1::PullImageRequest {
        image: Some(image_spec(&image("tagged:1.0"))),
        ..Default::default()
    });
    request.set_timeout(std::time::Duration::from_millis(1));
    let answer = t.cri.images().pull_image(request).await.map_err(anyhow::Error::from);
    let error = answer.err().context("it was pulled within a millisecond")?;
    ensure!(
        matches!(code(&error), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled),
        "{:?} {error:#}",
        code(&error)
    );
    // A pull that nobody waits for may go on: the next one joins or finds it.
    t.cri.pull(&image("tagged:1.0")).await?;
    absent(t, &[image("tagged:1.0")]).await
}

async fn all_kinds_of_references(t: &Test) -> anyhow::Result<()> {
    let name = image("tagged:1.0");
    absent(t, std::slice::from_ref(&name)).await?;
    t.cri.pull(&name).await?;
    let known = t.cri.image(&name).await?.context("it was pulled")?;
    let short = known.id.trim_start_matches("sha256:").to_owned();
    let references =
        [vec![known.id.clone(), short], known.repo_tags.clone(), known.repo_digests.clone()].concat();
    for reference in references {
        let found = t.cri.image(&reference).await?;
        ensure!(found.as_ref() == Some(&known), "{reference}: {found:?}");
    }
    absent(t, &[name]).await
}

async fn user_of_the_configuration(t: &Test) -> anyhow::Result<()> {
    for (repository, uid, name) in [
        ("user-uid", 1002, ""),
        ("user-name", 0, "www-data"),
        ("user-uid-group", 1003, ""),
        ("user-name-group", 0, "www-data"),
    ] {
        t.cri.pull(&image(repository)).await?;
        let known = t.cri.image(&image(repository)).await?.context("it was pulled")?;
        let shown = known.uid.unwrap_or_default().value;
        ensure!(shown == uid && known.username == name, "{repository}: {known:?}");
        absent(t, &[image(repository)]).await?;
    }
    Ok(())
}

fn names(repositories: &[&str]) -> Vec<String> {
    repositories.iter().map(|repository| image(repository)).collect()
}

async fn three_images_have_their_tags(t: &Test) -> anyhow::Result<()> {
    let names = names(&["different-1", "different-2", "different-3"]);
    absent(t, &names).await?;
    let mut ids = BTreeSet::new();
    for name in &names {
        t.cri.pull(name).await?;
        ids.insert(t.cri.image(name).await?.context("it was pulled")?.id);
    }
    ensure!(ids.len() == 3, "{ids:?}");
    for name in &names {
        let known = t.cri.image(name).await?.context("it was pulled")?;
        ensure!(known.repo_tags == [name.clone()], "{name}: {known:?}");
        ensure!(t.cri.list_images(None).await?.contains(&known), "{name} is not listed");
    }
    absent(t, &names).await
}

async fn three_tags(t: &Test) -> anyhow::Result<(Vec<String>, v1::Image)> {
    let names = names(&["same:1", "same:2", "same:3"]);
    absent(t, &names).await?;
    for name in &names {
        t.cri.pull(name).await?;
    }
    let all = t.cri.list_images(None).await?;
    let mut found: Vec<v1::Image> =
        all.into_iter().filter(|image| image.repo_tags.iter().any(|tag| names.contains(tag))).collect();
    ensure!(found.len() == 1, "{found:?}");
    Ok((names, found.remove(0)))
}

async fn one_image_has_three_tags(t: &Test) -> anyhow::Result<()> {
    let (names, mut known) = three_tags(t).await?;
    known.repo_tags.sort();
    ensure!(known.repo_tags == names, "{known:?}");
    absent(t, &names).await
}

async fn all_gone(t: &Test, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        ensure!(t.cri.image(name).await?.is_none(), "{name} is still there");
    }
    let all = t.cri.list_images(None).await?;
    ensure!(!all.iter().any(|image| image.repo_tags.iter().any(|tag| names.contains(tag))), "{all:?}");
    Ok(())
}

/// RemoveImage removes the image, not the tag (api.proto).
async fn removed_by_one_tag(t: &Test) -> anyhow::Result<()> {
    let (mut names, known) = three_tags(t).await?;
    t.cri.remove_image(&names[0]).await?;
    names.push(known.id);
    all_gone(t, &names).await
}

async fn two_registries(t: &Test) -> anyhow::Result<(Vec<String>, v1::Image)> {
    let names = vec![format!("{ADDRESS}/tagged:1.0"), format!("{OTHER_NAME}/tagged:1.0")];
    absent(t, &names).await?;
    for name in &names {
        t.cri.pull(name).await?;
    }
    let known = t.cri.image(&names[0]).await?.context("it was pulled")?;
    Ok((names, known))
}

async fn removed_from_other_registries(t: &Test) -> anyhow::Result<()> {
    let (mut names, known) = two_registries(t).await?;
    ensure!(known.repo_tags.len() == 2, "{known:?}");
    t.cri.remove_image(&names[0]).await?;
    names.push(known.id);
    all_gone(t, &names).await
}

async fn gone_at_once(t: &Test) -> anyhow::Result<()> {
    let name = image("tagged:1.0");
    t.cri.pull(&name).await?;
    t.cri.remove_image(&name).await?;
    all_gone(t, &[name]).await
}

async fn there_at_once(t: &Test) -> anyhow::Result<()> {
    let name = image("tagged:1.0");
    absent(t, std::slice::from_ref(&name)).await?;
    t.cri.pull(&name).await?;
    let all = t.cri.list_images(None).await?;
    ensure!(all.iter().any(|image| image.repo_tags.contains(&name)), "not listed");
    ensure!(t.cri.image(&name).await?.is_some(), "no status");
    absent(t, &[name]).await
}

async fn removals_at_once(t: &Test) -> anyhow::Result<()> {
    let name = image("tagged:1.0");
    t.cri.pull(&name).await?;
    for removed in join_all((0..5).map(|_| t.cri.remove_image(&name))).await {
        removed?;
    }
    all_gone(t, &[name]).await
}

/// What PullImage, ImageStatus, ListImages and the container's status name is one image (KEP-4639 and image GC need it).
async fn same_identifier_everywhere(t: &Test) -> anyhow::Result<()> {
    let name = image("busybox");
    let pulled = t.cri.pull(&name).await?;
    let known = t.cri.image(&name).await?.context("it was pulled")?;
    let found = t.cri.image(&pulled).await?.context("PullImage's answer names no image")?;
    ensure!(found.id == known.id, "{pulled} is {}", found.id);
    let listed = t.cri.list_images(None).await?;
    ensure!(listed.iter().any(|image| image.id == known.id), "another id in the list");
    let pod = t.pod().await?;
    let id = t.create(&pod, t.container_config(&pod, &["true"])).await?;
    let status = t.cri.container_status(&id).await?;
    ensure!(status.image_id == known.id, "the status says {}", status.image_id);
    let filter = v1::ContainerFilter { id, ..Default::default() };
    let container = t.cri.containers(filter).await?.into_iter().next().context("listed")?;
    ensure!(container.image_id == known.id, "the list of containers says {}", container.image_id);
    Ok(())
}

async fn same_identifier_of_two_registries(t: &Test) -> anyhow::Result<()> {
    let (names, known) = two_registries(t).await?;
    let other = t.cri.image(&names[1]).await?.context("it was pulled")?;
    ensure!(other.id == known.id, "{} and {}", known.id, other.id);
    absent(t, &names).await
}

async fn pulls_at_once(t: &Test) -> anyhow::Result<()> {
    let names = names(&["same:1", "same:2", "different-1", "same:1", "different-1"]);
    absent(t, &names).await?;
    for pulled in join_all(names.iter().map(|name| t.cri.pull(name))).await {
        pulled?;
    }
    absent(t, &names).await
}

async fn unknown_image(t: &Test) -> anyhow::Result<()> {
    ensure!(t.cri.image(&image("no-such-image")).await?.is_none(), "a status of nothing");
    let (code, said) = refused("an unknown image", t.cri.pull(&image("no-such-image")).await)?;
    ensure!(code == tonic::Code::NotFound && said.contains("no-such-image"), "{code:?} {said}");
    Ok(())
}

async fn unknown_registry(t: &Test) -> anyhow::Result<()> {
    let (_, said) = refused("a registry that is not there", t.cri.pull("127.0.0.1:1/image:latest").await)?;
    ensure!(said.contains("127.0.0.1:1"), "{said}");
    Ok(())
}

async fn bad_references(t: &Test) -> anyhow::Result<()> {
    for name in ["", "docker.io/UPPER", "a b", "name@sha256:short", ":tag", "name:", "../../etc/passwd"] {
        let (code, _) = refused(&format!("the reference {name:?}"), t.cri.pull(name).await)?;
        ensure!(code != tonic::Code::Unavailable, "{name:?}: {code:?}");
    }
    Ok(())
}

async fn filter_by_name(t: &Test) -> anyhow::Result<()> {
    let found = t.cri.list_images(Some(&image("busybox"))).await?;
    ensure!(found.len() == 1 && found[0].repo_tags.contains(&image("busybox")), "{found:?}");
    Ok(())
}

async fn filter_that_finds_nothing(t: &Test) -> anyhow::Result<()> {
    let found = t.cri.list_images(Some(&image("no-such-image"))).await?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

async fn verbose_status(t: &Test) -> anyhow::Result<()> {
    for verbose in [false, true] {
        let request = v1::ImageStatusRequest { image: Some(image_spec(&image("busybox"))), verbose };
        let answer = t.cri.images().image_status(request).await?.into_inner();
        ensure!(answer.info.is_empty() != verbose, "verbose {verbose}: {:?}", answer.info);
    }
    Ok(())
}

async fn sizes(t: &Test) -> anyhow::Result<()> {
    let known = t.cri.image(&image("busybox")).await?.context("it was pulled")?;
    ensure!(known.size > 1 << 20, "{}", known.size);
    Ok(())
}

async fn removed_while_in_use(t: &Test) -> anyhow::Result<()> {
    t.cri.pull(&image("entry")).await?;
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.image = Some(image_spec(&image("entry")))).await?;
    let _ = t.cri.remove_image(&image("entry")).await;
    ensure!(t.sh(&id, "cat /www/index.html").await? == images::PAGE, "the container lost its files");
    t.cri.pull(&image("entry")).await.map(drop)
}

async fn file_system_shrinks(t: &Test) -> anyhow::Result<()> {
    let used = async || -> anyhow::Result<u64> {
        let answer = t.cri.images().image_fs_info(v1::ImageFsInfoRequest {}).await?.into_inner();
        Ok(answer.image_filesystems.first().and_then(|one| one.inodes_used.as_ref()).context("inodes")?.value)
    };
    let names = names(&["different-1", "different-2", "different-3"]);
    absent(t, &names).await?;
    let before = crate::spec::eventually("a first measurement", async || {
        let now = used().await?;
        ensure!(now > 0, "nothing is used");
        Ok(now)
    })
    .await?;
    for name in &names {
        t.cri.pull(name).await?;
    }
    crate::spec::eventually("more is used", async || {
        ensure!(used().await? > before, "not more than {before}");
        Ok(())
    })
    .await?;
    absent(t, &names).await?;
    crate::spec::eventually("it is free again", async || {
        let now = used().await?;
        ensure!(now <= before, "{before}, then {now}");
        Ok(())
    })
    .await
}
