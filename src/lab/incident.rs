//! What really happened, beside what would have happened.
//!
//! A trace's offered load (what was refused too) is sent once more, at the same moments and by
//! the same clients, to a modelled head behind the production proxy: under another
//! configuration, and under none. The answer is one row per class and run, and the plots of
//! their seconds.
//!
//! How far to trust it: arrivals are replayed as they came, so clients that would have come
//! back, or would not, under other limits still do as they did. The head is a model, fitted to
//! the trace where that shows enough (`identify`) and calibrated on another head where it
//! does not; [`Incident::notes`] says which. The first thing to look at is therefore how far
//! the run under the recorded configuration lies from the trace itself.

use rayguard_sim::head::Spec;
use rayguard_sim::scenario::{Guard, Scenario, ScenarioError};
use rayguard_sim::tally::GroupTally;
use rayguard_sim::timeline::Point;
use rayguard_sim::trace::{Measured, Trace};
use rayguard_sim::world::{Conditions, Onlooker, Traces, run_under};
use serde::Serialize;
use std::fmt::Write;
use std::sync::Arc;

/// The load, and what is known of the head that bore it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// Classes or routes with their arrivals, times counted from the beginning.
    pub groups: Vec<(String, Trace)>,
    /// How long it lasts.
    pub seconds: f64,
    /// The head, as scenarios say it.
    pub plant: toml::Table,
    /// The same as the model needs it, when it was fitted; else the scenario's own.
    pub spec: Option<Spec>,
    /// After how many seconds clients give up.
    pub patience_s: f64,
    /// What must be said about it.
    pub notes: Vec<String>,
}

/// One run to make.
#[derive(Clone, PartialEq, Debug)]
pub struct Wanted {
    /// Its name in the answer.
    pub label: String,
    /// The configuration's text.
    pub config: String,
    /// What protects the head.
    pub guard: Guard,
}

/// How a class fared.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Fared {
    /// Requests.
    pub asked: u64,
    /// Answered.
    pub served: u64,
    /// Refused.
    pub shed: u64,
    /// Given up or failed.
    pub lost: u64,
    /// Median of those answered, milliseconds.
    pub p50_ms: Option<f64>,
    /// 99 % of those answered, milliseconds.
    pub p99_ms: Option<f64>,
}

/// A class in every run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub class: String,
    /// By run, in the order of [`Incident::runs`].
    pub fared: Vec<Fared>,
}

/// A second of all classes, or some on end at their highest.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Flow {
    /// Its end.
    pub at_s: f64,
    /// Asked.
    pub asked: f64,
    /// Answered.
    pub served: f64,
    /// Refused.
    pub shed: f64,
    /// Given up or failed.
    pub lost: f64,
    /// The watched class's limit.
    pub limit: f64,
}

/// The answer.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Incident {
    /// What was replayed.
    pub name: String,
    /// How long it lasts.
    pub seconds: f64,
    /// What every run is: `recorded` first where there is a traffic trace.
    pub runs: Vec<String>,
    /// One for each class.
    pub rows: Vec<Row>,
    /// Everybody together.
    pub total: Row,
    /// What must be said about it.
    pub notes: Vec<String>,
    /// The class whose limit is drawn.
    pub watched: String,
    /// By run: its course.
    #[serde(skip)]
    pub flows: Vec<Vec<Flow>>,
    /// The adjustment logs of the simulated runs, where they were asked for.
    #[serde(skip)]
    pub adjustment_logs: Vec<(String, String)>,
}

