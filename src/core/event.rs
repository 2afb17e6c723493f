//! What happened, why, and from what: the words of the adjustment log.
//!
//! Every decision of the loop becomes one [`Event`], every event one line of JSON (a
//! [`LoggedEvent`]: wall time, sequence number, monotone time, event). The adjustment log serves two
//! readers. A tired operator reads `reason`, which is a sentence. `rayguard replay` reads
//! `derivation`, which holds everything the decision was made from: the regulator as it stood
//! before, and what it saw. Each adjustment can so be derived again by itself, without the
//! lines before it, and must come out the same to the last bit; floating-point numbers are
//! therefore written in their shortest form that reads back exactly.
//!
//! What it refuses: identities (clients are keyed digests), credentials (never here), and
//! free text that could break a line (JSON escapes control characters; see
//! [`printable`] for tables). A `NaN` has no JSON; observations are cleaned before they are
//! acted on, so none can arise.

use super::admission::meter::Reason;
use super::control::budget::Claim;
use super::control::guardrails::Guardrail;
use super::control::law::{Observation, Terms};
use super::control::regulator::{Move, Regulator};
use super::control::wasted;
pub use super::format::{number, printable, quantity, upstream_words};
pub use super::limit_kind::LimitKind;
use super::policy::OnStale;
use super::time::{Time, WallMs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One line of the adjustment log.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LoggedEvent {
    /// Wall time, for people; never used in a decision.
    pub time: WallMs,
    /// Rises by one with every line, across restarts. A hole is a lost line.
    pub seq: u64,
    /// Monotone time since the process began, in nanoseconds.
    pub at: Time,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What can happen.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The process began.
    Start(Start),
    /// The process ended in good order.
    Stop {
        /// Why: `SIGTERM`, ...
        reason: String,
    },
    /// A limit was changed, or a guardrail kept it where it was.
    Adjustment(Box<Adjustment>),
    /// One refused request, sampled.
    Shed(Shed),
    /// What a class refused over an interval.
    ShedSummary(ShedSummary),
    /// A signal was found, went stale, or came back.
    SignalState(SignalState),
    /// An override began or ended.
    ModeChange(ModeChange),
    /// A configuration was accepted or refused.
    ConfigChange(ConfigChange),
    /// The head went away, or came back.
    Upstream {
        /// Whether it answers.
        up: bool,
        /// What was seen.
        problem: String,
    },
    /// Another replica decides from now on, or this one does, or the store cannot be asked.
    #[serde(alias = "fleet")]
    Leadership(super::replicas::role::LeadershipChange),
    /// Lines that are not in the adjustment log.
    Gap(Gap),
    /// An alert began or ended.
    Alert(super::alert::Transition),
}

/// The process began.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Start {
    /// The version of rayguard.
    pub version: String,
    /// Counts accepted configurations.
    pub policy_version: u64,
    /// Every limit at the start.
    pub limits: Vec<StartLimit>,
    /// The key that reads `requests` in the rest of the adjustment log, if the driver has a run id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run: String,
}

/// One limit at start.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StartLimit {
    /// Class or module.
    pub class: String,
    /// Which limit.
    pub limit: LimitKind,
    /// Its value.
    pub value: f64,
    /// Taken over from the last run rather than `initial`.
    pub warm: bool,
}

/// Which control loop moved the limit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoopKind {
    /// Fast: the proxy's own latency.
    Inner,
    /// Slow: Ray's readings.
    Outer,
    /// Slow: the backlog that a class's requests leave.
    Backlog,
}

impl LoopKind {
    /// What it follows, for people.
    pub fn follows(self) -> &'static str {
        match self {
            LoopKind::Inner => "latency",
            LoopKind::Outer => "Ray's signals",
            LoopKind::Backlog => "the backlog",
        }
    }
}

/// Who decides, and whether it counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The loop decides, sheds are carried out.
    #[default]
    Enforce,
    /// The loop decides, sheds are only counted.
    Shadow,
    /// An operator decides.
    Manual,
    /// Nothing moves.
    Frozen,
}

impl Mode {
    /// As in the adjustment log.
    pub fn label(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::Shadow => "shadow",
            Mode::Manual => "manual",
            Mode::Frozen => "frozen",
        }
    }
}

/// A reading as the loop saw it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SignalSeen {
    /// `proxy_latency`, `gcs_latency`, `head_cpu`, ...
    pub name: String,
    /// The value, in `unit`.
    pub value: f64,
    /// The target, in `unit`.
    pub target: f64,
    /// `value / target`; `forecast.value / target` where there is a forecast. 1 is at target.
    pub pressure: f64,
    /// Where it is going, where that is what counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// How old the value was when it was acted on, in milliseconds.
    pub age_ms: u64,
    /// Where it came from.
    pub source: String,
    /// `ms`, `s`, `%`, ...
    pub unit: String,
}

/// Where a reading is going.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Forecast {
    /// The value, in the signal's unit.
    pub value: f64,
    /// When, in seconds from now.
    pub in_s: f64,
}

/// What only `rayguard replay` reads: the state and the parts of a control law. The description of the API says no
/// more of them, because each law has its own.
type Internals = serde_json::Map<String, serde_json::Value>;

/// How a module's need to cut was divided among its classes.
// By the rules of control/budget.rs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Apportioned {
    /// The module.
    pub module: String,
    /// Its pressure.
    pub pressure: f64,
    /// The work of each of its classes, in the policy's order.
    pub claims: Vec<Claim>,
    /// Which of the claims is this class's; the first is 0.
    pub index: usize,
    /// What it was allotted.
    pub allotted: f64,
    /// The pressure its law saw.
    pub seen: f64,
}

