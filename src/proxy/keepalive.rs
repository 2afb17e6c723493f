//! How long a client of HTTP/1 may be silent: between two requests, and within a head.
//!
//! hyper has one bound for both, begins it anew after each request, and asks for a new timer
//! each time. A client that keeps its connection for later is not one that sends its head byte by
//! byte, so the two have bounds of their own here; and since most requests come long before
//! either has passed, the timer is not set for each of them. It is set once, and if it fires too
//! early it is set again for what is left.
//!
//! Most connections idle most of the time, and one that is ready for a request costs some twenty
//! KiB of buffers. So one that has idled for [`DOZE`] falls asleep: hyper is told that its client
//! has left, in good order, and only the stream is kept ([`KeepAlive::hibernate`]). `listen` wakes
//! it when the next request begins, which costs that request a few microseconds.

use crate::clock::Clock;
use crate::stream::Stream;
use rayguard_core::time::Time;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// A connection that has waited for its next request for so long falls asleep.
pub const DOZE: Duration = Duration::from_millis(250);

/// The patience of one connection.
#[derive(Clone, Debug)]
pub struct KeepAlive(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    /// For the next request to begin.
    idle: Duration,
    /// For a head that has begun to be complete.
    head: Duration,
    /// A head has gone to hyper that has not become a request yet.
    unanswered: AtomicBool,
    /// That head repeats the one before it to the byte.
    repeats: AtomicBool,
    /// From a head that has gone to hyper until hyper waits for the next.
    busy: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the first part of a head came that is not complete yet.
    head_began: Option<Time>,
    /// The timer of the last wait, for the next.
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when hyper waits for a head, once that is long enough to fall asleep.
    drowsy: Option<Time>,
    /// The stream of a connection that sleeps, and since when it idles.
    asleep: Option<(Stream, Time)>,
}

impl KeepAlive {
    /// A connection's patience, with its two bounds.
    #[must_use]
    pub fn new(clock: Clock, idle: Duration, head: Duration) -> KeepAlive {
        KeepAlive(Arc::new(Inner {
            clock,
            idle,
            head,
            unanswered: AtomicBool::new(false),
            repeats: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            state: Mutex::default(),
        }))
    }

    /// A whole head has gone to hyper; it may repeat the one before it to the byte.
    pub fn head_has_passed(&self, repeats: bool) {
        self.0.unanswered.store(true, Ordering::Relaxed);
        self.0.repeats.store(repeats, Ordering::Relaxed);
        self.0.busy.store(true, Ordering::Relaxed);
    }

    /// hyper has made a request of it; whether that is the request before it once more.
    #[must_use]
    pub fn head_is_a_request(&self) -> bool {
        self.0.unanswered.store(false, Ordering::Relaxed);
        self.0.repeats.load(Ordering::Relaxed)
    }

    /// Whether hyper answers a head itself, if it answers now.
    #[must_use]
    pub fn head_is_unanswered(&self) -> bool {
        self.0.unanswered.load(Ordering::Relaxed)
    }

