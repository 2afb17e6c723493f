//! What does a decision cost, in time and in allocations?
//!
//! Everything the proxy decides by itself: classify, identify, pass every limit, give the permit
//! back. 10,000 clients take turns, each with an address and a token of its own, so that caches
//! and tables are as cold as they are in earnest. The bar is a median of 200 ns without an
//! allocation; the second half is checked, the first is for `cargo bench --bench decide` to show.
//!
//! `full`: from the bytes of a path and its headers to the permit and back. Its parts: `classify`
//! (the path made normal and looked up), `identify` (two keyed digests), `admission` (the counters,
//! with a client's own limits on as well, in and out again). Ten thousand clients show twenty thousand
//! addresses and tokens, and a class counts 8,192 of these apart: in `full` and `admission` nearly everyone
//! finds its entry taken, and takes that of somebody who owes nothing. In `admission, known clients` there are
//! no more than have entries of their own.
//!
//! `rate-limit service`: what an Envoy's question costs beyond its HTTP/2. From the bytes of the message
//! to those of the answer: `admitted`, with the report of the exchange's end; `refused`, with the
//! headers and the sentence that the client gets.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for the terminal")]

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use prost::Message;
use rayguard::core::admission::controller::{AdmissionController, Ask, Decision, Grant};
use rayguard::core::admission::meter::Outcome;
use rayguard::core::admission::table::LimitTable;
use rayguard::core::policy::{Bounds, PerClientLimits, Policy};
use rayguard::core::request::catalogue::{Surface, policy};
use rayguard::core::request::classify::Classifier;
use rayguard::core::request::facts::{Facts, Headers};
use rayguard::core::request::identify::Identifier;
use rayguard::core::time::Time;
use rayguard::proxy;
use rayguard::proxy::clock::Clock;
use rayguard::proxy::headers::Lookup;
use rayguard::proxy::ratelimit;
use rayguard::proxy::ratelimit::message::{Descriptor, Entry, RateLimitRequest};
use rayguard::proxy::routing::Routing;
use rayguard::proxy::state::ListenerState;
use rayguard::proxy::tasks::Tasks;
use rayguard::proxy::upstream::{Address, Options, Upstream};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::future::Future;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CLIENTS: u32 = 10_000;

/// So many have entries of their own: with two each they take half of the table.
const KNOWN: usize = 2_000;

/// A proxy without its wire.
struct BenchProxy {
    classifier: Classifier,
    identifier: Identifier,
    table: LimitTable,
    admission: AdmissionController<()>,
    clients: Vec<(IpAddr, http::HeaderMap)>,
    next: usize,
    now: Time,
}

impl BenchProxy {
    fn new(surface: Surface) -> BenchProxy {
        let mut policy = policy();
        for class in &mut policy.classes {
            class.per_client = PerClientLimits { in_flight: Some(64), ..class.per_client };
        }
        let table = LimitTable::initial(&policy);
        let clients = (0..CLIENTS).map(|n| {
            let mut headers = http::HeaderMap::new();
            headers.insert("host", "head:8265".parse().unwrap());
            headers.insert("user-agent", "python-requests/2.32".parse().unwrap());
            headers.insert("accept", "*/*".parse().unwrap());
            headers.insert("authorization", format!("Bearer {n:032x}").parse().unwrap());
            (Ipv4Addr::from(0x0a00_0000 + n).into(), headers)
        });
        BenchProxy {
            classifier: Classifier::new(&policy, surface, &[]).unwrap(),
            identifier: Identifier::new([1, 2], vec!["192.0.2.0/24".parse().unwrap()], Vec::new()),
            admission: AdmissionController::new(&policy, &table, Time::ZERO),
            table,
            clients: clients.collect(),
            next: 0,
            now: Time::ZERO,
        }
    }

    /// One step of the clock and the next client.
    fn turn(&mut self) -> usize {
        self.now = self.now + Duration::from_millis(1);
        self.next = (self.next + 7) % self.clients.len();
        self.next
    }

    fn facts<'a>(&self, place: usize, path: &'a str, headers: &'a dyn Headers) -> Facts<'a> {
        let address = self.clients[place].0;
        Facts { method: "GET", path, query: "", address, headers, upgrade: false, grpc: false }
    }

    fn ask(&mut self, path: &str) -> Ask {
        let place = self.turn();
        let headers = Lookup::new(&self.clients[place].1);
        let facts = self.facts(place, path, &headers);
        let matched = self.classifier.classify(&facts);
        Ask { class: matched.class, route: matched.route.0, client: self.identifier.identify(&facts) }
    }

    fn pass(&mut self, ask: Ask) -> bool {
        let wake = &mut |(), _: Grant| {};
        let Decision::Admit(permit) = self.admission.decide(&self.table, ask, self.now, || (), wake) else {
            return false;
        };
        self.admission.finish(&self.table, permit, Outcome::Served, self.now, wake);
        true
    }
}

const WAYS: [(&str, Surface, &str); 3] = [
    ("job status", Surface::Dashboard, "/api/jobs/raysubmit_7a6bXWkz2C4LmQ9d"),
    ("state list", Surface::Dashboard, "/api/v0/tasks"),
    ("serve", Surface::Serve, "/app"),
];

