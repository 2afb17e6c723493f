//! gRPC through the proxy: Ray Client's calls, streams and sessions, over HTTP/2 at both ends.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "proxy/rig.rs"]
mod rig;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rayguard::core::policy::{Bounds, Policy};
use rayguard::core::request::catalogue::Surface;
use rayguard::proxy::tasks::Tasks;
use rayguard::proxy::tls::{Originator, Renew, Terminator};
use rayguard::proxy::upstream::{Address, Options, Protocol};
use rig::{Rig, Setup, class, policy, until};
use rustls::pki_types::ServerName;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, ready};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What a client sends, one message at a time.
struct Said(mpsc::Receiver<Bytes>);

impl Body for Said {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|said| said.map(|said| Ok(Frame::data(said))))
    }
}

/// Sends back what is sent, and ends with trailers.
struct Echo(Option<Incoming>);

impl Body for Echo {
    type Data = Bytes;
    type Error = hyper::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(heard) = self.0.as_mut() else { return Poll::Ready(None) };
        if let Some(frame) = ready!(Pin::new(heard).poll_frame(context)) {
            return Poll::Ready(Some(frame));
        }
        self.0 = None;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// A Ray Client server that repeats what it hears.
#[derive(Default)]
struct Head {
    calls: AtomicUsize,
    connections: AtomicUsize,
}

impl Head {
    async fn start(tasks: &Tasks) -> (Arc<Head>, Address) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap().to_string());
        let head = Arc::new(Head::default());
        let (server, spawner) = (Arc::clone(&head), tasks.clone());
        tasks.spawn_until_closed(async move {
            while let Ok((stream, _)) = listener.accept().await {
                server.connections.fetch_add(1, SeqCst);
                let head = Arc::clone(&server);
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    head.calls.fetch_add(1, SeqCst);
                    assert_eq!(request.headers()["te"], "trailers");
                    assert_eq!(request.uri().authority().unwrap().as_str(), "head:10001");
                    let response = Response::builder()
                        .header("content-type", "application/grpc")
                        .body(Echo(Some(request.into_body())))
                        .unwrap();
                    async move { Ok::<_, Infallible>(response) }
                });
                spawner.spawn_until_closed(async move {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        (head, address)
    }
}

async fn start(change: impl FnOnce(&mut Policy)) -> (Rig, Arc<Head>, Tasks) {
    let tasks = Tasks::default();
    let (head, address) = Head::start(&tasks).await;
    let mut policy = policy();
    change(&mut policy);
    let rig = Rig::with(Setup {
        surface: Surface::RayClient,
        upstream: Some(address),
        options: Options { protocol: Protocol::Http2, ..Options::default() },
        policy,
        ..Setup::default()
    })
    .await;
    (rig, head, tasks)
}

async fn connect(rig: &Rig) -> SendRequest<Said> {
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    rig.proxy.tasks.spawn_until_closed(async move {
        let _ = connection.await;
    });
    sender
}

fn call(method: &str, client: &str) -> (mpsc::Sender<Bytes>, Request<Said>) {
    let (say, said) = mpsc::channel(4);
    let request = Request::post(format!("http://head:10001/ray.rpc.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("client_id", client)
        .body(Said(said))
        .unwrap();
    (say, request)
}

/// A whole unary call: the answer's head, what was said back, and the trailers' status.
async fn ask(
    sender: &mut SendRequest<Said>,
    method: &str,
    client: &str,
) -> (HeaderMap, Bytes, Option<String>) {
    let (say, request) = call(method, client);
    let _ = say.send(Bytes::from_static(b"ping")).await;
    drop(say);
    let response = sender.send_request(request).await.unwrap();
    let head = response.headers().clone();
    let collected = response.into_body().collect().await.unwrap();
    let status = collected
        .trailers()
        .and_then(|map| map.get("grpc-status"))
        .map(|status| status.to_str().unwrap().into());
    (head, collected.to_bytes(), status)
}

const CLUSTER_INFO: &str = "RayletDriver/ClusterInfo";
const DATAPATH: &str = "RayletDataStreamer/Datapath";

async fn next(body: &mut Incoming) -> Bytes {
    body.frame().await.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn a_call_passes_with_its_trailers() {
    let (rig, head, _tasks) = start(|_| {}).await;
    let mut sender = connect(&rig).await;
    for _ in 0..30 {
        let (_, body, status) = ask(&mut sender, CLUSTER_INFO, "a").await;
        assert_eq!((&*body, status.as_deref()), (&b"ping"[..], Some("0")));
    }
    assert_eq!(head.connections.load(SeqCst), 1, "one connection for all");
    assert_eq!(rig.in_flight("ray-client"), 1, "one session, which has not opened its stream yet");
}

/// A server in TLS that says what is spoken with it.
async fn polyglot(tasks: &Tasks) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tls = Terminator::new(&fixture("server.pem"), &fixture("server.key"), None).unwrap();
    let spawner = tasks.clone();
    tasks.spawn_until_closed(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = tls.acceptor();
            spawner.spawn_until_closed(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
                    Ok::<_, Infallible>(Response::new(format!("{:?}", request.version())))
                });
                let stream = TokioIo::new(stream);
                if http2 {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(stream, service).await;
                } else {
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
                }
            });
        }
    });
    address
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

