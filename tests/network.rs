//! A bad network between clients and proxy, and between proxy and Ray: late, held up, cut, one way only,
//! while limits and upstreams are replaced and hosts die and come back. In virtual time, by seed.
//!
//! Clients, proxy and Ray are hosts of a turmoil simulation: one thread, one clock, one source of
//! chance. The proxy is the whole of it, from its accept loop to its connections to Ray; only where
//! streams come from is turmoil's instead of the OS's ([`Dial`], [`Accept`]). What a cut line swallows
//! is never sent again, so both ends of it stay open and silent: the half-open lines that a network
//! leaves behind when it fails for good.
//!
//! A seed fixes everything, down to which byte arrives when: each seed runs twice, and the second run
//! must leave the same trace of reads and writes.
//!
//!     cargo test --test network                              the seeds of every run
//!     NETWORK_SEEDS=1000..3000 cargo test --test network     others; one that fails is named
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "proxy/rig.rs"]
mod rig;

use arc_swap::ArcSwap;
use rayguard::core::request::catalogue::{CLASSES, Surface};
use rayguard::core::request::classify::Classifier;
use rayguard::core::request::identify::Identifier;
use rayguard::proxy::clock::Clock;
use rayguard::proxy::listen::{self, ListenerLimits};
use rayguard::proxy::routing::Routing;
use rayguard::proxy::state::{ListenerState, ProxyState};
use rayguard::proxy::stream::{Accept, Dial, NetworkStream, Pending};
use rayguard::proxy::tasks::Tasks;
use rayguard::proxy::upstream::{Address, Options, Upstream};
use rig::{Client, class, header, policy};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{sleep, timeout};
use turmoil::net::{TcpListener, TcpStream};
use turmoil::{Builder, Sim};

const CLIENTS: usize = 6;
const REQUESTS: usize = 20;
/// Asked once the storm is over.
const CALM_REQUESTS: usize = 3;
/// A step of the simulation.
const TICK: Duration = Duration::from_millis(4);
/// The most that one segment carries.
const SEGMENT_BYTES: usize = 1460;
const PORT: u16 = 8265;

/// SplitMix64. Each peer has dice of its own, drawn from the seed by name.
#[derive(Clone)]
struct Dice(Rc<Cell<u64>>, u64);

impl Dice {
    fn of(seed: u64) -> Dice {
        Dice(Rc::new(Cell::new(seed)), seed)
    }

    fn named(&self, name: &str) -> Dice {
        let fold = |sum: u64, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        Dice::of(name.bytes().fold(self.1 ^ 0xcbf2_9ce4_8422_2325, fold))
    }

    fn below(&self, bound: u64) -> u64 {
        let seed = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(seed);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }

    fn size(&self, bound: u64) -> usize {
        usize::try_from(self.below(bound)).unwrap()
    }

    fn ms(&self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }
}

// --- What is seen of a storm ---

/// Something that happened at the proxy's streams: when, with whom, what, how much of it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sight(Duration, SocketAddr, &'static str, usize);

thread_local! {
    /// All of them, in order: a stream must be `Send`, so what it tells of is not in its hands.
    static TRACE: RefCell<Vec<Sight>> = const { RefCell::new(Vec::new()) };
}

fn note(whom: SocketAddr, what: &'static str, how_much: usize) {
    let now = turmoil::sim_elapsed().unwrap_or_default();
    TRACE.with_borrow_mut(|trace| trace.push(Sight(now, whom, what, how_much)));
}

/// A stream of the simulated network, in segments of an Ethernet's size.
#[derive(Debug)]
struct Watched(TcpStream, SocketAddr);

