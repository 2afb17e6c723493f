//! The fair queue of one class: who waits, who goes next, who must give way.
//!
//! **The question.** When a class is contended, several clients want more than there is. Who
//! is served next so that each gets the lesser of what it asks and an equal share (max-min),
//! and no permit stands idle?
//!
//! **The law.** Start-time fair queueing (Goyal, Vin, Cheng, "Start-time Fair Queuing", 1996),
//! in units of *work*, or of whatever else the class is short of (the admission controller says what a request
//! costs): every client carries a tag, the virtual time at which its next request may start.
//! Serving a request of cost `c` moves the client's tag to `max(V, tag) + c`, where `V`, the
//! queue's virtual time, is the tag of the request served last. The smallest tag goes next. A client that asks less than its share finds its tag behind `V` and is next; a client
//! that was idle gains nothing by it, because its tag is lifted to `V`.
//!
//! **Clients have two dimensions**: an address and the credential behind it. Each
//! has a tag of its own, and a flow (address, credential) is keyed by the *later* of the two:
//!
//! ```text
//! key(flow) = ( max(tag_address, tag_credential),  turn_flow )
//! ```
//!
//! Flows that share the later tag share its allotment, and are told apart by their *turn*: the
//! same fair queueing once more, among the flows of one address and of one credential.
//!
//! - One credential behind 64 addresses: its credential tag runs ahead, so all 64 together get
//!   one share.
//! - Two credentials behind one address: the address tag is common, so they take turns and
//!   split the address's share.
//! - Credentials invented anew for every request behind one address: the address tag holds
//!   them all to one address's share.
//! - One credential for the whole cluster: the credential tag is common to all, so addresses
//!   take turns: it degenerates to fairness per address.
//!
//! **Giving way.** When the queue is full, the request that would be served last makes room,
//! the newcomer included: the largest key after the flow's whole backlog (longest queue drop,
//! in units of work). But a flow that stands on few of the places, by address and by credential, gives way only
//! where no flow stands on more: a sixteenth of them are few. Places are not work. A client's one request of
//! 250 ms ends later, at that client's share, than a whole line of another's requests of 5 ms; if it gave way to these
//! whenever the line is full, a client that rarely asks for dear work would get nothing beside one that floods with
//! cheap work. The client that floods loses nothing by it: it is served at its share as long as it has one request in
//! line.
//!
//! **Within a flow** the oldest goes first while the flow is healthy. Once its oldest has
//! waited more than three quarters of its time, or half of what clients of this class turn out to
//! wait before they leave, the flow is overloaded by its own doing and the newest goes first:
//! the old ones' clients are about to leave, and work done for them would be wasted. (Not sooner: a
//! client that keeps a few requests under way is never without one that waits, and would lose its oldest
//! although in turn all of them are served in time.) Patience
//! is learnt from the clients that leave, the queue or while their requests are under way, by their whole wait;
//! short waits weigh more, and it is forgotten after a minute in which no client left.
//!
//! **A queue is as long as can be served in that time.** Where two hundred clients of one request each want three times
//! what there is, a longer one serves everybody just as its client leaves. So once ten have left, and one in twenty,
//! before their turn, for a minute at most as many wait as half of their patience is enough for, at the pace at which
//! they are served; the last gives way at once. A patience of less than half of what the class lets wait counts as
//! half: clients that left do not speak for those that stay. Where they wait nearly as long as the class lets them, it
//! is three quarters, so that a burst may be served. Nor is it so where a class has a rate: there it is the line that
//! was promised (a submission waits for minutes), and few a second are served.
//!
//! **Cost.** Whose turn it is depends on every flow that waits, so each decision looks at all of them
//! once. A `Line` therefore remembers its flow's tags, turn and backlog, and those of its address
//! and credential, as last changed; looking at one is a few comparisons.
//!
//! **A flow that weighs more goes a little ahead.** Two hundred flows of the same small weight come due at one virtual
//! time, and while they are served it stands still: a flow of three hundred times their weight, which asks for less
//! than its share, would wait for all of them (the delay bound of start-time fair queueing is one request of every
//! other flow). So of the flows that owe something, and are no more than `AHEAD_S` of work ahead of virtual time, the
//! next is the one whose request of the mean cost would *finish* first, `tag + mean / weight`. A flow that owes nothing
//! goes before them, however little it weighs. Between equal weights that changes nothing, and what was had ahead is
//! owed.
//!
//! **Weights.** A client that comes to several replicas which share one limit weighs less than 1 at each:
//! its tag moves by `c / weight`, so that all of them together give it one share.
//!
//! Memory: at most `len_max` waiters; tags are kept only for clients that wait or are in debt
//! (tag > V), at most `TAGS_MAX`; past that, clients share one overflow tag per dimension.

use crate::admission::history::Claim;
use crate::admission::table::permits;
use crate::request::client_id::ClientId;
use crate::time::Time;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The most clients whose debts are remembered apart, per dimension.
pub(crate) const TAGS_MAX: usize = 16_384;

/// Debts are looked through for those that are none any more after so many charges, where there is no room.
const PRUNE_EVERY: u32 = 1024;

/// A waiter's place, for taking it out again; never reused while the queue lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    flow: Flow,
    number: u64,
}

/// A waiting request.
#[derive(Debug)]
pub struct Waiting<W> {
    /// How to reach it.
    pub waiter: W,
    /// Its client.
    pub client: ClientId,
    /// Its route, whose learnt cost is charged when it is served.
    pub route: u16,
    /// What it was thought to cost when it joined.
    pub cost: f64,
    /// When it joined.
    pub since: Time,
    /// It must be served or refused by then.
    pub deadline: Time,
    /// Its claim to go before strangers (see [`history`](crate::admission::history)).
    pub claim: Option<Claim>,
    /// What it weighs among those in its line.
    pub weights: Weights,
}

#[cfg(test)]
impl<W> Waiting<W> {
    /// One without a past, which must be served at once.
    pub(crate) fn plain(waiter: W, client: ClientId, cost: f64, since: Time) -> Waiting<W> {
        let (claim, weights) = (None, Weights::EVEN);
        Waiting { waiter, client, route: 0, cost, since, deadline: since, claim, weights }
    }
}

