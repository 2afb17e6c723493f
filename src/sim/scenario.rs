//! A scenario: a question about rayguard, as data, with the ranges of a good answer.
//!
//! A TOML file says what the head is, who asks for what, what goes wrong when, and between
//! which bounds each verdict must lie. It also names a *control*: the same run with the
//! protection taken away (or badly set), which must fail at least one of the same checks. A
//! check that the control passes too would prove nothing.
//!
//! Unknown keys are refused; `simulations/WRITING.md` explains every key.

use super::gauges::Cadence;
use super::head::{Jobs, Link, Spec};
use rayguard_config::Overrides;
use rayguard_config::settings::Probe;
use rayguard_core::admission::table::LimitTable;
use rayguard_core::policy::{
    Bounds, Class, Kind, Law, Module, ModuleId, PerClientLimits, Policy, Priority, Queue, Slo, Treatment,
};
use rayguard_core::request::catalogue::Surface;
use rayguard_core::request::profile;
use rayguard_core::time::duration_from_secs;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A scenario as it is written.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it asks; becomes the report's heading.
    pub question: String,
    /// How long it runs, virtual seconds.
    pub seconds: f64,
    /// The seed when none is given on the command line.
    #[serde(default = "one")]
    pub seed: u64,
    /// The part that is judged, `[from, to]`; the whole run when left out.
    pub measure: Option<[f64; 2]>,
    /// The part before anything goes wrong, `[from, to]`: what `p99_of_calm` is compared with.
    pub calm: Option<[f64; 2]>,
    /// The head.
    pub plant: PlantSpec,
    /// rayguard's own configuration, as its file would say it. Ray heads only.
    #[serde(default)]
    pub config: String,
    /// The one class of a synthetic plant.
    #[serde(default)]
    pub class: ClassSpec,
    /// Seconds between two scrapes; 5 unless said otherwise.
    #[serde(default = "five")]
    pub scrape_s: f64,
    /// Seconds between two scrapes of a Prometheus that rayguard reads instead of the head.
    pub prometheus_s: Option<f64>,
    /// What protects the head: see [`Guard`].
    #[serde(default)]
    pub guard: Guard,
    /// Who asks.
    #[serde(default)]
    pub client: Vec<ClientSpec>,
    /// What goes wrong.
    #[serde(default)]
    pub fault: Vec<FaultSpec>,
    /// The class whose limit is watched (swing, settling); a synthetic plant has but one.
    #[serde(default)]
    pub watch: String,
    /// Verdict name to `[low, high]`.
    pub expect: BTreeMap<String, [f64; 2]>,
    /// What is claimed to hold on 98 % of the heads of Monte Carlo draws; without a claim they are held to `expect`.
    #[serde(default)]
    pub robust: BTreeMap<String, [f64; 2]>,
    /// What is wanted and not reached yet: shown beside what is, and fails nothing.
    #[serde(default)]
    pub goal: BTreeMap<String, [f64; 2]>,
    /// The run that must fail.
    #[serde(default)]
    pub control: ControlSpec,
}

/// What protects the head.
#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guard {
    /// Nothing.
    Off,
    /// The production admission controller and loop.
    #[default]
    Rayguard,
    /// The production admission controller and loop, deaf to Ray's signals.
    NoOuter,
    /// The production admission controller and loop, deaf to latency.
    NoInner,
    /// The production admission controller with limits that stand still at `initial`.
    Still,
    /// A fixed number under way at once, all together, no queue.
    Fixed(u32),
    /// Netflix `VegasLimit`, defaults.
    Vegas,
    /// Netflix `Gradient2Limit`, 1 s windows.
    Gradient2,
    /// Netflix `AIMDLimit`, defaults.
    Aimd,
    /// Envoy's gradient controller at its documented defaults.
    EnvoyGradient,
    /// Breakwater's credits.
    Breakwater,
    /// CoDel on the time spent at the head.
    Codel,
}

