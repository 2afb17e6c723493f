//! After an outage: how many requests may go to Ray at once.
//!
//! A head that has just come back meets everybody who waited for it, with limits learnt when it
//! was well: the surest way to lose it again. So while it accepts no connections one request at a
//! time tries, at most one each [`PAUSE`], and all others are told at once instead of waiting for
//! a connection that will not come (the circuit breaker's open and half-open). From its first
//! answer on, each answer makes room for one request more, which doubles what is under way in
//! each round, as TCP's slow start does; whoever finds no room waits a little. With
//! [`ENOUGH`] under way it counts as well, and the door's own limits hold alone.
//!
//! While Ray is well, all of this is one relaxed load.

use crate::core::time::Time;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Between two trials while Ray accepts no connections.
pub const PAUSE: Duration = Duration::from_millis(250);

/// So many requests under way at once, and Ray counts as well.
pub const ENOUGH: u32 = 32;

/// Whether an upstream is well, and what it may be asked to bear.
#[derive(Debug, Default)]
pub struct Recovery {
    unwell: AtomicBool,
    state: Mutex<State>,
    change: Notify,
}

#[derive(Debug, Default)]
struct State {
    under_way: u32,
    /// How many may be; 1 while it accepts no connections.
    room: u32,
    /// No trial before this.
    not_before: Time,
}

/// Why a request may not go to Ray now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// It accepts no connections.
    Down,
    /// It has come back, and as many are under way as it may bear.
    Full,
}

/// A request to an upstream that may not be well yet. Dropped, it makes room for the next.
#[derive(Debug)]
pub struct Trial<'a>(Option<&'a Recovery>);

impl Recovery {
    /// Asks for leave to send a request.
    ///
    /// # Errors
    /// [`Held`].
    pub fn enter(&self, now: Time) -> Result<Trial<'_>, Held> {
        if !self.unwell.load(Ordering::Relaxed) {
            return Ok(Trial(None));
        }
        let mut state = self.state();
        if state.room <= 1 && (state.under_way > 0 || now < state.not_before) {
            return Err(Held::Down);
        }
        if state.under_way >= state.room {
            return Err(Held::Full);
        }
        state.under_way += 1;
        Ok(Trial(Some(self)))
    }

    /// The same; whoever finds it full waits, at most `patience`.
    ///
    /// # Errors
    /// [`Held`].
    pub async fn wait(&self, now: impl Fn() -> Time, patience: Duration) -> Result<Trial<'_>, Held> {
        if !self.unwell.load(Ordering::Relaxed) {
            return Ok(Trial(None));
        }
        Box::pin(self.wait_for_room(now, patience)).await
    }

    async fn wait_for_room(&self, now: impl Fn() -> Time, patience: Duration) -> Result<Trial<'_>, Held> {
        let first = self.enter(now());
        if !matches!(first, Err(Held::Full)) {
            return first;
        }
        let room = async {
            loop {
                let change = self.change.notified();
                match self.enter(now()) {
                    Err(Held::Full) => change.await,
                    decided => return decided,
                }
            }
        };
        tokio::time::timeout(patience, room).await.unwrap_or(Err(Held::Full))
    }

    /// No connection was accepted.
    pub fn refused(&self, now: Time) {
        let mut state = self.state();
        state.room = 1;
        state.not_before = now + PAUSE;
        self.unwell.store(true, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trial<'_> {
    /// Ray has answered.
    pub fn answered(self) {
        let Some(recovery) = self.0 else { return };
        let mut state = recovery.state();
        state.room += 1;
        if state.room > ENOUGH {
            recovery.unwell.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if let Some(recovery) = self.0 {
            recovery.state().under_way -= 1;
            recovery.change.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_ray_that_is_well_is_asked_by_everybody() {
        let recovery = Recovery::default();
        let asked: Vec<_> = (0..1000).map(|_| recovery.enter(at(0))).collect();
        assert!(asked.iter().all(Result::is_ok));
    }

    #[test]
    fn while_it_is_down_one_at_a_time_tries_and_not_without_a_pause() {
        let recovery = Recovery::default();
        recovery.refused(at(0));
        assert_eq!(recovery.enter(at(249)).unwrap_err(), Held::Down);
        let trial = recovery.enter(at(250)).unwrap();
        assert_eq!(recovery.enter(at(900)).unwrap_err(), Held::Down, "one is trying");
        recovery.refused(at(1000));
        drop(trial);
        assert_eq!(recovery.enter(at(1100)).unwrap_err(), Held::Down);
        assert!(recovery.enter(at(1250)).is_ok());
    }

    #[test]
    fn what_is_under_way_doubles_with_each_round_of_answers_until_it_is_well() {
        let recovery = Recovery::default();
        recovery.refused(at(0));
        let mut rounds = Vec::new();
        while recovery.unwell.load(Ordering::Relaxed) {
            let under_way: Vec<_> = std::iter::from_fn(|| recovery.enter(at(300)).ok()).take(100).collect();
            rounds.push(under_way.len());
            under_way.into_iter().for_each(Trial::answered);
        }
        assert_eq!(rounds, [1, 2, 4, 8, 16, 32]);
        assert!(recovery.enter(at(300)).is_ok());
        assert_eq!(recovery.state().under_way, 0, "each made room again, once");
    }

    #[test]
    fn one_that_fails_on_its_way_back_is_down_again() {
        let recovery = Recovery::default();
        recovery.refused(at(0));
        recovery.enter(at(300)).unwrap().answered();
        let both = (recovery.enter(at(301)).unwrap(), recovery.enter(at(301)).unwrap());
        assert_eq!(recovery.enter(at(301)).unwrap_err(), Held::Full);
        recovery.refused(at(302));
        drop(both);
        assert_eq!(recovery.enter(at(303)).unwrap_err(), Held::Down);
    }

    #[tokio::test]
    async fn whoever_finds_it_full_is_let_in_by_the_next_answer() {
        let recovery = Recovery::default();
        recovery.refused(at(0));
        recovery.enter(at(300)).unwrap().answered();
        let both = [recovery.enter(at(301)).unwrap(), recovery.enter(at(301)).unwrap()];
        let waits = recovery.wait(|| at(302), Duration::from_mins(1));
        let answers = async { both.into_iter().for_each(Trial::answered) };
        let (waited, ()) = tokio::join!(waits, answers);
        assert!(waited.is_ok());
    }
}
