//! The proxy on the wire: what passes, what is shared, what is refused, and what stays counted.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "proxy/aborts.rs"]
mod aborts;
#[path = "proxy/enforcement.rs"]
mod enforcement;
#[path = "proxy/rig.rs"]
mod rig;
#[path = "proxy/slow_lines.rs"]
mod slow_lines;
#[path = "proxy/upstream.rs"]
mod upstream;

use rayguard::core::policy::Bounds;
use rayguard::core::time::WallMs;
use rayguard::proxy::cores::Cores;
use rayguard::proxy::listen;
use rayguard::proxy::upstream::Address;
use rayguard::proxy::websocket::{CLOSE, NORMAL, answer_frame};
use rig::{Client, Rig, Setup, class, get, header, until};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const STATUS: &str = "/api/jobs/raysubmit_1";

/// A rig that lets one read of a job's status through at a time, and the client whose read Ray holds.
async fn one_at_ray_where_one_may_be() -> (Rig, Client<TcpStream>) {
    let rig = Rig::with_policy(|policy| {
        policy.classes[class("job-status").index()].in_flight = Bounds::fixed(1.0);
    })
    .await;
    let mut first = rig.client().await;
    first.send(get(STATUS, &["x-do: hold"])).await;
    until("Ray has it", || rig.ray.count() == 1).await;
    (rig, first)
}

// --- What passes ---

