//! "Pushing Manifests".

use hyper::Method;
use serde_json::{Value, json};

use crate::content::{
    DOCKER_IMAGE, DOCKER_LIST, EMPTY, IMAGE, INDEX, Image, descriptor, digest, digest_512, index, random,
};
use crate::spec::Test;

crate::specs! {
    created, by_digest, wrong_digest, a_tag_moves, blob_that_is_missing, index_of_images, index_of_indices, empty_index,
    docker_image, docker_list, artifact, artifact_without_layers, unknown_configuration, unknown_fields, data_field,
    no_layers, layers_that_live_elsewhere, too_large, nearly_too_large, no_json, no_manifest, types_that_differ,
    parameters_of_the_type, no_type, sha512, tags_beside_a_digest, same_manifest_twice, in_two_repositories, odd_tags,
}

/// Pushed, and pulled as it was.
async fn kept(test: &Test, reference: &str, kind: &str, document: &Value) -> anyhow::Result<()> {
    let bytes = document.to_string().into_bytes();
    test.put_manifest(reference, kind, bytes.clone()).await?.is(&[201])?;
    for reference in [reference, &digest(&bytes)] {
        let answer = test.get(&format!("manifests/{reference}")).await?.is(&[200])?;
        answer.says("content-type", kind)?.holds(&bytes)?;
    }
    Ok(())
}

async fn created(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    let answer = test.put_manifest("latest", IMAGE, image.bytes()).await?.is(&[201])?;
    let answer = answer.says("docker-content-digest", &image.digest())?;
    test.registry.get(&answer.location()?).await?.is(&[200])?.holds(&image.bytes())?;
    Ok(())
}

async fn by_digest(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, &image.digest()).await?;
    test.get(&format!("manifests/{}", image.digest())).await?.is(&[200])?.holds(&image.bytes())?;
    Ok(())
}

async fn wrong_digest(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    let other = digest(b"other");
    let answer = test.put_manifest(&other, IMAGE, image.bytes()).await?;
    answer.is(&[400])?.refuses(&["DIGEST_INVALID", "MANIFEST_INVALID"])?;
    test.get(&format!("manifests/{other}")).await?.is(&[404])?;
    Ok(())
}

async fn a_tag_moves(test: &Test) -> anyhow::Result<()> {
    let (first, second) = (Image::new(), Image::new());
    for image in [&first, &second, &first] {
        test.push(image, "latest").await?;
        let answer = test.get("manifests/latest").await?.is(&[200])?;
        answer.says("docker-content-digest", &image.digest())?.holds(&image.bytes())?;
    }
    test.head(&format!("manifests/{}", second.digest())).await?.is(&[200])?;
    Ok(())
}

async fn blob_that_is_missing(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blob(&image.blobs[0]).await?;
    let answer = test.put_manifest("latest", IMAGE, image.bytes()).await?;
    answer.is(&[400, 404])?.refuses(&["MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "BLOB_UNKNOWN"])?;
    test.get("manifests/latest").await?.is(&[404])?;
    Ok(())
}

async fn index_of_images(test: &Test) -> anyhow::Result<()> {
    let images = [Image::new(), Image::new()];
    for image in &images {
        test.push(image, &image.digest()).await?;
    }
    let entries: Vec<Value> = images
        .iter()
        .zip(["amd64", "arm64"])
        .map(|(image, architecture)| {
            let mut entry = image.descriptor();
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        })
        .collect();
    kept(test, "index", INDEX, &index(&entries)).await
}

async fn index_of_indices(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, &image.digest()).await?;
    let inner = index(&[image.descriptor()]);
    kept(test, "inner", INDEX, &inner).await?;
    kept(test, "outer", INDEX, &index(&[descriptor(INDEX, inner.to_string().as_bytes())])).await
}

async fn empty_index(test: &Test) -> anyhow::Result<()> {
    kept(test, "empty", INDEX, &index(&[])).await
}

fn docker(image: &Image) -> Value {
    let mut manifest = image.manifest.clone();
    manifest["mediaType"] = json!(DOCKER_IMAGE);
    manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    for layer in manifest["layers"].as_array_mut().into_iter().flatten() {
        layer["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
    }
    manifest
}

async fn docker_image(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    kept(test, "docker", DOCKER_IMAGE, &docker(&image)).await
}

async fn docker_list(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    let part = docker(&image);
    kept(test, "part", DOCKER_IMAGE, &part).await?;
    let mut entry = descriptor(DOCKER_IMAGE, part.to_string().as_bytes());
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [entry]});
    kept(test, "list", DOCKER_LIST, &list).await
}

