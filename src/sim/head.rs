//! What a Ray head is made of, as data: processes, routes, and what each request costs.
//!
//! The dashboard is one parent process that proxies to single-process modules over at most
//! 100 connections each. A request costs the parent's loop once and its module's
//! loop in `passes` turns, between which it waits for the GCS or an agent; the loop serves
//! requests that are ready, first come first served, so a request of three passes stands in line
//! three times. What a route costs moves with the cluster's state: listing jobs is linear in
//! the jobs ever submitted, listing tasks in the tasks the GCS holds.
//!
//! Costs come from `wrk` at c=1 and c=16 on Ray 2.60.0 (2 cores, 2 to 119 jobs, 1053 tasks):
//! `1 / (requests per second at c=16)` is what the busiest process pays, the rest of the
//! latency at c=1 is waiting. Numbers marked *fitted* were chosen so that recorded overloads
//! are met (see `simulations/README.md`); all others are measured.

use super::gauges::Cadence;
use super::rng::Rng;
use std::time::Duration;

/// A route's place in [`Spec::routes`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouteId(pub u8);

impl RouteId {
    /// The place as an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Everything that makes a head.
#[derive(Clone, PartialEq, Debug)]
pub struct Spec {
    /// Cores all processes share; infinite: CPU never contended.
    pub cores: f64,
    /// Cores taken by whatever else runs on the node (raylet, agents, monitor).
    pub background_cores: f64,
    /// Cores that the users' own tasks on the head would use.
    pub user_cores: f64,
    /// Share of a core that the raylet needs for the cluster's own tasks.
    pub raylet_need: f64,
    /// Share of the GCS's one loop that the cluster's own calls need.
    pub gcs_need: f64,
    /// Speed lost when every core is busy: two hardware threads share one core's units.
    /// 0..1, *fitted*.
    pub crowding: f64,
    /// What a request waits for a core at each turn when the node is saturated, milliseconds
    /// per square root of the runnable processes beyond the cores, *fitted* in form and size.
    pub wake_up_ms: f64,
    /// What each turn costs in waiting for a process to wake up on an idle node,
    /// milliseconds, *fitted*.
    pub turn_ms: f64,
    /// The modules.
    pub modules: Vec<Module>,
    /// The routes.
    pub routes: Vec<Route>,
    /// Deviation of the logarithm of service times.
    pub sigma: f64,
    /// Exponential service times instead of log-normal ones.
    pub exponential: bool,
    /// What becomes of work whose client has left.
    pub cancels: Cancels,
    /// A service that is slower the more it is asked at once, instead of servers that are shared.
    pub link: Option<Link>,
    /// Submitted jobs.
    pub jobs: Jobs,
    /// Memory.
    pub memory: Memory,
    /// How often the exported numbers are refreshed.
    pub cadence: Cadence,
}

/// A service somewhere else, known only by how long it takes: no request waits for another, but
/// each takes longer the more there are when it comes, and some are not taken at all. The form is
/// that of the sink in Vector's tests of its adaptive concurrency.
#[derive(Clone, Copy, PartialEq, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// Exponential time on top, as a share of the delay.
    pub jitter: f64,
    /// What each request beyond the first adds, as a share of the delay.
    pub scale: f64,
    /// Beyond so many, every further one multiplies the delay.
    pub knee_start: Option<u32>,
    /// By this much.
    pub knee_factor: Option<f64>,
    /// Beyond so many at once, requests are not taken.
    pub at_once_max: Option<u32>,
    /// Beyond so many within a second, requests are not taken.
    pub per_second_max: Option<u32>,
    /// What is not taken: no answer within [`Link::PATIENCE`], instead of a 503 after the delay.
    pub drops: bool,
}

impl Link {
    /// After so long a connection without an answer is given up (Vector's own default).
    pub const PATIENCE: Duration = Duration::from_secs(60);

