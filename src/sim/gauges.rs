//! What Ray exports about itself, and when: the plant's truth seen through Ray's metrics.
//!
//! Ray refreshes node and process gauges every 5 s and everything of the GCS every
//! 10 s, whatever the head does meanwhile, so a controller always acts on the past.
//! Between two refreshes every scrape reads the same numbers. The dashboard's own request
//! histogram alone is immediate, and is written at completion: a request that hangs is not
//! in it. GCS latencies exist only in decade buckets.

use rayguard_core::time::Time;
use std::time::Duration;

/// Upper bounds of the GCS histograms' buckets, in milliseconds; the last one is +Inf.
pub(crate) const GCS_BUCKETS_MS: [f64; 7] = [0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0, f64::INFINITY];

/// Upper bounds of the dashboard's request histogram, in seconds; the last one is +Inf.
pub(crate) const DASHBOARD_BUCKETS_S: [f64; 18] = [
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    60.0,
    f64::INFINITY,
];

/// How often Ray refreshes what it exports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cadence {
    /// Node and process gauges (`METRICS_RECORD_INTERVAL_S`, `REPORTER_UPDATE_INTERVAL_MS`).
    pub process: Duration,
    /// GCS and raylet metrics (`RAY_metrics_report_interval_ms`).
    pub cluster: Duration,
}

impl Cadence {
    /// Ray's defaults: 5 s and 10 s.
    pub(crate) const DEFAULT: Cadence =
        Cadence { process: Duration::from_secs(5), cluster: Duration::from_secs(10) };
    /// The three settings at their floor: 1 s and 1 s.
    pub(crate) const FAST: Cadence =
        Cadence { process: Duration::from_secs(1), cluster: Duration::from_secs(1) };
}

/// The exported numbers, as every scrape until the next refresh reads them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Gauges {
    /// When the process gauges were refreshed.
    pub process_at: Time,
    /// When the cluster gauges were refreshed.
    pub cluster_at: Time,
    /// `ray_node_cpu_utilization`, percent of all cores.
    pub node_cpu_pct: f64,
    /// `ray_component_cpu_percentage{Component="dashboard"}`, percent of one core.
    pub parent_cpu_pct: f64,
    /// The same for each module, indexed as the head's modules.
    pub module_cpu_pct: Vec<f64>,
    /// The same for the GCS.
    pub gcs_cpu_pct: f64,
    /// The same for the raylet.
    pub raylet_cpu_pct: f64,
    /// The same for the node's agent.
    pub agent_cpu_pct: f64,
    /// The same for the processes of jobs that are starting.
    pub starting_cpu_pct: f64,
    /// The same for the users' own tasks on the head.
    pub user_cpu_pct: f64,
    /// `ray_dashboard_event_loop_tasks`.
    pub event_loop_tasks: f64,
    /// `ray_dashboard_event_loop_lag_seconds`.
    pub event_loop_lag_s: f64,
    /// `ray_node_mem_used`, bytes.
    pub mem_used_bytes: f64,
    /// `ray_node_mem_total`, bytes.
    pub mem_total_bytes: f64,
    /// `ray_actors{Name="JobSupervisor",State="PENDING_CREATION"}`: submitted jobs that have not
    /// started.
    pub registered: f64,
    /// `ray_gcs_actors_count{State="Created"}`: jobs alive.
    pub created: f64,
    /// `ray_gcs_actors_count{State="Destroyed"}`.
    pub destroyed: f64,
    /// `ray_scheduler_unscheduleable_tasks{Reason="WaitingForWorkers"}`.
    pub waiting_for_workers: f64,
    /// `ray_tasks{State="PENDING_NODE_ASSIGNMENT"}`, summed.
    pub pending_tasks: f64,
    /// `ray_tasks{State="RUNNING"}`.
    pub running_tasks: f64,
    /// `ray_scheduler_unscheduleable_tasks{Reason="WaitingForResources"}`.
    pub waiting_for_resources: f64,
    /// `ray_scheduler_unscheduleable_tasks{Reason="Infeasible"}`.
    pub infeasible_tasks: f64,
    /// `ray_tasks{State="FINISHED"}`.
    pub finished_tasks: f64,
    /// Cumulative counts of GCS calls by bucket (not cumulated over buckets), without long polls.
    pub gcs_calls: [u64; GCS_BUCKETS_MS.len()],
    /// Cumulative count of the long poll `GcsSubscriberPoll`, which a reader must leave out.
    pub gcs_polls: u64,
}

/// The dashboard's request histogram of one route: immediate, at completion only.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Durations {
    /// Answers 2xx by bucket (not cumulated over buckets).
    pub ok: [u64; DASHBOARD_BUCKETS_S.len()],
    /// Their total, seconds.
    pub ok_sum_s: f64,
    /// Answers 4xx.
    pub refused: u64,
}

/// Which bucket holds `value`.
#[must_use]
pub(crate) fn bucket(bounds: &[f64], value: f64) -> usize {
    bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len() - 1)
}
