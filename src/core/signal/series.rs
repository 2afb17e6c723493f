//! From pages, answers and probes to readings: which source speaks for a signal, and is it
//! news?
//!
//! A signal has alternatives, for names move between Ray's versions; the first one that lives
//! is used and said ([`SignalReader::found`]). An alternative gathers *parts*, one per target
//! on which it was found, since the drivers' tasks of a cluster are spread over its nodes. The
//! reading is derived from all of them together, and is as old as its oldest part.
//!
//! **News.** The loop may act once per new information, so `fresh` must not rise because a
//! page was asked for again. A part is news when
//!
//! - a selected sample changed: value, time stamp, or the set of series; or
//! - nothing selected changed, but its reporter said something else that is new (see
//!   [`Reporter`]): the gauge is honestly constant, and was true just now. Where samples carry
//!   their own time stamps these decide instead.
//!
//! Otherwise the old reading is handed out again with its old time, and
//! [`freshness`](crate::core::signal::freshness) calls it frozen once it is older than
//! `stale_after`. The healthy GCS moves hundreds of counters each report, so within two
//! reports (20 s at Ray's default) constant and frozen are told apart.
//!
//! **Counters.** Ray feeds its counters each 10 s whatever the cadence of scrapes, so a rate
//! is taken from change to change, not from scrape to scrape (else it would read 0, 0, 0, 40).
//! When nothing changes although the reporter speaks, the rate is zero after
//! [`SignalReader::quiet`]. Shares and quantiles gather observations until there are
//! [`OBSERVATIONS_MIN`] of them, or as long.
//!
//! **Absence.** For `Sum`, a family that is on the page without a matching series is zero:
//! Ray drops `ray_tasks{State="PENDING_..."}` when none is pending. For all others, and when
//! the family is not there at all, the next alternative is tried.
//!
//! **Time stamps.** A sample's own stamp dates the reading; one that goes back, or lies more
//! than [`STAMP_AHEAD_MAX`] in the future, makes it unusable. PromQL answers carry the time of
//! evaluation; equal answers count as news once in [`ANSWER_REPEATS`], as Prometheus does not
//! say whether an equal value was scraped again. A dead target behind Prometheus gives an
//! empty answer within one scrape; an exporter frozen behind Prometheus is not seen from here.
//!
//! Memory: at most [`TARGETS_MAX`] parts per alternative, each holding one page's selected
//! counters; parts not seen for `stale_after` are forgotten.

use crate::core::policy::{
    Derivation, How, LabelCondition, Policy, Selector, Signal, SignalId, SignalSource,
};
use crate::core::signal::derive::{Counters, Evidence, Flaw, Histograms, OBSERVATIONS_MIN};
use crate::core::signal::exposition::{Counts, Exposition, Filter, Reporter, Sample, line_name};
use crate::core::signal::reading::{Missing, Reading};
use crate::core::time::{Time, WallMs};
use std::sync::Arc;
use std::time::Duration;

/// More targets than this are refused.
pub const TARGETS_MAX: usize = 512;

/// A time stamp may lie so far ahead of this host's clock.
pub const STAMP_AHEAD_MAX: Duration = Duration::from_secs(5);

/// An equal PromQL answer is news once in so long.
pub const ANSWER_REPEATS: Duration = Duration::from_secs(10);

/// Turns what was observed into readings.
#[derive(Clone, Debug)]
pub struct SignalReader {
    filter: Filter,
    signals: Vec<Series>,
    targets: Vec<Arc<str>>,
    /// Why the target that failed last in this round did so, for signals not found elsewhere.
    failure: Option<Missing>,
}

/// Where a signal is read from, for people.
#[derive(Clone, PartialEq, Debug)]
pub struct Found {
    /// Which signal.
    pub signal: SignalId,
    /// Which of its alternatives, from 0.
    pub alternative: usize,
    /// `127.0.0.1:8080 ray_node_cpu_utilization`.
    pub source: Arc<str>,
}

#[derive(Clone, Debug)]
struct Series {
    stale_after: Duration,
    alternatives: Vec<Alternative>,
    fresh: u64,
    /// The alternative and its count of news in the last reading.
    told: Option<(usize, u64)>,
}

#[derive(Clone, Debug)]
struct Alternative {
    from: From,
    /// What is looked for, for people.
    name: Arc<str>,
    /// Where it was found.
    source: Arc<str>,
    parts: Vec<Part>,
    /// Rises with every part that is news.
    news: u64,
    /// Why the latest query or probe gave nothing.
    failing: Option<Missing>,
}

