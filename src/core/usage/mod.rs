//! Who asks for what, how often, and at what cost?
//!
//! Two questions of an operator's are answered from here. At three in the morning: *who is it?*
//! That is [`Usage::clients`], the heaviest clients of the last minutes, class by class. In the
//! week before limits are enforced: *what is being asked, and what of it does no class cover?*
//! That is [`Usage::routes`], everything since the start, the unlisted by folded path
//! ([`path_template`]).
//!
//! **Memory is bounded, whichever clients ask.** Both tables are Space-Saving summaries (`summary.rs`): a
//! stranger takes the place of the row that weighs least and inherits that weight as its possible
//! error, so that a row with more than 1/[`CLIENTS_MAX`] of all weight is certainly listed. A client weighs what
//! it cost Ray, how often it asked, and how long it kept others waiting (`Client::weight`): ten thousand strangers who
//! are refused do not hide a user who is served.
//! An address that brings ever new credentials is folded after `CREDENTIALS_MAX` of them, or
//! it would hide behind its own inventions.
//!
//! **What is kept of a client** is what the admission controller knows it by: two keyed digests, and the address
//! it was last seen at. No header, no credential, no name. Nothing here is ever a metric's label.

pub mod path_template;
pub(crate) mod summary;

use crate::admission::ask::Ask;
use crate::admission::cost::of_template;
use crate::policy::ClassId;
use crate::request::catalogue::Surface;
use crate::request::classify::RouteId;
use crate::request::client_id::ClientId;
use crate::time::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use summary::Summary;

/// Rows of (client, route) kept per window.
pub const CLIENTS_MAX: usize = 512;

/// Credentials told apart behind one address, per window.
pub(crate) const CREDENTIALS_MAX: usize = 8;

/// Unlisted paths kept apart.
pub(crate) const PATTERNS_MAX: usize = 256;

/// Clients are counted over this and the `WINDOWS` - 1 windows before.
pub const WINDOW: Duration = Duration::from_secs(60);

/// A request weighs as much as this of Ray's time.
const KNOCK: Duration = Duration::from_millis(10);

/// So many seconds in which an answer or Ray is kept waiting weigh one of Ray's time.
const KEPT: u32 = 10;

/// How many windows are kept.
pub(crate) const WINDOWS: usize = 5;

/// What became of a request at the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Sent on.
    Admitted,
    /// Sent on, and would have been refused were its class not in shadow mode.
    WouldShed,
    /// Refused.
    Shed,
    /// Not sent, because Ray accepts no connections.
    Unreachable,
    /// Answered with what another client got; Ray saw nothing of it.
    Shared,
}

/// A request at the proxy.
#[derive(Clone, Copy, Debug)]
pub struct RequestSummary<'a> {
    /// Class, route and client.
    pub ask: Ask,
    /// Where the client calls from.
    pub address: IpAddr,
    /// The route's pattern, or the folded path of what no route knows.
    pub pattern: &'a Arc<str>,
    /// For what no route knows: its pattern's key.
    pub unlisted: Option<&'a Unlisted>,
    /// Requests of its class under way.
    pub in_flight: u32,
}

/// A request that no route knows: where, how and for what it was asked.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Unlisted {
    /// On which listener.
    pub surface: Surface,
    /// With which method; invented ones are one.
    pub method: &'static str,
    /// The folded path.
    pub pattern: Arc<str>,
}

impl Unlisted {
    /// Folded for counting.
    pub fn new(surface: Surface, method: &str, path: &str) -> Unlisted {
        let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        let method = known.into_iter().find(|known| *known == method).unwrap_or("?");
        Unlisted { surface, method, pattern: path_template::template(path) }
    }

    /// By what its cost is known; `listener` is the listener's own route.
    pub fn cost_key(&self, listener: RouteId) -> u16 {
        of_template(listener.0, self.method, &self.pattern)
    }
}

