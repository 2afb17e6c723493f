//! Ceilings for one party: a rate and a concurrency nobody may exceed, whatever is free.
//!
//! Fair queueing needs no per-party state while nobody waits; a configured ceiling does. It
//! lives in a table of fixed size. A party takes a slot when first seen; a slot is given to
//! another only when its party owes nothing (its rate has refilled, nothing is under way), so
//! that flooding the table with invented identities never forgets a debt. When every slot in
//! reach is owed, the newcomer shares the overflow slot.
//!
//! Where several doors share their limits, a party that asks for more than its ceilings at several
//! of them has a part of these at each (`core/fleet/identities.rs`): so much of its places, and a
//! cell that costs as many more. Nobody has less than one place at a door.

use crate::limit::clock::{CELL_NANOS, ElasticClock, SharedClock, VirtualTime};
use crate::limit::in_flight::InFlight;
use crate::limit::meter::Reason;
use crate::limit::rate::{in_hand, owed, until_due};
use crate::policy::PartyLimits;
use crate::request::party::Party;
use crate::time::Time;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Slots a class keeps; beyond, parties share one.
pub const SLOTS: usize = 8192;

/// Neighbouring slots a party may take.
const REACH: usize = 8;

/// The parties of one class, held to its [`PartyLimits`].
#[derive(Debug)]
pub struct Shares {
    in_flight_max: u32,
    clock: Arc<ElasticClock>,
    rate: Option<RateLimiter<usize, Slab, SharedClock, NoOpMiddleware<VirtualTime>>>,
    accounts: Slab,
    burst: u32,
    slots: Box<[Slot]>,
    refill: Duration,
    /// The slots whose party has a part of its ceilings here and the rest at other doors.
    parted: Mutex<Vec<usize>>,
}

#[derive(Debug, Default)]
struct Slot {
    party: AtomicU64,
    in_flight: InFlight,
    touched: AtomicU64,
    /// The part of its ceilings that the party has here, in millionths; 0: all of them.
    part: AtomicU32,
    /// Requests refused for want of a place since somebody last looked.
    refused: AtomicU32,
}

impl Slot {
    fn part(&self) -> Option<f64> {
        let part = self.part.load(Ordering::Relaxed);
        (part > 0).then(|| f64::from(part) / 1e6)
    }
}

/// The place a party was given, to be handed back with its ticket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotId(u32);

impl Shares {
    /// A table for these ceilings, or `None` when there are none to hold.
    #[must_use]
    pub fn new(limits: PartyLimits, now: Time) -> Option<Shares> {
        if limits == PartyLimits::default() {
            return None;
        }
        let rate_per_second = limits.rate.map_or(0.0, |(rate, _)| rate);
        let clock = Arc::new(ElasticClock::new(rate_per_second, now));
        let burst = NonZeroU32::new(limits.rate.map_or(1, |(_, burst)| burst)).unwrap_or(NonZeroU32::MIN);
        let accounts = Slab::default();
        let rate = limits.rate.and_then(|_| {
            let quota = Quota::with_period(Duration::from_millis(1))?.allow_burst(burst);
            Some(RateLimiter::new(quota, accounts.clone(), SharedClock(Arc::clone(&clock))))
        });
        let refill = if rate_per_second > 0.0 {
            crate::time::duration_from_secs(f64::from(burst.get()) / rate_per_second)
        } else {
            Duration::ZERO
        };
        Some(Shares {
            in_flight_max: limits.in_flight.unwrap_or(u32::MAX),
            clock,
            rate,
            accounts,
            burst: burst.get(),
            slots: (0..=SLOTS).map(|_| Slot::default()).collect(),
            refill,
            parted: Mutex::default(),
        })
    }

