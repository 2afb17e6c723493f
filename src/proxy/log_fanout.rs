//! Log fan-out: one tail of a job's log at Ray, followed by many.
//!
//! Ray sends a tail from the log's first line on, for each follower anew, and keeps a slot of
//! JobHead for each until the job ends, whether its follower is still there or not; at a hundred
//! the Job API hangs. So the first client that asks leads: it passes admission, and what Ray
//! sends is kept; a client that asks the same (path, query and credentials, as [`Key`] has it) gets it
//! from the beginning, as Ray would have sent it, and then as it comes.
//!
//! - **Every follower gets every line, at its own speed.** Ray is read at the pace of the fastest follower,
//!   so a single one still pushes back on Ray, and at most [`TAIL_BYTES_MAX`] of a tail are kept. A follower
//!   that falls behind what is kept goes on at another tail: Ray replays a log from its first line on every
//!   connection, so that tail is read from the first byte that the follower has not had.
//! - **Laggards share.** Their tail is read at the pace of the slowest follower of the log, on whatever tail it is
//!   now, so all that fall behind find their place there, and none falls out of it again: Ray has two tails of a
//!   job, not one for each speed. One that takes nothing for `STALL` holds up the others no longer; when it reads
//!   again, it goes on at a tail that still has its place or at another new one. A tail for laggards takes a permit
//!   like any other, from the follower that opens it; while there is none to be had, the follower waits.
//! - **Newcomers are no laggards.** A client that comes when the beginning is gone leads another tail at its own
//!   pace, and later clients join that tail: a slow follower never slows down a newcomer.
//! - **The leader is a follower like any other.** Its leaving ends nothing, not even during the handshake.
//! - **When the last has left** Ray is still read, and the permit still held, until Ray closes:
//!   closing our end would hide Ray's slot, not free it. A client that asks meanwhile finds the
//!   tail open and costs Ray nothing.
//!
//! Why not hold Ray back for all, or keep everything: the first lets one follower stop the log of all others, the
//! second needs as much memory (or disk) as the log is long.
//!
//! What is kept are messages, not the bytes of Ray's frames: Ray cuts the same log into other messages on the next
//! connection, so a place in the log is a count of payload bytes, and frames are made anew for each
//! follower. A message too long for one piece stays one message, in fragments.
//!
//! A tail ends as RFC 6455 (7.1) has it: Ray's Close is answered once, from here, and each follower is sent the same
//! Close after its last line; its connection ends when it has answered or [`CLOSE_WAIT`] has passed. Ending it
//! sooner would look like a failure to a client that has not read everything yet (code 1006: Ray's SDK raises).
//! Where Ray breaks off without a Close, so does every follower's connection.
//!
//! **`/api/v0/logs/stream` is not shared**, though it costs Ray a slot in the same way. A tail begins at
//! the log's first line, for every client; a stream begins a number of lines before the end that the log has at
//! that moment, and its reader is a person who follows a log in a terminal. A client that came later could only be
//! given lines it did not ask for, or none of those it did; and few clients ask for the very same. So each has a
//! connection to Ray and counts against `log-tail` for as long as Ray holds it, even if the client has left.
//!
//! Extensions and subprotocols are agreed between two ends and cannot be shared: the former are not
//! agreed to, and a client that asks for the latter gets a tunnel.

use super::sync::{Mutex, MutexGuard, watch};
use crate::coalesce::{Key, Question};
use crate::permit_guard::PermitGuard;
use crate::tasks::Tasks;
use crate::throttle::Throttle;
use crate::websocket::{
    self, CLOSE, CLOSE_WAIT, CONTINUATION, Frames, GOING_AWAY, PING, PONG, Part, answer_frame, control_frame,
};
use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{HeaderName, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// How much of a tail is kept, in bytes.
pub(crate) const TAIL_BYTES_MAX: usize = 1 << 20;

/// The most tails that may be joined at once.
pub(crate) const TAILS_MAX: usize = 128;

/// A follower that takes nothing for so long holds up other laggards no more; as long as any client may take
/// nothing of its answer.
const STALL: Duration = Duration::from_secs(30);

/// One read from Ray brings this share of what is kept at most: 16 KiB.
const READS_KEPT: usize = 64;
/// Ray is read this many pieces ahead of the fastest follower, ...
const PIECES_AHEAD: u64 = 16;
/// ... and no more of them are kept, however small: twice what one read of empty messages can be.
const PIECES_MAX: usize = 16 << 10;

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const EXTENSIONS: HeaderName = HeaderName::from_static("sec-websocket-extensions");
const PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");

/// All tails that may be joined: of one log, one at the pace of each group that came together.
#[derive(Clone, Debug)]
pub struct LogFanouts {
    by_log: Arc<Mutex<HashMap<Key, Log>>>,
    /// How much of each is kept, in bytes.
    room: usize,
}

/// What is found under a key.
#[derive(Debug)]
pub enum Found {
    /// There is no tail of this yet, or none from there: lead.
    Lead(Lead),
    /// There is one.
    LogFanout(Arc<LogFanout>),
    /// There are too many tails.
    Full,
}

/// A log that is tailed.
#[derive(Debug, Default)]
struct Log {
    /// Those that may be joined.
    tails: Vec<Arc<LogFanout>>,
    followers: Arc<Followers>,
}

/// All followers of a log, on whatever tail.
#[derive(Debug, Default)]
struct Followers {
    known: Mutex<Known>,
    /// What reads from Ray waits for this: a follower has taken something, come or gone.
    moved: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Known {
    ever: u64,
    /// Where each is, and since when it holds up a tail there.
    places: HashMap<u64, (Place, Option<Instant>)>,
}

/// Whose pace Ray is read at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pace {
    /// The fastest of its own followers.
    Fastest,
    /// A tail for laggards: the slowest of all who could go on at it.
    Slowest,
}

/// What keeps a tail from being read on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hold {
    Fastest,
    /// A follower that stands still; from then on it is not waited for any more.
    Slowest(Instant),
}