    /// How many times the delay a request takes that finds `at_once` there, itself included.
    pub fn factor(&self, at_once: u32, rng: &mut Rng) -> f64 {
        let beyond = self.knee_start.map_or(0, |knee| at_once.saturating_sub(knee));
        let knee = self.knee_factor.unwrap_or(self.scale + 1.0).powf(f64::from(beyond)) - 1.0;
        let jitter = if self.jitter > 0.0 { self.jitter * rng.exponential(1.0) } else { 0.0 };
        1.0 + self.scale * f64::from(at_once.saturating_sub(1)) + knee + jitter
    }
}

/// What a server does for a client that has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancels {
    /// All of its work: Ray's dashboard.
    Nothing,
    /// What runs by then: a Serve application that works in threads.
    Waiting,
    /// Nothing: one that awaits.
    All,
}

/// A process behind a group of routes.
#[derive(Clone, PartialEq, Debug)]
pub struct Module {
    /// Ray's name.
    pub name: &'static str,
    /// Requests worked on at once. A Python loop: 1.
    pub servers: u32,
    /// Connections the parent holds to it; what comes beyond waits in the parent, without bound.
    pub connections_max: u32,
    /// Requests it lets in before it answers 429 by itself (StateHead: 100).
    pub in_progress_max: Option<u32>,
}

/// What one route costs and does. All times in milliseconds of an otherwise idle head.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Route {
    /// A name of ours.
    pub name: &'static str,
    /// Ray's handler name, the `endpoint` label of its request histogram; empty: not the dashboard's.
    pub endpoint: &'static str,
    /// What a client sends for it: method and path.
    pub asks: (&'static str, &'static str),
    /// Index of the module.
    pub module: usize,
    /// CPU of the parent's loop.
    pub parent_ms: f64,
    /// CPU of the module.
    pub base_ms: f64,
    /// CPU of the module per job ever submitted.
    pub per_job_ms: f64,
    /// CPU of the module per task in the GCS (at most 10 000 are fetched).
    pub per_task_ms: f64,
    /// CPU of the module per actor.
    pub per_actor_ms: f64,
    /// CPU of the module per unit of payload (megabyte; thousand tokens).
    pub per_size_ms: f64,
    /// Waiting for others, in which the module serves other requests.
    pub wait_ms: f64,
    /// Turns on the module's loop.
    pub passes: u8,
    /// Calls to the GCS.
    pub gcs_calls: u8,
    /// CPU outside the module's loop: its other threads and the node's agent.
    pub outside_ms: f64,
    /// The same per unit of payload.
    pub outside_per_size_ms: f64,
    /// Memory that a unit of payload takes while the request is under way, megabytes.
    pub memory_per_size: f64,
    /// CPU of the GCS; 0: it is not asked.
    pub gcs_ms: f64,
    /// CPU of the GCS as a share of what the module pays for the cluster's size, *fitted*.
    pub gcs_share: f64,
    /// What it leaves behind.
    pub effect: Effect,
}

/// What a request does in addition to taking time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// A job is submitted.
    Submit,
    /// A job that has not started is withdrawn, or a running one ended.
    Stop,
    /// A package stays in the GCS's memory.
    Package,
    /// The connection is held until the job ends, whether or not the client stays.
    Tail,
    /// A process of its own lives until the client leaves and its grace is over, or until it ends.
    Session,
    /// The answer streams; a stream whose client left counts in `in_progress` until the log grows.
    Stream,
}

/// Submitted jobs: a supervisor actor and a process each.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Jobs {
    /// Supervisors started at once.
    pub starting_max: u32,
    /// CPU of one start, milliseconds, *fitted* to 0.9 jobs/s on a saturated 2-core head.
    pub start_ms: f64,
    /// Time one start takes beyond its CPU, milliseconds.
    pub start_wait_ms: f64,
    /// How long a job runs once started, seconds, unless its submission says otherwise.
    pub run_s: f64,
    /// Jobs in the list at the beginning.
    pub listed: u32,
    /// Tasks in the GCS at the beginning, finished.
    pub tasks: u32,
    /// Tasks pending for good, which the cluster works off as fast as others come.
    pub pending: u32,
    /// Tasks pending for good because no node can run them.
    pub infeasible: u32,
    /// Tasks that the cluster runs at once.
    pub task_slots: f64,
    /// Actors in the GCS at the beginning.
    pub actors: u32,
    /// Tasks pending per job that waits for its start.
    pub pending_per_job: f64,
    /// Tasks each job leaves in the GCS.
    pub tasks_per_job: f64,
}