/// What was asked, and what became of it.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// Requests.
    pub asked: u64,
    /// Sent on to Ray.
    pub admitted: u64,
    /// Refused.
    pub shed: u64,
    /// Failed: Ray could not be reached, answered 500 or above, took too long, or broke off. Those that were
    /// sent to Ray are among `admitted`.
    #[serde(default)]
    pub failed: u64,
    /// Sent on, and would have been refused were the class not in shadow mode.
    pub would_shed: u64,
    /// Answered with another client's answer.
    pub shared: u64,
    /// Left while they waited, before they were decided on.
    #[serde(default)]
    pub left: u64,
    /// Seconds of Ray's time, as learnt.
    pub work_s: f64,
}

impl Counts {
    fn note(&mut self, verdict: Verdict) {
        self.asked += 1;
        match verdict {
            Verdict::Admitted => self.admitted += 1,
            Verdict::WouldShed => {
                self.admitted += 1;
                self.would_shed += 1;
            }
            Verdict::Shed => self.shed += 1,
            Verdict::Unreachable => self.failed += 1,
            Verdict::Shared => self.shared += 1,
        }
    }

    fn add(&mut self, other: &Counts) {
        self.asked += other.asked;
        self.admitted += other.admitted;
        self.shed += other.shed;
        self.failed += other.failed;
        self.would_shed += other.would_shed;
        self.shared += other.shared;
        self.left += other.left;
        self.work_s += other.work_s;
    }
}

/// What came in on one route, or in one class, since the start.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Traffic {
    /// What was asked.
    pub counts: Counts,
    /// The most requests in one second.
    pub busiest_second: u64,
    /// The most in one minute.
    pub busiest_minute: u64,
    /// The most under way at once when one came.
    pub in_flight_peak: u32,
    second: (u64, u64),
    minute: (u64, u64),
    crowd: Crowd,
}

impl Traffic {
    fn note(&mut self, summary: &RequestSummary, verdict: Verdict, now: Time) {
        self.counts.note(verdict);
        let second = now.0 / 1_000_000_000;
        self.busiest_second = self.busiest_second.max(one_more(&mut self.second, second));
        self.busiest_minute = self.busiest_minute.max(one_more(&mut self.minute, second / 60));
        self.in_flight_peak = self.in_flight_peak.max(summary.in_flight);
        self.crowd.see(summary.ask.client.address);
    }

    /// About how many different addresses asked.
    pub fn clients(&self) -> u32 {
        self.crowd.size()
    }
}

/// Counts one more in a slice of time; a new slice begins at one.
fn one_more(slice: &mut (u64, u64), at: u64) -> u64 {
    *slice = if slice.0 == at { (at, slice.1 + 1) } else { (at, 1) };
    slice.1
}

/// How many different ones were seen: linear counting (Whang, Vander-Zanden, Taylor, 1990) in
/// 512 bits; within a tenth up to about 500, and full at 3,000 or so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Crowd([u64; 8]);

impl Crowd {
    pub(crate) fn see(&mut self, digest: u64) {
        let bit = digest % 512;
        if let Some(word) = self.0.get_mut(usize::try_from(bit / 64).unwrap_or(0)) {
            *word |= 1 << (bit % 64);
        }
    }

    pub(crate) fn size(self) -> u32 {
        let empty = self.0.iter().map(|word| word.count_zeros()).sum::<u32>().max(1);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 3,194")]
        let size = (512.0 * (512.0 / f64::from(empty)).ln()).round() as u32;
        size
    }
}

/// One client and route in one window.
#[derive(Clone, PartialEq, Debug)]
struct Visit {
    class: ClassId,
    pattern: Arc<str>,
    address: Option<IpAddr>,
    counts: Counts,
    kept: Duration,
}

impl Default for Visit {
    fn default() -> Visit {
        Visit {
            class: ClassId(0),
            pattern: "".into(),
            address: None,
            counts: Counts::default(),
            kept: Duration::ZERO,
        }
    }
}

/// The client as the tables know it: address, credential, route.
type Key = (u64, Credential, u16);

