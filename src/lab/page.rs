//! The page: every answer with its plots, whole in one file that a person would rather look at
//! than read.
//!
//! No script and no font from elsewhere: HTML, one style sheet, SVG drawn here. Colours follow
//! the reader's light or dark preference. Each scenario shows its verdicts beside their
//! expected range and plots on one time axis: what was asked and what became of it, latency, the
//! limit and what it held, the pressure that moved it, and the head. Faults are marked where they
//! act, and the measured part is shaded.

use super::report::{Answer, short};
use rayguard_sim::scenario::FaultSpec;
use rayguard_sim::tally::Second;
use rayguard_sim::verdict::Check;
use std::fmt::Write as _;

const STYLE: &str = "
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#1d2126;--quiet:#6b7480;--rule:#e4e2dd;
--shade:#f1f4f8;--fault:#fbe9e2;--good:#1a7f4b;--bad:#c02b37;--want:#a06a00;--one:#8b95a1;--two:#1a7f4b;--three:#e08a00;
--four:#c02b37;--five:#2563c9;--six:#7fb2f0;--seven:#8a4fc4}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--card:#1c2026;--ink:#e6e8ea;--quiet:#98a2ad;--rule:#2d333b;
--shade:#20262e;--fault:#3a2620;--good:#4cc38a;--bad:#ff6b75;--want:#e0ac4a;--one:#7d8896;--two:#4cc38a;--three:#f0a83c;
--four:#ff6b75;--five:#6ea8ff;--six:#39629c;--seven:#c193f0}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}
main{max-width:76rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}h1{font-size:1.7rem;margin:0 0 .25rem;letter-spacing:-.01em}
h2{font-size:1.15rem;margin:0}p{margin:.2rem 0 0}.quiet{color:var(--quiet)}a{color:inherit}
.tiles{display:flex;flex-wrap:wrap;gap:.4rem;margin:1.2rem 0 2rem;padding:0;list-style:none}
.tiles a{display:block;padding:.15rem .6rem;border-radius:99px;border:1px solid var(--rule);background:var(--card);
text-decoration:none;font-size:.85rem}.tiles a::before{content:'\\25CF';margin-right:.4rem;color:var(--good)}
.tiles a.bad::before{color:var(--bad)}
section{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:1.2rem 1.4rem;margin:0 0 1.4rem}
header{display:flex;gap:1rem;justify-content:space-between;align-items:baseline}
.chip{font-size:.8rem;padding:.1rem .6rem;border-radius:99px;color:var(--card);background:var(--good);white-space:nowrap}
.chip.good,.chip.bad{color:var(--card)}.chip.bad{background:var(--bad)}.cells{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:.4rem 1.8rem;margin-top:.9rem;align-items:start}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.87rem}
td,th{padding:.28rem .3rem;text-align:right;border-top:1px solid var(--rule);font-weight:400}
th{color:var(--quiet);border:0}td{white-space:nowrap}td:first-child,th:first-child{text-align:left}.good{color:var(--good)}.bad{color:var(--bad)}
.want{color:var(--want)}figure{margin:0 0 .7rem}figcaption{font-size:.82rem;display:flex;flex-wrap:wrap;gap:0 .9rem}
figcaption b{font-weight:600}.dot{display:inline-block;width:.65em;height:.65em;border-radius:2px;margin-right:.3em}
svg{display:block;width:100%;height:auto;overflow:visible}svg text{font-size:11px;fill:var(--quiet)}
.line{fill:none;stroke-width:1.5;vector-effect:non-scaling-stroke;stroke-linejoin:round}.grid{stroke:var(--rule)}.rule{stroke:var(--quiet);stroke-dasharray:4 3}
.wide{overflow-x:auto}
@media(max-width:40rem){main{padding:1.5rem .7rem 3rem}section{padding:1rem .9rem}table{font-size:.78rem}
td,th{padding:.28rem .2rem}svg text{font-size:21px}}";