/// Everything a new limit was made from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Derivation {
    /// The law stepped.
    Law {
        /// The law and its guardrails as they stood before, for `rayguard replay`.
        #[schemars(with = "Internals")]
        before: Box<Regulator>,
        /// What they saw, for `rayguard replay`.
        #[schemars(with = "Internals")]
        observation: Observation,
    },
    /// The signal was stale.
    Stale {
        /// The law and its guardrails as they stood before, for `rayguard replay`.
        #[schemars(with = "Internals")]
        before: Box<Regulator>,
        /// What they saw, for `rayguard replay`.
        #[schemars(with = "Internals")]
        observation: Observation,
        /// What the operator wants done then.
        on_stale: OnStale,
    },
    /// A cut on a signal did not help: it is given back, and the signal has no say for a while.
    Restored {
        /// The law and its guardrails as they stood before, for `rayguard replay`.
        #[schemars(with = "Internals")]
        before: Box<Regulator>,
        /// The limit before the cut.
        to: f64,
        /// The signal.
        signal: String,
        /// Its unit.
        unit: String,
        /// What it would have read without the cut.
        expected: f64,
        /// What it reads.
        seen: f64,
        /// How long it has no say.
        rest_ms: u64,
    },
    /// The value was handed in, not derived: a pin, a reload, a warm start, a restart of the head.
    Given {
        /// By whom and why.
        why: String,
    },
}

/// One change of one limit, with all that caused it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LoggedAdjustment")]
pub struct Adjustment {
    /// The class; the module where the limit is `module_in_flight`.
    pub class: String,
    /// Which limit.
    pub limit: LimitKind,
    /// The limit before.
    pub old: f64,
    /// The limit after.
    pub new: f64,
    /// The control law's name.
    pub law: String,
    /// The parts of the law's proposal, for `rayguard replay`: a word, or an object named by the law.
    #[schemars(with = "serde_json::Value")]
    pub terms: Terms,
    /// What was read, worst first.
    pub signals: Vec<SignalSeen>,
    /// The guardrail that held the law back, if one did.
    #[serde(alias = "guard")]
    pub guardrail: Option<Guardrail>,
    /// Who decides.
    pub mode: Mode,
    /// Which loop.
    pub r#loop: LoopKind,
    /// The accepted configuration this was decided under.
    pub policy_version: u64,
    /// How the module's need was divided, when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apportioned: Option<Apportioned>,
    /// What it was derived from.
    pub derivation: Derivation,
    /// Which replica decided, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// What another loop allows of the same limit at this moment: the lower of the two is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<Other>,
    /// Why, as a sentence.
    pub reason: String,
}

/// What another loop allows of the same limit.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Other {
    /// Which loop.
    pub r#loop: LoopKind,
    /// Its value.
    pub value: f64,
}

/// Which way a refused request came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// To the proxy itself.
    #[default]
    Proxy,
    /// An Envoy asked on its behalf.
    RatelimitService,
}

impl Via {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
    fn is_proxy(&self) -> bool {
        *self == Via::Proxy
    }
}

/// One refused request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Shed {
    /// The id in the answer's `X-Rayguard-Request-Id`.
    pub request: String,
    /// Its class.
    pub class: String,
    /// Its module.
    pub module: String,
    /// Why, as in the answer's `X-Rayguard-Reason` and in the metrics.
    pub cause: Reason,
    /// Counted, but let through.
    pub shadow: bool,
    /// Keyed digest of who asked.
    #[serde(alias = "party")]
    pub client: String,
    /// When the client was told to come back.
    pub retry_after_s: u32,
    /// Version of the limit table that decided.
    pub table: u64,
    /// The class's limit on requests in flight at that moment.
    pub in_flight_limit: f64,
    /// Requests of the class under way at that moment.
    pub in_flight: u32,
    /// The class's rate limit, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<f64>,
    /// Learnt work of the class under way at that moment, in seconds of its module's time, where that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_s: Option<f64>,
    /// How much of it may be under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_limit_s: Option<f64>,
    /// How long it waited before it was refused.
    pub waited_ms: u64,
    /// Which way it came, if not to the proxy itself.
    #[serde(default, skip_serializing_if = "Via::is_proxy")]
    pub via: Via,
}

/// What a class refused over an interval.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ShedSummary {
    /// The class.
    pub class: String,
    /// Length of the interval.
    pub interval_ms: u64,
    /// Requests that came.
    pub offered: u64,
    /// Requests answered by the head.
    pub served: u64,
    /// Refusals by reason's label; only reasons that occurred.
    pub causes: Vec<Count>,
    /// Of these, only counted (shadow mode).
    pub shadow: u64,
    /// The clients refused most, as keyed digests; a few at most.
    pub clients: Vec<Count>,
}

/// A label, and how often it occurred.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Count {
    /// What.
    pub label: String,
    /// How often.
    pub count: u64,
}

/// Whether readings of a signal arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SignalHealth {
    /// New information arrives.
    Fresh,
    /// None has arrived yet.
    Waiting,
    /// The last is too old.
    Stale,
}

/// A signal changed its state.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SignalState {
    /// The signal.
    pub signal: String,
    /// Whether its readings arrive now.
    pub state: SignalHealth,
    /// Age of the last value, if there was one.
    pub age_ms: Option<u64>,
    /// Where it comes, or came, from.
    pub source: String,
    /// What is wrong, or empty.
    pub problem: String,
    /// What it does to the limits (`limits hold`, ...).
    pub consequence: String,
}

/// An override began or ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ModeChange {
    /// A class or module, or `all`.
    pub class: String,
    /// Which limit was pinned; null where the mode of the whole class, or of all, changed.
    pub limit: Option<LimitKind>,
    /// Before.
    pub from: Mode,
    /// After.
    pub to: Mode,
    /// The pinned value.
    pub value: Option<f64>,
    /// Who said so.
    pub who: String,
    /// Why they said so.
    pub why: String,
    /// When it ends by itself.
    pub until: Option<WallMs>,
}

