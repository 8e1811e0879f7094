//! The name servers that other names are asked for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use orlop_daemon::Frame;

use crate::Config;

const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// As resolv.conf(5): MAXNS is 3; a few more do no harm.
const MOST: usize = 8;

/// The current list; empty means that nothing can be forwarded.
pub(crate) type Upstreams = Arc<ArcSwap<Vec<SocketAddr>>>;

/// Reads the list and, when it comes from resolv.conf, keeps it current.
pub(crate) fn start(frame: &Frame, config: &Arc<Config>) -> Upstreams {
    if !config.upstreams.is_empty() {
        return Arc::new(ArcSwap::from_pointee(without_own(config.upstreams.clone(), &config.listen)));
    }
    let upstreams = Arc::new(ArcSwap::from_pointee(read(config)));
    let (current, config, drain) = (upstreams.clone(), config.clone(), frame.drain());
    frame.spawn("dns-upstreams", async move {
        let mut seen = modified(&config);
        while drain.sleep(LOOK_AGAIN).await {
            let now = modified(&config);
            if now != seen {
                seen = now;
                current.store(Arc::new(read(&config)));
            }
        }
        Ok(())
    });
    upstreams
}

fn modified(config: &Config) -> Option<SystemTime> {
    std::fs::metadata(&config.resolv_conf).and_then(|metadata| metadata.modified()).ok()
}

fn read(config: &Config) -> Vec<SocketAddr> {
    let path = config.resolv_conf.display();
    let list = match std::fs::read_to_string(&config.resolv_conf) {
        Ok(text) => without_own(parse(&text), &config.listen),
        Err(error) => {
            tracing::warn!(%path, %error, "no name servers: the file cannot be read");
            Vec::new()
        }
    };
    tracing::info!(%path, upstreams = ?list, "name servers for other names");
    list
}

/// The `nameserver` lines of a resolv.conf(5).
fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let keyword = words.next()?;
        // A zone suffix (fe80::1%eth0) is not needed to reach a name server of ours.
        let address = words.next()?.split('%').next()?;
        (keyword == "nameserver").then(|| address.parse::<IpAddr>().ok()).flatten()
    });
    servers.map(|ip| SocketAddr::new(ip, 53)).take(MOST).collect()
}

/// Asking ourselves would go round for ever.
fn without_own(list: Vec<SocketAddr>, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_own = |address: &SocketAddr| {
        own.iter().any(|own| {
            own.port() == address.port() && (own.ip() == address.ip() || own.ip().is_unspecified())
        })
    };
    let (loops, list): (Vec<_>, Vec<_>) = list.into_iter().partition(is_own);
    if !loops.is_empty() {
        tracing::warn!(?loops, "name servers left out: they are this server");
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_without_ourselves() {
        let text = "# c\nsearch a b\nnameserver 10.96.0.10\nnameserver 192.0.2.1\n  nameserver fe80::1%eth0\nnameserver x\noptions ndots:5\n";
        let own = ["10.96.0.10:53".parse().unwrap()];
        let found: Vec<_> = without_own(parse(text), &own).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[fe80::1]:53"]);
    }
}
