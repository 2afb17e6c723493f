//! The interleavings of what two or three threads do to the elastic clock, the in-flight counter, and the
//! hand-over of a single-flight and of a log that is followed by several.
//!
//! Their files are compiled here once more, on loom's atomics instead of the standard library's; loom then
//! runs each model under every order of its loads and stores that the memory model allows, with up to three
//! switches of thread where it would not have to.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "parts of the library, and tests"
)]

/// What the files find above them in the library.
mod time {
    pub(crate) use rayguard::core::time::Time;
}

use rayguard::proxy::{coalesce, permit_guard, tasks, throttle, websocket};

#[path = "../src/core/admission/clock.rs"]
mod clock;
#[path = "../src/core/admission/in_flight.rs"]
mod in_flight;
#[path = "../src/proxy/single_flight.rs"]
mod single_flight;
#[path = "../src/proxy/log_fanout.rs"]
mod tail;

/// What takes the place of `core::admission::sync` and `proxy::sync`.
mod sync {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};

    /// tokio's `watch` on loom's, as far as a log needs it: a value that is only ever new.
    pub(crate) mod watch {
        use super::{Arc, Mutex};
        use std::task::{Poll, Waker};

        #[derive(Debug, Default)]
        struct Seen {
            version: u64,
            waiting: Vec<Waker>,
        }

        #[derive(Debug)]
        pub(crate) struct Sender<T>(Arc<Mutex<Seen>>, std::marker::PhantomData<T>);

        impl<T> Default for Sender<T> {
            fn default() -> Sender<T> {
                Sender(Arc::new(Mutex::new(Seen::default())), std::marker::PhantomData)
            }
        }

        impl<T> Sender<T> {
            pub(crate) fn new(_: T) -> Sender<T> {
                Sender::default()
            }

            pub(crate) fn send_replace(&self, _: T) {
                let mut seen = self.0.lock().unwrap();
                seen.version += 1;
                let waiting = std::mem::take(&mut seen.waiting);
                drop(seen);
                waiting.into_iter().for_each(Waker::wake);
            }

            pub(crate) fn subscribe(&self) -> Receiver<T> {
                let version = self.0.lock().unwrap().version;
                Receiver(Arc::clone(&self.0), version, std::marker::PhantomData)
            }
        }

        #[derive(Debug)]
        pub(crate) struct Receiver<T>(Arc<Mutex<Seen>>, u64, std::marker::PhantomData<T>);

        impl<T> Receiver<T> {
            pub(crate) async fn changed(&mut self) -> Result<(), ()> {
                std::future::poll_fn(|context| {
                    let mut seen = self.0.lock().unwrap();
                    if seen.version == self.1 {
                        seen.waiting.push(context.waker().clone());
                        return Poll::Pending;
                    }
                    self.1 = seen.version;
                    Poll::Ready(Ok(()))
                })
                .await
            }
        }
    }
}

use crate::time::Time;
use clock::ElasticClock;
use in_flight::InFlight;
use loom::sync::Arc;
use loom::thread;

const CELL: u64 = 1_000_000;

fn at(seconds: f64) -> Time {
    Time::from_secs_f64(seconds)
}

