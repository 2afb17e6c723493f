//! One tail of a job's log at Ray, read by many.
//!
//! Ray sends a tail from the log's first line on, for each reader anew, and keeps a slot of
//! JobHead for each until the job ends, whether its reader is still there or not; at a hundred
//! the Job API hangs (facts G). So the first who asks leads: it passes the gate, and what Ray
//! sends is kept; whoever asks the same (path, query and credentials, as [`Key`] has it) gets it
//! from the beginning, as Ray would have sent it, and then as it comes.
//!
//! - **The beginning must be there.** At most [`TAIL_BYTES_MAX`] of a tail are kept. Once it has
//!   outgrown that, nobody joins any more: the next who asks leads a tail of its own.
//! - **Nobody holds up the others.** Ray is read at the pace of the fastest reader, so a single
//!   reader still pushes back on Ray. A reader that falls further behind the fastest than what
//!   is kept is cut off, alone; asking again gives it a tail of its own.
//! - **The leader is a reader like any other.** Its leaving ends nothing.
//! - **When the last has left** Ray is still read, and the slot still counted, until Ray closes:
//!   closing our end would hide Ray's slot, not free it. Whoever asks meanwhile finds the tail
//!   open and costs Ray nothing.
//!
//! **`/api/v0/logs/stream` is not shared**, though it costs Ray a slot in the same way. A tail begins at
//! the log's first line, for everybody; a stream begins so many lines before its end as it is at that
//! moment, and what is read is a person following a log in a terminal. Whoever came later could only be
//! given lines it did not ask for, or none of those it did; and few ask for the very same. So each has a
//! connection to Ray and counts against `log-tail` for as long as Ray holds it, whoever has left.
//!
//! Ray never reads from a tail's reader, so neither are its frames passed on; only its wish to
//! close is looked for. When Ray closes a tail it does wait for an answer, ten seconds long: it gets
//! it from here, once, and not from whichever reader is the first. Extensions and subprotocols are agreed between two ends and cannot be
//! shared: the former are not agreed to, whoever asks for the latter gets a tunnel.

use crate::proxy::coalesce::Key;
use crate::proxy::slot::Slot;
use crate::proxy::throttle::Throttle;
use crate::proxy::websocket::{self, Frames, GOING_AWAY, NORMAL};
use crate::runtime::tasks::Tasks;
use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{HeaderName, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// How much of a tail is kept, in bytes.
pub const TAIL_BYTES_MAX: usize = 1 << 20;

/// The most tails that may be joined at once.
pub const TAILS_MAX: usize = 128;

/// Pieces are read in this size at most, ...
const PIECE_BYTES: usize = 16 << 10;
/// ... this many ahead of the fastest reader, ...
const PIECES_AHEAD: u64 = 16;
/// ... and no more of them are kept, however small.
const PIECES_MAX: usize = 16 << 10;

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const EXTENSIONS: HeaderName = HeaderName::from_static("sec-websocket-extensions");
const PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");

/// All tails that may be joined.
#[derive(Clone, Debug, Default)]
pub struct Tails(Arc<Mutex<HashMap<Key, Arc<Tail>>>>);

/// What is found under a key.
#[derive(Debug)]
pub enum Found {
    /// Nobody tails this yet: lead.
    Lead(Lead),
    /// Somebody does.
    Tail(Arc<Tail>),
    /// There are too many tails: tunnel.
    Full,
}

/// A tail at Ray, and what it has sent.
#[derive(Debug)]
pub struct Tail {
    state: Mutex<State>,
    moved: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    pieces: VecDeque<Bytes>,
    /// The number of the first piece that is kept; 0 as long as the beginning is.
    first: u64,
    bytes: usize,
    /// The number of the piece each reader wants next.
    wanted: HashMap<u64, u64>,
    readers: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Its leader is at the gate or shakes hands.
    Opening,
    /// Ray sends.
    Open,
    /// Ray has closed.
    Over,
    /// It never opened.
    Failed,
}

/// The right to open a tail. Dropped without, those who wait for it look after themselves.
#[derive(Debug)]
pub struct Lead {
    tails: Tails,
    key: Key,
    tail: Arc<Tail>,
}

/// One who reads a tail.
#[derive(Debug)]
pub struct Reader {
    tail: Arc<Tail>,
    moved: watch::Receiver<()>,
    id: u64,
}

/// The key under which a handshake may share a tail, if it may.
#[must_use]
pub fn key(parts: &Parts) -> Option<Key> {
    let shares = parts.headers.contains_key(KEY) && !parts.headers.contains_key(PROTOCOL);
    shares.then(|| Key::of_tail(&parts.uri, &parts.headers))
}

/// Agrees to nothing that only two ends can agree on.
pub fn plain(parts: &mut Parts) {
    parts.headers.remove(EXTENSIONS);
}

/// Our own answer to a handshake.
#[must_use]
pub fn welcome<B: Default>(parts: &Parts) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let key = parts.headers.get(KEY).map_or(&b""[..], HeaderValue::as_bytes);
    if let Ok(accept) = HeaderValue::try_from(websocket::accept(key)) {
        headers.insert(ACCEPT, accept);
    }
    response
}

