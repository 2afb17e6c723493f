//! Ceilings for one client: a rate and a concurrency no client may exceed, whatever is free.
//!
//! **Counted twice.** A request counts for the address it comes from and for the credential it
//! shows, and passes if neither has reached the ceiling. So one token behind 64 addresses is held
//! to one ceiling, and an address gains nothing by inventing tokens. (Two people behind one
//! address share its ceiling; an API key or a name that a trusted proxy vouches for sets them apart.)
//!
//! Fair queueing needs no per-client state while no request waits; a configured ceiling does. It
//! lives in a table of fixed size. A client takes an entry when first seen; an entry is given to
//! another only when its client owes nothing (its rate has refilled, nothing is under way), so
//! that flooding the table with invented identities never forgets a debt. When every entry in
//! reach is owed, a new address shares the overflow entry, and a new credential has none: its
//! address counts all the same. What an address may not ask takes no entry for a credential, so
//! there are as many invented ones in the table as the addresses' own ceilings let in.
//!
//! **Changed ceilings** hold from the next request on, for the same table: what is under way stays
//! counted, and a rate that was used up stays used up (see [`ClientLimits::reconfigure`]).
//!
//! Where several replicas share their limits, a client that asks for more than its ceilings at several
//! of them has a part of these at each (`core/replicas/identities.rs`): so much of its places, and a
//! cell that costs as many more. No client has less than one place at a replica.

use crate::admission::clock::{CELL_NANOS, ElasticClock, SharedClock, VirtualTime};
use crate::admission::in_flight::InFlight;
use crate::admission::meter::Reason;
use crate::admission::rate::{in_hand, owed, until_due};
use crate::policy::PerClientLimits;
use crate::request::client_id::ClientId;
use crate::time::Time;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Entries a class keeps; beyond, addresses share one.
pub(crate) const ENTRIES: usize = 8192;

/// Neighbouring entries a client may take.
const REACH: usize = 8;

/// The clients of one class, held to its [`PerClientLimits`].
#[derive(Debug)]
pub(crate) struct ClientLimits {
    in_flight_max: u32,
    rate: Option<RateLimiter<usize, Slab, SharedClock, NoOpMiddleware<VirtualTime>>>,
    burst: u32,
    refill: Duration,
    table: Arc<Table>,
}

/// What is counted; it outlives the ceilings.
#[derive(Debug)]
struct Table {
    clock: Arc<ElasticClock>,
    accounts: Slab,
    entries: Box<[Entry]>,
    /// The entries whose client has a part of its ceilings here and the rest at other replicas.
    parted: Mutex<Vec<usize>>,
}

#[derive(Debug, Default)]
struct Entry {
    /// The digest; 0: free.
    client: AtomicU64,
    in_flight: InFlight,
    touched: AtomicU64,
    /// The part of its ceilings that the client has here, in millionths; 0: all of them.
    part: AtomicU32,
    /// Requests refused for want of a place since somebody last looked.
    refused: AtomicU32,
}

impl Entry {
    fn part(&self) -> Option<f64> {
        let part = self.part.load(Ordering::Relaxed);
        (part > 0).then(|| f64::from(part) / 1e6)
    }
}

/// The places a request was given, to be handed back with its permit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ClientPermit {
    address: u32,
    credential: Option<u32>,
}

impl ClientPermit {
    /// The entries, the address's first.
    fn places(self) -> impl Iterator<Item = usize> + Clone {
        std::iter::once(self.address).chain(self.credential).map(|at| at as usize)
    }
}

impl ClientLimits {
    /// A table for these ceilings, or `None` when there are none to hold.
    pub(crate) fn new(limits: PerClientLimits, now: Time) -> Option<ClientLimits> {
        if limits == PerClientLimits::default() {
            return None;
        }
        let table = Table {
            clock: Arc::new(ElasticClock::new(per_second(limits), now)),
            accounts: Slab::default(),
            entries: (0..=ENTRIES).map(|_| Entry::default()).collect(),
            parted: Mutex::default(),
        };
        Some(ClientLimits::over(Arc::new(table), limits))
    }

