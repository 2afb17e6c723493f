//! The built-in signals, read off pages recorded from Ray 2.60, and of four versions before it (`fixtures/ray/scrapes/`:
//! whole lines, trimmed to the families that matter and a few that do not). The expected
//! values were computed from the same files by other means than this library's.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use rayguard::core::policy::{
    Control, Derivation, How, LabelCondition, Policy, Selector, Signal, SignalId, SignalSource,
};
use rayguard::core::signal::catalogue::{SIGNALS, SignalDefault};
use rayguard::core::signal::reading::{Missing, Reading};
use rayguard::core::signal::series::SignalReader;
use rayguard::core::time::{Time, WallMs};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

macro_rules! pages {
    ($name:literal) => {
        [
            ("head:8080", include_str!(concat!("fixtures/ray/scrapes/", $name, "_8080.prom"))),
            ("head:44227", include_str!(concat!("fixtures/ray/scrapes/", $name, "_44227.prom"))),
        ]
    };
}

/// The built-in signals under a reader of their own.
struct Head {
    reader: SignalReader,
    last: Vec<(SignalId, Result<Reading, Missing>)>,
}

impl Head {
    fn new() -> Head {
        Head::with(SIGNALS.iter().map(SignalDefault::signal).collect())
    }

    fn with(signals: Vec<Signal>) -> Head {
        let control = Control {
            inner_period: SECOND,
            outer_period: SECOND,
            window: SECOND,
            data_age: SECOND,
            deadband: 0.1,
            slew: 1.5,
            cooldown: SECOND,
        };
        let policy = Policy { modules: Vec::new(), classes: Vec::new(), signals, control, history: true };
        Head { reader: SignalReader::new(&policy), last: Vec::new() }
    }

    /// A round of scrapes at a time in seconds.
    fn scrape(&mut self, seconds: u32, pages: &[(&str, &str)]) {
        let now = Time::ZERO + SECOND * seconds;
        for (target, page) in pages {
            let counts = self.reader.on_scrape(target, page.as_bytes(), now, WallMs(0)).unwrap();
            assert_eq!((counts.lost, counts.repeated), (0, 0), "{target}: every line is read");
        }
        self.last = self.reader.readings(now);
    }

    fn reading(&self, name: &str) -> Result<Reading, Missing> {
        let place = SIGNALS.iter().position(|signal| signal.name == name).unwrap();
        self.last.iter().find(|(id, _)| id.index() == place).unwrap().1.clone()
    }

    #[track_caller]
    fn assert_reads(&self, name: &str, expected: f64) {
        let value = self.reading(name).unwrap().value;
        assert!(
            (value - expected).abs() <= 1e-9 * expected.abs().max(1.0),
            "{name}: {value}, not {expected}"
        );
    }
}

#[test]
fn an_idle_head_reads_idle() {
    let mut head = Head::new();
    head.scrape(0, &pages!("idle0"));
    head.assert_reads("node_cpu", 5.1);
    // GCS 0.4 and the dashboard's processes 1.2 % of one core; two cores.
    head.assert_reads("head_cpu", 0.8);
    head.assert_reads("workers_waiting", 0.0);
    head.assert_reads("dashboard_loop_tasks", 13.0);
    head.assert_reads("dashboard_loop_lag", 1.267_879_000_010_907_5);
    head.assert_reads("head_memory", 100.0 * 594_726_912.0 / 25_276_510_208.0);
    head.assert_reads("gcs_memory", 48_046_080.0 / 1_048_576.0);
    head.assert_reads("agent_memory", 127_053_824.0 / 1_048_576.0);
    head.assert_reads("report_head_cpu", 0.2);
    head.assert_reads("gcs_cpu", 0.4);
}

#[test]
fn an_idle_head_without_task_and_actor_families_uses_the_other_names() {
    let mut head = Head::new();
    head.scrape(0, &pages!("idle0"));
    head.assert_reads("pending_tasks", 0.0);
    head.assert_reads("submission_backlog", 0.0);
    let source = |name: &str| head.reading(name).unwrap().source.to_string();
    assert!(source("pending_tasks").contains("ray_scheduler_unscheduleable_tasks"));
    assert!(source("submission_backlog").contains("ray_gcs_actors_count"));
}

#[test]
fn a_burst_of_jobs_is_seen_as_backlog_pending_tasks_and_cpu() {
    let mut head = Head::new();
    head.scrape(0, &pages!("jobburst"));
    head.assert_reads("node_cpu", 100.0);
    // GCS 9.5 and the dashboard's processes 27.9 % of one core; two cores.
    head.assert_reads("head_cpu", 18.7);
    head.assert_reads("pending_tasks", 199.0);
    head.assert_reads("submission_backlog", 52.0);
    head.assert_reads("workers_waiting", 37.0);
    head.assert_reads("job_head_cpu", 14.3);
    let found: Vec<String> = head.reader.found().map(|found| found.source.to_string()).collect();
    assert!(
        found.contains(&"head:8080 ray_node_cpu_utilization{IsHeadNode=\"true\"}".to_owned()),
        "{found:?}"
    );
    assert!(found.contains(&"head:44227 ray_dashboard_event_loop_tasks".to_owned()), "{found:?}");
}