#[derive(Clone, Debug)]
enum From {
    Pages(Box<Selection>),
    Query(Arc<str>),
    Probe,
}

/// A derivation with its families looked up.
#[derive(Clone, Debug)]
struct Selection {
    family: usize,
    labels: Vec<LabelCondition>,
    how: How,
    scale: f64,
    divisor: Option<(usize, Vec<LabelCondition>)>,
}

/// What one target contributes.
#[derive(Clone, Debug)]
struct Part {
    target: Arc<str>,
    evidence: Result<Evidence, Flaw>,
    /// When the evidence was true.
    at: Time,
    /// When it was last seen there, news or not.
    heard: Time,
    /// Why the target's latest answer was none.
    failing: Option<Missing>,
    /// Digests of the selected samples, and of all that their reporters said.
    selected: u64,
    said: u64,
    stamp_ms: Option<i64>,
    baseline: Baseline,
}

/// The counters to which the next page is compared.
#[derive(Clone, Debug)]
enum Baseline {
    None,
    Counters(Time, Counters),
    Histograms(Time, Histograms),
}

impl SignalReader {
    /// A reader for the signals of a policy; nothing has been seen yet.
    #[must_use]
    pub fn new(policy: &Policy) -> SignalReader {
        let derivations = policy.signals.iter().flat_map(|signal| &signal.sources);
        let filter = Filter::new(derivations.filter_map(|source| match source {
            SignalSource::Scrape(derivation) => Some(derivation),
            _ => None,
        }));
        let signals = policy.signals.iter().map(|signal| Series::new(signal, &filter)).collect();
        SignalReader { filter, signals, targets: Vec::new(), failure: None }
    }

    /// Takes in a page. `began` is when it was asked for, `wall` the wall clock then.
    ///
    /// # Errors
    /// [`Missing::Unreachable`] when the page cannot be trusted as a whole, or there are more
    /// than [`TARGETS_MAX`] targets. The reader has noted the failure already.
    pub fn on_scrape(
        &mut self,
        target: &str,
        page: &[u8],
        began: Time,
        wall: WallMs,
    ) -> Result<Counts, Missing> {
        let Some(name) = self.target(target) else {
            let problem = format!("more than {TARGETS_MAX} targets; list fewer in the configuration");
            return Err(Missing::Unreachable { target: target.into(), problem: problem.into() });
        };
        match self.filter.read(page) {
            Ok(page) => {
                let seen = Seen { target: name, page: &page, began, wall };
                for series in &mut self.signals {
                    series.on_page(&seen);
                }
                Ok(page.counts)
            }
            Err(malformed) => {
                let missing = Missing::Unreachable { target: name, problem: malformed.to_string().into() };
                self.on_failure(target, &missing);
                Err(missing)
            }
        }
    }

    /// Takes in that a target gave no page.
    pub fn on_failure(&mut self, target: &str, missing: &Missing) {
        let alternatives = self.signals.iter_mut().flat_map(|series| &mut series.alternatives);
        let pages = alternatives.filter(|alternative| matches!(alternative.from, From::Pages(_)));
        for part in pages.flat_map(|alternative| &mut alternative.parts) {
            if *part.target == *target {
                part.failing = Some(missing.clone());
            }
        }
        self.failure = Some(missing.clone());
    }

