//! What there is to read on a Ray head, and when it is too much, before anyone has tuned
//! anything.
//!
//! Plain data; `config` turns it into [`Signal`]s and lays the operator's file over it. Names
//! and labels are those of the own pages of Ray 2.9 to 2.60 (`tests/fixtures/ray/scrapes/`; a test reads
//! every signal off them), with the other names each reading has or had. Where a version does not say
//! `IsHeadNode`, the head's page stands for it (`exposition.rs`). Targets are where a
//! measured head began to hurt its other clients, not where it was busy: a healthy head stays
//! below all of them, so none of them sheds a thing there.
//!
//! **A signal may lower a limit only for what the class can have caused** (law 1). The node's CPU is
//! full on a head whose users compute there, and then nothing that is asked of the API is to blame: what
//! moves limits is the share of the cores that the processes behind the API use (`head_cpu`), and the
//! node's own figure (`node_cpu`) is shown and moves nothing. Whatever else a reading may have been caused
//! by is found out by trial (`core/control/trial.rs`).
//!
//! Three readings are not what their names promise, and the sources are chosen accordingly:
//!
//! - **`ray_gcs_actors_count{State="Registered"}` counts living actors too.** A head with 50
//!   healthy actors says 50 for ever. The backlog of submissions is `ray_actors` of the
//!   `JobSupervisor` that the GCS has not created yet; `Registered` stands in only as long as
//!   there is no `ray_actors` family, which is when there are no actors.
//! - **`CreateActor`, `GcsSubscriberPoll` and `WaitPlacementGroupUntilReady` wait by design.**
//!   On an idle head all of their calls are "slow", so they are left out of the GCS's shares.
//! - **`ray_io_context_event_loop_lag_ms` stays 0 through every overload**, `ray_running_jobs`
//!   and `ray_finished_jobs_total` do not count what they say: not used.

use crate::policy::{Derivation, How, OnStale, Signal, SignalSource};
use crate::signal::selector;
use std::time::Duration;

/// A signal and its defaults. Fields as in [`Signal`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SignalDefault {
    /// The label in metrics, logs and config.
    pub name: &'static str,
    /// What it tells, for people.
    pub about: &'static str,
    /// The signal's unit.
    pub unit: &'static str,
    /// The reading at which pressure is 1.
    pub target: f64,
    /// A reading older than this is stale.
    pub stale_after: Duration,
    /// What a stale signal does.
    pub on_stale: OnStale,
    /// It counts work that requests leave behind.
    pub backlog: bool,
    /// So far ahead it is read, zero for not at all.
    pub forecast: Duration,
    /// In order of preference.
    pub sources: &'static [Source],
}

/// One way to obtain a signal.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Source {
    /// The active probe.
    Probe,
    /// From a page.
    Page {
        /// Which samples, as [`selector`] reads it; for histograms without `_bucket`.
        select: &'static str,
        /// What is made of them.
        make: Make,
        /// Multiplies the result.
        scale: f64,
    },
}

/// As [`How`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Make {
    /// Sum.
    Sum,
    /// The largest.
    Max,
    /// Share of new observations above.
    ShareAbove(f64),
    /// Upper bound of a quantile.
    Quantile(f64),
    /// Divided by the sum of these.
    RatioTo(&'static str),
}

use Make::{Max, Quantile, RatioTo, ShareAbove, Sum};

/// Ray reports node and process readings each 5 s: two of them may be missed.
const NODE_STALE: Duration = Duration::from_secs(20);
/// Raylet and GCS push each 10 s, and are scraped up to 5 s later: two may be missed.
const PUSHED_STALE: Duration = Duration::from_secs(45);
/// The probe goes out each second or so.
const PROBE_STALE: Duration = Duration::from_secs(10);

/// What is gathered answers a rate by its slope, and its level follows much later: it is judged by where it will be
/// when a cut can have told. A cluster of 60 slots works 10,000 short tasks off in about three minutes.
/// (And a head that has no memory left is restarted; a job holds some of it for as long as it runs.)
const FORECAST: Duration = Duration::from_secs(180);