impl Watched {
    fn over(stream: TcpStream) -> io::Result<Watched> {
        let peer = stream.peer_addr()?;
        note(peer, "open", 0);
        Ok(Watched(stream, peer))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A host that dies does so between two moments, when its clock is not the simulation's.
        TRACE.with_borrow_mut(|trace| trace.push(Sight(Duration::ZERO, self.1, "drop", 0)));
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.0).poll_read(context, buffer);
        match &read {
            Poll::Ready(Ok(())) => note(self.1, "read", buffer.filled().len() - before),
            Poll::Ready(Err(_)) => note(self.1, "reset", 0),
            Poll::Pending => {}
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let segment = &bytes[..bytes.len().min(SEGMENT_BYTES)];
        let written = Pin::new(&mut self.0).poll_write(context, segment);
        match &written {
            Poll::Ready(Ok(written)) => note(self.1, "write", *written),
            Poll::Ready(Err(_)) => note(self.1, "broken", 0),
            Poll::Pending => note(self.1, "full", 0),
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        note(self.1, "shut", 0);
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Where the proxy's streams to Ray begin, ...
#[derive(Debug)]
struct Way;

impl Dial for Way {
    fn dial<'a>(&'a self, address: &'a str) -> Pending<'a, Box<dyn NetworkStream>> {
        Box::pin(async move {
            let line: Box<dyn NetworkStream> = Box::new(Watched::over(TcpStream::connect(address).await?)?);
            Ok(line)
        })
    }
}

/// ... and where its clients' arrive.
struct Arrivals(TcpListener);

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Arrivals")
    }
}

impl Accept for Arrivals {
    fn accept(&self) -> Pending<'_, (Box<dyn NetworkStream>, IpAddr)> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            let line: Box<dyn NetworkStream> = Box::new(Watched::over(stream)?);
            Ok((line, peer.ip()))
        })
    }
}

// --- The hosts ---

/// How a request ended, and when.
type Outcome = (String, u16, Duration);

/// What the hosts of a storm have in common.
#[derive(Default)]
struct World {
    /// How often Ray saw each request, by method and number.
    seen: RefCell<BTreeMap<String, u32>>,
    outcomes: RefCell<Vec<Outcome>>,
    /// Clients that have asked all they wanted to while it stormed, and afterwards.
    through: [Cell<usize>; 2],
    /// The storm is over; nothing is replaced any more.
    calm: Cell<bool>,
    /// They may ask once more.
    again: Cell<bool>,
    proxy: RefCell<Option<Arc<ProxyState>>>,
    proxies: Cell<usize>,
    /// What may not happen, where a panic would end a task alone.
    faults: RefCell<Vec<String>>,
}

/// A head that answers each request with its number, sooner or later.
async fn ray(world: Rc<World>, dice: Dice) -> turmoil::Result {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (dice, world) = (dice.clone(), Rc::clone(&world));
        tokio::task::spawn_local(async move {
            let Ok(stream) = Watched::over(stream) else { return };
            let mut line = Client::over(stream);
            while let Ok(Some(head)) = timeout(Duration::from_secs(15), line.head()).await {
                let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
                let Ok(Some(body)) = timeout(Duration::from_secs(15), line.exact(length)).await else {
                    return;
                };
                if body.iter().any(|&byte| byte != b'b') {
                    world.faults.borrow_mut().push(format!("a body in which something else stands: {head}"));
                }
                let number = header(&head, "x-n").unwrap_or("none").to_owned();
                let method = head.split(' ').next().unwrap();
                *world.seen.borrow_mut().entry(format!("{method} {number}")).or_default() += 1;
                if let Some(answer) = answer_to(&number, &dice, world.calm.get()).await
                    && line.stream.write_all(answer.as_bytes()).await.is_err()
                {
                    return;
                }
            }
        });
    }
}

async fn answer_to(number: &str, dice: &Dice, calm: bool) -> Option<String> {
    let dice = dice.named(number);
    sleep(dice.ms(40)).await;
    // Now and then one that does not fit into what the network holds, and one that never comes.
    let length = match dice.below(20) {
        0 if !calm => return None,
        1 => 150_000,
        _ => dice.size(6000),
    };
    let text = format!("{number};{}", "f".repeat(length));
    Some(if dice.below(2) == 0 {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())
    } else {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        format!("{head}{:x}\r\n{text}\r\n0\r\n\r\n", text.len())
    })
}

