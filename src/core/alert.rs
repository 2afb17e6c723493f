//! When should a person be told?
//!
//! Rules over the facts of one tick, each with a time it must hold before it fires (`for`) and
//! a time it must be gone before it resolves (`clear`). Between "bad" and "good" lies a band
//! in which a firing alert goes on and a silent one stays silent, so that a value on the edge
//! does not ring twice a minute. An alert is known by its key (`rule/subject`): it begins
//! once and ends once, however often the rule is evaluated.
//!
//! | rule | bad when | told after |
//! |---|---|---|
//! | slo-breached | latency above the class's objective | 1 min |
//! | sheds-rising | over 1 % shed, and 1.5 times the share of the ten minutes before the last one; until sheds end | 30 s |
//! | requests-failing | over 5 % fail while Ray is reachable, five of them within a minute | 30 s |
//! | high-request-rate | more arrives than the configured rate, or four times the last hour's and 10/s | 1 min |
//! | pinned-floor | at `min` and binding | 5 min |
//! | pinned-ceiling | at `max` and binding | 10 min |
//! | signal-stale | no fresh reading, one alert for each target | 30 s |
//! | loop-hunting | see [`super::control::oscillation`] | 2 min |
//! | upstream-down | Ray is unreachable | 5 s |
//! | config-rejected | the last configuration was refused | at once |
//! | adjustment-log-gaps | events were lost | at once |
//! | replica-store-down | the replicas' shared store cannot be asked | 2 s |
//!
//! Rates and shares are counts over the last ten seconds, so that no alert speaks of what has ended.
//!
//! One cause is one alert: signals that are read at one address share theirs, and while Ray is unreachable
//! neither failing requests nor stale signals begin to fire.
//!
//! Pure: [`Alerts::tick`] returns what began and what ended; sending, repeating and retrying
//! is `observe::notify`'s.

use super::format::{number, upstream_words};
use super::limit_kind::LimitKind;
use super::policy::Bounds;
use super::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Where each alert is explained; `alerts.runbook_url` names another place.
pub const RUNBOOK: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/config/deploy/RUNBOOK.md");

/// The rules of alerts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "AlertRule")]
pub enum Alert {
    /// A class's latency is above its objective.
    SloBreached,
    /// A class sheds more and more.
    ShedsRising,
    /// Requests of a class fail at Ray.
    RequestsFailing,
    /// A class is asked far more than usual.
    HighRequestRate,
    /// A limit stands at its floor and holds requests back.
    PinnedFloor,
    /// A limit stands at its ceiling and holds requests back.
    PinnedCeiling,
    /// A signal gives no fresh reading.
    SignalStale,
    /// A limit swings without end.
    LoopHunting,
    /// The head does not answer.
    UpstreamDown,
    /// The last configuration was refused.
    ConfigRejected,
    /// Events are missing from the adjustment log.
    AdjustmentLogGaps,
    /// The store that replicas share does not answer.
    ReplicaStoreDown,
}

/// How urgent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// To be looked at in the morning.
    Info,
    /// To be looked at today.
    Warning,
    /// To be looked at now.
    Critical,
}

/// Began or ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// Began.
    Firing,
    /// Ended.
    Resolved,
}

/// An alert began or ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Alert")]
pub struct Transition {
    /// The rule.
    pub alert: Alert,
    /// Began or ended.
    pub state: AlertState,
    /// How urgent.
    pub severity: Severity,
    /// Class, module or signal, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Identifies the alert: the same from its beginning to its end, and different between alerts.
    pub key: String,
    /// One sentence.
    pub summary: String,
    /// What it means and what to do, in a few sentences.
    pub description: String,
    /// Where the runbook speaks of it: an absolute URL.
    pub runbook: String,
    /// When the trouble began, in nanoseconds since the process began; the alert fires once it has lasted long enough.
    pub since: Time,
}

/// What the rules look at.
#[derive(Clone, Debug, Default)]
pub struct Facts<'a> {
    /// Every class.
    pub classes: Vec<ClassFacts<'a>>,
    /// Every limit that may move.
    pub limits: Vec<LimitFacts<'a>>,
    /// Every signal in use.
    pub signals: Vec<SignalFacts<'a>>,
    /// Why the head does not answer, if it does not.
    pub upstream_problem: Option<&'a str>,
    /// Why the last configuration was refused, if it was.
    pub config_problem: Option<&'a str>,
    /// Why the store that replicas share cannot be asked, if it cannot.
    pub store_problem: Option<&'a str>,
    /// Events lost from the adjustment log since the start.
    pub events_lost: u64,
}

/// One class over the last tick.
#[derive(Clone, Copy, Debug)]
pub struct ClassFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// Latency / objective; `None` without answers.
    pub slo_pressure: Option<f64>,
    /// Requests that came since the start.
    pub offered: u64,
    /// Those that were shed for load.
    pub shed: u64,
    /// Those that failed.
    pub failed: u64,
    /// Of these, those that rayguard ended after the class's timeout.
    pub late: u64,
    /// Alert above this rate, in requests per second; `None`: learnt.
    pub rate_alert: Option<f64>,
}

/// One limit now.
#[derive(Clone, Copy, Debug)]
pub struct LimitFacts<'a> {
    /// Class or module.
    pub class: &'a str,
    /// Which limit.
    pub limit: LimitKind,
    /// Its value.
    pub value: f64,
    /// Its range.
    pub bounds: Bounds,
    /// It held something back.
    pub binding: bool,
    /// It is hunting.
    pub hunting: bool,
    /// How far it oscillates, +-, as a ratio.
    pub swing: f64,
}

/// One signal now.
#[derive(Clone, Copy, Debug)]
pub struct SignalFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// Stale, or never seen for too long.
    pub stale: bool,
    /// Age of the last value, if there was one.
    pub age: Option<Duration>,
    /// What is wrong, or empty.
    pub problem: &'a str,
    /// Where it is read, as far as that is known.
    pub target: Option<&'a str>,
    /// Nothing at all can be read there.
    pub unreachable: bool,
}

