//! What Ray's endpoints are, and what each may do before anyone has tuned anything.
//!
//! Plain data, read from Ray 2.60's own route table (`tests/fixtures/ray/routes.txt`; a test
//! fails when a route of it is missing here or stands on the wrong module). `config` turns
//! it into a [`Policy`] and lays the operator's file over it.
//!
//! How the numbers were found. The unit that saturates is the module, one Python process
//! with one event loop. Cheap calls gain about 2x from 1 to 16 at once and nothing beyond;
//! calls that list everything gain nothing from the second on, since they hold the loop.
//! By Little's law 16 at once is 1,000/s of a 1.4 ms call: a healthy head never comes near
//! these limits, and a queue takes its bursts. So:
//!
//! - **Ceilings** stay near the saturation point, and a module's ceiling plus the held
//!   connections on it stay below the 100 that Ray opens per module ([`CONNECTIONS_MAX`]).
//!   At 100 held tails the whole Job API hangs, `stop` and `/api/version` included.
//! - **Waits** end before the clients give up: KubeRay after 2 s, the state API after 24 to
//!   30 s. The job SDK never gives up, and never retries, so submissions may wait longest.
//! - **Priority** is how badly the head needs the call: stopping work before starting it,
//!   an operator's poll before a browser's.
//! - **Rates** exist only where the work outlives the answer, so that concurrency cannot see
//!   it: each submission leaves a process behind, each Ray Client session a server.
//! - **Exempt** is what must work when nothing else does, and costs next to nothing.
//!
//! A class lies on one module. Where the design's one word spans several processes, the
//! module is a suffix (`views`, `views-report`, ...), so that a slow Grafana check cannot
//! use up the room of the node list.

use crate::policy::{
    Bounds, Class, Coalesce, Control, Kind, Law, Module, ModuleId, PerClientLimits, Policy, Priority, Queue,
    RateBounds, SignalId, Slo, Treatment,
};
use std::time::Duration;

/// The most a module's unary ceiling and its held connections may add up to: Ray's parent
/// opens 100 connections per module, and traffic that does not pass the proxy needs some.
pub const CONNECTIONS_MAX: f64 = 90.0;

/// A module and its default ceiling.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ModuleDefault {
    /// Ray's own name for the process.
    pub name: &'static str,
    /// Unary requests under way in it at once.
    pub in_flight: Bounds,
    /// Learnt work under way at once per class, where the module is one process.
    pub work: Option<Duration>,
    /// Whether it stops working when the client leaves.
    pub cancels: bool,
    /// What it is, for people.
    pub about: &'static str,
}

/// A class and its defaults. Fields as in [`Class`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ClassDefault {
    /// The label in metrics, logs and config.
    pub name: &'static str,
    /// A name of [`MODULES`].
    pub module: &'static str,
    /// Limited, exempt or blocked.
    pub treatment: Treatment,
    /// 0 (last) to 9 (first); the weight in the module is `2^priority`.
    pub priority: u8,
    /// Asked and answered, or held open.
    pub kind: Kind,
    /// Requests per second, or none.
    pub rate: Option<RateBounds>,
    /// Requests under way at once.
    pub in_flight: Bounds,
    /// Bytes per second, or none.
    pub bytes_per_second: Option<f64>,
    /// How a request waits.
    pub queue: Queue,
    /// Ceilings for one client.
    pub per_client: PerClientLimits,
    /// It leaves its process to others most of the time.
    pub awaits: bool,
    /// Sharing of one upstream answer.
    pub coalesce: Option<Coalesce>,
    /// The latency objective.
    pub slo: Slo,
    /// How long upstream may take to begin its answer.
    pub timeout: Option<Duration>,
    /// The law that moves its limits.
    pub law: Law,
    /// Names of the signals that move its rate, or without one a ceiling on its requests in flight.
    pub signals: &'static [&'static str],
    /// Name of the signal that counts the work its requests leave behind.
    pub backlog: Option<&'static str>,
    /// Within which time what it leaves behind is to start.
    pub starts_within: Duration,
    /// What it is, for people.
    pub about: &'static str,
}

impl ClassDefault {
    /// The class as the policy holds it. `signal` finds a signal by name; names it does not
    /// know are left out.
    pub(crate) fn class_in(&self, module: ModuleId, signal: impl Fn(&str) -> Option<SignalId>) -> Class {
        Class {
            name: self.name.into(),
            module,
            treatment: self.treatment,
            priority: Priority(self.priority),
            kind: self.kind,
            rate: self.rate,
            in_flight: self.in_flight,
            bytes_per_second: self.bytes_per_second,
            require_key: false,
            awaits: self.awaits,
            queue: self.queue,
            per_client: self.per_client,
            coalesce: self.coalesce,
            slo: self.slo,
            timeout: self.timeout,
            law: self.law,
            signals: self.signals.iter().filter_map(|name| signal(name)).collect(),
            backlog: self.backlog.and_then(&signal),
            starts_within: self.starts_within,
            alert_above: None,
        }
    }
}