/// Replays a case under every configuration wanted, and keeps the runs' adjustment logs if told to.
///
/// # Errors
/// A configuration is wrong.
pub fn replay(
    case: &Case,
    wanted: &[Wanted],
    seed: u64,
    adjustment_logs: bool,
) -> Result<Incident, ScenarioError> {
    let traces: Traces =
        case.groups.iter().map(|(name, trace)| (name.clone(), Arc::new(trace.clone()))).collect();
    let recorded = case.groups.iter().any(|(_, trace)| trace.arrivals.iter().any(|a| a.measured.is_some()));
    let mut rows: Vec<Row> =
        case.groups.iter().map(|(name, _)| Row { class: name.clone(), fared: Vec::new() }).collect();
    let mut incident = Incident {
        name: case.name.clone(),
        seconds: case.seconds,
        runs: Vec::new(),
        rows: Vec::new(),
        total: Row { class: "all".to_owned(), fared: Vec::new() },
        notes: case.notes.clone(),
        watched: watched(case),
        flows: Vec::new(),
        adjustment_logs: Vec::new(),
    };
    if recorded {
        incident.runs.push("recorded".to_owned());
        for (row, (_, trace)) in rows.iter_mut().zip(&case.groups) {
            row.fared.push(measured(trace));
        }
        incident.flows.push(measured_flow(case));
    }
    for one in wanted {
        let scenario = scenario(case, one, &incident.watched)?;
        let spec = case.spec.clone().unwrap_or_else(|| scenario.spec());
        let conditions = Conditions { spec, ..Conditions::of(&scenario) };
        let mut adjustment_log = String::new();
        let kept = adjustment_logs.then_some(&mut adjustment_log as &mut dyn Write);
        let onlooker = Onlooker { adjustment_log: kept, ..Onlooker::default() };
        let run = run_under(&scenario, conditions, one.guard, seed, &traces, onlooker)?;
        incident.runs.push(one.label.clone());
        for (row, tally) in rows.iter_mut().zip(&run.groups) {
            row.fared.push(tallied(tally));
        }
        // Without a class to watch there is no limit to draw.
        let watches = !scenario.watch.is_empty();
        let flows = run.timeline.points().iter().map(flow);
        let flows = flows.map(|flow| Flow { limit: if watches { flow.limit } else { 0.0 }, ..flow });
        incident.flows.push(flows.collect());
        if adjustment_logs {
            incident.adjustment_logs.push((one.label.clone(), adjustment_log));
        }
    }
    for at in 0..incident.runs.len() {
        let sum = |of: fn(&Fared) -> u64| rows.iter().map(|row| of(&row.fared[at])).sum();
        incident.total.fared.push(Fared {
            asked: sum(|f| f.asked),
            served: sum(|f| f.served),
            shed: sum(|f| f.shed),
            lost: sum(|f| f.lost),
            p50_ms: None,
            p99_ms: None,
        });
    }
    incident.rows = rows;
    Ok(incident)
}

/// The class most refused, or most asked where none was: its limit is worth a look.
fn watched(case: &Case) -> String {
    let weight = |trace: &Trace| {
        let fared = measured(trace);
        (fared.shed, trace.arrivals.len())
    };
    let most = case.groups.iter().max_by_key(|(_, trace)| weight(trace));
    most.map(|(name, _)| name.clone()).unwrap_or_default()
}

/// The scenario of one run. Built as its file would be read, so that what is not said is as
/// everywhere.
fn scenario(case: &Case, wanted: &Wanted, watch: &str) -> Result<Scenario, ScenarioError> {
    use toml::Value;
    let text = |text: &str| Value::String(text.to_owned());
    let mut table = toml::Table::new();
    table.insert("question".to_owned(), text(&case.name));
    table.insert("seconds".to_owned(), Value::Float(case.seconds.clamp(1.0, 86_400.0)));
    table.insert("plant".to_owned(), Value::Table(case.plant.clone()));
    table.insert("config".to_owned(), text(&wanted.config));
    table.insert("expect".to_owned(), Value::Table(toml::Table::new()));
    let clients = case.groups.iter().map(|(name, _)| {
        let mut client = toml::Table::new();
        client.insert("name".to_owned(), text(name));
        client.insert("kind".to_owned(), text("trace"));
        client.insert("trace".to_owned(), text(name));
        client.insert("timeout_s".to_owned(), Value::Float(case.patience_s));
        Value::Table(client)
    });
    table.insert("client".to_owned(), Value::Array(clients.collect()));
    let mut scenario: Scenario = table.try_into()?;
    // A configuration may do without the class that the trace had.
    let (policy, _) = scenario.policy()?;
    if policy.classes.iter().any(|class| *class.name == *watch) {
        watch.clone_into(&mut scenario.watch);
    }
    Ok(scenario)
}