#[tokio::test]
async fn a_request_reaches_ray_as_it_was_sent_but_for_its_hop_and_its_origin() {
    let rig = Rig::start().await;
    let answer = rig
        .ask(
            "GET /api/jobs/?a=b%2Fc&d HTTP/1.1\r\nhost: head:8265\r\nuser-agent: Mozilla/5.0\r\n\
             origin: http://head:8265\r\nsec-fetch-mode: cors\r\ncookie: ray-authentication-token=t; x=y\r\n\
             authorization: Bearer t\r\nx-ray-authorization: Bearer t\r\naccept-encoding: gzip\r\n\
             keep-alive: 5\r\nx-secret: hop\r\nconnection: keep-alive, x-secret\r\n\r\n",
        )
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), "ray");
    assert_eq!(answer.head.matches("set-cookie").count(), 2);
    assert!(answer.header("x-rayguard-request-id").is_some());
    let seen = rig.ray.seen().remove(0);
    assert_eq!(seen.line(), "GET /api/jobs/?a=b%2Fc&d HTTP/1.1");
    for (name, value) in [
        ("host", "head:8265"),
        ("user-agent", "Mozilla/5.0"),
        ("origin", "http://head:8265"),
        ("sec-fetch-mode", "cors"),
        ("cookie", "ray-authentication-token=t; x=y"),
        ("authorization", "Bearer t"),
        ("x-ray-authorization", "Bearer t"),
        ("accept-encoding", "gzip"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "head:8265"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    for name in ["keep-alive", "x-secret", "transfer-encoding", "content-length"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn paths_are_forwarded_byte_for_byte() {
    let rig = Rig::start().await;
    for path in [
        "/api/jobs",
        "/api/jobs/",
        "/api/packages/gcs/a%2Fb.zip",
        "/api/packages/gcs/_ray_pkg_1.zip",
        "/nodes//x?view=summary",
        "/api/v0/tasks?limit=100&timeout=24&filter=a%20b+c",
        "/logical/actors/%E2%9C%93;v=1",
    ] {
        assert_eq!(rig.get(path, &[]).await.status, 200, "{path}");
        let seen = rig.ray.seen().pop().unwrap();
        assert_eq!(seen.line(), format!("GET {path} HTTP/1.1"));
    }
}

#[tokio::test]
async fn bodies_pass_both_ways_sized_and_chunked() {
    let rig = Rig::start().await;
    let sized = rig
        .ask("PUT /api/packages/gcs/a.zip HTTP/1.1\r\nhost: ray\r\nx-do: echo\r\ncontent-length: 5\r\n\r\nhello")
        .await;
    assert_eq!(sized.text(), "hello");
    let chunked = rig
        .ask(
            "POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\nx-do: echo\r\ntransfer-encoding: chunked\r\n\r\n\
             5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n",
        )
        .await;
    assert_eq!(chunked.text(), "hello world");
    let seen = rig.ray.seen();
    assert_eq!(seen[0].header("content-length"), Some("5"));
    assert_eq!(seen[1].header("transfer-encoding"), Some("chunked"));

    let answer = rig.get(STATUS, &["x-do: chunked"]).await;
    assert_eq!(answer.text(), "hello world");
    assert!(answer.header("transfer-encoding").is_some());
    let answer = rig.get(STATUS, &["x-do: close-delimited"]).await;
    assert_eq!(answer.text(), "until the end");
    let answer = rig.get(STATUS, &["x-do: big:3000000"]).await;
    assert_eq!(answer.body.len(), 3_000_000);
}

#[tokio::test]
async fn a_job_that_was_let_in_is_known_by_the_name_that_ray_gives_it() {
    let rig = Rig::start().await;
    let next = || rig.proxy.submitted.lock().next(rig.proxy.clock.now());
    let names = |name: &str| format!(r#"{{"job_id": "{name}", "submission_id": "{name}"}}"#);
    let sized = names("raysubmit_1");
    let length = sized.len();
    let head = "POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\nx-do: echo\r\n";
    let answer = rig.ask(&format!("{head}content-length: {length}\r\n\r\n{sized}")).await;
    assert_eq!(answer.text(), sized);
    assert_eq!(next().as_deref(), Some("raysubmit_1"));
    rig.proxy.submitted.lock().forget();

    let chunked = names("raysubmit_2");
    let (first, last) = chunked.split_at(20);
    let chunks = format!("{:x}\r\n{first}\r\n{:x}\r\n{last}\r\n0\r\n\r\n", first.len(), last.len());
    let answer = rig.ask(&format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}")).await;
    assert_eq!(answer.text(), chunked);
    assert_eq!(next().as_deref(), Some("raysubmit_2"));
    rig.proxy.submitted.lock().forget();

    // What Ray refuses is no job, and neither is what another class is told.
    assert_eq!(rig.ask(&format!("{head}content-length: 5\r\n\r\nhello")).await.text(), "hello");
    rig.get("/api/jobs/raysubmit_3", &[]).await;
    assert_eq!(next(), None);
}

#[tokio::test]
async fn a_large_upload_passes_whole() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let length = 5_000_000;
    client
        .send(format!("PUT /api/packages/gcs/a.zip HTTP/1.1\r\nhost: r\r\ncontent-length: {length}\r\n\r\n"))
        .await;
    client.send(vec![b'p'; length]).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(rig.ray.seen()[0].body.len(), length);
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_and_its_body_passes() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client
        .send("PUT /api/packages/gcs/a.zip HTTP/1.1\r\nhost: r\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        .await;
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 100"), "{head}");
    client.send("ok").await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(rig.ray.seen()[0].body, b"ok");
}

#[tokio::test]
async fn statuses_and_their_bodies_pass() {
    let rig = Rig::start().await;
    for status in [200, 201, 301, 400, 401, 403, 404, 405, 413, 429, 500, 503] {
        let answer = rig.get(STATUS, &[&format!("x-do: status:{status}")]).await;
        assert_eq!((answer.status, &*answer.text()), (status, "as told"));
        assert_eq!(answer.header("x-ray"), Some("yes"));
        assert_eq!(answer.header("x-rayguard-reason"), None, "Ray's own answer, not ours");
    }
    let mut client = rig.client().await;
    client.send("HEAD /nodes HTTP/1.1\r\nhost: ray\r\nx-do: raw:HTTP/1.1 200 OK\\r\\ncontent-length: 7\\r\\n\\r\\n\r\n\r\n").await;
    let head = client.head().await.unwrap();
    assert_eq!(rig::header(&head, "content-length"), Some("7"), "{head}");
    client.send(get(STATUS, &[])).await;
    assert_eq!(client.answer().await.status, 200, "no body was waited for");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    let request = |status: u16| get(STATUS, &[&format!("x-do: status:{status}")]);
    client.send(request(201) + &request(202) + &request(404)).await;
    for status in [201, 202, 404] {
        assert_eq!(client.answer().await.status, status);
    }
}

#[tokio::test]
async fn an_http_1_0_client_is_served_and_let_go() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.send("GET /nodes HTTP/1.0\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, &*answer.text()), (200, "ray"));
    assert!(client.is_closed().await);
}

// --- Connections to Ray ---

#[tokio::test]
async fn connections_to_ray_are_reused() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    for _ in 0..50 {
        client.send(get(STATUS, &[])).await;
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(rig.ray.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_core_takes_up_the_connections_to_ray_that_it_opened_and_no_others() {
    let rig = Rig::with(Setup { cores: Some(Cores::start(2).unwrap()), ..Setup::default() }).await;
    let mut clients = [rig.client().await, rig.client().await, rig.client().await];
    for _ in 0..20 {
        for client in &mut clients {
            client.send(get(STATUS, &[])).await;
            assert_eq!(client.answer().await.status, 200);
        }
    }
    // One after the other, a single one would do for all. The third client is the first core's again.
    assert_eq!(rig.ray.connections.load(SeqCst), 2);
    rig.proxy.tasks.close();
    drop(clients);
    assert!(rig.proxy.tasks.drain(Duration::from_secs(20)).await, "what other cores do is waited for");
}

#[tokio::test]
async fn a_request_that_meets_a_stale_connection_is_sent_again_on_a_new_one() {
    let rig = Rig::start().await;
    for _ in 0..20 {
        assert_eq!(rig.get(STATUS, &["x-do: last"]).await.status, 200);
        assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    }
    assert_eq!(rig.ray.count(), 40, "none twice");
}

#[tokio::test]
async fn ray_down_is_said_at_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = listener.local_addr().unwrap().to_string();
    drop(listener);
    let rig = Rig::with(Setup { upstream: Some(Address::Tcp(nowhere)), ..Setup::default() }).await;
    let answer = rig.get(STATUS, &[]).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("x-rayguard-reason"), Some("upstream_unreachable"));
    assert!(answer.text().contains("Ray is down"), "{}", answer.text());
    assert_eq!(rig.in_flight("job-status"), 0);
    assert_eq!(rig.proxy.admission.counts(class("job-status")).failed, 1);
}

#[tokio::test]
async fn ray_breaking_off_is_a_502_and_never_sent_twice() {
    let rig = Rig::start().await;
    let answer = rig.get(STATUS, &["x-do: break"]).await;
    assert_eq!(answer.status, 502);
    assert_eq!(rig.ray.count(), 1);
    // In the middle of a body all that is left is to break off too.
    let mut client = rig.client().await;
    client.send(get(STATUS, &["x-do: break-body"])).await;
    assert!(client.try_answer().await.is_none());
    until("the permit is back", || rig.in_flight("job-status") == 0).await;
}

#[tokio::test]
async fn a_request_ray_does_not_begin_to_answer_is_a_504_and_stays_counted() {
    let rig = Rig::with_policy(|policy| {
        policy.classes[class("job-status").index()].timeout = Some(Duration::from_millis(50));
    })
    .await;
    let answer = rig.get(STATUS, &["x-do: hold"]).await;
    assert_eq!(answer.status, 504);
    assert_eq!(answer.header("x-rayguard-reason"), Some("upstream_timeout"));
    assert_eq!(rig.in_flight("job-status"), 1, "Ray still works on it");
    rig.ray.hold.add_permits(1);
    until("the permit is back", || rig.in_flight("job-status") == 0).await;
}

// --- Clients that leave ---

#[tokio::test]
async fn abandoned_work_holds_its_permit_until_ray_answers() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.send(get(STATUS, &["x-do: hold"])).await;
    until("Ray has it", || rig.ray.count() == 1).await;
    drop(client);
    // Long enough for the proxy to see the client leave: another request's whole way.
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    assert_eq!(rig.in_flight("job-status"), 1);
    rig.ray.hold.add_permits(1);
    until("the permit is back", || rig.in_flight("job-status") == 0).await;
    assert_eq!(rig.proxy.admission.counts(class("job-status")).abandoned, 1);
}

#[tokio::test]
async fn a_request_whose_client_left_while_it_waited_is_never_forwarded() {
    let (rig, mut first) = one_at_ray_where_one_may_be().await;
    let mut second = rig.client().await;
    second.send(get(STATUS, &["x-mark: gone"])).await;
    until("it waits", || rig.waiting("job-status") == 1).await;
    drop(second);
    until("it has left the line", || rig.waiting("job-status") == 0).await;
    rig.ray.hold.add_permits(1);
    assert_eq!(first.answer().await.text(), "held");
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    assert!(rig.ray.seen().iter().all(|seen| seen.header("x-mark").is_none()));
    assert_eq!(rig.proxy.admission.counts(class("job-status")).left, 1);
}

#[tokio::test]
async fn who_has_sent_ahead_and_left_is_missed_like_any_other() {
    let (rig, mut first) = one_at_ray_where_one_may_be().await;
    // The next request in one piece with the first, in a piece of its own, and cut.
    for ahead in [get(STATUS, &[]), get(STATUS, &[]).repeat(100), "GET /api".to_owned()] {
        for pieces in [1, 2] {
            let mut second = rig.client().await;
            let asks = get(STATUS, &["x-mark: gone"]);
            if pieces == 1 {
                second.send(asks + &ahead).await;
            } else {
                second.send(asks).await;
                until("it waits", || rig.waiting("job-status") == 1).await;
                second.send(&ahead).await;
            }
            until("it waits", || rig.waiting("job-status") == 1).await;
            drop(second);
            until("it has left the line", || rig.waiting("job-status") == 0).await;
        }
    }
    // Who stays has an answer to each.
    let mut stays = rig.client().await;
    stays.send(get(STATUS, &[]).repeat(3)).await;
    until("it waits", || rig.waiting("job-status") == 1).await;
    rig.ray.hold.add_permits(1);
    assert_eq!(first.answer().await.text(), "held");
    for _ in 0..3 {
        assert_eq!(stays.answer().await.status, 200);
    }
    assert!(rig.ray.seen().iter().all(|seen| seen.header("x-mark").is_none()));
}

#[tokio::test]
async fn who_leaves_after_a_body_without_a_length_is_missed_too() {
    let (rig, _first) = one_at_ray_where_one_may_be().await;
    let mut second = rig.client().await;
    let head = get(STATUS, &["transfer-encoding: chunked"]);
    second.send(head + "5\r\nhello\r\n0\r\n\r\n").await;
    until("it waits", || rig.waiting("job-status") == 1).await;
    drop(second);
    until("it has left the line", || rig.waiting("job-status") == 0).await;
}

#[tokio::test]
async fn an_upload_that_its_client_breaks_off_frees_its_place() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client
        .send("PUT /api/packages/gcs/a.zip HTTP/1.1\r\nhost: r\r\ncontent-length: 100000\r\n\r\nhalf")
        .await;
    until("Ray has begun", || rig.ray.begun.load(SeqCst) == 1).await;
    drop(client);
    until("its place is free", || rig.proxy.parked.count() == 0).await;
    assert_eq!(rig.in_flight("packages"), 0);
}

#[tokio::test]
async fn a_reader_that_leaves_in_the_middle_of_an_answer_frees_its_place() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.send(get(STATUS, &["x-do: big:50000000"])).await;
    assert!(client.head().await.is_some());
    drop(client);
    until("the permit is back", || rig.in_flight("job-status") == 0).await;
}

// --- Tunnels ---

const TAIL: &str = "/api/jobs/raysubmit_1/logs/tail";
const HANDSHAKE: [&str; 4] = [
    "connection: Upgrade",
    "upgrade: websocket",
    "sec-websocket-version: 13",
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
];

fn tail(what: &str) -> String {
    let mut lines = HANDSHAKE.to_vec();
    lines.push(what);
    get(TAIL, &lines)
}

#[tokio::test]
async fn a_websocket_is_joined_both_ways() {
    let rig = Rig::with_policy(|policy| {
        policy.classes[class("log-tail").index()].coalesce = None;
    })
    .await;
    let mut client = rig.client().await;
    client.send(tail("x-do: websocket")).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 101, "{}", answer.head);
    assert_eq!(answer.header("sec-websocket-accept"), Some("abc"));
    assert_eq!(client.said().await, "hello", "what came with the handshake is not lost");
    client.send("ping").await;
    assert_eq!(client.exact(4).await.unwrap(), b"ping");
    assert_eq!(rig.in_flight("log-tail"), 1);
    rig.ray.hold.close();
    assert!(client.is_closed().await);
    until("the permit is back", || rig.in_flight("log-tail") == 0).await;
}

