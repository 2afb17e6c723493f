//! What does a descriptor ask?
//!
//! Envoy's operator writes which facts of a request are told, as entries of a key and a value.
//! These keys mean something here; any other is the request's header of that name, so that
//! routes with a header condition, credentials and API keys mean what they mean at the proxy:
//!
//! | key | value |
//! |---|---|
//! | `class` | the class, by name; or instead of it: |
//! | `method`, `path` | the request's, classified here as at the proxy (a query may follow `?`) |
//! | `remote_address`, `masked_remote_address` | the client's address, as Envoy trusts it |
//! | `client` | the client's name, if Envoy has verified one (a JWT's subject, a certificate's) |
//! | `request` | the exchange's name, unique; an Envoy that sends it also sends `end` |
//! | `end` | that name again: the exchange has ended; the descriptor's `hits_addend` is the status of its answer |
//!
//! Every caller that reaches this service is trusted to speak for its clients; mutual TLS or a Unix socket
//! keeps other callers out. `client` outranks the address as a name header does, and an API key both.
//! Without any of them all clients behind one Envoy are one client.
//!
//! A path that cannot be classified with certainty (what the proxy answers with 400) is charged to
//! the class for what no route knows. Letting it pass uncounted would make a crooked path the way
//! round every limit; Envoy's `normalize_path` is what keeps the two readings of it together.

use crate::ratelimit::message::{Descriptor, Entry};
use crate::reject::ErrorFormat;
use crate::state::ListenerState;
use rayguard_core::admission::controller::Ask;
use rayguard_core::policy::ClassId;
use rayguard_core::request::classify::{Match, UNLISTED};
use rayguard_core::request::client_id::ClientId;
use rayguard_core::request::facts::{Facts, Headers};
use rayguard_core::request::identify::Identifier;
use rayguard_core::usage::Unlisted;
use std::net::IpAddr;
use std::sync::Arc;

/// What a descriptor asks, or tells.
#[derive(Clone, Debug)]
pub enum Told<'a> {
    /// May this pass?
    Asks(Question<'a>),
    /// An exchange has ended: its name, and the answer's status (0: none) where it is told.
    Ends(&'a [u8], Option<u64>),
    /// Neither a class that exists, nor method and path.
    Unknown,
}

/// A request that is to pass elsewhere.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// What to ask the admission controller.
    pub ask: Ask,
    /// The route's pattern, or what stands for it.
    pub pattern: Arc<str>,
    /// For what no route knows.
    pub unlisted: Option<Arc<Unlisted>>,
    /// Where the client calls from.
    pub address: IpAddr,
    /// Whether it asks for something that takes an API key, and shows none.
    pub keyless: bool,
    /// How the client wants to be spoken to.
    pub error_format: ErrorFormat,
    /// The exchange's name, if its end will be told.
    pub name: Option<&'a [u8]>,
}

/// Reads a descriptor that came from `peer`.
pub fn read<'a>(state: &ListenerState, peer: IpAddr, descriptor: &'a Descriptor) -> Told<'a> {
    let entries = Entries(&descriptor.entries);
    if let Some(name) = entries.get("end") {
        return Told::Ends(name, descriptor.hits_addend);
    }
    let target = entries.text("path").unwrap_or("");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let facts = Facts {
        method: entries.text("method").unwrap_or(""),
        path,
        query,
        address: entries.address().unwrap_or(peer),
        headers: &entries,
        upgrade: entries.get("upgrade").is_some_and(|to| to.eq_ignore_ascii_case(b"websocket")),
        grpc: entries.get("content-type").is_some_and(|kind| kind.starts_with(b"application/grpc")),
    };
    let Some(matched) = matched(state, &entries, &facts) else { return Told::Unknown };
    let ListenerState { proxy, routing } = state;
    let label = routing.classifier.label(matched.route);
    let by_path = entries.get("class").is_none();
    let unlisted = (by_path && **label == *UNLISTED)
        .then(|| Arc::new(Unlisted::new(routing.surface, facts.method, facts.path)));
    let keyless = proxy.asks_for_key(matched.class) && !proxy.identifier.holds_key(&facts);
    Told::Asks(Question {
        ask: Ask {
            class: matched.class,
            route: matched.route.0,
            client: client(&proxy.identifier, &entries, &facts),
        },
        pattern: unlisted
            .as_ref()
            .map_or_else(|| Arc::clone(label), |unlisted| Arc::clone(&unlisted.pattern)),
        unlisted,
        address: proxy.identifier.client_address(&facts),
        keyless,
        error_format: ErrorFormat::of(path, facts.grpc),
        name: entries.get("request"),
    })
}

fn matched(state: &ListenerState, entries: &Entries<'_>, facts: &Facts<'_>) -> Option<Match> {
    let classifier = &state.routing.classifier;
    if let Some(name) = entries.get("class") {
        let place = state.proxy.policy.classes.iter().position(|class| class.name.as_bytes() == name)?;
        return Some(classifier.example(ClassId(u8::try_from(place).ok()?)));
    }
    entries.get("method")?;
    let path = entries.get("path")?;
    if std::str::from_utf8(path).is_err() {
        return Some(classifier.unlisted());
    }
    Some(classifier.classify(facts))
}

fn client(identifier: &Identifier, entries: &Entries<'_>, facts: &Facts<'_>) -> ClientId {
    match entries.get("client").map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()) {
        Some(name) if !identifier.holds_key(facts) => identifier.named(name),
        _ => identifier.identify(facts),
    }
}

/// Entries, looked up as headers are; of equal keys the last counts last.
struct Entries<'a>(&'a [Entry]);

impl<'a> Entries<'a> {
    fn get(&self, key: &str) -> Option<&'a [u8]> {
        self.0.iter().find(|entry| *entry.key == *key.as_bytes()).map(|entry| &*entry.value)
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        std::str::from_utf8(self.get(key)?).ok()
    }

    fn address(&self) -> Option<IpAddr> {
        let text = self.text("remote_address").or_else(|| self.text("masked_remote_address"))?;
        let (address, _) = text.split_once('/').unwrap_or((text, ""));
        address.parse::<IpAddr>().ok().map(|address| address.to_canonical())
    }
}

impl Headers for Entries<'_> {
    fn get(&self, name: &str) -> Option<&[u8]> {
        Entries::get(self, name)
    }

    fn nth_back(&self, name: &str, n: usize) -> Option<&[u8]> {
        self.0.iter().rev().filter(|entry| *entry.key == *name.as_bytes()).nth(n).map(|entry| &*entry.value)
    }
}
