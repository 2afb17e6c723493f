//! Inputs that no ordinary client sends: code that reads input from outside must neither panic, nor
//! hang, nor grow.
//!
//! A mutational fuzzer that knows the shape of what it breaks: it starts from real inputs (pages of
//! a real head, the shipped configuration, traffic traces, records, the shapes of `smuggling/`), puts words
//! of their languages where they do not belong, splices them, and cuts them short. The same seed gives
//! the same inputs. Fuzzing that is guided by coverage stands beside it: `fuzz/run`.
//!
//!     cargo test --test fuzz                                            a moment for each reader
//!     FUZZ_SECONDS=600 FUZZ_SEED=7 cargo test --release --test fuzz -- --nocapture
//!
//! An input that fails is written down and named; kept in `fuzz/<reader>/`, it is read again first
//! in every run.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(clippy::print_stdout, reason = "how many inputs there were")]

#[path = "proxy/rig.rs"]
mod rig;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use rayguard::config::settings::Address;
use rayguard::config::{self, Overrides};
use rayguard::core::event::Event;
use rayguard::core::request::catalogue::{CLASSES, Surface};
use rayguard::core::request::classify::Classifier;
use rayguard::core::request::facts::Facts;
use rayguard::core::request::identify::Identifier;
use rayguard::core::request::path::normalise;
use rayguard::core::signal::series::SignalReader;
use rayguard::core::time::{Time, WallMs};
use rayguard::observe::adjustment_log::{self, LogLine, Reader};
use rayguard::proxy::clock::Clock;
use rayguard::proxy::headers::{self, Lookup};
use rayguard::proxy::listen::{Listener, ListenerLimits};
use rayguard::proxy::ratelimit::Service;
use rayguard::proxy::ratelimit::message::{Descriptor, Entry, RateLimitRequest};
use rayguard::proxy::tasks::Tasks;
use rayguard::proxy::upstream::{self, Upstream};
use rayguard::proxy::websocket::Frames;
use rayguard::proxy::{proxy_protocol, state as proxy_state, tunnel};
use rayguard::replicas::Replica;
use rayguard::replicas::store::Told;
use rayguard::runtime::app::{App, Outlets};
use rayguard::{core::traffic_trace, sim::trace};
use rig::{Rig, Setup, get};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

// --- The fuzzer ---

/// SplitMix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`; 0 when there is nothing below it.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound.max(1) as u64).unwrap()
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// Bytes that mean something to somebody.
const BYTES: &[u8] = b"\0\x01\t\n\r \"#%&'(),-./0:;<=>?@[\\]{|}\x7f\x80\xc0\xe2\xff";
/// Words that mean something to everybody.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n\n",
    b"NaN",
    b"-Inf",
    b"1e308",
    b"-0",
    b"18446744073709551615",
    b"9223372036854775808",
    b"0x1p-1074",
    b"4294967296",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"%00",
    b"%2e%2e",
    b"\\u0000",
    b"\\\\",
    b"''",
    b"\"\"",
];

/// No input is longer.
const LENGTH_MAX: usize = 16 * 1024;

/// One step away from an input, in some direction.
fn mutate(dice: &mut Dice, input: &mut Vec<u8>, others: &[&[u8]], words: &[&[u8]]) {
    let at = dice.below(input.len() + 1);
    let end = at + dice.below(input.len() - at + 1).min(1 << dice.below(9));
    match dice.below(10) {
        0 if at < input.len() => input[at] ^= 1 << dice.below(8),
        1 if at < input.len() => input[at] = BYTES[dice.below(BYTES.len())],
        2 => input.insert(at, BYTES[dice.below(BYTES.len())]),
        3 => drop(input.drain(at..end)),
        4 => {
            let again = input[at..end].repeat(1 + dice.below(8));
            input.splice(at..at, again);
        }
        5 => input.truncate(at),
        6 | 7 => {
            let word = if dice.below(3) == 0 { dice.pick(WORDS) } else { dice.pick(words) };
            input.splice(at..end, word.iter().copied());
        }
        8 => {
            let other = dice.pick(others);
            let from = dice.below(other.len() + 1);
            let to = from + dice.below(other.len() - from + 1).min(256);
            input.splice(at..end, other[from..to].iter().copied());
        }
        _ => {
            // A number becomes another.
            if let Some(digit) = (at..input.len()).find(|&place| input[place].is_ascii_digit()) {
                let end =
                    (digit..input.len()).find(|&end| !input[end].is_ascii_digit()).unwrap_or(input.len());
                let number = match dice.below(4) {
                    0 => (dice.roll() >> dice.below(64)).to_string(),
                    1 => format!("-{}", dice.below(100)),
                    2 => format!("{}e{}", dice.below(10), dice.below(400)),
                    _ => "0".repeat(dice.below(30)),
                };
                input.splice(digit..end, number.into_bytes());
            }
        }
    }
    input.truncate(LENGTH_MAX);
}

