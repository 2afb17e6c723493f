//! The only place that starts tasks, so that shutdown knows what is still under way.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;

/// Starts tasks, counts them, and tells them when to wind up.
#[derive(Clone, Debug)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    running: AtomicUsize,
    idle: Notify,
    closing: AtomicBool,
    closed: Notify,
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
            closing: AtomicBool::new(false),
            closed: Notify::new(),
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
        self.0.closing.store(true, Ordering::Release);
        self.0.closed.notify_waiters();
    }

    /// Whether [`Tasks::close`] was called.
    #[must_use]
    pub fn closing(&self) -> bool {
        self.0.closing.load(Ordering::Acquire)
    }

    /// Resolves once [`Tasks::close`] was called.
    pub async fn closed(&self) {
        let mut closed = pin!(self.0.closed.notified());
        closed.as_mut().enable(); // from here on no news is missed
        let mut left: Option<Waker> = None;
        // Whoever waits here waits for something else as well, and is woken for that time and again: one
        // look is enough until there is news.
        poll_fn(|context| {
            if self.closing() {
                return Poll::Ready(());
            }
            if left.as_ref().is_none_or(|left| !left.will_wake(context.waker())) {
                left = Some(context.waker().clone());
                return closed.as_mut().poll(context);
            }
            Poll::Pending
        })
        .await;
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
