//! A reload of the same configuration changes nothing: whatever is asked of the proxy and whatever goes wrong, it
//! decides the very same as without, to the last byte of its adjustment log but for the number of the configuration.

use super::scenario::{FaultSpec, Guard, Scenario};
use super::tally::GroupTally;
use super::world::{Conditions, Onlooker, Traces, run_under};
use proptest::prelude::*;

/// Scenarios in which something is short from the first minutes on, and how many of their seconds are run.
const SCENARIOS: [(&str, f64); 7] = [
    (include_str!("../../simulations/fault-blind-storm-reloads.toml"), 240.0),
    (include_str!("../../simulations/ray-submission-storm.toml"), 120.0),
    (include_str!("../../simulations/fault-metrics-never.toml"), 60.0),
    (include_str!("../../simulations/ray-two-tenants.toml"), 60.0),
    (include_str!("../../simulations/adapts/lists-take-the-gcs.toml"), 120.0),
    (include_str!("../../simulations/servers-dip.toml"), 60.0),
    (include_str!("../../simulations/one-process/mixed-flood.toml"), 60.0),
];

/// What became of everyone, and the adjustment log.
fn lived(scenario: &Scenario) -> (Vec<GroupTally>, String) {
    let mut log = String::new();
    let onlooker = Onlooker { adjustment_log: Some(&mut log), ..Onlooker::default() };
    let conditions = Conditions::of(scenario);
    let run = run_under(scenario, conditions, Guard::Rayguard, 1, &Traces::new(), onlooker).unwrap();
    (run.groups, log)
}

/// The line without the number of the configuration under which it was written.
fn unnumbered(line: &str) -> String {
    let Some((before, after)) = line.split_once("\"policy_version\":") else { return line.to_owned() };
    format!("{before}{}", after.trim_start_matches(|of: char| of.is_ascii_digit()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn a_reload_of_the_same_configuration_changes_nothing(
        which in 0..SCENARIOS.len(), at_s in 0.0..30.0f64, every in 0.5..20.0f64, whole in any::<bool>(),
    ) {
        let (text, seconds) = SCENARIOS[which];
        let mut calm = Scenario::read(text).unwrap();
        (calm.seconds, calm.measure, calm.calm) = (seconds, None, None);
        calm.fault.retain(|fault| fault.every_s.is_none());
        // On the moments of everything else, and between them.
        let (at_s, every_s) = if whole { (at_s.round(), every.ceil()) } else { (at_s, every) };
        let reload = "kind = \"config-reload\"\nat_s = 0";
        let reload: FaultSpec = toml::from_str(reload).unwrap();
        let mut reloaded = calm.clone();
        reloaded.fault.push(FaultSpec { at_s, for_s: Some(seconds), every_s: Some(every_s), ..reload });
        let (clients, log) = lived(&calm);
        let (as_well, log_as_well) = lived(&reloaded);
        for (number, (line, other)) in log.lines().zip(log_as_well.lines()).enumerate() {
            prop_assert_eq!(unnumbered(line), unnumbered(other), "line {}", number);
        }
        prop_assert_eq!(log.lines().count(), log_as_well.lines().count());
        prop_assert_eq!(clients, as_well);
    }
}