impl Guard {
    /// The guard's name in tables.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Guard::Off => "none".to_owned(),
            Guard::Rayguard => "rayguard".to_owned(),
            Guard::NoOuter => "rayguard, no outer loop".to_owned(),
            Guard::NoInner => "rayguard, no inner loop".to_owned(),
            Guard::Still => "rayguard, limits still".to_owned(),
            Guard::Fixed(limit) => format!("fixed {limit}"),
            Guard::Vegas => "netflix vegas".to_owned(),
            Guard::Gradient2 => "netflix gradient2".to_owned(),
            Guard::Aimd => "netflix aimd".to_owned(),
            Guard::EnvoyGradient => "envoy gradient".to_owned(),
            Guard::Breakwater => "breakwater".to_owned(),
            Guard::Codel => "codel".to_owned(),
        }
    }
}

/// The run that must fail.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlSpec {
    /// What takes the protection's place; nothing, unless signals are taken away.
    pub guard: Option<Guard>,
    /// Signals that no class follows.
    pub without: Vec<String>,
    /// rayguard's configuration instead of the scenario's.
    pub config: Option<String>,
}

impl ControlSpec {
    /// What takes the protection's place.
    #[must_use]
    pub fn guard(&self) -> Guard {
        let is_rayguard = !self.without.is_empty() || self.config.is_some();
        self.guard.unwrap_or(if is_rayguard { Guard::Rayguard } else { Guard::Off })
    }

    /// The run's name in tables.
    #[must_use]
    pub fn label(&self) -> String {
        let guard = self.guard().label();
        match &self.config {
            Some(config) => format!("{guard}, {}", config.split_whitespace().collect::<Vec<_>>().join(" ")),
            None if self.without.is_empty() => guard,
            None => format!("{guard}, without {}", self.without.join(", ")),
        }
    }
}

/// The head.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PlantSpec {
    /// A calibrated Ray head.
    RayHead {
        /// Cores.
        #[serde(default = "two")]
        cores: f64,
        /// Jobs in the list.
        #[serde(default = "two_jobs")]
        jobs: u32,
        /// Tasks in the GCS.
        #[serde(default = "thousand")]
        tasks: u32,
        /// Actors in the GCS.
        #[serde(default = "two_jobs")]
        actors: u32,
        /// Ray's metrics at their 1 s settings.
        #[serde(default)]
        fast_metrics: bool,
        /// All modules of the dashboard share one process, as they do up to Ray 2.44; rayguard knows it, unless
        /// `config` names another `ray_version`.
        #[serde(default)]
        one_process: bool,
        /// The cluster behind it and what its users do on it.
        #[serde(default)]
        cluster: ClusterSpec,
    },
    /// Parallel servers of exponential service time and one queue.
    Servers {
        /// How many.
        count: u32,
        /// Mean service time, milliseconds.
        mean_ms: f64,
        /// Every service takes just that, instead of an exponential time around it.
        #[serde(default)]
        fixed: bool,
    },
    /// A service that takes longer the more it is asked at once.
    Link {
        /// What an answer takes at the least, milliseconds.
        delay_ms: f64,
        /// How it changes.
        #[serde(default)]
        link: Link,
    },
    /// One first-come-first-served loop.
    Loop {
        /// Cheap requests it serves per second.
        per_second: f64,
        /// How many cheap ones a heavy one costs.
        #[serde(default = "fifty")]
        heavy: f64,
    },
    /// A Ray Serve application behind port 8000: so many replicas, each with so many requests
    /// at once; a request costs by its size.
    Serve {
        /// Replicas.
        replicas: u32,
        /// `max_ongoing_requests` of each.
        ongoing: u32,
        /// What any request takes, milliseconds.
        base_ms: f64,
        /// What each unit of size adds (a thousand tokens), milliseconds.
        per_size_ms: f64,
        /// What runs is stopped when its client leaves, as an `async` application is; one that works in threads
        /// finishes it. What waits for a replica is taken out in either.
        #[serde(default)]
        stops: bool,
    },
}

/// What a Ray head carries in addition to its API.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSpec {
    /// Cores of the head that the users' own tasks would use, all the time.
    pub user_cores: f64,
    /// Share of a core that the raylet needs for the cluster's tasks, 0..1.
    pub raylet_need: f64,
    /// Share of the GCS's loop that the cluster's own calls need, 0..0.95.
    pub gcs_need: f64,
    /// Tasks that the cluster runs at once.
    pub task_slots: f64,
    /// Tasks pending for good: as fast as they are worked off, others come.
    pub pending: u32,
    /// Tasks pending for good that no node can run.
    pub infeasible: u32,
    /// The head's memory, megabytes.
    pub memory_mb: f64,
    /// Of it held by the users' own processes and objects, megabytes.
    pub user_mb: f64,
}

