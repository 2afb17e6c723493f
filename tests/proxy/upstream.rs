//! What becomes of requests when Ray goes, comes back, or closes a connection; and of Ray when clients go.

use super::rig::{self, Client, Rig, Setup, class, get, policy, until};
use rayguard::core::admission::table::Mode;
use rayguard::core::policy::{Bounds, Treatment};
use rayguard::core::request::catalogue::Surface;
use rayguard::proxy::upstream::Address;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const STATUS: &str = "/api/jobs/raysubmit_1";
const HANDSHAKE: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";

/// An address where nothing listens now.
async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn before(upstream: SocketAddr, mode: Mode) -> Rig {
    let rig =
        Rig::with(Setup { upstream: Some(Address::Tcp(upstream.to_string())), ..Setup::default() }).await;
    enter(&rig, mode);
    rig
}

/// Every class into this mode.
fn enter(rig: &Rig, mode: Mode) {
    let mut table = (**rig.proxy.table.load()).clone();
    table.version += 1;
    table.classes.iter_mut().for_each(|class| class.mode = mode);
    rig.proxy.set_table(Arc::new(table));
}

// --- The circuit breaker ---

#[tokio::test]
async fn while_ray_is_away_all_are_told_so_at_once_and_what_is_exempt_tries() {
    let away = nowhere().await;
    let rig = before(away, Mode::Enforce).await;
    let tried = rig.get(STATUS, &[]).await;
    assert_eq!((tried.status, tried.header("retry-after")), (503, Some("2")));
    assert!(tried.text().contains("Ray is down: "), "{}", tried.text());
    let refused = rig.get(STATUS, &[]).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("2")));
    assert_eq!(refused.header("x-rayguard-reason"), Some("upstream_unreachable"));
    let sentence =
        format!("Ray is down at {away}; rayguard keeps trying to reach it. Nothing was sent to Ray");
    assert!(refused.text().contains(&sentence), "{}", refused.text());
    assert!(rig.get("/api/version", &[]).await.text().contains("Ray is down: "), "exempt");
    assert_eq!(rig.get("/api/jobs/", &[]).await.status, 503, "shared");
    assert_eq!(rig.get("/api/jobs/a/logs/tail", &[HANDSHAKE]).await.status, 503, "a WebSocket");
    assert_eq!((rig.in_flight("job-status"), rig.in_flight("log-tail")), (0, 0));
}

#[tokio::test]
async fn in_shadow_mode_all_try_while_ray_is_away() {
    let rig = before(nowhere().await, Mode::Shadow).await;
    for _ in 0..4 {
        let answer = rig.get(STATUS, &[]).await;
        assert_eq!(answer.status, 503);
        assert!(answer.text().contains("Ray is down: "), "{}", answer.text());
    }
    assert_eq!(rig.proxy.admission.counts(class("job-status")).shadow_shed, 3, "counted");
}

#[tokio::test]
async fn once_ray_accepts_connections_all_pass_though_it_answers_no_request() {
    let away = nowhere().await;
    let rig = before(away, Mode::Enforce).await;
    assert_eq!(rig.get(STATUS, &[]).await.status, 503);
    assert!(rig.routing.upstream.is_unreachable());
    // It accepts and says nothing: no request asks, and none has to answer, for the breaker to close.
    let mute = TcpListener::bind(away).await.unwrap();
    let upstream = {
        let rig = &rig;
        move || rig.routing.upstream.is_unreachable()
    };
    until("the breaker closes", || !upstream()).await;
    let mut slow = rig.client().await;
    slow.send(get(STATUS, &[])).await;
    until("one waits for an answer", || rig.in_flight("job-status") == 1).await;
    drop(slow);
    assert!(!upstream(), "a slow answer and a client that left shut nothing");
    drop(mute);
}

#[tokio::test]
async fn a_client_that_leaves_before_a_connection_is_accepted_holds_nothing_and_is_looked_into() {
    // A full queue of a socket that nothing accepts from: the next connection is neither accepted nor refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        queued.push(stream);
    }
    let mut policy = policy();
    policy.modules.iter_mut().for_each(|module| module.cancels = true);
    let setup = Setup { policy, upstream: Some(Address::Tcp(address.to_string())), ..Setup::default() };
    let rig = Rig::with(setup).await;
    let mut client = rig.client().await;
    client.send(get(STATUS, &[])).await;
    until("it is under way", || rig.in_flight("job-status") == 1).await;
    drop(client);
    until("its place is free", || rig.in_flight("job-status") == 0).await;
    until("the suspicion is confirmed", || rig.routing.upstream.is_unreachable()).await;
}