fn measured(trace: &Trace) -> Fared {
    let mut fared = Fared { asked: trace.arrivals.len() as u64, ..Fared::default() };
    let mut latencies = Vec::new();
    for it in trace.arrivals.iter().filter_map(|arrival| arrival.measured) {
        match Fate::of(&it) {
            Fate::Served => {
                fared.served += 1;
                latencies.push(it.latency_ms);
            }
            Fate::Shed => fared.shed += 1,
            Fate::Lost => fared.lost += 1,
        }
    }
    latencies.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    let quantile = |q: f64| {
        let at = (q * latencies.len() as f64) as usize;
        latencies.get(at.min(latencies.len().saturating_sub(1))).copied()
    };
    Fared { p50_ms: quantile(0.5), p99_ms: quantile(0.99), ..fared }
}

/// What a status means to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Served,
    Shed,
    Lost,
}

impl Fate {
    fn of(measured: &Measured) -> Fate {
        match measured.status {
            429 | 503 => Fate::Shed,
            0 | 500.. => Fate::Lost,
            _ => Fate::Served,
        }
    }
}

fn measured_flow(case: &Case) -> Vec<Flow> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most a day")]
    let last = case.seconds.ceil() as usize;
    let mut seconds: Vec<Flow> =
        (1..=last.max(1)).map(|end| Flow { at_s: end as f64, ..Flow::default() }).collect();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "held to the list")]
    let place = |at_s: f64| (at_s as usize).min(last.max(1) - 1);
    for arrival in case.groups.iter().flat_map(|(_, trace)| &trace.arrivals) {
        let at_s = arrival.at.as_secs_f64();
        seconds[place(at_s)].asked += 1.0;
        let Some(it) = arrival.measured else { continue };
        let end = &mut seconds[place(at_s + it.latency_ms / 1e3)];
        match Fate::of(&it) {
            Fate::Served => end.served += 1.0,
            Fate::Shed => end.shed += 1.0,
            Fate::Lost => end.lost += 1.0,
        }
    }
    seconds
}

fn tallied(tally: &GroupTally) -> Fared {
    let had = |ms: f64| ms.is_finite().then_some(ms);
    Fared {
        asked: tally.demands,
        served: tally.served,
        shed: tally.shed,
        lost: tally.timed_out + tally.failed,
        p50_ms: had(tally.latency_ms(0.5)),
        p99_ms: had(tally.latency_ms(0.99)),
    }
}

fn flow(point: &Point) -> Flow {
    let second = &point.peak;
    Flow {
        at_s: second.at_s,
        asked: f64::from(second.offered),
        served: f64::from(second.served),
        shed: f64::from(second.shed),
        lost: f64::from(second.lost),
        limit: second.limit,
    }
}

// --- what is shown ---------------------------------------------------------------------------

fn share(part: u64, of: u64) -> String {
    if of == 0 { "-".to_owned() } else { format!("{:.1} %", 100.0 * part as f64 / of as f64) }
}

fn ms(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |ms| if ms < 10.0 { format!("{ms:.1}") } else { format!("{ms:.0}") })
}

