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
//! [`freshness`](crate::signal::freshness) calls it frozen once it is older than
//! `stale_after`. The healthy GCS moves hundreds of counters each report, so within two
//! reports (20 s at Ray's default) constant and frozen are told apart.
//!
//! **Counters.** Ray feeds its counters each 10 s whatever the cadence of scrapes, so a rate
//! is taken from change to change, not from scrape to scrape (else it would read 0, 0, 0, 40).
//! When nothing changes although the reporter speaks, the rate is zero after
//! [`SignalReader::quiet`]. Shares and quantiles gather observations until there are
//! `OBSERVATIONS_MIN` of them, or as long.
//!
//! **Absence.** For `Sum`, a family that is on the page without a matching series is zero:
//! Ray drops `ray_tasks{State="PENDING_..."}` when none is pending. But Ray also drops the
//! gauges of a reporter that has missed two reports, and `ray_actors` is fed by the GCS and by workers:
//! a GCS too busy to report must not read as "no backlog". So it is zero only while the
//! family has a line of the reporter that would say otherwise. For all others, and when there
//! is none, the next alternative is tried.
//!
//! **Time stamps.** A sample's own stamp dates the reading; one that goes back, or lies more
//! than `STAMP_AHEAD_MAX` in the future, makes it unusable. PromQL answers carry the time of
//! evaluation, and Prometheus does not say whether an equal value was scraped again. An equal answer shows that the
//! target lives, since a dead one gives an empty answer within one scrape, and keeps the reading young; it is news only
//! after as long as its answers have been seen to take from one change to the next, which is Prometheus' own scrape
//! interval where the value moves, and `ANSWER_REPEATS` at least: a law that takes one measurement for six steps
//! six times. An exporter frozen behind Prometheus is not seen from here.
//!
//! Memory: at most [`TARGETS_MAX`] parts per alternative, each holding one page's selected
//! counters; parts not seen for `stale_after` are forgotten, those of a target that fails after
//! `LOST_MAX`. A sum without a page that cannot be had would be a smaller number that looks as good,
//! so it stays as old as what it lacks, and goes stale; a node that has left is said to have
//! ([`SignalReader::keep_targets`]).

use crate::policy::{Derivation, How, LabelCondition, Policy, Selector, Signal, SignalId, SignalSource};
use crate::signal::derive::{Counters, Evidence, Histograms, OBSERVATIONS_MIN, SampleError};
use crate::signal::exposition::{
    Counts, Exposition, FAMILY_LINES_MAX, Filter, Reporter, Sample, Whose, line_name,
};
use crate::signal::reading::{Missing, Reading};
use crate::signal::selector;
use crate::time::{Time, WallMs};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// More targets than this are refused.
pub const TARGETS_MAX: usize = 4096;

/// A time stamp may lie so far ahead of this host's clock.
pub(crate) const STAMP_AHEAD_MAX: Duration = Duration::from_secs(5);

/// An equal PromQL answer is news no more often than this.
pub(crate) const ANSWER_REPEATS: Duration = Duration::from_secs(10);

/// Answers that stay equal for longer say nothing of how often Prometheus scrapes: a minute, and a question late.
const SCRAPES_APART_MAX: Duration = Duration::from_secs(75);

/// A target that fails is waited for at most so long; a list written by hand may name a dead node.
pub(crate) const LOST_MAX: Duration = Duration::from_secs(3600);

/// Turns what was observed into readings.
#[derive(Clone, Debug)]
pub struct SignalReader {
    filter: Filter,
    signals: Vec<Series>,
    targets: Vec<Arc<str>>,
    /// Those of them whose page has said that it is the head's.
    of_head: BTreeSet<Arc<str>>,
    /// The target that failed last and why, until it answers: for signals not found elsewhere.
    failure: Option<(Arc<str>, Missing)>,
    /// No page has come yet, and why not, if that is known.
    pageless: Option<Missing>,
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
    reporter: Reporter,
    labels: Vec<LabelCondition>,
    how: How,
    scale: f64,
    divisor: Option<(usize, Vec<LabelCondition>)>,
    /// Whether the head alone says this.
    of_head: bool,
}

/// What one target contributes.
#[derive(Clone, Debug)]
struct Part {
    target: Arc<str>,
    evidence: Result<Evidence, SampleError>,
    /// Whether it says more than what something else is divided by.
    bears: bool,
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
    answers: Answers,
}

/// How the answers to a query follow one another.
#[derive(Clone, Copy, Default, Debug)]
struct Answers {
    /// When the latest that differed from the one before was evaluated, and the latest that was news.
    changed: Option<Time>,
    counted: Option<Time>,
    /// From one change to the next, at the least; it grows slowly, so that a longer interval is found out too.
    apart: Option<Duration>,
}

impl Answers {
    /// Takes in an answer evaluated `at`; whether it is news.
    fn is_news(&mut self, differs: bool, at: Time) -> bool {
        if differs {
            let apart =
                self.changed.map(|before| at.since(before)).filter(|apart| *apart <= SCRAPES_APART_MAX);
            if let Some(apart) = apart {
                let known = self.apart.unwrap_or(apart);
                self.apart = Some(apart.min(known + apart.saturating_sub(known) / 8));
            }
            self.changed = Some(at);
        }
        let repeats = self.apart.unwrap_or_default().max(ANSWER_REPEATS);
        let is_news = differs || self.counted.is_none_or(|before| at.since(before) >= repeats);
        if is_news {
            self.counted = Some(at);
        }
        is_news
    }
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
    pub fn new(policy: &Policy) -> SignalReader {
        let derivations = policy.signals.iter().flat_map(|signal| &signal.sources);
        let filter = Filter::new(derivations.filter_map(|source| match source {
            SignalSource::Scrape(derivation) => Some(derivation),
            _ => None,
        }));
        let signals = policy.signals.iter().map(|signal| Series::new(signal, &filter)).collect();
        SignalReader {
            filter,
            signals,
            targets: Vec::new(),
            of_head: BTreeSet::new(),
            failure: None,
            pageless: Some(Missing::NoPage { why: None }),
        }
    }

