//! One answer for many readers: one copy of its bytes, within a budget.
//!
//! The fetch fills it as upstream sends, and each reader takes it from the beginning at its own speed: its
//! permit is given back when upstream is done, however slow the readers are. A reader holds no more of it
//! than the piece it is being sent; one that takes nothing for as long as a slow reader may is cut off, as
//! any other is (see `readers`).
//!
//! **The budget** (`http.shared_bytes_max`) counts every answer from its first byte until it is kept no longer
//! and its last reader has gone. What becomes of an answer for which there is no room:
//!
//! - kept answers without readers make room, the oldest first;
//! - if that is not enough and its length is known, it is not shared: the leader gets it as it comes, each
//!   follower goes through admission by itself;
//! - if its length is not known and it has outgrown the budget midway, no reader may join any more, and it is
//!   kept no further back than its slowest reader is. Upstream is then read at that reader's pace, but one
//!   that has kept others waiting for `HOLD_UP_MAX` in all is cut off.
//!
//! An answer of unknown length whose last reader has gone is given up: it may have no end.

use crate::clock::Clock;
use crate::response_policy::{AnswerError, ResponsePolicy};
use crate::single_flight::Answer;
use crate::slow_reader::{Cut, Listed, Taken};
use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};
use rayguard_config::settings;
use rayguard_core::time::Time;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::time::Instant;

/// For how long a reader may keep others waiting, once an answer has outgrown the budget.
pub(crate) const HOLD_UP_MAX: Duration = Duration::from_secs(10);

/// Bytes are kept in blocks of this size, ...
const BLOCK: usize = 64 << 10;
/// ... the first ones of an answer of unknown length smaller.
const BLOCK_MIN: usize = 4 << 10;
/// A reader is given this much at a time: what is on its way to it is bounded by that.
const GIVE: usize = 16 << 10;
/// What a piece costs beside its bytes, and an answer or a header beside its text.
const PIECE_COST: usize = 64;
const ANSWER_COST: usize = 1 << 10;
const HEADER_COST: usize = 64;

/// The bytes that all shared answers take, and may take.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Purse>);

#[derive(Debug)]
struct Purse {
    used: AtomicUsize,
    max: AtomicUsize,
    exhausted: AtomicU64,
}

impl Default for Budget {
    fn default() -> Budget {
        let max = AtomicUsize::new(settings::Http::default().shared_bytes_max);
        Budget(Arc::new(Purse { used: AtomicUsize::new(0), max, exhausted: AtomicU64::new(0) }))
    }
}

impl Budget {
    /// Takes so many bytes out of it, if they are there.
    pub fn take(&self, bytes: usize) -> Option<Charge> {
        let mut charge = Charge { budget: self.clone(), bytes: 0 };
        charge.grow(bytes).then_some(charge)
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Bytes that may be in use.
    pub fn max(&self) -> usize {
        self.0.max.load(Ordering::Relaxed)
    }

    /// Sets how many bytes may be in use. What is in use is not taken back.
    pub fn set_max(&self, bytes: usize) {
        self.0.max.store(bytes, Ordering::Relaxed);
    }

    /// An answer could not be shared, or not to its end, for want of room.
    pub(crate) fn note_exhausted(&self) {
        self.0.exhausted.fetch_add(1, Ordering::Relaxed);
    }

    /// How many answers that happened to.
    pub fn exhausted(&self) -> u64 {
        self.0.exhausted.load(Ordering::Relaxed)
    }
}

/// A part of the budget, given back when this is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Budget,
    bytes: usize,
}

impl Charge {
    fn grow(&mut self, more: usize) -> bool {
        let max = self.budget.max();
        let next = |used: usize| used.checked_add(more).filter(|used| *used <= max);
        let grown = self.budget.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok();
        if grown {
            self.bytes += more;
        }
        grown
    }

    fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.budget.0.used.fetch_sub(less, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// An answer that many may read.
#[derive(Clone, Debug)]
pub struct SharedAnswer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    status: StatusCode,
    headers: HeaderMap,
    /// As announced.
    length: Option<u64>,
    /// What of the charge is not the body's.
    overhead: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    charge: Charge,
    pieces: VecDeque<Bytes>,
    /// The number of the first piece that is still kept.
    first: u64,
    /// What the pieces take.
    bytes: usize,
    /// Bytes that have come.
    come: u64,
    /// Room for what comes next.
    block: BytesMut,
    end: End,
    /// Whether it has outgrown the budget: what every reader has taken is dropped.
    windowed: bool,
    readers: BTreeMap<u64, Cursor>,
    readers_ever: u64,
    /// Rises when a reader makes room.
    moves: u64,
    /// The task that fills it, while it waits for readers.
    filler: Option<Waker>,
}

#[derive(Debug)]
enum End {
    Growing,
    Whole,
    Broken(Arc<AnswerError>),
}

/// What a reader takes next.
#[derive(Debug, Default)]
struct Cursor {
    piece: u64,
    offset: usize,
    waker: Option<Waker>,
}

/// What an answer of this length will take; one of unknown length takes more as it grows.
pub fn cost(headers: &HeaderMap, length: Option<u64>) -> usize {
    let length = length.map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX / 2));
    overhead(headers) + length + PIECE_COST * (length / BLOCK_MIN + 1)
}

fn overhead(headers: &HeaderMap) -> usize {
    let text: usize =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_COST).sum();
    ANSWER_COST + text
}

impl SharedAnswer {
    /// An answer whose head has come; `charge` is what its [`cost`] came to.
    pub fn begun(head: Parts, length: Option<u64>, charge: Charge) -> SharedAnswer {
        SharedAnswer(Arc::new(Inner {
            status: head.status,
            overhead: overhead(&head.headers),
            headers: head.headers,
            length,
            state: Mutex::new(State {
                charge,
                pieces: VecDeque::new(),
                first: 0,
                bytes: 0,
                come: 0,
                block: BytesMut::new(),
                end: End::Growing,
                windowed: false,
                readers: BTreeMap::new(),
                readers_ever: 0,
                moves: 0,
                filler: None,
            }),
        }))
    }

    /// One that has come whole.
    pub fn whole(head: Parts, body: &Bytes, charge: Charge) -> SharedAnswer {
        let answer = SharedAnswer::begun(head, Some(body.len() as u64), charge);
        {
            let mut state = answer.state();
            // A copy: the bytes are a part of a connection's buffer, which is larger.
            state.keep(body.clone(), body.len());
            state.end = End::Whole;
        }
        answer
    }

    /// Whether it has come whole and is all there.
    pub fn is_whole(&self) -> bool {
        let state = self.state();
        matches!(state.end, End::Whole) && !state.windowed
    }

    /// Its length as announced.
    pub fn length(&self) -> Option<u64> {
        self.0.length
    }