    /// The PromQL expressions that must be asked, each with its signal.
    pub fn queries(&self) -> impl Iterator<Item = (SignalId, Arc<str>)> + '_ {
        self.with_ids().flat_map(|(id, series)| {
            series.alternatives.iter().filter_map(move |alternative| match &alternative.from {
                From::Query(expression) => Some((id, expression.clone())),
                _ => None,
            })
        })
    }

    /// Takes in the answer to a query: the value and when it was evaluated.
    pub fn on_answer(
        &mut self,
        signal: SignalId,
        expression: &str,
        server: &str,
        answer: &Result<(f64, WallMs), Missing>,
        now: Time,
        wall: WallMs,
    ) {
        let Some(series) = self.signals.get_mut(signal.index()) else { return };
        let stale_after = series.stale_after;
        for alternative in &mut series.alternatives {
            if matches!(&alternative.from, From::Query(asked) if **asked == *expression) {
                match answer {
                    Ok((value, evaluated)) => {
                        let said = Answer { server, value: *value, evaluated: *evaluated };
                        alternative.on_answer(&said, now, wall, stale_after);
                    }
                    Err(missing) => alternative.fail(missing),
                }
            }
        }
    }

    /// Whether any signal is read from the active probe.
    #[must_use]
    pub fn wants_probe(&self) -> bool {
        let mut alternatives = self.signals.iter().flat_map(|series| &series.alternatives);
        alternatives.any(|alternative| matches!(alternative.from, From::Probe))
    }

    /// Takes in a probe's latency in milliseconds (for one that ran out of time: that time, as
    /// the least it can have been), or that there was no answer.
    pub fn on_probe(&mut self, target: &str, latency_ms: &Result<f64, Missing>, began: Time) {
        for alternative in self.signals.iter_mut().flat_map(|series| &mut series.alternatives) {
            if matches!(alternative.from, From::Probe) {
                match latency_ms {
                    Ok(latency_ms) => {
                        let evidence = Evidence::of_value(*latency_ms);
                        alternative.part(target, began).renew(evidence, began);
                        alternative.failing = None;
                        alternative.news += 1;
                    }
                    Err(missing) => alternative.fail(missing),
                }
            }
        }
    }

    /// The readings as they stand, one answer for each signal that has a source. Call it once
    /// per round of scrapes, queries and probes.
    pub fn readings(&mut self, now: Time) -> Vec<(SignalId, Result<Reading, Missing>)> {
        let failure = self.failure.take();
        let read = |(place, series): (usize, &mut Series)| {
            let id = SignalId(u8::try_from(place).ok()?);
            Some((id, series.reading(id, failure.as_ref(), now)))
        };
        self.signals
            .iter_mut()
            .enumerate()
            .filter(|(_, series)| !series.alternatives.is_empty())
            .filter_map(read)
            .collect()
    }

    /// Which source speaks for each signal that has been found.
    pub fn found(&self) -> impl Iterator<Item = Found> + '_ {
        self.with_ids().filter_map(|(signal, series)| {
            let alternative = series.speaking()?;
            Some(Found { signal, alternative, source: series.alternatives[alternative].source.clone() })
        })
    }

    /// How long unchanged counters are waited for before they count as a rate of zero: half of
    /// `stale_after`, and at most 30 s.
    #[must_use]
    pub fn quiet(stale_after: Duration) -> Duration {
        (stale_after / 2).min(Duration::from_secs(30))
    }

    fn with_ids(&self) -> impl Iterator<Item = (SignalId, &Series)> {
        (0..=u8::MAX).map(SignalId).zip(&self.signals)
    }

    /// The target's name, kept once; none when there are too many.
    fn target(&mut self, name: &str) -> Option<Arc<str>> {
        if let Some(known) = self.targets.iter().find(|known| ***known == *name) {
            return Some(known.clone());
        }
        if self.targets.len() >= TARGETS_MAX {
            // Forget those that no signal was found on lately.
            let alternatives = self.signals.iter().flat_map(|series| &series.alternatives);
            let held: Vec<&Arc<str>> =
                alternatives.flat_map(|alternative| &alternative.parts).map(|part| &part.target).collect();
            self.targets.retain(|target| held.contains(&target));
        }
        if self.targets.len() >= TARGETS_MAX {
            return None;
        }
        self.targets.push(name.into());
        self.targets.last().cloned()
    }
}

/// A page and the circumstances.
struct Seen<'a> {
    target: Arc<str>,
    page: &'a Exposition,
    began: Time,
    wall: WallMs,
}

/// A server's answer to a query.
struct Answer<'a> {
    server: &'a str,
    value: f64,
    evaluated: WallMs,
}

impl Series {
    fn new(signal: &Signal, filter: &Filter) -> Series {
        let alternatives =
            signal.sources.iter().filter_map(|source| Alternative::new(source, filter)).collect();
        Series { stale_after: signal.stale_after, alternatives, fresh: 0, told: None }
    }

    fn on_page(&mut self, seen: &Seen<'_>) {
        let quiet = SignalReader::quiet(self.stale_after);
        for alternative in &mut self.alternatives {
            alternative.on_page(seen, quiet);
        }
    }

    fn speaking(&self) -> Option<usize> {
        self.alternatives.iter().position(|alternative| !alternative.parts.is_empty())
    }

