//! Single-flight: of equal requests under way one leads and asks upstream, the others follow and are told.
//!
//! Whatever becomes of the leader, its followers are dealt with at once and together:
//!
//! - its **answer** can be shared: each gets its share of the one copy;
//! - it **failed** or timed out: each is told so now, and none waits the same time over again;
//! - its answer **cannot be shared**: each goes its own way through admission;
//! - it was **shed** or left before it had asked: that says nothing of the others. The lead passes to the
//!   follower that has waited longest, and to that one alone.
//!
//! An answer may be handed on to later requests until a time that its leader sets. The holder of the
//! [`Kept`] then drops it, whether a request comes or not.
//!
//! `tests/loom.rs` compiles this file once more and runs it under every order of its threads.

use super::sync::{Arc, Mutex, MutexGuard};
use rayguard_core::time::Time;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::mem;
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

/// The most distinct requests under way or kept.
pub(crate) const FLIGHTS_MAX: usize = 4096;

/// What many may read.
pub trait Answer {
    /// One reader's part in it.
    type Share: Debug;
    /// A part from the beginning on; `None` once the beginning is gone.
    fn share(&self) -> Option<Self::Share>;
    /// Whether it is complete and has no reader, so that it may be dropped for another.
    fn is_idle(&self) -> bool;
}

/// What a request finds under its key.
#[derive(Debug)]
pub enum Found<K: Copy + Eq + Hash, A: Answer, F> {
    /// No request under way asks the same: lead.
    Lead(Lead<K, A, F>),
    /// One does: follow.
    Follow(Follower<K, A, F>),
    /// One was answered just now: its share.
    Share(A::Share),
    /// There are too many distinct requests: go alone.
    Full,
}

/// What a follower is told.
#[derive(Debug)]
pub enum Told<K: Copy + Eq + Hash, A: Answer, F> {
    /// The leader went without having asked: lead.
    Lead(Lead<K, A, F>),
    /// Its share of the answer.
    Share(A::Share),
    /// There is no answer, for this reason.
    Failed(F),
    /// The answer cannot be shared: go alone.
    Alone,
}

/// All requests under way that may be shared, and the answers that are kept.
#[derive(Debug)]
pub(crate) struct SingleFlight<K, A: Answer, F>(Arc<Mutex<Flights<K, A, F>>>);

type Flights<K, A, F> = HashMap<K, Arc<Mutex<Flight<A, F>>>>;

/// One request on behalf of all that are equal to it. Its lock is taken under that of the map, or alone.
#[derive(Debug)]
struct Flight<A: Answer, F> {
    stage: Stage<A>,
    /// Those who follow, in order of arrival.
    followers: BTreeMap<u64, Place<A::Share, F>>,
    arrivals: u64,
    /// No request that comes now would be let in before its leader.
    goes_first: bool,
    /// The leader, while it waits for the last follower to leave.
    unawaited: Option<Waker>,
}

#[derive(Debug)]
enum Stage<A> {
    /// A request leads.
    Led,
    /// The answer is there, and may be handed on until this time.
    Kept(A, Time),
    /// No request leads, and none may join.
    Over,
}

/// A follower: how to wake it, and what it is told.
#[derive(Debug)]
struct Place<S, F> {
    waker: Option<Waker>,
    news: Option<News<S, F>>,
}

#[derive(Debug)]
enum News<S, F> {
    Lead,
    Share(S),
    Failed(F),
    Alone,
}

impl<K, A: Answer, F> Default for SingleFlight<K, A, F> {
    fn default() -> Self {
        SingleFlight(Arc::new(Mutex::new(HashMap::new())))
    }
}

impl<K, A: Answer, F> Clone for SingleFlight<K, A, F> {
    fn clone(&self) -> Self {
        SingleFlight(Arc::clone(&self.0))
    }
}

