//! What holds without a part of the loop? Each part that is taken away must be missed somewhere,
//! or it is not worth its place.
//!
//! A guard of the simulator says what is taken away.

use super::report::{OF_BEST_FIXED, short};
use rayguard_sim::scenario::{Guard, Scenario, ScenarioError};
use rayguard_sim::verdict::{Check, check, verdicts};
use rayguard_sim::world::{Traces, run};
use std::fmt::Write as _;

/// The guards of the table, and what each is called there.
pub(crate) const GUARDS: [(Guard, &str); 5] = [
    (Guard::Rayguard, "full"),
    (Guard::NoOuter, "no outer"),
    (Guard::NoInner, "no inner"),
    (Guard::Still, "frozen"),
    (Guard::Off, "no limits"),
];

/// A scenario under each of `GUARDS`: the first expectation that each breaks, if any.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Row {
    /// The scenario.
    pub name: String,
    /// In the order of `GUARDS`.
    pub broken: Vec<Option<Check>>,
}

/// Runs a scenario under each of `GUARDS`, on as many threads as there are cores.
///
/// # Errors
/// The scenario cannot be run.
pub fn ablate(name: &str, scenario: &Scenario, seed: u64, traces: &Traces) -> Result<Row, ScenarioError> {
    let one = |guard: Guard| -> Result<Option<Check>, ScenarioError> {
        let checks = check(scenario, &verdicts(scenario, &run(scenario, guard, seed, traces)?));
        // How the best fixed limit does is not worked out here: it takes a dozen runs more.
        let is_told = |check: &Check| check.value.is_some() || check.name != OF_BEST_FIXED;
        Ok(checks.into_iter().find(|check| !check.met && is_told(check)))
    };
    let broken = std::thread::scope(|scope| {
        let threads = GUARDS.map(|(guard, _)| scope.spawn(move || one(guard)));
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(ScenarioError::Impossible("a run panicked".to_owned())))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?;
    Ok(Row { name: name.to_owned(), broken })
}

/// The rows as a Markdown table: `holds`, or what does not and its value.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from("| scenario |");
    for (_, name) in GUARDS {
        // Writing to a String cannot fail.
        let _ = write!(text, " {name} |");
    }
    text.push_str("\n|---|---|---|---|---|---|\n");
    for row in rows {
        let _ = write!(text, "| `{}` |", row.name);
        for broken in &row.broken {
            let cell = broken.as_ref().map_or("holds".to_owned(), |check| {
                format!("{} {}", check.name, check.value.map_or("none".to_owned(), short))
            });
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    let _ = write!(text, "| hold, of {} |", rows.len());
    for at in 0..GUARDS.len() {
        let held = rows.iter().filter(|row| row.broken[at].is_none()).count();
        let _ = write!(text, " {held} |");
    }
    text.push('\n');
    text
}
