//! Clients that mean harm, or are merely very slow: each costs the proxy a bounded amount, and
//! clients beside them are served.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "proxy/rig.rs"]
mod rig;

use rayguard::proxy::keepalive::DOZE;
use rayguard::proxy::listen::ListenerLimits;
use rig::{Client, Rig, Setup, get, until};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const STATUS: &str = "/api/jobs/raysubmit_1";

async fn rig(bounds: ListenerLimits) -> Rig {
    Rig::with(Setup { bounds, ..Setup::default() }).await
}

/// Somebody else is served meanwhile.
async fn others_are_served(rig: &Rig) {
    assert_eq!(rig.get(STATUS, &["x-forwarded-for: 10.9.9.9"]).await.status, 200);
}

// --- HTTP/2 by hand ---

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A request's head in HPACK, without the dynamic table: `GET path`, and what Ray is to do.
fn head(path: &str, task: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86]; // GET, http
    for (name, value) in [(0x04, path), (0x01, "ray")] {
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.bytes());
    }
    for text in ["x-do", task] {
        if text == "x-do" {
            block.push(0);
        }
        block.push(u8::try_from(text.len()).unwrap());
        block.extend(text.bytes());
    }
    block
}

async fn greet(rig: &Rig) -> TcpStream {
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// Sends the same bytes up to `times` times; how many went before the proxy had enough.
async fn send_many(stream: &mut TcpStream, times: usize, mut bytes: impl FnMut(usize) -> Vec<u8>) -> usize {
    for n in 0..times {
        let sent = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&bytes(n))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return n;
        }
    }
    times
}

/// Whether the proxy says goodbye, or is gone.
async fn is_cut_off(stream: &mut TcpStream) -> bool {
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await;
    let goaway = |all: &[u8]| {
        let mut rest = all;
        while let Some((head, after)) = rest.split_at_checked(9) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            if head[3] == GOAWAY {
                return true;
            }
            rest = after.get(length..).unwrap_or_default();
        }
        false
    };
    read.is_ok() || goaway(&all)
}

#[tokio::test]
async fn streams_opened_and_reset_at_once_are_cut_off_and_cost_ray_no_more_than_the_limits() {
    let rig = rig(ListenerLimits::default()).await;
    let mut stream = greet(&rig).await;
    let block = head(STATUS, "hold");
    let flood = |n: usize| {
        let id = u32::try_from(2 * n + 1).unwrap();
        let mut pair = frame(HEADERS, END_STREAM | END_HEADERS, id, &block);
        pair.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
        pair
    };
    send_many(&mut stream, 20_000, flood).await;
    assert!(is_cut_off(&mut stream).await);
    // What got through is abandoned work: it stays counted, so there is no more of it than may be.
    let under_way = rig.ray.begun.load(SeqCst);
    assert!(under_way <= 100, "{under_way} of 20,000 reached Ray");
    assert_eq!(rig.get("/api/version", &[]).await.status, 200);
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let rig = rig(ListenerLimits::default()).await;
    let mut stream = greet(&rig).await;
    stream.write_all(&frame(HEADERS, END_STREAM, 1, &head(STATUS, "ok"))).await.unwrap();
    let mut filler = vec![0, 1, b'a', 0x7f, 0x81, 0x7e]; // a header of 16 KiB or so
    filler.resize(6 + 127 + 0x3f01, b'x');
    filler.truncate(16_000);
    let sent = send_many(&mut stream, 10_000, |_| frame(CONTINUATION, 0, 1, &filler)).await;
    assert!(sent < 1000, "{} MiB of one head were taken", (sent * filler.len()) >> 20);
    assert!(is_cut_off(&mut stream).await);
    assert_eq!(rig.ray.begun.load(SeqCst), 0);
    others_are_served(&rig).await;
}

#[tokio::test]
async fn pings_and_settings_without_end_hold_up_no_other_client() {
    let rig = rig(ListenerLimits::default()).await;
    for flood in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])] {
        let mut stream = greet(&rig).await;
        let bytes: Vec<u8> = flood.iter().copied().cycle().take(flood.len() * 1000).collect();
        // It reads no answer: once the answers fill the line, the proxy takes no more.
        let sent = send_many(&mut stream, 10_000, |_| bytes.clone()).await;
        assert!(sent < 10_000, "every one of ten million was taken");
        others_are_served(&rig).await;
    }
}

