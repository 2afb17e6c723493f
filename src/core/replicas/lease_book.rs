//! The book: what is out on lease, who leads, and what is kept for the silent.
//!
//! This is the rule that the shared store applies, one renewal at a time; `src/replicas/renew.lua`
//! is the same in the store's own language, and a test holds the two together. Here it is pure,
//! so that a thousand replicas and every fault can be tried in virtual time.
//!
//! One renewal, with `others` = what the book holds for all other replicas:
//!
//! ```text
//! hold  = max(cap, used)                                       a fact, accepted as it is
//! wish  = min(demand, level) + slack                           see [`super::max_min`]
//! lease = wish                          if wish <= hold        to shrink needs no room
//!       = max(hold, min(wish, room))    otherwise, room = limit - others
//! held  = max(lease, hold)
//! ```
//!
//! so a renewal never raises the sum of `held` above the limit. Where it is above (the limit was
//! lowered, or a share is now kept for a silent replica), no replica's wish is more than an even part,
//! and one round brings the sum down, under any leader. After a leap of the clock, a silence of all,
//! or a loss of data, no replica grows for one `ttl`; one that has never held anything begins with its
//! safe share.
//!
//! *Going round.* Where there are fewer grains than replicas that want some, each keeps a grain
//! for one turn (four periods) and then rests until the others have had theirs.
//!
//! *Leadership* is a lease too. Each holder has a token, greater than all before it; a publication
//! under a token that is not the present one changes nothing (Kleppmann, "How to do distributed
//! locking", 2016), and as it is checked where it is written, a leader that slept cannot undo what
//! its successor did.

use super::Timing;
use super::lease_holder::Renewal;
use super::max_min::{Level, minimum};
use std::collections::BTreeMap;

/// A replica, as the book numbers them here.
pub type Member = u32;

/// What is written.
#[derive(Clone, Debug)]
pub struct LeaseBook {
    timing: Timing,
    levels: Vec<Option<Level>>,
    members: BTreeMap<Member, Record>,
    sums: Vec<u64>,
    last_ms: Option<u64>,
    grace_until_ms: u64,
    leader: Option<(Member, u64)>,
    token: u64,
}

/// One replica.
#[derive(Clone, Debug)]
struct Record {
    seq: u64,
    until_ms: u64,
    gone: bool,
    held: Vec<u64>,
    safe: Vec<u64>,
    demand: Vec<u64>,
    turns: Vec<Turn>,
}

/// A replica's place where a limit goes round.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    since_ms: u64,
    rests_until_ms: u64,
}

/// What a renewal is answered.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The leases, in grains.
    pub leases: Vec<u64>,
    /// Replicas that renew.
    pub live: u32,
    /// Replicas that fell silent and have a share kept for them.
    pub silent: u32,
    /// Who leads.
    pub leader: Option<Member>,
    /// The leader's token.
    pub token: u64,
    /// For the leader: what each living replica could use.
    pub demands: Vec<Vec<u64>>,
    /// What is kept for the silent.
    pub reserved: Vec<u64>,
}

impl LeaseBook {
    /// An empty book for so many limits: no replica grows beyond its safe share for one `ttl`.
    pub fn new(limits: usize, timing: Timing) -> LeaseBook {
        LeaseBook {
            timing,
            levels: vec![None; limits],
            members: BTreeMap::new(),
            sums: vec![0; limits],
            last_ms: None,
            grace_until_ms: 0,
            leader: None,
            token: 0,
        }
    }

    /// One renewal at `now_ms` of the store's clock. `None`: it was overtaken by a later one.
    pub fn renew(&mut self, member: Member, renewal: &Renewal, now_ms: u64) -> Option<Answer> {
        let ttl = millis(self.timing.ttl());
        self.look_at_the_clock(now_ms, ttl);
        self.turn_out(now_ms);
        let before = self.members.get(&member);
        if before.is_some_and(|record| renewal.seq <= record.seq) {
            return None;
        }
        if before.map_or(0, |record| record.seq) < renewal.acknowledged {
            // The store has forgotten what it acknowledged.
            self.grace_until_ms = now_ms + ttl;
        }
        if !renewal.leaving {
            self.elect(member, now_ms);
        } else if self.leader.is_some_and(|(leader, _)| leader == member) {
            self.leader = None;
        }
        let newcomer = renewal.acknowledged == 0;
        let limits = self.levels.len();
        let mut record = self.members.remove(&member).unwrap_or_else(|| Record::new(limits));
        let replicas = self.members.values().filter(|other| !other.gone).count() as u64 + 1;
        let reserved = self.reserved();
        let mut leases = Vec::with_capacity(limits);
        for (at, claim) in renewal.claims.iter().enumerate().take(limits) {
            let unwritten = Level { limit: claim.limit, level: Some(claim.safe), slack: 0 };
            let level = self.levels[at].unwrap_or(unwritten);
            let hold = claim.hold();
            let others = self.sums[at].saturating_sub(record.held[at]);
            let mut wish = if level.goes_round() {
                record.turns[at].wish(claim.demand, &level, replicas, now_ms, self.timing)
            } else if renewal.leaving {
                level.need(claim.demand)
            } else {
                level.wish(claim.demand, replicas)
            };
            if now_ms < self.grace_until_ms {
                wish = wish.min(if newcomer { hold.max(claim.safe).max(1) } else { hold });
            }
            if others + hold > level.limit && !level.goes_round() {
                let even = level.limit.saturating_sub(reserved[at]) / replicas;
                wish = wish.min(even.max(minimum(level.limit, replicas)));
            }
            let room = level.limit.saturating_sub(others);
            let lease = if wish <= hold { wish } else { hold.max(wish.min(room)) };
            record.turns[at].note(lease, now_ms);
            record.held[at] = lease.max(hold);
            self.sums[at] = others + record.held[at];
            record.safe[at] = claim.safe;
            record.demand[at] = claim.demand;
            leases.push(lease);
        }
        record.seq = renewal.seq;
        record.until_ms = now_ms + ttl;
        record.gone = false;
        self.members.insert(member, record);
        Some(self.answer(member, leases))
    }

