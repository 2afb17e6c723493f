//! Traces: who asked for what and when, as it really happened, to be replayed.
//!
//! Four sources: rayguard's own traffic traces (`rayguard record`), requests measured on a real Ray
//! head (`simulations/recorded/*.csv`), the job submissions of the Philly cluster (15,264 jobs
//! with tenants), and the requests of an LLM completion service on Azure (8,819 with token
//! counts). The last two are not part of this package; their importers take the text of a file
//! the user names. Times are counted from the trace's own first entry, unless the trace counts
//! from elsewhere itself.
//!
//! A trace speaks of routes as Ray's own table has them, and the plant of those it knows:
//! [`Guide`] leads from the one to the other, and [`Import::stand_ins`] says whom it replaced.

use super::head::Spec;
use super::proxy::facts;
use super::scenario::ClientSpec;
use rayguard_config::Overrides;
use rayguard_core::request::catalogue::{ROUTES, Surface};
use rayguard_core::request::classify::Classifier;
use rayguard_core::time::Time;
use rayguard_core::traffic_trace::{self, Ending, Exchange, TrafficTrace};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Arrivals in the order of time.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Trace {
    /// The arrivals, earliest first.
    pub arrivals: Vec<Arrival>,
}

/// One request of a trace.
#[derive(Clone, PartialEq, Debug)]
pub struct Arrival {
    /// When.
    pub at: Time,
    /// The plant's name of what is asked.
    pub route: Arc<str>,
    /// Who asks, by address, in the trace's own words; empty when it does not say.
    pub client: Arc<str>,
    /// Who asks, by credential; empty when it does not say.
    pub credential: Arc<str>,
    /// How long it is held open: tails.
    pub lasts: Option<Duration>,
    /// Whether it may be given the answer to an equal question. A trace knows: those that
    /// were not, asked something else of the same route.
    pub follows: bool,
    /// Payload: megabytes, thousand tokens.
    pub size: f64,
    /// What really came of it, where it was recorded.
    pub measured: Option<Measured>,
}

/// What really came of a request.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Measured {
    /// HTTP status; 0 when the client gave up.
    pub status: u16,
    /// From sending to the end of the answer, or to giving up.
    pub latency_ms: f64,
}

/// Why a trace cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line} of the trace: {problem}; expected {expected}")]
pub struct TraceError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
    /// The columns it should have.
    pub expected: &'static str,
}

/// Reads a trace in any of the known formats, told apart by its header line.
///
/// # Errors
/// The header is not one of the known ones, or a line does not fit it.
pub fn read(text: &str) -> Result<Trace, TraceError> {
    let header = text.lines().next().unwrap_or_default();
    match header.split(',').next() {
        Some("at_s") => rows(text, "at_s,route,status,latency_ms", recorded),
        Some("arrival_s") => rows(text, "arrival_s,vc,gpus,job_type,total_steps", philly),
        Some("TIMESTAMP") => azure(text),
        _ if traffic_trace::is_trace(text.as_bytes()) => {
            let trace = traffic_trace::read(text.as_bytes()).map_err(|error| TraceError {
                line: 1,
                problem: error.to_string(),
                expected: "a trace",
            })?;
            Ok(import(&trace, &Guide::new(), |_| true).trace)
        }
        _ => Err(TraceError {
            line: 1,
            problem: format!("unknown header \"{}\"", header.chars().take(60).collect::<String>()),
            expected: "a trace, or at_s,route,... or arrival_s,vc,... or TIMESTAMP,ContextTokens,...",
        }),
    }
}

type Parsed = Result<Arrival, String>;

fn rows(text: &str, expected: &'static str, parse: impl Fn(&[&str]) -> Parsed) -> Result<Trace, TraceError> {
    let mut arrivals = Vec::new();
    for (index, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.is_empty()) {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        match parse(&fields) {
            Ok(arrival) => arrivals.push(arrival),
            Err(problem) => return Err(TraceError { line: index + 1, problem, expected }),
        }
    }
    // Stable: requests of one moment stay in the order they were written down.
    arrivals.sort_by_key(|arrival| arrival.at);
    Ok(Trace { arrivals })
}

