//! A bandwidth limit: how many bytes a second a class may move, all its exchanges together.
//!
//! A body asks for a *turn* before it lets a piece through, and a turn is a point of virtual
//! time, where a unit is a byte and time runs at the limit (see [`ElasticClock`]):
//!
//! ```text
//! turn  = max(end, V(now) - burst)      end = turn + bytes
//! ```
//!
//! `V` is continuous whatever becomes of the limit, so what passes in any interval is at most
//! the integral of the limit, plus the burst and one piece for each exchange.
//!
//! **Fair, without a list of who there is.** Turns are handed out in the order in which they are
//! asked for, pieces are alike, and an exchange asks for its next turn only when the last has
//! come. So those who want more than their share go round in a ring, one piece each, and one
//! whose reader is slow asks seldom and leaves the rest to the others: max-min, in constant
//! memory. Turns are taken without a lock.

use crate::admission::clock::ElasticClock;
use crate::time::{Time, duration_from_secs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A limit above this is none.
const UNLIMITED: f64 = 1e11;

/// Virtual nanoseconds, hence bytes, that the clock counts as one of its cells.
const CELL_BYTES: f64 = crate::admission::clock::CELL_NANOS;

/// A piece takes about this long at the limit, so that a ring of many goes round quickly...
const PIECE_S: f64 = 0.1;
/// ... within these bounds, in bytes.
const PIECE_BYTES: [usize; 2] = [1 << 10, 16 << 10];

/// What may pass at once after a pause, in seconds at the limit: timers are that coarse.
const BURST_S: f64 = 0.05;

/// The bandwidth of one class.
#[derive(Debug)]
pub struct Flow {
    clock: ElasticClock,
    end: AtomicU64,
}

/// When a piece may pass, in virtual time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Turn(u64);

impl Default for Flow {
    /// Without a limit.
    fn default() -> Flow {
        Flow { clock: ElasticClock::new(UNLIMITED / CELL_BYTES, Time::ZERO), end: AtomicU64::new(0) }
    }
}

impl Flow {
    /// Sets the limit from `now` on, in bytes per second; `None`: no limit.
    pub(crate) fn set_limit(&self, bytes_per_second: Option<f64>, now: Time) {
        let limit = bytes_per_second.unwrap_or(UNLIMITED);
        if (limit - self.bytes_per_second()).abs() > f64::EPSILON * limit.abs() {
            self.clock.set_rate(limit / CELL_BYTES, now);
        }
    }

    /// The limit.
    pub fn bytes_per_second(&self) -> f64 {
        self.clock.rate() * CELL_BYTES
    }

    /// The largest piece that may pass in one turn.
    pub fn piece(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "as-casts of f64 saturate"
        )]
        let piece = (self.bytes_per_second() * PIECE_S) as usize;
        piece.clamp(PIECE_BYTES[0], PIECE_BYTES[1])
    }

    /// Takes the next turn, for a piece of so many bytes. It is paid for whether it is used or not.
    pub fn take(&self, bytes: usize, now: Time) -> Turn {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "as-casts of f64 saturate"
        )]
        let burst = (self.bytes_per_second() * BURST_S) as u64;
        let floor = self.clock.advance(now).0.saturating_sub(burst);
        let next = |end: u64| Some(end.max(floor).saturating_add(bytes as u64));
        let (Ok(end) | Err(end)) = self.end.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
        Turn(end.max(floor))
    }

    /// How long until the turn comes, at the present limit; zero once it has. The limit may rise
    /// meanwhile: look again after a while.
    pub fn wait(&self, turn: Turn, now: Time) -> Duration {
        let ahead = turn.0.saturating_sub(self.clock.advance(now).0);
        let limit = self.bytes_per_second();
        if ahead == 0 {
            Duration::ZERO
        } else if limit > 0.0 {
            duration_from_secs(ahead as f64 / limit)
        } else {
            Duration::MAX
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limited(bytes_per_second: f64) -> Flow {
        let flow = Flow::default();
        flow.set_limit(Some(bytes_per_second), Time::ZERO);
        flow
    }

    /// Bytes that each of `readers` gets within `seconds`: a reader asks for its next turn when
    /// its last has come and `pause` has passed.
    fn serve(flow: &Flow, pauses: &[f64], seconds: f64) -> Vec<f64> {
        let mut waiting: Vec<(f64, Option<Turn>)> = vec![(0.0, None); pauses.len()];
        let mut got = vec![0.0; pauses.len()];
        let steps = 20_000_u32;
        for step in 0..steps {
            let at = seconds * f64::from(step) / f64::from(steps);
            let now = Time::from_secs_f64(at);
            for (reader, (free, turn)) in waiting.iter_mut().enumerate() {
                if turn.is_none() && *free <= at {
                    *turn = Some(flow.take(flow.piece(), now));
                }
                if turn.is_some_and(|turn| flow.wait(turn, now).is_zero()) {
                    got[reader] += flow.piece() as f64;
                    (*free, *turn) = (at + pauses[reader], None);
                }
            }
        }
        got
    }

    #[test]
    fn hungry_readers_share_the_limit_evenly_and_use_all_of_it() {
        let flow = limited(1e6);
        let got = serve(&flow, &[0.0; 5], 10.0);
        let all: f64 = got.iter().sum();
        assert!((all / 1e7 - 1.0).abs() < 0.02, "{all}");
        for one in &got {
            assert!((one / (all / 5.0) - 1.0).abs() < 0.02, "{got:?}");
        }
    }

    #[test]
    fn what_a_slow_reader_leaves_the_others_get() {
        let flow = limited(1e6);
        // One piece (16 KiB) a second, where an even share were twenty.
        let got = serve(&flow, &[0.0, 0.0, 1.0], 10.0);
        assert!(got[2] < 0.2e6 && got[0] > 4.7e6 && got[1] > 4.7e6, "{got:?}");
    }

    #[test]
    fn a_raised_limit_shortens_the_wait_of_those_who_wait_already() {
        let flow = limited(1000.0);
        flow.take(10_000, Time::ZERO);
        let turn = flow.take(1000, Time::ZERO);
        assert_eq!(flow.wait(turn, Time::ZERO).as_secs(), 10);
        flow.set_limit(Some(0.0), Time::ZERO);
        assert_eq!(flow.wait(turn, Time::ZERO), Duration::MAX);
        flow.set_limit(Some(1e6), Time::ZERO);
        assert_eq!(flow.wait(turn, Time::ZERO).as_millis(), 10);
        flow.set_limit(None, Time::ZERO);
        assert!(flow.wait(turn, Time::ZERO) < Duration::from_millis(1));
    }

    proptest! {
        /// Whatever the limit does: never more than its integral, the burst and one piece.
        #[test]
        fn what_passes_never_exceeds_the_integral_of_the_limit(
            steps in prop::collection::vec((1u64..300_000_000, 1e3..1e7f64), 1..60),
        ) {
            let flow = limited(1e5);
            let (mut now, mut integral, mut limit) = (Time::ZERO, 0.0, 1e5_f64);
            let (mut passed, mut burst) = (0.0, 0.0_f64);
            let mut turn = None;
            for (step, next) in steps {
                integral += limit * Duration::from_nanos(step).as_secs_f64();
                now = now + Duration::from_nanos(step);
                burst = burst.max(limit * BURST_S).max(next * BURST_S);
                limit = next;
                flow.set_limit(Some(limit), now);
                loop {
                    let piece = PIECE_BYTES[0];
                    let mine = *turn.get_or_insert_with(|| flow.take(piece, now));
                    if !flow.wait(mine, now).is_zero() {
                        break;
                    }
                    turn = None;
                    passed += piece as f64;
                }
                prop_assert!(passed <= integral + burst + PIECE_BYTES[0] as f64 + 60.0);
            }
        }
    }
}
