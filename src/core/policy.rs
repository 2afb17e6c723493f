//! The policy: what the operator asked for, checked, and constant until the next reload.
//!
//! `config` makes a `Policy` from the built-in catalogue and the operator's file; nothing
//! in it can be wrong any more (every bound holds, every name resolves). What moves while
//! the proxy runs, the limits themselves, lives in [`crate::admission::table`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

macro_rules! places {
    ($($(#[doc = $doc:literal])+ $name:ident;)*) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub u8);

        impl $name {
            /// The place as an index.
            pub fn index(self) -> usize {
                usize::from(self.0)
            }
        }
    )*};
}

places! {
    /// A class's place in [`Policy::classes`].
    ClassId;
    /// A module's place in [`Policy::modules`].
    ModuleId;
    /// A signal's place in [`Policy::signals`].
    SignalId;
}

/// Everything the core needs to know about the operator's wishes.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Ray's processes, the units that saturate.
    pub modules: Vec<Module>,
    /// The classes of requests, each on one module.
    pub classes: Vec<Class>,
    /// The readings the loop acts on.
    pub signals: Vec<Signal>,
    /// How the loop steps.
    pub control: Control,
    /// Whether clients that were here before go before strangers (`core/admission/history.rs`).
    pub history: bool,
}

impl Policy {
    /// Whether a limit of any class follows this signal.
    pub fn follows(&self, id: SignalId) -> bool {
        self.classes.iter().any(|class| class.signals.contains(&id) || class.backlog == Some(id))
    }
}

/// A Ray process behind a group of routes: the unit that saturates.
#[derive(Clone, Debug)]
pub struct Module {
    /// Ray's own name (`JobHead`, `StateHead`, ...).
    pub name: Arc<str>,
    /// How many [`Kind::Unary`] requests may be under way in it at once, all classes
    /// together. [`Kind::Held`] ones are capped by their class alone and do not count here,
    /// or idle tails would starve submissions; the catalogue keeps the sum of both below the
    /// 100 connections Ray has per module.
    pub in_flight: Bounds,
    /// For a module that is a single process: how much learnt work each of its classes may
    /// have under way at once (one request may always be). It bounds the delay that requests
    /// behind it in the module see; classes of priority 6 to 9 may have two to five times as
    /// much, being held back on behalf of fewer. `None` for modules that truly work in parallel (Serve).
    pub work: Option<Duration>,
    /// Whether it stops working on a request whose client has left. One that does not works on, and the
    /// request stays counted until it has answered.
    pub cancels: bool,
    /// Several of Ray's modules live in this one process ([`Profile::shape`](crate::request::profile::Profile::shape)):
    /// its ordinary classes (priority 0 to 5) share one bound on work, those that [await](Class::awaits) or are
    /// [held](Kind::Held) left out.
    pub shared: bool,
    /// The operator's file changes its limits: no profile takes its classes away.
    pub apart: bool,
}

impl Module {
    /// Whether it works on one request after another, so that what a request costs is a share of its time.
    pub(crate) fn is_one_process(&self) -> bool {
        self.work.is_some()
    }
}

