//! Which of the plant's routes a request is for, and what Ray would answer.
//!
//! Bodies have the shape Ray 2.60 gives them (the State API's envelope, the Job API's details)
//! and about its size, since sizes decide what a proxy has to move. Contents are made up.

use rayguard_sim::head::Spec;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// A request understood.
#[derive(Clone, PartialEq, Debug)]
pub struct Ask {
    /// The plant's route.
    pub route: &'static str,
    /// What to answer.
    pub reply: Reply,
}

/// The kinds of answers.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// `/api/version`.
    Version,
    /// The list of jobs.
    Jobs,
    /// A submission: its entry point comes with the body.
    Submit,
    /// One job.
    Job(String),
    /// One job's log.
    JobLogs(String),
    /// A tail over WebSocket.
    Tail(String),
    /// Stopped, or deleted.
    Stop(String),
    /// A package is there or not.
    PackageGet(String),
    /// A package is uploaded.
    PackagePut(String),
    /// A State API list of this resource with so many entries at most.
    State(&'static str, usize),
    /// A State API summary.
    Summary,
    /// A log that is followed.
    LogStream,
    /// The test route that sleeps.
    Delay(Duration),
    /// The node table.
    Nodes,
    /// `/api/cluster_status`.
    ClusterStatus,
    /// `success`.
    Health,
    /// The metrics targets.
    Discovery,
    /// A page of the web UI.
    Page,
    /// Any other JSON answer.
    Other,
}

/// A job as the Job API shows it.
#[derive(Clone, PartialEq, Debug)]
pub struct Job {
    /// `raysubmit_...`.
    pub id: String,
    /// The command line.
    pub entrypoint: String,
    /// `PENDING`, `RUNNING`, `SUCCEEDED`, `STOPPED`.
    pub status: &'static str,
    /// Milliseconds since the epoch.
    pub start_ms: u64,
}

/// Understands a request; `None` is a 404.
#[must_use]
pub fn resolve(spec: &Spec, method: &str, path: &str, query: &str) -> Option<Ask> {
    if spec.route("version").is_none() {
        return Some(Ask { route: plain_route(spec, path), reply: Reply::Other });
    }
    let ask = |route, reply| Some(Ask { route, reply });
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let read = matches!(method, "GET" | "HEAD");
    match segments.as_slice() {
        ["api", "version"] if read => ask("version", Reply::Version),
        ["api", "jobs", ""] if read => ask("job-list", Reply::Jobs),
        ["api", "jobs", ""] if method == "POST" => ask("job-submit", Reply::Submit),
        ["api", "jobs", id] if read => ask("job-status", Reply::Job((*id).to_owned())),
        ["api", "jobs", id] if method == "DELETE" => ask("job-stop", Reply::Stop((*id).to_owned())),
        ["api", "jobs", id, "stop"] if method == "POST" => ask("job-stop", Reply::Stop((*id).to_owned())),
        ["api", "jobs", id, "logs"] if read => ask("job-logs", Reply::JobLogs((*id).to_owned())),
        ["api", "jobs", id, "logs", "tail"] if read => ask("log-tail", Reply::Tail((*id).to_owned())),
        ["api", "component_activities"] if read => ask("job-status", Reply::Other),
        ["api", "packages", _, name] if read => ask("package-get", Reply::PackageGet((*name).to_owned())),
        ["api", "packages", _, name] if method == "PUT" => {
            ask("package-put", Reply::PackagePut((*name).to_owned()))
        }
        ["api", "v0", rest @ ..] if read => state(rest, query),
        ["nodes"] | ["test", "dump"] if read => ask("nodes", Reply::Nodes),
        ["nodes", _] if read => ask("node", Reply::Nodes),
        ["logical", "actors", ..] if read => ask("logical-actors", Reply::Other),
        ["api", "cluster_status"] if read => ask("cluster-status", Reply::ClusterStatus),
        ["api", "gcs_healthz"] if read => ask("gcs-healthz", Reply::Health),
        ["api", "prometheus", "sd"] if read => ask("report", Reply::Discovery),
        ["api", "profiling_enabled"] if read => ask("report", Reply::Other),
        ["task" | "worker", "traceback" | "cpu_profile" | "gpu_profile" | "jax_profile"]
        | ["memory_profile"]
            if read =>
        {
            ask("profile", Reply::Other)
        }
        ["api", "serve", "applications", ""] => ask("serve", Reply::Other),
        ["api", "ray", "version"] if read => ask("serve", Reply::Version),
        ["api", "v1", "applications", _, "deployments", _, "scale"] if method == "POST" => {
            ask("serve", Reply::Other)
        }
        ["events"] if read => ask("events", Reply::Other),
        ["report_events"] if method == "POST" => ask("events", Reply::Other),
        ["api", "grafana_health" | "prometheus_health"] if read => ask("metrics", Reply::Other),
        ["api", "data", "datasets", _] if read => ask("data", Reply::Other),
        ["api", "train", ..] if read => ask("train", Reply::Other),
        ["" | "favicon.ico" | "timezone"] | ["static", ..] if read => ask("parent", Reply::Page),
        ["api", "authentication_mode"] if read => ask("parent", Reply::Other),
        ["api", "authenticate"] if method == "POST" => ask("parent", Reply::Other),
        _ => None,
    }
}

