//! Which part of the cluster's pod range a node gets.

use std::collections::BTreeSet;

use ipnet::IpNet;

/// The first free part after `last`, around the ring, so that a range is reused as late as possible. `None` when all are taken.
///
/// Parts that overlap any taken range count as taken, whatever its size: nodes may have been given ranges by hand.
pub(crate) fn allocate(
    cluster: IpNet,
    mask: u8,
    taken: &BTreeSet<IpNet>,
    last: Option<IpNet>,
) -> Option<IpNet> {
    let parts: Vec<IpNet> = cluster.subnets(mask).ok()?.collect();
    let start =
        last.and_then(|last| parts.iter().position(|part| *part == last)).map_or(0, |position| position + 1);
    let overlaps = |left: &IpNet, right: &IpNet| left.contains(right) || right.contains(left);
    parts
        .iter()
        .cycle()
        .skip(start)
        .take(parts.len())
        .find(|part| !taken.contains(part) && !taken.iter().any(|other| overlaps(part, other)))
        .copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_go_around_the_ring() {
        let cluster = net("10.244.0.0/22");
        let mut taken = BTreeSet::new();
        for expected in ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"] {
            let part = allocate(cluster, 24, &taken, None).unwrap();
            assert_eq!(part, net(expected));
            taken.insert(part);
        }
        assert_eq!(allocate(cluster, 24, &taken, None), None);
        taken.remove(&net("10.244.0.0/24"));
        taken.remove(&net("10.244.2.0/24"));
        assert_eq!(allocate(cluster, 24, &taken, Some(net("10.244.1.0/24"))), Some(net("10.244.2.0/24")));
        assert_eq!(allocate(cluster, 24, &taken, Some(net("10.244.3.0/24"))), Some(net("10.244.0.0/24")));
        let by_hand = BTreeSet::from([net("10.244.0.0/23")]);
        assert_eq!(allocate(cluster, 24, &by_hand, None), Some(net("10.244.2.0/24")));
    }

    proptest! {
        #[test]
        fn never_twice(order in proptest::collection::vec(any::<bool>(), 1..80)) {
            let cluster = net("10.0.0.0/20");
            let (mut taken, mut last) = (BTreeSet::new(), None);
            for add in order {
                if add {
                    if let Some(part) = allocate(cluster, 24, &taken, last) {
                        prop_assert!(taken.insert(part) && cluster.contains(&part));
                        last = Some(part);
                    } else {
                        prop_assert_eq!(taken.len(), 16);
                    }
                } else if let Some(first) = taken.iter().next().copied() {
                    taken.remove(&first);
                }
            }
        }
    }
}
