//! What this replica may use now: its leases while they run, its safe share when they do not.
//!
//! ```text
//! sent            + reliance (0.9 ttl)           + 2 ttl
//!  |-- leased ------|-- min(lease, safe share) ----|-- safe share -->
//! ```
//!
//! A renewal that was sent before the leases ran out may still reach the book afterwards, with
//! the claim it was sent with; the second step waits until the book has forgotten that too. From
//! the moment the leases have run out, every claim asks for the safe share at least. See
//! [`super`] for why that is safe.

use super::{Claim, Timing, even_share};
use crate::time::Time;

/// One replica's part of every limit.
#[derive(Clone, Debug)]
pub struct LeaseHolder {
    timing: Timing,
    replicas: u32,
    known: u32,
    /// As the book has granted.
    leases: Vec<u64>,
    /// Kept by the book should this replica fall silent.
    safe: Vec<u64>,
    limits: Vec<u64>,
    sent: u64,
    acknowledged: u64,
    /// When the renewal was sent that was acknowledged last.
    relies_on: Option<Time>,
    /// Since when there has been no store, for a replica that never reached one.
    alone_since: Option<Time>,
    /// Until when this replica leads, by its own clock.
    leads_until: Option<Time>,
    leaving: bool,
}

/// On what a replica goes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It has not begun: the first renewal has been neither answered nor given up.
    New,
    /// Leases that run.
    Leased,
    /// Leases have run out.
    Expired,
    /// Nothing but the safe share.
    CutOff,
}

/// What is sent to the book.
#[derive(Clone, PartialEq, Debug)]
pub struct Renewal {
    /// Rises by one with each.
    pub seq: u64,
    /// The last that was answered.
    pub acknowledged: u64,
    /// One for each limit.
    pub claims: Vec<Claim>,
    /// The caps in force; a claim may be for more. Not for the book.
    pub caps: Vec<u64>,
    /// It winds up: it asks for what is still under way, and for nothing to spare.
    pub leaving: bool,
    /// When it was sent.
    pub at: Time,
}

impl LeaseHolder {
    /// Nothing held yet. `replicas`: how many there may be, by the configuration.
    pub fn new(limits: Vec<u64>, replicas: u32, timing: Timing) -> LeaseHolder {
        LeaseHolder {
            timing,
            replicas: replicas.max(1),
            known: 0,
            leases: vec![0; limits.len()],
            safe: limits.iter().map(|limit| even_share(*limit, replicas)).collect(),
            limits,
            sent: 0,
            acknowledged: 0,
            relies_on: None,
            alone_since: None,
            leads_until: None,
            leaving: false,
        }
    }

    /// Takes in the whole limits as they stand.
    pub fn set_limits(&mut self, limits: &[u64]) {
        self.limits.clear();
        self.limits.extend_from_slice(limits);
        self.leases.resize(limits.len(), 0);
        let count = self.count();
        let fresh = limits.iter().skip(self.safe.len()).map(|limit| even_share(*limit, count));
        self.safe.extend(fresh.collect::<Vec<_>>());
        self.safe.truncate(limits.len());
    }

    /// Takes on other limits: each keeps what was held at its place before, if it had one.
    pub(crate) fn rearrange(&mut self, places: &[Option<usize>], limits: &[u64]) {
        let pick = |of: &[u64]| -> Vec<u64> {
            places.iter().map(|place| place.and_then(|at| of.get(at)).copied().unwrap_or(0)).collect()
        };
        (self.leases, self.safe) = (pick(&self.leases), pick(&self.safe));
        limits.clone_into(&mut self.limits);
    }

    /// How many replicas share, as far as is known.
    pub fn count(&self) -> u32 {
        self.replicas.max(self.known)
    }

    /// On what this replica goes by at `now`.
    pub fn standing(&self, now: Time) -> Standing {
        match (self.relies_on, self.alone_since) {
            (Some(sent), _) => {
                let silent = now.since(sent);
                let reliance = self.timing.reliance();
                if silent < reliance {
                    Standing::Leased
                } else if silent < reliance + self.timing.ttl() * 2 {
                    Standing::Expired
                } else {
                    Standing::CutOff
                }
            }
            (None, Some(_)) => Standing::CutOff,
            (None, None) => Standing::New,
        }
    }

