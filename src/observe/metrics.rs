//! Our own metrics, as Prometheus reads them.
//!
//! A page is made anew for each scrape from what proxy and controller have counted anyway; nothing
//! is counted twice and no global registry exists. Labels are classes, modules, limits,
//! signals, rules and reasons: as many series as the policy has of these, never one
//! per client. Series stand from the first scrape on, at zero, so that a rate over the first
//! refusal is not lost.
//!
//! Both formats are spoken, as the scraper asks: OpenMetrics, and the older text format, in
//! which a counter's family carries the `_total` of its samples.

use crate::core::admission::controller::HeldBy;
use crate::core::admission::history::History;
use crate::core::admission::meter::{BUCKETS, Counts, Reason, upper_bound_secs};
use crate::core::alert::Alert;
use crate::core::controller::ProxyReading;
use crate::core::controller::leadership::Role;
use crate::core::controller::view::{ClassView, View};
use crate::core::event::{Mode, SignalHealth};
use crate::core::replicas::quota::Leased;
use crate::observe::tally::{Direction, EventCounts};
use crate::proxy::ratelimit::tally::{Answer, AnswerCounts};
use crate::proxy::shared_answer::Budget;
use crate::runtime::app::App;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The first bucket shown is the one up to 1.024 ms; from there one an octave, up to 67 s.
const FIRST_BUCKET: usize = 16;
const LAST_BUCKET: usize = 80;
const BUCKETS_AN_OCTAVE: usize = 4;

/// How a page is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

/// A page for a scraper.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Its content type.
    pub kind: &'static str,
    /// The text.
    pub body: String,
}

impl Format {
    /// What a scraper's `Accept` asks for.
    pub fn accepted(accept: &str) -> Format {
        if accept.contains("application/openmetrics-text") { Format::OpenMetrics } else { Format::Text }
    }
}

/// The page of this moment.
pub fn page(app: &App, format: Format) -> Page {
    let now = Moment {
        view: app.view(),
        proxy: app.proxy_reading().0,
        tally: app.tally(),
        events_lost: app.events_lost(),
        ratelimit: Arc::clone(&app.proxy().ratelimit),
        shared: app.proxy().coalescer.budget().clone(),
        history: Arc::clone(app.proxy().admission.history()),
        leased: app.leased(),
        started_s: app.clock.wall().0 as f64 / 1e3 - app.clock.now().as_secs_f64(),
    };
    now.page(format)
}

/// All that a page is made from.
#[derive(Debug)]
struct Moment {
    view: View,
    proxy: ProxyReading,
    tally: EventCounts,
    events_lost: u64,
    ratelimit: Arc<AnswerCounts>,
    shared: Budget,
    history: Arc<History>,
    /// What this replica may use of each shared limit, and how old that is.
    leased: Option<(Vec<Leased>, Duration)>,
    started_s: f64,
}

impl Moment {
    fn page(self, format: Format) -> Page {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut body = String::with_capacity(64 * 1024);
        // Writing to a String cannot fail.
        let _ = text::encode(&mut body, &registry);
        match format {
            Format::OpenMetrics => {
                Page { kind: "application/openmetrics-text; version=1.0.0; charset=utf-8", body }
            }
            Format::Text => Page { kind: "text/plain; version=0.0.4; charset=utf-8", body: as_text(&body) },
        }
    }

    fn classes(&self) -> impl Iterator<Item = (&ClassView, &Counts)> {
        self.view.classes.iter().zip(self.proxy.iter().map(|reading| &reading.counts))
    }
}

/// A name, its help, its samples with their labels.
struct Writer<'a>(DescriptorEncoder<'a>);

type Label<'a> = (&'static str, &'a str);

impl Writer<'_> {
    fn gauges<'v, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([Label<'v>; N], f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            if N == 0 {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn counters<'v, const N: usize, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([Label<'v>; N], V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            if N == 0 {
                family.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            } else {
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
        }
        Ok(())
    }
}

impl Collector for Moment {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.requests(&mut writer)?;
        self.limits(&mut writer)?;
        self.signals(&mut writer)?;
        self.replicas(&mut writer)?;
        self.house(&mut writer)
    }
}

