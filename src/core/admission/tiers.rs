//! The queue of one class in two lines: clients that were here before, and all others.
//!
//! Each line is fair in itself ([`FairQueue`]): the known by the weight of their habits, the others all alike. Between
//! the two start-time fair queueing once more, four parts to one ([`history`](crate::admission::history) says why):
//! a line that asks for less than its part finds its tag behind and goes next, and what one line leaves the
//! other has. A full queue takes from the line that stands on more than its part of the places, its last.
//!
//! Without history all stand in one line, and this is [`FairQueue`] alone.

use crate::admission::history::Claim;
use crate::admission::queue::{FairQueue, Joined, Place, Waiting, Weights};
use crate::request::client_id::ClientId;
use crate::time::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// The parts of the two lines where both wait, the known first.
pub(crate) const PARTS: [f64; 2] = [0.8, 0.2];

/// A line.
const KNOWN: usize = 0;
const OTHERS: usize = 1;

/// A waiter's place in one of the lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TierPlace {
    line: usize,
    place: Place,
}

/// The waiters of one class.
#[derive(Debug)]
pub struct Tiers<W> {
    lines: [FairQueue<W>; 2],
    /// The virtual time at which the next of each line may start.
    tags: [f64; 2],
    virtual_time: f64,
    contended_since: Time,
}

impl<W> Default for Tiers<W> {
    fn default() -> Self {
        Tiers::new(true)
    }
}

/// The line of a request with this claim.
fn line_of(claim: Option<Claim>) -> usize {
    if claim.is_some() { KNOWN } else { OTHERS }
}

fn weights(claim: Option<Claim>) -> Weights {
    claim.map_or(Weights::EVEN, |claim| Weights { address: claim.address, credential: claim.credential })
}

impl<W> Tiers<W> {
    /// `heeds_patience`: see [`FairQueue::new`].
    pub fn new(heeds_patience: bool) -> Tiers<W> {
        let lines = [FairQueue::new(heeds_patience), FairQueue::new(heeds_patience)];
        Tiers { lines, tags: [0.0; 2], virtual_time: 0.0, contended_since: Time::ZERO }
    }

    /// See [`FairQueue::new`].
    pub(crate) fn heed_patience(&mut self, heeds: bool) {
        self.lines.iter_mut().for_each(|line| line.heed_patience(heeds));
    }

    /// See [`FairQueue::left_under_way`].
    pub(crate) fn left_under_way(&mut self, claim: Option<Claim>, after: Duration, now: Time) {
        self.lines[line_of(claim)].left_under_way(after, now);
    }

    /// See [`FairQueue::weigh`].
    pub fn weigh(&mut self, weights: &BTreeMap<u64, f64>) {
        self.lines.iter_mut().for_each(|line| line.weigh(weights));
    }

    /// How many wait.
    pub fn len(&self) -> u32 {
        self.lines.iter().map(FairQueue::len).sum()
    }

    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.lines.iter().all(FairQueue::is_empty)
    }

    /// For how long there has always been somebody waiting.
    pub fn contended(&self, now: Time) -> Duration {
        if self.is_empty() { Duration::ZERO } else { now.since(self.contended_since) }
    }

    /// How many of this client wait.
    pub fn waiting(&self, client: ClientId) -> usize {
        self.lines.iter().map(|line| line.waiting(client)).sum()
    }

    /// Whether anybody waits from this address, or with this credential.
    pub fn has(&self, client: ClientId) -> bool {
        self.lines.iter().any(|line| line.has(client))
    }

    /// Whether anyone else waits.
    pub(crate) fn has_others(&self, client: ClientId) -> bool {
        self.lines.iter().any(|line| line.has_others(client))
    }

    /// Lets `request` wait, at most `len_max` in all.
    pub fn join(&mut self, mut request: Waiting<W>, len_max: u32) -> Joined<W, TierPlace> {
        let line = line_of(request.claim);
        request.weights = weights(request.claim);
        if self.is_empty() {
            self.contended_since = request.since;
        }
        if self.len() < len_max {
            return at(line, self.lines[line].join(request, u32::MAX));
        }
        if len_max > 0 && self.stands_on_too_much(1 - line, len_max) && self.lines[line].has_room(&request) {
            let joined = self.lines[line].join(request, u32::MAX);
            return match joined {
                Joined::Waits(place) => match self.lines[1 - line].give_way() {
                    Some(displaced) => Joined::Displaced(TierPlace { line, place }, displaced),
                    None => at(line, joined),
                },
                other => at(line, other),
            };
        }
        let of_line = self.lines[line].len();
        at(line, self.lines[line].join(request, of_line))
    }

    /// Whether a line has more than its part of so many places.
    fn stands_on_too_much(&self, line: usize, len_max: u32) -> bool {
        f64::from(self.lines[line].len()) > (PARTS[line] * f64::from(len_max)).max(1.0)
    }

    /// Whether a known one waits.
    pub(crate) fn known_wait(&self) -> bool {
        !self.lines[KNOWN].is_empty()
    }

    /// The waiter that [`Tiers::pop`] would take.
    pub fn peek(&self, now: Time) -> Option<&Waiting<W>> {
        self.lines[self.next_line()?].peek(now)
    }

    /// Takes the waiter that goes next and charges its client and its line.
    pub fn pop(&mut self, now: Time) -> Option<Waiting<W>> {
        let line = self.next_line()?;
        let request = self.lines[line].pop(now)?;
        self.virtual_time = self.tags[line].max(self.virtual_time);
        self.tags[line] = self.virtual_time + request.cost / PARTS[line];
        Some(request)
    }

    /// Takes a waiter out whose client has left.
    pub fn leave(&mut self, place: TierPlace, now: Time) -> Option<Waiting<W>> {
        self.lines[place.line].leave(place.place, now)
    }

    /// Takes a waiter out: its time is up.
    pub fn remove(&mut self, place: TierPlace) -> Option<Waiting<W>> {
        self.lines[place.line].remove(place.place)
    }

    /// Adds work to a client's account and to that of the line in which it waited; see [`FairQueue::charge`].
    pub fn charge(&mut self, client: ClientId, work: f64, claim: Option<Claim>) {
        if !work.is_finite() {
            return;
        }
        let line = line_of(claim);
        self.lines[line].charge(client, work, weights(claim));
        self.tags[line] = self.tags[line].max(self.virtual_time) + work / PARTS[line];
    }

    fn next_line(&self) -> Option<usize> {
        let tag = |line: usize| self.tags[line].max(self.virtual_time);
        match (self.lines[KNOWN].is_empty(), self.lines[OTHERS].is_empty()) {
            (true, true) => None,
            (true, false) => Some(OTHERS),
            (false, true) => Some(KNOWN),
            (false, false) => Some(if tag(KNOWN) <= tag(OTHERS) { KNOWN } else { OTHERS }),
        }
    }
}