async fn artifact(test: &Test) -> anyhow::Result<()> {
    let artifact = Image::artifact("application/vnd.example.thing");
    test.push_blobs(&artifact).await?;
    kept(test, "artifact", IMAGE, &artifact.manifest).await
}

async fn artifact_without_layers(test: &Test) -> anyhow::Result<()> {
    let empty = descriptor(EMPTY, b"{}");
    test.push_blob(b"{}").await?;
    let artifact = Image::artifact("application/vnd.example").with("layers", json!([empty]));
    kept(test, "artifact", IMAGE, &artifact.manifest).await
}

async fn unknown_configuration(test: &Test) -> anyhow::Result<()> {
    let content = random(40);
    test.push_blob(&content).await?;
    let image = Image::with_layers(0).with("config", descriptor("application/vnd.example.config", &content));
    kept(test, "odd", IMAGE, &image.manifest).await
}

async fn unknown_fields(test: &Test) -> anyhow::Result<()> {
    let image = Image::new().with("org.example.field", json!({"deep": [1, null, "x"]}));
    test.push_blobs(&image).await?;
    kept(test, "odd", IMAGE, &image.manifest).await?;
    let mut whole = index(&[image.descriptor()]);
    whole["another"] = json!(1.5);
    kept(test, "index", INDEX, &whole).await
}

async fn data_field(test: &Test) -> anyhow::Result<()> {
    let mut image = Image::artifact("application/vnd.example");
    test.push_blobs(&image).await?;
    // base64 of {}
    image.manifest["config"]["data"] = json!("e30=");
    kept(test, "data", IMAGE, &image.manifest).await
}

async fn no_layers(test: &Test) -> anyhow::Result<()> {
    let image = Image::with_layers(0);
    test.push_blobs(&image).await?;
    kept(test, "bare", IMAGE, &image.manifest).await
}

async fn layers_that_live_elsewhere(test: &Test) -> anyhow::Result<()> {
    let mut image = Image::with_layers(1);
    test.push_blobs(&image).await?;
    let mut foreign = descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", &random(50));
    foreign["urls"] = json!(["https://store.example.com/layer"]);
    let mut layers = image.manifest["layers"].as_array().cloned().unwrap_or_default();
    layers.insert(0, foreign);
    image.manifest["layers"] = json!(layers);
    kept(test, "foreign", IMAGE, &image.manifest).await
}

async fn with_annotation(test: &Test, length: usize) -> anyhow::Result<Image> {
    let image = Image::new().with("annotations", json!({"org.example.large": "A".repeat(length)}));
    test.push_blobs(&image).await?;
    Ok(image)
}

/// "SHOULD respond … with a response code 413 Payload Too Large"
async fn too_large(test: &Test) -> anyhow::Result<()> {
    let image = with_annotation(test, 5 << 20).await?;
    test.put_manifest("large", IMAGE, image.bytes()).await?.is(&[413])?;
    test.get("manifests/large").await?.is(&[404])?;
    Ok(())
}

/// "at least 4 megabytes"
async fn nearly_too_large(test: &Test) -> anyhow::Result<()> {
    let image = with_annotation(test, 4_000_000).await?;
    kept(test, "large", IMAGE, &image.manifest).await
}

async fn no_json(test: &Test) -> anyhow::Result<()> {
    for wrong in ["", "{", "null", "[]", "\u{0}", "\"text\"", "{\"schemaVersion\":2"] {
        let answer = test.put_manifest("wrong", IMAGE, wrong).await?;
        answer.is(&[400])?.refuses(&["MANIFEST_INVALID"])?;
    }
    Ok(())
}

