//! What the adjustment log says of moves that no rule made (slow start, a reload), and what a reload carries over:
//! overrides of the mode and how fresh each signal is.

use super::{ClassReading, Controller, LastGood};
use crate::admission::table::Mode;
use crate::controller::overrides::Override;
use crate::event::{Adjustment, Derivation, Event, LimitKind};
use crate::policy::{Bounds, Policy, plain};
use crate::time::{Time, WallMs};
use std::collections::BTreeMap;
use std::sync::Arc;

fn policy(max: f64) -> Arc<Policy> {
    let mut class = plain::class("list", 4.0);
    class.in_flight = Bounds { initial: 4.0, min: 1.0, max };
    Arc::new(plain::policy(vec![class], 100.0))
}

/// One that has risen to 8.
fn risen() -> Controller {
    let kept = LastGood { class: "list".into(), limit: LimitKind::InFlight, value: 8.0, starts_per_s: None };
    Controller::new(policy(64.0), &[Mode::Enforce], &[kept], Time::ZERO)
}

fn adjustments(events: &[Event]) -> Vec<&Adjustment> {
    let mut adjustments = Vec::new();
    for event in events {
        if let Event::Adjustment(adjustment) = event {
            adjustments.push(adjustment.as_ref());
        }
    }
    adjustments
}

#[test]
fn slow_start_after_an_outage_is_told_with_its_reason() {
    let mut controller = risen();
    controller.on_upstream(Some("connection refused"), Time::from_secs_f64(1.0));
    let effects = controller.on_upstream(None, Time::from_secs_f64(60.0));
    let told = adjustments(&effects.events);
    let [told] = &told[..] else { panic!("{:?}", effects.events) };
    assert_eq!((told.old, told.new), (8.0, 4.0));
    assert!(told.reason.contains("slow start: Ray is reachable again"), "{}", told.reason);
    assert!(matches!(told.derivation, Derivation::Given { .. }));
    let shown = controller.view(Time::from_secs_f64(60.0)).classes[0].limits[0].value;
    assert_eq!(shown.to_bits(), told.new.to_bits(), "the page shows the same");
    let again = controller.on_upstream(None, Time::from_secs_f64(61.0));
    assert!(again.events.is_empty(), "no outage, no move");
}

#[test]
fn a_reload_with_narrower_bounds_is_told_at_the_next_step() {
    let reload = |controller: &Controller, max| {
        controller.reconfigure(policy(max), &[Mode::Enforce], &BTreeMap::new(), Time::from_secs_f64(1.0))
    };
    let (narrower, same) = (reload(&risen(), 6.0), reload(&risen(), 64.0));
    // Before anybody was told.
    let again = reload(&narrower, 6.0);
    for (mut controller, moves) in
        [(narrower, vec![(8.0, 6.0)]), (again, vec![(8.0, 6.0)]), (same, Vec::new())]
    {
        let first = controller.on_tick(vec![ClassReading::default()], Time::from_secs_f64(1.1), WallMs(0));
        let told: Vec<(f64, f64)> =
            adjustments(&first.events).iter().map(|told| (told.old, told.new)).collect();
        assert_eq!(told, moves);
        let second = controller.on_tick(vec![ClassReading::default()], Time::from_secs_f64(1.2), WallMs(0));
        assert!(adjustments(&second.events).is_empty(), "told once");
    }
}

#[test]
fn an_override_of_the_mode_outlives_a_reload_that_does_not_speak_of_it() {
    let at = Time::from_secs_f64;
    let mut controller = risen();
    let order = Override::Mode { class: None, mode: Mode::Shadow };
    assert!(controller.on_override(&order, "ana", "night", at(1.0), WallMs(0)).is_ok());
    let reload = |controller: &Controller, mode| {
        controller.reconfigure(policy(64.0), &[mode], &BTreeMap::new(), at(2.0))
    };
    let mode = |controller: &Controller| controller.view(at(2.0)).classes[0].mode.label();
    let same = reload(&controller, Mode::Enforce);
    assert_eq!(mode(&same), "shadow");
    let spoken = reload(&reload(&same, Mode::Shadow), Mode::Enforce);
    assert_eq!(mode(&spoken), "enforce", "the file has changed its mind");
}

#[test]
fn a_signal_that_was_never_found_is_not_called_fresh_after_a_reload() {
    let policy = || {
        let mut policy = plain::policy(vec![plain::class("list", 4.0)], 100.0);
        policy.signals = crate::signal::catalogue::SIGNALS
            .iter()
            .map(crate::signal::catalogue::SignalDefault::signal)
            .collect();
        policy.classes[0].signals = vec![crate::policy::SignalId(0)];
        Arc::new(policy)
    };
    let at = Time::from_secs_f64;
    let mut before = Controller::new(policy(), &[Mode::Enforce], &[], Time::ZERO);
    for second in 1..300 {
        before.on_tick(vec![ClassReading::default()], at(f64::from(second)), WallMs(0));
    }
    let health = |controller: &Controller| controller.view(at(300.0)).signals[0].health;
    let after = before.reconfigure(policy(), &[Mode::Enforce], &BTreeMap::new(), at(300.0));
    assert_eq!(
        (health(&before), health(&after)),
        (crate::event::SignalHealth::Stale, crate::event::SignalHealth::Stale)
    );
}