/// [`MODULES`] as the policy holds them, in the same order.
pub fn modules() -> Vec<Module> {
    MODULES
        .iter()
        .map(|module| Module {
            name: module.name.into(),
            in_flight: module.in_flight,
            work: module.work,
            cancels: module.cancels,
            shared: false,
            apart: false,
        })
        .collect()
}

/// [`CLASSES`] as the policy holds them, in the same order. `signal` finds a signal by name.
pub fn classes(signal: impl Fn(&str) -> Option<SignalId>) -> Vec<Class> {
    CLASSES
        .iter()
        .map(|class| {
            // A class whose module is missing is a fault of this file that the tests catch.
            let module = MODULES.iter().position(|module| module.name == class.module).unwrap_or(0);
            class.class_in(ModuleId(u8::try_from(module).unwrap_or(0)), &signal)
        })
        .collect()
}

/// The modules and classes as shipped, without signals: for benchmarks, and for tests that ask of requests alone.
pub fn policy() -> Policy {
    Policy {
        modules: modules(),
        classes: classes(|_| None),
        signals: Vec::new(),
        control: Control::SHIPPED,
        history: true,
    }
}

/// The kind of listener a request came in by: the same path means different things to them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Surface {
    /// Port 8265 (and 52365, the agent's): dashboard, Job API, State API, Serve REST.
    Dashboard,
    /// Port 10001: Ray Client gRPC.
    RayClient,
    /// Port 8000: the users' own applications.
    Serve,
}

impl Surface {
    /// Every surface, in the order of their discriminants.
    pub const ALL: [Surface; 3] = [Surface::Dashboard, Surface::RayClient, Surface::Serve];

    /// The class of a request that no route knows.
    pub fn unlisted_class(self) -> &'static str {
        match self {
            Surface::Dashboard => "other",
            Surface::RayClient => "ray-client",
            Surface::Serve => "serve",
        }
    }
}

/// A route of Ray's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The listener it belongs to.
    pub surface: Surface,
    /// The method; `GET` stands for `HEAD` too.
    pub method: &'static str,
    /// The pattern: `{name}` is one segment, `{*name}` at the end all that follows.
    pub path: &'static str,
    /// A header (lower-case name, value) that must be there.
    pub header: Option<(&'static str, &'static str)>,
    /// A name of [`CLASSES`].
    pub class: &'static str,
    /// The process behind it, a name of [`MODULES`]. Equal to the class's module, except
    /// where the class is exempt or blocked and counts against none.
    pub module: &'static str,
}

const fn bounds(initial: f64, min: f64, max: f64) -> Bounds {
    Bounds { initial, min, max }
}
const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
const fn queue(len_max: u32, wait_max: Duration) -> Queue {
    Queue { len_max, wait_max }
}
const fn slo(quantile: f64, latency: Duration) -> Slo {
    Slo { quantile, latency }
}
const fn module(name: &'static str, in_flight: Bounds, about: &'static str) -> ModuleDefault {
    ModuleDefault { name, in_flight, work: Some(WORK), cancels: false, about }
}
/// A module that truly works in parallel.
const fn parallel(name: &'static str, in_flight: Bounds, about: &'static str) -> ModuleDefault {
    ModuleDefault { name, in_flight, work: None, cancels: false, about }
}

/// What a single process may have before it, per class: two calls of 20 ms keep its loop fed,
/// and the next request, `/api/version` included, waits no longer than this.
const WORK: Duration = Duration::from_millis(50);

/// Ray's processes.
pub const MODULES: &[ModuleDefault] = &[
    module("Dashboard", bounds(32.0, 8.0, 64.0), "the parent loop that proxies to all other modules"),
    module("JobHead", bounds(24.0, 8.0, 32.0), "jobs, packages, /api/version"),
    module("StateHead", bounds(8.0, 4.0, 16.0), "the State API and cluster logs; one worker thread"),
    module("NodeHead", bounds(16.0, 4.0, 32.0), "nodes and actors of the dashboard; cached 2 s by Ray"),
    module("ReportHead", bounds(16.0, 4.0, 32.0), "cluster status, health and profiling"),
    module("ServeHead", bounds(8.0, 2.0, 16.0), "the Serve REST API"),
    module(
        "EventHead",
        bounds(16.0, 4.0, 32.0),
        "events, reported by Ray's agents and read by the dashboard",
    ),
    module("TaskEventsHead", bounds(16.0, 4.0, 32.0), "task events, where they are kept out of the GCS"),
    module("MetricsHead", bounds(8.0, 2.0, 16.0), "checks of Grafana and Prometheus"),
    module("DataHead", bounds(8.0, 2.0, 16.0), "Ray Data's page"),
    module("TrainHead", bounds(8.0, 2.0, 16.0), "Ray Train's page"),
    module("JobAgent", bounds(16.0, 4.0, 32.0), "the job API of a node's agent (port 52365)"),
    parallel("RayClient", bounds(16.0, 4.0, 24.0), "the Ray Client proxier (port 10001); 100 threads"),
    // Its proxy cancels a request whose connection is closed.
    ModuleDefault {
        cancels: true,
        ..parallel("Serve", bounds(2048.0, 32.0, 2048.0), "the users' applications (port 8000)")
    },
];

