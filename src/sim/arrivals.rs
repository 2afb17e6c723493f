//! Who asks, and when: the behaviour of each kind of client, one agent at a time.
//!
//! An agent is woken, says what it asks and when it wants to be woken again; how its requests
//! fare comes back through [`Agent::settled`]. Open loops do not care, closed ones wait for
//! it, browsers keep their tickers, operators poll again 3 s after they have an answer, a batch
//! goes on to its next job. Each group draws from its own stream of chance.

use super::head::{RouteId, Spec};
use super::rng::{Rng, mix};
use super::scenario::{ClientKind, ClientSpec};
use super::trace::Trace;
use rayguard_core::request::client_id::ClientId;
use rayguard_core::time::{Time, duration_from_secs};
use std::sync::Arc;
use std::time::Duration;

/// What a client needs between an answer and its next request, however eager: a round trip
/// and a little work. Without it a closed loop that is refused at once would stop time.
const TURNAROUND: Duration = Duration::from_millis(1);

/// One client.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    /// Its group.
    pub group: u16,
    behaviour: Behaviour,
    turn: u32,
}

#[derive(Clone, Debug)]
enum Behaviour {
    Open { route: RouteId },
    Closed { route: RouteId, think: Duration },
    Ticker { route: RouteId, period: Duration },
    Poll { route: RouteId, pause: Duration },
    Batch { route: RouteId, left: u32, think: Duration },
    Trace { trace: Arc<Trace>, at: usize, routes: Arc<Vec<RouteId>> },
}

/// What an agent does when it is woken.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Wish {
    /// What it asks now, if anything.
    pub route: Option<RouteId>,
    /// Payload.
    pub size: f64,
    /// As whom.
    pub client: ClientId,
    /// How long it is held open, where a trace says so.
    pub lasts: Option<Duration>,
    /// Whether it may be given the answer to an equal question.
    pub follows: bool,
    /// When to wake it again; `None`: when it is settled, or never.
    pub again: Option<Time>,
}

/// A group with all that its agents share.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// As the scenario says it.
    pub spec: ClientSpec,
    rng: Rng,
    until: Time,
}

/// Groups behind one gateway have one address, those of one word the same ones; all others are the group's own.
fn address(group: usize, spec: &ClientSpec, turn: u32) -> u64 {
    let of = |whose: u64| mix(mix(whose) ^ u64::from(turn % spec.addresses));
    match (spec.behind.as_str(), spec.who.as_str()) {
        ("", "") => of(group as u64 + 1),
        ("", who) => of(digest(who)),
        (behind, _) => digest(behind),
    }
}

fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| mix(hash ^ u64::from(byte)))
}

impl Group {
    /// A group with its stream of chance.
    #[must_use]
    pub(crate) fn new(at: usize, spec: &ClientSpec, seed: u64, end: Time) -> Group {
        let until = spec.until_s.map_or(end, Time::from_secs_f64);
        Group { spec: spec.clone(), rng: Rng::new(seed, 1000 + at as u64), until }
    }

    /// Whether the group still asks at `now`.
    #[must_use]
    pub(crate) fn asks(&self, now: Time) -> bool {
        now >= Time::from_secs_f64(self.spec.from_s) && now < self.until
    }

    /// The group's chance.
    pub(crate) fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    fn client(&self, group: usize, turn: u32) -> ClientId {
        let address = address(group, &self.spec, turn);
        let credential = match self.spec.token.as_str() {
            "" | "none" => None,
            "own" => Some(mix(0x70ce ^ group as u64)),
            "each" => Some(mix(0xeac4 ^ mix(group as u64) ^ u64::from(turn % self.spec.addresses.max(1)))),
            word => Some(digest(word)),
        };
        ClientId { address, credential }
    }

    /// When an open loop asks next after `now`, its square wave, ramp and day considered.
    ///
    /// A rate that varies is had by thinning (Lewis and Shedler, 1979): moments are drawn at the
    /// highest rate, and each is kept with the share that the rate has of it then.
    fn next_open(&mut self, now: Time) -> Time {
        let mut next = now;
        loop {
            next = next + duration_from_secs(self.gap_s());
            if let Some([on, off]) = self.spec.square_s {
                let begun = Time::from_secs_f64(self.spec.from_s);
                let phase = next.since(begun).as_secs_f64().rem_euclid(on + off);
                if phase >= on {
                    let wait = on + off - phase + self.gap_s();
                    next = next + duration_from_secs(wait);
                }
            }
            let share = self.share_of_rate(next);
            if share >= 1.0 || next >= self.until || self.rng.happens(share) {
                return next;
            }
        }
    }

    /// Time to an open loop's next request at its highest rate.
    fn gap_s(&mut self) -> f64 {
        let mean = 1.0 / self.spec.per_second;
        if self.spec.regular { mean } else { self.rng.exponential(mean) }
    }

