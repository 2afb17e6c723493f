//! Places that are held for exchanges which take place elsewhere.
//!
//! An exchange at an Envoy is under way for a while, and its place must be given back when it
//! ends. An Envoy that reports the end names the exchange when it begins; that place is held until the name
//! comes again. A place without a name is held for as long as such an exchange is known to last.
//! Both have a latest end, so that a report that was lost on the way costs a place for a while
//! and not for ever.
//!
//! What was asked for is never forgotten early but for one reason: there are [`PLACES_MAX`], and
//! when all are taken the one that would end first ends now.

use rayguard_core::time::Time;
use std::collections::{BTreeMap, HashMap};

/// Places held at once.
pub(crate) const PLACES_MAX: usize = 65_536;

/// A longer name is none.
const NAME_BYTES_MAX: usize = 128;

/// Places and what is held in them.
#[derive(Debug)]
pub(super) struct LeaseTable<T> {
    by_end: BTreeMap<Key, Held<T>>,
    by_name: HashMap<Box<[u8]>, Key>,
    next: u64,
}

/// The latest end of a place, and which of those that end then.
type Key = (Time, u64);

#[derive(Debug)]
struct Held<T> {
    held: T,
    name: Option<Box<[u8]>>,
}

/// How long a place is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Until {
    /// If no report of its end is expected.
    pub expected: Time,
    /// If a report is expected and does not come.
    pub latest: Time,
}

impl<T> Default for LeaseTable<T> {
    fn default() -> LeaseTable<T> {
        LeaseTable { by_end: BTreeMap::new(), by_name: HashMap::new(), next: 0 }
    }
}

impl<T> LeaseTable<T> {
    /// Holds a place. A name that is in use (two proxies in a row, or a client that makes up its
    /// own) is no name: or its bearer could end another's exchange. Returns what gave way.
    pub(super) fn hold(&mut self, held: T, name: Option<&[u8]>, until: Until) -> Option<T> {
        let name = name.filter(|name| (1..=NAME_BYTES_MAX).contains(&name.len()));
        let name = name.filter(|name| !self.by_name.contains_key(*name)).map(Box::<[u8]>::from);
        let gave_way = if self.by_end.len() >= PLACES_MAX { self.take_first() } else { None };
        let end = if name.is_some() { until.latest } else { until.expected };
        let key = (end, self.next);
        self.next += 1;
        if let Some(name) = &name {
            self.by_name.insert(name.clone(), key);
        }
        self.by_end.insert(key, Held { held, name });
        gave_way
    }

    /// The exchange of that name has ended.
    pub(super) fn release(&mut self, name: &[u8]) -> Option<T> {
        let key = self.by_name.remove(name)?;
        self.by_end.remove(&key).map(|held| held.held)
    }

    /// Everything whose time has come.
    pub(super) fn expire(&mut self, now: Time) -> Vec<T> {
        let mut ended = Vec::new();
        while self.by_end.first_key_value().is_some_and(|((end, _), _)| *end <= now) {
            ended.extend(self.take_first());
        }
        ended
    }

    /// How many are held.
    pub(super) fn count(&self) -> usize {
        self.by_end.len()
    }

    fn take_first(&mut self) -> Option<T> {
        let (_, Held { held, name }) = self.by_end.pop_first()?;
        if let Some(name) = name {
            self.by_name.remove(&name);
        }
        Some(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn until(expected: u64, latest: u64) -> Until {
        Until { expected: Time(expected), latest: Time(latest) }
    }

    #[test]
    fn a_named_place_is_held_until_its_end_is_told_and_another_for_as_long_as_expected() {
        let mut places = LeaseTable::default();
        places.hold("told", Some(b"a"), until(10, 100));
        places.hold("timed", None, until(10, 100));
        assert_eq!(places.expire(Time(50)), ["timed"]);
        assert_eq!(places.release(b"a"), Some("told"));
        assert_eq!((places.release(b"a"), places.count()), (None, 0), "once");
    }

    #[test]
    fn a_report_that_never_comes_costs_a_place_for_a_while() {
        let mut places = LeaseTable::default();
        places.hold("lost", Some(b"a"), until(10, 100));
        assert_eq!((places.expire(Time(99)), places.expire(Time(100))), (vec![], vec!["lost"]));
        places.hold("again", Some(b"a"), until(110, 200));
        assert_eq!(places.release(b"a"), Some("again"), "its name is free again");
    }

    #[test]
    fn an_exchange_is_not_ended_by_another_that_takes_its_name() {
        let mut places = LeaseTable::default();
        places.hold("first", Some(b"a"), until(10, 100));
        places.hold("second", Some(b"a"), until(10, 100));
        assert_eq!(places.expire(Time(10)), ["second"], "held as if it had no name");
        assert_eq!(places.release(b"a"), Some("first"));
    }

    #[test]
    fn when_all_are_taken_the_first_to_end_gives_way() {
        let mut places = LeaseTable::default();
        for n in 0..PLACES_MAX as u64 {
            assert_eq!(places.hold(n, None, until(1000 + n, 0)), None);
        }
        assert_eq!(places.hold(7, Some(&[0; NAME_BYTES_MAX + 1]), until(5000, 0)), Some(0));
        assert_eq!(places.count(), PLACES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_held_comes_out_once(steps in prop::collection::vec((0u8..3, 0u8..6, 1u64..40), 1..200)) {
            let (mut places, mut now, mut held, mut out) = (LeaseTable::default(), 0, 0, 0);
            for (what, name, time) in steps {
                match what {
                    0 => {
                        held += 1;
                        let named = (name > 0).then_some([name]);
                        let name = named.as_ref().map(|name| &name[..]);
                        prop_assert!(places.hold((), name, until(now + time, now + 2 * time)).is_none());
                    }
                    1 => out += usize::from(places.release(&[name]).is_some()),
                    _ => {
                        now += time;
                        out += places.expire(Time(now)).len();
                    }
                }
                prop_assert_eq!(places.count() + out, held);
                prop_assert!(places.by_name.len() <= places.by_end.len());
            }
        }
    }
}
