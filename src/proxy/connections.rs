//! Who is connected, and how many connections each address has.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Who is connected, over every listener.
#[derive(Debug, Default)]
pub struct Connections {
    all: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection, counted for as long as it lives.
pub(crate) struct Counted {
    connections: Arc<Connections>,
    /// Its subscriber's.
    address: IpAddr,
}

/// What the connections of one subscriber are counted under: an IPv4 address whole, an IPv6 address by its
/// /64, as in `core/request/identify.rs`.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Connections {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// Counts one more, if both bounds allow it. `own_max` bounds those of this subscriber; a trusted proxy has none.
    pub(crate) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        all_max: usize,
        own_max: Option<usize>,
    ) -> Option<Counted> {
        let address = subscriber(address);
        let mut by_address = self.by_address.lock();
        if self.count() >= all_max || !count_in(&mut by_address, address, own_max) {
            return None;
        }
        self.all.fetch_add(1, Ordering::Relaxed);
        Some(Counted { connections: Arc::clone(self), address })
    }
}

/// Counts one more connection of this subscriber, if it may have one more.
fn count_in(by_address: &mut HashMap<IpAddr, usize>, address: IpAddr, own_max: Option<usize>) -> bool {
    let own = by_address.get(&address).copied().unwrap_or(0);
    let has_room = own_max.is_none_or(|max| own < max);
    if has_room {
        by_address.insert(address, own + 1);
    }
    has_room
}

fn count_out(by_address: &mut HashMap<IpAddr, usize>, address: IpAddr) {
    if let Some(count) = by_address.get_mut(&address) {
        *count -= 1;
        if *count == 0 {
            by_address.remove(&address);
        }
    }
}

impl Counted {
    /// A load balancer says whose connection it is: it counts as that client's from now on, if the client may
    /// have one more.
    pub(crate) fn belongs_to(&mut self, client: IpAddr, own_max: Option<usize>) -> bool {
        let client = subscriber(client);
        let mut by_address = self.connections.by_address.lock();
        if !count_in(&mut by_address, client, own_max) {
            return false;
        }
        count_out(&mut by_address, self.address);
        self.address = client;
        true
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connections.all.fetch_sub(1, Ordering::Relaxed);
        count_out(&mut self.connections.by_address.lock(), self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_are_counted_by_subscriber_an_ipv6_address_by_its_64() {
        let connections = Arc::<Connections>::default();
        let enter = |from: &str| connections.enter(address(from), 8, Some(2));
        let held = [enter("2001:db8::1").unwrap(), enter("2001:db8::ffff:0:0:2").unwrap()];
        assert!(enter("2001:db8::3").is_none(), "two of its /64 are there");
        assert!(enter("2001:db8:0:1::1").is_some(), "another /64");
        let _v4 = [enter("192.0.2.1").unwrap(), enter("::ffff:192.0.2.1").unwrap()];
        assert!(enter("192.0.2.1").is_none() && enter("192.0.2.2").is_some());
        drop(held);
        assert!(enter("2001:db8::3").is_some());
    }

    #[test]
    fn a_connection_that_a_balancer_forwards_counts_as_the_clients() {
        let connections = Arc::<Connections>::default();
        let forward = |client: &str| {
            let mut counted = connections.enter(address("10.0.0.1"), 8, None).unwrap();
            counted.belongs_to(address(client), Some(2)).then_some(counted)
        };
        let held = [forward("192.0.2.7").unwrap(), forward("192.0.2.7").unwrap()];
        assert!(forward("192.0.2.7").is_none());
        assert!(forward("192.0.2.8").is_some(), "somebody else behind the same balancer");
        assert_eq!(connections.count(), 2, "those that left are counted out");
        drop(held);
        assert!(connections.by_address.lock().is_empty());
    }
}