/// What a flow's address and credential weigh.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Weights {
    /// Its address.
    pub address: f64,
    /// Its credential.
    pub credential: f64,
}

impl Weights {
    /// As much as any other.
    pub(crate) const EVEN: Weights = Weights { address: 1.0, credential: 1.0 };
}

/// What became of a request that wanted to join.
#[derive(Debug)]
pub enum Joined<W, P = Place> {
    /// It waits here.
    Waits(P),
    /// It waits here, and another had to give way.
    Displaced(P, Waiting<W>),
    /// The queue is full and it would be served last: it is handed back.
    Refused(Waiting<W>),
}

/// The waiters of one class.
#[derive(Debug)]
pub struct FairQueue<W> {
    /// By flow; none is empty.
    lines: Vec<FlowQueue<W>>,
    addresses: Tags,
    credentials: Tags,
    turns: Turns,
    virtual_time: f64,
    next_place: u64,
    len: u32,
    /// When the request came that found no other waiting.
    contended_since: Time,
    /// What the requests that were served cost in the mean.
    mean_cost: f64,
    patience: Patience,
    heeds_patience: bool,
    pace: Pace,
    /// Until when no more may wait than are served while clients stay.
    bounded_until: Time,
    weights: BTreeMap<u64, f64>,
}

/// The waiters of one flow, oldest first, and what its turn depends on.
#[derive(Debug)]
struct FlowQueue<W> {
    flow: Flow,
    waiters: VecDeque<(u64, Waiting<W>)>,
    /// The work of its waiters, in seconds.
    work: f64,
    /// What waits of all flows of its address, and of its credential.
    of_address: Backlog,
    of_credential: Backlog,
    /// The tags of its address and credential, without virtual time.
    tag_address: f64,
    tag_credential: f64,
    /// What its address and its credential weigh.
    weights: (f64, f64),
    /// The same without what they weigh at other replicas.
    own: Weights,
    turn: f64,
}

/// Requests that wait, and their work in seconds.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Backlog {
    places: usize,
    work: f64,
}

impl Backlog {
    fn and(self, places: usize, work: f64) -> Backlog {
        Backlog { places: self.places + places, work: self.work + work }
    }
}

impl<W> FlowQueue<W> {
    /// Its key once this much more work of its address and credential has been served.
    fn key_after(&self, virtual_time: f64, of_address: f64, of_credential: f64) -> Key {
        let address = self.tag_address.max(virtual_time) + of_address / self.weights.0;
        let credential = self.tag_credential.max(virtual_time) + of_credential / self.weights.1;
        (address.max(credential), self.turn, 0)
    }

    /// Its place in the order of service, where a request costs so much in the mean: a flow that has owed nothing for
    /// some time is next, the others by when they would finish.
    fn order_key(&self, virtual_time: f64, mean: f64) -> Key {
        let owes_nothing = self.tag_address.max(self.tag_credential) < virtual_time;
        let ahead = if owes_nothing { 0.0 } else { mean };
        let (tag, ..) = self.key_after(virtual_time, ahead, ahead);
        (tag, self.turn, self.waiters.front().map_or(0, |(number, _)| *number))
    }

    /// Where its backlog ends with so much of its address and credential, in the order in which flows give way: after
    /// all others those that stand on more than `few` places.
    fn end(&self, virtual_time: f64, few: usize, of: [Backlog; 2]) -> (bool, f64) {
        let (tag, ..) = self.key_after(virtual_time, of[0].work, of[1].work);
        (of.iter().any(|of| of.places > few), tag)
    }

    /// The number of its newest waiter.
    fn newest(&self) -> u64 {
        self.waiters.back().map_or(0, |(number, _)| *number)
    }
}

/// Work that each flow that weighs more may be ahead by, in seconds: others wait that much longer for it.
const AHEAD_S: f64 = 0.1;

/// By how much the latest request moves the mean cost.
const MEAN_WEIGHT: f64 = 1.0 / 16.0;

/// No client weighs less: its share at another replica may end at any moment.
const WEIGHT_MIN: f64 = 1.0 / 64.0;

/// No habit weighs less, however far it has faded: tags must stay finite.
const OWN_WEIGHT_MIN: f64 = 1e-9;

/// How long clients of this class wait before they leave, as far as any have left lately.
#[derive(Clone, Copy, Debug, Default)]
struct Patience {
    learnt: Option<Duration>,
    at: Time,
}

impl Patience {
    fn learn(&mut self, waited: Duration, now: Time) {
        let known = self.get(now);
        self.at = now;
        self.learnt = Some(match known {
            // Short ones weigh more: a turn within half of a short patience is in time for the others too.
            Some(known) if waited < known => (known + waited) / 2,
            Some(known) => (known * 19 + waited) / 20,
            None => waited,
        });
    }

    fn get(&self, now: Time) -> Option<Duration> {
        self.learnt.filter(|_| now.since(self.at) < PATIENCE_MEMORY)
    }
}

/// Without anyone leaving for so long, patience is no longer known.
const PATIENCE_MEMORY: Duration = Duration::from_secs(60);

/// How many are served and how many leave while somebody always waits, over the last `PACE_MEMORY` or so.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    served: f64,
    left: f64,
    at: Time,
}

impl Pace {
    fn count(&mut self, served: f64, left: f64, now: Time) {
        let faded = self.faded(now);
        *self = Pace { served: self.served * faded + served, left: self.left * faded + left, at: now };
    }

    fn faded(&self, now: Time) -> f64 {
        (-now.since(self.at).as_secs_f64() / PACE_MEMORY).exp()
    }

    /// How many are served a second, where somebody has always waited for so long.
    fn per_second(&self, contended: Duration, now: Time) -> f64 {
        let seen = PACE_MEMORY * (1.0 - (-contended.as_secs_f64() / PACE_MEMORY).exp());
        self.served * self.faded(now) / seen
    }

    /// More than a few, and more than one in twenty, did not stay for their turn.
    fn loses_many(&self) -> bool {
        self.left > f64::from(FEW) - 0.5 && self.left > LOST_MAX * (self.left + self.served)
    }
}

