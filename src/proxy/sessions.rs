//! Which Ray Client sessions are alive.
//!
//! A new session asks `ClusterInfo` first, and that is where newcomers are paced: refused
//! there, a client comes back after 5 and 15 s. But `ray.nodes()` and its like are the same
//! call, made by sessions that were let in long ago, and a refusal there breaks a program. The
//! two are told apart by the session: one whose `Datapath` stream is open is alive, and its
//! calls pass.
//!
//! Memory is bounded: beyond [`SESSIONS_MAX`] a session is simply not known, and its calls are
//! paced like a newcomer's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The most sessions known at once; Ray itself has ports for a thousand.
pub const SESSIONS_MAX: usize = 4096;

/// Sessions alive, by digest, and how many streams each has open.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<HashMap<u64, u32>>>);

/// Keeps a session alive for as long as its stream is open.
#[derive(Debug)]
pub struct Alive {
    sessions: Sessions,
    session: u64,
}

impl Sessions {
    /// A stream of this session is open.
    #[must_use]
    pub fn open(&self, session: u64) -> Option<Alive> {
        let mut alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if alive.len() >= SESSIONS_MAX && !alive.contains_key(&session) {
            return None;
        }
        *alive.entry(session).or_default() += 1;
        Some(Alive { sessions: self.clone(), session })
    }

    /// Whether the session has a stream open.
    #[must_use]
    pub fn is_alive(&self, session: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&session)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut alive = self.sessions.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(streams) = alive.get_mut(&self.session) {
            *streams -= 1;
            if *streams == 0 {
                alive.remove(&self.session);
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
        assert!(sessions.is_alive(1) && !sessions.is_alive(2));
        drop(second);
        assert!(!sessions.is_alive(1));
    }

    #[test]
    fn memory_is_bounded() {
        let sessions = Sessions::default();
        let open: Vec<_> = (0..10_000).map(|session| sessions.open(session)).collect();
        assert_eq!(open.iter().flatten().count(), SESSIONS_MAX);
        drop(open);
        assert_eq!(sessions.0.lock().unwrap().len(), 0);
    }
}
