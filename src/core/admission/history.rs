//! Clients that were here before come first: what a client used in calm, and what that is worth under contention.
//!
//! **The question.** Max-min fairness counts clients. Two hundred strangers, each of whom asks for little, leave the
//! one user of a class a two-hundred-and-first of it, and ten thousand leave nothing. Nothing in a request of theirs
//! tells them from users. What they do not have is a past.
//!
//! **The law.** For a client `i`, by address or by credential:
//!
//! ```text
//! habit      a_i(t) = max over windows w of  u_i(w) 2^(-(t - w) / HALF_LIFE),  at most HABIT_MAX
//! allowance  L_i   <= a_i,  refilled by HEADROOM * a_i a window
//! ```
//!
//! `u_i(w)` is what it used in the [`WINDOW`] of ten minutes that began when it came, in calm: no request waited for
//! what it took, so all that it used was within its max-min share. So `a_i` is its pace while it was here, and no
//! client is thought to have been here for less than a window. A request that has to wait and would have cost `c` in
//! calm is *known* if its client was first seen `SETTLED` ago or earlier and `L_i >= c / 2`; it then takes `c` from
//! `L_i`, and gives back what it turns out to have cost less. The queue of a class has two lines
//! ([`tiers`](crate::admission::tiers)): the known, weighted by habit, and all others, who are equal. Both wait: the
//! known get four fifths, the others one. One of them leaves some of its part: the other has it. What is begun at Ray
//! cannot be interrupted; so for `KEPT_FOR` after a known request of a class had to wait, a stranger that waited is
//! let in only behind an eighth of the class's places, or behind one. One loop is as busy with three requests as with 24,
//! and the next request waits for three. Where requests are done side by side a free place is idle: there one is left,
//! if it is no more than one in `KEPT_OF`.
//!
//! **Calm** is a matter of what a request takes. A line of submissions that waits for its rate takes nothing from a
//! client that lists jobs, even where one process does both (Ray up to 2.44): the list is read at once, earns and costs
//! nothing. A line for what the two share, the ceiling of their module or the bound on work of their process, is
//! contention for both: a client that is then served at once earns nothing, and pays nothing unless a request of its
//! own class waits.
//!
//! **The coin** is seconds of Ray's work as billed to the request itself ([`cost`](crate::admission::cost)), or of
//! its permit over all that its class began with, where a module works in parallel. One coin for all classes needs
//! one record for each client, and it cannot be had for less than it is worth: a submission that Ray refuses after 3
//! ms earns 3 ms, where a share of its class's rate would be a quarter of a second of everything. The queue
//! shares the other scarce thing of a class, its places, among the known; its price is the dominant one. Where a class
//! has a rate of its own (submissions, new Ray Clients) nothing is claimed and all are equal: what is scarce there is
//! their number, and a storm that was served while there was room would keep four fifths of it by habit. A claim is
//! priced as its like was in calm, or half of what it costs now, whichever is more: a flood that makes each request
//! half as dear again takes no more from an allowance than calm put there.
//!
//! **Why it holds** (a sketch).
//!
//! 1. *Calm is untouched.* Where no request waits there are no lines, and nothing here decides anything.
//! 2. *Users keep what they had.* Let the habits of the known who compete add up to at most four fifths of the class.
//!    Start-time fair queueing gives client `i` at least `4/5 a_i / (sum of a_j) >= a_i` as long as it waits, and the
//!    next turn when it comes back from a pause. The number of strangers does not occur in this. A client that
//!    goes on as before takes `a_i` a window from an allowance that is refilled by twice that: it lasts for days, until
//!    the habit has faded (no client earns in a flood).
//!    The other half is for chance (of a request in each half minute a window sees 20, give or take 4), for requests
//!    that had to wait a moment in calm and earned nothing, and for a head that is more than twice as slow.
//! 3. *Strangers keep a fifth*, by the same law one level up, whatever the habits of others.
//! 4. *Nothing is made from nothing.* In `n` windows a set of clients gets ahead of strangers at most the sum of its
//!    `a_i (1 + HEADROOM n)`, and half a request each. A habit is made in calm only, by work that was done, and no
//!    flood adds to it. The habits of a set that appeared within a window add up to at most what it used since (twice
//!    that where it showed credentials, since address and credential both remember). So a farm that behaves for ten
//!    minutes and then floods may repeat those ten minutes once, then go on at twice their pace, and is a crowd of
//!    strangers for the rest; one that did ten minutes' work in one gains no more by it. Of several that knew a
//!    request, each pays; what one did not pay is not given back to it.
//! 5. *An established client that floods* is known for its allowance, and one of the others beyond it. Known
//!    neighbours are weighed against its habit, and not against what it asks.
//!
//! **How a client is recognised.** A request counts for the address it comes from and for the credential it shows, and
//! is known if either is. So an office behind one address is known whatever tokens it shows, a token from any address,
//! and an operator that comes back with another address by its token. A program's name alone is no credential. A
//! credential that most addresses show is no client's (`shared_credential`).
//!
//! **Memory.** [`CLIENTS_MAX`] records of 40 bytes, in trees: of a million clients two each, address and credential. Only
//! use in calm makes a record, so that a flood makes none. A full shard gives up the least of `LOOKED_AT` neighbours:
//! first one that has not settled, then the one with the smallest habit.

