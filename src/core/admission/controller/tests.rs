//! The admission controller as its callers see it, and the laws that no sequence of calls may break.

use super::*;
use crate::admission::history::Standing;
use crate::admission::table::ClassLimits;
use crate::policy::plain::{self, policy};
use crate::policy::{Bounds, Class, Queue, RateBounds};
use proptest::prelude::*;
use std::cell::RefCell;

fn class(name: &str, priority: u8, in_flight: f64) -> Class {
    Class { priority: Priority(priority), ..plain::class(name, in_flight) }
}

#[test]
fn latency_and_cost_are_what_ray_took_and_not_what_its_clients_line_did() {
    let policy = policy(vec![class("a", 5, 4.0)], 8.0);
    let mut rig = Rig::new(&policy);
    // Asked at 0, uploaded until 3, answered from 4 on, read until 10: Ray worked for 2 s of those.
    let mut slow = permit(rig.ask(0, 1, at(0.0)).1);
    rig.admission.turn(&mut slow, Stage::Uploading, at(0.0));
    assert!(rig.admission.reading(ClassId(0), at(3.0)).stalled_s <= 0.0, "no request waits for Ray");
    rig.admission.turn(&mut slow, Stage::Asked, at(3.0));
    assert!((rig.admission.reading(ClassId(0), at(3.5)).stalled_s - 0.5).abs() < 1e-9);
    rig.admission.turn(&mut slow, Stage::Answered, at(4.0));
    assert!(rig.admission.reading(ClassId(0), at(9.0)).stalled_s <= 0.0);
    slow.kept = Duration::from_secs(8);
    rig.finish(slow, at(10.0));
    let counts = rig.admission.counts(ClassId(0));
    assert_eq!(
        (counts.answers(), counts.finished(), counts.latency_us, counts.work_us),
        (1, 1, 1_000_000, 2_000_000)
    );
    assert!((rig.admission.cost(0) - 2.0).abs() < 1e-9);
    assert_eq!(rig.admission.load(ClassId(0)), (0, 0));
}

#[test]
fn who_reads_slowly_does_not_make_ray_look_busy() {
    let mut of_module = policy(vec![class("a", 5, 4.0)], 8.0);
    for (parallel, peak) in [(false, 1), (true, 3)] {
        of_module.modules[0].work = (!parallel).then_some(Duration::from_secs(100));
        let mut rig = Rig::new(&of_module);
        let mut readers = [permit(rig.ask(0, 1, at(0.0)).1), permit(rig.ask(0, 2, at(0.0)).1)];
        for reader in &mut readers {
            rig.admission.turn(reader, Stage::Answered, at(1.0));
        }
        let _ = rig.admission.reading(ClassId(0), at(1.0));
        let other = permit(rig.ask(0, 3, at(2.0)).1);
        let seen = rig.admission.reading(ClassId(0), at(2.0));
        assert_eq!((seen.in_flight, seen.in_flight_peak), (3, peak), "a module in parallel: {parallel}");
        rig.finish(other, at(3.0));
    }
}

struct Rig {
    admission: AdmissionController<u32>,
    table: LimitTable,
    woken: RefCell<Vec<(u32, Grant)>>,
    next: u32,
}

impl Rig {
    fn new(policy: &Policy) -> Rig {
        let table = LimitTable::initial(policy);
        Rig {
            admission: AdmissionController::new(policy, &table, Time::ZERO),
            table,
            woken: RefCell::default(),
            next: 0,
        }
    }
    fn ask(&mut self, class: u8, address: u64, now: Time) -> (u32, Decision) {
        self.next += 1;
        let ask = Ask {
            class: ClassId(class),
            route: u16::from(class),
            client: ClientId { address, credential: None },
        };
        let id = self.next;
        let decision = self
            .admission
            .decide(&self.table, ask, now, || id, &mut |w, g| self.woken.borrow_mut().push((w, g)));
        (id, decision)
    }
    fn finish(&self, permit: Permit, now: Time) {
        self.admission.finish(&self.table, permit, Outcome::Served, now, &mut |w, g| {
            self.woken.borrow_mut().push((w, g));
        });
    }
    fn pump(&self, now: Time) {
        self.admission.pump(&self.table, now, &mut |w, g| self.woken.borrow_mut().push((w, g)));
    }
    fn granted(&self) -> Option<(u32, Permit)> {
        let mut woken = self.woken.borrow_mut();
        let at = woken.iter().position(|(_, grant)| matches!(grant, Grant::Go(_)))?;
        match woken.remove(at) {
            (waiter, Grant::Go(permit)) => Some((waiter, permit)),
            (_, Grant::Shed(_)) => None,
        }
    }
}

fn at(seconds: f64) -> Time {
    Time::from_secs_f64(seconds)
}

fn permit(decision: Decision) -> Permit {
    match decision {
        Decision::Admit(permit) => permit,
        other => panic!("not admitted: {other:?}"),
    }
}