impl Default for ClusterSpec {
    fn default() -> ClusterSpec {
        let Spec { jobs, memory, .. } = Spec::ray_head();
        ClusterSpec {
            user_cores: 0.0,
            raylet_need: 0.0,
            gcs_need: 0.0,
            task_slots: jobs.task_slots,
            pending: 0,
            infeasible: 0,
            memory_mb: memory.total_mb,
            user_mb: 0.0,
        }
    }
}

impl ClusterSpec {
    /// Lays it over a head.
    fn put_into(&self, spec: &mut Spec) {
        spec.user_cores = self.user_cores;
        spec.raylet_need = self.raylet_need;
        spec.gcs_need = self.gcs_need;
        spec.jobs.task_slots = self.task_slots;
        spec.jobs.pending = self.pending;
        spec.jobs.infeasible = self.infeasible;
        spec.memory.total_mb = self.memory_mb;
        spec.memory.user_mb = self.user_mb;
    }

    fn check(&self) -> Result<(), ScenarioError> {
        for (name, value, [low, high]) in [
            ("user_cores", self.user_cores, [0.0, 1024.0]),
            ("raylet_need", self.raylet_need, [0.0, 1.0]),
            ("gcs_need", self.gcs_need, [0.0, 0.95]),
            ("task_slots", self.task_slots, [0.0, 1e6]),
            ("memory_mb", self.memory_mb, [1.0, 1e9]),
            ("user_mb", self.user_mb, [0.0, self.memory_mb]),
        ] {
            if !(low..=high).contains(&value) {
                let problem =
                    format!("`plant.cluster.{name}` is {value}; it must lie between {low} and {high}");
                return Err(ScenarioError::Impossible(problem));
            }
        }
        Ok(())
    }
}

/// The one class of a synthetic plant.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassSpec {
    /// Concurrency: initial, min, max.
    pub in_flight: [f64; 3],
    /// Waiting at once.
    pub queue_len: u32,
    /// Longest wait, seconds.
    pub queue_wait_s: f64,
    /// The latency objective, milliseconds.
    pub slo_ms: f64,
    /// The share that must be within it.
    pub slo_quantile: f64,
    /// The law.
    pub law: LawSpec,
    /// Learnt work under way at once, milliseconds; none: unbounded.
    pub work_ms: Option<f64>,
}

/// A law of the loop, with default constants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LawSpec {
    /// Stands still.
    Static,
    /// Additive increase, multiplicative decrease.
    Aimd,
    /// Integral on the logarithm, SIMC gain.
    Pid,
    /// Against a learnt baseline.
    Gradient,
}

impl Default for ClassSpec {
    fn default() -> ClassSpec {
        ClassSpec {
            in_flight: [8.0, 1.0, 256.0],
            queue_len: 64,
            queue_wait_s: 1.0,
            slo_ms: 500.0,
            slo_quantile: 0.95,
            law: LawSpec::Pid,
            work_ms: None,
        }
    }
}

