//! Shapes of requests that two readers could read in two ways: each is refused, nothing of it
//! reaches Ray, and nothing behind it on the connection is taken for a request.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "door/rig.rs"]
mod rig;

use rayguard::proxy::listen::Bounds;
use rig::{Rig, Setup};
use std::sync::atomic::Ordering::SeqCst;

/// What a smuggler would like to see answered.
const PRIZE: &str = "GET /prize HTTP/1.1\r\nhost: ray\r\n\r\n";

/// A name, the bytes, and the status they are refused with.
type Shape = (&'static str, String, u16);

fn get(lines: &str) -> String {
    format!("GET /api/jobs/1 HTTP/1.1\r\nhost: ray\r\n{lines}\r\n")
}

fn post(lines: &str, body: &str) -> String {
    format!("POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\n{lines}\r\n{body}")
}

/// Lengths and codings.
fn framings() -> Vec<Shape> {
    let chunks = format!("0\r\n\r\n{PRIZE}");
    vec![
        ("CL.TE", post("content-length: 6\r\ntransfer-encoding: chunked\r\n", &chunks), 400),
        ("TE.CL", post("transfer-encoding: chunked\r\ncontent-length: 6\r\n", &chunks), 400),
        ("CL.TE without a body", get("content-length: 0\r\ntransfer-encoding: chunked\r\n"), 400),
        ("CL.TE in capitals", post("CONTENT-LENGTH: 6\r\nTRANSFER-ENCODING: CHUNKED\r\n", &chunks), 400),
        ("TE.TE", post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", &chunks), 400),
        (
            "TE.TE identity",
            post("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", &chunks),
            400,
        ),
        ("TE identity", post("transfer-encoding: identity\r\n", &chunks), 400),
        ("TE gzip, chunked", post("transfer-encoding: gzip, chunked\r\n", &chunks), 400),
        ("TE chunked, gzip", post("transfer-encoding: chunked, gzip\r\n", &chunks), 400),
        ("TE chunked, chunked", post("transfer-encoding: chunked, chunked\r\n", &chunks), 400),
        ("TE xchunked", post("transfer-encoding: xchunked\r\n", &chunks), 400),
        ("TE quoted", post("transfer-encoding: \"chunked\"\r\n", &chunks), 400),
        ("TE with parameter", post("transfer-encoding: chunked;q=1\r\n", &chunks), 400),
        ("TE empty", post("transfer-encoding:\r\n", &chunks), 400),
        ("TE comma", post("transfer-encoding: ,chunked\r\n", &chunks), 400),
        ("TE vertical tab", post("transfer-encoding: \x0bchunked\r\n", &chunks), 400),
        ("TE space before colon", post("transfer-encoding : chunked\r\n", &chunks), 400),
        ("TE tab before colon", post("transfer-encoding\t: chunked\r\n", &chunks), 400),
        ("TE space before name", post("x: y\r\n transfer-encoding: chunked\r\n", &chunks), 400),
        ("TE folded", post("transfer-encoding:\r\n chunked\r\n", &chunks), 400),
        ("TE underscore", post("transfer_encoding: chunked\r\ncontent-length: 0\r\n", PRIZE), 400),
        ("CL underscore", post("content_length: 40\r\n", PRIZE), 400),
        ("two equal CL", post("content-length: 0\r\ncontent-length: 0\r\n", PRIZE), 400),
        ("two CL", post("content-length: 0\r\ncontent-length: 40\r\n", PRIZE), 400),
        ("CL list", post("content-length: 0, 0\r\n", PRIZE), 400),
        ("CL plus", post("content-length: +0\r\n", PRIZE), 400),
        ("CL minus", post("content-length: -1\r\n", PRIZE), 400),
        ("CL hexadecimal", post("content-length: 0x0\r\n", PRIZE), 400),
        ("CL fraction", post("content-length: 0.0\r\n", PRIZE), 400),
        ("CL words", post("content-length: none\r\n", PRIZE), 400),
        ("CL empty", post("content-length:\r\n", PRIZE), 400),
        ("CL digits apart", post("content-length: 1 0\r\n", PRIZE), 400),
        ("CL beyond 64 bit", post("content-length: 18446744073709551616\r\n", PRIZE), 400),
        ("CL quoted", post("content-length: \"0\"\r\n", PRIZE), 400),
        ("CL space before colon", post("content-length : 0\r\n", PRIZE), 400),
        ("CL folded", post("content-length:\r\n\t0\r\n", PRIZE), 400),
    ]
}

/// Line ends, names, versions.
fn lines() -> Vec<Shape> {
    let long = "x".repeat(9000);
    vec![
        ("bare LF after the request line", format!("GET /nodes HTTP/1.1\nhost: ray\r\n\r\n{PRIZE}"), 400),
        ("bare LF after a header", format!("GET /nodes HTTP/1.1\r\nhost: ray\n\r\n{PRIZE}"), 400),
        ("bare LF throughout", format!("GET /nodes HTTP/1.1\nhost: ray\n\n{PRIZE}"), 400),
        ("bare LF ends the head", format!("GET /nodes HTTP/1.1\r\nhost: ray\r\n\n{PRIZE}"), 400),
        ("bare CR in a value", get("x: a\rcontent-length: 5\r\n"), 400),
        ("bare CR in the request line", format!("GET /nodes\rHTTP/1.1\r\nhost: ray\r\n\r\n{PRIZE}"), 400),
        ("CR CR LF", get("x: y\r\r\n"), 400),
        ("NUL in a value", get("x: a\0b\r\n"), 400),
        ("NUL in a name", get("x\0y: b\r\n"), 400),
        ("no colon", get("nonsense\r\n"), 400),
        ("empty name", get(": x\r\n"), 400),
        ("name with a space", get("x y: z\r\n"), 400),
        ("name with a bracket", get("x(y): z\r\n"), 400),
        ("folded value", get("x: a\r\n b\r\n"), 400),
        ("folded first header", "GET /nodes HTTP/1.1\r\n host: ray\r\n\r\n".to_owned(), 400),
        ("HTTP/1.2", PRIZE.replace("1.1", "1.2"), 400),
        ("HTTP/3.0", PRIZE.replace("1.1", "3.0"), 400),
        ("HTTP/1.10", PRIZE.replace("1.1", "1.10"), 400),
        ("lower-case http", PRIZE.replace("HTTP", "http"), 400),
        ("no version", "GET /nodes\r\nhost: ray\r\n\r\n".to_owned(), 400),
        ("method with a slash", PRIZE.replace("GET", "G/T"), 400),
        ("two spaces in the request line", PRIZE.replace("GET ", "GET  "), 400),
        ("space in the target", PRIZE.replace("/prize", "/pri ze"), 400),
        ("long target", format!("GET /{long} HTTP/1.1\r\nhost: ray\r\n\r\n"), 414),
        ("long target without end", format!("GET /{}", "x".repeat(20_000)), 414),
        ("long headers", get(&format!("x: {}\r\n", long.repeat(2))), 431),
        ("many headers", get(&"x: y\r\n".repeat(200)), 431),
        (
            "TE in HTTP/1.0",
            "POST /api/jobs/ HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            400,
        ),
    ]
}

/// Hosts, targets, paths and expectations.
fn targets() -> Vec<Shape> {
    let path = |path: &str| PRIZE.replace("/prize", path);
    vec![
        ("no Host", "GET /nodes HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("two Hosts", get("host: other\r\n"), 400),
        ("two equal Hosts", get("host: ray\r\n"), 400),
        ("Host list", PRIZE.replace("ray", "ray, other"), 400),
        ("Host with a path", PRIZE.replace("ray", "ray/x"), 400),
        ("Host with user info", PRIZE.replace("ray", "u@ray"), 400),
        ("absolute form, other host", path("http://other/nodes"), 400),
        ("absolute form, other port", path("http://ray:1/nodes"), 400),
        ("authority form", PRIZE.replace("GET /prize", "CONNECT ray:80"), 501),
        ("asterisk", PRIZE.replace("GET /prize", "OPTIONS *"), 400),
        ("dot segment", path("/api/jobs/../v0/tasks"), 400),
        ("dot segment escaped", path("/api/jobs/%2e%2e/v0/tasks"), 400),
        ("dot at the end", path("/api/jobs/."), 400),
        ("escaped NUL", path("/api/jobs/%00"), 400),
        ("bare percent", path("/api/jobs/%zz"), 400),
        ("escaped CR LF", path("/api/jobs/%0d%0a"), 400),
        ("backslash", path("/api\\jobs"), 400),
        ("unknown expectation", get("expect: 200-maybe\r\n"), 417),
        ("too large a body", post("content-length: 2000000\r\n", "x"), 413),
    ]
}

async fn rig() -> Rig {
    let bounds = Bounds { head_bytes_max: 16 * 1024, body_bytes_max: 1_000_000, ..Bounds::default() };
    Rig::with(Setup { bounds, ..Setup::default() }).await
}

#[tokio::test]
async fn every_shape_is_refused_and_nothing_of_it_reaches_ray() {
    let rig = rig().await;
    let shapes: Vec<Shape> = [framings(), lines(), targets()].concat();
    assert!(shapes.len() >= 80, "{}", shapes.len());
    let mut wrong = Vec::new();
    for (name, bytes, status) in shapes {
        let mut client = rig.client().await;
        client.send(&bytes).await;
        match client.try_answer().await {
            Some(answer) if answer.status == status => {}
            Some(answer) => wrong.push(format!("{name}: {} instead of {status}", answer.status)),
            None => wrong.push(format!("{name}: closed without an answer")),
        }
        if rig.ray.begun.swap(0, SeqCst) != 0 {
            wrong.push(format!("{name}: reached Ray"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_refused_head_ends_its_connection() {
    let rig = rig().await;
    for (name, bytes, status) in [framings(), lines()].concat() {
        let mut client = rig.client().await;
        client.send(bytes + PRIZE).await;
        let answer = client.try_answer().await.unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!(answer.status, status, "{name}");
        assert!(client.try_answer().await.is_none(), "{name}: a second answer");
    }
    assert_eq!(rig.ray.begun.load(SeqCst), 0);
}

#[tokio::test]
async fn broken_chunks_end_the_request_and_the_connection() {
    for body in [
        format!("5\nhello\n0\n\n{PRIZE}"),
        format!("0x5\r\nhello\r\n0\r\n\r\n{PRIZE}"),
        format!("-5\r\nhello\r\n0\r\n\r\n{PRIZE}"),
        format!("+5\r\nhello\r\n0\r\n\r\n{PRIZE}"),
        format!("5\r\nhelloX\r\n0\r\n\r\n{PRIZE}"),
        format!("ffffffffffffffffff\r\nhello\r\n0\r\n\r\n{PRIZE}"),
        format!("z\r\nhello\r\n0\r\n\r\n{PRIZE}"),
        format!("\r\n5\r\nhello\r\n0\r\n\r\n{PRIZE}"),
    ] {
        let rig = rig().await;
        let mut client = rig.client().await;
        client.send(post("transfer-encoding: chunked\r\n", &body)).await;
        if let Some(answer) = client.try_answer().await {
            assert!(answer.status >= 400, "{body:?}: {}", answer.head);
            assert!(client.try_answer().await.is_none(), "{body:?}: a second answer");
        }
        assert_eq!(rig.ray.count(), 0, "{body:?}: whole at Ray");
        rig::until("the ticket is back", || rig.in_flight("job-submit") == 0).await;
    }
}

#[tokio::test]
async fn what_is_only_unusual_passes() {
    let rig = rig().await;
    for (name, bytes) in [
        ("plain", PRIZE.to_owned()),
        ("empty line first", format!("\r\n{PRIZE}")),
        ("absolute form, same host", PRIZE.replace("/prize", "http://ray/api/jobs/1")),
        ("no space after the colon", get("x:y\r\n")),
        ("tabs around a value", get("x:\ty\t\r\n")),
        ("empty value", get("x:\r\n")),
        ("latin-1 in a value", get("x: caf\u{e9}\r\n")),
        ("chunk extension", post("transfer-encoding: chunked\r\n", "5;a=b\r\nhello\r\n0\r\n\r\n")),
        ("trailers", post("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n")),
        ("zero length", post("content-length: 0\r\n", "")),
        ("leading zeros", post("content-length: 005\r\n", "hello")),
        ("body of a GET", format!("{}hello", get("content-length: 5\r\n"))),
        ("a name like a length", get("content-lengths: x\r\n")),
        ("an upgrade nobody knows", get("connection: upgrade\r\nupgrade: h2c\r\n")),
    ] {
        let before = rig.ray.count();
        let answer = rig.ask(&bytes).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(rig.ray.count(), before + 1, "{name}");
    }
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