/// Endpoints that share a limit.
#[derive(Clone, Debug)]
pub struct Class {
    /// `job-submit`, `state-heavy`, ...: a label in metrics, logs and config.
    pub name: Arc<str>,
    /// Where its work lands.
    pub module: ModuleId,
    /// Limited, let through, or refused outright.
    pub treatment: Treatment,
    /// Weight when the module is contended; 0 is served only after all others, 9 first.
    pub priority: Priority,
    /// How an exchange of this class lives.
    pub kind: Kind,
    /// Requests per second, or none.
    pub rate: Option<RateBounds>,
    /// Requests under way at once.
    pub in_flight: Bounds,
    /// Response and request bytes per second over the whole class, or none.
    pub bytes_per_second: Option<f64>,
    /// Whether only holders of an API key may ask.
    pub require_key: bool,
    /// Its requests wait for an agent or another server most of the time and leave their process to others.
    pub awaits: bool,
    /// How a request waits when there is no room.
    pub queue: Queue,
    /// What one client may do at most, whatever is free.
    pub per_client: PerClientLimits,
    /// Equal GETs under way share one upstream call; the answer may be reused for `ttl`.
    pub coalesce: Option<Coalesce>,
    /// The latency the operator wants at the proxy: `quantile` of answers within `latency`.
    pub slo: Slo,
    /// How long upstream may take to begin its answer; none for streams.
    pub timeout: Option<Duration>,
    /// The law that moves this class's limits.
    pub law: Law,
    /// The signals whose pressure moves this class's rate, worst first come.
    pub signals: Vec<SignalId>,
    /// The signal that counts the work this class's requests leave behind after their answer;
    /// its target is the most there may be. See `core/controller/backlog.rs`.
    pub backlog: Option<SignalId>,
    /// The objective of work that is done after the answer: a submitted job starts within this time.
    pub starts_within: Duration,
    /// The alert on high request rates fires above this, per second; `None`: learnt.
    pub alert_above: Option<f64>,
}

/// What is done with a class's requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Treatment {
    /// Limits apply.
    Limited,
    /// Never limited, never delayed, never counted against a module.
    Exempt,
    /// Refused: test-only routes that pin a worker.
    Blocked,
}

impl Treatment {
    /// As shown.
    pub fn label(self) -> &'static str {
        match self {
            Treatment::Limited => "limited",
            Treatment::Exempt => "exempt",
            Treatment::Blocked => "blocked",
        }
    }
}

/// 0 (served last) to 9 (served first). A class's weight in its module is `2^priority`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Priority(pub u8);

/// What operators need has this priority or a higher one: it is cut last, never below what is asked for, and dear
/// requests leave gaps for it.
pub(crate) const NEEDED: Priority = Priority(8);

/// How an exchange lives, which decides what a permit means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Asked and answered: the permit is free when upstream has answered.
    Unary,
    /// Held open (tails, follow streams, Ray Client sessions): capped as connections, no
    /// timeout, no queue, and the permit counts as leaked until upstream closes.
    Held,
}

/// A limit's range: `min <= initial <= max`.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Bounds {
    /// Where it starts.
    pub initial: f64,
    /// The lower bound; only Ray's signals may move the limit below it, where the module is one process.
    pub min: f64,
    /// The upper bound.
    pub max: f64,
}

impl Bounds {
    /// A limit that does not move.
    pub const fn fixed(value: f64) -> Bounds {
        Bounds { initial: value, min: value, max: value }
    }
    /// `value` brought into the range; NaN becomes `initial`.
    pub fn clamp(&self, value: f64) -> f64 {
        if value.is_nan() { self.initial } else { between(value, self.min, self.max) }
    }
    /// Whether the loop may move it.
    pub fn moves(&self) -> bool {
        self.min < self.max
    }
}

/// As `f64::clamp`, but bounds that cross are no reason to panic: the lower one holds. The
/// configuration refuses such bounds; an adjustment that is derived again has been read from a file.
pub fn between(value: f64, low: f64, high: f64) -> f64 {
    value.min(high).max(low)
}

/// A rate limit's range, in requests per second, and its burst.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RateBounds {
    /// Requests per second.
    pub per_second: Bounds,
    /// How many may come at once after a quiet time; at least 1.
    pub burst: u32,
}

/// How a request waits for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queue {
    /// Requests of the class waiting at once, all clients together. 0: shed at once.
    pub len_max: u32,
    /// The longest wait; stays below the clients' own timeouts.
    pub wait_max: Duration,
}

/// Ceilings for one client; `None` leaves the client to fair queueing alone.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct PerClientLimits {
    /// Requests per second and burst.
    pub rate: Option<(f64, u32)>,
    /// Requests under way at once.
    pub in_flight: Option<u32>,
}