/// A tail at Ray, and what it has sent.
#[derive(Debug)]
pub struct LogFanout {
    pace: Pace,
    state: Mutex<State>,
    /// Followers wait for this: there is more, or the end.
    came: watch::Sender<()>,
    followers: Arc<Followers>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    kept: Kept,
    /// The number of the piece each of its followers wants next.
    wanted: HashMap<u64, u64>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    /// Its leader is at admission or shakes hands.
    Opening,
    /// Ray sends.
    Open,
    /// Ray has closed, with this payload; `None` if it broke off.
    Over(Option<Bytes>),
    /// It never opened.
    Failed,
}

/// The end of a log as far as Ray has sent it.
#[derive(Debug, Default)]
struct Kept {
    room: usize,
    pieces: VecDeque<Piece>,
    /// The number of the first piece that is kept; 0 as long as the beginning is.
    first: u64,
    bytes: usize,
    /// Payload that has come, in all.
    sent: u64,
}

/// A message, or a part of one.
#[derive(Clone, Debug)]
struct Piece {
    /// Payload before it.
    from: u64,
    kind: u8,
    opens: bool,
    ends: bool,
    bytes: Bytes,
}

/// Where a follower is in the log: what it has had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// Payload, in bytes.
    offset: u64,
    /// Whether the last of it left a message unfinished.
    within: bool,
}

/// The right to open a tail. Dropped without, those who wait for it look after themselves.
#[derive(Debug)]
pub struct Lead {
    tails: LogFanouts,
    key: Key,
    tail: Arc<LogFanout>,
}

/// A client that follows a tail.
#[derive(Debug)]
pub struct Follower {
    tail: Arc<LogFanout>,
    came: watch::Receiver<()>,
    id: u64,
    place: Place,
}

/// What a follower gets next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Frames for its client.
    Frames(Vec<u8>),
    /// What comes next is no longer kept: it is to go on from here at another tail.
    Behind(Place),
    /// Ray has closed, with this payload; `None` if it broke off.
    End(Option<Bytes>),
}

/// Finds another tail for a follower that has fallen behind.
pub(crate) trait Reopen {
    /// A tail that has this place in the log; `None` if Ray does not have the log any more.
    fn reopen(&self, place: Place) -> impl Future<Output = Option<Follower>> + Send;
}

/// The key under which a handshake may share a tail, if it may.
pub(crate) fn key(parts: &Parts, question: &Question<'_>) -> Option<Key> {
    let shares = parts.headers.contains_key(KEY) && !parts.headers.contains_key(PROTOCOL);
    shares.then(|| Key::of_tail(question, &parts.headers))
}

/// Agrees to nothing that only two ends can agree on.
pub(crate) fn plain(parts: &mut Parts) {
    parts.headers.remove(EXTENSIONS);
}

