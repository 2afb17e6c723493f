//! Who was here before comes first: what a client used in calm, and what that is worth under contention.
//!
//! **The question.** Max-min fairness counts clients. Two hundred strangers, each of whom asks for little, leave
//! the one user of a class a two-hundred-and-first of it, and ten thousand leave nothing. Nothing in a request of
//! theirs tells them from users. What they do not have is a past.
//!
//! **The law.** For a client `i`, by address or by credential:
//!
//! ```text
//! habit      a_i(t) = max over hours h of  u_i(h) 2^(-(t - h) / HALF_LIFE),  at most HABIT_MAX
//! allowance  L_i   <= a_i,  refilled by HEADROOM * a_i an hour
//! ```
//!
//! `u_i(h)` is what it used in hour `h` while the class was calm: nobody waited, so whatever it used was within
//! its max-min share. It is counted in seconds of all that the class has (`price` of the admission controller). A request that
//! has to wait and costs `c` is *known* if its client was first seen [`SETTLED`] ago or earlier and `L_i >= c / 2`;
//! it then takes `c` from `L_i`. The queue of a class has two lines ([`tiers`](crate::admission::tiers)): the known,
//! weighted by habit, and all others, who are equal. Both wait: the known get four fifths, the others one. One of
//! them leaves some of its part: the other has it. What is begun at Ray cannot be interrupted; so for [`KEPT_FOR`] after
//! a known request of a class had to wait, strangers of it leave room for one of the known, if there is room for two.
//!
//! **Why it holds** (a sketch).
//!
//! 1. *Calm is untouched.* Where nobody waits there are no lines, and nothing here decides anything.
//! 2. *Users keep what they had.* Let the habits of the known who compete add up to at most four fifths of the
//!    class. Start-time fair queueing gives client `i` at least `4/5 a_i / (sum of a_j) >= a_i` as long as it waits,
//!    and the next turn when it comes back from a pause. The number of strangers does not occur in this.
//! 3. *Strangers keep a fifth*, by the same law one level up, whatever the habits of others.
//! 4. *Nothing is made from nothing.* In `T` hours a set of clients gets ahead of strangers at most the sum of its
//!    `a_i (1 + HEADROOM T)`, and half a request each. A habit is made in calm only, by use: those of a set that
//!    appeared within the hour add up to at most what it used since (twice that where it showed credentials, since
//!    address and credential both remember). So a farm that behaves for ten minutes and then floods may
//!    repeat those ten minutes once, then at most a third of their pace, and is a crowd of strangers for the rest.
//! 5. *An established client that floods* is known for its allowance, and one of the others beyond it. Known
//!    neighbours are weighed against its habit, and not against what it asks.
//!
//! **Who is who.** A request counts for the address it comes from and for the credential it shows, and is known if
//! either is. So an office behind one address is known whatever tokens it shows, a token from any address, and an
//! operator that comes back with another address by its credential. A credential that most addresses show is
//! nobody's (`common`).
//!
//! **Memory.** [`CLIENTS_MAX`] records of 40 bytes, in trees. Only use in calm makes a record, so that a flood makes
//! none. A full shard gives up the least of [`LOOKED_AT`] neighbours: first who has not settled, then whose
//! habit is smallest.

use crate::request::client_id::ClientId;
use crate::time::{Time, WallMs};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A habit fades by half in this time without use.
pub const HALF_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long ago a client must have been seen first to count as known.
pub const SETTLED: Duration = Duration::from_secs(600);

/// For so long after a known request had to wait, strangers leave room for one.
pub const KEPT_FOR: Duration = Duration::from_secs(60);

/// How much faster than in its busiest hour an allowance refills.
pub const HEADROOM: f64 = 2.0;

/// The greatest habit, in seconds of a class per hour: half of it.
pub const HABIT_MAX: f64 = 1800.0;

/// Records that are kept.
pub const CLIENTS_MAX: usize = SHARDS * SHARD_MAX;

/// Neighbours of a new adjustment log of which one is given up where there is no room.
pub const LOOKED_AT: usize = 16;

const SHARDS: usize = 64;
const SHARD_MAX: usize = 16_384;
const HOUR_S: f64 = 3600.0;

