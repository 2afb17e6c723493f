//! One controller among several: who decides, and on what.
//!
//! Replicas in front of one head must not each find a limit of their own: each sees a part of the
//! requests, and together they would regulate one plant with several integrators. So one leads.
//! It sees the whole: its own proxy's reading and, added to it, what the others have counted since
//! it began to look (counters only ever rise; a difference is not lost with its replica). The others follow
//! its table: their loops stand at its limits with nothing remembered, as after a hand-over from an
//! operator, so a new leader begins where the last leader stopped, and its first window at
//! that moment.
//!
//! A replica that cannot reach the store decides for itself, for its part. It takes the others to
//! be like itself (what is under way counts once for each), so a limit neither looks unused to it
//! nor grows beyond what it was: its part never exceeds the safe share, see [`crate::replicas`].
//!
//! The limit on the submission backlog is each replica's own, with an even part of the room: what a
//! replica has let in since the reading it knows at once, and what others have only later.

use crate::admission::meter::{ClassReading, Counts, ProxyReading};
use crate::controller::overrides::PinView;
use crate::event::{LimitKind, LoopKind};
pub use crate::replicas::role::{LeadershipChange, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a replica knows of the others.
#[derive(Clone, Debug)]
pub struct Leadership {
    pub(super) me: String,
    pub(super) role: Role,
    pub(super) leader: String,
    pub(super) token: u64,
    pub(super) replicas: u32,
    pub(super) peers: Vec<PeerView>,
    pub(super) problem: Option<String>,
    /// What others have counted while this one looked, by class.
    pub(super) others: Vec<Counts>,
    pub(super) seen: BTreeMap<String, Vec<ClassReading>>,
}

/// Another replica's reading of its proxy.
#[derive(Clone, PartialEq, Debug)]
pub struct Peer {
    /// Its name and run.
    pub member: String,
    /// One for each class, in this replica's order.
    pub reading: ProxyReading,
}

/// This replica, and what it knows of the others.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Replicas")]
pub struct ReplicasView {
    /// This replica.
    pub name: String,
    /// Whose decisions count here.
    pub role: Role,
    /// Who leads, as far as is known.
    pub leader: String,
    /// The token it leads by; each leader's is greater than the last's.
    pub token: u64,
    /// How many replicas the limits are divided among, those that fell silent included.
    pub count: u32,
    /// Why the store cannot be asked, if it cannot.
    pub store_problem: Option<String>,
    /// Every replica that renews; the leader alone knows them.
    pub peers: Vec<PeerView>,
}

/// One replica.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Replica")]
pub struct PeerView {
    /// Its name and run.
    pub name: String,
    /// Requests under way there.
    pub in_flight: u32,
    /// Waiting there.
    pub waiting: u32,
}

/// What a leader publishes and the others follow.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Followed {
    /// Each loop's limit.
    pub limits: Vec<FollowedLimit>,
    /// Whether all limits are held.
    pub frozen: bool,
    /// What is held by hand.
    pub pins: Vec<PinView>,
    /// Classes whose sheds are only counted.
    pub shadow: Vec<String>,
}

/// One loop's limit.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FollowedLimit {
    /// The class.
    pub class: String,
    /// Which limit.
    pub limit: LimitKind,
    /// Under which loop.
    pub r#loop: LoopKind,
    /// Its value.
    pub value: f64,
}

impl Leadership {
    /// Its own name.
    #[must_use]
    pub fn me(&self) -> &str {
        &self.me
    }

    /// How many replicas the limits are divided among.
    #[must_use]
    pub fn replicas(&self) -> u32 {
        self.replicas
    }

    /// Why the store cannot be asked.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// For people.
    #[must_use]
    pub fn view(&self) -> ReplicasView {
        ReplicasView {
            name: self.me.clone(),
            role: self.role.clone(),
            leader: self.leader.clone(),
            token: self.token,
            count: self.replicas,
            store_problem: self.problem.clone(),
            peers: self.peers.clone(),
        }
    }

    /// The whole as far as this replica knows it: see the head of this file.
    pub(super) fn whole(&self, reading: &ProxyReading) -> ProxyReading {
        let mut whole = reading.clone();
        for (class, others) in whole.iter_mut().zip(&self.others) {
            class.counts.add(others);
        }
        match self.role {
            Role::Leads => {
                for peer in self.seen.values() {
                    whole.iter_mut().zip(peer).for_each(|(class, other)| add_gauges(class, other));
                }
            }
            Role::CutOff => whole.iter_mut().for_each(|class| {
                class.in_flight = class.in_flight.saturating_mul(self.replicas);
                class.in_flight_peak = class.in_flight_peak.saturating_mul(self.replicas);
                class.waiting = class.waiting.saturating_mul(self.replicas);
            }),
            Role::Follows => {}
        }
        whole
    }

    /// Under a policy with so many classes; `place` tells where one of the old stands now.
    pub(super) fn under(&self, classes: usize, place: impl Fn(usize) -> Option<usize>) -> Leadership {
        let mut others = vec![Counts::default(); classes];
        for (at, counts) in self.others.iter().enumerate() {
            if let Some(to) = place(at) {
                others[to].clone_from(counts);
            }
        }
        Leadership { others, seen: BTreeMap::new(), ..self.clone() }
    }

    pub(super) fn look(&mut self, peers: Vec<Peer>) {
        let mut seen = BTreeMap::new();
        self.peers.clear();
        for Peer { member, reading } in peers {
            if let Some(before) = self.seen.get(&member) {
                for ((sum, now), before) in self.others.iter_mut().zip(&reading).zip(before) {
                    sum.add(&now.counts.since(&before.counts));
                }
            }
            self.peers.push(PeerView {
                name: member.clone(),
                in_flight: reading.iter().map(|class| class.in_flight).sum(),
                waiting: reading.iter().map(|class| class.waiting).sum(),
            });
            seen.insert(member, reading);
        }
        self.seen = seen;
    }
}

/// What is under way adds up. Something ended wherever it ended last: that anything ends anywhere
/// proves that the head still answers.
fn add_gauges(class: &mut ClassReading, other: &ClassReading) {
    class.stalled_s = match (class.in_flight, other.in_flight) {
        (0, _) => other.stalled_s,
        (_, 0) => class.stalled_s,
        _ => class.stalled_s.min(other.stalled_s),
    };
    class.in_flight += other.in_flight;
    class.in_flight_peak += other.in_flight_peak;
    class.waiting += other.waiting;
}