/// A configuration was accepted or refused.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConfigChange {
    /// Whether it is in force.
    pub accepted: bool,
    /// The configuration in force after this.
    pub policy_version: u64,
    /// Where it came from.
    pub source: String,
    /// What it changed, one sentence each.
    pub changes: Vec<String>,
    /// Why it was refused, one sentence each.
    pub problems: Vec<String>,
}

/// Lines that are not in the adjustment log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// How many events; 0 when it cannot be known.
    pub lost: u64,
    /// Bytes of a torn line that were set aside.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub torn_bytes: u64,
    /// What happened.
    pub why: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Which refused requests are written down one by one: so many per second, so that a flood
/// of refusals does not become a flood of lines. All of them are counted in the summaries.
#[derive(Clone, Copy, Debug)]
pub struct ShedSampler {
    per_second: u32,
    second: u64,
    taken: u32,
}

impl ShedSampler {
    /// At most `per_second` a second.
    pub fn new(per_second: u32) -> ShedSampler {
        ShedSampler { per_second, second: 0, taken: 0 }
    }

    /// Whether to write this one down.
    pub fn take(&mut self, now: Time) -> bool {
        let second = now.0 / 1_000_000_000;
        if second != self.second {
            (self.second, self.taken) = (second, 0);
        }
        let take = self.taken < self.per_second;
        self.taken += u32::from(take);
        take
    }
}

/// What the controller knows of an adjustment before it is put into words.
#[derive(Clone, Debug)]
pub struct Cause {
    /// The class; the module for [`LimitKind::ModuleInFlight`].
    pub class: String,
    /// Which limit.
    pub limit: LimitKind,
    /// Which loop.
    pub r#loop: LoopKind,
    /// Who decides.
    pub mode: Mode,
    /// The accepted configuration.
    pub policy_version: u64,
    /// What was read; put in order here.
    pub signals: Vec<SignalSeen>,
    /// How the module's need was divided, when it was.
    pub apportioned: Option<Apportioned>,
    /// What it was derived from.
    pub derivation: Derivation,
    /// Which replica decided, where there are several.
    pub decided_by: Option<String>,
    /// What another loop allows of the same limit.
    pub other: Option<Other>,
}

impl Adjustment {
    /// The adjustment a move came to, with its reason put into words.
    pub fn new(cause: Cause, step: &Move) -> Adjustment {
        let Cause {
            class,
            limit,
            r#loop,
            mode,
            policy_version,
            mut signals,
            apportioned,
            derivation,
            decided_by,
            other,
        } = cause;
        signals.sort_by(|a, b| b.pressure.total_cmp(&a.pressure));
        let law = match &derivation {
            Derivation::Law { before, .. } => before.law.name(),
            Derivation::Stale { .. } => "stale",
            Derivation::Restored { .. } => "restored",
            Derivation::Given { .. } => "given",
        };
        let mut adjustment = Adjustment {
            class,
            limit,
            old: step.old,
            new: step.new,
            law: law.to_owned(),
            terms: step.terms,
            signals,
            guardrail: step.guardrail,
            mode,
            r#loop,
            policy_version,
            apportioned,
            derivation,
            decided_by,
            other,
            reason: String::new(),
        };
        adjustment.reason = adjustment.sentence();
        adjustment
    }

