//! The circuit breaker of an upstream: open while the upstream accepts no connections.
//!
//! While it is open, requests are told at once instead of each waiting for a connection that will
//! not come. A connection that was not accepted opens it; one that was accepted closes it. Nothing else
//! counts: an upstream that accepts connections and then answers slowly, wrongly or not at all is
//! the limits' business.
//!
//! No request serves as a trial. A task of the upstream's tries to connect until it succeeds, so
//! that neither a slow answer nor a client that leaves can keep the breaker open, and it closes
//! soon after the upstream is back even if no request comes. The same task looks into a suspicion: a client
//! that left before its connection was accepted or refused leaves no verdict behind.
//!
//! After an outage the limits hold as they stood before it: how many requests an upstream can bear is
//! their question, and there is no slow start beside them.
//!
//! While it is closed it costs a request one relaxed load.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// A circuit breaker closes this soon after Ray is back, in seconds.
pub(crate) const RECONNECT_S: u32 = 2;

/// Between two attempts to connect while the upstream accepts no connections.
pub(crate) const RETRY: Duration = Duration::from_millis(250);

const CLOSED: u8 = 0;
/// Being looked into; requests pass.
const SUSPECTED: u8 = 1;
const OPEN: u8 = 2;

/// Whether an upstream accepts connections. In any state but closed there is one task that tries.
#[derive(Debug, Default)]
pub(crate) struct CircuitBreaker(AtomicU8);

impl CircuitBreaker {
    /// Whether the upstream is known not to accept connections.
    pub(crate) fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed) == OPEN
    }

    /// A connection was not accepted. Returns whether the caller must start the task that tries.
    pub(crate) fn open(&self) -> bool {
        self.0.swap(OPEN, Ordering::AcqRel) == CLOSED
    }

    /// A connection was given up before it was accepted or refused. Returns as [`CircuitBreaker::open`] does.
    pub(crate) fn suspect(&self) -> bool {
        self.0.compare_exchange(CLOSED, SUSPECTED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// A connection of the task that tries was accepted, and the task ends.
    pub(crate) fn close(&self) {
        self.0.store(CLOSED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_task_tries_from_the_first_failure_or_suspicion_until_a_connection_is_accepted() {
        for begin in [CircuitBreaker::open, CircuitBreaker::suspect] {
            let breaker = CircuitBreaker::default();
            assert!(begin(&breaker), "the first to notice starts it");
            assert!(!breaker.open() && !breaker.suspect(), "and no other does");
            breaker.close();
            assert!(begin(&breaker), "until it has ended");
        }
    }

    #[test]
    fn a_suspicion_alone_does_not_open_it_and_does_not_hide_that_it_is_open() {
        let breaker = CircuitBreaker::default();
        let _ = breaker.suspect();
        assert!(!breaker.is_open());
        let _ = breaker.open();
        let _ = breaker.suspect();
        assert!(breaker.is_open());
    }
}
