//! How like the head is the model? What was recorded beside what is simulated, each pair with
//! the bound it must lie in, so that the answer can be no.
//!
//! The bounds: a median latency and a p99 within a factor 2, the share answered within ten points, a
//! closed loop's throughput within a factor 2, the outage that outlasts a flood within 30 %,
//! and each signal's rise within one refresh of when it really rose (and none where none was).
//! Traffic traces were made once each, on a shared machine: tighter bounds would fit its noise. Where a p99 is further
//! off it is named with the cause ([`Case::unlike`]), and a test fails where one that is named is not.

use super::calibration::{Case, FITTED, Replay, ReplayedAnswer, SIGNALS};
use rayguard_sim::trace::Trace;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One quantity, recorded and simulated.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct ModelFit {
    /// What is compared.
    pub what: String,
    /// As recorded; `None`: it never happened.
    pub measured: Option<f64>,
    /// As simulated.
    pub simulated: Option<f64>,
    /// How far apart they may be.
    pub bound: Bound,
    /// Why they are further apart, where that is known.
    pub unlike: Option<&'static str>,
    /// Whether they are within the bound, or it is known why not.
    pub met: bool,
}

/// How far apart two figures may be.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// At most this many times larger or smaller.
    Factor(f64),
    /// At most this far apart.
    Apart(f64),
    /// The simulated one stays below this, as the recorded one did.
    Below(f64),
}

impl Bound {
    fn admits(self, measured: Option<f64>, simulated: Option<f64>) -> bool {
        let (Some(measured), Some(simulated)) = (measured, simulated) else { return measured == simulated };
        match self {
            Bound::Factor(most) => (1.0 / most..=most).contains(&(simulated / measured)),
            Bound::Apart(most) => (simulated - measured).abs() <= most,
            Bound::Below(most) => measured < most && simulated < most,
        }
    }

    fn describe(self) -> String {
        match self {
            Bound::Factor(most) => format!("within x{most}"),
            Bound::Apart(most) => format!("within {most}"),
            Bound::Below(most) => format!("below {most}"),
        }
    }
}

/// Fewer requests than this tell no median.
const COUNT_MIN: usize = 20;
/// Fewer than this have no slowest hundredth.
const TAIL_COUNT_MIN: usize = 100;
/// Latencies may differ by this factor.
const LATENCY_FACTOR: f64 = 2.0;
/// Lengths of outages may differ by this factor.
const OUTAGE_FACTOR: f64 = 1.3;
/// Shares answered may differ by so much.
const SERVED_APART: f64 = 0.1;
/// Traffic traces begin in the wake of whatever was done before: signals are read from here on, s.
const SIGNALS_FROM_S: f64 = 25.0;

/// Lays a replay beside its trace; `signals` is the text of its `_signals.csv`, if there is one.
#[must_use]
pub fn judge(case: &Case, trace: &Trace, signals: Option<&str>, replay: &Replay) -> Vec<ModelFit> {
    let mut all = latencies(case, trace, replay);
    if let Some((route, _, _, _)) = case.closed {
        let what = format!("closed loop on {route}, requests/s");
        let pair = (Some(case.closed_per_second), Some(replay.closed_per_second));
        all.push(like(what, pair, Bound::Factor(LATENCY_FACTOR)));
    }
    if let Some((route, flood_ends)) = case.outage {
        let what = format!("outage of {route} after the flood, s");
        let pair = outage_s(trace, replay, route, flood_ends);
        all.push(like(what, pair, Bound::Factor(OUTAGE_FACTOR)));
    }
    if let Some(text) = signals {
        let recorded = rows(text);
        for &(signal, level, refresh) in case.rises {
            let Some(column) = SIGNALS.iter().position(|name| *name == signal) else { continue };
            let rise = |at: f64, value: f64| (at > SIGNALS_FROM_S && value > level).then_some(at);
            let measured = recorded.iter().find_map(|row| rise(row[0], *row.get(column + 1)?));
            let simulated =
                replay.signals.iter().enumerate().find_map(|(at, row)| rise(at as f64, row[column]));
            // A sample a second: one more than the refresh.
            all.push(like(
                format!("{signal} passes {level}, s"),
                (measured, simulated),
                Bound::Apart(refresh + 1.0),
            ));
        }
        for &(signal, level) in case.stays {
            let Some(column) = SIGNALS.iter().position(|name| *name == signal) else { continue };
            let most = |values: &mut dyn Iterator<Item = f64>| Some(values.fold(0.0, f64::max));
            let late = recorded.iter().filter(|row| row[0] > SIGNALS_FROM_S);
            let measured = most(&mut late.filter_map(|row| row.get(column + 1).copied()));
            let simulated = most(&mut replay.signals.iter().map(|row| row[column]));
            all.push(like(format!("{signal} stays"), (measured, simulated), Bound::Below(level)));
        }
    }
    all
}