use crate::request::client_id::ClientId;
use crate::time::{Time, WallMs};
use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A habit fades by half in this time without use.
pub(crate) const HALF_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long ago a client must have been seen first to count as known.
pub(crate) const SETTLED: Duration = Duration::from_secs(600);

/// For so long after a known request had to wait, strangers leave room for others.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(60);

/// In one loop strangers have one in so many places ...
const STRANGERS_OF: u32 = 8;

/// ... or so many: with one alone the loop is idle while its request waits for the GCS.
const STRANGERS_MIN: u32 = 2;

/// Where requests are done side by side the place that is kept is one of at least so many.
const KEPT_OF: u32 = 10;

/// How many of a class's places strangers leave free.
pub(crate) fn kept_free(places: u32, side_by_side: bool) -> u32 {
    match places {
        0 | 1 => 0,
        _ if side_by_side => u32::from(places >= KEPT_OF),
        _ => (places - places.div_ceil(STRANGERS_OF).max(STRANGERS_MIN)).max(1),
    }
}

/// Over so long use is added up, from a client's first use on: none is thought to have been here for less.
pub const WINDOW: Duration = SETTLED;

/// How much faster than in its busiest window an allowance refills.
pub(crate) const HEADROOM: f64 = 2.0;

/// The greatest habit, in seconds of a class: half of those of a window.
pub(crate) const HABIT_MAX: f64 = WINDOW_S / 2.0;

/// Records that are kept.
pub const CLIENTS_MAX: usize = SHARDS * SHARD_MAX;

/// Neighbours of a new record of which one is given up where there is no room.
pub(crate) const LOOKED_AT: usize = 16;

const SHARDS: usize = 64;
const SHARD_MAX: usize = 32_768;
const WINDOW_S: f64 = WINDOW.as_secs() as f64;

/// What is remembered of an address or a credential. Times are seconds since 1970.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Record {
    /// Seconds of a class that it used in its busiest window, faded to `at`.
    habit: f32,
    /// Requests of its busiest window, faded to `at`.
    requests: f32,
    /// The same of the window that began at `window`, so far.
    habit_now: f32,
    requests_now: f32,
    /// What it may still claim.
    left: f32,
    at: u32,
    window: u32,
    /// When it was first seen.
    since: u32,
}

impl Record {
    fn new(now: u32) -> Record {
        Record { at: now, window: now, since: now, ..Record::default() }
    }