impl Moment {
    fn requests(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let requests = self.classes().flat_map(|(class, counts)| {
            let row = move |verdict, reason, count| {
                ([("class", class.name.as_str()), ("verdict", verdict), ("reason", reason)], count)
            };
            let refused = Reason::ALL.iter().map(move |reason| {
                let verdict = if reason.is_failure() { "failed" } else { "shed" };
                row(verdict, reason.label(), counts.shed[*reason as usize])
            });
            [
                row("admitted", "", counts.admitted),
                row("left", "", counts.left),
                row("shared", "", class.shared),
            ]
            .into_iter()
            .chain(refused)
        });
        writer.counters(
            "rayguard_requests",
            "Requests by outcome at the proxy: admitted, shared (answered with another request's answer), left (the client left while it waited), failed (Ray could not be reached) or shed, and why",
            requests,
        )?;
        writer.counters(
            "rayguard_shadow_sheds",
            "Requests let through that would have been shed, were the class not in shadow mode",
            self.classes().map(|(class, counts)| ([("class", class.name.as_str())], counts.shadow_shed)),
        )?;
        let answers = self.classes().flat_map(|(class, counts)| {
            [
                ("served", counts.served),
                ("failed", counts.failed),
                ("late", counts.late),
                ("abandoned", counts.abandoned),
                ("cancelled", counts.cancelled),
            ]
            .map(|(outcome, count)| ([("class", class.name.as_str()), ("outcome", outcome)], count))
        });
        writer.counters(
            "rayguard_answers",
            "Admitted requests that ended: served (below 500), failed, abandoned by their client, or cancelled with it; and late ones, whose client was told that Ray took too long",
            answers,
        )?;
        self.durations(writer)?;
        writer.counters(
            "rayguard_queue_wait_seconds",
            "Time that admitted requests have waited for room",
            self.classes()
                .map(|(class, counts)| ([("class", class.name.as_str())], counts.wait_us as f64 / 1e6)),
        )?;
        writer.counters(
            "rayguard_queued_requests",
            "Requests that had to wait for room",
            self.classes().map(|(class, counts)| ([("class", class.name.as_str())], counts.queued)),
        )?;
        writer.gauges(
            "rayguard_in_flight",
            "Requests under way at the head, those whose client has left included",
            self.view
                .classes
                .iter()
                .map(|class| ([("class", class.name.as_str())], f64::from(class.in_flight))),
        )?;
        writer.gauges(
            "rayguard_waiting",
            "Requests waiting for room",
            self.view
                .classes
                .iter()
                .map(|class| ([("class", class.name.as_str())], f64::from(class.waiting))),
        )
    }