/// The proxy, and what looks after it in service: limits and upstreams are replaced under it.
async fn proxy(world: Rc<World>, dice: Dice) -> turmoil::Result {
    let (tasks, clock) = (Tasks::default(), Clock::start());
    let (note, _sheds) = tokio::sync::mpsc::channel(1 << 16);
    let mut policy = policy();
    for class in &mut policy.classes {
        class.timeout = class.timeout.map(|_| Duration::from_secs(20));
    }
    let identifier = Identifier::new([1, 2], Vec::new(), Vec::new());
    let proxy = ProxyState::new(Arc::new(policy), identifier, clock, tasks.clone(), note);
    world.proxies.set(world.proxies.get() + 1);
    let dice = dice.named(&world.proxies.get().to_string());
    *world.proxy.borrow_mut() = Some(Arc::clone(&proxy));
    let new_routing = || routing(&proxy, clock, &tasks);
    let state = ListenerState::new(Arc::clone(&proxy), new_routing());
    let bounds = ListenerLimits {
        head_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(20),
        stall_timeout: Duration::from_secs(10),
        abandoned_max: Duration::from_secs(20),
        ..ListenerLimits::default()
    };
    let arrivals: Box<dyn Accept> = Box::new(Arrivals(TcpListener::bind(("0.0.0.0", PORT)).await?));
    tasks.spawn(listen::serve(arrivals, Arc::clone(&state), tasks.clone(), bounds));
    loop {
        if !world.calm.get() {
            reload(&proxy, &state, &dice, new_routing);
        }
        for _ in 0..=dice.below(50) {
            proxy.pump();
            sleep(Duration::from_millis(20)).await;
        }
        state.load().routing.upstream.sweep();
    }
}

/// A state for the same proxy, whose connections to Ray are all new.
fn routing(proxy: &Arc<ProxyState>, clock: Clock, tasks: &Tasks) -> Arc<Routing> {
    let classifier = Classifier::new(&proxy.policy, Surface::Dashboard, &[]).unwrap();
    let options = Options { connect_timeout: Duration::from_secs(1), ..Options::default() };
    let address = Address::Tcp(format!("ray:{PORT}"));
    let upstream = Upstream::over(Some(Arc::new(Way)), address, options, clock, tasks.clone());
    Arc::new(Routing::new(Surface::Dashboard, classifier, upstream))
}

/// New limits, and now and then a new upstream, while requests are under way.
fn reload(
    proxy: &Arc<ProxyState>,
    state: &ArcSwap<ListenerState>,
    dice: &Dice,
    routing: impl Fn() -> Arc<Routing>,
) {
    let mut table = (**proxy.table.load()).clone();
    table.version += 1;
    for name in ["job-submit", "job-list", "job-status"] {
        let limits = &mut table.classes[class(name).index()];
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let limit = dice.below(6) as f64;
        limits.in_flight = limit + 1.0;
    }
    proxy.set_table(Arc::new(table));
    if dice.below(3) == 0 {
        state.store(Arc::new(ListenerState { proxy: Arc::clone(proxy), routing: routing() }));
    }
}

/// A client that asks for this and that, and begins anew when its line breaks.
async fn client(world: Rc<World>, who: usize, dice: Dice) -> turmoil::Result {
    ask(&world, who, REQUESTS, &dice).await;
    world.through[0].set(world.through[0].get() + 1);
    while !world.again.get() {
        sleep(Duration::from_millis(50)).await;
    }
    ask(&world, who, CALM_REQUESTS, &dice).await;
    world.through[1].set(world.through[1].get() + 1);
    Ok(())
}

