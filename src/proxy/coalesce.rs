//! Equal requests under way share one upstream call.
//!
//! Fifty dashboard tabs ask for the same job list every four seconds; Ray computes it anew for
//! each, at O(jobs ever) apiece. The first to ask leads: it passes the gate and fetches; the
//! others wait for its answer and cost Ray nothing. For a class's `ttl` after that the answer
//! is handed on as it is.
//!
//! **Never across credentials.** The key is everything Ray's answer may depend on: path and
//! query as sent, every credential header, whether the caller looks like a browser (Ray redacts
//! for browsers), and the `Accept*` headers. It is compared whole, by SHA-256.
//!
//! **Whatever becomes of the leader**, nobody is left behind: the fetch is a task of its own,
//! so a leader that leaves abandons nothing; a leader that is refused at the gate passes the
//! lead on, because a refusal is about its own share and says nothing of the others.
//!
//! Memory is bounded: answers above [`ANSWER_MAX`] are not shared (the leader gets its stream,
//! the others ask for themselves), and at most [`FLIGHTS_MAX`] keys are kept.

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, COOKIE, HOST, HeaderMap, ORIGIN, REFERER,
    USER_AGENT,
};
use http::{HeaderName, Method, StatusCode, Uri};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

use crate::core::time::Time;

/// The largest answer that is shared, in bytes.
pub const ANSWER_MAX: usize = 8 << 20;

/// The most distinct requests under way or remembered.
pub const FLIGHTS_MAX: usize = 512;

/// Headers by which those before us tell of the way a request came and of this one request:
/// different for each, and nothing to Ray.
const OF_THE_WAY: [&str; 9] = [
    "x-amzn-trace-id",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-correlation-id",
    "x-forwarded-for",
    "x-real-ip",
    "x-request-id",
];

/// What Ray's answer may depend on, digested.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of a request, or `None` if it is not one to share: only plain GETs without a
    /// range or condition are.
    #[must_use]
    pub fn of(method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Key> {
        const PERSONAL: [HeaderName; 4] = [
            HeaderName::from_static("range"),
            HeaderName::from_static("if-none-match"),
            HeaderName::from_static("if-modified-since"),
            HeaderName::from_static("upgrade"),
        ];
        if method != Method::GET || PERSONAL.iter().any(|name| headers.contains_key(name)) {
            return None;
        }
        Some(Key::digest(uri, headers))
    }

    /// The key of a WebSocket handshake. What belongs to the handshake itself does not count.
    #[must_use]
    pub fn of_tail(uri: &Uri, headers: &HeaderMap) -> Key {
        Key::digest(uri, headers)
    }

    fn digest(uri: &Uri, headers: &HeaderMap) -> Key {
        let mut digest = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // Lengths keep one field from running into the next.
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        };
        part(uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).as_bytes());
        for name in [ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, COOKIE, HOST, ORIGIN, REFERER] {
            part(name.as_str().as_bytes());
            headers.get_all(&name).iter().for_each(|value| part(value.as_bytes()));
        }
        let browser = headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"Mozilla"));
        part(&[u8::from(browser)]);
        // Whatever else may carry identity or the mark of a browser.
        for (name, value) in headers {
            let name = name.as_str();
            let counts = name.starts_with("x-") || name.starts_with("sec-");
            if counts && !name.starts_with("sec-websocket-") && !OF_THE_WAY.contains(&name) {
                part(name.as_bytes());
                part(value.as_bytes());
            }
        }
        Key(digest.finalize().into())
    }
}

/// An answer in full.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, hop-by-hop ones removed.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Where a flight stands.
#[derive(Clone, Debug)]
enum Stage {
    /// Its leader is at the gate or at Ray.
    UnderWay,
    /// It has landed.
    Landed(Arc<Shared>),
    /// It came to nothing that could be shared: ask for yourself.
    Dissolved,
}

/// What a request finds.
#[derive(Debug)]
pub enum Joined {
    /// Nobody asks the same: lead.
    Lead(Lead),
    /// Somebody does, or has just done: here is the answer.
    Answered(Arc<Shared>),
    /// Somebody did, but there is nothing to share: go through the gate alone.
    Alone,
}

/// The lead of a flight. Dropped without landing, the flight dissolves.
#[derive(Debug)]
pub struct Lead {
    flights: Arc<Flights>,
    key: Key,
    stage: watch::Sender<Stage>,
    epoch: u64,
}

