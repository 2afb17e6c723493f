//! `rayguard limits suggest`: a section of configuration from what has been asked so far.
//!
//! The question: what would limits and objectives be that yesterday's traffic, on a head that
//! was well, would never have noticed? For each class:
//!
//! ```text
//! objective          2 x the latency seen at its quantile, in round numbers; not below a quarter
//!                    of the present one (histories grow), and within the timeout
//! in_flight.initial  2 x the requests under way in the busiest minute: rate x mean latency
//!                    (Little, "A proof for the queuing formula L = lambda W", 1961), or the most
//!                    that was seen under way while the objective held, whichever is more
//! in_flight.min      the mean number under way over the whole watch
//! rate.initial       2 x the busiest minute; only where the class has a rate at all
//! rate.min           the mean rate over the whole watch
//! max                as configured, or 2 x (rate: 4 x) initial where that is more; concurrency
//!                    never above the module's ceiling
//! ```
//!
//! The factor 2 is room for tomorrow; the loop finds the rest. A class that no client asked keeps
//! its default; of one that was asked too seldom to tell, this says so and writes nothing. Classes
//! that are held open keep their limits, since a permit there is a connection of Ray's, not a
//! share of its time. Routes that no class names get a class of their own, commented out: what
//! they cost is known, what they are worth is not.

use crate::admin::discovery::{ClassTraffic, Discovery, RouteTraffic, TrafficView};
use crate::cli::client::{Client, ClientError, Reach, json, length};
use crate::cli::format::Format;
use crate::config::quantity::{Length, Objective, PerSecond};
use crate::core::event::{number, printable};
use crate::core::policy::Slo;
use crate::core::time::duration_from_secs;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

/// Writes a section of configuration from the traffic seen so far.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Address of the running rayguard.
    #[command(flatten)]
    pub reach: Reach,
}

/// Fewer answers say nothing of a latency's tail.
const ANSWERS_MIN: u64 = 100;

/// A shorter watch has seen no busy hour.
const WATCHED_MIN_S: f64 = 600.0;

/// An unlisted route is worth a class of its own from so many requests on.
const UNLISTED_MIN: u64 = 20;

/// Carries out the command.
pub async fn run(args: &Args, out: &mut dyn Write) -> Result<(), ClientError> {
    let seen: Discovery = Client::new(&args.reach)?.get("/api/v1/discovery").await?;
    if args.reach.format == Format::Json {
        return json(out, &seen);
    }
    Ok(out.write_all(section(&seen).as_bytes())?)
}

/// The section, with its reasons in comments.
#[must_use]
pub fn section(seen: &Discovery) -> String {
    if seen.watched_s < 60.0 {
        return format!(
            "# Nothing suggested: only {} of traffic has been seen, and limits follow from the busiest minute.\n\
             # Try again after a minute or more of traffic; a day that includes the busy hours is best.\n",
            length(seen.watched_s)
        );
    }
    let limited = || seen.classes.iter().filter(|class| class.limited);
    let (told, untold): (Vec<_>, Vec<_>) =
        limited().partition(|class| class.answers >= ANSWERS_MIN && !class.held);
    let mut text = preface(seen);
    if !told.is_empty() {
        text.push_str("\n[slo]\n");
        for class in &told {
            objective(class, &mut text);
        }
        for class in &told {
            limits(class, seen.watched_s, &mut text);
        }
    }
    if !untold.is_empty() {
        text.push_str("\n# Left as they are:\n");
    }
    for class in untold {
        let why = if class.held {
            let peak = class.traffic.in_flight_peak;
            format!("held open; {peak} at once at most, and a permit is one of Ray's connections")
        } else {
            match class.answers {
                1 => "1 answer is too few to measure latency".to_owned(),
                answers => format!("{answers} answers are too few to measure latency"),
            }
        };
        let _ = writeln!(text, "# {}: {why}", class.class);
    }
    unlisted(seen, &mut text);
    text
}