    /// Other ceilings over what is counted already.
    #[must_use]
    pub(crate) fn reconfigure(&self, limits: PerClientLimits, now: Time) -> ClientLimits {
        if limits.rate.is_some() {
            self.table.clock.set_rate(per_second(limits), now);
        }
        ClientLimits::over(Arc::clone(&self.table), limits)
    }

    fn over(table: Arc<Table>, limits: PerClientLimits) -> ClientLimits {
        let burst = NonZeroU32::new(limits.rate.map_or(1, |(_, burst)| burst)).unwrap_or(NonZeroU32::MIN);
        let rate = limits.rate.and_then(|_| {
            let quota = Quota::with_period(Duration::from_millis(1))?.allow_burst(burst);
            Some(RateLimiter::new(quota, table.accounts.clone(), SharedClock(Arc::clone(&table.clock))))
        });
        let per_second = per_second(limits);
        let refill = if per_second > 0.0 {
            crate::time::duration_from_secs(f64::from(burst.get()) / per_second)
        } else {
            Duration::ZERO
        };
        let in_flight_max = limits.in_flight.unwrap_or(u32::MAX);
        ClientLimits { in_flight_max, rate, burst: burst.get(), refill, table }
    }

    /// From now on these clients have so much of their ceilings here and the rest at other replicas.
    /// One request at least may be under way.
    pub(crate) fn part(&self, parts: &BTreeMap<u64, f64>) {
        let entries = &self.table.entries;
        // What is held is right between any two entries.
        let mut parted = self.table.parted.lock();
        for at in parted.drain(..) {
            entries[at].part.store(0, Ordering::Relaxed);
        }
        for (client, part) in parts {
            if let Some(at) = self.find(key(*client)) {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
                let millionths = (part.clamp(1e-6, 1.0) * 1e6) as u32;
                entries[at].part.store(millionths, Ordering::Relaxed);
                parted.push(at);
            }
        }
    }

    /// What each client, by its digest, has under way here, and was refused for want of a place since the
    /// last call.
    pub(crate) fn places_wanted(&self) -> Vec<(u64, u32)> {
        let wanted = self.table.entries[..ENTRIES].iter().map(|entry| {
            let refused = entry.refused.swap(0, Ordering::Relaxed);
            (entry.client.load(Ordering::Acquire), entry.in_flight.count().saturating_add(refused))
        });
        wanted.filter(|(_, wanted)| *wanted > 0).collect()
    }

    /// How many requests the client of an entry may have under way here.
    fn in_flight_max(&self, entry: &Entry) -> u32 {
        let whole = self.in_flight_max;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a u32")]
        entry.part().map_or(whole, |part| ((f64::from(whole) * part + 1e-3) as u32).max(1).min(whole))
    }

    /// Counts one request of `client` in, or says which ceiling it has reached and for how long.
    pub(crate) fn enter(&self, client: ClientId, now: Time) -> Result<ClientPermit, (Reason, Duration)> {
        let address = self.take_entry(client.address, now).unwrap_or(ENTRIES);
        self.take_place(address)?;
        let mut id = ClientPermit { address: short(address), credential: None };
        let entered = self.affords(id.places(), 1, now).and_then(|()| {
            if let Some(at) = client.credential.and_then(|credential| self.take_entry(credential, now)) {
                self.take_place(at)?;
                id.credential = Some(short(at));
            }
            self.take_cells(id, now)
        });
        if let Err(over) = entered {
            self.leave(id);
            return Err(over);
        }
        id.places().for_each(|at| self.table.entries[at].touched.store(now.0, Ordering::Relaxed));
        Ok(id)
    }

    /// Which ceiling a request of `client`, worth so many `hits`, would meet if it came now, and for
    /// how long.
    pub(crate) fn would_refuse(&self, client: ClientId, hits: u32, now: Time) -> Option<(Reason, Duration)> {
        let is_full = |at: usize| {
            let entry = &self.table.entries[at];
            entry.in_flight.count() >= self.in_flight_max(entry)
        };
        if self.known(client).any(is_full) {
            return Some(FULL);
        }
        if self.rate.is_some() && hits > self.burst {
            let nothing = InMemoryState::default();
            let wait = until_due(&nothing, self.burst, hits - 1, &self.table.clock, now);
            return Some((Reason::ClientRate, wait));
        }
        self.affords(self.known(client), hits, now).err()
    }