impl<K: Copy + Eq + Hash, A: Answer, F> SingleFlight<K, A, F> {
    /// Follows a request that asks the same, takes a share of a kept answer, or leads.
    pub(crate) fn find(&self, key: K, now: Time) -> Found<K, A, F> {
        let mut flights = lock(&self.0);
        if let Some(flight) = flights.get(&key) {
            let mut state = lock(flight);
            match &state.stage {
                Stage::Led => {
                    let place = state.arrivals;
                    state.arrivals += 1;
                    state.followers.insert(place, Place { waker: None, news: None });
                    drop(state);
                    let flight = Arc::clone(flight);
                    return Found::Follow(Follower { entry: self.entry(key, flight), place: Some(place) });
                }
                Stage::Kept(answer, until) if now < *until => {
                    if let Some(share) = answer.share() {
                        return Found::Share(share);
                    }
                }
                Stage::Kept(..) | Stage::Over => {}
            }
        } else if flights.len() >= FLIGHTS_MAX {
            return Found::Full;
        }
        let flight = Arc::new(Mutex::new(Flight {
            stage: Stage::Led,
            followers: BTreeMap::new(),
            arrivals: 0,
            goes_first: false,
            unawaited: None,
        }));
        let before = flights.insert(key, Arc::clone(&flight));
        // What is dropped may be large, and its end may wake others: not under the lock.
        drop(flights);
        drop(before);
        Found::Lead(Lead { entry: Some(self.entry(key, flight)) })
    }

    /// Kept answers are out of date, and answers under way may be: followers get theirs, later requests do
    /// not.
    pub(crate) fn forget(&self) {
        let flights = mem::take(&mut *lock(&self.0));
        for flight in flights.values() {
            drop(end_keeping(flight));
        }
    }

    /// Drops that one of the kept and idle answers whose time would be up first; whether there was one.
    pub(crate) fn drop_oldest(&self) -> bool {
        let mut flights = lock(&self.0);
        let idle = |flight: &Arc<Mutex<Flight<A, F>>>| match &lock(flight).stage {
            Stage::Kept(answer, until) if answer.is_idle() => Some(*until),
            _ => None,
        };
        let oldest =
            flights.iter().filter_map(|(key, flight)| Some((idle(flight)?, *key))).min_by_key(|at| at.0);
        let Some(flight) = oldest.and_then(|(_, key)| flights.remove(&key)) else { return false };
        drop(flights);
        drop(end_keeping(&flight));
        true
    }

    fn entry(&self, key: K, flight: Arc<Mutex<Flight<A, F>>>) -> Entry<K, A, F> {
        Entry { flights: self.clone(), key, flight }
    }
}

/// The answer is handed on no more; it is returned to be dropped outside of any lock.
fn end_keeping<A: Answer, F>(flight: &Mutex<Flight<A, F>>) -> Option<A> {
    let mut state = lock(flight);
    match mem::replace(&mut state.stage, Stage::Over) {
        Stage::Kept(answer, _) => Some(answer),
        other => {
            state.stage = other;
            None
        }
    }
}

/// A flight and where it stands.
#[derive(Debug)]
struct Entry<K, A: Answer, F> {
    flights: SingleFlight<K, A, F>,
    key: K,
    flight: Arc<Mutex<Flight<A, F>>>,
}

impl<K: Copy + Eq + Hash, A: Answer, F> Entry<K, A, F> {
    /// Takes it out of the map, unless another one stands in its place.
    fn remove(&self) {
        let mut flights = lock(&self.flights.0);
        if flights.get(&self.key).is_some_and(|known| Arc::ptr_eq(known, &self.flight)) {
            flights.remove(&self.key);
        }
    }

