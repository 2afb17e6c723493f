//! The backlog limit: how many may still be let in before the head has caught up.
//!
//! Ray answers a submission in 36 ms and pays for it later: each becomes a supervisor actor and
//! a process, begun at about one a second. Latency peaks after the arrivals have
//! stopped, so neither proxy latency nor a rate can hold the backlog; both learn too late.
//! But the backlog itself is published (actors in state `Registered`), and the proxy knows what
//! it has let in since. So
//!
//! ```text
//! may still be admitted  =  target - backlog as read - admitted since the reading was true
//!                         + what the head has begun since then
//! ```
//!
//! A reading is as old as Ray's refresh plus the scrape, so "since it was true" reaches back by
//! the reading's possible age: what was admitted in between may or may not be in it, and is
//! counted twice rather than not at all. What the head begins is counted at the pace it is known to keep
//! ([`crate::control::backlog::Drain`]), or half of it while the head is behind, from when the reading was true at the
//! latest, and for `starts_within` at most: without it a head whose Prometheus scrapes it each minute would be given one
//! target a minute.
//! The first error holds the backlog below its target, and the next reading corrects both.
//!
//! When the signal goes stale no more is admitted on the strength of old news but half of what the head
//! is known to begin, or one every [`TRICKLE`] where that is more: a backlog that is not seen falls, and a lost
//! signal never shuts the limit for good. Before the first reading nothing is known of the backlog, least of all that
//! there is none: half the target may be admitted, and the trickle.

use crate::policy::{Law, Policy, SignalId};
use crate::time::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// Without news, one more may be admitted in this time at the least.
pub const TRICKLE: Duration = Duration::from_secs(5);

/// The limit of one class.
#[derive(Clone, Debug)]
pub struct Backlog {
    signal: SignalId,
    /// Replicas that submissions pass through.
    replicas: u32,
    /// How many may have been admitted by what was read last.
    granted: f64,
    /// What the head begins per second, this replica's part, and from when until when that is granted as well.
    begins_per_s: f64,
    begins: (Time, Time),
    /// When what was read last was true.
    read_at: Option<Time>,
    /// From when on there is no news.
    blind_at: Time,
    ticked: Time,
    /// Totals admitted, by time, as far back as a reading may reach.
    history: VecDeque<(Time, u64)>,
}

impl Backlog {
    /// A limit on this signal: until the first reading, half its target and a trickle.
    #[must_use]
    pub fn new(signal: SignalId, target: f64, now: Time) -> Backlog {
        Backlog {
            signal,
            replicas: 1,
            granted: (target / 2.0).floor(),
            begins_per_s: 0.0,
            begins: (now, now),
            read_at: None,
            blind_at: now,
            ticked: now,
            history: VecDeque::new(),
        }
    }

    /// So many had been admitted before there was this limit.
    pub(crate) fn begin_at(&mut self, admitted: u64) {
        self.granted += admitted as f64;
    }

    /// Goes on with what another limit of the same class has granted.
    pub fn take_over(&mut self, before: &Backlog) {
        *self = Backlog { signal: self.signal, ..before.clone() };
    }

    /// How many replicas let submissions in: each has an even part of the room, rounded up, so that
    /// together they overshoot by less than one each.
    pub(crate) fn share_among(&mut self, replicas: u32) {
        self.replicas = replicas.max(1);
    }

    /// The signal it follows.
    #[must_use]
    pub fn signal(&self) -> SignalId {
        self.signal
    }

    /// How many may have been admitted, all in all.
    #[must_use]
    pub fn admitted_max(&self) -> u64 {
        // A fifth of a job each second is a job in the fifth, whatever the rounding.
        whole(self.granted_by_now() + 1e-6)
    }

    fn granted_by_now(&self) -> f64 {
        let (from, until) = self.begins;
        self.granted + self.begins_per_s * self.ticked.min(until).since(from).as_secs_f64()
    }

    /// Notes how many have been admitted by `now`, at least every few seconds.
    pub(crate) fn on_admitted(&mut self, total: u64, now: Time, reach: Duration) {
        self.history.push_back((now, total));
        while self.history.len() > 2 && self.history.get(1).is_some_and(|(at, _)| now.since(*at) > reach) {
            self.history.pop_front();
        }
    }

    /// Takes in a backlog of `reading`, true between these moments, against `target`. Returns whether it was news.
    pub(crate) fn on_reading(
        &mut self,
        reading: f64,
        (earliest, latest): (Time, Time),
        Promise { target, starts_within, begins_per_s }: Promise,
        now: Time,
    ) -> bool {
        if self.read_at.is_some_and(|before| latest <= before) {
            return false;
        }
        self.read_at = Some(latest);
        self.blind_at = now + NEWS_EXPECTED;
        let admitted_before =
            self.history.iter().take_while(|(at, _)| *at <= earliest).last().or(self.history.front());
        let replicas = f64::from(self.replicas);
        self.granted =
            admitted_before.map_or(0.0, |(_, total)| *total as f64) + ((target - reading) / replicas).ceil();
        self.begins_per_s = begins_per_s / replicas;
        self.begins = (latest, latest + starts_within);
        true
    }

    /// Lets time pass, after so many have been admitted.
    pub fn tick(&mut self, total: u64, now: Time) {
        let elapsed = now.since(self.ticked.max(self.blind_at)).as_secs_f64();
        self.ticked = self.ticked.max(now);
        if now <= self.blind_at {
            return;
        }
        // What was granted and not asked for is no store for later.
        let more = (self.begins_per_s / 2.0).max(1.0 / TRICKLE.as_secs_f64()) * elapsed;
        let (total, granted) = (total as f64, self.granted_by_now());
        self.granted = granted.max((granted.max(total) + more).min(total + more.max(1.0)));
        self.begins = (now, now);
    }
}

