//! "Listing Tags".

use serde_json::json;

use crate::content::{IMAGE, Image};
use crate::spec::Test;

crate::specs! { listed_in_order, none_of_them, paged, paged_to_the_end, from_a_tag, from_a_tag_that_is_not, unknown_repository, bad_count, gone_with_the_manifest }

const TAGS: [&str; 6] = ["1.0", "10", "2", "Zeta", "_a", "alpha"];

async fn tagged(test: &Test) -> anyhow::Result<Image> {
    let image = Image::with_layers(0);
    test.push_blobs(&image).await?;
    for tag in ["alpha", "10", "_a", "2", "Zeta", "1.0"] {
        test.put_manifest(tag, IMAGE, image.bytes()).await?.is(&[201])?;
    }
    Ok(image)
}

async fn list(test: &Test, query: &str) -> anyhow::Result<(Vec<String>, Option<String>)> {
    let answer = test.get(&format!("tags/list{query}")).await?.is(&[200])?;
    let body = answer.json()?;
    anyhow::ensure!(body["name"] == json!(test.repository), "{body}");
    let tags = body["tags"].as_array().cloned().unwrap_or_default();
    let tags = tags.iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect();
    Ok((tags, answer.header("link").map(str::to_owned)))
}

/// "ASCIIbetical"
async fn listed_in_order(test: &Test) -> anyhow::Result<()> {
    tagged(test).await?;
    let (tags, link) = list(test, "").await?;
    anyhow::ensure!(tags == TAGS && link.is_none(), "{tags:?} {link:?}");
    Ok(())
}

/// "When `n` is zero, this endpoint MUST return an empty list, and MUST NOT include a Link header."
async fn none_of_them(test: &Test) -> anyhow::Result<()> {
    tagged(test).await?;
    let (tags, link) = list(test, "?n=0").await?;
    anyhow::ensure!(tags.is_empty() && link.is_none(), "{tags:?} {link:?}");
    Ok(())
}

async fn paged(test: &Test) -> anyhow::Result<()> {
    tagged(test).await?;
    let (tags, link) = list(test, "?n=2").await?;
    anyhow::ensure!(tags == TAGS[..2], "{tags:?}");
    anyhow::ensure!(link.is_some_and(|link| link.contains("rel=\"next\"")), "no link to the next page");
    let (tags, link) = list(test, "?n=100").await?;
    anyhow::ensure!(tags == TAGS && link.is_none(), "{tags:?} {link:?}");
    Ok(())
}

/// By the links alone (RFC 5988).
async fn paged_to_the_end(test: &Test) -> anyhow::Result<()> {
    tagged(test).await?;
    let mut found = Vec::new();
    let mut query = "?n=4".to_owned();
    for _ in 0..4 {
        let (tags, link) = list(test, &query).await?;
        found.extend(tags);
        let Some(link) = link else { break };
        let target = link.trim_start_matches('<').split('>').next().unwrap_or_default().to_owned();
        query = format!("?{}", target.split_once('?').map_or("", |(_, query)| query));
    }
    anyhow::ensure!(found == TAGS, "{found:?}");
    Ok(())
}

async fn from_a_tag(test: &Test) -> anyhow::Result<()> {
    tagged(test).await?;
    let (tags, _) = list(test, "?last=2").await?;
    anyhow::ensure!(tags == TAGS[3..], "{tags:?}");
    let (tags, _) = list(test, "?n=2&last=10").await?;
    anyhow::ensure!(tags == TAGS[2..4], "{tags:?}");
    let (tags, link) = list(test, "?n=2&last=alpha").await?;
    anyhow::ensure!(tags.is_empty() && link.is_none(), "{tags:?} {link:?}");
    Ok(())
}

async fn from_a_tag_that_is_not(test: &Test) -> anyhow::Result<()> {
    tagged(test).await?;
    let (tags, _) = list(test, "?n=10&last=11").await?;
    anyhow::ensure!(tags == TAGS[2..], "{tags:?}");
    Ok(())
}

async fn unknown_repository(test: &Test) -> anyhow::Result<()> {
    test.get("tags/list").await?.is(&[404])?.refuses(&["NAME_UNKNOWN"])?;
    Ok(())
}

async fn bad_count(test: &Test) -> anyhow::Result<()> {
    tagged(test).await?;
    for wrong in ["-1", "x", "99999999999999999999999"] {
        let answer = test.get(&format!("tags/list?n={wrong}")).await?;
        answer.is(&[400])?;
    }
    Ok(())
}

async fn gone_with_the_manifest(test: &Test) -> anyhow::Result<()> {
    let image = tagged(test).await?;
    let other = Image::new();
    test.push(&other, "2").await?;
    test.delete(&format!("manifests/{}", image.digest())).await?.is(&[202])?;
    let (tags, _) = list(test, "").await?;
    anyhow::ensure!(tags == ["2"], "{tags:?}");
    Ok(())
}