#[tokio::test]
async fn a_client_that_waits_for_a_turn_when_ray_goes_away_is_told() {
    let ray = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut policy = policy();
    policy.classes[class("job-status").index()].in_flight = Bounds::fixed(1.0);
    policy.classes[class("job-status").index()].queue.wait_max = Duration::from_secs(15);
    let address = ray.local_addr().unwrap();
    let setup = Setup { policy, upstream: Some(Address::Tcp(address.to_string())), ..Setup::default() };
    let rig = Rig::with(setup).await;
    let mut first = rig.client().await;
    first.send(get(STATUS, &[])).await;
    let (held, _) = ray.accept().await.unwrap();
    let mut second = rig.client().await;
    second.send(get(STATUS, &[])).await;
    until("it waits", || rig.waiting("job-status") == 1).await;
    drop(ray);
    assert_eq!(rig.get("/api/version", &[]).await.status, 503, "Ray is gone");
    drop(held);
    assert_eq!(first.answer().await.status, 502);
    let told = second.answer().await;
    assert_eq!((told.status, told.header("x-rayguard-reason")), (503, Some("upstream_unreachable")));
    assert_eq!(rig.in_flight("job-status"), 0);
}

// --- Connections that Ray closes ---

/// Answers the first request of each connection; reads the second, says what it `says`, and closes.
async fn closes_under_the_second(listener: TcpListener, says: &[u8], read: &Mutex<Vec<String>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let mut line = Client::over(stream);
        let Some(head) = line.head().await else { continue };
        read.lock().unwrap().push(head);
        line.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let Some(head) = line.head().await else { continue };
        read.lock().unwrap().push(head);
        line.try_send(says).await;
    }
}

#[tokio::test]
async fn a_get_that_crosses_with_the_end_of_its_connection_is_sent_once_more_and_a_post_is_not() {
    for (request, says, status, sent) in [
        ("GET /a HTTP/1.1\r\nx-a: 1\r\n", &b""[..], 200, 2),
        ("HEAD /a HTTP/1.1\r\nx-a: 1\r\n", b"", 200, 2),
        ("GET /a HTTP/1.1\r\nx-a: 1\r\n", b"HTTP/1.1 2", 502, 1),
        ("POST /a HTTP/1.1\r\nx-a: 1\r\ncontent-length: 0\r\n", b"", 502, 1),
        ("DELETE /a HTTP/1.1\r\nx-a: 1\r\n", b"", 502, 1),
        ("GET /a HTTP/1.1\r\nx-a: 1\r\ncontent-length: 1\r\n", b"", 502, 1),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Some(Address::Tcp(listener.local_addr().unwrap().to_string()));
        let rig = Rig::with(Setup { upstream, surface: Surface::Serve, ..Setup::default() }).await;
        let client = async {
            assert_eq!(rig.get("/first", &[]).await.status, 200);
            let body = if request.contains("length: 1") { "b" } else { "" };
            let mut client = rig.client().await;
            client.send(format!("{request}host: ray\r\n\r\n{body}")).await;
            let head = client.head().await.unwrap();
            assert!(head.contains(&format!(" {status} ")), "{request} {head}");
            if status == 502 {
                let reason = rig::header(&head, "x-rayguard-reason");
                assert_eq!(reason, Some("upstream_broke_off"), "{request}");
            }
        };
        let read = Mutex::default();
        tokio::select! {
            () = closes_under_the_second(listener, says, &read) => {}
            () = client => {}
        }
        let read = read.into_inner().unwrap();
        let same: Vec<_> = read.iter().filter(|head| head.contains(" /a ")).collect();
        assert_eq!(same.len(), sent, "{request} {read:?}");
        assert!(same.iter().all(|head| *head == same[0]), "the same request: {same:?}");
    }
}

// --- Clients that leave ---

#[tokio::test]
async fn serve_learns_that_a_client_has_left_and_its_place_is_free() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Some(Address::Tcp(listener.local_addr().unwrap().to_string()));
    let rig = Rig::with(Setup { upstream, surface: Surface::Serve, ..Setup::default() }).await;
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n"] {
        let mut client = rig.client().await;
        client.send("POST /model HTTP/1.1\r\nhost: ray\r\ncontent-length: 2\r\n\r\n{}").await;
        let (stream, _) = listener.accept().await.unwrap();
        let mut serve = Client::over(stream);
        assert!(serve.head().await.is_some());
        assert_eq!(serve.exact(2).await.unwrap(), b"{}");
        serve.send(answer).await;
        if !answer.is_empty() {
            assert!(client.head().await.is_some(), "it streams");
        }
        assert_eq!(rig.in_flight("serve"), 1);
        drop(client);
        assert!(serve.is_closed().await, "as without a proxy");
        until("the place is free", || rig.in_flight("serve") == 0).await;
    }
    let counts = rig.proxy.admission.counts(class("serve"));
    assert_eq!(
        (counts.cancelled, counts.abandoned, counts.finished()),
        (2, 0, 0),
        "no answer, and no latency"
    );
}

#[tokio::test]
async fn serve_learns_that_a_requests_time_is_up() {
    let mut policy = policy();
    policy.classes[class("serve").index()].timeout = Some(Duration::from_millis(50));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Some(Address::Tcp(listener.local_addr().unwrap().to_string()));
    let rig = Rig::with(Setup { upstream, surface: Surface::Serve, policy, ..Setup::default() }).await;
    let (answer, mut serve) = tokio::join!(rig.get("/model", &[]), async {
        let mut serve = Client::over(listener.accept().await.unwrap().0);
        assert!(serve.head().await.is_some());
        serve
    });
    assert_eq!(answer.status, 504);
    assert!(serve.is_closed().await);
    until("the place is free", || rig.in_flight("serve") == 0).await;
}