#[tokio::test]
async fn a_server_in_tls_is_spoken_to_as_each_request_needs_and_its_authorities_are_renewed() {
    let tasks = Tasks::default();
    let address = polyglot(&tasks).await;
    let authorities = std::env::temp_dir().join(format!("rayguard-authorities-{}.pem", std::process::id()));
    std::fs::copy(fixture("renewed-authority.pem"), &authorities).unwrap();
    let originator = Originator::new(ServerName::try_from("localhost").unwrap(), &authorities).unwrap();
    let rig = Rig::with(Setup {
        surface: Surface::Serve,
        upstream: Some(Address::Tls(address, originator.clone())),
        ..Setup::default()
    })
    .await;
    assert_eq!(rig.get("/app", &[]).await.status, 503, "no trusted authority vouches for it");
    std::fs::write(&authorities, "nonsense").unwrap();
    assert!(originator.renew().is_err());
    std::fs::copy(fixture("authority.pem"), &authorities).unwrap();
    assert_eq!(originator.renew().ok(), Some(true));
    assert_eq!(originator.renew().ok(), Some(false), "that is no news");
    assert_eq!(rig.get("/app", &[]).await.text(), "HTTP/1.1");
    let mut sender = connect(&rig).await;
    let (_, body, _) = ask(&mut sender, "UserDefinedService/__call__", "a").await;
    assert_eq!(&*body, b"HTTP/2.0");
    std::fs::remove_file(&authorities).unwrap();
    tasks.close();
}

#[tokio::test]
async fn a_newcomer_keeps_its_place_until_its_stream_is_answered() {
    let (rig, head, _tasks) = start(|policy| {
        policy.classes[class("ray-client").index()].in_flight = Bounds::fixed(1.0);
    })
    .await;
    let mut sender = connect(&rig).await;
    let (_, _, status) = ask(&mut sender, CLUSTER_INFO, "first").await;
    assert_eq!(status.as_deref(), Some("0"));
    let calls = head.calls.load(SeqCst);

    let (say, request) = call(CLUSTER_INFO, "second");
    drop(say);
    let second = rig.proxy.tasks.clone();
    let (answered, mut answer) = mpsc::channel(1);
    let mut other = connect(&rig).await;
    second.spawn(async move {
        let response = other.send_request(request).await.unwrap();
        let _ = answered.send(response.headers().contains_key("grpc-status")).await;
    });
    until("the second waits", || rig.waiting("ray-client") == 1).await;
    assert_eq!(head.calls.load(SeqCst), calls, "nothing of it reached Ray");

    let (_say, request) = call(DATAPATH, "first");
    let _body = sender.send_request(request).await.unwrap().into_body();
    assert_eq!(answer.recv().await, Some(false), "its turn has come: no refusal");
    assert_eq!(rig.in_flight("ray-client"), 1);
}

