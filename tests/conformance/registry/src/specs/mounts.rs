//! "Mounting a blob from another repository".

use hyper::Method;

use crate::client::{Answer, with};
use crate::content::{digest, random};
use crate::spec::Test;

crate::specs! { mounted, without_a_source, from_where_it_is_not, missing, source_that_is_no_name, bytes_stay_when_the_source_goes }

async fn mount(test: &Test, digest: &str, from: Option<&str>) -> anyhow::Result<Answer> {
    let source = from.map(|from| format!("&from={from}")).unwrap_or_default();
    let path = test.path(&format!("blobs/uploads/?mount={digest}{source}"));
    test.registry.ask(Method::POST, &path, &[], "").await
}

async fn mounted(test: &Test) -> anyhow::Result<()> {
    let content = random(200);
    let digest = test.other().push_blob(&content).await?;
    let answer = mount(test, &digest, Some(&test.other().repository)).await?.is(&[201])?;
    let location = answer.location()?;
    test.registry.get(&location).await?.is(&[200])?.holds(&content)?;
    test.get(&format!("blobs/{digest}")).await?.is(&[200])?.holds(&content)?;
    Ok(())
}

/// Then it is the registry's choice; a refusal begins an upload.
async fn without_a_source(test: &Test) -> anyhow::Result<()> {
    let content = random(200);
    let digest = test.other().push_blob(&content).await?;
    let answer = mount(test, &digest, None).await?.is(&[201, 202])?;
    if answer.status.as_u16() == 202 {
        let target = with(&answer.location()?, &format!("digest={digest}"));
        test.registry.ask(Method::PUT, &target, &[], content.clone()).await?.is(&[201])?;
    }
    test.get(&format!("blobs/{digest}")).await?.is(&[200])?.holds(&content)?;
    Ok(())
}

async fn begins_an_upload(test: &Test, content: Vec<u8>, from: &str) -> anyhow::Result<()> {
    let digest = digest(&content);
    let location = mount(test, &digest, Some(from)).await?.is(&[202])?.location()?;
    test.get(&format!("blobs/{digest}")).await?.is(&[404])?;
    let target = with(&location, &format!("digest={digest}"));
    test.registry.ask(Method::PUT, &target, &[], content.clone()).await?.is(&[201])?;
    test.get(&format!("blobs/{digest}")).await?.is(&[200])?.holds(&content)?;
    Ok(())
}

async fn from_where_it_is_not(test: &Test) -> anyhow::Result<()> {
    let content = random(200);
    test.other().push_blob(&content).await?;
    test.other().other().push_blob(&random(10)).await?;
    begins_an_upload(test, content, &test.other().other().repository).await
}

async fn missing(test: &Test) -> anyhow::Result<()> {
    begins_an_upload(test, random(200), &test.other().repository).await
}

async fn source_that_is_no_name(test: &Test) -> anyhow::Result<()> {
    begins_an_upload(test, random(200), "..%2F..%2FUpper").await
}

async fn bytes_stay_when_the_source_goes(test: &Test) -> anyhow::Result<()> {
    let content = random(200);
    let digest = test.other().push_blob(&content).await?;
    mount(test, &digest, Some(&test.other().repository)).await?.is(&[201])?;
    test.other().delete(&format!("blobs/{digest}")).await?.is(&[202])?;
    test.get(&format!("blobs/{digest}")).await?.is(&[200])?.holds(&content)?;
    Ok(())
}