/// One class with a ceiling by latency and one by a signal.
fn two_ceilings() -> Controller {
    let mut class = plain::class("list", 4.0);
    class.in_flight = Bounds { initial: 4.0, min: 1.0, max: 64.0 };
    class.signals = vec![crate::policy::SignalId(0)];
    let mut policy = plain::policy(vec![class], 100.0);
    policy.signals = crate::signal::catalogue::SIGNALS
        .iter()
        .map(crate::signal::catalogue::SignalDefault::signal)
        .collect();
    Controller::new(Arc::new(policy), &[Mode::Enforce], &[], Time::ZERO)
}

#[test]
fn a_ceiling_at_its_floor_is_an_alert_though_another_ceiling_of_the_same_limit_stands_high() {
    let at = Time::from_secs_f64;
    let mut controller = two_ceilings();
    let freeze = Override::Freeze(true);
    controller.on_override(&freeze, "ana", "test", at(0.0), WallMs(0)).unwrap();
    let outer = controller.classes[0].outer.as_mut().unwrap();
    (outer.limit, outer.binding) = (outer.regulator.guardrails.bounds.min, true);
    let meter = crate::admission::meter::Meter::default();
    let mut told = Vec::new();
    for second in 1..320 {
        meter.offer();
        let reading = ClassReading { counts: meter.read(), ..ClassReading::default() };
        told.extend(controller.on_tick(vec![reading], at(f64::from(second)), WallMs(0)).alerts);
    }
    assert!(told.iter().any(|told| told.key == "pinned-floor/list/in_flight"), "{told:?}");
}

#[test]
fn a_move_of_one_ceiling_names_the_lower_one_beside_it() {
    let at = Time::from_secs_f64;
    let mut controller = two_ceilings();
    controller.classes[0].inner.as_mut().unwrap().limit = 16.0;
    controller.classes[0].outer.as_mut().unwrap().limit = 0.462_8;
    controller.on_upstream(Some("connection refused"), at(1.0));
    let effects = controller.on_upstream(None, at(60.0));
    let told = adjustments(&effects.events);
    let said = &told[0].reason;
    assert!(said.starts_with("cut list in_flight by latency from 16 to 4"), "{said}");
    assert!(said.ends_with("; the limit in force is 0.463, set by Ray's signals"), "{said}");
}

#[test]
fn to_freeze_what_is_frozen_or_unfreeze_what_is_not_is_no_event() {
    let at = Time::from_secs_f64;
    let mut controller = risen();
    let mut told = |frozen| {
        controller
            .on_override(&Override::Freeze(frozen), "ana", "test", at(1.0), WallMs(0))
            .unwrap()
            .events
            .len()
    };
    assert_eq!([told(false), told(true), told(true), told(false), told(false)], [0, 1, 0, 1, 0]);
}

#[test]
fn a_class_in_shadow_mode_is_shown_so_though_a_limit_of_it_is_pinned() {
    let at = Time::from_secs_f64;
    let mut controller = risen();
    let length = std::time::Duration::from_secs(60);
    let pin = Override::Pin { class: "list".into(), limit: LimitKind::InFlight, value: 2.0, length };
    for order in [pin, Override::Mode { class: None, mode: Mode::Shadow }] {
        controller.on_override(&order, "ana", "test", at(1.0), WallMs(0)).unwrap();
    }
    let class = &controller.view(at(2.0)).classes[0];
    assert!(class.mode.label() == "shadow" && class.limits[0].pinned, "{class:?}");
}

#[test]
fn a_module_cannot_be_pinned_and_is_called_one() {
    let length = std::time::Duration::from_secs(60);
    let pin = Override::Pin { class: "JobHead".into(), limit: LimitKind::InFlight, value: 2.0, length };
    let error = risen().on_override(&pin, "ana", "test", Time::ZERO, WallMs(0)).unwrap_err();
    assert!(error.to_string().starts_with("`JobHead` is a module"), "{error}");
}

#[test]
fn after_a_reload_a_dead_address_is_still_the_one_that_its_signal_was_read_at() {
    use crate::signal::reading::{Missing, Reading};
    let at = Time::from_secs_f64;
    let id = crate::policy::SignalId(0);
    let mut controller = two_ceilings();
    let reading =
        Reading { signal: id, value: 1.0, at: at(1.0), fresh: 1, resolution: 1.0, source: "a:1 m".into() };
    controller.on_readings(&[(id, Ok(reading.clone()))], at(1.0));
    let down = |target: &str| Missing::Unreachable { target: target.into(), problem: "refused".into() };
    controller.on_readings(&[(id, Err(down("a:1")))], at(2.0));
    let problem = |controller: &Controller| controller.view(at(3.0)).signals[0].problem.clone();
    let mut after =
        controller.reconfigure(Arc::clone(controller.policy()), &[Mode::Enforce], &BTreeMap::new(), at(3.0));
    for missing in [Missing::NoPage { why: None }, down("b:2")] {
        after.on_readings(&[(id, Err(missing))], at(4.0));
        assert_eq!(problem(&after), "a:1: refused");
    }
    // It answers again, and says the same as before.
    for second in 5..400 {
        after.on_readings(&[(id, Ok(reading.clone()))], at(f64::from(second)));
    }
    assert!(
        problem(&after).starts_with("a:1 answers, but its values no longer change"),
        "{}",
        problem(&after)
    );
}