/// The processes that serve Ray's own API. They run on the head alone, as raylets and agents do not.
const CONTROL_PLANE_CPU: &str = concat!(
    r#"ray_component_cpu_percentage{Component=~"gcs|gcs_server|dashboard|dashboard_JobHead|dashboard_StateHead|"#,
    "dashboard_NodeHead|dashboard_ReportHead|dashboard_ServeHead|dashboard_EventHead|dashboard_TaskEventsHead|",
    r#"dashboard_MetricsHead|dashboard_DataHead|dashboard_TrainHead"}"#,
);
/// Those that do not wait by design. `InternalPubSubGcsService` is the name before the pub-sub services were split.
const GCS_CALLS: &str = r#"ray_grpc_server_req_process_time_ms{
    Component="gcs_server",
    Method!="ActorInfoGcsService.grpc_server.CreateActor",
    Method!="ControlPlanePubSubGcsService.grpc_server.GcsSubscriberPoll",
    Method!="ObservabilityPubSubService.grpc_server.GcsSubscriberPoll",
    Method!="InternalPubSubGcsService.grpc_server.GcsSubscriberPoll",
    Method!="PlacementGroupInfoGcsService.grpc_server.WaitPlacementGroupUntilReady",
}"#;

const fn page(select: &'static str, make: Make, scale: f64) -> Source {
    Source::Page { select, make, scale }
}

/// What most signals have in common.
const SIGNAL: SignalDefault = SignalDefault {
    name: "",
    about: "",
    unit: "",
    target: 0.0,
    stale_after: NODE_STALE,
    on_stale: OnStale::Hold,
    backlog: false,
    forecast: Duration::ZERO,
    sources: &[],
};

/// A module's CPU, in percent of one core; a module is one process that cannot use more.
macro_rules! module_cpu {
    ($name:literal, $component:literal) => {
        SignalDefault {
            name: $name,
            about: concat!(
                "CPU of ",
                $component,
                "; one busy module is only 100/N % of the CPU of a node with N cores, ",
                "so node_cpu does not show it"
            ),
            unit: "%",
            target: 90.0,
            sources: &[page(
                concat!("ray_component_cpu_percentage{Component=\"", $component, "\"}"),
                Max,
                1.0,
            )],
            ..SIGNAL
        }
    };
}