    /// The leader's division; without effect under any token but the present one.
    pub fn publish(&mut self, token: u64, levels: &[Level]) -> bool {
        if token != self.token || self.leader.is_none() {
            return false;
        }
        for (place, level) in self.levels.iter_mut().zip(levels) {
            *place = Some(*level);
        }
        true
    }

    /// A replica leaves in good order: nothing is kept for it.
    pub fn leave(&mut self, member: Member) {
        if let Some(record) = self.members.remove(&member) {
            for (sum, held) in self.sums.iter_mut().zip(&record.held) {
                *sum = sum.saturating_sub(*held);
            }
        }
        if self.leader.is_some_and(|(leader, _)| leader == member) {
            self.leader = None;
        }
    }

    /// What is out on lease of each limit, the shares of the silent included.
    pub fn sums(&self) -> &[u64] {
        &self.sums
    }

    /// Who leads, and until when by the store's clock.
    pub fn leader(&self) -> Option<(Member, u64)> {
        self.leader
    }

    /// The token of the present or the last leader.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// A silence of half a `ttl` and a leap of the clock look alike, and so does their cure.
    fn look_at_the_clock(&mut self, now_ms: u64, ttl: u64) {
        let leapt = self.last_ms.is_none_or(|last| now_ms + 1_000 < last || now_ms > last + ttl / 2);
        if leapt {
            self.grace_until_ms = now_ms + ttl;
            // A clock set back must not make a lease, or leadership, run for hours.
            for record in self.members.values_mut() {
                let bound = if record.gone { millis(self.timing.remember) } else { ttl };
                record.until_ms = record.until_ms.min(now_ms + bound);
            }
            if let Some((_, until)) = &mut self.leader {
                *until = (*until).min(now_ms + millis(self.timing.lead()));
            }
        }
        self.grace_until_ms = self.grace_until_ms.min(now_ms + ttl);
        self.last_ms = Some(now_ms);
    }

    /// A replica whose leases have run out keeps its safe share, and at last nothing.
    fn turn_out(&mut self, now_ms: u64) {
        let due: Vec<Member> =
            self.members.iter().filter(|(_, record)| record.until_ms <= now_ms).map(|(id, _)| *id).collect();
        for id in due {
            let Some(record) = self.members.get_mut(&id) else { continue };
            if record.gone {
                self.leave(id);
                continue;
            }
            record.gone = true;
            record.until_ms = now_ms + millis(self.timing.remember);
            for ((sum, held), safe) in self.sums.iter_mut().zip(&mut record.held).zip(&record.safe) {
                *sum = sum.saturating_sub(*held) + *safe;
                *held = *safe;
            }
        }
    }

    fn elect(&mut self, member: Member, now_ms: u64) {
        let until = now_ms + millis(self.timing.lead());
        match &mut self.leader {
            Some((leader, runs_until)) if *leader == member && *runs_until > now_ms => *runs_until = until,
            Some((_, runs_until)) if *runs_until > now_ms => {}
            _ => {
                self.token += 1;
                self.leader = Some((member, until));
            }
        }
    }

    fn answer(&self, member: Member, leases: Vec<u64>) -> Answer {
        let leader = self.leader.map(|(leader, _)| leader);
        let living = || self.members.values().filter(|record| !record.gone);
        let reserved = self.reserved();
        let live = living().count();
        let demands = if leader == Some(member) {
            living().map(|record| record.demand.clone()).collect()
        } else {
            Vec::new()
        };
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Answer {
            leases,
            live: count(live),
            silent: count(self.members.len() - live),
            leader,
            token: self.token,
            demands,
            reserved,
        }
    }

    /// What is kept for the silent.
    fn reserved(&self) -> Vec<u64> {
        let mut reserved = vec![0; self.sums.len()];
        for record in self.members.values().filter(|record| record.gone) {
            for (sum, held) in reserved.iter_mut().zip(&record.held) {
                *sum += held;
            }
        }
        reserved
    }
}

impl Record {
    fn new(limits: usize) -> Record {
        Record {
            seq: 0,
            until_ms: 0,
            gone: false,
            held: vec![0; limits],
            safe: vec![0; limits],
            demand: vec![0; limits],
            turns: vec![Turn::default(); limits],
        }
    }
}

impl Turn {
    /// One grain or none.
    fn wish(&mut self, demand: u64, level: &Level, replicas: u64, now_ms: u64, timing: Timing) -> u64 {
        let turn = millis(timing.period) * 4;
        if demand == 0 || level.limit == 0 || now_ms < self.rests_until_ms {
            return 0;
        }
        if self.since_ms > 0 && now_ms >= self.since_ms + turn {
            let others = replicas.div_ceil(level.limit) - 1;
            self.rests_until_ms = now_ms + turn * others;
            return 0;
        }
        1
    }

    fn note(&mut self, lease: u64, now_ms: u64) {
        if lease == 0 {
            self.since_ms = 0;
        } else if self.since_ms == 0 {
            self.since_ms = now_ms;
        }
    }
}

fn millis(length: std::time::Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}
