//! The guard of one replica among several: its part of the limits, and who decides.
//!
//! [`crate::replicas`] talks to the others; what they say goes to the controller and to this proxy's part
//! here. Leases are looked at many times a second, so that none is used after it has run out,
//! whatever else is waited for.

use crate::core::controller::leadership::{Followed, LeadershipChange, Peer, Role};
use crate::core::policy::ClassId;
use crate::core::replicas::Timing;
use crate::core::replicas::lease_holder::{Renewal, Standing};
use crate::core::replicas::quota::{Leased, PublishedShares, Quota, Wanted};
use crate::replicas::Sent;
use crate::runtime::app::App;
use std::sync::Arc;
use std::time::Duration;

impl App {
    /// From now on this proxy uses its part of the limits: nothing, until the first renewal is
    /// answered or has failed.
    pub fn join_replicas(&self, me: &str, replicas: u32, timing: Timing) {
        let (policy, table) = {
            let mut controller = self.controller();
            controller.join(me, replicas);
            (Arc::clone(controller.policy()), controller.table())
        };
        *self.quota() = Some(Quota::new(policy, &table, replicas, timing, self.clock.now()));
        self.enforce_leases();
    }

    /// Uses no lease longer than it runs.
    pub fn enforce_leases(&self) {
        let proxy = self.proxy();
        let table = self.part_of(self.controller().table());
        if *table != **proxy.table.load() {
            proxy.set_table(table);
        }
    }

    /// The next renewal, and what it is made of; `None` for a replica that shares no limit.
    pub fn next_renewal(&self) -> Option<Sent> {
        let (policy, table, mut reading) = {
            let controller = self.controller();
            (Arc::clone(controller.policy()), controller.table(), controller.proxy().clone())
        };
        let proxy = self.proxy();
        let mut quota = self.quota();
        let quota = quota.as_mut()?;
        for (at, seen) in reading.iter_mut().enumerate() {
            // What is under way at this moment: the reading is up to a tick old.
            if let Ok(id) = u8::try_from(at) {
                (seen.in_flight, seen.waiting) = proxy.admission.load(ClassId(id));
            }
        }
        let now = self.clock.now();
        let ids = || (0..reading.len()).filter_map(|at| Some((at, ClassId(u8::try_from(at).ok()?))));
        for (at, id) in ids() {
            if let Some(demand) = proxy.admission.asked(id) {
                quota.hear(at, &demand, &proxy.admission.places_wanted(id), now);
            }
        }
        let limits = quota.limits(&table);
        quota.holder.set_limits(&limits);
        let loads = quota.loads(&reading, now);
        for (at, id) in ids() {
            proxy.admission.watch(id, quota.watches(at, now));
        }
        let renewal = quota.holder.renew(now, &loads);
        let wanted = quota.wanted();
        Some(Sent { policy, reading, names: quota.names().to_vec(), loads, wanted, renewal })
    }

    /// Shares the whole limits out among all clients that ask at these replicas; for the leader.
    pub fn share_out(&self, limits: &[u64], reserved: &[u64], proxies: &[Wanted]) -> PublishedShares {
        self.quota().as_ref().map(|quota| quota.share_out(limits, reserved, proxies)).unwrap_or_default()
    }

    /// Takes in how the limits are shared out among identities.
    pub fn take_shares(&self, shares: Option<PublishedShares>) {
        let proxy = self.proxy();
        let mut quota = self.quota();
        let Some(quota) = quota.as_mut() else { return };
        quota.take_shares(shares);
        for at in 0..proxy.policy.classes.len() {
            let (weights, parts) = quota.weights(at);
            if let Ok(id) = u8::try_from(at) {
                proxy.admission.weigh(ClassId(id), &weights, &parts);
            }
        }
    }

    /// Takes in what the store has granted, and whether this replica leads.
    pub fn take_leases(&self, renewal: &Renewal, leases: &[u64], known: u32, leads: bool) {
        if let Some(quota) = &mut *self.quota() {
            quota.holder.lead(renewal, leads);
            quota.holder.take(renewal, leases, known);
        }
        self.enforce_leases();
    }

    /// Whether this replica may take itself for the leader at this moment.
    pub fn leads(&self) -> bool {
        let now = self.clock.now();
        self.quota().as_ref().is_some_and(|quota| quota.holder.leads(now))
    }

    /// From now on this proxy gives back what it does not use.
    pub fn leave_replicas(&self) {
        if let Some(quota) = &mut *self.quota() {
            quota.holder.leave();
        }
    }

    /// Leads no longer than the store has it: another may by now, and this replica follows until it
    /// hears who.
    pub fn step_down(&self) {
        let leads = self.leads();
        let leadership = self.controller().replicas();
        if let Some(replicas) = leadership.filter(|replicas| replicas.role == Role::Leads && !leads) {
            self.on_leadership(&LeadershipChange {
                role: Role::Follows,
                leader: String::new(),
                token: replicas.token,
                replicas: replicas.count,
                problem: replicas.store_problem.unwrap_or_default(),
            });
        }
    }

    /// The store did not answer; says on what this proxy goes by now.
    pub fn fail_renewal(&self) -> Standing {
        let now = self.clock.now();
        let standing = self.quota().as_mut().map_or(Standing::CutOff, |quota| {
            if quota.standing(now) == Standing::New {
                quota.holder.go_alone(now);
            }
            quota.standing(now)
        });
        self.enforce_leases();
        standing
    }

    /// Takes in who leads.
    pub fn on_leadership(&self, change: &LeadershipChange) {
        let effects = self.controller().on_leadership(change);
        self.carry_out(effects);
    }

    /// Takes in that the store cannot be asked: the leader leads on as long as its leadership
    /// runs, and a replica that has leases follows what it last heard.
    pub fn on_store_problem(&self, standing: Standing, problem: &str) {
        let Some(replicas) = self.controller().replicas() else { return };
        let (role, leader) = match standing {
            Standing::Leased if replicas.role == Role::Leads && self.leads() => {
                (Role::Leads, replicas.leader)
            }
            Standing::Leased => (Role::Follows, String::new()),
            _ => (Role::CutOff, String::new()),
        };
        self.on_leadership(&LeadershipChange {
            role,
            leader,
            token: replicas.token,
            replicas: replicas.count,
            problem: problem.to_owned(),
        });
    }

    /// Takes in what the other replicas say.
    pub fn on_peers(&self, peers: Vec<Peer>) {
        self.controller().on_peers(peers);
    }

    /// What a leader publishes: the whole limits in grains, and the table the others follow.
    pub fn publication(&self) -> (Vec<u64>, Followed) {
        let controller = self.controller();
        let limits = self.quota().as_ref().map_or_else(Vec::new, |quota| quota.limits(&controller.table()));
        (limits, controller.followed(self.clock.now()))
    }

    /// Follows the leader's table.
    pub fn follow(&self, followed: &Followed) {
        let effects = self.controller().follow(followed, self.clock.now());
        self.carry_out(effects);
    }

    /// What is leased here of each shared limit, and how old that is; `None` for a proxy that
    /// shares no limit.
    pub fn leased(&self) -> Option<(Vec<Leased>, Duration)> {
        let now = self.clock.now();
        self.quota().as_ref().map(|quota| (quota.leased(now), quota.age(now)))
    }
}