/// A group of clients.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "keys of a file, each its own")]
pub struct ClientSpec {
    /// Its name in verdicts.
    pub name: String,
    /// How it behaves.
    pub kind: ClientKind,
    /// It keeps within its share: recovery is judged by such groups.
    #[serde(default)]
    pub polite: bool,
    /// The plant's route; `browser` and `operator` know their own.
    #[serde(default)]
    pub route: String,
    /// Open loop: requests a second, all together.
    #[serde(default)]
    pub per_second: f64,
    /// Closed loop: connections; browsers: tabs; operators: jobs watched; batch: submitters.
    #[serde(default = "one_u32")]
    pub count: u32,
    /// Closed loop and batch: pause between an answer and the next request, seconds.
    #[serde(default)]
    pub think_s: f64,
    /// Gives up after so long, seconds.
    #[serde(default = "thirty")]
    pub timeout_s: f64,
    /// Begins.
    #[serde(default)]
    pub from_s: f64,
    /// Ends; at the end of the run when left out.
    pub until_s: Option<f64>,
    /// Open loop: at even intervals instead of random moments.
    #[serde(default)]
    pub regular: bool,
    /// Open loop: on for `[on, off]` seconds by turns.
    pub square_s: Option<[f64; 2]>,
    /// Open loop: its rate grows from nothing to `per_second` over so many seconds.
    pub ramp_s: Option<f64>,
    /// Open loop: its rate swings between a tenth of `per_second` and all of it once in so many
    /// seconds, least at the beginning.
    pub day_s: Option<f64>,
    /// Each of its requests asks something else: no other request's answer is one to it.
    #[serde(default)]
    pub unique: bool,
    /// Distinct addresses it comes from.
    #[serde(default = "one_u32")]
    pub addresses: u32,
    /// The address it shares with other groups of the same word (a NAT gateway).
    #[serde(default)]
    pub behind: String,
    /// It comes from the addresses of other groups of the same word: the same hosts, that now do something else.
    #[serde(default)]
    pub who: String,
    /// `none`, `own` (one for the group), `each` (one for every address), or any other word: a
    /// token shared by the groups that say the same.
    #[serde(default)]
    pub token: String,
    /// What follows a refusal or failure.
    #[serde(default)]
    pub retry: Retry,
    /// Attempts at most, the first included.
    #[serde(default = "four")]
    pub attempts: u32,
    /// Batch: jobs each submits.
    #[serde(default = "ten")]
    pub jobs: u32,
    /// Payload: megabytes, thousand tokens.
    #[serde(default)]
    pub size: f64,
    /// Tails: until the job ends; submissions: how long the job runs, seconds.
    pub lasts_s: Option<f64>,
    /// Submissions: tasks that each job brings; it is done when they are.
    #[serde(default)]
    pub tasks: u32,
    /// How long each of them takes, seconds.
    #[serde(default = "one_f64")]
    pub task_s: f64,
    /// No node can run them: they stay pending until the job ends.
    #[serde(default)]
    pub infeasible: bool,
    /// Tails and Ray Client sessions: the client leaves after so long, seconds.
    pub stay_s: Option<f64>,
    /// Traces: the file, relative to the scenario's folder.
    #[serde(default)]
    pub trace: String,
    /// Traces: these routes of it only; all when empty.
    #[serde(default)]
    pub only: Vec<String>,
    /// Traces: these routes of it not.
    #[serde(default)]
    pub except: Vec<String>,
    /// Traces: runs so many times as fast.
    #[serde(default = "one_f64")]
    pub speedup: f64,
    /// Traces: begins at this second of the trace.
    #[serde(default)]
    pub trace_from_s: f64,
    /// Traces: so many times the load, each copy with clients of its own.
    #[serde(default = "one_u32")]
    pub copies: u32,
}

/// How a group behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKind {
    /// Asks at random moments, whatever becomes of what it asked before.
    Open,
    /// Asks again when it has been answered.
    Closed,
    /// A tab of Ray's dashboard.
    Browser,
    /// A KubeRay operator: polls a job every 3 s with a 2 s time-out, and the health path.
    Operator,
    /// Submits jobs one after another until all are in.
    Batch,
    /// Replays a recorded trace.
    Trace,
}

/// What follows a refusal or failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// Nothing: Ray's own clients never retry.
    #[default]
    Never,
    /// Another attempt after `Retry-After` (1 s when there is none).
    Obedient,
    /// Another attempt at once, give or take 100 ms.
    Storm,
}

/// Something that goes wrong.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSpec {
    /// What.
    pub kind: FaultKind,
    /// When.
    pub at_s: f64,
    /// For how long; for good when left out.
    pub for_s: Option<f64>,
    /// How much; what it means depends on the kind.
    #[serde(default = "one_f64")]
    pub factor: f64,
    /// Metrics: of this page alone; of both when left out.
    pub page: Option<MetricsPage>,
    /// Capacity: it gets there evenly over so many seconds, instead of at once.
    #[serde(default)]
    pub over_s: f64,
    /// Reload: rayguard's configuration from then on, as its file would say it.
    pub config: Option<String>,
    /// Reload: again after each so many seconds, for `for_s`.
    pub every_s: Option<f64>,
}

/// One of the pages that Ray's metrics are on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetricsPage {
    /// The node's agent: node, GCS, raylet, tasks, jobs.
    Agent,
    /// The dashboard: its modules and their answers.
    Dashboard,
}

