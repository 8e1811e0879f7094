//! "Listing Referrers".

use serde_json::{Value, json};

use crate::content::{IMAGE, INDEX, Image, descriptor, digest, index, random};
use crate::spec::Test;

crate::specs! {
    none, listed, subject_header, of_a_missing_subject, filtered, type_of_the_configuration, of_an_index, annotations,
    gone_when_deleted, bad_digest, of_its_own_repository, subject_may_come_later,
}

async fn list(test: &Test, digest: &str, query: &str) -> anyhow::Result<(Vec<Value>, Option<String>)> {
    let answer = test.get(&format!("referrers/{digest}{query}")).await?.is(&[200])?;
    let answer = answer.says("content-type", INDEX)?;
    let body = answer.json()?;
    anyhow::ensure!(body["schemaVersion"] == json!(2) && body["mediaType"] == json!(INDEX), "{body}");
    let found = body["manifests"].as_array().cloned();
    let found = found.ok_or_else(|| anyhow::anyhow!("no list of manifests in {body}"))?;
    Ok((found, answer.header("oci-filters-applied").map(str::to_owned)))
}

fn digests(found: &[Value]) -> Vec<&str> {
    let mut digests: Vec<&str> = found.iter().filter_map(|entry| entry["digest"].as_str()).collect();
    digests.sort_unstable();
    digests
}

async fn refer(test: &Test, subject: &Value, kind: &str) -> anyhow::Result<Image> {
    let image = Image::artifact(kind).with("subject", subject.clone());
    test.push(&image, &image.digest()).await?;
    Ok(image)
}

/// "an empty manifest list MUST be returned"
async fn none(test: &Test) -> anyhow::Result<()> {
    let digest = test.push(&Image::new(), "one").await?;
    anyhow::ensure!(list(test, &digest, "").await?.0.is_empty(), "there are some");
    let missing = crate::content::digest(&random(8));
    anyhow::ensure!(list(test, &missing, "").await?.0.is_empty(), "there are some");
    Ok(())
}

async fn listed(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "one").await?;
    let first = refer(test, &image.descriptor(), "application/vnd.example.one").await?;
    let second = refer(test, &image.descriptor(), "application/vnd.example.two").await?;
    let (found, filtered) = list(test, &image.digest(), "").await?;
    let mut wanted = [first.digest(), second.digest()];
    wanted.sort();
    anyhow::ensure!(digests(&found) == wanted && filtered.is_none(), "{found:?} {filtered:?}");
    for (image, kind) in [(first, "application/vnd.example.one"), (second, "application/vnd.example.two")] {
        let entry = found.iter().find(|entry| entry["digest"] == json!(image.digest()));
        let entry = entry.ok_or_else(|| anyhow::anyhow!("not listed"))?;
        let size = json!(image.bytes().len());
        anyhow::ensure!(entry["mediaType"] == json!(IMAGE) && entry["size"] == size, "{entry}");
        anyhow::ensure!(entry["artifactType"] == json!(kind), "{entry}");
    }
    Ok(())
}

/// "MUST respond with the response header OCI-Subject"
async fn subject_header(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "one").await?;
    let artifact = Image::artifact("application/vnd.example").with("subject", image.descriptor());
    test.push_blobs(&artifact).await?;
    let answer = test.put_manifest(&artifact.digest(), IMAGE, artifact.bytes()).await?.is(&[201])?;
    answer.says("oci-subject", &image.digest())?;
    Ok(())
}

async fn of_a_missing_subject(test: &Test) -> anyhow::Result<()> {
    let subject = descriptor(IMAGE, &random(123));
    let artifact = refer(test, &subject, "application/vnd.example").await?;
    let (found, _) = list(test, subject["digest"].as_str().unwrap_or_default(), "").await?;
    anyhow::ensure!(digests(&found) == [artifact.digest()], "{found:?}");
    Ok(())
}