// --- Shadow mode ---

/// A rig in shadow mode whose every bound would cut in enforce mode.
async fn shadowed() -> Rig {
    let mut setup = Setup::default();
    setup.bounds.stall_timeout = Duration::from_millis(30);
    setup.bounds.body_bytes_max = 4;
    for class in &mut setup.policy.classes {
        class.timeout = Some(Duration::from_millis(30));
        class.in_flight = Bounds::fixed(0.0);
        class.per_client.in_flight = Some(0);
        class.require_key = class.treatment == Treatment::Limited;
        class.bytes_per_second = Some(1.0);
    }
    let rig = Rig::with(setup).await;
    enter(&rig, Mode::Shadow);
    rig
}

#[tokio::test]
async fn shadow_mode_changes_nothing_that_a_limit_a_time_out_or_a_pace_would() {
    let rig = shadowed().await;
    assert_eq!(rig.get(STATUS, &["x-do: slow:100"]).await.text(), "slow", "no limit, no key, no time-out");
    assert_eq!(rig.get("/api/v0/delay/5", &[]).await.status, 200, "what is blocked passes");
    let mut upload = rig.client().await;
    upload.send("PUT /api/packages/gcs/a.zip HTTP/1.1\r\nhost: r\r\ncontent-length: 6\r\n\r\nabc").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    upload.send("def").await;
    assert_eq!(upload.answer().await.status, 200, "no pace and no size of a body");
    for name in ["job-status", "blocked", "packages"] {
        let counts = rig.proxy.admission.counts(class(name));
        assert!(counts.shadow_shed > 0 && counts.shed_all() == 0, "{name} is counted: {counts:?}");
    }
}

#[tokio::test]
async fn shadow_mode_leaves_slow_readers_and_silent_answers_alone() {
    let rig = shadowed().await;
    let mut reader = rig.client().await;
    reader.send(get(STATUS, &["x-do: big:8000000"])).await;
    assert!(reader.head().await.is_some());
    let mut waits = rig.client().await;
    waits.send(get(STATUS, &["x-do: fall-silent"])).await;
    assert!(waits.head().await.is_some());
    assert_eq!(waits.exact(4).await.unwrap(), b"half");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(reader.exact(8_000_000).await.map(|body| body.len()), Some(8_000_000));
    assert_eq!(rig.in_flight("job-status"), 1, "the silent one goes on");
}

#[tokio::test]
async fn shadow_mode_shares_no_answers_and_no_tails() {
    let rig = shadowed().await;
    for _ in 0..3 {
        assert_eq!(rig.get("/api/jobs/", &[]).await.status, 200);
    }
    assert_eq!(rig.ray.count(), 3, "each asks Ray itself");
    let mut readers = Vec::new();
    for _ in 0..2 {
        let mut reader = rig.client().await;
        reader.send(get("/api/jobs/a/logs/tail", &[HANDSHAKE, "x-do: websocket"])).await;
        assert_eq!(reader.answer().await.status, 101);
        readers.push(reader);
    }
    assert_eq!(rig.ray.count(), 5, "each has a tail of its own");
}

// --- Connections that carry many streams ---

#[tokio::test]
async fn connections_to_a_grpc_server_idle_out_and_none_in_use_does() {
    let setup = Setup { surface: Surface::RayClient, ..Setup::default() };
    let options = rayguard::proxy::upstream::Options {
        protocol: rayguard::proxy::upstream::Protocol::Http2,
        idle_timeout: Duration::from_millis(50),
        ..setup.options
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Some(Address::Tcp(listener.local_addr().unwrap().to_string()));
    let rig = Rig::with(Setup { options, upstream, ..setup }).await;
    let mut client = rig.client().await;
    client.send("POST /ray.rpc.RayletDriver/ClusterInfo HTTP/1.1\r\nhost: r\r\ncontent-type: application/grpc\r\nte: trailers\r\ncontent-length: 0\r\n\r\n").await;
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut begun = [0; 24];
    stream.read_exact(&mut begun).await.unwrap();
    assert!(begun.starts_with(b"PRI * HTTP/2.0"));
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap(); // SETTINGS
    let sweeps = |times: u32| async move {
        for _ in 0..times {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    for _ in 0..5 {
        sweeps(1).await;
        rig.routing.upstream.sweep();
    }
    let mut rest = vec![0; 1 << 16];
    let read = stream.read(&mut rest).await.unwrap();
    assert!(read > 0, "a stream is under way");
    // RST_STREAM ends it, and then no request uses the connection.
    stream.write_all(&[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2]).await.unwrap();
    assert!(client.head().await.is_some());
    let closed = async { while let Ok(1..) = stream.read(&mut rest).await {} };
    let swept = async {
        loop {
            sweeps(1).await;
            rig.routing.upstream.sweep();
        }
    };
    tokio::select! {
        () = closed => {}
        () = swept => {}
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("it did not idle out"),
    }
    assert_eq!(rig.ray.connections.load(SeqCst), 0);
}