fn at<W>(line: usize, joined: Joined<W>) -> Joined<W, TierPlace> {
    match joined {
        Joined::Waits(place) => Joined::Waits(TierPlace { line, place }),
        Joined::Displaced(place, displaced) => Joined::Displaced(TierPlace { line, place }, displaced),
        Joined::Refused(request) => Joined::Refused(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(address: u64, habit: Option<f64>, cost: f64) -> Waiting<u64> {
        let client = ClientId { address, credential: None };
        let claim =
            habit.map(|habit| Claim { address: habit, credential: habit, seconds: 0.0, paid_by: [true; 2] });
        let deadline = Time::ZERO + Duration::from_secs(1000);
        Waiting { deadline, claim, ..Waiting::plain(address, client, cost, Time::ZERO) }
    }

    /// Serves `rounds` while each of these always has two waiting; the share of work of each.
    fn serve(asking: &[(u64, Option<f64>, f64)], rounds: usize) -> BTreeMap<u64, f64> {
        let (mut tiers, mut work, mut all) = (Tiers::default(), BTreeMap::new(), 0.0);
        for _ in 0..rounds {
            for (address, habit, cost) in asking {
                while tiers.waiting(ClientId { address: *address, credential: None }) < 2 {
                    assert!(matches!(tiers.join(request(*address, *habit, *cost), 10_000), Joined::Waits(_)));
                }
            }
            let served = tiers.pop(Time::ZERO).unwrap();
            *work.entry(served.waiter).or_insert(0.0) += served.cost;
            all += served.cost;
        }
        work.into_iter().map(|(who, work)| (who, work / all)).collect()
    }

    #[test]
    fn strangers_have_a_fifth_whatever_they_and_the_known_ask_for() {
        for strangers in [1, 10, 300] {
            for cost in [0.01, 1.0] {
                let mut asking = vec![(0, Some(100.0), 0.1)];
                asking.extend((1..=strangers).map(|address| (address, None, cost)));
                let got = serve(&asking, 4000);
                assert!((got[&0] - 0.8).abs() < 0.03, "{strangers} at {cost}: {}", got[&0]);
            }
        }
    }

    #[test]
    fn the_known_share_by_habit_and_strangers_alike() {
        let got = serve(&[(1, Some(30.0), 0.1), (2, Some(10.0), 0.3), (3, None, 0.1), (4, None, 0.2)], 8000);
        for (who, share) in [(1, 0.6), (2, 0.2), (3, 0.1), (4, 0.1)] {
            assert!((got[&who] - share).abs() < 0.02, "{who}: {got:?}");
        }
    }

    #[test]
    fn who_is_within_its_habit_goes_next_however_long_the_other_line() {
        let mut tiers = Tiers::default();
        for address in 1..200 {
            tiers.join(request(address, None, 0.1), 1000);
        }
        assert!((0..50).all(|_| tiers.pop(Time::ZERO).is_some()));
        tiers.join(request(0, Some(1.0), 0.1), 1000);
        assert_eq!(tiers.pop(Time::ZERO).unwrap().waiter, 0);
    }

    #[test]
    fn a_full_queue_takes_from_the_line_that_stands_on_more_than_its_part() {
        let mut tiers = Tiers::default();
        for address in 1..=10 {
            tiers.join(request(address, None, 0.1), 10);
        }
        for known in 100..108 {
            let joined = tiers.join(request(known, Some(1.0), 0.1), 10);
            assert!(matches!(joined, Joined::Displaced(_, displaced) if displaced.waiter <= 10));
        }
        assert!(matches!(tiers.join(request(200, Some(1.0), 0.1), 10), Joined::Refused(_)), "a fifth stays");
        assert_eq!((tiers.lines[KNOWN].len(), tiers.lines[OTHERS].len()), (8, 2));
        for _ in 0..2 {
            tiers.lines[OTHERS].give_way();
            tiers.join(request(300, Some(1.0), 0.1), 10);
        }
        let joined = tiers.join(request(11, None, 0.1), 10);
        assert!(
            matches!(joined, Joined::Displaced(_, displaced) if displaced.waiter >= 100),
            "and comes back"
        );
    }

    #[test]
    fn without_a_past_anywhere_it_is_one_fair_queue() {
        let asking: Vec<_> = (0..6).map(|address| (address, None, 0.05 + 0.01 * address as f64)).collect();
        let got = serve(&asking, 6000);
        assert!(got.values().all(|share| (share - 1.0 / 6.0).abs() < 0.01), "{got:?}");
    }
}