#[tokio::test]
async fn a_tail_whose_reader_left_stays_counted_until_ray_closes() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.send(tail("x-do: websocket")).await;
    assert_eq!(client.answer().await.status, 101);
    drop(client);
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    assert_eq!(rig.in_flight("log-tail"), 1);
    rig.ray.hold.add_permits(3); // lines that no client reads
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    rig.ray.hold.close();
    until("the permit is back", || rig.in_flight("log-tail") == 0).await;
}

#[tokio::test]
async fn a_declined_handshake_is_passed_on() {
    let rig = Rig::start().await;
    let answer = rig.ask(&tail("x-do: status:404")).await;
    assert_eq!((answer.status, &*answer.text()), (404, "as told"));
    until("the permit is back", || rig.in_flight("log-tail") == 0).await;
}

#[tokio::test]
async fn tails_beyond_their_cap_are_refused_at_the_handshake() {
    let rig = Rig::with_policy(|policy| {
        let tails = &mut policy.classes[class("log-tail").index()];
        tails.in_flight = Bounds::fixed(2.0);
        tails.coalesce = None;
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = rig.client().await;
        client.send(tail("x-do: websocket")).await;
        assert_eq!(client.answer().await.status, 101);
        open.push(client);
    }
    let refused = rig.ask(&tail("x-do: websocket")).await;
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(rig.get("/api/version", &[]).await.status, 200, "the Job API goes on");
}

/// A reader of a tail, past its handshake.
async fn reader(rig: &Rig, what: &str) -> Client<tokio::net::TcpStream> {
    let mut client = rig.client().await;
    client.send(tail(what)).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 101, "{}", answer.head);
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    client
}

