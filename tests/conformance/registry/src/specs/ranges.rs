//! Ranges of blobs (RFC 9110 section 14).

use hyper::Method;

use crate::client::Answer;
use crate::content::random;
use crate::spec::Test;

crate::specs! {
    parts, from_an_offset, the_end, beyond_the_end, backwards, several, other_unit, of_a_large_blob, if_range, of_an_empty_blob,
    offered,
}

const SIZE: usize = 2048;

async fn blob(test: &Test) -> anyhow::Result<(Vec<u8>, String)> {
    let content = random(SIZE);
    let digest = test.push_blob(&content).await?;
    Ok((content, test.path(&format!("blobs/{digest}"))))
}

async fn ask(test: &Test, path: &str, range: &str) -> anyhow::Result<Answer> {
    test.registry.ask(Method::GET, path, &[("range", range)], "").await
}

fn part(answer: Answer, content: &[u8], begin: usize, last: usize) -> anyhow::Result<()> {
    let answer = answer.is(&[206])?.says("content-length", &(last + 1 - begin).to_string())?;
    let answer = answer.says("content-range", &format!("bytes {begin}-{last}/{}", content.len()))?;
    answer.holds(&content[begin..=last])?;
    Ok(())
}

async fn parts(test: &Test) -> anyhow::Result<()> {
    let (content, path) = blob(test).await?;
    for (begin, last) in [(0, 0), (0, 99), (500, 1499), (2047, 2047), (0, 2047)] {
        part(ask(test, &path, &format!("bytes={begin}-{last}")).await?, &content, begin, last)?;
    }
    Ok(())
}

async fn from_an_offset(test: &Test) -> anyhow::Result<()> {
    let (content, path) = blob(test).await?;
    part(ask(test, &path, "bytes=500-").await?, &content, 500, SIZE - 1)
}

async fn the_end(test: &Test) -> anyhow::Result<()> {
    let (content, path) = blob(test).await?;
    part(ask(test, &path, "bytes=-500").await?, &content, SIZE - 500, SIZE - 1)?;
    // More than there is means all of it.
    part(ask(test, &path, "bytes=-5000").await?, &content, 0, SIZE - 1)
}

async fn beyond_the_end(test: &Test) -> anyhow::Result<()> {
    let (content, path) = blob(test).await?;
    part(ask(test, &path, "bytes=2000-5000").await?, &content, 2000, SIZE - 1)?;
    for range in ["bytes=2048-", "bytes=5000-10000"] {
        let answer = ask(test, &path, range).await?.is(&[416])?;
        answer.says("content-range", &format!("bytes */{SIZE}"))?;
    }
    Ok(())
}

async fn backwards(test: &Test) -> anyhow::Result<()> {
    let (_, path) = blob(test).await?;
    ask(test, &path, "bytes=500-0").await?.is(&[416])?;
    Ok(())
}

/// Each in a part of its own, or the whole.
async fn several(test: &Test) -> anyhow::Result<()> {
    let (content, path) = blob(test).await?;
    let answer = ask(test, &path, "bytes=0-9,100-109").await?.is(&[200, 206])?;
    if answer.status.as_u16() == 200 {
        answer.holds(&content)?;
    } else {
        let kind = answer.header("content-type").unwrap_or_default();
        anyhow::ensure!(kind.starts_with("multipart/byteranges"), "{kind}");
    }
    Ok(())
}

/// "An origin server MUST ignore a Range header field that contains a range unit it does not understand."
async fn other_unit(test: &Test) -> anyhow::Result<()> {
    let (content, path) = blob(test).await?;
    ask(test, &path, "lines=0-1").await?.is(&[200])?.holds(&content)?;
    Ok(())
}

async fn of_a_large_blob(test: &Test) -> anyhow::Result<()> {
    let content = random(5 << 20);
    let path = test.path(&format!("blobs/{}", test.push_blob(&content).await?));
    for (begin, last) in [(1, (4 << 20) + 7), ((2 << 20) - 1, (5 << 20) - 1), (1_000_000, 1_000_000)] {
        part(ask(test, &path, &format!("bytes={begin}-{last}")).await?, &content, begin, last)?;
    }
    Ok(())
}

async fn if_range(test: &Test) -> anyhow::Result<()> {
    let (content, path) = blob(test).await?;
    let etag = test.registry.head(&path).await?.header("etag").unwrap_or_default().to_owned();
    let headers = [("range", "bytes=0-9"), ("if-range", etag.as_str())];
    part(test.registry.ask(Method::GET, &path, &headers, "").await?, &content, 0, 9)?;
    let headers = [("range", "bytes=0-9"), ("if-range", "\"other\"")];
    test.registry.ask(Method::GET, &path, &headers, "").await?.is(&[200])?.holds(&content)?;
    Ok(())
}

async fn of_an_empty_blob(test: &Test) -> anyhow::Result<()> {
    let path = test.path(&format!("blobs/{}", test.push_blob(b"").await?));
    ask(test, &path, "bytes=0-0").await?.is(&[416, 200])?;
    Ok(())
}

async fn offered(test: &Test) -> anyhow::Result<()> {
    let (_, path) = blob(test).await?;
    test.registry.head(&path).await?.is(&[200])?.says("accept-ranges", "bytes")?;
    Ok(())
}