    /// Age of the current leases; `None` before the first.
    pub fn age(&self, now: Time) -> Option<std::time::Duration> {
        self.relies_on.map(|sent| now.since(sent))
    }

    /// What may be used of each limit at `now`, in grains.
    pub fn caps(&self, now: Time) -> Vec<u64> {
        let standing = self.standing(now);
        let each = self.leases.iter().zip(&self.safe).zip(&self.limits);
        each.map(|((lease, safe), limit)| match standing {
            Standing::New => 0,
            Standing::Leased => *lease,
            // A limit that this replica has itself lowered since lowers its share.
            Standing::Expired => (*lease).min(*safe).max(self.scarce(*limit)).min(*limit),
            Standing::CutOff => (*safe).max(self.scarce(*limit)).min(even_share(*limit, self.count())),
        })
        .collect()
    }

    /// The one permit of a limit that has fewer than there are replicas.
    fn scarce(&self, limit: u64) -> u64 {
        u64::from(limit > 0 && limit < u64::from(self.count()))
    }

    /// The next renewal, with what is under way and what could be used.
    pub fn renew(&mut self, now: Time, loads: &[(u64, u64)]) -> Renewal {
        self.sent += 1;
        let standing = self.standing(now);
        let caps = self.caps(now);
        let count = self.count();
        let claims = caps.iter().enumerate().map(|(at, cap)| {
            let (used, demand) = loads.get(at).copied().unwrap_or_default();
            let waits_for_its_share = matches!(standing, Standing::Expired | Standing::CutOff);
            Claim {
                cap: if waits_for_its_share { self.safe[at].max(*cap) } else { *cap },
                used,
                demand,
                safe: self.limits[at] / u64::from(count),
                limit: self.limits[at],
            }
        });
        let claims = claims.collect();
        Renewal {
            seq: self.sent,
            acknowledged: self.acknowledged,
            claims,
            caps,
            leaving: self.leaving,
            at: now,
        }
    }

    /// The answer to `renewal`: leases in grains, and how many replicas the book knows of. An
    /// answer to any but the last says nothing: the claim sent since knows nothing of it.
    pub fn take(&mut self, renewal: &Renewal, leases: &[u64], known: u32) -> bool {
        if renewal.seq != self.sent || renewal.seq == self.acknowledged || leases.len() != self.leases.len() {
            return false;
        }
        self.acknowledged = renewal.seq;
        let sent = renewal.claims.iter().zip(&renewal.caps);
        for ((mine, lease), (claim, cap)) in self.leases.iter_mut().zip(leases).zip(sent) {
            // The book takes a claim for what is in use, and grants so much without asking for
            // room. Where more was claimed than the cap, to wait for the safe share, what lies
            // between the two has room only once a lease goes beyond the claim.
            let waits = *cap < claim.cap && *lease <= claim.hold();
            *mine = if waits { *cap.min(lease) } else { *lease };
        }
        self.safe.clear();
        self.safe.extend(renewal.claims.iter().map(|claim| claim.safe));
        self.relies_on = Some(renewal.at);
        self.known = known;
        true
    }

    /// From now on every renewal gives back what is not in use.
    pub fn leave(&mut self) {
        self.leaving = true;
        self.leads_until = None;
    }

    /// Whether it winds up.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// The answer to `renewal` says who leads.
    pub fn lead(&mut self, renewal: &Renewal, leads: bool) {
        self.leads_until = (leads && !self.leaving).then(|| renewal.at + self.timing.lead_reliance());
    }

    /// Whether this replica may still take itself for the leader: no longer than the book does,
    /// and as long, though a renewal or two have failed.
    pub fn leads(&self, now: Time) -> bool {
        self.leads_until.is_some_and(|until| now < until)
    }