#[tokio::test]
async fn readers_of_one_log_share_one_tail_from_its_beginning() {
    let rig = Rig::start().await;
    let mut first = reader(&rig, "x-do: websocket").await;
    assert_eq!(first.said().await, "hello");
    rig.ray.hold.add_permits(1);
    assert_eq!(first.said().await, "tick");
    let mut late = reader(&rig, "x-do: websocket").await;
    assert_eq!((&*late.said().await, &*late.said().await), ("hello", "tick"), "what Ray would send it");
    drop(first);
    rig.ray.hold.add_permits(1);
    assert_eq!(late.said().await, "tick", "the leader's leaving ends nothing");
    let mut other = reader(&rig, "x-do: websocket\r\nauthorization: Bearer b").await;
    assert_eq!(other.said().await, "hello");
    assert_eq!((rig.ray.count(), rig.in_flight("log-tail")), (2, 2), "never across credentials");
    drop(late);
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    let mut again = reader(&rig, "x-do: websocket").await;
    for said in ["hello", "tick", "tick"] {
        assert_eq!(again.said().await, said, "Ray's slot was kept, and is used again");
    }
    assert_eq!(rig.in_flight("log-tail"), 2);
    rig.ray.hold.close();
    assert!(again.is_closed().await);
    until("the permits are back", || rig.in_flight("log-tail") == 0).await;
}

#[tokio::test]
async fn fifty_readers_of_one_log_are_one_slot_of_rays() {
    let rig = Rig::start().await;
    let mut readers = Vec::new();
    for _ in 0..50 {
        let mut client = rig.client().await;
        client.send(tail("x-do: websocket")).await;
        readers.push(client);
    }
    for client in &mut readers {
        assert_eq!(client.answer().await.status, 101);
        assert_eq!(client.said().await, "hello");
    }
    assert_eq!((rig.ray.count(), rig.in_flight("log-tail")), (1, 1));
    rig.ray.hold.add_permits(1);
    for client in &mut readers {
        assert_eq!(client.said().await, "tick");
    }
    let mut leaves = readers.pop().unwrap();
    leaves.send([0x88, 0x80, 0, 0, 0, 0]).await;
    assert_eq!(leaves.message().await, Some((CLOSE, Vec::new())), "a Close is answered");
    assert!(leaves.is_closed().await, "and the client let go");
}

#[tokio::test]
async fn readers_are_told_when_the_proxy_goes_down() {
    for shared in [true, false] {
        let rig = Rig::with_policy(|policy| {
            let tails = &mut policy.classes[class("log-tail").index()];
            tails.coalesce = tails.coalesce.filter(|_| shared);
        })
        .await;
        let mut client = rig.client().await;
        client.send(tail("x-do: websocket-text:hi")).await;
        assert_eq!(client.answer().await.status, 101);
        assert_eq!(client.exact(4).await.unwrap(), [0x81, 2, b'h', b'i']);
        rig.proxy.tasks.close();
        assert_eq!(client.message().await, Some((CLOSE, vec![3, 233])), "1001, going away");
        client.send(answer_frame(CLOSE, &[3, 233])).await;
        assert!(client.is_closed().await);
    }
}

/// Reads a log of so many lines to its end, `pause` after each piece of 64 KiB, and closes as RFC 6455 has it.
async fn follow(rig: &Rig, what: &str, lines: usize, pause: Duration) {
    let mut client = reader(rig, what).await;
    let (mut log, mut paused) = (Vec::new(), 0);
    let close = loop {
        match client.message().await.unwrap() {
            (CLOSE, payload) => break payload,
            (_, text) => log.extend(text),
        }
        if log.len() / 65_536 > paused {
            paused = log.len() / 65_536;
            tokio::time::sleep(pause).await;
        }
    };
    let whole: String = (0..lines).map(rig::log_line).collect();
    assert!(log == whole.as_bytes(), "{} bytes of {}", log.len(), whole.len());
    assert_eq!(close, NORMAL.to_be_bytes());
    client.send(answer_frame(CLOSE, &close)).await;
    let mut rest = Vec::new();
    assert_eq!(client.stream.read_to_end(&mut rest).await.ok(), Some(0), "an orderly end");
}

/// Kernels keep megabytes for a client that does not read: a log longer than that, 18 MB, makes it fall behind.
const LINES: usize = 90_000;

#[tokio::test]
async fn followers_at_any_speed_get_every_line_and_laggards_share_a_tail() {
    let rig = Rig::start().await;
    let what = format!("x-do: websocket-log:{LINES}:0");
    let pauses = [0, 0, 2, 3, 4].map(Duration::from_millis);
    let mut followers: Vec<rig::Task> = Vec::new();
    let rig = Arc::new(rig);
    for pause in pauses {
        let (rig, what) = (Arc::clone(&rig), what.clone());
        followers.push(Box::pin(async move { follow(&rig, &what, LINES, pause).await }));
    }
    rig::all(followers).await;
    assert!((1..=2).contains(&rig.ray.count()), "{} tails at Ray", rig.ray.count());
    until("the permits are back", || rig.in_flight("log-tail") == 0).await;
}

#[tokio::test]
async fn a_follower_that_does_not_read_holds_up_no_other_and_loses_nothing() {
    let rig = Rig::start().await;
    let what = format!("x-do: websocket-log:{LINES}:0");
    let mut asleep = reader(&rig, &what).await;
    follow(&rig, &what, LINES, Duration::ZERO).await;
    assert_eq!(rig.ray.count(), 1, "one that takes nothing costs Ray nothing");
    let mut log = Vec::new();
    while let (1, text) = asleep.message().await.unwrap() {
        log.extend(text);
    }
    assert_eq!(log.len(), LINES * rig::log_line(0).len());
    assert_eq!(rig.ray.count(), 2, "it went on at a tail of its own");
}