/// What a reader is fed with.
struct Food<'a> {
    inputs: Vec<&'a [u8]>,
    words: &'a [&'a [u8]],
}

/// Panics anywhere in this process, tasks included.
static PANICS: AtomicU64 = AtomicU64::new(0);
/// One reader at a time: memory is the process's.
static ALONE: Mutex<()> = Mutex::new(());
/// What is being read, and how many were before it.
static READING: Mutex<(Vec<u8>, u64)> = Mutex::new((Vec::new(), 0));

/// Longer than this is for ever.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than what a reader's own tables and the allocator's habits come to.
const GROWTH_MAX_MIB: usize = 48;

fn variable<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var_os(name).and_then(|text| text.to_str()?.parse().ok()).unwrap_or(default)
}

fn resident_mib() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    (text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096) >> 20
}

/// Feeds a reader for a while. `make` mutates an input of the food.
fn fuzz(name: &str, make: impl Fn(&mut Dice) -> Vec<u8>, read: impl Fn(&[u8])) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, SeqCst);
            usual(panic);
        }));
    });
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    PANICS.store(0, SeqCst);
    let seed = variable("FUZZ_SEED", 1);
    let length = Duration::from_secs_f64(variable("FUZZ_SECONDS", 1.0));
    let clock = Clock::start();
    let over = AtomicU64::new(0);
    let count = std::thread::scope(|scope| {
        scope.spawn(|| watch(name, &over));
        let kept = kept(name);
        for (file, input) in &kept {
            try_one(&format!("{name}, kept as {}", file.display()), input, &read);
        }
        let mut dice = Dice(seed);
        let (mut count, mut before) = (kept.len() as u64, None);
        while clock.now().since(Time::ZERO) < length {
            for _ in 0..16 {
                try_one(name, &make(&mut dice), &read);
                count += 1;
            }
            if before.is_none() && clock.now().since(Time::ZERO) * 4 > length {
                before = Some(resident_mib());
            }
        }
        let grown = resident_mib().saturating_sub(before.unwrap_or(usize::MAX));
        over.store(1, SeqCst);
        assert!(grown <= GROWTH_MAX_MIB, "{name} grew by {grown} MiB in {count} inputs, seed {seed}");
        count
    });
    println!("{name}: {count} inputs, seed {seed}: no panic, no hang, no growth");
}

/// Inputs that failed once.
fn kept(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name);
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), std::fs::read(file).unwrap())).collect()
}

fn try_one(name: &str, input: &[u8], read: &impl Fn(&[u8])) {
    {
        let mut reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
        reading.0.clear();
        reading.0.extend_from_slice(input);
        reading.1 += 1;
    }
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| read(input)));
    let well = ended.is_ok() && PANICS.load(SeqCst) == 0;
    assert!(well, "{name} panicked; its input is {}", save(name, input));
}

fn save(name: &str, input: &[u8]) -> String {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{:x}", fold(input)));
    std::fs::write(&file, input).unwrap();
    format!("{}: {:?}", file.display(), String::from_utf8_lossy(&input[..input.len().min(400)]))
}

/// FNV-1a: a name for an input.
fn fold(input: &[u8]) -> u64 {
    input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Ends the process when one input takes for ever.
fn watch(name: &str, over: &AtomicU64) {
    let (mut seen, mut since) = (0, Clock::start());
    while over.load(SeqCst) == 0 && PANICS.load(SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(20));
        let reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
        if reading.1 != seen {
            (seen, since) = (reading.1, Clock::start());
        } else if since.now().since(Time::ZERO) > PATIENCE {
            eprintln!("{name} hangs; its input is {}", save(name, &reading.0));
            std::process::abort();
        }
    }
}

