//! The head's metrics pages: the exported gauges as exposition text, named and labelled as
//! Ray 2.60 does it (recorded scrapes are the model).
//!
//! The simulator feeds these pages to the production parser, the emulator serves them over
//! HTTP, so a name that is wrong here shows as a signal not found. Traps are reproduced on
//! purpose: `_sum` of the GCS histograms is made of bucket midpoints, a long poll sits among
//! the methods, `ray_tasks` has a negative series, the dashboard's `endpoint` is a Python
//! function name with a suffix when cached.
//!
//! A page is some hundred lines of which only the numbers change, and a simulated day asks for it
//! 17,000 times: what stands before a number is put together once (`Page`).

use super::gauges::{DASHBOARD_BUCKETS_S, Durations, GCS_BUCKETS_MS, Gauges};
use super::head::RAY_CLIENT;
use super::plant::Plant;
use std::fmt::Write as _;

const SESSION: &str = "session_2026-11-23_09-18-16_372701_9552";
const VERSION: &str = "2.60.0";
const IP: &str = "192.0.2.2";
const OTEL: &str = "otel_scope_name=\"ray._private.telemetry.open_telemetry_metric_recorder\",otel_scope_schema_url=\"\",otel_scope_version=\"\"";

/// The two pages of one head, to be had again and again.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    agent: Page,
    dashboard: Page,
}

impl Pages {
    /// The page of the node's agent (Ray's port 8080): node, GCS, raylet, tasks.
    pub fn agent(&mut self, plant: &Plant) -> &str {
        let (page, gauges) = (&mut self.agent, plant.gauges());
        page.begin();
        page.gcs_calls(gauges);
        page.node(plant, gauges);
        page.actors_and_tasks(gauges);
        &page.text
    }

    /// The page of the dashboard (Ray's port 44227): request histogram, loop, module CPU.
    pub fn dashboard(&mut self, plant: &Plant) -> &str {
        let (page, gauges) = (&mut self.dashboard, plant.gauges());
        page.begin();
        page.requests(plant);
        page.dashboard_process(plant, gauges);
        &page.text
    }
}

/// The agent's page, once.
#[must_use]
pub fn agent_page(plant: &Plant) -> String {
    Pages::default().agent(plant).to_owned()
}

/// The dashboard's page, once.
#[must_use]
pub fn dashboard_page(plant: &Plant) -> String {
    Pages::default().dashboard(plant).to_owned()
}

