//! Several replicas, one limit: how replicas share what the head can bear.
//!
//! A request must not cost a round trip, so no request asks the store: each replica *leases* a
//! part of every limit, sized by its demand, and renews the leases a few times a second. Three
//! parts, each of which can be wrong without the others' being unsafe:
//!
//! * the [`lease_book`] (a script in the shared store) keeps what is out on lease and hands out no more
//!   than is free. It alone is responsible for safety;
//! * the [`max_min`] (in the leader) publishes one number per limit, the water level of
//!   max-min fairness among replicas, and one more, with the weights of clients that come to several,
//!   for fairness among [`identities`]. It is responsible for fairness, and can be late or absent;
//! * the [`lease_holder`] (in each replica) says what may be used now. It stops using a lease before
//!   the book may give it away, and knows what to do without a store.
//!
//! # Why the sum of leases never exceeds the limit
//!
//! Let `h_i` be what the book holds for replica `i` and `c_i` what `i` lets itself use. A renewal
//! claims `hold = max(c_i, in flight)`; the book frees `h_i - hold`, and lets `i` grow only into
//! `limit - sum of the others' h`. The claim stands until the reply: `c_i` never grows between
//! the two. So `c_i <= h_i` always, and what grows is checked against the sum of `h`, whatever is
//! lost or late. To shrink takes a reply (the wish) and the next renewal (the fact): what one
//! gives another gets no sooner than it has been given, about two periods later.
//!
//! *Time.* A lease runs for a `ttl` of the store's clock from the moment the script ran; the
//! replica counts from the moment it *sent*, by its own clock, and stops a tenth earlier. Sending
//! comes first and only rates of clocks matter, so clocks may differ by any offset and by a tenth
//! in rate. A store whose clock leaps, that was asleep, that forgot everything or a part (a
//! fail-over to a replica that lagged) is recognised by what it last saw and by the sequence
//! numbers it acknowledged; for one `ttl` it then lets no replica grow; by its end every replica
//! that holds something has claimed it or stopped using it.
//!
//! # What is safe without a store
//!
//! `limit / replicas`, where `replicas` is the greater of what the configuration says and what the
//! book knew of. Of all rules that depend on nothing but what a replica knows by itself, it is the
//! greatest whose sum cannot exceed the limit. A replica cannot tell a dead store from a cut cable
//! to a living one, through which the others go on; so the book keeps that share for a replica that
//! falls silent ([`Timing::remember`] long, unless it left in good order). At first a silent replica
//! uses the lesser of its lease and its share, which the book holds already; two `ttl` later the
//! whole share, by when the others have made room. Never less than one permit: a class with fewer
//! permits than there are replicas is the one case in which the sum exceeds the limit then, by less
//! than one each.
//!
//! # A thousand replicas
//!
//! One renewal a period each: at 250 ms, 4 a second for a replica, 12 for three, 4,000 for a thousand,
//! each with five numbers for each of some forty limits, about 2 KB, and for each class that is
//! contended anywhere its 32 heaviest clients, about 2 KB more ([`reported_demand`]). What is answered has up
//! to 64 weights for a contended limit, another 2 KB. A script run touches its
//! replica's record and the sums, whatever the number of replicas; only the leader reads all replicas,
//! once a period (a thousand busy ones: some 4 MB with one class contended, so that many replicas
//! want a period of seconds). To find the level it goes over the rows some fifty times: 32,000 of
//! them for a thousand replicas, 100 for three. A change of demand takes the leader's next renewal, the others' two (the wish and the
//! fact) and the winner's: five periods at most. The tests beside this run a thousand in virtual
//! time, with one message in a hundred lost: within 5 s of the first start no more than five are
//! further than 5 % from their max-min share, and the sum was never above the limit.
//!
//! *Refused:* consensus (the store has it, or has not); leases by client count or by hashing
//! requests to owners (a round trip each, and a hot owner); a table of targets for each replica
//! (the level says it in one number, so a leader's publication is as short for a thousand
//! replicas as for three).
//!
//! Amounts are whole *grains*: permits, millionths of a request per second, bytes per second; see
//! [`quota`].

pub mod identities;
pub mod lease_book;
pub mod lease_holder;
pub mod max_min;
pub mod quota;
pub mod reported_demand;
pub mod role;

#[cfg(test)]
mod faults_tests;

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The lengths of time all replicas agree on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// How often a lease is renewed.
    pub period: Duration,
    /// How long the share of a replica that fell silent is kept for it.
    pub remember: Duration,
}

impl Timing {
    /// How long a lease runs: eight renewals may be lost but one.
    pub fn ttl(&self) -> Duration {
        self.period * 8
    }

    /// How long leadership runs. The leader renews it every period, and a successor asks every
    /// period: take-over within three.
    pub fn lead(&self) -> Duration {
        self.period * 2
    }

    /// How long after sending a renewal its sender may take itself for the leader.
    pub(crate) fn lead_reliance(&self) -> Duration {
        self.lead() * 9 / 10
    }

    /// How long after sending a renewal a replica relies on what it was granted.
    pub(crate) fn reliance(&self) -> Duration {
        self.ttl() * 9 / 10
    }
}

/// What a replica says of one limit at a renewal, in grains.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Claim {
    /// What it lets itself use until the reply.
    pub cap: u64,
    /// What is under way; more than `cap` while it drains. 0 for rates.
    pub used: u64,
    /// What it could use, were there enough.
    pub demand: u64,
    /// What it will use should it fall silent; kept for it then.
    pub safe: u64,
    /// The whole limit as it knows it, for a book in which none is written.
    pub limit: u64,
}

impl Claim {
    /// What it may be using.
    pub fn hold(&self) -> u64 {
        self.cap.max(self.used)
    }
}

/// The share of one replica among so many, and never nothing of something.
pub(crate) fn even_share(limit: u64, replicas: u32) -> u64 {
    if limit == 0 { 0 } else { (limit / u64::from(replicas.max(1))).max(1) }
}