    /// Takes in what upstream sends, to its end. `make_room` drops an answer without readers, if there is one.
    pub async fn fill(
        &self,
        mut body: impl Body<Data = Bytes, Error = AnswerError> + Unpin,
        make_room: impl Fn() -> bool,
    ) {
        // However this ends, no reader is left waiting for more.
        let _ending = Ending(self);
        let mut held_up = Duration::ZERO;
        loop {
            let frame = poll_fn(|context| {
                if self.0.length.is_none() && self.poll_unread(context).is_ready() {
                    return Poll::Ready(Some(Err(AnswerError::Unread)));
                }
                Pin::new(&mut body).poll_frame(context)
            });
            let data = match frame.await {
                None => return self.end(End::Whole),
                Some(Err(error)) => return self.end(End::Broken(Arc::new(error))),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            while !self.take_in(&data, &make_room) {
                if self.wait_for_room(&mut held_up).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Keeps what has come, if there is room or nothing else is kept.
    fn take_in(&self, data: &Bytes, make_room: &impl Fn() -> bool) -> bool {
        loop {
            let mut state = self.state();
            if state.affords(data.len(), self.0.overhead) || (state.windowed && state.pieces.is_empty()) {
                let left = self.0.length.map(|length| length.saturating_sub(state.come));
                let room = left.map_or_else(
                    || usize::try_from(state.come).unwrap_or(BLOCK).clamp(BLOCK_MIN, BLOCK),
                    |left| usize::try_from(left).unwrap_or(BLOCK),
                );
                state.keep(data.clone(), room);
                let wakers = state.wakers();
                drop(state);
                wakers.into_iter().for_each(Waker::wake);
                return true;
            }
            drop(state);
            if make_room() {
                continue;
            }
            let mut state = self.state();
            if state.windowed {
                return false;
            }
            state.windowed = true;
            state.trim(self.0.overhead);
            state.charge.budget.note_exhausted();
        }
    }

    /// Waits until a reader has made room; an error once there is none.
    async fn wait_for_room(&self, held_up: &mut Duration) -> Result<(), ()> {
        let (moves, others_wait) = {
            let state = self.state();
            let end = state.first + state.pieces.len() as u64;
            (state.moves, state.readers.values().any(|cursor| cursor.piece >= end))
        };
        let moved = poll_fn(|context| {
            let mut state = self.state();
            if state.readers.is_empty() {
                return Poll::Ready(Err(()));
            }
            if state.moves != moves {
                return Poll::Ready(Ok(()));
            }
            state.filler = Some(context.waker().clone());
            Poll::Pending
        });
        let began = Instant::now();
        let patience = HOLD_UP_MAX.saturating_sub(*held_up);
        let moved = tokio::time::timeout(patience, moved).await;
        if others_wait {
            *held_up += began.elapsed();
        }
        if *held_up >= HOLD_UP_MAX {
            *held_up = Duration::ZERO;
            self.cut_slowest();
        }
        moved.unwrap_or(Ok(()))
    }

    /// Cuts off the readers that are furthest behind.
    fn cut_slowest(&self) {
        let mut state = self.state();
        let first = state.first;
        state.readers.retain(|_, cursor| cursor.piece > first);
        state.trim(self.0.overhead);
    }

    /// Resolves while it has no reader.
    pub async fn unread(&self) {
        poll_fn(|context| self.poll_unread(context)).await;
    }

    fn poll_unread(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.readers.is_empty() {
            return Poll::Ready(());
        }
        if state.filler.as_ref().is_none_or(|filler| !filler.will_wake(context.waker())) {
            state.filler = Some(context.waker().clone());
        }
        Poll::Pending
    }

    fn end(&self, end: End) {
        let mut state = self.state();
        state.end = end;
        state.block = BytesMut::new();
        let wakers = state.wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

/// Ends what is being filled, unless it has ended.
struct Ending<'a>(&'a SharedAnswer);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let growing = matches!(self.0.state().end, End::Growing);
        if growing {
            self.0.end(End::Broken(Arc::new(AnswerError::Unread)));
        }
    }
}

impl Answer for SharedAnswer {
    type Share = Share;

    fn share(&self) -> Option<Share> {
        let mut state = self.state();
        if state.windowed || matches!(state.end, End::Broken(_)) {
            return None;
        }
        let id = state.readers_ever;
        state.readers_ever += 1;
        state.readers.insert(id, Cursor::default());
        Some(Share { answer: self.clone(), id })
    }

    fn is_idle(&self) -> bool {
        let state = self.state();
        state.readers.is_empty() && !matches!(state.end, End::Growing)
    }
}

impl State {
    /// Whether the budget has room for so many bytes more.
    fn affords(&mut self, more: usize, overhead: usize) -> bool {
        let need = overhead + self.bytes + more + PIECE_COST * (2 + more / BLOCK_MIN);
        need <= self.charge.bytes || self.charge.grow(need - self.charge.bytes)
    }

    /// Appends; a new block has `room` bytes.
    fn keep(&mut self, mut data: Bytes, room: usize) {
        self.come += data.len() as u64;
        while !data.is_empty() {
            if self.block.capacity() == 0 {
                self.block = BytesMut::with_capacity(room.clamp(1, BLOCK));
            }
            let part = data.split_to(data.len().min(self.block.capacity()));
            self.block.extend_from_slice(&part);
            let piece = self.block.split().freeze();
            self.bytes += piece.len() + PIECE_COST;
            self.pieces.push_back(piece);
        }
    }

    /// Drops what every reader has taken, if the answer has outgrown the budget.
    fn trim(&mut self, overhead: usize) {
        if !self.windowed {
            return;
        }
        let end = self.first + self.pieces.len() as u64;
        let slowest = self.readers.values().map(|cursor| cursor.piece).min().unwrap_or(end);
        while self.first < slowest
            && let Some(piece) = self.pieces.pop_front()
        {
            self.first += 1;
            self.bytes -= piece.len() + PIECE_COST;
        }
        self.charge.shrink_to(overhead + self.bytes);
        self.moves += 1;
    }

    fn wakers(&mut self) -> Vec<Waker> {
        self.readers.values_mut().filter_map(|cursor| cursor.waker.take()).collect()
    }
}

/// A reader's place in a shared answer.
#[derive(Debug)]
pub struct Share {
    answer: SharedAnswer,
    id: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.answer.state();
        state.readers.remove(&self.id);
        state.trim(self.answer.0.overhead);
        let filler = state.filler.take();
        drop(state);
        filler.into_iter().for_each(Waker::wake);
    }
}

impl Share {
    /// The answer's head.
    pub fn head(&self) -> Response<()> {
        let mut head = Response::new(());
        *head.status_mut() = self.answer.0.status;
        *head.headers_mut() = self.answer.0.headers.clone();
        head
    }

    /// The length of the answer, as far as it is known.
    pub fn length(&self) -> u64 {
        self.answer.0.length.unwrap_or_else(|| self.answer.state().come)
    }

    /// All of it, if it is there and short.
    pub fn short(&self) -> Option<Bytes> {
        let state = self.answer.state();
        match (&state.end, state.pieces.len()) {
            (End::Whole, 0) => Some(Bytes::new()),
            (End::Whole, 1) => state.pieces.front().filter(|piece| piece.len() <= GIVE).cloned(),
            _ => None,
        }
    }

    fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        let mut state = self.answer.state();
        let State { pieces, first, end, readers, .. } = &mut *state;
        let Some(cursor) = readers.get_mut(&self.id) else {
            return Poll::Ready(Some(Err(AnswerError::HeldUp)));
        };
        let at = cursor.piece.checked_sub(*first).and_then(|at| usize::try_from(at).ok());
        let Some(piece) = at.and_then(|at| pieces.get(at)) else {
            return match end {
                End::Whole => Poll::Ready(None),
                End::Broken(error) => Poll::Ready(Some(Err(AnswerError::Shared(Arc::clone(error))))),
                End::Growing => {
                    cursor.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        };
        let until = piece.len().min(cursor.offset + GIVE);
        let given = piece.slice(cursor.offset..until);
        cursor.offset = until;
        if until < piece.len() {
            return Poll::Ready(Some(Ok(given)));
        }
        (cursor.piece, cursor.offset) = (cursor.piece + 1, 0);
        let filler = if state.windowed { state.filler.take() } else { None };
        state.trim(self.answer.0.overhead);
        drop(state);
        filler.into_iter().for_each(Waker::wake);
        Poll::Ready(Some(Ok(given)))
    }

    /// Whether the reader has all of it.
    fn is_at_end(&self) -> bool {
        let state = self.answer.state();
        let end = state.first + state.pieces.len() as u64;
        matches!(state.end, End::Whole)
            && state.readers.get(&self.id).is_some_and(|cursor| cursor.piece >= end)
    }
}

/// A shared answer on its way to one client.
#[derive(Debug)]
pub struct SharedBody {
    reader: Arc<Reader>,
    _listed: Option<Listed>,
}

#[derive(Debug)]
struct Reader {
    clock: Clock,
    taken: Taken,
    /// How much is to come, as far as that is known.
    left: Mutex<Option<u64>>,
    /// Gone once it is over.
    share: Mutex<Option<Share>>,
}

impl SharedBody {
    /// A share, held to what every answer keeps to on its way.
    pub fn new(share: Share, response_policy: &ResponsePolicy) -> SharedBody {
        let reader = Arc::new(Reader {
            clock: response_policy.clock,
            taken: Taken::at(response_policy.clock.now()),
            left: Mutex::new(share.answer.0.length),
            share: Mutex::new(Some(share)),
        });
        let list = |(readers, patience): &(crate::slow_reader::SlowReaders, Duration)| {
            readers.list(Arc::clone(&reader) as Arc<dyn Cut>, *patience)
        };
        let listed = response_policy.patience.as_ref().map(list);
        SharedBody { reader, _listed: listed }
    }
}

impl Reader {
    fn share(&self) -> MutexGuard<'_, Option<Share>> {
        self.share.lock()
    }

    fn left(&self) -> MutexGuard<'_, Option<u64>> {
        self.left.lock()
    }
}

impl Cut for Reader {
    fn waits_since(&self) -> Option<Time> {
        self.taken.since()
    }

