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
    let kept = LastGood { class: "list".into(), limit: LimitKind::InFlight, value: 8.0 };
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
    let narrower =
        risen().reconfigure(policy(6.0), &[Mode::Enforce], &BTreeMap::new(), Time::from_secs_f64(1.0));
    let same =
        risen().reconfigure(policy(64.0), &[Mode::Enforce], &BTreeMap::new(), Time::from_secs_f64(1.0));
    for (mut controller, moves) in [(narrower, vec![(8.0, 6.0)]), (same, Vec::new())] {
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
    let mode = |controller: &Controller| controller.view(at(2.0)).classes[0].mode.clone();
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
