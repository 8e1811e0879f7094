//! "Content Management".

use crate::content::{IMAGE, Image, digest, index, random};
use crate::spec::Test;

crate::specs! {
    tag, manifest, blob, unknown_things, twice, blob_that_another_repository_has, pushed_again, index_leaves_its_images,
    everything_that_an_image_needs,
}

async fn tag(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    let digest = test.push(&image, "one").await?;
    test.put_manifest("two", IMAGE, image.bytes()).await?.is(&[201])?;
    test.delete("manifests/one").await?.is(&[202])?;
    test.head("manifests/one").await?.is(&[404])?;
    test.head("manifests/two").await?.is(&[200])?;
    test.head(&format!("manifests/{digest}")).await?.is(&[200])?;
    Ok(())
}

/// With all its tags.
async fn manifest(test: &Test) -> anyhow::Result<()> {
    let digest = test.push(&Image::new(), "one").await?;
    let stays = test.push(&Image::new(), "other").await?;
    test.delete(&format!("manifests/{digest}")).await?.is(&[202])?;
    test.head("manifests/one").await?.is(&[404])?;
    test.head(&format!("manifests/{digest}")).await?.is(&[404])?;
    test.head(&format!("manifests/{stays}")).await?.is(&[200])?;
    Ok(())
}

async fn blob(test: &Test) -> anyhow::Result<()> {
    let digest = test.push_blob(&random(64)).await?;
    test.delete(&format!("blobs/{digest}")).await?.is(&[202])?;
    test.head(&format!("blobs/{digest}")).await?.is(&[404])?;
    test.get(&format!("blobs/{digest}")).await?.is(&[404])?;
    Ok(())
}

async fn unknown_things(test: &Test) -> anyhow::Result<()> {
    test.push(&Image::new(), "one").await?;
    let missing = digest(&random(8));
    test.delete(&format!("blobs/{missing}")).await?.is(&[404])?.refuses(&["BLOB_UNKNOWN"])?;
    test.delete(&format!("manifests/{missing}")).await?.is(&[404])?.refuses(&["MANIFEST_UNKNOWN"])?;
    test.delete("manifests/two").await?.is(&[404])?;
    test.other().delete(&format!("manifests/{missing}")).await?.is(&[404])?;
    Ok(())
}

async fn twice(test: &Test) -> anyhow::Result<()> {
    let digest = test.push(&Image::new(), "one").await?;
    test.delete(&format!("manifests/{digest}")).await?.is(&[202])?;
    test.delete(&format!("manifests/{digest}")).await?.is(&[404])?;
    Ok(())
}

async fn blob_that_another_repository_has(test: &Test) -> anyhow::Result<()> {
    let content = random(64);
    let digest = test.push_blob(&content).await?;
    test.other().push_blob(&content).await?;
    test.delete(&format!("blobs/{digest}")).await?.is(&[202])?;
    test.other().get(&format!("blobs/{digest}")).await?.is(&[200])?.holds(&content)?;
    Ok(())
}

async fn pushed_again(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    let digest = test.push(&image, "one").await?;
    test.delete(&format!("manifests/{digest}")).await?.is(&[202])?;
    for blob in &image.blobs {
        test.delete(&format!("blobs/{}", crate::content::digest(blob))).await?.is(&[202])?;
    }
    test.push(&image, "one").await?;
    test.get("manifests/one").await?.is(&[200])?.holds(&image.bytes())?;
    for blob in &image.blobs {
        test.get(&format!("blobs/{}", crate::content::digest(blob))).await?.is(&[200])?.holds(blob)?;
    }
    Ok(())
}

async fn index_leaves_its_images(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    let part = test.push(&image, "image").await?;
    let whole = index(&[image.descriptor()]).to_string();
    test.put_manifest("index", crate::content::INDEX, whole.clone()).await?.is(&[201])?;
    test.delete(&format!("manifests/{}", digest(whole.as_bytes()))).await?.is(&[202])?;
    test.head(&format!("manifests/{part}")).await?.is(&[200])?;
    Ok(())
}

/// In the order in which clients take an image away.
async fn everything_that_an_image_needs(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    let manifest = test.push(&image, "one").await?;
    test.delete("manifests/one").await?.is(&[202])?;
    test.delete(&format!("manifests/{manifest}")).await?.is(&[202])?;
    for blob in &image.blobs {
        let path = format!("blobs/{}", digest(blob));
        test.delete(&path).await?.is(&[202])?;
        test.head(&path).await?.is(&[404])?;
    }
    Ok(())
}