fn number(fields: &[&str], at: usize) -> Result<f64, String> {
    let text = fields.get(at).ok_or_else(|| format!("only {} columns", fields.len()))?;
    let value: f64 = text.parse().map_err(|_| format!("\"{text}\" is not a number"))?;
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(format!("{value} is not a time or amount"))
    }
}

fn recorded(fields: &[&str]) -> Parsed {
    let status = number(fields, 2)?;
    Ok(Arrival {
        at: Time::from_secs_f64(number(fields, 0)?),
        route: Arc::from(*fields.get(1).ok_or("no route")?),
        client: Arc::from(""),
        credential: Arc::from(""),
        lasts: None,
        follows: true,
        size: 0.0,
        measured: Some(Measured { status: status_of(status), latency_ms: number(fields, 3)? }),
    })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn status_of(value: f64) -> u16 {
    value as u16
}

fn philly(fields: &[&str]) -> Parsed {
    Ok(Arrival {
        at: Time::from_secs_f64(number(fields, 0)?),
        route: Arc::from("job-submit"),
        client: Arc::from(*fields.get(1).ok_or("no virtual cluster")?),
        credential: Arc::from(""),
        lasts: None,
        follows: true,
        size: 0.0,
        measured: None,
    })
}

fn azure(text: &str) -> Result<Trace, TraceError> {
    const EXPECTED: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
    let first = text.lines().nth(1).and_then(|line| day_seconds(line.split(',').next()?));
    let first = first.unwrap_or(0.0);
    rows(text, EXPECTED, |fields| {
        let stamp = fields.first().copied().unwrap_or_default();
        let seconds = day_seconds(stamp).ok_or_else(|| format!("\"{stamp}\" is not a time stamp"))?;
        Ok(Arrival {
            at: Time::from_secs_f64(seconds - first),
            route: Arc::from("completion"),
            client: Arc::from(""),
            credential: Arc::from(""),
            lasts: None,
            follows: true,
            // A generated token costs about twenty read ones: reading is one batched pass.
            size: (number(fields, 1)? / 20.0 + number(fields, 2)?) / 1000.0,
            measured: None,
        })
    })
}

/// Seconds since the first of the month of `YYYY-MM-DD HH:MM:SS.fffffff`; the traces are
/// shorter than a month.
fn day_seconds(stamp: &str) -> Option<f64> {
    let (date, time) = stamp.split_once(' ')?;
    let day: f64 = date.rsplit('-').next()?.parse().ok()?;
    let mut parts = time.split(':');
    let hours: f64 = parts.next()?.parse().ok()?;
    let minutes: f64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(((day * 24.0 + hours) * 60.0 + minutes) * 60.0 + seconds)
}

/// From a trace's names to the plant's.
#[derive(Clone, Debug, Default)]
pub struct Guide {
    /// By Ray's name of a route.
    labels: BTreeMap<String, &'static str>,
    /// By a class's name.
    classes: BTreeMap<String, &'static str>,
    /// By a module's name.
    modules: BTreeMap<String, &'static str>,
}

impl Guide {
    /// To the modelled Ray head, by the shipped catalogue.
    #[must_use]
    pub fn new() -> Guide {
        let mut guide = Guide::default();
        let spec = Spec::ray_head();
        let Ok(settings) = rayguard_config::parse("", "defaults", &Overrides::default()) else {
            return guide;
        };
        let policy = settings.policy;
        let Ok(classifier) = Classifier::new(&policy, Surface::Dashboard, &[]) else { return guide };
        for route in &spec.routes {
            let found = classifier.classify(&facts(route));
            if let Some(rays) =
                found.route.index().checked_sub(Surface::ALL.len()).and_then(|at| ROUTES.get(at))
            {
                guide.labels.entry(format!("{} {}", rays.method, rays.path)).or_insert(route.name);
            }
            let class = &policy.classes[found.class.index()];
            guide.classes.entry(class.name.to_string()).or_insert(route.name);
            let module = &policy.modules[class.module.index()].name;
            guide.modules.entry(module.to_string()).or_insert(route.name);
        }
        guide
    }

    /// The plant's route for one of a trace: the very same, else one of its class, else one
    /// of its module; `None` where the plant has no such module.
    #[must_use]
    pub fn plant_route(&self, label: &str, class: &str, module: &str) -> Option<&'static str> {
        let found = [self.labels.get(label), self.classes.get(class), self.modules.get(module)];
        found.into_iter().flatten().next().copied()
    }

    /// Whether the plant knows this very route.
    #[must_use]
    pub fn knows(&self, label: &str) -> bool {
        self.labels.contains_key(label)
    }
}