    fn durations(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let mut family = writer.0.encode_descriptor(
            "rayguard_request_duration_seconds",
            "Time from when the request is complete and admitted until the head of Ray's answer",
            None,
            MetricType::Histogram,
        )?;
        for (class, counts) in self.classes() {
            let buckets = coarsen(&counts.buckets);
            let count = buckets.iter().map(|(_, count)| count).sum();
            family.encode_family(&[("class", class.name.as_str())])?.encode_histogram::<NoLabelSet>(
                counts.latency_us as f64 / 1e6,
                count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn limits(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let limits = || {
            self.view.classes.iter().flat_map(|class| {
                class.limits.iter().map(move |limit| {
                    ([("class", class.name.as_str()), ("limit", limit.limit.label())], limit)
                })
            })
        };
        let mut gauges = |name, help, value: fn(&crate::core::controller::view::LimitView) -> f64| {
            writer.gauges(name, help, limits().map(|(labels, limit)| (labels, value(limit))))
        };
        gauges(
            "rayguard_limit",
            "Limits in force: requests under way (in_flight) or per second (rate)",
            |l| l.value,
        )?;
        gauges(
            "rayguard_limit_min",
            "The bound below which latency does not cut; signals may, to a tenth of the module's time",
            |l| l.min,
        )?;
        gauges("rayguard_limit_max", "The bound above which the loop does not raise", |l| l.max)?;
        gauges(
            "rayguard_limit_binding",
            "1 while requests reach the limit; one that is not reached is not raised",
            |l| flag(l.binding),
        )?;
        gauges("rayguard_limit_pinned", "1 while an operator has pinned the limit", |l| flag(l.pinned))?;
        gauges(
            "rayguard_oscillation_index",
            "0 (the limit is steady or moves in one direction) to 1 (it oscillates without effect)",
            |l| l.oscillation,
        )?;
        let held_by = self.view.classes.iter().flat_map(|class| {
            HeldBy::ALL.map(|limit| {
                let holds = class.held_by == Some(limit);
                ([("class", class.name.as_str()), ("by", limit.label())], flag(holds))
            })
        });
        writer.gauges(
            "rayguard_held_by",
            "1 while requests of the class wait because of this limit",
            held_by,
        )?;
        let adjustments = limits().flat_map(|([(_, class), (_, limit)], view)| {
            [("up", Direction::Up), ("down", Direction::Down)].map(|(label, direction)| {
                (
                    [("class", class), ("limit", limit), ("direction", label)],
                    self.tally.adjustments(class, view.limit, direction),
                )
            })
        });
        writer.counters("rayguard_adjustments", "Changes of limits by the loop", adjustments)?;
        writer.gauges(
            "rayguard_module_in_flight",
            "Requests under way in one of Ray's processes",
            self.view.modules.iter().map(|m| ([("module", m.name.as_str())], f64::from(m.in_flight))),
        )?;
        writer.gauges(
            "rayguard_module_limit",
            "Limit of unary requests under way in one of Ray's processes",
            self.view.modules.iter().map(|m| ([("module", m.name.as_str())], m.limit)),
        )?;
        writer.gauges(
            "rayguard_shadow",
            "1 while the class is in shadow mode: everything passes and is only counted",
            self.view.classes.iter().map(|c| ([("class", c.name.as_str())], flag(c.mode == Mode::Shadow))),
        )?;
        writer.gauges("rayguard_frozen", "1 while all limits are frozen", [([], flag(self.view.frozen))])
    }

    fn signals(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let told =
            self.view.classes.iter().filter_map(|c| Some(([("class", c.name.as_str())], c.slo_pressure?)));
        writer.gauges(
            "rayguard_slo_pressure",
            "Latency at the proxy over the objective, as last computed",
            told,
        )?;
        let signals = || self.view.signals.iter().map(|signal| ([("signal", signal.name.as_str())], signal));
        writer.gauges(
            "rayguard_signal_value",
            "Ray's readings, each in its own unit",
            signals().filter_map(|(labels, signal)| Some((labels, signal.value?))),
        )?;
        writer.gauges(
            "rayguard_signal_target",
            "Target of each reading, in its own unit",
            signals().map(|(labels, signal)| (labels, signal.target)),
        )?;
        writer.gauges(
            "rayguard_signal_pressure",
            "Reading over target",
            signals().filter_map(|(labels, signal)| Some((labels, signal.pressure?))),
        )?;
        writer.gauges(
            "rayguard_signal_age_seconds",
            "Age of the last reading",
            signals().filter_map(|(labels, signal)| Some((labels, signal.age_s?))),
        )?;
        writer.gauges(
            "rayguard_signal_up",
            "1 while fresh readings arrive",
            signals().map(|(labels, signal)| (labels, flag(signal.health == SignalHealth::Fresh))),
        )
    }

    /// Nothing of a replica that shares no limit.
    fn replicas(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let one = |value: Option<f64>| value.map(|value| ([], value)).into_iter();
        let (leased, age) = self.leased.as_ref().map(|(leased, age)| (leased, age.as_secs_f64())).unzip();
        let replicas = self.view.replicas.as_ref();
        let row = |of: &'_ Leased| (of.name.to_string(), of.limit, of.value);
        let rows: Vec<_> = leased.into_iter().flatten().map(row).collect();
        writer.gauges(
            "rayguard_replica_leased",
            "What this replica may use of each shared limit, in the limit's unit",
            rows.iter().map(|(name, limit, value)| ([("of", name.as_str()), ("limit", *limit)], *value)),
        )?;
        writer.gauges("rayguard_replica_lease_age_seconds", "Age of the current leases", one(age))?;
        writer.gauges(
            "rayguard_replicas",
            "How many replicas the limits are divided among",
            one(replicas.map(|replicas| f64::from(replicas.count))),
        )?;
        writer.gauges(
            "rayguard_replica_leader",
            "1 while this replica is the leader",
            one(replicas.map(|replicas| flag(replicas.role == Role::Leads))),
        )?;
        writer.gauges(
            "rayguard_replica_store_up",
            "1 while the shared store answers",
            one(replicas.map(|replicas| flag(replicas.store_problem.is_none()))),
        )
    }

    fn house(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let firing = |alert| self.view.alerts.iter().filter(|firing| firing.alert == alert).count();
        writer.gauges(
            "rayguard_alerts_firing",
            "Alerts that fire now, by rule",
            Alert::ALL.into_iter().map(|alert| ([("alert", alert.label())], firing(alert) as f64)),
        )?;
        writer.gauges(
            "rayguard_upstream_up",
            "1 while the head answers",
            [([], flag(self.view.upstream_problem.is_none()))],
        )?;
        writer.gauges(
            "rayguard_config_last_reload_successful",
            "1 while the configuration on disk is the one in force",
            [([], flag(self.view.config_problem.is_none()))],
        )?;
        writer.counters(
            "rayguard_adjustment_log_lost",
            "Events that are missing from the adjustment log",
            [([], self.events_lost)],
        )?;
        writer.gauges(
            "rayguard_history_records",
            "Addresses and credentials whose history is remembered",
            [([], self.history.len() as f64)],
        )?;
        let [strangers, known] = self.history.claims();
        writer.counters(
            "rayguard_history_waits",
            "Requests that had to wait, by whether their client's habit covered them (known) or not (stranger)",
            [([("standing", "known")], known), ([("standing", "stranger")], strangers)],
        )?;
        writer.gauges(
            "rayguard_shared_answer_bytes",
            "Bytes of shared answers that are kept or being sent to their readers",
            [([], self.shared.used() as f64)],
        )?;
        writer.gauges(
            "rayguard_shared_answer_bytes_max",
            "Most bytes that shared answers may take (http.shared_bytes_max)",
            [([], self.shared.max() as f64)],
        )?;
        writer.counters(
            "rayguard_shared_answers_without_room",
            "Answers that were not shared, or not to their end, because shared answers had reached their limit",
            [([], self.shared.exhausted())],
        )?;
        writer.counters(
            "rayguard_ratelimit_service_answers",
            "Rate-limit descriptors sent by Envoys, by answer",
            Answer::ALL.map(|answer| ([("answer", answer.label())], self.ratelimit.count(answer))),
        )?;
        writer.gauges(
            "rayguard_ratelimit_service_permits",
            "Permits held for requests that pass through Envoys",
            [([], self.ratelimit.places() as f64)],
        )?;
        writer.gauges(
            "rayguard_start_time_seconds",
            "When the process began, in seconds since the Unix epoch",
            [([], self.started_s)],
        )?;
        writer.gauges(
            "rayguard_build_info",
            "1; the version is in the label",
            [([("version", env!("CARGO_PKG_VERSION"))], 1.0)],
        )
    }
}

fn flag(on: bool) -> f64 {
    if on { 1.0 } else { 0.0 }
}

/// The meter's buckets, four of them in one, what is outside the range at its ends.
fn coarsen(buckets: &[u64; BUCKETS]) -> Vec<(f64, u64)> {
    let mut coarse = Vec::new();
    let mut from = 0;
    for to in (FIRST_BUCKET..=LAST_BUCKET).step_by(BUCKETS_AN_OCTAVE) {
        coarse.push((upper_bound_secs(to), buckets[from..=to].iter().sum()));
        from = to + 1;
    }
    coarse.push((f64::INFINITY, buckets[from..].iter().sum()));
    coarse
}

/// OpenMetrics as the older text format: a counter's family is named like its samples, and
/// nothing marks the end.
fn as_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + 1024);
    let mut help = "";
    for line in openmetrics.lines() {
        if line.starts_with("# HELP ") {
            help = line;
        } else if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap_or((family, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let words =
                help.strip_prefix("# HELP ").and_then(|help| help.split_once(' ')).map_or("", |(_, w)| w);
            text.extend(["# HELP ", name, suffix, " ", words, "\n# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if line != "# EOF" {
            text.extend([line, "\n"]);
        }
    }
    text
}