#[derive(Debug, Default)]
struct Flights(Mutex<Air>);

#[derive(Debug, Default)]
struct Air {
    flights: HashMap<Key, Flight>,
    /// Rises when what has landed is forgotten.
    epoch: u64,
}

#[derive(Debug)]
struct Flight {
    stage: watch::Receiver<Stage>,
    /// Until when it may be joined; `None` while under way.
    until: Option<Time>,
}

/// All flights.
#[derive(Debug, Default)]
pub struct Coalescer(Arc<Flights>);

impl Coalescer {
    /// What has landed is out of date: from now on nobody is handed it. What is under way may
    /// be out of date too; those who wait for it get it, nobody who comes later.
    pub fn forget(&self) {
        let mut air = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        air.epoch += 1;
        air.flights.clear();
    }

    /// Joins the flight of `key`, or begins one. Waits for the answer of whoever leads.
    pub async fn join(&self, key: Key, now: impl Fn() -> Time) -> Joined {
        // A leader refused at the gate passes the lead on; each turn somebody leads.
        for _ in 0..TURNS_MAX {
            let mut stage = match self.0.find_or_lead(key, now()) {
                Ok(lead) => return Joined::Lead(lead),
                Err(Some(stage)) => stage,
                Err(None) => return Joined::Alone,
            };
            let settled = stage.wait_for(|stage| !matches!(stage, Stage::UnderWay)).await;
            match settled.as_deref() {
                Ok(Stage::Landed(shared)) => return Joined::Answered(Arc::clone(shared)),
                Ok(Stage::Dissolved) => return Joined::Alone,
                Ok(Stage::UnderWay) | Err(_) => {}
            }
        }
        Joined::Alone
    }
}

/// How often a follower waits for another leader before it asks for itself.
const TURNS_MAX: usize = 3;

impl Flights {
    /// The flight of `key` under way, the lead of a new one, or `Err(None)` if there are too many.
    fn find_or_lead(self: &Arc<Self>, key: Key, now: Time) -> Result<Lead, Option<watch::Receiver<Stage>>> {
        let mut air = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Air { flights, epoch } = &mut *air;
        if let Some(flight) = flights.get(&key)
            && flight.until.is_none_or(|until| now < until)
            && !(flight.until.is_none() && flight.stage.has_changed().is_err())
        {
            return Err(Some(flight.stage.clone()));
        }
        if flights.len() >= FLIGHTS_MAX {
            flights.retain(|_, flight| flight.until.is_none_or(|until| now < until));
            if flights.len() >= FLIGHTS_MAX {
                return Err(None);
            }
        }
        let (stage, receiver) = watch::channel(Stage::UnderWay);
        flights.insert(key, Flight { stage: receiver, until: None });
        Ok(Lead { flights: Arc::clone(self), key, stage, epoch: *epoch })
    }
}

impl Lead {
    /// Hands the answer to all who wait, and for `ttl` from `now` on to whoever comes.
    pub fn land(self, shared: Shared, ttl: Duration, now: Time) -> Arc<Shared> {
        let shared = Arc::new(shared);
        self.stage.send_replace(Stage::Landed(Arc::clone(&shared)));
        let mut air = self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What was begun before the last `forget` is no longer anyone's to find.
        if air.epoch == self.epoch {
            if ttl.is_zero() {
                air.flights.remove(&self.key);
            } else if let Some(flight) = air.flights.get_mut(&self.key) {
                flight.until = Some(now + ttl);
            }
        }
        drop(air);
        shared
    }

