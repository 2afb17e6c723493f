//! When is everybody served again after the last disturbance?
//!
//! The first second from which on, for five seconds on end, every polite group has 95 % of what it
//! first sent in them answered in time. A demand may be answered long after the second it was sent
//! in (it waits, it is tried again), so a window is judged once all that was sent in it has come to
//! an end; seconds that can no longer matter are forgotten. What is kept is therefore as long as
//! clients are patient, not as long as the run.

use rayguard_core::time::Time;
use std::collections::VecDeque;

/// Seconds on end in which all must be well.
const WINDOW: usize = 5;
/// Share of a group's demands that must be served in them.
const WELL: f64 = 0.95;

/// The search for that second.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recovery {
    calm_s: f64,
    groups: usize,
    /// The second that `seconds` begins with.
    first: usize,
    seconds: VecDeque<Vec<Sent>>,
    after_s: Option<f64>,
}

/// What a group first sent in one second.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Sent {
    demands: u32,
    settled: u32,
    served: u32,
}

impl Recovery {
    /// Of so many polite groups, from this second on.
    #[must_use]
    pub fn new(calm_s: f64, groups: usize) -> Recovery {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a second of the run")]
        let first = calm_s.ceil() as usize;
        Recovery { calm_s, groups, first, ..Recovery::default() }
    }

    /// How long after the disturbance it was; none while it has not been.
    #[must_use]
    pub(crate) fn after_s(&self) -> Option<f64> {
        self.after_s
    }

    /// A group sends a demand for the first time.
    pub fn send(&mut self, group: usize, now: Time) {
        if let Some(sent) = self.sent(group, now) {
            sent.demands += 1;
        }
    }

    /// A demand has come to its end, whichever attempt it was.
    pub fn settle(&mut self, group: usize, first_sent: Time, served: bool) {
        if let Some(sent) = self.sent(group, first_sent) {
            sent.settled += 1;
            sent.served += u32::from(served);
        }
    }

    /// So many seconds of the run are over: judges whatever is settled for good.
    pub fn close(&mut self, seconds: usize) {
        self.judge(seconds, |sent| sent.settled == sent.demands);
    }

    /// The run is over after so many seconds: judges the rest as it stands.
    pub fn end(&mut self, seconds: usize) {
        self.judge(seconds, |_| true);
    }

    fn sent(&mut self, group: usize, at: Time) -> Option<&mut Sent> {
        if self.after_s.is_some() {
            return None;
        }
        let second = usize::try_from(at.0 / 1_000_000_000).ok()?.checked_sub(self.first)?;
        self.reach(second + 1);
        self.seconds[second].get_mut(group)
    }

    fn reach(&mut self, seconds: usize) {
        while self.seconds.len() < seconds {
            self.seconds.push_back(vec![Sent::default(); self.groups]);
        }
    }

    fn judge(&mut self, seconds: usize, is_told: impl Fn(&Sent) -> bool) {
        while self.after_s.is_none() && self.first + WINDOW < seconds {
            self.reach(WINDOW);
            let window = || self.seconds.iter().take(WINDOW);
            if !window().flatten().all(&is_told) {
                return;
            }
            let well = |group: usize| {
                let of_group = window().map(|second| second[group]);
                let (settled, served) =
                    of_group.fold((0, 0), |sum, sent| (sum.0 + sent.settled, sum.1 + sent.served));
                settled == 0 || f64::from(served) >= WELL * f64::from(settled)
            };
            if (0..self.groups).all(well) {
                self.after_s = Some(self.first as f64 - self.calm_s);
                self.seconds.clear();
            } else {
                self.seconds.pop_front();
                self.first += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: usize) -> Time {
        Time::from_secs_f64(second as f64 + 0.5)
    }

    /// Ten demands a second of one group; those of the seconds before `well` fail, `late` seconds on.
    fn run(well: usize, late: usize, length: usize) -> (Recovery, usize) {
        let mut recovery = Recovery::new(10.0, 1);
        let mut kept = 0;
        for second in 0..length {
            for _ in 0..10 {
                recovery.send(0, at(second));
                if let Some(sent) = second.checked_sub(late) {
                    recovery.settle(0, at(sent), sent >= well);
                }
            }
            recovery.close(second + 1);
            kept = kept.max(recovery.seconds.len());
        }
        (recovery, kept)
    }

    #[test]
    fn it_is_the_first_second_of_five_good_ones_however_late_the_answers_are() {
        for late in [0, 3, 30] {
            assert_eq!(run(17, late, 100).0.after_s(), Some(7.0), "answered {late} s later");
        }
        assert_eq!(run(0, 0, 100).0.after_s(), Some(0.0));
        assert_eq!(run(usize::MAX, 0, 100).0.after_s(), None, "never well");
    }

    #[test]
    fn an_hour_without_recovery_keeps_no_more_than_clients_are_patient() {
        assert!(run(usize::MAX, 30, 3600).1 <= 30 + 2 * WINDOW, "{}", run(usize::MAX, 30, 3600).1);
    }

    #[test]
    fn what_is_under_way_at_the_end_is_judged_as_it_stands() {
        let mut recovery = run(17, 200, 100).0;
        assert_eq!(recovery.after_s(), None, "nothing has been answered yet");
        recovery.end(100);
        assert_eq!(recovery.after_s(), Some(0.0), "and nothing has failed");
    }

    #[test]
    fn one_group_that_is_not_served_is_enough() {
        let mut recovery = Recovery::new(0.0, 2);
        for second in 0..30 {
            for group in 0..2 {
                recovery.send(group, at(second));
                recovery.settle(group, at(second), group == 0 || second > 20);
            }
            recovery.close(second + 1);
        }
        assert_eq!(recovery.after_s(), Some(21.0));
    }
}