impl Jobs {
    /// Worker processes that Ray starts at once: one for each CPU, and four on the recorded head, which
    /// had been told that it has as many.
    #[must_use]
    pub(crate) fn starting_max(cores: f64) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let cores = cores as u32;
        cores.max(4)
    }
}

/// The head's memory, megabytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Memory {
    /// The node's.
    pub total_mb: f64,
    /// In use when idle.
    pub base_mb: f64,
    /// Held by the users' own processes and objects.
    pub user_mb: f64,
    /// A Ray Client session's process.
    pub per_session_mb: f64,
    /// A job's processes.
    pub per_job_mb: f64,
    /// A request under way.
    pub per_request_mb: f64,
}

const FREE: Route = Route {
    name: "",
    endpoint: "",
    asks: ("GET", "/"),
    module: 0,
    parent_ms: 0.25,
    base_ms: 0.0,
    per_job_ms: 0.0,
    per_task_ms: 0.0,
    per_actor_ms: 0.0,
    per_size_ms: 0.0,
    outside_ms: 0.0,
    outside_per_size_ms: 0.0,
    memory_per_size: 0.0,
    wait_ms: 0.0,
    passes: 1,
    gcs_calls: 0,
    gcs_ms: 0.0,
    gcs_share: 0.0,
    effect: Effect::None,
};

const JOB: usize = 0;
const STATE: usize = 1;
const NODE: usize = 2;
const REPORT: usize = 3;
const SERVE: usize = 4;
const EVENT: usize = 5;
const METRICS: usize = 6;
const DATA: usize = 7;
const TRAIN: usize = 8;
const CLIENT: usize = 9;

/// Ray's modules, in the order of the constants above.
const MODULES: [&str; 10] = [
    "JobHead",
    "StateHead",
    "NodeHead",
    "ReportHead",
    "ServeHead",
    "EventHead",
    "MetricsHead",
    "DataHead",
    "TrainHead",
    RAY_CLIENT,
];

/// The Ray Client proxier: a process of its own behind port 10001, no module of the dashboard.
pub(crate) const RAY_CLIENT: &str = "RayClient";

