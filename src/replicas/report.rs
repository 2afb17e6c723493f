//! What a replica reports to the leader, as text: demands, which clients ask for what is contended
//! (by keyed digests), and counts since its start.
//!
//! Counters are totals, so a report that was not read is made good by the next. Only classes that
//! were ever asked stand in it, and of their latencies only the buckets that hold any: about 2 KB
//! for a busy replica.

use crate::core::admission::meter::{BUCKETS, Counts, Reason};
use crate::core::controller::{ClassReading, ProxyReading};
use crate::core::policy::Policy;
use crate::core::replicas::quota::Wanted;
use crate::core::replicas::reported_demand::ReportedDemand;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// No replica has counted more of anything, whatever it says: sums of counts stay counts.
const COUNT_MAX: u64 = 1 << 48;
const UNDER_WAY_MAX: u32 = 1 << 20;

/// The report of one replica.
#[derive(Serialize, Deserialize, Debug, Default)]
pub(super) struct Report {
    /// What it asks for of each limit, in grains.
    pub(super) demands: BTreeMap<String, u64>,
    /// What it could use, whichever clients ask for it, where that is another amount.
    #[serde(default)]
    wants: BTreeMap<String, u64>,
    /// Which clients ask, by class.
    #[serde(default)]
    told: BTreeMap<String, ReportedDemand>,
    classes: BTreeMap<String, ClassReport>,
}

#[derive(Serialize, Deserialize, Debug)]
struct ClassReport {
    /// In flight, its peak, waiting.
    now: [u32; 3],
    stalled_s: f64,
    /// In the order of [`scalars`].
    counts: [u64; 13],
    shed: Vec<(usize, u64)>,
    buckets: Vec<(usize, u64)>,
}

impl Report {
    /// The report of a replica.
    pub(super) fn new(
        policy: &Policy,
        replica: &ProxyReading,
        names: &[String],
        loads: &[(u64, u64)],
        wanted: &Wanted,
    ) -> Report {
        let some = |counts: &[u64]| counts.iter().copied().enumerate().filter(|(_, n)| *n > 0).collect();
        let classes = policy.classes.iter().zip(replica).filter(|(_, seen)| seen.counts.offered > 0);
        let classes = classes.map(|(class, seen)| {
            let counts = &seen.counts;
            let report = ClassReport {
                now: [seen.in_flight, seen.in_flight_peak, seen.waiting],
                stalled_s: seen.stalled_s,
                counts: scalars(&mut counts.clone()).map(|count| *count),
                shed: some(&counts.shed),
                buckets: some(&counts.buckets),
            };
            (class.name.to_string(), report)
        });
        let demands = names.iter().zip(loads).map(|(name, (_, demand))| (name.clone(), *demand));
        let wants = names.iter().zip(loads).zip(&wanted.wants);
        let wants = wants.filter(|((_, (_, demand)), want)| demand != *want);
        let told = wanted.told.iter().filter_map(|(at, told)| {
            let class = policy.classes.get(*at)?;
            Some((class.name.to_string(), told.clone()))
        });
        Report {
            demands: demands.collect(),
            wants: wants.map(|((name, _), want)| (name.clone(), *want)).collect(),
            told: told.collect(),
            classes: classes.collect(),
        }
    }

    /// What the replica could use of these limits, and which clients ask there for this policy's classes.
    pub(super) fn wanted(&self, policy: &Policy, names: &[String]) -> Wanted {
        let want = |name: &String| self.wants.get(name).or(self.demands.get(name)).copied().unwrap_or(0);
        let told = policy.classes.iter().enumerate();
        Wanted {
            wants: names.iter().map(want).collect(),
            told: told.filter_map(|(at, class)| Some((at, self.told.get(&*class.name)?.clone()))).collect(),
        }
    }

    /// The replica as it was reported, in the order of this policy's classes.
    pub(super) fn reading(&self, policy: &Policy) -> ProxyReading {
        let read = |report: &ClassReport| {
            let now = report.now.map(|count| count.min(UNDER_WAY_MAX));
            let mut seen = ClassReading {
                in_flight: now[0],
                in_flight_peak: now[1],
                waiting: now[2],
                stalled_s: report.stalled_s.max(0.0),
                ..ClassReading::default()
            };
            let counts = &mut seen.counts;
            scalars(counts)
                .into_iter()
                .zip(report.counts)
                .for_each(|(count, told)| *count = told.min(COUNT_MAX));
            for (at, count) in report.shed.iter().filter(|(at, _)| *at < Reason::ALL.len()) {
                counts.shed[*at] = (*count).min(COUNT_MAX);
            }
            for (at, count) in report.buckets.iter().filter(|(at, _)| *at < BUCKETS) {
                counts.buckets[*at] = (*count).min(COUNT_MAX);
            }
            counts.bound = counts.queued + counts.shed_all() + counts.shadow_shed;
            seen
        };
        let classes = policy.classes.iter().map(|class| self.classes.get(&*class.name));
        classes.map(|report| report.map(read).unwrap_or_default()).collect()
    }
}

/// The counts that stand for themselves, in the order in which they are told.
fn scalars(counts: &mut Counts) -> [&mut u64; 13] {
    [
        &mut counts.offered,
        &mut counts.admitted,
        &mut counts.queued,
        &mut counts.served,
        &mut counts.failed,
        &mut counts.abandoned,
        &mut counts.left_at_head,
        &mut counts.left_at_head_us,
        &mut counts.left,
        &mut counts.shadow_shed,
        &mut counts.latency_us,
        &mut counts.wait_us,
        &mut counts.work_us,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::plain::{class, policy};

    #[test]
    fn a_report_says_what_the_replica_says_whatever_the_order_of_classes() {
        let here = policy(vec![class("a", 1.0), class("b", 1.0)], 2.0);
        let there = policy(vec![class("b", 1.0), class("new", 1.0), class("a", 1.0)], 2.0);
        let mut replica = vec![ClassReading::default(), ClassReading::default()];
        replica[1].counts.offered = 9;
        replica[1].counts.shed[3] = 4;
        replica[1].counts.bound = 4;
        replica[1].counts.buckets[40] = 5;
        replica[1].in_flight_peak = 3;
        let wanted = Wanted { wants: vec![9], told: [(1, ReportedDemand::default())].into() };
        let names = ["b/rate".to_owned()];
        let text = serde_json::to_string(&Report::new(&here, &replica, &names, &[(0, 7)], &wanted)).unwrap();
        let report: Report = serde_json::from_str(&text).unwrap();
        let read = report.reading(&there);
        assert_eq!((&read[0], &read[1], &read[2]), (&replica[1], &replica[0], &replica[0]));
        assert_eq!(report.demands["b/rate"], 7);
        let read = report.wanted(&there, &["a/rate".into(), "b/rate".into()]);
        assert_eq!((read.wants, read.told), (vec![0, 9], [(0, ReportedDemand::default())].into()));
    }
}
