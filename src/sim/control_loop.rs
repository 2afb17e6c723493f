//! The production loop under virtual time: the same reader, controller and table swap as `run`.
//!
//! Scraped pages go through the production parser; every event of the controller becomes a line of
//! the adjustment log. Wall time is virtual too (plus whatever a clock
//! fault adds), so equal seeds give equal adjustment logs.

use super::faults::Scraped;
use super::proxy::{Rid, SimProxy};
use rayguard_core::admission::table::Mode;
use rayguard_core::alert::Alert;
use rayguard_core::control::job_starts::{JobStarts, JobState};
use rayguard_core::controller::{Controller, Effects, LastGood, read_proxy};
use rayguard_core::event::{Event, LoggedEvent};
use rayguard_core::policy::{ClassId, Policy};
use rayguard_core::signal::reading::Missing;
use rayguard_core::signal::series::SignalReader;
use rayguard_core::time::{Time, WallMs};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// The wall clock at the start of every simulation, milliseconds since the epoch.
const WALL_START_MS: f64 = 1_795_000_000_000.0;

const AGENT: &str = "127.0.0.1:8080";
const DASHBOARD: &str = "127.0.0.1:44227";

/// A job: the life of the head in which it was let in, and its submission.
pub(crate) type Job = (u32, Rid);

/// The loop.
#[derive(Debug)]
pub(crate) struct ControlLoop {
    controller: Controller,
    reader: SignalReader,
    job_starts: JobStarts<Job>,
    period: Duration,
    seq: u64,
    pending: Vec<Event>,
    /// How often a limit was lowered.
    cuts: u64,
    #[cfg(test)]
    pub(super) defect: Option<super::defects_tests::Defect>,
    #[cfg(test)]
    last: Scraped,
}

fn wall(now: Time, offset_s: f64) -> WallMs {
    let ms = WALL_START_MS + (now.as_secs_f64() + offset_s) * 1e3;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    WallMs(ms as u64)
}

impl ControlLoop {
    /// A loop that has seen nothing; limits start at the last run's where they are given.
    #[must_use]
    pub(crate) fn new(proxy: &mut SimProxy, last_good: &[LastGood], now: Time) -> ControlLoop {
        let modes = vec![Mode::Enforce; proxy.policy.classes.len()];
        let controller = Controller::new(proxy.policy.clone(), &modes, last_good, now);
        proxy.table = controller.table();
        ControlLoop {
            reader: SignalReader::new(&proxy.policy),
            job_starts: JobStarts::default(),
            period: proxy.policy.control.inner_period,
            controller,
            seq: 0,
            pending: Vec::new(),
            cuts: 0,
            #[cfg(test)]
            defect: None,
            #[cfg(test)]
            last: (None, None),
        }
    }

    /// Takes on a new policy; limits and averages go on.
    pub(crate) fn reload(&mut self, proxy: &mut SimProxy, policy: Arc<Policy>, now: Time) {
        let modes = vec![Mode::Enforce; policy.classes.len()];
        let rules = Alert::ALL.into_iter().map(|alert| (alert, alert.patience())).collect();
        self.reader = self.reader.reconfigure(self.controller.policy(), &policy);
        self.controller = self.controller.reconfigure(policy, &modes, &rules, now);
        self.period = proxy.policy.control.inner_period;
        proxy.table = self.controller.table();
    }

    /// Time between two ticks.
    #[must_use]
    pub(crate) fn period(&self) -> Duration {
        self.period
    }

    /// Limits worth starting from after a restart.
    #[must_use]
    pub(crate) fn last_good(&self) -> Vec<LastGood> {
        self.controller.last_good()
    }

    /// The pressure on a class, 1 at its target; 0 while nothing is known of it.
    #[must_use]
    pub(crate) fn pressure(&self, class: ClassId) -> f64 {
        self.controller.pressure(class).unwrap_or(0.0)
    }

    /// How often a limit has been lowered since this was last asked.
    pub(crate) fn take_cuts(&mut self) -> u64 {
        std::mem::take(&mut self.cuts)
    }

    /// When the first scrape is: out of step with everything else.
    #[must_use]
    pub(crate) fn scrape_phase(every: Duration) -> Duration {
        every.min(Duration::from_secs(10)).mul_f64(0.37)
    }

    /// The pages of agent and dashboard came, or their scrape failed.
    pub(crate) fn on_scrape(&mut self, scraped: &Scraped, began: Time, now: Time, offset_s: f64) {
        #[cfg(test)]
        let bent = self.defect.map(|defect| defect.read(scraped, &mut self.last, now));
        #[cfg(test)]
        let (scraped, now) =
            (bent.as_ref().unwrap_or(scraped), self.defect.map_or(now, |defect| defect.time(now, offset_s)));
        let (agent, dashboard) = scraped;
        for (target, page) in [(AGENT, agent), (DASHBOARD, dashboard)] {
            if let Some(page) = page {
                // A page that cannot be read is noted by the reader itself.
                let _ = self.reader.on_scrape(target, page.as_bytes(), began, wall(began, offset_s));
            } else {
                let missing = Missing::Unreachable { target: target.into(), problem: "timed out".into() };
                self.reader.on_failure(target, &missing);
            }
        }
        self.take_readings(now);
    }

