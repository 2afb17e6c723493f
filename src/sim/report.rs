//! From scenarios to an answer: run, control run, checks, and the page that shows them.
//!
//! A scenario passes when every expectation is met *and* the control run breaks at least one
//! of them. Over many trials (Monte Carlo over seeds and over how well the head is known) the
//! pass rate comes with its exact 95 % interval (Clopper and Pearson, 1934): bounds are
//! quantiles of the beta distribution, so 0 failures in 20 runs is said to be 83 to 100 %,
//! not 100 %.

use super::chance::Chance;
use super::scenario::{Guard, Scenario, ScenarioError};
use super::verdict::{Check, Verdicts, check, verdicts, within};
use super::world::{Run, Traces, run, run_on};
use serde::Serialize;
use statrs::distribution::{Beta, ContinuousCDF};
use std::fmt::Write as _;

/// A scenario's answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The file's name.
    pub name: String,
    /// The scenario.
    pub scenario: Scenario,
    /// The seed.
    pub seed: u64,
    /// The run itself.
    pub run: Run,
    /// Everything it was judged by.
    pub verdicts: Verdicts,
    /// Expectations and what came of them.
    pub checks: Vec<Check>,
    /// Goals, reached or not.
    pub goals: Vec<Check>,
    /// The same as `checks` for the control run.
    pub control: Vec<Check>,
    /// What guarded the control run.
    pub control_guard: Guard,
}

impl Answer {
    /// Whether every expectation is met and the control run breaks one.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.met) && self.control_fails()
    }

    /// Whether the control run breaks an expectation.
    #[must_use]
    pub fn control_fails(&self) -> bool {
        self.control.iter().any(|check| !check.met)
    }
}

/// Runs a scenario and its control.
///
/// # Errors
/// The scenario cannot be run.
pub fn answer(name: &str, scenario: &Scenario, seed: u64, traces: &Traces) -> Result<Answer, ScenarioError> {
    let ran = run(scenario, scenario.guard, seed, traces)?;
    let found = verdicts(scenario, &ran);
    let control_run = run(scenario, scenario.control.guard, seed, traces)?;
    Ok(Answer {
        name: name.to_owned(),
        seed,
        checks: check(scenario, &found),
        goals: within(&scenario.goal, &found),
        verdicts: found,
        control: check(scenario, &verdicts(scenario, &control_run)),
        control_guard: scenario.control.guard,
        run: ran,
        scenario: scenario.clone(),
    })
}

/// How often a scenario passed.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct PassRate {
    /// Runs.
    pub runs: u64,
    /// Runs that met every expectation.
    pub passed: u64,
    /// Lower bound of the exact 95 % interval.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// The exact 95 % interval of a share (Clopper-Pearson).
#[must_use]
pub fn pass_rate(passed: u64, runs: u64) -> PassRate {
    let (k, n) = (passed as f64, runs as f64);
    let quantile = |p: f64, a: f64, b: f64| Beta::new(a, b).map_or(f64::NAN, |beta| beta.inverse_cdf(p));
    let low = if passed == 0 { 0.0 } else { quantile(0.025, k, n - k + 1.0) };
    let high = if passed == runs { 1.0 } else { quantile(0.975, k + 1.0, n - k) };
    PassRate { runs, passed, low, high }
}

/// Runs a scenario `runs` times, each on a head that is known less well, with a seed of its own.
///
/// # Errors
/// The scenario cannot be run.
pub fn monte_carlo(
    scenario: &Scenario,
    seed: u64,
    runs: u64,
    traces: &Traces,
) -> Result<PassRate, ScenarioError> {
    let mut passed = 0;
    for trial in 0..runs {
        let mut chance = Chance::new(seed, 0x77_0000 + trial);
        let spec = scenario.spec().perturbed(&mut chance);
        let ran = run_on(scenario, spec, scenario.guard, chance.bits(), traces)?;
        passed += u64::from(check(scenario, &verdicts(scenario, &ran)).iter().all(|check| check.met));
    }
    Ok(pass_rate(passed, runs))
}

/// One line of a comparison of guards.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Comparison {
    /// What protected the head.
    pub guard: String,
    /// Useful work / capacity; `None` for a Ray head.
    pub goodput: Option<f64>,
    /// Polite demands served.
    pub polite: Option<f64>,
    /// Attempts refused.
    pub shed: Option<f64>,
    /// Work done for nobody.
    pub wasted: Option<f64>,
    /// Latency at the head, 99 %, milliseconds, the first group's.
    pub head_p99_ms: Option<f64>,
    /// Swing of the limit in the late half.
    pub limit_swing: Option<f64>,
}