/// Runs these side by side, to the end.
fn together<T: Send + Sync + 'static>(of: &Arc<T>, parts: Vec<fn(&T)>) {
    let threads: Vec<_> = parts
        .into_iter()
        .map(|part| {
            let of = Arc::clone(of);
            thread::spawn(move || part(&of))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

fn never_above_the_limit() {
    let permits = Arc::new((InFlight::default(), loom::sync::atomic::AtomicU32::new(0)));
    let one = |(permits, inside): &(InFlight, loom::sync::atomic::AtomicU32)| {
        if permits.try_enter(1) {
            assert_eq!(inside.fetch_add(1, sync::Ordering::AcqRel), 0, "two were in at a limit of one");
            inside.fetch_sub(1, sync::Ordering::AcqRel);
            permits.leave();
        }
    };
    together(&permits, vec![one, one]);
    assert_eq!(permits.0.count(), 0, "each permit is given back once");
    assert!(permits.0.try_enter(1), "and can be had again");
}

fn a_lowered_limit_only_drains() {
    let permits = Arc::new(InFlight::default());
    assert!(permits.try_enter(2) && permits.try_enter(2));
    let leaves = |permits: &InFlight| permits.leave();
    let enters = |permits: &InFlight| {
        if permits.try_enter(1) {
            assert!(permits.count() >= 1);
            permits.leave();
        }
    };
    together(&permits, vec![leaves, enters, leaves]);
    assert_eq!(permits.count(), 0);
}

fn an_exempt_request_is_counted() {
    let permits = Arc::new(InFlight::default());
    let exempt = |permits: &InFlight| permits.enter();
    let limited = |permits: &InFlight| {
        let _ = permits.try_enter(1);
    };
    together(&permits, vec![exempt, limited]);
    assert!((1..=2).contains(&permits.count()), "{}", permits.count());
}

/// Either line, never parts of both: 10/s for 2 s, or 10/s for 1 s and 100/s for another.
fn a_reader_sees_one_line() {
    let clock = Arc::new(ElasticClock::new(10.0, Time::ZERO));
    let bends = |clock: &ElasticClock| clock.set_rate(100.0, at(1.0));
    let reads = |clock: &ElasticClock| {
        let seen = clock.advance(at(2.0)).0;
        assert!([20 * CELL, 110 * CELL].contains(&seen), "{seen}");
    };
    together(&clock, vec![bends, reads]);
    assert_eq!(clock.advance(at(2.0)).0, 110 * CELL);
}

/// Two that bend it at one moment take turns: the slope is one of theirs, and nothing is lost.
fn two_writers_take_turns() {
    let clock = Arc::new(ElasticClock::new(10.0, Time::ZERO));
    let first = |clock: &ElasticClock| clock.set_rate(100.0, at(1.0));
    let second = |clock: &ElasticClock| clock.set_rate(1000.0, at(1.0));
    together(&clock, vec![first, second]);
    let slope = clock.rate();
    assert!([100.0, 1000.0].iter().any(|rate| (rate - slope).abs() < 1e-9), "{slope}");
    assert_eq!(clock.advance(at(1.0)).0, 10 * CELL, "a bend is no jump");
}

/// An answer that counts its shares.
#[derive(Debug)]
struct Counted(Arc<loom::sync::atomic::AtomicU32>);

impl single_flight::Answer for Counted {
    type Share = ();
    fn share(&self) -> Option<()> {
        self.0.fetch_add(1, sync::Ordering::Relaxed);
        Some(())
    }
    fn is_idle(&self) -> bool {
        true
    }
}

type Flights = single_flight::SingleFlight<u8, Counted, ()>;

/// Rung by a waker.
struct Bell(loom::sync::Mutex<bool>, loom::sync::Condvar);

impl std::task::Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }
}