/// A trace's requests as the plant takes them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Import {
    /// The requests, times counted from the trace's beginning.
    pub trace: Trace,
    /// Requests of routes the plant does not know, by the trace's name: what stood in for
    /// them (`None`: they were left out), and how many.
    pub stand_ins: BTreeMap<String, (Option<&'static str>, u64)>,
}

/// Takes over the requests of a trace whose class is wanted.
#[must_use]
pub fn import(trace: &TrafficTrace, guide: &Guide, wanted: impl Fn(u16) -> bool) -> Import {
    let mut import = Import::default();
    for arrival in trace.arrivals.iter().filter(|arrival| wanted(arrival.exchange.class)) {
        let it = &arrival.exchange;
        let class = &trace.head.classes[usize::from(it.class)];
        let label = &trace.head.routes[usize::from(it.route)];
        let route = guide.plant_route(label, &class.name, &class.module);
        if !guide.knows(label) {
            let name = format!("{label} ({})", class.name);
            import.stand_ins.entry(name).or_insert((route, 0)).1 += 1;
        }
        let Some(route) = route else { continue };
        import.trace.arrivals.push(Arrival {
            at: Time(arrival.at.0.saturating_sub(trace.from.0)),
            route: Arc::from(route),
            client: Arc::from(format!("a{}", it.address)),
            credential: it.credential.map_or_else(|| Arc::from(""), |number| Arc::from(format!("c{number}"))),
            lasts: class.held.then(|| Duration::from_micros(it.latency_us)),
            follows: it.ending == Ending::Shared,
            size: (it.asked_bytes + it.answered_bytes) as f64 / 1e6,
            measured: Some(measured(it)),
        });
    }
    import
}

fn measured(it: &Exchange) -> Measured {
    let status = match it.ending {
        Ending::Served | Ending::Shared | Ending::Open => 200,
        Ending::Failed => 502,
        Ending::Abandoned | Ending::Left => 0,
        Ending::Shed(reason) if reason.is_clients_own() => 429,
        Ending::Shed(_) => 503,
    };
    Measured { status, latency_ms: it.waited_us.saturating_add(it.latency_us) as f64 / 1e3 }
}

impl Trace {
    /// What a client of a scenario replays: a part, some routes, faster, several times over.
    #[must_use]
    pub fn cut(&self, client: &ClientSpec) -> Trace {
        let from = Time::from_secs_f64(client.trace_from_s);
        let mut cut = self.window(from, Time(u64::MAX), client.speedup);
        cut.arrivals.retain(|arrival| {
            let named = |list: &[String]| list.iter().any(|route| **route == *arrival.route);
            (client.only.is_empty() || named(&client.only)) && !named(&client.except)
        });
        cut.copies(client.copies)
    }

    /// The same load so many times over: each copy comes from clients of its own, a little later,
    /// so that not all ask at the same moment.
    #[must_use]
    pub fn copies(self, count: u32) -> Trace {
        /// Apart by the golden ratio of a second: no two copies of a clock's beat coincide.
        const APART: f64 = 0.618_033_988_75;
        let mut all = self.arrivals.clone();
        for copy in 1..count {
            let later = Duration::from_secs_f64(APART * f64::from(copy));
            let own = |name: &str| {
                if name.is_empty() { Arc::from("") } else { Arc::from(format!("{name}.{copy}")) }
            };
            all.extend(self.arrivals.iter().map(|arrival| Arrival {
                at: arrival.at + later,
                client: own(&arrival.client),
                credential: own(&arrival.credential),
                ..arrival.clone()
            }));
        }
        all.sort_by_key(|arrival| arrival.at);
        Trace { arrivals: all }
    }

