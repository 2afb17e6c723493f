//! The guard of one replica among several: its part of the limits, and who decides.
//!
//! [`crate::fleet`] talks to the others; what they say goes to the engine and to this proxy's part
//! here. Leases are looked at many times a second, so that none is used after it has run out,
//! whatever else is waited for.

use crate::core::engine::crew::{FleetChange, Followed, Peer, Role};
use crate::core::fleet::Timing;
use crate::core::fleet::holding::{Renewal, Standing};
use crate::core::fleet::part::{Leased, Part, Shares, Wanted};
use crate::core::policy::ClassId;
use crate::fleet::Sent;
use crate::runtime::guard::Guard;
use std::sync::Arc;
use std::time::Duration;

impl Guard {
    /// From now on this proxy uses its part of the limits: nothing, until the first renewal is
    /// answered or has failed.
    pub fn join_fleet(&self, me: &str, replicas: u32, timing: Timing) {
        let (policy, table) = {
            let mut engine = self.engine();
            engine.join(me, replicas);
            (Arc::clone(engine.policy()), engine.table())
        };
        *self.part() = Some(Part::new(policy, &table, replicas, timing, self.clock.now()));
        self.enforce_leases();
    }

    /// Uses no lease longer than it runs.
    pub fn enforce_leases(&self) {
        let proxy = self.proxy();
        let table = self.part_of(self.engine().table());
        if *table != **proxy.table.load() {
            proxy.set_table(table);
        }
    }

    /// The next renewal, and what it is made of; `None` for a replica that shares with nobody.
    pub fn next_renewal(&self) -> Option<Sent> {
        let (policy, table, mut reading) = {
            let engine = self.engine();
            (Arc::clone(engine.policy()), engine.table(), engine.proxy().clone())
        };
        let proxy = self.proxy();
        let mut part = self.part();
        let part = part.as_mut()?;
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
                part.hear(at, &demand, &proxy.admission.places_wanted(id), now);
            }
        }
        let limits = part.limits(&table);
        part.holding.set_limits(&limits);
        let loads = part.loads(&reading, now);
        for (at, id) in ids() {
            proxy.admission.watch(id, part.watches(at, now));
        }
        let renewal = part.holding.renew(now, &loads);
        let wanted = part.wanted();
        Some(Sent { policy, reading, names: part.names().to_vec(), loads, wanted, renewal })
    }

    /// Shares the whole limits out among all who ask at these replicas; for whoever leads.
    #[must_use]
    pub fn share_out(&self, limits: &[u64], reserved: &[u64], proxies: &[Wanted]) -> Shares {
        self.part().as_ref().map(|part| part.share_out(limits, reserved, proxies)).unwrap_or_default()
    }

    /// Takes in how the limits are shared out among identities.
    pub fn take_shares(&self, shares: Option<Shares>) {
        let proxy = self.proxy();
        let mut part = self.part();
        let Some(part) = part.as_mut() else { return };
        part.take_shares(shares);
        for at in 0..proxy.policy.classes.len() {
            let (weights, parts) = part.weights(at);
            if let Ok(id) = u8::try_from(at) {
                proxy.admission.weigh(ClassId(id), &weights, &parts);
            }
        }
    }

    /// Takes in what the store has granted, and whether this replica leads.
    pub fn take_leases(&self, renewal: &Renewal, leases: &[u64], known: u32, leads: bool) {
        if let Some(part) = &mut *self.part() {
            part.holding.lead(renewal, leads);
            part.holding.take(renewal, leases, known);
        }
        self.enforce_leases();
    }

    /// Whether this replica may take itself for the leader at this moment.
    #[must_use]
    pub fn leads(&self) -> bool {
        let now = self.clock.now();
        self.part().as_ref().is_some_and(|part| part.holding.leads(now))
    }

    /// From now on this proxy gives back what it does not use.
    pub fn leave_fleet(&self) {
        if let Some(part) = &mut *self.part() {
            part.holding.leave();
        }
    }

    /// Leads no longer than the store has it: another may by now, and this replica follows until it
    /// hears who.
    pub fn step_down(&self) {
        let leads = self.leads();
        let crew = self.engine().fleet();
        if let Some(fleet) = crew.filter(|fleet| fleet.role == Role::Leads && !leads) {
            self.on_fleet(&FleetChange {
                role: Role::Follows,
                leader: String::new(),
                token: fleet.token,
                replicas: fleet.replicas,
                problem: fleet.store_problem.unwrap_or_default(),
            });
        }
    }

    /// The store did not answer; says on what this proxy goes by now.
    pub fn fail_renewal(&self) -> Standing {
        let now = self.clock.now();
        let standing = self.part().as_mut().map_or(Standing::CutOff, |part| {
            if part.standing(now) == Standing::New {
                part.holding.go_alone(now);
            }
            part.standing(now)
        });
        self.enforce_leases();
        standing
    }

    /// Takes in who leads.
    pub fn on_fleet(&self, change: &FleetChange) {
        let effects = self.engine().on_fleet(change);
        self.carry_out(effects);
    }

    /// Takes in that the store cannot be asked: whoever leads leads on as long as its leadership
    /// runs, and whoever has leases follows what it last heard.
    pub fn on_store_problem(&self, standing: Standing, problem: &str) {
        let Some(fleet) = self.engine().fleet() else { return };
        let (role, leader) = match standing {
            Standing::Leased if fleet.role == Role::Leads && self.leads() => (Role::Leads, fleet.leader),
            Standing::Leased => (Role::Follows, String::new()),
            _ => (Role::CutOff, String::new()),
        };
        self.on_fleet(&FleetChange {
            role,
            leader,
            token: fleet.token,
            replicas: fleet.replicas,
            problem: problem.to_owned(),
        });
    }

    /// Takes in what the other replicas say.
    pub fn on_peers(&self, peers: Vec<Peer>) {
        self.engine().on_peers(peers);
    }

    /// What a leader publishes: the whole limits in grains, and the table the others follow.
    pub fn publication(&self) -> (Vec<u64>, Followed) {
        let engine = self.engine();
        let limits = self.part().as_ref().map_or_else(Vec::new, |part| part.limits(&engine.table()));
        (limits, engine.followed(self.clock.now()))
    }

    /// Follows the leader's table.
    pub fn follow(&self, followed: &Followed) {
        let effects = self.engine().follow(followed, self.clock.now());
        self.carry_out(effects);
    }

    /// What is leased here of each shared limit, and how old that is; `None` for a proxy that
    /// shares with nobody.
    pub fn leased(&self) -> Option<(Vec<Leased>, Duration)> {
        let now = self.clock.now();
        self.part().as_ref().map(|part| (part.leased(now), part.age(now)))
    }
}