    /// A probe came back, or ran out of time.
    pub(crate) fn on_probe(&mut self, latency_ms: Option<f64>, began: Time, now: Time) {
        let seen = latency_ms
            .ok_or_else(|| Missing::Unreachable { target: "probe".into(), problem: "no answer".into() });
        self.reader.on_probe("probe", &seen, began);
        self.take_readings(now);
    }

    /// A submission was answered.
    pub(crate) fn on_submitted(&mut self, job: Job, now: Time) {
        self.job_starts.on_submitted(job, now);
    }

    /// The job to ask for its state.
    pub(crate) fn job_to_ask(&mut self, now: Time) -> Option<Job> {
        self.controller.follows_job_starts().then(|| self.job_starts.next(now)).flatten()
    }

    /// A job said what state it is in.
    pub(crate) fn on_job_state(&mut self, job: Job, state: JobState, now: Time) {
        self.job_starts.on_answer(&job, state, now);
    }

    fn take_readings(&mut self, now: Time) {
        let readings = self.reader.readings(now);
        let effects = self.controller.on_readings(&readings, now);
        self.pending.extend(effects.events);
    }

    /// One step; says whether the table changed. What happened goes into the adjustment log, if there is one.
    pub(crate) fn tick(
        &mut self,
        proxy: &mut SimProxy,
        now: Time,
        offset_s: f64,
        adjustment_log: Option<&mut (dyn Write + '_)>,
    ) -> bool {
        #[cfg(test)]
        let now = self.defect.map_or(now, |defect| defect.time(now, offset_s));
        let seen = read_proxy(&proxy.admission, proxy.policy.classes.len(), now);
        self.controller.on_job_starts(self.job_starts.waiting(now));
        let effects: Effects = self.controller.on_tick(seen, now, wall(now, offset_s));
        for (class, seconds) in &effects.spreads {
            proxy.admission.spread(*class, *seconds);
        }
        self.pending.extend(effects.events);
        let lowers = |event: &&Event| matches!(event, Event::Adjustment(step) if step.new < step.old);
        self.cuts += self.pending.iter().filter(lowers).count() as u64;
        if let Some(adjustment_log) = adjustment_log {
            self.record(now, offset_s, adjustment_log);
        }
        self.pending.clear();
        match effects.table {
            Some(table) => {
                proxy.table = table;
                true
            }
            None => false,
        }
    }

    fn record(&mut self, now: Time, offset_s: f64, adjustment_log: &mut (dyn Write + '_)) {
        for event in self.pending.drain(..) {
            let logged = LoggedEvent { time: wall(now, offset_s), seq: self.seq, at: now, event };
            self.seq += 1;
            // Every event has a JSON form: numbers were cleaned before they were acted on. And a
            // adjustment log that cannot be written knows why.
            if let Ok(line) = serde_json::to_string(&logged) {
                let _ = writeln!(adjustment_log, "{line}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Guard;
    use crate::scenario::Scenario;
    use crate::world::{Conditions, Onlooker, Traces, run_under};
    use rayguard_core::event::LimitKind;
    use std::collections::BTreeMap;

    /// Of each class that was refused anything or whose limit moved: the lowest its limit came to, over
    /// what it was first seen at, and the share that was refused where most was.
    fn cuts(scenario: &str) -> BTreeMap<String, (f64, f64)> {
        let scenario = Scenario::read(scenario).unwrap();
        let (conditions, mut adjustment_log) = (Conditions::of(&scenario), String::new());
        let onlooker = Onlooker { adjustment_log: Some(&mut adjustment_log), ..Onlooker::default() };
        run_under(&scenario, conditions, Guard::Rayguard, 1, &Traces::new(), onlooker).unwrap();
        let mut first: BTreeMap<String, f64> = BTreeMap::new();
        let mut cuts: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for logged in adjustment_log.lines().filter_map(|line| serde_json::from_str::<LoggedEvent>(line).ok())
        {
            match logged.event {
                Event::Adjustment(adjustment) if adjustment.limit == LimitKind::InFlight => {
                    let first = *first.entry(adjustment.class.clone()).or_insert(adjustment.old);
                    let cut = cuts.entry(adjustment.class).or_insert((1.0, 0.0));
                    cut.0 = cut.0.min(adjustment.new / first);
                }
                Event::ShedSummary(shed) => {
                    let refused: u64 = shed.causes.iter().map(|cause| cause.count).sum();
                    let cut = cuts.entry(shed.class).or_insert((1.0, 0.0));
                    cut.1 = cut.1.max(refused as f64 / shed.offered.max(1) as f64);
                }
                _ => {}
            }
        }
        cuts
    }

    #[test]
    fn a_flood_of_heavy_state_calls_is_refused_and_no_other_class_loses_a_tenth() {
        // Each asks with a credential of its own: nothing is shared, all of it would be work.
        let flood = include_str!("../../simulations/ray-state-flood.toml");
        let mut cuts = cuts(&flood.replace("addresses = 16", "addresses = 600"));
        let flooded = cuts.remove("state-heavy").unwrap();
        assert!(flooded.1 > 0.5, "the flood is refused: {flooded:?}");
        for (class, (depth, refused)) in cuts {
            assert!(depth >= 0.9 && refused <= 0.1, "{class}: limit x{depth}, {refused} refused");
        }
    }
}