/// How long a rule must hold, and be gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Bad for so long before it fires.
    pub fire_after: Duration,
    /// Good for so long before it resolves.
    pub clear_after: Duration,
}

/// All alerts: what is pending, what fires, and the averages the rules compare with.
#[derive(Clone, Debug, Default)]
pub struct Alerts {
    patience: BTreeMap<Alert, Patience>,
    known: BTreeMap<(Alert, String), Known>,
    recent: BTreeMap<String, Recent>,
    last_tick: Option<Time>,
    events_lost: u64,
    gap_at: Option<Time>,
}

/// What is bad, or was and has not been good for long enough. Of all else there is nothing to know.
#[derive(Clone, Debug, Default)]
struct Known {
    /// A rule has spoken of it at this tick.
    spoken_of: bool,
    bad_since: Option<Time>,
    good_since: Option<Time>,
    firing: Option<Transition>,
}

/// What one class was asked lately.
#[derive(Clone, Debug, Default)]
struct Recent {
    /// Totals of the last ten seconds, one a judgement, and of the last ten minutes, one every ten seconds.
    seconds: VecDeque<Totals>,
    tens: VecDeque<Totals>,
    /// Requests per second, an exponential average over an hour.
    rate_1h: f64,
    age_s: f64,
}

/// Counted until then.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    at: Time,
    offered: u64,
    shed: u64,
    failed: u64,
    late: u64,
}

/// Counted between two moments.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    seconds: f64,
    offered: f64,
    shed: f64,
    failed: f64,
    late: f64,
}

/// What a rule thinks of one subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Bad,
    /// On the edge: what fires goes on, what is silent stays silent.
    Between,
    Good,
}

/// What a rule says of one subject at one tick.
#[derive(Clone, Copy)]
struct Finding<'a> {
    alert: Alert,
    subject: Option<&'a str>,
    /// Tells apart alerts of one rule and subject (a class has several limits).
    detail: &'static str,
    verdict: Verdict,
}

/// One tick's judgement.
struct Judge<'a> {
    now: Time,
    patience: &'a BTreeMap<Alert, Patience>,
    known: &'a mut BTreeMap<(Alert, String), Known>,
    transitions: Vec<Transition>,
}

impl Alert {
    /// All rules.
    pub const ALL: [Alert; 12] = [
        Alert::SloBreached,
        Alert::ShedsRising,
        Alert::RequestsFailing,
        Alert::HighRequestRate,
        Alert::PinnedFloor,
        Alert::PinnedCeiling,
        Alert::SignalStale,
        Alert::LoopHunting,
        Alert::UpstreamDown,
        Alert::ConfigRejected,
        Alert::AdjustmentLogGaps,
        Alert::ReplicaStoreDown,
    ];

    /// As in keys, labels and config.
    pub fn label(self) -> &'static str {
        match self {
            Alert::SloBreached => "slo-breached",
            Alert::ShedsRising => "sheds-rising",
            Alert::RequestsFailing => "requests-failing",
            Alert::HighRequestRate => "high-request-rate",
            Alert::PinnedFloor => "pinned-floor",
            Alert::PinnedCeiling => "pinned-ceiling",
            Alert::SignalStale => "signal-stale",
            Alert::LoopHunting => "loop-hunting",
            Alert::UpstreamDown => "upstream-down",
            Alert::ConfigRejected => "config-rejected",
            Alert::AdjustmentLogGaps => "adjustment-log-gaps",
            Alert::ReplicaStoreDown => "replica-store-down",
        }
    }

    /// As Alertmanager knows it; the shipped Prometheus rules have the same names.
    pub fn name(self) -> &'static str {
        match self {
            Alert::SloBreached => "RayguardSloBreached",
            Alert::ShedsRising => "RayguardShedding",
            Alert::RequestsFailing => "RayguardRequestsFailing",
            Alert::HighRequestRate => "RayguardHighRequestRate",
            Alert::PinnedFloor => "RayguardLimitAtFloor",
            Alert::PinnedCeiling => "RayguardLimitAtCeiling",
            Alert::SignalStale => "RayguardSignalDown",
            Alert::LoopHunting => "RayguardLoopHunting",
            Alert::UpstreamDown => "RayguardUpstreamDown",
            Alert::ConfigRejected => "RayguardConfigRejected",
            Alert::AdjustmentLogGaps => "RayguardAdjustmentLogGaps",
            Alert::ReplicaStoreDown => "RayguardReplicaStoreDown",
        }
    }

    /// How urgent.
    pub fn severity(self) -> Severity {
        match self {
            Alert::UpstreamDown => Severity::Critical,
            Alert::PinnedCeiling | Alert::HighRequestRate => Severity::Info,
            Alert::SloBreached
            | Alert::ShedsRising
            | Alert::RequestsFailing
            | Alert::PinnedFloor
            | Alert::SignalStale
            | Alert::LoopHunting
            | Alert::ConfigRejected
            | Alert::AdjustmentLogGaps
            | Alert::ReplicaStoreDown => Severity::Warning,
        }
    }

    /// Shipped patience.
    pub fn patience(self) -> Patience {
        let (fire_s, clear_s) = match self {
            Alert::SloBreached | Alert::HighRequestRate => (60, 60),
            Alert::ShedsRising | Alert::RequestsFailing => (30, 60),
            Alert::PinnedFloor => (300, 60),
            Alert::PinnedCeiling => (600, 60),
            Alert::SignalStale => (30, 15),
            Alert::LoopHunting => (120, 300),
            Alert::UpstreamDown => (5, 10),
            Alert::ConfigRejected => (0, 0),
            Alert::AdjustmentLogGaps => (0, 600),
            Alert::ReplicaStoreDown => (2, 5),
        };
        Patience { fire_after: Duration::from_secs(fire_s), clear_after: Duration::from_secs(clear_s) }
    }

    /// What it means and what to do.
    pub fn meaning(self) -> &'static str {
        match self {
            Alert::SloBreached => {
                "Responses of this class take longer than its SLO although the controller has had time to act. \
                 `rayguard log --class NAME` shows what it did. If the limit is at its floor, the load is in \
                 another class or does not pass this proxy."
            }
            Alert::ShedsRising => {
                "Requests of this class are shed. `rayguard clients` shows which clients send most requests, and what \
                 they cost; a client above its fair share is already held to it. If this traffic is legitimate, the head \
                 needs more capacity."
            }
            Alert::RequestsFailing => {
                "Requests of this class fail: Ray answers with status 500 or above or breaks off, or rayguard ends them \
                 with status 504 after the class's timeout. rayguard does not retry. Look at Ray's dashboard logs \
                 (`dashboard.log`, `dashboard_*.log`) on the head; where most run into the timeout, the head is too slow \
                 for them, or `class.NAME.timeout` is too short."
            }
            Alert::HighRequestRate => {
                "More requests of this class arrive than the threshold: the configured one or, without one, four times \
                 the last hour's average. Often this is a retry loop or a new dashboard. `rayguard clients` shows which \
                 client sends them."
            }
            Alert::PinnedFloor => {
                "The controller would lower this limit further, but it is at its floor: the configured `min` or, for cuts by \
                 one of Ray's signals, a tenth of the module's time. Either this class does not cause the pressure, or the head has a problem: look at its CPU, memory and the GCS."
            }
            Alert::PinnedCeiling => {
                "The configured `max` holds requests back although the head has spare capacity. Raise `max` to \
                 let more through."
            }
            Alert::SignalStale => {
                "No fresh data for these signals; rates and ceilings that follow them do not rise, and the proxy's own \
                 latency still moves limits. `rayguard doctor` shows whether the metrics endpoint answers; if it does and \
                 its values do not change, Ray's agent on that node may be hanging."
            }
            Alert::LoopHunting => {
                "The limit goes up and down without settling: the gain is too high for the delay of the readings. \
                 `rayguard check --stability` prints the gain margin; lower the gain, or shorten the scrape interval."
            }
            Alert::UpstreamDown => {
                "Ray accepts no connections or does not answer health checks. Clients get status 503 and \
                 a time to retry; when Ray returns, limits rise from their initial values (slow start)."
            }
            Alert::ConfigRejected => {
                "The configuration on disk was rejected; the previous one is still in force. `rayguard check` \
                 lists every problem with its line."
            }
            Alert::AdjustmentLogGaps => {
                "Events could not be written (disk full, read-only or too slow). The gap is marked in the \
                 adjustment log with the number of lost events; limits were not affected."
            }
            Alert::ReplicaStoreDown => {
                "The replicas cannot renew their leases. Each continues with an even share of every limit; together \
                 they admit no more than one would, but an idle replica cannot lend to a busy one. \
                 Check the Redis at `replicas.url`; nothing has to be restarted."
            }
        }
    }
}