#[test]
fn a_permit_that_is_given_back_goes_to_the_one_who_waits() {
    let mut rig = Rig::new(&policy(vec![class("a", 5, 1.0)], 10.0));
    let first = permit(rig.ask(0, 1, at(0.0)).1);
    let (waiter, decision) = rig.ask(0, 2, at(0.1));
    assert!(matches!(decision, Decision::Wait(..)));
    rig.finish(first, at(0.5));
    let (woken, second) = rig.granted().unwrap();
    assert_eq!((woken, second.ask.client.address), (waiter, 2));
    assert_eq!(second.waited, Duration::from_millis(400));
    rig.finish(second, at(0.6));
    assert_eq!(rig.admission.load(ClassId(0)), (0, 0));
}

#[test]
fn below_one_a_limit_is_a_share_of_time_and_who_waits_is_served_when_the_pause_is_over() {
    let mut rig = Rig::new(&policy(vec![class("a", 5, 4.0)], 10.0));
    rig.table.classes[0].in_flight = 0.25;
    let first = permit(rig.ask(0, 1, at(0.0)).1);
    rig.finish(first, at(0.2));
    let (waiter, decision) = rig.ask(0, 2, at(0.3));
    assert!(matches!(decision, Decision::Wait(..)), "0.6 s of pause: {decision:?}");
    assert_eq!(rig.admission.held_by(ClassId(0)), Some(HeldBy::InFlight));
    rig.pump(at(0.79));
    assert!(rig.granted().is_none());
    rig.pump(at(0.81));
    assert_eq!(rig.granted().map(|(woken, _)| woken), Some(waiter));
}

#[test]
fn a_dear_request_leaves_a_gap_only_while_somebody_asks_for_what_is_urgent() {
    let mut policy = policy(vec![class("list", 4, 4.0), class("status", 8, 4.0)], 10.0);
    policy.modules[0].work = Some(Duration::from_millis(50));
    for (urgent, goes) in [(false, true), (true, false)] {
        let mut rig = Rig::new(&policy);
        if urgent {
            let status = permit(rig.ask(1, 1, at(1.0)).1);
            rig.finish(status, at(1.01));
        }
        let list = permit(rig.ask(0, 2, at(2.0)).1);
        rig.finish(list, at(3.0));
        let next = rig.ask(0, 2, at(3.5)).1;
        assert_eq!(matches!(next, Decision::Admit(_)), goes, "urgent: {urgent}: {next:?}");
        assert!(!urgent || matches!(rig.ask(1, 1, at(3.6)).1, Decision::Admit(_)), "the gap is for this");
    }
}

#[test]
fn a_gap_is_as_long_as_all_turns_of_a_request_took_and_not_as_its_last() {
    let mut policy = policy(vec![class("list", 4, 4.0), class("status", 8, 4.0)], 10.0);
    policy.modules[0].work = Some(Duration::from_millis(50));
    let mut rig = Rig::new(&policy);
    for poll in 0..20 {
        let status = permit(rig.ask(1, 1, at(f64::from(poll) / 10.0)).1);
        rig.finish(status, at(f64::from(poll) / 10.0 + 0.001));
    }
    let alone = permit(rig.ask(0, 2, at(2.0)).1);
    rig.finish(alone, at(3.5));
    // Three turns of half a second, and a poll is let through after each.
    let list = permit(rig.ask(0, 2, at(10.0)).1);
    for turn in [10.5, 11.0] {
        let status = permit(rig.ask(1, 1, at(turn - 0.4)).1);
        rig.finish(status, at(turn));
    }
    rig.finish(list, at(11.5));
    // 1.3 s of it were billed to somebody. A share of 0.3 / 1.3 leaves a gap of 4.3 s; its last turn alone, one of 0.3 s.
    assert!(matches!(rig.ask(0, 2, at(12.6)).1, Decision::Wait(..)));
    rig.pump(at(15.8));
    assert!(rig.granted().is_none());
    rig.pump(at(15.9));
    assert!(rig.granted().is_some());
}

#[test]
fn a_class_without_room_holds_up_no_other_however_many_there_are() {
    let classes: Vec<_> = (0..80).map(|at| class(&format!("c{at}"), 5, 1.0)).collect();
    let mut rig = Rig::new(&policy(classes, 1000.0));
    let held: Vec<_> = (0..80).map(|one| Some(permit(rig.ask(one, 1, at(0.0)).1))).collect();
    let waiters: Vec<_> = (0..80).map(|one| rig.ask(one, 2, at(0.0)).0).collect();
    for (mut held, waiter) in held.into_iter().zip(waiters).rev() {
        rig.finish(held.take().unwrap(), at(1.0));
        assert_eq!(rig.granted().map(|(woken, _)| woken), Some(waiter), "all others are full");
    }
}