// --- Slowness ---

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_not_waited_for() {
    let rig =
        rig(ListenerLimits { head_timeout: Duration::from_millis(200), ..ListenerLimits::default() }).await;
    let mut client = rig.client().await;
    client.send(get(STATUS, &[])).await;
    assert_eq!(client.answer().await.status, 200);
    let mut sent = 0;
    for byte in get(STATUS, &[]).bytes().cycle().filter(|byte| *byte != b'\n').take(1000) {
        if client.stream.write_all(&[byte]).await.is_err() {
            break;
        }
        sent += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(sent < 1000);
    assert_eq!(rig.ray.count(), 1);
}

#[tokio::test]
async fn an_idle_connection_may_rest_for_longer_than_a_head_may_take() {
    let bounds = ListenerLimits {
        head_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_millis(1500),
        ..ListenerLimits::default()
    };
    let rig = rig(bounds).await;
    let mut client = rig.client().await;
    for _ in 0..2 {
        client.send(get(STATUS, &[])).await;
        assert_eq!(client.answer().await.status, 200);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert!(client.is_closed().await, "but not for ever");
}

#[tokio::test]
async fn a_connection_that_fell_asleep_is_woken_by_a_request_whole_or_in_parts() {
    let rig = rig(ListenerLimits { head_timeout: 4 * DOZE, ..ListenerLimits::default() }).await;
    let mut client = rig.client().await;
    let request = get(STATUS, &[&format!("x-long: {}", "x".repeat(500))]);
    for parts in [1, 3, 40] {
        let piece = request.len().div_ceil(parts);
        for part in request.as_bytes().chunks(piece) {
            client.send(part).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.answer().await.status, 200, "in {parts} parts");
        tokio::time::sleep(2 * DOZE).await;
    }
    client.send(&request[..20]).await;
    tokio::time::sleep(2 * DOZE).await;
    client.send(&request[20..]).await;
    assert_eq!(client.answer().await.status, 200, "who has begun does not fall asleep");
    tokio::time::sleep(2 * DOZE).await;
    client.send(&request[..20]).await;
    assert!(client.is_closed().await, "a head is waited for no longer than ever");
}

#[tokio::test]
async fn an_answer_that_takes_long_finds_its_client_awake() {
    let rig = rig(ListenerLimits::default()).await;
    let mut client = rig.client().await;
    client.send(get(STATUS, &["x-do: hold"])).await;
    until("Ray has it", || rig.ray.count() == 1).await;
    tokio::time::sleep(2 * DOZE).await;
    rig.ray.hold.add_permits(1);
    assert_eq!(client.answer().await.text(), "held");
}

#[tokio::test]
async fn a_body_that_stops_coming_gives_its_place_back() {
    let rig =
        rig(ListenerLimits { stall_timeout: Duration::from_millis(200), ..ListenerLimits::default() }).await;
    let mut client = rig.client().await;
    client.send("POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\ncontent-length: 100\r\n\r\nhalf").await;
    assert_eq!(client.answer().await.status, 408);
    until("its place is free", || rig.in_flight("job-submit") == 0).await;
}

#[tokio::test]
async fn an_answer_in_which_ray_falls_silent_gives_its_place_back_and_those_who_share_it_are_told() {
    let rig = Rig::with_policy(|policy| {
        for name in ["job-status", "job-list"] {
            policy.classes[rig::class(name).index()].timeout = Some(Duration::from_millis(200));
        }
    })
    .await;
    // Alone: the client has heard the half of it, waits for the rest, and is let go.
    let mut alone = rig.client().await;
    alone.send(get("/api/jobs/a", &["x-do: fall-silent"])).await;
    assert!(alone.head().await.is_some_and(|head| head.contains("200")));
    assert!(alone.exact(100).await.is_none(), "no more than half of it ever came");
    rig::until("its place is free", || rig.in_flight("job-status") == 0).await;
    // Shared: no client has heard anything yet, and the next one is not left with the same silence.
    for turn in 0..2 {
        let answer = rig.get("/api/jobs/", &["x-do: fall-silent"]).await;
        assert_eq!(answer.status, 502, "{turn}: {}", answer.text());
    }
    rig::until("its place is free", || rig.in_flight("job-list") == 0).await;
    assert_eq!(rig.get("/api/jobs/", &[]).await.status, 200);
}

#[tokio::test]
async fn an_answer_that_is_not_read_gives_its_place_back() {
    let rig =
        rig(ListenerLimits { stall_timeout: Duration::from_millis(200), ..ListenerLimits::default() }).await;
    let mut client = Client::connect(rig.address).await;
    client.send(get(STATUS, &["x-do: big:67108864"])).await;
    until("it is under way", || rig.in_flight("job-status") == 1).await;
    until("its place is free", || rig.in_flight("job-status") == 0).await;
    others_are_served(&rig).await;
}

#[tokio::test]
async fn a_shared_answer_that_is_not_read_is_given_up() {
    let rig =
        rig(ListenerLimits { stall_timeout: Duration::from_millis(200), ..ListenerLimits::default() }).await;
    let size = 32 << 20;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(rig.address).await;
        client.send(get("/api/jobs/", &[&format!("x-do: big:{size}")])).await;
        clients.push(client);
    }
    let used = || rig.proxy.coalescer.budget().used();
    until("it is under way", || used() >= size).await;
    assert!(used() < 2 * size, "one copy for all");
    until("their places at Ray are free", || rig.in_flight("job-list") == 0).await;
    until("all of it has been given back", || used() == 0).await;
    others_are_served(&rig).await;
}
