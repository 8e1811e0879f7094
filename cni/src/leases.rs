//! Addresses on disk: one file per address, in the format and place of the reference plugin `host-local`
//! (`DATA_DIR/NETWORK/ADDRESS`, container id and interface name on two lines), so that a node can change over.
//!
//! A lease is made by linking a finished file to its name: link(2) fails when the name exists, and a crash leaves either the whole
//! lease or none. A lost daemon or plugin therefore needs no lock and no repair.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

const LAST_RESERVED: &str = "last_reserved_ip.0";

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// CNI container id: the pod sandbox.
    pub container_id: String,
    /// Interface name inside the sandbox.
    pub interface: String,
}

/// One address in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// Its holder.
    pub owner: Owner,
    /// When it was made; the epoch when the file system does not say.
    pub since: SystemTime,
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// All addresses are in use.
    #[error("no free address in {subnet} ({used} in use)")]
    Exhausted {
        /// The range.
        subnet: IpNet,
        /// Leases in it.
        used: usize,
    },
    /// The store could not be read or written.
    #[error("failed to {act} {path}")]
    Store {
        /// The act.
        act: &'static str,
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The leases of one network.
#[derive(Clone, Debug)]
pub struct Leases {
    folder: PathBuf,
}

impl Leases {
    /// The leases of `network` under `data_dir`. Nothing is touched yet.
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self { folder: data_dir.join(network) }
    }

    /// The folder, for messages.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder.
    ///
    /// # Errors
    /// [`LeaseError::Store`].
    pub fn prepare(&self) -> Result<(), LeaseError> {
        fs::create_dir_all(&self.folder).map_err(|source| self.store("create", &self.folder, source))
    }

    /// All leases, in no order. A missing folder holds none; files that are no leases are left alone.
    ///
    /// # Errors
    /// [`LeaseError::Store`].
    pub fn all(&self) -> Result<Vec<Lease>, LeaseError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.store("list", &self.folder, source)),
        };
        Ok(entries.filter_map(|entry| self.read(&entry.ok()?.file_name().to_string_lossy())).collect())
    }

    fn read(&self, name: &str) -> Option<Lease> {
        let address = name.parse().ok()?;
        let path = self.folder.join(name);
        let text = fs::read_to_string(&path).ok()?;
        let mut lines = text.lines().map(str::trim);
        let owner = Owner {
            container_id: lines.next().unwrap_or_default().to_owned(),
            interface: lines.next().unwrap_or_default().to_owned(),
        };
        let since =
            fs::metadata(&path).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        Some(Lease { address, owner, since })
    }

    /// The address of `subnet` that the owner holds already, or the next free one after the last that was given out.
    ///
    /// The network's first address belongs to the bridge and is never given out, nor is an IPv4 broadcast address.
    ///
    /// # Errors
    /// [`LeaseError::Exhausted`] or [`LeaseError::Store`].
    pub fn acquire(&self, subnet: IpNet, owner: &Owner) -> Result<IpAddr, LeaseError> {
        self.prepare()?;
        let taken = self.all()?;
        let inside: Vec<&Lease> = taken.iter().filter(|lease| subnet.contains(&lease.address)).collect();
        if let Some(mine) = inside.iter().find(|lease| &lease.owner == owner) {
            return Ok(mine.address);
        }
        let finished = self.write_unnamed(owner)?;
        let last = fs::read_to_string(self.folder.join(LAST_RESERVED))
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let mut claimed = None;
        for address in plan_candidates(subnet, last) {
            if inside.iter().any(|lease| lease.address == address) {
                continue;
            }
            let path = self.folder.join(address.to_string());
            match fs::hard_link(&finished, &path) {
                Ok(()) => {
                    claimed = Some(address);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    let _ = fs::remove_file(&finished);
                    return Err(self.store("create", &path, source));
                }
            }
        }
        let _ = fs::remove_file(&finished);
        let address = claimed.ok_or(LeaseError::Exhausted { subnet, used: inside.len() })?;
        self.remember(address);
        Ok(address)
    }

    /// Frees every address of the owner and returns them; none is fine.
    ///
    /// # Errors
    /// [`LeaseError::Store`].
    pub fn release(&self, owner: &Owner) -> Result<Vec<IpAddr>, LeaseError> {
        let mut freed = Vec::new();
        for lease in self.all()?.into_iter().filter(|lease| &lease.owner == owner) {
            let path = self.folder.join(lease.address.to_string());
            match fs::remove_file(&path) {
                Ok(()) => freed.push(lease.address),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(self.store("remove", &path, source)),
            }
        }
        Ok(freed)
    }

    /// Frees the leases older than `age` whose attachment is gone, as `is_gone` says, and returns them.
    ///
    /// The age protects an ADD that has its address but not yet its interface.
    ///
    /// # Errors
    /// [`LeaseError::Store`].
    pub fn collect(
        &self,
        age: Duration,
        now: SystemTime,
        is_gone: impl Fn(&Owner) -> bool,
    ) -> Result<Vec<Lease>, LeaseError> {
        let mut freed = Vec::new();
        for lease in self.all()? {
            let old = now.duration_since(lease.since).is_ok_and(|passed| passed >= age);
            if old && is_gone(&lease.owner) {
                self.release(&lease.owner)?;
                freed.push(lease);
            }
        }
        Ok(freed)
    }

    fn write_unnamed(&self, owner: &Owner) -> Result<PathBuf, LeaseError> {
        let path = self.folder.join(format!(".new-{}-{}", owner.container_id, std::process::id()));
        let write = || {
            let mut file = fs::File::create(&path)?;
            write!(file, "{}\r\n{}", owner.container_id, owner.interface)
        };
        write().map_err(|source| self.store("write", &path, source))?;
        Ok(path)
    }

    /// Only a hint for the next search: losing it costs nothing.
    fn remember(&self, address: IpAddr) {
        let path = self.folder.join(format!(".last-{}", std::process::id()));
        if fs::write(&path, address.to_string()).is_ok() {
            let _ = fs::rename(&path, self.folder.join(LAST_RESERVED));
        }
    }

    fn store(&self, act: &'static str, path: &Path, source: io::Error) -> LeaseError {
        LeaseError::Store { act, path: path.to_owned(), source }
    }
}