fn like(what: String, (measured, simulated): (Option<f64>, Option<f64>), bound: Bound) -> ModelFit {
    ModelFit { what, measured, simulated, bound, unlike: None, met: bound.admits(measured, simulated) }
}

fn rows(text: &str) -> Vec<Vec<f64>> {
    let number = |field: &str| field.parse().unwrap_or(f64::NAN);
    text.lines().skip(1).map(|line| line.split(',').map(number).collect()).collect()
}

/// Latency and share answered of every route in every window, as measured and as simulated.
fn latencies(case: &Case, trace: &Trace, replay: &Replay) -> Vec<ModelFit> {
    let simulated: BTreeMap<usize, &ReplayedAnswer> =
        replay.outcomes.iter().map(|o| (o.arrival, o)).collect();
    let mut all = Vec::new();
    for &(window, from, to) in case.windows {
        let mut routes: BTreeMap<&str, [Vec<(f64, bool)>; 2]> = BTreeMap::new();
        for (index, arrival) in trace.arrivals.iter().enumerate() {
            let (Some(measured), Some(outcome)) = (arrival.measured, simulated.get(&index)) else { continue };
            if (from..to).contains(&arrival.at.as_secs_f64()) {
                let [real, model] = routes.entry(&arrival.route).or_default();
                real.push((measured.latency_ms, measured.status == 200));
                model.push((outcome.latency_ms, outcome.ok));
            }
        }
        for (route, [mut real, mut model]) in
            routes.into_iter().filter(|(_, [real, _])| real.len() >= COUNT_MIN)
        {
            let served = |all: &[(f64, bool)]| {
                Some(all.iter().filter(|(_, ok)| *ok).count() as f64 / all.len() as f64)
            };
            let shares = (served(&real), served(&model));
            for latencies in [&mut real, &mut model] {
                latencies.sort_by(|a, b| a.0.total_cmp(&b.0));
            }
            let pair = |percent| (percentile(&real, percent), percentile(&model, percent));
            all.push(like(format!("{window}: {route}, p50 ms"), pair(50), Bound::Factor(LATENCY_FACTOR)));
            if real.len() >= TAIL_COUNT_MIN {
                let tail =
                    like(format!("{window}: {route}, p99 ms"), pair(99), Bound::Factor(LATENCY_FACTOR));
                let unlike =
                    case.unlike.iter().find(|(of, _)| tail.what.starts_with(of)).map(|(_, why)| *why);
                all.push(ModelFit { unlike, met: tail.met || unlike.is_some(), ..tail });
            }
            all.push(like(format!("{window}: {route}, served"), shares, Bound::Apart(SERVED_APART)));
        }
    }
    all
}

/// Of sorted latencies.
fn percentile(sorted: &[(f64, bool)], percent: usize) -> Option<f64> {
    sorted.get(sorted.len() * percent / 100).map(|value| value.0)
}

/// From the end of the flood to the last request of `route` that failed, recorded and simulated.
fn outage_s(trace: &Trace, replay: &Replay, route: &str, flood_ends: f64) -> (Option<f64>, Option<f64>) {
    let failed: BTreeMap<usize, bool> = replay.outcomes.iter().map(|o| (o.arrival, !o.ok)).collect();
    let last = |bad: &dyn Fn(usize) -> bool| {
        let hit = |index: &usize| &*trace.arrivals[*index].route == route && bad(*index);
        let at = (0..trace.arrivals.len()).filter(hit).map(|index| trace.arrivals[index].at.as_secs_f64());
        Some(at.fold(flood_ends, f64::max) - flood_ends)
    };
    let measured = last(&|index| trace.arrivals[index].measured.is_some_and(|m| m.status != 200));
    let simulated = last(&|index| failed.get(&index).copied().unwrap_or(false));
    (measured, simulated)
}