/// Ray's routes and their costs.
const ROUTES: &[Route] = &[
    Route {
        name: "version",
        endpoint: "get_version",
        asks: ("GET", "/api/version"),
        module: JOB,
        parent_ms: 0.2,
        base_ms: 0.1,
        ..FREE
    },
    Route {
        name: "job-submit",
        endpoint: "submit_job",
        asks: ("POST", "/api/jobs/"),
        module: JOB,
        // Most of it is awaited: the agent and other threads do it, and the loop serves others.
        base_ms: 1.5,
        outside_ms: 2.5,
        wait_ms: 6.0,
        passes: 3,
        gcs_calls: 8,
        gcs_ms: 3.0,
        effect: Effect::Submit,
        ..FREE
    },
    Route {
        name: "job-list",
        endpoint: "list_jobs",
        asks: ("GET", "/api/jobs/"),
        module: JOB,
        base_ms: 0.4,
        per_job_ms: 0.16,
        wait_ms: 0.8,
        passes: 3,
        gcs_calls: 3,
        gcs_ms: 0.3,
        gcs_share: 0.3,
        ..FREE
    },
    Route {
        name: "job-status",
        endpoint: "get_job_info",
        asks: ("GET", "/api/jobs/raysubmit_1"),
        module: JOB,
        base_ms: 0.6,
        wait_ms: 0.5,
        passes: 2,
        gcs_calls: 2,
        gcs_ms: 0.1,
        ..FREE
    },
    Route {
        name: "job-logs",
        endpoint: "get_job_logs",
        asks: ("GET", "/api/jobs/raysubmit_1/logs"),
        module: JOB,
        base_ms: 1.4,
        per_size_ms: 15.0,
        memory_per_size: 3.6,
        wait_ms: 1.5,
        passes: 3,
        gcs_calls: 2,
        gcs_ms: 0.1,
        ..FREE
    },
    Route {
        name: "log-tail",
        endpoint: "tail_job_logs",
        asks: ("GET", "/api/jobs/raysubmit_1/logs/tail"),
        module: JOB,
        base_ms: 1.0,
        wait_ms: 1.0,
        gcs_calls: 1,
        effect: Effect::Tail,
        ..FREE
    },
    Route {
        name: "job-stop",
        endpoint: "stop_job",
        asks: ("POST", "/api/jobs/raysubmit_1/stop"),
        module: JOB,
        base_ms: 1.5,
        wait_ms: 5.0,
        passes: 2,
        gcs_calls: 2,
        gcs_ms: 0.2,
        effect: Effect::Stop,
        ..FREE
    },
    Route {
        name: "package-get",
        endpoint: "get_package",
        asks: ("GET", "/api/packages/gcs/p.zip"),
        module: JOB,
        base_ms: 0.5,
        wait_ms: 0.4,
        passes: 2,
        gcs_calls: 1,
        ..FREE
    },
    Route {
        name: "package-put",
        endpoint: "upload_package",
        asks: ("PUT", "/api/packages/gcs/p.zip"),
        module: JOB,
        base_ms: 1.0,
        per_size_ms: 1.0,
        outside_per_size_ms: 7.0,
        wait_ms: 5.0,
        passes: 2,
        gcs_calls: 1,
        gcs_ms: 2.0,
        effect: Effect::Package,
        ..FREE
    },
    Route {
        name: "tasks",
        endpoint: "list_tasks",
        asks: ("GET", "/api/v0/tasks"),
        module: STATE,
        base_ms: 1.0,
        per_task_ms: 0.13,
        wait_ms: 1.0,
        gcs_calls: 1,
        gcs_ms: 1.0,
        gcs_share: 0.05,
        ..FREE
    },
    Route {
        name: "tasks-detail",
        endpoint: "list_tasks",
        asks: ("GET", "/api/v0/tasks"),
        module: STATE,
        parent_ms: 3.0,
        base_ms: 1.0,
        per_task_ms: 0.3,
        wait_ms: 1.0,
        gcs_calls: 1,
        gcs_ms: 1.0,
        gcs_share: 0.05,
        ..FREE
    },
    Route {
        name: "tasks-summarize",
        endpoint: "summarize_tasks",
        asks: ("GET", "/api/v0/tasks/summarize"),
        module: STATE,
        base_ms: 2.0,
        per_task_ms: 0.13,
        wait_ms: 1.0,
        gcs_calls: 1,
        gcs_ms: 1.0,
        gcs_share: 0.05,
        ..FREE
    },
    Route {
        name: "actors",
        endpoint: "list_actors",
        asks: ("GET", "/api/v0/actors"),
        module: STATE,
        base_ms: 0.5,
        per_actor_ms: 0.14,
        wait_ms: 0.5,
        gcs_calls: 1,
        gcs_ms: 0.1,
        ..FREE
    },
    Route {
        name: "workers",
        endpoint: "list_workers",
        asks: ("GET", "/api/v0/workers"),
        module: STATE,
        base_ms: 1.6,
        wait_ms: 0.5,
        gcs_calls: 1,
        gcs_ms: 0.2,
        ..FREE
    },
    Route {
        name: "objects",
        endpoint: "list_objects",
        asks: ("GET", "/api/v0/objects"),
        module: STATE,
        base_ms: 3.3,
        wait_ms: 1.8,
        gcs_calls: 2,
        gcs_ms: 0.2,
        ..FREE
    },
    Route {
        name: "state-light",
        endpoint: "list_nodes",
        asks: ("GET", "/api/v0/nodes"),
        module: STATE,
        base_ms: 0.48,
        wait_ms: 0.5,
        gcs_calls: 1,
        gcs_ms: 0.1,
        ..FREE
    },
    Route {
        name: "state-logs",
        endpoint: "list_logs",
        asks: ("GET", "/api/v0/logs"),
        module: STATE,
        base_ms: 1.5,
        wait_ms: 1.5,
        passes: 2,
        gcs_calls: 1,
        ..FREE
    },
    Route {
        name: "log-stream",
        endpoint: "get_logs",
        asks: ("GET", "/api/v0/logs/stream"),
        module: STATE,
        base_ms: 1.3,
        wait_ms: 1.5,
        effect: Effect::Stream,
        ..FREE
    },
    Route {
        name: "delay",
        endpoint: "delayed_response",
        asks: ("GET", "/api/v0/delay/5"),
        module: STATE,
        base_ms: 0.2,
        ..FREE
    },
    Route {
        name: "nodes",
        endpoint: "get_all_nodes[cache ttl=2, max_size=128]",
        asks: ("GET", "/nodes"),
        module: NODE,
        parent_ms: 0.42,
        base_ms: 0.2,
        ..FREE
    },
    Route {
        name: "node",
        endpoint: "get_node[cache ttl=2, max_size=128]",
        asks: ("GET", "/nodes/5f"),
        module: NODE,
        parent_ms: 0.22,
        base_ms: 0.15,
        ..FREE
    },
    Route {
        name: "logical-actors",
        endpoint: "get_all_actors[cache ttl=2, max_size=128]",
        asks: ("GET", "/logical/actors"),
        module: NODE,
        parent_ms: 0.2,
        base_ms: 0.15,
        ..FREE
    },
    Route {
        name: "cluster-status",
        endpoint: "get_cluster_status",
        asks: ("GET", "/api/cluster_status"),
        module: REPORT,
        base_ms: 0.5,
        wait_ms: 0.45,
        passes: 2,
        gcs_calls: 2,
        gcs_ms: 0.1,
        ..FREE
    },
    Route {
        name: "gcs-healthz",
        endpoint: "health_check",
        asks: ("GET", "/api/gcs_healthz"),
        module: REPORT,
        parent_ms: 0.2,
        base_ms: 0.4,
        wait_ms: 0.25,
        passes: 2,
        gcs_calls: 1,
        gcs_ms: 0.05,
        ..FREE
    },
    Route {
        name: "report",
        endpoint: "prometheus_service_discovery",
        asks: ("GET", "/api/prometheus/sd"),
        module: REPORT,
        parent_ms: 0.2,
        base_ms: 0.15,
        ..FREE
    },
    Route {
        name: "profile",
        endpoint: "cpu_profile",
        asks: ("GET", "/worker/cpu_profile"),
        module: REPORT,
        base_ms: 2.0,
        wait_ms: 5000.0,
        gcs_calls: 1,
        ..FREE
    },
    Route {
        name: "serve",
        endpoint: "get_serve_instance_details",
        asks: ("GET", "/api/serve/applications/"),
        module: SERVE,
        base_ms: 2.0,
        wait_ms: 3.0,
        passes: 2,
        gcs_calls: 1,
        ..FREE
    },
    Route {
        name: "events",
        endpoint: "get_event",
        asks: ("GET", "/events"),
        module: EVENT,
        parent_ms: 0.2,
        base_ms: 0.2,
        ..FREE
    },
    Route {
        name: "metrics",
        endpoint: "prometheus_health",
        asks: ("GET", "/api/prometheus_health"),
        module: METRICS,
        base_ms: 0.3,
        wait_ms: 1.0,
        ..FREE
    },
    Route {
        name: "data",
        endpoint: "get_datasets",
        asks: ("GET", "/api/data/datasets/1"),
        module: DATA,
        base_ms: 1.0,
        wait_ms: 1.0,
        gcs_calls: 1,
        ..FREE
    },
    Route {
        name: "train",
        endpoint: "get_train_runs",
        asks: ("GET", "/api/train/v2/runs/v1"),
        module: TRAIN,
        base_ms: 1.0,
        wait_ms: 1.0,
        gcs_calls: 1,
        ..FREE
    },
    Route {
        name: "client-connect",
        endpoint: "",
        asks: ("POST", "/ray.rpc.RayletDriver/ClusterInfo"),
        module: CLIENT,
        parent_ms: 0.0,
        base_ms: 1.0,
        wait_ms: 1.0,
        gcs_calls: 1,
        gcs_ms: 0.1,
        ..FREE
    },
    // A server process for each, started in 1.2 s.
    Route {
        name: "client-session",
        endpoint: "",
        asks: ("POST", "/ray.rpc.RayletDataStreamer/Datapath"),
        module: CLIENT,
        parent_ms: 0.0,
        base_ms: 1.0,
        outside_ms: 900.0,
        wait_ms: 300.0,
        gcs_calls: 4,
        gcs_ms: 0.5,
        effect: Effect::Session,
        ..FREE
    },
    // Answered by the parent alone; the module it is booked on never sees it (`passes: 0`).
    Route {
        name: "parent",
        endpoint: "get_index",
        asks: ("GET", "/"),
        module: METRICS,
        parent_ms: 0.2,
        passes: 0,
        ..FREE
    },
];