/// What is known of a head when its backlog is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    /// How many may wait.
    pub(crate) target: f64,
    /// In which time a job was promised to start.
    pub(crate) starts_within: Duration,
    /// How many jobs the head starts per second at least; 0 while nothing is known.
    pub(crate) begins_per_s: f64,
}

/// News is expected this often at the least (Ray refreshes its gauges every 10 s).
const NEWS_EXPECTED: Duration = Duration::from_secs(25);

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "floored at 0; as-casts saturate"
)]
fn whole(room: f64) -> u64 {
    room.max(0.0).floor() as u64
}

/// The backlog that a class's rate follows, if it has both.
#[must_use]
pub fn backlog_followed(policy: &Policy, class: usize) -> Option<SignalId> {
    let class = &policy.classes[class];
    let moves = class.law != Law::Static && class.rate.is_some_and(|rate| rate.per_second.moves());
    class.signals.iter().copied().find(|id| moves && policy.signals[id.index()].backlog)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACH: Duration = Duration::from_secs(15);

    fn promise(target: f64, begins_per_s: f64) -> Promise {
        Promise { target, starts_within: Duration::from_secs(25), begins_per_s }
    }

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    #[test]
    fn the_backlog_never_exceeds_its_target_however_stale_the_reading() {
        // A head that begins 0.9 a second, gauges refreshed every 10 s, a scrape each 5 s, and
        // submitters who always want more.
        let (target, mut backlog, mut published) = (16.0, 0.0f64, 0.0);
        let (mut admitted, mut worst) = (0u64, 0.0f64);
        let mut limiter = Backlog::new(SignalId(0), 16.0, at(0.0));
        limiter.on_reading(0.0, (at(0.0), at(0.0)), promise(target, 0.0), at(0.0));
        for tenth in 0u32..6000 {
            let now = at(f64::from(tenth) / 10.0);
            backlog = (backlog - 0.09).max(0.0);
            if tenth % 100 == 0 {
                published = backlog.ceil();
            }
            limiter.on_admitted(admitted, now, REACH);
            if tenth % 50 == 7 {
                let true_at = (now - Duration::from_secs(10), now);
                limiter.on_reading(published, true_at, promise(target, 0.9), now);
            }
            limiter.tick(admitted, now);
            while admitted < limiter.admitted_max() {
                admitted += 1;
                backlog += 1.0;
            }
            worst = worst.max(backlog);
        }
        assert!(worst <= target * 1.2, "{worst}");
        assert!(admitted > 300, "and the head is kept busy: {admitted} of 540 begun in ten minutes");
    }

    #[test]
    fn without_news_a_trickle_passes_and_no_more() {
        let mut limiter = Backlog::new(SignalId(0), 16.0, at(0.0));
        limiter.on_reading(100.0, (at(0.0), at(0.0)), promise(16.0, 0.0), at(0.0));
        let mut admitted = 0;
        for second in 0u32..125 {
            limiter.tick(admitted, at(f64::from(second)));
            while admitted < limiter.admitted_max() {
                admitted += 1;
            }
        }
        assert!((15..=21).contains(&admitted), "one per five seconds after 25: {admitted}");
    }

    #[test]
    fn between_readings_passes_what_the_head_begins_and_in_the_dark_half_of_it() {
        let mut limiter = Backlog::new(SignalId(0), 20.0, at(0.0));
        let passed = |limiter: &mut Backlog, admitted: &mut u64, seconds: std::ops::Range<u32>| {
            let before = *admitted;
            for second in seconds {
                limiter.tick(*admitted, at(f64::from(second)));
                *admitted = limiter.admitted_max().max(*admitted);
            }
            *admitted - before
        };
        let mut admitted = 0;
        limiter.on_reading(0.0, (at(0.0), at(0.0)), promise(20.0, 2.0), at(0.0));
        assert_eq!(passed(&mut limiter, &mut admitted, 1..26), 20 + 50, "a target, and two a second");
        assert_eq!(passed(&mut limiter, &mut admitted, 26..86), 60, "one a second where two are begun");
        // Too many stand: what is begun goes to their account first.
        limiter.on_admitted(admitted, at(86.0), REACH);
        limiter.on_reading(40.0, (at(86.0), at(86.0)), promise(20.0, 2.0), at(86.0));
        assert_eq!(passed(&mut limiter, &mut admitted, 86..97), 0);
        assert_eq!(passed(&mut limiter, &mut admitted, 97..101), 8);
    }

    #[test]
    fn before_the_first_reading_half_the_target_passes_and_a_trickle() {
        let mut limiter = Backlog::new(SignalId(0), 16.0, at(0.0));
        let mut admitted = 0;
        for second in 0u32..100 {
            limiter.tick(admitted, at(f64::from(second)));
            while admitted < limiter.admitted_max() {
                admitted += 1;
            }
        }
        assert!((8 + 18..=8 + 21).contains(&admitted), "8 and one per five seconds: {admitted}");
    }

    #[test]
    fn the_same_reading_twice_grants_nothing_twice() {
        let mut limiter = Backlog::new(SignalId(0), 16.0, at(0.0));
        assert!(limiter.on_reading(6.0, (at(0.0), at(0.0)), promise(16.0, 0.0), at(0.0)));
        limiter.on_admitted(10, at(1.0), REACH);
        assert!(!limiter.on_reading(6.0, (at(0.0), at(0.0)), promise(16.0, 0.0), at(2.0)));
        assert_eq!(limiter.admitted_max(), 10);
    }
}
