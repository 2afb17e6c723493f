//! What an answer keeps to on its way to its client, and why it may not come to its end.

use crate::clock::Clock;
use crate::slow_reader::SlowReaders;
use crate::submitted::Submission;
use rayguard_core::admission::flow::Flow;
use std::sync::Arc;
use std::time::Duration;

/// Why an answer did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Ray broke off.
    #[error("Ray broke off in the middle of its answer: {0}")]
    Ray(hyper::Error),
    /// Ray fell silent.
    #[error("Ray said nothing more for {0:?} in the middle of its answer")]
    Silent(Duration),
    /// Its client did not read it.
    #[error("the client stopped reading its answer")]
    Unread,
    /// Its client kept those waiting who read the same answer.
    #[error("the client read a shared answer so slowly that it kept others waiting")]
    HeldUp,
    /// The one answer that it shared did not come to its end.
    #[error("{0}")]
    Shared(Arc<AnswerError>),
}

/// What an answer keeps to on its way.
#[derive(Clone, Debug)]
pub struct ResponsePolicy {
    /// Time.
    pub clock: Clock,
    /// The bandwidth of its class.
    pub flow: Option<Arc<Flow>>,
    /// How long its client may leave it unread.
    pub patience: Option<(SlowReaders, Duration)>,
    /// How long Ray may say nothing in the middle of it. A connection to Ray that was cut without
    /// notice would hold its permit, and every client that shares the answer, for ever.
    pub silence_max: Option<Duration>,
    /// A submission's, which names a job.
    pub submission: Option<Box<Submission>>,
}