    /// The rate at `now` as a share of the highest.
    fn share_of_rate(&self, now: Time) -> f64 {
        let since = now.as_secs_f64() - self.spec.from_s;
        let ramp = self.spec.ramp_s.map_or(1.0, |length| (since / length).clamp(0.0, 1.0));
        let day = self
            .spec
            .day_s
            .map_or(1.0, |length| 0.55 - 0.45 * (std::f64::consts::TAU * since / length).cos());
        ramp * day
    }
}

/// The agents of a group and when each is first woken.
#[must_use]
pub(crate) fn agents(
    at: u16,
    group: &mut Group,
    spec: &Spec,
    trace: Option<Arc<Trace>>,
) -> Vec<(Time, Agent)> {
    let route = |name: &str| spec.route(name).unwrap_or(RouteId(0));
    let from = Time::from_secs_f64(group.spec.from_s);
    let own = route(&group.spec.route);
    let think = duration_from_secs(group.spec.think_s);
    let count = group.spec.count;
    let mut made = Vec::new();
    let mut add = |when: Time, turn: u32, behaviour: Behaviour| {
        made.push((when, Agent { group: at, behaviour, turn }));
    };
    match group.spec.kind {
        ClientKind::Open => {
            let first = group.next_open(from);
            add(first, 0, Behaviour::Open { route: own });
        }
        ClientKind::Closed => {
            for turn in 0..count {
                add(from, turn, Behaviour::Closed { route: own, think });
            }
        }
        ClientKind::Browser => {
            for turn in 0..count {
                for (name, seconds) in [
                    ("nodes", 4),
                    ("job-list", 4),
                    ("cluster-status", 4),
                    ("serve", 4),
                    ("actors", 10),
                    ("tasks", 10),
                ] {
                    let period = Duration::from_secs(seconds);
                    let phase = duration_from_secs(group.rng.uniform() * period.as_secs_f64());
                    add(from + phase, turn, Behaviour::Ticker { route: route(name), period });
                }
            }
        }
        ClientKind::Operator => {
            for turn in 0..count {
                let phase = duration_from_secs(group.rng.uniform() * 3.0);
                add(
                    from + phase,
                    turn,
                    Behaviour::Poll { route: route("job-status"), pause: Duration::from_secs(3) },
                );
            }
            add(from, 0, Behaviour::Poll { route: route("gcs-healthz"), pause: Duration::from_secs(2) });
        }
        ClientKind::Batch => {
            let jobs = group.spec.jobs;
            for turn in 0..count {
                add(from, turn, Behaviour::Batch { route: route("job-submit"), left: jobs, think });
            }
        }
        ClientKind::Trace => {
            if let Some(trace) = trace.filter(|trace| !trace.arrivals.is_empty()) {
                let routes = Arc::new(trace.arrivals.iter().map(|a| route(&a.route)).collect::<Vec<_>>());
                let first = from + trace.arrivals[0].at.since(Time::ZERO);
                add(first, 0, Behaviour::Trace { trace, at: 0, routes });
            }
        }
    }
    made
}

impl Agent {
    /// Woken: what it asks, and when it is to be woken again.
    pub(crate) fn wake(&mut self, now: Time, group: &mut Group) -> Wish {
        let index = usize::from(self.group);
        let nothing = Wish {
            route: None,
            size: 0.0,
            client: group.client(index, self.turn),
            lasts: None,
            follows: true,
            again: None,
        };
        if !group.asks(now) {
            // Traces and others that begin later are woken at their time.
            return nothing;
        }
        let size = group.spec.size;
        match &mut self.behaviour {
            Behaviour::Open { route } => {
                let route = *route;
                self.turn = self.turn.wrapping_add(1);
                let client = group.client(index, self.turn);
                Wish { route: Some(route), size, client, again: Some(group.next_open(now)), ..nothing }
            }
            Behaviour::Ticker { route, period } => {
                Wish { route: Some(*route), size, again: Some(now + *period), ..nothing }
            }
            Behaviour::Closed { route, .. } | Behaviour::Poll { route, .. } => {
                Wish { route: Some(*route), size, ..nothing }
            }
            Behaviour::Batch { route, left, .. } => {
                Wish { route: (*left > 0).then_some(*route), size, ..nothing }
            }
            Behaviour::Trace { trace, at, routes } => {
                let (arrival, route) = (&trace.arrivals[*at], routes[*at]);
                *at += 1;
                let from = Time::from_secs_f64(group.spec.from_s);
                let again = trace.arrivals.get(*at).map(|next| from + next.at.since(Time::ZERO));
                let mut client = nothing.client;
                if !arrival.client.is_empty() {
                    client.address = digest(&arrival.client);
                }
                if !arrival.credential.is_empty() {
                    client.credential = Some(digest(&arrival.credential));
                }
                Wish {
                    route: Some(route),
                    size: arrival.size,
                    client,
                    lasts: arrival.lasts,
                    follows: arrival.follows,
                    again,
                }
            }
        }
    }

