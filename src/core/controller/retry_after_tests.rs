//! When is a refused client to come back? The table of Kubernetes' dropped-requests tracker, beside
//! ours (`kubernetes/apiserver` at 24a394e, `pkg/util/flowcontrol/dropped_requests_tracker_test.go`).
//!
//! Theirs is one number for everybody, moved as TCP moves its window: doubled when three times as many
//! were dropped lately as it says seconds, and lowered by one when fewer. Ours is a range: refusals
//! are spread over the seconds it takes to serve as many as were refused lately, so that those who
//! obey come back as fast as they can be served and not all at once. It needs to know what is served
//! (here one a second) and no doubling to find out, so it is there within the second; theirs keeps
//! rising (8) after the drops have ceased, and needs seconds of silence for each step down. Both are
//! bounded: 32 s theirs, 60 s ours.

use super::{ClassReading, Controller};
use crate::admission::meter::{Meter, Outcome, Reason};
use crate::admission::table::Mode;
use crate::policy::{ClassId, Policy, plain};
use crate::time::{Time, WallMs};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A class that serves one request a second.
struct Level {
    controller: Controller,
    meter: Meter,
    second: u64,
    spread_s: u32,
}

impl Level {
    fn policy() -> Arc<Policy> {
        Arc::new(plain::policy(vec![plain::class("pl", 4.0)], 4.0))
    }

    fn new() -> Level {
        let controller = Controller::new(Level::policy(), &[Mode::Enforce], &[], Time::ZERO);
        let mut level = Level { controller, meter: Meter::default(), second: 0, spread_s: 1 };
        (0..120).for_each(|_| level.pass(0));
        level
    }

    /// A second in which so many are refused; what clients are told at its end.
    fn pass(&mut self, drops: u64) {
        self.second += 1;
        self.meter.offer();
        self.meter.admit(1);
        self.meter.finish(Outcome::Served, Duration::from_millis(100), Duration::from_millis(100));
        for _ in 0..drops {
            self.meter.offer();
            self.meter.shed(Reason::ClientShare);
        }
        let reading = ClassReading { counts: self.meter.read(), ..ClassReading::default() };
        let now = Time::from_secs_f64(self.second as f64);
        for (class, seconds) in self.controller.on_tick(vec![reading], now, WallMs(0)).spreads {
            assert_eq!(class, ClassId(0));
            self.spread_s = seconds;
        }
    }
}

#[test]
fn refusals_are_spread_over_what_it_takes_to_serve_them() {
    // second, dropped in it: their Retry-After, the upper end of ours.
    let table = [
        (0, 5, 1, 5),
        (1, 11, 2, 15),
        (2, 1, 2, 15),
        (3, 11, 4, 24),
        (4, 1, 4, 23),
        (7, 1, 8, 18),
        (11, 1, 8, 13),
        (15, 1, 7, 10),
        (17, 1, 6, 9),
        (21, 14, 5, 20),
        (22, 1, 10, 19),
    ];
    let (mut level, mut next) = (Level::new(), 0);
    let mut seen = Vec::new();
    for (second, drops, theirs, ours) in table {
        (next..second).for_each(|_| level.pass(0));
        level.pass(drops);
        next = second + 1;
        seen.push((second, drops, theirs, level.spread_s));
        assert!(theirs <= 32 && ours <= 60);
    }
    assert_eq!(seen, table);
}

/// TestDroppedRequestsTrackerPLIndependent, and the bound.
#[test]
fn one_refusal_a_second_where_one_is_served_keeps_no_client_away_for_long() {
    let mut level = Level::new();
    assert_eq!(level.spread_s, 1, "no request was refused");
    (0..60).for_each(|_| level.pass(1));
    assert_eq!(level.spread_s, 10, "as many refused as served: ten seconds' worth");
    (0..60).for_each(|_| level.pass(1000));
    assert_eq!(level.spread_s, 60);
    (0..150).for_each(|_| level.pass(0));
    assert_eq!(level.spread_s, 1);
}

#[test]
fn a_spread_narrows_again_whenever_a_reload_comes() {
    // The admission controller goes on with the spread that it was told of last.
    for before in 0..150 {
        let mut level = Level::new();
        (0..60).for_each(|_| level.pass(1000));
        (0..before).for_each(|_| level.pass(0));
        let now = Time::from_secs_f64(level.second as f64);
        level.controller =
            level.controller.reconfigure(Level::policy(), &[Mode::Enforce], &BTreeMap::new(), now);
        (before..150).for_each(|_| level.pass(0));
        assert_eq!(level.spread_s, 1, "a reload after {before} s");
    }
}
