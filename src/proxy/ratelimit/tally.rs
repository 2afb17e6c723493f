//! What the rate-limit service has answered, for `/metrics` and the operator's eye.

use std::sync::atomic::{AtomicU64, Ordering};

/// How a descriptor was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Within its limits.
    Ok,
    /// Over one.
    OverLimit,
    /// Over one, and let through: its class is in shadow mode.
    WouldShed,
    /// It asked without taking (`hits_addend` 0).
    Asked,
    /// It told the end of an exchange.
    End,
    /// It told the end of an exchange that is not known: refused, timed out, or of another run.
    EndUnknown,
    /// It names neither a class that exists nor method and path; let through.
    UnknownDescriptor,
    /// Its domain is not ours; let through.
    UnknownDomain,
    /// The call could not be read; Envoy does what its `failure_mode_deny` says.
    Malformed,
}

impl Answer {
    /// All of them, in the metrics' order.
    pub const ALL: [Answer; 9] = [
        Answer::Ok,
        Answer::OverLimit,
        Answer::WouldShed,
        Answer::Asked,
        Answer::End,
        Answer::EndUnknown,
        Answer::UnknownDescriptor,
        Answer::UnknownDomain,
        Answer::Malformed,
    ];

    /// The label.
    pub fn label(self) -> &'static str {
        match self {
            Answer::Ok => "ok",
            Answer::OverLimit => "over_limit",
            Answer::WouldShed => "would_shed",
            Answer::Asked => "asked",
            Answer::End => "end",
            Answer::EndUnknown => "end_unknown",
            Answer::UnknownDescriptor => "unknown_descriptor",
            Answer::UnknownDomain => "unknown_domain",
            Answer::Malformed => "malformed",
        }
    }
}

/// Counters that outlive every configuration.
#[derive(Debug, Default)]
pub struct AnswerCounts {
    answers: [AtomicU64; Answer::ALL.len()],
    places: AtomicU64,
}

impl AnswerCounts {
    /// Counts one; how many that makes.
    pub fn note(&self, answer: Answer) -> u64 {
        self.answers[answer as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How many there were.
    pub fn count(&self, answer: Answer) -> u64 {
        self.answers[answer as usize].load(Ordering::Relaxed)
    }

    /// So many places are held.
    pub(crate) fn set_places(&self, count: usize) {
        self.places.store(count as u64, Ordering::Relaxed);
    }

    /// Places held for exchanges elsewhere.
    pub fn places(&self) -> u64 {
        self.places.load(Ordering::Relaxed)
    }
}