impl Spec {
    /// A Ray 2.60 head on 2 cores and 24 GiB, as measured.
    #[must_use]
    pub fn ray_head() -> Spec {
        Spec {
            cores: 2.0,
            background_cores: 0.15,
            user_cores: 0.0,
            raylet_need: 0.0,
            gcs_need: 0.0,
            crowding: 0.15,
            wake_up_ms: 2.2,
            turn_ms: 0.3,
            modules: MODULES
                .iter()
                .map(|name| Module {
                    name,
                    servers: if *name == RAY_CLIENT { 100 } else { 1 },
                    connections_max: if *name == RAY_CLIENT { u32::MAX } else { 100 },
                    in_progress_max: (*name == "StateHead").then_some(100),
                })
                .collect(),
            routes: ROUTES.to_vec(),
            sigma: 0.3,
            exponential: false,
            cancels: Cancels::Nothing,
            link: None,
            jobs: Jobs {
                starting_max: 4,
                start_ms: 1250.0,
                start_wait_ms: 300.0,
                run_s: 1.0,
                listed: 2,
                tasks: 1053,
                pending: 0,
                infeasible: 0,
                task_slots: 64.0,
                actors: 2,
                pending_per_job: 2.9,
                tasks_per_job: 3.0,
            },
            memory: Memory {
                total_mb: 25_276.0,
                base_mb: 1_400.0,
                user_mb: 0.0,
                per_job_mb: 65.0,
                per_session_mb: 120.0,
                per_request_mb: 0.3,
            },
            cadence: Cadence::DEFAULT,
        }
    }

