//! Clients that read their answers, and those that do not.
//!
//! An answer on its way holds a permit, and a connection to Ray. hyper asks a body for more only
//! once its client has taken what came before, so a client that stops reading would hold both
//! for ever, and nothing in the body would ever run. So every answer on its way is listed here,
//! and a look at the list, four times a second, does two things. A client that has kept its answer waiting
//! for more than [`LAG`], and for most of the time, is *parked*: Ray has done its work, and the permit
//! is free for others ([`rayguard_core::admission::parked`]). A client that has not asked for more for longer
//! than it may is cut off: its connection to Ray is given back, and what is left of the answer is an error. Time in
//! which Ray, or the class's bandwidth, keeps an answer waiting does not count.
//!
//! Tails and streams are held open on purpose, and are not listed.

use crate::clock::Clock;
use crate::tasks::Tasks;
use parking_lot::Mutex;
use rayguard_core::time::Time;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the list is looked at, at most.
const LOOK: Duration = Duration::from_millis(250);

/// A client that has kept its answer waiting for less than this is not slow.
pub(crate) const LAG: Duration = Duration::from_millis(500);

/// What can be cut off.
pub trait Cut: Send + Sync + std::fmt::Debug {
    /// When the client last took something; `None` while it is not the client that is awaited.
    fn waits_since(&self) -> Option<Time>;
    /// Whether it is to be parked.
    fn lags(&self, now: Time) -> bool {
        let _ = now;
        false
    }
    /// Parks it.
    fn park(&self, now: Time) {
        let _ = now;
    }
    /// Gives back everything it holds.
    fn cut(&self);
}

/// A time at which the client last took something, or none.
#[derive(Debug)]
pub(crate) struct Taken(AtomicU64);

const ASKING: u64 = u64::MAX;

impl Taken {
    /// It is the client's turn from `now` on.
    pub(crate) fn at(now: Time) -> Taken {
        Taken(AtomicU64::new(now.0))
    }

    /// The client asks for more; since when it was its turn.
    pub(crate) fn ask(&self) -> Option<Time> {
        let since = self.since();
        if since.is_some() {
            self.0.store(ASKING, Ordering::Relaxed);
        }
        since
    }

    /// The client has been given something.
    pub(crate) fn give(&self, now: Time) {
        self.0.store(now.0, Ordering::Relaxed);
    }

    /// Since when it is the client's turn.
    pub(crate) fn since(&self) -> Option<Time> {
        Some(self.0.load(Ordering::Relaxed)).filter(|at| *at != ASKING).map(Time)
    }
}

/// Clients whose answers are on their way.
#[derive(Clone, Debug)]
pub struct SlowReaders(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    tasks: Tasks,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    places: Vec<Option<(Duration, Arc<dyn Cut>)>>,
    free: Vec<usize>,
    watched: bool,
}

/// A place in the list, left when this is dropped.
#[derive(Debug)]
pub struct Listed {
    readers: SlowReaders,
    place: usize,
}

impl SlowReaders {
    /// An empty list. Its task runs while it is not empty.
    pub fn new(clock: Clock, tasks: Tasks) -> SlowReaders {
        SlowReaders(Arc::new(Inner { clock, tasks, list: Mutex::default() }))
    }

    /// Lists one that may leave us waiting for `patience`.
    pub fn list(&self, reader: Arc<dyn Cut>, patience: Duration) -> Listed {
        let mut list = self.0.list.lock();
        let place = if let Some(place) = list.free.pop() {
            list.places[place] = Some((patience, reader));
            place
        } else {
            list.places.push(Some((patience, reader)));
            list.places.len() - 1
        };
        if !list.watched {
            list.watched = true;
            let readers = self.clone();
            self.0.tasks.spawn_until_closed(async move { readers.watch(patience.min(LOOK)).await });
        }
        Listed { readers: self.clone(), place }
    }

    async fn watch(self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let now = self.0.clock.now();
            let (late, lagging) = {
                let mut list = self.0.list.lock();
                if list.free.len() == list.places.len() {
                    *list = List::default();
                    return;
                }
                let is_late = |(patience, reader): &&(Duration, Arc<dyn Cut>)| {
                    reader.waits_since().is_some_and(|since| now.since(since) > *patience)
                };
                let lags = |(_, reader): &&(Duration, Arc<dyn Cut>)| reader.lags(now);
                let places = || list.places.iter().flatten();
                let late: Vec<_> = places().filter(is_late).map(|(_, reader)| Arc::clone(reader)).collect();
                let lagging: Vec<_> = places().filter(lags).map(|(_, reader)| Arc::clone(reader)).collect();
                (late, lagging)
            };
            // Outside the lock: what is given back here wakes those who wait for it.
            for reader in late {
                reader.cut();
            }
            for reader in lagging {
                reader.park(now);
            }
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let gone = {
            let mut list = self.readers.0.list.lock();
            list.free.push(self.place);
            list.places.get_mut(self.place).and_then(Option::take)
        };
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[derive(Debug)]
    struct Reader {
        taken: Taken,
        cut: AtomicBool,
    }

    impl Cut for Reader {
        fn waits_since(&self) -> Option<Time> {
            self.taken.since()
        }
        fn cut(&self) {
            self.cut.store(true, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn who_does_not_take_is_cut_who_waits_for_ray_is_not() {
        let (clock, tasks) = (Clock::start(), Tasks::default());
        let readers = SlowReaders::new(clock, tasks.clone());
        let reader = || Arc::new(Reader { taken: Taken::at(clock.now()), cut: AtomicBool::new(false) });
        let (idle, asking, done) = (reader(), reader(), reader());
        assert!(asking.taken.ask().is_some() && asking.taken.ask().is_none());
        let patience = Duration::from_millis(20);
        let _idle = readers.list(idle.clone(), patience);
        let _asking = readers.list(asking.clone(), patience);
        drop(readers.list(done.clone(), patience));
        while !idle.cut.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!asking.cut.load(Ordering::Relaxed) && !done.cut.load(Ordering::Relaxed));
        tasks.close();
    }

    #[tokio::test]
    async fn the_list_forgets_who_left_and_its_task_ends_with_the_last() {
        let (clock, tasks) = (Clock::start(), Tasks::default());
        let readers = SlowReaders::new(clock, tasks.clone());
        for _ in 0..100 {
            let reader = Arc::new(Reader { taken: Taken::at(clock.now()), cut: AtomicBool::new(false) });
            drop(readers.list(reader, Duration::from_millis(1)));
        }
        assert_eq!(readers.0.list.lock().places.len(), 1, "places are used again");
        assert!(tasks.drain(Duration::from_secs(10)).await, "the list is empty: nothing runs");
    }
}
