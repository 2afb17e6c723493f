//! Clients on slow lines: what they cost others, and what is said of them.

use crate::rig::{self, Client, Rig, Setup, class, get, until};
use rayguard::core::admission::meter::Counts;
use rayguard::core::policy::{Bounds, Queue};
use rayguard::proxy::listen;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const STATUS: &str = "/api/jobs/raysubmit_1";

/// Longer than a body that is read whole before its request asks for a permit.
const LONG: usize = 100_000;

fn upload(from: u32, length: usize, does: &str) -> String {
    format!(
        "PUT /api/packages/gcs/a.zip HTTP/1.1\r\nhost: r\r\nx-forwarded-for: 10.0.0.{from}\r\n\
         x-do: {does}\r\ncontent-length: {length}\r\n\r\n"
    )
}

fn counts(rig: &Rig, name: &str) -> Counts {
    rig.proxy.admission.counts(class(name))
}

async fn uploads(rig: &Rig, many: u32, sent: usize) -> Vec<Client<TcpStream>> {
    let mut clients = Vec::new();
    for from in 1..=many {
        let mut client = rig.client().await;
        client.send(upload(from, LONG, "slow:5")).await;
        client.send(vec![b'p'; sent]).await;
        clients.push(client);
    }
    until("Ray has begun to get each", || rig.ray.begun.load(SeqCst) >= many as usize).await;
    clients
}

#[tokio::test]
async fn slow_uploads_hold_no_permit_and_shut_no_client_out() {
    let rig = Rig::with_policy(|policy| {
        let packages = &mut policy.classes[class("packages").index()];
        packages.in_flight = Bounds::fixed(2.0);
        packages.queue = Queue { len_max: 64, wait_max: Duration::from_secs(60) };
    })
    .await;
    let mut slow = uploads(&rig, 30, LONG / 2).await;
    assert_eq!((rig.in_flight("packages"), rig.waiting("packages"), rig.proxy.parked.count()), (0, 0, 30));
    for length in [20_000, LONG] {
        let mut polite = rig.client().await;
        polite.send(upload(99, length, "")).await;
        polite.send(vec![b'p'; length]).await;
        assert_eq!(polite.answer().await.status, 200, "{length}");
    }
    // All end at once; Ray still gets no more of them at a time than it may.
    for client in &mut slow {
        client.send(vec![b'p'; LONG - LONG / 2]).await;
    }
    for client in &mut slow {
        assert_eq!(client.answer().await.status, 200);
    }
    assert!(rig.ray.under_way_max.load(SeqCst) <= 2);
    assert!(rig.ray.seen().iter().all(|seen| seen.body.len() >= 20_000));
    assert_eq!((counts(&rig, "packages").served, rig.proxy.parked.count()), (32, 0));
}

#[tokio::test]
async fn a_short_body_that_trickles_in_reaches_ray_whole_and_holds_nothing_meanwhile() {
    let rig = Rig::start().await;
    let mut client = rig.client().await;
    client.send("POST /api/jobs/ HTTP/1.1\r\nhost: r\r\nx-do: echo\r\ncontent-length: 9\r\n\r\none").await;
    for piece in ["two", "end"] {
        assert_eq!(rig.get(STATUS, &[]).await.status, 200, "others are served");
        assert_eq!(
            (rig.in_flight("job-submit"), rig.ray.begun.load(SeqCst)),
            (0, usize::from(piece == "end") + 1)
        );
        client.send(piece).await;
    }
    assert_eq!(client.answer().await.text(), "onetwoend");
}

#[tokio::test]
async fn the_time_for_ray_to_answer_begins_when_the_request_is_whole() {
    let rig = Rig::with_policy(|policy| {
        policy.classes[class("packages").index()].timeout = Some(Duration::from_secs(2));
    })
    .await;
    let mut client = rig.client().await;
    client.send(upload(1, LONG, "")).await;
    for piece in vec![b'p'; LONG].chunks(LONG / 25) {
        tokio::time::sleep(Duration::from_millis(100)).await; // in all, longer than Ray may take
        client.send(piece).await;
    }
    assert_eq!(client.answer().await.status, 200);
    let mut late = rig.client().await;
    late.send(upload(1, LONG, "hold")).await;
    late.send(vec![b'p'; LONG]).await;
    let answer = late.answer().await;
    assert_eq!((answer.status, answer.header("x-rayguard-reason")), (504, Some("upstream_timeout")));
}

#[tokio::test]
async fn an_upload_for_which_there_is_no_permit_is_shed_and_ray_never_has_it_whole() {
    let rig = Rig::with_policy(|policy| {
        let packages = &mut policy.classes[class("packages").index()];
        packages.in_flight = Bounds::fixed(1.0);
        packages.queue = Queue { len_max: 4, wait_max: Duration::from_millis(100) };
    })
    .await;
    let [mut shed, mut gone] = <[_; 2]>::try_from(uploads(&rig, 2, LONG - 1).await).ok().unwrap();
    let mut holder = rig.client().await;
    holder.send(upload(9, 1, "hold") + "x").await;
    until("the only permit is taken", || rig.in_flight("packages") == 1).await;
    gone.send("x").await;
    until("it waits for a permit", || rig.waiting("packages") == 1).await;
    drop(gone);
    until("who has left waits no longer", || rig.waiting("packages") == 0).await;
    shed.send("x").await;
    let answer = shed.answer().await;
    assert_eq!((answer.status, answer.header("x-rayguard-reason")), (503, Some("queue_timeout")));
    rig.ray.hold.add_permits(1);
    assert_eq!(holder.answer().await.status, 200);
    until("nothing is parked", || rig.proxy.parked.count() == 0).await;
    assert_eq!(rig.ray.count(), 1);
}