    /// `servers` servers of exponential service time with this mean and one queue: the plant
    /// of `M/M/c` theory, on which limiters are compared.
    #[must_use]
    pub fn parallel(servers: u32, mean_ms: f64) -> Spec {
        let mut spec = Spec::plain("servers", servers);
        spec.routes =
            vec![Route { name: "work", endpoint: "work", parent_ms: 0.0, base_ms: mean_ms, ..FREE }];
        spec.exponential = true;
        spec
    }

    /// A link of this delay.
    #[must_use]
    pub fn link(delay_ms: f64, link: Link) -> Spec {
        Spec { link: Some(link), exponential: false, ..Spec::parallel(u32::MAX, delay_ms) }
    }

    /// A head that is one first-come-first-served loop and finishes the work of clients that
    /// left: `per_second` cheap requests a second, and a route that costs `heavy` of them.
    #[must_use]
    pub fn single_loop(per_second: f64, heavy: f64) -> Spec {
        let mut spec = Spec::plain("loop", 1);
        let cheap =
            Route { name: "cheap", endpoint: "cheap", parent_ms: 0.0, base_ms: 1000.0 / per_second, ..FREE };
        let heavy = Route { name: "heavy", endpoint: "heavy", base_ms: cheap.base_ms * heavy, ..cheap };
        spec.routes = vec![cheap, heavy];
        spec
    }