/// Runs a scenario under every guard there is.
///
/// # Errors
/// The scenario cannot be run.
pub fn compare(scenario: &Scenario, seed: u64, traces: &Traces) -> Result<Vec<Comparison>, ScenarioError> {
    let guards = [
        Guard::Off,
        Guard::Fixed(16),
        Guard::Vegas,
        Guard::Gradient2,
        Guard::Aimd,
        Guard::EnvoyGradient,
        Guard::Still,
        Guard::Rayguard,
    ];
    guards
        .into_iter()
        .map(|guard| {
            let ran = run(scenario, guard, seed, traces)?;
            let all = verdicts(scenario, &ran);
            let get = |name: &str| all.get(name).copied().filter(|value| value.is_finite());
            let first = scenario.client.first().map_or("", |client| client.name.as_str());
            Ok(Comparison {
                guard: guard.label(),
                goodput: get("goodput"),
                polite: get("polite"),
                shed: get("shed"),
                wasted: get("wasted"),
                head_p99_ms: get(&format!("{first}.head_p99_ms")),
                limit_swing: get("limit_swing"),
            })
        })
        .collect()
}

/// A comparison as text.
#[must_use]
pub fn comparison_table(rows: &[Comparison]) -> String {
    let mut text = format!(
        "  {:<24} {:>8} {:>8} {:>8} {:>8} {:>12} {:>8}\n",
        "guard", "goodput", "polite", "shed", "wasted", "head p99 ms", "swing"
    );
    let show = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
    for row in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:<24} {:>8} {:>8} {:>8} {:>8} {:>12} {:>8}",
            row.guard,
            show(row.goodput, 3),
            show(row.polite, 3),
            show(row.shed, 3),
            show(row.wasted, 3),
            show(row.head_p99_ms, 0),
            show(row.limit_swing, 2),
        );
    }
    text
}

/// A number short enough for a table.
fn short(value: f64) -> String {
    match value.abs() {
        _ if value.is_infinite() => "any".to_owned(),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// An answer as text.
#[must_use]
pub fn table(answer: &Answer) -> String {
    let mut text = String::new();
    let mark = if answer.passed() { "ok  " } else { "FAIL" };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{mark} {} (seed {}): {}", answer.name, answer.seed, answer.scenario.question);
    for (check, control) in answer.checks.iter().zip(&answer.control) {
        let value = |check: &Check| check.value.map_or("none".to_owned(), short);
        let _ = writeln!(
            text,
            "     {} {:<28} {:>9} in [{}, {}]   control {:>9}{}",
            if check.met { "+" } else { "-" },
            check.name,
            value(check),
            short(check.low),
            short(check.high),
            value(control),
            if control.met { "" } else { "  fails" },
        );
    }
    for goal in &answer.goals {
        let _ = writeln!(
            text,
            "     {} {:<28} {:>9} wanted in [{}, {}]",
            if goal.met { "+" } else { "~" },
            goal.name,
            goal.value.map_or("none".to_owned(), short),
            short(goal.low),
            short(goal.high),
        );
    }
    if !answer.control_fails() {
        let guard = answer.control_guard.label();
        let _ =
            writeln!(text, "     - the control run ({guard}) meets every expectation: they prove nothing");
    }
    text
}

/// An answer as JSON.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct JsonAnswer<'a> {
    name: &'a str,
    question: &'a str,
    seed: u64,
    passed: bool,
    control_fails: bool,
    checks: &'a [Check],
    goals: &'a [Check],
    control: &'a [Check],
    /// Verdicts that can be had.
    verdicts: std::collections::BTreeMap<&'a str, f64>,
    /// Of many runs, if there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    monte_carlo: Option<PassRate>,
    /// Beside other guards, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rivals: Vec<Comparison>,
}

/// An answer for machines.
#[must_use]
pub fn json<'a>(answer: &'a Answer, rate: Option<PassRate>, rivals: &[Comparison]) -> JsonAnswer<'a> {
    JsonAnswer {
        name: &answer.name,
        question: &answer.scenario.question,
        seed: answer.seed,
        passed: answer.passed(),
        control_fails: answer.control_fails(),
        checks: &answer.checks,
        goals: &answer.goals,
        control: &answer.control,
        verdicts: answer
            .verdicts
            .iter()
            .filter(|(_, value)| value.is_finite())
            .map(|(name, value)| (name.as_str(), *value))
            .collect(),
        monte_carlo: rate,
        rivals: rivals.to_vec(),
    }
}

