//! The credential that everybody shows.
//!
//! One credential's total over all addresses is held to one fair share (see [`queue`]): a token
//! that floods from 64 nodes is one client. Ray's own token is different. It is the whole
//! cluster's, and holding it to one share would leave all who use it with no more than a single
//! stranger who shows none. So a credential that most *addresses* show is recognised, and counts
//! as none: its holders are told apart by their addresses.
//!
//! **What is counted.** Addresses, not requests: each of 64 places remembers what the last
//! address that fell into it has shown, and every `SLICE` the places vote. A credential that
//! more than half of them show, two at least, gains a point, any other loses one; at `SURE`
//! points it is everybody's, at none it is forgotten.
//!
//! **Who votes.** Clients that are let in at once. While a class is contended its requests wait, and so
//! no flood, from however many addresses, makes its own credential everybody's; and what was
//! known before it came is not forgotten while it lasts. (A client that wants many shares
//! need only show no credential at all: this guards against accidents, as the hold itself does.)
//!
//! One relaxed load a request as long as nothing changes; no lock, no allocation.
//!
//! [`queue`]: crate::admission::queue

use crate::request::client_id::ClientId;
use crate::time::Time;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// How often the places vote.
pub(crate) const SLICE: Duration = Duration::from_secs(5);

/// Points from which on a credential is everybody's: a minute of quiet.
pub(crate) const SURE: u32 = 12;

/// Points are not counted beyond this: what is everybody's may cease to be.
const POINTS_MAX: u32 = 2 * SURE;

const PLACES: usize = 64;

/// A place that no address has fallen into, and one whose address shows nothing.
const EMPTY: u64 = 0;
const NONE: u64 = 1;

/// What most addresses show.
#[derive(Debug)]
pub(crate) struct SharedCredential {
    places: [AtomicU64; PLACES],
    slice_ends: AtomicU64,
    candidate: AtomicU64,
    points: AtomicU32,
    /// The candidate once it is sure, else [`EMPTY`].
    sure: AtomicU64,
}

impl Default for SharedCredential {
    fn default() -> SharedCredential {
        SharedCredential {
            places: std::array::from_fn(|_| AtomicU64::new(EMPTY)),
            slice_ends: AtomicU64::new(0),
            candidate: AtomicU64::new(EMPTY),
            points: AtomicU32::new(0),
            sure: AtomicU64::new(EMPTY),
        }
    }
}

impl SharedCredential {
    /// Takes note of a client that was let in at once.
    pub(crate) fn see(&self, client: ClientId, now: Time) {
        let shown = shown(client);
        let place = &self.places[usize::try_from(client.address % PLACES as u64).unwrap_or(0)];
        if place.load(Ordering::Relaxed) != shown {
            place.store(shown, Ordering::Relaxed);
        }
        let ends = self.slice_ends.load(Ordering::Relaxed);
        if now.0 >= ends {
            let next = (now + SLICE).0;
            if self.slice_ends.compare_exchange(ends, next, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                self.vote();
            }
        }
    }

    /// The client as it counts.
    pub(crate) fn judge(&self, client: ClientId) -> ClientId {
        let shared_credential = self.sure.load(Ordering::Relaxed);
        if shared_credential != EMPTY && shared_credential == shown(client) {
            ClientId { credential: None, ..client }
        } else {
            client
        }
    }

    /// Ends a slice. Two at once do not happen: the slice's end is taken by one.
    fn vote(&self) {
        let shown: [u64; PLACES] =
            std::array::from_fn(|place| self.places[place].swap(EMPTY, Ordering::Relaxed));
        let winner = majority(&shown);
        let points = self.points.load(Ordering::Relaxed);
        let candidate = self.candidate.load(Ordering::Relaxed);
        let points = match winner {
            Some(winner) if winner == candidate => (points + 1).min(POINTS_MAX),
            Some(winner) if points == 0 => {
                self.candidate.store(winner, Ordering::Relaxed);
                1
            }
            _ => points.saturating_sub(1),
        };
        self.points.store(points, Ordering::Relaxed);
        if points >= SURE {
            self.sure.store(self.candidate.load(Ordering::Relaxed), Ordering::Relaxed);
        } else if points == 0 {
            self.sure.store(EMPTY, Ordering::Relaxed);
        }
    }
}

fn shown(client: ClientId) -> u64 {
    client.credential.map_or(NONE, |credential| credential.max(NONE + 1))
}

/// The credential that more than half of the places show, and two at least.
fn majority(shown: &[u64; PLACES]) -> Option<u64> {
    let taken = shown.iter().filter(|shown| **shown != EMPTY).count();
    shown.iter().copied().filter(|shown| *shown > NONE).find(|candidate| {
        let count = shown.iter().filter(|shown| *shown == candidate).count();
        count >= 2 && 2 * count > taken
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: u64 = 0xfeed;

    fn client(address: u64, credential: Option<u64>) -> ClientId {
        ClientId { address, credential }
    }

    /// So many slices in which `clients` ask.
    fn pass(shared_credential: &SharedCredential, from: &mut u64, slices: u32, clients: &[ClientId]) {
        for _ in 0..slices {
            *from += SLICE.as_secs();
            for client in clients {
                shared_credential.see(*client, Time::from_secs_f64(*from as f64));
            }
        }
    }

    fn cluster(holders: u64, strangers: u64) -> Vec<ClientId> {
        let holders = (0..holders).map(|address| client(address, Some(TOKEN)));
        holders.chain((40..40 + strangers).map(|address| client(address, None))).collect()
    }

    #[test]
    fn what_most_addresses_show_counts_as_none() {
        let (shared_credential, mut at) = (SharedCredential::default(), 0);
        pass(&shared_credential, &mut at, SURE, &cluster(5, 4));
        assert_eq!(shared_credential.judge(client(1, Some(TOKEN))).credential, Some(TOKEN), "not sure yet");
        pass(&shared_credential, &mut at, 2, &cluster(5, 4));
        assert_eq!(shared_credential.judge(client(1, Some(TOKEN))), client(1, None));
        assert_eq!(
            shared_credential.judge(client(1, Some(7))),
            client(1, Some(7)),
            "another one counts as before"
        );
    }

    #[test]
    fn neither_a_minority_nor_a_single_address_makes_it_common() {
        for clients in [cluster(4, 5), cluster(1, 0)] {
            let (shared_credential, mut at) = (SharedCredential::default(), 0);
            pass(&shared_credential, &mut at, 10 * SURE, &clients);
            assert_eq!(shared_credential.judge(client(1, Some(TOKEN))).credential, Some(TOKEN));
        }
    }

    #[test]
    fn what_is_no_longer_shown_is_forgotten() {
        let (shared_credential, mut at) = (SharedCredential::default(), 0);
        pass(&shared_credential, &mut at, 5 * SURE, &cluster(5, 0));
        assert_eq!(shared_credential.judge(client(1, Some(TOKEN))).credential, None);
        pass(&shared_credential, &mut at, 3 * SURE, &cluster(0, 5));
        assert_eq!(shared_credential.judge(client(1, Some(TOKEN))).credential, Some(TOKEN));
    }
}