/// Every signal that is built in.
pub const SIGNALS: &[SignalDefault] = &[
    SignalDefault {
        name: "gcs_latency",
        about: "latency of /api/gcs_healthz: dashboard loop, ReportHead and GCS in one call",
        unit: "ms",
        target: 250.0,
        stale_after: PROBE_STALE,
        sources: &[Source::Probe, page(GCS_CALLS, Quantile(0.99), 1.0)],
        ..SIGNAL
    },
    SignalDefault {
        name: "gcs_slow_share",
        about: "share of GCS calls that took more than 10 ms",
        unit: "%",
        target: 20.0,
        stale_after: PUSHED_STALE,
        sources: &[page(GCS_CALLS, ShareAbove(10.0), 100.0)],
        ..SIGNAL
    },
    SignalDefault {
        name: "gcs_very_slow_share",
        about: "share of GCS calls that took more than 100 ms",
        unit: "%",
        target: 5.0,
        stale_after: PUSHED_STALE,
        sources: &[page(GCS_CALLS, ShareAbove(100.0), 100.0)],
        ..SIGNAL
    },
    SignalDefault {
        name: "head_cpu",
        about: "share of the head's cores that GCS and dashboard use; the users' tasks do not count",
        unit: "%",
        // Of two cores, one and a third: what is left is the raylet's and the agents'.
        target: 65.0,
        sources: &[page(CONTROL_PLANE_CPU, RatioTo(r#"ray_node_cpu_count{IsHeadNode="true"}"#), 1.0)],
        ..SIGNAL
    },
    SignalDefault {
        name: "node_cpu",
        about: "CPU of the head node, all cores together, the users' tasks included; moves no limit",
        unit: "%",
        target: 90.0,
        sources: &[
            page(r#"ray_node_cpu_utilization{IsHeadNode="true"}"#, Max, 1.0),
            page(r#"ray_node_cpu_utilization{RayNodeType="head"}"#, Max, 1.0),
        ],
        ..SIGNAL
    },
    SignalDefault {
        name: "pending_tasks",
        about: "tasks that wait for a node or their arguments, all jobs and nodes together",
        unit: "tasks",
        target: 10_000.0,
        stale_after: PUSHED_STALE,
        forecast: FORECAST,
        sources: &[
            page(r#"ray_tasks{State=~"PENDING_.*"}"#, Sum, 1.0),
            page(
                r#"ray_scheduler_unscheduleable_tasks{
                    Reason=~"WaitingForResources|WaitingForRemoteResources|WaitingForWorkers|WaitingForPlasmaMemory"
                }"#,
                Sum,
                1.0,
            ),
        ],
        ..SIGNAL
    },
    SignalDefault {
        name: "submission_backlog",
        about: "submitted jobs whose supervisor has not started; latency shows them too late",
        unit: "jobs",
        target: 20.0,
        stale_after: PUSHED_STALE,
        backlog: true,
        sources: &[
            page(
                r#"ray_actors{
                    Name="JobSupervisor",
                    Source="gcs",
                    State=~"DEPENDENCIES_UNREADY|PENDING_CREATION|RESTARTING"
                }"#,
                Sum,
                1.0,
            ),
            page(r#"ray_gcs_actors_count{State="Registered"}"#, Max, 1.0),
        ],
        ..SIGNAL
    },
    SignalDefault {
        name: "workers_waiting",
        about: "tasks that wait for a worker process to start, on the worst node",
        unit: "tasks",
        target: 30.0,
        stale_after: PUSHED_STALE,
        sources: &[page(r#"ray_scheduler_unscheduleable_tasks{Reason="WaitingForWorkers"}"#, Max, 1.0)],
        ..SIGNAL
    },
    SignalDefault {
        name: "dashboard_loop_tasks",
        about: "tasks on the dashboard's event loop; idle keep-alive connections count too",
        unit: "tasks",
        target: 600.0,
        sources: &[page("ray_dashboard_event_loop_tasks", Max, 1.0)],
        ..SIGNAL
    },
    SignalDefault {
        name: "dashboard_loop_lag",
        about: "how late the dashboard's event loop runs what is due",
        unit: "ms",
        target: 250.0,
        sources: &[page("ray_dashboard_event_loop_lag_seconds", Max, 1000.0)],
        ..SIGNAL
    },
    SignalDefault {
        name: "dashboard_slow_share",
        about: "share of the dashboard's answers that took more than 1 s; requests that hang never count",
        unit: "%",
        target: 20.0,
        stale_after: PUSHED_STALE,
        sources: &[page(
            r#"ray_dashboard_api_requests_duration_seconds{
                endpoint!="tail_job_logs",
                endpoint!="get_logs",
                endpoint!="delayed_response"
            }"#,
            ShareAbove(1.0),
            100.0,
        )],
        ..SIGNAL
    },
    SignalDefault {
        name: "head_memory",
        about: "memory in use on the head node; package uploads and logs live there",
        unit: "%",
        target: 90.0,
        forecast: FORECAST,
        sources: &[
            page(
                r#"ray_node_mem_used{IsHeadNode="true"}"#,
                RatioTo(r#"ray_node_mem_total{IsHeadNode="true"}"#),
                100.0,
            ),
            page(
                r#"ray_node_mem_used{RayNodeType="head"}"#,
                RatioTo(r#"ray_node_mem_total{RayNodeType="head"}"#),
                100.0,
            ),
        ],
        ..SIGNAL
    },
    SignalDefault {
        name: "gcs_memory",
        about: "resident memory of the GCS, which keeps uploaded packages",
        unit: "MiB",
        target: 4096.0,
        sources: &[
            page(r#"ray_component_rss_bytes{Component="gcs"}"#, Max, 1.0 / 1_048_576.0),
            page(r#"ray_component_rss_mb{Component="gcs"}"#, Max, 1e6 / 1_048_576.0),
        ],
        ..SIGNAL
    },
    SignalDefault {
        name: "agent_memory",
        about: "resident memory of the node agent, through which whole job logs pass",
        unit: "MiB",
        target: 2048.0,
        sources: &[
            page(r#"ray_component_rss_bytes{Component="agent"}"#, Max, 1.0 / 1_048_576.0),
            page(r#"ray_component_rss_mb{Component="agent"}"#, Max, 1e6 / 1_048_576.0),
        ],
        ..SIGNAL
    },
    module_cpu!("dashboard_cpu", "dashboard"),
    module_cpu!("job_head_cpu", "dashboard_JobHead"),
    module_cpu!("state_head_cpu", "dashboard_StateHead"),
    module_cpu!("node_head_cpu", "dashboard_NodeHead"),
    module_cpu!("report_head_cpu", "dashboard_ReportHead"),
    module_cpu!("serve_head_cpu", "dashboard_ServeHead"),
    module_cpu!("event_head_cpu", "dashboard_EventHead"),
    // It runs only where Ray is told to keep task events out of the GCS.
    module_cpu!("task_events_head_cpu", "dashboard_TaskEventsHead"),
    module_cpu!("metrics_head_cpu", "dashboard_MetricsHead"),
    module_cpu!("data_head_cpu", "dashboard_DataHead"),
    module_cpu!("train_head_cpu", "dashboard_TrainHead"),
    SignalDefault {
        name: "gcs_cpu",
        about: "CPU of the GCS in percent of one core; its main loop is one thread of several",
        unit: "%",
        target: 120.0,
        sources: &[
            page(r#"ray_component_cpu_percentage{Component="gcs"}"#, Max, 1.0),
            page(r#"ray_component_cpu_percentage{Component="gcs_server"}"#, Max, 1.0),
        ],
        ..SIGNAL
    },
];

impl SignalDefault {
    /// As the policy holds it.
    pub fn signal(&self) -> Signal {
        Signal {
            name: self.name.into(),
            target: self.target,
            unit: self.unit.into(),
            stale_after: self.stale_after,
            on_stale: self.on_stale,
            backlog: self.backlog,
            forecast: self.forecast,
            sources: self.sources.iter().filter_map(Source::source).collect(),
        }
    }
}

impl Source {
    /// As the policy holds it; `None` for a selector that cannot be read, of which a test knows that there is none.
    pub fn source(&self) -> Option<SignalSource> {
        let Source::Page { select, make, scale } = *self else { return Some(SignalSource::Probe) };
        let how = match make {
            Sum => How::Sum,
            Max => How::Max,
            ShareAbove(bound) => How::ShareAbove(bound),
            Quantile(share) => How::Quantile(share),
            RatioTo(below) => How::RatioTo(selector::parse(below).ok()?),
        };
        Some(SignalSource::Scrape(Derivation { select: selector::parse(select).ok()?, how, scale }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_every_signal_has_a_source_and_a_target() {
        let names: BTreeSet<&str> = SIGNALS.iter().map(|signal| signal.name).collect();
        assert_eq!(names.len(), SIGNALS.len());
        for signal in SIGNALS {
            assert!(signal.target > 0.0 && !signal.sources.is_empty(), "{}", signal.name);
            assert!(signal.sources.iter().all(|source| source.source().is_some()), "{}", signal.name);
            assert!(!signal.about.is_empty() && !signal.unit.is_empty(), "{}", signal.name);
        }
    }

    #[test]
    fn every_signal_that_a_class_is_moved_by_is_built_in() {
        for class in crate::request::catalogue::CLASSES {
            for wanted in class.signals {
                assert!(SIGNALS.iter().any(|signal| signal.name == *wanted), "{}: {wanted}", class.name);
            }
        }
    }
}
