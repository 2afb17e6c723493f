//! One replica of several: it renews its leases, reports to the others, and leads or follows.
//!
//! One task, off every request's path: each period it says what is under way and what it could use,
//! and learns what it may use ([`crate::core::replicas`]). The leader learns what the others see,
//! hands that to its controller, and publishes how each limit is divided among replicas and identities and
//! the table all follow ([`crate::core::controller::leadership`]).
//!
//! So that an identity has the same digest at every replica, they share the key of the digests: the first
//! replica draws it at random, and the store keeps it. A process that can read the store can try
//! addresses against the digests there; it can also hand out leases, and is trusted. Clients never
//! see either. A replica that begins without its store takes on the key when it first hears of it.

mod report;
pub mod store;

use crate::config::settings;
use crate::core::controller::leadership::{Followed, LeadershipChange, Peer, Role};
use crate::core::replicas::lease_holder::Standing;
use crate::core::replicas::max_min::{Level, divide};
use crate::core::replicas::quota::Wanted;
use crate::runtime::app::App;
use report::Report;
use std::sync::Arc;
use std::time::Duration;
use store::{Says, Store, StoreError, Told};

/// How often a replica looks whether its leases have run out.
const WATCH: Duration = Duration::from_millis(50);

/// One replica.
#[derive(Debug)]
pub struct Replica {
    app: Arc<App>,
    store: Store,
    settings: settings::Replicas,
    /// Its name and run: no two are ever the same.
    member: String,
    stamp: String,
    last_table: String,
    last_shares: String,
    tables: u64,
    problem: Option<String>,
}

impl Replica {
    /// A replica that has not been heard of yet, called `name` where the settings do not say; `run`
    /// tells two runs of one name apart.
    pub fn new(
        app: &Arc<App>,
        settings: &settings::Replicas,
        password: Option<&str>,
        name: &str,
        run: &str,
    ) -> Result<Replica, StoreError> {
        let store = Store::of(settings, password)?;
        let replica = Replica {
            app: Arc::clone(app),
            store,
            member: format!("{}:{run}", settings.name.as_deref().unwrap_or(name)),
            settings: settings.clone(),
            stamp: String::new(),
            last_table: String::new(),
            last_shares: String::new(),
            tables: 0,
            problem: None,
        };
        replica.app.join_replicas(&replica.member, replica.settings.count, replica.settings.timing);
        Ok(replica)
    }

    /// Asks for the first leases, so that there are some before the first request; without a store
    /// it begins with its safe share.
    pub async fn begin(&mut self) {
        if self.renew().await {
            // The first division is made of the first demands: the second renewal knows of it.
            self.renew().await;
        }
    }

