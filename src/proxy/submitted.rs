//! Jobs by the names that Ray gives them: what was let in is asked whether it has started.

use crate::clock::Clock;
use bytes::Bytes;
use parking_lot::Mutex;
use rayguard_core::control::job_starts::JobStarts;
use serde_json::Value;
use std::sync::Arc;

/// The jobs that were let in and are not known to have started.
pub(crate) type SubmittedJobs = Arc<Mutex<JobStarts<Arc<str>>>>;

/// Ray's answer to a submission is two names.
const ANSWER_BYTES_MAX: usize = 4096;

/// A job's name may be chosen by who submits it, and is remembered for a while.
const NAME_BYTES_MAX: usize = 128;

/// Ray's answer to a submission on its way back to who submitted.
#[derive(Clone, Debug)]
pub struct Submission {
    jobs: SubmittedJobs,
    clock: Clock,
    answer: Vec<u8>,
}

impl Submission {
    /// One whose answer is on its way.
    pub fn new(jobs: SubmittedJobs, clock: Clock) -> Submission {
        Submission { jobs, clock, answer: Vec::new() }
    }

    /// A part of it has come.
    pub fn hear(&mut self, data: &Bytes) {
        if self.answer.len() + data.len() <= ANSWER_BYTES_MAX {
            self.answer.extend_from_slice(data);
        }
    }

    /// All of it has: the job is one that waits. What is no job's name is no job.
    pub fn end(self) {
        let answer: Value = serde_json::from_slice(&self.answer).unwrap_or_default();
        let name = answer.get("submission_id").and_then(Value::as_str);
        if let Some(name) = name.filter(|name| is_plain(name)) {
            self.jobs.lock().on_submitted(name.into(), self.clock.now());
        }
    }
}

/// Whether a name may stand in a path as it is, and means no other path there.
fn is_plain(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(parts: &[&'static str]) -> Option<Arc<str>> {
        let jobs = SubmittedJobs::default();
        let mut submission = Submission::new(Arc::clone(&jobs), Clock::start());
        for part in parts {
            submission.hear(&Bytes::from_static(part.as_bytes()));
        }
        submission.end();
        jobs.lock().next(Clock::start().now())
    }

    #[test]
    fn a_job_is_known_by_the_name_in_rays_answer_in_however_many_parts_it_comes() {
        let name: Option<Arc<str>> = Some("raysubmit_1".into());
        assert_eq!(waiting(&[r#"{"job_id": "raysubmit_1", "submission_id": "raysubmit_1"}"#]), name);
        assert_eq!(waiting(&[r#"{"job_id": "raysubm"#, r#"it_1", "submission_id": "raysubmit_1"}"#]), name);
    }

    #[test]
    fn what_is_no_jobs_name_is_no_job() {
        for answer in ["", "{}", "[1]", "<html>", r#"{"submission_id": 7}"#, r#"{"submission_id": null}"#] {
            assert_eq!(waiting(&[answer]), None, "{answer}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        assert!(["", "..", "a/b", "a b", "a?b", "\u{e9}", &long].iter().all(|name| !is_plain(name)));
        assert!(is_plain("raysubmit_Ab3") && is_plain("nightly-2026.11"));
    }
}