/// The law where nothing else is said: integral on log(limit), SIMC gain.
const INTEGRAL: Law = Law::Pid { kp: 0.0, ki: None, kd: 0.0 };

/// No limit can be this high; it stands where a limit has no meaning.
const UNUSED: Bounds = Bounds::fixed(1_000_000.0);

/// What most classes have in common.
const UNARY: ClassDefault = ClassDefault {
    name: "",
    module: "",
    treatment: Treatment::Limited,
    priority: 3,
    kind: Kind::Unary,
    rate: None,
    in_flight: bounds(4.0, 1.0, 8.0),
    bytes_per_second: None,
    queue: queue(64, seconds(2)),
    per_client: PerClientLimits { rate: None, in_flight: None },
    awaits: false,
    coalesce: None,
    slo: slo(0.95, seconds(1)),
    timeout: Some(seconds(60)),
    law: INTEGRAL,
    signals: &[],
    backlog: None,
    starts_within: seconds(25),
    about: "",
};

/// Held connections: a fixed cap, no wait, no timeout.
const HELD: ClassDefault = ClassDefault {
    kind: Kind::Held,
    queue: queue(0, Duration::ZERO),
    slo: slo(0.95, seconds(10)),
    timeout: None,
    law: Law::Static,
    ..UNARY
};

/// Views that the browser asks for again every 4 s: last in line, shared, 1 s old at most.
const VIEW: ClassDefault =
    ClassDefault { priority: 2, coalesce: Some(Coalesce { ttl: seconds(1) }), ..UNARY };

/// Let through, or refused outright.
const UNLIMITED: ClassDefault = ClassDefault {
    treatment: Treatment::Exempt,
    priority: 9,
    in_flight: UNUSED,
    queue: queue(0, Duration::ZERO),
    law: Law::Static,
    ..UNARY
};

/// Submissions. Ray accepts all of them and drains about one a second per two cores; the
/// work shows only afterwards, in the backlog. 4/s after 16 at once is what a healthy head
/// takes without a trace, a loop of `submit` asks for no more, and the backlog moves it
/// from there. The SDK has no timeout and no retry: it may wait five minutes, while a KubeRay
/// operator that leaves after 2 s takes its place in the queue with it.
const SUBMIT: ClassDefault = ClassDefault {
    priority: 7,
    rate: Some(RateBounds { per_second: bounds(4.0, 0.2, 64.0), burst: 16 }),
    in_flight: bounds(8.0, 2.0, 16.0),
    // As many as come in five minutes at seven a second: a fan-out is the longest flow, and gives way first.
    queue: queue(2048, seconds(300)),
    slo: slo(0.95, seconds(2)),
    timeout: Some(seconds(120)),
    signals: &["submission_backlog", "pending_tasks", "gcs_latency", "head_cpu", "head_memory"],
    backlog: Some("submission_backlog"),
    ..UNARY
};

/// Stopping and deleting. It frees the head, so it is served first and its limit hardly
/// falls. 120 s, because `stop` on a sick head is slow and still right.
const CONTROL: ClassDefault = ClassDefault {
    priority: 9,
    in_flight: bounds(16.0, 8.0, 24.0),
    queue: queue(64, Duration::from_millis(1500)),
    slo: slo(0.99, seconds(1)),
    timeout: Some(seconds(120)),
    ..UNARY
};

/// Whole log files: read into memory three times over (a 60 MB log costs 600 MB), so two
/// at once, and the others wait. Four at once moved 57 MB/s and made a job's status wait
/// 0.8 s: at 50 MB/s the parent loop, which copies every byte, has time for the others.
const LOGS: ClassDefault = ClassDefault {
    priority: 2,
    in_flight: bounds(2.0, 1.0, 4.0),
    bytes_per_second: Some(50e6),
    queue: queue(32, seconds(15)),
    slo: slo(0.95, seconds(10)),
    timeout: Some(seconds(120)),
    // The agent reads the file.
    awaits: true,
    ..UNARY
};

/// Tails and follow streams. Ray does not notice that a reader left, so a slot is gone
/// until the log's next line; at 100 the module hangs. Half of them for one client at most,
/// since a held slot cannot be taken back for the next client.
const TAIL: ClassDefault = ClassDefault {
    in_flight: Bounds::fixed(48.0),
    per_client: PerClientLimits { rate: None, in_flight: Some(24) },
    ..HELD
};