async fn filtered(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "one").await?;
    let wanted = refer(test, &image.descriptor(), "application/vnd.example.sbom+json").await?;
    refer(test, &image.descriptor(), "application/vnd.example.other").await?;
    for kind in ["application/vnd.example.sbom+json", "application%2Fvnd.example.sbom%2Bjson"] {
        let (found, filtered) = list(test, &image.digest(), &format!("?artifactType={kind}")).await?;
        anyhow::ensure!(digests(&found) == [wanted.digest()], "{kind}: {found:?}");
        anyhow::ensure!(filtered.as_deref() == Some("artifactType"), "{filtered:?}");
    }
    let (found, _) = list(test, &image.digest(), "?artifactType=application/vnd.example.none").await?;
    anyhow::ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

/// "If the artifactType is empty or missing in the image manifest, … MUST be set to the config descriptor mediaType value."
async fn type_of_the_configuration(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "one").await?;
    let plain = Image::new().with("subject", image.descriptor());
    test.push(&plain, "two").await?;
    let (found, _) = list(test, &image.digest(), "").await?;
    anyhow::ensure!(found.len() == 1, "{found:?}");
    anyhow::ensure!(found[0]["artifactType"] == plain.manifest["config"]["mediaType"], "{found:?}");
    Ok(())
}

async fn of_an_index(test: &Test) -> anyhow::Result<()> {
    let (image, part) = (Image::new(), Image::new());
    test.push(&image, "one").await?;
    test.push(&part, "part").await?;
    let mut whole = index(&[part.descriptor()]);
    whole["subject"] = image.descriptor();
    test.put_manifest("plain", INDEX, whole.to_string())
        .await?
        .is(&[201])?
        .says("oci-subject", &image.digest())?;
    let (found, _) = list(test, &image.digest(), "").await?;
    // "If the artifactType is empty or missing in an index, the artifactType MUST be omitted."
    anyhow::ensure!(found.len() == 1 && found[0].get("artifactType").is_none(), "{found:?}");
    anyhow::ensure!(found[0]["mediaType"] == json!(INDEX), "{found:?}");
    Ok(())
}

async fn annotations(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "one").await?;
    let notes = json!({"org.example.b": "2", "org.example.a": "ä \" \\ 1"});
    let artifact = Image::artifact("application/vnd.example").with("subject", image.descriptor());
    test.push(&artifact.with("annotations", notes.clone()), "two").await?;
    let (found, _) = list(test, &image.digest(), "").await?;
    anyhow::ensure!(found.len() == 1 && found[0]["annotations"] == notes, "{found:?}");
    Ok(())
}

async fn gone_when_deleted(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "one").await?;
    let artifact = refer(test, &image.descriptor(), "application/vnd.example").await?;
    test.delete(&format!("manifests/{}", artifact.digest())).await?.is(&[202])?;
    let (found, _) = list(test, &image.digest(), "").await?;
    anyhow::ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

async fn bad_digest(test: &Test) -> anyhow::Result<()> {
    test.push(&Image::new(), "one").await?;
    for wrong in ["sha256:12", "nothing", "sha256:zz"] {
        test.get(&format!("referrers/{wrong}")).await?.is(&[400])?;
    }
    Ok(())
}

async fn of_its_own_repository(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "one").await?;
    test.other().push(&image, "one").await?;
    refer(test, &image.descriptor(), "application/vnd.example").await?;
    let (found, _) = list(&test.other(), &image.digest(), "").await?;
    anyhow::ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

async fn subject_may_come_later(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    let artifact = refer(test, &image.descriptor(), "application/vnd.example").await?;
    test.head(&format!("manifests/{}", image.digest())).await?.is(&[404])?;
    test.push(&image, "one").await?;
    let (found, _) = list(test, &digest(&image.bytes()), "").await?;
    anyhow::ensure!(digests(&found) == [artifact.digest()], "{found:?}");
    Ok(())
}
