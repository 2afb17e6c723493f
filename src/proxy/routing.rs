//! What the paths of one listener mean, and where its requests go.

use crate::cors::Origins;
use crate::upstream::Upstream;
use rayguard_core::request::catalogue::Surface;
use rayguard_core::request::classify::Classifier;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// One listener's kind of traffic: its routes and its upstream.
#[derive(Debug)]
pub struct Routing {
    /// What the paths mean here.
    pub surface: Surface,
    /// Path to class.
    pub classifier: Classifier,
    /// Where its requests go.
    pub upstream: Arc<Upstream>,
    /// Whose pages may read the proxy's own answers, on Serve.
    pub origins: Origins,
    /// Whether the head is of a Ray whose handlers are known to read what `core/request/query.rs` says.
    pub reads_are_known: Arc<AtomicBool>,
}

impl Routing {
    /// A kind of traffic, what its paths mean and where it goes.
    pub fn new(surface: Surface, classifier: Classifier, upstream: Arc<Upstream>) -> Routing {
        Routing {
            surface,
            classifier,
            upstream,
            origins: Origins::default(),
            reads_are_known: Arc::default(),
        }
    }

    /// The same before a head of which somebody else finds out whether its handlers are known.
    #[must_use]
    pub fn with_reads(self, reads_are_known: Arc<AtomicBool>) -> Routing {
        Routing { reads_are_known, ..self }
    }

    /// The same, whose own answers the pages of these origins may read.
    #[must_use]
    pub fn for_pages_of(self, origins: &[Arc<str>]) -> Routing {
        Routing { origins: Origins::new(origins), ..self }
    }

    /// The same after a reload.
    #[must_use]
    pub fn with_classifier(&self, classifier: Classifier) -> Routing {
        let upstream = Arc::clone(&self.upstream);
        let reads_are_known = Arc::clone(&self.reads_are_known);
        Routing {
            surface: self.surface,
            classifier,
            upstream,
            origins: self.origins.clone(),
            reads_are_known,
        }
    }
}