impl Tails {
    /// The tail of this key, or the lead of a new one.
    #[must_use]
    pub fn find(&self, key: Key) -> Found {
        let mut tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tail) = tails.get(&key) {
            return Found::Tail(Arc::clone(tail));
        }
        if tails.len() >= TAILS_MAX {
            return Found::Full;
        }
        let tail = Arc::new(Tail {
            state: Mutex::new(State {
                stage: Stage::Opening,
                pieces: VecDeque::new(),
                first: 0,
                bytes: 0,
                wanted: HashMap::new(),
                readers: 0,
            }),
            moved: watch::Sender::new(()),
        });
        tails.insert(key, Arc::clone(&tail));
        Found::Lead(Lead { tails: self.clone(), key, tail })
    }

    fn forget(&self, key: Key, tail: &Arc<Tail>) {
        let mut tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tails.get(&key).is_some_and(|known| Arc::ptr_eq(known, tail)) {
            tails.remove(&key);
        }
    }
}

impl Lead {
    /// Ray sends: whoever waits may read. The tail itself, and what keeps it going until Ray closes.
    pub fn open(
        self,
        ray: OnUpgrade,
        slot: Slot,
        throttle: Option<Throttle>,
    ) -> (Arc<Tail>, impl Future<Output = ()> + Send + 'static) {
        self.tail.enter(Stage::Open);
        let tail = Arc::clone(&self.tail);
        let pump = async move {
            let mut slot = slot;
            match ray.await {
                Ok(ray) => {
                    self.pump(TokioIo::new(ray), throttle).await;
                    slot.served();
                }
                Err(_) => slot.failed(),
            }
        };
        (tail, pump)
    }

    /// Reads from Ray until it closes, at the pace of the fastest reader.
    async fn pump(&self, mut ray: impl AsyncRead + AsyncWrite + Unpin, mut throttle: Option<Throttle>) {
        let mut moved = self.tail.moved.subscribe();
        let mut buffer = vec![0; PIECE_BYTES];
        let (mut frames, mut answered) = (Frames::default(), false);
        loop {
            while !self.tail.has_room() {
                // The sender lives in the tail.
                let _ = moved.changed().await;
            }
            let read = match ray.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => read,
            };
            if let Some(throttle) = throttle.as_mut().filter(|_| self.tail.is_read()) {
                throttle.pass(read).await;
            }
            frames.pass(&buffer[..read]);
            if frames.are_closed() && !answered {
                answered = true;
                // Should Ray not wait for it, it has gone already.
                let _ = ray.write_all(&websocket::close_answer(NORMAL)).await;
            }
            if !self.tail.keep(Bytes::copy_from_slice(&buffer[..read])) {
                self.tails.forget(self.key, &self.tail);
            }
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let opened = self.tail.state().stage == Stage::Open;
        self.tail.enter(if opened { Stage::Over } else { Stage::Failed });
        self.tails.forget(self.key, &self.tail);
    }
}

impl Tail {
    /// A place among its readers, from the beginning on; `None` if it did not open or has
    /// outgrown what is kept.
    pub async fn join(self: &Arc<Self>) -> Option<Reader> {
        let mut moved = self.moved.subscribe();
        loop {
            let stage = self.state().stage;
            match stage {
                Stage::Opening => {
                    // The sender lives in the tail.
                    let _ = moved.changed().await;
                }
                Stage::Failed => return None,
                Stage::Open | Stage::Over => break,
            }
        }
        let mut state = self.state();
        if state.first > 0 {
            return None;
        }
        let id = state.readers;
        state.readers += 1;
        state.wanted.insert(id, 0);
        drop(state);
        self.moved.send_replace(());
        Some(Reader { tail: Arc::clone(self), moved, id })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stage: Stage) {
        self.state().stage = stage;
        self.moved.send_replace(());
    }