/// The page of these answers.
#[must_use]
pub fn html(answers: &[Answer]) -> String {
    let held = answers.iter().filter(|answer| answer.passed()).count();
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>rayguard simulate</title><style>{STYLE}</style></head><body><main>\
         <h1>{held} of {} scenarios hold</h1><p class=\"quiet\">Each holds when its expectations are met and its \
         control, the same run without this protection, breaks one of them.</p><ul class=\"tiles\">",
        answers.len()
    );
    for answer in answers {
        let class = if answer.passed() { "good" } else { "bad" };
        let name = escape(&answer.name);
        // Writing to a String cannot fail.
        let _ = write!(page, "<li><a class=\"{class}\" href=\"#{name}\">{name}</a></li>");
    }
    page.push_str("</ul>");
    for answer in answers {
        section(&mut page, answer);
    }
    page.push_str("</main></body></html>\n");
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn section(page: &mut String, answer: &Answer) {
    let (class, word) = if answer.passed() { ("good", "holds") } else { ("bad", "does not hold") };
    let name = escape(&answer.name);
    let _ = write!(
        page,
        "<section id=\"{name}\"><header><h2>{name}</h2><span class=\"chip {class}\">{word}</span></header>\
         <p>{}</p><div class=\"cells\"><div>",
        escape(&answer.scenario.question)
    );
    verdict_table(page, answer);
    let _ = write!(page, "<p class=\"quiet\"><small>seed {}</small></p></div>", answer.seed);
    // A plot of nothing but zeros says less than none: a synthetic plant has no jobs.
    let says_something = |plot: &&Plot| {
        plot.lines
            .iter()
            .any(|(_, _, of)| answer.run.timeline.points().iter().any(|point| of(&point.peak) > 0.0))
    };
    for plot in PLOTS.iter().filter(says_something) {
        draw(page, answer, plot);
    }
    page.push_str("</div></section>");
}

fn verdict_table(page: &mut String, answer: &Answer) {
    let control = escape(&answer.control_label);
    let _ = write!(
        page,
        "<div class=\"wide\"><table><tr><th>verdict<th>value<th>expected<th>control: {control}</tr>"
    );
    let value = |check: &Check| check.value.map_or("none".to_owned(), short);
    let row = |page: &mut String, check: &Check, class: &str, control: &str| {
        let (name, value) = (escape(&check.name), value(check));
        let range = format!("{} to {}", short(check.low), short(check.high));
        let _ = write!(
            page,
            "<tr><td>{name}<td class=\"{class}\">{value}<td class=\"quiet\">{range}{control}</tr>"
        );
    };
    for (at, check) in answer.checks.iter().enumerate() {
        let class = if check.met { "good" } else { "bad" };
        let control = answer.control.get(at).map_or("<td>".to_owned(), |control| {
            format!("<td class=\"{}\">{}", if control.met { "quiet" } else { "bad" }, value(control))
        });
        row(page, check, class, &control);
    }
    for goal in &answer.goals {
        row(page, goal, if goal.met { "good" } else { "want" }, "<td class=\"want\">wanted");
    }
    page.push_str("</table></div>");
}

/// What of a second is drawn.
type Of = fn(&Second) -> f64;

struct Plot {
    title: &'static str,
    lines: &'static [(&'static str, &'static str, Of)],
    /// A value that is drawn through.
    rule: Option<f64>,
}

/// A stalled class's pressure has no bound; what lies beyond is all the same to the eye.
const PRESSURE_DRAWN_MAX: f64 = 10.0;

const PLOTS: [Plot; 5] = [
    Plot {
        title: "requests a second",
        lines: &[
            ("asked", "one", |s| f64::from(s.offered)),
            ("served", "two", |s| f64::from(s.served)),
            ("shed", "three", |s| f64::from(s.shed)),
            ("given up or failed", "four", |s| f64::from(s.lost)),
        ],
        rule: None,
    },
    Plot {
        title: "latency of what was served, p99, ms",
        lines: &[("latency", "two", |s| s.latency_ms)],
        rule: None,
    },
    Plot {
        title: "the watched limit",
        lines: &[
            ("under way", "six", |s| f64::from(s.in_flight)),
            ("waiting", "seven", |s| f64::from(s.waiting)),
            ("limit", "five", |s| s.limit),
        ],
        rule: None,
    },
    Plot {
        title: "its pressure, 1 at the target",
        lines: &[("pressure", "four", |s| s.pressure.min(PRESSURE_DRAWN_MAX))],
        rule: Some(1.0),
    },
    Plot {
        title: "the head",
        lines: &[("CPU %", "three", |s| s.node_cpu_pct), ("jobs not started", "seven", |s| s.backlog as f64)],
        rule: None,
    },
];

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 120.0;
/// Room for the numbers at the left.
const LEFT: f64 = 44.0;
/// Points drawn at most: more than a screen has columns would only make the file larger.
const POINTS_MAX: usize = 800;

