//! Loops with something wrong in them, each brought to light by a fault: a fault scenario that a
//! defective loop passes would probe nothing.

use super::faults::{Scraped, values};
use rayguard_core::admission::table::LimitTable;
use rayguard_core::time::Time;
use std::sync::Arc;
use std::time::Duration;

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Defect {
    /// What cannot be read is nothing: a lost page and a NaN read as 0.
    NothingIsZero,
    /// A page is news whenever it comes, whether or not anything in it has moved.
    AnyPageIsNews,
    /// While the loop is away, nothing is held back.
    OpenWhileAway,
    /// The loop goes by the wall clock.
    WallClock,
}

impl Defect {
    /// The pages as such a loop takes them; `last` are the last that came.
    pub(super) fn read(self, scraped: &Scraped, last: &mut Scraped, now: Time) -> Scraped {
        if scraped.0.is_some() && scraped.1.is_some() {
            *last = scraped.clone();
        }
        let seen = |page: &Option<String>, last: &Option<String>| match self {
            Defect::NothingIsZero => {
                let zero = |page: &String, all: bool| {
                    values(page, |_, gauge, value| if value.is_nan() || (all && gauge) { 0.0 } else { value })
                };
                // Pages that report nothing still report.
                let page = page.as_ref().map(|page| zero(page, false));
                page.or(last.as_ref().map(|page| zero(page, true))).map(|page| moved(&page, now))
            }
            Defect::AnyPageIsNews => page.as_ref().map(|page| moved(page, now)),
            _ => page.clone(),
        };
        (seen(&scraped.0, &last.0), seen(&scraped.1, &last.1))
    }

    /// The time that such a loop goes by.
    pub(super) fn time(self, now: Time, offset_s: f64) -> Time {
        match self {
            Defect::WallClock if offset_s < 0.0 => {
                Time(now.0.saturating_sub(
                    u64::try_from(Duration::from_secs_f64(-offset_s).as_nanos()).unwrap_or(0),
                ))
            }
            Defect::WallClock => now + Duration::from_secs_f64(offset_s),
            _ => now,
        }
    }
}

/// The page with everything in it that only grows grown, and what moves by itself moved on.
fn moved(page: &str, now: Time) -> String {
    values(page, |series, gauge, value| match gauge {
        true if series.starts_with("ray_node_network_received") => now.as_secs_f64(),
        true => value,
        false => value + now.as_secs_f64(),
    })
}

/// The table with no rate and no count in it.
pub(super) fn opened(table: &LimitTable) -> Arc<LimitTable> {
    let mut table = table.clone();
    for limits in &mut table.classes {
        limits.rate = limits.rate.map(|_| 1000.0);
        limits.admitted_max = None;
    }
    Arc::new(table)
}

#[cfg(test)]
mod tests {
    use super::Defect::*;
    use crate::scenario::{Guard, Scenario};
    use crate::verdict::{check, verdicts};
    use crate::world::run_defective;

    #[test]
    fn each_fault_brings_a_loop_to_light_that_is_wrong_where_it_probes() {
        macro_rules! fault {
            ($name:literal) => {
                ($name, include_str!(concat!("../../simulations/fault-", $name, ".toml")))
            };
        }
        for ((name, text), defect) in [
            (fault!("metrics-missing"), NothingIsZero),
            (fault!("metrics-half-missing"), NothingIsZero),
            (fault!("metrics-missing-before-storm"), NothingIsZero),
            (fault!("metrics-nan"), NothingIsZero),
            (fault!("metrics-frozen"), AnyPageIsNews),
            (fault!("controller-pause"), OpenWhileAway),
            (fault!("clock-jump"), WallClock),
        ] {
            let mut scenario = Scenario::read(text).expect(name);
            // The jobs themselves would tell how many wait.
            scenario.config.push_str("\nprobe.enabled = false\n");
            let run = run_defective(&scenario, Guard::Rayguard, scenario.seed, defect).expect(name);
            let checks = check(&scenario, &verdicts(&scenario, &run));
            assert!(checks.iter().any(|check| !check.met), "{name} with {defect:?}: {checks:?}");
        }
    }
}