/// Behind which credential.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Credential {
    /// None was shown.
    None,
    /// The digest of one.
    One(u64),
    /// One of more than are told apart.
    Many,
}

impl Credential {
    /// The credential with this digest, or `Many` where its address has shown [`CREDENTIALS_MAX`] others
    /// already: those `shown`, in order, each perhaps more than once. Without a digest, `shown` is not called.
    pub(crate) fn told_apart<I: Iterator<Item = Credential>>(
        digest: Option<u64>,
        shown: impl FnOnce() -> I,
    ) -> Credential {
        let Some(digest) = digest else { return Credential::None };
        let credential = Credential::One(digest);
        let mut apart = 0;
        let mut last = Credential::None;
        for seen in shown() {
            if seen == credential {
                return credential;
            }
            if seen != last {
                (apart, last) = (apart + 1, seen);
            }
        }
        if apart < CREDENTIALS_MAX { credential } else { Credential::Many }
    }
}

/// One client of the last minutes.
#[derive(Clone, PartialEq, Debug)]
pub struct Client {
    /// Digest of its address, as in the adjustment log.
    pub address: u64,
    /// Digest of its credential.
    pub credential: Credential,
    /// Where it was last seen.
    pub last_seen_at: Option<IpAddr>,
    /// Addresses on which the same credential was seen, this one included; 0 without one.
    pub credential_addresses: u32,
    /// Everything it asked.
    pub counts: Counts,
    /// How long its requests and answers have waited for its own line, taken together.
    pub kept: Duration,
    /// By class, most asked first, with the routes of each.
    pub classes: Vec<(ClassId, Counts, Vec<Arc<str>>)>,
}

/// One route since the start.
#[derive(Clone, PartialEq, Debug)]
pub struct Route {
    /// For what no route knows: on which listener, and with which method.
    pub unlisted: Option<(Surface, &'static str)>,
    /// Its pattern.
    pub pattern: Arc<str>,
    /// Its class.
    pub class: ClassId,
    /// What came.
    pub traffic: Traffic,
}

#[derive(Debug)]
struct Asked {
    pattern: Arc<str>,
    class: ClassId,
    traffic: Traffic,
}

impl Default for Asked {
    fn default() -> Asked {
        Asked { pattern: "".into(), class: ClassId(0), traffic: Traffic::default() }
    }
}

/// Who asks for what.
#[derive(Debug)]
pub struct Usage {
    began: Time,
    classes: Vec<Traffic>,
    listed: BTreeMap<u16, Asked>,
    unlisted: Summary<Unlisted, Asked>,
    windows: VecDeque<(Time, Summary<Key, Visit>)>,
}

impl Usage {
    /// Nothing seen yet, of so many classes.
    pub fn new(classes: usize, now: Time) -> Usage {
        Usage {
            began: now,
            classes: vec![Traffic::default(); classes],
            listed: BTreeMap::new(),
            unlisted: Summary::new(PATTERNS_MAX),
            windows: VecDeque::new(),
        }
    }

    /// Since when it counts.
    pub fn began(&self) -> Time {
        self.began
    }

    /// A request was decided on.
    pub fn note(&mut self, summary: &RequestSummary, verdict: Verdict, now: Time) {
        let ask = summary.ask;
        if let Some(class) = self.classes.get_mut(ask.class.index()) {
            class.note(summary, verdict, now);
        }
        if let Some(unlisted) = summary.unlisted {
            let entry = self.unlisted.of(unlisted.clone(), 1);
            entry.class = ask.class;
            entry.traffic.note(summary, verdict, now);
        } else {
            let fresh = || Asked {
                pattern: Arc::clone(summary.pattern),
                class: ask.class,
                traffic: Traffic::default(),
            };
            let listed = self.listed.entry(ask.route).or_insert_with(fresh);
            if listed.pattern != *summary.pattern || listed.class != ask.class {
                *listed = fresh(); // a reload gave the number to another route
            }
            listed.traffic.note(summary, verdict, now);
        }
        let visit = self.visit(ask, KNOCK, now);
        visit.class = ask.class;
        visit.address = Some(summary.address);
        if visit.pattern != *summary.pattern {
            visit.pattern = Arc::clone(summary.pattern);
        }
        visit.counts.note(verdict);
    }