    /// Why, as a sentence for an operator who was woken by it.
    pub fn sentence(&self) -> String {
        let verb = if self.new < self.old {
            "cut"
        } else if self.new > self.old {
            "raised"
        } else {
            "held"
        };
        let unit = self.limit.unit();
        let moved = if verb == "held" {
            format!("at {}{unit}", number(self.new))
        } else {
            format!("from {} to {}{unit}", number(self.old), number(self.new))
        };
        // Where two loops each have a ceiling of the same limit, the one that moved is named.
        let by = self.other.map_or_else(String::new, |_| format!(" by {}", self.r#loop.follows()));
        let mut sentence = format!("{verb} {} {}{by} {moved}: ", self.class, self.limit.label());
        sentence.push_str(&self.because());
        if let Some(blame) = self.blame_words() {
            sentence.push_str("; ");
            sentence.push_str(&blame);
        }
        if let Some(guardrail) = self.guardrail {
            sentence.push_str("; ");
            sentence.push_str(&self.guardrail_words(guardrail));
        }
        if let Some(lower) = self.other.filter(|other| other.value < self.new) {
            let (value, follows) = (number(lower.value), lower.r#loop.follows());
            sentence.extend(["; the limit in force is ", value.as_str(), unit, ", set by ", follows]);
        }
        sentence
    }

    fn because(&self) -> String {
        match &self.derivation {
            Derivation::Given { why } => why.clone(),
            Derivation::Restored { signal, unit, expected, seen, rest_ms, .. } => format!(
                "lowering {} did not lower {signal}: it reads {} where {} was expected without the cut; restored, \
                 and {signal} will not move this limit for {}",
                self.class,
                quantity(*seen, unit),
                quantity(*expected, unit),
                seconds_words(Duration::from_millis(*rest_ms))
            ),
            Derivation::Stale { on_stale, .. } => {
                let names: Vec<&str> = self.signals.iter().map(|signal| signal.name.as_str()).collect();
                let what =
                    if names.is_empty() { "no signal is fresh".into() } else { stale_words(&self.signals) };
                let then = match on_stale {
                    OnStale::Hold => "its limits hold",
                    OnStale::Decay => "its limits go back towards their initial values",
                    OnStale::Static => "its limits go to their initial values",
                };
                format!("{what}, so {then}")
            }
            Derivation::Law { observation, .. } => {
                let binding = match observation.used {
                    Some(used) if used < self.old && self.new < self.old => match self.limit {
                        LimitKind::Rate => format!("{}/s passed on average", number(used)),
                        LimitKind::InFlight | LimitKind::ModuleInFlight => {
                            format!("{} requests in flight on average", number(used))
                        }
                    },
                    _ if observation.binding => "limit reached".to_owned(),
                    _ => "limit not reached".to_owned(),
                };
                match (self.signals.first(), self.gradient_words(), observation.pressure) {
                    (Some(worst), None, _) => format!("{}; {binding}", signal_words(worst)),
                    (Some(worst), Some(gradient), _) if worst.pressure > 1.0 => {
                        format!("{}; {gradient}; {binding}", signal_words(worst))
                    }
                    (_, Some(gradient), _) => format!("{gradient}; {binding}"),
                    (None, None, Some(pressure)) => {
                        format!("pressure is {}; {binding}", number(pressure))
                    }
                    (None, None, None) => format!("no new information; {binding}"),
                }
            }
        }
    }

    fn gradient_words(&self) -> Option<String> {
        let Terms::Gradient(terms) = self.terms else { return None };
        let Derivation::Law { observation, .. } = &self.derivation else { return None };
        let spread = observation.spread?;
        Some(format!(
            "the fastest answers take {}, {} without contention, so {} % of the mean of {} is waiting time",
            quantity(spread.quickest, "s"),
            quantity(terms.baseline, "s"),
            number((100.0 * (1.0 - terms.gradient)).round()),
            quantity(spread.mean, "s")
        ))
    }

    fn blame_words(&self) -> Option<String> {
        let apportioned = self.apportioned.as_ref()?;
        let work: f64 = apportioned.claims.iter().map(|claim| claim.want).sum();
        let own = apportioned.claims.get(apportioned.index)?.want;
        if apportioned.pressure <= 1.0 || work <= 0.0 {
            return None;
        }
        let percent = |part: f64| format!("{:.0} %", part / work * 100.0);
        Some(if apportioned.seen > 1.0 {
            format!(
                "uses {} of {}'s capacity; its fair share is {}",
                percent(own),
                apportioned.module,
                percent(apportioned.allotted)
            )
        } else {
            format!("uses {} of {}'s capacity, within its fair share", percent(own), apportioned.module)
        })
    }

    fn guardrail_words(&self, guardrail: Guardrail) -> String {
        let bounds = match &self.derivation {
            Derivation::Law { before, .. } | Derivation::Stale { before, .. } => Some(&before.guardrails),
            Derivation::Restored { .. } | Derivation::Given { .. } => None,
        };
        match guardrail {
            Guardrail::NotFinite => "the control law returned no finite value".into(),
            Guardrail::Deadband => "not moved: close enough to the target".into(),
            Guardrail::NotReached => "not lowered: limit not reached, and the class meets its SLO".into(),
            Guardrail::Wasted if matches!(self.terms, Terms::NoInformation) => {
                let before = bounds.and_then(|guardrails| guardrails.wasted);
                wasted::words(before.map(|wasted| wasted.trial), self.new < self.old).into()
            }
            Guardrail::Wasted => "not raised: clients left before they got their answers".into(),
            Guardrail::Knee => "not raised for now: the signal rose at this limit before".into(),
            Guardrail::OnTrial => "not lowered further until the reading follows the limit".into(),
            Guardrail::Futile => {
                "earlier cuts did not lower the latency: further cuts would only shed requests".into()
            }
            Guardrail::AppLimited => "not raised: limit not reached".into(),
            Guardrail::Cooldown => "not raised: it was cut too recently".into(),
            Guardrail::DemandCap => "not raised: already twice the demand".into(),
            Guardrail::Ramp => "Ray was restarted a short time ago".into(),
            Guardrail::Slew => match bounds {
                Some(guardrails) => format!("one step changes it by at most x{}", number(guardrails.slew)),
                None => "this is the largest step allowed".into(),
            },
            Guardrail::Floor => match bounds {
                Some(guardrails) => format!("its floor is {}", number(guardrails.bounds.min)),
                None => "that is its floor".into(),
            },
            Guardrail::Ceiling => match bounds {
                Some(guardrails) => format!("its ceiling is {}", number(guardrails.bounds.max)),
                None => "that is its ceiling".into(),
            },
        }
    }

    /// What would bring the limit back, as a sentence.
    pub fn undo(&self) -> String {
        let pin = format!("pin it with `rayguard pin {} {}=VALUE`", self.class, self.limit.label());
        match &self.derivation {
            Derivation::Restored { signal, rest_ms, .. } => format!(
                "after {} {signal} may lower it again, on trial; or {pin}",
                seconds_words(Duration::from_millis(*rest_ms))
            ),
            Derivation::Given { .. } => format!("it stays until the loop or an operator moves it; {pin}"),
            Derivation::Stale { .. } => {
                format!("the loop takes over again with the first fresh reading; or {pin}")
            }
            Derivation::Law { .. } if self.guardrail == Some(Guardrail::Wasted) && self.new < self.old => {
                format!("it is raised step by step while few clients leave early; or {pin}")
            }
            Derivation::Law { before, observation } if self.new < self.old => {
                let below = self.signals.first().map_or_else(
                    || "pressure is below 1".to_owned(),
                    |worst| {
                        let edge = worst.target * (1.0 - before.guardrails.deadband);
                        format!("{} is below {}", worst.name, quantity(edge, &worst.unit))
                    },
                );
                let cooldown = seconds_words(before.guardrails.cooldown(observation));
                format!(
                    "it grows again once {below} and the limit is reached, {cooldown} after the last cut at the earliest; or {pin}"
                )
            }
            Derivation::Law { .. } if self.signals.first().is_some_and(|worst| worst.pressure > 1.0) => {
                let why = self.guardrail.map(|guardrail| self.guardrail_words(guardrail));
                let why =
                    why.or_else(|| self.blame_words()).map_or_else(String::new, |why| format!(": {why}"));
                let name = self.signals.first().map_or("", |worst| worst.name.as_str());
                format!("it is not cut although {name} is above its target{why}; {pin}")
            }
            Derivation::Law { .. } => {
                let above = self.signals.first().map_or_else(
                    || "pressure is above 1".to_owned(),
                    |worst| format!("{} is above {}", worst.name, quantity(worst.target, &worst.unit)),
                );
                format!("it is cut once {above}; or {pin}")
            }
        }
    }

    /// Derives the adjustment again from its own inputs. `None`: the value was handed in.
    pub fn derive(&self) -> Option<Derived> {
        let (step, seen) = match &self.derivation {
            Derivation::Given { .. } => return None,
            Derivation::Restored { before, to, .. } => (before.clone().restore(self.old, *to), None),
            Derivation::Law { before, observation } => {
                (before.clone().step(self.old, observation), observation.pressure)
            }
            Derivation::Stale { before, observation, on_stale } => {
                (before.clone().step_stale(self.old, *on_stale, observation), observation.pressure)
            }
        };
        let blame = self.apportioned.as_ref().and_then(|apportioned| {
            super::control::budget::apportion_cut(apportioned.pressure, &apportioned.claims)
                .get(apportioned.index)
                .copied()
        });
        Some(Derived { step, pressure: seen, blame })
    }
}

/// An adjustment derived again.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Derived {
    /// The move.
    pub step: Move,
    /// The pressure that the law saw.
    pub pressure: Option<f64>,
    /// What the budget says of the class, when it was asked.
    pub blame: Option<super::control::budget::Blame>,
}

impl Event {
    /// The class, module or signal it speaks of, if it speaks of one.
    pub fn subject(&self) -> Option<&str> {
        match self {
            Event::Adjustment(adjustment) => Some(&adjustment.class),
            Event::Shed(shed) => Some(&shed.class),
            Event::ShedSummary(summary) => Some(&summary.class),
            Event::SignalState(state) => Some(&state.signal),
            Event::ModeChange(change) => Some(&change.class),
            Event::Alert(transition) => transition.subject.as_deref(),
            Event::Start(_)
            | Event::Stop { .. }
            | Event::ConfigChange(_)
            | Event::Upstream { .. }
            | Event::Leadership(_)
            | Event::Gap(_) => None,
        }
    }

    /// The event's name, as in the adjustment log.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Start(_) => "start",
            Event::Stop { .. } => "stop",
            Event::Adjustment(_) => "adjustment",
            Event::Shed(_) => "shed",
            Event::ShedSummary(_) => "shed_summary",
            Event::SignalState(_) => "signal_state",
            Event::ModeChange(_) => "mode_change",
            Event::ConfigChange(_) => "config_change",
            Event::Upstream { .. } => "upstream",
            Event::Leadership(_) => "leadership",
            Event::Gap(_) => "gap",
            Event::Alert(_) => "alert",
        }
    }