    fn reading(&mut self, id: SignalId, failure: Option<&Missing>, now: Time) -> Result<Reading, Missing> {
        for alternative in &mut self.alternatives {
            alternative.forget_before(now - self.stale_after);
        }
        let Some(speaking) = self.speaking() else {
            return Err(self.absence(failure));
        };
        let alternative = &self.alternatives[speaking];
        let (value, resolution, at) = alternative.combine()?;
        if self.told != Some((speaking, alternative.news)) {
            self.told = Some((speaking, alternative.news));
            self.fresh += 1;
        }
        let source = alternative.source.clone();
        Ok(Reading { signal: id, value, at, fresh: self.fresh, resolution, source })
    }

    /// Why no alternative speaks: a source that fails, else nothing was found in any page.
    fn absence(&self, failure: Option<&Missing>) -> Missing {
        let reads_pages = |alternative: &Alternative| matches!(alternative.from, From::Pages(_));
        let failing = self.alternatives.iter().find_map(|alternative| alternative.failing.as_ref());
        if let Some(missing) = failing.or(failure.filter(|_| self.alternatives.iter().any(reads_pages))) {
            return missing.clone();
        }
        let tried: Vec<&str> = self.alternatives.iter().map(|alternative| &*alternative.name).collect();
        Missing::NotFound { tried: tried.join(", ").into() }
    }
}

impl Alternative {
    fn new(source: &SignalSource, filter: &Filter) -> Option<Alternative> {
        let (from, name) = match source {
            SignalSource::Scrape(derivation) => {
                (From::Pages(Box::new(Selection::new(derivation, filter)?)), describe(&derivation.select))
            }
            SignalSource::PromQl(expression) => (From::Query(expression.clone()), expression.to_string()),
            SignalSource::Probe => (From::Probe, "the probe of /api/gcs_healthz".to_owned()),
        };
        Some(Alternative {
            from,
            name: name.into(),
            source: "".into(),
            parts: Vec::new(),
            news: 0,
            failing: None,
        })
    }

    fn on_page(&mut self, seen: &Seen<'_>, quiet: Duration) {
        let From::Pages(selection) = &self.from else { return };
        let selection = selection.clone();
        if !selection.is_on(seen.page) {
            self.parts.retain(|part| part.target != seen.target);
            self.rename();
            return;
        }
        let part = self.part(&seen.target, seen.began);
        if part.take(&selection, seen, quiet) {
            self.news += 1;
        }
    }

    fn on_answer(&mut self, said: &Answer<'_>, now: Time, wall: WallMs, stale_after: Duration) {
        self.failing = None;
        let part = self.part(said.server, now);
        let stamp_ms = i64::try_from(said.evaluated.0).ok();
        let is_first = part.selected == 0;
        let selected = digest([said.value.to_bits(), 1]);
        let dated = date(stamp_ms, part.stamp_ms, now, wall);
        let repeats = ANSWER_REPEATS.min(stale_after / 2);
        part.heard = now;
        part.failing = None;
        match dated {
            Err(flaw) => part.evidence = Err(flaw),
            Ok(at) if is_first || selected != part.selected || at.since(part.at) >= repeats => {
                part.renew(Evidence::of_value(said.value), at);
                part.selected = selected;
                part.stamp_ms = stamp_ms;
                self.news += 1;
            }
            Ok(_) => {}
        }
    }

    fn fail(&mut self, missing: &Missing) {
        self.failing = Some(missing.clone());
        for part in &mut self.parts {
            part.failing = Some(missing.clone());
        }
    }

    fn part(&mut self, target: &str, began: Time) -> &mut Part {
        let place = self.parts.iter().position(|part| *part.target == *target);
        let place = place.unwrap_or_else(|| {
            self.parts.push(Part::new(target.into(), began));
            self.rename();
            self.parts.len() - 1
        });
        &mut self.parts[place]
    }

    fn rename(&mut self) {
        self.source = match self.parts.as_slice() {
            [] => "".into(),
            [one] => format!("{} {}", one.target, self.name).into(),
            parts => format!("{} targets {}", parts.len(), self.name).into(),
        };
    }

    fn forget_before(&mut self, time: Time) {
        let before = self.parts.len();
        self.parts.retain(|part| part.heard >= time);
        if self.parts.len() != before {
            self.rename();
        }
    }