/// Sharing of one upstream answer between equal requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Coalesce {
    /// How long an answer may be handed on after it came; zero shares only what is under way.
    pub ttl: Duration,
}

/// A latency objective.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Slo {
    /// The share of answers that must be in time, 0.5 to 0.999.
    pub quantile: f64,
    /// In time means within this, measured from admission to the end of upstream's head.
    pub latency: Duration,
}

/// A named reading and the target it is held against; pressure = reading / target.
#[derive(Clone, Debug)]
pub struct Signal {
    /// `gcs_latency`, `head_cpu`, `pending_tasks`, ...
    pub name: Arc<str>,
    /// The reading at which pressure is 1, in the signal's own unit.
    pub target: f64,
    /// The signal's unit for people: `ms`, `%`, `tasks`, ...
    pub unit: Arc<str>,
    /// A reading older than this is stale.
    pub stale_after: Duration,
    /// What a stale signal does to the limits it moves.
    pub on_stale: OnStale,
    /// It counts work that requests leave behind: a rate that follows it feeds an integrator
    /// (`core/control/backlog.rs`).
    pub backlog: bool,
    /// What it counts gathers: from half its target on, its pressure is that of where it is going to be after so long.
    /// Zero: it is as it is read.
    pub forecast: Duration,
    /// Where to read it; alternatives in order of preference, the first one found is used.
    pub sources: Vec<SignalSource>,
}

impl Signal {
    /// Whether what it counts gathers, so that a rate moves its slope and not its level.
    pub(crate) fn gathers(&self) -> bool {
        self.forecast > Duration::ZERO
    }
}

/// What happens to a limit when the signal that moves it has gone stale. Never "open".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnStale {
    /// Limits stay where they are.
    Hold,
    /// Limits above `initial` decay to it.
    Decay,
    /// Limits go to `initial` at once (within their slew).
    Static,
}

/// One way to obtain a signal.
#[derive(Clone, PartialEq, Debug)]
pub enum SignalSource {
    /// Derived from scraped exposition text.
    Scrape(Derivation),
    /// A PromQL expression sent to the configured Prometheus; its value is the reading.
    PromQl(Arc<str>),
    /// The active probe of `/api/gcs_healthz`: latency in milliseconds.
    Probe,
}

/// How samples of one scrape (and the one before) become one number.
#[derive(Clone, PartialEq, Debug)]
pub struct Derivation {
    /// What to select.
    pub select: Selector,
    /// What to make of it.
    pub how: How,
    /// Multiplies the result (unit conversion).
    pub scale: f64,
}

/// A metric name and label conditions.
#[derive(Clone, PartialEq, Debug)]
pub struct Selector {
    /// The family's name; for histograms without `_bucket`.
    pub metric: Arc<str>,
    /// Conditions on labels, all of which must hold.
    pub labels: Vec<LabelCondition>,
}

/// A condition on one label.
#[derive(Clone, PartialEq, Debug)]
pub enum LabelCondition {
    /// The label has this value.
    Is(Arc<str>, Arc<str>),
    /// The label is absent or has another value.
    IsNot(Arc<str>, Arc<str>),
    /// The value begins so.
    StartsWith(Arc<str>, Arc<str>),
    /// The value is one of these.
    OneOf(Arc<str>, Vec<Arc<str>>),
}

/// What is made of the selected samples.
#[derive(Clone, PartialEq, Debug)]
pub enum How {
    /// Sum of the samples, floored at zero.
    Sum,
    /// The largest sample.
    Max,
    /// Sum of the increases since the scrape before, per second; resets are seen.
    Rate,
    /// Share of a histogram's new observations above `bound` (in the metric's unit), 0..1.
    ShareAbove(f64),
    /// The least bucket bound that covers this share of a histogram's new observations.
    /// It is an upper bound of the quantile, and says so.
    Quantile(f64),
    /// The sum of the selected samples divided by the sum of another selection.
    RatioTo(Selector),
}

