//! One controller among several: who decides, and on what.
//!
//! Replicas in front of one head must not each find a limit of their own: each sees a part of the
//! requests, and together they would regulate one plant with several integrators. So one leads.
//! It sees the whole: its own proxy's reading and, added to it, what the others have counted since
//! it began to look (counters only ever rise; a difference is lost with nobody). The others follow
//! its table: their loops stand at its limits with nothing remembered, as after a hand-over from an
//! operator, so whoever takes over begins where the last leader stopped, and its first window at
//! that moment.
//!
//! A replica that cannot reach the store decides for itself, for its part. It takes the others to
//! be like itself (what is under way counts once for each), so a limit neither looks unused to it
//! nor grows beyond what it was: its part never exceeds the safe share, see [`crate::replicas`].
//!
//! The limit on the submission backlog is each replica's own, with an even part of the room: what a
//! replica has let in since the reading it knows at once, and what others have only later.

use crate::admission::meter::Counts;
use crate::admission::table::Mode;
use crate::controller::overrides::{OverrideError, PIN_MAX, Pin};
use crate::controller::view::PinView;
use crate::controller::{ClassReading, Controller, Effects, ProxyReading};
use crate::event::{Event, LimitKind, LoopKind};
pub use crate::replicas::role::{LeadershipChange, Role};
use crate::time::{Time, duration_from_secs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a replica knows of the others.
#[derive(Clone, Debug)]
pub struct Leadership {
    me: String,
    role: Role,
    leader: String,
    token: u64,
    replicas: u32,
    peers: Vec<PeerView>,
    problem: Option<String>,
    /// What others have counted while this one looked, by class.
    others: Vec<Counts>,
    seen: BTreeMap<String, Vec<ClassReading>>,
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

    fn look(&mut self, peers: Vec<Peer>) {
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

impl Controller {
    /// The replicas, for people; `None` for a controller that decides for nobody else.
    #[must_use]
    pub fn replicas(&self) -> Option<ReplicasView> {
        self.leadership.as_ref().map(Leadership::view)
    }

    /// From now on this controller is one of several; until the store has answered it goes by itself.
    pub fn join(&mut self, me: &str, replicas: u32) {
        let classes = self.policy.classes.len();
        self.leadership = Some(Leadership {
            me: me.to_owned(),
            role: Role::CutOff,
            leader: String::new(),
            token: 0,
            replicas: replicas.max(1),
            peers: Vec::new(),
            problem: None,
            others: vec![Counts::default(); classes],
            seen: BTreeMap::new(),
        });
    }

    /// Takes in who leads.
    pub fn on_leadership(&mut self, change: &LeadershipChange) -> Effects {
        let mut effects = Effects::default();
        let Some(leadership) = &mut self.leadership else { return effects };
        let news = (&leadership.role, &leadership.leader) != (&change.role, &change.leader)
            || leadership.token == 0 && change.token > 0;
        leadership.problem = (!change.problem.is_empty()).then(|| change.problem.clone());
        leadership.replicas = change.replicas.max(1);
        if !news {
            return effects;
        }
        leadership.role = change.role.clone();
        leadership.leader.clone_from(&change.leader);
        leadership.token = change.token;
        leadership.seen.clear();
        leadership.peers.clear();
        effects.events.push(Event::Leadership(change.clone()));
        effects
    }

    /// Takes in what the other replicas say; for whoever leads.
    pub fn on_peers(&mut self, peers: Vec<Peer>) {
        if let Some(leadership) = &mut self.leadership {
            leadership.look(peers);
        }
    }

    /// What the others are to follow.
    #[must_use]
    pub fn followed(&self, now: Time) -> Followed {
        let name = |at: usize| self.policy.classes[at].name.to_string();
        let limits = self.loops().map(|(at, of)| FollowedLimit {
            class: name(at),
            limit: of.kind,
            r#loop: of.which,
            value: of.limit,
        });
        let mut pins = self.pin_views(now);
        for pin in &mut pins {
            pin.left_s = pin.left_s.ceil(); // or the table would be another at every renewal
        }
        let shadow = self.classes.iter().enumerate().filter(|(_, loops)| loops.mode == Mode::Shadow);
        Followed {
            limits: limits.collect(),
            frozen: self.overrides.frozen(),
            pins,
            shadow: shadow.map(|(at, _)| name(at)).collect(),
        }
    }

    /// Follows whoever leads; classes it does not name stay as they are.
    pub fn follow(&mut self, followed: &Followed, now: Time) -> Effects {
        for (class, loops) in self.policy.classes.iter().zip(&mut self.classes) {
            let known = followed.limits.iter().any(|of| *of.class == *class.name);
            for of in loops.all_mut() {
                let theirs = followed.limits.iter().find(|theirs| {
                    *theirs.class == *class.name && theirs.limit == of.kind && theirs.r#loop == of.which
                });
                if let Some(theirs) = theirs.filter(|theirs| theirs.value.is_finite()) {
                    of.limit = of.regulator.guardrails.bounds.clamp(theirs.value);
                    of.regulator.transfer();
                }
            }
            if known {
                let shadow = followed.shadow.iter().any(|name| **name == *class.name);
                loops.mode = if shadow { Mode::Shadow } else { Mode::Enforce };
            }
        }
        let pins = followed.pins.iter().filter_map(|pin| {
            let class = self.policy.classes.iter().position(|class| *class.name == *pin.class)?;
            Some(Pin {
                class,
                limit: pin.limit,
                // What nobody may order here does not come by way of another replica either.
                value: self.bounds_of(class, pin.limit)?.clamp(pin.value),
                until: now + duration_from_secs(pin.left_s).min(PIN_MAX),
                who: pin.who.clone(),
                why: pin.why.clone(),
            })
        });
        let pins = pins.collect();
        self.overrides.follow(followed.frozen, pins);
        Effects { table: self.renew_table(), ..Effects::default() }
    }

    /// Whether this controller moves limits.
    pub(super) fn decides(&self) -> bool {
        self.leadership.as_ref().is_none_or(|leadership| leadership.role != Role::Follows)
    }

    pub(super) fn refuse_if_follower(&self) -> Result<(), OverrideError> {
        match &self.leadership {
            Some(leadership) if leadership.role == Role::Follows => {
                Err(OverrideError::Follows { leader: leadership.leader.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Whoever follows begins its first window when it takes over, not when it last decided.
    pub(super) fn keep_ready(&mut self, whole: &ProxyReading, now: Time) {
        for (loops, seen) in self.classes.iter_mut().zip(whole) {
            loops.pressure = None;
            for of in loops.all_mut() {
                of.since = now;
                of.counts.clone_from(&seen.counts);
                of.peak = seen.in_flight;
                of.binding = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::plain::{class, policy};
    use crate::policy::{Bounds, Law};
    use crate::time::WallMs;
    use std::sync::Arc;
    use std::time::Duration;

    fn controller(me: &str) -> Controller {
        let mut class = class("list", 10.0);
        class.in_flight = Bounds { initial: 10.0, min: 1.0, max: 100.0 };
        class.law = Law::Pid { kp: 0.0, ki: Some(0.5), kd: 0.0 };
        let policy = Arc::new(policy(vec![class], 100.0));
        let mut controller = Controller::new(policy, &[], &[], Time::ZERO);
        controller.join(me, 3);
        controller
    }

    fn role(role: Role, leader: &str, token: u64) -> LeadershipChange {
        LeadershipChange { role, leader: leader.into(), token, replicas: 3, problem: String::new() }
    }

    /// A proxy at which so many answers of two seconds have ended, and the limit was reached.
    fn slow(ended: u64, under_way: u32) -> ProxyReading {
        let meter = crate::admission::meter::Meter::default();
        for _ in 0..ended {
            meter.offer();
            meter.admit(under_way);
            let latency = Duration::from_secs(2);
            meter.finish(crate::admission::meter::Outcome::Served, latency, latency);
        }
        let counts = meter.read();
        vec![ClassReading {
            counts,
            in_flight: under_way,
            in_flight_peak: under_way,
            ..ClassReading::default()
        }]
    }

    fn limit(controller: &Controller) -> f64 {
        controller.table().classes[0].in_flight
    }

    fn run(controller: &mut Controller, from_s: f64, reading: impl Fn(u64) -> ProxyReading) -> Vec<Event> {
        (0..50)
            .flat_map(|step| {
                let now = Time::from_secs_f64(from_s + step as f64 * 0.1);
                controller.on_tick(reading(step), now, WallMs(0)).events
            })
            .collect()
    }

    fn adjusted(events: &[Event]) -> Vec<Option<String>> {
        let of = |event: &Event| match event {
            Event::Adjustment(adjustment) => Some(adjustment.decided_by.clone()),
            _ => None,
        };
        events.iter().filter_map(of).collect()
    }

    #[test]
    fn a_follower_moves_nothing_and_takes_over_where_the_leader_stopped() {
        let mut follower = controller("b");
        follower.on_leadership(&role(Role::Follows, "a", 1));
        let followed = Followed {
            limits: vec![FollowedLimit {
                class: "list".into(),
                limit: LimitKind::InFlight,
                r#loop: LoopKind::Inner,
                value: 37.0,
            }],
            ..Followed::default()
        };
        follower.follow(&followed, Time::ZERO);
        let events = run(&mut follower, 0.0, |step| slow(step * 20, 37));
        assert!(adjusted(&events).is_empty());
        assert!((limit(&follower) - 37.0).abs() < 1e-9);

        follower.on_leadership(&role(Role::Leads, "b", 2));
        follower.on_tick(slow(1_000, 37), Time::from_secs_f64(5.1), WallMs(0));
        assert!((limit(&follower) - 37.0).abs() < 1e-9, "what was slow before is not its evidence");
        let events = run(&mut follower, 5.2, |step| slow(1_000 + step * 20, 37));
        assert!(limit(&follower) < 37.0);
        let deciders = adjusted(&events);
        assert!(!deciders.is_empty() && deciders.iter().all(|by| by.as_deref() == Some("b")));
    }

    #[test]
    fn a_leader_acts_on_what_others_see() {
        let mut leader = controller("a");
        leader.on_leadership(&role(Role::Leads, "a", 1));
        let peer = |ended| vec![Peer { member: "b".into(), reading: slow(ended, 9) }];
        leader.on_peers(peer(0));
        let initial = limit(&leader);
        let mut lowest = initial;
        for step in 1..50_u64 {
            leader.on_peers(peer(step * 20));
            leader.on_tick(slow(0, 1), Time::from_secs_f64(step as f64 * 0.1), WallMs(0));
            lowest = lowest.min(limit(&leader));
        }
        // What did not help is given back: this head is as slow whatever the limit.
        assert!(lowest < initial, "{lowest}");
    }

    #[test]
    fn a_replica_that_is_cut_off_protects_the_head_by_itself() {
        let mut alone = controller("a");
        alone.on_leadership(&LeadershipChange { problem: "timed out".into(), ..role(Role::CutOff, "", 0) });
        let events = run(&mut alone, 0.0, |step| slow(step * 20, 4));
        let is_cut = |event: &Event| matches!(event, Event::Adjustment(of) if of.new < of.old);
        assert!(events.iter().any(is_cut), "{events:?}");
    }

    #[test]
    fn a_follower_takes_no_override() {
        let mut follower = controller("b");
        follower.on_leadership(&role(Role::Follows, "a", 1));
        let order = crate::controller::overrides::Override::Freeze(true);
        let refused = follower.on_override(&order, "me", "", Time::ZERO, WallMs(0)).unwrap_err();
        assert!(refused.to_string().starts_with("a is the leader and decides for all replicas"), "{refused}");
    }

    #[test]
    fn pins_and_modes_pass_to_the_followers() {
        use crate::controller::overrides::Override;
        let mut leader = controller("a");
        leader.on_leadership(&role(Role::Leads, "a", 1));
        let pin = Override::Pin {
            class: "list".into(),
            limit: LimitKind::InFlight,
            value: 5.0,
            length: Duration::from_mins(1),
        };
        leader.on_override(&pin, "me", "why", Time::ZERO, WallMs(0)).unwrap();
        let shadow = Override::Mode { class: None, mode: Mode::Shadow };
        leader.on_override(&shadow, "me", "why", Time::ZERO, WallMs(0)).unwrap();
        let text = serde_json::to_string(&leader.followed(Time::ZERO)).unwrap();
        let mut follower = controller("b");
        follower.on_leadership(&role(Role::Follows, "a", 1));
        follower.follow(&serde_json::from_str(&text).unwrap(), Time::from_secs_f64(9.0));
        let own = follower.table().classes[0];
        assert!((own.in_flight - 5.0).abs() < 1e-9);
        assert_eq!(own.mode, Mode::Shadow);
    }
}
