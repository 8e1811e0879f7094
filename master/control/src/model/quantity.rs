use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts of resources. Cpu in thousandths, everything else in whole units, rounded up as upstream's `Value()` does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Bytes of local storage.
    pub ephemeral_bytes: i64,
    /// Pods (only meaningful for nodes).
    pub pods: i64,
    /// Extended resources and huge pages.
    pub other: BTreeMap<String, i64>,
}

impl Resources {
    /// Reads a resource list; what is no quantity counts as nothing, the API server has validated it.
    pub fn of(list: &BTreeMap<String, Quantity>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list {
            let Ok(quantity) = quantity.0.parse::<orlop_types::Quantity>() else {
                continue;
            };
            let whole = saturate(quantity.units());
            match name.as_str() {
                "cpu" => resources.milli_cpu = saturate(quantity.millis()),
                "memory" => resources.memory_bytes = whole,
                "ephemeral-storage" => resources.ephemeral_bytes = whole,
                "pods" => resources.pods = whole,
                _ => drop(resources.other.insert(name.clone(), whole)),
            }
        }
        resources
    }

    /// Adds another amount.
    pub fn add(&mut self, other: &Self) {
        self.zip(other, i64::saturating_add);
    }

    /// Keeps the larger of both amounts, each resource for itself.
    pub fn max(&mut self, other: &Self) {
        self.zip(other, std::cmp::Ord::max);
    }

    fn zip(&mut self, other: &Self, combine: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = combine(self.milli_cpu, other.milli_cpu);
        self.memory_bytes = combine(self.memory_bytes, other.memory_bytes);
        self.ephemeral_bytes = combine(self.ephemeral_bytes, other.ephemeral_bytes);
        self.pods = combine(self.pods, other.pods);
        for (name, amount) in &other.other {
            let entry = self.other.entry(name.clone()).or_default();
            *entry = combine(*entry, *amount);
        }
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value > 0 { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_round_up() {
        let list =
            [("cpu", "250m"), ("memory", "1500m"), ("pods", "110"), ("example.com/gpu", "2"), ("bad", "x")];
        let list =
            list.into_iter().map(|(name, value)| (name.to_owned(), Quantity(value.to_owned()))).collect();
        let resources = Resources::of(&list);
        assert_eq!((resources.milli_cpu, resources.memory_bytes, resources.pods), (250, 2, 110));
        assert_eq!(resources.other, BTreeMap::from([("example.com/gpu".to_owned(), 2)]));
    }
}
