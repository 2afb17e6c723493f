//! Does the plant swing where the theory says it must?
//!
//! `check` computes the gain at which a loop swings for ever from its timing alone
//! ([`stability`]), on a plant that is a formula. Here the same law, between the same guardrails, steps
//! on what comes out of simulated servers, one request at a time, through the event heap: the gain
//! is swept until the swing no longer dies away, and that gain must be the computed one within
//! 10 %.
//!
//! The readings are made as Ray's are: the mean over a window, some time old. Latency itself is
//! part of their age, because a request tells only when it ends under which limit it came.
//!
//! [`stability`]: rayguard_core::control::stability

use super::baselines::Limiter;
use super::scenario::Scenario;
use super::world::run_behind;
use rayguard_core::control::law::Observation;
use rayguard_core::control::regulator::Regulator;
use rayguard_core::control::stability::{Timing, critical_gain};
use rayguard_core::policy::{Bounds, Control, Law};
use rayguard_core::time::Time;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// Ten servers of 10 ms, never idle: latency is limit / 1000 s, so that 80 is right for 80 ms.
const PLANT: &str = r#"
    question = "does it swing?"
    seconds = 1
    plant = { kind = "servers", count = 10, mean_ms = 10, fixed = true }
    expect = { goodput = [0, 2] }
    [[client]]
    name = "all"
    kind = "open"
    regular = true
    route = "work"
    per_second = 1400
"#;
const TARGET_S: f64 = 0.08;
const REST: f64 = 80.0;
/// How far from its rest the limit begins.
const PUSH: f64 = 1.15;
const STEPS: u32 = 90;

/// A law that steps once a period on a late mean, as the outer loop does.
#[derive(Debug)]
struct Polled {
    regulator: Regulator,
    timing: Timing,
    limit: f64,
    next: Time,
    ended: VecDeque<(Time, f64)>,
    /// What the limit has been: second, value.
    past: Rc<RefCell<Vec<(f64, f64)>>>,
}

impl Polled {
    fn new(timing: Timing, gain: f64) -> Polled {
        // Guardrails far away: what is asked is the law's own stability.
        let control = Control { deadband: 0.0, slew: 1e6, cooldown: Duration::ZERO, ..Control::SHIPPED };
        let law = Law::Pid { kp: 0.0, ki: Some(gain), kd: 0.0 };
        let bounds = Bounds { initial: REST, min: 1.0, max: 1e5 };
        Polled {
            regulator: Regulator::new(&law, bounds, &control),
            timing,
            limit: PUSH * REST,
            next: Time::ZERO + timing.period,
            ended: VecDeque::new(),
            past: Rc::default(),
        }
    }

    fn poll(&mut self, now: Time) {
        while now >= self.next {
            let to = self.next - self.timing.data_age;
            let from = to - self.timing.window;
            while self.ended.front().is_some_and(|(at, _)| *at <= from) {
                self.ended.pop_front();
            }
            let within = self.ended.iter().take_while(|(at, _)| *at <= to).map(|(_, latency)| *latency);
            let (count, sum) = within.fold((0.0, 0.0), |(count, sum), latency| (count + 1.0, sum + latency));
            let observation = Observation {
                now: self.next,
                period: self.timing.period,
                dead_time: self.timing.dead_time(),
                pressure: (count > 0.0).then(|| sum / count / TARGET_S),
                binding: true,
                demand: 1e6,
                latency: None,
                slo_pressure: None,
                spread: None,
                sample: None,
                ended: None,
                not_below: None,
                used: None,
                backlog: None,
                noise: 0.0,
            };
            // The first reading is of a time when the plant was still filling up.
            if self.next.since(Time::ZERO) > self.timing.window + self.timing.data_age + self.timing.period {
                self.limit = self.regulator.step(self.limit, &observation).new;
                self.past.borrow_mut().push((now.as_secs_f64(), self.limit));
            }
            self.next = self.next + self.timing.period;
        }
    }
}

impl Limiter for Polled {
    fn admit(&mut self, now: Time, in_flight: u32) -> bool {
        self.poll(now);
        f64::from(in_flight) + 1.0 <= self.limit
    }
    fn finish(&mut self, now: Time, latency: Duration, _: u32, _: bool) {
        self.poll(now);
        self.ended.push_back((now, latency.as_secs_f64()));
    }
    fn limit(&self) -> f64 {
        self.limit
    }
}

/// Whether the swing of the limit is larger late than early.
fn grows(timing: Timing, gain: f64) -> bool {
    let mut scenario = Scenario::read(PLANT).unwrap();
    let period_s = timing.period.as_secs_f64();
    scenario.seconds = period_s * f64::from(STEPS);
    let polled = Polled::new(timing, gain);
    let past = Rc::clone(&polled.past);
    run_behind(&scenario, Box::new(polled), 1).unwrap();
    let swing = |from: f64, to: f64| {
        let within = |at: f64| (from..to).contains(&(at / scenario.seconds));
        let past = past.borrow();
        let part = past.iter().filter(|(at, _)| within(*at));
        part.map(|(_, limit)| (limit / REST).ln().abs()).fold(0.0, f64::max)
    };
    let (early, late) = (swing(0.3, 0.5), swing(0.8, 1.0));
    // So wide a swing is no longer one about the target: it has grown as far as it can.
    late > early || late > 0.6
}

#[test]
fn the_critical_gain_found_by_sweep_is_the_computed_one_within_a_tenth() {
    let second = Duration::from_secs_f64;
    let mut wrong = Vec::new();
    for (period, window, age) in
        [(0.4, 0.8, 0.2), (0.4, 1.2, 0.0), (0.4, 1.2, 0.4), (0.4, 1.2, 0.8), (0.2, 0.6, 0.3)]
    {
        let read = Timing {
            period: second(period),
            window: second(window),
            data_age: second(age),
            refresh: Duration::ZERO,
        };
        let theory = critical_gain(&Timing { data_age: second(age + TARGET_S), ..read });
        let (mut dies, mut swings) = (0.6 * theory, 1.4 * theory);
        while swings - dies > 0.05 * theory {
            let gain = f64::midpoint(dies, swings);
            *(if grows(read, gain) { &mut swings } else { &mut dies }) = gain;
        }
        let found = f64::midpoint(dies, swings);
        if (found / theory - 1.0).abs() >= 0.1 {
            wrong.push(format!("{period}/{window}/{age} s: {found:.3} is found, {theory:.3} computed"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