/// In seconds; twice what is worth waiting for where a class lets wait for a minute.
const PACE_MEMORY: f64 = 30.0;

/// So many of all may leave before their turn.
const LOST_MAX: f64 = 0.05;

/// So many say nothing, and so many may always wait.
const FEW: u32 = 10;

/// Of so many places one is few.
const FEW_OF: usize = 16;

/// A client as a key; without a credential, the address stands in for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Flow {
    address: u64,
    credential: u64,
}

impl From<ClientId> for Flow {
    fn from(client: ClientId) -> Flow {
        // The complement keeps "nothing shown" apart from a credential with the same digest.
        Flow { address: client.address, credential: client.credential.unwrap_or(!client.address) }
    }
}

/// `(later tag, turn, arrival)`: the smaller goes first. Those who owe nothing are all alike but for when
/// they came.
type Key = (f64, f64, u64);

impl<W> Default for FairQueue<W> {
    fn default() -> Self {
        FairQueue::new(true)
    }
}

impl<W> FairQueue<W> {
    /// `heeds_patience`: it is no longer than what is served while clients stay.
    pub fn new(heeds_patience: bool) -> FairQueue<W> {
        FairQueue {
            lines: Vec::new(),
            addresses: Tags::default(),
            credentials: Tags::default(),
            turns: Turns::default(),
            virtual_time: 0.0,
            next_place: 0,
            len: 0,
            contended_since: Time::ZERO,
            mean_cost: 0.0,
            patience: Patience::default(),
            heeds_patience,
            pace: Pace::default(),
            bounded_until: Time::ZERO,
            weights: BTreeMap::new(),
        }
    }

    /// Whether from now on it is no longer than what is served while clients stay.
    pub(crate) fn heed_patience(&mut self, heeds: bool) {
        self.heeds_patience = heeds;
        if !heeds {
            self.bounded_until = Time::ZERO;
        }
    }

    /// From now on these clients get so much of what any other gets; for those who come to several
    /// replicas that share one limit (`core/replicas/identities.rs`).
    pub fn weigh(&mut self, weights: &BTreeMap<u64, f64>) {
        if self.weights == *weights {
            return;
        }
        self.weights.clone_from(weights);
        for at in 0..self.lines.len() {
            let (flow, own) = (self.lines[at].flow, self.lines[at].own);
            self.lines[at].weights = self.weights_of(flow, own);
        }
    }

    /// How many wait.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no request waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For how long there has always been somebody waiting.
    pub fn contended(&self, now: Time) -> Duration {
        if self.is_empty() { Duration::ZERO } else { now.since(self.contended_since) }
    }

    /// How many of this client wait.
    pub fn waiting(&self, client: ClientId) -> usize {
        self.line(Flow::from(client)).map_or(0, |at| self.lines[at].waiters.len())
    }

    /// Whether anybody waits from this address, or with this credential.
    pub fn has(&self, client: ClientId) -> bool {
        let Flow { address, credential } = Flow::from(client);
        let is_same = |flow: &Flow| flow.address == address || flow.credential == credential;
        self.lines.iter().any(|line| is_same(&line.flow))
    }

    /// Whether anyone else waits.
    pub(crate) fn has_others(&self, client: ClientId) -> bool {
        let Flow { address, credential } = Flow::from(client);
        self.lines.iter().any(|line| line.flow.address != address && line.flow.credential != credential)
    }

    /// How many can be served before clients leave; as many as like unless many have left lately.
    fn servable(&self, request: &Waiting<W>) -> u32 {
        let now = request.since;
        if now >= self.bounded_until {
            return u32::MAX;
        }
        let Some(patience) = self.patience.get(now) else { return u32::MAX };
        let wait_max = request.deadline.since(now);
        let worth_waiting =
            if patience >= wait_max * 3 / 4 { patience * 3 / 4 } else { patience.max(wait_max / 2) / 2 };
        let contended = self.contended(now);
        if contended < worth_waiting {
            return u32::MAX;
        }
        let servable = self.pace.per_second(contended, now) * worth_waiting.as_secs_f64();
        permits(servable).max(FEW)
    }

    /// Whether one more can be served before clients leave.
    pub(crate) fn has_room(&self, request: &Waiting<W>) -> bool {
        self.len < self.servable(request)
    }

    /// Lets `request` wait, at most `len_max` in all.
    pub fn join(&mut self, request: Waiting<W>, len_max: u32) -> Joined<W> {
        let len_max = len_max.min(self.servable(&request));
        if len_max == 0 {
            return Joined::Refused(request);
        }
        if self.len < len_max {
            return Joined::Waits(self.push(request));
        }
        let newcomer = Flow::from(request.client);
        let last = self.served_last(newcomer, request.cost, request.weights);
        if last == newcomer {
            return Joined::Refused(request);
        }
        match self.pop_back(last) {
            Some(displaced) => Joined::Displaced(self.push(request), displaced),
            None => Joined::Refused(request),
        }
    }

    /// The waiter that [`FairQueue::pop`] would take.
    pub fn peek(&self, now: Time) -> Option<&Waiting<W>> {
        let waiters = &self.lines[self.next_line()?.0].waiters;
        let next = if overloaded(waiters, self.patience, now) { waiters.back() } else { waiters.front() };
        next.map(|(_, request)| request)
    }

    /// Takes the waiter that goes next and charges its client.
    pub fn pop(&mut self, now: Time) -> Option<Waiting<W>> {
        let (at, least) = self.next_line()?;
        let line = &mut self.lines[at];
        let flow = line.flow;
        let newest = overloaded(&line.waiters, self.patience, now);
        let (_, request) = if newest { line.waiters.pop_back()? } else { line.waiters.pop_front()? };
        self.len -= 1;
        self.recount(at);
        self.virtual_time = self.virtual_time.max(least);
        self.take_turn(flow, request.cost);
        self.charge(request.client, request.cost, request.weights);
        self.pace.count(1.0, 0.0, now);
        if request.cost.is_finite() {
            let weight = if self.mean_cost > 0.0 { MEAN_WEIGHT } else { 1.0 };
            self.mean_cost += weight * (request.cost - self.mean_cost);
        }
        Some(request)
    }