    /// From now on these parties have so much of their ceilings here and the rest at other doors.
    /// One request at least may be under way.
    pub fn part(&self, parts: &BTreeMap<u64, f64>) {
        // What is held is right between any two slots.
        let mut parted = self.parted.lock().unwrap_or_else(PoisonError::into_inner);
        for at in parted.drain(..) {
            self.slots[at].part.store(0, Ordering::Relaxed);
        }
        for (party, part) in parts {
            let key = party | 1;
            if let Some(at) = reach(key).find(|at| self.slots[*at].party.load(Ordering::Acquire) == key) {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
                let millionths = (part.clamp(1e-6, 1.0) * 1e6) as u32;
                self.slots[at].part.store(millionths, Ordering::Relaxed);
                parted.push(at);
            }
        }
    }

    /// What each party has under way here, and was refused for want of a place since the last call.
    #[must_use]
    pub fn places_wanted(&self) -> Vec<(u64, u32)> {
        let wanted = self.slots[..SLOTS].iter().map(|slot| {
            let refused = slot.refused.swap(0, Ordering::Relaxed);
            (slot.party.load(Ordering::Acquire), slot.in_flight.count().saturating_add(refused))
        });
        wanted.filter(|(_, wanted)| *wanted > 0).collect()
    }

    /// How many requests the party of a slot may have under way here.
    fn in_flight_max(&self, slot: &Slot) -> u32 {
        let whole = self.in_flight_max;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a u32")]
        slot.part().map_or(whole, |part| ((f64::from(whole) * part + 1e-3) as u32).max(1).min(whole))
    }

    /// Counts one request of `party` in, or says which ceiling it has reached and for how long.
    pub fn enter(&self, party: Party, now: Time) -> Result<SlotId, (Reason, Duration)> {
        let at = self.slot_of(party, now);
        let slot = &self.slots[at];
        if !slot.in_flight.try_enter(self.in_flight_max(slot)) {
            slot.refused.fetch_add(1, Ordering::Relaxed);
            return Err((Reason::PartyInFlight, Duration::from_secs(1)));
        }
        if let Some(rate) = &self.rate {
            let here = self.clock.advance(now);
            if let Err(not_until) = rate.check_key(&at) {
                slot.in_flight.leave();
                let cells = not_until.wait_time_from(here).as_secs_f64() * 1e3;
                return Err((Reason::PartyRate, crate::time::duration_from_secs(cells / self.clock.rate())));
            }
            if let Some(part) = slot.part() {
                // A cell here costs what the party gets at other doors meanwhile.
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "as-casts saturate"
                )]
                let more = Nanos::from(((1.0 / part - 1.0) * CELL_NANOS) as u64);
                let owe = |due: Option<Nanos>| due.map(|due| ((), due + more)).ok_or(());
                let _ = self.accounts.0[at].measure_and_replace(&NotKeyed::NonKey, owe);
            }
        }
        slot.touched.store(now.0, Ordering::Relaxed);
        Ok(SlotId(u32::try_from(at).unwrap_or(u32::MAX)))
    }

    /// Which ceiling a request of `party`, worth so many `hits`, would meet if it came now, and for
    /// how long.
    #[must_use]
    pub fn would_refuse(&self, party: Party, hits: u32, now: Time) -> Option<(Reason, Duration)> {
        let at = self.slot_of(party, now);
        if self.slots[at].in_flight.count() >= self.in_flight_max(&self.slots[at]) {
            return Some((Reason::PartyInFlight, Duration::from_secs(1)));
        }
        self.rate.as_ref()?;
        let wait = until_due(&self.accounts.0[at], self.burst, hits.saturating_sub(1), &self.clock, now);
        (!wait.is_zero()).then_some((Reason::PartyRate, wait))
    }

    /// Takes so many cells more of the party's rate, or none.
    pub fn take_all(&self, party: Party, cells: NonZeroU32, now: Time) -> bool {
        let Some(rate) = &self.rate else { return true };
        self.clock.advance(now);
        matches!(rate.check_key_n(&self.slot_of(party, now), cells), Ok(Ok(())))
    }

    /// How many requests of `party` its own ceilings would let in at once.
    #[must_use]
    pub fn left(&self, party: Party, now: Time) -> u32 {
        let at = self.slot_of(party, now);
        let slot = &self.slots[at];
        let places = self.in_flight_max(slot).saturating_sub(slot.in_flight.count());
        match &self.rate {
            Some(_) => places.min(in_hand(self.burst, owed(&self.accounts.0[at], &self.clock, now))),
            None => places,
        }
    }

    /// Counts it out again.
    pub fn leave(&self, id: SlotId) {
        if let Some(slot) = self.slots.get(id.0 as usize) {
            slot.in_flight.leave();
        }
    }

    fn slot_of(&self, party: Party, now: Time) -> usize {
        let key = party.credential.unwrap_or(party.address) | 1; // 0 means free
        let reach = reach(key);
        if let Some(at) = reach.clone().find(|at| self.slots[*at].party.load(Ordering::Acquire) == key) {
            return at;
        }
        for at in reach {
            let slot = &self.slots[at];
            let present = slot.party.load(Ordering::Acquire);
            let owes = slot.in_flight.count() > 0
                || now.since(Time(slot.touched.load(Ordering::Relaxed))) < self.refill;
            if (present == 0 || !owes)
                && slot.party.compare_exchange(present, key, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                slot.part.store(0, Ordering::Relaxed);
                return at;
            }
        }
        SLOTS // the overflow slot
    }
}