#[test]
fn fifty_healthy_actors_are_no_backlog_of_submissions() {
    let mut head = Head::new();
    let page = include_str!("fixtures/ray/scrapes/tasks1000_actors50_8080.prom");
    assert!(page.contains("ray_gcs_actors_count") && page.contains("State=\"Registered\""));
    head.scrape(0, &[("head:8080", page)]);
    head.assert_reads("submission_backlog", 0.0);
    head.assert_reads("node_cpu", 84.2);
}

#[test]
fn a_gcs_that_has_fallen_silent_is_not_a_head_without_backlog() {
    // Ray drops gauges that were not reported twice; the workers' own `ray_actors` stay.
    let [(agent, page), _] = pages!("jobburst");
    let is_gcs = |line: &&str| line.contains("Component=\"gcs_server\"");
    let silent: String = page.lines().filter(|line| !is_gcs(line)).flat_map(|line| [line, "\n"]).collect();
    assert!(silent.contains("\nray_actors{Component=\"core_worker\""));
    let mut head = Head::new();
    head.scrape(0, &[(agent, &silent)]);
    assert!(matches!(head.reading("submission_backlog"), Err(Missing::NotFound { .. })));
    head.scrape(10, &[(agent, page)]);
    head.assert_reads("submission_backlog", 52.0);
    head.scrape(20, &[(agent, &silent)]);
    assert!(head.reading("submission_backlog").is_err(), "nor when it falls silent later");
}

#[test]
fn negative_series_are_part_of_the_sum() {
    let page = include_str!("fixtures/ray/scrapes/serve_8080.prom");
    let select = Selector {
        metric: "ray_tasks".into(),
        labels: vec![LabelCondition::OneOf(
            "State".into(),
            vec!["SUBMITTED_TO_WORKER".into(), "RUNNING".into()],
        )],
    };
    let source = SignalSource::Scrape(Derivation { select, how: How::Sum, scale: 1.0 });
    let mut head = Head::with(vec![Signal { sources: vec![source], ..SIGNALS[0].signal() }]);
    head.scrape(0, &[("head:8080", page)]);
    // -3 of one series, 3 of three others, 3 running.
    head.assert_reads(SIGNALS[0].name, 3.0);
}

#[test]
fn a_wedged_job_api_shows_in_the_tasks_of_the_dashboards_loop() {
    let mut head = Head::new();
    head.scrape(0, &pages!("wedged_tail"));
    head.assert_reads("pending_tasks", 50.0);
    head.assert_reads("dashboard_loop_tasks", 842.0);
    head.assert_reads("node_cpu", 73.5);
}

#[test]
fn slow_shares_come_from_the_difference_of_two_pages_and_leave_out_calls_that_wait() {
    let mut head = Head::new();
    head.scrape(0, &pages!("jobburst"));
    assert!(
        matches!(head.reading("gcs_slow_share"), Err(Missing::Unusable { .. })),
        "one page is no difference"
    );
    head.scrape(60, &pages!("after120jobs"));
    head.assert_reads("gcs_slow_share", 100.0 * 15_784.0 / 266_972.0);
    head.assert_reads("gcs_very_slow_share", 100.0 * 2_294.0 / 266_972.0);
    head.assert_reads("dashboard_slow_share", 100.0 * 509.0 / 23_829.0);
}

#[test]
fn without_the_probe_gcs_latency_falls_back_to_a_decade_and_says_so() {
    let mut head = Head::new();
    head.scrape(0, &pages!("jobburst"));
    head.scrape(60, &pages!("after120jobs"));
    let reading = head.reading("gcs_latency").unwrap();
    // 0.86 % of the calls took more than 100 ms: the 99th percentile lies above 10 and below 100.
    assert!((reading.value - 100.0).abs() < 1e-9);
    assert!((reading.resolution - 10.0).abs() < 1e-9);
}

#[test]
fn without_the_dashboard_page_only_the_dashboard_signals_are_missing() {
    let mut head = Head::new();
    head.scrape(0, &pages!("jobburst")[..1]);
    head.assert_reads("node_cpu", 100.0);
    for name in ["dashboard_loop_tasks", "job_head_cpu", "dashboard_slow_share"] {
        assert!(matches!(head.reading(name), Err(Missing::NotFound { .. })), "{name}");
    }
}

#[test]
fn the_process_of_task_events_is_seen_where_ray_has_one() {
    let [agent, (target, page)] = pages!("idle0");
    let mut head = Head::new();
    head.scrape(0, &[agent, (target, page)]);
    assert!(head.reading("task_events_head_cpu").is_err());
    // As of a head that was started with `RAY_enable_task_events_to_dashboard_head=1`.
    let with = format!(
        "{page}ray_component_cpu_percentage{{Component=\"dashboard_TaskEventsHead\",SessionName=\"s\",Version=\"2.60.0\",ip=\"192.0.2.2\",pid=\"19118\"}} 1.0\n"
    );
    head.scrape(5, &[agent, (target, &with)]);
    head.assert_reads("task_events_head_cpu", 1.0);
    // Of two cores, beside the 0.8 % of the others.
    head.assert_reads("head_cpu", 1.3);
}