/// The bridge's address in a subnet: the first one.
pub fn gateway(subnet: IpNet) -> Option<IpAddr> {
    add(subnet.network(), 1).filter(|address| subnet.contains(address))
}

/// At most this many candidates of a (v6) range are tried: more than a node can have pods.
const CANDIDATES: u128 = 65_536;

/// Every address that may be given out, beginning after `last` and going round.
fn plan_candidates(subnet: IpNet, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
    let host_bits = u32::from(subnet.max_prefix_len() - subnet.prefix_len());
    let size = 1u128.checked_shl(host_bits).unwrap_or(u128::MAX).min(CANDIDATES);
    // Without network and gateway address in front, and without the broadcast address behind.
    let broadcast = u128::from(matches!(subnet, IpNet::V4(_)));
    let usable = size.saturating_sub(2 + broadcast);
    let start = last
        .filter(|last| subnet.contains(last))
        .and_then(|last| offset(subnet, last).checked_sub(1))
        .map_or(0, |offset| offset % usable.max(1));
    (0..usable).filter_map(move |step| add(subnet.network(), 2 + (start + step) % usable))
}

fn offset(subnet: IpNet, address: IpAddr) -> u128 {
    number(address).saturating_sub(number(subnet.network()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn add(address: IpAddr, offset: u128) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let sum = u32::from(address).checked_add(u32::try_from(offset).ok()?)?;
            Some(IpAddr::V4(sum.into()))
        }
        IpAddr::V6(address) => Some(IpAddr::V6(u128::from(address).checked_add(offset)?.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner { container_id: name.to_owned(), interface: "eth0".to_owned() }
    }

    fn leases() -> (tempfile::TempDir, Leases) {
        let folder = tempfile::tempdir().unwrap();
        let leases = Leases::new(folder.path(), "orlop");
        (folder, leases)
    }

    #[test]
    fn addresses_go_round_and_a_retry_gets_the_same() {
        let (_folder, leases) = leases();
        let subnet: IpNet = "10.0.0.0/29".parse().unwrap();
        let given: Vec<String> = ["a", "b", "a", "c"]
            .iter()
            .map(|name| leases.acquire(subnet, &owner(name)).unwrap().to_string())
            .collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.2", "10.0.0.4"]);
        assert_eq!(leases.release(&owner("a")).unwrap().len(), 1);
        // The freed address is not reused at once: caches of the old holder may still name it.
        for (name, wanted) in [("d", "10.0.0.5"), ("e", "10.0.0.6"), ("f", "10.0.0.2")] {
            assert_eq!(leases.acquire(subnet, &owner(name)).unwrap().to_string(), wanted);
        }
        let error = leases.acquire(subnet, &owner("g")).unwrap_err().to_string();
        assert_eq!(error, "no free address in 10.0.0.0/29 (5 in use)");
        assert!(leases.release(&owner("nobody")).unwrap().is_empty());
        let left: Vec<_> =
            fs::read_dir(leases.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 6, "{left:?}");
    }

    #[test]
    fn parallel_claims_never_collide() {
        let (_folder, leases) = leases();
        let subnet: IpNet = "10.0.0.0/25".parse().unwrap();
        let mut given: Vec<IpAddr> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let leases = leases.clone();
                    scope.spawn(move || {
                        (0..12)
                            .map(|n| leases.acquire(subnet, &owner(&format!("{thread}-{n}"))).unwrap())
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        given.sort();
        given.dedup();
        assert_eq!(given.len(), 96);
    }

    #[test]
    fn only_old_leases_without_attachment_are_collected() {
        let (_folder, leases) = leases();
        let subnet: IpNet = "10.0.0.0/24".parse().unwrap();
        for name in ["alive", "dead"] {
            leases.acquire(subnet, &owner(name)).unwrap();
        }
        let is_gone = |owner: &Owner| owner.container_id == "dead";
        let now = SystemTime::now();
        assert!(leases.collect(Duration::from_secs(60), now, is_gone).unwrap().is_empty());
        let freed = leases.collect(Duration::from_secs(60), now + Duration::from_secs(61), is_gone).unwrap();
        assert_eq!(freed.len(), 1);
        assert_eq!(leases.all().unwrap().len(), 1);
    }

    #[test]
    fn six_has_no_broadcast_and_large_ranges_are_bounded() {
        let subnet: IpNet = "fd00::/126".parse().unwrap();
        let all: Vec<String> = plan_candidates(subnet, None).map(|address| address.to_string()).collect();
        assert_eq!(all, ["fd00::2", "fd00::3"]);
        assert_eq!(plan_candidates("fd00::/64".parse().unwrap(), None).count(), 65_534);
        assert_eq!(gateway(subnet).unwrap().to_string(), "fd00::1");
        assert_eq!(plan_candidates("10.0.0.0/31".parse().unwrap(), None).count(), 0);
    }
}