impl AlertState {
    /// As in the adjustment log.
    pub fn label(self) -> &'static str {
        match self {
            AlertState::Firing => "firing",
            AlertState::Resolved => "resolved",
        }
    }
}

impl Alerts {
    /// With patience other than shipped for some rules.
    pub(crate) fn with_patience(patience: BTreeMap<Alert, Patience>) -> Alerts {
        Alerts { patience, ..Alerts::default() }
    }

    /// Evaluates every rule. Returns what began and what ended, in a stable order.
    pub fn tick(&mut self, now: Time, facts: &Facts<'_>) -> Vec<Transition> {
        let elapsed_s = self.last_tick.map_or(0.0, |at| now.since(at).as_secs_f64());
        self.last_tick = Some(now);
        let mut judge =
            Judge { now, patience: &self.patience, known: &mut self.known, transitions: Vec::new() };
        let reachable = facts.upstream_problem.is_none();
        judge_classes(&mut self.recent, (now, elapsed_s), &facts.classes, reachable, &mut judge);
        limits(&facts.limits, &mut judge);
        signals(&facts.signals, facts.upstream_problem.is_some(), &mut judge);
        if facts.events_lost > self.events_lost {
            self.gap_at = Some(now);
        }
        self.events_lost = facts.events_lost;
        house(facts, self.gap_at == Some(now), &mut judge);
        judge.conclude()
    }

    /// What fires now, for a caller that must repeat it.
    pub fn firing(&self) -> impl Iterator<Item = &Transition> {
        self.known.values().filter_map(|known| known.firing.as_ref())
    }
}

impl Judge<'_> {
    /// Holds a finding against what is known of its subject. The sentence is asked for only when it
    /// is said: nearly every finding of nearly every tick is that nothing is the matter.
    fn take(&mut self, finding: Finding<'_>, summary: impl FnOnce() -> String) {
        if self.known.is_empty() && finding.verdict != Verdict::Bad {
            return;
        }
        let key = (finding.alert, finding.key());
        let patience = self.patience.get(&finding.alert).copied();
        let patience = patience.unwrap_or_else(|| finding.alert.patience());
        let known = match finding.verdict {
            Verdict::Bad => self.known.entry(key).or_default(),
            Verdict::Between | Verdict::Good => match self.known.get_mut(&key) {
                Some(known) => known,
                None => return,
            },
        };
        known.spoken_of = true;
        self.transitions.extend(known.take(self.now, finding, summary, patience));
    }

    fn conclude(mut self) -> Vec<Transition> {
        // A class that a reload took away, or an address where nothing is read any more.
        self.known.retain(|_, known| {
            let spoken_of = std::mem::take(&mut known.spoken_of);
            if !spoken_of && let Some(mut firing) = known.firing.take() {
                firing.state = AlertState::Resolved;
                "no longer applies".clone_into(&mut firing.summary);
                self.transitions.push(firing);
            }
            spoken_of && (known.firing.is_some() || known.bad_since.is_some())
        });
        self.transitions
    }
}