#[tokio::test]
async fn a_tunnel_stays_open_until_both_ends_have_closed() {
    let rig = Rig::with_policy(|policy| {
        policy.classes[class("log-tail").index()].coalesce = None;
    })
    .await;
    let mut client = rig.client().await;
    client.send(tail("x-do: websocket-log:1:0")).await;
    assert_eq!(client.answer().await.status, 101);
    assert_eq!(client.said().await, rig::log_line(0));
    assert_eq!(client.message().await, Some((CLOSE, NORMAL.to_be_bytes().to_vec())));
    let early = tokio::time::timeout(Duration::from_millis(100), client.message()).await;
    assert!(early.is_err(), "the client has not answered yet: {early:?}");
    client.send(answer_frame(CLOSE, &NORMAL.to_be_bytes())).await;
    assert!(client.is_closed().await);
    until("the permit is back", || rig.in_flight("log-tail") == 0).await;
}

#[tokio::test]
async fn clients_that_leave_during_the_handshake_stay_counted_until_ray_closes() {
    for shared in [true, false] {
        let rig = Rig::with_policy(|policy| {
            let tails = &mut policy.classes[class("log-tail").index()];
            tails.coalesce = tails.coalesce.filter(|_| shared);
            tails.in_flight = Bounds::fixed(2.0);
        })
        .await;
        for (place, path) in ["/api/jobs/a/logs/tail", "/api/jobs/b/logs/tail"].into_iter().enumerate() {
            let mut client = rig.client().await;
            client.send(tail("x-do: websocket-late").replace(TAIL, path)).await;
            until("Ray has it", || rig.ray.count() == place + 1).await;
            drop(client);
        }
        let refused = rig.ask(&tail("x-do: websocket-late")).await;
        assert_eq!(refused.status, 503, "Ray still shakes hands with those who left");
        rig.ray.hold.add_permits(2);
        until("it has", || rig.ray.hold.available_permits() == 0).await;
        assert_eq!(rig.get(STATUS, &[]).await.status, 200);
        assert_eq!(rig.in_flight("log-tail"), 2, "and holds what it opened");
        rig.ray.hold.close();
        until("the permits are back", || rig.in_flight("log-tail") == 0).await;
    }
}

#[tokio::test]
async fn a_handshake_that_ray_does_not_answer_ends_in_time_for_all_who_wait_for_it() {
    let rig = Rig::with_policy(|policy| {
        policy.classes[class("log-tail").index()].timeout = Some(Duration::from_millis(200));
    })
    .await;
    let what = tail("x-do: websocket-late");
    let (leads, follows) = tokio::join!(rig.ask(&what), rig.ask(&what));
    for answer in [leads, follows] {
        assert_eq!(answer.status, 504, "{}", answer.text());
        assert_eq!(answer.header("x-rayguard-reason"), Some("upstream_timeout"));
    }
    assert_eq!((rig.ray.count(), rig.in_flight("log-tail")), (1, 1), "Ray may still be at it");
    rig.ray.hold.close();
    until("the permit is back", || rig.in_flight("log-tail") == 0).await;
}

#[tokio::test]
async fn a_connection_that_ray_closed_while_it_idled_holds_no_request_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Some(Address::Tcp(listener.local_addr().unwrap().to_string()));
    let rig = Rig::with(Setup { upstream, ..Setup::default() }).await;
    let (first, ray) = tokio::join!(rig.get(STATUS, &[]), async {
        let (mut ray, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        assert!(ray.read(&mut head).await.unwrap() > 0);
        ray.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        ray
    });
    assert_eq!(first.status, 200);
    drop((ray, listener)); // Ray is gone
    assert_eq!(
        rig.get(STATUS, &[]).await.status,
        503,
        "the dead line is found out, and no other is to be had"
    );
}

// --- Sharing ---

#[tokio::test]
async fn fifty_equal_lists_are_one_request_to_ray() {
    let rig = Rig::start().await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = rig.client().await;
        client.send(get("/api/jobs/", &["x-do: hold"])).await;
        clients.push(client);
    }
    until("Ray has it", || rig.ray.count() == 1).await;
    // A request of another class on the same connections' heels shows that all fifty were read.
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    rig.ray.hold.add_permits(50);
    for client in &mut clients {
        assert_eq!(client.answer().await.text(), "held");
    }
    let lists = rig.ray.seen().iter().filter(|seen| seen.line().contains("/api/jobs/ ")).count();
    assert_eq!(lists, 1);
}

#[tokio::test]
async fn an_answer_is_never_shared_across_credentials() {
    let rig = Rig::start().await;
    let mut clients = Vec::new();
    for token in ["a", "a", "b", "b"] {
        let mut client = rig.client().await;
        client.send(get("/api/jobs/", &["x-do: hold", &format!("authorization: Bearer {token}")])).await;
        clients.push(client);
    }
    until("Ray has one of each", || rig.ray.count() == 2).await;
    rig.ray.hold.add_permits(4);
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(rig.ray.count(), 2);
}

#[tokio::test]
async fn a_known_client_does_not_wait_behind_a_stranger_who_asks_the_same() {
    let rig = Rig::with_policy(|policy| {
        policy.classes[class("job-list").index()].in_flight = Bounds::fixed(1.0);
    })
    .await;
    let ask = |address: u32, question: &str, task: &str| {
        get(&format!("/api/jobs/?{question}"), &[&format!("x-forwarded-for: 10.0.0.{address}"), task])
    };
    for calm in 0..3 {
        assert_eq!(rig.ask(&ask(1, &format!("calm={calm}"), "x-do: slow:5")).await.status, 200);
    }
    // Twenty minutes later.
    let later = WallMs(rig.proxy.clock.wall().0 + 20 * 60_000);
    rig.proxy.admission.history().set_clock(rig.proxy.clock.now(), later);
    let mut waiting = Vec::new();
    for (address, question) in [(2, "a"), (3, "b"), (4, "c"), (5, "mine"), (1, "mine"), (6, "mine")] {
        let mut client = rig.client().await;
        client.send(ask(address, question, "x-do: hold")).await;
        waiting.push(client);
        // The last one follows, and no counter shows it.
        let lines = waiting.len().min(5);
        until("it is in or waits", || {
            (rig.in_flight("job-list") + rig.waiting("job-list")) as usize == lines
        })
        .await;
    }
    rig.ray.hold.add_permits(2);
    assert_eq!(waiting[4].answer().await.status, 200, "the known one is next");
    let asked: Vec<String> = rig.ray.seen().iter().skip(3).map(|seen| seen.line().to_owned()).collect();
    assert!(asked[0].contains("?a ") && asked[1].contains("?mine "), "{asked:?}");
    rig.ray.hold.add_permits(10);
    for client in &mut waiting[..4] {
        assert_eq!(client.answer().await.status, 200);
    }
}