#[tokio::test]
async fn a_stream_goes_both_ways_at_once_and_holds_its_permit() {
    let (rig, _head, _tasks) = start(|_| {}).await;
    let mut sender = connect(&rig).await;
    let (say, request) = call(DATAPATH, "a");
    let mut body = sender.send_request(request).await.unwrap().into_body();
    for n in 0..50_u8 {
        say.send(Bytes::from(vec![n; 3])).await.unwrap();
        assert_eq!(next(&mut body).await, vec![n; 3]);
    }
    assert_eq!(rig.in_flight("ray-client-session"), 1);
    drop(say);
    let end = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(end["grpc-status"], "0");
    until("the permit is back", || rig.in_flight("ray-client-session") == 0).await;
}

#[tokio::test]
async fn a_proxy_that_goes_down_says_so_and_ends_no_stream() {
    let (rig, _head, _tasks) = start(|_| {}).await;
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let client = Tasks::default();
    let (ended, mut end) = mpsc::channel(1);
    client.spawn(async move {
        let _ = ended.send(connection.await.is_ok()).await;
    });
    let (say, request) = call(DATAPATH, "a");
    let mut body = sender.send_request(request).await.unwrap().into_body();
    say.send(Bytes::from_static(b"before")).await.unwrap();
    assert_eq!(next(&mut body).await, "before");
    rig.proxy.tasks.close();
    // Until the client has read GOAWAY its calls are taken; then it may send no more.
    while sender.send_request(call("RayletDriver/KVGet", "a").1).await.is_ok() {}
    say.send(Bytes::from_static(b"after")).await.unwrap();
    assert_eq!(next(&mut body).await, "after", "what is under way goes on");
    drop((say, body, sender));
    assert_eq!(end.recv().await, Some(true), "and the connection ends in order");
}

#[tokio::test]
async fn a_large_message_passes_within_the_windows() {
    let (rig, _head, _tasks) = start(|_| {}).await;
    let mut sender = connect(&rig).await;
    let (say, request) = call(DATAPATH, "a");
    let mut body = sender.send_request(request).await.unwrap().into_body();
    let (pieces, piece) = (200, Bytes::from(vec![7; 64 * 1024]));
    rig.proxy.tasks.spawn(async move {
        for _ in 0..pieces {
            say.send(piece.clone()).await.unwrap();
        }
    });
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    assert_eq!(length, pieces * 64 * 1024);
}

#[tokio::test]
async fn many_sessions_share_few_connections() {
    let (rig, head, _tasks) = start(|_| {}).await;
    let mut sender = connect(&rig).await;
    let mut open = Vec::new();
    for n in 0..30 {
        let (say, request) = call(DATAPATH, &n.to_string());
        let mut body = sender.send_request(request).await.unwrap().into_body();
        say.send(Bytes::from_static(b"hi")).await.unwrap();
        assert_eq!(next(&mut body).await, "hi");
        open.push((say, body));
    }
    let connections = head.connections.load(SeqCst);
    assert!((2..=4).contains(&connections), "{connections}");
}