fn preface(seen: &Discovery) -> String {
    let asked: u64 = seen.classes.iter().map(|class| class.traffic.counts.asked).sum();
    let mut text = format!(
        "# Suggested by `rayguard limits suggest` from {asked} requests in {} since {} (configuration {}).\n\
         # Copy what you agree with into your own file, and run `rayguard check` on it.\n",
        length(seen.watched_s),
        seen.since.rfc3339(),
        printable(&seen.config)
    );
    if seen.watched_s < WATCHED_MIN_S {
        text.push_str("# It is early: a day in shadow mode, with its busy hours, says more.\n");
    }
    let shed: u64 = seen.classes.iter().map(|class| class.traffic.counts.shed).sum();
    if shed > 0 {
        let _ = writeln!(
            text,
            "# {shed} requests were shed in this time: the suggestions rest on what the current limits \
                let through."
        );
    }
    text
}

fn objective(class: &ClassTraffic, text: &mut String) {
    let seen_s = class.latency_slo_s.unwrap_or(class.slo_s);
    let percent = number(class.slo_quantile * 100.0);
    let _ = writeln!(
        text,
        "# {}: {} answers, half within {}, p{percent} {}; the objective is {} now.",
        class.class,
        class.answers,
        millis(class.latency_p50_s.unwrap_or(0.0)),
        millis(seen_s),
        millis(class.slo_s)
    );
    if seen_s > class.slo_s {
        text.push_str("#   Ray already misses it: find out why before you accept this.\n");
    }
    let objective = Objective(Slo { quantile: class.slo_quantile, latency: objective_of(class) });
    let _ = writeln!(text, "{} = \"{objective}\"", class.class);
}

/// Twice what was seen, in round numbers, between a quarter of the present objective (50 ms at
/// least) and half the class's timeout.
fn objective_of(class: &ClassTraffic) -> Duration {
    let wanted = 2.0 * class.latency_slo_s.unwrap_or(class.slo_s);
    let most = (class.timeout_s.unwrap_or(600.0) / 2.0).max(0.05);
    let least = (class.slo_s / 4.0).clamp(0.05, most);
    duration_from_secs(round_up(wanted.clamp(least, most)).min(most))
}

/// Up to the next of 1, 1.5, 2, 3, 5, 7 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0];
    let step = steps.into_iter().find(|step| value <= step * power * (1.0 + 1e-9)).unwrap_or(10.0);
    (step * power * 1000.0).round() / 1000.0
}

fn limits(class: &ClassTraffic, watched_s: f64, text: &mut String) {
    let traffic = &class.traffic;
    let busiest = traffic.busiest_minute as f64 / 60.0;
    let mean_s = class.latency_mean_s.unwrap_or(0.0);
    let at_once = busiest * mean_s;
    let _ = write!(text, "\n[class.{}]\n{}", class.class, told(traffic, watched_s));
    if traffic.counts.would_shed > 0 {
        let would = traffic.counts.would_shed;
        let _ =
            writeln!(text, "# {would} would have been shed by the current limits, had they been enforced.");
    }
    let held_well = class.latency_slo_s.is_some_and(|seen| seen <= objective_of(class).as_secs_f64());
    let peak = if held_well { f64::from(traffic.in_flight_peak) } else { 0.0 };
    let ceiling = class.module_in_flight_max.max(1.0).floor();
    let initial = (2.0 * at_once).max(peak).ceil().clamp(1.0, ceiling);
    let over_all = traffic.counts.asked as f64 / watched_s.max(1.0) * mean_s;
    let min = over_all.ceil().clamp(1.0, initial);
    let max = class.in_flight.max.max(2.0 * initial).min(ceiling).max(initial);
    let _ = writeln!(
        text,
        "# {}/s x {} = {} in flight in the busiest minute; peak {}; the limit of {} is {ceiling}.",
        number(busiest),
        millis(mean_s),
        number(at_once),
        traffic.in_flight_peak,
        class.module,
    );
    let _ = writeln!(text, "in_flight = {{ initial = {initial}, min = {min}, max = {max} }}");
    if let Some(bounds) = class.rate {
        let initial = whole_rate(2.0 * busiest).max(1.0 / 60.0);
        let min = whole_rate(traffic.counts.asked as f64 / watched_s.max(1.0)).clamp(1.0 / 60.0, initial);
        let max = whole_rate(bounds.max.max(4.0 * initial));
        let burst = (traffic.busiest_second as f64).min(initial * 60.0).floor().max(1.0);
        let _ = writeln!(
            text,
            "rate = {{ initial = \"{}\", min = \"{}\", max = \"{}\", burst = {burst} }}",
            PerSecond(initial),
            PerSecond(min),
            PerSecond(max)
        );
    }
}