/// The slots a party may take.
fn reach(key: u64) -> impl Iterator<Item = usize> + Clone {
    let home = usize::try_from(key.rotate_left(29) % SLOTS as u64).unwrap_or(0);
    (0..REACH).map(move |step| (home + step) % SLOTS)
}

/// governor's state, one cell per slot.
#[derive(Clone, Debug)]
struct Slab(Arc<[InMemoryState]>);

impl Default for Slab {
    fn default() -> Slab {
        Slab((0..=SLOTS).map(|_| InMemoryState::default()).collect())
    }
}

impl StateStore for Slab {
    type Key = usize;
    fn measure_and_replace<T, F, E>(&self, key: &usize, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0[(*key).min(SLOTS)].measure_and_replace(&NotKeyed::NonKey, f)
    }
}

// The clock trait is named so that the shared clock's `now` is the one governor calls.
const _: fn(&SharedClock) -> VirtualTime = <SharedClock as Clock>::now;

#[cfg(test)]
mod tests {
    use super::*;

    fn party(address: u64) -> Party {
        Party { address, credential: None }
    }

    #[test]
    fn each_party_has_its_own_rate_and_concurrency() {
        let shares =
            Shares::new(PartyLimits { rate: Some((1.0, 2)), in_flight: Some(5) }, Time::ZERO).unwrap();
        assert!(shares.enter(party(1 << 9), Time::ZERO).is_ok());
        assert!(shares.enter(party(1 << 9), Time::ZERO).is_ok());
        let (reason, wait) = shares.enter(party(1 << 9), Time::ZERO).unwrap_err();
        assert_eq!(reason, Reason::PartyRate);
        assert!((wait.as_secs_f64() - 1.0).abs() < 0.01, "{wait:?}");
        assert!(shares.enter(party(2 << 9), Time::ZERO).is_ok());
    }

    #[test]
    fn whoever_looks_is_told_what_whoever_enters_would_be() {
        let limits = PartyLimits { rate: Some((1.0, 2)), in_flight: Some(2) };
        let shares = Shares::new(limits, Time::ZERO).unwrap();
        assert_eq!(shares.would_refuse(party(8), 1, Time::ZERO), None);
        let first = shares.enter(party(8), Time::ZERO).unwrap();
        assert_eq!(shares.would_refuse(party(8), 1, Time::ZERO), None);
        let second = shares.enter(party(8), Time::ZERO).unwrap();
        assert_eq!(shares.would_refuse(party(8), 1, Time::ZERO).unwrap().0, Reason::PartyInFlight);
        shares.leave(first);
        shares.leave(second);
        let (reason, wait) = shares.would_refuse(party(8), 1, Time::ZERO).unwrap();
        assert_eq!((reason, wait.as_millis()), (Reason::PartyRate, 1000));
        assert_eq!(shares.would_refuse(party(16), 1, Time::ZERO), None);
    }

