//! Which of the jobs that were let in have started? Asked of the jobs themselves.
//!
//! *The question.* The limit on submissions follows how many wait for their start. Ray's gauge of them is ten
//! seconds old when it is read, a minute where Prometheus scrapes each minute; it may be missing, stand still, or be wrong.
//! The state of a job is true when it is told, and costs one read of a key (5 ms).
//!
//! *The law.* Ray starts jobs about in the order in which they came. So where one has started, those before it have, and
//! of what was let in here there wait at most
//!
//! ```text
//! waiting  <=  let in since the newest that is known to have started                       (Eq. 1)
//! ```
//!
//! One job is asked at a time, `stride` after that one. If it has started the line is shorter by so many and the
//! stride doubles; if it waits the stride is halved, so that it comes to be what is started between two questions,
//! whatever the head. Of a stride of one that waits, the newest is asked next: a job that waits for a package or for
//! resources of its own holds up none of those behind it.
//!
//! *What it refuses.* To speak before a job has been seen to start, and when it has heard nothing for a while. It knows
//! only jobs that came this way: a job let in *after* a gauge was read and found to have started shows that all
//! that the gauge counted have started (Eq. 1 again); before that the greater of the two holds
//! ([`crate::controller`]). What is stopped or gone leaves the line, and says nothing of others.
//!
//! Memory: at most `KEPT` jobs; of more, the oldest are forgotten.

use crate::time::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// More jobs than a limit ever lets wait.
const KEPT: usize = 4096;

/// Silence of the jobs for longer than this leaves the gauge alone.
const HEARD_FOR: Duration = Duration::from_secs(10);

/// What a job says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobState {
    /// It has not started.
    Waits,
    /// It runs, or is done, or has failed.
    Started,
    /// It was stopped, or there is no such job.
    Gone,
}

/// The jobs that were let in and are not known to have started, in the order in which they came.
#[derive(Clone, Debug)]
pub struct JobStarts<J> {
    line: VecDeque<(J, Time)>,
    stride: usize,
    /// When the newest that is known to have started was let in.
    started: Option<Time>,
    /// As it was when a job was last heard of.
    heard: Option<Waiting>,
}

/// How many wait.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Waiting {
    /// Eq. 1.
    pub jobs: f64,
    /// All that were let in before this have started.
    pub since: Time,
    /// When it was true.
    pub at: Time,
}

impl<J> Default for JobStarts<J> {
    fn default() -> JobStarts<J> {
        JobStarts { line: VecDeque::new(), stride: 1, started: None, heard: None }
    }
}

impl<J: Clone + PartialEq> JobStarts<J> {
    /// A job was let in: Ray has answered with its name.
    pub fn on_submitted(&mut self, job: J, now: Time) {
        if self.line.len() >= KEPT {
            self.line.pop_front();
        }
        self.line.push_back((job, now));
    }

    /// The job to ask now; none where none waits, and then that is heard.
    pub fn next(&mut self, now: Time) -> Option<J> {
        let next = self.line.get(self.stride.min(self.line.len()).saturating_sub(1));
        let next = next.map(|(job, _)| job.clone());
        if next.is_none() {
            self.hear(now);
        }
        next
    }

    /// What the job that was asked says.
    pub fn on_answer(&mut self, job: &J, state: JobState, now: Time) {
        let Some(at) = self.line.iter().position(|(other, _)| other == job) else { return };
        match state {
            JobState::Waits => self.stride = if at == 0 { self.line.len() } else { at.div_ceil(2) },
            JobState::Gone => _ = self.line.remove(at),
            JobState::Started => {
                self.started = self.started.max(self.line.get(at).map(|(_, since)| *since));
                self.line.drain(..=at);
                self.stride = (at + 1) * 2;
            }
        }
        self.hear(now);
    }

    fn hear(&mut self, now: Time) {
        let jobs = self.line.len() as f64;
        self.heard = self.started.map(|since| Waiting { jobs, since, at: now });
    }

    /// The head is down: what comes back may know none of them.
    pub fn forget(&mut self) {
        *self = JobStarts::default();
    }

