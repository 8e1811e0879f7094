//! Addresses and ports of Services, chosen from what the stored Services use.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Chooses a free address: upstream's upper band first (dynamic addresses stay out of the lower band, where people choose by hand;
/// KEP-3070), from a random place.
pub(crate) fn free_address(range: Ipv4Net, used: &HashSet<Ipv4Addr>, random: u32) -> Option<Ipv4Addr> {
    let network = u32::from(range.network());
    // Neither the network address nor the broadcast address.
    let last = u32::from(range.broadcast()).checked_sub(network)?.checked_sub(1)?;
    let size = last + 1;
    let band = (size / 16).clamp(16, 256).min(size / 2);
    let upper = pick(band.max(1), last, random, |offset| !used.contains(&Ipv4Addr::from(network + offset)));
    let chosen =
        upper.or_else(|| pick(1, band, random, |offset| !used.contains(&Ipv4Addr::from(network + offset))));
    chosen.map(|offset| Ipv4Addr::from(network + offset))
}

/// Chooses a free node port, the lower band (up to 128 ports) last.
pub(crate) fn free_port(range: (u16, u16), used: &HashSet<u16>, random: u32) -> Option<u16> {
    let (first, last) = (u32::from(range.0), u32::from(range.1));
    let size = last - first + 1;
    let band = (size / 32).clamp(16, 128).min(size / 2);
    let is_free = |port: u32| u16::try_from(port).is_ok_and(|port| !used.contains(&port));
    let chosen =
        pick(first + band, last, random, is_free).or_else(|| pick(first, first + band, random, is_free));
    chosen.and_then(|port| u16::try_from(port).ok())
}

/// The first free number of `first..=last`, beginning at a random one and going round.
fn pick(first: u32, last: u32, random: u32, is_free: impl Fn(u32) -> bool) -> Option<u32> {
    if first > last {
        return None;
    }
    let size = last - first + 1;
    (0..size).map(|step| first + (random % size + step) % size).find(|candidate| is_free(*candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_and_every_one_is_used() {
        let range: Ipv4Net = "10.96.0.0/27".parse().unwrap();
        let mut used = HashSet::new();
        let mut random = 7_u32;
        while let Some(address) = free_address(range, &used, random) {
            assert!(range.contains(&address) && used.insert(address), "{address}");
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        }
        assert_eq!(used.len(), 30);
    }

    #[test]
    fn ports_are_unique_and_every_one_is_used() {
        let mut used = HashSet::new();
        let first = free_port((30_000, 32_767), &used, 0).unwrap();
        assert!(first >= 30_086, "{first} is in the band for chosen ports");
        while let Some(port) = free_port((30_000, 30_100), &used, 13) {
            assert!((30_000..=30_100).contains(&port) && used.insert(port));
        }
        assert_eq!(used.len(), 101);
    }
}