    /// A request that was sent on has been answered, and cost so much of Ray's time.
    pub fn charge(&mut self, ask: Ask, unlisted: Option<&Unlisted>, work: Duration, now: Time) {
        let work_s = work.as_secs_f64();
        self.traffic_of(ask, unlisted).for_each(|traffic| traffic.counts.work_s += work_s);
        let visit = self.visit(ask, work, now);
        visit.class = ask.class;
        visit.counts.work_s += work_s;
    }

    /// A request that was sent on has failed.
    pub fn fail(&mut self, ask: Ask, unlisted: Option<&Unlisted>, now: Time) {
        self.traffic_of(ask, unlisted).for_each(|traffic| traffic.counts.failed += 1);
        self.visit(ask, Duration::ZERO, now).counts.failed += 1;
    }

    /// Where a request was counted that has been noted before: under its class, and its route or pattern.
    fn traffic_of(&mut self, ask: Ask, unlisted: Option<&Unlisted>) -> impl Iterator<Item = &mut Traffic> {
        let pattern = unlisted.and_then(|key| self.unlisted.get_mut(key));
        let asked = [pattern, self.listed.get_mut(&ask.route)];
        let asked = asked.into_iter().flatten().map(|asked| &mut asked.traffic);
        asked.chain(self.classes.get_mut(ask.class.index()))
    }

    /// The client of a request that waited has left.
    pub fn leave(&mut self, ask: Ask, now: Time) {
        let visit = self.visit(ask, KNOCK, now);
        visit.class = ask.class;
        visit.counts.asked += 1;
        visit.counts.left += 1;
    }

    /// An exchange has waited for its client's line for so long.
    pub fn keep(&mut self, ask: Ask, kept: Duration, now: Time) {
        self.visit(ask, kept / KEPT, now).kept += kept;
    }

    /// What a class was asked since the start.
    pub fn class(&self, id: ClassId) -> Option<&Traffic> {
        self.classes.get(id.index())
    }

    /// Every route that was asked since the start, most asked first.
    pub fn routes(&self) -> Vec<Route> {
        let listed = self.listed.values().map(|listed| Route {
            unlisted: None,
            pattern: Arc::clone(&listed.pattern),
            class: listed.class,
            traffic: listed.traffic.clone(),
        });
        let unlisted = self.unlisted.rows().map(|(key, asked)| Route {
            unlisted: Some((key.surface, key.method)),
            pattern: Arc::clone(&key.pattern),
            class: asked.class,
            traffic: asked.traffic.clone(),
        });
        let mut routes: Vec<Route> = listed.chain(unlisted).collect();
        routes.sort_by_key(|route| Reverse(route.traffic.counts.asked));
        routes
    }

    /// The heaviest clients of the last minutes, at most `count`, and since when: by what they
    /// cost Ray and were refused, then by what they asked.
    pub fn clients(&self, count: usize, now: Time) -> (Vec<Client>, Time) {
        let oldest = Time(now.0.saturating_sub(span(WINDOWS)));
        let windows = || self.windows.iter().filter(move |(began, _)| *began >= oldest);
        let since = windows().map(|(began, _)| *began).min().unwrap_or(now);
        let mut clients: BTreeMap<(u64, Credential), Client> = BTreeMap::new();
        let mut addresses: BTreeMap<Credential, Vec<u64>> = BTreeMap::new();
        for ((address, credential, _), visit) in windows().flat_map(|(_, window)| window.rows()) {
            let client = clients.entry((*address, *credential)).or_insert_with(|| Client {
                address: *address,
                credential: *credential,
                last_seen_at: None,
                credential_addresses: 0,
                counts: Counts::default(),
                kept: Duration::ZERO,
                classes: Vec::new(),
            });
            client.take(visit);
            let seen = addresses.entry(*credential).or_default();
            if !seen.contains(address) {
                seen.push(*address);
            }
        }
        let mut clients: Vec<Client> = clients.into_values().collect();
        for client in &mut clients {
            if matches!(client.credential, Credential::One(_)) {
                let seen = addresses.get(&client.credential).map_or(0, Vec::len);
                client.credential_addresses = u32::try_from(seen).unwrap_or(u32::MAX);
            }
            // One that came before the windows and failed within them is none of theirs.
            for (_, counts, _) in &mut client.classes {
                let others = counts.shed + counts.shared + counts.left;
                counts.failed = counts.failed.min(counts.asked - others);
            }
            client.counts.failed = client.classes.iter().map(|(_, counts, _)| counts.failed).sum();
            client.classes.sort_by_key(|(_, counts, _)| Reverse(counts.asked));
        }
        clients.sort_by(|a, b| b.weight().total_cmp(&a.weight()));
        clients.truncate(count);
        (clients, since)
    }