    /// Brings it to `now`.
    fn advance(&mut self, now: u32) {
        let passed = f64::from(now.saturating_sub(self.at));
        if passed > 0.0 {
            let fade = (-passed / HALF_LIFE.as_secs_f64()).exp2();
            let habit = f64::from(self.habit) * fade;
            let left = f64::from(self.left) + HEADROOM * habit * passed / WINDOW_S;
            self.habit = single(habit);
            self.requests = single(f64::from(self.requests) * fade);
            self.left = single(left.min(habit));
            self.at = now;
        }
    }

    fn earn(&mut self, seconds: f64, now: u32) {
        if now < self.window || u64::from(now - self.window) >= WINDOW.as_secs() {
            (self.window, self.habit_now, self.requests_now) = (now, 0.0, 0.0);
        }
        self.habit_now = single((f64::from(self.habit_now) + seconds).min(HABIT_MAX));
        self.requests_now += 1.0;
        if self.habit_now > self.habit {
            self.left += self.habit_now - self.habit;
            self.habit = self.habit_now;
        }
        self.requests = self.requests.max(self.requests_now);
    }

    fn may_claim(&self, seconds: f64, now: u32) -> bool {
        self.has_settled(now) && f64::from(self.left) >= seconds / 2.0
    }

    fn give_back(&mut self, seconds: f64) {
        self.left = single((f64::from(self.left) + seconds).min(f64::from(self.habit)));
    }

    /// Whether it has too little for a request such as it usually makes.
    fn is_used_up(&self) -> bool {
        f64::from(self.left) < f64::from(self.habit) / f64::from(self.requests.max(1.0)) / 2.0
    }

    /// Adds what another process knew of the same client.
    fn merge(&mut self, other: &Record, now: u32) {
        let mut other = *other;
        other.advance(now);
        self.advance(now);
        self.habit = self.habit.max(other.habit);
        self.requests = self.requests.max(other.requests);
        self.left = (self.left + other.left).min(self.habit);
        (self.window, self.habit_now, self.requests_now) =
            (other.window, other.habit_now, other.requests_now);
        self.since = self.since.min(other.since);
    }

    fn has_settled(&self, now: u32) -> bool {
        self.habit > 0.0 && (now < self.since || u64::from(now - self.since) >= SETTLED.as_secs())
    }

    fn words(&self) -> [u32; 8] {
        let amounts = [self.habit, self.requests, self.habit_now, self.requests_now, self.left];
        let mut words = [0; 8];
        words[..5].copy_from_slice(&amounts.map(f32::to_bits));
        words[5..].copy_from_slice(&[self.at, self.window, self.since]);
        words
    }

    /// A record that could have come about; `None` for any other. A moment in it may be to come, where the clock was set
    /// back since: it stays, or the next start with a right clock would think as much time gone by as it was wrong.
    fn of_bytes(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| words.get(at).copied().map_or(0, u32::from_le_bytes);
        let words: [u32; 8] = std::array::from_fn(|at| word(at + 2));
        let [habit, requests, habit_now, requests_now, left, ..] = words.map(f32::from_bits);
        let [.., at, window, since] = words;
        let sound = |value: f32, max: f32| value.is_finite() && (0.0..=max).contains(&value);
        let greatest = single(HABIT_MAX);
        let is_sound = sound(habit, greatest)
            && sound(habit_now, greatest)
            && sound(requests, f32::MAX)
            && sound(requests_now, f32::MAX)
            && left.is_finite()
            && left <= habit;
        is_sound.then_some(Record { habit, requests, habit_now, requests_now, left, at, window, since })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounded to what is kept")]
fn single(value: f64) -> f32 {
    value as f32
}

/// A known request's place among the known.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Claim {
    /// What its address weighs.
    pub address: f64,
    /// What its credential weighs.
    pub credential: f64,
    /// What was taken for it, in seconds of a class.
    pub seconds: f64,
    /// From whose allowance: its address's, its credential's.
    pub paid_by: [bool; 2],
}

/// What is known of a client.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Standing {
    /// It has a past here.
    Known {
        /// When it was first seen.
        since: WallMs,
        /// Requests per second in its busiest window.
        per_second: f64,
        /// Seconds of a class that it used in that window.
        habit_s: f64,
        /// Of these, what it may still claim ahead of strangers.
        left_s: f64,
        /// That is too little for a request such as it usually makes.
        used_up: bool,
    },
    /// It has none, or one that is too short.
    Stranger,
}