    /// Whether hyper has a head and does not wait for the next yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.0.busy.load(Ordering::Relaxed)
    }

    /// A part of a head has come.
    pub fn head_is_incomplete(&self) {
        let mut state = self.state();
        state.head_began.get_or_insert_with(|| self.0.clock.now());
    }

    /// Whether hyper has waited for a head for long, and nothing of one has come.
    #[must_use]
    pub fn is_drowsy(&self) -> bool {
        let state = self.state();
        state.drowsy.is_some() && state.head_began.is_none()
    }

    /// The connection falls asleep: this is what is kept of it.
    pub fn hibernate(&self, stream: Stream) {
        let mut state = self.state();
        let since = state.drowsy.unwrap_or_else(|| self.0.clock.now());
        state.asleep = Some((stream, since));
    }

    /// What is kept of a connection that has fallen asleep, and until when it may sleep.
    #[must_use]
    pub fn resume(&self) -> Option<(Stream, tokio::time::Instant)> {
        let mut state = self.state();
        let (stream, since) = state.asleep.take()?;
        state.timer = None;
        Some((stream, self.0.clock.instant(since + self.0.idle)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) -> Wait {
        self.0.busy.store(false, Ordering::Relaxed);
        let mut state = self.state();
        let (since, timer) = (self.0.clock.now(), state.timer.take());
        // What came of the next head while this one's request was under way did not wait for us.
        state.head_began = state.head_began.map(|_| since);
        Wait { patience: self.clone(), since, timer }
    }

    /// When a wait is over that began at `since`.
    fn deadline(&self, since: Time) -> Time {
        self.state().head_began.map_or(since + self.0.idle, |began| began + self.0.head)
    }

    /// When a wait that began at `since` is to be looked at next.
    fn next_look(&self, since: Time) -> Time {
        let state = self.state();
        match state.head_began {
            Some(began) => began + self.0.head,
            None if state.drowsy.is_none() => since + DOZE.min(self.0.idle),
            None => since + self.0.idle,
        }
    }
}

/// hyper asks for a timer when it begins to wait for a head, and drops it when the head is there.
impl hyper::rt::Timer for KeepAlive {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(self.wait())
    }

    fn sleep_until(&self, _: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(self.wait())
    }

    /// hyper asks only to say until when to sleep, which it is not asked.
    fn now(&self) -> Instant {
        self.0.clock.instant(Time::ZERO).into_std()
    }
}

/// One wait for a head.
#[derive(Debug)]
struct Wait {
    patience: KeepAlive,
    since: Time,
    timer: Option<Pin<Box<Sleep>>>,
}

impl hyper::rt::Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let clock = this.patience.0.clock;
        loop {
            let look = this.patience.next_look(this.since);
            let at = clock.instant(look);
            let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() > at {
                timer.as_mut().reset(at);
            }
            while timer.as_mut().poll(context).is_ready() {
                if timer.deadline() < at {
                    timer.as_mut().reset(at);
                    continue;
                }
                if look >= this.patience.deadline(this.since) {
                    return Poll::Ready(());
                }
                // Whoever reads the stream shall look once more: see `is_drowsy`.
                this.patience.state().drowsy = Some(this.since);
                context.waker().wake_by_ref();
                break;
            }
            if !timer.is_elapsed() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut state = self.patience.state();
        (state.head_began, state.drowsy) = (None, None);
        state.timer = self.timer.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(75);
    const HEAD: Duration = Duration::from_secs(10);

    fn patience() -> KeepAlive {
        KeepAlive::new(Clock::start(), IDLE, HEAD)
    }

    #[test]
    fn a_client_may_be_idle_for_longer_than_it_may_take_over_a_head() {
        let patience = patience();
        let since = Time::ZERO + Duration::from_secs(5);
        assert_eq!(patience.deadline(since), since + IDLE);
        patience.head_is_incomplete();
        let deadline = patience.deadline(since);
        assert!(deadline < since + IDLE);
        patience.head_is_incomplete();
        assert_eq!(patience.deadline(since), deadline, "more of the same head wins no time");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_long_grows_drowsy_and_who_has_begun_does_not() {
        let patience = patience();
        for begins in [false, true] {
            let mut wait = patience.wait();
            assert!(tokio::time::timeout(DOZE / 2, &mut wait).await.is_err());
            assert!(!patience.is_drowsy());
            if begins {
                patience.head_is_incomplete();
            }
            assert!(tokio::time::timeout(DOZE, &mut wait).await.is_err());
            assert_eq!(patience.is_drowsy(), !begins);
            let left = if begins { HEAD } else { IDLE };
            assert!(tokio::time::timeout(left, wait).await.is_ok(), "and not for ever");
            assert!(!patience.is_drowsy());
        }
    }

    #[test]
    fn the_next_head_begins_afresh() {
        let patience = patience();
        let wait = patience.wait();
        patience.head_is_incomplete();
        drop(wait);
        let since = Time::ZERO + Duration::from_secs(5);
        assert_eq!(patience.deadline(since), since + IDLE);
    }
}