impl Food<'_> {
    /// One input, a few steps away from what it was.
    fn serve(&self, dice: &mut Dice) -> Vec<u8> {
        let mut input = dice.pick(&self.inputs).to_vec();
        // A large file by parts: otherwise most steps hit what is never looked at.
        if input.len() > 4096 {
            let from = dice.below(input.len() - 2048);
            let first = input.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1).min(4096);
            let line = from + input[from..].iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            input = [&input[..first], &input[line.max(first)..(line + 2048).min(input.len()).max(first)]]
                .concat();
        }
        for _ in 0..dice.below(6) {
            mutate(dice, &mut input, &self.inputs, self.words);
        }
        input
    }
}

fn lines(text: &str) -> impl Iterator<Item = &[u8]> {
    text.lines().filter(|line| !line.starts_with('#')).map(str::as_bytes)
}

// --- What is read ---

#[test]
fn pages_of_metrics() {
    let settings = config::parse("upstream = 'http://127.0.0.1:1'", "a", &Overrides::default()).unwrap();
    let words: [&[u8]; 14] = [
        b"ray_node_cpu_utilization{IsHeadNode=\"true\"} ",
        b"ray_tasks{State=\"PENDING_NODE_ASSIGNMENT\"} -5\n",
        b"{",
        b"}",
        b"=\"",
        b"\",",
        b"# EOF\n",
        b"# HELP ",
        b"# TYPE a histogram\n",
        b"_bucket{le=\"+Inf\"} ",
        b" 1700000000000\n",
        b"\\\"",
        b"<html>",
        b" # {a=\"b\"} 1\n",
    ];
    let food = Food {
        inputs: vec![
            include_bytes!("fixtures/ray/scrapes/idle0_8080.prom"),
            include_bytes!("fixtures/ray/scrapes/idle0_44227.prom"),
            include_bytes!("fixtures/ray/scrapes/jobburst_8080.prom"),
            include_bytes!("fixtures/ray/scrapes/tasks1000_actors50_8080.prom"),
            include_bytes!("fixtures/ray/scrapes/wedged_tail_44227.prom"),
        ],
        words: &words,
    };
    // It remembers what it has seen, as the proxy's own does; time goes on.
    let reader = RefCell::new((SignalReader::new(&settings.policy), Time::ZERO));
    let make = |dice: &mut Dice| {
        let mut page = food.serve(dice);
        if dice.below(8) > 0 {
            page.push(b'\n');
        }
        page
    };
    fuzz("exposition", make, |page| {
        let (reader, now) = &mut *reader.borrow_mut();
        *now = *now + Duration::from_secs(5);
        let target = ["a:1", "b:2", "c:3"][page.len() % 3];
        if let Ok(counts) = reader.on_scrape(target, page, *now, WallMs(now.0 / 1_000_000)) {
            assert_eq!(counts.bytes, page.len());
        }
        for (_, reading) in reader.readings(*now) {
            assert!(reading.map_or(true, |it| it.value.is_finite()));
        }
    });
}

#[test]
fn configurations() {
    let words: [&[u8]; 20] = [
        b"[class.job-list]\n",
        b"[[listen]]\n",
        b"[[route]]\n",
        b"rate = \"",
        b"in_flight = ",
        b"{ initial = 1, min = 2, max = 3 }",
        b"\"5/s\"",
        b"\"1 GiB\"",
        b"\"500ms\"",
        b"\"off\"",
        b"law = \"pid\"\n",
        b"[signal.x]\n",
        b"promql = \"",
        b"\"\"\"",
        b"'''",
        b"= [",
        b"# ",
        b"upstream = \"unix:/\"\n",
        b"http://[::1]:",
        b"slo = \"p99 < 1s\"\n",
    ];
    let food = Food {
        inputs: vec![
            include_bytes!("../config/rayguard.toml"),
            include_bytes!("../config/minimal.toml"),
            include_bytes!("../simulations/servers-step.toml"),
            b"upstream = 'http://127.0.0.1:8265'\n[class.job-submit]\nrate = '4/s'\nin_flight = { initial = 8, min = 1, max = 32 }\n",
        ],
        words: &words,
    };
    fuzz(
        "config",
        |dice| food.serve(dice),
        |text| {
            let text = String::from_utf8_lossy(text);
            match config::parse(&text, "fuzz.toml", &Overrides::default()) {
                Ok(settings) => assert!(!settings.policy.classes.is_empty()),
                Err(problems) => assert!(!problems.to_string().is_empty()),
            }
        },
    );
}