async fn ask(world: &World, who: usize, requests: usize, dice: &Dice) {
    let mut line = None;
    for n in 0..requests {
        sleep(dice.ms(300)).await;
        let number = format!("{who}.{n}.{requests}");
        let (request, body) = match dice.below(5) {
            0 => ("POST /api/jobs/", 1 + dice.size(9000)),
            1 => ("GET /api/jobs/", 0),
            2 => ("GET /api/v0/tasks", 0),
            3 => ("GET /api/version", 0),
            _ => ("GET /api/jobs/1", 0),
        };
        let head = format!(
            "{request} HTTP/1.1\r\nhost: ray\r\nx-n: {number}\r\ncontent-length: {body}\r\n\r\n{}",
            "b".repeat(body)
        );
        // The client's patience is shorter than the others': the proxy, or Ray, loses its client now and then.
        let patience = Duration::from_millis(200 + dice.below(8000));
        let answered = timeout(patience, async {
            if line.is_none() {
                let stream = TcpStream::connect(("proxy", PORT)).await.ok()?;
                line = Some(Client::over(Watched::over(stream).ok()?));
            }
            let client = line.as_mut()?;
            client.try_send(head).await;
            client.try_answer().await
        });
        let status = if let Ok(Some(answer)) = answered.await {
            let own = answer.text();
            let own = own.split(';').next().unwrap();
            let known = [200, 400, 408, 429, 502, 503, 504].contains(&answer.status);
            if !known || (answer.status == 200 && own != number) {
                let text = format!("{number} was answered {}, {own}", answer.status);
                world.faults.borrow_mut().push(text);
            }
            if answer.header("connection") == Some("close") {
                line = None;
            }
            answer.status
        } else {
            line = None;
            0
        };
        let now = turmoil::sim_elapsed().unwrap_or_default();
        world.outcomes.borrow_mut().push((number, status, now));
    }
}

// --- The weather ---

/// One change of the network; most storms are of one kind.
fn turn(sim: &mut Sim<'_>, clients: &[String], dice: &Dice) {
    for name in clients {
        change(sim, name, "proxy", dice);
    }
    change(sim, "proxy", "ray", dice);
    match dice.below(30) {
        0 => sim.bounce("ray"),
        1 => sim.crash("ray"),
        2 => sim.bounce("proxy"),
        _ if !sim.is_host_running("ray") => sim.bounce("ray"),
        _ => {}
    }
}

fn change(sim: &Sim<'_>, a: &str, b: &str, dice: &Dice) {
    sim.release(a, b);
    let late_ms = [0, 5, 50, 800][dice.size(4)];
    sim.set_link_max_message_latency(a, b, Duration::from_millis(late_ms));
    match dice.below(16) {
        0 => sim.partition(a, b),
        1 => sim.partition_oneway(a, b),
        2 => sim.partition_oneway(b, a),
        3 => sim.hold(a, b),
        _ => {}
    }
}

fn clear(sim: &mut Sim<'_>, clients: &[String]) {
    let links = clients.iter().map(|name| (name.as_str(), "proxy")).chain([("proxy", "ray")]);
    for (a, b) in links {
        sim.release(a, b);
        sim.set_link_max_message_latency(a, b, Duration::from_millis(5));
    }
    if !sim.is_host_running("ray") {
        sim.bounce("ray");
    }
}

/// Lets time pass until something holds; the bound is there so that a failing seed ends.
fn pass_until(sim: &mut Sim<'_>, holds: impl Fn() -> bool) {
    let end = sim.elapsed() + Duration::from_secs(1200);
    while !holds() {
        assert!(sim.elapsed() < end, "twenty minutes, and it never came to pass");
        sim.step().unwrap();
    }
}

fn pass(sim: &mut Sim<'_>, time: Duration) {
    let end = sim.elapsed() + time;
    while sim.elapsed() < end {
        sim.step().unwrap();
    }
}

/// tokio numbers its tasks through the whole process, and ends those of a host that dies in an order
/// that depends on their numbers: each storm begins at a multiple of the same power of two.
fn begin_at_a_round_number() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let round = || {
        let task = runtime.spawn(async {});
        task.id().to_string().parse::<u64>().unwrap() % 1024 == 1023
    };
    while !round() {}
}

