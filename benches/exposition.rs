//! What does a page of 10 MiB cost in CPU time, read with the built-in signals?
//!
//! The bar is 20 ms, on whatever the page is made of:
//! - `foreign`: families that no signal reads, the usual way for a page to grow;
//! - `recorded`: a page of Ray 2.60 during a burst of jobs, over and over, with as many lines
//!   of other families between as it had (97 of its 553 kB are of families that are read);
//! - `dense`: the same without the lines between, which no exporter writes;
//! - `jobs`: `ray_tasks` alone, one set of states per job, nearly half of them pending: the
//!   worst page that Ray itself writes, for every second line is of interest.
//!
//! CPU time of this thread as the kernel counts it (`/proc/thread-self/schedstat`), so that a
//! busy machine does not blur it. `cargo bench --bench exposition`; with `-- --check` a median
//! over the bar ends in failure.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for the terminal")]

use rayguard::core::policy::{Control, Policy};
use rayguard::core::signal::catalogue::{SIGNALS, SignalDefault};
use rayguard::core::signal::series::SignalReader;
use rayguard::core::time::{Time, WallMs};
use std::fmt::Write as _;
use std::time::Duration;

const PAGE_BYTES: usize = 10 << 20;
const BAR_MS: f64 = 20.0;
const ROUNDS: u32 = 21;
const RECORDED: &str = include_str!("../tests/fixtures/ray/scrapes/jobburst_8080.prom");

fn main() {
    let pages =
        [("foreign", foreign()), ("recorded", recorded(455_000)), ("dense", recorded(0)), ("jobs", jobs())];
    let mut worst_ms: f64 = 0.0;
    for (name, page) in pages {
        let mut reader = SignalReader::new(&policy());
        let mut costs_ms: Vec<f64> = (0..ROUNDS).map(|round| cost_ms(&mut reader, &page, round)).collect();
        costs_ms.sort_by(f64::total_cmp);
        let median_ms = costs_ms[costs_ms.len() / 2];
        let most_ms = costs_ms[costs_ms.len() - 1];
        let mib = page.len() as f64 / f64::from(1 << 20);
        println!(
            "{name:>9}: {mib:.1} MiB, CPU median {median_ms:.1} ms, most {most_ms:.1} ms (bar {BAR_MS} ms)"
        );
        worst_ms = worst_ms.max(median_ms);
    }
    if worst_ms > BAR_MS && std::env::args().any(|argument| argument == "--check") {
        std::process::exit(1);
    }
}

fn cost_ms(reader: &mut SignalReader, page: &str, round: u32) -> f64 {
    let now = Time::ZERO + Duration::from_secs(5) * round;
    let before = cpu_ns();
    let counts = reader.on_scrape("head:8080", page.as_bytes(), now, WallMs(0)).unwrap();
    let readings = reader.readings(now);
    let cost = cpu_ns() - before;
    assert_eq!((counts.lost, readings.len()), (0, SIGNALS.len()));
    Duration::from_nanos(cost).as_secs_f64() * 1000.0
}

fn cpu_ns() -> u64 {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    line.split(' ').next().unwrap().parse().unwrap()
}

fn policy() -> Policy {
    let second = Duration::from_secs(1);
    let control = Control {
        inner_period: second,
        outer_period: second,
        window: second,
        data_age: second,
        deadband: 0.1,
        slew: 1.5,
        cooldown: second,
    };
    let signals = SIGNALS.iter().map(SignalDefault::signal).collect();
    Policy { modules: Vec::new(), classes: Vec::new(), signals, control, history: true }
}

fn foreign() -> String {
    RECORDED.to_owned() + &foreign_lines(PAGE_BYTES - RECORDED.len())
}

/// So many bytes of a family that no signal reads.
fn foreign_lines(bytes: usize) -> String {
    let line = RECORDED.lines().find(|line| line.starts_with("ray_resources{")).unwrap();
    let mut lines = String::new();
    for series in 0.. {
        if lines.len() >= bytes {
            break;
        }
        writeln!(lines, "{}", line.replace("WorkerId=\"", &format!("WorkerId=\"{series}"))).unwrap();
    }
    lines
}

fn recorded(bytes_between: usize) -> String {
    let between = foreign_lines(bytes_between);
    let mut page = String::new();
    for process in 0.. {
        if page.len() >= PAGE_BYTES {
            break;
        }
        page.push_str(&RECORDED.replace("otel_scope_schema_url=\"\"", &format!("process=\"{process}\"")));
        page.push_str(&between);
    }
    page
}

fn jobs() -> String {
    let states = [
        "FINISHED",
        "PENDING_ARGS_AVAIL",
        "PENDING_NODE_ASSIGNMENT",
        "PENDING_NODE_ASSIGNMENT",
        "RUNNING",
        "SUBMITTED_TO_WORKER",
        "RUNNING_IN_RAY_GET",
    ];
    let line =
        RECORDED.lines().find(|line| line.starts_with("ray_tasks{") && line.contains("PENDING_ARGS_AVAIL"));
    let mut page = RECORDED.to_owned();
    for (job, state) in (0..).zip(states.iter().cycle()) {
        if page.len() >= PAGE_BYTES {
            break;
        }
        let line = line.unwrap().replace("PENDING_ARGS_AVAIL", state);
        writeln!(page, "{}", line.replace("Name=\"", &format!("Name=\"{job}"))).unwrap();
    }
    page
}