#[test]
fn what_is_held_while_no_request_waits_is_no_debt() {
    let mut rig = Rig::new(&policy(vec![class("a", 5, 1.0)], 10.0));
    let first = permit(rig.ask(0, 1, at(0.0)).1);
    rig.ask(0, 2, at(0.1));
    rig.finish(first, at(0.5));
    let (_, long) = rig.granted().unwrap();
    // Nine minutes later another client comes, and so does the one that had the permit, once more.
    rig.ask(0, 1, at(540.0));
    rig.ask(0, 2, at(540.1));
    rig.finish(long, at(540.2));
    let (_, next) = rig.granted().unwrap();
    assert_eq!(next.ask.client.address, 1);
    rig.ask(0, 1, at(540.3));
    rig.finish(next, at(540.4));
    assert_eq!(
        rig.granted().unwrap().1.ask.client.address,
        2,
        "it owes a fifth of a second, and not nine minutes"
    );
}

#[test]
fn a_client_that_left_is_never_granted_a_permit() {
    let mut rig = Rig::new(&policy(vec![class("a", 5, 1.0)], 10.0));
    let first = permit(rig.ask(0, 1, at(0.0)).1);
    let (_, Decision::Wait(id, _)) = rig.ask(0, 2, at(0.1)) else { panic!("should wait") };
    assert!(rig.admission.cancel(id, at(0.2)).is_some());
    assert!(rig.admission.cancel(id, at(0.2)).is_none(), "once only");
    rig.finish(first, at(0.5));
    assert!(rig.granted().is_none());
    assert_eq!(rig.admission.counts(ClassId(0)).left, 1);
}

#[test]
fn a_newcomer_is_next_after_a_flooder_with_a_full_queue() {
    let mut rig = Rig::new(&policy(vec![class("a", 5, 1.0)], 10.0));
    let mut held = Some(permit(rig.ask(0, 1, at(0.0)).1));
    for _ in 0..100 {
        let _ = rig.ask(0, 1, at(0.0));
    }
    let (polite, decision) = rig.ask(0, 2, at(0.0));
    assert!(matches!(decision, Decision::Wait(..)), "{decision:?}");
    let mut served = Vec::new();
    for _ in 0..2 {
        rig.finish(held.take().unwrap(), at(0.1));
        let (waiter, next) = rig.granted().unwrap();
        served.push(waiter);
        held = Some(next);
    }
    assert!(served.contains(&polite), "served within two: {served:?}");
    rig.finish(held.unwrap(), at(0.2));
}

#[test]
fn the_most_urgent_class_is_served_before_all_others() {
    let mut rig = Rig::new(&policy(vec![class("list", 5, 8.0), class("control", 9, 8.0)], 1.0));
    let first = permit(rig.ask(0, 1, at(0.0)).1);
    for _ in 0..10 {
        let _ = rig.ask(0, 1, at(0.0));
    }
    let (stop, _) = rig.ask(1, 1, at(0.0));
    rig.finish(first, at(0.1));
    let (woken, permit) = rig.granted().unwrap();
    assert_eq!(woken, stop);
    rig.finish(permit, at(0.2));
}

#[test]
fn a_class_without_room_does_not_hold_up_another_of_its_module() {
    let mut rig = Rig::new(&policy(vec![class("heavy", 5, 1.0), class("light", 5, 8.0)], 8.0));
    let _heavy = permit(rig.ask(0, 1, at(0.0)).1);
    let _ = rig.ask(0, 1, at(0.0));
    let (_, decision) = rig.ask(1, 2, at(0.0));
    assert!(matches!(decision, Decision::Admit(..)), "what others wait for is not what it takes");
}

/// How many requests of 20 ms a class of this priority has under way at once, of ten.
fn under_way_at_50_ms_of_work(priority: u8) -> usize {
    let mut policy = policy(vec![class("a", priority, 50.0)], 50.0);
    policy.modules[0].work = Some(Duration::from_millis(50));
    let mut rig = Rig::new(&policy);
    let mut now = 0.0;
    for _ in 0..100 {
        let permit = permit(rig.ask(0, 1, at(now)).1);
        now += 0.02; // each takes 20 ms alone
        rig.finish(permit, at(now));
    }
    let held: Vec<_> = (0..10).map(|_| rig.ask(0, 1, at(now)).1).collect();
    held.iter().filter(|decision| matches!(decision, Decision::Admit(_))).count()
}

#[test]
fn work_under_way_is_bounded_but_one_may_always_go() {
    assert_eq!(under_way_at_50_ms_of_work(5), 2, "2 x 20 ms fit");
    assert_eq!(under_way_at_50_ms_of_work(2), 2, "no less for what can wait");
}

/// A module of which several share the process: heavy (100 ms), light (20 ms), one that awaits, one that operators
/// need, each with its cost learnt; the moment from which on nothing is under way.
fn of_one_process() -> (Rig, f64) {
    let mut policy = policy(
        vec![
            class("heavy", 3, 8.0),
            class("light", 5, 8.0),
            class("awaits", 5, 8.0),
            class("status", 8, 8.0),
        ],
        50.0,
    );
    policy.modules[0] = crate::policy::Module {
        work: Some(Duration::from_millis(50)),
        shared: true,
        ..policy.modules[0].clone()
    };
    policy.classes[2].awaits = true;
    let mut rig = Rig::new(&policy);
    let mut now = 0.0;
    for (class, took) in [(0, 0.1), (1, 0.02), (2, 0.02), (3, 0.02)].repeat(100) {
        let permit = permit(rig.ask(class, 1, at(now)).1);
        now += took;
        rig.finish(permit, at(now));
    }
    (rig, now)
}

