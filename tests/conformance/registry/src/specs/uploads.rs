//! "Pushing blobs": in one piece, in chunks, resumed, cancelled.

use bytes::Bytes;
use hyper::Method;

use crate::client::{Answer, with};
use crate::content::{digest, digest_512, random};
use crate::spec::Test;

crate::specs! {
    post_then_put, single_post, streamed, chunked, last_chunk_with_the_put, out_of_order, out_of_order_at_the_end,
    status, status_of_nothing, resumed_after_a_cut, cancelled, wrong_digest, wrong_digest_in_one_post, no_digest, bad_digest,
    unknown_session, session_of_another_repository, empty_blob, same_blob_twice, sha512, sha512_announced,
    unknown_algorithm, nothing_is_visible_before_the_end, large, bad_content_range, two_at_once,
}

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

async fn patch(test: &Test, target: &str, range: Option<&str>, body: &[u8]) -> anyhow::Result<Answer> {
    let mut headers = vec![OCTETS];
    headers.extend(range.map(|range| ("content-range", range)));
    test.registry.ask(Method::PATCH, target, &headers, body.to_vec()).await
}

async fn put(
    test: &Test,
    target: &str,
    digest: &str,
    range: Option<&str>,
    body: &[u8],
) -> anyhow::Result<Answer> {
    let mut headers = vec![OCTETS];
    headers.extend(range.map(|range| ("content-range", range)));
    test.registry.ask(Method::PUT, &with(target, &format!("digest={digest}")), &headers, body.to_vec()).await
}

/// The blob is there and whole.
async fn pulled(test: &Test, digest: &str, content: &[u8]) -> anyhow::Result<()> {
    test.get(&format!("blobs/{digest}")).await?.is(&[200])?.holds(content)?;
    Ok(())
}

async fn post_then_put(test: &Test) -> anyhow::Result<()> {
    let content = random(512);
    let location = test.begin().await?;
    let answer = put(test, &location, &digest(&content), None, &content).await?.is(&[201])?;
    // "MUST have a Location": where it is pulled from.
    let location = answer.location()?;
    test.registry.get(&location).await?.is(&[200])?.holds(&content)?;
    Ok(())
}

async fn single_post(test: &Test) -> anyhow::Result<()> {
    let content = random(512);
    let path = with(&test.path("blobs/uploads/"), &format!("digest={}", digest(&content)));
    let answer = test.registry.ask(Method::POST, &path, &[OCTETS], content.clone()).await?;
    answer.is(&[201])?.location()?;
    pulled(test, &digest(&content), &content).await
}

/// A PATCH that says no range: "stream".
async fn streamed(test: &Test) -> anyhow::Result<()> {
    let content = random(70_000);
    let location = test.begin().await?;
    let answer = patch(test, &location, None, &content).await?.is(&[202])?.says("range", "0-69999")?;
    put(test, &answer.location()?, &digest(&content), None, b"").await?.is(&[201])?;
    pulled(test, &digest(&content), &content).await
}

async fn chunked(test: &Test) -> anyhow::Result<()> {
    let content = random(3000);
    let mut location = test.begin().await?;
    for (range, until) in [("0-999", 999), ("1000-1999", 1999), ("2000-2999", 2999)] {
        let begin = until + 1 - 1000;
        let answer = patch(test, &location, Some(range), &content[begin..=until]).await?.is(&[202])?;
        location = answer.says("range", &format!("0-{until}"))?.location()?;
    }
    put(test, &location, &digest(&content), None, b"").await?.is(&[201])?;
    pulled(test, &digest(&content), &content).await
}

async fn last_chunk_with_the_put(test: &Test) -> anyhow::Result<()> {
    let content = random(2000);
    let location = test.begin().await?;
    let answer = patch(test, &location, Some("0-999"), &content[..1000]).await?.is(&[202])?;
    let done = put(test, &answer.location()?, &digest(&content), Some("1000-1999"), &content[1000..]).await?;
    done.is(&[201])?;
    pulled(test, &digest(&content), &content).await
}

/// "the registry MUST respond with a 416", and the upload goes on.
async fn out_of_order(test: &Test) -> anyhow::Result<()> {
    let content = random(3000);
    let location = test.begin().await?;
    patch(test, &location, Some("1000-1999"), &content[1000..2000]).await?.is(&[416])?;
    let answer = patch(test, &location, Some("0-999"), &content[..1000]).await?.is(&[202])?;
    let location = answer.location()?;
    for wrong in ["2000-2999", "0-999"] {
        patch(test, &location, Some(wrong), &content[..1000]).await?.is(&[416])?;
    }
    let state = test.registry.get(&location).await?.is(&[204])?.says("range", "0-999")?;
    let answer = patch(test, &state.location()?, Some("1000-2999"), &content[1000..]).await?.is(&[202])?;
    put(test, &answer.location()?, &digest(&content), None, b"").await?.is(&[201])?;
    pulled(test, &digest(&content), &content).await
}

