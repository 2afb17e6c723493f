//! From scenarios to an answer: run, control run, checks, and the tables that show them.
//!
//! A scenario passes when every expectation is met *and* the control run breaks at least one
//! of them.

use super::hindsight::pinned;
use super::monte_carlo::{PassRate, Trial, trial};
use rayguard_sim::scenario::{Guard, Scenario, ScenarioError};
use rayguard_sim::verdict::{Check, Verdicts, check, verdicts, within};
use rayguard_sim::world::{Conditions, Onlooker, Run, Traces, run, run_under};
use serde::Serialize;
use std::fmt::Write as _;

/// A scenario's answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The file's name.
    pub name: String,
    /// The scenario.
    pub scenario: Scenario,
    /// The seed.
    pub seed: u64,
    /// The run itself.
    pub run: Run,
    /// Everything it was judged by.
    pub verdicts: Verdicts,
    /// Expectations and what came of them.
    pub checks: Vec<Check>,
    /// Goals, reached or not.
    pub goals: Vec<Check>,
    /// The same as `checks` for the control run; empty where there was none (a single draw).
    pub control: Vec<Check>,
    /// What guarded the control run.
    pub control_label: String,
}

impl Answer {
    /// Whether every expectation is met and the control run breaks one.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.met) && self.control_fails()
    }

    /// Whether the control run breaks an expectation.
    #[must_use]
    pub fn control_fails(&self) -> bool {
        self.control.is_empty() || self.control.iter().any(|check| !check.met)
    }
}

/// One draw of a scenario as an answer, so that it can be shown like one.
///
/// # Errors
/// The scenario cannot be run.
pub fn draw<'a>(
    name: &str,
    scenario: &'a Scenario,
    seed: u64,
    number: u64,
    traces: &Traces,
    onlooker: Onlooker<'a>,
) -> Result<Answer, ScenarioError> {
    let Trial { draw, run, verdicts, checks, .. } = trial(scenario, seed, number, traces, onlooker)?;
    Ok(Answer {
        name: format!("{name}, draw {number}: {}", draw.describe()),
        seed,
        checks,
        goals: within(&scenario.goal, &verdicts),
        verdicts,
        control: Vec::new(),
        control_label: scenario.control.label(),
        run,
        scenario: scenario.clone(),
    })
}

/// The yield as a share of what the best fixed limit of hindsight gives; had only where it is asked for.
pub(crate) const OF_BEST_FIXED: &str = "of_best_fixed";

/// Runs a scenario and its control, and tells an onlooker of both; the adjustment log is the former's.
///
/// # Errors
/// The scenario cannot be run.
pub fn answer<'a>(
    name: &str,
    scenario: &'a Scenario,
    seed: u64,
    traces: &Traces,
    onlooker: Onlooker<'a>,
) -> Result<Answer, ScenarioError> {
    let step = onlooker.step;
    let ran = run_under(scenario, Conditions::of(scenario), scenario.guard, seed, traces, onlooker)?;
    let mut found = verdicts(scenario, &ran);
    if [&scenario.expect, &scenario.goal].iter().any(|ranges| ranges.contains_key(OF_BEST_FIXED)) {
        let yields = pinned(scenario, &Conditions::of(scenario), seed, traces, |found| found["yield"])?;
        let best = yields.into_iter().fold(f64::NAN, f64::max);
        found.insert(OF_BEST_FIXED.to_owned(), found["yield"] / best);
    }
    let without = scenario.control.without.clone();
    let control = (Conditions { without, ..Conditions::of(scenario) }, scenario.control.guard());
    let without_it = Scenario {
        config: scenario.control.config.clone().unwrap_or_else(|| scenario.config.clone()),
        ..scenario.clone()
    };
    let onlooker = Onlooker { step, ..Onlooker::default() };
    let control_run = run_under(&without_it, control.0, control.1, seed, traces, onlooker)?;
    Ok(Answer {
        name: name.to_owned(),
        seed,
        checks: check(scenario, &found),
        goals: within(&scenario.goal, &found),
        verdicts: found,
        control: check(scenario, &verdicts(scenario, &control_run)),
        control_label: scenario.control.label(),
        run: ran,
        scenario: scenario.clone(),
    })
}

/// A scenario under one guard.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Comparison {
    /// What protected the head.
    pub guard: String,
    /// Polite demands served.
    pub polite: Option<f64>,
    /// Useful work, as a share of what the head could do or was asked for, whichever is less.
    pub r#yield: Option<f64>,
    /// Latency at the head, 99 %, milliseconds, the first group's.
    pub head_p99_ms: Option<f64>,
    /// Whether every expectation of the scenario is met.
    pub holds: bool,
}

/// The guards that are compared. A static limit is an oracle when it is the right one: the best
/// of [`ORACLES`] on each scenario stands for it.
const BASELINES: [Guard; 9] = [
    Guard::Off,
    Guard::Vegas,
    Guard::Gradient2,
    Guard::Aimd,
    Guard::EnvoyGradient,
    Guard::Breakwater,
    Guard::Codel,
    Guard::Still,
    Guard::Rayguard,
];
const ORACLES: [u32; 6] = [2, 4, 8, 16, 32, 64];