/// Our own answer to a handshake.
pub(crate) fn welcome<B: Default>(parts: &Parts) -> Response<B> {
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

impl Default for LogFanouts {
    fn default() -> LogFanouts {
        LogFanouts { by_log: Arc::default(), room: TAIL_BYTES_MAX }
    }
}

impl LogFanouts {
    /// The tail of this key for one who begins with the log's first line, or the lead of a new one.
    pub fn find(&self, key: Key) -> Found {
        self.find_or_lead(key, Pace::Fastest, |tail| {
            tail.pace == Pace::Fastest && tail.state().kept.has(Place::default())
        })
    }

    /// The same for one who has fallen behind, at this place.
    pub(crate) fn find_from(&self, key: Key, place: Place) -> Found {
        self.find_or_lead(key, Pace::Slowest, |tail| tail.state().kept.has(place))
    }

    fn find_or_lead(&self, key: Key, pace: Pace, fits: impl Fn(&LogFanout) -> bool) -> Found {
        let mut by_log = self.by_log.lock().unwrap_or_else(PoisonError::into_inner);
        // Followers whose tail has ended are followers still.
        by_log.retain(|_, log| !log.tails.is_empty() || Arc::strong_count(&log.followers) > 1);
        let fitting = by_log.get(&key).and_then(|log| log.tails.iter().find(|tail| fits(tail)));
        if let Some(tail) = fitting {
            return Found::LogFanout(Arc::clone(tail));
        }
        if by_log.values().map(|log| log.tails.len()).sum::<usize>() >= TAILS_MAX {
            return Found::Full;
        }
        let log = by_log.entry(key).or_default();
        let tail = Arc::new(LogFanout::new(pace, self.room, Arc::clone(&log.followers)));
        log.tails.push(Arc::clone(&tail));
        Found::Lead(Lead { tails: self.clone(), key, tail })
    }

    fn forget(&self, key: Key, tail: &Arc<LogFanout>) {
        let mut by_log = self.by_log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = by_log.get_mut(&key) {
            log.tails.retain(|known| !Arc::ptr_eq(known, tail));
        }
    }
}

impl Lead {
    /// The tail that is to be opened.
    pub fn tail(&self) -> Arc<LogFanout> {
        Arc::clone(&self.tail)
    }

    /// Ray sends: those who wait may read. Keeps the tail going until Ray closes.
    pub async fn open(self, ray: OnUpgrade, mut permit: PermitGuard, throttle: Option<Throttle>) {
        self.begin();
        match ray.await {
            Ok(ray) => {
                self.pump(TokioIo::new(ray), throttle).await;
                permit.served();
            }
            Err(_) => permit.failed(),
        }
    }

    /// Those who wait may read.
    pub fn begin(&self) {
        self.tail.enter(Stage::Open);
    }

    /// Reads from Ray until it closes.
    pub async fn pump(&self, mut ray: impl AsyncRead + AsyncWrite + Unpin, mut throttle: Option<Throttle>) {
        let mut moved = self.tail.followers.moved.subscribe();
        let mut buffer = vec![0; self.tails.room / READS_KEPT];
        let mut frames = Frames::default();
        loop {
            self.tail.room(&mut moved).await;
            let read = match ray.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => read,
            };
            if let Some(throttle) = throttle.as_mut().filter(|_| self.tail.is_followed()) {
                throttle.pass(read).await;
            }
            let answer = self.tail.keep(&mut frames, &Bytes::copy_from_slice(&buffer[..read]));
            if frames.are_closed() {
                // No client can join a tail that has ended.
                self.tails.forget(self.key, &self.tail);
            }
            if !answer.is_empty() {
                // Should Ray not wait for it, it has gone already.
                let _ = ray.write_all(&answer).await;
            }
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let stage = self.tail.state().stage.clone();
        match stage {
            Stage::Opening => self.tail.enter(Stage::Failed),
            Stage::Open => self.tail.enter(Stage::Over(None)),
            Stage::Over(_) | Stage::Failed => {}
        }
        self.tails.forget(self.key, &self.tail);
    }
}

impl Kept {
    /// Takes in what Ray sent.
    fn push(&mut self, kind: u8, opens: bool, bytes: Bytes, ends: bool) {
        self.bytes += bytes.len();
        let from = self.sent;
        self.sent += bytes.len() as u64;
        self.pieces.push_back(Piece { from, kind, opens, ends, bytes });
        while self.bytes > self.room || self.pieces.len() > PIECES_MAX {
            let Some(gone) = self.pieces.pop_front() else { break };
            self.bytes -= gone.bytes.len();
            self.first += 1;
        }
    }

    /// What one read from Ray brings at most.
    fn read_max(&self) -> usize {
        self.room / READS_KEPT
    }

    /// The number of the next piece to come.
    fn end(&self) -> u64 {
        self.first + self.pieces.len() as u64
    }

    /// The first payload that is kept.
    fn from(&self) -> u64 {
        self.pieces.front().map_or(self.sent, |piece| piece.from)
    }

    /// Whether nothing after this place is lost, be it that it is still to come.
    fn has(&self, place: Place) -> bool {
        // Before the first byte there may be an empty message.
        self.first == 0 || (place.offset > 0 && self.from() <= place.offset)
    }

    /// The number of the piece to go on with at this place.
    fn number(&self, place: Place) -> u64 {
        let had = |piece: &Piece| piece.from + (piece.bytes.len() as u64) < place.offset;
        self.first + self.pieces.partition_point(had) as u64
    }

    /// Whether so much as one read brings can come in before the piece of this number is dropped.
    fn spares(&self, number: u64) -> bool {
        let Some(at) = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok()) else {
            return true; // it was dropped
        };
        let unread = self.pieces.get(at).map_or(0, |piece| self.sent - piece.from);
        unread <= (self.room - self.read_max()) as u64 && self.pieces.len() - at <= PIECES_MAX / 2
    }
}

impl Piece {
    /// Appends a frame of what this place has not had of it, and moves the place on.
    fn frame(&self, place: &mut Place, frames: &mut Vec<u8>) {
        let had = usize::try_from(place.offset - self.from.min(place.offset)).unwrap_or(usize::MAX);
        let rest = self.bytes.get(had..).unwrap_or_default();
        // Without payload there may still be an end to tell, of this message or of the one under way elsewhere.
        let tells = !rest.is_empty() || (self.ends && (place.within || self.opens && self.bytes.is_empty()));
        if had > self.bytes.len() || !tells {
            return;
        }
        let opcode = if place.within { CONTINUATION } else { self.kind };
        websocket::put_frame(frames, u8::from(self.ends) << 7 | opcode, rest);
        place.offset += rest.len() as u64;
        place.within = !self.ends;
    }
}

impl Followers {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn come(&self, place: Place) -> u64 {
        let mut known = self.known();
        let id = known.ever;
        known.ever += 1;
        known.places.insert(id, (place, None));
        drop(known);
        self.moved.send_replace(());
        id
    }

    fn move_to(&self, id: u64, place: Place) {
        self.known().places.insert(id, (place, None));
        self.moved.send_replace(());
    }

    fn leave(&self, id: u64) {
        self.known().places.remove(&id);
        self.moved.send_replace(());
    }
}