/// Every class, `job-*` first, as `rayguard limits` prints them.
pub const CLASSES: &[ClassDefault] = &[
    // JobHead.
    ClassDefault { name: "job-control", module: "JobHead", about: "stop and delete jobs", ..CONTROL },
    ClassDefault {
        name: "job-status",
        module: "JobHead",
        about: "one job's state, whether a package is known: what operators poll with a 2 s timeout",
        priority: 8,
        in_flight: bounds(16.0, 4.0, 24.0),
        queue: queue(128, Duration::from_millis(1500)),
        slo: slo(0.99, seconds(1)),
        ..UNARY
    },
    ClassDefault { name: "job-submit", module: "JobHead", about: "start jobs", ..SUBMIT },
    ClassDefault {
        name: "packages",
        module: "JobHead",
        about: "uploads of working directories, up to 100 MiB each, kept in the GCS's memory",
        // Part of a submission. A slow uplink holds its permit for long, so waits are long too.
        priority: 6,
        in_flight: bounds(2.0, 1.0, 4.0),
        queue: queue(32, seconds(30)),
        slo: slo(0.95, seconds(20)),
        timeout: Some(seconds(300)),
        ..UNARY
    },
    ClassDefault {
        name: "job-list",
        module: "JobHead",
        about: "the list of all jobs ever: 19 ms at 119 jobs, 80 s seen; shared between equal clients",
        priority: 4,
        in_flight: bounds(4.0, 1.0, 12.0),
        // Lists of many jobs wait for each other's seconds, and those of a storm of submissions for its starts: a
        // client would rather have its list late than be refused.
        queue: queue(64, seconds(20)),
        coalesce: Some(Coalesce { ttl: seconds(1) }),
        ..UNARY
    },
    ClassDefault { name: "job-logs", module: "JobHead", about: "a job's whole log in one answer", ..LOGS },
    ClassDefault {
        name: "log-tail",
        module: "JobHead",
        about: "a job's log as it grows (WebSocket); one tail at Ray for all who read the same",
        coalesce: Some(Coalesce { ttl: Duration::ZERO }),
        ..TAIL
    },
    // StateHead.
    ClassDefault {
        name: "state-light",
        module: "StateHead",
        about: "lists answered by the GCS: actors, nodes, workers, placement groups, jobs",
        priority: 5,
        in_flight: bounds(8.0, 2.0, 16.0),
        queue: queue(64, seconds(10)),
        coalesce: Some(Coalesce { ttl: Duration::ZERO }),
        ..UNARY
    },
    ClassDefault {
        name: "state-heavy",
        module: "StateHead",
        about: "tasks, objects and what asks every node: up to 10,000 rows parsed in Python, whatever the limit",
        // 6.3/s alone, 6.6/s at 16 at once: the second keeps the loop fed, more only wait inside.
        priority: 3,
        in_flight: bounds(2.0, 1.0, 4.0),
        queue: queue(32, seconds(20)),
        coalesce: Some(Coalesce { ttl: seconds(1) }),
        slo: slo(0.95, seconds(5)),
        ..UNARY
    },
    ClassDefault {
        name: "state-logs",
        module: "StateHead",
        about: "log files and their list, by node",
        ..LOGS
    },
    ClassDefault {
        name: "log-stream",
        module: "StateHead",
        about: "a log file followed (chunked); Ray answers 429 to the whole State API at 100",
        ..TAIL
    },
    // The dashboard's other modules.
    ClassDefault {
        name: "views",
        module: "NodeHead",
        about: "nodes and actors as the dashboard shows them",
        in_flight: bounds(8.0, 2.0, 32.0),
        ..VIEW
    },
    ClassDefault {
        name: "views-report",
        module: "ReportHead",
        about: "cluster status",
        in_flight: bounds(8.0, 2.0, 24.0),
        ..VIEW
    },
    ClassDefault { name: "views-event", module: "EventHead", about: "events", ..VIEW },
    ClassDefault {
        name: "views-metrics",
        module: "MetricsHead",
        about: "whether Grafana and Prometheus answer",
        awaits: true,
        ..VIEW
    },
    ClassDefault { name: "views-data", module: "DataHead", about: "Ray Data's page", ..VIEW },
    ClassDefault { name: "views-train", module: "TrainHead", about: "Ray Train's page", ..VIEW },
    ClassDefault {
        name: "views-dashboard",
        module: "Dashboard",
        about: "small facts answered by the parent loop itself",
        in_flight: bounds(8.0, 2.0, 32.0),
        ..VIEW
    },
    ClassDefault {
        name: "profiling",
        module: "ReportHead",
        about: "py-spy and memray on a node, a minute and more each",
        priority: 1,
        in_flight: Bounds::fixed(1.0),
        queue: queue(8, seconds(30)),
        slo: slo(0.95, seconds(120)),
        timeout: Some(seconds(600)),
        awaits: true,
        law: Law::Static,
        ..UNARY
    },
    ClassDefault {
        name: "serve-admin",
        module: "ServeHead",
        about: "read and change Serve applications; operators poll it with a 2 s timeout",
        priority: 8,
        in_flight: bounds(4.0, 2.0, 8.0),
        queue: queue(64, Duration::from_millis(1500)),
        timeout: Some(seconds(120)),
        ..UNARY
    },
    ClassDefault {
        name: "reports",
        module: "EventHead",
        about: "events posted by Ray's own agents; a shed event is lost",
        priority: 7,
        in_flight: bounds(16.0, 8.0, 24.0),
        queue: queue(256, seconds(5)),
        ..UNARY
    },
    ClassDefault {
        name: "reports-task",
        module: "TaskEventsHead",
        about: "task events posted by Ray's own agents; a shed event is lost",
        priority: 7,
        in_flight: bounds(16.0, 8.0, 24.0),
        queue: queue(256, seconds(5)),
        ..UNARY
    },
    ClassDefault {
        name: "task-query",
        module: "TaskEventsHead",
        about: "task events read back, as heavy as the tasks of the State API",
        in_flight: bounds(2.0, 1.0, 4.0),
        queue: queue(32, seconds(20)),
        slo: slo(0.95, seconds(5)),
        ..UNARY
    },
    // The agent of a node, for those who put a proxy before it too.
    ClassDefault {
        name: "agent-control",
        module: "JobAgent",
        about: "stop and delete jobs at an agent",
        ..CONTROL
    },
    ClassDefault { name: "agent-submit", module: "JobAgent", about: "start jobs at an agent", ..SUBMIT },
    ClassDefault { name: "agent-logs", module: "JobAgent", about: "a job's whole log from an agent", ..LOGS },
    ClassDefault {
        name: "agent-tail",
        module: "JobAgent",
        about: "a job's log from an agent as it grows",
        ..TAIL
    },
    // Ray Client. A new session asks ClusterInfo first and takes a refusal well (it comes
    // again after 5 and 15 s); refused at Datapath it dies at once, and cut there it comes
    // back 570 times a second. So newcomers are paced at ClusterInfo, where they may wait
    // (their ping allows 5 s), and the sessions have caps of their own that pacing should
    // keep out of reach. ClusterInfo also serves `ray.nodes()` of live sessions: the proxy
    // should let it pass when the client_id holds a session, and the rate is generous for
    // the case that it cannot tell.
    ClassDefault {
        name: "ray-client",
        module: "RayClient",
        about: "new Ray Client sessions: each becomes a server process on the head",
        priority: 6,
        rate: Some(RateBounds { per_second: bounds(10.0, 0.5, 50.0), burst: 64 }),
        // In flight from its first question until its process has started: about a second of a core each.
        in_flight: bounds(4.0, 1.0, 16.0),
        queue: queue(64, seconds(4)),
        slo: slo(0.95, seconds(5)),
        timeout: Some(seconds(30)),
        signals: &["head_memory", "head_cpu", "gcs_latency"],
        ..UNARY
    },
    // 25 to 30 sessions work, 40 sometimes hang, 50 always: the proxier has 100 threads and
    // a session holds two, with a third while it waits for an object.
    ClassDefault {
        name: "ray-client-session",
        module: "RayClient",
        about: "Ray Client sessions (Datapath)",
        priority: 7,
        in_flight: Bounds::fixed(32.0),
        ..HELD
    },
    ClassDefault {
        name: "ray-client-resume",
        module: "RayClient",
        about: "Ray Client sessions that come back within their 30 s of grace; newcomers cannot take their room",
        priority: 9,
        in_flight: Bounds::fixed(32.0),
        ..HELD
    },
    // As many as sessions of both kinds, so that no session that got in lacks its log.
    ClassDefault {
        name: "ray-client-logs",
        module: "RayClient",
        about: "the log stream beside each session",
        priority: 7,
        in_flight: Bounds::fixed(64.0),
        ..HELD
    },
    ClassDefault {
        name: "ray-client-call",
        module: "RayClient",
        about: "calls of open sessions; shedding one would break a running program",
        ..UNLIMITED
    },
    // Serve. Nothing is known of the users' applications: an answer may take 5 ms or a
    // minute and be right. So its own past moves it, and beyond that only an objective of 30 s.
    ClassDefault {
        name: "serve",
        module: "Serve",
        about: "the users' applications; give routes their own class to give them an SLO",
        priority: 5,
        in_flight: bounds(256.0, 32.0, 2048.0),
        // A caller waits as long as its HTTP client lets it; most give up after a minute. A burst that is refused after
        // a second comes back as a retry.
        queue: queue(2048, seconds(60)),
        slo: slo(0.95, seconds(30)),
        timeout: None,
        law: Law::Gradient { tolerance: 1.5, smoothing: 0.2 },
        ..UNARY
    },
    // What a browser asks before it lets a page call another origin. An application answers it at once, and
    // a page whose preflight is refused is told nothing at all: so it waits behind no call. It has a cap of its
    // own, since an application that does its work whatever the method could be flooded by it.
    ClassDefault {
        name: "serve-preflight",
        module: "Serve",
        about: "CORS preflights of web pages that call the users' applications",
        priority: 9,
        in_flight: Bounds::fixed(1024.0),
        ..HELD
    },
    // All the rest.
    ClassDefault {
        name: "health",
        module: "Dashboard",
        about: "health, version, sign-in and static files: must work when nothing else does",
        ..UNLIMITED
    },
    ClassDefault {
        name: "blocked",
        module: "Dashboard",
        about: "what pins a process of Ray's: its test routes, and a HEAD of a log that is streamed",
        treatment: Treatment::Blocked,
        priority: 0,
        ..UNLIMITED
    },
    ClassDefault {
        name: "other",
        module: "Dashboard",
        about: "what Ray 2.60 does not know: a 404 from the parent loop, or a newer Ray's route",
        priority: 1,
        in_flight: bounds(8.0, 2.0, 32.0),
        timeout: Some(seconds(120)),
        awaits: true,
        ..UNARY
    },
];

