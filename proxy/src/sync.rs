//! The one task that owns model and plans: changed keys in, transactions out.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::FutureExt as _;
use orlop_daemon::backoff::Backoff;
use orlop_daemon::{Drain, ReadyGuard};
use orlop_kube::Key;
use orlop_kube::Subscription;
use orlop_kube::network::NetworkWatches;
use orlop_nft::IpVersion;
use tokio::sync::watch;

use crate::Config;
use crate::kernel::{self, Kernel};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::plan::{Adopted, Plan, UdpFlows};
use crate::rules::Settings;

/// Somebody else may remove our table (`nft flush ruleset`): it is looked for this often.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

/// What others may know.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Status {
    /// When the rules were last as wanted.
    pub(crate) in_sync: Option<Instant>,
    /// Since when they are not.
    pub(crate) behind_since: Option<Instant>,
    pub(crate) services: usize,
    pub(crate) generation: u64,
}

pub(crate) struct Sync {
    config: Config,
    watches: NetworkWatches,
    metrics: Metrics,
    status: watch::Sender<Status>,
    model: Model,
    plans: Vec<Tracked>,
    kernel: Arc<Mutex<Kernel>>,
}

/// A plan, and whether the kernel's table is known to be as it says.
struct Tracked {
    plan: Plan,
    known: bool,
    /// Whether affinity may be taken over from the kernel's table.
    adopt: bool,
}

struct Subscriptions {
    services: Subscription,
    slices: Subscription,
}

impl Sync {
    pub(crate) fn new(
        config: Config,
        watches: NetworkWatches,
        metrics: Metrics,
        status: watch::Sender<Status>,
        versions: &[IpVersion],
    ) -> Self {
        let plans = versions.iter().map(|version| Tracked {
            plan: Plan::new(settings(&config, *version)),
            known: false,
            adopt: true,
        });
        Self {
            plans: plans.collect(),
            config,
            watches,
            metrics,
            status,
            model: Model::default(),
            kernel: Arc::default(),
        }
    }