    /// Takes a waiter out whose client has left, and learns from how long it stayed.
    pub fn leave(&mut self, place: Place, now: Time) -> Option<Waiting<W>> {
        let gone = self.remove(place)?;
        self.patience.learn(now.since(gone.since), now);
        self.pace.count(0.0, 1.0, now);
        if self.heeds_patience && self.pace.loses_many() {
            self.bounded_until = now + PATIENCE_MEMORY;
        }
        Some(gone)
    }

    /// A client has left, after so long in all, whose request was under way.
    pub(crate) fn left_under_way(&mut self, after: Duration, now: Time) {
        self.patience.learn(after, now);
    }

    /// Takes a waiter out: its time is up.
    pub fn remove(&mut self, place: Place) -> Option<Waiting<W>> {
        let at = self.line(place.flow)?;
        let waiters = &mut self.lines[at].waiters;
        let position = waiters.binary_search_by_key(&place.number, |(number, _)| *number).ok()?;
        let (_, request) = waiters.remove(position)?;
        self.len -= 1;
        self.recount(at);
        Some(request)
    }

    /// Adds work to a client's account: what it was served, or by how much the estimate was
    /// wrong once the true cost is known (negative: it was overcharged).
    pub fn charge(&mut self, client: ClientId, work: f64, weights: Weights) {
        if !work.is_finite() {
            return;
        }
        let flow = Flow::from(client);
        let (of_address, of_credential) = self.weights_of(flow, weights);
        let address = self.addresses.charge(flow.address, work / of_address, self.virtual_time);
        let credential = self.credentials.charge(flow.credential, work / of_credential, self.virtual_time);
        for line in &mut self.lines {
            match address {
                Charged::Alone(tag) if line.flow.address == flow.address => line.tag_address = tag,
                Charged::Alone(_) => {}
                Charged::WithOthers => line.tag_address = self.addresses.get(line.flow.address),
            }
            match credential {
                Charged::Alone(tag) if line.flow.credential == flow.credential => line.tag_credential = tag,
                Charged::Alone(_) => {}
                Charged::WithOthers => line.tag_credential = self.credentials.get(line.flow.credential),
            }
        }
    }

    fn take_turn(&mut self, flow: Flow, work: f64) {
        let (start, forgotten) = self.turns.take(flow, work);
        for line in &mut self.lines {
            if forgotten || line.flow == flow {
                line.turn = self.turns.get(line.flow);
            } else if line.flow.address == flow.address || line.flow.credential == flow.credential {
                line.turn = line.turn.max(start);
            }
        }
    }

    fn weight(&self, client: u64) -> f64 {
        self.weights.get(&client).copied().unwrap_or(1.0).clamp(WEIGHT_MIN, 1.0)
    }

    /// What a flow weighs here: by its history, and where it comes to other replicas too, a part of that.
    fn weights_of(&self, flow: Flow, own: Weights) -> (f64, f64) {
        let sound = |weight: f64| if weight.is_finite() { weight.max(OWN_WEIGHT_MIN) } else { 1.0 };
        (self.weight(flow.address) * sound(own.address), self.weight(flow.credential) * sound(own.credential))
    }

    fn push(&mut self, request: Waiting<W>) -> Place {
        let flow = Flow::from(request.client);
        let own = request.weights;
        let number = self.next_place;
        self.next_place += 1;
        if self.is_empty() {
            (self.contended_since, self.pace) = (request.since, Pace::default());
        }
        let at = match self.lines.binary_search_by_key(&flow, |line| line.flow) {
            Ok(at) => at,
            Err(at) => {
                let line = self.open(flow, own);
                self.lines.insert(at, line);
                at
            }
        };
        // A habit grows and fades: the latest is the one that counts.
        (self.lines[at].own, self.lines[at].weights) = (own, self.weights_of(flow, own));
        self.lines[at].waiters.push_back((number, request));
        self.len += 1;
        self.recount(at);
        Place { flow, number }
    }

    fn pop_back(&mut self, flow: Flow) -> Option<Waiting<W>> {
        let at = self.line(flow)?;
        let (_, request) = self.lines[at].waiters.pop_back()?;
        self.len -= 1;
        self.recount(at);
        Some(request)
    }

    fn line(&self, flow: Flow) -> Option<usize> {
        self.lines.binary_search_by_key(&flow, |line| line.flow).ok()
    }

    /// The line of a flow that has no waiting request yet.
    fn open(&self, flow: Flow, own: Weights) -> FlowQueue<W> {
        FlowQueue {
            flow,
            waiters: VecDeque::new(),
            work: 0.0,
            of_address: self.backlog_of(|of| of.address == flow.address),
            of_credential: self.backlog_of(|of| of.credential == flow.credential),
            tag_address: self.addresses.get(flow.address),
            tag_credential: self.credentials.get(flow.credential),
            weights: self.weights_of(flow, own),
            own,
            turn: self.turns.get(flow),
        }
    }

    fn backlog_of(&self, is_meant: impl Fn(Flow) -> bool) -> Backlog {
        let lines = self.lines.iter().filter(|line| is_meant(line.flow));
        lines.fold(Backlog::default(), |of, line| of.and(line.waiters.len(), line.work))
    }

    /// A line has grown or shrunk: its work, and that of those who share a client with it, is counted
    /// anew (and not by what came or went, so that no rounding gathers). An empty line goes.
    fn recount(&mut self, at: usize) {
        let line = &mut self.lines[at];
        let flow = line.flow;
        line.work = line.waiters.iter().map(|(_, waiting)| waiting.cost).sum();
        if line.waiters.is_empty() {
            self.lines.remove(at);
        }
        let of_address = self.backlog_of(|of| of.address == flow.address);
        let of_credential = self.backlog_of(|of| of.credential == flow.credential);
        for line in &mut self.lines {
            if line.flow.address == flow.address {
                line.of_address = of_address;
            }
            if line.flow.credential == flow.credential {
                line.of_credential = of_credential;
            }
        }
    }