const fn route(method: &'static str, path: &'static str, class: &'static str, module: &'static str) -> Route {
    Route { surface: Surface::Dashboard, method, path, header: None, class, module }
}
const fn call(path: &'static str, class: &'static str) -> Route {
    Route { surface: Surface::RayClient, method: "POST", path, header: None, class, module: "RayClient" }
}
/// The header that makes an `OPTIONS` a preflight, whatever it says.
pub(crate) const PREFLIGHT: &str = "access-control-request-method";

const fn serve(path: &'static str, class: &'static str) -> Route {
    Route { surface: Surface::Serve, method: "GET", path, header: None, class, module: "Serve" }
}

/// Every route of Ray 2.60, by module, and those that only earlier versions had.
pub const ROUTES: &[Route] = &[
    // The parent loop.
    route("GET", "/", "health", "Dashboard"),
    route("GET", "/favicon.ico", "health", "Dashboard"),
    route("GET", "/static/{*file}", "health", "Dashboard"),
    route("GET", "/api/authentication_mode", "health", "Dashboard"),
    route("POST", "/api/authenticate", "health", "Dashboard"),
    route("GET", "/timezone", "views-dashboard", "Dashboard"),
    route("GET", "/usage_stats_enabled", "views-dashboard", "Dashboard"),
    route("GET", "/cluster_id", "views-dashboard", "Dashboard"),
    route("GET", "/api/v0/platform_events", "views-dashboard", "Dashboard"),
    // JobHead.
    route("GET", "/api/version", "health", "JobHead"),
    route("POST", "/api/jobs/", "job-submit", "JobHead"),
    route("GET", "/api/jobs/", "job-list", "JobHead"),
    route("GET", "/api/jobs/{job_or_submission_id}", "job-status", "JobHead"),
    route("DELETE", "/api/jobs/{job_or_submission_id}", "job-control", "JobHead"),
    route("POST", "/api/jobs/{job_or_submission_id}/stop", "job-control", "JobHead"),
    route("GET", "/api/jobs/{job_or_submission_id}/logs", "job-logs", "JobHead"),
    route("GET", "/api/jobs/{job_or_submission_id}/logs/tail", "log-tail", "JobHead"),
    route("GET", "/api/packages/{protocol}/{package_name}", "job-status", "JobHead"),
    route("PUT", "/api/packages/{protocol}/{package_name}", "packages", "JobHead"),
    route("GET", "/api/component_activities", "job-list", "JobHead"),
    // Of versions before 2.53, where all modules are one process.
    route("GET", "/api/actors/kill", "job-control", "JobHead"),
    route("GET", "/api/data/datasets", "views-data", "DataHead"),
    route("GET", "/api/train/runs", "views-train", "TrainHead"),
    route("GET", "/internal/node_module", "blocked", "NodeHead"),
    // StateHead.
    route("GET", "/api/v0/actors", "state-light", "StateHead"),
    route("GET", "/api/v0/actors/summarize", "state-light", "StateHead"),
    route("GET", "/api/v0/jobs", "state-light", "StateHead"),
    route("GET", "/api/v0/nodes", "state-light", "StateHead"),
    route("GET", "/api/v0/placement_groups", "state-light", "StateHead"),
    route("GET", "/api/v0/workers", "state-light", "StateHead"),
    route("GET", "/api/v0/runtime_env_redaction", "state-light", "StateHead"),
    route("GET", "/api/v0/tasks", "state-heavy", "StateHead"),
    route("GET", "/api/v0/tasks/summarize", "state-heavy", "StateHead"),
    route("GET", "/api/v0/tasks/timeline", "state-heavy", "StateHead"),
    route("GET", "/api/v0/objects", "state-heavy", "StateHead"),
    route("GET", "/api/v0/objects/summarize", "state-heavy", "StateHead"),
    route("GET", "/api/v0/runtime_envs", "state-heavy", "StateHead"),
    route("GET", "/api/v0/logs", "state-logs", "StateHead"),
    route("GET", "/api/v0/logs/stream", "log-stream", "StateHead"),
    route("GET", "/api/v0/logs/{media_type}", "state-logs", "StateHead"),
    route("GET", "/api/v0/delay/{delay_s}", "blocked", "StateHead"),
    // Ray 2.60 passes a streamed answer on until its body ends, and a HEAD's never does: the dashboard's loop turns
    // over it for good and answers no client any more.
    route("HEAD", "/api/v0/logs/{media_type}", "blocked", "StateHead"),
    // NodeHead.
    route("GET", "/nodes", "views", "NodeHead"),
    route("GET", "/nodes/{node_id}", "views", "NodeHead"),
    route("GET", "/logical/actors", "views", "NodeHead"),
    route("GET", "/logical/actors/{actor_id}", "views", "NodeHead"),
    route("GET", "/test/dump", "blocked", "NodeHead"),
    // ReportHead.
    route("GET", "/api/gcs_healthz", "health", "ReportHead"),
    route("GET", "/api/prometheus/sd", "health", "ReportHead"),
    route("GET", "/api/cluster_status", "views-report", "ReportHead"),
    route("GET", "/api/v0/cluster_metadata", "views-report", "ReportHead"),
    route("GET", "/api/profiling_enabled", "views-report", "ReportHead"),
    route("GET", "/task/traceback", "profiling", "ReportHead"),
    route("GET", "/task/cpu_profile", "profiling", "ReportHead"),
    route("GET", "/worker/traceback", "profiling", "ReportHead"),
    route("GET", "/worker/cpu_profile", "profiling", "ReportHead"),
    route("GET", "/worker/gpu_profile", "profiling", "ReportHead"),
    route("GET", "/worker/jax_profile", "profiling", "ReportHead"),
    route("GET", "/memory_profile", "profiling", "ReportHead"),
    // ServeHead.
    route("GET", "/api/ray/version", "health", "ServeHead"),
    route("GET", "/api/serve/applications/", "serve-admin", "ServeHead"),
    route("PUT", "/api/serve/applications/", "serve-admin", "ServeHead"),
    route("DELETE", "/api/serve/applications/", "serve-admin", "ServeHead"),
    route(
        "POST",
        "/api/v1/applications/{application_name}/deployments/{deployment_name}/scale",
        "serve-admin",
        "ServeHead",
    ),
    // The small modules.
    route("POST", "/report_events", "reports", "EventHead"),
    route("GET", "/events", "views-event", "EventHead"),
    route("GET", "/api/v0/cluster_events", "views-event", "EventHead"),
    route("POST", "/api/task_events", "reports-task", "TaskEventsHead"),
    route("POST", "/api/task_events/query", "task-query", "TaskEventsHead"),
    route("GET", "/api/grafana_health", "views-metrics", "MetricsHead"),
    route("GET", "/api/prometheus_health", "views-metrics", "MetricsHead"),
    route("GET", "/api/data/datasets/{job_id}", "views-data", "DataHead"),
    route("GET", "/api/train/v2/runs", "views-train", "TrainHead"),
    route("GET", "/api/train/v2/runs/v1", "views-train", "TrainHead"),
    // A node's agent.
    route("GET", "/api/local_raylet_healthz", "health", "JobAgent"),
    route("GET", "/api/healthz", "health", "JobAgent"),
    route("POST", "/api/job_agent/jobs/", "agent-submit", "JobAgent"),
    route("DELETE", "/api/job_agent/jobs/{job_or_submission_id}", "agent-control", "JobAgent"),
    route("POST", "/api/job_agent/jobs/{job_or_submission_id}/stop", "agent-control", "JobAgent"),
    route("GET", "/api/job_agent/jobs/{job_or_submission_id}/logs", "agent-logs", "JobAgent"),
    route("GET", "/api/job_agent/jobs/{job_or_submission_id}/logs/tail", "agent-tail", "JobAgent"),
    // Ray Client.
    call("/ray.rpc.RayletDriver/ClusterInfo", "ray-client"),
    call("/ray.rpc.RayletDriver/{method}", "ray-client-call"),
    Route {
        header: Some(("reconnecting", "True")),
        ..call("/ray.rpc.RayletDataStreamer/Datapath", "ray-client-resume")
    },
    call("/ray.rpc.RayletDataStreamer/Datapath", "ray-client-session"),
    call("/ray.rpc.RayletLogStreamer/Logstream", "ray-client-logs"),
    // Serve.
    serve("/-/healthz", "health"),
    serve("/-/routes", "health"),
    Route { method: "OPTIONS", header: Some((PREFLIGHT, "")), ..serve("/{*rest}", "serve-preflight") },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str) -> &'static ClassDefault {
        CLASSES.iter().find(|class| class.name == name).unwrap()
    }

    #[test]
    fn names_are_unique_and_resolve() {
        for (i, this) in CLASSES.iter().enumerate() {
            assert!(CLASSES[i + 1..].iter().all(|other| other.name != this.name), "{} twice", this.name);
            assert!(
                MODULES.iter().any(|module| module.name == this.module),
                "{}: {}",
                this.name,
                this.module
            );
        }
        for (i, this) in MODULES.iter().enumerate() {
            assert!(MODULES[i + 1..].iter().all(|other| other.name != this.name), "{} twice", this.name);
        }
        for surface in Surface::ALL {
            class(surface.unlisted_class());
        }
        assert!(CLASSES.len() <= 256 && MODULES.len() <= 256, "ids are one byte");
    }

    #[test]
    fn a_route_lands_on_its_classs_module_unless_nothing_is_counted() {
        for route in ROUTES {
            let class = class(route.class);
            assert!(
                class.module == route.module || class.treatment != Treatment::Limited,
                "{} {}: class {} counts against {}, the work is {}'s",
                route.method,
                route.path,
                class.name,
                class.module,
                route.module
            );
        }
    }

    #[test]
    fn no_class_is_without_a_route() {
        for class in CLASSES {
            let used = ROUTES.iter().any(|route| route.class == class.name)
                || Surface::ALL.iter().any(|surface| surface.unlisted_class() == class.name);
            assert!(used, "{}", class.name);
        }
    }

    #[test]
    fn every_range_is_a_range() {
        let check = |name: &str, b: Bounds| {
            assert!(0.0 < b.min && b.min <= b.initial && b.initial <= b.max, "{name}");
        };
        for module in MODULES {
            check(module.name, module.in_flight);
        }
        for class in CLASSES {
            check(class.name, class.in_flight);
            assert!(class.priority <= 9, "{}", class.name);
            assert!((0.5..=0.999).contains(&class.slo.quantile), "{}", class.name);
            if let Some(rate) = class.rate {
                check(class.name, rate.per_second);
                assert!(rate.burst >= 1, "{}", class.name);
            }
        }
    }

    #[test]
    fn no_module_can_be_wedged_by_what_is_let_in() {
        for module in MODULES.iter().filter(|module| !["RayClient", "Serve"].contains(&module.name)) {
            let held: f64 = CLASSES
                .iter()
                .filter(|class| class.module == module.name && class.kind == Kind::Held)
                .map(|class| class.in_flight.max)
                .sum();
            assert!(held + module.in_flight.max <= CONNECTIONS_MAX, "{}: {held} held", module.name);
        }
    }

    #[test]
    fn a_full_set_of_ray_client_sessions_leaves_threads_for_their_calls() {
        // Honest sessions are new or resumed, not both: 32 pairs of streams, 24 pings, 12 spare.
        let sessions = class("ray-client-session").in_flight.max;
        let pings = class("ray-client").in_flight.max;
        assert!(2.0 * sessions + pings <= 90.0);
    }

    #[test]
    fn a_slow_class_leaves_its_module_room_for_the_others() {
        for class in
            CLASSES.iter().filter(|class| class.kind == Kind::Unary && class.treatment == Treatment::Limited)
        {
            let module = MODULES.iter().find(|module| module.name == class.module).unwrap();
            assert!(class.in_flight.max <= module.in_flight.max, "{}", class.name);
            // No law moves a module's limit: where requests are done side by side it must not stand in the class's way.
            assert!(
                module.work.is_some() || module.in_flight.initial >= class.in_flight.max,
                "{}",
                class.name
            );
            if ["job-list", "job-logs", "packages", "state-heavy", "state-logs"].contains(&class.name) {
                assert!(class.in_flight.initial <= module.in_flight.initial / 2.0, "{}", class.name);
            }
        }
    }

    #[test]
    fn nothing_waits_longer_than_its_client() {
        // KubeRay's client gives up after 2 s, the state API's after 24.
        for name in ["job-control", "job-status", "serve-admin"] {
            assert!(class(name).queue.wait_max < seconds(2), "{name}");
        }
        // A tab and Ray's SDK wait for a list of jobs without a bound.
        for name in ["job-list", "state-light", "state-heavy", "state-logs"] {
            assert!(class(name).queue.wait_max <= seconds(20), "{name}");
        }
        assert!(class("ray-client").queue.wait_max < seconds(5));
    }

    #[test]
    fn held_classes_neither_wait_nor_time_out_nor_move() {
        for class in CLASSES.iter().filter(|class| class.kind == Kind::Held) {
            assert_eq!(class.queue.len_max, 0, "{}", class.name);
            assert_eq!(class.timeout, None, "{}", class.name);
            assert!(!class.in_flight.moves() && class.law == Law::Static, "{}", class.name);
        }
    }

    #[test]
    fn stopping_work_goes_before_all_other_work() {
        for other in
            CLASSES.iter().filter(|other| other.treatment == Treatment::Limited && other.module == "JobHead")
        {
            assert!(
                other.name == "job-control" || other.priority < class("job-control").priority,
                "{}",
                other.name
            );
        }
    }

    #[test]
    fn the_policy_gets_every_class_and_module_in_order() {
        let classes = classes(|name| (name == "head_cpu").then_some(SignalId(7)));
        let modules = modules();
        assert_eq!(classes.len(), CLASSES.len());
        for (made, from) in classes.iter().zip(CLASSES) {
            assert_eq!(&*made.name, from.name);
            assert_eq!(&*modules[made.module.index()].name, from.module);
        }
        let submit = classes.iter().find(|class| &*class.name == "job-submit").unwrap();
        assert_eq!(submit.signals, [SignalId(7)], "unknown signals are left out");
    }
}