#[test]
fn ordinary_classes_of_one_process_share_one_bound_on_work_and_the_others_keep_theirs() {
    let (mut rig, now) = of_one_process();
    let heavy = permit(rig.ask(0, 1, at(now)).1);
    let (light, waits) = rig.ask(1, 2, at(now));
    assert!(matches!(waits, Decision::Wait(..)), "its process has 100 ms of work before it");
    for class in [2, 3] {
        assert!(matches!(rig.ask(class, 3, at(now)).1, Decision::Admit(..)), "class {class}");
    }
    rig.finish(heavy, at(now + 0.1));
    assert_eq!(rig.granted().unwrap().0, light);
}

#[test]
fn a_connection_that_is_held_is_not_refused_for_a_moment_of_work_in_its_process() {
    let mut policy = policy(vec![class("list", 5, 8.0), class("tail", 5, 8.0)], 50.0);
    policy.modules[0].work = Some(Duration::from_millis(50));
    policy.modules[0].shared = true;
    policy.classes[1].kind = Kind::Held;
    let mut rig = Rig::new(&policy);
    rig.admission.costs().expect(0, 0.2);
    let _list = permit(rig.ask(0, 1, at(0.0)).1);
    assert!(matches!(rig.ask(1, 2, at(0.0)).1, Decision::Admit(..)));
}

/// A class short of its rate beside one that is not, in a module of one process.
fn beside_a_rate() -> Rig {
    let rated = Class {
        rate: Some(RateBounds { per_second: Bounds { initial: 0.5, min: 0.1, max: 2.0 }, burst: 1 }),
        queue: Queue { len_max: 100, wait_max: Duration::from_secs(3600) },
        ..class("submit", 5, 8.0)
    };
    let mut policy = policy(vec![rated, class("list", 5, 8.0)], 8.0);
    policy.modules[0].work = Some(Duration::from_millis(50));
    policy.history = true;
    Rig::new(&policy)
}

/// Habit and allowance of an address, in seconds.
fn past(rig: &Rig, address: u64, now: f64) -> (f64, f64) {
    match rig.admission.history().standing(ClientId { address, credential: None }, at(now)) {
        Standing::Known { habit_s, left_s, .. } => (habit_s, left_s),
        Standing::Stranger => (0.0, 0.0),
    }
}

/// Serves one request that takes so long and is served at once.
fn serve(rig: &mut Rig, class: u8, address: u64, took: f64, now: f64) {
    let served = permit(rig.ask(class, address, at(now)).1);
    rig.finish(served, at(now + took));
}

#[test]
fn a_line_for_what_a_request_does_not_need_neither_hinders_its_client_to_earn_nor_costs_it_anything() {
    let mut rig = beside_a_rate();
    serve(&mut rig, 0, 1, 0.003, 0.0);
    (0..90).for_each(|_| assert!(matches!(rig.ask(0, 1, at(0.0)).1, Decision::Wait(..))));
    for second in 1..=60 {
        serve(&mut rig, 1, 2, 0.1, f64::from(second));
        while let Some((_, submitted)) = rig.granted() {
            rig.finish(submitted, at(f64::from(second) + 0.2));
        }
    }
    let (habit, left) = past(&rig, 2, 700.0);
    assert!((habit - 6.0).abs() < 0.1 && (left - habit).abs() < 1e-6, "{habit} {left}");
    assert!(rig.admission.waiting() > 0);
}

#[test]
fn a_line_for_the_process_that_all_share_is_no_calm_but_costs_only_whom_it_keeps() {
    let mut policy = policy(["list", "status", "logs"].map(|name| class(name, 5, 8.0)).into(), 50.0);
    policy.modules[0].work = Some(Duration::from_millis(50));
    policy.modules[0].shared = true;
    let mut rig = Rig::new(&policy);
    for second in 0..30 {
        (0..3).for_each(|class| serve(&mut rig, class, 1, 0.1, f64::from(second) + 0.3 * f64::from(class)));
    }
    let under_way = permit(rig.ask(2, 9, at(30.0)).1);
    assert!(matches!(rig.ask(1, 5, at(30.0)).1, Decision::Wait(..)), "for the process");
    let now = 700.0;
    let (habit, left) = past(&rig, 1, now);
    assert!(habit > 0.0);
    // What is under way has been so long that one more may come.
    let (asked, _) = rig.ask(0, 1, at(now));
    let (woken, heavy) = rig.granted().unwrap();
    assert_eq!(woken, asked);
    rig.finish(heavy, at(now + 0.1));
    let (after, left_after) = past(&rig, 1, now + 0.1);
    assert!(
        (after - habit).abs() < 1e-3 && left_after >= left - 1e-3,
        "{habit} {left}: {after} {left_after}"
    );
    rig.finish(under_way, at(now + 0.2));
}