/// What can go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Scrapes fail.
    MetricsMissing,
    /// Scrapes succeed, and their text never changes.
    MetricsFrozen,
    /// Gauges are multiplied by `factor`.
    MetricsLying,
    /// Every value is NaN.
    MetricsNan,
    /// Counters start again from zero.
    MetricsReset,
    /// A scrape takes `factor` seconds.
    MetricsSlow,
    /// The head runs at `factor` of its speed.
    Capacity,
    /// The head restarts and loses everything under way.
    HeadRestart,
    /// A machine of `factor` cores takes the head's place, which restarts.
    HeadReplaced,
    /// The head refuses connections.
    HeadRefuses,
    /// The users' own tasks on the head use `factor` cores.
    UserCores,
    /// The cluster's own calls need `factor` of the GCS.
    GcsNeed,
    /// The cluster's tasks need `factor` of a core of the raylet.
    RayletNeed,
    /// The cluster runs `factor` tasks at once.
    TaskSlots,
    /// `factor` tasks are pending, and are worked off as fast as others come.
    PendingTasks,
    /// The users' own processes and objects hold `factor` megabytes.
    UserMemory,
    /// Replicas come or go: the plant's servers, or a Serve's slots, are `factor`.
    Servers,
    /// rayguard reads its configuration anew: `config`, or the same once more.
    ConfigReload,
    /// rayguard restarts: counters and queues are empty, limits are the last good ones.
    ProxyRestart,
    /// The loop does not run (a process that was not scheduled).
    ControllerPause,
    /// The wall clock jumps by `factor` seconds.
    ClockJump,
}

impl FaultSpec {
    fn check(&self) -> Result<(), ScenarioError> {
        let [low, high] = match self.kind {
            FaultKind::HeadReplaced => [0.1, 1024.0],
            FaultKind::GcsNeed => [0.0, 0.95],
            FaultKind::RayletNeed => [0.0, 1.0],
            FaultKind::Capacity
            | FaultKind::UserCores
            | FaultKind::TaskSlots
            | FaultKind::PendingTasks
            | FaultKind::Servers
            | FaultKind::UserMemory
            | FaultKind::MetricsSlow => [0.0, 1e9],
            _ => [f64::NEG_INFINITY, f64::INFINITY],
        };
        if !(low..=high).contains(&self.factor) {
            return Err(ScenarioError::Impossible(format!(
                "fault `{:?}` at {} s: `factor` is {}; it must lie between {low} and {high}",
                self.kind, self.at_s, self.factor
            )));
        }
        if self.page.is_some() && self.kind != FaultKind::MetricsMissing {
            return Err(ScenarioError::Impossible(format!(
                "fault `{:?}` at {} s: `page` is for `metrics-missing`",
                self.kind, self.at_s
            )));
        }
        let is_repeated =
            |every: f64| every > 0.0 && self.kind == FaultKind::ConfigReload && self.for_s.is_some();
        if !self.every_s.is_none_or(is_repeated) {
            return Err(ScenarioError::Impossible(format!(
                "fault `{:?}` at {} s: `every_s` is for `config-reload` with `for_s`, and must be above 0",
                self.kind, self.at_s
            )));
        }
        if self.over_s < 0.0 || (self.over_s > 0.0 && self.kind != FaultKind::Capacity) {
            return Err(ScenarioError::Impossible(format!(
                "fault `{:?}` at {} s: `over_s` is for `capacity`, and must not be below 0",
                self.kind, self.at_s
            )));
        }
        Ok(())
    }
}

fn one() -> u64 {
    1
}
fn one_u32() -> u32 {
    1
}
fn one_f64() -> f64 {
    1.0
}
fn two() -> f64 {
    2.0
}
fn two_jobs() -> u32 {
    2
}
fn four() -> u32 {
    4
}
fn five() -> f64 {
    5.0
}
fn ten() -> u32 {
    10
}
fn thirty() -> f64 {
    30.0
}
fn fifty() -> f64 {
    50.0
}
fn thousand() -> u32 {
    1053
}