#[tokio::test]
async fn newcomers_are_refused_kindly_while_live_sessions_go_on() {
    let (rig, head, _tasks) = start(|_| {}).await;
    let mut sender = connect(&rig).await;
    let (say, request) = call(DATAPATH, "alive");
    let mut body = sender.send_request(request).await.unwrap().into_body();
    say.send(Bytes::from_static(b"hi")).await.unwrap();
    assert_eq!(next(&mut body).await, "hi");
    let mut table = (**rig.proxy.table.load()).clone();
    table.classes[class("ray-client").index()].rate = Some(0.0);
    table.classes[class("ray-client").index()].in_flight = 0.0;
    rig.proxy.set_table(Arc::new(table));

    let calls = head.calls.load(SeqCst);
    let (_, _, status) = ask(&mut sender, CLUSTER_INFO, "alive").await;
    assert_eq!(status.as_deref(), Some("0"), "a live session's question passes");
    assert_eq!(head.calls.load(SeqCst), calls + 1);

    let (refusal, body_of_refusal, _) = ask(&mut sender, CLUSTER_INFO, "newcomer").await;
    assert_eq!(refusal["grpc-status"], "8", "RESOURCE_EXHAUSTED: the client comes again by itself");
    assert!(refusal.contains_key("grpc-retry-pushback-ms"));
    assert!(body_of_refusal.is_empty());
    assert_eq!(head.calls.load(SeqCst), calls + 1, "nothing reached Ray");

    drop((say, body));
    until("the session has ended", || rig.in_flight("ray-client-session") == 0).await;
    let (refusal, _, _) = ask(&mut sender, CLUSTER_INFO, "alive").await;
    assert_eq!(refusal["grpc-status"], "8", "it is a newcomer again");
}

#[tokio::test]
async fn streams_beyond_their_cap_get_resource_exhausted_never_unavailable() {
    let (rig, _head, _tasks) = start(|policy| {
        policy.classes[class("ray-client-session").index()].in_flight = Bounds::fixed(1.0);
    })
    .await;
    let mut sender = connect(&rig).await;
    let (_say, request) = call(DATAPATH, "a");
    let _body = sender.send_request(request).await.unwrap().into_body();
    let (refusal, _, _) = ask(&mut sender, DATAPATH, "b").await;
    assert_eq!(refusal["grpc-status"], "8");
}

#[tokio::test]
async fn a_head_that_is_down_is_resource_exhausted_too() {
    let tasks = Tasks::default();
    let (_, address) = Head::start(&tasks).await;
    tasks.close();
    assert!(tasks.drain(std::time::Duration::from_secs(10)).await);
    let rig = Rig::with(Setup {
        surface: Surface::RayClient,
        upstream: Some(address),
        options: Options { protocol: Protocol::Http2, ..Options::default() },
        ..Setup::default()
    })
    .await;
    let mut sender = connect(&rig).await;
    let (refusal, _, _) = ask(&mut sender, DATAPATH, "a").await;
    assert_eq!(refusal["grpc-status"], "8", "at UNAVAILABLE Ray Client reconnects 570 times a second");
}

// --- Serve ---

#[tokio::test]
async fn grpc_applications_of_serve_are_called_over_http_2() {
    let tasks = Tasks::default();
    let (_head, address) = Head::start(&tasks).await;
    // As a listener of kind "serve" is made: the configuration does not say what is spoken behind it.
    let mut policy = policy();
    policy.classes[class("serve").index()].in_flight = Bounds::fixed(1.0);
    policy.classes[class("serve").index()].queue.len_max = 0;
    let rig =
        Rig::with(Setup { surface: Surface::Serve, upstream: Some(address), policy, ..Setup::default() })
            .await;
    let mut sender = connect(&rig).await;
    let (say, request) = call("UserDefinedService/Stream", "a");
    let mut body = sender.send_request(request).await.unwrap().into_body();
    for n in 0..5_u8 {
        say.send(Bytes::from(vec![n; 3])).await.unwrap();
        assert_eq!(next(&mut body).await, vec![n; 3]);
    }
    assert_eq!(rig.in_flight("serve"), 1);
    let (refusal, _, _) = ask(&mut sender, "UserDefinedService/Call", "b").await;
    assert_eq!(refusal["grpc-status"], "8", "one at a time");
    assert!(refusal.contains_key("grpc-retry-pushback-ms"));
    drop(say);
    let end = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(end["grpc-status"], "0");
    until("the permit is back", || rig.in_flight("serve") == 0).await;
    let (_, _, status) = ask(&mut sender, "UserDefinedService/Call", "b").await;
    assert_eq!(status.as_deref(), Some("0"));
}