impl Known {
    fn take(
        &mut self,
        now: Time,
        finding: Finding<'_>,
        summary: impl FnOnce() -> String,
        patience: Patience,
    ) -> Option<Transition> {
        match finding.verdict {
            Verdict::Bad => {
                self.good_since = None;
                let since = *self.bad_since.get_or_insert(now);
                if let Some(firing) = &mut self.firing {
                    firing.summary = summary();
                } else if now.since(since) >= patience.fire_after {
                    self.firing = Some(finding.transition(summary(), since));
                    return self.firing.clone();
                }
            }
            Verdict::Between => {
                self.bad_since = None;
                self.good_since = None;
                if let Some(firing) = &mut self.firing {
                    firing.summary = summary();
                }
            }
            Verdict::Good => {
                self.bad_since = None;
                let since = *self.good_since.get_or_insert(now);
                // While it may yet come back it says what is now, not what was, and when it is over.
                let firing = self.firing.as_mut()?;
                let good_for = now.since(since);
                if good_for >= patience.clear_after {
                    let mut ended = self.firing.take()?;
                    ended.summary = summary();
                    ended.state = AlertState::Resolved;
                    return Some(ended);
                }
                firing.summary = format!(
                    "recovering for {} s, resolves after {} s: {}",
                    good_for.as_secs(),
                    patience.clear_after.as_secs(),
                    summary()
                );
            }
        }
        None
    }
}

impl Finding<'_> {
    fn key(&self) -> String {
        let mut key = self.alert.label().to_owned();
        for part in [self.subject.unwrap_or(""), self.detail] {
            if !part.is_empty() {
                key.push('/');
                key.push_str(part);
            }
        }
        key
    }

    fn transition(&self, summary: String, since: Time) -> Transition {
        Transition {
            alert: self.alert,
            state: AlertState::Firing,
            severity: self.alert.severity(),
            subject: self.subject.map(str::to_owned),
            key: self.key(),
            summary,
            description: self.alert.meaning().to_owned(),
            runbook: format!("{RUNBOOK}#alert-{}", self.alert.label()),
            since,
        }
    }
}

impl Recent {
    fn take(&mut self, now: Time, elapsed_s: f64, class: &ClassFacts<'_>) {
        let ClassFacts { offered, shed, failed, late, .. } = *class;
        let totals = Totals { at: now, offered, shed, failed, late };
        if self.tens.back().is_none_or(|last| now.since(last.at) >= NOW) {
            self.tens.push_back(totals);
        }
        while self.tens.front().is_some_and(|first| now.since(first.at) > LONG) {
            self.tens.pop_front();
        }
        self.seconds.push_back(totals);
        // One is kept that is older, to count from.
        while self.seconds.get(1).is_some_and(|second| now.since(second.at) >= NOW) {
            self.seconds.pop_front();
        }
        let rate = self.now().rate(|window| window.offered);
        // An average younger than its memory is a plain mean, not a memory of zero.
        let share = (1.0 - (-elapsed_s / 3600.0).exp()).max(elapsed_s / (self.age_s + elapsed_s).max(1e-9));
        self.rate_1h += share * (rate - self.rate_1h);
        self.age_s += elapsed_s;
    }

    /// The last ten seconds.
    fn now(&self) -> Window {
        Window::between(self.seconds.front(), self.seconds.back())
    }

    /// The last minute, or a few seconds more.
    fn minute(&self) -> Window {
        let latest = self.seconds.back();
        let is_before = |totals: &&Totals| latest.is_some_and(|latest| latest.at.since(totals.at) >= MINUTE);
        Window::between(self.tens.iter().rev().find(is_before).or(self.tens.front()), latest)
    }

    /// The ten minutes before the last one; of no length while it is younger.
    fn before(&self) -> Window {
        let Some(latest) = self.tens.back() else { return Window::default() };
        let end = self.tens.iter().rev().find(|totals| latest.at.since(totals.at) >= MINUTE);
        Window::between(self.tens.front().filter(|_| end.is_some()), end)
    }
}

impl Window {
    fn between(from: Option<&Totals>, to: Option<&Totals>) -> Window {
        let (Some(from), Some(to)) = (from, to) else { return Window::default() };
        let count = |to: u64, from: u64| to.saturating_sub(from) as f64;
        Window {
            seconds: to.at.since(from.at).as_secs_f64(),
            offered: count(to.offered, from.offered),
            shed: count(to.shed, from.shed),
            failed: count(to.failed, from.failed),
            late: count(to.late, from.late),
        }
    }

    /// Per second; nothing of a window without length.
    fn rate(&self, of: impl Fn(&Window) -> f64) -> f64 {
        if self.seconds > 0.0 { of(self) / self.seconds } else { 0.0 }
    }

    /// Of the requests that came or, where more were shed than came (they had waited), of those.
    fn share(&self, of: impl Fn(&Window) -> f64) -> f64 {
        let whole = self.offered.max(of(self));
        if whole > 0.0 { of(self) / whole } else { 0.0 }
    }
}

/// What is judged is what was counted within this, ...
const NOW: Duration = Duration::from_secs(10);

/// ... beside all but the last minute ...
const MINUTE: Duration = Duration::from_secs(60);

/// ... of this.
const LONG: Duration = Duration::from_secs(660);

/// Bad above `bad`, good below `good`.
fn band(value: f64, bad: f64, good: f64) -> Verdict {
    if value > bad {
        Verdict::Bad
    } else if value >= good {
        Verdict::Between
    } else {
        Verdict::Good
    }
}