#[tokio::test]
async fn followers_get_their_answer_though_the_leader_leaves() {
    let rig = Rig::start().await;
    let mut leader = rig.client().await;
    leader.send(get("/api/jobs/", &["x-do: hold"])).await;
    until("Ray has it", || rig.ray.count() == 1).await;
    let mut follower = rig.client().await;
    follower.send(get("/api/jobs/", &["x-do: hold"])).await;
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    drop(leader);
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    rig.ray.hold.add_permits(1);
    assert_eq!(follower.answer().await.text(), "held");
}

/// So many clients that ask for the job list, all of them waiting for the one request that Ray has.
async fn followers(rig: &Rig, count: usize, task: &str) -> Vec<Client<tokio::net::TcpStream>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = rig.client().await;
        client.send(get("/api/jobs/", &[task])).await;
        clients.push(client);
    }
    until("Ray has it", || rig.ray.count() == 1).await;
    // A request on their heels shows that all were read.
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    clients
}

/// How often Ray was asked for the job list.
fn lists(rig: &Rig) -> usize {
    rig.ray.seen().iter().filter(|seen| seen.line().contains("/api/jobs/ ")).count()
}

#[tokio::test]
async fn all_who_wait_for_an_answer_that_does_not_come_are_told_together() {
    let rig = Rig::with_policy(|policy| {
        policy.classes[class("job-list").index()].timeout = Some(Duration::from_secs(1));
    })
    .await;
    let mut clients = followers(&rig, 5, "x-do: hold").await;
    let mut equal = 0;
    for client in &mut clients {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("x-rayguard-reason")), (504, Some("upstream_timeout")));
        equal += usize::from(answer.text().contains("an equal 'job-list' request within 1s"));
    }
    assert_eq!((lists(&rig), equal), (1, 4), "Ray was not asked over again");
}

#[tokio::test]
async fn all_who_wait_for_an_answer_that_breaks_off_are_told_together() {
    let rig = Rig::start().await;
    let mut held = followers(&rig, 5, "x-do: hold").await;
    rig.ray.hold.close(); // Ray breaks off
    for client in &mut held {
        assert_eq!(client.answer().await.status, 502);
    }
    assert_eq!(lists(&rig), 1, "Ray was not asked over again");
}

#[tokio::test]
async fn of_an_answer_that_breaks_off_at_once_head_and_bytes_come_through() {
    let rig = Rig::start().await;
    for _ in 0..20 {
        let mut client = rig.client().await;
        client.send(get(STATUS, &["x-do: break-body"])).await;
        let head = client.head().await.expect("Ray's head");
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 100"), "{head}");
        assert_eq!(client.exact(4).await.as_deref(), Some(&b"half"[..]));
        assert_eq!(client.exact(1).await, None, "and no more than came");
    }
}

#[tokio::test]
async fn who_is_answered_while_the_process_ends_is_told_that_the_connection_ends() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.send(get(STATUS, &["x-do: hold"])).await;
    until("Ray has it", || rig.ray.under_way.load(SeqCst) == 1).await;
    rig.proxy.tasks.close();
    rig.ray.hold.add_permits(1);
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
}

#[tokio::test]
async fn a_connection_whose_answer_ends_after_the_process_began_to_end_takes_one_more_request() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.send(get("/api/v0/logs/stream", &["x-do: stream"])).await;
    let head = client.head().await.unwrap();
    assert!(header(&head, "connection").is_none(), "the process goes on: {head}");
    rig.proxy.tasks.close();
    tokio::time::sleep(Duration::from_millis(1500)).await; // longer than an idle connection is left open
    rig.ray.hold.close();
    client.chunked().await.expect("the stream's end");
    client.send(get("/api/version", &[])).await;
    let next = client.answer().await;
    assert_eq!((next.status, next.header("connection")), (200, Some("close")));
}

#[tokio::test]
async fn whose_only_request_finds_no_room_is_not_told_of_a_share() {
    let rig = Rig::with_policy(|policy| {
        let lists = &mut policy.classes[class("job-logs").index()];
        lists.in_flight = Bounds::fixed(1.0);
        lists.queue.len_max = 2;
    })
    .await;
    let ask = |address: u32| {
        get("/api/jobs/a/logs", &[&format!("x-forwarded-for: 10.0.0.{address}"), "x-do: hold"])
    };
    let mut held = Vec::new();
    for address in 1..=3 {
        let mut client = rig.client().await;
        client.send(ask(address)).await;
        held.push(client);
        until("it is in or waits", || rig.in_flight("job-logs") + rig.waiting("job-logs") == address).await;
    }
    let mut refused = Vec::new();
    for address in [4, 2] {
        let answer = rig.ask(&ask(address)).await;
        refused.push((answer.status, answer.header("x-rayguard-reason").unwrap().to_owned()));
    }
    assert_eq!(refused, [(503, "class_in_flight".to_owned()), (429, "client_share".to_owned())]);
}

#[tokio::test]
async fn an_answer_that_is_one_clients_own_is_each_ones_own_within_the_limit() {
    for own in ["set-cookie: session=1", "cache-control: private, no-store", "vary: *"] {
        let rig = Rig::with_policy(|policy| {
            policy.classes[class("job-list").index()].in_flight = Bounds::fixed(2.0);
            policy.classes[class("job-list").index()].queue.wait_max = Duration::from_secs(15);
        })
        .await;
        let mut clients = followers(&rig, 6, &format!("x-do: head:{own}")).await;
        rig.ray.hold.add_permits(6);
        for client in &mut clients {
            assert_eq!(client.answer().await.status, 200, "{own}");
        }
        assert_eq!(lists(&rig), 6, "{own}");
        assert!(rig.ray.under_way_max.load(SeqCst) <= 3, "two lists and a status");
        rig.ray.hold.add_permits(1);
        assert_eq!(rig.get("/api/jobs/", &[&format!("x-do: head:{own}")]).await.status, 200);
        assert_eq!(lists(&rig), 7, "{own}: nor is it kept");
    }
}

