//! What holds without a part of the loop? Each part that is taken away must be missed somewhere,
//! or it is not worth its place.
//!
//! A part is taken away in the policy, so that what is left is the production loop as an operator
//! could configure it. Without the outer loop no class follows a signal of Ray's, and submissions
//! are not counted. Without the inner one latency moves nothing: objectives are out of reach and
//! no limit may grow above where it starts; signals still lower it.

use super::report::{OF_BEST_FIXED, short};
use super::scenario::{Guard, Scenario, ScenarioError};
use super::verdict::{Check, Verdicts, check, verdicts};
use super::world::{Conditions, Onlooker, Traces, run, run_under};
use rayguard_core::policy::{Bounds, Class, Law, Policy};
use std::fmt::Write as _;
use std::time::Duration;

/// The guards of the table, and what each is called there.
pub(crate) const GUARDS: [(Guard, &str); 5] = [
    (Guard::Rayguard, "full"),
    (Guard::NoOuter, "no outer"),
    (Guard::NoInner, "no inner"),
    (Guard::Still, "frozen"),
    (Guard::Off, "no limits"),
];

/// An objective that nothing misses.
const NEVER_MISSED: Duration = Duration::from_secs(24 * 3600);

/// The policy without what `guard` leaves out, and without these signals.
#[must_use]
pub(crate) fn policy_under(policy: &Policy, guard: Guard, without: &[String]) -> Policy {
    let mut policy = policy.clone();
    let left_out = |id: rayguard_core::policy::SignalId| {
        let name = &policy.signals[id.index()].name;
        guard == Guard::NoOuter || without.iter().any(|left_out| **left_out == **name)
    };
    let classes = policy.classes.iter().cloned().map(|mut class| {
        class.signals.retain(|id| !left_out(*id));
        class.backlog = class.backlog.filter(|id| !left_out(*id));
        if guard == Guard::NoInner { blind(class) } else { class }
    });
    policy.classes = classes.collect();
    policy
}

/// The class with a loop that latency does not move.
fn blind(mut class: Class) -> Class {
    class.slo.latency = NEVER_MISSED;
    if let Law::Gradient { .. } = class.law {
        class.law = Law::Pid { kp: 0.0, ki: None, kd: 0.0 };
    }
    class.in_flight = Bounds { max: class.in_flight.initial, ..class.in_flight };
    class
}

/// Holds the concurrency of the class of this name (the first, where none is named) and of its module here.
pub fn pin(policy: &mut Policy, name: &str, limit: f64) {
    let at = policy.classes.iter().position(|class| *class.name == *name).unwrap_or(0);
    let Some(class) = policy.classes.get_mut(at) else { return };
    class.in_flight = Bounds::fixed(limit);
    let module = &mut policy.modules[class.module.index()];
    module.in_flight = Bounds::fixed(module.in_flight.max.max(limit));
}

/// Limits that an oracle tries.
const PINS: [f64; 14] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0, 1024.0];

/// The best fixed limit of hindsight: what each of `PINS` gives under these conditions.
///
/// # Errors
/// The scenario cannot be run.
pub fn pinned<T>(
    scenario: &Scenario,
    conditions: &Conditions,
    seed: u64,
    traces: &Traces,
    judge: impl Fn(&Verdicts) -> T,
) -> Result<Vec<T>, ScenarioError> {
    PINS.into_iter()
        .map(|limit| {
            let conditions = Conditions { pinned: Some(limit), ..conditions.clone() };
            let run = run_under(scenario, conditions, Guard::Still, seed, traces, Onlooker::default())?;
            Ok(judge(&verdicts(scenario, &run)))
        })
        .collect()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"
        question = "?"
        seconds = 10
        plant = { kind = "ray-head" }
        expect = { shed = [0, 1] }
        [[client]]
        name = "all"
        kind = "open"
        route = "version"
        per_second = 1
    "#;

    #[test]
    fn what_is_taken_away_is_gone_and_nothing_else() {
        let (policy, _) = Scenario::read(HEAD).unwrap().policy().unwrap();
        let class = |policy: &Policy, name: &str| {
            policy.classes.iter().find(|class| &*class.name == name).unwrap().clone()
        };
        let submit = class(&policy, "job-submit");
        assert!(submit.backlog.is_some() && !submit.signals.is_empty());

        let no_outer = policy_under(&policy, Guard::NoOuter, &[]);
        assert!(no_outer.classes.iter().all(|class| class.signals.is_empty() && class.backlog.is_none()));
        assert_eq!(class(&no_outer, "job-list").in_flight, class(&policy, "job-list").in_flight);

        let no_inner = policy_under(&policy, Guard::NoInner, &[]);
        assert_eq!(class(&no_inner, "job-submit").signals, submit.signals);
        assert!(no_inner.classes.iter().all(|class| class.in_flight.max <= class.in_flight.initial));

        let blind_to_cpu = policy_under(&policy, Guard::Rayguard, &["head_cpu".to_owned()]);
        let names: Vec<&str> = class(&blind_to_cpu, "job-submit")
            .signals
            .iter()
            .map(|id| &*policy.signals[id.index()].name)
            .collect();
        assert!(names.contains(&"pending_tasks") && !names.contains(&"head_cpu"), "{names:?}");
    }
}
