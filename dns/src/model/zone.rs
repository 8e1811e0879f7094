use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

/// The data of one record; names are lower case, without a dot at the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV; priority 0.
    Service {
        /// Weight, the same for all records of a name.
        weight: u16,
        /// Port.
        port: u16,
        /// Target name.
        target: String,
    },
    /// PTR.
    Pointer(String),
    /// CNAME.
    Alias(String),
    /// TXT.
    Text(String),
    /// NS.
    NameServer(String),
    /// SOA of the zone.
    Authority,
}

/// What a name says to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These records, and addresses of names in them.
    Records {
        /// The answer section.
        answers: Vec<(String, Data)>,
        /// The additional section.
        additionals: Vec<(String, Data)>,
    },
    /// The name is an alias to a name outside the zone.
    Outside {
        /// The alias record.
        alias: (String, Data),
        /// Where to ask on.
        target: String,
    },
    /// The name exists, without this type.
    NoData,
    /// The name does not exist.
    NoSuchName,
    /// Not a name of this zone.
    NotOurs,
}

/// An immutable zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    pub(super) domain: String,
    pub(super) names: HashMap<String, Vec<Data>>,
    pub(super) reverse: HashMap<String, Vec<Data>>,
}

/// Names that follow each other by CNAME, at most: a loop must end.
const ALIAS_LIMIT: usize = 8;

impl Zone {
    /// The domain of the zone.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Names in the zone, for the state dump.
    pub fn len(&self) -> usize {
        self.names.len() + self.reverse.len()
    }

    /// Whether there is no name at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Answers a question. `name` is lower case without a dot at the end; `wanted` picks data of the asked type.
    pub fn answer(&self, name: &str, wanted: impl Fn(&Data) -> bool) -> Answer {
        if let Some(data) = self.reverse.get(name) {
            return records(name, data, &wanted, self);
        }
        if !self.holds(name) {
            return Answer::NotOurs;
        }
        if let Some(address) = self.pod_address(name) {
            let data = [Data::Address(address)];
            return records(name, &data, &wanted, self);
        }
        let Some(data) = self.names.get(name) else { return self.absent(name) };
        match data.as_slice() {
            [alias @ Data::Alias(target)] if !wanted(alias) => self.follow(name, alias, target, &wanted),
            data => records(name, data, &wanted, self),
        }
    }

    fn holds(&self, name: &str) -> bool {
        name.strip_suffix(self.domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// Names of the `pod` subdomain exist for every namespace: there is no watch on pods.
    fn absent(&self, name: &str) -> Answer {
        let labels: Vec<&str> = self.labels(name).collect();
        match labels.as_slice() {
            ["pod"] | [_, "pod"] => Answer::NoData,
            _ => Answer::NoSuchName,
        }
    }

    fn labels<'a>(&self, name: &'a str) -> impl Iterator<Item = &'a str> {
        name.strip_suffix(self.domain.as_str()).unwrap_or("").trim_end_matches('.').split('.')
    }

    /// `10-1-2-3.NAMESPACE.pod.DOMAIN`: answered from the name itself, as kube-dns and CoreDNS do by default.
    fn pod_address(&self, name: &str) -> Option<IpAddr> {
        let labels: Vec<&str> = self.labels(name).collect();
        let [address, _, "pod"] = labels.as_slice() else { return None };
        let dotted = address.replace('-', ".");
        if let Ok(address) = dotted.parse::<Ipv4Addr>() {
            return Some(address.into());
        }
        address.replace('-', ":").parse().ok().map(IpAddr::V6)
    }

    fn follow(&self, name: &str, alias: &Data, target: &str, wanted: impl Fn(&Data) -> bool) -> Answer {
        let mut answers = vec![(name.to_owned(), alias.clone())];
        let mut target = target.to_owned();
        for _ in 0..ALIAS_LIMIT {
            if !self.holds(&target) {
                return match answers.as_slice() {
                    [alias] => Answer::Outside { alias: alias.clone(), target },
                    _ => Answer::Records { answers, additionals: Vec::new() },
                };
            }
            let Some(data) = self.names.get(&target) else { break };
            match data.as_slice() {
                [next @ Data::Alias(further)] => {
                    answers.push((target.clone(), next.clone()));
                    target = further.clone();
                }
                data => {
                    answers.extend(data.iter().filter(|data| wanted(data)).map(|data| (target.clone(), data.clone())));
                    break;
                }
            }
        }
        Answer::Records { answers, additionals: Vec::new() }
    }
}

fn records(name: &str, data: &[Data], wanted: impl Fn(&Data) -> bool, zone: &Zone) -> Answer {
    let answers: Vec<(String, Data)> =
        data.iter().filter(|data| wanted(data)).map(|data| (name.to_owned(), data.clone())).collect();
    if answers.is_empty() {
        return Answer::NoData;
    }
    let mut additionals = Vec::new();
    for (_, data) in &answers {
        let (Data::Service { target, .. } | Data::NameServer(target)) = data else { continue };
        let known = zone.names.get(target).into_iter().flatten();
        let addresses = known.filter(|data| matches!(data, Data::Address(_))).map(|data| (target.clone(), data.clone()));
        for additional in addresses {
            if !additionals.contains(&additional) {
                additionals.push(additional);
            }
        }
    }
    Answer::Records { answers, additionals }
}