#[tokio::test]
async fn a_list_of_any_size_within_the_budget_is_shared_and_one_beyond_it_goes_to_each_by_itself() {
    let size = 9 << 20;
    let rig = Rig::start().await;
    let mut clients = followers(&rig, 20, &format!("x-do: hold-big:{size}")).await;
    rig.ray.hold.add_permits(1);
    for client in &mut clients {
        assert_eq!(client.answer().await.body.len(), size);
    }
    assert_eq!(lists(&rig), 1);

    let rig = Rig::start().await;
    rig.proxy.coalescer.budget().set_max(8 << 20);
    let mut clients = followers(&rig, 4, &format!("x-do: hold-big:{size}")).await;
    rig.ray.hold.add_permits(4);
    for client in &mut clients {
        assert_eq!(client.answer().await.body.len(), size);
    }
    assert_eq!((lists(&rig), rig.proxy.coalescer.budget().used()), (4, 0));
}

#[tokio::test]
async fn an_answer_of_unknown_length_is_shared_as_it_comes() {
    let rig = Rig::start().await;
    let mut clients = followers(&rig, 3, "x-do: stream").await;
    rig.ray.hold.add_permits(1);
    for client in &mut clients {
        let head = client.head().await.unwrap();
        assert!(head.contains("200") && head.contains("chunked"), "{head}");
        assert_eq!(client.exact(10).await.unwrap(), b"5\r\nline\n\r\n", "before Ray has ended it");
    }
    rig.ray.hold.close();
    for client in &mut clients {
        assert_eq!(client.exact(5).await.unwrap(), b"0\r\n\r\n");
    }
    assert_eq!(lists(&rig), 1);
}

#[tokio::test]
async fn what_is_kept_is_gone_after_its_time_though_no_client_asks() {
    let rig = Rig::start().await;
    let size = 1 << 20;
    assert_eq!(rig.get("/api/jobs/", &[&format!("x-do: big:{size}")]).await.body.len(), size);
    assert!(rig.proxy.coalescer.budget().used() >= size, "kept for a second");
    until("it is gone", || rig.proxy.coalescer.budget().used() == 0).await;
}

#[tokio::test]
async fn a_request_that_is_stamped_on_its_way_is_shared_all_the_same() {
    let rig = Rig::start().await;
    let mut clients = Vec::new();
    for stamp in 0..5 {
        let mut client = rig.client().await;
        let stamps = [format!("traceparent: {stamp}"), format!("x-forwarded-for: 10.0.0.{stamp}")];
        client.send(get("/api/jobs/", &["x-do: hold", &stamps[0], &stamps[1]])).await;
        clients.push(client);
    }
    until("Ray has it", || rig.ray.count() == 1).await;
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    rig.ray.hold.add_permits(5);
    for client in &mut clients {
        assert_eq!(client.answer().await.text(), "held");
    }
    assert_eq!(lists(&rig), 1);
}

/// Asks for the job list five times at once, each time with a key that Ray ignores; how many reached Ray.
async fn busters(reads_are_known: bool) -> usize {
    let rig = Rig::with(Setup { reads_are_known, ..Setup::default() }).await;
    let mut clients = Vec::new();
    for random in 0..5 {
        let mut client = rig.client().await;
        client.send(get(&format!("/api/jobs/?r={random}"), &["x-do: hold"])).await;
        clients.push(client);
    }
    // A request of another class on the same connections' heels shows that all were read.
    assert_eq!(rig.get(STATUS, &[]).await.status, 200);
    rig.ray.hold.add_permits(5);
    for client in &mut clients {
        assert_eq!(client.answer().await.text(), "held");
    }
    rig.ray.seen().iter().filter(|seen| seen.line().contains("/api/jobs/?r=")).count()
}

#[tokio::test]
async fn a_key_that_ray_ignores_does_not_split_an_answer_once_its_handlers_are_known() {
    assert_eq!(busters(true).await, 1);
    assert_eq!(busters(false).await, 5);
}

