//! Which hosts are left alone for a while, and what was seen of each: who does not answer is not waited for by everybody, and who asks
//! for patience gets it.
//!
//! ```text
//!   asked --failures in a row--> resting --time--> one probe --answer--> asked
//!                                   ^------no answer------/     (each time for longer)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};

use super::error::RegistryError;

/// The first rest; each further one is twice as long.
const REST: Duration = Duration::from_secs(2);
const REST_LIMIT: Duration = Duration::from_secs(60);
/// Longest rest that a host is given because it asks for it; then it is asked once more.
const PATIENCE_LIMIT: Duration = Duration::from_secs(300);
/// A rest of a host that says how many pulls are left, and that it is none, but not when there are some again.
const EMPTY_REST: Duration = Duration::from_secs(60);
/// How long a probe has before the next one.
const PROBE: Duration = Duration::from_secs(20);
/// Hosts that are remembered; redirects may lead to many.
const HOST_LIMIT: usize = 256;

/// What requests are limited together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The GET of a manifest, which Docker Hub counts.
    Pull,
    Other,
}

/// What was seen of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostHealth {
    /// `host[:port]`.
    pub host: String,
    /// Failures in a row.
    pub failures: u32,
    /// How long it is not asked.
    pub resting: Option<Duration>,
    /// The last error.
    pub last_error: Option<String>,
    /// Pulls that it grants in a time, and that are left, when it says so (`RateLimit-Limit`, `RateLimit-Remaining`).
    pub limit: Option<u64>,
    /// See `limit`.
    pub remaining: Option<u64>,
    /// Whose limit it is: the address or account that it counts (`Docker-RateLimit-Source`).
    pub limit_source: Option<String>,
    /// Requests that were answered.
    pub answers: u64,
    /// Bytes of manifests and blobs.
    pub bytes: u64,
    /// Errors by [`RegistryError::kind`].
    pub errors: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct Entry {
    seen: HostHealth,
    rest: Option<Rest>,
    limited: Option<(Instant, Class, String)>,
}

struct Rest {
    until: Instant,
    reason: String,
    /// It is over, and one request is under way to see whether the host answers again.
    probed: bool,
}

/// The hosts.
pub(super) struct Health {
    /// Failures before a rest; 0 for never.
    threshold: u32,
    hosts: Mutex<HashMap<String, Entry>>,
}

impl Health {
    pub(super) fn new(threshold: u32) -> Self {
        Self { threshold, hosts: Mutex::default() }
    }

    fn with<T>(&self, host: &str, change: impl FnOnce(&mut Entry) -> T) -> T {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = hosts.get_mut(host) {
            return change(entry);
        }
        if hosts.len() >= HOST_LIMIT {
            // What nobody counts on: hosts behind redirects have neither answers nor bytes of their own.
            hosts.retain(|_, entry| entry.seen.answers > 0);
        }
        if hosts.len() >= HOST_LIMIT {
            hosts.clear();
        }
        change(hosts.entry(host.to_owned()).or_default())
    }

    /// Whether a host may be asked now. Who is let through after a rest is the probe.
    pub(super) fn admit(&self, host: &str, class: Class, now: Instant) -> Result<(), RegistryError> {
        let threshold = self.threshold;
        if threshold == 0 {
            return Ok(());
        }
        self.with(host, |entry| {
            if let Some((until, limited, reason)) = &entry.limited
                && *until > now
                && (*limited == Class::Other || class == Class::Pull)
            {
                return Err(resting(host, *until - now, reason, true));
            }
            if let Some(rest) = &mut entry.rest {
                if rest.until > now {
                    return Err(resting(host, rest.until - now, &rest.reason, false));
                }
                (rest.until, rest.probed) = (now + PROBE, true);
            }
            Ok(())
        })
    }

    /// A sign of life.
    pub(super) fn succeed(&self, host: &str) {
        self.with(host, |entry| {
            entry.seen.failures = 0;
            entry.rest = None;
        });
    }

