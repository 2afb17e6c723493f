//! Which Ray Client sessions are starting, and which are alive.
//!
//! A new session asks `ClusterInfo` first, and that is where newcomers are paced: refused
//! there, a client comes back after 5 and 15 s. But the call itself costs nothing; what costs is the process
//! that Ray starts when the session's `Datapath` stream opens, a second of processor time
//! or more, and fifty at once bring none of them up. So a newcomer keeps its place from
//! `ClusterInfo` until its stream is answered: the limit is on sessions that start at once, and
//! the class's latency is the time a session takes to start.
//!
//! `ray.nodes()` and its like are the same call, made by sessions that were let in long ago, and a
//! refusal there breaks a program. The two are told apart by the session: one that
//! was let in passes.
//!
//! Memory is bounded: beyond [`SESSIONS_MAX`] a session is simply not known, and its calls are
//! paced like a newcomer's.

use crate::permit_guard::PermitGuard;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// The most sessions known at once; Ray itself has ports for a thousand.
pub(crate) const SESSIONS_MAX: usize = 4096;

/// For how long a newcomer that was let in may hold its place without opening its stream: a
/// client opens it at once, a mere probe never does.
const KNOCK_MAX: Duration = Duration::from_secs(3);

/// Ray gives a session's process this long to start.
const START_MAX: Duration = Duration::from_secs(30);

/// The Ray Client sessions of a proxy, by digest.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// How many streams each has open.
    alive: HashMap<u64, u32>,
    /// Those let in whose stream is not answered yet; whether it is open.
    starting: HashMap<u64, watch::Sender<bool>>,
}

/// Keeps a session alive for as long as its stream is open.
#[derive(Debug)]
pub struct Alive {
    sessions: Sessions,
    session: u64,
}

/// A session's stream is on its way to Ray; dropped when it is answered or has failed.
#[derive(Debug)]
pub(crate) struct Opening {
    sessions: Sessions,
    session: u64,
}

impl Sessions {
    /// A stream of this session is open.
    pub fn open(&self, session: u64) -> Option<Alive> {
        let mut known = self.0.lock();
        if known.alive.len() >= SESSIONS_MAX && !known.alive.contains_key(&session) {
            return None;
        }
        *known.alive.entry(session).or_default() += 1;
        Some(Alive { sessions: self.clone(), session })
    }

    /// Whether the session was let in: its calls are no newcomer's.
    pub fn is_known(&self, session: u64) -> bool {
        let known = self.0.lock();
        known.alive.contains_key(&session) || known.starting.contains_key(&session)
    }

    /// A newcomer was let in: its place is taken until its stream is answered, because that is
    /// when its process has started.
    pub fn start(&self, session: u64, mut permit: PermitGuard) -> impl Future<Output = ()> + Send + 'static {
        let (sessions, stage) = (self.clone(), self.note(session));
        async move {
            if let Some(mut stage) = stage {
                let opened = async { stage.wait_for(|open| *open).await.is_ok() };
                if timeout(KNOCK_MAX, opened).await.unwrap_or(false) {
                    // It ends with the sender, which `Opening` drops.
                    let _ = timeout(START_MAX, async { while stage.changed().await.is_ok() {} }).await;
                }
                sessions.0.lock().starting.remove(&session);
            }
            permit.served();
        }
    }

    /// `None` for one that is noted already: who knocks twice has one place.
    fn note(&self, session: u64) -> Option<watch::Receiver<bool>> {
        let mut known = self.0.lock();
        if known.starting.len() >= SESSIONS_MAX || known.starting.contains_key(&session) {
            return None;
        }
        let (stage, watched) = watch::channel(false);
        known.starting.insert(session, stage);
        Some(watched)
    }

    /// The session's stream is on its way.
    pub(crate) fn opening(&self, session: u64) -> Opening {
        if let Some(stage) = self.0.lock().starting.get(&session) {
            stage.send_replace(true);
        }
        Opening { sessions: self.clone(), session }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.sessions.0.lock().starting.remove(&self.session);
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut known = self.sessions.0.lock();
        if let Some(streams) = known.alive.get_mut(&self.session) {
            *streams -= 1;
            if *streams == 0 {
                known.alive.remove(&self.session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lives_as_long_as_its_last_stream_and_strangers_do_not() {
        let sessions = Sessions::default();
        let first = sessions.open(1);
        let second = sessions.open(1);
        drop(first);
        assert!(sessions.is_known(1) && !sessions.is_known(2));
        drop(second);
        assert!(!sessions.is_known(1));
    }

    #[test]
    fn who_knocks_twice_at_once_has_one_place_and_keeps_it() {
        let sessions = Sessions::default();
        let first = sessions.note(1);
        assert!(first.is_some() && sessions.note(1).is_none());
        let opening = sessions.opening(1);
        assert!(first.is_some_and(|mut stage| *stage.borrow_and_update()), "the first is told");
        drop(opening);
        assert!(!sessions.is_known(1));
    }

    #[test]
    fn memory_is_bounded() {
        let sessions = Sessions::default();
        let open: Vec<_> = (0..10_000).map(|session| sessions.open(session)).collect();
        assert_eq!(open.iter().flatten().count(), SESSIONS_MAX);
        drop(open);
        assert_eq!(sessions.0.lock().alive.len(), 0);
    }
}