    /// A reader for another policy, which goes on with what was seen of each signal that is read as it was: rates and
    /// shares need no second page. News is counted on for every signal of the same name.
    #[must_use]
    pub fn reconfigure(&self, own: &Policy, policy: &Policy) -> SignalReader {
        let mut next = SignalReader {
            targets: self.targets.clone(),
            of_head: self.of_head.clone(),
            failure: self.failure.clone(),
            pageless: self.pageless.clone(),
            ..SignalReader::new(policy)
        };
        for (signal, series) in policy.signals.iter().zip(&mut next.signals) {
            let known = own.signals.iter().zip(&self.signals).find(|(known, _)| known.name == signal.name);
            let Some((known, before)) = known else { continue };
            let is_read_alike = known.sources == signal.sources && known.stale_after == signal.stale_after;
            if is_read_alike && series.alternatives.len() == before.alternatives.len() {
                series.told = before.told;
                for (of, before) in series.alternatives.iter_mut().zip(&before.alternatives) {
                    *of = Alternative { from: of.from.clone(), ..before.clone() };
                }
            }
            series.fresh = before.fresh;
        }
        next
    }

    /// Forgets all that was read: it is of other sources.
    pub fn forget(&mut self) {
        let alternatives = self.signals.iter_mut().flat_map(|series| &mut series.alternatives);
        for alternative in alternatives {
            alternative.parts.clear();
            alternative.failing = None;
            alternative.news += 1;
        }
        self.targets.clear();
        self.of_head.clear();
        (self.failure, self.pageless) = (None, Some(Missing::NoPage { why: None }));
    }