#[test]
fn paths_and_clients() {
    let settings = config::parse("upstream = 'http://127.0.0.1:1'", "a", &Overrides::default()).unwrap();
    let classifier = Classifier::new(&settings.policy, Surface::Dashboard, &[]).unwrap();
    let identifier =
        Identifier::new([1, 2], vec!["127.0.0.0/8".parse().unwrap()], vec!["x-forwarded-user".into()])
            .with_keys("x-rayguard-key".into(), vec![[7; 32]]);
    let words: [&[u8]; 22] = [
        b"/",
        b"//",
        b"/..",
        b"/.",
        b"%2f",
        b"%2E",
        b"%",
        b"%25",
        b";",
        b"?",
        b"&",
        b"/api/v0/",
        b"tasks",
        b"/api/jobs/",
        b"/logs/tail",
        b"\t",
        b"127.0.0.1",
        b"::ffff:1.2.3.4",
        b"[::1]:80, ",
        b"Bearer ",
        b"ray-authentication-token=",
        b"for=1.2.3.4;by=x",
    ];
    let routes = include_str!("fixtures/ray/routes.txt");
    let dodges = include_str!("fixtures/ray/dodges.tsv");
    let food = Food { inputs: lines(routes).chain(lines(dodges)).collect(), words: &words };
    fuzz(
        "request",
        |dice| food.serve(dice),
        |input| {
            // Method, path, query, and a header's value, between blanks.
            let mut parts = input.splitn(4, |byte| matches!(byte, b' ' | b'\t' | b'?'));
            let mut next = || parts.next().unwrap_or_default();
            let (method, path, query, value) = (next(), next(), next(), next());
            if let Ok(path) = std::str::from_utf8(path) {
                let normal = normalise(path).path;
                assert_eq!(normalise(&normal).path, normal);
            }
            let mut map = HeaderMap::new();
            for name in [
                "x-forwarded-for",
                "authorization",
                "cookie",
                "x-forwarded-user",
                "x-rayguard-key",
                "client_id",
                "connection",
                "te",
                "upgrade",
            ] {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    map.append(HeaderName::from_static(name), value.clone());
                    map.append(HeaderName::from_static(name), value);
                }
            }
            let (method, path, query) = (
                String::from_utf8_lossy(method),
                String::from_utf8_lossy(path),
                String::from_utf8_lossy(query),
            );
            let look_up = Lookup::new(&map);
            let facts = Facts {
                method: &method,
                path: &path,
                query: &query,
                address: [127, 0, 0, 1].into(),
                headers: &look_up,
                upgrade: tunnel::is_websocket(&map),
                grpc: headers::is_grpc(&map),
            };
            assert!(classifier.classify(&facts).class.index() < settings.policy.classes.len());
            assert_eq!(identifier.identify(&facts), identifier.identify(&facts));
            let (_, _, _) =
                (identifier.client_address(&facts), identifier.session(&facts), identifier.holds_key(&facts));
            headers::join_cookies(&mut map);
            headers::strip_hop_by_hop(&mut map);
            headers::tell_client(&mut map, &headers::hop([127, 0, 0, 1].into()), true, false);
            assert!(!map.contains_key("upgrade") && !map.contains_key("connection"));
        },
    );
}

#[test]
fn traces_and_traces() {
    let words: [&[u8]; 14] = [
        b"@ ",
        b"r ",
        b"o ",
        b"c ",
        b"l ",
        b"s ",
        b"rayguard-trace 1 {",
        b"at_s,route,status,latency_ms\n",
        b"arrival_s,vc,gpus,job_type,total_steps\n",
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
        b",",
        b"\n",
        b"99999999999999999999",
        b"-1",
    ];
    let food = Food {
        inputs: vec![
            include_bytes!("../simulations/recorded/flood_tasks.rec"),
            include_bytes!("../simulations/recorded/job_burst.csv"),
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
            b"arrival_s,vc,gpus,job_type,total_steps\n0,a,1,x,100\n5.5,b,8,y,7\n",
        ],
        words: &words,
    };
    fuzz(
        "trace",
        |dice| food.serve(dice),
        |bytes| {
            if let Ok(trace) = traffic_trace::read(bytes) {
                assert!(trace.arrivals.len() <= bytes.len());
            }
            if let Ok(trace) = trace::read(&String::from_utf8_lossy(bytes)) {
                assert!(trace.arrivals.is_sorted_by_key(|arrival| arrival.at));
                assert!(trace.arrivals.len() <= bytes.len());
            }
        },
    );
}