    /// All that [`Event::name`] says.
    pub const NAMES: [&str; 12] = [
        "start",
        "stop",
        "adjustment",
        "shed",
        "shed_summary",
        "signal_state",
        "mode_change",
        "config_change",
        "upstream",
        "leadership",
        "gap",
        "alert",
    ];

    /// The event as one sentence.
    pub fn sentence(&self) -> String {
        match self {
            Event::Start(start) => format!(
                "rayguard {} started with policy version {} and {} limits, {} of them from the last run",
                start.version,
                start.policy_version,
                start.limits.len(),
                start.limits.iter().filter(|limit| limit.warm).count()
            ),
            Event::Stop { reason } => {
                format!(
                    "rayguard is shutting down ({reason}): requests in progress finish, waiting ones are served while \
                     http.drain allows and then shed"
                )
            }
            Event::Adjustment(adjustment) => adjustment.reason.clone(),
            Event::Shed(shed) => shed.sentence(),
            Event::ShedSummary(summary) => summary.sentence(),
            Event::SignalState(state) => state.sentence(),
            Event::ModeChange(change) => change.sentence(),
            Event::ConfigChange(change) => change.sentence(),
            Event::Upstream { up: true, .. } => "Ray is reachable again".to_owned(),
            Event::Upstream { up: false, problem } => upstream_words(problem),
            Event::Leadership(change) => change.sentence(),
            Event::Gap(gap) if gap.torn_bytes > 0 => {
                format!("a torn line of {} bytes was set aside: {}", gap.torn_bytes, gap.why)
            }
            Event::Gap(gap) => {
                format!("{} events are missing from the adjustment log: {}", gap.lost, gap.why)
            }
            Event::Alert(transition) => {
                format!("{} {}: {}", transition.alert.label(), transition.state.label(), transition.summary)
            }
        }
    }
}

