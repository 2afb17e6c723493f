//! The interleavings of what two or three threads do to the elastic clock and the in-flight counter.
//!
//! The two files are compiled here once more, on loom's atomics instead of the standard library's; loom then
//! runs each model under every order of its loads and stores that the memory model allows, with up to three
//! switches of thread where it would not have to.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "parts of the library, and tests"
)]

/// What the files find above them in the library.
mod time {
    pub(crate) use rayguard::core::time::Time;
}

#[path = "../src/core/limit/clock.rs"]
mod clock;
#[path = "../src/core/limit/in_flight.rs"]
mod in_flight;

/// What takes the place of `core::limit::sync`.
mod sync {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};

    /// The standard library's `try_update` is loom's `fetch_update`.
    #[derive(Debug, Default)]
    pub(crate) struct AtomicU32(loom::sync::atomic::AtomicU32);

    impl AtomicU32 {
        pub(crate) fn try_update(
            &self,
            set: Ordering,
            fetch: Ordering,
            next: impl FnMut(u32) -> Option<u32>,
        ) -> Result<u32, u32> {
            self.0.fetch_update(set, fetch, next)
        }

        pub(crate) fn fetch_add(&self, more: u32, order: Ordering) -> u32 {
            self.0.fetch_add(more, order)
        }

        pub(crate) fn load(&self, order: Ordering) -> u32 {
            self.0.load(order)
        }
    }
}

use crate::time::Time;
use clock::ElasticClock;
use in_flight::InFlight;
use loom::sync::Arc;
use loom::thread;

const CELL: u64 = 1_000_000;

fn at(seconds: f64) -> Time {
    Time::from_secs_f64(seconds)
}

/// Runs these side by side, to the end.
fn together<T: Send + Sync + 'static>(of: &Arc<T>, parts: Vec<fn(&T)>) {
    let threads: Vec<_> = parts
        .into_iter()
        .map(|part| {
            let of = Arc::clone(of);
            thread::spawn(move || part(&of))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

fn never_above_the_limit() {
    let slots = Arc::new((InFlight::default(), loom::sync::atomic::AtomicU32::new(0)));
    let one = |(slots, inside): &(InFlight, loom::sync::atomic::AtomicU32)| {
        if slots.try_enter(1) {
            assert_eq!(inside.fetch_add(1, sync::Ordering::AcqRel), 0, "two were in at a limit of one");
            inside.fetch_sub(1, sync::Ordering::AcqRel);
            slots.leave();
        }
    };
    together(&slots, vec![one, one]);
    assert_eq!(slots.0.count(), 0, "each slot is given back once");
    assert!(slots.0.try_enter(1), "and can be had again");
}

fn a_lowered_limit_only_drains() {
    let slots = Arc::new(InFlight::default());
    assert!(slots.try_enter(2) && slots.try_enter(2));
    let leaves = |slots: &InFlight| slots.leave();
    let enters = |slots: &InFlight| {
        if slots.try_enter(1) {
            assert!(slots.count() >= 1);
            slots.leave();
        }
    };
    together(&slots, vec![leaves, enters, leaves]);
    assert_eq!(slots.count(), 0);
}

fn whoever_enters_unasked_is_counted() {
    let slots = Arc::new(InFlight::default());
    let exempt = |slots: &InFlight| slots.enter();
    let limited = |slots: &InFlight| {
        let _ = slots.try_enter(1);
    };
    together(&slots, vec![exempt, limited]);
    assert!((1..=2).contains(&slots.count()), "{}", slots.count());
}

/// Either line, never parts of both: 10/s for 2 s, or 10/s for 1 s and 100/s for another.
fn a_reader_sees_one_line() {
    let clock = Arc::new(ElasticClock::new(10.0, Time::ZERO));
    let bends = |clock: &ElasticClock| clock.set_rate(100.0, at(1.0));
    let reads = |clock: &ElasticClock| {
        let seen = clock.advance(at(2.0)).0;
        assert!([20 * CELL, 110 * CELL].contains(&seen), "{seen}");
    };
    together(&clock, vec![bends, reads]);
    assert_eq!(clock.advance(at(2.0)).0, 110 * CELL);
}

/// Two that bend it at one moment take turns: the slope is one of theirs, and nothing is lost.
fn two_writers_take_turns() {
    let clock = Arc::new(ElasticClock::new(10.0, Time::ZERO));
    let first = |clock: &ElasticClock| clock.set_rate(100.0, at(1.0));
    let second = |clock: &ElasticClock| clock.set_rate(1000.0, at(1.0));
    together(&clock, vec![first, second]);
    let slope = clock.rate();
    assert!([100.0, 1000.0].iter().any(|rate| (rate - slope).abs() < 1e-9), "{slope}");
    assert_eq!(clock.advance(at(1.0)).0, 10 * CELL, "a bend is no jump");
}

fn main() {
    let models: [(&str, fn()); 5] = [
        ("never above the limit", never_above_the_limit),
        ("a lowered limit only drains", a_lowered_limit_only_drains),
        ("whoever enters unasked is counted", whoever_enters_unasked_is_counted),
        ("a reader sees one line", a_reader_sees_one_line),
        ("two writers take turns", two_writers_take_turns),
    ];
    for (name, model) in models {
        let count = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counted = std::sync::Arc::clone(&count);
        let mut every = loom::model::Builder::new();
        every.preemption_bound = Some(3); // more switches than bugs are known to need
        every.check(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            model();
        });
        println!("{name}: {} interleavings", count.load(std::sync::atomic::Ordering::Relaxed));
    }
}
