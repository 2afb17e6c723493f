//! The policy that a run is under: the scenario's own, without what its guard leaves out.
//!
//! A part is taken away in the policy, so that what is left is the production loop as an operator
//! could configure it. Without the outer loop no class follows a signal of Ray's, and submissions
//! are not counted. Without the inner one latency moves nothing: objectives are out of reach and
//! no limit may grow above where it starts; signals still lower it.

use super::scenario::Guard;
use rayguard_core::policy::{Bounds, Class, Law, Policy, SignalId};
use std::time::Duration;

/// An objective that nothing misses.
const NEVER_MISSED: Duration = Duration::from_secs(24 * 3600);

/// The policy without what `guard` leaves out, and without these signals.
#[must_use]
pub(crate) fn policy_under(policy: &Policy, guard: Guard, without: &[String]) -> Policy {
    let mut policy = policy.clone();
    let left_out = |id: SignalId| {
        let name = &policy.signals[id.index()].name;
        guard == Guard::NoOuter || without.iter().any(|left_out| **left_out == **name)
    };
    let classes = policy.classes.iter().cloned().map(|mut class| {
        class.signals.retain(|id| !left_out(*id));
        class.backlog = class.backlog.filter(|id| !left_out(*id));
        if guard == Guard::NoInner { blind(class) } else { class }
    });
    policy.classes = classes.collect();
    policy
}

/// The class with a loop that latency does not move.
fn blind(mut class: Class) -> Class {
    class.slo.latency = NEVER_MISSED;
    if let Law::Gradient { .. } = class.law {
        class.law = Law::Pid { kp: 0.0, ki: None, kd: 0.0 };
    }
    class.in_flight = Bounds { max: class.in_flight.initial, ..class.in_flight };
    class
}

/// Holds the concurrency of the class of this name (the first, where none is named) and of its module here.
pub(crate) fn pin(policy: &mut Policy, name: &str, limit: f64) {
    let at = policy.classes.iter().position(|class| *class.name == *name).unwrap_or(0);
    let Some(class) = policy.classes.get_mut(at) else { return };
    class.in_flight = Bounds::fixed(limit);
    let module = &mut policy.modules[class.module.index()];
    module.in_flight = Bounds::fixed(module.in_flight.max.max(limit));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    const HEAD: &str = r#"
        question = "?"
        seconds = 10
        plant = { kind = "ray-head" }
        expect = { shed = [0, 1] }
        [[client]]
        name = "all"
        kind = "open"
        route = "version"
        per_second = 1
    "#;

    #[test]
    fn what_is_taken_away_is_gone_and_nothing_else() {
        let (policy, _) = Scenario::read(HEAD).unwrap().policy().unwrap();
        let class = |policy: &Policy, name: &str| {
            policy.classes.iter().find(|class| &*class.name == name).unwrap().clone()
        };
        let submit = class(&policy, "job-submit");
        assert!(submit.backlog.is_some() && !submit.signals.is_empty());

        let no_outer = policy_under(&policy, Guard::NoOuter, &[]);
        assert!(no_outer.classes.iter().all(|class| class.signals.is_empty() && class.backlog.is_none()));
        assert_eq!(class(&no_outer, "job-list").in_flight, class(&policy, "job-list").in_flight);

        let no_inner = policy_under(&policy, Guard::NoInner, &[]);
        assert_eq!(class(&no_inner, "job-submit").signals, submit.signals);
        assert!(no_inner.classes.iter().all(|class| class.in_flight.max <= class.in_flight.initial));

        let blind_to_cpu = policy_under(&policy, Guard::Rayguard, &["head_cpu".to_owned()]);
        let names: Vec<&str> = class(&blind_to_cpu, "job-submit")
            .signals
            .iter()
            .map(|id| &*policy.signals[id.index()].name)
            .collect();
        assert!(names.contains(&"pending_tasks") && !names.contains(&"head_cpu"), "{names:?}");
    }
}