    /// All parts as one value, its resolution, and the time of the oldest.
    fn combine(&self) -> Result<(f64, f64, Time), Missing> {
        if self.parts.iter().all(|part| part.failing.is_some())
            && let Some(missing) = self.parts.first().and_then(|part| part.failing.clone())
        {
            return Err(missing);
        }
        let unusable =
            |flaw: Flaw| Missing::Unusable { metric: self.source.clone(), problem: flaw.to_string().into() };
        let mut whole: Option<(Evidence, Time)> = None;
        let mut waits = Flaw::First;
        for part in &self.parts {
            match &part.evidence {
                Ok(evidence) => match &mut whole {
                    None => whole = Some((evidence.clone(), part.at)),
                    Some((sum, at)) => {
                        sum.merge(evidence).map_err(unusable)?;
                        *at = part.at.min(*at);
                    }
                },
                // A part that has nothing to say yet does not silence the others.
                Err(flaw @ (Flaw::First | Flaw::NoObservation | Flaw::FewObservations { .. })) => {
                    waits = flaw.clone();
                }
                Err(flaw) => return Err(unusable(flaw.clone())),
            }
        }
        let (evidence, at) = whole.ok_or_else(|| unusable(waits))?;
        let (how, scale) = match &self.from {
            From::Pages(selection) => (&selection.how, selection.scale),
            From::Query(_) | From::Probe => (&How::Max, 1.0),
        };
        let value = evidence.value(how).map_err(unusable)?;
        let scaled = value.value * scale;
        if !scaled.is_finite() || scaled < 0.0 {
            return Err(unusable(Flaw::NotFinite { bad: 1, of: 1 }));
        }
        Ok((scaled, value.resolution, at))
    }
}

impl Selection {
    fn new(derivation: &Derivation, filter: &Filter) -> Option<Selection> {
        let Derivation { select, how, scale } = derivation;
        let divisor = match how {
            How::RatioTo(other) => Some((filter.family(&other.metric)?, other.labels.clone())),
            _ => None,
        };
        let family = filter.family(&line_name(select, how))?;
        Some(Selection { family, labels: select.labels.clone(), how: how.clone(), scale: *scale, divisor })
    }

    fn is_on(&self, page: &Exposition) -> bool {
        match self.how {
            How::Sum => page.family_lines[self.family] > 0,
            _ => page.samples.iter().any(|sample| self.selects(sample)),
        }
    }

    fn selects(&self, sample: &Sample) -> bool {
        sample.family == self.family && sample.satisfies(&self.labels)
    }

    fn divides(&self, sample: &Sample) -> bool {
        self.divisor
            .as_ref()
            .is_some_and(|(family, labels)| sample.family == *family && sample.satisfies(labels))
    }

    fn lost(&self, page: &Exposition) -> usize {
        page.family_lost[self.family]
            + self.divisor.as_ref().map_or(0, |(family, _)| page.family_lost[*family])
    }
}

impl Part {
    fn new(target: Arc<str>, began: Time) -> Part {
        Part {
            target,
            evidence: Err(Flaw::First),
            at: began,
            heard: began,
            failing: None,
            selected: 0,
            said: 0,
            stamp_ms: None,
            baseline: Baseline::None,
        }
    }

    fn renew(&mut self, evidence: Evidence, at: Time) {
        self.evidence = Ok(evidence);
        self.at = at;
        self.heard = self.heard.max(at);
        self.failing = None;
    }

    /// Takes in a page on which the selection was found; true when that is news.
    fn take(&mut self, selection: &Selection, seen: &Seen<'_>, quiet: Duration) -> bool {
        let page = seen.page;
        let samples: Vec<&Sample> = page.samples.iter().filter(|sample| selection.selects(sample)).collect();
        let divisor: Vec<&Sample> = page.samples.iter().filter(|sample| selection.divides(sample)).collect();
        let stamp_ms = samples.iter().filter_map(|sample| sample.stamp_ms).max();
        let selected =
            samples.iter().chain(&divisor).map(|sample| fingerprint(sample)).fold(1, u64::wrapping_add);
        let said = match samples.first() {
            _ if stamp_ms.is_some() => 0,
            Some(sample) => page.reported(sample.reporter),
            None => page.reported(Reporter::Other),
        };
        let is_alive = selected != self.selected || said != self.said;
        let dated = date(stamp_ms, self.stamp_ms, seen.began, seen.wall);
        self.heard = seen.began;
        self.failing = None;
        let lost = selection.lost(page);
        let at = match dated {
            Err(flaw) => {
                self.evidence = Err(flaw);
                return false;
            }
            Ok(_) if lost > 0 => {
                self.evidence = Err(Flaw::Lost { lost });
                return false;
            }
            Ok(at) => at,
        };
        self.selected = selected;
        self.said = said;
        self.stamp_ms = stamp_ms;
        let evidence = match &selection.how {
            // Nothing new, and what is there can be used.
            _ if !is_alive && self.evidence.is_ok() => return false,
            How::Sum | How::Max => Evidence::of_gauges(&samples, &selection.how).map(Some),
            How::RatioTo(_) => Evidence::of_ratio(&samples, &divisor).map(Some),
            How::Rate => self.rate(&samples, seen.began, quiet),
            How::ShareAbove(_) | How::Quantile(_) => self.observations(&samples, seen.began, quiet),
        };
        match evidence {
            Ok(None) => false,
            Ok(Some(evidence)) => {
                self.renew(evidence, at);
                true
            }
            Err(flaw) => {
                self.evidence = Err(flaw);
                false
            }
        }
    }