    /// The line that goes next, and where virtual time stands then.
    fn next_line(&self) -> Option<(usize, f64)> {
        let tag = |line: &FlowQueue<W>| line.key_after(self.virtual_time, 0.0, 0.0).0;
        let least = self.lines.iter().map(tag).fold(f64::INFINITY, f64::min);
        let first = |is_meant: &dyn Fn(&FlowQueue<W>) -> bool| {
            let lines = self.lines.iter().enumerate().filter(|(_, line)| is_meant(line));
            let keys = lines.map(|(at, line)| (at, line.order_key(self.virtual_time, self.mean_cost)));
            keys.min_by(|a, b| order(a.1, b.1)).map(|(at, _)| at)
        };
        let is_near = |line: &FlowQueue<W>| line.key_after(self.virtual_time, -AHEAD_S, -AHEAD_S).0 <= least;
        // The first of all is nearly always near.
        let at = first(&|_| true).filter(|at| is_near(&self.lines[*at])).or_else(|| first(&is_near))?;
        Some((at, least))
    }

    /// So many places are few: no flow gives one of them up while others stand on more.
    fn few(&self) -> usize {
        (self.len as usize).div_ceil(FEW_OF)
    }

    /// Takes out the newest waiter of the flow whose backlog ends last: others need its place.
    pub(crate) fn give_way(&mut self) -> Option<Waiting<W>> {
        let few = self.few();
        let end = |line: &FlowQueue<W>| {
            let (is_many, tag) = line.end(self.virtual_time, few, [line.of_address, line.of_credential]);
            (is_many, (tag, line.turn + line.work, line.newest()))
        };
        let last =
            self.lines.iter().map(|line| (end(line), line.flow)).max_by(|a, b| order_of_ends(a.0, b.0));
        last.and_then(|(_, flow)| self.pop_back(flow))
    }

    /// The flow whose backlog ends last, were a request of `newcomer` to join.
    fn served_last(&self, newcomer: Flow, cost: f64, own: Weights) -> Flow {
        let few = self.few();
        let joining = |of: Backlog, same: bool| if same { of.and(1, cost) } else { of };
        let end = |line: &FlowQueue<W>| {
            let of_address = joining(line.of_address, line.flow.address == newcomer.address);
            let of_credential = joining(line.of_credential, line.flow.credential == newcomer.credential);
            let (is_many, tag) = line.end(self.virtual_time, few, [of_address, of_credential]);
            let work = line.work + if line.flow == newcomer { cost } else { 0.0 };
            // Between equals, a flow that stands in line already is not sent away for a newcomer.
            (is_many, (tag, line.turn + work, 0))
        };
        let of_newcomer = match self.line(newcomer) {
            Some(at) => end(&self.lines[at]),
            None => end(&self.open(newcomer, own)),
        };
        let last =
            self.lines.iter().map(|line| (end(line), line.flow)).max_by(|a, b| order_of_ends(a.0, b.0));
        match last {
            Some((of_longest, flow)) if order_of_ends(of_longest, of_newcomer).is_gt() => flow,
            _ => newcomer,
        }
    }
}

/// Whether a flow's oldest has waited too long for its turn to be worth waiting for.
fn overloaded<W>(queue: &VecDeque<(u64, Waiting<W>)>, patience: Patience, now: Time) -> bool {
    queue.front().is_some_and(|(_, oldest)| {
        let of_deadline = oldest.deadline.since(oldest.since) * 3 / 4;
        let of_patience = patience.get(now).map_or(Duration::MAX, |patience| patience / 2);
        now.since(oldest.since) > of_deadline.min(of_patience)
    })
}

fn order(a: Key, b: Key) -> std::cmp::Ordering {
    a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2))
}

fn order_of_ends(a: (bool, Key), b: (bool, Key)) -> std::cmp::Ordering {
    a.0.cmp(&b.0).then(order(a.1, b.1))
}

/// What a charge has changed.
#[derive(Clone, Copy, Debug)]
enum Charged {
    /// The tag of the client that was charged, to this.
    Alone(f64),
    /// Perhaps those of all who share the overflow, too.
    WithOthers,
}

/// Tags against the queue's virtual time: only debts (tags ahead of it) are kept.
#[derive(Debug, Default)]
struct Tags {
    ahead: BTreeMap<u64, f64>,
    overflow: f64,
    pruned_at: f64,
    since_pruned: u32,
}

impl Tags {
    /// The client's tag; one that owes nothing has none, and stands where virtual time does.
    fn get(&self, client: u64) -> f64 {
        match self.ahead.get(&client) {
            Some(tag) => *tag,
            None if self.is_full() => self.overflow,
            None => f64::NEG_INFINITY,
        }
    }

    fn is_full(&self) -> bool {
        self.ahead.len() >= TAGS_MAX
    }

    fn charge(&mut self, client: u64, work: f64, virtual_time: f64) -> Charged {
        let was_full = self.is_full();
        self.since_pruned = self.since_pruned.saturating_add(1);
        if was_full && self.pruned_at < virtual_time && self.since_pruned >= PRUNE_EVERY {
            // Debts that virtual time has caught up with are no debts: nothing is forgotten.
            self.ahead.retain(|_, tag| *tag > virtual_time);
            (self.pruned_at, self.since_pruned) = (virtual_time, 0);
        }
        if self.is_full() && !self.ahead.contains_key(&client) {
            self.overflow = self.overflow.max(virtual_time) + work;
            return Charged::WithOthers;
        }
        let tag = self.ahead.entry(client).or_insert(virtual_time);
        *tag = tag.max(virtual_time) + work;
        let tag = *tag;
        if was_full || self.is_full() { Charged::WithOthers } else { Charged::Alone(tag) }
    }
}

/// Whose turn it is among flows of one address, and among flows of one credential. It breaks
/// ties only, so forgetting it (when it outgrows [`TAGS_MAX`]) forgives no debt.
#[derive(Debug, Default)]
struct Turns {
    flows: BTreeMap<Flow, f64>,
    of_address: BTreeMap<u64, f64>,
    of_credential: BTreeMap<u64, f64>,
}