/// What is remembered of an address or a credential. Times are seconds since 1970.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Record {
    /// Seconds of a class that it used in its busiest hour, faded to `at`.
    habit: f32,
    /// Requests of its busiest hour, faded to `at`.
    requests: f32,
    /// The same of the hour `hour`, so far.
    habit_now: f32,
    requests_now: f32,
    /// What it may still claim.
    left: f32,
    at: u32,
    hour: u32,
    /// When it was first seen.
    since: u32,
}

impl Record {
    fn new(now: u32) -> Record {
        Record { at: now, hour: hour(now), since: now, ..Record::default() }
    }

    /// Brings it to `now`.
    fn advance(&mut self, now: u32) {
        let passed = f64::from(now.saturating_sub(self.at));
        if passed > 0.0 {
            let fade = (-passed / HALF_LIFE.as_secs_f64()).exp2();
            let habit = f64::from(self.habit) * fade;
            let left = f64::from(self.left) + HEADROOM * habit * passed / HOUR_S;
            self.habit = single(habit);
            self.requests = single(f64::from(self.requests) * fade);
            self.left = single(left.min(habit));
            self.at = now;
        }
        if self.hour != hour(now) {
            (self.hour, self.habit_now, self.requests_now) = (hour(now), 0.0, 0.0);
        }
    }