impl Shed {
    /// What the reason means, for a caller that must tell the client.
    pub fn meaning(&self) -> &'static str {
        match self.cause {
            Reason::Blocked => {
                "the route is blocked by policy, whatever the load: it can pin a process of the Ray head"
            }
            Reason::ClassRate => "the class had used up its rate limit",
            Reason::ClassInFlight => {
                "the class was at its limit of requests in flight, and its queue was full"
            }
            Reason::ClassBacklog => {
                "the number of requests of this class that Ray had not started was at its limit"
            }
            Reason::ModuleInFlight => {
                "the module was at its limit of requests in flight, all classes together"
            }
            Reason::ClientShare => "the client sent more than its fair share while others waited",
            Reason::ClientRate => "the client had used up the rate configured for one client",
            Reason::ClientInFlight => "the client was at its limit of requests in progress",
            Reason::QueueTimeout => {
                "it waited for the longest queue time of its class, and no permit became free"
            }
            Reason::UpstreamUnreachable => {
                "Ray accepted no connections; requests pass again as soon as it does"
            }
            Reason::ApiKey => "the class requires an API key, and the request had no valid one",
            Reason::Draining => {
                "rayguard was shutting down, and the request still waited when `http.drain` was nearly over"
            }
        }
    }

    /// What would let such a request pass.
    pub fn undo(&self) -> String {
        let class = &self.class;
        match self.cause {
            Reason::Blocked => "set `treatment` of the class in the configuration".to_owned(),
            Reason::ClassRate => format!("the client waits; or raise `rate` of class {class}"),
            Reason::ClassBacklog => {
                format!("fewer requests of class {class} until Ray has started the jobs it has accepted")
            }
            Reason::ClassInFlight | Reason::QueueTimeout => {
                format!("fewer requests, a faster head, or a higher `in_flight` or `queue` of class {class}")
            }
            Reason::ModuleInFlight => {
                format!("less load on {}, or a higher `in_flight` of that module", self.module)
            }
            Reason::ClientShare => "the client sends fewer requests".to_owned(),
            Reason::ClientRate | Reason::ClientInFlight => {
                format!("the client sends fewer requests; or raise `per_client` of class {class}")
            }
            Reason::UpstreamUnreachable => "Ray accepts connections again".to_owned(),
            Reason::Draining => "ask again: the next process answers; a longer `http.drain` lets more of those who wait have their turn"
                .to_owned(),
            Reason::ApiKey => "the client sends a key that the configuration lists".to_owned(),
        }
    }

    /// Why the request was refused, as a sentence.
    pub fn sentence(&self) -> String {
        let done = match self.cause {
            cause if cause.is_failure() => "failed",
            _ if self.shadow => "would have shed",
            _ => "shed",
        };
        let client = match self.via {
            Via::Proxy => "",
            Via::RatelimitService => " on behalf of an Envoy",
        };
        let waited = if self.waited_ms > 0 {
            format!(" after {} ms in the queue", self.waited_ms)
        } else {
            String::new()
        };
        let rate =
            self.rate_limit.map_or_else(String::new, |rate| format!(", rate limit {}/s", number(rate)));
        let work = match (self.work_s, self.work_limit_s) {
            (Some(work), Some(limit)) => {
                format!(", {} of work under way, limit {}", quantity(work, "s"), quantity(limit, "s"))
            }
            _ => String::new(),
        };
        format!(
            "{done} request {} of {} ({}){client}{waited}: {}; {} in flight, limit {}{work}{rate}; Retry-After {} s",
            self.request,
            self.class,
            self.module,
            self.cause.label(),
            self.in_flight,
            number(self.in_flight_limit),
            self.retry_after_s
        )
    }
}

impl ShedSummary {
    fn sentence(&self) -> String {
        let (failed, causes): (Vec<_>, Vec<_>) = self
            .causes
            .iter()
            .cloned()
            .partition(|cause| Reason::named(&cause.label).is_some_and(Reason::is_failure));
        let sum = |counts: &[Count]| counts.iter().map(|count| count.count).sum::<u64>();
        let (failed, total) = (sum(&failed), sum(&causes));
        let list = |counts: &[Count]| {
            counts.iter().map(|c| format!("{} {}", c.count, c.label)).collect::<Vec<_>>().join(", ")
        };
        // A request that was shed may have come before the interval, and waited.
        let interval = quantity(self.interval_ms as f64 / 1e3, "s");
        let mut parts = Vec::new();
        if total > 0 {
            parts.push(format!("shed {total} requests ({})", list(&causes)));
        }
        if failed > 0 {
            parts.push(format!("{failed} requests failed: Ray could not be reached"));
        }
        if self.shadow > 0 {
            parts.push(format!("would have shed {} requests, and forwarded them (shadow mode)", self.shadow));
        }
        format!("{} {} in {interval}; {} arrived", self.class, parts.join(", "), self.offered)
    }
}

impl SignalState {
    fn sentence(&self) -> String {
        let name = &self.signal;
        let age = self.age_ms.map_or_else(
            || "never read".to_owned(),
            |age| format!("last new value {} ago", quantity(age as f64 / 1e3, "s")),
        );
        match self.state {
            SignalHealth::Fresh => format!("{name} is read from {}", self.source),
            SignalHealth::Waiting => {
                format!("{name} is awaited ({age}): {}; {}", self.problem, self.consequence)
            }
            SignalHealth::Stale => format!("{name} is stale ({age}): {}; {}", self.problem, self.consequence),
        }
    }
}

impl ModeChange {
    fn sentence(&self) -> String {
        let class = if self.class == "all" { "all classes" } else { &self.class };
        let done = match (self.limit, self.value, self.from, self.to) {
            (Some(limit), Some(value), ..) => {
                let until =
                    self.until.map_or_else(String::new, |until| format!(" until {}", until.rfc3339()));
                format!("{class} {} pinned at {}{}{until}", limit.label(), number(value), limit.unit())
            }
            (Some(limit), None, ..) if self.until.is_some() => {
                return format!(
                    "the pin of {class} {} by {} has expired; the controller moves it again",
                    limit.label(),
                    self.who
                );
            }
            (Some(limit), None, ..) => format!("{class} {} unpinned", limit.label()),
            (None, _, _, Mode::Frozen) => "all limits frozen".to_owned(),
            (None, _, Mode::Frozen, _) => "all limits unfrozen".to_owned(),
            (None, _, _, Mode::Shadow) => format!("{class} set to shadow mode"),
            (None, _, _, Mode::Enforce | Mode::Manual) => format!("limits of {class} enforced"),
        };
        let why = if self.why.is_empty() { String::new() } else { format!(": {}", self.why) };
        format!("{done} by {}{why}", self.who)
    }
}

impl ConfigChange {
    fn sentence(&self) -> String {
        if self.accepted {
            let changes =
                if self.changes.is_empty() { "nothing changed".to_owned() } else { self.changes.join("; ") };
            format!("accepted {} as policy version {}: {changes}", self.source, self.policy_version)
        } else {
            format!(
                "rejected {}; still using the previous configuration (policy version {}): {}",
                self.source,
                self.policy_version,
                self.problems.join("; ")
            )
        }
    }
}

