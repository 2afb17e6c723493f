//! The only place that starts tasks, so that shutdown knows what is still under way.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Starts tasks, counts them, and tells them when to wind up.
#[derive(Clone, Debug)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    running: AtomicUsize,
    idle: Notify,
    closing: watch::Sender<bool>,
}

/// Counts a task out however it ends.
struct Counted(Arc<Inner>);

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Default for Tasks {
    fn default() -> Tasks {
        Tasks(Arc::new(Inner {
            running: AtomicUsize::new(0),
            idle: Notify::new(),
            closing: watch::Sender::new(false),
        }))
    }
}

impl Tasks {
    /// Starts a task that shutdown waits for.
    #[expect(clippy::disallowed_methods, reason = "this is the one room that starts tasks")]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(&self.0));
        tokio::spawn(async move {
            task.await;
            drop(counted);
        });
    }

    /// Starts a task that lives as long as the process and ends with [`Tasks::close`].
    pub fn spawn_until_closed(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closed = self.clone();
        self.spawn(async move {
            tokio::select! {
                () = closed.closed() => {}
                () = task => {}
            }
        });
    }

    /// Does this now and every so often until [`Tasks::close`]; what was missed is not made up for.
    pub fn every(&self, period: Duration, mut act: impl FnMut() + Send + 'static) {
        self.spawn_until_closed(async move {
            let mut every = tokio::time::interval(period);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                act();
            }
        });
    }

    /// How many tasks run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.0.running.load(Ordering::Acquire)
    }

    /// Asks everyone to wind up.
    pub fn close(&self) {
        self.0.closing.send_replace(true);
    }

    /// Whether [`Tasks::close`] was called.
    #[must_use]
    pub fn closing(&self) -> bool {
        *self.0.closing.borrow()
    }

    /// Resolves once [`Tasks::close`] was called.
    pub async fn closed(&self) {
        let mut closing = self.0.closing.subscribe();
        // The sender lives in `self`: this can only end by the value.
        let _ = closing.wait_for(|closing| *closing).await;
    }

    /// Waits until no task runs, at most `patience`; says whether that was reached.
    pub async fn drain(&self, patience: Duration) -> bool {
        let idle = async {
            loop {
                let notified = self.0.idle.notified();
                if self.running() == 0 {
                    return;
                }
                notified.await;
            }
        };
        tokio::time::timeout(patience, idle).await.is_ok()
    }
}
