//! Transfers that wait for their client's line, and hold no permit meanwhile.
//!
//! A permit stands for work of Ray's. While a slow client sends its body Ray has nothing to work
//! on yet, and while it reads an answer Ray has nothing left to do: a permit held for so long
//! would shut out others on an idle head. Such a transfer is *parked*: it costs Ray a connection
//! and the bytes on it, and those are bounded here, for each client and in all. What is beyond the
//! bounds needs a permit.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Transfers one client may have parked.
pub(crate) const PER_CLIENT_MAX: u32 = 512;

/// Bytes of all parked transfers together, as their lengths are declared.
pub const BYTES_MAX: u64 = 2 << 30;

/// What a transfer counts as whose length is not declared.
pub(crate) const UNDECLARED: u64 = 1 << 20;

/// All parked transfers.
#[derive(Debug, Default)]
pub struct Parked(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    clients: BTreeMap<u64, u32>,
    bytes: u64,
}

/// A parked transfer's place; dropped, it is free.
#[derive(Debug)]
pub struct Place {
    parked: Arc<Parked>,
    client: u64,
    bytes: u64,
}

impl Parked {
    /// Parks a transfer of a client's, by its address; `None` where that passes a bound.
    pub fn enter(self: &Arc<Self>, client: u64, declared: Option<u64>) -> Option<Place> {
        let bytes = declared.unwrap_or(UNDECLARED);
        let mut book = self.0.lock();
        let all = book.bytes.saturating_add(bytes);
        let own = book.clients.get(&client).copied().unwrap_or(0);
        if own >= PER_CLIENT_MAX || all > BYTES_MAX {
            return None;
        }
        book.bytes = all;
        book.clients.insert(client, own + 1);
        Some(Place { parked: Arc::clone(self), client, bytes })
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.lock().clients.values().sum()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut book = self.parked.0.lock();
        book.bytes = book.bytes.saturating_sub(self.bytes);
        if let Some(own) = book.clients.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                book.clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_has_so_many_and_shuts_no_other_out() {
        let parked = Arc::<Parked>::default();
        let places: Vec<Place> = (0..PER_CLIENT_MAX).map(|_| parked.enter(1, Some(10)).unwrap()).collect();
        assert!(parked.enter(1, Some(10)).is_none());
        assert!(parked.enter(2, Some(10)).is_some());
        drop(places);
        assert!(parked.enter(1, Some(10)).is_some(), "its places are free again");
        assert_eq!(parked.count(), 0);
        let book = parked.0.lock();
        assert_eq!((book.bytes, book.clients.len()), (0, 0), "no client is remembered");
    }

    #[test]
    fn their_bytes_are_bounded_over_all_clients() {
        let parked = Arc::<Parked>::default();
        let half = parked.enter(1, Some(BYTES_MAX / 2));
        assert!(parked.enter(2, Some(BYTES_MAX / 2 + 1)).is_none());
        assert!(parked.enter(2, Some(u64::MAX)).is_none());
        assert!(parked.enter(2, None).is_some());
        drop(half);
        assert_eq!(parked.0.lock().bytes, 0);
    }
}
