//! The cluster behind the head: what its own work needs of the head, and how that fares.
//!
//! A head does not live for its API. The cluster's tasks call the GCS and are placed by the
//! raylet ([`Own`]), whether or not anybody looks at the dashboard: they stand in the same line
//! and share the same cores, and nothing at the proxy shows how long they wait. And a job is not
//! done when it is accepted: it brings tasks, which the cluster's slots work off in equal shares
//! between jobs ([`Workers`]), because Ray bounds the leases that one owner may ask for at once.
//! Equal shares are processor sharing, computed as in `plant`: one clock shows the slot time that
//! each job has had, and a job of `w` slot-seconds that begins at `c` ends when it shows `c + w`.

use super::heap::EventHeap;
use rayguard_core::time::{Time, duration_from_secs};

/// Work of the cluster's own in one of the head's processes.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Own {
    /// Share of a core that it needs.
    pub need: f64,
    /// Work that could not be done in time, seconds of a core.
    behind_s: f64,
}

impl Own {
    /// Work that needs this share of a core.
    #[must_use]
    pub(crate) fn new(need: f64) -> Own {
        Own { need, behind_s: 0.0 }
    }

    /// `span_s` seconds pass in which the process gets this share of a core.
    pub(crate) fn pass(&mut self, span_s: f64, share: f64) {
        self.behind_s = (self.behind_s + span_s * (self.need - share)).max(0.0);
    }

    /// How much of a core it takes if it gets it.
    #[must_use]
    pub(crate) fn load(&self) -> f64 {
        if self.behind_s > 0.0 { 1.0 } else { self.need }
    }

    /// How late the work is, seconds.
    #[must_use]
    pub(crate) fn late_s(&self) -> f64 {
        if self.behind_s > 0.0 { self.behind_s / self.need.max(1e-3) } else { 0.0 }
    }
}

/// What jobs bring to the cluster.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Brings {
    /// Tasks.
    pub tasks: u32,
    /// How long each takes, seconds.
    pub task_s: f64,
    /// No node can ever run them.
    pub infeasible: bool,
}

/// The cluster's slots and the tasks that jobs brought.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    slots: f64,
    now: Time,
    /// Slot time that each unfinished job has had, seconds.
    had_s: f64,
    /// Jobs by the reading of `had_s` at which they are done, nanoseconds.
    jobs: EventHeap<(u32, f64)>,
    count: u32,
    /// Sums of `end / task_s` and `1 / task_s`: what is left is their difference.
    ends: f64,
    rates: f64,
    finished: f64,
}

impl Workers {
    /// Idle slots.
    #[must_use]
    pub(crate) fn new(slots: f64) -> Workers {
        Workers {
            slots,
            now: Time::ZERO,
            had_s: 0.0,
            jobs: EventHeap::default(),
            count: 0,
            ends: 0.0,
            rates: 0.0,
            finished: 0.0,
        }
    }

    fn pace(&self) -> f64 {
        self.slots / f64::from(self.count.max(1))
    }

    /// Lets time pass.
    pub(crate) fn sync(&mut self, now: Time) {
        if self.count > 0 {
            let had_s = now.since(self.now).as_secs_f64() * self.pace();
            self.had_s += had_s;
            self.finished += had_s * self.rates;
        }
        self.now = now;
    }

    /// The cluster grows or shrinks.
    pub(crate) fn set_slots(&mut self, now: Time, slots: f64) {
        self.sync(now);
        self.slots = slots;
    }

    /// Job `job` brings its tasks.
    pub(crate) fn add(&mut self, now: Time, job: u32, brings: Brings) {
        self.sync(now);
        let (tasks, task_s) = (f64::from(brings.tasks), brings.task_s.max(1e-3));
        let end = self.had_s + tasks * task_s;
        self.jobs.push(key(end), (job, task_s));
        self.count += 1;
        self.ends += end / task_s;
        self.rates += 1.0 / task_s;
    }

    /// When the next job is done.
    #[must_use]
    pub(crate) fn next(&self) -> Option<Time> {
        let left_s = self.jobs.next_key()? as f64 / 1e9 - self.had_s;
        (self.slots > 0.0).then(|| self.now + duration_from_secs((left_s / self.pace()).max(0.0)))
    }

    /// The job that is done now.
    pub(crate) fn pop(&mut self, now: Time) -> Option<u32> {
        self.sync(now);
        let (end, (job, task_s)) = self.jobs.pop()?;
        self.count -= 1;
        self.ends -= end as f64 / 1e9 / task_s;
        self.rates -= 1.0 / task_s;
        if self.count == 0 {
            // Nothing is left, and no rounding of what there was.
            (self.ends, self.rates) = (0.0, 0.0);
        }
        Some(job)
    }

    /// Tasks running, and tasks waiting for a slot.
    #[must_use]
    pub(crate) fn tasks(&self) -> (f64, f64) {
        let left = (self.ends - self.had_s * self.rates).max(0.0);
        let running = left.min(self.slots);
        (running, left - running)
    }

    /// Tasks finished so far.
    #[must_use]
    pub(crate) fn finished(&self) -> f64 {
        self.finished
    }
}

fn key(seconds: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let key = (seconds * 1e9).ceil() as u64;
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    #[test]
    fn two_jobs_share_the_slots_evenly_and_the_second_half_goes_faster() {
        let mut workers = Workers::new(10.0);
        let brings = |tasks| Brings { tasks, task_s: 1.0, infeasible: false };
        workers.add(at(0.0), 1, brings(100));
        workers.add(at(0.0), 2, brings(200));
        assert_eq!(workers.tasks(), (10.0, 290.0));
        let first = workers.next().expect("one ends");
        assert!((first.as_secs_f64() - 20.0).abs() < 1e-6, "{first:?}");
        assert_eq!(workers.pop(first), Some(1));
        let second = workers.next().expect("the other ends");
        assert!((second.as_secs_f64() - 30.0).abs() < 1e-6, "{second:?}");
        assert_eq!(workers.pop(second), Some(2));
        assert!((workers.finished() - 300.0).abs() < 1e-6);
        assert_eq!((workers.tasks(), workers.next()), ((0.0, 0.0), None));
    }

    #[test]
    fn own_work_is_late_only_while_it_gets_less_than_it_needs() {
        let mut own = Own::new(0.5);
        own.pass(10.0, 0.5);
        assert_eq!((own.late_s(), own.load()), (0.0, 0.5));
        own.pass(10.0, 0.25);
        assert!((own.late_s() - 5.0).abs() < 1e-9);
        assert!((own.load() - 1.0).abs() < 1e-9, "it takes all it can get");
        own.pass(10.0, 1.0);
        assert!(own.late_s().abs() < 1e-9);
    }
}