fn state(rest: &[&str], query: &str) -> Option<Ask> {
    let limit = parameter(query, "limit").and_then(|text| text.parse().ok()).unwrap_or(100_usize).min(10_000);
    let detail = parameter(query, "detail").is_some_and(|text| matches!(text, "1" | "True" | "true"));
    let ask = |route, reply| Some(Ask { route, reply });
    match rest {
        ["tasks"] if detail => ask("tasks-detail", Reply::State("tasks", limit)),
        ["tasks"] => ask("tasks", Reply::State("tasks", limit)),
        ["tasks" | "actors" | "objects", "summarize"] => ask(
            match rest[0] {
                "tasks" => "tasks-summarize",
                "actors" => "actors",
                _ => "objects",
            },
            Reply::Summary,
        ),
        ["tasks", "timeline"] => ask("tasks-summarize", Reply::Other),
        ["actors"] => ask("actors", Reply::State("actors", limit)),
        ["workers"] => ask("workers", Reply::State("workers", limit)),
        ["objects"] => ask("objects", Reply::State("objects", limit)),
        ["jobs" | "nodes" | "placement_groups" | "runtime_envs" | "runtime_env_redaction"] => {
            ask("state-light", Reply::State("nodes", limit.min(10)))
        }
        ["logs"] => ask("state-logs", Reply::Other),
        ["logs", "stream"] => ask("log-stream", Reply::LogStream),
        ["logs", _] => ask("state-logs", Reply::JobLogs(String::new())),
        ["delay", seconds] => {
            let seconds: f64 = seconds.parse().ok()?;
            ask("delay", Reply::Delay(Duration::try_from_secs_f64(seconds).ok()?))
        }
        ["cluster_metadata"] => ask("report", Reply::Other),
        ["cluster_events" | "platform_events"] => ask("events", Reply::Other),
        _ => None,
    }
}

/// A synthetic head has no routes of Ray's: what is heavy there is heavy here, all else cheap.
fn plain_route(spec: &Spec, path: &str) -> &'static str {
    let heavy = path.starts_with("/api/v0/tasks") || path.contains("heavy");
    let at = usize::from(heavy && spec.routes.len() > 1);
    spec.routes.get(at).map_or("", |route| route.name)
}

