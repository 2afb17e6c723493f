//! A bad network between clients and door, and between door and Ray: late, cut, one way only, reset,
//! while limits and upstreams are replaced. In virtual time, by seed.
//!
//! Clients, door and Ray run on one thread under tokio's paused clock: time passes only when nobody has
//! anything to do, so an hour of time-outs takes a moment. They talk over Unix sockets, whose bytes are
//! there as soon as they are written; what makes the network bad are relays between them, which draw
//! delays, cuts and resets from the seed. (Turmoil would put its own sockets in the place of the
//! door's; this leaves the door as it is shipped.)
//!
//! A seed fixes what each client asks and what becomes of each line. It does not fix which of two tasks
//! tokio wakes first at one moment, so a failing seed brings back the same storm, and rarely needs a second run.
//!
//!     cargo test --test network                              the seeds of every run
//!     NETWORK_SEEDS=1000..3000 cargo test --test network     others; one that fails is named
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "door/rig.rs"]
mod rig;

use arc_swap::ArcSwap;
use rayguard::config::settings;
use rayguard::core::request::catalogue::{CLASSES, Surface};
use rayguard::core::request::classify::Classifier;
use rayguard::core::request::identify::Identifier;
use rayguard::proxy::door::{Door, Entrance, Front};
use rayguard::proxy::listen::{self, Bounds, Listener};
use rayguard::proxy::upstream::{Address, Options, Upstream};
use rayguard::runtime::clock::Clock;
use rayguard::runtime::tasks::Tasks;
use rig::{Client, class, header, policy};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

const CLIENTS: usize = 8;
const REQUESTS: usize = 25;

/// SplitMix64. Each line and each client has dice of its own, drawn from the seed by name.
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

    fn ms(&self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }
}

/// What the network is like at the moment.
#[derive(Default)]
struct Weather {
    /// A piece is late by up to so many milliseconds.
    late_ms: Cell<u64>,
    /// Of a thousand pieces, so many end their line.
    resets: Cell<u64>,
    /// Nothing gets through: to the far end, and back from it.
    cut: [Cell<bool>; 2],
}

impl Weather {
    /// One change; most storms are of one kind.
    fn turn(&self, dice: &Dice) {
        self.late_ms.set([0, 5, 50, 800][usize::try_from(dice.below(4)).unwrap()]);
        self.resets.set([0, 0, 20, 200][usize::try_from(dice.below(4)).unwrap()]);
        self.cut[0].set(dice.below(6) == 0);
        self.cut[1].set(dice.below(6) == 0);
    }

    fn clear(&self) {
        self.late_ms.set(0);
        self.resets.set(0);
        self.cut.iter().for_each(|cut| cut.set(false));
    }
}

/// One way of a line; whether it ended in order.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: usize,
    weather: Rc<Weather>,
    dice: Dice,
) -> bool {
    let mut piece = vec![0; 1500];
    loop {
        let room = 1 + usize::try_from(dice.below(1500)).unwrap();
        let Ok(read) = from.read(&mut piece[..room]).await else { return false };
        sleep(dice.ms(weather.late_ms.get() + 1)).await;
        while weather.cut[way].get() {
            sleep(Duration::from_millis(50)).await;
        }
        if dice.below(1000) < weather.resets.get() {
            return false;
        }
        if read == 0 {
            return to.shutdown().await.is_ok();
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return false;
        }
    }
}

/// Lines from one socket to another, as good as the weather.
fn relay(at: &Path, to: &Path, weather: &Rc<Weather>, dice: &Dice) {
    let listener = UnixListener::bind(at).unwrap();
    let (to, weather, dice) = (to.to_owned(), Rc::clone(weather), dice.clone());
    spawn_local(async move {
        let mut lines = 0;
        while let Ok((near, _)) = listener.accept().await {
            lines += 1;
            let dice = |way| dice.named(&format!("{lines} {way} {:?}", to.file_name()));
            let Ok(far) = UnixStream::connect(&to).await else { continue };
            let ((near_from, near_to), (far_from, far_to)) = (near.into_split(), far.into_split());
            let there = carry(near_from, far_to, 0, Rc::clone(&weather), dice("there"));
            let back = carry(far_from, near_to, 1, Rc::clone(&weather), dice("back"));
            spawn_local(async move {
                let (mut there, mut back) = (std::pin::pin!(there), std::pin::pin!(back));
                // A reset takes both ways down; an end in order only its own.
                let (in_order, other_way) = tokio::select! {
                    in_order = &mut there => (in_order, 1),
                    in_order = &mut back => (in_order, 0),
                };
                if in_order && other_way == 1 {
                    back.await;
                }
            });
        }
    });
}