#[test]
fn requests_that_ray_refuses_at_once_earn_the_work_they_cost() {
    let mut rig = beside_a_rate();
    for turn in 0..12 {
        serve(&mut rig, 0, 1, 0.003, 5.0 * f64::from(turn));
        serve(&mut rig, 1, 2, 0.033, 5.0 * f64::from(turn) + 1.0);
    }
    let (refused, reader) = (past(&rig, 1, 700.0).0, past(&rig, 2, 700.0).0);
    assert!((refused - 0.036).abs() < 0.002, "{refused}");
    assert!((reader - 0.396).abs() < 0.02, "{reader}");
}

#[test]
fn a_flood_that_makes_requests_dearer_takes_no_more_from_an_allowance() {
    let mut rig = beside_a_rate();
    for turn in 0..60 {
        serve(&mut rig, 1, 2, 0.1, 10.0 * f64::from(turn));
    }
    let ask = Ask { class: ClassId(1), route: 1, client: ClientId { address: 2, credential: None } };
    let in_calm = rig.admission.claims(ask);
    assert!((in_calm - 0.1).abs() < 1e-3, "{in_calm}");
    for (times, most) in [(1.5, 0.1), (4.0, 0.2)] {
        (0..2000).for_each(|_| rig.admission.costs.learn(1, 0.1 * times, 0.1 * times, true));
        let claims = rig.admission.claims(ask);
        assert!((claims - most).abs() < 1e-3, "{times} times as dear: {claims}");
    }
}

#[test]
fn what_holds_requests_back_is_the_limit_that_had_no_room() {
    let held_by = |rig: &Rig, class| rig.admission.held_by(ClassId(class));
    let (mut process, now) = of_one_process();
    let heavy = permit(process.ask(0, 1, at(now)).1);
    let _ = process.ask(1, 2, at(now));
    assert_eq!(held_by(&process, 1), Some(HeldBy::Process));
    process.finish(heavy, at(now + 0.1));
    assert_eq!(held_by(&process, 1), None, "none waits");

    let mut module = Rig::new(&policy(vec![class("a", 5, 8.0), class("b", 5, 8.0)], 1.0));
    let held = permit(module.ask(0, 1, at(0.0)).1);
    let _ = (module.ask(0, 1, at(0.0)), module.ask(1, 1, at(0.0)));
    assert_eq!((held_by(&module, 0), held_by(&module, 1)), (Some(HeldBy::Module), Some(HeldBy::Module)));

    let mut in_flight = Rig::new(&policy(vec![class("a", 5, 1.0)], 8.0));
    let also = permit(in_flight.ask(0, 1, at(0.0)).1);
    let _ = in_flight.ask(0, 1, at(0.0));
    assert_eq!(held_by(&in_flight, 0), Some(HeldBy::InFlight));

    let rated = Class {
        rate: Some(RateBounds { per_second: Bounds { initial: 1.0, min: 0.5, max: 2.0 }, burst: 1 }),
        ..class("a", 5, 8.0)
    };
    let mut rate = Rig::new(&policy(vec![rated], 8.0));
    let first = permit(rate.ask(0, 1, at(0.0)).1);
    let _ = rate.ask(0, 1, at(0.0));
    assert_eq!(held_by(&rate, 0), Some(HeldBy::Rate));
    rate.table.classes[0].admitted_max = Some(1);
    let _ = rate.ask(0, 1, at(5.0));
    assert_eq!(held_by(&rate, 0), Some(HeldBy::Backlog), "the latest");
    drop((held, also, first));
}

#[test]
fn in_one_process_whose_turn_it_is_has_it_however_little_the_others_need() {
    let (mut rig, now) = of_one_process();
    let mut lights: Vec<Permit> = (0..2).map(|_| permit(rig.ask(1, 1, at(now)).1)).collect();
    let (heavy, _) = rig.ask(0, 2, at(now));
    // As each leaves, more come: the heavy one would never find the process empty.
    for turn in 1..=4 {
        let now = now + 0.02 * f64::from(turn);
        for _ in 0..4 {
            let _ = rig.ask(1, 1, at(now));
        }
        if let Some(light) = lights.pop() {
            rig.finish(light, at(now));
        }
        if let Some((id, permit)) = rig.granted() {
            if id == heavy {
                return;
            }
            lights.push(permit);
        }
    }
    panic!("the heavy one starves");
}

#[test]
fn a_request_that_hangs_does_not_close_the_process_to_the_others() {
    let (mut rig, now) = of_one_process();
    let hangs = permit(rig.ask(0, 1, at(now)).1);
    let (light, _) = rig.ask(1, 2, at(now));
    rig.pump(at(now + 0.4));
    assert!(rig.granted().is_none());
    rig.pump(at(now + 0.6));
    let (id, permit) = rig.granted().unwrap();
    assert_eq!(id, light);
    for permit in [hangs, permit] {
        rig.finish(permit, at(now + 30.0));
    }
    let again = rig.ask(0, 1, at(now + 31.0)).1;
    assert!(matches!(again, Decision::Admit(_)), "all of it was given back");
}