    #[test]
    fn a_request_worth_several_is_weighed_against_what_is_left() {
        let shares = Shares::new(PartyLimits { rate: Some((1.0, 4)), in_flight: None }, Time::ZERO).unwrap();
        assert_eq!(shares.left(party(8), Time::ZERO), 4);
        assert!(shares.take_all(party(8), NonZeroU32::new(3).unwrap(), Time::ZERO));
        assert_eq!(shares.left(party(8), Time::ZERO), 1);
        assert_eq!(shares.would_refuse(party(8), 1, Time::ZERO), None);
        let (reason, wait) = shares.would_refuse(party(8), 3, Time::ZERO).unwrap();
        assert_eq!((reason, wait.as_millis()), (Reason::PartyRate, 2000));
        assert!(!shares.take_all(party(8), NonZeroU32::new(3).unwrap(), Time::ZERO));
        assert_eq!(shares.left(party(8), Time::ZERO), 1, "all or none");
    }

    #[test]
    fn concurrency_comes_back_when_a_request_leaves() {
        let shares = Shares::new(PartyLimits { rate: None, in_flight: Some(1) }, Time::ZERO).unwrap();
        let slot = shares.enter(party(8), Time::ZERO).unwrap();
        assert_eq!(shares.enter(party(8), Time::ZERO).unwrap_err().0, Reason::PartyInFlight);
        shares.leave(slot);
        assert!(shares.enter(party(8), Time::ZERO).is_ok());
    }

    #[test]
    fn a_flood_of_invented_parties_forgets_no_debt() {
        let shares =
            Shares::new(PartyLimits { rate: Some((0.001, 1)), in_flight: None }, Time::ZERO).unwrap();
        assert!(shares.enter(party(2), Time::ZERO).is_ok());
        for invented in 0..200_000u64 {
            let _ = shares.enter(party(invented.wrapping_mul(0x9E37_79B9_7F4A_7C15)), Time::ZERO);
        }
        assert_eq!(shares.enter(party(2), Time::from_secs_f64(1.0)).unwrap_err().0, Reason::PartyRate);
    }

    #[test]
    fn a_party_has_a_part_of_its_ceilings_where_it_has_the_rest_elsewhere() {
        let limits = PartyLimits { rate: Some((30.0, 3)), in_flight: Some(6) };
        let shares = Shares::new(limits, Time::ZERO).unwrap();
        let admitted = |who: u64, from: u64| {
            let asked = (0..1_000_u64).map(|step| Time::from_secs_f64(from as f64 + step as f64 * 0.01));
            asked.filter_map(|now| shares.enter(party(who), now).ok()).map(|slot| shares.leave(slot)).count()
        };
        let _ = (admitted(8, 0), admitted(16, 0));
        shares.part(&BTreeMap::from([(8, 1.0 / 3.0)]));
        let (parted, whole) = (admitted(8, 20), admitted(16, 40));
        assert!((98..=104).contains(&parted) && (298..=304).contains(&whole), "{parted}, {whole}");
        shares.part(&BTreeMap::new());
        assert!((298..=310).contains(&admitted(8, 60)), "all of it again");

        let shares = Shares::new(PartyLimits { rate: None, in_flight: Some(6) }, Time::ZERO).unwrap();
        let first = shares.enter(party(8), Time::ZERO).unwrap();
        shares.part(&BTreeMap::from([(8, 1.0 / 3.0)]));
        let more = (0..8).filter(|_| shares.enter(party(8), Time::ZERO).is_ok()).count();
        assert_eq!(more, 1, "two of six");
        assert_eq!(shares.places_wanted(), [(9, 9)], "two it has, and seven it was refused");
        shares.leave(first);
        assert_eq!(shares.places_wanted(), [(9, 1)]);
    }

    #[test]
    fn no_ceilings_need_no_table() {
        assert!(Shares::new(PartyLimits::default(), Time::ZERO).is_none());
    }
}