/// A head that answers each request with its number, sooner or later; how often it saw each.
fn ray(at: &Path, dice: &Dice, seen: &Rc<RefCell<BTreeMap<String, u32>>>) {
    let listener = UnixListener::bind(at).unwrap();
    let (dice, seen) = (dice.clone(), Rc::clone(seen));
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (dice, seen) = (dice.clone(), Rc::clone(&seen));
            spawn_local(async move {
                let mut line = Client::over(stream);
                while let Ok(Some(head)) = timeout(Duration::from_secs(15), line.head()).await {
                    let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
                    let body = timeout(Duration::from_secs(15), line.exact(length)).await;
                    let Ok(Some(body)) = body else { return };
                    assert!(body.iter().all(|&byte| byte == b'b'), "a body in which something else stands");
                    let number = header(&head, "x-n").unwrap_or("none").to_owned();
                    *seen.borrow_mut().entry(number.clone()).or_default() += 1;
                    let dice = dice.named(&number);
                    sleep(dice.ms(40)).await;
                    let filling = "f".repeat(usize::try_from(dice.below(6000)).unwrap());
                    let text = format!("{number};{filling}");
                    let answer = if dice.below(2) == 0 {
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())
                    } else {
                        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                        format!("{head}{:x}\r\n{text}\r\n0\r\n\r\n", text.len())
                    };
                    if line.stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// How a request ended, and when.
type Outcome = (String, u16, u64);

/// A client that asks for this and that, and begins anew when its line breaks.
async fn ask_on(
    door: PathBuf,
    who: usize,
    requests: usize,
    dice: Dice,
    begin: Clock,
    outcomes: Rc<RefCell<Vec<Outcome>>>,
) {
    let mut line = None;
    for n in 0..requests {
        sleep(dice.ms(300)).await;
        let number = format!("{who}.{n}.{requests}");
        if line.is_none() {
            line = UnixStream::connect(&door).await.ok().map(Client::over);
        }
        let Some(client) = &mut line else { continue };
        let (request, body) = match dice.below(5) {
            0 => ("POST /api/jobs/", 1 + usize::try_from(dice.below(9000)).unwrap()),
            1 => ("GET /api/jobs/", 0),
            2 => ("GET /api/v0/tasks", 0),
            3 => ("GET /api/version", 0),
            _ => ("GET /api/jobs/1", 0),
        };
        let head = format!(
            "{request} HTTP/1.1\r\nhost: ray\r\nx-forwarded-for: 10.0.0.{who}\r\nx-n: {number}\r\n\
             content-length: {body}\r\n\r\n{}",
            "b".repeat(body)
        );
        client.try_send(head).await;
        // Patience is shorter than anybody else's: whoever is asked loses its client now and then.
        let patience = Duration::from_millis(200 + dice.below(8000));
        let status = if let Ok(Some(answer)) = timeout(patience, client.try_answer()).await {
            if answer.status == 200 {
                let text = answer.text();
                let own = text.split(';').next().unwrap();
                assert_eq!(own, number, "somebody else's answer");
            }
            let known = [200, 400, 408, 429, 502, 503, 504].contains(&answer.status);
            assert!(known, "{number}: {} {}", answer.head, answer.text());
            if answer.header("connection") == Some("close") {
                line = None;
            }
            answer.status
        } else {
            line = None;
            0
        };
        outcomes.borrow_mut().push((number, status, begin.now().0 / 1_000_000));
    }
}

/// A front to the same door, whose connections to Ray are all new.
fn entrance(door: &Arc<Door>, ray: &Path, clock: Clock, tasks: &Tasks) -> Arc<Entrance> {
    let classifier = Classifier::new(&door.policy, Surface::Dashboard, &[]).unwrap();
    let options = Options { connect_timeout: Duration::from_secs(1), ..Options::default() };
    let upstream = Upstream::new(Address::Unix(ray.to_owned()), options, clock, tasks.clone());
    Arc::new(Entrance::new(Surface::Dashboard, classifier, upstream))
}

/// New limits, and now and then a new upstream, while requests are under way.
fn reload(door: &Arc<Door>, front: &ArcSwap<Front>, dice: &Dice, entrance: impl Fn() -> Arc<Entrance>) {
    let mut table = (**door.table.load()).clone();
    table.version += 1;
    for name in ["job-submit", "job-list", "job-status"] {
        let limits = &mut table.classes[class(name).index()];
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let limit = dice.below(6) as f64;
        limits.in_flight = limit + 1.0;
    }
    door.set_table(Arc::new(table));
    if dice.below(3) == 0 {
        front.store(Arc::new(Front { door: Arc::clone(door), entrance: entrance() }));
    }
}

async fn storm(seed: u64, dir: &Path) -> Vec<Outcome> {
    let dice = Dice::of(seed);
    let at = |name: &str| dir.join(name);
    let seen = Rc::new(RefCell::new(BTreeMap::new()));
    let (before, behind) = (Rc::new(Weather::default()), Rc::new(Weather::default()));
    ray(&at("ray"), &dice, &seen);
    relay(&at("to-ray"), &at("ray"), &behind, &dice);
    relay(&at("to-door"), &at("door"), &before, &dice);

    let (tasks, clock) = (Tasks::default(), Clock::start());
    let (note, _sheds) = tokio::sync::mpsc::channel(1 << 16);
    let identifier = Identifier::new([1, 2], vec!["127.0.0.1/32".parse().unwrap()], Vec::new());
    let door = Door::new(Arc::new(policy()), identifier, clock, tasks.clone(), note);
    let new_entrance = || entrance(&door, &dir.join("to-ray"), clock, &tasks);
    let front = Front::new(Arc::clone(&door), new_entrance());
    let listener = Listener::bind(&settings::Address::Unix(at("door"))).await.unwrap();
    let bounds = Bounds { abandoned_max: Duration::from_secs(20), ..Bounds::default() };
    tasks.spawn(listen::serve(listener, Arc::clone(&front), tasks.clone(), bounds));

    let begin = clock;
    let outcomes = Rc::new(RefCell::new(Vec::new()));
    let ask = |requests: usize| {
        let clients = (0..CLIENTS).map(|who| {
            spawn_local(ask_on(
                at("to-door"),
                who,
                requests,
                dice.named(&format!("{who} {requests}")),
                begin,
                Rc::clone(&outcomes),
            ))
        });
        clients.collect::<Vec<_>>()
    };
    // Safety: whatever the network does, each client gets its own answer or a refusal, and nothing is sent twice.
    let mut clients = ask(REQUESTS);
    let dice = dice.named("weather");
    while clients.iter().any(|client| !client.is_finished()) {
        before.turn(&dice);
        behind.turn(&dice);
        reload(&door, &front, &dice, new_entrance);
        sleep(Duration::from_millis(100 + dice.below(1500))).await;
    }
    for client in clients.drain(..) {
        client.await.unwrap();
    }
    assert_eq!(outcomes.borrow().len(), CLIENTS * REQUESTS);
    assert!(seen.borrow().values().all(|&times| times == 1), "sent twice: {:?}", seen.borrow());

    // Liveness: the storm is over, and what it left behind goes within the bounds that were set.
    before.clear();
    behind.clear();
    sleep(Duration::from_mins(1)).await;
    for class in CLASSES {
        let at = door.gate.load(rig::class(class.name));
        assert_eq!(at, (0, 0), "{}: under way and waiting, a minute after", class.name);
    }
    assert_eq!(door.connections.count(), 0, "connections, a minute after");
    let stormy = outcomes.borrow().len();
    for client in ask(3) {
        client.await.unwrap();
    }
    let calm: Vec<_> = outcomes.borrow()[stormy..].to_vec();
    let refused = calm.iter().filter(|outcome| ![200, 429, 503].contains(&outcome.1)).collect::<Vec<_>>();
    assert!(refused.is_empty() && calm.iter().any(|outcome| outcome.1 == 200), "{calm:?}");
    tasks.close();
    outcomes.take()
}

/// A seed's storm from beginning to end; how each request ended.
fn run(seed: u64) -> Vec<Outcome> {
    let dir = std::env::temp_dir().join(format!("rayguard-network-{}-{seed}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let outcomes = LocalSet::new().block_on(&runtime, storm(seed, &dir));
    drop(runtime);
    let _ = std::fs::remove_dir_all(&dir);
    outcomes
}

fn seeds() -> std::ops::Range<u64> {
    let given = std::env::var_os("NETWORK_SEEDS").and_then(|text| text.into_string().ok());
    let range = given.as_deref().and_then(|text| text.split_once(".."));
    range.map_or(0..12, |(from, to)| from.parse().unwrap()..to.parse().unwrap())
}

#[test]
fn a_bad_network_mixes_nothing_up_repeats_nothing_and_leaves_nothing_behind() {
    let (mut by_status, mut count) = (BTreeMap::new(), 0);
    for seed in seeds() {
        let ended = std::panic::catch_unwind(|| run(seed));
        let outcomes = ended.unwrap_or_else(|_| panic!("failed; again: NETWORK_SEEDS={seed}..{}", seed + 1));
        for (_, status, _) in outcomes {
            *by_status.entry(status).or_insert(0_u32) += 1;
            count += 1;
        }
    }
    assert!(by_status.get(&200) > Some(&(count / 4)), "most of a storm is weathered: {by_status:?}");
    assert!(by_status.get(&0) > Some(&0), "and some of it is not: {by_status:?}");
    println!("{} seeds, by status: {by_status:?}", seeds().count());
}
