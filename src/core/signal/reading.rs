//! A reading: one value of one signal, with all that says how far to trust it.

use crate::policy::SignalId;
use crate::time::Time;
use std::sync::Arc;

/// One value of one signal.
#[derive(Clone, PartialEq, Debug)]
pub struct Reading {
    /// Which signal.
    pub signal: SignalId,
    /// The value in the signal's unit: finite, or the reading is not made.
    pub value: f64,
    /// When the value was true, as far as it can be told (scrape start, or the sample's own
    /// time stamp when it carries one).
    pub at: Time,
    /// Counts distinct samples: it rises only when the source delivered new information
    /// (another exposition body, a changed counter, a newer time stamp). The loop acts once
    /// per value of `fresh`.
    pub fresh: u64,
    /// The least step this reading can resolve, as a ratio: decade buckets say 10.0.
    pub resolution: f64,
    /// Where it came from, for the adjustment log (`127.0.0.1:8080 ray_node_cpu_utilization`).
    pub source: Arc<str>,
}

/// Why there is no reading.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Missing {
    /// No page of Ray's metrics has come at all.
    #[error("no page of Ray's metrics has been read yet{}", why.as_deref().map_or_else(String::new, |why| format!(" ({why})")))]
    NoPage {
        /// Why not, if that is known.
        why: Option<Arc<str>>,
    },
    /// The source could not be reached or did not answer in time.
    #[error("{target}: {problem}")]
    Unreachable {
        /// Address of the target.
        target: Arc<str>,
        /// What happened.
        problem: Arc<str>,
    },
    /// The source answered, but no alternative of the signal is in it.
    #[error("none of {tried} found in the scrape")]
    NotFound {
        /// The names looked for.
        tried: Arc<str>,
    },
    /// Found, but it carries no information (NaN, infinite, no new observation).
    #[error("{metric}: {problem}")]
    Unusable {
        /// The metric.
        metric: Arc<str>,
        /// What is wrong with it.
        problem: Arc<str>,
    },
}