/// The rules of classes.
fn judge_classes(
    recent: &mut BTreeMap<String, Recent>,
    (now, elapsed_s): (Time, f64),
    classes: &[ClassFacts<'_>],
    reachable: bool,
    judge: &mut Judge<'_>,
) {
    for class in classes {
        if !recent.contains_key(class.name) {
            recent.insert(class.name.to_owned(), Recent::default());
        }
        let Some(recent) = recent.get_mut(class.name) else { continue };
        recent.take(now, elapsed_s, class);
        let window = recent.now();
        slo(class, &window, judge);
        sheds(class, &window, recent, judge);
        failures(class, &window, recent, reachable, judge);
        request_rate(class, &window, recent, reachable, judge);
    }
    if recent.len() > classes.len() {
        recent.retain(|name, _| classes.iter().any(|class| class.name == name));
    }
}

fn slo(class: &ClassFacts<'_>, window: &Window, judge: &mut Judge<'_>) {
    let pressure = class.slo_pressure.filter(|pressure| pressure.is_finite());
    let verdict = match pressure {
        // No answers at all are no proof of health: what fires goes on while requests come.
        None if window.offered > 0.0 => Verdict::Between,
        None => Verdict::Good,
        Some(pressure) => band(pressure, 1.0, 0.95),
    };
    let finding = Finding { alert: Alert::SloBreached, subject: Some(class.name), detail: "", verdict };
    judge.take(finding, || match pressure {
        None if window.offered > 0.0 => format!("{} gets no responses", class.name),
        None => format!("{} receives no requests", class.name),
        Some(pressure) => format!("latency of {} is {}x its SLO", class.name, number(pressure)),
    });
}

fn sheds(class: &ClassFacts<'_>, window: &Window, recent: &Recent, judge: &mut Judge<'_>) {
    let (now, before) = (window.share(|window| window.shed), recent.before());
    let share_before = before.share(|window| window.shed);
    let verdict = if now <= 0.005 {
        Verdict::Good
    } else if now > 0.01 && now > 1.5 * share_before {
        Verdict::Bad
    } else {
        Verdict::Between
    };
    let finding = Finding { alert: Alert::ShedsRising, subject: Some(class.name), detail: "", verdict };
    judge.take(finding, || {
        let rate = window.rate(|window| window.shed);
        // Of a window that has not passed nothing is said.
        let compared = if verdict != Verdict::Good && before.seconds >= 590.0 {
            format!("; {} % in the ten minutes before", number(share_before * 100.0))
        } else {
            String::new()
        };
        format!(
            "{} sheds {} % of its requests ({}/s){compared}",
            class.name,
            number(now * 100.0),
            number(rate)
        )
    });
}

/// Ray answers these with status 500 where there is no Grafana or Prometheus beside it, and its dashboard asks all the time.
const FAILS_BY_DESIGN: &str = "views-metrics";

/// Fewer failures within a minute say nothing of a share.
const FAILED_MIN: f64 = 5.0;

/// The rule of requests that fail. An outage has an alert of its own.
fn failures(
    class: &ClassFacts<'_>,
    window: &Window,
    recent: &Recent,
    reachable: bool,
    judge: &mut Judge<'_>,
) {
    let share = window.share(|window| window.failed);
    let verdict = if share < 0.02 || !reachable || class.name == FAILS_BY_DESIGN {
        Verdict::Good
    } else if share > 0.05 && recent.minute().failed >= FAILED_MIN {
        Verdict::Bad
    } else {
        Verdict::Between
    };
    let finding = Finding { alert: Alert::RequestsFailing, subject: Some(class.name), detail: "", verdict };
    judge.take(finding, || {
        let rate = window.rate(|window| window.failed);
        let late = if window.late > 0.0 {
            let part = number(100.0 * window.late / window.failed.max(window.late));
            format!("; rayguard ended {part} % of these after `class.{}.timeout`", class.name)
        } else {
            String::new()
        };
        format!("{} % of {} requests fail ({}/s){late}", number(share * 100.0), class.name, number(rate))
    });
}

fn request_rate(
    class: &ClassFacts<'_>,
    window: &Window,
    recent: &Recent,
    reachable: bool,
    judge: &mut Judge<'_>,
) {
    let rate = window.rate(|window| window.offered);
    let threshold = class.rate_alert.filter(|rate| rate.is_finite()).or_else(|| {
        // The first ten minutes are for learning.
        (recent.age_s >= 600.0).then(|| (4.0 * recent.rate_1h).max(10.0))
    });
    // Where Ray is down and clients retry, that alert says so.
    let verdict = threshold
        .map_or(Verdict::Good, |bad| if reachable { band(rate, bad, 0.8 * bad) } else { Verdict::Good });
    let finding = Finding { alert: Alert::HighRequestRate, subject: Some(class.name), detail: "", verdict };
    judge.take(finding, || {
        format!(
            "{} receives {} requests per second; the alert threshold is {}{}",
            class.name,
            number(rate),
            threshold.map_or_else(|| "not known yet".to_owned(), number),
            if class.rate_alert.is_some() { ", as configured" } else { ", four times the last hour's" }
        )
    });
}

fn limits(limits: &[LimitFacts<'_>], judge: &mut Judge<'_>) {
    for limit in limits.iter().filter(|limit| limit.bounds.moves()) {
        let (class, what) = (limit.class, limit.limit.label());
        let finding = |alert, bad: bool, good: bool| {
            let verdict = match (bad, good) {
                (true, _) => Verdict::Bad,
                (false, true) => Verdict::Good,
                (false, false) => Verdict::Between,
            };
            Finding { alert, subject: Some(class), detail: what, verdict }
        };
        let at_floor = limit.value <= limit.bounds.min * 1.001;
        judge.take(finding(Alert::PinnedFloor, at_floor && limit.binding, !at_floor), || {
            format!("{class} {what} is {}, its floor is {}", number(limit.value), number(limit.bounds.min))
        });
        let at_ceiling = limit.value >= limit.bounds.max * 0.999;
        let free = !at_ceiling || !limit.binding;
        judge.take(finding(Alert::PinnedCeiling, at_ceiling && limit.binding, free), || {
            format!("{class} {what} is {}, its ceiling is {}", number(limit.value), number(limit.bounds.max))
        });
        judge.take(finding(Alert::LoopHunting, limit.hunting, !limit.hunting), || {
            format!("{class} {what} oscillates by +-{} %", number(limit.swing * 100.0))
        });
    }
}

/// The rule of signals: one alert for each address they are read at.
fn signals(signals: &[SignalFacts<'_>], unreachable: bool, judge: &mut Judge<'_>) {
    if judge.known.is_empty() && !signals.iter().any(|signal| signal.stale) {
        return;
    }
    let mut targets: BTreeMap<&str, Vec<&SignalFacts<'_>>> = BTreeMap::new();
    for signal in signals {
        // What was never read has no address, and one cause: Ray's metrics are not found.
        let nowhere = if signal.age.is_none() { UNFOUND } else { signal.name };
        targets.entry(signal.target.unwrap_or(nowhere)).or_default().push(signal);
    }
    for (target, signals) in targets {
        let stale: Vec<&SignalFacts<'_>> = signals.into_iter().filter(|signal| signal.stale).collect();
        let verdict = match (stale.is_empty(), unreachable) {
            (true, _) => Verdict::Good,
            // With Ray gone so is what it says of itself.
            (false, true) => Verdict::Between,
            (false, false) => Verdict::Bad,
        };
        let finding = Finding { alert: Alert::SignalStale, subject: Some(target), detail: "", verdict };
        judge.take(finding, || stale_summary(target, &stale));
    }
}

/// What stands for the address of metrics that were never found.
const UNFOUND: &str = "metrics";

/// What cannot be read, why, and what follows from it.
fn stale_summary(target: &str, stale: &[&SignalFacts<'_>]) -> String {
    let Some(first) = stale.first() else { return format!("{target}: readings are fresh again") };
    let names: Vec<&str> = stale.iter().map(|signal| signal.name).collect();
    let (have, is) = if stale.len() == 1 { ("has", "is") } else { ("have", "are") };
    let names = names.join(", ");
    let follows =
        "rates and ceilings that follow them do not rise; the proxy's own latency still moves limits";
    if let Some(dead) = stale.iter().find(|signal| signal.unreachable) {
        return format!(
            "metrics cannot be read ({}): {names} {have} no fresh reading; {follows}",
            dead.problem
        );
    }
    if target == UNFOUND {
        return format!(
            "{} without a reading: {}; {follows}; set `metrics.targets`, or run `rayguard doctor`",
            if stale.len() > 3 { format!("{} signals are", stale.len()) } else { format!("{names} {is}") },
            if first.problem.is_empty() { "Ray's metrics were never found" } else { first.problem }
        );
    }
    let age = first.age.map_or_else(
        || "never read".to_owned(),
        |age| format!("last new value {} s ago", number(age.as_secs_f64())),
    );
    let problem = if first.problem.is_empty() { String::new() } else { format!(": {}", first.problem) };
    format!("{names} {have} no fresh reading from {target} ({age}{problem}); {follows}")
}

/// The first line of what is drawn over several.
fn one_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The rules of the whole; `gap`: the adjustment log has lost events since the last tick.
fn house(facts: &Facts<'_>, gap: bool, judge: &mut Judge<'_>) {
    let finding = |alert, bad: bool| {
        let verdict = if bad { Verdict::Bad } else { Verdict::Good };
        Finding { alert, subject: None, detail: "", verdict }
    };
    let down = facts.upstream_problem;
    judge.take(finding(Alert::UpstreamDown, down.is_some()), || {
        down.map_or_else(|| "Ray is reachable again".to_owned(), upstream_words)
    });
    let refused = facts.config_problem;
    judge.take(finding(Alert::ConfigRejected, refused.is_some()), || {
        refused.map_or_else(
            || "a new configuration was accepted".to_owned(),
            |why| format!("new configuration rejected; still using the previous one: {}", one_line(why)),
        )
    });
    judge.take(finding(Alert::AdjustmentLogGaps, gap), || {
        format!("{} events are missing from the adjustment log since the start", facts.events_lost)
    });
    let store = facts.store_problem;
    judge.take(finding(Alert::ReplicaStoreDown, store.is_some()), || {
        store.map_or_else(
            || "the store that replicas share is reachable again".to_owned(),
            |why| format!("the store that replicas share is unreachable: {why}"),
        )
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of requests, so that a fraction of one a second counts.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
    fn thousandths(requests: f64) -> u64 {
        (requests * 1e3).round() as u64
    }

    /// With so many thousandths of requests in this second; `run` adds them up.
    fn class(slo_pressure: Option<f64>, offered: f64, shed: f64) -> ClassFacts<'static> {
        ClassFacts {
            name: "job-list",
            slo_pressure,
            offered: thousandths(offered),
            shed: thousandths(shed),
            failed: 0,
            late: 0,
            rate_alert: None,
        }
    }

    /// Ticks once a second with what `facts` says of that second; returns what was told when.
    fn run(
        alerts: &mut Alerts,
        from: u64,
        to: u64,
        facts: impl Fn(u64) -> Facts<'static>,
    ) -> Vec<(u64, Transition)> {
        let mut totals = [0; 4];
        (from..to)
            .flat_map(|second| {
                let now = Time(second * 1_000_000_000);
                let mut facts = facts(second);
                for class in &mut facts.classes {
                    let counts = [&mut class.offered, &mut class.shed, &mut class.failed, &mut class.late];
                    for (total, count) in totals.iter_mut().zip(counts) {
                        *total += *count;
                        *count = *total / 1_000;
                    }
                }
                alerts.tick(now, &facts).into_iter().map(move |told| (second, told))
            })
            .collect()
    }

    fn of(told: &[(u64, Transition)], alert: Alert) -> Vec<(u64, AlertState)> {
        told.iter().filter(|(_, t)| t.alert == alert).map(|(second, t)| (*second, t.state)).collect()
    }

    #[test]
    fn a_healthy_idle_head_raises_no_alert() {
        let told = run(&mut Alerts::default(), 0, 4000, |_| Facts {
            classes: vec![class(Some(0.3), 2.0, 0.0)],
            ..Facts::default()
        });
        assert!(told.is_empty(), "{told:?}");
    }

    #[test]
    fn a_breached_objective_is_told_once_after_a_minute_and_resolved_after_another() {
        let told = run(&mut Alerts::default(), 0, 400, |second| Facts {
            classes: vec![class(Some(if (10..200).contains(&second) { 1.5 } else { 0.5 }), 2.0, 0.0)],
            ..Facts::default()
        });
        assert_eq!(
            of(&told, Alert::SloBreached),
            [(70, AlertState::Firing), (260, AlertState::Resolved)],
            "{told:?}"
        );
        assert_eq!(told[0].1.key, "slo-breached/job-list");
        assert_eq!(told[0].1.key, told[1].1.key);
    }

    #[test]
    fn a_value_on_the_edge_neither_rings_again_nor_resolves() {
        let told = run(&mut Alerts::default(), 0, 2000, |second| {
            let pressure = if second < 100 || second % 20 < 10 { 1.1 } else { 0.97 };
            Facts { classes: vec![class(Some(pressure), 2.0, 0.0)], ..Facts::default() }
        });
        assert_eq!(of(&told, Alert::SloBreached), [(60, AlertState::Firing)]);
    }

    #[test]
    fn a_breach_shorter_than_its_patience_is_not_told() {
        let told = run(&mut Alerts::default(), 0, 500, |second| Facts {
            classes: vec![class(Some(if second % 60 < 30 { 2.0 } else { 0.5 }), 2.0, 0.0)],
            ..Facts::default()
        });
        assert!(of(&told, Alert::SloBreached).is_empty());
    }

    #[test]
    fn a_flood_is_one_alert_from_its_first_minute_to_within_two_of_its_end() {
        let told = run(&mut Alerts::default(), 0, 9000, |second| Facts {
            classes: vec![class(Some(0.5), 10.0, if (1000..7000).contains(&second) { 5.0 } else { 0.0 })],
            ..Facts::default()
        });
        let told = of(&told, Alert::ShedsRising);
        let expected = [(1000..1060, AlertState::Firing), (7000..7120, AlertState::Resolved)];
        assert!(
            told.len() == 2
                && told
                    .iter()
                    .zip(&expected)
                    .all(|(told, (when, state))| when.contains(&told.0) && told.1 == *state),
            "{told:?}"
        );
    }

    #[test]
    fn a_burst_that_is_over_before_its_time_is_not_told_and_no_figure_outlives_its_cause() {
        let told = run(&mut Alerts::default(), 0, 300, |second| {
            let burst = (100..104).contains(&second);
            Facts {
                classes: vec![class(
                    Some(0.5),
                    if burst { 500.0 } else { 1.0 },
                    if burst { 490.0 } else { 0.0 },
                )],
                ..Facts::default()
            }
        });
        assert!(told.is_empty(), "{told:?}");
        let flood = run(&mut Alerts::default(), 0, 200, |second| Facts {
            classes: vec![class(Some(0.5), 500.0, if second >= 100 { 465.0 } else { 0.0 })],
            ..Facts::default()
        });
        assert_eq!(flood[0].1.summary, "job-list sheds 93 % of its requests (465/s)");
    }

    #[test]
    fn no_average_over_ten_minutes_is_claimed_before_they_have_passed() {
        let flood = |second: u64, from: u64| Facts {
            classes: vec![class(Some(0.5), 10.0, if second >= from { 5.0 } else { 0.0 })],
            ..Facts::default()
        };
        let early = run(&mut Alerts::default(), 0, 120, |second| flood(second, 30));
        let summary = &early.iter().find(|(_, told)| told.alert == Alert::ShedsRising).unwrap().1.summary;
        assert!(!summary.contains("minute"), "{summary}");
        let late = run(&mut Alerts::default(), 0, 1000, |second| flood(second, 700));
        let summary = &late.iter().find(|(_, told)| told.alert == Alert::ShedsRising).unwrap().1.summary;
        assert!(summary.contains("0 % in the ten minutes before"), "{summary}");
    }

    #[test]
    fn requests_that_fail_are_told_of_unless_ray_is_down() {
        let failing = |second: u64, down: bool| Facts {
            classes: vec![ClassFacts {
                failed: if (100..300).contains(&second) { 1_000 } else { 0 },
                ..class(Some(0.5), 10.0, 0.0)
            }],
            upstream_problem: down.then_some("connection refused"),
            ..Facts::default()
        };
        let told = run(&mut Alerts::default(), 0, 600, |second| failing(second, false));
        assert_eq!(
            of(&told, Alert::RequestsFailing),
            // Ten seconds of which half fail every tenth request are over 5 %; those of the end are under 2 % after eight.
            [(135, AlertState::Firing), (368, AlertState::Resolved)]
        );
        assert_eq!(told[0].1.summary, "10 % of job-list requests fail (1/s)");
        assert_eq!(told[0].1.since, Time(105_000_000_000), "since the trouble began, not since it was told");
        let down = run(&mut Alerts::default(), 0, 600, |second| failing(second, true));
        assert!(of(&down, Alert::RequestsFailing).is_empty(), "an outage is one alert");
    }

    #[test]
    fn a_few_failures_are_no_share_and_those_of_our_own_timeout_are_told_apart() {
        let late = |offered: f64| {
            move |_: u64| {
                let failed = thousandths(offered);
                Facts {
                    classes: vec![ClassFacts { failed, late: failed, ..class(Some(0.5), offered, 0.0) }],
                    ..Facts::default()
                }
            }
        };
        let seldom = run(&mut Alerts::default(), 0, 600, late(1.0 / 20.0));
        assert!(of(&seldom, Alert::RequestsFailing).is_empty(), "three a minute: {seldom:?}");
        let often = run(&mut Alerts::default(), 0, 600, late(1.0));
        assert!(
            often[0].1.summary.ends_with("rayguard ended 100 % of these after `class.job-list.timeout`"),
            "{often:?}"
        );
    }

    #[test]
    fn an_alert_whose_cause_is_gone_says_when_it_resolves() {
        let mut alerts = Alerts::default();
        let told = run(&mut alerts, 0, 105, |second| Facts {
            upstream_problem: (50..100).contains(&second).then_some("connection refused"),
            ..Facts::default()
        });
        assert_eq!(told[0].1.since, Time(50_000_000_000));
        let summaries: Vec<&str> = alerts.firing().map(|firing| &*firing.summary).collect();
        assert_eq!(summaries, ["recovering for 4 s, resolves after 10 s: Ray is reachable again"]);
        let ended = run(&mut alerts, 105, 115, |_| Facts::default());
        assert_eq!(ended[0].1.summary, "Ray is reachable again");
    }

    #[test]
    fn a_retry_loop_that_is_shed_is_a_high_request_rate() {
        let told = run(&mut Alerts::default(), 0, 200, |_| Facts {
            classes: vec![ClassFacts { rate_alert: Some(20.0), ..class(Some(0.5), 50.0, 45.0) }],
            ..Facts::default()
        });
        assert!(!of(&told, Alert::HighRequestRate).is_empty(), "{told:?}");
    }

    #[test]
    fn a_dead_metrics_port_is_one_alert_that_names_it_and_what_follows() {
        let signal = |name, target, stale| SignalFacts {
            name,
            stale,
            age: Some(Duration::from_secs(40)),
            problem: if stale { "10.0.0.7:8080: connection refused" } else { "" },
            target: Some(target),
            unreachable: stale,
        };
        let told = run(&mut Alerts::default(), 0, 400, |second| {
            let dead = (100..200).contains(&second);
            Facts {
                signals: vec![
                    signal("head_cpu", "10.0.0.7:8080", dead),
                    signal("pending_tasks", "10.0.0.7:8080", dead),
                    signal("gcs_latency", "probe", false),
                ],
                ..Facts::default()
            }
        });
        assert_eq!(of(&told, Alert::SignalStale), [(130, AlertState::Firing), (215, AlertState::Resolved)]);
        assert_eq!(told[0].1.key, "signal-stale/10.0.0.7:8080");
        assert_eq!(
            told[0].1.summary,
            "metrics cannot be read (10.0.0.7:8080: connection refused): head_cpu, pending_tasks have no fresh \
             reading; rates and ceilings that follow them do not rise; the proxy's own latency still moves limits"
        );
    }

    #[test]
    fn every_alert_has_a_name_of_its_own_and_a_place_in_the_runbook() {
        let names: std::collections::BTreeSet<&str> = Alert::ALL.into_iter().map(Alert::name).collect();
        assert_eq!(names.len(), Alert::ALL.len());
        assert!(names.iter().all(|name| name.starts_with("Rayguard")));
    }

    /// Both rates are decaying averages: their ratio would stand for ever.
    #[test]
    fn sheds_of_a_flood_that_has_ended_do_not_rise_for_ever() {
        let told = run(&mut Alerts::default(), 0, 5000, |second| {
            let fading = if second > 1100 { (-((second - 1100) as f64) / 10.0).exp() } else { 1.0 };
            Facts {
                classes: vec![class(Some(0.5), 20.0 * fading, if second > 1000 { fading } else { 0.0 })],
                ..Facts::default()
            }
        });
        let told = of(&told, Alert::ShedsRising);
        assert!(matches!(told[..], [(_, AlertState::Firing), (..1800, AlertState::Resolved)]), "{told:?}");
    }

    #[test]
    fn a_rate_far_above_the_last_hours_is_told() {
        let told = run(&mut Alerts::default(), 0, 4000, |second| Facts {
            classes: vec![class(Some(0.5), if second > 3000 { 80.0 } else { 5.0 }, 0.0)],
            ..Facts::default()
        });
        let rate = of(&told, Alert::HighRequestRate);
        assert!(matches!(rate[0], (3050..=3200, AlertState::Firing)), "{rate:?}");
    }

    #[test]
    fn a_limit_pinned_to_its_floor_is_told_and_a_fixed_one_is_not() {
        let limit = |bounds| LimitFacts {
            class: "state-heavy",
            limit: LimitKind::InFlight,
            value: 1.0,
            bounds,
            binding: true,
            hunting: false,
            swing: 0.0,
        };
        let moving = Bounds { initial: 4.0, min: 1.0, max: 16.0 };
        let told = run(&mut Alerts::default(), 0, 400, |_| Facts {
            limits: vec![limit(moving)],
            ..Facts::default()
        });
        assert_eq!(of(&told, Alert::PinnedFloor), [(300, AlertState::Firing)]);
        assert_eq!(told[0].1.key, "pinned-floor/state-heavy/in_flight");
        let told = run(&mut Alerts::default(), 0, 400, |_| Facts {
            limits: vec![limit(Bounds::fixed(1.0))],
            ..Facts::default()
        });
        assert!(told.is_empty());
    }

    #[test]
    fn a_lost_event_is_told_at_once_and_resolved_after_ten_quiet_minutes() {
        let told = run(&mut Alerts::default(), 0, 2000, |second| Facts {
            events_lost: if second >= 100 { 7 } else { 0 },
            ..Facts::default()
        });
        assert_eq!(
            of(&told, Alert::AdjustmentLogGaps),
            [(100, AlertState::Firing), (701, AlertState::Resolved)]
        );
    }

    #[test]
    fn the_house_rules_fire_and_resolve() {
        let told = run(&mut Alerts::default(), 0, 200, |second| {
            let ill = (50..100).contains(&second);
            Facts {
                upstream_problem: ill.then_some("connection refused"),
                config_problem: ill.then_some("line 3: unknown key"),
                signals: vec![SignalFacts {
                    name: "head_cpu",
                    stale: ill,
                    age: Some(Duration::from_secs(31)),
                    problem: "timed out",
                    target: None,
                    unreachable: false,
                }],
                ..Facts::default()
            }
        });
        assert_eq!(of(&told, Alert::UpstreamDown), [(55, AlertState::Firing), (110, AlertState::Resolved)]);
        assert_eq!(of(&told, Alert::ConfigRejected), [(50, AlertState::Firing), (100, AlertState::Resolved)]);
        assert!(
            of(&told, Alert::SignalStale).is_empty(),
            "what a head that is down does not say is no second alert"
        );
    }

    #[test]
    fn an_alert_about_a_class_that_a_reload_removed_is_resolved() {
        let told = run(&mut Alerts::default(), 0, 200, |second| Facts {
            classes: if second < 100 { vec![class(Some(2.0), 2.0, 0.0)] } else { Vec::new() },
            ..Facts::default()
        });
        assert_eq!(of(&told, Alert::SloBreached), [(60, AlertState::Firing), (100, AlertState::Resolved)]);
    }
}