impl LogFanout {
    fn new(pace: Pace, room: usize, followers: Arc<Followers>) -> LogFanout {
        let kept = Kept { room, ..Kept::default() };
        let state = State { stage: Stage::Opening, kept, wanted: HashMap::new() };
        LogFanout { pace, state: Mutex::new(state), came: watch::Sender::new(()), followers }
    }

    /// A place among its followers; `None` if it did not open, or no longer has what comes there.
    pub async fn join(self: &Arc<Self>, place: Place) -> Option<Follower> {
        let mut came = self.came.subscribe();
        loop {
            let stage = self.state().stage.clone();
            match stage {
                // The sender lives in the tail.
                Stage::Opening => drop(came.changed().await),
                Stage::Failed => return None,
                Stage::Open | Stage::Over(_) => break,
            }
        }
        let mut state = self.state();
        if !state.kept.has(place) {
            return None;
        }
        let id = self.followers.come(place);
        let number = state.kept.number(place);
        state.wanted.insert(id, number);
        drop(state);
        Some(Follower { tail: Arc::clone(self), came, id, place })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stage: Stage) {
        self.state().stage = stage;
        self.came.send_replace(());
    }

    fn is_followed(&self) -> bool {
        !self.state().wanted.is_empty()
    }

    /// Why Ray may not send more yet; it may if there is no follower, or the one that sets the pace is close enough.
    fn hold(&self) -> Option<Hold> {
        let state = self.state();
        let (kept, mut wanted) = (&state.kept, state.wanted.values());
        match self.pace {
            Pace::Fastest => {
                let is_close = |wanted: &u64| kept.end() < wanted + PIECES_AHEAD;
                (wanted.len() > 0 && !wanted.any(is_close)).then_some(Hold::Fastest)
            }
            Pace::Slowest => {
                let (mut known, now) = (self.followers.known(), Instant::now());
                let holds = |(place, _): &&mut (Place, Option<Instant>)| {
                    kept.has(*place) && !kept.spares(kept.number(*place))
                };
                let since =
                    known.places.values_mut().filter(holds).map(|(_, since)| *since.get_or_insert(now));
                since.max().map(|since| since + STALL).filter(|end| *end > now).map(Hold::Slowest)
            }
        }
    }

    /// Waits until Ray may send more.
    async fn room(&self, moved: &mut watch::Receiver<()>) {
        while let Some(hold) = self.hold() {
            // The sender lives as long as the tail.
            let more = moved.changed();
            match hold {
                Hold::Fastest => drop(more.await),
                Hold::Slowest(end) => drop(tokio::time::timeout_at(end, more).await),
            }
        }
    }

    /// Takes in what Ray sent; what is to be answered.
    fn keep(&self, frames: &mut Frames, sent: &Bytes) -> Vec<u8> {
        let mut answer = Vec::new();
        let mut state = self.state();
        let State { stage, kept, .. } = &mut *state;
        frames.read(sent, |part| match part {
            _ if *stage != Stage::Open => {} // after its Close Ray says nothing
            Part::Data { kind, opens, bytes, ends } => {
                let bytes = if bytes.is_empty() { Bytes::new() } else { sent.slice_ref(bytes) };
                kept.push(kind, opens, bytes, ends);
            }
            Part::Control(CLOSE, payload) => {
                answer.extend(answer_frame(CLOSE, payload));
                *stage = Stage::Over(Some(Bytes::copy_from_slice(payload)));
            }
            Part::Control(PING, payload) => answer.extend(answer_frame(PONG, payload)),
            Part::Control(..) => {}
        });
        drop(state);
        self.came.send_replace(());
        answer
    }
}

impl Follower {
    /// What comes next: all that is kept, up to about a piece's length.
    pub async fn next(&mut self) -> Next {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            // The sender lives in the tail.
            let _ = self.came.changed().await;
        }
    }

    fn take(&mut self) -> Option<Next> {
        let mut state = self.tail.state();
        let State { stage, kept, wanted, .. } = &mut *state;
        let at = wanted.get(&self.id).and_then(|number| number.checked_sub(kept.first));
        let Some(at) = at.and_then(|at| usize::try_from(at).ok()) else {
            drop(state);
            self.tail.followers.move_to(self.id, self.place);
            return Some(Next::Behind(self.place));
        };
        let (mut frames, mut taken) = (Vec::new(), 0);
        for piece in kept.pieces.iter().skip(at) {
            piece.frame(&mut self.place, &mut frames);
            taken += 1;
            if frames.len() >= kept.read_max() {
                break;
            }
        }
        let next = match stage {
            _ if !frames.is_empty() => Some(Next::Frames(frames)),
            Stage::Over(close) => Some(Next::End(close.clone())),
            _ => None,
        };
        wanted.entry(self.id).and_modify(|number| *number += taken);
        drop(state);
        if taken > 0 {
            self.tail.followers.move_to(self.id, self.place);
        }
        next
    }

    /// Whether Ray has sent the last line.
    fn has_end(&self) -> bool {
        matches!(self.tail.state().stage, Stage::Over(Some(_)))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.tail.state().wanted.remove(&self.id);
        self.tail.followers.leave(self.id);
    }
}

/// Hands a follower's log to its client until either has come to its end, or the process drains.
pub(crate) async fn relay(client: OnUpgrade, follower: Follower, again: impl Reopen, tasks: Tasks) {
    if let Ok(client) = client.await {
        hand_over(TokioIo::new(client), follower, again, &tasks).await;
    }
}