    /// There is nothing to share: each asks for itself.
    pub fn dissolve(self) {
        self.stage.send_replace(Stage::Dissolved);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let Air { flights, .. } = &mut *self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.get(&self.key).is_some_and(|flight| {
            flight.until.is_none() && flight.stage.same_channel(&self.stage.subscribe())
        }) {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn key(path: &str, headers: &[(&'static str, &'static str)]) -> Option<Key> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Key::of(&Method::GET, &path.parse().unwrap(), &map)
    }

    fn shared(body: &'static str) -> Shared {
        Shared {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn no_two_credentials_and_no_browser_and_script_share_a_key() {
        let plain = key("/api/jobs/", &[]);
        for other in [
            key("/api/jobs/", &[("authorization", "Bearer a")]),
            key("/api/jobs/", &[("authorization", "Bearer b")]),
            key("/api/jobs/", &[("x-ray-authorization", "Bearer a")]),
            key("/api/jobs/", &[("cookie", "ray-authentication-token=a")]),
            key("/api/jobs/", &[("user-agent", "Mozilla/5.0")]),
            key("/api/jobs/", &[("sec-fetch-mode", "cors")]),
            key("/api/jobs/", &[("origin", "http://evil")]),
            key("/api/jobs/", &[("accept-encoding", "gzip")]),
            key("/api/jobs/?a=1", &[]),
            key("/api/jobs", &[]),
        ] {
            assert_ne!(plain, other);
        }
        assert_eq!(plain, key("/api/jobs/", &[("user-agent", "python-requests/2.34")]));
        let proxied = [("x-forwarded-for", "192.0.2.1"), ("x-request-id", "4711")];
        assert_eq!(plain, key("/api/jobs/", &proxied), "each way is another, the answer is not");
        assert_ne!(plain, key("/api/jobs/", &[("x-forwarded-user", "ann")]));
        assert_eq!(key("/x", &[("range", "bytes=0-1")]), None);
        let split = key("/x", &[("cookie", "a"), ("cookie", "bc")]);
        assert_ne!(split, key("/x", &[("cookie", "ab"), ("cookie", "c")]));
    }

    #[tokio::test]
    async fn followers_get_the_leaders_answer_and_ask_nothing() {
        let coalescer = Arc::new(Coalescer::default());
        let key = key("/api/jobs/", &[]).unwrap();
        let Joined::Lead(lead) = coalescer.join(key, || Time::ZERO).await else { panic!("first leads") };
        let follower = coalescer.join(key, || Time::ZERO);
        tokio::pin!(follower);
        assert!(futures_poll(follower.as_mut()).await.is_none(), "waits");
        lead.land(shared("jobs"), Duration::ZERO, Time::ZERO);
        let Joined::Answered(answer) = follower.await else { panic!("answered") };
        assert_eq!(answer.body, "jobs");
        assert!(matches!(coalescer.join(key, || Time::ZERO).await, Joined::Lead(_)), "no ttl, no cache");
    }

    #[tokio::test]
    async fn a_leader_that_is_refused_passes_the_lead_on() {
        let coalescer = Coalescer::default();
        let key = key("/api/jobs/", &[]).unwrap();
        let Joined::Lead(lead) = coalescer.join(key, || Time::ZERO).await else { panic!("first leads") };
        let follower = coalescer.join(key, || Time::ZERO);
        tokio::pin!(follower);
        assert!(futures_poll(follower.as_mut()).await.is_none());
        drop(lead);
        assert!(matches!(follower.await, Joined::Lead(_)));
    }

    #[tokio::test]
    async fn an_answer_is_handed_on_for_its_ttl_and_no_longer() {
        let coalescer = Coalescer::default();
        let key = key("/api/jobs/", &[]).unwrap();
        let Joined::Lead(lead) = coalescer.join(key, || Time::ZERO).await else { panic!("first leads") };
        lead.land(shared("jobs"), Duration::from_secs(1), Time::ZERO);
        assert!(matches!(coalescer.join(key, || Time::from_secs_f64(0.9)).await, Joined::Answered(_)));
        assert!(matches!(coalescer.join(key, || Time::from_secs_f64(1.1)).await, Joined::Lead(_)));
    }

    #[tokio::test]
    async fn what_is_forgotten_is_fetched_anew_even_if_it_lands_later() {
        let coalescer = Coalescer::default();
        let key = key("/api/jobs/", &[]).unwrap();
        let second = Duration::from_secs(1);
        let Joined::Lead(before) = coalescer.join(key, || Time::ZERO).await else { panic!("first leads") };
        coalescer.forget();
        let Joined::Lead(after) = coalescer.join(key, || Time::ZERO).await else { panic!("leads anew") };
        before.land(shared("old"), second, Time::ZERO);
        after.land(shared("new"), second, Time::ZERO);
        let Joined::Answered(answer) = coalescer.join(key, || Time::ZERO).await else { panic!("answered") };
        assert_eq!(answer.body, "new");
        coalescer.forget();
        assert!(matches!(coalescer.join(key, || Time::ZERO).await, Joined::Lead(_)));
    }

    /// Polls once.
    async fn futures_poll<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut future).poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