    /// Tells all followers what this stage means to them; a request that comes later finds the stage.
    fn settle(&self, stage: Stage<A>, mut news: impl FnMut(&Stage<A>) -> News<A::Share, F>) {
        let mut state = lock(&self.flight);
        let Flight { stage: place, followers, .. } = &mut *state;
        *place = stage;
        let mut wakers = Vec::new();
        // Under the lock: no request can join that is neither told nor finds the stage.
        for follower in followers.values_mut().filter(|follower| follower.news.is_none()) {
            follower.news = Some(news(place));
            wakers.extend(follower.waker.take());
        }
        let over = matches!(state.stage, Stage::Over);
        drop(state);
        if over {
            self.remove();
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Hands the lead to the follower that has waited longest.
    fn pass_on(&self) {
        let mut state = lock(&self.flight);
        state.goes_first = false;
        let heir = state.followers.values_mut().find(|place| place.news.is_none());
        let waker = if let Some(heir) = heir {
            heir.news = Some(News::Lead);
            heir.waker.take()
        } else {
            state.stage = Stage::Over;
            drop(state);
            return self.remove();
        };
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// The lead. Dropped without a word, it passes on.
#[derive(Debug)]
pub struct Lead<K: Copy + Eq + Hash, A: Answer, F> {
    /// Gone once the followers have been told.
    entry: Option<Entry<K, A, F>>,
}

impl<K: Copy + Eq + Hash, A: Answer, F> Lead<K, A, F> {
    /// Gives a share to each follower, and to each request that comes before `until`.
    pub fn land(mut self, answer: A, until: Time) -> Option<Kept<K, A, F>> {
        let entry = self.entry.take()?;
        entry.settle(Stage::Kept(answer, until), |stage| match stage {
            Stage::Kept(answer, _) => answer.share().map_or(News::Alone, News::Share),
            Stage::Led | Stage::Over => News::Alone,
        });
        Some(Kept { entry })
    }

    /// There is no answer: all are told why.
    pub fn fail(mut self, failure: F)
    where
        F: Clone,
    {
        if let Some(entry) = self.entry.take() {
            entry.settle(Stage::Over, |_| News::Failed(failure.clone()));
        }
    }

    /// There is nothing to share: each goes alone.
    pub fn dissolve(mut self) {
        if let Some(entry) = self.entry.take() {
            entry.settle(Stage::Over, |_| News::Alone);
        }
    }

    /// No request that comes now would be let in before this one: it is let in, or waits among the known clients.
    pub(crate) fn goes_first(&self) {
        if let Some(entry) = &self.entry {
            lock(&entry.flight).goes_first = true;
        }
    }

    /// Ready while there is no follower; else the task is woken once the last one has left.
    pub(crate) fn poll_unawaited(&self, context: &mut Context<'_>) -> Poll<()> {
        let Some(entry) = &self.entry else { return Poll::Ready(()) };
        let mut state = lock(&entry.flight);
        if state.followers.is_empty() {
            return Poll::Ready(());
        }
        state.unawaited = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<K: Copy + Eq + Hash, A: Answer, F> Drop for Lead<K, A, F> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.pass_on();
        }
    }
}

/// An answer that is handed on for as long as this lives, its time permitting.
#[derive(Debug)]
pub struct Kept<K: Copy + Eq + Hash, A: Answer, F> {
    entry: Entry<K, A, F>,
}

impl<K: Copy + Eq + Hash, A: Answer, F> Drop for Kept<K, A, F> {
    fn drop(&mut self) {
        self.entry.remove();
        drop(end_keeping(&self.entry.flight));
    }
}

/// A place among the followers; resolves when there are news. Dropped, it is left, and the lead, had it come
/// here, passes on.
#[derive(Debug)]
pub struct Follower<K: Copy + Eq + Hash, A: Answer, F> {
    entry: Entry<K, A, F>,
    /// Gone once it has been told.
    place: Option<u64>,
}

impl<K: Copy + Eq + Hash, A: Answer, F> Follower<K, A, F> {
    /// Whether a known client might be let in before the leader that this one follows.
    #[must_use]
    pub(crate) fn may_be_overtaken(&self) -> bool {
        !lock(&self.entry.flight).goes_first
    }
}

impl<K: Copy + Eq + Hash, A: Answer, F> Future for Follower<K, A, F>
where
    Self: Unpin,
{
    type Output = Told<K, A, F>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Told<K, A, F>> {
        let this = self.get_mut();
        let Some(number) = this.place else { return Poll::Pending };
        let mut state = lock(&this.entry.flight);
        let Some(place) = state.followers.get_mut(&number) else { return Poll::Pending };
        let Some(news) = place.news.take() else {
            place.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        this.place = None;
        let unawaited = state.leave(number);
        drop(state);
        unawaited.into_iter().for_each(Waker::wake);
        Poll::Ready(match news {
            News::Share(share) => Told::Share(share),
            News::Failed(failure) => Told::Failed(failure),
            News::Alone => Told::Alone,
            News::Lead => {
                let Entry { flights, key, flight } = &this.entry;
                Told::Lead(Lead { entry: Some(flights.entry(*key, Arc::clone(flight))) })
            }
        })
    }
}

impl<K: Copy + Eq + Hash, A: Answer, F> Drop for Follower<K, A, F> {
    fn drop(&mut self) {
        let Some(number) = self.place.take() else { return };
        let mut state = lock(&self.entry.flight);
        let news = state.followers.get_mut(&number).and_then(|place| place.news.take());
        let unawaited = state.leave(number);
        drop(state);
        unawaited.into_iter().for_each(Waker::wake);
        if matches!(news, Some(News::Lead)) {
            self.entry.pass_on();
        }
    }
}

impl<A: Answer, F> Flight<A, F> {
    /// A follower leaves; if it was the last, returns the waker of the leader that waits for that.
    fn leave(&mut self, number: u64) -> Option<Waker> {
        self.followers.remove(&number);
        if self.followers.is_empty() { self.unawaited.take() } else { None }
    }
}

/// A panic in between leaves a flight as it was: it passes on or ends when its lead is dropped.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayguard_core::time::Time;
    use std::future::Future;
    use std::time::Duration;

    /// One word.
    #[derive(Debug)]
    struct Text(&'static str);

    /// An answer of one word, read by as many as there are copies of it.
    #[derive(Debug)]
    struct Word(std::sync::Arc<Text>);

    impl Word {
        fn new(word: &'static str) -> Word {
            Word(std::sync::Arc::new(Text(word)))
        }
    }

    impl Answer for Word {
        type Share = std::sync::Arc<Text>;
        fn share(&self) -> Option<Self::Share> {
            Some(std::sync::Arc::clone(&self.0))
        }
        fn is_idle(&self) -> bool {
            std::sync::Arc::strong_count(&self.0) == 1
        }
    }

    type Words = SingleFlight<u8, Word, &'static str>;

    const SOON: Time = Time(1_000_000_000);

    fn lead(words: &Words, key: u8) -> Lead<u8, Word, &'static str> {
        match words.find(key, Time::ZERO) {
            Found::Lead(lead) => lead,
            other => panic!("no lead: {other:?}"),
        }
    }

    fn follow(words: &Words, key: u8) -> Follower<u8, Word, &'static str> {
        match words.find(key, Time::ZERO) {
            Found::Follow(follower) => follower,
            other => panic!("no leader to follow: {other:?}"),
        }
    }

    /// What a follower has been told by now.
    fn news(follower: &mut Follower<u8, Word, &'static str>) -> Option<Told<u8, Word, &'static str>> {
        match Pin::new(follower).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(told) => Some(told),
            Poll::Pending => None,
        }
    }

    #[test]
    fn followers_are_told_together_whatever_becomes_of_the_request() {
        let words = Words::default();
        for how in ["answered", "failed", "alone"] {
            let lead = lead(&words, 0);
            let mut followers: Vec<_> = (0..3).map(|_| follow(&words, 0)).collect();
            assert!(followers.iter_mut().all(|follower| news(follower).is_none()));
            match how {
                "answered" => drop(lead.land(Word::new("jobs"), Time::ZERO)),
                "failed" => lead.fail("too late"),
                _ => lead.dissolve(),
            }
            for follower in &mut followers {
                match news(follower) {
                    Some(Told::Share(word)) => assert_eq!((how, word.0), ("answered", "jobs")),
                    Some(Told::Failed(why)) => assert_eq!((how, why), ("failed", "too late")),
                    Some(Told::Alone) => assert_eq!(how, "alone"),
                    other => panic!("{how}: {other:?}"),
                }
            }
            assert!(lock(&words.0).is_empty(), "{how}: it is over, and forgotten");
        }
    }

    #[test]
    fn a_leader_that_is_shed_passes_the_lead_to_the_one_that_waits_longest_and_wakes_no_other() {
        let words = Words::default();
        let first = lead(&words, 0);
        let (left, mut heir, mut last) = (follow(&words, 0), follow(&words, 0), follow(&words, 0));
        drop(first);
        drop(left); // it had been given the lead, and left before it knew
        assert!(news(&mut last).is_none());
        let Some(Told::Lead(lead)) = news(&mut heir) else { panic!("the next in line leads") };
        assert!(news(&mut last).is_none());
        drop(lead.land(Word::new("jobs"), Time::ZERO));
        assert!(matches!(news(&mut last), Some(Told::Share(_))));
    }

    #[test]
    fn a_leader_that_waits_with_the_others_may_be_overtaken_until_it_is_let_in_and_so_may_its_heir() {
        let words = Words::default();
        let first = lead(&words, 0);
        let mut heir = follow(&words, 0);
        assert!(heir.may_be_overtaken());
        first.goes_first();
        assert!(!heir.may_be_overtaken());
        drop(first);
        assert!(heir.may_be_overtaken());
        assert!(matches!(news(&mut heir), Some(Told::Lead(_))));
    }

    #[test]
    fn with_no_follower_left_to_lead_the_next_request_leads() {
        let words = Words::default();
        let first = lead(&words, 0);
        drop(follow(&words, 0));
        drop(first);
        assert!(lock(&words.0).is_empty());
        drop(lead(&words, 0));
    }

    #[test]
    fn an_answer_is_handed_on_until_its_time_and_is_dropped_then_without_anybody_asking() {
        let words = Words::default();
        let word = Word::new("jobs");
        let seen = std::sync::Arc::downgrade(&word.0);
        let kept = lead(&words, 0).land(word, SOON);
        assert!(matches!(words.find(0, Time(SOON.0 - 1)), Found::Share(_)));
        drop(kept);
        assert!(seen.upgrade().is_none());
        let late = lead(&words, 0).land(Word::new("jobs"), SOON);
        assert!(matches!(words.find(0, SOON), Found::Lead(_)));
        drop(late);
    }

    #[test]
    fn what_is_forgotten_is_asked_anew_even_if_its_answer_comes_later() {
        let words = Words::default();
        let before = lead(&words, 0);
        let mut waits = follow(&words, 0);
        words.forget();
        let after = lead(&words, 0);
        let old = before.land(Word::new("old"), SOON);
        assert!(matches!(news(&mut waits), Some(Told::Share(word)) if word.0 == "old"), "it asked before");
        let new = after.land(Word::new("new"), SOON);
        drop(old);
        assert!(matches!(words.find(0, Time::ZERO), Found::Share(word) if word.0 == "new"));
        words.forget();
        drop(lead(&words, 0));
        drop(new);
    }

    #[test]
    fn the_oldest_idle_answer_makes_room_and_none_that_is_read() {
        let words = Words::default();
        let keep = |key, seconds| lead(&words, key).land(Word::new("x"), SOON + Duration::from_secs(seconds));
        let _kept = [keep(0, 3), keep(1, 1), keep(2, 2)];
        let Found::Share(reads) = words.find(1, Time::ZERO) else { panic!("kept") };
        assert!(words.drop_oldest());
        assert!(matches!(words.find(0, Time::ZERO), Found::Share(_)));
        assert!(matches!(words.find(1, Time::ZERO), Found::Share(_)));
        drop(lead(&words, 2));
        drop(reads);
    }

    #[test]
    fn a_leader_learns_when_no_follower_waits_for_it_any_more() {
        let words = Words::default();
        let lead = lead(&words, 0);
        let unawaited = |lead: &Lead<_, _, _>| lead.poll_unawaited(&mut Context::from_waker(Waker::noop()));
        assert!(unawaited(&lead).is_ready());
        let follower = follow(&words, 0);
        assert!(unawaited(&lead).is_pending());
        drop(follower);
        assert!(unawaited(&lead).is_ready());
    }

    #[test]
    fn the_number_of_distinct_requests_is_bounded() {
        let words: SingleFlight<usize, Word, ()> = SingleFlight::default();
        let leads: Vec<_> = (0..2 * FLIGHTS_MAX).map(|key| words.find(key, Time::ZERO)).collect();
        assert_eq!(leads.iter().filter(|found| matches!(found, Found::Lead(_))).count(), FLIGHTS_MAX);
    }
}
