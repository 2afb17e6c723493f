//! How long a client of HTTP/1 may be silent: between two requests, and within a head.
//!
//! hyper has one bound for both, begins it anew after each request, and asks for a new timer
//! each time. A client that keeps its connection for later is not one that sends its head byte by
//! byte, so the two have bounds of their own here; and since most requests come long before
//! either has passed, the timer is not set for each of them. It is set once, and if it fires too
//! early it is set again for what is left.

use crate::core::time::Time;
use crate::runtime::clock::Clock;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// The patience of one connection.
#[derive(Clone, Debug)]
pub struct Patience(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    /// For the next request to begin.
    idle: Duration,
    /// For a head that has begun to be complete.
    head: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the first part of a head came that is not complete yet.
    head_began: Option<Time>,
    /// The timer of the last wait, for the next.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// A connection's patience, with its two bounds.
    #[must_use]
    pub fn new(clock: Clock, idle: Duration, head: Duration) -> Patience {
        Patience(Arc::new(Inner { clock, idle, head, state: Mutex::default() }))
    }

    /// A part of a head has come.
    pub fn head_is_incomplete(&self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.head_began.get_or_insert_with(|| self.0.clock.now());
    }

    fn wait(&self) -> Wait {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, timer) = (self.0.clock.now(), state.timer.take());
        // What came of the next head while this one's request was under way did not wait for us.
        state.head_began = state.head_began.map(|_| since);
        Wait { patience: self.clone(), since, timer }
    }

    /// When a wait is over that began at `since`.
    fn deadline(&self, since: Time) -> Time {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.head_began.map_or(since + self.0.idle, |began| began + self.0.head)
    }
}

/// hyper asks for a timer when it begins to wait for a head, and drops it when the head is there.
impl hyper::rt::Timer for Patience {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(self.wait())
    }

    fn sleep_until(&self, _: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(self.wait())
    }

    fn now(&self) -> Instant {
        self.0.clock.instant(self.0.clock.now()).into_std()
    }
}

/// One wait for a head.
#[derive(Debug)]
struct Wait {
    patience: Patience,
    since: Time,
    timer: Option<Pin<Box<Sleep>>>,
}

impl hyper::rt::Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let clock = this.patience.0.clock;
        let deadline = this.patience.deadline(this.since);
        let at = clock.instant(deadline);
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        while timer.as_mut().poll(context).is_ready() {
            if timer.deadline() >= at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
        }
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut state = self.patience.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.head_began = None;
        state.timer = self.timer.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(75);
    const HEAD: Duration = Duration::from_secs(10);

    fn patience() -> Patience {
        Patience::new(Clock::start(), IDLE, HEAD)
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
