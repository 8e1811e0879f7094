//! "Pull": manifests and blobs by GET and HEAD.

use hyper::Method;

use crate::content::{IMAGE, INDEX, Image, digest, random};
use crate::spec::Test;

crate::specs! {
    base, manifest_by_tag, manifest_by_digest, manifest_is_verbatim, manifest_of_another_type, blob, blob_head,
    unknown_manifest, unknown_blob, unknown_repository, blob_of_another_repository, if_none_match, many_at_once,
}

/// end-1: says that this is a registry of this version.
async fn base(test: &Test) -> anyhow::Result<()> {
    test.registry.get("/v2/").await?.is(&[200])?;
    test.registry.head("/v2/").await?.is(&[200])?;
    Ok(())
}

async fn look(test: &Test, reference: &str, image: &Image) -> anyhow::Result<()> {
    let (path, bytes) = (format!("manifests/{reference}"), image.bytes());
    let length = bytes.len().to_string();
    for answer in [test.get(&path).await?, test.head(&path).await?] {
        let answer = answer.is(&[200])?.says("content-type", IMAGE)?.says("content-length", &length)?;
        let answer = answer.says("docker-content-digest", &image.digest())?;
        let wanted = if answer.question.starts_with("HEAD") { &[][..] } else { &bytes };
        answer.holds(wanted)?;
    }
    Ok(())
}

async fn manifest_by_tag(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "latest").await?;
    look(test, "latest", &image).await
}

async fn manifest_by_digest(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    let digest = test.push(&image, "latest").await?;
    look(test, &digest, &image).await
}

/// "in the exact byte representation provided by the client"
async fn manifest_is_verbatim(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    let odd = format!("\n {}\t\n\n", serde_json::to_string_pretty(&image.manifest)?);
    test.put_manifest("odd", IMAGE, odd.clone()).await?.is(&[201])?;
    test.get("manifests/odd").await?.is(&[200])?.holds(odd.as_bytes())?;
    Ok(())
}

/// What a client accepts does not change what is stored: a digest would not fit any more.
async fn manifest_of_another_type(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "latest").await?;
    let path = test.path("manifests/latest");
    let answer = test.registry.ask(Method::GET, &path, &[("accept", INDEX)], "").await?;
    answer.is(&[200])?.holds(&image.bytes())?;
    Ok(())
}

async fn blob(test: &Test) -> anyhow::Result<()> {
    for length in [1, 4096, 3 << 20] {
        let content = random(length);
        let digest = test.push_blob(&content).await?;
        let answer = test.get(&format!("blobs/{digest}")).await?.is(&[200])?;
        answer.says("docker-content-digest", &digest)?.holds(&content)?;
    }
    Ok(())
}

async fn blob_head(test: &Test) -> anyhow::Result<()> {
    let digest = test.push_blob(&random(1000)).await?;
    let answer = test.head(&format!("blobs/{digest}")).await?.is(&[200])?;
    answer.says("content-length", "1000")?.says("docker-content-digest", &digest)?.holds(b"")?;
    Ok(())
}

async fn unknown_manifest(test: &Test) -> anyhow::Result<()> {
    test.push(&Image::new(), "latest").await?;
    for reference in ["other".to_owned(), digest(b"other")] {
        let path = format!("manifests/{reference}");
        test.get(&path).await?.is(&[404])?.refuses(&["MANIFEST_UNKNOWN"])?;
        test.head(&path).await?.is(&[404])?;
    }
    Ok(())
}

async fn unknown_blob(test: &Test) -> anyhow::Result<()> {
    let path = format!("blobs/{}", digest(&random(8)));
    test.get(&path).await?.is(&[404])?.refuses(&["BLOB_UNKNOWN", "NAME_UNKNOWN"])?;
    test.head(&path).await?.is(&[404])?.holds(b"")?;
    Ok(())
}

async fn unknown_repository(test: &Test) -> anyhow::Result<()> {
    let answer = test.get("manifests/latest").await?;
    answer.is(&[404])?.refuses(&["NAME_UNKNOWN", "MANIFEST_UNKNOWN"])?;
    Ok(())
}

/// A digest that is known alone gives nothing away.
async fn blob_of_another_repository(test: &Test) -> anyhow::Result<()> {
    let digest = test.push_blob(&random(100)).await?;
    test.other().get(&format!("blobs/{digest}")).await?.is(&[404])?;
    Ok(())
}

/// RFC 9110 section 13.1.2: whoever has it gets it not again.
async fn if_none_match(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "latest").await?;
    let path = test.path("manifests/latest");
    let etag = test.get("manifests/latest").await?.header("etag").unwrap_or_default().to_owned();
    let headers = [("accept", IMAGE), ("if-none-match", etag.as_str())];
    let again = test.registry.ask(Method::GET, &path, &headers, "").await?;
    again.is(&[304])?.holds(b"")?;
    let headers = [("accept", IMAGE), ("if-none-match", "\"other\"")];
    let other = test.registry.ask(Method::GET, &path, &headers, "").await?;
    other.is(&[200])?.holds(&image.bytes())?;
    Ok(())
}

async fn many_at_once(test: &Test) -> anyhow::Result<()> {
    let content = random(300_000);
    let digest = test.push_blob(&content).await?;
    let path = format!("blobs/{digest}");
    let asked = (0..32).map(|_| async { test.get(&path).await?.is(&[200])?.holds(&content) });
    futures::future::try_join_all(asked).await?;
    Ok(())
}