fn decide(criterion: &mut Criterion) {
    for (name, surface, path) in WAYS {
        let mut proxy = BenchProxy::new(surface);
        // Every client has been here once: what a client costs the first time is not the usual way.
        let admitted = (0..2 * CLIENTS)
            .filter(|_| {
                let ask = proxy.ask(path);
                proxy.pass(ask)
            })
            .count();
        println!("{name}: {admitted} of {} admitted", 2 * CLIENTS);
        let region = Region::new(ALLOCATOR);
        for _ in 0..CLIENTS {
            let ask = proxy.ask(path);
            black_box(proxy.pass(ask));
        }
        let counted = region.change();
        println!("{name}: {} allocations in {CLIENTS} decisions", counted.allocations);
        assert_eq!(counted.allocations + counted.reallocations, 0, "a decision allocates nothing");

        let mut group = criterion.benchmark_group(name);
        group.bench_function("full", |bencher| {
            bencher.iter(|| {
                let ask = proxy.ask(black_box(path));
                proxy.pass(ask)
            });
        });
        group.bench_function("classify", |bencher| {
            bencher.iter(|| {
                let place = proxy.turn();
                let headers = Lookup::new(&proxy.clients[place].1);
                proxy.classifier.classify(&proxy.facts(place, black_box(path), &headers))
            });
        });
        group.bench_function("identify", |bencher| {
            bencher.iter(|| {
                let place = proxy.turn();
                let headers = Lookup::new(&proxy.clients[place].1);
                proxy.identifier.identify(&proxy.facts(place, path, &headers))
            });
        });
        let asks: Vec<Ask> = (0..CLIENTS).map(|_| proxy.ask(path)).collect();
        group.bench_function("admission", |bencher| {
            bencher.iter(|| {
                let place = proxy.turn();
                proxy.pass(asks[place])
            });
        });
        group.bench_function("admission, known clients", |bencher| {
            bencher.iter(|| {
                let place = proxy.turn();
                proxy.pass(asks[place % KNOWN])
            });
        });
        group.finish();
    }
}

/// A rate-limit service without its wire.
struct Unwired {
    service: Arc<ratelimit::Service>,
    proxy: Arc<proxy::state::ProxyState>,
    next: u32,
}

impl Unwired {
    fn new(policy: Policy) -> Unwired {
        let (clock, tasks) = (Clock::start(), Tasks::default());
        let identifier = Identifier::new([1, 2], Vec::new(), Vec::new());
        let classifier = Classifier::new(&policy, Surface::Dashboard, &[]).unwrap();
        let (sheds, _) = tokio::sync::mpsc::channel(1);
        let proxy = proxy::state::ProxyState::new(Arc::new(policy), identifier, clock, tasks.clone(), sheds);
        let upstream = Upstream::new(Address::Tcp("127.0.0.1:1".into()), Options::default(), clock, tasks);
        let routing = Arc::new(Routing::new(Surface::Dashboard, classifier, upstream));
        let state = ListenerState::new(Arc::clone(&proxy), routing);
        let service = ratelimit::Service::start(state, "rayguard".into(), Duration::from_secs(600));
        Unwired { service, proxy, next: 0 }
    }

    /// What the shipped Envoy configuration sends for one request: its beginning and its end.
    fn messages(&mut self) -> [Bytes; 2] {
        self.next = (self.next + 7) % CLIENTS;
        let (address, token) = (Ipv4Addr::from(0x0a00_0000 + self.next), self.next);
        let name = format!("28d9c57b-e788-4339-9f65-89e4{token:08x}");
        let begin = [
            ("method", "GET"),
            ("path", "/api/jobs/raysubmit_7a6bXWkz2C4LmQ9d"),
            ("remote_address", &address.to_string()),
            ("authorization", &format!("Bearer {token:032x}")),
            ("request", &name),
        ];
        [(&begin[..], None), (&[("end", &*name)], Some(200))].map(|(entries, hits_addend)| {
            let entry = |(key, value): &(&str, &str)| Entry {
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: Bytes::copy_from_slice(value.as_bytes()),
            };
            let descriptor = Descriptor { entries: entries.iter().map(entry).collect(), hits_addend };
            let domain = "rayguard".into();
            RateLimitRequest { domain, descriptors: vec![descriptor], hits_addend: 0 }.encode_to_vec().into()
        })
    }

    /// The answer's bytes. Nothing waits here: what is decided at once is ready at once.
    fn answer(&self, message: &Bytes) -> Vec<u8> {
        let message = RateLimitRequest::decode(message.clone()).unwrap();
        let deciding =
            pin!(self.service.decide(Ipv4Addr::LOCALHOST.into(), &message, self.proxy.clock.now()));
        match deciding.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer.unwrap().encode_to_vec(),
            Poll::Pending => unreachable!("no request waits without patience"),
        }
    }
}

fn question(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let mut group = criterion.benchmark_group("rate-limit service");
    let mut service = Unwired::new(policy());
    let messages: Vec<[Bytes; 2]> = (0..CLIENTS).map(|_| service.messages()).collect();
    let mut next = messages.iter().cycle();
    group.bench_function("admitted", |bencher| {
        bencher.iter(|| {
            let [begin, end] = next.next().unwrap();
            (service.answer(black_box(begin)), service.answer(black_box(end)))
        });
    });
    let mut policy = policy();
    for class in &mut policy.classes {
        (class.in_flight, class.queue.len_max) = (Bounds::fixed(0.0), 0);
    }
    let service = Unwired::new(policy);
    group.bench_function("refused", |bencher| {
        bencher.iter(|| service.answer(black_box(&next.next().unwrap()[0])));
    });
    group.finish();
}

criterion_group!(benches, decide, question);
criterion_main!(benches);