/// The answer as text.
#[must_use]
pub fn table(incident: &Incident) -> String {
    let mut text = format!("{}: {:.0} s\n\n", incident.name, incident.seconds);
    let wide = incident.runs.iter().map(String::len).max().unwrap_or(0).max(8);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "  {:<20} {:>8}  {:<wide$} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "class", "asked", "", "served", "shed", "lost", "p50 ms", "p99 ms"
    );
    for row in incident.rows.iter().chain([&incident.total]) {
        for (at, (label, fared)) in incident.runs.iter().zip(&row.fared).enumerate() {
            let (class, asked) =
                if at == 0 { (row.class.as_str(), fared.asked.to_string()) } else { ("", String::new()) };
            let _ = writeln!(
                text,
                "  {:<20} {:>8}  {:<wide$} {:>9} {:>9} {:>9} {:>9} {:>9}",
                class,
                asked,
                label,
                share(fared.served, fared.asked),
                share(fared.shed, fared.asked),
                share(fared.lost, fared.asked),
                ms(fared.p50_ms),
                ms(fared.p99_ms),
            );
        }
    }
    for note in &incident.notes {
        let _ = writeln!(text, "\nnote: {note}");
    }
    text
}

/// The answer as a page, whole in one file.
#[must_use]
pub fn html(incident: &Incident) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>rayguard simulate --trace</title><style>:root{--ink:#222;--paper:#fff;--field:#f6f7f9}\
         @media(prefers-color-scheme:dark){:root{--ink:#ddd;--paper:#16181b;--field:#202327}}\
         body{font:14px system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:var(--ink);\
         background:var(--paper)}h1{font-size:1.6rem;overflow-wrap:anywhere}table{border-collapse:collapse}td,th{padding:.1rem .7rem;text-align:right}\
         td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}tr.first td{border-top:1px solid #8886;padding-top:.35rem}\
         svg{width:100%;height:130px;background:var(--field);margin:.2rem 0 1rem}.key span{margin-right:1rem}</style>",
    );
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<h1>{}</h1><p>{:.0} s, replayed</p><div style=\"overflow-x:auto\"><table><tr><th>class<th>run<th>asked<th>served<th>shed<th>lost\
         <th>p50 ms<th>p99 ms</tr>",
        escape(&incident.name),
        incident.seconds
    );
    for row in incident.rows.iter().chain([&incident.total]) {
        for (at, (label, fared)) in incident.runs.iter().zip(&row.fared).enumerate() {
            let (mark, class) = if at == 0 { (" class=\"first\"", row.class.as_str()) } else { ("", "") };
            let _ = write!(
                page,
                "<tr{mark}><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
                escape(class),
                escape(label),
                fared.asked,
                share(fared.served, fared.asked),
                share(fared.shed, fared.asked),
                share(fared.lost, fared.asked),
                ms(fared.p50_ms),
                ms(fared.p99_ms)
            );
        }
    }
    page.push_str("</table></div>");
    for note in &incident.notes {
        let _ = write!(page, "<p>{}</p>", escape(note));
    }
    plots(&mut page, incident);
    page.push_str("</html>\n");
    page
}

/// What of a second is drawn.
type Of = fn(&Flow) -> f64;

/// One plot of flows for each run, all to one scale, and one of the watched limit.
fn plots(page: &mut String, incident: &Incident) {
    let flows: [(&str, &str, Of); 4] = [
        ("asked /s", "#9e9e9e", |flow| flow.asked),
        ("served /s", "#2e9e3a", |flow| flow.served),
        ("shed /s", "#e08b00", |flow| flow.shed),
        ("given up or failed /s", "#d0223b", |flow| flow.lost),
    ];
    let all = || incident.flows.iter().flatten();
    let top = all().map(|flow| flow.asked.max(flow.served)).fold(1.0, f64::max);
    let top_limit = all().map(|flow| flow.limit).fold(1.0, f64::max);
    page.push_str("<p class=\"key\">");
    for (name, colour, _) in &flows {
        let _ = write!(page, "<span style=\"color:{colour}\">&#9632; {name}</span>");
    }
    page.push_str("</p>");
    for (label, seconds) in incident.runs.iter().zip(&incident.flows) {
        let minutes = incident.seconds / 60.0;
        let _ = write!(
            page,
            "<h2>{}</h2><small>0 to {top:.0} a second, over {minutes:.1} min</small>",
            escape(label)
        );
        plot(page, seconds, top, &flows);
        if seconds.iter().any(|flow| flow.limit > 0.0) {
            let limit: [(&str, &str, Of); 1] = [("limit", "#3f7fd0", |flow| flow.limit)];
            let _ =
                write!(page, "<small>limit of {}, 0 to {top_limit:.0}</small>", escape(&incident.watched));
            plot(page, seconds, top_limit, &limit);
        }
    }
}