    fn is_read(&self) -> bool {
        !self.state().wanted.is_empty()
    }

    /// Whether Ray may send more: nobody reads, or the fastest is close behind.
    fn has_room(&self) -> bool {
        let state = self.state();
        let end = state.first + state.pieces.len() as u64;
        state.wanted.values().max().is_none_or(|wanted| end < wanted + PIECES_AHEAD)
    }

    /// Takes in a piece; whether the beginning is still kept.
    fn keep(&self, piece: Bytes) -> bool {
        let mut state = self.state();
        state.bytes += piece.len();
        state.pieces.push_back(piece);
        while state.bytes > TAIL_BYTES_MAX || state.pieces.len() > PIECES_MAX {
            let Some(gone) = state.pieces.pop_front() else { break };
            state.bytes -= gone.len();
            state.first += 1;
        }
        let whole = state.first == 0;
        drop(state);
        self.moved.send_replace(());
        whole
    }
}

impl Reader {
    /// The next piece; `None` at the end, or when what comes next is no longer kept.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.tail.state();
                let wanted = state.wanted.get(&self.id).copied()?;
                let at = usize::try_from(wanted.checked_sub(state.first)?).ok()?;
                if let Some(piece) = state.pieces.get(at).cloned() {
                    state.wanted.insert(self.id, wanted + 1);
                    drop(state);
                    self.tail.moved.send_replace(());
                    return Some(piece);
                }
                if state.stage == Stage::Over {
                    return None;
                }
            }
            self.moved.changed().await.ok()?;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tail.state().wanted.remove(&self.id);
        self.tail.moved.send_replace(());
    }
}

/// Hands a reader's pieces to its client until either has come to its end, or the door goes down.
pub async fn relay(client: OnUpgrade, reader: Reader, tasks: Tasks) {
    if let Ok(client) = client.await {
        hand_over(TokioIo::new(client), reader, &tasks).await;
    }
}

