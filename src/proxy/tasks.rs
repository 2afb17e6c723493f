//! The only place that starts tasks, so that shutdown knows what is still under way.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

/// A task that has not been started. Boxed, since each other type that is spawned brings the runtime's machinery into the
/// program once more.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Starts tasks, counts them, and tells them when to wind up.
#[derive(Clone, Debug)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    running: AtomicUsize,
    idle: Notify,
    closing: AtomicBool,
    closed: Notify,
    stage: watch::Sender<Stage>,
    /// Runtimes that serve connections, if not the main one does.
    cores: Vec<Handle>,
    /// The next to be given a connection.
    next_core: AtomicUsize,
}

/// How far winding up has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    /// It has not begun, or what is under way still has its time.
    Open,
    /// Little time is left.
    LastCall,
    /// None is.
    Drained,
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
        Tasks::over(Vec::new())
    }
}

impl Tasks {
    /// Tasks of this runtime, and connections served by these others in turn.
    pub fn over(cores: Vec<Handle>) -> Tasks {
        Tasks(Arc::new(Inner {
            running: AtomicUsize::new(0),
            idle: Notify::new(),
            closing: AtomicBool::new(false),
            closed: Notify::new(),
            stage: watch::Sender::new(Stage::Open),
            cores,
            next_core: AtomicUsize::new(0),
        }))
    }

    /// How many threads tasks may run on: the main runtime's, and those that serve connections.
    pub fn threads(&self) -> usize {
        1 + self.0.cores.len()
    }

    /// Starts a task that shutdown waits for, on the runtime of the caller.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.start(Box::pin(task));
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one room that starts tasks")]
    fn start(&self, task: Task) {
        tokio::spawn(self.counted(task));
    }

    /// Starts a task that shutdown waits for, on one core after the other, or where there are none, here.
    pub(crate) fn spawn_on_next_core(&self, task: Task) {
        let turn = self.0.next_core.fetch_add(1, Ordering::Relaxed);
        match self.0.cores.get(turn % self.0.cores.len().max(1)) {
            Some(core) => drop(core.spawn(self.counted(task))),
            None => self.start(task),
        }
    }

    fn counted(&self, task: Task) -> impl Future<Output = ()> + Send + use<> {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(&self.0));
        async move {
            task.await;
            drop(counted);
        }
    }

    /// Starts a task that lives as long as the process and ends with [`Tasks::close`].
    pub fn spawn_until_closed(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.start_until_closed(Box::pin(task));
    }

    fn start_until_closed(&self, task: Task) {
        let closed = self.clone();
        self.spawn(async move {
            tokio::select! {
                () = closed.closed() => {}
                () = task => {}
            }
        });
    }

    /// Starts a task that those under way need to get on: it outlives [`Tasks::close`] and is not waited
    /// for, but ended once they have been.
    pub fn spawn_until_drained(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.start_until_drained(Box::pin(task));
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one room that starts tasks")]
    fn start_until_drained(&self, task: Task) {
        // Held until the task is gone: see `drain`.
        let mut stage = self.0.stage.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                _ = stage.wait_for(|stage| *stage == Stage::Drained) => {}
                () = task => {}
            }
        });
    }

    /// Does this now and every so often until [`Tasks::close`]; what was missed is not made up for.
    pub fn every(&self, period: Duration, act: impl FnMut() + Send + 'static) {
        self.spawn_until_closed(periodically(period, act));
    }

    /// The same for what those under way need: it goes on until they have ended.
    pub fn every_until_drained(&self, period: Duration, act: impl FnMut() + Send + 'static) {
        self.spawn_until_drained(periodically(period, act));
    }

    /// How many tasks run.
    pub fn running(&self) -> usize {
        self.0.running.load(Ordering::Acquire)
    }

    /// Asks everyone to wind up.
    pub fn close(&self) {
        self.0.closing.store(true, Ordering::Release);
        self.0.closed.notify_waiters();
    }

    /// Whether [`Tasks::close`] was called.
    pub fn closing(&self) -> bool {
        self.0.closing.load(Ordering::Acquire)
    }

    /// Resolves once [`Tasks::close`] was called.
    pub async fn closed(&self) {
        let mut closed = pin!(self.0.closed.notified());
        closed.as_mut().enable(); // from here on no news is missed
        let mut left: Option<Waker> = None;
        // The caller waits for something else as well, which wakes it time and again: one look is enough until
        // there is news.
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

    /// Resolves when so little of the time for winding up is left that what still waits to begin had better be
    /// told.
    pub(crate) async fn last_call(&self) {
        // The sender lives as long as this.
        let _ = self.0.stage.subscribe().wait_for(|stage| *stage >= Stage::LastCall).await;
    }

    /// Waits until no task runs, at most `patience`, with a last call when a tenth of that is left; says whether
    /// that was reached. Then those end that were only needed until now.
    pub async fn drain(&self, patience: Duration) -> bool {
        let mut drained = self.idle(patience * 9 / 10).await;
        if !drained {
            self.0.stage.send_replace(Stage::LastCall);
            drained = self.idle(patience / 10).await;
        }
        self.0.stage.send_replace(Stage::Drained);
        // They end where they wait, each of them soon.
        self.0.stage.closed().await;
        drained
    }

    /// Waits until no task runs, at most `patience`; says whether that was reached.
    async fn idle(&self, patience: Duration) -> bool {
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

/// Does this now and every so often; what was missed is not made up for.
async fn periodically(period: Duration, mut act: impl FnMut() + Send) {
    let mut every = tokio::time::interval(period);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        act();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_those_under_way_need_goes_on_until_they_have_ended() {
        let tasks = Tasks::default();
        let (needed, turns) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
        let (kept, counts) = (Arc::clone(&needed), Arc::clone(&turns));
        tasks.every_until_drained(Duration::from_millis(50), move || {
            counts.fetch_add(Arc::strong_count(&kept) / 2, Ordering::Relaxed);
        });
        let counts = Arc::clone(&turns);
        tasks.spawn(async move {
            while counts.load(Ordering::Relaxed) < 40 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        tasks.close();
        assert!(tasks.drain(Duration::from_secs(10)).await, "and is not waited for");
        assert!(turns.load(Ordering::Relaxed) >= 40);
        assert_eq!(Arc::strong_count(&needed), 1, "nothing is left of it");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_call_comes_while_there_is_time_to_answer() {
        let tasks = Tasks::default();
        let waits = tasks.clone();
        tasks.spawn(async move { waits.last_call().await });
        tasks.close();
        let began = tokio::time::Instant::now();
        assert!(tasks.drain(Duration::from_secs(10)).await);
        assert_eq!(began.elapsed(), Duration::from_secs(9));
    }
}