#[test]
fn what_operators_need_is_held_back_less_than_what_waits_behind_it() {
    assert_eq!(under_way_at_50_ms_of_work(8), 10, "200 ms of work");
}

#[test]
fn shadow_counts_what_it_would_shed_and_lets_it_through_at_once() {
    let mut rig = Rig::new(&policy(vec![class("a", 5, 1.0)], 10.0));
    rig.table.classes[0] = ClassLimits { mode: Mode::Shadow, ..rig.table.classes[0] };
    let first = permit(rig.ask(0, 1, at(0.0)).1);
    let second = permit(rig.ask(0, 1, at(0.0)).1);
    assert_eq!(second.would_shed, Some(Reason::ClassInFlight));
    rig.finish(first, at(0.1));
    rig.finish(second, at(0.1));
    let counts = rig.admission.counts(ClassId(0));
    assert_eq!((counts.shadow_shed, counts.shed_all(), counts.served), (1, 0, 2));
    assert_eq!(rig.admission.load(ClassId(0)), (0, 0));
}

#[test]
fn a_rate_limited_class_waits_for_its_cell() {
    let mut submit = class("submit", 7, 8.0);
    submit.rate = Some(RateBounds { per_second: Bounds::fixed(2.0), burst: 1 });
    let mut rig = Rig::new(&policy(vec![submit], 8.0));
    let _first = permit(rig.ask(0, 1, at(0.0)).1);
    let (waiter, _) = rig.ask(0, 1, at(0.0));
    rig.admission.pump(&rig.table, at(0.3), &mut |w, g| rig.woken.borrow_mut().push((w, g)));
    assert!(rig.granted().is_none());
    rig.admission.pump(&rig.table, at(0.51), &mut |w, g| rig.woken.borrow_mut().push((w, g)));
    assert_eq!(rig.granted().unwrap().0, waiter);
}

#[test]
fn what_would_be_turned_away_is_known_before_it_is_sent() {
    let who = |address| ClientId { address, credential: None };
    let would = |rig: &Rig, address, seconds| {
        rig.admission.would_shed(&rig.table, ClassId(0), who(address), at(seconds))
    };
    let reason = |turned: Option<(Reason, Duration)>| turned.map(|(reason, _)| reason);
    let one_an_hour = |len_max, wait_s| {
        let mut submit = class("submit", 7, 8.0);
        submit.rate = Some(RateBounds { per_second: Bounds::fixed(1.0 / 3600.0), burst: 1 });
        submit.queue = Queue { len_max, wait_max: Duration::from_secs(wait_s) };
        Rig::new(&policy(vec![submit], 8.0))
    };
    for (len_max, wait_s) in [(0, 1), (64, 10)] {
        let mut rig = one_an_hour(len_max, wait_s);
        assert_eq!(would(&rig, 1, 0.0), None, "the burst is there");
        let _first = permit(rig.ask(0, 1, at(0.0)).1);
        let (why, wait) = would(&rig, 1, 0.0).unwrap();
        assert_eq!((why, wait.as_millis().div_ceil(1000)), (Reason::ClassRate, 3600));
        assert_eq!(would(&rig, 1, 3601.0), None, "an hour later");
    }
    let mut rig = one_an_hour(64, 3600);
    let _first = permit(rig.ask(0, 1, at(0.0)).1);
    assert_eq!(would(&rig, 1, 1.0), None, "worth waiting for");
    let _ = rig.ask(0, 1, at(1.0));
    assert_eq!(reason(would(&rig, 1, 1.0)), Some(Reason::ClassRate), "not behind another");

    let mut without_line = class("a", 5, 1.0);
    without_line.queue.len_max = 0;
    let mut rig = Rig::new(&policy(vec![without_line], 8.0));
    let first = permit(rig.ask(0, 1, at(0.0)).1);
    assert_eq!(reason(would(&rig, 2, 0.0)), Some(Reason::ClassInFlight));
    rig.finish(first, at(0.1));
    assert_eq!(would(&rig, 2, 0.1), None);
    rig.table.classes[0].mode = Mode::Shadow;
    rig.table.classes[0].in_flight = 0.0;
    assert_eq!(would(&rig, 2, 0.1), None, "no request is shed in shadow mode");
}

