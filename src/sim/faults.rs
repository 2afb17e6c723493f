//! What can go wrong between the head's metrics and the loop, and how a page looks then.
//!
//! The faults of the head itself (slower, restarted) and of the proxy (restarted, not
//! scheduled) act in `world`; here is what is done to scraped text. A lying exporter is the
//! worst: everything looks fresh and well-formed.

use super::rng::Rng;
use super::scenario::{FaultKind, FaultSpec, MetricsPage};
use std::fmt::Write as _;

/// The pages of agent and dashboard, each unless it is not to be had.
pub(crate) type Scraped = (Option<String>, Option<String>);

/// The faults active at this moment, as far as scrapes are concerned.
#[derive(Clone, Debug)]
pub(crate) struct MetricsWeather {
    /// Scrapes fail, of the agent and of the dashboard.
    pub missing: [bool; 2],
    /// The text that is served for ever, once it has been taken.
    pub frozen: Option<(String, String)>,
    /// Gauges are multiplied by this.
    pub lying: Option<f64>,
    /// Every value is NaN.
    pub nan: bool,
    /// Scrapes take so long, seconds.
    pub slow_s: Option<f64>,
    /// Counters began again here: the text at the moment of the reset.
    pub reset: Option<(String, String)>,
    /// Share of scrapes that are lost whatever else happens.
    lost: f64,
    /// Deviation of the logarithm of every gauge.
    noise: f64,
    rng: Rng,
}

impl MetricsWeather {
    /// Fair weather, but for scrapes that get lost and gauges that are noisy.
    #[must_use]
    pub(crate) fn new(lost: f64, noise: f64, rng: Rng) -> MetricsWeather {
        MetricsWeather {
            missing: [false; 2],
            frozen: None,
            lying: None,
            nan: false,
            slow_s: None,
            reset: None,
            lost,
            noise,
            rng,
        }
    }

    /// A fault begins; `pages` are the pages of this moment.
    pub(crate) fn begin(&mut self, fault: &FaultSpec, pages: (String, String)) {
        match fault.kind {
            FaultKind::MetricsMissing => {
                self.missing = [MetricsPage::Agent, MetricsPage::Dashboard]
                    .map(|page| fault.page.is_none_or(|missing| missing == page));
            }
            FaultKind::MetricsFrozen => self.frozen = Some(pages),
            FaultKind::MetricsLying => self.lying = Some(fault.factor),
            FaultKind::MetricsNan => self.nan = true,
            FaultKind::MetricsSlow => self.slow_s = Some(fault.factor),
            FaultKind::MetricsReset => self.reset = Some(pages),
            _ => {}
        }
    }

    /// It ends. A reset does not end: counters stay where they began again.
    pub(crate) fn end(&mut self, kind: FaultKind) {
        match kind {
            FaultKind::MetricsMissing => self.missing = [false; 2],
            FaultKind::MetricsFrozen => self.frozen = None,
            FaultKind::MetricsLying => self.lying = None,
            FaultKind::MetricsNan => self.nan = false,
            FaultKind::MetricsSlow => self.slow_s = None,
            _ => {}
        }
    }

    /// What a scrape reads: agent and dashboard page, each unless it is not to be had.
    #[must_use]
    pub(crate) fn pages(&mut self, agent: String, dashboard: String) -> Scraped {
        let lost = self.lost > 0.0 && self.rng.happens(self.lost);
        let [agent_missing, dashboard_missing] = self.missing.map(|missing| missing || lost);
        let (agent, dashboard) = match &self.frozen {
            Some(frozen) => frozen.clone(),
            None => self.bent(agent, dashboard),
        };
        ((!agent_missing).then_some(agent), (!dashboard_missing).then_some(dashboard))
    }

    /// The pages as the weather leaves them.
    fn bent(&mut self, agent: String, dashboard: String) -> (String, String) {
        let (rng, noise) = (&mut self.rng, self.noise);
        let mut bend = |page: String, zero: Option<&String>| {
            let mut page = page;
            if noise > 0.0 {
                page = values(&page, |_, gauge, value| if gauge { value * rng.jitter(noise) } else { value });
            }
            if let Some(zero) = zero {
                page = less(&page, zero);
            }
            if let Some(factor) = self.lying {
                page = values(&page, |_, gauge, value| if gauge { value * factor } else { value });
            }
            if self.nan {
                page = values(&page, |_, _, _| f64::NAN);
            }
            page
        };
        let zero = self.reset.as_ref();
        (bend(agent, zero.map(|pages| &pages.0)), bend(dashboard, zero.map(|pages| &pages.1)))
    }
}