fn signal_words(signal: &SignalSeen) -> String {
    let age = if signal.age_ms >= 2_000 {
        format!(" ({} ago)", quantity(signal.age_ms as f64 / 1e3, "s"))
    } else {
        String::new()
    };
    let is = match signal.forecast {
        Some(of) => {
            format!(", going to {} within {},", quantity(of.value, &signal.unit), quantity(of.in_s, "s"))
        }
        None => String::new(),
    };
    format!(
        "{} {}{age}{is} is {}x its target {}",
        signal.name.replace('_', " "),
        quantity(signal.value, &signal.unit),
        times(signal.pressure),
        quantity(signal.target, &signal.unit)
    )
}

fn stale_words(signals: &[SignalSeen]) -> String {
    let each = signals.iter().map(|signal| {
        format!(
            "{} was last read {} ago",
            signal.name.replace('_', " "),
            quantity(signal.age_ms as f64 / 1e3, "s")
        )
    });
    each.collect::<Vec<_>>().join(" and ")
}

fn seconds_words(length: Duration) -> String {
    quantity(length.as_secs_f64(), "s")
}

/// How many times its target a reading is: hundredths at the finest.
fn times(pressure: f64) -> String {
    if pressure < 0.1 { format!("{pressure:.2}") } else { number(pressure) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::budget::{apportion_cut, weight};
    use crate::policy::{Bounds, Control, Law, Priority};
    use std::time::Duration;

    const BOUNDS: Bounds = Bounds { initial: 4.0, min: 1.0, max: 16.0 };

    fn control() -> Control {
        Control { inner_period: Duration::from_millis(500), slew: 2.0, ..Control::SHIPPED }
    }

    fn observation(pressure: f64, binding: bool) -> Observation {
        Observation {
            now: Time::from_secs_f64(100.0),
            period: Duration::from_millis(500),
            dead_time: Duration::from_secs(1),
            pressure: Some(pressure),
            binding,
            demand: 40.0,
            latency: Some(pressure * 5.0),
            slo_pressure: None,
            spread: None,
            sample: None,
            ended: None,
            not_below: None,
            used: None,
            backlog: None,
            noise: 0.0,
        }
    }

    fn proxy_latency(value: f64) -> SignalSeen {
        SignalSeen {
            name: "proxy_latency".into(),
            value,
            target: 5.0,
            pressure: value / 5.0,
            forecast: None,
            age_ms: 100,
            source: "proxy".into(),
            unit: "s".into(),
        }
    }

    fn adjustment(law: &Law, limit: f64, pressure: f64, binding: bool) -> Adjustment {
        let mut regulator = Regulator::new(law, BOUNDS, &control());
        let before = Box::new(regulator);
        let observation = observation(pressure, binding);
        let step = regulator.step(limit, &observation);
        let cause = Cause {
            class: "state-heavy".into(),
            limit: LimitKind::InFlight,
            r#loop: LoopKind::Inner,
            mode: Mode::Enforce,
            policy_version: 3,
            signals: vec![proxy_latency(pressure * 5.0)],
            apportioned: None,
            derivation: Derivation::Law { before, observation },
            decided_by: None,
            other: None,
        };
        Adjustment::new(cause, &step)
    }

    const AIMD: Law = Law::Aimd { increase: 0.25, decrease: 0.5 };

    #[test]
    fn a_cut_explains_itself() {
        assert_eq!(
            adjustment(&AIMD, 4.0, 1.44, true).reason,
            "cut state-heavy in_flight from 4 to 2.78: proxy latency 7.2 s is 1.44x its target 5 s; \
             limit reached"
        );
    }

    #[test]
    fn a_guardrail_that_held_the_law_back_is_named() {
        assert_eq!(
            adjustment(&AIMD, 4.0, 0.2, false).reason,
            "held state-heavy in_flight at 4: proxy latency 1 s is 0.2x its target 5 s; \
             limit not reached"
        );
        assert_eq!(
            adjustment(&Law::Pid { kp: 0.0, ki: Some(1.0), kd: 0.0 }, 4.0, 5.0, true).reason,
            "cut state-heavy in_flight from 4 to 2: proxy latency 25 s is 5x its target 5 s; \
             limit reached; one step changes it by at most x2"
        );
    }

    #[test]
    fn a_gradient_speaks_of_its_baseline() {
        let law = Law::Gradient { tolerance: 2.0, smoothing: 0.5 };
        let mut grown = adjustment(&law, 4.0, 0.5, true);
        grown.terms = Terms::Gradient(crate::control::gradient::Terms {
            baseline: 2.0,
            gradient: 0.8,
            work: 3.2,
            target: 8.2,
            smoothing: 0.25,
        });
        if let Derivation::Law { observation, .. } = &mut grown.derivation {
            observation.spread = Some(crate::control::law::Spread { quickest: 2.5, mean: 2.5 });
        }
        let said = "the fastest answers take 2.5 s, 2 s without contention, so 20 % of the mean of 2.5 s is waiting time";
        assert!(grown.sentence().contains(said), "{}", grown.sentence());
    }

    #[test]
    fn a_cut_that_begins_at_what_was_used_says_so() {
        let mut cut = adjustment(&AIMD, 24.0, 5.0, false);
        if let Derivation::Law { observation, .. } = &mut cut.derivation {
            observation.used = Some(0.25);
        }
        assert!(cut.sentence().contains("0.25 requests in flight on average"), "{}", cut.sentence());
    }

    #[test]
    fn who_is_to_blame_is_said() {
        let claims: Vec<Claim> =
            [0.9, 0.05].map(|want| Claim { want, weight: weight(Priority(4)), floor: 0.0 }).into();
        let blame = apportion_cut(1.9, &claims);
        let mut cut = adjustment(&AIMD, 4.0, blame[0].pressure, true);
        cut.apportioned = Some(Apportioned {
            module: "StateHead".into(),
            pressure: 1.9,
            claims,
            index: 0,
            allotted: blame[0].allotted,
            seen: blame[0].pressure,
        });
        assert!(
            cut.sentence().contains("uses 95 % of StateHead's capacity; its fair share is 47 %"),
            "{}",
            cut.sentence()
        );
        let again = cut.derive().unwrap();
        assert_eq!(again.blame.unwrap().pressure.to_bits(), again.pressure.unwrap().to_bits());
    }

    #[test]
    fn what_would_undo_it_is_said() {
        let undo = adjustment(&AIMD, 4.0, 1.44, true).undo();
        assert!(
            undo.starts_with(
                "it grows again once proxy_latency is below 4.75 s and the limit is reached, 2 s after"
            ),
            "{undo}"
        );
    }

    #[test]
    fn the_ceiling_that_moved_is_named_and_so_is_the_one_in_force() {
        let mut raised = adjustment(&AIMD, 4.0, 0.2, true);
        let sentence = |of: &Adjustment| of.sentence();
        assert!(sentence(&raised).starts_with("raised state-heavy in_flight from 4 to "));
        raised.other = Some(Other { r#loop: LoopKind::Outer, value: 0.462_8 });
        let said = sentence(&raised);
        assert!(said.starts_with("raised state-heavy in_flight by latency from 4 to "), "{said}");
        assert!(said.ends_with("; the limit in force is 0.463, set by Ray's signals"), "{said}");
        raised.other = Some(Other { r#loop: LoopKind::Outer, value: 64.0 });
        assert!(!sentence(&raised).contains("in force"), "{}", sentence(&raised));
    }

    #[test]
    fn what_is_above_its_target_already_is_not_said_to_cut_it_once_it_is() {
        let mut held = adjustment(&AIMD, 4.0, 3.01, true);
        held.new = held.old;
        held.guardrail = Some(Guardrail::Futile);
        let undo = held.undo();
        assert!(
            undo.starts_with("it is not cut although proxy_latency is above its target: earlier cuts"),
            "{undo}"
        );
    }

    fn record(event: Event) -> LoggedEvent {
        LoggedEvent { time: WallMs(1_700_000_000_123), seq: 7, at: Time(100_000_000_000), event }
    }

    #[test]
    fn a_line_holds_all_that_is_needed_to_derive_it_again() {
        for law in
            [AIMD, Law::Pid { kp: 0.3, ki: None, kd: 0.1 }, Law::Gradient { tolerance: 1.7, smoothing: 0.3 }]
        {
            let line = serde_json::to_string(&record(Event::Adjustment(Box::new(adjustment(
                &law, 3.7, 1.37, true,
            )))))
            .unwrap();
            let Event::Adjustment(read) = serde_json::from_str::<LoggedEvent>(&line).unwrap().event else {
                panic!("{line}")
            };
            let again = read.derive().unwrap();
            assert_eq!(again.step.new.to_bits(), read.new.to_bits(), "{line}");
            assert_eq!(again.step.terms, read.terms);
        }
    }

    #[test]
    fn a_log_written_with_earlier_names_reads_as_today() {
        let names = (r#""cause":"party_share""#, r#""party":"8f1c""#); // kept: earlier names
        let old = format!(
            r#"{{"time":"2023-11-14T22:13:20.123Z","seq":7,"at":1,"event":"shed","request":"r-1","class":"views",
            "module":"NodeHead",{},"shadow":false,{},"retry_after_s":1,"table":1,"in_flight_limit":4.0,
            "in_flight":4,"waited_ms":0}}"#,
            names.0, names.1
        );
        let read: LoggedEvent = serde_json::from_str(&old).unwrap();
        let Event::Shed(shed) = read.event else { panic!("{old}") };
        assert_eq!((shed.cause, &*shed.client), (Reason::ClientShare, "8f1c"));
    }

    #[test]
    fn a_line_begins_with_when_and_what() {
        let line = serde_json::to_string(&record(Event::Stop { reason: "SIGTERM".into() })).unwrap();
        assert_eq!(
            line,
            r#"{"time":"2023-11-14T22:13:20.123Z","seq":7,"at":100000000000,"event":"stop","reason":"SIGTERM"}"#
        );
    }

    #[test]
    fn text_from_outside_cannot_break_a_line_or_a_terminal() {
        let nasty = "a\nb\u{1b}[31m\u{202e}\u{7f}";
        let line = serde_json::to_string(&record(Event::Stop { reason: nasty.into() })).unwrap();
        assert!(!line.bytes().any(|byte| byte < b' '), "{line:?}");
        assert_eq!(printable(nasty), "a\\u{a}b\\u{1b}[31m\\u{202e}\\u{7f}");
        assert_eq!(printable("héllo %"), "héllo %");
    }

    #[test]
    fn a_flood_of_refusals_is_sampled() {
        let mut sampler = ShedSampler::new(3);
        let taken = |sampler: &mut ShedSampler, second: u64| {
            (0..1_000).filter(|i| sampler.take(Time(second * 1_000_000_000 + i))).count()
        };
        assert_eq!((taken(&mut sampler, 5), taken(&mut sampler, 5), taken(&mut sampler, 6)), (3, 0, 3));
    }

    #[test]
    fn numbers_and_quantities_read_well() {
        for (value, text) in [
            (4.0, "4"),
            (2.777_8, "2.78"),
            (0.05, "0.05"),
            (0.691_7, "0.692"),
            (12.34, "12.3"),
            (1234.5, "1234"),
            (0.0, "0"),
            (100.0, "100"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(quantity(0.25, "s"), "250 ms");
        assert_eq!(quantity(1500.0, "ms"), "1.5 s");
        assert_eq!(quantity(91.0, "%"), "91 %");
        assert_eq!(quantity(600.0, "s"), "10 min");
    }
}