    /// No answer, or one that broke off in silence. `jitter` is between 0 and 1.
    pub(super) fn fail(&self, host: &str, error: &RegistryError, now: Instant, jitter: f64) {
        let threshold = self.threshold;
        self.with(host, |entry| {
            // Others were under way when the rest began: they say nothing new.
            if entry.rest.as_ref().is_some_and(|rest| rest.until > now && !rest.probed) {
                return;
            }
            entry.seen.failures = entry.seen.failures.saturating_add(1);
            if threshold == 0 || entry.seen.failures < threshold {
                return;
            }
            let doublings = (entry.seen.failures - threshold).min(16);
            let rest = REST.saturating_mul(1 << doublings).min(REST_LIMIT).mul_f64(0.5 + jitter / 2.0);
            entry.rest = Some(Rest { until: now + rest, reason: error.to_string(), probed: false });
        });
    }

    /// Reads what an answer says of limits.
    pub(super) fn heed(&self, host: &str, class: Class, answer: (StatusCode, &HeaderMap), now: Instant) {
        let (status, headers) = answer;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let count = |name: &str| text(name)?.split(';').next()?.trim().parse::<u64>().ok();
        let remaining = count("ratelimit-remaining");
        let wanted = text("retry-after").and_then(super::transport::retry_after_of);
        let rest = match (status, wanted, remaining) {
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, Some(after), _) => Some(after),
            (_, _, Some(0)) => Some(EMPTY_REST),
            _ => None,
        };
        self.with(host, |entry| {
            entry.seen.answers += 1;
            if remaining.is_some() {
                entry.seen.remaining = remaining;
                entry.seen.limit = count("ratelimit-limit");
                entry.seen.limit_source =
                    text("docker-ratelimit-source").map(|text| text.chars().take(64).collect());
            }
            let until = |rest: Duration| now + rest.min(PATIENCE_LIMIT);
            entry.limited = match (status.is_success(), rest) {
                (false, Some(rest)) => Some((until(rest), class, format!("it answered {}", status.as_u16()))),
                (true, Some(rest)) => Some((until(rest), Class::Pull, "no pulls are left".to_owned())),
                (true, None) if remaining.is_some() => None,
                (_, None) => entry.limited.take(),
            };
        });
    }

    pub(super) fn count_error(&self, host: &str, error: &RegistryError) {
        self.with(host, |entry| {
            *entry.seen.errors.entry(error.kind()).or_default() += 1;
            entry.seen.last_error = Some(error.to_string().chars().take(300).collect());
        });
    }

    pub(super) fn count_bytes(&self, host: &str, bytes: usize) {
        self.with(host, |entry| entry.seen.bytes += bytes as u64);
    }

    /// What was seen of a host; none when it was not asked yet.
    pub(super) fn of(&self, host: &str, now: Instant) -> Option<HostHealth> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = hosts.get(host)?;
        let ends =
            [entry.rest.as_ref().map(|rest| rest.until), entry.limited.as_ref().map(|(until, ..)| *until)];
        let until = ends.into_iter().flatten().filter(|until| *until > now).max();
        let resting = until.map(|until| until - now);
        Some(HostHealth { host: host.to_owned(), resting, ..entry.seen.clone() })
    }
}

