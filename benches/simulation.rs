//! How many simulated requests does one core do in a second, and what does a day cost?
//!
//! The bars: a million requests a second of one core, a day at a hundred requests a second in
//! 15 s, and memory that does not grow with the length of a run but for the one sample a second
//! that its plots are made of.
//! - `door alone`: eight servers at 0.9 of what they can do, under a limit that never binds: what an
//!   event costs;
//! - `overload`: the same at three times what they can do, the production gate and loop in front;
//! - `ray-head`: an hour of a Ray head at a hundred requests a second, door, loop, metrics
//!   pages and parser included; times 24 it is the day.
//!
//! CPU time of this thread as the kernel counts it (`/proc/thread-self/schedstat`), so that a busy
//! machine does not blur it. `cargo bench --bench simulation`; with `-- --check` a figure beyond
//! its bar ends in failure.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for the terminal")]

use rayguard::sim::scenario::{Guard, Scenario};
use rayguard::sim::world::{self, Traces};
use std::time::Duration;

const PER_SECOND_MIN: f64 = 1e6;
const DAY_S_MAX: f64 = 15.0;
const ROUNDS: u64 = 5;

const SERVERS: &str = r#"
    question = "?"
    seconds = 600
    plant = { kind = "servers", count = 8, mean_ms = 1 }
    class = { in_flight = [16, 2, 256], queue_len = 64, slo_ms = 20 }
    expect = { goodput = [0, 2] }
    [[client]]
    name = "all"
    kind = "open"
    route = "work"
    per_second = PER_SECOND
    timeout_s = 1
    addresses = 16
"#;

const RAY_HEAD: &str = include_str!("../simulations/ray-whole-day.toml");

fn main() {
    let mut good = true;
    for (name, per_second, guard) in
        [("door alone", "7200", Guard::Fixed(100_000)), ("overload", "24000", Guard::Rayguard)]
    {
        let scenario = Scenario::read(&SERVERS.replace("PER_SECOND", per_second)).unwrap();
        let (requests, cpu_s) = cost(&scenario, guard);
        let rate = requests / cpu_s;
        println!("{name:>12}: {:.2} million requests a second of one core (bar 1)", rate / 1e6);
        good &= rate >= PER_SECOND_MIN;
    }
    let mut hour = Scenario::read(RAY_HEAD).unwrap();
    hour.seconds = 3600.0;
    hour.measure = None;
    hour.client.iter_mut().for_each(|client| client.day_s = Some(3600.0));
    let (requests, cpu_s) = cost(&hour, Guard::Rayguard);
    let day_s = 24.0 * cpu_s;
    println!(
        "{:>12}: {:.2} million requests a second of one core; a day at {:.0}/s in {day_s:.1} s (bar {DAY_S_MAX})",
        "ray-head",
        requests / cpu_s / 1e6,
        requests / 3600.0
    );
    good &= day_s <= DAY_S_MAX;
    if !good && std::env::args().any(|argument| argument == "--check") {
        std::process::exit(1);
    }
}

/// Requests of one run, and the median CPU time of some.
fn cost(scenario: &Scenario, guard: Guard) -> (f64, f64) {
    let mut requests = 0;
    let mut costs: Vec<f64> = (0..ROUNDS)
        .map(|seed| {
            let before = cpu_ns();
            requests = world::run(scenario, guard, seed, &Traces::new()).unwrap().requests;
            Duration::from_nanos(cpu_ns() - before).as_secs_f64()
        })
        .collect();
    costs.sort_by(f64::total_cmp);
    (requests as f64, costs[costs.len() / 2])
}

fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