#[test]
fn records_of_adjustments() {
    let words: [&[u8]; 16] = [
        b"\"event\":\"adjustment\"",
        b"\"seq\":",
        b"null",
        b"{}",
        b"[]",
        b"\"\":",
        b",",
        b"\"law\":\"pid\"",
        b"\"old\":0",
        b"\"new\":1e999",
        b"\"target\":0",
        b"\"derivation\":",
        b"\\ud800",
        b"\x1b[31m",
        b"true",
        b"\n{",
    ];
    let food = Food { inputs: lines(include_str!("fuzz/adjustments.jsonl")).collect(), words: &words };
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let file = dir.join(format!("rayguard-fuzz-{}.jsonl", std::process::id()));
    fuzz(
        "record",
        |dice| food.serve(dice),
        |bytes| {
            std::fs::write(&file, bytes).unwrap();
            let mut count = 0;
            for line in Reader::over(vec![file.clone()]) {
                count += 1;
                let LogLine::LoggedEvent(logged) = line.unwrap() else { continue };
                // What `log`, `explain` and `replay` do with it.
                assert!(!serde_json::to_string(&logged).unwrap().is_empty());
                let sentence = logged.event.sentence();
                assert!(!sentence.contains('\x1b'), "{sentence:?} would control a terminal");
                let _ = (logged.event.name(), logged.event.subject());
                if let Event::Adjustment(adjustment) = &logged.event {
                    let _ = (adjustment.derive(), adjustment.undo());
                }
            }
            assert!(count <= bytes.len());
        },
    );
    let _ = std::fs::remove_file(file);
}

#[test]
fn proxy_headers_and_websockets() {
    let words: [&[u8]; 8] = [
        b"PROXY ",
        b"TCP4 ",
        b"UNKNOWN",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\x21\x11\0\x0c",
        b"\x20\0\0\0",
        b"\x81\x7e",
        b"\xff\xff",
    ];
    let food = Food {
        inputs: vec![
            b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n",
            b"PROXY TCP6 ::1 ::2 9 10\r\nGET / HTTP/1.1\r\n",
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x09\0\x0a",
            b"\x81\x02hi\x88\x02\x03\xe8\x82\xff\0\0\0\0\0\0\0\x01abcdx",
        ],
        words: &words,
    };
    fuzz(
        "proxy-protocol",
        |dice| food.serve(dice),
        |bytes| {
            let mut rest = bytes;
            let mut context = Context::from_waker(Waker::noop());
            let reading = pin!(proxy_protocol::read(&mut rest));
            assert!(
                matches!(Future::poll(reading, &mut context), Poll::Ready(_)),
                "all there is has been read"
            );
            let (mut whole, mut cut) = (Frames::default(), Frames::default());
            whole.pass(bytes);
            bytes.chunks(3).for_each(|piece| cut.pass(piece));
            assert_eq!(whole.are_whole(), cut.are_whole());
        },
    );
}

// --- Other clients' words: the replicas' store, and Envoys ---

