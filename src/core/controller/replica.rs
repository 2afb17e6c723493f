//! The controller as one of several: the leader decides, and the others follow.

use crate::admission::meter::Counts;
use crate::admission::table::Mode;
use crate::controller::leadership::{
    Followed, FollowedLimit, Leadership, LeadershipChange, Peer, ReplicasView, Role,
};
use crate::controller::overrides::{OverrideError, PIN_MAX, Pin};
use crate::controller::{Controller, Effects, ProxyReading};
use crate::event::Event;
use crate::time::{Time, duration_from_secs};
use std::collections::BTreeMap;

impl Controller {
    /// The replicas, for people; `None` for a controller that has not joined any.
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

    /// Takes in what the other replicas say; for the leader.
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

    /// Follows the leader; classes it does not name stay as they are.
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
                // A value that no operator may set here does not come by way of another replica either.
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

    /// A follower begins its first window when it takes over, not when it last decided.
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
    use crate::controller::ClassReading;
    use crate::event::{LimitKind, LoopKind};
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