/// Runs a scenario under every guard there is, spread over two threads or more.
///
/// # Errors
/// The scenario cannot be run.
pub fn compare(scenario: &Scenario, seed: u64, traces: &Traces) -> Result<Vec<Comparison>, ScenarioError> {
    let guards: Vec<Guard> = BASELINES.into_iter().chain(ORACLES.map(Guard::Fixed)).collect();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let one = |guard: Guard| under(scenario, guard, seed, traces);
    let parts: Vec<Vec<Result<Comparison, ScenarioError>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                let guards = guards.iter().skip(worker).step_by(workers);
                scope.spawn(move || guards.map(|guard| one(*guard)).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut by_place: Vec<(usize, Comparison)> = Vec::new();
    for (worker, part) in parts.into_iter().enumerate() {
        for (at, row) in part.into_iter().enumerate() {
            by_place.push((worker + at * workers, row?));
        }
    }
    by_place.sort_by_key(|(place, _)| *place);
    let mut rows: Vec<Comparison> = by_place.into_iter().map(|(_, row)| row).collect();
    let oracles = rows.split_off(BASELINES.len());
    let worth = |row: &Comparison| row.polite.unwrap_or(1.0) + row.r#yield.unwrap_or(0.0);
    let best = oracles.into_iter().max_by(|a, b| worth(a).total_cmp(&worth(b)));
    rows.splice(1..1, best.map(|best| Comparison { guard: "best fixed".to_owned(), ..best }));
    Ok(rows)
}

fn under(scenario: &Scenario, guard: Guard, seed: u64, traces: &Traces) -> Result<Comparison, ScenarioError> {
    let all = verdicts(scenario, &run(scenario, guard, seed, traces)?);
    let get = |name: &str| all.get(name).copied().filter(|value| value.is_finite());
    let first = scenario.client.first().map_or("", |client| client.name.as_str());
    Ok(Comparison {
        guard: guard.label(),
        polite: get("polite"),
        r#yield: get("yield"),
        head_p99_ms: get(&format!("{first}.head_p99_ms")),
        holds: check(scenario, &all).iter().all(|check| check.met),
    })
}

/// Who protects how well, on every scenario: polite demands served and useful work, in percent,
/// and a star where every expectation of the scenario is met.
#[must_use]
pub fn comparison_table(scenarios: &[(String, Vec<Comparison>)]) -> String {
    let mut text = format!("{:<28}", "polite % / yield %, * holds");
    let Some((_, first)) = scenarios.first() else { return text };
    let wide = |text: &str| format!(" {text:>14}");
    for row in first {
        text.push_str(&wide(row.guard.trim_start_matches("netflix ").trim_start_matches("rayguard, ")));
    }
    text.push('\n');
    let percent = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{:.0}", 100.0 * value));
    let mut held = vec![0; first.len()];
    for (name, rows) in scenarios {
        // Writing to a String cannot fail.
        let _ = write!(text, "{name:<28}");
        for (at, row) in rows.iter().enumerate() {
            let star = if row.holds { "*" } else { " " };
            text.push_str(&wide(&format!("{}/{}{star}", percent(row.polite), percent(row.r#yield))));
            if let Some(held) = held.get_mut(at) {
                *held += usize::from(row.holds);
            }
        }
        text.push('\n');
    }
    let _ = write!(text, "{:<28}", "scenarios that hold");
    for held in held {
        text.push_str(&wide(&format!("{held} of {} ", scenarios.len())));
    }
    text.push('\n');
    text
}

/// A number short enough for a table.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        _ if value.is_infinite() => "any".to_owned(),
        0.0 => "0".to_owned(),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// What the marks of [`table`] mean.
pub const LEGEND: &str = "+ met, - missed, ~ wanted and not reached yet; control: the same run without the limits under test, \
                          which must miss something";

/// An answer as text.
#[must_use]
pub fn table(answer: &Answer) -> String {
    let mut text = String::new();
    let mark = if answer.passed() { "ok  " } else { "FAIL" };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{mark} {} (seed {}): {}", answer.name, answer.seed, answer.scenario.question);
    for (at, check) in answer.checks.iter().enumerate() {
        let value = |check: &Check| check.value.map_or("none".to_owned(), short);
        let control = answer.control.get(at).map_or_else(String::new, |control| {
            format!("   control {:>9}{}", value(control), if control.met { "" } else { "  missed" })
        });
        let _ = writeln!(
            text,
            "     {} {:<28} {:>9} in [{}, {}]{control}",
            if check.met { "+" } else { "-" },
            check.name,
            value(check),
            short(check.low),
            short(check.high),
        );
    }
    for goal in &answer.goals {
        let _ = writeln!(
            text,
            "     {} {:<28} {:>9} wanted in [{}, {}]",
            if goal.met { "+" } else { "~" },
            goal.name,
            goal.value.map_or("none".to_owned(), short),
            short(goal.low),
            short(goal.high),
        );
    }
    if !answer.control_fails() {
        let guard = &answer.control_label;
        let _ =
            writeln!(text, "     - the control run ({guard}) meets every expectation: they prove nothing");
    }
    text
}

/// An answer as JSON.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct JsonAnswer<'a> {
    name: &'a str,
    question: &'a str,
    seed: u64,
    passed: bool,
    control_fails: bool,
    checks: &'a [Check],
    goals: &'a [Check],
    control: &'a [Check],
    /// Verdicts that can be had.
    verdicts: std::collections::BTreeMap<&'a str, f64>,
    /// Of many runs, if there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    monte_carlo: Option<&'a PassRate>,
    /// Beside other guards, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    baselines: Vec<Comparison>,
}

/// An answer for machines.
#[must_use]
pub fn json<'a>(answer: &'a Answer, rate: Option<&'a PassRate>, baselines: &[Comparison]) -> JsonAnswer<'a> {
    JsonAnswer {
        name: &answer.name,
        question: &answer.scenario.question,
        seed: answer.seed,
        passed: answer.passed(),
        control_fails: answer.control_fails(),
        checks: &answer.checks,
        goals: &answer.goals,
        control: &answer.control,
        verdicts: answer
            .verdicts
            .iter()
            .filter(|(_, value)| value.is_finite())
            .map(|(name, value)| (name.as_str(), *value))
            .collect(),
        monte_carlo: rate,
        baselines: baselines.to_vec(),
    }
}