    /// A Serve application: `slots` requests at once over all replicas, and what each takes.
    #[must_use]
    pub fn serve(slots: u32, base_ms: f64, per_size_ms: f64, stops: bool) -> Spec {
        let mut spec = Spec::plain("Serve", slots);
        spec.cancels = if stops { Cancels::All } else { Cancels::Waiting };
        spec.routes = vec![Route {
            name: "completion",
            endpoint: "completion",
            asks: ("POST", "/v1/completions"),
            parent_ms: 0.0,
            base_ms,
            per_size_ms,
            ..FREE
        }];
        spec
    }

    fn plain(module: &'static str, servers: u32) -> Spec {
        Spec {
            cores: f64::INFINITY,
            background_cores: 0.0,
            crowding: 0.0,
            wake_up_ms: 0.0,
            turn_ms: 0.0,
            modules: vec![Module { name: module, servers, connections_max: u32::MAX, in_progress_max: None }],
            sigma: 0.0,
            ..Spec::ray_head()
        }
    }

    /// The same head, known less well: every cost, the start of jobs and the cores' crowding
    /// are off by a log-normal factor (deviation 0.25 of the logarithm: two thirds of heads
    /// within 28 %).
    #[must_use]
    pub fn perturbed(&self, rng: &mut Rng) -> Spec {
        const SIGMA: f64 = 0.25;
        let mut spec = self.clone();
        for route in &mut spec.routes {
            let factor = rng.jitter(SIGMA);
            for cost in [
                &mut route.base_ms,
                &mut route.per_job_ms,
                &mut route.per_task_ms,
                &mut route.per_actor_ms,
                &mut route.per_size_ms,
                &mut route.outside_ms,
                &mut route.outside_per_size_ms,
            ] {
                *cost *= factor;
            }
            route.parent_ms *= rng.jitter(SIGMA);
            route.wait_ms *= rng.jitter(SIGMA);
        }
        spec.jobs.start_ms *= rng.jitter(SIGMA);
        spec.wake_up_ms *= rng.jitter(SIGMA);
        spec
    }

    /// All modules of the dashboard share one loop, which asks no other process and knows no connections.
    pub(crate) fn share_one_process(&mut self) {
        for route in self.routes.iter_mut().filter(|route| route.module != CLIENT && route.passes > 0) {
            route.module = JOB;
            route.base_ms += route.parent_ms;
            route.parent_ms = 0.0;
        }
        self.modules[JOB].connections_max = u32::MAX;
    }

    /// Whether there is a cluster behind it: a GCS that its routes ask.
    #[must_use]
    pub(crate) fn has_cluster(&self) -> bool {
        self.routes.iter().any(|route| route.gcs_ms > 0.0)
    }

    /// The route of this name.
    #[must_use]
    pub fn route(&self, name: &str) -> Option<RouteId> {
        self.routes
            .iter()
            .position(|route| route.name == name)
            .and_then(|at| u8::try_from(at).ok())
            .map(RouteId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_its_own_name_and_a_module() {
        let spec = Spec::ray_head();
        for (index, route) in spec.routes.iter().enumerate() {
            assert_eq!(spec.route(route.name).map(RouteId::index), Some(index), "{} twice", route.name);
            assert!(route.module < spec.modules.len());
        }
    }
}
