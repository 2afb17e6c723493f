//! Shapes of requests that two readers could read in two ways: each is refused, nothing of it
//! reaches Ray, and nothing behind it on the connection is taken for a request. What passes is
//! one request, and the same one to Ray.
//!
//! The shapes, with what Ray's own HTTP server makes of each, stand in `smuggling/shapes.tsv`;
//! `ray/test_smuggling.py` holds the table against that server, and the proxy before it.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "proxy/rig.rs"]
mod rig;

use rayguard::proxy::listen::ListenerLimits;
use rig::{Rig, Seen, Setup};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// What a smuggler would like to see answered; it follows each shape.
const PRIZE: &str = "GET /prize HTTP/1.1\r\nhost: ray\r\n\r\n";

/// The same, as a reading of it.
const PRIZE_READ: &str = "GET /prize \"\"";

/// A row of the table.
struct Shape {
    name: &'static str,
    proxy: Verdict,
    /// What aiohttp hands on, then how it ends: the prize, a status, or `...` for waiting.
    aiohttp: Vec<&'static str>,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// It reaches Ray.
    Pass,
    /// Its head is refused, with this status.
    Refuse(u16),
    /// Its head is good, its body is not: Ray never has it whole.
    Cut,
}

fn shapes() -> Vec<Shape> {
    let rows = include_str!("smuggling/shapes.tsv").lines().filter(|line| !line.starts_with('#'));
    rows.map(|row| {
        let mut columns = row.split('\t');
        let mut next = || columns.next().unwrap_or_else(|| panic!("four columns: {row}"));
        let (name, proxy, aiohttp, bytes) = (next(), next(), next(), next());
        let proxy = match proxy {
            "pass" => Verdict::Pass,
            "cut" => Verdict::Cut,
            status => Verdict::Refuse(status.parse().unwrap()),
        };
        Shape { name, proxy, aiohttp: aiohttp.split("; ").collect(), bytes: unescape(bytes) }
    })
    .collect()
}

/// The bytes a row stands for: `\r`, `\n`, `\t`, `\xHH`, and `{N*text}` for N times.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '{' => {
                let (inner, _) = rest[1..].split_once('}').unwrap();
                let (times, what) = inner.split_once('*').unwrap();
                bytes.extend(unescape(what).repeat(times.parse().unwrap()));
                inner.len() + 2
            }
            '\\' if rest[1..].starts_with('x') => {
                bytes.push(u8::from_str_radix(&rest[2..4], 16).unwrap());
                4
            }
            '\\' => {
                bytes.push(match &rest[1..2] {
                    "r" => b'\r',
                    "n" => b'\n',
                    "t" => b'\t',
                    other => panic!("unknown escape {other} in {text}"),
                });
                2
            }
            plain => {
                assert!(plain.is_ascii(), "{text}");
                bytes.push(plain as u8);
                1
            }
        };
        rest = &rest[taken..];
    }
    bytes
}

/// A request as Ray had it, in the table's words.
fn reading(seen: &Seen) -> String {
    let target = seen.line().rsplit_once(' ').unwrap().0;
    let body: String = seen.body.iter().map(|&byte| char::from(byte)).collect();
    format!("{target} \"{}\"", body.replace('\r', "\\r").replace('\n', "\\n"))
}

fn post(lines: &str, body: &str) -> String {
    format!("POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\n{lines}\r\n{body}")
}

async fn rig() -> Rig {
    let bounds =
        ListenerLimits { head_bytes_max: 16 * 1024, body_bytes_max: 1_000_000, ..ListenerLimits::default() };
    Rig::with(Setup { bounds, ..Setup::default() }).await
}

/// What the proxy does with a shape and the prize behind it: the statuses of its answers.
async fn statuses(rig: &Rig, shape: &Shape) -> Vec<u16> {
    let mut client = rig.client().await;
    client.send(&shape.bytes).await;
    client.try_send(PRIZE).await;
    let mut statuses = Vec::new();
    while statuses.len() < 3 {
        let answer = tokio::time::timeout(Duration::from_millis(200), client.try_answer()).await;
        let Ok(Some(answer)) = answer else { break };
        statuses.push(answer.status);
    }
    statuses
}

