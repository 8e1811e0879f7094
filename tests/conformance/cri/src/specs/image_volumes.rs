//! Images as read-only volumes (KEP-4639).

use anyhow::{Context as _, ensure};
use orlop_cri::v1;

use crate::client::image_spec;
use crate::spec::{Test, image, refused};

crate::specs![
    digest_in_the_status,
    mounted_read_only,
    not_read_only_is_refused,
    sub_path,
    missing_sub_path,
    sub_path_does_not_leave,
    unknown_image,
    image_in_use_stays,
];

fn volume(sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: "/volume".into(),
        readonly: true,
        image: Some(image_spec(&image("volume"))),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

async fn digest_in_the_status(t: &Test) -> anyhow::Result<()> {
    t.cri.pull(&image("volume")).await?;
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.mounts = vec![volume("")]).await?;
    let known = t.cri.image(&image("volume")).await?.context("the image")?;
    let shown = t.cri.container_status(&id).await?.mounts;
    let named = shown.first().and_then(|mount| mount.image.clone()).context("no image in the mount")?;
    let digests = [vec![known.id.clone()], known.repo_digests.clone()].concat();
    ensure!(
        digests.iter().any(|digest| *digest == named.image || *digest == named.image_ref),
        "{named:?} is none of {digests:?}"
    );
    Ok(())
}

async fn mounted_read_only(t: &Test) -> anyhow::Result<()> {
    t.cri.pull(&image("volume")).await?;
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.mounts = vec![volume("")]).await?;
    ensure!(
        t.sh(&id, "cat /volume/top /volume/subdirectory/inner").await? == "top\ninner",
        "another content"
    );
    let done = t.exec(&id, &["touch", "/volume/file"]).await?;
    ensure!(done.code != 0 && done.stderr.contains("Read-only"), "{done:?}");
    Ok(())
}

async fn not_read_only_is_refused(t: &Test) -> anyhow::Result<()> {
    t.cri.pull(&image("volume")).await?;
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    config.mounts = vec![v1::Mount { readonly: false, ..volume("") }];
    let (code, said) = refused("a writable image volume", t.create(&pod, config).await)?;
    ensure!(code != tonic::Code::Unimplemented && said.contains("/volume"), "{code:?} {said}");
    Ok(())
}

async fn sub_path(t: &Test) -> anyhow::Result<()> {
    t.cri.pull(&image("volume")).await?;
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.mounts = vec![volume("subdirectory")]).await?;
    ensure!(t.sh(&id, "ls /volume").await? == "inner", "not the sub path");
    Ok(())
}

async fn refused_sub_path(t: &Test, path: &str) -> anyhow::Result<()> {
    t.cri.pull(&image("volume")).await?;
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    config.mounts = vec![volume(path)];
    let made = async {
        let id = t.create(&pod, config).await?;
        t.cri.start(&id).await
    };
    let (code, said) = refused("a sub path", made.await)?;
    ensure!(code != tonic::Code::Unimplemented, "{said}");
    Ok(())
}

async fn missing_sub_path(t: &Test) -> anyhow::Result<()> {
    refused_sub_path(t, "no/such/path").await
}

async fn sub_path_does_not_leave(t: &Test) -> anyhow::Result<()> {
    refused_sub_path(t, "../../../../etc").await
}

async fn unknown_image(t: &Test) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container_config(&pod, &["true"]);
    config.mounts = vec![v1::Mount { image: Some(image_spec(&image("no-such-image"))), ..volume("") }];
    let (code, said) = refused("a volume of an unknown image", t.create(&pod, config).await)?;
    ensure!(code != tonic::Code::Unimplemented && said.contains("no-such-image"), "{code:?} {said}");
    Ok(())
}

async fn image_in_use_stays(t: &Test) -> anyhow::Result<()> {
    t.cri.pull(&image("volume")).await?;
    let pod = t.pod().await?;
    let id = t.running_with(&pod, |config| config.mounts = vec![volume("")]).await?;
    // Removed by name or refused: what runs goes on.
    let _ = t.cri.remove_image(&image("volume")).await;
    ensure!(t.sh(&id, "cat /volume/top").await? == "top", "the volume lost its content");
    t.cri.pull(&image("volume")).await.map(drop)
}