    /// How many waited when a job was last heard of, where that is not long ago.
    #[must_use]
    pub fn waiting(&self, now: Time) -> Option<Waiting> {
        self.heard.filter(|heard| now.since(heard.at) <= HEARD_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    /// A head that starts `per_s` jobs a second in their order, `stuck` of them never; it is asked each second and let in
    /// as many as keep `ahead` waiting. At each second what is said and what is.
    fn ask(per_s: f64, ahead: u64, stuck: &[u64], seconds: u32) -> Vec<(f64, u64)> {
        let (mut starts, mut let_in, mut started) = (JobStarts::default(), 0_u64, 0.0_f64);
        let mut seen = Vec::new();
        for second in 0..seconds {
            let now = at(f64::from(second));
            started = (started + per_s).min(let_in as f64);
            while (let_in as f64) < started + ahead as f64 {
                starts.on_submitted(let_in, now);
                let_in += 1;
            }
            if let Some(job) = starts.next(now) {
                let has_started = (job as f64) < started && !stuck.contains(&job);
                starts.on_answer(&job, if has_started { JobState::Started } else { JobState::Waits }, now);
            }
            if let Some(waiting) = starts.waiting(now) {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
                seen.push((waiting.jobs, let_in - started as u64));
            }
        }
        seen
    }

    #[test]
    fn it_keeps_up_with_a_slow_head_and_with_a_fast_one() {
        for (per_s, ahead) in [(0.2, 20), (0.9, 27), (8.0, 100), (50.0, 300)] {
            let seen = ask(per_s, ahead, &[], 600);
            for (said, is) in &seen[60..] {
                let off = said - *is as f64;
                assert!(off >= -1.0 && off <= 4.0 * per_s + 5.0, "{per_s}/s: {said} said, {is} wait");
            }
        }
    }

    #[test]
    fn what_is_left_of_a_burst_is_known_in_as_many_questions_as_it_has_digits() {
        let mut starts = JobStarts::default();
        for job in 0..64 {
            starts.on_submitted(job, at(0.0));
        }
        let mut asked = 0;
        while let Some(job) = starts.next(at(1.0)) {
            starts.on_answer(&job, JobState::Started, at(1.0));
            asked += 1;
        }
        assert!(asked <= 7, "{asked}");
        assert!(starts.waiting(at(1.0)).unwrap().jobs < 0.5);
    }

    #[test]
    fn a_job_that_waits_for_something_else_hides_none_behind_it() {
        let seen = ask(1.0, 10, &[50, 51, 200], 600);
        assert!(seen[100..].iter().all(|(said, _)| *said <= 25.0), "{seen:?}");
    }

    #[test]
    fn it_says_nothing_before_a_job_has_started_nor_long_after_it_heard_of_one() {
        let mut starts = JobStarts::default();
        starts.on_submitted("a", at(0.0));
        starts.on_answer(&"a", JobState::Waits, at(1.0));
        assert_eq!(starts.waiting(at(1.0)), None);
        starts.on_answer(&"a", JobState::Started, at(2.0));
        assert_eq!(starts.next(at(3.0)), None);
        assert_eq!(starts.waiting(at(3.0)), Some(Waiting { jobs: 0.0, since: at(0.0), at: at(3.0) }));
        starts.on_submitted("b", at(4.0));
        starts.on_answer(&"b", JobState::Waits, at(5.0));
        assert_eq!(starts.waiting(at(6.0)), Some(Waiting { jobs: 1.0, since: at(0.0), at: at(5.0) }));
        assert_eq!(starts.waiting(at(16.0)), None, "the head no longer answers");
    }

    #[test]
    fn what_is_stopped_leaves_the_line_and_says_nothing_of_others() {
        let mut starts = JobStarts::default();
        for job in ["a", "b", "c"] {
            starts.on_submitted(job, at(0.0));
        }
        starts.on_answer(&"a", JobState::Started, at(1.0));
        starts.on_answer(&"c", JobState::Gone, at(2.0));
        assert!((starts.waiting(at(2.0)).unwrap().jobs - 1.0).abs() < 0.5);
        assert_eq!(starts.next(at(3.0)), Some("b"));
    }

    proptest! {
        /// Eq. 1: of jobs that start in their order it never says fewer than wait.
        #[test]
        fn no_fewer_are_said_to_wait_than_do(steps in prop::collection::vec((0_u8..3, 0_u8..5), 1..300)) {
            let (mut starts, mut let_in, mut started) = (JobStarts::default(), 0_u64, 0_u64);
            for (second, (what, count)) in steps.into_iter().enumerate() {
                let now = at(second as f64);
                match what {
                    0 => (0..count).for_each(|_| { starts.on_submitted(let_in, now); let_in += 1; }),
                    1 => started = (started + u64::from(count)).min(let_in),
                    _ => if let Some(job) = starts.next(now) {
                        let state = if job < started { JobState::Started } else { JobState::Waits };
                        starts.on_answer(&job, state, now);
                    },
                }
                if what == 2 && let Some(waiting) = starts.waiting(now) {
                    prop_assert!(waiting.jobs >= (let_in - started) as f64);
                }
            }
        }
    }
}