async fn hand_over(client: impl AsyncRead + AsyncWrite, mut reader: Reader, tasks: &Tasks) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let leaves = async {
        let mut heard = [0; 1024];
        while let Ok(1..) = from_client.read(&mut heard).await {
            if heard[0] & 0x0f == websocket::CLOSE {
                return;
            }
        }
    };
    let relays = async {
        let mut frames = Frames::default();
        // What reads from Ray ends when the door goes down, and with it the pieces.
        while let Some(piece) = reader.next().await {
            if to_client.write_all(&piece).await.is_err() {
                return;
            }
            frames.pass(&piece);
        }
        if tasks.closing() && frames.are_whole() {
            // It may have left meanwhile.
            let _ = to_client.write_all(&websocket::close_frame(GOING_AWAY)).await;
        }
    };
    tokio::select! {
        () = leaves => {}
        () = relays => {}
    }
    let _ = to_client.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn lead(tails: &Tails, key: Key) -> Lead {
        match tails.find(key) {
            Found::Lead(lead) => lead,
            other => panic!("no lead: {other:?}"),
        }
    }

    fn key_of(path: &str, headers: &[(&'static str, &'static str)]) -> Key {
        let mut request = Request::get(path).header("sec-websocket-key", "a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        key(&request.body(()).unwrap().into_parts().0).unwrap()
    }

    const TAIL: &str = "/api/jobs/a/logs/tail";

    async fn text(reader: &mut Reader, pieces: usize) -> String {
        let mut text = String::new();
        for _ in 0..pieces {
            text += std::str::from_utf8(&reader.next().await.unwrap()).unwrap();
        }
        text
    }

    #[test]
    fn no_two_jobs_and_no_two_credentials_share_a_tail_but_two_handshakes_do() {
        let plain = key_of(TAIL, &[]);
        assert_ne!(plain, key_of("/api/jobs/b/logs/tail", &[]));
        assert_ne!(plain, key_of(TAIL, &[("authorization", "Bearer a")]));
        assert_ne!(plain, key_of(TAIL, &[("cookie", "ray-authentication-token=a")]));
        assert_eq!(plain, key_of(TAIL, &[("sec-websocket-extensions", "permessage-deflate")]));
        let with_protocol = Request::get(TAIL).header("sec-websocket-protocol", "x").body(()).unwrap();
        assert!(key(&with_protocol.into_parts().0).is_none());
    }

    #[tokio::test]
    async fn late_joiners_get_it_from_the_beginning_and_the_leaders_leaving_ends_nothing() {
        let tails = Tails::default();
        let lead = lead(&tails, key_of(TAIL, &[]));
        lead.tail.enter(Stage::Open);
        let mut first = lead.tail.join().await.unwrap();
        lead.tail.keep(Bytes::from_static(b"one "));
        assert_eq!(text(&mut first, 1).await, "one ");
        drop(first);
        lead.tail.keep(Bytes::from_static(b"two "));
        let Found::Tail(tail) = tails.find(key_of(TAIL, &[])) else { panic!("still there") };
        let mut late = tail.join().await.unwrap();
        lead.tail.keep(Bytes::from_static(b"three"));
        assert_eq!(text(&mut late, 3).await, "one two three");
        drop(lead);
        assert!(late.next().await.is_none(), "Ray has closed");
        assert!(matches!(tails.find(key_of(TAIL, &[])), Found::Lead(_)), "and it is forgotten");
    }

    #[tokio::test]
    async fn a_slow_reader_is_cut_alone_and_memory_is_bounded() {
        let tails = Tails::default();
        let key = key_of(TAIL, &[]);
        let lead = lead(&tails, key);
        lead.tail.enter(Stage::Open);
        let (mut fast, mut slow) = (lead.tail.join().await.unwrap(), lead.tail.join().await.unwrap());
        let piece = Bytes::from(vec![b'x'; PIECE_BYTES]);
        let mut whole = true;
        for _ in 0..10 * TAIL_BYTES_MAX / PIECE_BYTES {
            assert!(lead.tail.has_room());
            whole &= lead.tail.keep(piece.clone());
            assert!(fast.next().await.is_some());
            assert!(lead.tail.state().bytes <= TAIL_BYTES_MAX);
        }
        assert!(!whole);
        assert!(slow.next().await.is_none(), "cut");
        assert!(lead.tail.join().await.is_none(), "the beginning is gone");
        drop(slow);
        for _ in 0..PIECES_AHEAD {
            let _ = lead.tail.keep(piece.clone());
        }
        assert!(!lead.tail.has_room(), "the last reader pushes back on Ray");
        drop(fast);
        assert!(lead.tail.has_room(), "whom nobody reads is drained");
    }

    #[tokio::test]
    async fn ray_is_answered_when_it_closes_however_its_frames_are_cut() {
        let mut said = websocket::text_frame("the last line");
        said.extend(websocket::close_frame(NORMAL));
        for cut in [1, 7, said.len()] {
            let tails = Tails::default();
            let lead = lead(&tails, key_of(TAIL, &[]));
            lead.tail.enter(Stage::Open);
            let (here, mut ray) = tokio::io::duplex(64);
            let speaks = async {
                for piece in said.chunks(cut) {
                    ray.write_all(piece).await.unwrap();
                }
                let mut heard = Vec::new();
                ray.shutdown().await.unwrap();
                ray.read_to_end(&mut heard).await.unwrap();
                heard
            };
            let (heard, ()) = tokio::join!(speaks, async { lead.pump(here, None).await });
            assert_eq!(heard, websocket::close_answer(NORMAL), "once, cut by {cut}");
        }
    }

    #[tokio::test]
    async fn those_who_wait_for_a_leader_that_fails_are_told() {
        let tails = Tails::default();
        let lead = lead(&tails, key_of(TAIL, &[]));
        let tail = Arc::clone(&lead.tail);
        let (joined, ()) = tokio::join!(tail.join(), async { drop(lead) });
        assert!(joined.is_none());
    }

    #[test]
    fn the_number_of_tails_is_bounded() {
        let tails = Tails::default();
        let leads: Vec<Found> =
            (0..2 * TAILS_MAX).map(|job| tails.find(key_of(&format!("/{job}"), &[]))).collect();
        assert_eq!(leads.iter().filter(|found| matches!(found, Found::Lead(_))).count(), TAILS_MAX);
    }
}