/// Why a scenario cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Not TOML, or not the keys there are.
    #[error("{0}")]
    Unreadable(#[from] toml::de::Error),
    /// rayguard's own configuration is wrong.
    #[error("in `config`: {0}")]
    Config(#[from] rayguard_config::Problems),
    /// A value that cannot be.
    #[error("{0}")]
    Impossible(String),
}

impl Scenario {
    /// Reads a scenario and checks that it can be run.
    ///
    /// # Errors
    /// A key or value that is not there, or cannot be.
    pub fn read(text: &str) -> Result<Scenario, ScenarioError> {
        let scenario: Scenario = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let wrong = |problem: String| Err(ScenarioError::Impossible(problem));
        if !(self.seconds > 0.0 && self.seconds <= 86_400.0) {
            return wrong(format!("`seconds` is {}; it must be above 0 and at most a day", self.seconds));
        }
        if self.scrape_s <= 0.0 || self.scrape_s.is_nan() {
            return wrong(format!("`scrape_s` is {}; it must be above 0", self.scrape_s));
        }
        if let Some([from, to]) = self.measure
            && !(0.0 <= from && from < to && to <= self.seconds)
        {
            return wrong(format!(
                "`measure` [{from}, {to}] does not lie within the run of {} s",
                self.seconds
            ));
        }
        if let Some([from, to]) = self.calm
            && !(0.0 <= from && from < to && to <= self.seconds)
        {
            return wrong(format!("`calm` [{from}, {to}] does not lie within the run of {} s", self.seconds));
        }
        if let Some(prometheus_s) = self.prometheus_s
            && !(1.0..=600.0).contains(&prometheus_s)
        {
            return wrong(format!("`prometheus_s` is {prometheus_s}; it must lie between 1 and 600"));
        }
        if let PlantSpec::RayHead { cluster, .. } = &self.plant {
            cluster.check()?;
        }
        for fault in &self.fault {
            fault.check()?;
        }
        let spec = self.spec();
        for client in &self.client {
            let named = matches!(client.kind, ClientKind::Open | ClientKind::Closed);
            if named && spec.route(&client.route).is_none() {
                let known: Vec<&str> = spec.routes.iter().map(|route| route.name).collect();
                return wrong(format!(
                    "client `{}`: no route `{}` at this head; there are {}",
                    client.name,
                    client.route,
                    known.join(", ")
                ));
            }
            if !(client.task_s > 0.0 && client.task_s <= 1e6) {
                return wrong(format!(
                    "client `{}`: `task_s` is {}; it must be above 0 and at most 1000000",
                    client.name, client.task_s
                ));
            }
            if client.kind == ClientKind::Open && client.per_second <= 0.0 {
                return wrong(format!("client `{}`: `per_second` must be above 0", client.name));
            }
            if client.count == 0
                || client.addresses == 0
                || client.attempts == 0
                || client.copies == 0
                || client.speedup <= 0.0
            {
                return wrong(format!(
                    "client `{}`: `count`, `addresses`, `attempts`, `copies` and `speedup` must be above 0",
                    client.name
                ));
            }
        }
        for (name, [low, high]) in self.expect.iter().chain(&self.robust).chain(&self.goal) {
            if low.is_nan() || high.is_nan() || low > high {
                return wrong(format!("`expect.{name}`: [{low}, {high}] is no range"));
            }
        }
        if self.expect.is_empty() {
            return wrong("nothing is expected: a run that cannot fail proves nothing".to_owned());
        }
        let of_faults = self.fault.iter().filter_map(|fault| fault.config.as_deref());
        for config in of_faults.chain(self.control.config.as_deref()) {
            self.policy_of(config)?;
        }
        let (policy, _) = self.policy()?;
        let known: Vec<&str> = policy.signals.iter().map(|signal| &*signal.name).collect();
        match self.control.without.iter().find(|name| !known.contains(&name.as_str())) {
            Some(name) => {
                wrong(format!("`control.without`: no signal `{name}`; there are {}", known.join(", ")))
            }
            None => Ok(()),
        }
    }

    /// When the last disturbance ends: faults, and groups that do not keep within their share.
    #[must_use]
    pub(crate) fn calm_from_s(&self) -> f64 {
        let fault = |fault: &FaultSpec| fault.at_s + fault.for_s.unwrap_or(0.0);
        let crowd = |client: &ClientSpec| client.until_s.filter(|_| !client.polite).unwrap_or(0.0);
        let faults = self.fault.iter().map(fault).fold(0.0, f64::max);
        self.client.iter().map(crowd).fold(faults, f64::max)
    }

    /// Whether the head is Ray's, with its modules and routes.
    #[must_use]
    pub(crate) fn is_ray_head(&self) -> bool {
        matches!(self.plant, PlantSpec::RayHead { .. })
    }

    /// The head, as the plant needs it.
    #[must_use]
    pub fn spec(&self) -> Spec {
        match self.plant {
            PlantSpec::RayHead { cores, jobs, tasks, actors, fast_metrics, one_process, ref cluster } => {
                let mut spec = Spec::ray_head();
                spec.cores = cores;
                spec.jobs = Jobs {
                    listed: jobs,
                    tasks,
                    actors,
                    starting_max: Jobs::starting_max(cores),
                    ..spec.jobs
                };
                cluster.put_into(&mut spec);
                if fast_metrics {
                    spec.cadence = Cadence::FAST;
                }
                if one_process {
                    spec.share_one_process();
                }
                spec
            }
            PlantSpec::Servers { count, mean_ms, fixed } => {
                let mut spec = Spec::parallel(count, mean_ms);
                spec.exponential = !fixed;
                spec
            }
            PlantSpec::Link { delay_ms, link } => Spec::link(delay_ms, link),
            PlantSpec::Loop { per_second, heavy } => Spec::single_loop(per_second, heavy),
            PlantSpec::Serve { replicas, ongoing, base_ms, per_size_ms, stops } => {
                Spec::serve(replicas.saturating_mul(ongoing).max(1), base_ms, per_size_ms, stops)
            }
        }
    }

    /// Requests' worth of work per second the plant can do, in milliseconds of service: what
    /// goodput is measured against. `None` for a Ray head, whose capacity depends on what is asked.
    #[must_use]
    pub(crate) fn capacity_ms_per_s(&self) -> Option<f64> {
        match self.plant {
            PlantSpec::RayHead { .. } | PlantSpec::Link { .. } => None,
            PlantSpec::Servers { count, .. } => Some(1000.0 * f64::from(count)),
            PlantSpec::Loop { .. } => Some(1000.0),
            PlantSpec::Serve { replicas, ongoing, .. } => {
                Some(1000.0 * f64::from(replicas.saturating_mul(ongoing)))
            }
        }
    }

    /// The policy and the table the run starts with.
    ///
    /// # Errors
    /// `config` is wrong.
    pub fn policy(&self) -> Result<(Arc<Policy>, LimitTable), ScenarioError> {
        self.policy_of(&self.config)
    }

    /// The active probe of `config`, if it wants one.
    #[must_use]
    pub fn probe(&self) -> Option<Probe> {
        rayguard_config::parse(&self.config, "config", &Overrides::default()).ok()?.probe
    }

    /// The policy and the table of another configuration at the same head.
    ///
    /// # Errors
    /// `config` is wrong.
    pub(crate) fn policy_of(&self, config: &str) -> Result<(Arc<Policy>, LimitTable), ScenarioError> {
        let settings = rayguard_config::parse(config, "config", &Overrides::default())?;
        let policy = match self.plant {
            PlantSpec::RayHead { one_process, .. } => {
                let found = if one_process { profile::oldest() } else { profile::newest() };
                Arc::new(settings.ray.unwrap_or(found).shape(&settings.policy))
            }
            PlantSpec::Serve { .. } => Arc::new(only_serve(&settings.policy)?),
            PlantSpec::Servers { .. } | PlantSpec::Loop { .. } | PlantSpec::Link { .. } => Arc::new(Policy {
                modules: vec![self.one_module()],
                classes: vec![self.one_class()],
                signals: Vec::new(),
                ..(*settings.policy).clone()
            }),
        };
        let table = LimitTable::initial(&policy);
        Ok((policy, table))
    }

    fn one_module(&self) -> Module {
        let [_, _, max] = self.class.in_flight;
        Module {
            name: Arc::from("head"),
            in_flight: Bounds::fixed(max),
            work: self.class.work_ms.map(|ms| duration_from_secs(ms / 1e3)),
            cancels: false,
            shared: false,
            apart: false,
        }
    }

    fn one_class(&self) -> Class {
        let [initial, min, max] = self.class.in_flight;
        Class {
            name: Arc::from("work"),
            module: ModuleId(0),
            treatment: Treatment::Limited,
            priority: Priority(5),
            kind: Kind::Unary,
            rate: None,
            in_flight: Bounds { initial, min, max },
            bytes_per_second: None,
            require_key: false,
            awaits: false,
            queue: Queue {
                len_max: self.class.queue_len,
                wait_max: duration_from_secs(self.class.queue_wait_s),
            },
            per_client: PerClientLimits::default(),
            coalesce: None,
            slo: Slo {
                quantile: self.class.slo_quantile,
                latency: duration_from_secs(self.class.slo_ms / 1e3),
            },
            timeout: None,
            law: match self.class.law {
                LawSpec::Static => Law::Static,
                LawSpec::Aimd => Law::Aimd { increase: 0.5, decrease: 0.7 },
                LawSpec::Pid => Law::Pid { kp: 0.0, ki: None, kd: 0.0 },
                LawSpec::Gradient => Law::Gradient { tolerance: 2.0, smoothing: 0.5 },
            },
            signals: Vec::new(),
            backlog: None,
            starts_within: Duration::from_secs(25),
            alert_above: None,
        }
    }
}

/// The class of what no route of the operator's names on the Serve port, and its module.
fn only_serve(policy: &Policy) -> Result<Policy, ScenarioError> {
    let name = Surface::Serve.unlisted_class();
    let class = policy.classes.iter().find(|class| &*class.name == name);
    let class = class.ok_or_else(|| ScenarioError::Impossible(format!("there is no class `{name}`")))?;
    Ok(Policy {
        modules: vec![policy.modules[class.module.index()].clone()],
        classes: vec![Class { module: ModuleId(0), signals: Vec::new(), backlog: None, ..class.clone() }],
        signals: Vec::new(),
        ..policy.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        question = "does it?"
        seconds = 10
        plant = { kind = "servers", count = 8, mean_ms = 100 }
        expect = { goodput = [0.9, 1.1] }
        [[client]]
        name = "all"
        kind = "open"
        route = "work"
        per_second = 100
    "#;

    #[test]
    fn a_small_scenario_is_enough() {
        let scenario = Scenario::read(SMALL).expect("good");
        assert_eq!(scenario.control.guard(), Guard::Off);
        assert_eq!(scenario.policy().expect("good").0.classes.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        for (from, to, part) in [
            ("route = \"work\"", "route = \"wrok\"", "there are work"),
            ("seconds = 10", "seconds = 0", "above 0"),
            ("seconds = 10", "seconds = 10\nsecnods = 3", "unknown field `secnods`"),
            ("[0.9, 1.1]", "[1.1, 0.9]", "no range"),
            ("expect = { goodput = [0.9, 1.1] }", "expect = {}", "proves nothing"),
            ("seconds = 10", "seconds = 10\nconfig = \"upstreem = 1\"", "config"),
            ("seconds = 10", "seconds = 10\nprometheus_s = 0", "between 1 and 600"),
            ("seconds = 10", "seconds = 10\ncontrol = { without = [\"cpu\"] }", "no signal `cpu`"),
            ("per_second = 100", "per_second = 100\ntask_s = 0", "`task_s` is 0"),
            (
                "per_second = 100",
                "per_second = 100\n[[fault]]\nkind = \"gcs-need\"\nat_s = 1\nfactor = 2",
                "between 0 and 0.95",
            ),
            (
                "{ kind = \"servers\", count = 8, mean_ms = 100 }",
                "{ kind = \"ray-head\", cluster = { gcs_need = 1.5 } }",
                "`plant.cluster.gcs_need` is 1.5",
            ),
        ] {
            let error = Scenario::read(&SMALL.replace(from, to)).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_ray_head_has_the_shipped_policy() {
        let text = SMALL
            .replace("{ kind = \"servers\", count = 8, mean_ms = 100 }", "{ kind = \"ray-head\" }")
            .replace("\"work\"", "\"job-list\"");
        let (policy, _) = Scenario::read(&text).expect("good").policy().expect("good");
        assert!(policy.classes.iter().any(|class| &*class.name == "job-submit"));
    }
}