/// Waits for it; one that is never woken is a deadlock, which loom reports.
fn wait<F: Future + Unpin>(mut future: F) -> F::Output {
    let bell = std::sync::Arc::new(Bell(loom::sync::Mutex::new(false), loom::sync::Condvar::new()));
    let waker = std::task::Waker::from(std::sync::Arc::clone(&bell));
    let mut context = std::task::Context::from_waker(&waker);
    loop {
        if let std::task::Poll::Ready(output) = std::pin::Pin::new(&mut future).poll(&mut context) {
            return output;
        }
        let mut rung = bell.0.lock().unwrap();
        while !*rung {
            rung = bell.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Asks once: whatever the answer, it ends. `leads` is what it does with the lead, if it gets it.
fn ask(flights: &Flights, leads: impl Fn(single_flight::Lead<u8, Counted, ()>)) -> &'static str {
    use single_flight::{Found, Told};
    match flights.find(0, Time::ZERO) {
        Found::Lead(lead) => {
            leads(lead);
            "led"
        }
        Found::Share(()) => "share",
        Found::Full => "full",
        Found::Follow(follower) => match wait(follower) {
            Told::Lead(lead) => {
                leads(lead);
                "led"
            }
            Told::Share(()) => "share",
            Told::Failed(()) => "failed",
            Told::Alone => "alone",
        },
    }
}

/// One leads and ends it in this way, beside one that asks, one that asks and leaves, and a `forget`.
fn hand_over(lead: fn(single_flight::Lead<u8, Counted, ()>), forgets: bool) {
    let flights = Flights::default();
    let single_flight::Found::Lead(first) = flights.find(0, Time::ZERO) else {
        unreachable!("no other request is here");
    };
    let asks = {
        let flights = flights.clone();
        thread::spawn(move || {
            let told = ask(&flights, lead);
            assert!(["led", "share", "failed", "alone"].contains(&told), "{told}");
        })
    };
    let leaves = {
        let flights = flights.clone();
        thread::spawn(move || {
            if forgets {
                flights.forget();
            }
            // Whatever it found, it is gone at once: what it had been given is for another.
            drop(flights.find(0, Time::ZERO));
        })
    };
    lead(first);
    asks.join().unwrap();
    leaves.join().unwrap();
    // Nothing is left behind: the next request leads.
    assert_eq!(ask(&flights, drop), "led");
}

/// The answer is handed once to every request that waits, and to none after its time.
fn an_answer_reaches_all_who_follow() {
    hand_over(|lead| drop(lead.land(Counted(Arc::default()), Time::ZERO)), false);
}

fn a_failure_is_told_to_all_at_once() {
    hand_over(|lead| lead.fail(()), true);
}

fn what_cannot_be_shared_leaves_no_request_waiting() {
    hand_over(single_flight::Lead::dissolve, false);
}

/// A leader is shed, and its heir leaves at the same moment: another request leads, or none is left.
fn a_lead_that_is_dropped_is_taken_up() {
    hand_over(drop, false);
    hand_over(drop, true);
}

/// While one answer makes room for another, no request is handed it halfway.
fn a_kept_answer_is_shared_or_gone() {
    let flights = Flights::default();
    let shares = Arc::new(loom::sync::atomic::AtomicU32::new(0));
    let single_flight::Found::Lead(lead) = flights.find(0, Time::ZERO) else {
        unreachable!("no other request is here");
    };
    let kept = lead.land(Counted(Arc::clone(&shares)), at(1.0));
    let asks = {
        let flights = flights.clone();
        thread::spawn(move || ask(&flights, drop))
    };
    let room = {
        let flights = flights.clone();
        thread::spawn(move || flights.drop_oldest())
    };
    drop(kept);
    let told = asks.join().unwrap();
    let _ = room.join().unwrap();
    let shared = shares.load(sync::Ordering::Relaxed);
    assert_eq!(shared, u32::from(told == "share"), "{told}");
    assert_eq!(ask(&flights, drop), "led");
}

fn log() -> coalesce::Key {
    let question = coalesce::Question::AsSent("/api/jobs/a/logs/tail");
    coalesce::Key::of_tail(&question, &http::HeaderMap::new())
}

/// What a follower gets to read, to the end.
fn reads(mut follower: tail::Follower) -> (Vec<u8>, Option<bytes::Bytes>) {
    let mut read = Vec::new();
    loop {
        match wait(Box::pin(follower.next())) {
            tail::Next::Frames(frames) => read.extend(frames),
            tail::Next::Behind(place) => panic!("nothing was dropped before {place:?}"),
            tail::Next::End(close) => return (read, close),
        }
    }
}

/// Ray sends two lines and its Close, in two pieces, while one joins at some moment and another comes and leaves.
fn every_follower_gets_every_line() {
    use websocket::{NORMAL, close_frame, text_frame};
    let tails = tail::LogFanouts::default();
    let tail::Found::Lead(lead) = tails.find(log()) else { unreachable!("no other request is here") };
    let reader = {
        let tail = lead.tail();
        thread::spawn(move || {
            let follower = wait(Box::pin(tail.join(tail::Place::default()))).unwrap();
            let said = [text_frame("one"), text_frame("two")].concat();
            let close = bytes::Bytes::copy_from_slice(&NORMAL.to_be_bytes());
            assert_eq!(reads(follower), (said, Some(close)));
        })
    };
    let leaver = {
        let tail = lead.tail();
        thread::spawn(move || drop(wait(Box::pin(tail.join(tail::Place::default())))))
    };
    lead.begin();
    let (first, rest) = (text_frame("one"), [text_frame("two"), close_frame(NORMAL)].concat());
    let says = tokio::io::AsyncReadExt::chain(&first[..], &rest[..]);
    wait(Box::pin(lead.pump(tokio::io::join(says, tokio::io::sink()), None)));
    drop(lead);
    reader.join().unwrap();
    leaver.join().unwrap();
}

/// The lead is dropped before Ray has answered: every request that waits is told.
fn those_who_wait_for_a_tail_that_fails_are_told() {
    let tails = tail::LogFanouts::default();
    let tail::Found::Lead(lead) = tails.find(log()) else { unreachable!("no other request is here") };
    let waits = {
        let tail = lead.tail();
        thread::spawn(move || assert!(wait(Box::pin(tail.join(tail::Place::default()))).is_none()))
    };
    drop(lead);
    waits.join().unwrap();
    assert!(matches!(tails.find(log()), tail::Found::Lead(_)), "and it is forgotten");
}

fn main() {
    let models: [(&str, fn()); 12] = [
        ("never above the limit", never_above_the_limit),
        ("a lowered limit only drains", a_lowered_limit_only_drains),
        ("an exempt request is counted", an_exempt_request_is_counted),
        ("a reader sees one line", a_reader_sees_one_line),
        ("two writers take turns", two_writers_take_turns),
        ("an answer reaches all who follow", an_answer_reaches_all_who_follow),
        ("a failure is told to all at once", a_failure_is_told_to_all_at_once),
        ("what cannot be shared leaves no request waiting", what_cannot_be_shared_leaves_no_request_waiting),
        ("a lead that is dropped is taken up", a_lead_that_is_dropped_is_taken_up),
        ("a kept answer is shared or gone", a_kept_answer_is_shared_or_gone),
        ("every follower gets every line", every_follower_gets_every_line),
        ("those who wait for a tail that fails are told", those_who_wait_for_a_tail_that_fails_are_told),
    ];
    for (name, model) in models {
        let count = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counted = std::sync::Arc::clone(&count);
        let mut every = loom::model::Builder::new();
        every.preemption_bound = Some(3); // more switches than bugs are known to need
        every.check(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            model();
        });
        println!("{name}: {} interleavings", count.load(std::sync::atomic::Ordering::Relaxed));
    }
}