fn draw(page: &mut String, answer: &Answer, plot: &Plot) {
    let points = answer.run.timeline.points();
    let length = answer.scenario.seconds.max(1.0);
    let most = plot
        .lines
        .iter()
        .flat_map(|line| points.iter().map(|point| line.2(&point.peak)))
        .filter(|v| v.is_finite());
    let top = round_up(most.fold(1.0, f64::max));
    let x = |at_s: f64| LEFT + (WIDTH - LEFT) * (at_s / length).clamp(0.0, 1.0);
    let y = |value: f64| HEIGHT - HEIGHT * (value / top).clamp(0.0, 1.0);
    let _ = write!(page, "<figure><figcaption><b>{}</b>", plot.title);
    for (name, colour, _) in plot.lines {
        let _ = write!(page, "<span><i class=\"dot\" style=\"background:var(--{colour})\"></i>{name}</span>");
    }
    let _ = write!(
        page,
        "</figcaption><svg viewBox=\"0 -6 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">",
        HEIGHT + 26.0,
        plot.title
    );
    let band = |page: &mut String, from: f64, to: f64, colour: &str| {
        let (left, right) = (x(from), x(to));
        let _ = write!(
            page,
            "<rect x=\"{left:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"var(--{colour})\"/>",
            (right - left).max(2.0)
        );
    };
    band(page, answer.run.measured[0], answer.run.measured[1], "shade");
    for FaultSpec { at_s, for_s, .. } in &answer.scenario.fault {
        band(page, *at_s, at_s + for_s.unwrap_or(0.0), "fault");
    }
    for share in [0.0, 0.5, 1.0] {
        let (at, value) = (y(top * share), short_number(top * share));
        let _ = write!(
            page,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let anchor = if share < 0.1 {
            "start"
        } else if share > 0.9 {
            "end"
        } else {
            "middle"
        };
        let _ = write!(
            page,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            x(length * share),
            HEIGHT + 16.0,
            clock(length * share)
        );
    }
    if let Some(value) = plot.rule {
        let at = y(value);
        let _ =
            write!(page, "<line class=\"rule\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
    }
    let step = points.len().div_ceil(POINTS_MAX).max(1);
    for (_, colour, of) in plot.lines {
        let _ = write!(page, "<polyline class=\"line\" stroke=\"var(--{colour})\" points=\"");
        for some in points.chunks(step) {
            // The peak of each step: a spike must not vanish between two points.
            let peak = some
                .iter()
                .map(|point| of(&point.peak))
                .filter(|value| value.is_finite())
                .fold(0.0, f64::max);
            let _ = write!(page, "{:.1},{:.1} ", x(some[0].peak.at_s), y(peak));
        }
        page.push_str("\"/>");
    }
    page.push_str("</svg></figure>");
}

/// The next round number: no more than a third of a plot stays empty above its highest point.
fn round_up(value: f64) -> f64 {
    let ten = 10.0_f64.powf(value.log10().floor());
    [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0]
        .into_iter()
        .map(|times| times * ten)
        .find(|top| *top >= value)
        .unwrap_or(value)
}

fn short_number(value: f64) -> String {
    if value >= 10_000.0 { format!("{:.0}k", value / 1000.0) } else { format!("{value}") }
}

fn clock(seconds: f64) -> String {
    match seconds {
        s if s >= 7200.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 600.0 => format!("{:.0} min", s / 60.0),
        s => format!("{s:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report;
    use rayguard_sim::scenario::Scenario;
    use rayguard_sim::world::{Onlooker, Traces};

    #[test]
    fn the_top_of_a_plot_is_a_round_number() {
        for (value, top) in [(1.0, 1.0), (3.5, 4.0), (99.0, 100.0), (101.0, 150.0), (0.7, 0.8)] {
            assert!((round_up(value) - top).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn the_page_is_whole_and_says_which_scenario_holds() {
        let text = r#"
            question = "is <this> & that escaped?"
            seconds = 20
            plant = { kind = "servers", count = 8, mean_ms = 100 }
            guard = { fixed = 16 }
            expect = { "all.shed" = [0.01, 1.0] }
            [[client]]
            name = "all"
            kind = "open"
            route = "work"
            per_second = 160
            [[fault]]
            kind = "capacity"
            at_s = 5
            for_s = 5
            factor = 0.5
        "#;
        let scenario = Scenario::read(text).expect("good");
        let answer =
            report::answer("twice", &scenario, 1, &Traces::new(), Onlooker::default()).expect("runs");
        let page = html(std::slice::from_ref(&answer));
        assert!(page.contains("is &lt;this&gt; &amp; that escaped?"));
        assert!(page.contains("1 of 1 scenarios hold"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(
            page.matches("var(--fault)\"").count(),
            page.matches("<svg").count(),
            "a fault is marked in each plot"
        );
        assert!(page.matches("<svg").count() >= 3, "flows, latency, limit");
        assert!(!page.contains("http://") && !page.contains("https://"), "nothing from elsewhere");
        assert!(!page.contains("NaN"));
    }
}