impl Turns {
    fn get(&self, flow: Flow) -> f64 {
        let own = self.flows.get(&flow).copied().unwrap_or(0.0);
        let address = self.of_address.get(&flow.address).copied().unwrap_or(0.0);
        let credential = self.of_credential.get(&flow.credential).copied().unwrap_or(0.0);
        own.max(address).max(credential)
    }

    /// Takes a turn; says when it starts, which no turn of its address or credential may come
    /// before, and whether all that were taken have been forgotten first.
    fn take(&mut self, flow: Flow, work: f64) -> (f64, bool) {
        let forgotten = self.flows.len() >= TAGS_MAX;
        if forgotten {
            *self = Turns::default();
        }
        let start = self.get(flow);
        self.of_address.insert(flow.address, start);
        self.of_credential.insert(flow.credential, start);
        self.flows.insert(flow, start + work);
        (start, forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(address: u64, credential: Option<u64>) -> ClientId {
        ClientId { address, credential }
    }

    fn ask(client: ClientId, cost: f64) -> Waiting<ClientId> {
        let deadline = Time::ZERO + Duration::from_secs(1000);
        Waiting { deadline, ..Waiting::plain(client, client, cost, Time::ZERO) }
    }

    /// Serves `rounds` requests while every client in `asking` always has one more waiting.
    fn serve(asking: &[(ClientId, f64)], rounds: usize) -> BTreeMap<(u64, Option<u64>), f64> {
        let mut queue = FairQueue::default();
        let mut work = BTreeMap::new();
        for _ in 0..rounds {
            for (who, cost) in asking {
                while queue.waiting(*who) < 2 {
                    queue.join(ask(*who, *cost), 10_000);
                }
            }
            let served = queue.pop(Time::ZERO).unwrap();
            *work.entry((served.client.address, served.client.credential)).or_insert(0.0) += served.cost;
        }
        work
    }

    fn share(work: &BTreeMap<(u64, Option<u64>), f64>, of: impl Fn(&(u64, Option<u64>)) -> bool) -> f64 {
        let all: f64 = work.values().sum();
        work.iter().filter(|(who, _)| of(who)).map(|(_, work)| work).sum::<f64>() / all
    }

    #[test]
    fn equal_clients_get_equal_work_whatever_their_requests_cost() {
        let work = serve(&[(client(1, None), 0.005), (client(2, None), 0.25)], 4000);
        assert!((share(&work, |who| who.0 == 1) - 0.5).abs() < 0.02);
    }

    #[test]
    fn a_client_that_weighs_a_third_gets_a_third_of_what_the_others_get() {
        let asking = [client(1, None), client(2, Some(7)), client(3, None)].map(|client| (client, 0.01));
        for weighed in [1, 7] {
            let mut queue = FairQueue::default();
            queue.weigh(&BTreeMap::from([(weighed, 1.0 / 3.0)]));
            let mut served = BTreeMap::new();
            for _ in 0..4_000 {
                for (who, cost) in asking {
                    while queue.waiting(who) < 2 {
                        queue.join(ask(who, cost), 10_000);
                    }
                }
                *served.entry(queue.pop(Time::ZERO).unwrap().client.address).or_insert(0.0) += 1.0;
            }
            let light: u64 = if weighed == 1 { 1 } else { 2 };
            assert!((served[&light] / 4_000.0_f64 - 1.0 / 7.0).abs() < 0.01, "{served:?}");
        }
    }

    #[test]
    fn one_token_behind_many_addresses_is_one_client() {
        let mut asking: Vec<_> = (0..64).map(|address| (client(address, Some(7)), 0.005)).collect();
        asking.push((client(100, Some(8)), 0.005));
        let work = serve(&asking, 4000);
        assert!((share(&work, |who| who.0 == 100) - 0.5).abs() < 0.02, "{work:?}");
    }

    #[test]
    fn two_tokens_behind_one_address_split_its_share() {
        let asking = [(client(1, Some(7)), 0.005), (client(1, Some(8)), 0.005), (client(2, Some(9)), 0.005)];
        let work = serve(&asking, 4000);
        assert!((share(&work, |who| who.0 == 2) - 0.5).abs() < 0.02, "{work:?}");
        assert!((share(&work, |who| who.1 == Some(7)) - 0.25).abs() < 0.02, "{work:?}");
    }

    #[test]
    fn invented_tokens_behind_one_address_gain_nothing() {
        let mut asking: Vec<_> = (0..200).map(|token| (client(1, Some(token)), 0.005)).collect();
        asking.push((client(2, Some(999)), 0.005));
        let work = serve(&asking, 4000);
        assert!((share(&work, |who| who.0 == 2) - 0.5).abs() < 0.03, "{work:?}");
    }

    #[test]
    fn a_token_the_whole_cluster_shares_degenerates_to_per_address() {
        let asking: Vec<_> = (0..4).map(|address| (client(address, Some(7)), 0.005)).collect();
        let work = serve(&asking, 4000);
        for address in 0..4 {
            assert!((share(&work, |who| who.0 == address) - 0.25).abs() < 0.02, "{work:?}");
        }
    }

    #[test]
    fn the_greedy_give_way_when_the_queue_is_full() {
        let mut queue = FairQueue::default();
        for _ in 0..20 {
            queue.join(ask(client(1, None), 1.0), 8);
        }
        assert_eq!(queue.len(), 8);
        match queue.join(ask(client(2, None), 1.0), 8) {
            Joined::Displaced(_, displaced) => assert_eq!(displaced.client, client(1, None)),
            other => panic!("{other:?}"),
        }
        assert_eq!(queue.pop(Time::ZERO).unwrap().client, client(1, None), "served in turn: tags are equal");
        assert_eq!(queue.pop(Time::ZERO).unwrap().client, client(2, None));
    }

    #[test]
    fn who_asks_for_one_dear_thing_does_not_give_way_to_one_that_floods_with_cheap_ones() {
        for owes in [0.0, 0.25] {
            let mut queue = FairQueue::default();
            queue.charge(client(2, None), owes, Weights::EVEN);
            for _ in 0..64 {
                queue.join(ask(client(1, None), 0.001), 64);
            }
            for _ in 0..2 {
                match queue.join(ask(client(2, None), 0.25), 64) {
                    Joined::Displaced(_, displaced) => assert_eq!(displaced.client, client(1, None)),
                    other => panic!("{other:?}"),
                }
            }
            assert!(matches!(queue.join(ask(client(1, None), 0.001), 64), Joined::Refused(_)));
            assert_eq!(queue.give_way().map(|gone| gone.client), Some(client(1, None)));
        }
    }

    #[test]
    fn dear_ones_beyond_a_few_give_way_as_before() {
        let mut queue = FairQueue::default();
        for _ in 0..60 {
            queue.join(ask(client(1, None), 0.001), 64);
        }
        for _ in 0..10 {
            queue.join(ask(client(2, None), 0.25), 64);
        }
        assert_eq!((queue.waiting(client(1, None)), queue.waiting(client(2, None))), (60, 4));
        // Many addresses with one credential are one client.
        for address in 0..10 {
            queue.join(ask(client(100 + address, Some(7)), 0.25), 64);
        }
        let of_credential: usize = (0..10).map(|n| queue.waiting(client(100 + n, Some(7)))).sum();
        assert_eq!((of_credential, queue.waiting(client(1, None))), (4, 56));
    }

    #[test]
    fn behind_one_address_the_greedy_credential_gives_way() {
        let mut queue = FairQueue::default();
        for _ in 0..8 {
            queue.join(ask(client(1, Some(1)), 1.0), 8);
        }
        match queue.join(ask(client(1, Some(2)), 1.0), 8) {
            Joined::Displaced(_, displaced) => assert_eq!(displaced.client.credential, Some(1)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_overloaded_flow_serves_its_newest_first() {
        let mut queue = FairQueue::default();
        let mut early = ask(client(1, None), 1.0);
        early.deadline = Time::from_secs_f64(2.0);
        queue.join(early, 8);
        let mut late = ask(client(1, None), 1.0);
        late.since = Time::from_secs_f64(1.4);
        late.deadline = Time::from_secs_f64(3.4);
        queue.join(late, 8);
        assert_eq!(queue.peek(Time::from_secs_f64(1.45)).unwrap().since, Time::ZERO, "it is in time yet");
        assert_eq!(queue.pop(Time::from_secs_f64(1.55)).unwrap().since, Time::from_secs_f64(1.4));
    }

    #[test]
    fn a_client_that_keeps_three_under_way_loses_none_of_them() {
        // One at a time, 0.3 s each, a wait of 2 s: in turn each waits 0.6 s, and there is always one that waits.
        let mut queue = FairQueue::default();
        let mut in_turn = VecDeque::new();
        for served in 0..100_u32 {
            let now = Time::from_secs_f64(f64::from(served) * 0.3);
            while queue.len < 3 {
                let deadline = now + Duration::from_secs(2);
                queue.join(Waiting { since: now, deadline, ..ask(client(1, None), 1.0) }, 8);
                in_turn.push_back(now);
            }
            assert_eq!(Some(queue.pop(now).unwrap().since), in_turn.pop_front());
        }
    }

    #[test]
    fn clients_that_leave_early_are_not_served_just_as_they_leave() {
        let mut queue = FairQueue::default();
        let wait = |since: f64| Waiting { since: Time::from_secs_f64(since), ..ask(client(1, None), 1.0) };
        let Joined::Waits(place) = queue.join(wait(0.0), 8) else { panic!("room") };
        queue.leave(place, Time::from_secs_f64(1.0));
        queue.join(wait(1.0), 8);
        queue.join(wait(1.6), 8);
        let next = queue.peek(Time::from_secs_f64(1.7)).unwrap();
        assert_eq!(
            next.since,
            Time::from_secs_f64(1.6),
            "patience is 1 s: after half of it the newest goes first"
        );
        let later = queue.peek(Time::from_secs_f64(100.0)).unwrap();
        assert_eq!(later.since, Time::from_secs_f64(1.0), "patience is forgotten, and the deadline is far");
    }

    #[test]
    fn clients_that_leave_while_their_requests_are_under_way_tell_how_long_they_wait_too() {
        let mut queue = FairQueue::default();
        let wait = |since: f64| Waiting { since: Time::from_secs_f64(since), ..ask(client(1, None), 1.0) };
        queue.join(wait(1.0), 8);
        queue.join(wait(1.6), 8);
        let next =
            |queue: &FairQueue<_>| queue.peek(Time::from_secs_f64(1.7)).map(|next: &Waiting<_>| next.since);
        assert_eq!(next(&queue), Some(Time::from_secs_f64(1.0)), "no client has left yet");
        queue.left_under_way(Duration::from_secs(1), Time::from_secs_f64(1.0));
        assert_eq!(next(&queue), Some(Time::from_secs_f64(1.6)), "they wait for a second");
    }

    /// Each of these asks this often a second and leaves after a second, of a queue of 128 that serves 140 a second:
    /// how often each was served, and how long those who were had waited.
    fn overload(asking: &[(ClientId, f64)], seconds: u64) -> (BTreeMap<Flow, u32>, Vec<f64>) {
        let (mut queue, mut served, mut waits) = (FairQueue::default(), BTreeMap::new(), Vec::new());
        let mut stay: VecDeque<(Time, Place)> = VecDeque::new();
        // Their first requests are spread over the time between two of them.
        let mut next: Vec<f64> =
            asking.iter().enumerate().map(|(n, (_, rate))| n as f64 * 0.618 % 1.0 / rate).collect();
        for at in (0..seconds * 1000).map(|ms| Time::from_secs_f64(ms as f64 / 1e3)) {
            while stay.front().is_some_and(|(until, _)| *until <= at) {
                let place = stay.pop_front().unwrap().1;
                queue.leave(place, at);
            }
            for (next, (who, rate)) in
                next.iter_mut().zip(asking).filter(|(next, _)| **next <= at.as_secs_f64())
            {
                *next += 1.0 / rate;
                let request =
                    Waiting { since: at, deadline: at + Duration::from_millis(1500), ..ask(*who, 0.005) };
                if let Joined::Waits(place) | Joined::Displaced(place, _) = queue.join(request, 128) {
                    stay.push_back((at + Duration::from_secs(1), place));
                }
            }
            if at.since(Time::ZERO).as_millis() % 7 == 0
                && let Some(request) = queue.pop(at)
            {
                *served.entry(Flow::from(request.client)).or_insert(0) += 1;
                waits.push(at.since(request.since).as_secs_f64());
            }
        }
        waits.sort_by(f64::total_cmp);
        (served, waits)
    }

    #[test]
    fn clients_of_one_request_each_are_not_all_served_too_late() {
        let asking: Vec<_> = (0..200).map(|address| (client(address, None), 3.0)).collect();
        let (served, waits) = overload(&asking, 60);
        let late = waits.iter().filter(|wait| **wait > 0.8).count();
        assert!(late * 20 < waits.len(), "{late} of {} just before their clients leave", waits.len());
        let shares = || served.values().map(|n| f64::from(*n) * 200.0 / waits.len() as f64);
        assert!(served.len() == 200 && shares().all(|share| (0.7..1.4).contains(&share)), "{served:?}");
    }

    #[test]
    fn who_weighs_more_does_not_wait_until_all_of_little_weight_had_their_turn() {
        let mut queue = FairQueue::default();
        let of = |address: u64, weight: f64| Waiting {
            weights: Weights { address: weight, credential: weight },
            ..ask(client(address, None), 0.005)
        };
        for light in 0..200 {
            queue.join(of(light, 0.6), 1000);
        }
        let (mut since, mut longest, mut served, mut asked) = (BTreeMap::new(), 0, 0, 0);
        for turn in 0..2000 {
            // Ten ask for three in ten, where they weigh six tenths of all.
            if turn % 10 < 3 {
                let who = 1000 + asked % 10;
                asked += 1;
                queue.join(of(who, 18.0), 1000);
                since.entry(who).or_insert_with(VecDeque::new).push_back(turn);
            }
            let next = queue.pop(Time::ZERO).unwrap().client.address;
            if let Some(since) = since.get_mut(&next) {
                let waited = turn - since.pop_front().unwrap();
                // At first no flow owes anything, and all are alike.
                longest = longest.max(if turn > 400 { waited } else { 0 });
                served += 1;
            } else {
                queue.join(of(next, 0.6), 1000);
            }
        }
        assert!(served >= 590, "{served} of 600");
        assert!(longest < 100, "one waited for {longest} others");
    }

    #[test]
    fn a_few_who_leave_do_not_speak_for_those_who_stay() {
        for (leavers, heeds_patience, room) in [(9, true, true), (20, true, false), (20, false, true)] {
            let mut queue = FairQueue::new(heeds_patience);
            let wait = |address: u64, since: f64| Waiting {
                since: Time::from_secs_f64(since),
                deadline: Time::from_secs_f64(since + 2.0),
                ..ask(client(address, None), 1.0)
            };
            for address in 0..leavers {
                let Joined::Waits(place) = queue.join(wait(address, 0.0), 100) else { panic!("room") };
                if address > 0 {
                    queue.leave(place, Time::from_secs_f64(0.5));
                }
            }
            // Two a second are served of those who came since.
            for n in 0..8 {
                queue.join(wait(100 + n, 0.6), 100);
            }
            for n in 0..8 {
                queue.pop(Time::from_secs_f64(1.0 + f64::from(n) / 2.0));
            }
            for n in 0..12 {
                queue.join(wait(200 + n, 5.0), 100);
            }
            assert_eq!(queue.has_room(&wait(300, 5.1)), room, "{leavers} {heeds_patience}");
        }
    }

    #[test]
    fn ten_thousand_clients_in_debt_take_bounded_memory() {
        let mut queue = FairQueue::<ClientId>::default();
        for address in 0..100_000 {
            queue.charge(client(address, Some(address)), 1.0, Weights::EVEN);
        }
        assert!(queue.addresses.ahead.len() <= TAGS_MAX && queue.credentials.ahead.len() <= TAGS_MAX);
        assert!((queue.addresses.get(0) - 1.0).abs() < 1e-9, "an early debtor is not forgotten");
    }

    proptest! {
        #[test]
        fn a_request_that_joined_is_served_removed_displaced_or_still_waiting(
            steps in prop::collection::vec((0u8..4, 0u64..5, prop::option::of(0u64..4), 0.001..1.0f64), 1..300),
            len_max in 1u32..20,
        ) {
            let mut queue = FairQueue::default();
            let (mut joined, mut gone) = (0u32, 0u32);
            let mut places = Vec::new();
            for (step, address, credential, cost) in steps {
                match step {
                    0 | 1 => match queue.join(ask(client(address, credential), cost), len_max) {
                        Joined::Waits(place) => { joined += 1; places.push(place); }
                        Joined::Displaced(place, _) => { joined += 1; gone += 1; places.push(place); }
                        Joined::Refused(_) => prop_assert_eq!(queue.len(), len_max),
                    },
                    2 => gone += u32::from(queue.pop(Time::ZERO).is_some()),
                    _ => if let Some(place) = places.pop() { gone += u32::from(queue.remove(place).is_some()); },
                }
                prop_assert_eq!(queue.len(), joined - gone);
                prop_assert!(queue.len() <= len_max);
                prop_assert_eq!(queue.lines.iter().map(|line| line.waiters.len()).sum::<usize>(), queue.len() as usize);
                prop_assert!(queue.lines.is_sorted_by(|a, b| a.flow < b.flow));
                for line in &queue.lines {
                    // What a line remembers is what there is.
                    let anew = queue.open(line.flow, line.own);
                    let seen = |line: &FlowQueue<ClientId>| {
                        [line.of_address.work, line.of_credential.work, line.tag_address, line.tag_credential, line.turn]
                            .map(f64::to_bits)
                    };
                    prop_assert_eq!(seen(line), seen(&anew));
                }
            }
        }
    }
}
