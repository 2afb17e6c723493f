//! `GET /api/v1/discovery`: what is asked, by how many, how often and at what cost; and what of
//! it no class covers. `rayguard limits suggest` makes a section of configuration from it.

use crate::admin::clients::{earlier, rounded_work};
use crate::admin::state::AdminState;
use crate::core::admission::table::Mode;
use crate::core::policy::{Bounds, Class, ClassId, Kind, Treatment};
use crate::core::time::WallMs;
use crate::core::usage::{Counts, Route, Traffic};
use crate::proxy::handle::surface_name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything that was asked since the start, or since classes last changed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Discovery {
    /// Names the configuration in force.
    pub config: String,
    /// Counted since this wall time.
    pub since: WallMs,
    /// For how many seconds.
    pub watched_s: f64,
    /// Every class that was asked.
    pub classes: Vec<ClassTraffic>,
    /// Every route that was asked, most asked first; those no class names have `unlisted`.
    pub routes: Vec<RouteTraffic>,
}

/// One class: what came, and what it is held to.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClassTraffic {
    /// Its name.
    pub class: String,
    /// Its module.
    pub module: String,
    /// How many unary requests the module bears at most, all classes together.
    pub module_in_flight_max: f64,
    /// Whether requests are held open (tails, sessions).
    pub held: bool,
    /// Whether limits apply at all.
    pub limited: bool,
    /// Whether it is in shadow mode.
    pub shadow: bool,
    /// What came.
    #[serde(flatten)]
    pub traffic: TrafficView,
    /// The median latency of Ray's answers, in seconds, since the start.
    pub latency_p50_s: Option<f64>,
    /// The latency at the objective's quantile, in seconds.
    pub latency_slo_s: Option<f64>,
    /// The mean latency, in seconds.
    pub latency_mean_s: Option<f64>,
    /// Answers the latencies are of.
    pub answers: u64,
    /// The objective's quantile.
    pub slo_quantile: f64,
    /// The objective, in seconds.
    pub slo_s: f64,
    /// For how long Ray may take to begin its answer, in seconds.
    pub timeout_s: Option<f64>,
    /// Concurrency: where it starts and its bounds.
    pub in_flight: Bounds,
    /// Requests per second: where it starts and its bounds.
    pub rate: Option<Bounds>,
}

/// One route: what came.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RouteTraffic {
    /// Its pattern; of what no route knows, the path with ids folded.
    pub pattern: String,
    /// Its class.
    pub class: String,
    /// Its module.
    pub module: String,
    /// How it was asked, where no class names it; else null.
    pub unlisted: Option<Asked>,
    /// What came.
    #[serde(flatten)]
    pub traffic: TrafficView,
}

/// How something was asked that no class names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Unlisted")]
pub struct Asked {
    /// `dashboard`, `ray-client` or `serve`.
    pub kind: String,
    /// The method; `?` for what is none of HTTP's.
    pub method: String,
}

/// What came in on a route or in a class.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TrafficView {
    /// What was asked.
    #[serde(flatten)]
    pub counts: Counts,
    /// About how many addresses asked.
    pub clients: u32,
    /// The most requests in one second.
    pub busiest_second: u64,
    /// The most in one minute.
    pub busiest_minute: u64,
    /// The most of its class under way when one came.
    pub in_flight_peak: u32,
}

impl From<&Traffic> for TrafficView {
    fn from(traffic: &Traffic) -> TrafficView {
        TrafficView {
            counts: rounded_work(traffic.counts),
            clients: traffic.clients(),
            busiest_second: traffic.busiest_second,
            busiest_minute: traffic.busiest_minute,
            in_flight_peak: traffic.in_flight_peak,
        }
    }
}

/// What was asked since the start.
pub fn discovery(admin: &AdminState) -> Discovery {
    let app = &admin.app;
    let (proxy, settings) = (app.proxy(), app.settings());
    let (routes, traffic, began) = {
        let usage = proxy.usage();
        let classes: Vec<Traffic> = (0..proxy.policy.classes.len())
            .map(|at| usage.class(class_id(at)).cloned().unwrap_or_default())
            .collect();
        (usage.routes(), classes, usage.began())
    };
    let watched = app.clock.now().since(began);
    let module = |class: &Class| &proxy.policy.modules[class.module.index()];
    let route = |route: &Route| {
        let class = proxy.policy.classes.get(route.class.index())?;
        Some(RouteTraffic {
            pattern: route.pattern.to_string(),
            class: class.name.to_string(),
            module: module(class).name.to_string(),
            unlisted: route
                .unlisted
                .map(|(on, method)| Asked { kind: surface_name(on).to_owned(), method: method.to_owned() }),
            traffic: TrafficView::from(&route.traffic),
        })
    };
    let class = |(at, traffic): (usize, &Traffic)| {
        let class = &proxy.policy.classes[at];
        let counts = proxy.admission.counts(class_id(at));
        let mode = settings.class_modes.get(at);
        ClassTraffic {
            class: class.name.to_string(),
            module: module(class).name.to_string(),
            module_in_flight_max: module(class).in_flight.max,
            held: class.kind == Kind::Held,
            limited: class.treatment == Treatment::Limited,
            shadow: mode == Some(&Mode::Shadow),
            traffic: TrafficView::from(traffic),
            latency_p50_s: counts.latency_quantile(0.5),
            latency_slo_s: counts.latency_quantile(class.slo.quantile),
            latency_mean_s: counts.latency_mean(),
            answers: counts.finished(),
            slo_quantile: class.slo.quantile,
            slo_s: class.slo.latency.as_secs_f64(),
            timeout_s: class.timeout.map(|timeout| timeout.as_secs_f64()),
            in_flight: class.in_flight,
            rate: class.rate.map(|rate| rate.per_second),
        }
    };
    Discovery {
        config: settings.version.to_string(),
        since: earlier(app.clock.wall(), watched),
        watched_s: watched.as_secs_f64(),
        classes: traffic
            .iter()
            .enumerate()
            .filter(|(_, traffic)| traffic.counts.asked > 0)
            .map(class)
            .collect(),
        routes: routes.iter().filter_map(route).collect(),
    }
}

fn class_id(at: usize) -> ClassId {
    ClassId(u8::try_from(at).unwrap_or(u8::MAX))
}