/// The comparison as text.
#[must_use]
pub fn report(case: &Case, all: &[ModelFit]) -> String {
    let mut text = String::new();
    let fit = if case.fitted { "fitted" } else { "kept out of the fit" };
    let met = all.iter().filter(|one| one.met).count();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{} ({fit}): {met} of {} hold", case.name, all.len());
    let _ = writeln!(text, "    {:<46} {:>10} {:>10}   bound", "", "measured", "simulated");
    for one in all {
        let show = |value: Option<f64>| value.map_or("never".to_owned(), |value| format!("{value:.2}"));
        let _ = writeln!(
            text,
            "  {} {:<46} {:>10} {:>10}   {}",
            match one.unlike {
                Some(_) => "~",
                None if one.met => "+",
                None => "-",
            },
            one.what,
            show(one.measured),
            show(one.simulated),
            one.unlike.map_or_else(|| one.bound.describe(), str::to_owned)
        );
    }
    text
}

/// What was fitted, as text.
#[must_use]
pub fn fitted() -> String {
    let lines: Vec<String> = FITTED.iter().map(|(name, what)| format!("  {name:<18} {what}")).collect();
    format!("Fitted to the cases above that say so; all else was measured:\n{}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::{cases, replay};
    use rayguard_sim::trace;

    fn recorded(name: &str) -> Option<String> {
        let path = format!("{}/../../simulations/recorded/{name}.csv", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).ok()
    }

    fn judged(case: &Case) -> Vec<ModelFit> {
        let trace = trace::read(&recorded(case.name).expect("a trace")).expect("a trace");
        let signals = recorded(&format!("{}_signals", case.name));
        judge(case, &trace, signals.as_deref(), &replay(case, &trace, 1))
    }

    #[test]
    fn the_model_is_like_the_head_in_every_recorded_overload() {
        let mut unmet = Vec::new();
        for case in cases() {
            let all = judged(&case);
            println!("{}", report(&case, &all));
            assert!(all.len() > 15, "{} compares something", case.name);
            unmet.extend(all.into_iter().filter(|one| !one.met).map(|one| (case.name, one)));
        }
        assert!(unmet.is_empty(), "{unmet:#?}");
    }

    #[test]
    fn what_is_named_as_unlike_is_further_apart_than_the_bound() {
        for case in cases() {
            let all = judged(&case);
            for (named, _) in case.unlike {
                let mut of_it = all.iter().filter(|one| one.unlike.is_some() && one.what.starts_with(named));
                assert!(of_it.clone().count() > 0, "{}: {named}", case.name);
                assert!(
                    of_it.all(|one| !one.bound.admits(one.measured, one.simulated)),
                    "{}: {named}",
                    case.name
                );
            }
        }
    }

    #[test]
    fn every_signal_that_was_recorded_is_compared() {
        for case in cases() {
            let Some(signals) = recorded(&format!("{}_signals", case.name)) else { continue };
            assert!(signals.lines().count() > 100, "{}", case.name);
            let rises = case.rises.iter().map(|rise| rise.0);
            let compared: Vec<&str> = rises.chain(case.stays.iter().map(|stay| stay.0)).collect();
            for signal in SIGNALS {
                assert!(compared.contains(&signal), "{}: {signal}", case.name);
            }
        }
    }

    #[test]
    fn one_trace_was_kept_out_of_the_fit() {
        assert_eq!(cases().iter().filter(|case| !case.fitted).count(), 1);
    }

    #[test]
    fn another_head_is_told_apart() {
        let [state, burst] = ["step_state", "job_burst"]
            .map(|name| cases().into_iter().find(|case| case.name == name).expect("a case"));
        let breaks =
            |case: &Case, what: &str| judged(case).iter().any(|one| !one.met && one.what.contains(what));
        let mut cheap = state.clone();
        for route in &mut cheap.spec.routes {
            route.per_task_ms /= 3.0;
        }
        assert!(breaks(&cheap, "outage of actors"), "lists at a third of their cost end the outage early");
        assert!(breaks(&cheap, "p50 ms"));
        let mut late = state;
        late.spec.cadence.process *= 6;
        assert!(breaks(&late, "passes"), "metrics six times as old rise too late");
        let mut quick = burst;
        quick.spec.jobs.start_ms /= 20.0;
        assert!(breaks(&quick, "registered passes"), "jobs that start at once leave no backlog");
    }
}
