//! The event heap: what happens next, and in which order when two things happen at once.
//!
//! A binary heap orders equal keys arbitrarily; a simulation that is to be repeated byte for
//! byte may not. Every entry carries the number of its insertion, so equal keys leave in the
//! order they came.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A priority queue by least key, first in first out among equal keys.
#[derive(Clone, Debug)]
pub struct EventHeap<T> {
    entries: BinaryHeap<Reverse<Entry<T>>>,
    inserted: u64,
}

/// A place among equal keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place(u64);

#[derive(Clone, Debug)]
struct Entry<T> {
    key: u64,
    order: u64,
    event: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && self.order == other.order
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.key, self.order).cmp(&(other.key, other.order))
    }
}

impl<T> Default for EventHeap<T> {
    fn default() -> Self {
        EventHeap { entries: BinaryHeap::new(), inserted: 0 }
    }
}

impl<T> EventHeap<T> {
    /// Adds an event.
    pub fn push(&mut self, key: u64, event: T) {
        let place = self.reserve();
        self.push_at(key, place, event);
    }

    /// The place among equal keys of what would be added now, for `EventHeap::push_at`.
    pub fn reserve(&mut self) -> Place {
        self.inserted += 1;
        Place(self.inserted)
    }

    /// Adds an event as if it had been added when its place was reserved. A caller that keeps
    /// events in order already need only keep the first of them here.
    pub(crate) fn push_at(&mut self, key: u64, place: Place, event: T) {
        self.entries.push(Reverse(Entry { key, order: place.0, event }));
    }

    /// The least key, if anything is left.
    #[must_use]
    pub fn next_key(&self) -> Option<u64> {
        self.entries.peek().map(|entry| entry.0.key)
    }

    /// Takes the event with the least key, the earliest inserted among equals.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        self.entries.pop().map(|entry| (entry.0.key, entry.0.event))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// How many events wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no event waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_leave_in_the_order_they_came() {
        let mut heap = EventHeap::default();
        for (key, event) in [(5, 'a'), (3, 'b'), (5, 'c'), (3, 'd'), (1, 'e')] {
            heap.push(key, event);
        }
        let order: String = std::iter::from_fn(|| heap.pop().map(|(_, event)| event)).collect();
        assert_eq!(order, "ebdac");
    }

    #[test]
    fn a_reserved_place_is_kept_though_it_is_taken_late() {
        let mut heap = EventHeap::default();
        heap.push(5, 'a');
        let place = heap.reserve();
        heap.push(5, 'c');
        heap.push_at(5, place, 'b');
        let order: String = std::iter::from_fn(|| heap.pop().map(|(_, event)| event)).collect();
        assert_eq!(order, "abc");
    }
}