    /// Increase per second from change to change; none while it is too early to say zero.
    fn rate(&mut self, samples: &[&Sample], now: Time, quiet: Duration) -> Result<Option<Evidence>, Flaw> {
        let counters = Counters::of(samples)?;
        let Baseline::Counters(since, before) = &self.baseline else {
            self.baseline = Baseline::Counters(now, counters);
            return Err(Flaw::First);
        };
        let length = now.since(*since);
        if length.is_zero() || (counters == *before && length < quiet) {
            return Ok(None);
        }
        let rate = counters.since(before) / length.as_secs_f64();
        self.baseline = Baseline::Counters(now, counters);
        Ok(Some(Evidence::PerSecond(rate)))
    }

    fn observations(
        &mut self,
        samples: &[&Sample],
        now: Time,
        quiet: Duration,
    ) -> Result<Option<Evidence>, Flaw> {
        let histograms = Histograms::of(samples)?;
        let Baseline::Histograms(since, before) = &self.baseline else {
            self.baseline = Baseline::Histograms(now, histograms);
            return Err(Flaw::First);
        };
        let since = *since;
        let new = histograms.since(before)?;
        let seen = new.count();
        if seen == 0.0 {
            // New series, or old ones with new bounds, count from here.
            self.baseline = Baseline::Histograms(since, histograms);
            return Err(Flaw::NoObservation);
        }
        if seen < OBSERVATIONS_MIN && now.since(since) < quiet {
            return Err(Flaw::FewObservations { seen, wanted: OBSERVATIONS_MIN });
        }
        self.baseline = Baseline::Histograms(now, histograms);
        Ok(Some(Evidence::Buckets(new)))
    }
}

/// When a value with this time stamp was true, on the driver's time line.
fn date(stamp_ms: Option<i64>, before_ms: Option<i64>, now: Time, wall: WallMs) -> Result<Time, Flaw> {
    let Some(stamp_ms) = stamp_ms else { return Ok(now) };
    let length =
        |from: i64, to: i64| Duration::from_millis(u64::try_from(to.saturating_sub(from)).unwrap_or(0));
    if let Some(before_ms) = before_ms
        && stamp_ms < before_ms
    {
        return Err(Flaw::StampBack { by: length(stamp_ms, before_ms) });
    }
    let wall_ms = i64::try_from(wall.0).unwrap_or(i64::MAX);
    let ahead = length(wall_ms, stamp_ms);
    if ahead > STAMP_AHEAD_MAX {
        return Err(Flaw::StampAhead { by: ahead });
    }
    Ok(now - length(stamp_ms, wall_ms))
}

fn fingerprint(sample: &Sample) -> u64 {
    let stamp = sample.stamp_ms.map_or(0, i64::cast_unsigned);
    digest([sample.series, sample.le.map_or(0, f64::to_bits), sample.value.to_bits(), stamp])
}

fn digest<const N: usize>(words: [u64; N]) -> u64 {
    words.iter().fold(0x9E37_79B9_7F4A_7C15, |hash: u64, word| {
        let mixed = (hash.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^ (mixed >> 29)
    })
}

/// A selector as PromQL writes it.
fn describe(select: &Selector) -> String {
    let condition = |condition: &LabelCondition| match condition {
        LabelCondition::Is(label, value) => format!("{label}=\"{value}\""),
        LabelCondition::IsNot(label, value) => format!("{label}!=\"{value}\""),
        LabelCondition::StartsWith(label, start) => format!("{label}=~\"{start}.*\""),
        LabelCondition::OneOf(label, values) => format!("{label}=~\"{}\"", values.join("|")),
    };
    let conditions: Vec<String> = select.labels.iter().map(condition).collect();
    if conditions.is_empty() {
        select.metric.to_string()
    } else {
        format!("{}{{{}}}", select.metric, conditions.join(","))
    }
}