/// What clients used in calm.
#[derive(Debug)]
pub struct History {
    shards: Box<[Mutex<BTreeMap<u64, Record>>]>,
    /// Seconds since 1970 at [`Time::ZERO`].
    began_s: AtomicU64,
    /// Requests that had to wait, by whether they were known.
    claims: [AtomicU64; 2],
    /// Since it was last asked.
    has_changed: AtomicBool,
    crowd: Mutex<Crowd>,
}

impl Default for History {
    fn default() -> History {
        History {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            began_s: AtomicU64::new(0),
            claims: Default::default(),
            has_changed: AtomicBool::new(false),
            crowd: Mutex::default(),
        }
    }
}

impl History {
    /// Says which wall time it is at `now`, once: what is remembered outlives the process.
    pub fn set_clock(&self, now: Time, wall: WallMs) {
        let began = (wall.0 / 1000).saturating_sub(now.0 / 1_000_000_000);
        self.began_s.store(began, Ordering::Relaxed);
    }

    /// A client used so many seconds of a class that was calm.
    pub fn earn(&self, client: ClientId, seconds: f64, now: Time) {
        if !(seconds > 0.0 && seconds.is_finite()) {
            return;
        }
        let now = self.wall(now);
        self.has_changed.store(true, Ordering::Relaxed);
        for digest in digests(client) {
            let mut shard = self.shard(digest);
            if shard.len() >= SHARD_MAX && !shard.contains_key(&digest) {
                give_up_one(&mut shard, digest, now);
            }
            let record = shard.entry(digest).or_insert_with(|| Record::new(now));
            record.advance(now);
            record.earn(seconds, now);
        }
    }

    /// A client's request has to wait, and is thought to cost so many seconds. Takes them from the allowance of its
    /// address and of its credential, where they reach; it is known if either does.
    pub fn claim(&self, client: ClientId, seconds: f64, now: Time) -> Option<Claim> {
        let at = self.wall(now);
        let mut paid_by = [false; 2];
        let mut weights = [None; 2];
        for ((digest, weight), paid) in digests(client).zip(&mut weights).zip(&mut paid_by) {
            if let Some(record) = self.shard(digest).get_mut(&digest) {
                record.advance(at);
                *weight = record.has_settled(at).then(|| f64::from(record.habit));
                *paid = record.may_claim(seconds, at);
                if *paid {
                    record.left = single(f64::from(record.left) - seconds);
                }
            }
        }
        let is_known = paid_by.contains(&true);
        self.claims[usize::from(is_known)].fetch_add(1, Ordering::Relaxed);
        self.has_changed.store(true, Ordering::Relaxed);
        if !is_known {
            self.crowd.lock().note(client.address, at);
            return None;
        }
        let [address, credential] = weights;
        let least = address.or(credential).unwrap_or_default();
        let (address, credential) = (address.unwrap_or(least), credential.unwrap_or(least));
        Some(Claim { address, credential, seconds, paid_by })
    }

    /// Whether [`History::claim`] would find it known; takes nothing.
    #[must_use]
    pub(crate) fn may_claim(&self, client: ClientId, seconds: f64, now: Time) -> bool {
        let now = self.wall(now);
        digests(client).any(|digest| {
            let record = self.shard(digest).get(&digest).copied();
            record.is_some_and(|mut record| {
                record.advance(now);
                record.may_claim(seconds, now)
            })
        })
    }

    /// Gives back a part of what was taken for a known request: all of it if it was not served.
    pub(crate) fn refund(&self, client: ClientId, claim: Claim, part: f64) {
        for (digest, _) in digests(client).zip(claim.paid_by).filter(|(_, paid)| *paid) {
            if let Some(record) = self.shard(digest).get_mut(&digest) {
                record.give_back(claim.seconds * part.clamp(0.0, 1.0));
            }
        }
    }

