//! Mirrors of other nodes: what many nodes want, few fetch.
//!
//! Each blob and each manifest has three homes, the nodes that its name hashes to highest (rendezvous hashing, Thaler and Ravishankar,
//! 1996): a node that comes or goes moves only what was its own. Who misses asks a home, and a home asks the homes before it; the first
//! one goes upstream. A node without an answer goes upstream itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use orlop_types::Digest;

use super::protocol::PREFIX;
use crate::config::{Config, NodesConfig};
use crate::watched::Watched;

const HOMES: usize = 3;
/// A request that went so far is answered without other nodes: lists of nodes may differ while they change.
const HOP_LIMIT: u32 = 2;
/// How long a node that did not answer is left out.
const REST: Duration = Duration::from_secs(30);
/// Nodes that a list may have.
const NODE_LIMIT: usize = 10_000;

/// Another node's mirror.
pub(crate) struct NodePeer {
    pub(super) url: String,
    rests_until: Mutex<Option<Instant>>,
}

impl NodePeer {
    fn new(url: &str) -> Self {
        Self { url: url.to_owned(), rests_until: Mutex::default() }
    }

    fn rests(&self) -> bool {
        let until = *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn rest(&self) {
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REST);
    }
}

type List = Vec<Arc<NodePeer>>;

/// The nodes of the list.
pub(super) struct Nodes {
    own: Option<String>,
    pub(super) list: Arc<Watched<List>>,
}

impl Nodes {
    pub(super) fn open(config: &Config, nodes: &NodesConfig) -> anyhow::Result<Self> {
        let checked = config.clone();
        let parse =
            move |contents: &[Vec<u8>]| parse(contents.first().map_or(&[][..], Vec::as_slice), &checked);
        let list = Watched::open("list of nodes", vec![nodes.file.clone()], parse)?;
        let own = nodes.own.as_deref().map(|url| url.trim_end_matches('/').to_owned());
        Ok(Self { own, list: Arc::new(list) })
    }

    /// Whom to ask for `key`, a digest or an image's name, in order.
    pub(super) fn plan(&self, key: &str, hops: u32) -> Vec<Arc<NodePeer>> {
        if hops >= HOP_LIMIT {
            return Vec::new();
        }
        let list = self.list.get();
        let homes = homes(&list, key);
        let own = homes.iter().position(|home| Some(&home.url) == self.own.as_ref());
        let mut asked = match own {
            Some(rank) => homes[..rank].to_vec(),
            // A node that sent this on takes us for a home.
            None if hops > 0 => Vec::new(),
            None => {
                let mut homes = homes;
                let start =
                    weight(self.own.as_deref().unwrap_or_default(), key) as usize % homes.len().max(1);
                homes.rotate_left(start);
                homes
            }
        };
        asked.retain(|home| !home.rests());
        asked
    }
}

/// Where a node is asked for something of a repository.
pub(super) fn path(name: &str, kind: &str, reference: &str, hops: u32) -> String {
    format!("{PREFIX}fetch/v2/{name}/{kind}/{reference}?hop={}", hops + 1)
}

fn parse(text: &[u8], config: &Config) -> anyhow::Result<List> {
    let text = std::str::from_utf8(text).context("it is no text")?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let urls: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    anyhow::ensure!(urls.len() <= NODE_LIMIT, "more than {NODE_LIMIT} nodes");
    for url in &urls {
        if let Some(problem) = config.url_problem("nodes", url) {
            anyhow::bail!(problem);
        }
    }
    Ok(urls.iter().map(|url| Arc::new(NodePeer::new(url.trim_end_matches('/')))).collect())
}

fn homes(list: &List, key: &str) -> Vec<Arc<NodePeer>> {
    let mut weighed: Vec<_> = list.iter().map(|node| (weight(&node.url, key), node)).collect();
    weighed.sort_by(|(a, left), (b, right)| b.cmp(a).then_with(|| left.url.cmp(&right.url)));
    weighed.into_iter().take(HOMES).map(|(_, node)| node.clone()).collect()
}

fn weight(node: &str, key: &str) -> u64 {
    let hash = Digest::sha256(format!("{node}\n{key}").as_bytes());
    u64::from_str_radix(&hash.hex()[..16], 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(count: usize) -> List {
        (0..count).map(|number| Arc::new(NodePeer::new(&format!("https://node-{number}:5000")))).collect()
    }

    fn urls(nodes: &[Arc<NodePeer>]) -> Vec<String> {
        nodes.iter().map(|node| node.url.clone()).collect()
    }

    #[test]
    fn a_node_that_goes_moves_only_its_own() {
        let all = list(20);
        let mut share = std::collections::BTreeMap::new();
        for number in 0..400 {
            let key = Digest::sha256(format!("{number}").as_bytes()).to_string();
            let before = urls(&homes(&all, &key));
            assert_eq!(before.len(), HOMES);
            *share.entry(before[0].clone()).or_insert(0) += 1;
            let fewer: List = all.iter().filter(|node| node.url != "https://node-7:5000").cloned().collect();
            let after = urls(&homes(&fewer, &key));
            let kept: Vec<_> = before.iter().filter(|url| *url != "https://node-7:5000").collect();
            assert!(kept.iter().zip(&after).all(|(old, new)| *old == new), "{before:?} {after:?}");
        }
        assert!(share.len() == 20 && share.values().all(|count| (5..50).contains(count)), "{share:?}");
    }

    #[test]
    fn homes_ask_only_the_homes_before_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("nodes");
        let lines: Vec<String> =
            (1..10).map(|number| format!("http://127.0.0.1:{}", 5000 + number)).collect();
        std::fs::write(&file, format!("# nodes\n{}\n", lines.join("/\n"))).unwrap();
        let nodes = |own: &str| {
            let nodes = NodesConfig { file: file.clone(), own: Some(own.to_owned()) };
            Nodes::open(&Config::default(), &nodes).unwrap()
        };
        let key = "sha256:x";
        let ranked = urls(&homes(&nodes("").list.get(), key));
        for line in &lines {
            let rank = ranked.iter().position(|url| url == line);
            let asked = urls(&nodes(line).plan(key, 0));
            match rank {
                Some(rank) => assert_eq!(asked, ranked[..rank]),
                None => assert_eq!(asked.len(), HOMES),
            }
            assert_eq!(urls(&nodes(line).plan(key, 1)), ranked[..rank.unwrap_or(0)]);
            assert!(nodes(line).plan(key, HOP_LIMIT).is_empty());
        }
        let asking = nodes(lines.iter().find(|line| !ranked.contains(line)).unwrap());
        asking.plan(key, 0)[0].rest();
        assert_eq!(asking.plan(key, 0).len(), HOMES - 1);
        assert!(parse(b"ftp://x", &Config::default()).is_err());
        assert!(
            parse(b"http://192.0.2.1:5000", &Config::default()).is_err(),
            "another machine without a secret"
        );
        assert!(parse(&[0xff], &Config::default()).is_err());
    }
}
