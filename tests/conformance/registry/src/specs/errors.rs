//! "Error Codes", and requests that are none.

use hyper::Method;

use crate::content::{IMAGE, Image, random};
use crate::spec::Test;

crate::specs! { error_bodies, unknown_endpoints, other_methods, names, long_names, escapes_of_a_name, digests, nothing_leaves_the_store }

async fn error_bodies(test: &Test) -> anyhow::Result<()> {
    let answer = test.get("manifests/latest").await?.is(&[404])?;
    let kind = answer.header("content-type").unwrap_or_default().to_owned();
    anyhow::ensure!(kind.starts_with("application/json"), "{kind}");
    answer.refuses(&["NAME_UNKNOWN", "MANIFEST_UNKNOWN"])?;
    Ok(())
}

async fn unknown_endpoints(test: &Test) -> anyhow::Result<()> {
    for path in ["/v3/", "/v2/a/nothing/b", "/v2/a/blobs", "/v1/_ping", "/v2//manifests/x"] {
        let answer = test.registry.get(path).await?;
        anyhow::ensure!(
            [301, 307, 308, 400, 404].contains(&answer.status.as_u16()),
            "{path}: {}",
            answer.status
        );
    }
    Ok(())
}

async fn other_methods(test: &Test) -> anyhow::Result<()> {
    test.push(&Image::new(), "one").await?;
    let digest = test.push_blob(&random(10)).await?;
    for (method, rest) in [
        (Method::POST, "manifests/one".to_owned()),
        (Method::PATCH, "manifests/one".to_owned()),
        (Method::PUT, format!("blobs/{digest}")),
        (Method::POST, format!("blobs/{digest}")),
        (Method::PUT, "tags/list".to_owned()),
        (Method::DELETE, "tags/list".to_owned()),
    ] {
        test.registry.ask(method, &test.path(&rest), &[], "").await?.is(&[405])?;
    }
    Ok(())
}

async fn names(test: &Test) -> anyhow::Result<()> {
    for name in ["a", "a/b/c/d/e", "a-b__c.d/0", "blobs/uploads/manifests"] {
        let there =
            Test { registry: test.registry.clone(), repository: format!("{}/{name}", test.repository) };
        there.push(&Image::with_layers(1), "one").await?;
        there.head("manifests/one").await?.is(&[200])?;
    }
    for name in ["Upper", "a..b", "-a", "a_", "a/.b", "_a", "a___b", "%C3%A4"] {
        let image = Image::with_layers(0);
        let path = format!("/v2/{}/{name}/manifests/one", test.repository);
        let put = test.registry.ask(Method::PUT, &path, &[("content-type", IMAGE)], image.bytes()).await?;
        anyhow::ensure!(put.status.is_client_error(), "{name:?}: {}", put.status);
        test.registry.get(&path).await?.is(&[400, 404])?;
    }
    Ok(())
}

async fn long_names(test: &Test) -> anyhow::Result<()> {
    let name = "a".repeat(300);
    let answer = test.registry.ask(Method::POST, &format!("/v2/{name}/blobs/uploads/"), &[], "").await?;
    answer.is(&[400, 404])?.refuses(&["NAME_INVALID"])?;
    Ok(())
}

/// A slash that is escaped is one (RFC 3986 section 2.4 leaves it to us), and never a way out.
async fn escapes_of_a_name(test: &Test) -> anyhow::Result<()> {
    for name in ["..%2F..%2Fetc", "a%2F..%2Fb", "%2e%2e", "a%00b", "a%0Ab"] {
        let answer = test.registry.get(&format!("/v2/{name}/manifests/one")).await?;
        anyhow::ensure!([301, 400, 404].contains(&answer.status.as_u16()), "{name:?}: {}", answer.status);
    }
    Ok(())
}

/// "if the client provided digest is invalid or uses an unsupported algorithm, the registry SHOULD respond with … 400"
async fn digests(test: &Test) -> anyhow::Result<()> {
    test.push(&Image::new(), "one").await?;
    for wrong in ["sha256:12", "sha256:xyz", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
        test.get(&format!("blobs/{wrong}")).await?.is(&[400])?.refuses(&["DIGEST_INVALID"])?;
        test.get(&format!("manifests/{wrong}")).await?.is(&[400])?;
    }
    Ok(())
}

async fn nothing_leaves_the_store(test: &Test) -> anyhow::Result<()> {
    test.push(&Image::new(), "one").await?;
    for path in [
        "blobs/sha256:../../../../etc/passwd",
        "blobs/..%2F..%2F..%2F..%2Fetc%2Fpasswd",
        "blobs/uploads/..%2F..%2Fconfig",
        "manifests/..%2F..%2F..%2Fetc%2Fpasswd",
    ] {
        let answer = test.get(path).await?;
        anyhow::ensure!(
            answer.status.is_client_error() || answer.status.is_redirection(),
            "{path}: {}",
            answer.status
        );
        anyhow::ensure!(!String::from_utf8_lossy(&answer.body).contains("root:"), "{path}");
    }
    Ok(())
}