    /// What is known of a client: of its credential and its address the one with the greater habit.
    pub fn standing(&self, client: ClientId, now: Time) -> Standing {
        let now = self.wall(now);
        let mut best: Option<Record> = None;
        let mut used_up = true;
        for digest in digests(client) {
            if let Some(mut record) = self.shard(digest).get(&digest).copied() {
                record.advance(now);
                if record.has_settled(now) {
                    used_up &= record.is_used_up();
                    best = best.filter(|best| best.habit >= record.habit).or(Some(record));
                }
            }
        }
        best.map_or(Standing::Stranger, |record| Standing::Known {
            since: WallMs(u64::from(record.since) * 1000),
            per_second: f64::from(record.requests) / WINDOW_S,
            habit_s: f64::from(record.habit),
            left_s: f64::from(record.left.max(0.0)),
            used_up,
        })
    }

    /// About how many addresses have waited as strangers in the last minutes.
    pub fn strangers(&self, now: Time) -> u32 {
        self.crowd.lock().size(self.wall(now))
    }

    /// Requests that had to wait so far: of strangers, and of the known.
    pub fn claims(&self) -> [u64; 2] {
        [0, 1].map(|known| self.claims[known].load(Ordering::Relaxed))
    }

    /// How many addresses and credentials are remembered.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether no client is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether anything was earned or claimed since the last call.
    pub fn take_changed(&self) -> bool {
        self.has_changed.swap(false, Ordering::Relaxed)
    }

    /// Forgets everybody.
    pub fn clear(&self) {
        self.shards.iter().for_each(|shard| shard.lock().clear());
    }

    /// Everything that is remembered, for a file. `mark` stands for the key of the digests.
    pub fn to_bytes(&self, mark: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + RECORD_BYTES * self.len() + SUM_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&mark.to_le_bytes());
        for shard in &self.shards {
            for (digest, record) in &*shard.lock() {
                bytes.extend_from_slice(&digest.to_le_bytes());
                record.words().iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
            }
        }
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    /// Takes in what an earlier process has written; a client that has come meanwhile keeps what is known of it.
    ///
    /// # Errors
    /// It is not whole, or of another key; then nothing has changed.
    pub fn restore(&self, bytes: &[u8], mark: u64, now: Time) -> Result<usize, HistoryError> {
        let body = bytes.len().checked_sub(SUM_BYTES).ok_or(HistoryError::Broken)?;
        let (body, sum) = bytes.split_at(body);
        if !body.starts_with(MAGIC) || body.len() < HEAD_BYTES || *Sha256::digest(body) != *sum {
            return Err(HistoryError::Broken);
        }
        let (head, records) = body.split_at(HEAD_BYTES);
        if head[MAGIC.len()..] != mark.to_le_bytes() {
            return Err(HistoryError::OtherKey);
        }
        let (records, rest) = records.as_chunks::<RECORD_BYTES>();
        if !rest.is_empty() {
            return Err(HistoryError::Broken);
        }
        let now = self.wall(now);
        let mut of_shards = [const { Vec::new() }; SHARDS];
        for record in records {
            of_shards[shard_of(digest_of(record))].push(record);
        }
        Ok(of_shards
            .iter()
            .zip(&self.shards)
            .map(|(records, shard)| restore_shard(records, shard, now))
            .sum())
    }

    fn wall(&self, now: Time) -> u32 {
        let seconds = self.began_s.load(Ordering::Relaxed).saturating_add(now.0 / 1_000_000_000);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    fn shard(&self, digest: u64) -> MutexGuard<'_, BTreeMap<u64, Record>> {
        // The order within a shard is by the upper bits; these are the lower ones.
        self.shards[shard_of(digest)].lock()
    }
}