#[test]
fn retry_after_is_spread() {
    let mut rig = Rig::new(&policy(vec![class("a", 5, 0.0)], 10.0));
    rig.admission.spread(ClassId(0), 10);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..200 {
        if let Decision::Shed(shed) = rig.ask(0, 1, at(0.0)).1 {
            seen.insert(shed.retry_after_s);
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
}

#[test]
fn a_successor_goes_on_counting_what_is_under_way() {
    let mut submit = class("submit", 7, 2.0);
    submit.rate = Some(RateBounds { per_second: Bounds::fixed(0.001), burst: 5 });
    let before = policy(vec![submit.clone(), class("gone", 5, 1.0)], 8.0);
    let mut rig = Rig::new(&before);
    let held = permit(rig.ask(0, 1, at(0.0)).1);
    let mut after = policy(vec![class("new", 5, 1.0), submit.clone()], 8.0);
    after.classes[1].rate = Some(RateBounds { per_second: Bounds::fixed(0.001), burst: 9 });
    let old = std::mem::replace(&mut rig, Rig::new(&after));
    rig.admission = old.admission.reconfigure(&after, &rig.table, at(1.0));
    assert_eq!(rig.admission.load(ClassId(1)).0, 1, "by name, not by place");
    assert!(
        matches!(rig.ask(1, 1, at(1.0)).1, Decision::Wait(..)),
        "a larger burst is not handed out at once"
    );
    old.finish(held, at(2.0));
    assert_eq!(
        rig.admission.load(ClassId(1)).0,
        0,
        "given back to the old admission controller, counted out of both"
    );
}

#[test]
fn who_waits_keeps_the_place_over_a_reload() {
    let same = policy(vec![class("a", 5, 1.0), class("b", 5, 1.0)], 8.0);
    let mut rig = Rig::new(&same);
    let held = permit(rig.ask(0, 1, at(0.0)).1);
    let (first, Decision::Wait(place, _)) = rig.ask(0, 2, at(0.1)) else { panic!("there is no room") };
    let next = rig.admission.reconfigure(&same, &rig.table, at(0.2));
    let old = std::mem::replace(&mut rig.admission, next);
    let (_, Decision::Wait(..)) = rig.ask(0, 3, at(0.3)) else { panic!("another is before it") };
    assert_eq!((old.waiting(), rig.admission.waiting()), (0, 2), "no request is left behind");
    // Limits of long ago let no request in any more.
    old.pump(
        &LimitTable::initial(&policy(vec![class("a", 5, 9.0), class("b", 5, 9.0)], 8.0)),
        at(0.4),
        &mut |_, _| {
            panic!("it has left");
        },
    );
    old.finish(&rig.table, held, Outcome::Served, at(0.5), &mut |_, _| panic!("it has left"));
    rig.pump(at(0.5));
    let (woken, served) = rig.granted().unwrap();
    assert_eq!(woken, first);
    assert!(rig.admission.cancel(place, at(0.6)).is_none(), "it waits no more");
    rig.finish(served, at(0.7));
}

proptest! {
    /// A reload of the same policy decides nothing: whatever is asked, given back, awaited or changed, the admission
    /// controller says the very same as one that was left alone.
    #[test]
    fn a_reload_of_the_same_policy_changes_no_decision(
        steps in prop::collection::vec((0u8..8, 0u8..3, 0u64..4, 0u32..6), 1..300),
    ) {
        let mut submit = class("submit", 7, 4.0);
        submit.rate = Some(RateBounds { per_second: Bounds::fixed(20.0), burst: 3 });
        submit.per_client = PerClientLimits { rate: Some((30.0, 4)), in_flight: Some(2) };
        let mut calm = policy(vec![class("a", 5, 3.0), class("b", 9, 2.0), submit], 6.0);
        calm.history = true;
        let mut rigs = [Rig::new(&calm), Rig::new(&calm)];
        let (mut held, mut waits) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        let mut now = 0.0;
        for (step, which, address, limit) in steps {
            now += 0.013;
            let mut said: [Vec<String>; 2] = [Vec::new(), Vec::new()];
            for (at_rig, rig) in rigs.iter_mut().enumerate() {
                let (held, waits, said) = (&mut held[at_rig], &mut waits[at_rig], &mut said[at_rig]);
                match step {
                    0..=2 => {
                        let (_, decision) = rig.ask(which, address, at(now));
                        said.push(format!("{decision:?}"));
                        match decision {
                            Decision::Admit(permit) => held.push(permit),
                            Decision::Wait(id, _) => waits.push(id),
                            Decision::Shed(_) => {}
                        }
                    }
                    3 => if let Some(permit) = held.pop() { rig.finish(permit, at(now)); },
                    4 => if let Some(id) = waits.pop() {
                        said.push(format!("{:?}", rig.admission.cancel(id, at(now))));
                    },
                    5 => rig.table.classes[usize::from(which)].in_flight = f64::from(limit),
                    6 => rig.admission.spread(ClassId(which), limit),
                    _ if at_rig == 1 => rig.admission = rig.admission.reconfigure(&calm, &rig.table, at(now)),
                    _ => {}
                }
                rig.pump(at(now));
                while let Some((waiter, permit)) = rig.granted() {
                    said.push(format!("{waiter} {permit:?}"));
                    held.push(permit);
                }
                said.push(format!("{:?}", rig.admission.reading(ClassId(which), at(now))));
            }
            prop_assert_eq!(&said[0], &said[1]);
        }
    }
}

proptest! {
    /// A permit is released exactly once, in-flight never above the limit that
    /// admitted, and nothing is left at the end.
    #[test]
    fn whatever_happens_the_counters_end_at_zero_and_never_exceed_their_limit(
        steps in prop::collection::vec((0u8..6, 0u8..2, 0u64..4, 0u32..6), 1..300),
    ) {
        let mut rig = Rig::new(&policy(vec![class("a", 5, 3.0), class("b", 6, 3.0)], 4.0));
        let mut held: Vec<Permit> = Vec::new();
        let mut waits: Vec<WaitId> = Vec::new();
        let mut now = 0.0;
        for (step, which, address, limit) in steps {
            now += 0.01;
            match step {
                0..=2 => match rig.ask(which, address, at(now)).1 {
                    Decision::Admit(permit) => held.push(permit),
                    Decision::Wait(id, _) => waits.push(id),
                    Decision::Shed(_) => {}
                },
                3 => if let Some(permit) = held.pop() { rig.finish(permit, at(now)); },
                4 => if let Some(id) = waits.pop() { let _ = rig.admission.cancel(id, at(now)); },
                _ => {
                    let before = rig.admission.load(ClassId(which)).0;
                    rig.table.classes[usize::from(which)].in_flight = f64::from(limit);
                    rig.admission.pump(&rig.table, at(now), &mut |w, g| rig.woken.borrow_mut().push((w, g)));
                    prop_assert!(rig.admission.load(ClassId(which)).0 <= before.max(limit));
                }
            }
            while let Some((_, permit)) = rig.granted() {
                held.push(permit);
            }
            prop_assert!(rig.admission.module_in_flight(ModuleId(0)) <= 4);
            prop_assert_eq!(held.len(), rig.admission.module_in_flight(ModuleId(0)) as usize);
        }
        for id in waits { let _ = rig.admission.cancel(id, at(now)); }
        while let Some(permit) = held.pop() {
            rig.finish(permit, at(now));
            while let Some((_, permit)) = rig.granted() { held.push(permit); }
        }
        prop_assert_eq!(rig.admission.waiting(), 0);
        prop_assert_eq!(rig.admission.module_in_flight(ModuleId(0)), 0);
    }

    /// Whatever is asked of which class, whether Ray refuses it at once or works on it for long: a past is no more
    /// than the work that was done, and nothing is taken from it while no request has to wait.
    #[test]
    fn a_habit_is_at_most_the_work_that_was_done(
        exchanges in prop::collection::vec((0u8..2, 1u32..500, 0u32..3000), 1..100),
    ) {
        let mut rig = beside_a_rate();
        rig.table.classes[0].rate = Some(1e6);
        rig.pump(Time::ZERO);
        let (mut now, mut worked) = (0.0, 0.0);
        for (class, took_ms, pause_ms) in exchanges {
            now += f64::from(pause_ms) / 1e3;
            if let Decision::Admit(served) = rig.ask(class, 1, at(now)).1 {
                now += f64::from(took_ms) / 1e3;
                worked += f64::from(took_ms) / 1e3;
                rig.finish(served, at(now));
            }
            while let Some((_, served)) = rig.granted() {
                rig.finish(served, at(now));
            }
            rig.pump(at(now));
        }
        let (habit, _) = past(&rig, 1, now + 700.0);
        prop_assert!(habit <= worked + 1e-3, "{habit} of {worked}");
    }

    /// At demand below the limit nothing is shed, and no request waits, whichever client asks.
    #[test]
    fn at_demand_below_the_limit_nothing_is_shed(
        steps in prop::collection::vec((any::<bool>(), 0u64..40, 1u32..2000), 1..300),
        limit in 1u8..9,
    ) {
        let mut rig = Rig::new(&policy(vec![class("a", 5, f64::from(limit))], f64::from(limit)));
        let mut held = Vec::new();
        let mut now = 0.0;
        for (arrives, address, pause_ms) in steps {
            now += f64::from(pause_ms) / 1e3;
            if arrives && held.len() < usize::from(limit) {
                match rig.ask(0, address, at(now)).1 {
                    Decision::Admit(permit) => held.push(permit),
                    other => prop_assert!(false, "{other:?} with {} of {limit} under way", held.len()),
                }
            } else if let Some(permit) = held.pop() {
                rig.finish(permit, at(now));
            }
        }
    }
}

#[test]
fn a_full_queue_refuses_by_the_name_of_what_holds_it_back() {
    let queue = Queue { len_max: 1, ..plain::class("a", 1.0).queue };
    let rate = Some(RateBounds { per_second: Bounds::fixed(0.1), burst: 1 });
    let slow = policy(vec![Class { rate, queue, ..class("a", 5, 8.0) }], 8.0);
    let narrow = policy(vec![Class { queue, ..class("a", 5, 8.0) }], 1.0);
    for (policy, reason) in [(slow, Reason::ClassRate), (narrow, Reason::ModuleInFlight)] {
        let mut rig = Rig::new(&policy);
        let _under_way = permit(rig.ask(0, 1, at(0.0)).1);
        assert!(matches!(rig.ask(0, 2, at(0.1)).1, Decision::Wait(..)));
        let Decision::Shed(shed) = rig.ask(0, 3, at(0.2)).1 else { panic!("the queue is full") };
        assert_eq!(shed.reason, reason);
    }
}