    /// Until the drain. Rules of a predecessor are not touched before both watches are synced.
    pub(crate) async fn run(mut self, guard: ReadyGuard, drain: Drain) {
        let subscriptions = Subscriptions {
            services: self.watches.services.subscribe(),
            slices: self.watches.slices.subscribe(),
        };
        tokio::select! {
            () = async { self.watches.services.synced().await; self.watches.slices.synced().await } => {}
            () = drain.wait() => return,
        }
        self.take_in(&BTreeSet::new(), &subscriptions);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            let started = Instant::now();
            let pause = match self.sync().await {
                Ok(()) => {
                    backoff.reset();
                    guard.set();
                    LOOK_PERIOD
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the rules could not be set, trying again with whole tables"
                    );
                    self.metrics.failures.inc();
                    self.status.send_modify(|status| {
                        status.behind_since.get_or_insert(started);
                    });
                    backoff.pause()
                }
            };
            if !self.wait(&subscriptions, started, pause, &drain).await {
                return;
            }
        }
    }

    /// Waits for the next round and takes in what changed; false when the drain began.
    async fn wait(
        &mut self,
        subscriptions: &Subscriptions,
        started: Instant,
        pause: Duration,
        drain: &Drain,
    ) -> bool {
        let (services, slices) = tokio::select! {
            services = subscriptions.services.changed() => (services, BTreeSet::new()),
            slices = subscriptions.slices.changed() => (BTreeSet::new(), slices),
            () = tokio::time::sleep(pause) => (BTreeSet::new(), BTreeSet::new()),
            () = drain.wait() => return false,
        };
        if !(services.is_empty() && slices.is_empty()) {
            self.metrics.queued();
            // The first change goes through at once; a storm is taken in gulps.
            let spacing = self.config.min_sync_period().saturating_sub(started.elapsed());
            if !spacing.is_zero() && !drain.sleep(spacing).await {
                return false;
            }
        }
        let touched = self.take_in_slices(&slices);
        let changed: BTreeSet<Key> = services.into_iter().chain(touched).collect();
        self.take_in(&changed, subscriptions);
        true
    }

    /// Takes in changed Services, and what changed meanwhile.
    fn take_in(&mut self, services: &BTreeSet<Key>, subscriptions: &Subscriptions) {
        let mut changed = services.clone();
        if let Some(more) = subscriptions.slices.changed().now_or_never() {
            changed.extend(self.take_in_slices(&more));
        }
        changed.extend(subscriptions.services.changed().now_or_never().unwrap_or_default());
        self.metrics.service_changes.inc_by(changed.len() as u64);
        for key in &changed {
            self.model.set_service(key, self.watches.services.get(key));
            let frontends = self.model.frontends(key, &self.config.node_name);
            let local = if frontends.is_empty() {
                BTreeSet::new()
            } else {
                self.model.local_addresses(key, &self.config.node_name)
            };
            for tracked in &mut self.plans {
                tracked.plan.set_service(key, &frontends, &local);
            }
        }
    }

    fn take_in_slices(&mut self, slices: &BTreeSet<Key>) -> BTreeSet<Key> {
        self.metrics.endpoint_changes.inc_by(slices.len() as u64);
        let mut touched = BTreeSet::new();
        for key in slices {
            touched.extend(self.model.set_slice(key, self.watches.slices.get(key)));
        }
        touched
    }

    /// One round over all tables; a table that failed does not keep the other from its turn.
    async fn sync(&mut self) -> anyhow::Result<()> {
        let mut first_error = None;
        for index in 0..self.plans.len() {
            if let Err(error) = self.sync_table(index).await {
                first_error.get_or_insert(error);
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        let services = self.model.len();
        self.status.send_modify(|status| {
            *status = Status {
                in_sync: Some(Instant::now()),
                behind_since: None,
                services,
                generation: status.generation + 1,
            };
        });
        Ok(())
    }

    async fn sync_table(&mut self, index: usize) -> anyhow::Result<()> {
        let table = self.plans[index].plan.table().clone();
        let started = Instant::now();
        let (kernel, looked_for) = (self.kernel.clone(), table.clone());
        let exists = blocking(move || lock(&kernel).has_table(&looked_for)).await?;
        let tracked = &mut self.plans[index];
        if tracked.known && !exists {
            tracing::warn!(%table, "the table was removed by somebody else, setting it again");
            tracked.known = false;
        }
        let full = !tracked.known;
        let transaction = if full {
            let adopted = if exists { self.adopt(index).await } else { Adopted::default() };
            self.plans[index].plan.replace(adopted)
        } else {
            tracked.plan.update()
        };
        let tracked = &mut self.plans[index];
        // Not known until it worked: a failure, or a daemon that is cut off here, ends in a whole table.
        tracked.known = false;
        tracked.adopt = false;
        let count = transaction.commands.len();
        let (kernel, version) = (self.kernel.clone(), tracked.plan.version());
        let transaction = blocking(move || {
            if full {
                return lock(&kernel).replace(transaction, version, exists);
            }
            lock(&kernel).carry_out(&transaction)?;
            Ok(transaction)
        })
        .await
        .context("failed to set the rules")?;
        self.plans[index].known = true;
        self.plans[index].adopt = true;
        if count > 0 {
            let duration = started.elapsed();
            self.metrics.synced(duration, full);
            tracing::debug!(%table, full, commands = count, ?duration, "rules set");
        }
        self.forget_stale(index, transaction.udp).await;
        Ok(())
    }

    /// Clients with affinity outlive a table made anew. After a failure nothing is taken over: it may be the reason.
    async fn adopt(&self, index: usize) -> Adopted {
        let tracked = &self.plans[index];
        if !tracked.adopt || !tracked.plan.has_affinity() {
            return Adopted::default();
        }
        let (kernel, version) = (self.kernel.clone(), tracked.plan.version());
        blocking(move || lock(&kernel).adopt(version)).await.unwrap_or_else(|error| {
            tracing::warn!(
                error = format!("{error:#}"),
                "could not read affinity from the table, clients are assigned anew"
            );
            Adopted::default()
        })
    }

    /// A flow that could not be forgotten is no reason to set the rules again.
    async fn forget_stale(&self, index: usize, udp: Vec<UdpFlows>) {
        if udp.is_empty() {
            return;
        }
        let version = self.plans[index].plan.version();
        match blocking(move || kernel::forget_stale(version, &udp)).await {
            Ok(deleted) => drop(self.metrics.conntrack_deleted.inc_by(deleted)),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "could not delete stale UDP connections")
            }
        }
    }
}

fn lock(kernel: &Mutex<Kernel>) -> std::sync::MutexGuard<'_, Kernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, orlop_netlink::NetlinkError> + Send + 'static,
) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await.context("the kernel's worker panicked")??)
}

pub(crate) fn settings(config: &Config, version: IpVersion) -> Settings {
    let of_version = |networks: &[ipnet::IpNet]| {
        networks
            .iter()
            .copied()
            .filter(|network| IpVersion::of(network.addr()) == version)
            .collect::<Vec<_>>()
    };
    Settings {
        version,
        cluster: of_version(&config.cluster_cidr).first().copied(),
        services: of_version(&config.service_cidr).first().copied(),
        masquerade_all: config.masquerade_all,
        node_port_networks: of_version(&config.node_port_addresses),
        node_served: config
            .local_addresses
            .iter()
            .copied()
            .filter(|address| IpVersion::of(*address) == version)
            .collect(),
    }
}