    /// Takes so many cells more of the client's rate, or none.
    pub(crate) fn take_all(&self, client: ClientId, cells: NonZeroU32, now: Time) -> bool {
        let Some(rate) = &self.rate else { return true };
        let address = self.take_entry(client.address, now).unwrap_or(ENTRIES);
        let mut entries =
            std::iter::once(address).chain(client.credential.and_then(|digest| self.find(digest)));
        self.affords(entries.clone(), cells.get(), now).is_ok()
            && entries.all(|at| matches!(rate.check_key_n(&at, cells), Ok(Ok(()))))
    }

    /// How many requests of `client` its own ceilings would let in at once.
    pub(crate) fn left(&self, client: ClientId, now: Time) -> u32 {
        let most = if self.rate.is_some() { self.in_flight_max.min(self.burst) } else { self.in_flight_max };
        let left = self.known(client).map(|at| {
            let entry = &self.table.entries[at];
            let places = self.in_flight_max(entry).saturating_sub(entry.in_flight.count());
            let owed = || owed(&self.table.accounts.0[at], &self.table.clock, now);
            if self.rate.is_some() { places.min(in_hand(self.burst, owed())) } else { places }
        });
        left.fold(most, u32::min)
    }

    /// Counts it out again.
    pub(crate) fn leave(&self, id: ClientPermit) {
        id.places().for_each(|at| self.table.entries[at].in_flight.leave());
    }

    fn take_place(&self, at: usize) -> Result<(), (Reason, Duration)> {
        let entry = &self.table.entries[at];
        if entry.in_flight.try_enter(self.in_flight_max(entry)) {
            return Ok(());
        }
        entry.refused.fetch_add(1, Ordering::Relaxed);
        Err(FULL)
    }

    /// Whether all of these have so many cells in hand.
    fn affords(
        &self,
        entries: impl Iterator<Item = usize>,
        cells: u32,
        now: Time,
    ) -> Result<(), (Reason, Duration)> {
        if self.rate.is_none() {
            return Ok(());
        }
        let (clock, accounts) = (&self.table.clock, &self.table.accounts.0);
        let waits =
            entries.map(|at| until_due(&accounts[at], self.burst, cells.saturating_sub(1), clock, now));
        let wait = waits.max().unwrap_or_default();
        if wait.is_zero() { Ok(()) } else { Err((Reason::ClientRate, wait)) }
    }

    /// Takes a cell of each entry's rate, if each has one.
    fn take_cells(&self, id: ClientPermit, now: Time) -> Result<(), (Reason, Duration)> {
        let Some(rate) = &self.rate else { return Ok(()) };
        self.affords(id.places(), 1, now)?;
        let clock = &self.table.clock;
        let here = clock.advance(now);
        for at in id.places() {
            if let Err(not_until) = rate.check_key(&at) {
                // Somebody was quicker.
                let cells = not_until.wait_time_from(here).as_secs_f64() * 1e3;
                return Err((Reason::ClientRate, crate::time::duration_from_secs(cells / clock.rate())));
            }
            if let Some(part) = self.table.entries[at].part() {
                // A cell here costs what the client gets at other replicas meanwhile.
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "as-casts saturate"
                )]
                let more = Nanos::from(((1.0 / part - 1.0) * CELL_NANOS) as u64);
                let owe = |due: Option<Nanos>| due.map(|due| ((), due + more)).ok_or(());
                let _ = self.table.accounts.0[at].measure_and_replace(&NotKeyed::NonKey, owe);
            }
        }
        Ok(())
    }

    /// The entries that the client has.
    fn known(&self, client: ClientId) -> impl Iterator<Item = usize> {
        [Some(client.address), client.credential].into_iter().flatten().filter_map(|digest| self.find(digest))
    }

    fn find(&self, digest: u64) -> Option<usize> {
        let key = key(digest);
        reach(key).find(|at| self.table.entries[*at].client.load(Ordering::Acquire) == key)
    }

    /// The entry of an address or a credential: its own, or one whose client owes nothing.
    fn take_entry(&self, digest: u64, now: Time) -> Option<usize> {
        let key = key(digest);
        self.find(digest).or_else(|| {
            reach(key).find(|at| {
                let entry = &self.table.entries[*at];
                let present = entry.client.load(Ordering::Acquire);
                let owes = entry.in_flight.count() > 0
                    || now.since(Time(entry.touched.load(Ordering::Relaxed))) < self.refill;
                let taken = (present == 0 || !owes)
                    && entry
                        .client
                        .compare_exchange(present, key, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok();
                if taken {
                    entry.part.store(0, Ordering::Relaxed);
                }
                taken
            })
        })
    }
}