/// The value of a query parameter, as sent.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// How long a job of this command line runs: `sleep N` sleeps, everything else is quick.
#[must_use]
pub(crate) fn running_time(entrypoint: &str) -> Option<Duration> {
    let seconds = entrypoint.split("sleep ").nth(1)?.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The Job API's view of a job.
fn details(job: &Job) -> Value {
    json!({
        "type": "SUBMISSION", "job_id": null, "submission_id": job.id, "driver_info": null,
        "status": job.status, "entrypoint": job.entrypoint,
        "message": format!("Job finished with status {}.", job.status), "error_type": null,
        "start_time": job.start_ms, "end_time": null, "metadata": {}, "runtime_env": {},
        "driver_agent_http_address": "http://127.0.0.1:52365", "driver_node_id": "5".repeat(56),
        "driver_exit_code": null,
    })
}

/// What Ray would answer: status, content type, body.
#[must_use]
pub fn answer(reply: &Reply, jobs: &[Job], targets: &[String]) -> (u16, &'static str, String) {
    const JSON: &str = "application/json; charset=utf-8";
    const TEXT: &str = "text/plain; charset=utf-8";
    let found = |id: &str| jobs.iter().find(|job| job.id == id);
    let missing = |id: &str| (404, TEXT, format!("Job {id} does not exist"));
    match reply {
        Reply::Version => (
            200,
            JSON,
            json!({"version": "4", "ray_version": "2.60.0", "ray_commit": "emulated",
                   "session_name": "session_2026-11-23_09-18-16_372701_9552"})
            .to_string(),
        ),
        Reply::Jobs => (200, JSON, Value::Array(jobs.iter().map(details).collect()).to_string()),
        Reply::Submit => {
            let id = jobs.last().map_or("", |job| &job.id);
            (200, JSON, json!({"job_id": id, "submission_id": id}).to_string())
        }
        Reply::Job(id) => found(id).map_or_else(|| missing(id), |job| (200, JSON, details(job).to_string())),
        Reply::JobLogs(id) if !id.is_empty() && found(id).is_none() => missing(id),
        Reply::JobLogs(_) => (200, JSON, json!({"logs": "hi\n"}).to_string()),
        Reply::Stop(id) if found(id).is_none() => missing(id),
        Reply::Stop(_) => (200, JSON, json!({"stopped": true, "deleted": true}).to_string()),
        Reply::PackageGet(_) => (404, TEXT, "Package not found".to_owned()),
        Reply::State(resource, limit) => (200, JSON, envelope(&entries(resource, *limit))),
        Reply::Summary => (
            200,
            JSON,
            json!({"result": true, "msg": "", "data": {"result": {"total": 1053, "num_after_truncation": 1053,
                "num_filtered": 1053, "result": {"node_id_to_summary": {"cluster": {"summary": {
                "f": {"func_or_class_name": "f", "type": "NORMAL_TASK",
                "state_counts": {"FINISHED": 1000, "PENDING_NODE_ASSIGNMENT": 50}}},
                "total_tasks": 1050, "total_actor_tasks": 3, "total_actor_scheduled": 0,
                "summary_by": "func_name"}}}, "partial_failure_warning": "", "warnings": null}}})
            .to_string(),
        ),
        Reply::Nodes => (200, JSON, nodes()),
        Reply::ClusterStatus => (
            200,
            JSON,
            json!({"result": true, "msg": "Got formatted cluster status.", "data": {"clusterStatus":
                "======== Autoscaler status ========\nNode status\n-----------\nActive:\n 1 node\n".repeat(12)}})
            .to_string(),
        ),
        Reply::Health => (200, TEXT, "success".to_owned()),
        Reply::Discovery => {
            (200, JSON, json!([{"labels": {"job": "ray"}, "targets": targets}]).to_string())
        }
        Reply::Page => (200, "text/html", "<!doctype html><title>Ray Dashboard</title>".repeat(10)),
        Reply::PackagePut(_) | Reply::Delay(_) | Reply::Other | Reply::Tail(_) | Reply::LogStream => {
            (200, JSON, json!({"result": true, "msg": "", "data": {}}).to_string())
        }
    }
}

fn envelope(entries: &[Value]) -> String {
    json!({"result": true, "msg": "", "data": {"result": {"total": entries.len(),
        "num_after_truncation": entries.len(), "num_filtered": entries.len(), "result": entries,
        "partial_failure_warning": "", "warnings": null}}})
    .to_string()
}

fn entries(resource: &str, limit: usize) -> Vec<Value> {
    let there = match resource {
        "tasks" => 1053,
        "actors" => 2,
        _ => 10,
    };
    (0..limit.min(there))
        .map(|n| {
            json!({"task_id": format!("{n:048x}"), "name": "f", "state": "FINISHED", "job_id": "01000000",
                "actor_id": null, "type": "NORMAL_TASK", "func_or_class_name": "f",
                "parent_task_id": "f".repeat(40), "node_id": "5".repeat(56), "worker_id": "a".repeat(56),
                "worker_pid": 4000 + n, "error_type": null})
        })
        .collect()
}

fn nodes() -> String {
    let mut filler = String::new();
    for n in 0..120 {
        // Writing to a String cannot fail.
        let _ = write!(
            filler,
            "ray::worker_{n:04} --node-ip-address=192.0.2.2 --session-dir=/tmp/ray/session_latest "
        );
    }
    json!({"result": true, "msg": "Node summary fetched.", "data": {"summary": [{
        "hostname": "head", "ip": "192.0.2.2", "cpu": 14.1, "cpus": [2, 2], "workers": filler,
        "raylet": {"nodeId": "5".repeat(56), "state": "ALIVE", "isHeadNode": true}}]}})
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_resolved_is_one_the_plant_knows() {
        let spec = Spec::ray_head();
        for (method, path, query) in [
            ("GET", "/api/version", ""),
            ("GET", "/api/jobs/", ""),
            ("POST", "/api/jobs/", ""),
            ("POST", "/api/jobs/x/stop", ""),
            ("DELETE", "/api/jobs/x", ""),
            ("GET", "/api/jobs/x/logs/tail", ""),
            ("PUT", "/api/packages/gcs/p.zip", ""),
            ("GET", "/api/v0/tasks", "limit=100&detail=True"),
            ("GET", "/api/v0/tasks/summarize", ""),
            ("GET", "/api/v0/actors", ""),
            ("GET", "/api/v0/logs/stream", "follow=1"),
            ("GET", "/api/v0/delay/3", ""),
            ("GET", "/nodes", "view=summary"),
            ("GET", "/api/gcs_healthz", ""),
            ("GET", "/api/prometheus/sd", ""),
            ("GET", "/worker/cpu_profile", ""),
            ("GET", "/", ""),
        ] {
            let ask = resolve(&spec, method, path, query).unwrap_or_else(|| panic!("{method} {path}"));
            assert!(spec.route(ask.route).is_some(), "{path} is {}", ask.route);
        }
        assert_eq!(resolve(&spec, "GET", "/api/jobs", ""), None, "the slash matters to Ray");
        assert_eq!(resolve(&spec, "GET", "/nowhere", ""), None);
    }

    #[test]
    fn the_state_api_answers_in_its_envelope() {
        let (status, _, body) = answer(&Reply::State("tasks", 100), &[], &[]);
        let body: Value = serde_json::from_str(&body).expect("json");
        assert_eq!(status, 200);
        assert_eq!(body["result"], true);
        assert_eq!(body["data"]["result"]["result"].as_array().map(Vec::len), Some(100));
    }

    #[test]
    fn a_sleeping_job_sleeps() {
        assert_eq!(running_time("python -c 1; sleep 2.5 && echo"), Some(Duration::from_millis(2500)));
        assert_eq!(running_time("echo hi"), None);
    }
}