#[tokio::test]
async fn a_client_that_sends_too_slowly_is_told_so_and_named() {
    let bounds = listen::ListenerLimits {
        stall_timeout: Duration::from_millis(200),
        ..listen::ListenerLimits::default()
    };
    let rig = Rig::with(Setup { bounds, ..Setup::default() }).await;
    for request in [
        upload(7, LONG, "") + "half",
        upload(7, 100, "") + "half",
        // What only calls itself gRPC is held to the same.
        upload(7, LONG, "").replace("x-do: ", "content-type: application/grpc") + "half",
    ] {
        let answer = rig.ask(&request).await;
        assert_eq!(
            (answer.status, answer.header("x-rayguard-reason")),
            (408, Some("slow_upload")),
            "{request}"
        );
        assert!(answer.text().contains("too slowly: 4 bytes of the body in 0.2 s"), "{}", answer.text());
    }
    let (clients, _) = rig.proxy.usage().clients(10, rig.proxy.clock.now());
    assert!(clients[0].kept >= Duration::from_millis(600), "{clients:?}");
    assert_eq!(counts(&rig, "packages").answers(), 0, "says nothing of Ray");
}

#[tokio::test]
async fn slow_readers_hold_no_permit_and_shut_no_client_out() {
    let rig = Rig::with_policy(|policy| {
        let status = &mut policy.classes[class("job-status").index()];
        status.in_flight = Bounds::fixed(2.0);
        status.queue.wait_max = Duration::from_secs(60);
    })
    .await;
    let mut slow = Vec::new();
    for from in 1..=6 {
        let mut client = rig.client().await;
        client.send(get(STATUS, &["x-do: big:20000000", &format!("x-forwarded-for: 10.0.0.{from}")])).await;
        assert!(client.head().await.is_some_and(|head| head.contains("200")));
        slow.push(client);
    }
    until("all are parked", || rig.proxy.parked.count() == 6).await;
    assert_eq!(rig.in_flight("job-status"), 0);
    assert_eq!(rig.get(STATUS, &["x-forwarded-for: 10.0.0.99"]).await.status, 200);
    for mut client in slow {
        assert_eq!(
            client.exact(20_000_000).await.map(|body| body.len()),
            Some(20_000_000),
            "not a byte is lost"
        );
    }
    until("nothing is parked", || rig.proxy.parked.count() == 0).await;
    let (clients, _) = rig.proxy.usage().clients(10, rig.proxy.clock.now());
    assert_eq!(clients.iter().filter(|client| client.kept >= Duration::from_millis(500)).count(), 6);
}

#[tokio::test]
async fn latency_ends_with_the_head_of_the_answer_and_a_stream_under_way_is_no_stall() {
    let rig = Rig::start().await;
    let reading = || rig.proxy.admission.reading(class("job-status"), rig.proxy.clock.now());
    let mut asked = rig.client().await;
    asked.send(get(STATUS, &["x-do: hold"])).await;
    until("Ray is silent", || reading().stalled_s > 0.05).await;
    rig.ray.hold.add_permits(1);
    assert_eq!(asked.answer().await.text(), "held");
    let mut client = rig.client().await;
    client.send(get(STATUS, &["x-do: stream"])).await;
    assert!(client.head().await.is_some());
    let seen = reading();
    assert_eq!((seen.in_flight, seen.counts.answers(), seen.counts.finished()), (1, 2, 1));
    assert!(seen.stalled_s <= 0.0, "{}", seen.stalled_s);
    let mut other = rig.client().await;
    other.send(get(STATUS, &["x-do: hold"])).await;
    until("another's silence is one", || reading().stalled_s > 0.05).await;
    rig.ray.hold.add_permits(2);
    let mut line = [0; 10];
    client.stream.read_exact(&mut line).await.unwrap();
    assert_eq!(other.answer().await.text(), "held");
}

#[tokio::test]
async fn an_answer_before_the_request_is_whole_is_passed_on() {
    let bounds = listen::ListenerLimits {
        stall_timeout: Duration::from_secs(60),
        ..listen::ListenerLimits::default()
    };
    let ray = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = rayguard::proxy::upstream::Address::Tcp(ray.local_addr().unwrap().to_string());
    let rig = Rig::with(Setup { bounds, upstream: Some(address), ..Setup::default() }).await;
    let mut client = rig.client().await;
    client.send(upload(1, LONG, "") + "half").await;
    let (stream, _) = ray.accept().await.unwrap();
    let mut line = Client::over(stream);
    assert!(line.head().await.is_some());
    line.send("HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, &*answer.text()), (413, "large"));
    until("nothing is parked", || rig.proxy.parked.count() == 0).await;
    assert_eq!(counts(&rig, "packages").answers(), 1);
    assert_eq!(rig::header(&answer.head, "x-rayguard-reason"), None);
}