fn told(traffic: &TrafficView, watched_s: f64) -> String {
    format!(
        "# {} requests by about {} {}: {}/min on average, {} in the busiest minute, {} in the busiest second;\n\
         # {} s of Ray's time in all.\n",
        traffic.counts.asked,
        traffic.clients,
        if traffic.clients == 1 { "client" } else { "clients" },
        number(traffic.counts.asked as f64 / watched_s.max(1.0) * 60.0),
        traffic.busiest_minute,
        traffic.busiest_second,
        number(traffic.counts.work_s),
    )
}

/// Whole requests per second, or per minute where that is few, upwards: what people write.
fn whole_rate(per_second: f64) -> f64 {
    let unit = if per_second >= 2.0 { 1.0 } else { 60.0 };
    (per_second * unit - 1e-9).ceil() / unit
}

fn millis(seconds: f64) -> String {
    Length(Duration::from_millis(
        duration_from_secs(seconds + 0.0005).as_millis().try_into().unwrap_or(u64::MAX),
    ))
    .to_string()
}

fn unlisted(seen: &Discovery, text: &mut String) {
    let strange: Vec<&RouteTraffic> = seen.routes.iter().filter(|route| route.unlisted.is_some()).collect();
    let (many, few): (Vec<_>, Vec<_>) =
        strange.into_iter().partition(|route| route.traffic.counts.asked >= UNLISTED_MIN);
    if !many.is_empty() {
        text.push_str(
            "\n# These paths share one class with all unknown requests. Uncomment those that need a class\n\
             # of their own, and give it a name.\n",
        );
    }
    for (at, route) in many.iter().enumerate() {
        let Some(asked) = &route.unlisted else { continue };
        let name = format!("own-{}", at + 1);
        let traffic = &route.traffic;
        let each_s = traffic.counts.work_s / traffic.counts.admitted.max(1) as f64;
        let initial = (2.0 * traffic.busiest_minute as f64 / 60.0 * each_s).ceil().max(1.0);
        let method =
            if asked.method == "?" { String::new() } else { format!("\n# method = \"{}\"", asked.method) };
        let _ = write!(
            text,
            "\n{}# {} under way each, class {} so far.\n# [class.{name}]\n# module = \"{}\"\n\
             # in_flight = {{ initial = {initial}, min = 1, max = {} }}\n# [[route]]{method}\n# path = \"{}\"\n\
             # kind = \"{}\"\n# class = \"{name}\"\n",
            told(traffic, seen.watched_s),
            millis(each_s),
            route.class,
            route.module,
            4.0 * initial,
            printable(&route.pattern),
            asked.kind,
        );
    }
    if !few.is_empty() {
        let asked: u64 = few.iter().map(|route| route.traffic.counts.asked).sum();
        let _ = writeln!(
            text,
            "\n# {} more paths without a class of their own were requested {asked} times in total.",
            few.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::discovery::Asked;
    use crate::config::{self, Overrides, Settings};
    use crate::core::policy::{Kind, Treatment};
    use crate::core::time::WallMs;
    use crate::core::usage::Counts;
    use proptest::prelude::*;

    fn traffic(asked: u64, busiest_minute: u64, in_flight_peak: u32) -> TrafficView {
        let counts = Counts { asked, admitted: asked, work_s: asked as f64 * 0.01, ..Counts::default() };
        TrafficView {
            counts,
            clients: 3,
            busiest_second: busiest_minute.div_ceil(20),
            busiest_minute,
            in_flight_peak,
        }
    }

    /// Every class of the defaults, asked alike.
    fn everything(traffic: TrafficView, mean_s: f64, watched_s: f64) -> Discovery {
        let settings = Settings::defaults(&Overrides::default()).unwrap();
        let policy = &settings.policy;
        let class = |class: &crate::core::policy::Class| ClassTraffic {
            class: class.name.to_string(),
            module: policy.modules[class.module.index()].name.to_string(),
            module_in_flight_max: policy.modules[class.module.index()].in_flight.max,
            held: class.kind == Kind::Held,
            limited: class.treatment == Treatment::Limited,
            shadow: true,
            traffic,
            latency_p50_s: Some(mean_s / 2.0),
            latency_slo_s: Some(mean_s * 4.0),
            latency_mean_s: Some(mean_s),
            answers: traffic.counts.asked,
            slo_quantile: class.slo.quantile,
            slo_s: class.slo.latency.as_secs_f64(),
            timeout_s: class.timeout.map(|timeout| timeout.as_secs_f64()),
            in_flight: class.in_flight,
            rate: class.rate.map(|rate| rate.per_second),
        };
        let route = |pattern: &str, method: &str| RouteTraffic {
            pattern: pattern.into(),
            class: "other".into(),
            module: "NodeHead".into(),
            unlisted: Some(Asked { kind: "dashboard".into(), method: method.into() }),
            traffic,
        };
        Discovery {
            config: "test".into(),
            since: WallMs(0),
            watched_s,
            classes: policy.classes.iter().map(class).collect(),
            routes: vec![route("/api/internal/{id}/report", "POST"), route("/x/{id}", "?")],
        }
    }

    #[test]
    fn the_reasons_are_in_the_comments_and_the_numbers_follow_from_them() {
        let text = section(&everything(traffic(10_000, 600, 3), 0.05, 3_600.0));
        let after = |class: &str| text.split_once(&format!("[class.{class}]\n")).unwrap().1.to_owned();
        let list = after("job-list");
        assert!(list.contains("10000 requests by about 3 clients"), "{list}");
        assert!(list.contains("10/s x 50ms = 0.5 in flight in the busiest minute; peak 3"), "{list}");
        assert!(list.contains("in_flight = { initial = 3, min = 1, max = 12 }"), "{list}");
        assert!(after("job-submit").contains("rate = { initial = \"20/s\""), "{text}");
        assert!(
            text.contains("job-list = \"p95 500ms\"") || text.contains("job-list = \"p99 500ms\""),
            "{text}"
        );
    }

    #[test]
    fn what_has_been_seen_for_seconds_is_no_busiest_minute() {
        let text = section(&everything(traffic(10_000, 600, 3), 0.05, 17.0));
        assert!(text.contains("only 17 s of traffic") && !text.contains("in_flight"), "{text}");
    }

    #[test]
    fn what_was_seen_too_seldom_is_left_alone_and_said_so() {
        let text = section(&everything(traffic(40, 10, 1), 0.05, 60.0));
        assert!(!text.contains("[slo]"), "{text}");
        assert!(text.contains("# job-list: 40 answers are too few to measure latency"));
        assert!(text.contains("It is early"));
    }

    #[test]
    fn a_route_that_no_class_names_gets_one_that_passes_once_it_is_uncommented() {
        let text = section(&everything(traffic(500, 60, 1), 0.05, 3_600.0));
        let (_, own) = text.split_once("of their own, and give it a name.\n").unwrap();
        let bare: String = own
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| line.starts_with('[') || line.contains(" = ") && !line.contains(" each"))
            .fold(String::new(), |all, line| all + line + "\n");
        assert!(bare.contains("path = \"/api/internal/{id}/report\""), "{bare}");
        if let Err(wrong) = config::parse(&bare, "own", &Overrides::default()) {
            panic!("{wrong}\n{bare}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_was_seen_the_section_passes_the_check(
            asked in 0u64..100_000_000, minute in 0u64..1_000_000, peak in 0u32..100_000,
            mean_s in 0.0..10_000.0f64, watched_s in 0.0..10_000_000.0f64,
        ) {
            let text = section(&everything(traffic(asked, minute, peak), mean_s, watched_s));
            if let Err(wrong) = config::parse(&text, "suggested", &Overrides::default()) {
                prop_assert!(false, "{wrong}\n{text}");
            }
        }
    }
}