/// Why a file's history is not taken in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HistoryError {
    /// Not written to its end, or changed since.
    #[error("not a whole history file")]
    Broken,
    /// The digests are of another key.
    #[error("written under another key of identities")]
    OtherKey,
}

const MAGIC: &[u8] = b"rayguard history 2\n";
const HEAD_BYTES: usize = MAGIC.len() + 8;
const RECORD_BYTES: usize = 40;
const SUM_BYTES: usize = 32;

fn shard_of(digest: u64) -> usize {
    usize::try_from(digest % SHARDS as u64).unwrap_or(0)
}

/// A tree of all that a file knows is made at once, while requests go on; then the clients that came meanwhile are
/// added.
fn restore_shard(records: &[&[u8; RECORD_BYTES]], shard: &Mutex<BTreeMap<u64, Record>>, now: u32) -> usize {
    let sound = |bytes: &&[u8; RECORD_BYTES]| Some((digest_of(bytes), Record::of_bytes(bytes)?));
    let mut known: BTreeMap<u64, Record> = records.iter().filter_map(sound).take(SHARD_MAX).collect();
    let taken = known.len();
    let mut shard = shard.lock();
    for (digest, record) in std::mem::take(&mut *shard) {
        if known.len() >= SHARD_MAX && !known.contains_key(&digest) {
            give_up_one(&mut known, digest, now);
        }
        known.entry(digest).and_modify(|old| old.merge(&record, now)).or_insert(record);
    }
    *shard = known;
    taken
}

fn digest_of(record: &[u8; RECORD_BYTES]) -> u64 {
    record.first_chunk::<8>().map_or(0, |digest| u64::from_le_bytes(*digest))
}

fn digests(client: ClientId) -> impl Iterator<Item = u64> {
    // A digest is of one kind of thing only, but for one in 2^64: both kinds share the shards.
    std::iter::once(client.address).chain(client.credential)
}

/// Gives up one of the neighbours of a new adjustment log.
fn give_up_one(shard: &mut BTreeMap<u64, Record>, newcomer: u64, now: u32) {
    let worth = |record: &Record| (record.has_settled(now), f64::from(record.habit));
    let after = shard.range(newcomer..).chain(shard.range(..newcomer)).take(LOOKED_AT);
    let least = after.min_by(|(_, a), (_, b)| {
        let (a, b) = (worth(a), worth(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    if let Some(digest) = least.map(|(digest, _)| *digest) {
        shard.remove(&digest);
    }
}

/// How many strangers there are: linear counting (see `usage`) in 2 KiB, over this minute and the four before.
#[derive(Debug, Default)]
struct Crowd {
    minutes: [(u32, Box<[u64]>); CROWD_MINUTES],
}

const CROWD_MINUTES: usize = 5;
/// How long ago the oldest of them began, in minutes.
const CROWD_AGE: u32 = 4;
const CROWD_BITS: usize = 16_384;

impl Crowd {
    fn note(&mut self, address: u64, now: u32) {
        let minute = now / 60;
        let (of, bits) = &mut self.minutes[minute as usize % CROWD_MINUTES];
        if *of != minute || bits.is_empty() {
            (*of, *bits) = (minute, vec![0; CROWD_BITS / 64].into());
        }
        let bit = usize::try_from(address % CROWD_BITS as u64).unwrap_or(0);
        bits[bit / 64] |= 1 << (bit % 64);
    }

    fn size(&self, now: u32) -> u32 {
        let minute = now / 60;
        let recent = self.minutes.iter().filter(|(of, bits)| {
            !bits.is_empty() && (minute.saturating_sub(CROWD_AGE)..=minute).contains(of)
        });
        let mut all = vec![0_u64; CROWD_BITS / 64];
        recent.for_each(|(_, bits)| all.iter_mut().zip(bits).for_each(|(all, bits)| *all |= bits));
        let empty = all.iter().map(|word| word.count_zeros()).sum::<u32>().max(1);
        let bits = CROWD_BITS as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 2^18")]
        let size = (bits * (bits / f64::from(empty)).ln()).round() as u32;
        size
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