fn resting(host: &str, after: Duration, reason: &str, limited: bool) -> RegistryError {
    RegistryError::Resting { host: host.to_owned(), reason: reason.to_owned(), after, limited }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn silence() -> RegistryError {
        RegistryError::Timeout { host: "r".to_owned(), what: "answer", after: SECOND }
    }

    #[test]
    fn a_silent_host_rests_longer_each_time() {
        let (health, start) = (Health::new(3), Instant::now());
        let may = |after: Duration| health.admit("r", Class::Other, start + after).is_ok();
        for failures in 0..3 {
            assert!(may(Duration::ZERO), "after {failures} failures");
            health.fail("r", &silence(), start, 1.0);
        }
        assert!(!may(Duration::ZERO) && !may(SECOND));
        health.fail("r", &silence(), start + SECOND, 1.0);
        assert!(may(2 * SECOND), "one that was under way counts no more: this is the probe");
        assert!(!may(2 * SECOND), "one probe");
        health.fail("r", &silence(), start + 3 * SECOND, 1.0);
        assert!(!may(6 * SECOND) && may(7 * SECOND), "four seconds");
        health.succeed("r");
        assert!(may(7 * SECOND));
        assert_eq!(health.of("r", start).unwrap().failures, 0);
        assert!(health.admit("other", Class::Other, start).is_ok());
    }

    #[test]
    fn rests_are_bounded() {
        let (health, mut now) = (Health::new(1), Instant::now());
        for _ in 0..100 {
            assert!(health.admit("r", Class::Other, now).is_ok());
            health.fail("r", &silence(), now, 1.0);
            now += REST_LIMIT;
        }
        let never = Health::new(0);
        (0..100).for_each(|_| never.fail("r", &silence(), now, 0.0));
        assert!(never.admit("r", Class::Other, now).is_ok());
    }

    #[test]
    fn who_asks_for_patience_gets_it() {
        let headers = |list: &[(&'static str, &str)]| {
            list.iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect::<HeaderMap>()
        };
        let retry = |text: &str| headers(&[("retry-after", text)]);
        let left = |text: &str| headers(&[("ratelimit-remaining", text), ("ratelimit-limit", "100;w=21600")]);
        // What the answer to a request of which class says; then after how many seconds pulls and others may go on.
        let table = [
            (Class::Other, 429, retry("7"), 7, 7),
            (Class::Other, 503, retry("7"), 7, 7),
            (Class::Pull, 429, retry("7"), 7, 0),
            (Class::Pull, 429, retry("100000"), 300, 0),
            (Class::Other, 429, retry("soon"), 0, 0),
            (Class::Other, 500, retry("7"), 0, 0),
            (Class::Other, 200, retry("7"), 0, 0),
            (Class::Pull, 200, left("1;w=21600"), 0, 0),
            (Class::Pull, 200, left("0;w=21600"), 60, 0),
            (Class::Other, 200, left("0;w=21600"), 60, 0),
        ];
        for (class, status, headers, pulls, others) in table {
            let (health, now) = (Health::new(3), Instant::now());
            let status = StatusCode::from_u16(status).unwrap();
            health.heed("r", class, (status, &headers), now);
            for (class, seconds) in [(Class::Pull, pulls), (Class::Other, others)] {
                let what = format!("{status} {headers:?} {class:?}");
                assert!(health.admit("r", class, now + seconds * SECOND).is_ok(), "{what}");
                if seconds > 0 {
                    assert!(health.admit("r", class, now + (seconds - 1) * SECOND).is_err(), "{what}");
                }
            }
        }
        let (health, now) = (Health::new(3), Instant::now());
        health.heed("r", Class::Pull, (StatusCode::OK, &left("0;w=1")), now);
        health.heed("r", Class::Other, (StatusCode::OK, &left("5;w=1")), now);
        assert!(health.admit("r", Class::Pull, now).is_ok(), "there are some again");
        assert_eq!(health.of("r", now).unwrap().remaining, Some(5));
    }

    #[test]
    fn hosts_are_bounded() {
        let (health, now) = (Health::new(3), Instant::now());
        health.heed("kept", Class::Other, (StatusCode::OK, &HeaderMap::new()), now);
        (0..1000).for_each(|number| health.fail(&number.to_string(), &silence(), now, 0.0));
        assert!(health.of("kept", now).is_some());
        assert!(health.hosts.lock().unwrap().len() <= HOST_LIMIT);
    }
}
