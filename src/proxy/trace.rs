//! What the proxy reports of each exchange to the writer of a traffic trace.
//!
//! A note goes into a bounded queue that is only ever *tried*: what does not fit is counted, and no request waits.

use rayguard_core::admission::meter::Reason;
use rayguard_core::admission::table::LimitTable;
use rayguard_core::policy::ClassId;
use rayguard_core::request::client_id::ClientId;
use rayguard_core::signal::reading::Reading;
use rayguard_core::time::Time;
use rayguard_core::traffic_trace::{Ending, TraceHead};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

/// An exchange as the proxy saw it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Passed {
    /// Which of the proxy's policies numbers class and route.
    pub generation: u32,
    /// Its class.
    pub class: ClassId,
    /// Its route.
    pub route: u16,
    /// Who asked.
    pub client: ClientId,
    /// What became of it.
    pub ending: Ending,
    /// The refusal that shadow mode did not carry out.
    pub would_shed: Option<Reason>,
    /// When it was sent on; when it was refused or left, for those that were not.
    pub admitted: Time,
    /// How long it had waited by then.
    pub waited: Duration,
    /// Declared length of what was asked.
    pub asked_bytes: u64,
    /// Length of the answer.
    pub answered_bytes: u64,
}

/// Something worth a line.
#[derive(Clone, Debug)]
pub enum Note {
    /// Policy and route count from here on: names behind the numbers.
    Names(u32, Box<TraceHead>),
    /// An exchange ended.
    Passed(Passed),
    /// A held connection began.
    Opened(Passed),
    /// The limits from here on.
    Table(Arc<LimitTable>),
    /// Readings.
    Readings(Vec<Reading>),
}

/// The proxy's end: hands notes over and never waits.
#[derive(Clone, Debug)]
pub struct TraceSender {
    queue: SyncSender<(Time, Note)>,
    lost: Arc<AtomicU64>,
}

/// The writer's end.
#[derive(Debug)]
pub struct Queue {
    queue: Receiver<(Time, Note)>,
    lost: Arc<AtomicU64>,
}

/// A queue of `capacity` notes.
pub fn channel(capacity: usize) -> (TraceSender, Queue) {
    let (sender, queue) = sync_channel(capacity);
    let lost = Arc::new(AtomicU64::new(0));
    (TraceSender { queue: sender, lost: Arc::clone(&lost) }, Queue { queue, lost })
}

impl TraceSender {
    /// Hands a note over; one that does not fit is counted as lost.
    pub fn note(&self, now: Time, note: Note) {
        if self.queue.try_send((now, note)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Queue {
    /// The next note, if one is there.
    ///
    /// # Errors
    /// None is there, or none will come any more.
    pub fn try_recv(&self) -> Result<(Time, Note), TryRecvError> {
        self.queue.try_recv()
    }

    /// How many did not fit since the last call.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}
