//! What the outer loop does on evidence, and what it leaves alone without it: the production controller,
//! fed with readings and with what the proxy would count.

use crate::admission::meter::{Counts, Reason};
use crate::control::law::Observation;
use crate::controller::{ClassReading, Controller};
use crate::event::{Adjustment, Derivation, Event};
use crate::policy::{Bounds, Class, Law, OnStale, Policy, RateBounds, Signal, SignalId, SignalSource, plain};
use crate::signal::reading::{Missing, Reading};
use crate::time::{Time, WallMs};
use std::sync::Arc;
use std::time::Duration;

const RATE: Bounds = Bounds { initial: 4.0, min: 0.2, max: 64.0 };

fn signal(name: &str) -> Signal {
    Signal {
        name: name.into(),
        target: 1.0,
        unit: "".into(),
        stale_after: Duration::from_secs(20),
        on_stale: OnStale::Hold,
        backlog: false,
        forecast: Duration::ZERO,
        sources: vec![SignalSource::Probe],
    }
}

fn policy() -> Policy {
    let class = Class {
        rate: Some(RateBounds { per_second: RATE, burst: 1 }),
        law: Law::Pid { kp: 0.0, ki: None, kd: 0.0 },
        signals: vec![SignalId(0), SignalId(1)],
        ..plain::class("submit", 8.0)
    };
    Policy { signals: vec![signal("cpu"), signal("probe")], ..plain::policy(vec![class], 100.0) }
}

/// What a run came to: the rate at each second, and what moved it.
struct Run {
    rates: Vec<f64>,
    moves: Vec<Adjustment>,
}

/// `readings(second, rate)`: pressure of each signal, `None` where it cannot be had or has no news.
fn run(offered_per_s: f64, seconds: u32, readings: impl Fn(u32, f64) -> [Option<f64>; 2]) -> Run {
    let mut controller = Controller::new(Arc::new(policy()), &[], &[], Time::ZERO);
    let (mut offered, mut admitted, mut fresh) = (0.0_f64, 0.0_f64, [0_u64; 2]);
    let mut came = Run { rates: Vec::new(), moves: Vec::new() };
    for second in 0..seconds {
        let now = Time::ZERO + Duration::from_secs(1) * second;
        let rate = controller.table().classes[0].rate.unwrap();
        offered += offered_per_s;
        admitted += offered_per_s.min(rate);
        for (at, reading) in readings(second, rate).into_iter().enumerate() {
            let id = SignalId(u8::try_from(at).unwrap());
            let answer = match reading {
                Some(value) => {
                    fresh[at] += 1;
                    let source = "test".into();
                    Ok(Reading { signal: id, value, at: now, fresh: fresh[at], resolution: 1.0, source })
                }
                None => Err(Missing::Unreachable { target: "test".into(), problem: "lost".into() }),
            };
            controller.on_readings(&[(id, answer)], now);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small counts")]
        let mut counts = Counts { offered: offered as u64, admitted: admitted as u64, ..Counts::default() };
        counts.shed[Reason::ClassRate as usize] = counts.offered - counts.admitted;
        let proxy = vec![ClassReading { counts, ..ClassReading::default() }];
        let effects = controller.on_tick(proxy, now, WallMs(0));
        came.moves.extend(effects.events.into_iter().filter_map(|event| match event {
            Event::Adjustment(adjustment) => Some(*adjustment),
            _ => None,
        }));
        came.rates.push(controller.table().classes[0].rate.unwrap());
    }
    came
}

#[test]
fn a_head_that_is_busy_with_its_own_work_costs_its_clients_next_to_nothing() {
    // Twice its target, whatever is let in; the probe is calm.
    let came = run(10.0, 7200, |_, _| [Some(2.0), Some(0.5)]);
    let restored = came.moves.iter().find(|of| matches!(of.derivation, Derivation::Restored { .. }));
    let reason = &restored.unwrap().reason;
    assert!(reason.contains("lowering submit did not lower cpu") && reason.contains("restored"), "{reason}");
    let late = &came.rates[600..];
    let mean = late.iter().sum::<f64>() / late.len() as f64;
    assert!(mean >= RATE.initial, "{mean}");
    for adjustment in &came.moves {
        let derived = adjustment.derive().unwrap();
        assert_eq!(derived.step.new.to_bits(), adjustment.new.to_bits(), "{}", adjustment.reason);
    }
}

#[test]
fn a_reading_that_follows_the_limit_brings_it_to_its_target() {
    // Two requests a second are what the head bears.
    let came = run(10.0, 3600, |_, rate| [Some(rate / 2.0), Some(0.5)]);
    let late = &came.rates[1800..];
    assert!(late.iter().all(|rate| (1.5..2.5).contains(rate)), "{:?}", late.iter().copied().reduce(f64::max));
}

#[test]
fn a_cut_begins_at_what_is_used_and_one_that_changes_nothing_is_given_back() {
    let came = run(1.0, 7200, |_, _| [Some(5.0), Some(0.5)]);
    let first = came.moves.iter().find(|of| of.new < of.old).unwrap();
    assert!((0.5..1.0).contains(&first.new), "it bites: {}", first.reason);
    // Each trial lasts a dead time and a window, and the next waits twice as long.
    let refusing = came.rates.iter().filter(|rate| **rate < 1.0).count();
    assert!(refusing < came.rates.len() / 20, "{refusing} s of {}", came.rates.len());
}

#[test]
fn one_lost_signal_opens_nothing_however_calm_the_other() {
    let came = run(30.0, 1200, |second, rate| [(second < 600).then_some(rate / 2.0), Some(0.1)]);
    let before = came.rates[599];
    assert!(came.rates[600..].iter().all(|rate| *rate <= before * 1.001), "{before} -> {}", came.rates[1199]);
}

#[test]
fn before_the_first_reading_nothing_grows() {
    let came = run(30.0, 600, |_, _| [None, Some(0.1)]);
    assert!(came.rates.iter().all(|rate| *rate <= RATE.initial), "{:?}", came.rates.last());
}

#[test]
fn a_step_is_taken_on_news_of_the_signal_that_decides() {
    // It is read each 15 s, the other each second.
    let came = run(10.0, 600, |second, rate| [(second % 15 == 0).then_some(rate), Some(0.1)]);
    let times: Vec<Time> = came
        .moves
        .iter()
        .filter_map(|of| match &of.derivation {
            Derivation::Law { observation: Observation { now, .. }, .. } => Some(*now),
            _ => None,
        })
        .collect();
    assert!(times.len() > 5, "it steps");
    assert!(times.is_sorted_by(|a, b| b.since(*a) >= Duration::from_secs(15)), "{times:?}");
}