const GOING_AWAY_PAYLOAD: Bytes = Bytes::from_static(&GOING_AWAY.to_be_bytes());

/// What a client has said.
#[derive(Clone, Debug, Default)]
struct Heard {
    /// The last ping that has not been answered: those before it need no answer (RFC 6455, 5.5.3).
    ping: Option<Bytes>,
    /// Its Close.
    close: Option<Bytes>,
}

async fn hand_over(
    client: impl AsyncRead + AsyncWrite,
    follower: Follower,
    again: impl Reopen,
    tasks: &Tasks,
) {
    let (from_client, mut to_client) = tokio::io::split(client);
    let (says, heard) = tokio::sync::watch::channel(Heard::default());
    let mut listens = pin!(listen(from_client, says));
    let has_closed = |heard: &Heard| heard.close.is_some();
    // Of a tail that is to end, a client that takes nothing is not waited for.
    let mut ends = heard.clone();
    let takes_nothing = async {
        tokio::select! {
            _ = ends.wait_for(has_closed) => {}
            () = tasks.closed() => {}
        }
        tokio::time::sleep(CLOSE_WAIT).await;
    };
    let closed = tokio::select! {
        () = &mut listens => return,
        () = takes_nothing => return,
        closed = follow(&mut to_client, follower, again, heard.clone(), tasks) => closed,
    };
    if closed {
        websocket::see_closed(listens, heard, has_closed).await;
    }
    let _ = to_client.shutdown().await;
}

/// Hears what a client says, until it has left. Ray never reads from a follower, so none of it is passed on.
async fn listen(mut client: impl AsyncRead + Unpin, says: tokio::sync::watch::Sender<Heard>) {
    let (mut buffer, mut frames) = ([0; 1024], Frames::default());
    while let Ok(read @ 1..) = client.read(&mut buffer).await {
        frames.read(&buffer[..read], |part| {
            let Part::Control(opcode, payload) = part else { return };
            let payload = Some(Bytes::copy_from_slice(payload));
            match opcode {
                CLOSE => says.send_modify(|heard| heard.close = payload),
                PING => says.send_modify(|heard| heard.ping = payload),
                _ => {}
            }
        });
    }
}

