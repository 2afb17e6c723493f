//! The rate-limit service on the wire: one gRPC call, and whatever else may come instead of it.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "proxy/rig.rs"]
mod rig;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rayguard::core::policy::Bounds;
use rayguard::core::request::catalogue::Surface;
use rayguard::core::request::classify::Classifier;
use rayguard::proxy::listen::{self, Listener};
use rayguard::proxy::ratelimit::Service;
use rayguard::proxy::ratelimit::call::{MESSAGE_BYTES_MAX, METHOD};
use rayguard::proxy::ratelimit::message::{Code, Descriptor, Entry, RateLimitRequest, RateLimitResponse};
use rayguard::proxy::ratelimit::tally::Answer;
use rayguard::proxy::routing::Routing;
use rayguard::proxy::state::ListenerState;
use rayguard::proxy::upstream::{Address, Options, Upstream};
use rig::{Client, Rig, class, policy, until};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// A service beside a proxy, at one table with it.
async fn start() -> (Rig, SocketAddr) {
    let rig = Rig::with_policy(|policy| {
        let class = &mut policy.classes[class("job-status").index()];
        (class.in_flight, class.queue.len_max) = (Bounds::fixed(2.0), 0);
    })
    .await;
    let (clock, tasks) = (rig.proxy.clock, rig.proxy.tasks.clone());
    let classifier = Classifier::new(&policy(), Surface::Dashboard, &[]).unwrap();
    let upstream =
        Upstream::new(Address::Tcp("127.0.0.1:1".into()), Options::default(), clock, tasks.clone());
    let routing = Arc::new(Routing::new(Surface::Dashboard, classifier, upstream));
    let state = ListenerState::new(Arc::clone(&rig.proxy), routing);
    let listener = Listener::bind(&rayguard::config::settings::Address::Tcp("127.0.0.1:0".parse().unwrap()))
        .await
        .unwrap();
    let address = listener.local_address().unwrap();
    let service = Service::start(state, "rayguard".into(), Duration::from_secs(600));
    tasks.spawn(listen::serve_ratelimit(listener, service, tasks.clone(), listen::ListenerLimits::default()));
    (rig, address)
}

async fn connect(rig: &Rig, address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    rig.proxy.tasks.spawn_until_closed(async move {
        let _ = connection.await;
    });
    sender
}

fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap());
    bytes.put_slice(message);
    bytes.freeze()
}

fn question(path: &str) -> Bytes {
    let entry = |key: &str, value: &str| Entry {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    let entries = vec![entry("method", "GET"), entry("path", path)];
    let descriptors = vec![Descriptor { entries, hits_addend: None }];
    framed(&RateLimitRequest { domain: "rayguard".into(), descriptors, hits_addend: 0 }.encode_to_vec())
}

/// The status of HTTP, that of gRPC, and the message if there is one.
async fn call(to: &mut SendRequest<Full<Bytes>>, path: &str, body: Bytes) -> (StatusCode, String, Bytes) {
    let request = Request::post(format!("http://rayguard{path}"))
        .header("content-type", "application/grpc")
        .body(Full::new(body))
        .unwrap();
    to.ready().await.unwrap();
    let (parts, body) = to.send_request(request).await.unwrap().into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let status = trailers.get("grpc-status").or(parts.headers.get("grpc-status")).unwrap();
    (parts.status, status.to_str().unwrap().to_owned(), collected.to_bytes())
}

async fn decided(to: &mut SendRequest<Full<Bytes>>) -> Code {
    let (status, grpc, bytes) = call(to, METHOD, question("/api/jobs/a")).await;
    assert_eq!((status, grpc.as_str()), (StatusCode::OK, "0"));
    let answer = RateLimitResponse::decode(bytes.slice(5..)).unwrap();
    Code::try_from(answer.overall_code).unwrap()
}

#[tokio::test]
async fn proxy_and_service_share_every_limit() {
    let (rig, address) = start().await;
    let mut envoy = connect(&rig, address).await;
    let mut at_the_proxy = rig.client().await;
    at_the_proxy.send("GET /api/jobs/a HTTP/1.1\r\nhost: head\r\nx-do: hold\r\n\r\n").await;
    until("one is under way", || rig.proxy.admission.load(class("job-status")).0 == 1).await;
    assert_eq!(decided(&mut envoy).await, Code::Ok);
    assert_eq!(decided(&mut envoy).await, Code::OverLimit);
    assert_eq!(rig.ask("GET /api/jobs/a HTTP/1.1\r\nhost: head\r\n\r\n").await.status, 503);
    rig.ray.hold.add_permits(1);
    assert_eq!(at_the_proxy.answer().await.status, 200);
    until("its place is free", || rig.proxy.admission.load(class("job-status")).0 < 2).await;
    assert_eq!(decided(&mut envoy).await, Code::Ok);
}

#[tokio::test]
async fn what_is_not_the_call_is_refused_and_the_connection_goes_on() {
    let (rig, address) = start().await;
    let mut envoy = connect(&rig, address).await;
    let huge = framed(&vec![0x12; MESSAGE_BYTES_MAX]);
    let compressed = Bytes::from_static(b"\x01\0\0\0\0");
    let many = framed(&b"\x12\x00".repeat(MESSAGE_BYTES_MAX / 2 - 8));
    for (path, body, grpc) in [
        ("/grpc.health.v1.Health/Check", question("/"), "12"),
        (METHOD, Bytes::new(), "3"),
        (METHOD, Bytes::from_static(b"\0\0\0\0\x09short"), "3"),
        (METHOD, framed(b"\xff\xff\xff"), "3"),
        (METHOD, compressed, "12"),
        (METHOD, huge, "8"),
        (METHOD, many, "3"),
    ] {
        let (status, told, bytes) = call(&mut envoy, path, body).await;
        assert_eq!((status, told.as_str(), bytes.len()), (StatusCode::OK, grpc, 0));
    }
    assert_eq!(rig.proxy.ratelimit.count(Answer::Malformed), 7);
    assert_eq!(decided(&mut envoy).await, Code::Ok);
}

#[tokio::test]
async fn a_client_that_speaks_something_else_is_hung_up_on() {
    let (rig, address) = start().await;
    for noise in
        ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "\u{0}\u{1}\u{2}nonsense that is long enough to be a preface"]
    {
        let mut client = Client::connect(address).await;
        client.send(noise).await;
        while !client.is_closed().await {}
    }
    assert_eq!(decided(&mut connect(&rig, address).await).await, Code::Ok);
}

#[tokio::test]
async fn a_thousand_questions_at_once_are_all_answered_within_the_limit() {
    let (rig, address) = start().await;
    let envoy = connect(&rig, address).await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..1500 {
        let mut envoy = envoy.clone();
        asking.spawn(async move { decided(&mut envoy).await });
    }
    let codes = asking.join_all().await;
    let passed = codes.iter().filter(|code| **code == Code::Ok).count();
    // Nothing reports an end: two at a time, each for as long as its class's objective.
    let slo = rig.proxy.policy.classes[class("job-status").index()].slo.latency;
    assert!((2..=8).contains(&passed), "{passed} of 1500, {slo:?} each");
    assert_eq!(codes.len(), 1500);
    let counts = rig.proxy.admission.counts(class("job-status"));
    assert_eq!((counts.offered, counts.admitted), (1500, passed as u64));
}