/// The page with every value put through `change(series, is a gauge, value)`.
pub(super) fn values(page: &str, mut change: impl FnMut(&str, bool, f64) -> f64) -> String {
    let mut out = String::with_capacity(page.len());
    let mut gauge = false;
    for line in page.lines() {
        if line.starts_with("# TYPE") {
            gauge = line.ends_with(" gauge");
        }
        // Writing to a String cannot fail.
        let _ = match line.rsplit_once(' ').and_then(|(series, v)| Some((series, v.parse::<f64>().ok()?))) {
            Some((series, value)) if !line.starts_with('#') => {
                writeln!(out, "{series} {:?}", change(series, gauge, value))
            }
            _ => writeln!(out, "{line}"),
        };
    }
    out
}

/// The page with counters counted from where they stood in `zero`.
fn less(page: &str, zero: &str) -> String {
    let before: std::collections::BTreeMap<&str, f64> = zero
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(series, value)| Some((series, value.parse().ok()?)))
        .collect();
    values(
        page,
        |series, gauge, value| {
            if gauge { value } else { value - before.get(series).copied().unwrap_or(0.0) }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE a gauge\na{x=\"1\"} 10.0\n# TYPE b counter\nb{x=\"1\"} 7.0\n";

    fn fault(kind: FaultKind, factor: f64) -> FaultSpec {
        FaultSpec {
            kind,
            at_s: 0.0,
            for_s: None,
            factor,
            page: None,
            over_s: 0.0,
            config: None,
            every_s: None,
        }
    }

    fn read(kind: FaultKind, factor: f64, now: &str) -> Option<String> {
        let mut weather = MetricsWeather::new(0.0, 0.0, Rng::new(1, 1));
        weather.begin(&fault(kind, factor), (PAGE.to_owned(), PAGE.to_owned()));
        weather.pages(now.to_owned(), now.to_owned()).0
    }

    #[test]
    fn lost_scrapes_and_noise_are_as_frequent_and_as_large_as_asked_for() {
        let mut weather = MetricsWeather::new(0.3, 0.1, Rng::new(1, 1));
        let read: Vec<_> =
            (0..1000).filter_map(|_| weather.pages(PAGE.to_owned(), PAGE.to_owned()).0).collect();
        assert!((650..750).contains(&read.len()), "{} of 1000 came", read.len());
        assert!(read.iter().all(|page| page.contains("b{x=\"1\"} 7.0")), "counters are exact");
        assert!(read.iter().all(|page| !page.contains("a{x=\"1\"} 10.0\n")), "gauges are not");
    }

    #[test]
    fn one_page_of_two_can_be_missing() {
        let mut weather = MetricsWeather::new(0.0, 0.0, Rng::new(1, 1));
        let gone = FaultSpec { page: Some(MetricsPage::Agent), ..fault(FaultKind::MetricsMissing, 1.0) };
        weather.begin(&gone, (PAGE.to_owned(), PAGE.to_owned()));
        assert_eq!(weather.pages(PAGE.to_owned(), PAGE.to_owned()), (None, Some(PAGE.to_owned())));
    }

    #[test]
    fn each_fault_spoils_the_page_in_its_own_way() {
        let now = PAGE.replace("10.0", "20.0").replace("7.0", "9.0");
        assert_eq!(read(FaultKind::MetricsMissing, 1.0, &now), None);
        assert_eq!(read(FaultKind::MetricsFrozen, 1.0, &now), Some(PAGE.to_owned()));
        assert_eq!(read(FaultKind::MetricsLying, 0.5, &now), Some(now.replace("20.0", "10.0")));
        assert_eq!(read(FaultKind::MetricsReset, 1.0, &now), Some(now.replace("9.0", "2.0")));
        assert!(read(FaultKind::MetricsNan, 1.0, &now).is_some_and(|page| page.contains("b{x=\"1\"} NaN")));
    }
}