#[tokio::test]
async fn a_request_that_comes_late_to_a_proxy_that_has_been_succeeded_is_served_there() {
    let rig = Rig::with_policy(|policy| {
        let status = &mut policy.classes[class("job-status").index()];
        status.in_flight = Bounds::fixed(1.0);
        status.queue.wait_max = Duration::from_secs(15);
    })
    .await;
    let identifier = rayguard::core::request::identify::Identifier::new([1, 2], Vec::new(), Vec::new());
    let next = rig.proxy.reconfigure(rig.proxy.policy.clone(), identifier, rig.proxy.table.load_full());
    let client = rayguard::core::request::client_id::ClientId { address: 1, credential: None };
    let ask = rayguard::core::admission::controller::Ask { class: class("job-status"), route: 0, client };
    let now = || rig.proxy.clock.now();
    // No request waits at the old proxy for now: what looks after it is done.
    let slot = next.admit(ask, now()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let late = rig.proxy.admit(ask, now());
    let leaves = async {
        until("it waits", || rig.waiting("job-status") == 1).await;
        drop(slot);
    };
    let (late, ()) = tokio::join!(late, leaves);
    assert!(late.is_ok(), "as soon as there is room");
}

// --- Refusals ---

#[tokio::test]
async fn a_flood_from_one_address_costs_a_polite_one_nothing() {
    let rig = Rig::with_policy(|policy| {
        let status = &mut policy.classes[class("job-status").index()];
        status.in_flight = Bounds::fixed(4.0);
        status.queue.len_max = 16;
        // Whose turn it is shall not hang on how busy this machine is.
        status.queue.wait_max = Duration::from_secs(15);
    })
    .await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let shed = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for _ in 0..40 {
        let (stop, shed, address) = (stop.clone(), shed.clone(), rig.address);
        rig.proxy.tasks.spawn(async move {
            let mut client = Client::connect(address).await;
            while !stop.load(SeqCst) {
                client.send(get(STATUS, &["x-do: slow:2", "x-forwarded-for: 10.0.0.66"])).await;
                if client.answer().await.status != 200 {
                    shed.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
    }
    until("the line is full", || shed.load(SeqCst) > 100).await;
    let mut polite = rig.client().await;
    let mut refused = Vec::new();
    for _ in 0..200 {
        polite.send(get(STATUS, &["x-do: slow:2", "x-forwarded-for: 10.0.0.1"])).await;
        let answer = polite.answer().await;
        if answer.status != 200 {
            refused.push(answer.text());
        }
    }
    stop.store(true, SeqCst);
    assert!(refused.len() <= 1, "{} of 200: {:?}", refused.len(), refused.first());
    assert!(rig.ray.under_way_max.load(SeqCst) <= 4, "never more than the limit at Ray");
}

#[tokio::test]
async fn a_refusal_says_why_and_when_to_come_back() {
    let mut rig = Rig::with_policy(|policy| {
        let heavy = &mut policy.classes[class("state-heavy").index()];
        heavy.in_flight = Bounds::fixed(1.0);
        heavy.queue.len_max = 0;
        heavy.coalesce = None;
    })
    .await;
    let mut first = rig.client().await;
    first.send(get("/api/v0/tasks", &["x-do: hold"])).await;
    until("Ray has it", || rig.ray.count() == 1).await;
    let refused = rig.get("/api/v0/tasks", &[]).await;
    assert!(refused.status == 429 || refused.status == 503);
    assert_eq!(refused.header("x-rayguard-reason"), Some("class_in_flight"));
    let wait: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=120).contains(&wait));
    let envelope: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(envelope["result"], false);
    let id = refused.header("x-rayguard-request-id").unwrap();
    assert!(envelope["msg"].as_str().unwrap().contains(id));
    let note = rig.sheds.recv().await.unwrap();
    assert_eq!((&*note.id, &*note.route), (id, "/api/v0/tasks"));
}

#[tokio::test]
async fn rays_test_routes_are_blocked_and_health_passes_full_limits() {
    let rig = Rig::with_policy(|policy| {
        for module in &mut policy.modules {
            module.in_flight = Bounds::fixed(0.0);
        }
    })
    .await;
    assert_eq!(rig.get("/api/v0/delay/5", &[]).await.status, 404);
    assert_eq!(rig.get("/test/dump", &[]).await.status, 404);
    for path in ["/api/version", "/api/gcs_healthz", "/"] {
        assert_eq!(rig.get(path, &[]).await.status, 200, "{path}");
    }
}

// --- Connections of clients ---

#[tokio::test]
async fn one_address_may_not_take_every_connection() {
    let bounds =
        listen::ListenerLimits { connections_per_address_max: 2, ..listen::ListenerLimits::default() };
    let rig = Rig::with(Setup { bounds, ..Setup::default() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = connect_from("127.0.0.3", rig.address).await;
        client.send(get(STATUS, &[])).await;
        assert_eq!(client.answer().await.status, 200);
        held.push(client);
    }
    let mut third = connect_from("127.0.0.3", rig.address).await;
    let _ = third.stream.write_all(get(STATUS, &[]).as_bytes()).await;
    assert!(third.try_answer().await.is_none(), "closed without an answer");
    let mut elsewhere = connect_from("127.0.0.2", rig.address).await;
    elsewhere.send(get(STATUS, &[])).await;
    assert_eq!(elsewhere.answer().await.status, 200);
}

async fn connect_from(source: &str, to: std::net::SocketAddr) -> Client<tokio::net::TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((source.parse::<std::net::Ipv4Addr>().unwrap(), 0).into()).unwrap();
    Client::over(socket.connect(to).await.unwrap())
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let bounds = listen::ListenerLimits {
        head_timeout: Duration::from_millis(50),
        ..listen::ListenerLimits::default()
    };
    let rig = Rig::with(Setup { bounds, ..Setup::default() }).await;
    let mut client = rig.client().await;
    client.send("GET /api/jobs/ HTTP/1.1\r\nhost:").await;
    let mut left = Vec::new();
    let _ = client.stream.read_to_end(&mut left).await;
    assert_eq!(rig.ray.count(), 0);
}

#[tokio::test]
async fn closing_finishes_what_is_under_way() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.send(get(STATUS, &["x-do: slow:100"])).await;
    until("Ray has it", || rig.ray.count() == 1).await;
    rig.proxy.tasks.close();
    let answer = client.try_answer().await;
    assert_eq!(answer.map(|answer| answer.status), Some(200));
}

// --- Classes that know of each other ---

#[tokio::test]
async fn a_job_that_begins_ends_the_life_of_the_remembered_list() {
    let rig = Rig::start().await;
    for _ in 0..2 {
        assert_eq!(rig.get("/api/jobs/", &["x-do: status:200"]).await.status, 200);
    }
    assert_eq!(rig.ray.count(), 1, "remembered");
    let submit = "POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(rig.ask(submit).await.status, 200);
    assert_eq!(rig.get("/api/jobs/", &["x-do: status:200"]).await.status, 200);
    assert_eq!(rig.ray.count(), 3, "asked for anew");
}

#[tokio::test]
async fn an_upload_whose_submission_would_be_refused_is_refused_before_it_is_sent() {
    let rig = Rig::with_policy(|policy| {
        let submit = &mut policy.classes[class("job-submit").index()];
        submit.in_flight = Bounds::fixed(1.0);
        submit.queue.len_max = 1;
    })
    .await;
    let submit = |address: &str| {
        format!(
            "POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\nx-do: hold\r\nx-forwarded-for: {address}\r\n\
             content-length: 2\r\n\r\n{{}}"
        )
    };
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = rig.client().await;
        client.send(submit("10.0.0.66")).await;
        held.push(client);
    }
    until("one is under way and one waits", || {
        rig.in_flight("job-submit") == 1 && rig.waiting("job-submit") == 1
    })
    .await;
    let upload = |address: &str| {
        format!(
            "PUT /api/packages/gcs/a.zip HTTP/1.1\r\nhost: ray\r\nx-forwarded-for: {address}\r\n\
             expect: 100-continue\r\ncontent-length: 90000000\r\n\r\n"
        )
    };
    let refused = rig.ask(&upload("10.0.0.66")).await;
    assert_eq!(refused.status, 429, "without a byte of the body");
    let mut other = rig.client().await;
    other.send(upload("10.0.0.1")).await;
    assert!(other.head().await.unwrap().contains("100"), "another client's upload may begin");
}