async fn no_manifest(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    let mut bad = image.manifest.clone();
    bad["config"]["digest"] = json!("sha256:12");
    for wrong in [json!({}), json!({"schemaVersion": 2}), bad] {
        let answer = test.put_manifest("wrong", IMAGE, wrong.to_string()).await?;
        anyhow::ensure!(answer.status.is_client_error(), "{wrong}: {}", answer.status);
    }
    test.get("manifests/wrong").await?.is(&[404])?;
    Ok(())
}

/// "clients MUST set the Content-Type header to the value specified by the mediaType field"
async fn types_that_differ(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    let answer = test.put_manifest("wrong", DOCKER_IMAGE, image.bytes()).await?;
    answer.is(&[400])?.refuses(&["MANIFEST_INVALID"])?;
    Ok(())
}

/// "The registry SHOULD ignore parameters on the Content-Type header"
async fn parameters_of_the_type(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    test.put_manifest("one", &format!("{IMAGE}; charset=utf-8"), image.bytes()).await?.is(&[201])?;
    test.get("manifests/one").await?.is(&[200])?.says("content-type", IMAGE)?;
    Ok(())
}

/// What the document says of itself is enough.
async fn no_type(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    let path = test.path("manifests/plain");
    test.registry.ask(Method::PUT, &path, &[], image.bytes()).await?.is(&[201])?;
    test.get("manifests/plain").await?.is(&[200])?.says("content-type", IMAGE)?;
    Ok(())
}

async fn sha512(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    let wanted = digest_512(&image.bytes());
    let answer = test.put_manifest(&wanted, IMAGE, image.bytes()).await?.is(&[201])?;
    answer.says("docker-content-digest", &wanted)?;
    let answer = test.get(&format!("manifests/{wanted}")).await?.is(&[200])?;
    answer.says("docker-content-digest", &wanted)?.holds(&image.bytes())?;
    Ok(())
}

/// end-7b
async fn tags_beside_a_digest(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push_blobs(&image).await?;
    let tags: Vec<String> = (0..10).map(|number| format!("t{number}")).collect();
    let query = tags.iter().map(|tag| format!("tag={tag}")).collect::<Vec<_>>().join("&");
    let answer = test.put_manifest(&format!("{}?{query}", image.digest()), IMAGE, image.bytes()).await?;
    let answer = answer.is(&[201])?;
    let said = answer.headers.get_all("oci-tag").iter().filter_map(|value| value.to_str().ok());
    let mut said: Vec<&str> = said.flat_map(|value| value.split(',')).map(str::trim).collect();
    said.sort_unstable();
    anyhow::ensure!(said == tags, "{said:?}");
    for tag in &tags {
        test.get(&format!("manifests/{tag}")).await?.is(&[200])?.holds(&image.bytes())?;
    }
    Ok(())
}

async fn same_manifest_twice(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    for _ in 0..2 {
        test.push(&image, "latest").await?;
    }
    test.get("manifests/latest").await?.is(&[200])?.holds(&image.bytes())?;
    Ok(())
}

async fn in_two_repositories(test: &Test) -> anyhow::Result<()> {
    let image = Image::new();
    test.push(&image, "latest").await?;
    test.other().get(&format!("manifests/{}", image.digest())).await?.is(&[404])?;
    test.other().push(&image, "latest").await?;
    test.delete(&format!("manifests/{}", image.digest())).await?.is(&[202])?;
    test.other().get("manifests/latest").await?.is(&[200])?.holds(&image.bytes())?;
    Ok(())
}

async fn odd_tags(test: &Test) -> anyhow::Result<()> {
    let image = Image::with_layers(0);
    test.push_blobs(&image).await?;
    for tag in ["_", "A.b-C_d", &"x".repeat(128), "0", "sha256-abc.sig"] {
        kept(test, tag, IMAGE, &image.manifest).await?;
    }
    for wrong in [".a", "-a", "a%20b", &"x".repeat(129), "a+b", "%C3%A4"] {
        let answer = test.put_manifest(wrong, IMAGE, image.bytes()).await?;
        anyhow::ensure!(answer.status.is_client_error(), "{wrong:?}: {}", answer.status);
    }
    Ok(())
}