    /// Takes in why no target is known, as long as no page has come.
    pub fn on_no_target(&mut self, why: &str) {
        if let Some(pageless) = &mut self.pageless {
            *pageless = Missing::NoPage { why: Some(why.into()) };
        }
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
                self.pageless = None;
                match page.whose() {
                    Whose::Heads => _ = self.of_head.insert(name.clone()),
                    Whose::Nodes => _ = self.of_head.remove(&name),
                    Whose::Unsaid => {}
                }
                let of_head = self.of_head.contains(&name);
                let seen = Seen { target: name, page: &page, of_head, began, wall };
                for series in &mut self.signals {
                    series.on_page(&seen);
                }
                if self.failure.as_ref().is_some_and(|(failed, _)| **failed == *target) {
                    self.failure = None;
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

    /// Takes in that a target gave no page. Of a signal that is found nowhere it is the reason.
    pub fn on_failure(&mut self, target: &str, missing: &Missing) {
        self.on_node_failure(target, missing);
        self.failure = Some((target.into(), missing.clone()));
    }

    /// The same of a node that is not the head: what is not found on the head's own pages is not
    /// missing on its account.
    pub fn on_node_failure(&mut self, target: &str, missing: &Missing) {
        let alternatives = self.signals.iter_mut().flat_map(|series| &mut series.alternatives);
        let pages = alternatives.filter(|alternative| matches!(alternative.from, From::Pages(_)));
        for part in pages.flat_map(|alternative| &mut alternative.parts) {
            if *part.target == *target {
                part.failing = Some(missing.clone());
            }
        }
    }

    /// Forgets what targets said that are there no more: a node that has left has no tasks.
    pub fn keep_targets(&mut self, is_there: impl Fn(&str) -> bool) {
        self.targets.retain(|target| is_there(target));
        self.of_head.retain(|target| is_there(target));
        self.failure.take_if(|(target, _)| !is_there(target));
        let alternatives = self.signals.iter_mut().flat_map(|series| &mut series.alternatives);
        for alternative in alternatives.filter(|alternative| matches!(alternative.from, From::Pages(_))) {
            let before = alternative.parts.len();
            alternative.parts.retain(|part| is_there(&part.target));
            if alternative.parts.len() != before {
                alternative.rename();
                alternative.news += 1;
            }
        }
    }

    /// The targets whose page has said that it is the head's.
    pub fn of_head(&self) -> impl Iterator<Item = &str> + '_ {
        self.of_head.iter().map(|target| &**target)
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
        for alternative in &mut series.alternatives {
            if matches!(&alternative.from, From::Query(asked) if **asked == *expression) {
                match answer {
                    Ok((value, evaluated)) => {
                        let said = Answer { server, value: *value, evaluated: *evaluated };
                        alternative.on_answer(&said, now, wall);
                    }
                    Err(missing) => alternative.fail(missing),
                }
            }
        }
    }

    /// Whether any of these signals is read from pages of other nodes than the head.
    pub fn wants_nodes(&self, signals: impl IntoIterator<Item = SignalId>) -> bool {
        let series = signals.into_iter().filter_map(|id| self.signals.get(id.index()));
        series.flat_map(|series| &series.alternatives).any(|alternative| match &alternative.from {
            From::Pages(selection) => !selection.of_head,
            From::Query(_) | From::Probe => false,
        })
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
        let failure = self.failure.as_ref().map(|(_, missing)| missing).or(self.pageless.as_ref());
        let read = |(place, series): (usize, &mut Series)| {
            let id = SignalId(u8::try_from(place).ok()?);
            Some((id, series.reading(id, failure, now)))
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
    /// Whether this target's page is the head's.
    of_head: bool,
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
        self.alternatives.iter().position(|alternative| alternative.parts.iter().any(|part| part.bears))
    }

    fn reading(&mut self, id: SignalId, failure: Option<&Missing>, now: Time) -> Result<Reading, Missing> {
        for alternative in &mut self.alternatives {
            alternative.forget(now, self.stale_after);
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
            SignalSource::Scrape(derivation) => (
                From::Pages(Box::new(Selection::new(derivation, filter)?)),
                selector::write(&derivation.select),
            ),
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
        if !selection.is_on(seen) {
            self.parts.retain(|part| part.target != seen.target);
            self.rename();
            return;
        }
        let part = self.part(&seen.target, seen.began);
        if part.take(&selection, seen, quiet) {
            self.news += 1;
        }
    }

    fn on_answer(&mut self, said: &Answer<'_>, now: Time, wall: WallMs) {
        self.failing = None;
        let part = self.part(said.server, now);
        let stamp_ms = i64::try_from(said.evaluated.0).ok();
        let selected = digest([said.value.to_bits(), 1]);
        let dated = date(stamp_ms, part.stamp_ms, now, wall);
        part.heard = now;
        part.failing = None;
        match dated {
            Err(error) => part.evidence = Err(error),
            Ok(at) => {
                part.renew(Evidence::of_value(said.value), at);
                part.stamp_ms = stamp_ms;
                let is_news = part.answers.is_news(selected != part.selected, at);
                part.selected = selected;
                self.news += u64::from(is_news);
            }
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
            parts => format!("{} targets, as {}", parts.len(), self.name).into(),
        };
    }

    fn forget(&mut self, now: Time, stale_after: Duration) {
        let before = self.parts.len();
        let is_page = matches!(self.from, From::Pages(_));
        self.parts.retain(|part| {
            let kept_for =
                if is_page && part.failing.is_some() { LOST_MAX.max(stale_after) } else { stale_after };
            part.heard >= now - kept_for
        });
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
        let unusable = |error: SampleError| Missing::Unusable {
            metric: self.source.clone(),
            problem: error.to_string().into(),
        };
        let mut whole: Option<(Evidence, Time)> = None;
        let mut waits = SampleError::First;
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
                Err(
                    error @ (SampleError::First
                    | SampleError::NoObservation
                    | SampleError::FewObservations { .. }),
                ) => {
                    waits = error.clone();
                }
                Err(error) => return Err(unusable(error.clone())),
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
            return Err(unusable(SampleError::NotFinite { bad: 1, of: 1 }));
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
        Some(Selection {
            family,
            reporter: Reporter::of(select),
            labels: select.labels.clone(),
            how: how.clone(),
            scale: *scale,
            divisor,
            of_head: is_of_head(select),
        })
    }

    /// Whether the page has anything of this: itself, or what it is divided by, which is on another page of the
    /// head's where the agent does not know its GCS.
    fn is_on(&self, seen: &Seen<'_>) -> bool {
        let page = seen.page;
        page.is_overfull(self.family)
            || (self.how == How::Sum && page.family_lines(self.family, self.reporter) > 0)
            || self.selected(seen).next().is_some()
            || (seen.of_head && self.divisor(seen).next().is_some())
    }

    fn selected<'a>(&'a self, seen: &Seen<'a>) -> impl Iterator<Item = &'a Sample> {
        let (page, of_head) = (seen.page, seen.of_head);
        page.family(self.family).iter().filter(move |sample| sample.satisfies(&self.labels, of_head))
    }

    fn divisor<'a>(&'a self, seen: &Seen<'a>) -> impl Iterator<Item = &'a Sample> {
        let (page, of_head) = (seen.page, seen.of_head);
        self.divisor.iter().flat_map(move |(family, labels)| {
            page.family(*family).iter().filter(move |sample| sample.satisfies(labels, of_head))
        })
    }

    /// What of the page is not known, if anything.
    fn lost(&self, page: &Exposition) -> Option<SampleError> {
        let families = || std::iter::once(self.family).chain(self.divisor.iter().map(|(family, _)| *family));
        if families().any(|family| page.is_overfull(family)) {
            return Some(SampleError::TooManyLines(FAMILY_LINES_MAX));
        }
        let lost = families().map(|family| page.family_lost[family]).sum();
        (lost > 0).then_some(SampleError::Lost(lost))
    }
}

impl Part {
    fn new(target: Arc<str>, began: Time) -> Part {
        Part {
            target,
            evidence: Err(SampleError::First),
            bears: true,
            at: began,
            heard: began,
            failing: None,
            selected: 0,
            said: 0,
            stamp_ms: None,
            baseline: Baseline::None,
            answers: Answers::default(),
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
        let samples: Vec<&Sample> = selection.selected(seen).collect();
        let divisor: Vec<&Sample> = selection.divisor(seen).collect();
        self.bears = selection.divisor.is_none() || !samples.is_empty();
        let stamp_ms = samples.iter().filter_map(|sample| sample.stamp_ms).max();
        let selected =
            samples.iter().chain(&divisor).map(|sample| fingerprint(sample)).fold(1, u64::wrapping_add);
        let said = match samples.first() {
            _ if stamp_ms.is_some() => 0,
            Some(sample) => page.reported(sample.reporter),
            None => page.reported(selection.reporter),
        };
        let is_alive = selected != self.selected || said != self.said;
        let dated = date(stamp_ms, self.stamp_ms, seen.began, seen.wall);
        self.heard = seen.began;
        self.failing = None;
        let at = match selection.lost(page).map_or(dated, Err) {
            Ok(at) => at,
            Err(error) => {
                self.evidence = Err(error);
                return false;
            }
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
            Err(error) => {
                self.evidence = Err(error);
                false
            }
        }
    }

    /// Increase per second from change to change; none while it is too early to say zero.
    fn rate(
        &mut self,
        samples: &[&Sample],
        now: Time,
        quiet: Duration,
    ) -> Result<Option<Evidence>, SampleError> {
        let counters = Counters::of(samples)?;
        let Baseline::Counters(since, before) = &self.baseline else {
            self.baseline = Baseline::Counters(now, counters);
            return Err(SampleError::First);
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
    ) -> Result<Option<Evidence>, SampleError> {
        let histograms = Histograms::of(samples)?;
        let Baseline::Histograms(since, before) = &self.baseline else {
            self.baseline = Baseline::Histograms(now, histograms);
            return Err(SampleError::First);
        };
        let since = *since;
        let new = histograms.since(before)?;
        let seen = new.count();
        if seen == 0.0 {
            // New series, or old ones with new bounds, count from here.
            self.baseline = Baseline::Histograms(since, histograms);
            return Err(SampleError::NoObservation);
        }
        if seen < OBSERVATIONS_MIN && now.since(since) < quiet {
            return Err(SampleError::FewObservations { seen, wanted: OBSERVATIONS_MIN });
        }
        self.baseline = Baseline::Histograms(now, histograms);
        Ok(Some(Evidence::Buckets(new)))
    }
}

/// When a value with this time stamp was true, on the driver's time line.
fn date(stamp_ms: Option<i64>, before_ms: Option<i64>, now: Time, wall: WallMs) -> Result<Time, SampleError> {
    let Some(stamp_ms) = stamp_ms else { return Ok(now) };
    let length =
        |from: i64, to: i64| Duration::from_millis(u64::try_from(to.saturating_sub(from)).unwrap_or(0));
    if let Some(before_ms) = before_ms
        && stamp_ms < before_ms
    {
        return Err(SampleError::StampBack(length(stamp_ms, before_ms)));
    }
    let wall_ms = i64::try_from(wall.0).unwrap_or(i64::MAX);
    let ahead = length(wall_ms, stamp_ms);
    if ahead > STAMP_AHEAD_MAX {
        return Err(SampleError::StampAhead(ahead));
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

/// Whether only the head's own pages can hold this: it is asked of the head node, or of a
/// process that runs nowhere else.
fn is_of_head(select: &Selector) -> bool {
    let is_heads = |label: &str, value: &str| match label {
        "IsHeadNode" => value == "true",
        "RayNodeType" => value == "head",
        "Source" => value == "gcs",
        "Component" => value.starts_with("gcs") || value.starts_with("dashboard"),
        _ => false,
    };
    let says_head = |condition: &LabelCondition| match condition {
        LabelCondition::Is(label, value) => is_heads(label, value),
        LabelCondition::OneOf(label, values) => values.iter().all(|value| is_heads(label, value)),
        _ => false,
    };
    let of_one_process = ["ray_gcs_", "ray_dashboard_", "autoscaler_"];
    of_one_process.iter().any(|start| select.metric.starts_with(start)) || select.labels.iter().any(says_head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Control, OnStale};
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Time {
        Time::ZERO + SECOND * seconds
    }

    /// A wall clock that showed a round number when the driver's began.
    fn wall(seconds: u32) -> WallMs {
        WallMs(1_700_000_000_000 + 1000 * u64::from(seconds))
    }

    fn page_source(metric: &str, labels: Vec<LabelCondition>, how: How) -> SignalSource {
        SignalSource::Scrape(Derivation {
            select: Selector { metric: metric.into(), labels },
            how,
            scale: 1.0,
        })
    }

    /// One signal, stale after 60 s.
    struct Rig {
        reader: SignalReader,
    }

    impl Rig {
        fn new(sources: Vec<SignalSource>) -> Rig {
            let signal = Signal {
                name: "s".into(),
                target: 1.0,
                unit: "".into(),
                stale_after: SECOND * 60,
                on_stale: OnStale::Hold,
                backlog: false,
                forecast: Duration::ZERO,
                sources,
            };
            let control = Control {
                inner_period: SECOND,
                outer_period: SECOND,
                window: SECOND,
                data_age: SECOND,
                ..Control::SHIPPED
            };
            let policy = Policy {
                modules: Vec::new(),
                classes: Vec::new(),
                signals: vec![signal],
                control,
                history: true,
            };
            Rig { reader: SignalReader::new(&policy) }
        }

        fn gauge(how: How) -> Rig {
            Rig::new(vec![page_source("m", Vec::new(), how)])
        }

        fn see(&mut self, target: &str, page: &str, seconds: u32) {
            let _ = self.reader.on_scrape(target, page.as_bytes(), at(seconds), wall(seconds));
        }

        fn read(&mut self, seconds: u32) -> Result<Reading, Missing> {
            self.reader.readings(at(seconds)).remove(0).1
        }

        /// One page of one target, and the reading after it.
        fn scrape(&mut self, page: &str, seconds: u32) -> Result<Reading, Missing> {
            self.see("t:1", page, seconds);
            self.read(seconds)
        }

        fn value(&mut self, page: &str, seconds: u32) -> f64 {
            self.scrape(page, seconds).unwrap().value
        }
    }

    fn problem(result: Result<Reading, Missing>) -> String {
        result.unwrap_err().to_string()
    }

    fn is_near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_constant_gauge_on_a_live_exporter_is_news_each_time() {
        let mut rig = Rig::gauge(How::Sum);
        let first = rig.scrape("m 3\nother_total 1\n", 0).unwrap();
        let second = rig.scrape("m 3\nother_total 2\n", 5).unwrap();
        assert!(is_near(second.value, 3.0));
        assert_eq!((first.fresh, second.fresh), (1, 2));
        assert_eq!(second.at, at(5));
    }

    #[test]
    fn a_frozen_exporter_gives_no_news_and_its_reading_keeps_its_age() {
        let mut rig = Rig::gauge(How::Sum);
        let first = rig.scrape("m 3\nother_total 1\nprocess_cpu_seconds_total 1\n", 0).unwrap();
        let second = rig.scrape("m 3\nother_total 1\nprocess_cpu_seconds_total 2\n", 5).unwrap();
        assert_eq!(second, first, "only the exporter's own CPU time moved");
    }

    #[test]
    fn a_dead_gcs_is_seen_though_the_agent_lives() {
        let gcs = "ray_gcs_actors_count{Component=\"gcs_server\",State=\"Registered\"} 3\n";
        let mut rig = Rig::new(vec![page_source("ray_gcs_actors_count", Vec::new(), How::Max)]);
        let first = rig.scrape(&format!("{gcs}ray_node_network_sent 1\n"), 0).unwrap();
        let second = rig.scrape(&format!("{gcs}ray_node_network_sent 2\n"), 5).unwrap();
        assert_eq!(second, first);
    }

    #[test]
    fn readings_taken_twice_from_one_page_are_one_information() {
        let mut rig = Rig::gauge(How::Sum);
        let first = rig.scrape("m 3\n", 0).unwrap();
        assert_eq!(rig.read(1).unwrap(), first);
    }

    #[test]
    fn nan_negative_and_unreadable_samples_are_unusable_and_pass() {
        let mut rig = Rig::gauge(How::Max);
        assert!(problem(rig.scrape("m NaN\n", 0)).contains("NaN"));
        assert!(problem(rig.scrape("m -4\n", 1)).contains("below zero"));
        assert!(problem(rig.scrape("m 1\nm{a=\"b} 2\n", 2)).contains("could not be read"));
        assert!(is_near(rig.value("m 7\n", 3), 7.0));
    }

    #[test]
    fn a_flaw_that_passes_leaves_nothing_behind_though_the_value_is_the_old_one() {
        let mut rig = Rig::gauge(How::Max);
        assert!(is_near(rig.value("m 7\n", 0), 7.0));
        assert!(rig.scrape("m 7\nm{a=\"b} 2\n", 1).is_err());
        assert!(is_near(rig.value("m 7\n", 2), 7.0));
    }

    #[test]
    fn a_page_that_cannot_be_trusted_is_a_failure_of_its_target() {
        let mut rig = Rig::gauge(How::Sum);
        rig.scrape("m 3\n", 0).unwrap();
        for (page, words) in [("<html>", "web page"), ("", "empty"), ("m 3\nm 1", "middle of a line")] {
            let missing = problem(rig.scrape(page, 1));
            assert!(missing.contains("t:1") && missing.contains(words), "{missing}");
        }
        assert!(is_near(rig.value("m 4\n", 2), 4.0));
    }

    #[test]
    fn nothing_found_says_what_was_looked_for() {
        let named = LabelCondition::Is("State".into(), "X".into());
        let mut rig =
            Rig::new(vec![page_source("a", vec![named], How::Max), page_source("b", Vec::new(), How::Sum)]);
        assert_eq!(problem(rig.scrape("c 1\n", 0)), "none of a{State=\"X\"}, b found in the scrape");
    }

    #[test]
    fn a_sum_without_a_matching_series_is_zero_where_the_family_is_there() {
        let pending = LabelCondition::StartsWith("State".into(), "PENDING".into());
        let mut rig = Rig::new(vec![page_source("m", vec![pending], How::Sum)]);
        assert!(is_near(rig.value("m{State=\"PENDING_ARGS\"} 4\n", 0), 4.0));
        assert!(is_near(rig.value("m{State=\"RUNNING\"} 4\n", 5), 0.0));
        assert!(matches!(rig.scrape("n 1\n", 10), Err(Missing::NotFound { .. })));
    }

    #[test]
    fn the_first_alternative_that_is_there_speaks_and_is_named() {
        let mut rig = Rig::new(vec![
            page_source("new", Vec::new(), How::Max),
            page_source("old", Vec::new(), How::Max),
        ]);
        assert_eq!(&*rig.scrape("old 1\n", 0).unwrap().source, "t:1 old");
        let both = rig.scrape("old 1\nnew 2\n", 5).unwrap();
        assert_eq!((&*both.source, both.fresh), ("t:1 new", 2));
        let found: Vec<Found> = rig.reader.found().collect();
        assert_eq!(found, [Found { signal: SignalId(0), alternative: 0, source: "t:1 new".into() }]);
        assert_eq!(&*rig.scrape("old 1\n", 10).unwrap().source, "t:1 old");
    }

    #[test]
    fn several_targets_are_one_sum_as_old_as_the_oldest() {
        let mut rig = Rig::gauge(How::Sum);
        rig.see("a:1", "m 3\n", 0);
        rig.see("b:1", "m 4\n", 2);
        let reading = rig.read(2).unwrap();
        assert!(is_near(reading.value, 7.0));
        assert_eq!((reading.at, &*reading.source), (at(0), "2 targets, as m"));
    }

    #[test]
    fn a_target_that_fails_keeps_its_part_and_the_sum_goes_stale_until_it_is_gone_from_the_list() {
        let mut rig = Rig::gauge(How::Sum);
        rig.see("a:1", "m 3\n", 0);
        rig.see("b:1", "m 4\n", 0);
        let down = Missing::Unreachable { target: "a:1".into(), problem: "refused".into() };
        rig.see("b:1", "m 5\n", 30);
        rig.reader.on_failure("a:1", &down);
        let reading = rig.read(30).unwrap();
        assert!(is_near(reading.value, 8.0), "the lost node's tasks are not forgotten at once");
        assert_eq!(reading.at, at(0), "and the reading is as old as they are");
        rig.see("b:1", "m 6\n", 61);
        rig.reader.on_failure("a:1", &down);
        let reading = rig.read(61).unwrap();
        assert!(is_near(reading.value, 9.0) && reading.at == at(0), "no smaller sum, but an older one");
        rig.reader.keep_targets(|target| target == "b:1");
        assert!(is_near(rig.read(61).unwrap().value, 6.0));
        rig.reader.on_failure("b:1", &down);
        assert_eq!(rig.read(62), Err(down.clone()), "when all fail, that is said");
        assert_eq!(rig.read(120), Err(down), "as often as it is asked");
        rig.see("a:1", "other 1\n", 121);
        rig.see("b:1", "other 1\n", 121);
        assert!(
            matches!(rig.read(121), Err(Missing::NotFound { .. })),
            "a page without it is another matter"
        );
    }

    #[test]
    fn time_stamps_date_a_reading_and_may_not_go_back_or_ahead() {
        let mut rig = Rig::gauge(How::Max);
        let stamped = |seconds: u32| format!("m 3 {}\nother_total {seconds}\n", wall(seconds).0);
        let first = rig.scrape(&stamped(10), 12).unwrap();
        assert_eq!(first.at, at(10));
        let again = rig.scrape(&format!("m 3 {}\nother_total 99\n", wall(10).0), 17).unwrap();
        assert_eq!(again, first, "the stamp says that it is the same sample, whatever else moves");
        assert!(problem(rig.scrape(&stamped(8), 18)).contains("went back by 2s"));
        assert!(problem(rig.scrape(&stamped(80), 20)).contains("60s in the future"));
        assert_eq!(rig.scrape(&stamped(21), 22).unwrap().at, at(21));
    }

    #[test]
    fn a_rate_runs_from_change_to_change_and_over_a_reset() {
        let mut rig = Rig::new(vec![page_source("c_total", Vec::new(), How::Rate)]);
        assert!(problem(rig.scrape("c_total 100\nx 1\n", 0)).contains("second scrape"));
        assert!(rig.scrape("c_total 100\nx 2\n", 5).is_err(), "too early to say zero");
        assert!(is_near(rig.value("c_total 140\nx 3\n", 10), 4.0));
        let repeated = rig.scrape("c_total 140\nx 4\n", 15).unwrap();
        assert_eq!((repeated.at, repeated.fresh), (at(10), 1), "no zero between two reports of Ray");
        assert!(is_near(rig.value("c_total 20\nx 5\n", 20), 2.0), "20 since the reset");
    }

    #[test]
    fn a_counter_that_rests_while_its_reporter_speaks_is_a_rate_of_zero_in_the_end() {
        let mut rig = Rig::new(vec![page_source("c_total", Vec::new(), How::Rate)]);
        let _ = rig.scrape("c_total 100\nx 1\n", 0);
        rig.scrape("c_total 140\nx 2\n", 10).unwrap();
        let quiet = rig.scrape("c_total 140\nx 3\n", 40).unwrap();
        assert!(is_near(quiet.value, 0.0));
        assert_eq!(quiet.fresh, 2);
    }

    #[test]
    fn a_counter_frozen_with_its_reporter_is_not_a_rate_of_zero() {
        let mut rig = Rig::new(vec![page_source("c_total", Vec::new(), How::Rate)]);
        let _ = rig.scrape("c_total 100\nx 1\n", 0);
        let last = rig.scrape("c_total 140\nx 2\n", 10).unwrap();
        assert_eq!(rig.scrape("c_total 140\nx 2\n", 50).unwrap(), last);
    }

    fn histogram(fast: u32, all: u32, beat: u32) -> String {
        format!("h_bucket{{le=\"10\"}} {fast}\nh_bucket{{le=\"+Inf\"}} {all}\nbeat {beat}\n")
    }

    #[test]
    fn a_share_waits_for_observations_and_is_never_zero_for_want_of_them() {
        let mut rig = Rig::new(vec![page_source("h", Vec::new(), How::ShareAbove(10.0))]);
        assert!(rig.scrape(&histogram(100, 100, 1), 0).is_err());
        assert!(problem(rig.scrape(&histogram(100, 100, 2), 10)).contains("no new observation"));
        assert!(problem(rig.scrape(&histogram(101, 102, 3), 20)).contains("only 2 new observations"));
        assert!(is_near(rig.value(&histogram(115, 120, 4), 25), 0.25), "5 of 20 since the beginning");
        assert!(problem(rig.scrape(&histogram(116, 121, 5), 30)).contains("only 1 new"));
        assert!(is_near(rig.value(&histogram(116, 122, 6), 60), 0.5), "few are taken when they must");
    }

    #[test]
    fn a_restarted_exporter_starts_a_share_anew() {
        let mut rig = Rig::new(vec![page_source("h", Vec::new(), How::ShareAbove(10.0))]);
        let _ = rig.scrape(&histogram(100, 200, 1), 0);
        assert!(is_near(rig.value(&histogram(30, 40, 2), 10), 0.25), "10 of 40 since the restart");
        let renamed = |fast: u32| histogram(fast, 2 * fast, fast).replace("le=", "pid=\"2\",le=");
        assert!(rig.scrape(&renamed(500), 20).is_err(), "a new series is a baseline");
        assert!(is_near(rig.value(&renamed(520), 30), 0.5));
    }

    #[test]
    fn the_probe_comes_first_and_the_pages_stand_in_for_it() {
        let mut rig = Rig::new(vec![SignalSource::Probe, page_source("m", Vec::new(), How::Max)]);
        rig.reader.on_probe("head", &Ok(3.5), at(0));
        let probed = rig.scrape("m 100\n", 0).unwrap();
        assert_eq!((probed.value.to_bits(), probed.fresh), (3.5f64.to_bits(), 1));
        assert_eq!(&*probed.source, "head the probe of /api/gcs_healthz");
        rig.reader.on_probe("head", &Ok(3.5), at(1));
        assert_eq!(rig.read(1).unwrap().fresh, 2, "each answer is news, equal or not");
        let down = Missing::Unreachable { target: "head".into(), problem: "503".into() };
        rig.reader.on_probe("head", &Err(down.clone()), at(2));
        assert_eq!(rig.read(2), Err(down));
        assert!(is_near(rig.value("m 100\n", 62), 100.0));
        rig.reader.on_probe("head", &Ok(4.0), at(63));
        assert!(is_near(rig.read(63).unwrap().value, 4.0));
    }

    fn prom(rig: &mut Rig, value: f64, evaluated: u32, now: u32) -> Result<Reading, Missing> {
        let answer = Ok((value, wall(evaluated)));
        rig.reader.on_answer(SignalId(0), "q", "prom:9090", &answer, at(now), wall(now));
        rig.read(now)
    }

    #[test]
    fn an_answer_of_prometheus_is_as_old_as_its_evaluation() {
        let mut rig = Rig::new(vec![SignalSource::PromQl("q".into())]);
        assert_eq!(rig.reader.queries().collect::<Vec<_>>(), [(SignalId(0), "q".into())]);
        let first = prom(&mut rig, 5.0, 10, 12).unwrap();
        assert_eq!((first.at, &*first.source), (at(10), "prom:9090 q"));
        let equal = prom(&mut rig, 5.0, 15, 15).unwrap();
        assert_eq!((equal.fresh, equal.at), (first.fresh, at(15)), "an equal answer soon after is no news");
        assert_eq!(prom(&mut rig, 5.0, 20, 20).unwrap().fresh, 2);
        assert_eq!(prom(&mut rig, 6.0, 21, 21).unwrap().fresh, 3);
        assert!(problem(prom(&mut rig, 6.0, 19, 22)).contains("went back"));
        assert!(problem(prom(&mut rig, -6.0, 23, 23)).contains("below zero"));
        assert!(problem(prom(&mut rig, 6.0, 500, 24)).contains("in the future"));
    }

    #[test]
    fn one_measurement_of_prometheus_is_news_once_however_often_it_is_asked() {
        for scrapes_apart in [15, 30, 60] {
            let mut rig = Rig::new(vec![SignalSource::PromQl("q".into())]);
            let ask = |rig: &mut Rig, seconds: u32, value: f64| prom(rig, value, seconds, seconds).unwrap();
            // For ten minutes it moves with each scrape, and then it stays where it is.
            for seconds in (0..600).step_by(5) {
                let reading = ask(&mut rig, seconds, f64::from(seconds / scrapes_apart));
                assert_eq!(reading.at, at(seconds), "the target lives");
                // Until the second change it is not known how long a scrape is waited for.
                let extra = reading.fresh - u64::from(seconds / scrapes_apart) - 1;
                assert!(extra <= u64::from(2 * scrapes_apart / 10), "{extra} at {seconds}");
            }
            let moved = rig.read(595).unwrap().fresh;
            for seconds in (600..1200).step_by(5) {
                ask(&mut rig, seconds, 7.5);
            }
            let stood = rig.read(1195).unwrap().fresh - moved;
            let scrapes = u64::from(600 / scrapes_apart);
            assert!((scrapes - 1..=scrapes + 1).contains(&stood), "{stood} of {scrapes} at {scrapes_apart}");
        }
    }

    #[test]
    fn a_value_that_stood_for_an_hour_says_nothing_of_how_often_it_is_scraped() {
        let mut rig = Rig::new(vec![SignalSource::PromQl("q".into())]);
        for seconds in (0..3600).step_by(5) {
            prom(&mut rig, 0.0, seconds, seconds).unwrap();
        }
        let before = prom(&mut rig, 500.0, 3600, 3600).unwrap().fresh;
        assert_eq!(prom(&mut rig, 500.0, 3610, 3610).unwrap().fresh, before + 1);
    }

    #[test]
    fn a_failing_prometheus_is_named_and_nothing_else_is_touched() {
        let mut rig = Rig::new(vec![SignalSource::PromQl("q".into())]);
        let down = Missing::Unreachable { target: "prom:9090".into(), problem: "refused".into() };
        rig.reader.on_answer(SignalId(0), "q", "prom:9090", &Err(down.clone()), at(1), wall(1));
        assert_eq!(rig.read(1), Err(down));
        rig.reader.on_answer(SignalId(9), "q", "prom:9090", &Ok((1.0, wall(2))), at(2), wall(2));
        assert!(rig.read(2).is_err(), "an unknown signal is ignored");
        assert!(prom(&mut rig, 5.0, 3, 3).is_ok());
    }

    #[test]
    fn targets_beyond_the_bound_are_refused_until_others_are_gone() {
        let mut rig = Rig::gauge(How::Sum);
        for target in 0..TARGETS_MAX {
            rig.see(&format!("t:{target}"), "m 1\n", 0);
        }
        assert!(rig.reader.on_scrape("late:1", b"m 1\n", at(1), wall(1)).is_err());
        assert!(is_near(rig.read(1).unwrap().value, TARGETS_MAX as f64));
        assert!(rig.read(61).is_err(), "all of them have been silent for too long");
        assert!(rig.reader.on_scrape("late:1", b"m 1\n", at(62), wall(62)).is_ok());
        assert!(is_near(rig.read(62).unwrap().value, 1.0));
    }

    proptest! {
        #[test]
        fn whatever_is_scraped_a_reading_is_finite_not_negative_and_its_news_only_rise(
            pages in proptest::collection::vec((0usize..3, "((m|c_total|h_bucket)(\\{(le|a)=\"(1|10|[+]Inf|x)\"\\})? (NaN|[+]Inf|-?[0-9]{1,3})( 17000000[0-9]{5})?\n){0,6}"), 1..12)
        ) {
            let mut rig = Rig::new(vec![
                page_source("h", Vec::new(), How::Quantile(0.9)),
                page_source("c_total", Vec::new(), How::Rate),
                page_source("m", Vec::new(), How::Sum),
            ]);
            let (mut fresh, mut now) = (0, 0);
            for (target, page) in pages {
                now += 7;
                rig.see(["a", "b", "c"][target], &page, now);
                if let Ok(reading) = rig.read(now) {
                    prop_assert!(reading.value.is_finite() && reading.value >= 0.0);
                    prop_assert!(reading.resolution >= 1.0);
                    prop_assert!(reading.fresh >= fresh && reading.at <= at(now));
                    fresh = reading.fresh;
                }
            }
        }
    }

    #[test]
    fn a_node_that_has_left_takes_its_part_along_and_a_silent_one_is_no_reason_of_the_heads() {
        let mut rig = Rig::new(vec![page_source("ray_tasks", vec![], How::Sum)]);
        for (target, tasks) in [("head:1", 3), ("node:1", 4)] {
            let page = format!("ray_tasks {tasks}\n");
            rig.reader.on_scrape(target, page.as_bytes(), at(0), wall(0)).unwrap();
        }
        let value = |rig: &mut Rig, now| rig.reader.readings(now)[0].1.as_ref().map(|it| it.value).ok();
        assert_eq!(value(&mut rig, at(1)), Some(7.0));
        rig.reader.keep_targets(|target| target == "head:1");
        assert_eq!(value(&mut rig, at(2)), Some(3.0));
        let missing = Missing::Unreachable { target: "node:1".into(), problem: "silent".into() };
        rig.reader.on_node_failure("node:1", &missing);
        rig.reader.keep_targets(|_| false);
        let reading = rig.reader.readings(at(3))[0].1.clone();
        assert!(matches!(reading, Err(Missing::NotFound { .. })), "{reading:?}");
        rig.reader.on_failure("head:1", &missing);
        let reading = rig.reader.readings(at(4))[0].1.clone();
        assert!(matches!(reading, Err(Missing::Unreachable { .. })), "{reading:?}");
    }

    #[test]
    fn before_the_first_page_every_signal_lacks_for_the_same_reason() {
        let mut rig = Rig::new(vec![page_source("ray_tasks", vec![], How::Sum)]);
        let said = |rig: &mut Rig| rig.read(1).unwrap_err().to_string();
        assert_eq!(said(&mut rig), "no page of Ray's metrics has been read yet");
        rig.reader.on_no_target("no target: 404");
        assert_eq!(said(&mut rig), "no page of Ray's metrics has been read yet (no target: 404)");
        rig.see("t:1", "other 1\n", 2);
        rig.reader.on_no_target("no target: 404");
        assert!(said(&mut rig).starts_with("none of ray_tasks"), "{}", said(&mut rig));
    }

    #[test]
    fn other_nodes_are_wanted_only_where_the_head_alone_does_not_say_it() {
        let wants = |metric: &str, labels| {
            let rig = Rig::new(vec![page_source(metric, labels, How::Max)]);
            rig.reader.wants_nodes([SignalId(0)])
        };
        let is = |label: &str, value: &str| vec![LabelCondition::Is(label.into(), value.into())];
        assert!(wants("ray_tasks", vec![]));
        assert!(wants("ray_component_cpu_percentage", is("Component", "agent")));
        assert!(!wants("ray_node_cpu_utilization", is("IsHeadNode", "true")));
        assert!(!wants("ray_component_cpu_percentage", is("Component", "dashboard_JobHead")));
        assert!(!wants("ray_dashboard_event_loop_tasks", vec![]));
        let rig = Rig::new(vec![SignalSource::Probe]);
        assert!(!rig.reader.wants_nodes([SignalId(0)]));
    }

    #[test]
    fn a_metric_with_too_many_lines_is_unusable_and_says_so() {
        use std::fmt::Write as _;
        let mut rig = Rig::new(vec![page_source("m", vec![], How::Max)]);
        let mut page = String::new();
        (0..=FAMILY_LINES_MAX).for_each(|series| writeln!(page, "m{{i=\"{series}\"}} 1").unwrap());
        rig.reader.on_scrape("head:1", page.as_bytes(), at(0), wall(0)).unwrap();
        let said = rig.reader.readings(at(1))[0].1.clone().unwrap_err().to_string();
        assert!(said.contains("65536 lines") && said.contains("selector"), "{said}");
    }
}
