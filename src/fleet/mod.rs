//! One replica of several: it renews its leases, tells the others of its door, and leads or follows.
//!
//! One task, off every request's path: each period it says what is under way and what it could use,
//! and is told what it may use ([`crate::core::fleet`]). Whoever leads is told what the others see,
//! hands that to its engine, and publishes how each limit is divided and the table all follow
//! ([`crate::core::engine::crew`]).

mod report;
pub mod store;

use crate::config::settings;
use crate::core::engine::crew::{FleetChange, Followed, Peer, Role};
use crate::core::fleet::division::{Level, divide};
use crate::runtime::guard::Guard;
use report::Report;
use std::sync::Arc;
use std::time::Duration;
use store::{Store, StoreError, Told};

/// How often a door looks whether its leases have run out.
const WATCH: Duration = Duration::from_millis(50);

/// One replica.
#[derive(Debug)]
pub struct Replica {
    guard: Arc<Guard>,
    store: Store,
    settings: settings::Fleet,
    /// Its name and run: no two are ever the same.
    member: String,
    stamp: String,
    last_table: String,
    tables: u64,
    problem: Option<String>,
}

impl Replica {
    /// A replica that has not been heard of yet, called `name` where the settings do not say; `run`
    /// tells two runs of one name apart.
    pub fn new(
        guard: &Arc<Guard>,
        settings: &settings::Fleet,
        password: Option<&str>,
        name: &str,
        run: &str,
    ) -> Result<Replica, StoreError> {
        let store = Store::new(&settings.url, password, &settings.group, settings.timing)?;
        let replica = Replica {
            guard: Arc::clone(guard),
            store,
            member: format!("{}:{run}", settings.name.as_deref().unwrap_or(name)),
            settings: settings.clone(),
            stamp: String::new(),
            last_table: String::new(),
            tables: 0,
            problem: None,
        };
        replica.guard.join_fleet(&replica.member, replica.settings.replicas, replica.settings.timing);
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
        let tasks = self.guard.tasks.clone();
        let guard = Arc::clone(&self.guard);
        tasks.every(WATCH, move || {
            guard.enforce_leases();
            guard.step_down();
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
                while !self.renew().await && self.guard.leads() {
                    // Before anybody else may lead.
                    tokio::time::sleep(self.settings.timing.period / 5).await;
                }
            }
            self.give_back().await;
        });
    }

    /// What is still under way is this replica's until it has ended, or until nobody waits for it
    /// any longer; the others may have the rest at once.
    async fn give_back(&mut self) {
        let (clock, tasks) = (self.guard.clock, self.guard.tasks.clone());
        let last = clock.now() + self.guard.settings().http.drain * 9 / 10;
        let mut due = clock.now();
        self.guard.leave_fleet();
        // This task is one of those that run.
        while tasks.running() > 1 && clock.now() < last {
            if clock.now() >= due {
                due = clock.now() + self.settings.timing.period;
                self.renew().await;
            }
            tokio::time::sleep(WATCH).await;
        }
        if let Err(error) = self.store.leave(&self.member).await {
            tracing::warn!(%error, "the shared store did not hear that this replica ends");
        }
    }

    /// One renewal; whether the store answered.
    async fn renew(&mut self) -> bool {
        let Some(sent) = self.guard.next_renewal() else { return false };
        let report = Report::new(&sent.policy, &sent.door, &sent.names, &sent.loads);
        let door = serde_json::to_string(&report).unwrap_or_default();
        let answer =
            self.store.renew(&self.member, &sent.names, &sent.renewal, &self.stamp, &door, None).await;
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
        match self.store.publish(&self.member, told.token, &levels, &stamp, &self.last_table).await {
            Ok(true) => {}
            Ok(false) => tracing::info!(token = told.token, "another replica has taken over"),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Takes in what the store has told; for whoever leads, how each limit is divided by the demand for it.
    /// The store is another party's: whatever it says, limits stay within the bounds of the policy.
    pub fn hear(&mut self, sent: &Sent, told: &Told) -> Option<Vec<Level>> {
        let known = told.live.saturating_add(told.silent);
        let leads = told.leader == self.member;
        self.guard.take_leases(&sent.renewal, &told.leases(&sent.names), known, leads);
        self.guard.on_fleet(&FleetChange {
            role: if leads { Role::Leads } else { Role::Follows },
            leader: told.leader.clone(),
            token: told.token,
            replicas: known.max(self.settings.replicas),
            problem: String::new(),
        });
        if leads {
            return Some(self.lead(sent, told));
        }
        if let (Some(stamp), Some(table)) = (&told.stamp, &told.table) {
            match serde_json::from_str::<Followed>(table) {
                Ok(followed) => self.guard.follow(&followed),
                Err(error) => {
                    tracing::warn!(%error, leader = told.leader, "the leader's table cannot be read");
                }
            }
            self.stamp.clone_from(stamp);
        }
        None
    }

    fn lead(&mut self, sent: &Sent, told: &Told) -> Vec<Level> {
        let mut peers = Vec::new();
        let mut demands: Vec<Vec<u64>> = vec![Vec::new(); sent.names.len()];
        for pair in told.doors.chunks_exact(2) {
            let Ok(report) = serde_json::from_str::<Report>(&pair[1]) else { continue };
            for (name, demands) in sent.names.iter().zip(&mut demands) {
                demands.push(report.demands.get(name).copied().unwrap_or(0));
            }
            if pair[0] != self.member {
                peers.push(Peer { member: pair[0].clone(), door: report.door(&sent.policy) });
            }
        }
        self.guard.on_peers(peers);
        let (limits, followed) = self.guard.publication();
        let table = serde_json::to_string(&followed).unwrap_or_default();
        if table != self.last_table {
            self.tables += 1;
            self.last_table = table;
        }
        let each = sent.names.iter().zip(limits).zip(&demands);
        each.map(|((name, limit), demands)| divide(limit, told.reserved.get(name), demands)).collect()
    }

    fn fail(&mut self, problem: &str) {
        if self.problem.is_none() {
            tracing::warn!(problem, "the shared store cannot be asked; trying again");
        }
        self.problem = Some(problem.to_owned());
        let standing = self.guard.fail_renewal();
        self.guard.on_store_problem(standing, problem);
    }

    fn recover(&mut self) {
        if self.problem.take().is_some() {
            tracing::info!("the shared store answers again");
        }
    }
}

/// What a renewal was made of.
#[derive(Debug)]
pub struct Sent {
    /// The policy it speaks of.
    pub policy: Arc<crate::core::policy::Policy>,
    /// The door as it was then.
    pub door: crate::core::engine::DoorReading,
    /// The shared limits.
    pub names: Vec<String>,
    /// In use, and in demand, of each.
    pub loads: Vec<(u64, u64)>,
    /// What is sent.
    pub renewal: crate::core::fleet::holding::Renewal,
}