/// How the loop steps.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Control {
    /// The inner loop's period: proxy latency moves concurrency.
    pub inner_period: Duration,
    /// The outer loop's shortest period: Ray's signals move rates. It steps once per fresh sample.
    pub outer_period: Duration,
    /// The averaging window of Ray's readings, for the dead time.
    pub window: Duration,
    /// The age Ray's readings have when they arrive, for the dead time.
    pub data_age: Duration,
    /// Pressure within `1 +- deadband` moves nothing.
    pub deadband: f64,
    /// The largest change in one step, as a ratio (1.5: at most x1.5 or /1.5).
    pub slew: f64,
    /// After a cut, no growth for so long.
    pub cooldown: Duration,
}

impl Control {
    /// As shipped. Ray refreshes its readings every 5 to 10 s: a gauge is 5 s old on the average
    /// when it is scraped, and a histogram's increase averages over 10 s.
    pub const SHIPPED: Control = Control {
        inner_period: Duration::from_millis(250),
        outer_period: Duration::from_secs(5),
        window: Duration::from_secs(10),
        data_age: Duration::from_secs(5),
        deadband: 0.05,
        slew: 1.5,
        cooldown: Duration::from_secs(10),
    };
}

/// The law of a class and its constants. See `core/control/`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Law {
    /// The limit stays where it is.
    Static,
    /// Additive increase, multiplicative decrease.
    Aimd {
        /// Added per dead time while the limit is binding and pressure is far below 1, as a
        /// share of `initial`; less as pressure nears 1.
        increase: f64,
        /// The deepest cut, 0.1 to 0.99: the limit is multiplied by 1 / pressure, but by no less
        /// than this, at most once per dead time.
        decrease: f64,
    },
    /// Velocity-form PID on log(limit), error = ln(1 / pressure).
    Pid {
        /// Proportional gain.
        kp: f64,
        /// Integral gain per step; `None`: SIMC, period / (2 dead times).
        ki: Option<f64>,
        /// Derivative gain.
        kd: f64,
    },
    /// Latency against a learnt low-quantile baseline.
    Gradient {
        /// Latency may rise to `tolerance` times the baseline before the limit falls; above 1.
        tolerance: f64,
        /// Share of the new value taken per step, 0..1; held to period / (2 dead times).
        smoothing: f64,
    },
}

/// The plainest policy: for examples, and for tests that ask one thing of it.
pub mod plain {
    use super::{
        Bounds, Class, Control, Kind, Law, Module, ModuleId, PerClientLimits, Policy, Priority, Queue, Slo,
        Treatment,
    };
    use std::time::Duration;

    /// A limited class of the first module with room for `in_flight`.
    pub fn class(name: &str, in_flight: f64) -> Class {
        Class {
            name: name.into(),
            module: ModuleId(0),
            treatment: Treatment::Limited,
            priority: Priority(5),
            kind: Kind::Unary,
            rate: None,
            in_flight: Bounds::fixed(in_flight),
            bytes_per_second: None,
            require_key: false,
            awaits: false,
            queue: Queue { len_max: 16, wait_max: Duration::from_secs(2) },
            per_client: PerClientLimits::default(),
            coalesce: None,
            slo: Slo { quantile: 0.95, latency: Duration::from_secs(1) },
            timeout: None,
            law: Law::Static,
            signals: Vec::new(),
            backlog: None,
            starts_within: Duration::from_secs(25),
            alert_above: None,
        }
    }

    /// These classes on one module with this ceiling.
    pub fn policy(classes: Vec<Class>, ceiling: f64) -> Policy {
        Policy {
            modules: vec![Module {
                name: "JobHead".into(),
                in_flight: Bounds::fixed(ceiling),
                work: None,
                cancels: false,
                shared: false,
                apart: false,
            }],
            classes,
            signals: Vec::new(),
            control: Control::SHIPPED,
            history: true,
        }
    }
}