    fn cut(&self) {
        let share = self.share().take();
        drop(share);
    }
}

impl Body for SharedBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let reader = &self.reader;
        let mut place = reader.share();
        let Some(share) = place.as_ref() else { return Poll::Ready(Some(Err(AnswerError::Unread))) };
        reader.taken.ask();
        let next = ready!(share.poll_next(context));
        reader.taken.give(reader.clock.now());
        if let (Some(Ok(data)), Some(left)) = (&next, &mut *reader.left()) {
            *left = left.saturating_sub(data.len() as u64);
        }
        // The last piece is the end of it for hyper, which does not ask again.
        let over = !matches!(next, Some(Ok(_)));
        if over {
            *place = None;
        }
        Poll::Ready(next.map(|next| next.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.reader.share().as_ref().is_some_and(Share::is_at_end)
    }

    fn size_hint(&self) -> SizeHint {
        self.reader.left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slow_reader::SlowReaders;
    use crate::tasks::Tasks;
    use http_body_util::BodyExt;

    fn head() -> Parts {
        Response::new(()).into_parts().0
    }

    /// An answer of unknown length, with a budget of so many bytes.
    fn growing(budget: &Budget) -> SharedAnswer {
        SharedAnswer::begun(head(), None, budget.take(cost(&HeaderMap::new(), None)).unwrap())
    }

    fn budget(bytes: usize) -> Budget {
        let budget = Budget::default();
        budget.set_max(bytes);
        budget
    }

    /// What upstream sends: a frame each time it is asked.
    fn frames(count: usize, bytes: usize) -> SharedBody {
        let frame = Bytes::from(vec![b'x'; bytes]);
        let answer = SharedAnswer::begun(head(), None, Budget::default().take(0).unwrap());
        for _ in 0..count {
            answer.state().keep(frame.clone(), BLOCK);
        }
        answer.end(End::Whole);
        SharedBody::new(answer.share().unwrap(), &response_policy(None))
    }

    fn response_policy(patience: Option<(SlowReaders, Duration)>) -> ResponsePolicy {
        ResponsePolicy { clock: Clock::start(), flow: None, patience, silence_max: None, submission: None }
    }

    /// Takes what is there, or nothing.
    fn take(share: &Share) -> Poll<Option<Result<Bytes, AnswerError>>> {
        share.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    async fn read(share: Share) -> Result<Bytes, AnswerError> {
        Ok(SharedBody::new(share, &response_policy(None)).collect().await?.to_bytes())
    }

    const SMALL: usize = 256 << 10;

    #[tokio::test]
    async fn a_hundred_readers_take_the_room_of_one_and_the_last_gives_it_back() {
        let budget = Budget::default();
        let answer = growing(&budget);
        let shares: Vec<_> = (0..100).map(|_| answer.share().unwrap()).collect();
        answer.fill(frames(16, SMALL), || false).await;
        let size = 16 * SMALL;
        assert!((size..size + size / 10).contains(&budget.used()), "{}", budget.used());
        drop(answer);
        for share in shares {
            assert_eq!(read(share).await.unwrap().len(), size);
        }
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn who_comes_while_it_grows_reads_it_from_the_beginning() {
        let answer = SharedAnswer::begun(head(), Some(11), Budget::default().take(0).unwrap());
        let first = answer.share().unwrap();
        answer.state().keep(Bytes::from_static(b"hello "), 11);
        assert!(matches!(take(&first), Poll::Ready(Some(Ok(data))) if data == "hello "));
        let late = answer.share().unwrap();
        answer.state().keep(Bytes::from_static(b"world"), 11);
        answer.end(End::Whole);
        assert_eq!(read(late).await.unwrap(), "hello world");
        assert_eq!(read(first).await.unwrap(), "world");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_breaks_off_for_all_its_readers_and_takes_no_new_one() {
        let answer = growing(&Budget::default());
        let shares = [answer.share().unwrap(), answer.share().unwrap()];
        answer.end(End::Broken(Arc::new(AnswerError::Silent(Duration::from_secs(1)))));
        for share in shares {
            assert!(read(share).await.is_err());
        }
        assert!(answer.share().is_none());
    }

    #[tokio::test]
    async fn one_that_outgrows_the_budget_goes_on_at_its_readers_pace_within_it() {
        let budget = budget(4 * SMALL);
        let answer = growing(&budget);
        let shares = [answer.share().unwrap(), answer.share().unwrap()];
        let readers = async {
            let mut came = [0, 0];
            while came != [32 * SMALL; 2] {
                for (share, came) in shares.iter().zip(&mut came) {
                    let Poll::Ready(next) = take(share) else { continue };
                    *came += next.unwrap().unwrap().len();
                }
                assert!(budget.used() <= budget.max());
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(answer.fill(frames(32, SMALL), || false), readers);
        assert!(answer.share().is_none(), "its beginning is gone");
        assert_eq!(budget.exhausted(), 1);
        drop(shares);
        drop(answer);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_holds_up_the_others_for_so_long_and_no_longer() {
        let budget = budget(4 * SMALL);
        let answer = growing(&budget);
        let (reads, sleeps) = (answer.share().unwrap(), answer.share().unwrap());
        let began = Instant::now();
        let (read, ()) = tokio::join!(read(reads), answer.fill(frames(32, SMALL), || false));
        assert_eq!(read.unwrap().len(), 32 * SMALL);
        assert!(began.elapsed() < 2 * HOLD_UP_MAX);
        assert!(matches!(take(&sleeps), Poll::Ready(Some(Err(AnswerError::HeldUp)))));
    }

    #[tokio::test]
    async fn kept_answers_make_room_before_one_outgrows_the_budget() {
        let budget = budget(4 * SMALL);
        let kept = Mutex::new(Some(budget.take(3 * SMALL).unwrap()));
        let answer = growing(&budget);
        let share = answer.share().unwrap();
        answer.fill(frames(2, SMALL), || kept.lock().take().is_some()).await;
        assert!(answer.is_whole());
        assert_eq!(read(share).await.unwrap().len(), 2 * SMALL);
    }

    #[tokio::test]
    async fn one_without_an_end_is_given_up_when_its_last_reader_has_gone() {
        let answer = growing(&Budget::default());
        let share = answer.share().unwrap();
        let endless = growing(&Budget::default());
        let body = SharedBody::new(endless.share().unwrap(), &response_policy(None));
        let mut filling = Box::pin(answer.fill(body, || false));
        let pending = poll_fn(|context| Poll::Ready(filling.as_mut().poll(context).is_pending())).await;
        assert!(pending);
        drop(share);
        filling.await;
        assert!(answer.is_idle());
    }

    #[tokio::test]
    async fn who_does_not_read_a_shared_answer_is_cut_off_and_what_it_held_is_given_back() {
        let (budget, tasks) = (Budget::default(), Tasks::default());
        let patience = Duration::from_millis(20);
        let response_policy =
            response_policy(Some((SlowReaders::new(Clock::start(), tasks.clone()), patience)));
        let answer =
            SharedAnswer::whole(head(), &Bytes::from(vec![b'x'; SMALL]), budget.take(SMALL).unwrap());
        let unread = SharedBody::new(answer.share().unwrap(), &response_policy);
        drop(answer);
        assert!(budget.used() > 0);
        while budget.used() > 0 {
            tokio::time::sleep(patience).await;
        }
        assert!(matches!(unread.collect().await, Err(AnswerError::Unread)));
        tasks.close();
    }
}