    /// The row of a client and route in the window of `now`, which has come to weigh so much more.
    fn visit(&mut self, ask: Ask, weight: Duration, now: Time) -> &mut Visit {
        let began = Time(now.0 / span(1) * span(1));
        if self.windows.back().is_none_or(|(newest, _)| *newest < began) {
            if self.windows.len() == WINDOWS {
                self.windows.pop_front();
            }
            self.windows.push_back((began, Summary::new(CLIENTS_MAX)));
        }
        // invariant: one was put there a line ago, if there was none.
        #[expect(clippy::unwrap_used, reason = "a window was put there if there was none")]
        let window = &mut self.windows.back_mut().unwrap().1;
        let ClientId { address, credential } = ask.client;
        let (first, end) = ((address, Credential::One(0), 0), (address, Credential::Many, 0));
        let shown = || window.between(&first, &end).map(|(_, seen, _)| *seen);
        let credential = Credential::told_apart(credential, shown);
        window.of((address, credential, ask.route), u64::try_from(weight.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Client {
    /// What makes a client worth a look, in seconds: the time it took from Ray, how often it knocked, and how
    /// long it kept an answer or Ray waiting.
    fn weight(&self) -> f64 {
        let knocks = self.counts.asked as f64 * KNOCK.as_secs_f64();
        self.counts.work_s + knocks + (self.kept / KEPT).as_secs_f64()
    }

    fn take(&mut self, visit: &Visit) {
        self.last_seen_at = visit.address.or(self.last_seen_at);
        self.counts.add(&visit.counts);
        self.kept += visit.kept;
        let place = self.classes.iter().position(|(class, ..)| *class == visit.class);
        let place = place.unwrap_or_else(|| {
            self.classes.push((visit.class, Counts::default(), Vec::new()));
            self.classes.len() - 1
        });
        let (_, counts, routes) = &mut self.classes[place];
        counts.add(&visit.counts);
        // Of one that only left the route is not known.
        if !visit.pattern.is_empty() && !routes.contains(&visit.pattern) {
            routes.push(Arc::clone(&visit.pattern));
        }
    }
}

fn span(windows: usize) -> u64 {
    let one = u64::try_from(WINDOW.as_nanos()).unwrap_or(u64::MAX);
    one.saturating_mul(windows as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLASS: ClassId = ClassId(3);

    fn ask(address: u64, credential: Option<u64>) -> Ask {
        Ask { class: CLASS, route: 7, client: ClientId { address, credential } }
    }

    fn note(usage: &mut Usage, ask: Ask, verdict: Verdict, second: u64) {
        let pattern: Arc<str> = "/api/jobs/".into();
        let address = IpAddr::from([10, 0, 0, 1]);
        let summary = RequestSummary { ask, address, pattern: &pattern, unlisted: None, in_flight: 2 };
        usage.note(&summary, verdict, Time(second * 1_000_000_000));
    }

    #[test]
    fn a_client_is_told_with_what_it_asked_was_refused_failed_and_cost() {
        let mut usage = Usage::new(5, Time(0));
        let who = ask(1, Some(2));
        for verdict in
            [Verdict::Admitted, Verdict::WouldShed, Verdict::Shed, Verdict::Shared, Verdict::Unreachable]
        {
            note(&mut usage, who, verdict, 10);
        }
        usage.charge(who, None, Duration::from_millis(300), Time(10_500_000_000));
        usage.fail(who, None, Time(10_600_000_000));
        let (clients, _) = usage.clients(10, Time(11_000_000_000));
        let [client] = &clients[..] else { panic!("{clients:?}") };
        assert_eq!((client.address, client.credential), (1, Credential::One(2)));
        let counts = Counts {
            asked: 5,
            admitted: 2,
            shed: 1,
            failed: 2,
            would_shed: 1,
            shared: 1,
            left: 0,
            work_s: client.counts.work_s,
        };
        assert_eq!(client.counts, counts);
        assert!((client.counts.work_s - 0.3).abs() < 1e-12);
        assert_eq!(client.classes[0].2, [Arc::from("/api/jobs/")]);
        let class = usage.class(CLASS).unwrap();
        assert_eq!(
            (class.counts.asked, class.counts.failed, class.busiest_second, class.clients()),
            (5, 2, 5, 1)
        );
    }

    #[test]
    fn a_client_whose_line_is_slow_is_named_with_the_time_it_kept_others_waiting() {
        let mut usage = Usage::new(5, Time(0));
        for stranger in 0..30 {
            (0..20).for_each(|_| note(&mut usage, ask(stranger, None), Verdict::Admitted, 10));
        }
        note(&mut usage, ask(99, None), Verdict::Admitted, 10);
        usage.keep(ask(99, None), Duration::from_secs(40), Time(12_000_000_000));
        let (clients, _) = usage.clients(1, Time(13_000_000_000));
        assert_eq!((clients[0].address, clients[0].kept), (99, Duration::from_secs(40)));
    }

    #[test]
    fn a_client_that_has_stopped_asking_is_forgotten_after_some_minutes() {
        let mut usage = Usage::new(5, Time(0));
        note(&mut usage, ask(1, None), Verdict::Admitted, 10);
        assert_eq!(usage.clients(10, Time(60_000_000_000)).0.len(), 1);
        note(&mut usage, ask(2, None), Verdict::Admitted, 400);
        let (clients, since) = usage.clients(10, Time(401_000_000_000));
        assert_eq!(clients.iter().map(|client| client.address).collect::<Vec<_>>(), [2]);
        assert_eq!(since, Time(360_000_000_000));
        assert!(usage.clients(10, Time(4_000_000_000_000)).0.is_empty(), "silence empties it too");
    }

    #[test]
    fn an_address_does_not_hide_behind_invented_credentials() {
        let mut usage = Usage::new(5, Time(0));
        for invented in 0..5_000 {
            note(&mut usage, ask(9, Some(invented)), Verdict::Shed, 1);
            note(&mut usage, ask(invented % 40 + 100, Some(1)), Verdict::Admitted, 1);
        }
        let clients = usage.clients(100, Time(2_000_000_000)).0;
        let rotating: u64 = clients.iter().filter(|client| client.address == 9).map(|c| c.counts.asked).sum();
        assert_eq!(rotating, 5_000);
        assert_eq!((clients[0].address, clients[0].credential), (9, Credential::Many));
        let spread = clients.iter().find(|client| client.address == 100).unwrap();
        assert_eq!(spread.credential_addresses, 41, "the forty, and the one that invented it by chance");
    }

    #[test]
    fn ten_thousand_strangers_who_are_refused_do_not_hide_a_user_who_is_served() {
        let mut usage = Usage::new(5, Time(0));
        for stranger in 0..10_000_u64 {
            note(&mut usage, ask(100 + stranger, None), Verdict::Shed, stranger / 170);
            if stranger % 2_000 == 500 {
                // A list of 0.3 s, five times a minute.
                note(&mut usage, ask(1, None), Verdict::Admitted, stranger / 170);
                let answered = Time(stranger / 170 * 1_000_000_000 + 300_000_000);
                usage.charge(ask(1, None), None, Duration::from_millis(300), answered);
            }
        }
        let (clients, _) = usage.clients(1000, Time(59_000_000_000));
        let user = clients.iter().find(|client| client.address == 1);
        assert_eq!(user.map(|user| user.counts.asked), Some(5));
    }

    #[test]
    fn a_route_whose_number_went_to_another_begins_anew() {
        let mut usage = Usage::new(5, Time(0));
        note(&mut usage, ask(1, None), Verdict::Admitted, 1);
        let pattern: Arc<str> = "/other".into();
        let summary = RequestSummary {
            ask: ask(1, None),
            address: IpAddr::from([10, 0, 0, 1]),
            pattern: &pattern,
            unlisted: None,
            in_flight: 0,
        };
        usage.note(&summary, Verdict::Admitted, Time(1));
        let routes = usage.routes();
        assert_eq!((routes.len(), &*routes[0].pattern, routes[0].traffic.counts.asked), (1, "/other", 1));
    }

    proptest! {
        /// "refused 51 of 0" cannot be: whatever happens in whatever order, over however many windows.
        #[test]
        fn figures_add_up(steps in proptest::collection::vec((0u8..8, 1u64..4, 0u64..200), 1..300)) {
            let mut usage = Usage::new(5, Time(0));
            let mut second = 0;
            for (what, who, pause) in steps {
                second += pause;
                let (who, now) = (ask(who, Some(who % 2)), Time(second * 1_000_000_000));
                match what {
                    0 => note(&mut usage, who, Verdict::Admitted, second),
                    1 => note(&mut usage, who, Verdict::WouldShed, second),
                    2 => note(&mut usage, who, Verdict::Shed, second),
                    3 => note(&mut usage, who, Verdict::Shared, second),
                    4 => note(&mut usage, who, Verdict::Unreachable, second),
                    5 => usage.fail(who, None, now),
                    6 => usage.leave(who, now),
                    _ => usage.charge(who, None, Duration::from_millis(10), now),
                }
                let (clients, _) = usage.clients(10, now);
                for client in &clients {
                    let rows = client.classes.iter().map(|(_, counts, _)| counts);
                    for counts in rows.clone().chain([&client.counts]) {
                        let Counts { asked, admitted, shed, failed, would_shed, shared, left, .. } = *counts;
                        let others = shed + shared + left;
                        prop_assert!(admitted + others <= asked && failed <= asked - others, "{counts:?}");
                        prop_assert!(would_shed <= admitted, "{counts:?}");
                    }
                    prop_assert_eq!(rows.clone().map(|counts| counts.asked).sum::<u64>(), client.counts.asked);
                    prop_assert_eq!(rows.map(|counts| counts.failed).sum::<u64>(), client.counts.failed);
                }
            }
        }

        #[test]
        fn memory_is_bounded_and_the_heavy_one_is_found_among_strangers(
            strangers in proptest::collection::vec(2u64..1_000_000, 0..4_000), every in 2usize..20,
        ) {
            let mut usage = Usage::new(5, Time(0));
            for (at, stranger) in strangers.iter().enumerate() {
                note(&mut usage, ask(*stranger, Some(*stranger)), Verdict::Admitted, 1);
                if at % every == 0 {
                    note(&mut usage, ask(1, None), Verdict::Shed, 1);
                }
            }
            let (clients, _) = usage.clients(usize::MAX, Time(1_000_000_000));
            prop_assert!(clients.len() <= CLIENTS_MAX);
            prop_assert!(strangers.is_empty() || clients[0].address == 1 || strangers.len() < 50);
            let asked: u64 = clients.iter().map(|client| client.counts.asked).sum();
            prop_assert!(asked <= usage.class(CLASS).unwrap().counts.asked);
        }
    }
}