    /// Its request has come to its end (answered, refused or given up for good): when to wake
    /// it again, if that is what it waits for.
    pub(crate) fn settled(&mut self, now: Time, ok: bool) -> Option<Time> {
        match &mut self.behaviour {
            Behaviour::Closed { think, .. } => Some(now + (*think).max(TURNAROUND)),
            Behaviour::Poll { pause, .. } => Some(now + *pause),
            Behaviour::Batch { left, think, .. } => {
                if ok {
                    *left = left.saturating_sub(1);
                }
                (*left > 0).then_some(now + *think)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(text: &str) -> Group {
        let spec: ClientSpec = toml::from_str(text).expect("a client");
        Group::new(0, &spec, 1, Time::from_secs_f64(100.0))
    }

    #[test]
    fn an_open_loop_keeps_its_rate_and_its_square_wave() {
        let mut group = group("name='a'\nkind='open'\nroute='tasks'\nper_second=50\nsquare_s=[2.0, 3.0]");
        let spec = Spec::ray_head();
        let (mut now, mut agent) = agents(0, &mut group, &spec, None).remove(0);
        let mut asked = Vec::new();
        while group.asks(now) {
            let wish = agent.wake(now, &mut group);
            asked.push(now.as_secs_f64());
            now = wish.again.expect("an open loop goes on");
        }
        assert!((asked.len() as f64 - 50.0 * 40.0).abs() < 150.0, "{}", asked.len());
        assert!(asked.iter().all(|at| at.rem_euclid(5.0) < 2.0 + 0.2), "quiet when off");
    }

    #[test]
    fn a_ramp_grows_and_a_day_has_a_night() {
        let asked = |text: &str| {
            let mut group = group(&format!("name='a'\nkind='open'\nroute='tasks'\nper_second=100\n{text}"));
            let (mut now, mut agent) = agents(0, &mut group, &Spec::ray_head(), None).remove(0);
            let mut quarters = [0_u32; 4];
            while group.asks(now) {
                let quarter = [25.0, 50.0, 75.0].iter().filter(|end| now.as_secs_f64() >= **end).count();
                quarters[quarter] += 1;
                now = agent.wake(now, &mut group).again.expect("an open loop goes on");
            }
            quarters
        };
        let ramp = asked("ramp_s = 100");
        assert!(ramp.windows(2).all(|pair| pair[0] < pair[1]), "{ramp:?}");
        let day = asked("day_s = 100");
        assert!(
            day[0] < day[1] && day[3] < day[2] && day.iter().sum::<u32>().abs_diff(5500) < 300,
            "{day:?}"
        );
    }

    #[test]
    fn clients_are_as_the_scenario_says() {
        let clients = |text: &str| {
            let mut group = group(text);
            let mut agent = agents(0, &mut group, &Spec::ray_head(), None).remove(0).1;
            (0..64)
                .map(|n| agent.wake(Time::from_secs_f64(f64::from(n)), &mut group).client)
                .collect::<Vec<_>>()
        };
        let distinct = |list: Vec<u64>| list.into_iter().collect::<std::collections::BTreeSet<_>>().len();
        let base = "name='a'\nkind='open'\nroute='tasks'\nper_second=50\n";
        let spread = clients(&format!("{base}addresses=64\ntoken='own'"));
        assert_eq!(distinct(spread.iter().map(|p| p.address).collect()), 64);
        assert_eq!(distinct(spread.iter().filter_map(|p| p.credential).collect()), 1);
        let invented = clients(&format!("{base}behind='nat'\naddresses=64\ntoken='each'"));
        assert_eq!(distinct(invented.iter().map(|p| p.address).collect()), 1);
        assert_eq!(distinct(invented.iter().filter_map(|p| p.credential).collect()), 64);
    }

    #[test]
    fn groups_of_one_word_are_the_same_hosts() {
        let address = |at: usize, who: &str| {
            let text =
                format!("name='a'\nkind='open'\nroute='tasks'\nper_second=50\naddresses=9\nwho='{who}'");
            group(&text).client(at, 4).address
        };
        assert_eq!(address(0, "farm"), address(3, "farm"));
        assert_ne!(address(0, "farm"), address(0, "office"));
        assert_ne!(address(0, ""), address(3, ""));
    }

    #[test]
    fn a_batch_ends_when_its_jobs_are_in() {
        let mut group = group("name='a'\nkind='batch'\njobs=2");
        let mut agent = agents(0, &mut group, &Spec::ray_head(), None).remove(0).1;
        let now = Time::from_secs_f64(1.0);
        assert!(agent.wake(now, &mut group).route.is_some());
        assert!(agent.settled(now, false).is_some(), "a refused job is tried again");
        assert!(agent.settled(now, true).is_some());
        assert_eq!(agent.settled(now, true), None);
    }
}
