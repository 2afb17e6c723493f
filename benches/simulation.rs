//! How many simulated requests does one core do in a second, and what does a day cost?
//!
//! The bars: a million requests a second of one core, a day at a hundred requests a second in
//! 15 s, and memory that does not grow with the length of a run.
//! - `proxy alone`: eight servers at 0.9 of what they can do, under a limit that never binds: what an
//!   event costs;
//! - `overload`: the same at three times what they can do, the production admission controller and loop in front;
//! - `hour` and `day`: the scenario `ray-whole-day`, and the same in an hour: a Ray head at a hundred
//!   requests a second, proxy, loop, metrics pages and parser included. Here most of the cost is that of
//!   looking (four ticks a second, a scrape of two pages every five), not that of requests.
//!
//! CPU time of this thread as the kernel counts it (`/proc/thread-self/schedstat`), so that a busy
//! machine blurs it little; the most memory that was ever resident (`VmHWM`) after the hour and after
//! the day. `cargo bench --bench simulation`; with `-- --check` a figure beyond its bar ends in
//! failure.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for the terminal")]

use rayguard::sim::scenario::{Guard, Scenario};
use rayguard::sim::world::{self, Traces};
use std::time::Duration;

const PER_SECOND_MIN: f64 = 1e6;
const DAY_S_MAX: f64 = 15.0;
/// A day may take so many times the memory of an hour.
const MEMORY_RATIO_MAX: f64 = 1.1;
const ROUNDS: u64 = 5;

const SERVERS: &str = r#"
    question = "?"
    seconds = 120
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
    let mut hour = Scenario::read(RAY_HEAD).unwrap();
    hour.seconds = 3600.0;
    hour.measure = None;
    hour.client.iter_mut().for_each(|client| client.day_s = Some(3600.0));
    // Memory first: what is resident most only ever rises.
    let (mut peaks, mut day_s) = (Vec::new(), 0.0);
    for (name, scenario) in [("hour", &hour), ("day", &Scenario::read(RAY_HEAD).unwrap())] {
        let (requests, cpu_s) = cost(scenario, Guard::Rayguard, 0);
        peaks.push(peak_kib());
        day_s = cpu_s;
        println!(
            "{name:>12}: {:.1} requests a second, {cpu_s:.2} s of CPU, {:.2} million requests a second of one core, \
             {} KiB resident at most",
            requests / scenario.seconds,
            requests / cpu_s / 1e6,
            peak_kib()
        );
    }
    good &= day_s <= DAY_S_MAX && peaks[1] <= MEMORY_RATIO_MAX * peaks[0];
    println!(
        "{:>12}: {:.2} times the memory of an hour (bar {MEMORY_RATIO_MAX}), bar for its CPU {DAY_S_MAX} s",
        "a day",
        peaks[1] / peaks[0]
    );
    for (name, per_second, guard) in
        [("proxy alone", "7200", Guard::Fixed(100_000)), ("overload", "24000", Guard::Rayguard)]
    {
        let scenario = Scenario::read(&SERVERS.replace("PER_SECOND", per_second)).unwrap();
        let mut rates: Vec<f64> = (0..ROUNDS)
            .map(|seed| {
                let (requests, cpu_s) = cost(&scenario, guard, seed);
                requests / cpu_s
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        println!("{name:>12}: {:.2} million requests a second of one core (bar 1)", median / 1e6);
        good &= median >= PER_SECOND_MIN;
    }
    if !good && std::env::args().any(|argument| argument == "--check") {
        std::process::exit(1);
    }
}

/// Requests of one run, and its CPU time.
fn cost(scenario: &Scenario, guard: Guard, seed: u64) -> (f64, f64) {
    let before = cpu_ns();
    let requests = world::run(scenario, guard, seed, &Traces::new()).unwrap().requests;
    (requests as f64, Duration::from_nanos(cpu_ns() - before).as_secs_f64())
}

fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// The most memory this process has ever had resident.
fn peak_kib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