#[test]
fn a_page_asked_for_twice_is_one_information() {
    let mut head = Head::new();
    head.scrape(0, &pages!("jobburst"));
    let first = head.reading("pending_tasks").unwrap();
    // Only the exporter's own CPU time moves, as it does for every request.
    let [(agent, page), dashboard] = pages!("jobburst");
    let line = page.lines().find(|line| line.starts_with("process_cpu_seconds_total")).unwrap();
    let later = page.replace(line, "process_cpu_seconds_total 12345.6");
    head.scrape(5, &[(agent, &later), dashboard]);
    assert_eq!(head.reading("pending_tasks").unwrap(), first);
}

/// A version, its pages, and what they say of head_cpu, node_cpu, head_memory and submission_backlog, computed from
/// the same files by other means.
type Version = (&'static str, [(&'static str, &'static str); 2], [f64; 4]);

const VERSIONS: [Version; 4] = [
    ("2.9.3", pages!("ray2.9.3"), [0.0, 100.0, 17.867_270_262_084_67, 6.0]),
    ("2.31.0", pages!("ray2.31.0"), [0.3, 100.0, 8.488_870_804_361_223, 0.0]),
    ("2.44.1", pages!("ray2.44.1"), [0.5, 99.9, 7.283_089_783_684_094, 0.0]),
    ("2.53.0", pages!("ray2.53.0"), [2.05, 80.2, 9.652_908_327_487_461, 0.0]),
];

/// A node that is not the head, as the same Ray would write it: no GCS, no dashboard, other values.
fn of_another_node(page: &str) -> String {
    let lines = page.lines().filter(|line| !line.contains("gcs") && !line.contains("Component=\"dashboard"));
    lines
        .map(|line| {
            let line = line
                .replace("192.0.2.2", "192.0.2.9")
                .replace("IsHeadNode=\"true\"", "IsHeadNode=\"false\"")
                .replace("=\"head\"", "=\"worker\"");
            match line.rsplit_once(' ') {
                Some((series, _)) if line.starts_with("ray_node_") => format!("{series} 77\n"),
                _ => line + "\n",
            }
        })
        .collect()
}

#[test]
fn every_signal_that_moves_a_limit_is_read_off_each_versions_pages() {
    use rayguard::core::request::{catalogue, profile};
    for (version, pages, [head_cpu, node_cpu, head_memory, backlog]) in VERSIONS {
        let mut head = Head::new();
        head.scrape(0, &pages);
        let now = Time::ZERO;
        head.reader.on_probe("head:8265", &Ok(4.0), now);
        head.last = head.reader.readings(now);
        let profile = profile::of_version(version).0;
        for class in catalogue::CLASSES {
            for signal in class.signals {
                let reading = head.reading(signal);
                assert!(reading.is_ok(), "{version}: {signal} of {}: {reading:?}", class.name);
            }
        }
        head.assert_reads("head_cpu", head_cpu);
        head.assert_reads("node_cpu", node_cpu);
        head.assert_reads("head_memory", head_memory);
        head.assert_reads("submission_backlog", backlog);
        for signal in SIGNALS.iter().filter(|signal| profile.lacks(signal.name)) {
            assert!(head.reading(signal.name).is_err(), "{version} has {}", signal.name);
        }
    }
}

#[test]
fn another_nodes_page_is_never_taken_for_the_heads_whatever_its_labels_lack() {
    for (version, [(agent, page), dashboard], [head_cpu, _, head_memory, _]) in VERSIONS {
        let other = of_another_node(page);
        let mut head = Head::new();
        head.scrape(0, &[("node:8080", &other)]);
        for signal in ["head_memory", "head_cpu", "node_cpu"] {
            assert!(head.reading(signal).is_err(), "{version}: {signal} of a node");
        }
        head.scrape(5, &[(agent, page), dashboard, ("node:8080", &other)]);
        head.assert_reads("head_cpu", head_cpu);
        head.assert_reads("head_memory", head_memory);
        assert_eq!(head.reader.of_head().collect::<Vec<_>>(), ["head:44227", "head:8080"], "{version}");
    }
}

#[test]
fn a_page_that_was_the_heads_stays_so_while_its_gcs_is_silent() {
    let (_, [(agent, page), _], [_, _, head_memory, _]) = VERSIONS[0];
    let mut head = Head::new();
    head.scrape(0, &[(agent, page)]);
    let silent: String = page.lines().filter(|line| !line.contains("gcs")).flat_map(|l| [l, "\n"]).collect();
    head.scrape(5, &[(agent, &silent)]);
    head.assert_reads("head_memory", head_memory);
    // Its cores alone are no share of them that is used.
    assert!(matches!(head.reading("head_cpu"), Err(Missing::NotFound { .. })));
    head.reader.keep_targets(|_| false);
    head.scrape(10, &[(agent, &silent)]);
    assert!(head.reading("head_memory").is_err(), "it has to say so anew");
}