/// A seed's storm from beginning to end: how each request ended, and all that was seen.
fn storm(seed: u64) -> (Vec<Outcome>, Vec<Sight>) {
    TRACE.take();
    begin_at_a_round_number();
    let (world, dice) = (Rc::new(World::default()), Dice::of(seed));
    let mut sim = Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(7200))
        .build();
    sim.host("ray", {
        let (world, dice) = (Rc::clone(&world), dice.named("ray"));
        move || ray(Rc::clone(&world), dice.clone())
    });
    sim.host("proxy", {
        let (world, dice) = (Rc::clone(&world), dice.named("proxy"));
        move || proxy(Rc::clone(&world), dice.clone())
    });
    let clients: Vec<String> = (0..CLIENTS).map(|who| format!("client-{who}")).collect();
    for (who, name) in clients.iter().enumerate() {
        sim.client(name.as_str(), client(Rc::clone(&world), who, dice.named(name)));
    }

    // Safety: whatever the network does, each client gets its own answer or a refusal, and nothing is sent
    // twice but a GET that met the end of its connection.
    let dice = dice.named("weather");
    while world.through[0].get() < CLIENTS {
        turn(&mut sim, &clients, &dice);
        pass(&mut sim, Duration::from_millis(100 + dice.below(1500)));
    }
    let stormy = world.outcomes.borrow().len();
    assert_eq!(stormy, CLIENTS * REQUESTS);

    // Liveness: the storm is over, and what it left behind goes within the bounds that were set.
    clear(&mut sim, &clients);
    world.calm.set(true);
    pass(&mut sim, Duration::from_secs(60));
    {
        let proxy = world.proxy.borrow();
        let proxy = proxy.as_ref().unwrap();
        for class in CLASSES {
            let at = proxy.admission.load(rig::class(class.name));
            assert_eq!(at, (0, 0), "{}: under way and waiting, a minute after", class.name);
        }
        assert_eq!(proxy.connections.count(), 0, "connections, a minute after");
    }
    world.again.set(true);
    pass_until(&mut sim, || world.through[1].get() == CLIENTS);
    let outcomes = world.outcomes.take();
    let calm = &outcomes[stormy..];
    let refused = calm.iter().filter(|outcome| ![200, 429, 503].contains(&outcome.1)).collect::<Vec<_>>();
    assert!(refused.is_empty() && calm.iter().any(|outcome| outcome.1 == 200), "{calm:?}");
    let seen = world.seen.take();
    let often = |(request, times): (&String, &u32)| *times > 1 + u32::from(request.starts_with("GET "));
    assert!(!seen.iter().any(often), "a GET more than twice, or a POST more than once: {seen:?}");
    assert!(world.faults.borrow().is_empty(), "{:?}", world.faults.borrow());
    (outcomes, TRACE.take())
}

fn seeds() -> std::ops::Range<u64> {
    let given = std::env::var_os("NETWORK_SEEDS").and_then(|text| text.into_string().ok());
    let range = given.as_deref().and_then(|text| text.split_once(".."));
    range.map_or(0..3, |(from, to)| from.parse().unwrap()..to.parse().unwrap())
}

/// Where two traces part, if they do.
fn parting(first: &[Sight], second: &[Sight]) -> Option<String> {
    let at = (0..first.len().max(second.len())).find(|&at| first.get(at) != second.get(at))?;
    let shown = |trace: &[Sight]| format!("{:?}", &trace[at.saturating_sub(3)..trace.len().min(at + 3)]);
    Some(format!("at {at} of {}:\n{}\n{}", first.len(), shown(first), shown(second)))
}

#[test]
fn a_bad_network_mixes_nothing_up_repeats_nothing_leaves_nothing_behind_and_a_seed_is_a_storm() {
    let (mut by_status, mut count, mut sights) = (BTreeMap::new(), 0, 0);
    for seed in seeds() {
        let again = format!("failed; again: NETWORK_SEEDS={seed}..{}", seed + 1);
        let run = || std::panic::catch_unwind(|| storm(seed)).unwrap_or_else(|_| panic!("{again}"));
        let ((outcomes, trace), (same_outcomes, same_trace)) = (run(), run());
        if let Some(parting) = parting(&trace, &same_trace) {
            panic!("one seed, two storms; {again}\n{parting}");
        }
        assert_eq!(outcomes, same_outcomes, "{again}");
        sights += trace.len();
        for (_, status, _) in outcomes {
            *by_status.entry(status).or_insert(0_u32) += 1;
            count += 1;
        }
    }
    assert!(by_status.get(&200) > Some(&(count / 4)), "most of a storm is weathered: {by_status:?}");
    assert!(by_status.get(&0) > Some(&0), "and some of it is not: {by_status:?}");
    println!("{} seeds, {sights} reads and writes, by status: {by_status:?}", seeds().count());
}
