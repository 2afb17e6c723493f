//! How long a client of HTTP/1 may be silent: between two requests, and within a head.
//!
//! A client that keeps its connection for later is not one that sends its head byte by byte, so the two
//! have bounds of their own; and since most requests come long before either has passed, the timer is
//! not set for each of them. It is set once, and if it fires too early it is set again for what is left.
//! (hyper has one bound for both, and asks for a new timer each time: it is not asked to keep time.)
//!
//! Most connections idle most of the time, and one that is ready for a request costs some twenty
//! KiB of buffers. So one that has idled for [`DOZE`] falls asleep: hyper is told that its client
//! has left, in good order, and only the stream is kept (`KeepAlive::hibernate`). `listen` wakes
//! it when the next request begins, which costs that request a few microseconds.

use crate::clock::Clock;
use crate::stream::Stream;
use parking_lot::Mutex;
use rayguard_core::time::Time;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// A connection that has waited for its next request for so long falls asleep.
pub const DOZE: Duration = Duration::from_millis(250);

/// What the framing guard of one connection tells those behind hyper.
#[derive(Clone, Debug, Default)]
pub struct KeepAlive(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// A head has gone to hyper that has not become a request yet.
    unanswered: AtomicBool,
    /// That head repeats the one before it to the byte.
    repeats: AtomicBool,
    /// From a head that has gone to hyper until hyper asks for the next.
    busy: AtomicBool,
    /// The stream of a connection that sleeps, and since when it idles.
    asleep: Mutex<Option<(Stream, Time)>>,
}

impl KeepAlive {
    /// A whole head has gone to hyper; it may repeat the one before it to the byte.
    pub(crate) fn head_has_passed(&self, repeats: bool) {
        self.0.unanswered.store(true, Ordering::Relaxed);
        self.0.repeats.store(repeats, Ordering::Relaxed);
        self.0.busy.store(true, Ordering::Relaxed);
    }

    /// hyper has made a request of it; whether that is the request before it once more.
    pub(crate) fn head_is_a_request(&self) -> bool {
        self.0.unanswered.store(false, Ordering::Relaxed);
        self.0.repeats.load(Ordering::Relaxed)
    }

    /// Whether hyper answers a head itself, if it answers now.
    pub(crate) fn head_is_unanswered(&self) -> bool {
        self.0.unanswered.load(Ordering::Relaxed)
    }

    /// hyper asks for the next head.
    pub(crate) fn next_is_wanted(&self) {
        self.0.busy.store(false, Ordering::Relaxed);
    }

    /// Whether hyper has a head and does not ask for the next yet.
    pub fn is_busy(&self) -> bool {
        self.0.busy.load(Ordering::Relaxed)
    }

    /// The connection falls asleep: this is what is kept of it, and since when it idles.
    pub(crate) fn hibernate(&self, stream: Stream, since: Time) {
        *self.0.asleep.lock() = Some((stream, since));
    }

    /// What is kept of a connection that has fallen asleep, and since when it idles.
    pub fn resume(&self) -> Option<(Stream, Time)> {
        self.0.asleep.lock().take()
    }
}

/// The patience with one connection's client.
#[derive(Debug)]
pub struct Patience {
    clock: Clock,
    /// For the next request to begin.
    idle: Duration,
    /// For a head that has begun to be complete.
    head: Duration,
    /// Since when the next head is awaited.
    since: Option<Time>,
    /// When the first part of it came.
    head_began: Option<Time>,
    /// Kept from one wait to the next.
    timer: Option<Pin<Box<Sleep>>>,
    /// The task that the timer wakes.
    woken: Option<Waker>,
}

/// What is to be done about a client that is silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Silence {
    /// Its connection, idle since then, may fall asleep.
    Doze(Time),
    /// Its time is up.
    TooLong,
}

impl Patience {
    /// Nothing is awaited yet.
    pub fn new(clock: Clock, idle: Duration, head: Duration) -> Patience {
        Patience { clock, idle, head, since: None, head_began: None, timer: None, woken: None }
    }

    /// A part of a head is there. (What came of it while the request before was under way did not wait for us.)
    pub(crate) fn head_is_incomplete(&mut self) {
        self.head_began.get_or_insert_with(|| self.clock.now());
    }

    /// All of it is.
    pub(crate) fn head_is_whole(&mut self) {
        (self.since, self.head_began) = (None, None);
    }

    /// Nothing more of a head has come.
    pub fn poll(&mut self, may_sleep: bool, context: &mut Context<'_>) -> Poll<Silence> {
        let since = *self.since.get_or_insert_with(|| self.clock.now());
        let dozes = may_sleep && self.head_began.is_none() && DOZE < self.idle;
        let idle = if dozes { DOZE } else { self.idle };
        let at = self.clock.instant(self.head_began.map_or(since + idle, |began| began + self.head));
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        // Once asked, the timer wakes the task that asked: it is not asked again for every request.
        if !timer.is_elapsed() && self.woken.as_ref().is_some_and(|woken| woken.will_wake(context.waker())) {
            return Poll::Pending;
        }
        self.woken = Some(context.waker().clone());
        ready!(timer.as_mut().poll(context));
        if timer.deadline() < at {
            timer.as_mut().reset(at);
            ready!(timer.as_mut().poll(context));
        }
        Poll::Ready(if dozes { Silence::Doze(since) } else { Silence::TooLong })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const IDLE: Duration = Duration::from_secs(75);
    const HEAD: Duration = Duration::from_secs(10);

    async fn silence(patience: &mut Patience, may_sleep: bool) -> (Silence, Duration) {
        let began = patience.clock.now();
        let silence = poll_fn(|context| patience.poll(may_sleep, context)).await;
        (silence, patience.clock.now().since(began))
    }

    fn about(length: Duration, expected: Duration) -> bool {
        length.abs_diff(expected) < Duration::from_millis(5)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_be_idle_for_longer_than_it_may_take_over_a_head() {
        let mut patience = Patience::new(Clock::start(), IDLE, HEAD);
        let (idle, lasted) = silence(&mut patience, false).await;
        assert!(idle == Silence::TooLong && about(lasted, IDLE), "{lasted:?}");
        patience.head_is_incomplete();
        let (slow, lasted) = silence(&mut patience, true).await;
        assert!(slow == Silence::TooLong && about(lasted, HEAD), "{lasted:?}");
        patience.head_is_incomplete();
        let (_, lasted) = silence(&mut patience, true).await;
        assert!(about(lasted, Duration::ZERO), "more of the same head wins no time: {lasted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_long_may_doze_and_who_has_begun_may_not() {
        let clock = Clock::start();
        let mut patience = Patience::new(clock, IDLE, HEAD);
        for _ in 0..3 {
            let since = clock.now();
            let (idle, lasted) = silence(&mut patience, true).await;
            assert!(idle == Silence::Doze(since) && about(lasted, DOZE), "{idle:?} {lasted:?}");
            patience.head_is_incomplete();
            assert_eq!(silence(&mut patience, true).await.0, Silence::TooLong);
            patience.head_is_whole();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_head_begins_afresh_with_the_timer_of_the_last() {
        let mut patience = Patience::new(Clock::start(), IDLE, HEAD);
        for _ in 0..3 {
            let early = tokio::time::timeout(DOZE / 2, silence(&mut patience, true)).await;
            assert!(early.is_err());
            patience.head_is_whole();
        }
        let (_, lasted) = silence(&mut patience, true).await;
        assert!(about(lasted, DOZE), "{lasted:?}");
    }
}