/// What the store's script answers, and what replicas write into it.
#[test]
fn what_the_shared_store_tells() {
    let words: [&[u8]; 22] = [
        b"\"stale\":true",
        b"\"leases\":{\"job-status/in_flight\":1e300}",
        b"\"leases\":[]",
        b"\"live\":4294967295",
        b"\"silent\":4294967295",
        b"\"leader\":\"replica:1\"",
        b"\"leader\":\"\\u001b[31m\"",
        b"\"token\":18446744073709551615",
        b"\"replicas\":[\"replica:1\"]",
        b"\"reserved\":{\"job-status/in_flight\":-1}",
        b"\"stamp\":\"7.1\"",
        b"18446744073709551615",
        b"-1",
        b"1e308",
        b"4294967295",
        b"null",
        b"\"shadow\":[\"job-status\"]",
        b"\\\"value\\\":-1e308",
        b"\\\"left_s\\\":1e308",
        b"\\\"frozen\\\":true",
        b"job-submit",
        b"in_flight",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let text = "listen = '127.0.0.1:0'\n[metrics]\ndiscover = false\ndiscovery_file = 'off'\n\
                [replicas]\nurl = 'redis://127.0.0.1:1'\ncount = 3\nname = 'proxy'\n";
    let settings = config::parse(text, "test", &Overrides::default()).unwrap();
    let replicas = settings.replicas.clone().unwrap();
    let (alerts, _told) = tokio::sync::mpsc::channel(16);
    let dir = std::env::temp_dir().join(format!("rayguard-fuzz-replicas-{}", std::process::id()));
    let options = adjustment_log::Options { dir, file_bytes_max: 1 << 20, files_max: 2 };
    let (adjustment_log, _thread) = adjustment_log::channel(adjustment_log::Writer::open(options).0, 16);
    let outlets = Outlets { adjustment_log, alerts };
    let app = App::new(Arc::new(settings), &[], [1, 2], Clock::start(), Tasks::default(), outlets);
    let replica = RefCell::new(Replica::new(&app, &replicas, None, "host", "1").unwrap());

    // What a leader publishes, what a replica reports, and what the script says of both.
    let (_, followed) = app.publication();
    let table = serde_json::to_string(&followed).unwrap();
    let pin = r#"{"limits":[{"class":"job-status","limit":"in_flight","loop":"inner","value":4}],"frozen":true,
        "pins":[{"class":"job-status","limit":"in_flight","value":3.0,"left_s":60.0,"who":"a","why":"b","until":null}],
        "shadow":["job-list"]}"#;
    let proxy = r#"{"demands":{"job-status/in_flight":5},"classes":{"job-status":{"now":[1,2,3],"stalled_s":0.5,
        "counts":[9,8,7,6,5,4,3,2,1,2,3],"shed":[[0,4],[3,18446744073709551615]],"buckets":[[40,5],[9999,1]]}}}"#;
    let leases: BTreeMap<_, _> =
        app.next_renewal().unwrap().names.into_iter().map(|name| (name, 5)).collect();
    let told = |leader: &str, table: &str| {
        serde_json::json!({
            "stale": false, "leases": leases, "live": 3, "silent": 1, "leader": leader, "token": 7,
            "replicas": ["replica:1", proxy, "other:1", proxy], "reserved": {"job-status/in_flight": 2},
            "stamp": "7.1", "table": table,
        })
        .to_string()
        .into_bytes()
    };
    let inputs = [told("replica:1", ""), told("other:1", &table), told("other:1", pin)];
    let food = Food { inputs: inputs.iter().map(Vec::as_slice).collect(), words: &words };
    fuzz(
        "replicas",
        |dice| food.serve(dice),
        |bytes| {
            // Numbers are changed more often than the shape is broken: else most of it is never looked at.
            let Ok(told) = serde_json::from_slice::<Told>(bytes) else { return };
            let mut replica = replica.borrow_mut();
            let sent = app.next_renewal().unwrap();
            let _ = replica.hear(&sent, &told);
            let _ = app.view();
            let (proxy, policy) = (app.proxy(), app.proxy().policy.clone());
            for (limits, class) in proxy.table.load().classes.iter().zip(&policy.classes) {
                let most = class.in_flight.max;
                assert!((0.0..=most).contains(&limits.in_flight), "{}: {}", class.name, limits.in_flight);
                if let (Some(rate), Some(bounds)) = (limits.rate, class.rate) {
                    assert!((0.0..=bounds.per_second.max).contains(&rate), "{}: {rate}", class.name);
                }
            }
        },
    );
}