#[test]
fn what_passes_is_at_most_one_request_to_aiohttp_too() {
    let shapes = shapes();
    assert!(shapes.len() >= 200, "{}", shapes.len());
    for Shape { name, proxy, aiohttp, .. } in shapes {
        assert!(!aiohttp[0].is_empty(), "{name}: not read yet; run tests/ray/smuggling.py");
        if proxy != Verdict::Pass {
            continue;
        }
        // What else it says is a refusal, or that it waits.
        let requests: Vec<_> = aiohttp.iter().filter(|it| it.contains('"')).collect();
        let one = requests.len() <= 2 && requests.get(1).is_none_or(|second| **second == PRIZE_READ);
        assert!(one, "{name}: aiohttp reads {aiohttp:?}");
    }
}

#[tokio::test]
async fn what_is_refused_is_refused_whole_and_ends_its_connection() {
    let rig = rig().await;
    let mut wrong = Vec::new();
    for shape in shapes() {
        let Verdict::Refuse(status) = shape.proxy else { continue };
        let statuses = statuses(&rig, &shape).await;
        // A head that was understood may be refused for what it asks; the next is then heard.
        let heard = rig.ray.seen().iter().map(reading).collect::<Vec<_>>();
        rig.ray.seen.lock().unwrap().clear();
        let begun = rig.ray.begun.swap(0, SeqCst);
        let well = statuses.first() == Some(&status) && heard.iter().all(|it| it == PRIZE_READ) && begun <= 1;
        if !well {
            wrong.push(format!("{}: {statuses:?} instead of {status}, Ray had {heard:?}", shape.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_body_that_breaks_ends_the_request_and_the_connection() {
    let rig = rig().await;
    let mut wrong = Vec::new();
    for shape in shapes().iter().filter(|shape| shape.proxy == Verdict::Cut) {
        let statuses = statuses(&rig, shape).await;
        if statuses.len() > 1 || statuses.iter().any(|&status| status < 400) || rig.ray.count() > 0 {
            wrong.push(format!("{}: {statuses:?}, {:?}", shape.name, rig.ray.seen()));
        }
        rig.ray.seen.lock().unwrap().clear();
        rig::until("the permit is back", || rig.in_flight("job-submit") == 0).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn what_passes_is_one_request_and_the_same_to_ray() {
    let rig = rig().await;
    let mut wrong = Vec::new();
    for shape in shapes().iter().filter(|shape| shape.proxy == Verdict::Pass) {
        let statuses = statuses(&rig, shape).await;
        let heard: Vec<String> = rig.ray.seen().iter().map(reading).collect();
        rig.ray.seen.lock().unwrap().clear();
        rig.ray.begun.store(0, SeqCst);
        let same = heard.first().is_some_and(|first| {
            // What aiohttp refuses as it stands, it is left to refuse.
            shape.aiohttp[0] == *first || shape.aiohttp[0].parse::<u16>().is_ok()
        });
        let prize = heard.get(1).is_none_or(|second| second == PRIZE_READ);
        if !same || !prize || heard.len() > 2 || statuses.first() != Some(&200) {
            wrong.push(format!("{}: {statuses:?}; {heard:?}, aiohttp {:?}", shape.name, shape.aiohttp));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_body_of_known_length_is_never_taken_for_a_request() {
    let rig = rig().await;
    let mut client = rig.client().await;
    let inner = "GET /nodes HTTP/1.1\nnot a head";
    client.send(post(&format!("content-length: {}\r\n", inner.len()), inner) + PRIZE).await;
    for _ in 0..2 {
        assert_eq!(client.answer().await.status, 200);
    }
    let seen = rig.ray.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].body, inner.as_bytes());
}

#[tokio::test]
async fn heads_that_come_byte_by_byte_are_read_all_the_same() {
    let rig = rig().await;
    let mut client = rig.client().await;
    for byte in (PRIZE.to_owned() + &post("content-length: 2\r\n", "ok")).into_bytes() {
        client.send([byte]).await;
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        assert_eq!(client.answer().await.status, 200);
    }
}