    fn earn(&mut self, seconds: f64) {
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

    /// No deeper into debt than half a request.
    fn spend(&mut self, seconds: f64) {
        self.left = single((f64::from(self.left) - seconds).max(-seconds / 2.0).min(f64::from(self.left)));
    }

    fn has_settled(&self, now: u32) -> bool {
        self.habit > 0.0 && u64::from(now.saturating_sub(self.since)) >= SETTLED.as_secs()
    }

    fn words(&self) -> [u32; 8] {
        let amounts = [self.habit, self.requests, self.habit_now, self.requests_now, self.left];
        let mut words = [0; 8];
        words[..5].copy_from_slice(&amounts.map(f32::to_bits));
        words[5..].copy_from_slice(&[self.at, self.hour, self.since]);
        words
    }

    /// A record that could have come about; `None` for any other.
    fn of_words(words: [u32; 8], now: u32) -> Option<Record> {
        let [habit, requests, habit_now, requests_now, left, ..] = words.map(f32::from_bits);
        let [.., at, hour, since] = words;
        let sound = |value: f32, max: f32| value.is_finite() && (0.0..=max).contains(&value);
        let greatest = single(HABIT_MAX);
        let is_sound = sound(habit, greatest)
            && sound(habit_now, greatest)
            && sound(requests, f32::MAX)
            && sound(requests_now, f32::MAX)
            && left.is_finite()
            && left <= habit;
        // A clock that was set back must not make it younger than it is, nor owe it time.
        is_sound.then(|| Record {
            habit,
            requests,
            habit_now,
            requests_now,
            left,
            at: at.min(now),
            hour,
            since: since.min(now),
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounded to what is kept")]
fn single(value: f64) -> f32 {
    value as f32
}

fn hour(now: u32) -> u32 {
    now / 3600
}

/// The weights of a known request among the known: those of its address and of its credential.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Claim {
    /// What its address weighs.
    pub address: f64,
    /// What its credential weighs.
    pub credential: f64,
}

/// What is known of a client.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Standing {
    /// It has a past here.
    Known {
        /// When it was first seen.
        since: WallMs,
        /// Requests per second in its busiest hour.
        per_second: f64,
        /// Seconds of a class that it used in that hour.
        habit_s: f64,
        /// Of these, what it may still claim ahead of strangers.
        left_s: f64,
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
    crowd: Mutex<Crowd>,
}

impl Default for History {
    fn default() -> History {
        History {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            began_s: AtomicU64::new(0),
            claims: Default::default(),
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
        for digest in digests(client) {
            let mut shard = self.shard(digest);
            if shard.len() >= SHARD_MAX && !shard.contains_key(&digest) {
                give_up_one(&mut shard, digest, now);
            }
            let record = shard.entry(digest).or_insert_with(|| Record::new(now));
            record.advance(now);
            record.earn(seconds);
        }
    }

    /// A client's request has to wait, and is thought to cost so many seconds. Takes them from its allowance if it
    /// is known.
    pub fn claim(&self, client: ClientId, seconds: f64, now: Time) -> Option<Claim> {
        let at = self.wall(now);
        // The credential first: it is the narrower of the two.
        let mut is_known = false;
        let mut weights = [None; 2];
        for (digest, weight) in digests(client).zip(&mut weights) {
            if let Some(record) = self.shard(digest).get_mut(&digest) {
                record.advance(at);
                is_known |= record.may_claim(seconds, at);
                *weight = record.has_settled(at).then(|| f64::from(record.habit));
            }
        }
        self.claims[usize::from(is_known)].fetch_add(1, Ordering::Relaxed);
        if !is_known {
            lock(&self.crowd).note(client.address, at);
            return None;
        }
        for digest in digests(client) {
            if let Some(record) = self.shard(digest).get_mut(&digest) {
                record.spend(seconds);
            }
        }
        let [address, credential] = weights;
        let least = address.or(credential).unwrap_or_default();
        Some(Claim { address: address.unwrap_or(least), credential: credential.unwrap_or(least) })
    }

    /// A known request was not served after all.
    pub fn refund(&self, client: ClientId, seconds: f64) {
        for digest in digests(client) {
            if let Some(record) = self.shard(digest).get_mut(&digest) {
                record.left = single((f64::from(record.left) + seconds).min(f64::from(record.habit)));
            }
        }
    }

    /// What is known of a client: of its credential and its address the one with the greater habit.
    #[must_use]
    pub fn standing(&self, client: ClientId, now: Time) -> Standing {
        let now = self.wall(now);
        let mut best: Option<Record> = None;
        for digest in digests(client) {
            if let Some(mut record) = self.shard(digest).get(&digest).copied() {
                record.advance(now);
                if record.has_settled(now) && best.is_none_or(|best| record.habit > best.habit) {
                    best = Some(record);
                }
            }
        }
        best.map_or(Standing::Stranger, |record| Standing::Known {
            since: WallMs(u64::from(record.since) * 1000),
            per_second: f64::from(record.requests) / HOUR_S,
            habit_s: f64::from(record.habit),
            left_s: f64::from(record.left.max(0.0)),
        })
    }

    /// About how many addresses have waited as strangers in the last minutes.
    #[must_use]
    pub fn strangers(&self, now: Time) -> u32 {
        lock(&self.crowd).size(self.wall(now))
    }

    /// Requests that had to wait so far: of strangers, and of the known.
    #[must_use]
    pub fn claims(&self) -> [u64; 2] {
        [0, 1].map(|known| self.claims[known].load(Ordering::Relaxed))
    }

    /// How many addresses and credentials are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether nobody is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everybody.
    pub fn clear(&self) {
        self.shards.iter().for_each(|shard| lock(shard).clear());
    }

    /// Everything that is remembered, for a file. `mark` stands for the key of the digests.
    #[must_use]
    pub fn to_bytes(&self, mark: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + RECORD_BYTES * self.len() + SUM_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&mark.to_le_bytes());
        for shard in &self.shards {
            for (digest, record) in &*lock(shard) {
                bytes.extend_from_slice(&digest.to_le_bytes());
                record.words().iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
            }
        }
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    /// Takes in what an earlier process has written.
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
        let mut taken = 0;
        for bytes in records {
            let (words, _) = bytes.as_chunks::<4>();
            let word = |at: usize| words.get(at).copied().map_or(0, u32::from_le_bytes);
            let digest = u64::from(word(1)) << 32 | u64::from(word(0));
            let Some(record) = Record::of_words(std::array::from_fn(|at| word(at + 2)), now) else {
                continue;
            };
            let mut shard = self.shard(digest);
            if shard.len() < SHARD_MAX {
                shard.insert(digest, record);
                taken += 1;
            }
        }
        Ok(taken)
    }

    fn wall(&self, now: Time) -> u32 {
        let seconds = self.began_s.load(Ordering::Relaxed).saturating_add(now.0 / 1_000_000_000);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    fn shard(&self, digest: u64) -> MutexGuard<'_, BTreeMap<u64, Record>> {
        // The order within a shard is by the upper bits; these are the lower ones.
        lock(&self.shards[usize::try_from(digest % SHARDS as u64).unwrap_or(0)])
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

const MAGIC: &[u8] = b"rayguard history 1\n";
const HEAD_BYTES: usize = MAGIC.len() + 8;
const RECORD_BYTES: usize = 40;
const SUM_BYTES: usize = 32;

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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A record is changed in steps that leave it sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