#[test]
fn what_envoys_ask() {
    let words: [&[u8]; 14] = [
        b"\x0a\x06method\x12\x03GET",
        b"\x0a\x04path\x12\x0e/api/jobs/?x=1",
        b"\x0a\x0eremote_address\x12\x09127.0.0.1",
        b"\x0a\x0dauthorization\x12\x08Bearer t",
        b"\x0a\x03end\x12\x01x",
        b"\x0a\x07request\x12\x01x",
        b"\x1a\x03\x08\xc8\x01",
        b"\x18\xff\xff\xff\xff\x0f",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"/api/../api/jobs/%2e%2e",
        b"999.999.999.999",
        b"::ffff:1.2.3.4",
        b"\x0a\x00",
        b"\x12\x00",
    ];
    let food = Food {
        inputs: vec![
            b"\x0a\x08rayguard\x12\x90\x01\x0a\x0d\x0a\x06method\x12\x03GET\x0a\x16\x0a\x04path\x12\x0e/api/jobs/?x=1\
              \x0a\x1b\x0a\x0eremote_address\x12\x09127.0.0.1\x0a\x19\x0a\x0dauthorization\x12\x08Bearer t\
              \x0a/\x0a\x07request\x12$28d9c57b-e788-4339-9f65-89e43aa00b0c",
            b"\x0a\x08rayguard\x122\x0a+\x0a\x03end\x12$28d9c57b-e788-4339-9f65-89e43aa00b0c\x1a\x03\x08\xc8\x01",
            b"\x0a\x05other\x12\x11\x0a\x0f\x0a\x04path\x12\x07/api/v0\x18\x05",
        ],
        words: &words,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rig = runtime.block_on(Rig::start());
    let _inside = runtime.enter();
    let (clock, tasks) = (rig.proxy.clock, rig.proxy.tasks.clone());
    let classifier = Classifier::new(&rig.proxy.policy, Surface::Dashboard, &[]).unwrap();
    let nowhere = upstream::Address::Tcp("127.0.0.1:1".into());
    let upstream = Upstream::new(nowhere, upstream::Options::default(), clock, tasks);
    let state = proxy_state::ListenerState::new(
        Arc::clone(&rig.proxy),
        Arc::new(rayguard::proxy::routing::Routing::new(Surface::Dashboard, classifier, upstream)),
    );
    let service = Service::start(state, "rayguard".into(), Duration::from_millis(50));
    let peer = "127.0.0.1".parse().unwrap();
    fuzz(
        "ratelimit",
        |dice| {
            if dice.below(2) == 0 {
                return food.serve(dice);
            }
            // The shape held, and nonsense in it.
            let mut text = |of: &[&'static [u8]]| {
                let mut text = dice.pick(of).to_vec();
                (0..dice.below(3)).for_each(|_| mutate(dice, &mut text, &food.inputs, &words));
                text.into()
            };
            let keys: [&[u8]; 6] =
                [b"method", b"path", b"remote_address", b"authorization", b"request", b"end"];
            let values: [&[u8]; 5] = [b"GET", b"/api/jobs/a", b"10.0.0.1", b"Bearer t", b"28d9c57b"];
            let entries = (0..6).map(|_| Entry { key: text(&keys), value: text(&values) }).collect();
            let own = (dice.below(3) == 0).then(|| dice.roll() >> dice.below(64));
            let descriptors = vec![Descriptor { entries, hits_addend: own }; 1 + dice.below(3)];
            let hits_addend = u32::try_from(dice.below(5)).unwrap();
            RateLimitRequest { domain: "rayguard".into(), descriptors, hits_addend }.encode_to_vec()
        },
        |bytes| {
            let Ok(message) = RateLimitRequest::decode(bytes) else { return };
            let Ok(answer) = runtime.block_on(service.decide(peer, &message, clock.now())) else { return };
            assert_eq!(answer.statuses.len(), message.descriptors.len(), "one answer for each");
            assert!(!answer.encode_to_vec().is_empty());
        },
    );
    let taken = || CLASSES.iter().all(|class| rig.in_flight(class.name) == 0);
    runtime.block_on(rig::until("every place is given back", taken));
}

// --- The live listener ---

/// A proxy with a socket in the file system, and what runs it.
struct Front {
    runtime: tokio::runtime::Runtime,
    rig: Rig,
    socket: PathBuf,
}

impl Front {
    fn open(name: &str) -> Front {
        let socket = std::env::temp_dir().join(format!("rayguard-fuzz-{name}-{}", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rig = runtime.block_on(async {
            let listener = Listener::bind(&Address::Unix(socket.clone())).await.unwrap();
            let bounds =
                ListenerLimits { head_bytes_max: 8192, body_bytes_max: 1 << 20, ..ListenerLimits::default() };
            let mut setup = Setup { bounds, ..Setup::default() };
            for class in &mut setup.policy.classes {
                // A client that waits with more bytes behind its request is not missed before its turn.
                class.queue.wait_max = class.queue.wait_max.min(Duration::from_secs(2));
            }
            Rig::on(listener, setup).await
        });
        Front { runtime, rig, socket }
    }

    /// Says all this, listens until the proxy has said all it will, and leaves.
    fn say(&self, bytes: &[u8]) {
        self.runtime.block_on(async {
            let mut stream = UnixStream::connect(&self.socket).await.unwrap();
            let (mut from, mut to) = stream.split();
            let saying = async {
                let _ = to.write_all(bytes).await;
                let _ = to.shutdown().await;
            };
            let listening = async {
                let mut buffer = vec![0; 64 * 1024];
                while matches!(from.read(&mut buffer).await, Ok(1..)) {}
            };
            // What waits for Ray or for a time-out is left behind: the proxy must cope.
            let _ =
                tokio::time::timeout(Duration::from_millis(20), async { tokio::join!(saying, listening) })
                    .await;
        });
        self.rig.ray.seen.lock().unwrap().clear();
    }

    /// Everybody is served, and nothing stays taken.
    fn close(self) {
        let Front { runtime, rig, socket } = self;
        runtime.block_on(async {
            rig::until("every permit is back", || CLASSES.iter().all(|class| rig.in_flight(class.name) == 0))
                .await;
            let mut client = rig::Client::over(UnixStream::connect(&socket).await.unwrap());
            client.send(get("/api/version", &[])).await;
            assert_eq!(client.answer().await.status, 200);
            let connections = || rig.proxy.connections.count() <= 1;
            rig::until("no other client is connected", connections).await;
        });
        let _ = std::fs::remove_file(socket);
    }
}

/// The bytes of the shapes in `smuggling/`: their escapes undone as far as it matters here.
fn heads() -> Vec<Vec<u8>> {
    let rows = include_str!("smuggling/shapes.tsv").lines().filter(|line| !line.starts_with('#'));
    let text = rows.map(|row| row.rsplit('\t').next().unwrap());
    text.map(|text| text.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t").into_bytes())
        .collect()
}

#[test]
fn http_1_at_the_live_listener() {
    let heads = heads();
    let words: [&[u8]; 26] = [
        b"GET ",
        b"POST ",
        b"HEAD ",
        b"OPTIONS ",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b"host: ray\r\n",
        b"\r\n\r\n",
        b"content-length: 5\r\n",
        b"transfer-encoding: chunked\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"connection: close\r\n",
        b"connection: upgrade\r\n",
        b"upgrade: websocket\r\n",
        b"expect: 100-continue\r\n",
        b"/api/jobs/",
        b"/api/v0/tasks",
        b"/nodes",
        b"content-type: application/grpc\r\n",
        b"x-forwarded-for: 1.2.3.4\r\n",
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"range: bytes=0-\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"te: trailers\r\n",
        b": ",
    ];
    let food = Food { inputs: heads.iter().map(Vec::as_slice).collect(), words: &words };
    let front = Front::open("h1");
    fuzz("http1", |dice| food.serve(dice), |bytes| front.say(bytes));
    front.close();
}

/// A frame of HTTP/2, whatever it says.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[length[1], length[2], length[3], kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// `GET /api/jobs/1` and `POST /api/jobs/` in HPACK, with every kind of field.
const BLOCKS: [&[u8]; 5] = [
    b"\x82\x86\x04\x0b/api/jobs/1\x01\x03ray",
    b"\x83\x86\x04\x0a/api/jobs/\x41\x03ray\x0f\x0d\x015",
    b"\x82\x87\x04\x06/nodes\x01\x03ray\x40\x01a\x01b\x10\x06cookie\x01x\x10\x06cookie\x01y",
    b"\x83\x86\x04\x10/ray.rpc.X/Ping\x00\x01\x03ray\x0f\x10\x10application/grpc\x00\x02te\x08trailers",
    b"\x20\x3f\xe1\x1f\xbe\xbf\x81\x84",
];

/// A conversation: frames in an order that may make sense.
fn conversation(dice: &mut Dice) -> Vec<u8> {
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    if dice.below(16) > 0 {
        said.extend(frame(4, 0, 0, b""));
    }
    for _ in 0..=dice.below(12) {
        let stream = [0, 1, 1, 1, 3, 3, 5, 2, u32::MAX >> 1][dice.below(9)];
        let flags = [0, 1, 4, 5, 5, 8, 0x20, 0xff][dice.below(8)];
        let mut payload = match dice.below(4) {
            0 => b"hello".to_vec(),
            1 => vec![0, u8::try_from(dice.below(9)).unwrap(), 0, 0, 0xff, 0xff],
            _ => dice.pick(&BLOCKS).to_vec(),
        };
        let kind = match dice.below(6) {
            0..=2 => 1,
            3 => 0,
            4 => u8::try_from(dice.below(12)).unwrap(),
            _ => {
                payload = vec![0, 0, 0, u8::try_from(dice.below(14)).unwrap()];
                [3, 8, 4, 6][dice.below(4)]
            }
        };
        if kind == 6 {
            payload.resize(8, 0);
        }
        for _ in 0..dice.below(3) * dice.below(2) {
            mutate(dice, &mut payload, &BLOCKS, &BLOCKS);
        }
        said.extend(frame(kind, flags, stream, &payload));
    }
    if dice.below(4) == 0 {
        mutate(dice, &mut said, &BLOCKS, &BLOCKS);
    }
    said
}

#[test]
fn http_2_at_the_live_listener() {
    let front = Front::open("h2");
    fuzz("http2", conversation, |bytes| front.say(bytes));
    front.close();
}