async fn out_of_order_at_the_end(test: &Test) -> anyhow::Result<()> {
    let content = random(2000);
    let location = test.begin().await?;
    let answer = patch(test, &location, Some("0-999"), &content[..1000]).await?.is(&[202])?;
    let location = answer.location()?;
    put(test, &location, &digest(&content), Some("1500-2499"), &content[1000..]).await?.is(&[416])?;
    put(test, &location, &digest(&content), Some("1000-1999"), &content[1000..]).await?.is(&[201])?;
    pulled(test, &digest(&content), &content).await
}

async fn status(test: &Test) -> anyhow::Result<()> {
    let location = test.begin().await?;
    let answer = patch(test, &location, None, &random(500)).await?.is(&[202])?;
    let state = test.registry.get(&answer.location()?).await?.is(&[204])?.says("range", "0-499")?;
    state.location()?;
    Ok(())
}

async fn status_of_nothing(test: &Test) -> anyhow::Result<()> {
    let location = test.begin().await?;
    test.registry.get(&location).await?.is(&[204])?.says("range", "0-0")?;
    Ok(())
}

/// A connection that ends in the middle: the client asks how far it came, and goes on from there.
async fn resumed_after_a_cut(test: &Test) -> anyhow::Result<()> {
    let content = random(200_000);
    let location = test.begin().await?;
    test.registry.cut("PATCH", &location, content.len(), &content[..120_000]).await?;
    // The registry may still be busy with what arrived.
    let mut state = None;
    for _ in 0..200 {
        let answer = test.registry.get(&location).await?.is(&[204])?;
        let known = answer.header("range").and_then(|range| range.strip_prefix("0-")?.parse::<usize>().ok());
        if let Some(last) = known.filter(|last| *last > 0) {
            state = Some((answer.location()?, last + 1));
            if last + 1 == 120_000 {
                break;
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let (location, arrived) = state.ok_or_else(|| anyhow::anyhow!("nothing of the cut body was kept"))?;
    anyhow::ensure!(arrived <= 120_000, "{arrived} bytes are said to be here");
    let range = format!("{arrived}-{}", content.len() - 1);
    let answer = patch(test, &location, Some(&range), &content[arrived..]).await?.is(&[202])?;
    put(test, &answer.location()?, &digest(&content), None, b"").await?.is(&[201])?;
    pulled(test, &digest(&content), &content).await
}

async fn cancelled(test: &Test) -> anyhow::Result<()> {
    let location = test.begin().await?;
    let answer = patch(test, &location, None, b"some").await?.is(&[202])?;
    let location = answer.location()?;
    test.registry.ask(Method::DELETE, &location, &[], "").await?.is(&[204])?;
    test.registry.get(&location).await?.is(&[404])?;
    patch(test, &location, None, b"more").await?.is(&[404])?.refuses(&["BLOB_UPLOAD_UNKNOWN"])?;
    Ok(())
}

async fn wrong_digest(test: &Test) -> anyhow::Result<()> {
    let location = test.begin().await?;
    let wanted = digest(&random(10));
    put(test, &location, &wanted, None, b"other").await?.is(&[400])?.refuses(&["DIGEST_INVALID"])?;
    test.get(&format!("blobs/{wanted}")).await?.is(&[404])?;
    test.get(&format!("blobs/{}", digest(b"other"))).await?.is(&[404])?;
    Ok(())
}

async fn wrong_digest_in_one_post(test: &Test) -> anyhow::Result<()> {
    let wanted = digest(&random(10));
    let path = with(&test.path("blobs/uploads/"), &format!("digest={wanted}"));
    let answer = test.registry.ask(Method::POST, &path, &[OCTETS], "other").await?;
    answer.is(&[400])?.refuses(&["DIGEST_INVALID"])?;
    test.get(&format!("blobs/{wanted}")).await?.is(&[404])?;
    Ok(())
}

async fn no_digest(test: &Test) -> anyhow::Result<()> {
    let location = test.begin().await?;
    let answer = test.registry.ask(Method::PUT, &location, &[OCTETS], "content").await?;
    answer.is(&[400])?.refuses(&["DIGEST_INVALID"])?;
    Ok(())
}

async fn bad_digest(test: &Test) -> anyhow::Result<()> {
    for wrong in ["sha256:12", "sha256", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:..%2F..%2Fetc"] {
        let location = test.begin().await?;
        put(test, &location, wrong, None, b"content").await?.is(&[400])?.refuses(&["DIGEST_INVALID"])?;
    }
    Ok(())
}

async fn unknown_session(test: &Test) -> anyhow::Result<()> {
    let location = test.path("blobs/uploads/2ba2e3a0-0000-4000-8000-000000000000");
    let codes = ["BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"];
    test.registry.get(&location).await?.is(&[404])?.refuses(&codes)?;
    patch(test, &location, None, b"x").await?.is(&[404])?.refuses(&codes)?;
    put(test, &location, &digest(b"x"), None, b"x").await?.is(&[404])?.refuses(&codes)?;
    Ok(())
}

async fn session_of_another_repository(test: &Test) -> anyhow::Result<()> {
    let location = test.begin().await?;
    let elsewhere = location.replace(&test.repository, &test.other().repository);
    let content = random(50);
    let answer = put(test, &elsewhere, &digest(&content), None, &content).await?;
    anyhow::ensure!(answer.status.is_client_error(), "{}: {}", answer.question, answer.status);
    test.other().get(&format!("blobs/{}", digest(&content))).await?.is(&[404])?;
    Ok(())
}

async fn empty_blob(test: &Test) -> anyhow::Result<()> {
    let digest = test.push_blob(b"").await?;
    let answer = test.get(&format!("blobs/{digest}")).await?.is(&[200])?;
    answer.says("content-length", "0")?.holds(b"")?;
    Ok(())
}

async fn same_blob_twice(test: &Test) -> anyhow::Result<()> {
    let content = random(100);
    for _ in 0..2 {
        test.push_blob(&content).await?;
    }
    pulled(test, &digest(&content), &content).await
}

async fn sha512(test: &Test) -> anyhow::Result<()> {
    let content = random(1000);
    let wanted = digest_512(&content);
    let location = test.begin().await?;
    put(test, &location, &wanted, None, &content).await?.is(&[201])?;
    let answer = test.get(&format!("blobs/{wanted}")).await?.is(&[200])?;
    answer.says("docker-content-digest", &wanted)?.holds(&content)?;
    let location = test.begin().await?;
    put(test, &location, &digest_512(b"other"), None, &content).await?.is(&[400])?;
    Ok(())
}

/// "the post request SHOULD include the `digest-algorithm` parameter"
async fn sha512_announced(test: &Test) -> anyhow::Result<()> {
    let content = random(1000);
    let path = test.path("blobs/uploads/?digest-algorithm=sha512");
    let location = test.registry.ask(Method::POST, &path, &[], "").await?.is(&[202])?.location()?;
    let answer = patch(test, &location, Some("0-999"), &content).await?.is(&[202])?;
    let wanted = digest_512(&content);
    put(test, &answer.location()?, &wanted, None, b"").await?.is(&[201])?;
    pulled(test, &wanted, &content).await
}

async fn unknown_algorithm(test: &Test) -> anyhow::Result<()> {
    let path = test.path("blobs/uploads/?digest-algorithm=md5");
    test.registry.ask(Method::POST, &path, &[], "").await?.is(&[400])?.refuses(&["DIGEST_INVALID"])?;
    Ok(())
}

async fn nothing_is_visible_before_the_end(test: &Test) -> anyhow::Result<()> {
    let content = random(100);
    let location = test.begin().await?;
    let answer = patch(test, &location, None, &content).await?.is(&[202])?;
    test.get(&format!("blobs/{}", digest(&content))).await?.is(&[404])?;
    put(test, &answer.location()?, &digest(&content), None, b"").await?.is(&[201])?;
    pulled(test, &digest(&content), &content).await
}

async fn large(test: &Test) -> anyhow::Result<()> {
    let content = Bytes::from(random(24 << 20));
    let wanted = digest(&content);
    let target = with(&test.begin().await?, &format!("digest={wanted}"));
    test.registry.ask(Method::PUT, &target, &[OCTETS], content.clone()).await?.is(&[201])?;
    pulled(test, &wanted, &content).await
}

async fn bad_content_range(test: &Test) -> anyhow::Result<()> {
    for wrong in ["9-0", "a-b", "-", "5-9-10"] {
        let location = test.begin().await?;
        let answer = patch(test, &location, Some(wrong), b"content").await?;
        anyhow::ensure!([400, 416].contains(&answer.status.as_u16()), "{wrong:?}: {}", answer.status);
    }
    Ok(())
}

/// Two clients push the same blob: both are told that it is there.
async fn two_at_once(test: &Test) -> anyhow::Result<()> {
    let content = random(500_000);
    let pushes = (0..4).map(|_| test.push_blob(&content));
    futures::future::try_join_all(pushes).await?;
    pulled(test, &digest(&content), &content).await
}