    /// Renews until the process winds up, and then gives everything back as it comes free.
    pub fn start(mut self) {
        let tasks = self.app.tasks.clone();
        let app = Arc::clone(&self.app);
        tasks.every(WATCH, move || {
            app.enforce_leases();
            app.step_down();
        });
        let closing = tasks.clone();
        tasks.spawn(async move {
            let mut every = tokio::time::interval(self.settings.timing.period);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = closing.closed() => break,
                    _ = every.tick() => {}
                }
                while !self.renew().await && self.app.leads() {
                    // Before anybody else may lead.
                    tokio::time::sleep(self.settings.timing.period / 5).await;
                }
            }
            self.give_back().await;
        });
    }

    /// What is still under way is this replica's until it has ended, or until no client waits for it
    /// any longer; the others may have the rest at once.
    async fn give_back(&mut self) {
        let (clock, tasks) = (self.app.clock, self.app.tasks.clone());
        let last = clock.now() + self.app.settings().http.drain * 9 / 10;
        let mut due = clock.now();
        self.app.leave_replicas();
        // This task is one of those that run.
        while tasks.running() > 1 && clock.now() < last {
            if clock.now() >= due {
                due = clock.now() + self.settings.timing.period;
                self.renew().await;
            }
            tokio::time::sleep(WATCH).await;
        }
        if let Err(error) = self.store.leave(&self.member).await {
            tracing::warn!(%error, "could not release this replica's leases");
        }
    }

    /// One renewal; whether the store answered.
    async fn renew(&mut self) -> bool {
        let Some(sent) = self.app.next_renewal() else { return false };
        let report = Report::new(&sent.policy, &sent.reading, &sent.names, &sent.loads, &sent.wanted);
        let replica = serde_json::to_string(&report).unwrap_or_default();
        let says = Says { stamp: &self.stamp, replica: &replica, key: self.app.key() };
        let answer = self.store.renew(&self.member, &sent.names, &sent.renewal, &says, None).await;
        match answer {
            Ok(Some(told)) => {
                self.recover();
                self.take(&sent, &told).await;
                true
            }
            Ok(None) => true,
            Err(error) => {
                self.fail(&error.to_string());
                false
            }
        }
    }

    async fn take(&mut self, sent: &Sent, told: &Told) {
        let Some(levels) = self.hear(sent, told) else { return };
        let levels = sent.names.iter().map(String::as_str).zip(levels).collect();
        let stamp = format!("{}.{}", told.token, self.tables);
        let says = [&*stamp, &self.last_table, &self.last_shares];
        match self.store.publish(&self.member, told.token, &levels, says).await {
            Ok(true) => {}
            Ok(false) => tracing::info!(token = told.token, "another replica has taken over"),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Takes in what the store has told; for the leader, how each limit is divided by the demand for it.
    /// The store is not ours: whatever it says, limits stay within the bounds of the policy.
    pub fn hear(&mut self, sent: &Sent, told: &Told) -> Option<Vec<Level>> {
        let known = told.live.saturating_add(told.silent);
        let leads = told.leader == self.member;
        if let Some(key) = told.key().filter(|key| *key != self.app.key()) {
            tracing::info!("now using the shared key to tell clients apart");
            self.app.adopt_key(key);
        }
        self.app.take_leases(&sent.renewal, &told.leases(&sent.names), known, leads);
        self.app.on_leadership(&LeadershipChange {
            role: if leads { Role::Leads } else { Role::Follows },
            leader: told.leader.clone(),
            token: told.token,
            replicas: known.max(self.settings.count),
            problem: String::new(),
        });
        if leads {
            return Some(self.lead(sent, told));
        }
        self.app.take_shares(told.shares.as_deref().and_then(|shares| serde_json::from_str(shares).ok()));
        if let (Some(stamp), Some(table)) = (&told.stamp, &told.table) {
            match serde_json::from_str::<Followed>(table) {
                Ok(followed) => self.app.follow(&followed),
                Err(error) => {
                    tracing::warn!(%error, leader = told.leader, "the leader's table cannot be read");
                }
            }
            self.stamp.clone_from(stamp);
        }
        None
    }

    fn lead(&mut self, sent: &Sent, told: &Told) -> Vec<Level> {
        let (mut peers, mut wanted) = (Vec::new(), Vec::new());
        let mut demands: Vec<Vec<u64>> = vec![Vec::new(); sent.names.len()];
        for pair in told.replicas.chunks_exact(2) {
            let Ok(report) = serde_json::from_str::<Report>(&pair[1]) else { continue };
            for (name, demands) in sent.names.iter().zip(&mut demands) {
                demands.push(report.demands.get(name).copied().unwrap_or(0));
            }
            wanted.push(report.wanted(&sent.policy, &sent.names));
            if pair[0] != self.member {
                peers.push(Peer { member: pair[0].clone(), reading: report.reading(&sent.policy) });
            }
        }
        self.app.on_peers(peers);
        let (limits, followed) = self.app.publication();
        let reserved: Vec<u64> = sent.names.iter().map(|name| told.reserved.get(name)).collect();
        let shares = self.app.share_out(&limits, &reserved, &wanted);
        self.last_shares = serde_json::to_string(&shares).unwrap_or_default();
        self.app.take_shares(Some(shares));
        let table = serde_json::to_string(&followed).unwrap_or_default();
        if table != self.last_table {
            self.tables += 1;
            self.last_table = table;
        }
        let each = limits.into_iter().zip(reserved).zip(&demands);
        each.map(|((limit, reserved), demands)| divide(limit, reserved, demands)).collect()
    }

    fn fail(&mut self, problem: &str) {
        if self.problem.is_none() {
            tracing::warn!(problem, "the shared store is unreachable; trying again");
        }
        self.problem = Some(problem.to_owned());
        let standing = self.app.fail_renewal();
        if standing != Standing::Leased {
            self.app.take_shares(None);
        }
        self.app.on_store_problem(standing, problem);
    }

    fn recover(&mut self) {
        if self.problem.take().is_some() {
            tracing::info!("the shared store is reachable again");
        }
    }
}

/// What a renewal was made of.
#[derive(Debug)]
pub struct Sent {
    /// The policy it speaks of.
    pub policy: Arc<crate::core::policy::Policy>,
    /// The replica as it was then.
    pub reading: crate::core::controller::ProxyReading,
    /// The shared limits.
    pub names: Vec<String>,
    /// In use, and asked for, of each.
    pub loads: Vec<(u64, u64)>,
    /// What could be used of each, and which clients ask.
    pub wanted: Wanted,
    /// What is sent.
    pub renewal: crate::core::replicas::lease_holder::Renewal,
}