/// A page of all answers with plots, whole in one file.
#[must_use]
pub fn html(answers: &[Answer]) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>rayguard simulate</title><style>\
         body{font:14px system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}\
         table{border-collapse:collapse}td,th{padding:.1rem .7rem;text-align:right}\
         td:first-child,th:first-child{text-align:left}.bad{color:#b00020}.good{color:#1b6e20}\
         svg{width:100%;height:150px;background:#fafafa;margin:.4rem 0}h2{margin-top:2.5rem}\
         .key span{margin-right:1rem}</style><h1>rayguard simulate</h1>",
    );
    let passed = answers.iter().filter(|answer| answer.passed()).count();
    // Writing to a String cannot fail.
    let _ = write!(page, "<p>{passed} of {} scenarios hold.</p>", answers.len());
    for answer in answers {
        section(&mut page, answer);
    }
    page.push_str("</html>\n");
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// What of a second is drawn.
type Of = fn(&super::tally::Second) -> f64;

fn section(page: &mut String, answer: &Answer) {
    let (class, word) = if answer.passed() { ("good", "holds") } else { ("bad", "does not hold") };
    let _ = write!(
        page,
        "<h2>{} <small class=\"{class}\">{word}</small></h2><p>{} (seed {})</p><table><tr><th>verdict<th>value\
         <th>expected<th>control</tr>",
        escape(&answer.name),
        escape(&answer.scenario.question),
        answer.seed
    );
    for (check, control) in answer.checks.iter().zip(&answer.control) {
        let value = |check: &Check| check.value.map_or("none".to_owned(), short);
        let class = if check.met { "good" } else { "bad" };
        let _ = write!(
            page,
            "<tr><td>{}<td class=\"{class}\">{}<td>{} to {}<td>{}</tr>",
            escape(&check.name),
            value(check),
            short(check.low),
            short(check.high),
            value(control)
        );
    }
    for goal in &answer.goals {
        let _ = write!(
            page,
            "<tr><td>{} (wanted)<td>{}<td>{} to {}<td></tr>",
            escape(&goal.name),
            goal.value.map_or("none".to_owned(), short),
            short(goal.low),
            short(goal.high)
        );
    }
    page.push_str("</table>");
    let flows: [(&str, &str, Of); 4] = [
        ("asked /s", "#9e9e9e", |s| f64::from(s.offered)),
        ("served /s", "#1b6e20", |s| f64::from(s.served)),
        ("refused /s", "#e08b00", |s| f64::from(s.shed)),
        ("given up or failed /s", "#b00020", |s| f64::from(s.lost)),
    ];
    let loops: [(&str, &str, Of); 3] = [
        ("limit", "#0d47a1", |s| s.limit),
        ("under way", "#64b5f6", |s| f64::from(s.in_flight)),
        ("waiting", "#8e24aa", |s| f64::from(s.waiting)),
    ];
    let head: [(&str, &str, Of); 2] = [
        ("head CPU %", "#6d4c41", |s| s.node_cpu_pct),
        ("jobs not started", "#00838f", |s| s.backlog as f64),
    ];
    plot(page, answer, &flows);
    plot(page, answer, &loops);
    plot(page, answer, &head);
}

fn plot(page: &mut String, answer: &Answer, lines: &[(&str, &str, Of)]) {
    let seconds = &answer.run.seconds;
    let top = lines.iter().flat_map(|line| seconds.iter().map(line.2)).fold(1.0, f64::max);
    let width = answer.scenario.seconds.max(1.0);
    page.push_str("<div class=\"key\">");
    for (name, colour, _) in lines {
        let _ = write!(page, "<span style=\"color:{colour}\">&#9632; {name}</span>");
    }
    let _ = write!(page, "<small>0 to {}, {} s</small></div>", short(top), short(width));
    page.push_str("<svg viewBox=\"0 0 1000 150\" preserveAspectRatio=\"none\">");
    let [from, to] = answer.run.measured;
    let _ = write!(
        page,
        "<rect x=\"{:.1}\" y=\"0\" width=\"{:.1}\" height=\"150\" fill=\"#eef3fb\"/>",
        1000.0 * from / width,
        1000.0 * (to - from) / width
    );
    for (_, colour, of) in lines {
        let _ = write!(page, "<polyline fill=\"none\" stroke=\"{colour}\" points=\"");
        for second in seconds {
            let _ =
                write!(page, "{:.1},{:.1} ", 1000.0 * second.at_s / width, 148.0 - 145.0 * of(second) / top);
        }
        page.push_str("\"/>");
    }
    page.push_str("</svg>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_exact() {
        // Clopper and Pearson's own kind of table: 0 of 20, 20 of 20, 8 of 10.
        for (passed, runs, low, high) in
            [(0, 20, 0.0, 0.1684), (20, 20, 0.8316, 1.0), (8, 10, 0.4439, 0.9748)]
        {
            let rate = pass_rate(passed, runs);
            assert!((rate.low - low).abs() < 1e-4 && (rate.high - high).abs() < 1e-4, "{rate:?}");
        }
    }
}