fn plot(page: &mut String, seconds: &[Flow], top: f64, lines: &[(&str, &str, Of)]) {
    let width = seconds.last().map_or(1.0, |last| last.at_s.max(1.0));
    // A day has more seconds than a page has pixels: a point is the highest of its stretch.
    let stretch = (seconds.len() / 1000).max(1);
    page.push_str("<svg viewBox=\"0 0 1000 130\" preserveAspectRatio=\"none\" role=\"img\">");
    for (name, colour, of) in lines {
        let _ = write!(page, "<polyline fill=\"none\" stroke=\"{colour}\" points=\"");
        for part in seconds.chunks(stretch) {
            let value = part.iter().map(of).fold(0.0, f64::max);
            let x = 1000.0 * part[0].at_s / width;
            let _ = write!(page, "{x:.1},{:.1} ", 128.0 - 125.0 * (value / top).min(1.0));
        }
        let _ = write!(page, "\"><title>{name}</title></polyline>");
    }
    page.push_str("</svg>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayguard_sim::trace;

    fn case() -> Case {
        // 20 s of a calm actor list, and tasks at 30/s from the fifth second: both in one module.
        let mut text = String::from("at_s,route,status,latency_ms\n");
        for n in 0..100 {
            let _ = writeln!(text, "{:.2},actors,200,3", 0.2 * f64::from(n));
        }
        for n in 0..300 {
            let status = if n % 3 == 0 { 503 } else { 0 };
            let _ = writeln!(text, "{:.3},tasks,{status},400", 5.0 + f64::from(n) / 30.0);
        }
        let whole = trace::read(&text).unwrap();
        let only = |name: &str| {
            let mut part = whole.clone();
            part.arrivals.retain(|arrival| &*arrival.route == name);
            part.arrivals.iter_mut().for_each(|arrival| arrival.follows = false);
            (name.to_owned(), part)
        };
        Case {
            name: "a flood <of> tasks".into(),
            groups: vec![only("actors"), only("tasks")],
            seconds: 30.0,
            plant: toml::from_str("kind = 'ray-head'").unwrap(),
            spec: None,
            patience_s: 10.0,
            notes: vec!["a note".into()],
        }
    }

    fn wanted(label: &str, guard: Guard) -> Wanted {
        Wanted { label: label.into(), config: String::new(), guard }
    }

    #[test]
    fn recorded_and_simulated_stand_side_by_side() {
        let runs = [wanted("guarded", Guard::Rayguard), wanted("limits off", Guard::Off)];
        let incident = replay(&case(), &runs, 1, false).unwrap();
        assert_eq!(incident.runs, ["recorded", "guarded", "limits off"]);
        let [actors, tasks] = incident.rows.as_slice() else { panic!() };
        assert_eq!((tasks.fared[0].asked, tasks.fared[0].shed, tasks.fared[0].lost), (300, 100, 200));
        assert_eq!(tasks.fared[1].asked, 300, "the offered load is the recorded one");
        assert!(actors.fared[1].served > actors.fared[2].served, "{actors:?}");
        assert!(tasks.fared[1].shed > 0 && tasks.fared[2].shed == 0);
        assert_eq!(incident.watched, "tasks");
        let text = table(&incident);
        assert!(text.contains("limits off") && text.contains("note: a note"), "{text}");
        let page = html(&incident);
        assert!(page.contains("a flood &lt;of&gt; tasks") && page.matches("<svg").count() >= 3);
    }

    #[test]
    fn a_wrong_configuration_is_said() {
        let one = Wanted { config: "moed = 'shadow'".into(), ..wanted("new", Guard::Rayguard) };
        let error = replay(&case(), &[one], 1, false).unwrap_err();
        assert!(error.to_string().contains("config"), "{error}");
    }
}
