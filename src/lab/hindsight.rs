//! The best fixed limit of hindsight, which no operator knows in advance.

use rayguard_sim::scenario::{Guard, Scenario, ScenarioError};
use rayguard_sim::verdict::{Verdicts, verdicts};
use rayguard_sim::world::{Conditions, Onlooker, Traces, run_under};

/// Limits that an oracle tries.
const PINS: [f64; 14] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0, 1024.0];

/// The best fixed limit of hindsight: what each of `PINS` gives under these conditions.
///
/// # Errors
/// The scenario cannot be run.
pub(crate) fn pinned<T>(
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