    /// There is no store to ask, now at the start: the safe share must do.
    pub fn go_alone(&mut self, now: Time) {
        self.alone_since.get_or_insert(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const TIMING: Timing = Timing { period: Duration::from_millis(250), remember: Duration::from_mins(5) };

    fn leased(limit: u64, lease: u64) -> LeaseHolder {
        let mut holder = LeaseHolder::new(vec![limit], 3, TIMING);
        let renewal = holder.renew(Time::ZERO, &[(0, 5)]);
        assert!(holder.take(&renewal, &[lease], 2));
        holder
    }

    #[test]
    fn a_lease_is_given_up_before_the_store_may_give_it_away() {
        let holder = leased(30, 20);
        assert_eq!(holder.caps(Time::from_secs_f64(1.79)), [20]);
        assert_eq!(holder.caps(Time::from_secs_f64(1.80)), [10], "a tenth before the 2 s are over");
    }

    #[test]
    fn a_small_lease_grows_to_the_safe_share_only_when_the_others_have_made_room() {
        let holder = leased(30, 2);
        assert_eq!(holder.caps(Time::from_secs_f64(5.7)), [2]);
        assert_eq!(holder.caps(Time::from_secs_f64(5.9)), [10]);
        assert_eq!(holder.caps(Time::from_secs_f64(1e6)), [10], "never open, never shut");
    }

    #[test]
    fn nothing_is_used_before_the_store_has_answered_or_been_given_up() {
        let mut holder = LeaseHolder::new(vec![30, 1, 0], 3, TIMING);
        assert_eq!(holder.caps(Time::ZERO), [0, 0, 0]);
        holder.go_alone(Time::ZERO);
        assert_eq!(holder.caps(Time::ZERO), [10, 1, 0], "one permit at least, unless nothing may pass");
    }

    #[test]
    fn more_replicas_than_configured_lessen_the_safe_share() {
        let mut holder = leased(30, 3);
        let renewal = holder.renew(Time::from_secs_f64(0.25), &[(0, 5)]);
        assert!(holder.take(&renewal, &[3], 6));
        let renewal = holder.renew(Time::from_secs_f64(0.5), &[(0, 5)]);
        assert_eq!(renewal.claims[0].safe, 5);
        assert!(holder.take(&renewal, &[3], 6));
        assert_eq!(holder.caps(Time::from_secs_f64(100.0)), [5]);
    }

    #[test]
    fn an_answer_that_was_overtaken_says_nothing() {
        let mut holder = leased(30, 20);
        let slow = holder.renew(Time::from_secs_f64(0.2), &[(0, 5)]);
        let quick = holder.renew(Time::from_secs_f64(0.4), &[(0, 5)]);
        assert!(holder.take(&quick, &[7], 3));
        assert!(!holder.take(&slow, &[25], 3));
        assert_eq!(holder.caps(Time::from_secs_f64(0.5)), [7]);
    }

    #[test]
    fn leadership_is_given_up_before_the_store_may_give_it_away() {
        let mut holder = leased(30, 20);
        let renewal = holder.renew(Time::from_secs_f64(1.0), &[(0, 5)]);
        holder.lead(&renewal, true);
        assert!(holder.leads(Time::from_secs_f64(1.44)), "as if nothing had happened");
        assert!(!holder.leads(Time::from_secs_f64(1.45)), "a tenth before the 500 ms are over");
        holder.lead(&renewal, false);
        assert!(!holder.leads(Time::from_secs_f64(1.0)));
        holder.lead(&renewal, true);
        holder.leave();
        assert!(!holder.leads(Time::from_secs_f64(1.0)), "a replica that winds up does not lead");
    }

    #[test]
    fn a_lease_out_of_what_was_claimed_but_not_in_use_waits_for_room() {
        for (lease, used) in [(9, 2), (10, 2), (11, 11), (1, 1)] {
            let mut holder = leased(30, 2);
            let renewal = holder.renew(Time::from_secs_f64(2.0), &[(1, 9)]);
            assert_eq!(renewal.claims[0].cap, 10, "its safe share, of which it uses 2");
            assert!(holder.take(&renewal, &[lease], 3));
            assert_eq!(holder.caps(Time::from_secs_f64(2.1)), [used], "lease {lease}");
            assert_eq!(holder.renew(Time::from_secs_f64(2.2), &[(1, 9)]).claims[0].cap, used);
        }
    }

    #[test]
    fn while_it_is_cut_off_it_claims_what_it_will_use() {
        let mut holder = leased(30, 2);
        let claim = holder.renew(Time::from_secs_f64(2.0), &[(1, 9)]).claims[0];
        assert_eq!((claim.cap, claim.used, claim.demand), (10, 1, 9));
    }
}