/// Writes the log, then the Close that ends it; whether there was one to write.
async fn follow(
    client: &mut (impl AsyncWrite + Unpin),
    mut follower: Follower,
    again: impl Reopen,
    mut heard: tokio::sync::watch::Receiver<Heard>,
    tasks: &Tasks,
) -> bool {
    let close = loop {
        let next = tokio::select! {
            biased;
            _ = heard.changed() => {
                let Heard { ping, close } = heard.borrow_and_update().clone();
                if let Some(close) = close {
                    break close;
                }
                Next::Frames(ping.map_or_else(Vec::new, |ping| control_frame(PONG, &ping)))
            }
            () = tasks.closed(), if !follower.has_end() => break GOING_AWAY_PAYLOAD,
            next = follower.next() => next,
        };
        match next {
            Next::Frames(frames) => {
                if client.write_all(&frames).await.is_err() {
                    return false; // it has left
                }
            }
            Next::Behind(place) => {
                // Until it is found, this one tells tails for laggards where it is.
                follower = tokio::select! {
                    found = again.reopen(place) => match found {
                        Some(found) => found,
                        None => return false,
                    },
                    _ = heard.wait_for(|heard| heard.close.is_some()) => break Bytes::new(),
                    () = tasks.closed() => break GOING_AWAY_PAYLOAD,
                };
            }
            Next::End(Some(close)) => break close,
            Next::End(None) => return false,
        }
    };
    client.write_all(&control_frame(CLOSE, &close)).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::websocket::NORMAL;
    use http::Request;
    use proptest::prelude::*;
    use std::task::{Context, Poll, Waker};

    fn lead(tails: &LogFanouts, key: Key) -> Lead {
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
        key(&request.body(()).unwrap().into_parts().0, &Question::AsSent(path)).unwrap()
    }

    const TAIL: &str = "/api/jobs/a/logs/tail";

    /// A tail that Ray has taken.
    fn opened(tails: &LogFanouts, key: Key) -> Lead {
        let lead = lead(tails, key);
        lead.tail.enter(Stage::Open);
        lead
    }

    fn says(lead: &Lead, bytes: &[u8]) {
        lead.tail.keep(&mut Frames::default(), &Bytes::copy_from_slice(bytes));
    }

    async fn joins(lead: &Lead) -> Follower {
        lead.tail.join(Place::default()).await.unwrap()
    }

    /// All that is there for a follower.
    fn all(follower: &mut Follower) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(Next::Frames(frames)) = follower.take() {
            all.extend(frames);
        }
        all
    }

    fn texts(texts: &[&str]) -> Vec<u8> {
        texts.iter().flat_map(|text| websocket::text_frame(text)).collect()
    }

    /// A follower's end for ever: it is not expected to fall behind.
    struct Nowhere;

    impl Reopen for Nowhere {
        async fn reopen(&self, _: Place) -> Option<Follower> {
            None
        }
    }

    #[test]
    fn no_two_jobs_and_no_two_credentials_share_a_tail_but_two_handshakes_do() {
        let plain = key_of(TAIL, &[]);
        assert_ne!(plain, key_of("/api/jobs/b/logs/tail", &[]));
        assert_ne!(plain, key_of(TAIL, &[("authorization", "Bearer a")]));
        assert_ne!(plain, key_of(TAIL, &[("cookie", "ray-authentication-token=a")]));
        assert_eq!(plain, key_of(TAIL, &[("sec-websocket-extensions", "permessage-deflate")]));
        let with_protocol = Request::get(TAIL).header("sec-websocket-protocol", "x").body(()).unwrap();
        assert!(key(&with_protocol.into_parts().0, &Question::AsSent(TAIL)).is_none());
    }

    #[tokio::test]
    async fn late_joiners_get_it_from_the_beginning_and_the_leaders_leaving_ends_nothing() {
        let tails = LogFanouts::default();
        let lead = opened(&tails, key_of(TAIL, &[]));
        let mut first = joins(&lead).await;
        says(&lead, &texts(&["one"]));
        assert_eq!(all(&mut first), texts(&["one"]));
        drop(first);
        says(&lead, &texts(&["two"]));
        let Found::LogFanout(tail) = tails.find(key_of(TAIL, &[])) else { panic!("still there") };
        let mut late = tail.join(Place::default()).await.unwrap();
        says(&lead, &texts(&["three"]));
        assert_eq!(all(&mut late), texts(&["one", "two", "three"]));
        drop(lead);
        assert_eq!(late.next().await, Next::End(None), "Ray broke off");
        assert!(matches!(tails.find(key_of(TAIL, &[])), Found::Lead(_)), "and it is forgotten");
    }

    #[tokio::test]
    async fn a_slow_follower_holds_up_no_other_and_goes_on_where_it_was() {
        let (tails, key) = (LogFanouts { room: 64 << 10, ..LogFanouts::default() }, key_of(TAIL, &[]));
        let front = opened(&tails, key);
        let (mut fast, mut slow) = (joins(&front).await, joins(&front).await);
        let line = |number: usize| format!("{number:05} of the log\n");
        let mut lines = 0;
        while front.tail.join(Place::default()).await.is_some() {
            assert!(front.tail.hold().is_none());
            says(&front, &texts(&[&line(lines)]));
            lines += 1;
            assert!(!all(&mut fast).is_empty());
            if lines == 3 {
                assert_eq!(all(&mut slow), texts(&[&line(0), &line(1), &line(2)]));
            }
        }
        while front.tail.state().kept.from() <= slow.place.offset {
            says(&front, &texts(&[&line(lines)]));
            lines += 1;
        }
        assert!(front.tail.state().kept.bytes <= 64 << 10, "memory is bounded");
        assert!(matches!(tails.find(key), Found::Lead(_)), "a newcomer begins a tail of its own");

        let Some(Next::Behind(place)) = slow.take() else { panic!("it has not fallen behind") };
        let Found::Lead(rear) = tails.find_from(key, place) else { panic!("who should have it?") };
        rear.tail.enter(Stage::Open);
        let mut slow = rear.tail.join(place).await.unwrap();
        // Ray replays the log, cut otherwise: its messages end within lines.
        says(&rear, &texts(&[&(line(0) + &line(1) + "000")]));
        assert_eq!(all(&mut slow), b"", "what it has had");
        says(&rear, &texts(&["02 of the log\n00003", " of the"]));
        assert_eq!(all(&mut slow), texts(&["00003", " of the"]));
        let Found::LogFanout(same) = tails.find_from(key, place) else { panic!("another laggard joins") };
        assert!(Arc::ptr_eq(&same, &rear.tail));
    }

    #[tokio::test(start_paused = true)]
    async fn laggards_are_read_for_at_the_pace_of_the_slowest_unless_it_has_stalled() {
        let (tails, key) = (LogFanouts { room: 64 << 10, ..LogFanouts::default() }, key_of(TAIL, &[]));
        let Found::Lead(rear) = tails.find_from(key, Place { offset: 1, within: false }) else { panic!() };
        rear.tail.enter(Stage::Open);
        let (mut fast, mut slow) = (joins(&rear).await, joins(&rear).await);
        let fills = || {
            let mut read = 0;
            while rear.tail.hold().is_none() {
                says(&rear, &websocket::text_frame(&"x".repeat(1000)));
                read += 1;
            }
            read
        };
        assert!(fills() > 1);
        assert_eq!(all(&mut fast).len(), all(&mut slow).len(), "nothing is lost to the slower");
        assert!(fills() > 1);
        assert!(all(&mut fast).len() > 60_000);
        assert_eq!(fills(), 0, "the slower holds Ray back");
        let mut moved = rear.tail.followers.moved.subscribe();
        assert!(tokio::time::timeout(STALL / 2, rear.tail.room(&mut moved)).await.is_err());
        rear.tail.room(&mut moved).await; // it has stalled
        assert!(fills() > 1);
        assert!(!all(&mut fast).is_empty());
        assert!(matches!(slow.take(), Some(Next::Behind(_))), "it goes on elsewhere, should it read again");
    }

    #[tokio::test]
    async fn ray_is_answered_when_it_closes_or_pings_however_its_frames_are_cut() {
        let mut said = websocket::text_frame("the last line");
        said.extend(control_frame(PING, b"you?"));
        said.extend(websocket::close_frame(NORMAL));
        let answers = [answer_frame(PONG, b"you?"), answer_frame(CLOSE, &NORMAL.to_be_bytes())].concat();
        for cut in [1, 7, said.len()] {
            let tails = LogFanouts::default();
            let lead = opened(&tails, key_of(TAIL, &[]));
            let mut follower = joins(&lead).await;
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
            assert_eq!(heard, answers, "once, cut by {cut}");
            assert_eq!(told(&all(&mut follower)).0, b"the last line");
            let close = Bytes::copy_from_slice(&NORMAL.to_be_bytes());
            assert_eq!(follower.next().await, Next::End(Some(close)), "and it is passed on");
        }
    }

    /// What a client makes of frames: its log, the number of its messages, and the payload of a Close.
    fn told(frames: &[u8]) -> (Vec<u8>, usize, Option<Vec<u8>>) {
        let (mut log, mut message, mut messages, mut close) = (Vec::new(), Vec::new(), 0, None);
        Frames::default().read(frames, |part| match part {
            Part::Data { opens, bytes, ends, .. } => {
                assert_eq!(opens, message.is_empty(), "a message within a message");
                message.extend_from_slice(bytes);
                if ends {
                    assert!(std::str::from_utf8(&message).is_ok(), "a letter is cut");
                    log.append(&mut message);
                    messages += 1;
                }
            }
            Part::Control(CLOSE, payload) => close = Some(payload.to_vec()),
            Part::Control(..) => {}
        });
        assert!(message.is_empty(), "a message without an end");
        (log, messages, close)
    }

    /// A client on a tail that has said one line and its Close.
    fn ended() -> (tokio::io::DuplexStream, impl Future<Output = ()>) {
        let (here, client) = tokio::io::duplex(4096);
        let hands_over = async move {
            let lead = opened(&LogFanouts::default(), key_of(TAIL, &[]));
            let follower = joins(&lead).await;
            says(&lead, &[texts(&["line"]), websocket::close_frame(NORMAL)].concat());
            hand_over(here, follower, Nowhere, &Tasks::default()).await;
        };
        (client, hands_over)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stays_open_until_its_client_has_answered_the_close() {
        for answers in [true, false] {
            let (mut client, hands_over) = ended();
            let reads = async {
                let mut frames = vec![0; 10];
                client.read_exact(&mut frames).await.unwrap();
                assert_eq!(frames, [texts(&["line"]), websocket::close_frame(NORMAL)].concat());
                let waits = tokio::time::timeout(CLOSE_WAIT / 2, client.read_u8()).await;
                assert!(waits.is_err(), "not closed while it reads on");
                if answers {
                    client.write_all(&answer_frame(CLOSE, &NORMAL.to_be_bytes())).await.unwrap();
                }
                let began = tokio::time::Instant::now();
                assert!(client.read_u8().await.is_err(), "then it is");
                assert_eq!(began.elapsed() < CLOSE_WAIT / 4, answers, "and without an answer in the end");
            };
            tokio::join!(hands_over, reads);
        }
    }

    #[tokio::test]
    async fn a_client_is_answered_when_it_pings_or_closes_and_data_that_looks_like_a_close_is_none() {
        let lead = opened(&LogFanouts::default(), key_of(TAIL, &[]));
        let follower = joins(&lead).await;
        let (here, mut client) = tokio::io::duplex(4096);
        let tasks = Tasks::default();
        let asks = async {
            // A masked text whose payload, read by itself, begins as a Close does.
            client.write_all(&[0x81, 0x84, 0, 0, 0, 0]).await.unwrap();
            tokio::task::yield_now().await;
            client.write_all(&[0x88, 0x80, 0, 0]).await.unwrap();
            client.write_all(&answer_frame(PING, b"?")).await.unwrap();
            let mut pong = [0; 3];
            client.read_exact(&mut pong).await.unwrap();
            assert_eq!(pong, *control_frame(PONG, b"?"));
            says(&lead, &texts(&["a line"]));
            let mut line = [0; 8];
            client.read_exact(&mut line).await.unwrap();
            client.write_all(&answer_frame(CLOSE, &NORMAL.to_be_bytes())).await.unwrap();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, websocket::close_frame(NORMAL));
        };
        tokio::join!(hand_over(here, follower, Nowhere, &tasks), asks);
    }

    /// Ray's side of one connection: the whole log from its first line on, cut into messages by `cut`.
    struct Connection {
        lead: Lead,
        frames: Frames,
        said: Vec<u8>,
        at: usize,
    }

    impl Connection {
        fn new(lead: Lead, log: &str, cut: usize) -> Connection {
            lead.tail.enter(Stage::Open);
            let mut said = Vec::new();
            let mut rest = log;
            while !rest.is_empty() {
                let end = (cut..=rest.len()).find(|end| rest.is_char_boundary(*end)).unwrap_or(rest.len());
                said.extend(websocket::text_frame(&rest[..end]));
                rest = &rest[end..];
            }
            said.extend(websocket::close_frame(NORMAL));
            Connection { lead, frames: Frames::default(), said, at: 0 }
        }

        /// Reads on if there is room, as the pump does.
        fn reads(&mut self, length: usize) {
            if self.lead.tail.hold().is_none() && self.at < self.said.len() {
                let end = self.said.len().min(self.at + length);
                self.lead.tail.keep(&mut self.frames, &Bytes::copy_from_slice(&self.said[self.at..end]));
                self.at = end;
                assert!(self.lead.tail.state().kept.bytes <= self.lead.tails.room);
                if self.frames.are_closed() {
                    self.lead.tails.forget(self.lead.key, &self.lead.tail);
                }
            }
        }
    }

    /// A client, and what it has got.
    struct Client {
        follower: Follower,
        got: Vec<u8>,
        over: bool,
    }

    /// What happens next, as a number that is mapped to what is there.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Comes,
        Leaves(usize),
        Takes(usize),
        RaySends(usize, usize),
    }

    proptest! {
        /// Whichever clients come, lag and leave, in whatever order: each follower gets the log to the last byte,
        /// in whole messages, and Ray's Close.
        #[test]
        fn every_follower_gets_every_line(
            log in "[a-zäß€😀]{0,40}\n{1,2}".prop_map(|line| line.repeat(150)),
            cuts in prop::collection::vec(1_usize..3000, 8),
            steps in prop::collection::vec(prop_oneof![
                1 => Just(Step::Comes),
                1 => (0_usize..9).prop_map(Step::Leaves),
                9 => (0_usize..9).prop_map(Step::Takes),
                9 => (0_usize..9, 1_usize..64).prop_map(|(ray, length)| Step::RaySends(ray, length)),
            ], 0..300),
        ) {
            let (tails, key) = (LogFanouts { room: 64 * 64, ..LogFanouts::default() }, key_of(TAIL, &[]));
            let mut world = World { tails, key, log, cuts, rays: Vec::new(), clients: Vec::new() };
            for step in steps {
                world.does(step);
            }
            world.does(Step::Comes);
            for turn in 0.. {
                prop_assert!(turn < 100_000, "it comes to no end");
                if world.clients.iter().all(|client| client.over) {
                    break;
                }
                // The first is the slowest.
                let slow = usize::from(turn % 5 > 0);
                (slow..world.clients.len()).for_each(|client| world.does(Step::Takes(client)));
                (0..world.rays.len()).for_each(|ray| world.does(Step::RaySends(ray, 64)));
            }
            for client in &world.clients {
                let (log, _, close) = told(&client.got);
                prop_assert_eq!(String::from_utf8(log).unwrap(), world.log.clone());
                prop_assert_eq!(close, Some(NORMAL.to_be_bytes().to_vec()));
            }
        }
    }

    struct World {
        tails: LogFanouts,
        key: Key,
        log: String,
        cuts: Vec<usize>,
        rays: Vec<Connection>,
        clients: Vec<Client>,
    }

    impl World {
        fn does(&mut self, step: Step) {
            match step {
                Step::Comes => {
                    let follower = self.joins(Place::default());
                    self.clients.push(Client { follower, got: Vec::new(), over: false });
                }
                Step::Leaves(client) if client < self.clients.len() => drop(self.clients.remove(client)),
                Step::Takes(client) if client < self.clients.len() => self.takes(client),
                Step::RaySends(ray, length) if ray < self.rays.len() => self.rays[ray].reads(length),
                _ => {}
            }
        }

        fn takes(&mut self, client: usize) {
            if self.clients[client].over {
                return;
            }
            match self.clients[client].follower.take() {
                Some(Next::Frames(frames)) => self.clients[client].got.extend(frames),
                Some(Next::Behind(place)) => self.clients[client].follower = self.joins(place),
                Some(Next::End(close)) => {
                    self.clients[client].got.extend(control_frame(CLOSE, &close.unwrap()));
                    self.clients[client].over = true;
                }
                None => {}
            }
        }

        fn joins(&mut self, place: Place) -> Follower {
            let found = if place == Place::default() {
                self.tails.find(self.key)
            } else {
                self.tails.find_from(self.key, place)
            };
            let tail = match found {
                Found::LogFanout(tail) => tail,
                Found::Lead(lead) => {
                    let open =
                        |ray: &&Connection| ray.lead.tail.pace == Pace::Slowest && !ray.frames.are_closed();
                    let rears = self.rays.iter().filter(open).count();
                    assert!(lead.tail.pace == Pace::Fastest || rears == 0, "laggards share one tail");
                    let tail = lead.tail();
                    let cut = self.cuts[self.rays.len() % self.cuts.len()];
                    self.rays.push(Connection::new(lead, &self.log, cut));
                    tail
                }
                Found::Full => panic!("so many tails"),
            };
            let mut joins = pin!(tail.join(place));
            match joins.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(follower)) => follower,
                Poll::Ready(None) | Poll::Pending => panic!("it was found to have the place"),
            }
        }
    }

    #[tokio::test]
    async fn those_who_wait_for_a_leader_that_fails_are_told() {
        let tails = LogFanouts::default();
        let lead = lead(&tails, key_of(TAIL, &[]));
        let tail = lead.tail();
        let (joined, ()) = tokio::join!(tail.join(Place::default()), async { drop(lead) });
        assert!(joined.is_none());
    }

    #[test]
    fn the_number_of_tails_is_bounded() {
        let tails = LogFanouts::default();
        let leads: Vec<Found> =
            (0..2 * TAILS_MAX).map(|job| tails.find(key_of(&format!("/{job}"), &[]))).collect();
        assert_eq!(leads.iter().filter(|found| matches!(found, Found::Lead(_))).count(), TAILS_MAX);
    }
}
