//! Limits from a load: where did the head stop keeping up?
//!
//! A plan whose rates rise finds the knee. For each class, over stretches of [`STRETCH_S`]
//! seconds: the *sustained* rate is the highest at which at least [`IN_TIME`] of what was due came
//! in time; the *bare* latency is the lowest median of any stretch, the head at rest. By
//! Little's law (L = lambda W) their product is what is under way at the knee without anything
//! waiting. So
//!
//! ```text
//! in_flight.initial   2 x sustained x bare latency      min 1, max 4 x initial
//! rate                0.8 x sustained, if the knee was reached; only for classes with a rate
//! objective           2 x the p95 of the sustained stretch
//! ```
//!
//! A load that never got the head to give way proves only a lower bound, and the section says
//! so. Times are counted from when a request was due, not from when it was sent: a head that
//! stalls cannot hide behind requests that were held back (coordinated omission).

use super::plan::Plan;
use super::report::Sample;
use rayguard_config::quantity::{Length, Objective, PerSecond};
use rayguard_config::{Overrides, Settings};
use rayguard_core::policy::Slo;
use rayguard_core::request::catalogue::Surface;
use rayguard_core::request::classify::Classifier;
use rayguard_core::request::facts::Facts;
use rayguard_proxy::headers::Lookup;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// The length of a stretch, in seconds.
pub const STRETCH_S: f64 = 5.0;

/// The share of answers in time at which the head keeps up.
pub const IN_TIME: f64 = 0.95;

/// A stretch with fewer operations proves nothing.
const LEAST: usize = 20;

/// What a class bore.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Knee {
    sustained: f64,
    p95_s: f64,
    bare_s: f64,
    reached: bool,
}

/// A section of configuration, with its reasons; a comment alone when nothing can be said.
#[must_use]
pub fn section(plan: &Plan, samples: &[Sample]) -> String {
    let mut text = "# Proposed by `rayguard load`, from the load that the head sustained.\n".to_owned();
    let Ok(settings) = Settings::defaults(&Overrides::default()) else { return text };
    let Ok(classifier) = Classifier::new(&settings.policy, Surface::Dashboard, &[]) else { return text };
    let none = http::HeaderMap::new();
    let mut by_class: BTreeMap<usize, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        let request = &plan.streams[sample.stream].requests[sample.shape];
        let path = request.path.replace("{n}", "1");
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        let facts = Facts {
            method: &request.method,
            path,
            query,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            headers: &Lookup::new(&none),
            upgrade: false,
            grpc: false,
        };
        let matched = classifier.classify(&facts);
        by_class.entry(matched.class.index()).or_default().push(sample);
    }
    let mut objectives = String::new();
    for (class, samples) in by_class {
        let class = &settings.policy.classes[class];
        let Some(knee) = knee(&samples) else {
            let _ = writeln!(text, "\n# {}: too few requests, or none answered in time.", class.name);
            continue;
        };
        propose(&class.name, class.rate.is_some(), knee, &mut text);
        let latency = millis((2.0 * knee.p95_s).clamp(0.05, 600.0));
        let objective = Objective(Slo { quantile: class.slo.quantile, latency });
        let _ = writeln!(objectives, "{} = \"{objective}\"", class.name);
    }
    if !objectives.is_empty() {
        let _ = write!(text, "\n[slo]\n{objectives}");
    }
    text
}

fn propose(class: &str, rated: bool, knee: Knee, text: &mut String) {
    let (held, limit) = if knee.reached {
        ("bore", "it fell behind above that")
    } else {
        ("bore at least", "it never fell behind: send more load to find its limit")
    };
    let in_flight = (2.0 * knee.sustained * knee.bare_s).ceil().max(1.0);
    let _ = writeln!(
        text,
        "\n# {class}: {held} {:.1}/s, p95 {}; {limit}. At rest it takes {}.\n[class.{class}]\n\
         in_flight = {{ initial = {in_flight}, min = 1, max = {} }}",
        knee.sustained,
        Length(millis(knee.p95_s)),
        Length(millis(knee.bare_s)),
        4.0 * in_flight,
    );
    let rate = (0.8 * knee.sustained * 60.0).floor() / 60.0;
    if rated && knee.reached && rate > 0.0 {
        let _ = writeln!(text, "rate = \"{}\"", PerSecond(rate));
    }
}

fn millis(seconds: f64) -> Duration {
    rayguard_core::time::duration_from_secs((seconds * 1000.0).ceil() / 1000.0)
}

fn knee(samples: &[&Sample]) -> Option<Knee> {
    let mut stretches: BTreeMap<u64, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an hour at most")]
        let at = (sample.due_s.max(0.0) / STRETCH_S) as u64;
        stretches.entry(at).or_default().push(sample);
    }
    let mut best: Option<Knee> = None;
    let (mut bare_s, mut reached) = (f64::INFINITY, false);
    for stretch in stretches.values().filter(|stretch| stretch.len() >= LEAST) {
        let mut latencies: Vec<f64> =
            stretch.iter().filter(|s| s.fate.is_success()).map(|s| s.latency_s).collect();
        latencies.sort_by(f64::total_cmp);
        if (latencies.len() as f64) < IN_TIME * stretch.len() as f64 {
            reached = true;
            continue;
        }
        let at =
            |share: usize| latencies.get((latencies.len() * share / 100).min(latencies.len() - 1)).copied();
        let (Some(median), Some(p95_s)) = (at(50), at(95)) else { continue };
        bare_s = bare_s.min(median);
        let sustained = latencies.len() as f64 / STRETCH_S;
        if best.is_none_or(|best| sustained > best.sustained) {
            best = Some(Knee { sustained, p95_s, bare_s, reached });
        }
    }
    best.map(|best| Knee { bare_s, reached, ..best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::client::Fate;

    /// A load that rises by ten a second each stretch; the head bears fifty.
    fn ramp(stretches: u32, bears: u32) -> (Plan, Vec<Sample>) {
        let plan = toml::from_str(
            "duration_s = 60\n[[stream]]\nname = 'a'\nrate = 1\nrequest = [{ path = '/api/jobs/?x={n}' }]",
        )
        .unwrap();
        let sample = |stretch: u32, n: u32| {
            let rate = 10 * (stretch + 1);
            let fine = rate <= bears || n.is_multiple_of(2);
            Sample {
                stream: 0,
                shape: 0,
                due_s: f64::from(stretch) * STRETCH_S + f64::from(n) / f64::from(rate),
                late_s: 0.0,
                latency_s: 0.04,
                fate: if fine { Fate::Status(200) } else { Fate::Timeout },
                attempts: 1,
                bytes: 0,
            }
        };
        let all = (0..stretches).flat_map(|at| (0..50 * (at + 1)).map(move |n| sample(at, n)));
        (plan, all.collect())
    }

    #[test]
    fn the_knee_is_the_highest_rate_that_was_answered_in_time() {
        let (plan, samples) = ramp(8, 50);
        let text = section(&plan, &samples);
        assert!(text.contains("# job-list: bore 50.0/s, p95 40ms; it fell behind above that"), "{text}");
        assert!(text.contains("in_flight = { initial = 4, min = 1, max = 16 }"), "{text}");
        rayguard_config::parse(&text, "proposed", &Overrides::default()).unwrap();
    }

    #[test]
    fn a_head_that_never_fell_behind_proves_a_lower_bound_alone() {
        let (plan, samples) = ramp(3, 50);
        let text = section(&plan, &samples);
        assert!(text.contains("bore at least 30.0/s") && !text.contains("rate ="), "{text}");
        assert!(section(&plan, &[]).lines().count() == 1);
    }
}