/// A page being written. The same lines are written in the same order each time, or left
/// out ([`Page::series`]); whatever precedes their numbers is kept from the first time.
#[derive(Clone, Debug, Default)]
struct Page {
    text: String,
    known: Vec<Box<str>>,
    at: usize,
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Page {
    fn begin(&mut self) {
        self.text.clear();
        self.at = 0;
    }

    /// The next text of the page, as it was put together the first time.
    fn next(&mut self, text: impl FnOnce() -> String) -> usize {
        if self.at == self.known.len() {
            self.known.push(text().into());
        }
        self.at += 1;
        self.at - 1
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let head = self.next(|| format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        self.text.push_str(&self.known[head]);
    }

    fn line(&mut self, name: &str, labels: impl FnOnce() -> String, value: f64) {
        self.series(|| format!("{name}{{{}}} ", labels()), Some(value));
    }

    /// A line, left out where there is no value.
    fn series(&mut self, series: impl FnOnce() -> String, value: Option<f64>) {
        let series = self.next(series);
        if let Some(value) = value {
            self.text.push_str(&self.known[series]);
            // Writing to a String cannot fail.
            let _ = writeln!(self.text, "{value:?}");
        }
    }

    fn dashboard_process(&mut self, plant: &Plant, gauges: &Gauges) {
        let process = |component: &str, pid: usize| {
            format!(
                "Component=\"{component}\",SessionName=\"{SESSION}\",Version=\"{VERSION}\",ip=\"{IP}\",pid=\"{pid}\""
            )
        };
        let parent = || process("dashboard", 4395);
        let name = "ray_dashboard_event_loop_tasks";
        self.head(name, "gauge", "Number of tasks currently pending in the event loop's queue.");
        self.line(name, parent, gauges.event_loop_tasks);
        let name = "ray_dashboard_event_loop_lag_seconds";
        self.head(name, "gauge", "Event loop lag in seconds.");
        self.line(name, parent, gauges.event_loop_lag_s);
        let name = "ray_component_cpu_percentage";
        self.head(name, "gauge", "Dashboard CPU percentage usage.");
        self.line(name, parent, tenth(gauges.parent_cpu_pct));
        let modules = plant.spec().modules.iter().zip(&gauges.module_cpu_pct);
        for (index, (module, cpu)) in modules.filter(|(module, _)| module.name != RAY_CLIENT).enumerate() {
            let own = || process(&format!("dashboard_{}", module.name), 4449 + index);
            self.line(name, own, tenth(*cpu));
        }
    }

    fn gcs_calls(&mut self, gauges: &Gauges) {
        let name = "ray_grpc_server_req_process_time_ms";
        self.head(name, "histogram", "Request latency in grpc server");
        let mut polls = [0; GCS_BUCKETS_MS.len()];
        polls[4] = gauges.gcs_polls;
        for (method, counts) in [
            ("InternalKVGcsService.grpc_server.InternalKVGet", &gauges.gcs_calls),
            ("ControlPlanePubSubGcsService.grpc_server.GcsSubscriberPoll", &polls),
        ] {
            let own = || format!("Component=\"gcs_server\",Method=\"{method}\",NodeAddress=\"{IP}\"");
            self.decades(name, own, counts);
        }
        let name = "ray_health_check_rpc_latency_ms";
        self.head(name, "histogram", "Latency of rpc request for health check.");
        let mut health = [0; GCS_BUCKETS_MS.len()];
        health[1] = gauges.gcs_polls;
        self.decades(name, || format!("Component=\"gcs_server\",NodeAddress=\"{IP}\""), &health);
    }

    fn decades(&mut self, name: &str, own: impl Fn() -> String, counts: &[u64; GCS_BUCKETS_MS.len()]) {
        let rest = format!("SessionName=\"{SESSION}\",Version=\"{VERSION}\",WorkerId=\"\"");
        let (mut total, mut sum, mut below) = (0, 0.0, 0.0);
        for (bound, count) in GCS_BUCKETS_MS.iter().zip(counts) {
            total += count;
            let middle = if bound.is_finite() { f64::midpoint(below, *bound) } else { below };
            sum += middle * *count as f64;
            below = *bound;
            let bucket = || format!("{name}_bucket{{{},{rest},le=\"{}\",{OTEL}}} ", own(), le(*bound));
            self.series(bucket, Some(total as f64));
        }
        for (part, value) in [("count", total as f64), ("sum", sum)] {
            self.series(|| format!("{name}_{part}{{{},{rest},{OTEL}}} ", own()), Some(value));
        }
    }

    fn node(&mut self, plant: &Plant, gauges: &Gauges) {
        let node = || {
            format!(
                "IsHeadNode=\"true\",RayNodeType=\"head\",SessionName=\"{SESSION}\",Version=\"{VERSION}\",ip=\"{IP}\",{OTEL}"
            )
        };
        let cores = if plant.spec().cores.is_finite() { plant.spec().cores } else { 8.0 };
        for (name, help, value) in [
            ("ray_node_cpu_utilization", "Total CPU usage on a ray node", tenth(gauges.node_cpu_pct)),
            ("ray_node_cpu_count", "Total CPUs available on a ray node", cores),
            ("ray_node_mem_used", "Memory usage on a ray node", gauges.mem_used_bytes),
            (
                "ray_node_mem_available",
                "Memory available on a ray node",
                gauges.mem_total_bytes - gauges.mem_used_bytes,
            ),
            ("ray_node_mem_total", "Total memory on a ray node", gauges.mem_total_bytes),
            // Moves with every report, as the real one does: it tells a still page from a dead one.
            ("ray_node_network_received", "Total network received", gauges.process_at.as_secs_f64() * 1000.0),
        ] {
            self.head(name, "gauge", help);
            self.line(name, node, value);
        }
        self.head("ray_component_cpu_percentage", "gauge", "Total CPU usage of the components on a node.");
        // The agent is there twice, as Ray has it; a user's process is known by its task's name.
        for (component, pid, value) in [
            ("gcs", "9553", gauges.gcs_cpu_pct),
            ("raylet", "9846", gauges.raylet_cpu_pct),
            ("agent", "9870", gauges.agent_cpu_pct),
            ("ray::DashboardAgent", "9870", gauges.agent_cpu_pct),
            ("ray::JobSupervisor", "10112", gauges.starting_cpu_pct),
            ("ray::train", "10204", gauges.user_cpu_pct),
            ("ray::IDLE", "10221", 0.0),
        ] {
            let labels = || {
                format!(
                    "Component=\"{component}\",SessionName=\"{SESSION}\",Version=\"{VERSION}\",ip=\"{IP}\",{OTEL},pid=\"{pid}\""
                )
            };
            self.line("ray_component_cpu_percentage", labels, tenth(value));
        }
    }

    fn actors_and_tasks(&mut self, gauges: &Gauges) {
        let after = format!("Version=\"{VERSION}\",WorkerId=\"\",{OTEL}");
        self.head("ray_gcs_actors_count", "gauge", "Number of actors per state");
        for (state, value) in [
            ("Destroyed", gauges.destroyed),
            ("Pending", 0.0),
            // Every actor the GCS knows and that has not died, created or not.
            ("Registered", gauges.registered + gauges.created),
            ("Unresolved", 0.0),
            ("Created", gauges.created),
        ] {
            let labels = || {
                format!(
                    "Component=\"gcs_server\",NodeAddress=\"{IP}\",SessionName=\"{SESSION}\",State=\"{state}\",{after}"
                )
            };
            self.line("ray_gcs_actors_count", labels, value);
        }
        self.head("ray_actors", "gauge", "An actor can be in one of these states.");
        for (state, value) in [
            ("DEAD", gauges.destroyed),
            ("ALIVE", gauges.created),
            ("PENDING_CREATION", gauges.registered),
            ("DEPENDENCIES_UNREADY", 0.0),
        ] {
            let labels = || {
                format!(
                    "Component=\"gcs_server\",JobId=\"\",Name=\"JobSupervisor\",NodeAddress=\"{IP}\",SessionName=\"{SESSION}\",Source=\"gcs\",State=\"{state}\",Version=\"{VERSION}\",{OTEL}"
                )
            };
            self.line("ray_actors", labels, value);
        }
        self.head("ray_running_jobs", "gauge", "Number of jobs currently running.");
        self.line(
            "ray_running_jobs",
            || format!("Component=\"gcs_server\",NodeAddress=\"{IP}\",SessionName=\"{SESSION}\",{after}"),
            3.0,
        );
        self.head(
            "ray_scheduler_unscheduleable_tasks",
            "gauge",
            "Number of pending tasks (not scheduleable tasks) broken per reason.",
        );
        for (reason, value) in [
            ("WaitingForResources", gauges.waiting_for_resources),
            ("WaitingForRemoteResources", 0.0),
            ("Infeasible", gauges.infeasible_tasks),
            ("WaitingForWorkers", gauges.waiting_for_workers),
            ("WaitingForPlasmaMemory", 0.0),
        ] {
            let labels = || {
                format!(
                    "Component=\"raylet\",NodeAddress=\"{IP}\",Reason=\"{reason}\",SessionName=\"{SESSION}\",{after}"
                )
            };
            self.line("ray_scheduler_unscheduleable_tasks", labels, value);
        }
        // Moves with every report of the raylet's, busy or not, as the real one does: without it an
        // idle head's tasks would read as a frozen exporter.
        let name = "ray_grpc_server_req_finished_total";
        self.head(name, "counter", "Finished request number in grpc server");
        let method = "NodeManagerService.grpc_server.GetResourceLoad";
        let labels = || {
            format!(
                "Component=\"raylet\",Method=\"{method}\",NodeAddress=\"{IP}\",SessionName=\"{SESSION}\",{after}"
            )
        };
        self.line(name, labels, gauges.cluster_at.as_secs_f64().floor());
        self.head("ray_tasks", "gauge", "Current number of tasks currently in a particular state.");
        for (source, state, value) in [
            ("owner", "FINISHED", gauges.finished_tasks),
            ("owner", "RUNNING", gauges.running_tasks),
            ("owner", "PENDING_NODE_ASSIGNMENT", gauges.pending_tasks + 1.0),
            // The executor's side of the same task: single series may be negative.
            ("executor", "PENDING_NODE_ASSIGNMENT", -1.0),
            ("owner", "PENDING_ARGS_AVAIL", 0.0),
        ] {
            let labels = || {
                format!(
                    "Component=\"core_worker\",IsRetry=\"0\",JobId=\"\",Name=\"JobSupervisor.ping\",NodeAddress=\"{IP}\",SessionName=\"{SESSION}\",Source=\"{source}\",State=\"{state}\",Version=\"{VERSION}\",{OTEL}"
                )
            };
            self.line("ray_tasks", labels, value);
        }
    }

    fn requests(&mut self, plant: &Plant) {
        let name = "ray_dashboard_api_requests_duration_seconds";
        self.head(name, "histogram", "Total duration in seconds per endpoint");
        let all = by_endpoint(plant);
        let process = || format!("Component=\"dashboard\",SessionName=\"{SESSION}\",Version=\"{VERSION}\"");
        for (endpoint, durations) in &all {
            let labels = || format!("{},endpoint=\"{endpoint}\",http_status=\"2xx\"", process());
            let any = durations.ok.iter().any(|count| *count > 0);
            let mut total = 0;
            for (bound, count) in DASHBOARD_BUCKETS_S.iter().zip(durations.ok) {
                total += count;
                let bucket = || format!("{name}_bucket{{{},le=\"{}\"}} ", labels(), le(*bound));
                self.series(bucket, any.then_some(total as f64));
            }
            for (part, value) in [("count", total as f64), ("sum", durations.ok_sum_s)] {
                self.series(|| format!("{name}_{part}{{{}}} ", labels()), any.then_some(value));
            }
        }
        let name = "ray_dashboard_api_requests_count_requests_total";
        self.head(name, "counter", "Total requests count per endpoint");
        for (endpoint, durations) in &all {
            let ok: u64 = durations.ok.iter().sum();
            for (status, count) in [("2xx", ok), ("4xx", durations.refused)] {
                let series = || {
                    let process = process();
                    format!(
                        "{name}{{{process},endpoint=\"{endpoint}\",http_status=\"{status}\",method=\"GET\"}} "
                    )
                };
                self.series(series, (count > 0).then_some(count as f64));
            }
        }
    }
}

/// A bucket's bound as its label has it.
fn le(bound: f64) -> String {
    if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() }
}

/// Handler names collide (two routes are `list_tasks`); Ray adds them up, and so do we.
fn by_endpoint(plant: &Plant) -> Vec<(&'static str, Durations)> {
    let mut all: Vec<(&'static str, Durations)> = Vec::new();
    let routes = plant.spec().routes.iter().zip(plant.durations());
    for (route, durations) in routes.filter(|(route, _)| !route.endpoint.is_empty()) {
        match all.iter_mut().find(|(endpoint, _)| *endpoint == route.endpoint) {
            Some((_, sum)) => {
                for (into, from) in sum.ok.iter_mut().zip(durations.ok) {
                    *into += from;
                }
                sum.ok_sum_s += durations.ok_sum_s;
                sum.refused += durations.refused;
            }
            None => all.push((route.endpoint, durations.clone())),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Spec;
    use crate::plant::Demand;
    use rayguard_core::time::Time;

    #[test]
    fn the_pages_show_what_happened() {
        let mut plant = Plant::new(Spec::ray_head(), 1);
        let mut events = Vec::new();
        for n in 0..200_u64 {
            let now = Time::from_secs_f64(n as f64 / 10.0);
            plant.advance(now, &mut events);
            for route in ["job-submit", "tasks"] {
                let route = plant.spec().route(route).expect("known");
                plant.arrive(now, &Demand::of(n, route));
            }
        }
        plant.advance(Time::from_secs_f64(30.0), &mut events);
        let agent = agent_page(&plant);
        let value = |needle: &str| -> f64 {
            let line =
                agent.lines().find(|line| line.contains(needle) && !line.starts_with('#')).expect(needle);
            line.rsplit(' ').next().expect("a value").parse().expect("a number")
        };
        assert!(value("ray_node_cpu_utilization") > 90.0);
        assert!(value("State=\"PENDING_CREATION\"") > 100.0);
        assert!(
            value("State=\"Registered\"") >= value("State=\"PENDING_CREATION\""),
            "it counts the living too"
        );
        assert!(value("Reason=\"WaitingForWorkers\"") > 100.0);
        assert!(value("Method=\"InternalKVGcsService.grpc_server.InternalKVGet\"") >= 0.0);
        let dashboard = dashboard_page(&plant);
        assert!(dashboard.contains("Component=\"dashboard_StateHead\""));
        assert!(dashboard.contains("endpoint=\"list_tasks\",http_status=\"2xx\",le=\"+Inf\""));
    }

    /// News of an idle head is that nothing has changed: each page must show that its reporters live.
    #[test]
    fn an_idle_heads_signals_stay_news_for_ever() {
        use rayguard_core::signal::series::SignalReader;
        let settings =
            rayguard_config::Settings::defaults(&rayguard_config::Overrides::default()).expect("sound");
        let mut reader = SignalReader::new(&settings.policy);
        let mut plant = Plant::new(Spec::ray_head(), 1);
        let mut before = Vec::new();
        for second in (5_u32..180).step_by(5) {
            let now = Time::from_secs_f64(f64::from(second));
            plant.advance(now, &mut Vec::new());
            let wall = rayguard_core::time::WallMs(1_000 * u64::from(second));
            for (target, page) in [("agent", agent_page(&plant)), ("dashboard", dashboard_page(&plant))] {
                reader.on_scrape(target, page.as_bytes(), now, wall).expect("a page");
            }
            if second % 30 == 0 {
                before.push(reader.readings(now));
            }
        }
        for name in ["pending_tasks", "workers_waiting", "submission_backlog", "head_cpu"] {
            let at =
                settings.policy.signals.iter().position(|signal| &*signal.name == name).expect("built in");
            let fresh: Vec<u64> =
                before.iter().map(|round| round[at].1.as_ref().expect("read").fresh).collect();
            assert!(fresh.is_sorted_by(|a, b| a < b), "{name}: {fresh:?}");
        }
    }

    #[test]
    fn pending_tasks_are_right_as_a_sum_and_wrong_as_a_series() {
        let plant = Plant::new(Spec::ray_head(), 1);
        let pending: Vec<f64> = agent_page(&plant)
            .lines()
            .filter(|line| line.starts_with("ray_tasks{") && line.contains("State=\"PENDING"))
            .map(|line| line.rsplit(' ').next().expect("a value").parse().expect("a number"))
            .collect();
        assert!(pending.iter().any(|value| *value < 0.0));
        assert!((pending.iter().sum::<f64>() - plant.gauges().pending_tasks).abs() < 1e-9);
    }
}
