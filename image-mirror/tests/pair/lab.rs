//! Hosts as network namespaces of their own, joined by a bridge; nothing of the machine's own is touched.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Lab {
    prefix: String,
    hosts: u8,
}

fn ip(words: &[&str]) {
    let output = Command::new("ip").args(words).output().expect("ip");
    assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Lab {
    pub(crate) fn new(hosts: u8) -> Self {
        let prefix = format!("omir{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { prefix, hosts };
        let switch = lab.switch();
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        for host in 1..=hosts {
            let (netns, port, address) =
                (lab.netns(host), format!("p{host}"), format!("{}/24", lab.address(host)));
            ip(&["netns", "add", &netns]);
            ip(&[
                "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &netns,
            ]);
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
            ip(&["-n", &netns, "link", "set", "lo", "up"]);
            ip(&["-n", &netns, "address", "add", &address, "dev", "eth0"]);
            ip(&["-n", &netns, "link", "set", "eth0", "up"]);
        }
        lab
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.prefix)
    }

    pub(crate) fn netns(&self, host: u8) -> String {
        format!("{}-{host}", self.prefix)
    }

    pub(crate) fn address(&self, host: u8) -> String {
        format!("198.18.0.{host}")
    }

    /// Takes a host off the bridge, or puts it back: nobody is told, packets are lost.
    pub(crate) fn connect(&self, host: u8, up: bool) {
        ip(&["-n", &self.switch(), "link", "set", &format!("p{host}"), if up { "up" } else { "down" }]);
    }

    /// Bytes that a host has sent, headers included.
    pub(crate) fn sent_bytes(&self, host: u8) -> u64 {
        let output = Command::new("ip")
            .args(["-n", &self.netns(host), "-s", "-j", "link", "show", "eth0"])
            .output()
            .expect("ip");
        let text: serde_json::Value = serde_json::from_slice(&output.stdout).expect("ip -j");
        text[0]["stats64"]["tx"]["bytes"].as_u64().expect("a counter")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for netns in (1..=self.hosts).map(|host| self.netns(host)).chain([self.switch()]) {
            let _ = Command::new("ip").args(["netns", "delete", &netns]).output();
        }
    }
}