/// The answer to a client that has as many under way as it may: when one ends is not known.
const FULL: (Reason, Duration) = (Reason::ClientInFlight, Duration::from_secs(1));

fn per_second(limits: PerClientLimits) -> f64 {
    limits.rate.map_or(0.0, |(rate, _)| rate)
}

/// A digest as an entry holds it: 0 means free.
fn key(digest: u64) -> u64 {
    digest.max(1)
}

/// An entry's number, of which there are [`ENTRIES`] and one.
fn short(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The entries a client may take.
fn reach(key: u64) -> impl Iterator<Item = usize> + Clone {
    let home = usize::try_from(key.rotate_left(29) % ENTRIES as u64).unwrap_or(0);
    (0..REACH).map(move |step| (home + step) % ENTRIES)
}

/// governor's state, one cell per entry.
#[derive(Clone, Debug)]
struct Slab(Arc<[InMemoryState]>);

impl Default for Slab {
    fn default() -> Slab {
        Slab((0..=ENTRIES).map(|_| InMemoryState::default()).collect())
    }
}

impl StateStore for Slab {
    type Key = usize;
    fn measure_and_replace<T, F, E>(&self, key: &usize, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0[(*key).min(ENTRIES)].measure_and_replace(&NotKeyed::NonKey, f)
    }
}

// The clock trait is named so that the shared clock's `now` is the one governor calls.
const _: fn(&SharedClock) -> VirtualTime = <SharedClock as Clock>::now;

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: u64) -> ClientId {
        ClientId { address, credential: None }
    }

    #[test]
    fn each_client_has_its_own_rate_and_concurrency() {
        let client_limits =
            ClientLimits::new(PerClientLimits { rate: Some((1.0, 2)), in_flight: Some(5) }, Time::ZERO)
                .unwrap();
        assert!(client_limits.enter(client(1 << 9), Time::ZERO).is_ok());
        assert!(client_limits.enter(client(1 << 9), Time::ZERO).is_ok());
        let (reason, wait) = client_limits.enter(client(1 << 9), Time::ZERO).unwrap_err();
        assert_eq!(reason, Reason::ClientRate);
        assert!((wait.as_secs_f64() - 1.0).abs() < 0.01, "{wait:?}");
        assert!(client_limits.enter(client(2 << 9), Time::ZERO).is_ok());
    }

    #[test]
    fn a_look_finds_the_refusal_that_an_entry_would_meet() {
        let limits = PerClientLimits { rate: Some((1.0, 2)), in_flight: Some(2) };
        let client_limits = ClientLimits::new(limits, Time::ZERO).unwrap();
        assert_eq!(client_limits.would_refuse(client(8), 1, Time::ZERO), None);
        let first = client_limits.enter(client(8), Time::ZERO).unwrap();
        assert_eq!(client_limits.would_refuse(client(8), 1, Time::ZERO), None);
        let second = client_limits.enter(client(8), Time::ZERO).unwrap();
        assert_eq!(client_limits.would_refuse(client(8), 1, Time::ZERO).unwrap().0, Reason::ClientInFlight);
        client_limits.leave(first);
        client_limits.leave(second);
        let (reason, wait) = client_limits.would_refuse(client(8), 1, Time::ZERO).unwrap();
        assert_eq!((reason, wait.as_millis()), (Reason::ClientRate, 1000));
        assert_eq!(client_limits.would_refuse(client(16), 1, Time::ZERO), None);
    }

    #[test]
    fn a_request_worth_several_is_weighed_against_what_is_left() {
        let client_limits =
            ClientLimits::new(PerClientLimits { rate: Some((1.0, 4)), in_flight: None }, Time::ZERO).unwrap();
        assert_eq!(client_limits.left(client(8), Time::ZERO), 4);
        assert!(client_limits.take_all(client(8), NonZeroU32::new(3).unwrap(), Time::ZERO));
        assert_eq!(client_limits.left(client(8), Time::ZERO), 1);
        assert_eq!(client_limits.would_refuse(client(8), 1, Time::ZERO), None);
        let (reason, wait) = client_limits.would_refuse(client(8), 3, Time::ZERO).unwrap();
        assert_eq!((reason, wait.as_millis()), (Reason::ClientRate, 2000));
        assert!(!client_limits.take_all(client(8), NonZeroU32::new(3).unwrap(), Time::ZERO));
        assert_eq!(client_limits.left(client(8), Time::ZERO), 1, "all or none");
    }

    #[test]
    fn concurrency_comes_back_when_a_request_leaves() {
        let client_limits =
            ClientLimits::new(PerClientLimits { rate: None, in_flight: Some(1) }, Time::ZERO).unwrap();
        let entry = client_limits.enter(client(8), Time::ZERO).unwrap();
        assert_eq!(client_limits.enter(client(8), Time::ZERO).unwrap_err().0, Reason::ClientInFlight);
        client_limits.leave(entry);
        assert!(client_limits.enter(client(8), Time::ZERO).is_ok());
    }

    #[test]
    fn a_flood_of_invented_clients_forgets_no_debt() {
        let client_limits =
            ClientLimits::new(PerClientLimits { rate: Some((0.001, 1)), in_flight: None }, Time::ZERO)
                .unwrap();
        assert!(client_limits.enter(client(2), Time::ZERO).is_ok());
        for invented in 0..200_000u64 {
            let _ = client_limits.enter(client(invented.wrapping_mul(0x9E37_79B9_7F4A_7C15)), Time::ZERO);
        }
        assert_eq!(
            client_limits.enter(client(2), Time::from_secs_f64(1.0)).unwrap_err().0,
            Reason::ClientRate
        );
    }

    #[test]
    fn a_client_has_a_part_of_its_ceilings_where_it_has_the_rest_elsewhere() {
        let limits = PerClientLimits { rate: Some((30.0, 3)), in_flight: Some(6) };
        let client_limits = ClientLimits::new(limits, Time::ZERO).unwrap();
        let admitted = |who: u64, from: u64| {
            let asked = (0..1_000_u64).map(|step| Time::from_secs_f64(from as f64 + step as f64 * 0.01));
            asked
                .filter_map(|now| client_limits.enter(client(who), now).ok())
                .map(|entry| client_limits.leave(entry))
                .count()
        };
        let _ = (admitted(8, 0), admitted(16, 0));
        client_limits.part(&BTreeMap::from([(8, 1.0 / 3.0)]));
        let (parted, whole) = (admitted(8, 20), admitted(16, 40));
        assert!((98..=104).contains(&parted) && (298..=304).contains(&whole), "{parted}, {whole}");
        client_limits.part(&BTreeMap::new());
        assert!((298..=310).contains(&admitted(8, 60)), "all of it again");

        let client_limits =
            ClientLimits::new(PerClientLimits { rate: None, in_flight: Some(6) }, Time::ZERO).unwrap();
        let first = client_limits.enter(client(8), Time::ZERO).unwrap();
        client_limits.part(&BTreeMap::from([(8, 1.0 / 3.0)]));
        let more = (0..8).filter(|_| client_limits.enter(client(8), Time::ZERO).is_ok()).count();
        assert_eq!(more, 1, "two of six");
        assert_eq!(
            client_limits.places_wanted(),
            [(8, 9)],
            "by its digest: two it has, and seven it was refused"
        );
        client_limits.leave(first);
        assert_eq!(client_limits.places_wanted(), [(8, 1)]);
    }

    #[test]
    fn an_address_gains_nothing_by_inventing_credentials() {
        let client_limits =
            ClientLimits::new(PerClientLimits { rate: None, in_flight: Some(4) }, Time::ZERO).unwrap();
        let shown = |address, credential| ClientId { address, credential: Some(credential) };
        let invented =
            (0..60).filter(|it| client_limits.enter(shown(8, 100 + it), Time::ZERO).is_ok()).count();
        assert_eq!(invented, 4);
        assert!(client_limits.would_refuse(shown(8, 999), 1, Time::ZERO).is_some());
        assert_eq!(client_limits.left(shown(8, 999), Time::ZERO), 0);
        assert_eq!(client_limits.places_wanted().len(), 5, "the address and what it was let in with");
        assert!(client_limits.enter(shown(16, 1000), Time::ZERO).is_ok(), "somebody else");

        let client_limits =
            ClientLimits::new(PerClientLimits { rate: Some((1.0, 4)), in_flight: None }, Time::ZERO).unwrap();
        let invented =
            (0..60).filter(|it| client_limits.enter(shown(8, 100 + it), Time::ZERO).is_ok()).count();
        assert_eq!(invented, 4);
    }

    #[test]
    fn a_credential_has_one_ceiling_however_many_addresses_show_it() {
        let limits = PerClientLimits { rate: Some((1.0, 5)), in_flight: Some(4) };
        let client_limits = ClientLimits::new(limits, Time::ZERO).unwrap();
        let from = |address| ClientId { address, credential: Some(7) };
        let held: Vec<_> =
            (8..60).filter_map(|address| client_limits.enter(from(address), Time::ZERO).ok()).collect();
        assert_eq!(held.len(), 4);
        for id in held {
            client_limits.leave(id);
        }
        assert!(client_limits.enter(from(90), Time::ZERO).is_ok());
        let (reason, _) = client_limits.enter(from(91), Time::ZERO).unwrap_err();
        assert_eq!(reason, Reason::ClientRate);
        assert_eq!(
            client_limits.left(ClientId { address: 91, credential: None }, Time::ZERO),
            4,
            "it took nothing of the address's"
        );
    }

    #[test]
    fn a_table_full_of_debtors_leaves_a_new_credential_to_its_address() {
        let client_limits =
            ClientLimits::new(PerClientLimits { rate: Some((0.001, 2)), in_flight: None }, Time::ZERO)
                .unwrap();
        for debtor in 0..200_000_u64 {
            let _ = client_limits.enter(client(debtor.wrapping_mul(0x9E37_79B9_7F4A_7C15)), Time::ZERO);
        }
        let known = ClientId { address: 0x9E37_79B9_7F4A_7C15, credential: Some(5) };
        let later = Time::from_secs_f64(1.0);
        let admitted = (0..10).filter(|_| client_limits.enter(known, later).is_ok()).count();
        assert_eq!(admitted, 1, "one of its address's two was spent");
    }

    #[test]
    fn changed_ceilings_hand_out_nothing_twice() {
        let limits = |rate, in_flight| PerClientLimits { rate: Some((rate, 10)), in_flight: Some(in_flight) };
        let mut client_limits = ClientLimits::new(limits(1.0, 100), Time::ZERO).unwrap();
        let burst = |client_limits: &ClientLimits| {
            (0..20).filter(|_| client_limits.enter(client(8), Time::ZERO).is_ok()).count()
        };
        assert_eq!(burst(&client_limits), 10);
        for rate in [0.9, 0.8, 2.0] {
            client_limits = client_limits.reconfigure(limits(rate, 100), Time::ZERO);
            assert_eq!(burst(&client_limits), 0, "the burst is spent");
        }
        client_limits = client_limits
            .reconfigure(PerClientLimits::default(), Time::ZERO)
            .reconfigure(limits(1.0, 100), Time::ZERO);
        assert_eq!(burst(&client_limits), 0, "nor by taking the ceiling away and giving it back");

        let before =
            ClientLimits::new(PerClientLimits { rate: None, in_flight: Some(2) }, Time::ZERO).unwrap();
        let held = before.enter(client(8), Time::ZERO).unwrap();
        let after = before.reconfigure(PerClientLimits { rate: None, in_flight: Some(1) }, Time::ZERO);
        assert!(after.enter(client(8), Time::ZERO).is_err(), "what is under way counts on");
        before.leave(held);
        assert!(after.enter(client(8), Time::ZERO).is_ok());
    }

    #[test]
    fn no_ceilings_need_no_table() {
        assert!(ClientLimits::new(PerClientLimits::default(), Time::ZERO).is_none());
    }
}