    /// The part from `from` to `to`, its times counted from `from`, run `speedup` times as fast.
    #[must_use]
    pub fn window(&self, from: Time, to: Time, speedup: f64) -> Trace {
        let arrivals = self
            .arrivals
            .iter()
            .filter(|arrival| (from..to).contains(&arrival.at))
            .map(|arrival| Arrival {
                at: Time::from_secs_f64(arrival.at.since(from).as_secs_f64() / speedup),
                ..arrival.clone()
            })
            .collect();
        Trace { arrivals }
    }

    /// The most arrivals in any `seconds` (the window slides).
    #[must_use]
    pub fn peak(&self, seconds: f64) -> usize {
        let mut from = 0;
        let mut peak = 0;
        for (at, arrival) in self.arrivals.iter().enumerate() {
            while arrival.at.since(self.arrivals[from].at).as_secs_f64() >= seconds {
                from += 1;
            }
            peak = peak.max(at - from + 1);
        }
        peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_formats_are_told_apart_by_their_header() {
        let own =
            read("at_s,route,status,latency_ms\n2.0,version,200,1.5\n1.0,tasks,0,30000\n").expect("fits");
        assert_eq!(&*own.arrivals[0].route, "tasks", "sorted by time");
        assert_eq!(own.arrivals[1].measured, Some(Measured { status: 200, latency_ms: 1.5 }));
        let philly = read("arrival_s,vc,gpus,job_type,total_steps\n0,0e4a51,1,T (batch size 128),95121\n");
        assert_eq!(&*philly.expect("fits").arrivals[0].client, "0e4a51");
        let azure = read(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n\
             2023-11-16 18:18:04.0319600,3180,8\n",
        )
        .expect("fits");
        assert!((azure.arrivals[1].at.as_secs_f64() - 60.052).abs() < 1e-6);
    }

    #[test]
    fn a_bad_line_is_named_with_what_was_expected() {
        let error =
            read("at_s,route,status,latency_ms\n1,version,200,2\nsoon,version,200,2\n").expect_err("bad");
        assert_eq!(
            error.to_string(),
            "line 3 of the trace: \"soon\" is not a number; expected at_s,route,status,latency_ms"
        );
        assert!(read("a,b\n").is_err());
        assert!(read("at_s,route,status,latency_ms\nNaN,version,200,2\n").is_err());
    }

    #[test]
    fn every_route_of_the_plant_is_found_again_under_rays_name_for_it() {
        let guide = Guide::new();
        assert_eq!(guide.plant_route("GET /api/v0/tasks", "", ""), Some("tasks"));
        assert_eq!(guide.plant_route("POST /api/jobs/", "", ""), Some("job-submit"));
        assert_eq!(guide.plant_route("own-1", "job-list", "JobHead"), Some("job-list"));
        assert_eq!(guide.plant_route("own-1", "mine", "StateHead"), Some("tasks"));
        assert_eq!(guide.plant_route("own-1", "mine", "Serve"), None);
        let routes = Spec::ray_head().routes;
        let found = routes.iter().filter(|route| guide.labels.values().any(|name| *name == route.name));
        assert!(found.count() >= 28, "all but variants of one pattern");
    }

    #[test]
    fn a_load_taken_three_times_has_three_times_the_clients() {
        let philly = read("arrival_s,vc,gpus\n10,a,1\n20,b,1\n").expect("fits").copies(3);
        let clients: std::collections::BTreeSet<_> =
            philly.arrivals.iter().map(|a| a.client.clone()).collect();
        assert_eq!((philly.arrivals.len(), clients.len()), (6, 6));
        assert!(philly.arrivals.is_sorted_by_key(|arrival| arrival.at));
    }

    #[test]
    fn a_window_starts_at_zero_and_runs_faster() {
        let text = "arrival_s,vc,gpus\n10,a,1\n20,b,1\n30,c,1\n";
        let cut = read(text).expect("fits").window(Time::from_secs_f64(15.0), Time::from_secs_f64(40.0), 5.0);
        let at: Vec<f64> = cut.arrivals.iter().map(|a| a.at.as_secs_f64()).collect();
        assert_eq!(at, [1.0, 3.0]);
        assert_eq!(read(text).expect("fits").peak(10.5), 2);
    }
}
