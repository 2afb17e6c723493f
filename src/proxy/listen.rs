//! Listeners: accepting connections, and letting them go in good order.
//!
//! A connection costs memory before it has said anything, so there are bounds on connections
//! in all and per address, and on the time a client may take to say what it wants. Running out
//! of file descriptors pauses accepting; it does not end it.
//!
//! On TCP or a Unix socket, behind a PROXY protocol header or not, in TLS or not: what comes
//! out is a stream and a peer, and its first bytes tell HTTP/2 from HTTP/1. A peer on a Unix
//! socket is this machine: it counts as 127.0.0.1.

use crate::client_body::BodyBounds;
use crate::connections::Counted;
use crate::cors::Origins;
use crate::framing_guard::FramingGuard;
use crate::handle::{LastRequest, Memory, Peer, handle};
use crate::headers::hop;
use crate::keepalive::{KeepAlive, Patience};
use crate::proxy_protocol;
use crate::ratelimit::Service;
use crate::request_validation::HeadBounds;
use crate::routing::Routing;
use crate::state::{ListenerState, ProxyState};
use crate::stream::{Accept, Plain, Stream, probe};
use crate::tasks::{Task, Tasks};
use crate::tls::Terminator;
use arc_swap::ArcSwap;
use bytes::BytesMut;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rayguard_config::settings;
use rayguard_core::request::catalogue::Surface;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// As many headers as hyper parses in place; told another number, even the same, it takes its room
/// from the heap for each request.
const HEADERS_ON_STACK: usize = 100;

/// After so long a silence a client is probed; three probes unanswered later, 30 s in all, it is gone.
const SILENCE: Duration = Duration::from_secs(20);

/// ListenerLimits on what a client may ask of a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListenerLimits {
    /// Connections in all, over every listener.
    pub connections_max: usize,
    /// Connections of one address (IPv6: of one /64) that is not a trusted proxy.
    pub connections_per_address_max: usize,
    /// A request's head must be complete within this, counted from its first byte; the first of a
    /// connection from when it was accepted, and so must a TLS handshake.
    pub head_timeout: Duration,
    /// The next request of a connection must begin within this.
    pub idle_timeout: Duration,
    /// A body may be silent for so long, and so long may a client take nothing of its answer.
    pub stall_timeout: Duration,
    /// The largest head, in bytes.
    pub head_bytes_max: usize,
    /// Headers in a head.
    pub headers_max: usize,
    /// The largest body, in bytes. gRPC streams are not held to it.
    pub body_bytes_max: u64,
    /// Work whose client has left stays counted for so long, if Ray never answers.
    pub abandoned_max: Duration,
}

/// A body may be silent for so long, unless a test has less time.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

impl Default for ListenerLimits {
    fn default() -> ListenerLimits {
        ListenerLimits::from(&settings::Http::default())
    }
}

impl From<&settings::Http> for ListenerLimits {
    fn from(http: &settings::Http) -> ListenerLimits {
        ListenerLimits {
            connections_max: http.connections_max,
            connections_per_address_max: http.connections_per_address_max,
            head_timeout: http.header_timeout,
            idle_timeout: http.idle_timeout,
            head_bytes_max: http.header_bytes_max,
            headers_max: http.headers_max,
            body_bytes_max: http.body_bytes_max,
            abandoned_max: http.abandoned_max,
            stall_timeout: STALL_TIMEOUT,
        }
    }
}

impl ListenerLimits {
    /// How many connections one subscriber may have; a trusted proxy's are not counted.
    fn of_subscriber(&self, trusted: bool) -> Option<usize> {
        (!trusted).then_some(self.connections_per_address_max)
    }

    fn body(&self) -> BodyBounds {
        BodyBounds { bytes_max: self.body_bytes_max, stall: self.stall_timeout }
    }
}

/// A bound socket and what comes before HTTP on it.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    tls: Option<Arc<Terminator>>,
    proxy_protocol: bool,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
    Other(Box<dyn Accept>),
}

/// A listening socket that was open before this process began.
#[derive(Debug)]
pub enum Inherited {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A Unix socket.
    Unix(std::os::unix::net::UnixListener),
}

impl Inherited {
    /// Whether it is the one to listen on at this address.
    pub fn is_bound_to(&self, address: &settings::Address) -> bool {
        match (self, address) {
            (Inherited::Tcp(socket), settings::Address::Tcp(address)) => {
                socket.local_addr().is_ok_and(|bound| bound == *address)
            }
            (Inherited::Unix(socket), settings::Address::Unix(path)) => {
                socket.local_addr().is_ok_and(|bound| bound.as_pathname() == Some(path))
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Inherited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Inherited::Tcp(socket) => match socket.local_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("a TCP socket"),
            },
            Inherited::Unix(socket) => match socket.local_addr().as_ref().map(|bound| bound.as_pathname()) {
                Ok(Some(path)) => write!(f, "unix:{}", path.display()),
                _ => f.write_str("a Unix socket"),
            },
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Listener {
        Listener { socket: Socket::Tcp(socket), tls: None, proxy_protocol: false }
    }
}

impl From<Box<dyn Accept>> for Listener {
    fn from(network: Box<dyn Accept>) -> Listener {
        Listener { socket: Socket::Other(network), tls: None, proxy_protocol: false }
    }
}

impl Listener {
    /// Binds an address. A Unix socket left behind by a process that is gone is replaced.
    pub async fn bind(address: &settings::Address) -> io::Result<Listener> {
        let socket = match address {
            settings::Address::Tcp(address) => Socket::Tcp(probing(TcpListener::bind(address).await?)),
            settings::Address::Unix(path) => {
                let in_use = UnixStream::connect(path).await.is_ok();
                if !in_use && std::fs::symlink_metadata(path).is_ok_and(|entry| is_socket(&entry)) {
                    std::fs::remove_file(path)?;
                }
                Socket::Unix(UnixListener::bind(path)?)
            }
        };
        Ok(Listener { socket, tls: None, proxy_protocol: false })
    }

    /// A listener on a socket that is open already.
    pub fn take_over(socket: Inherited) -> io::Result<Listener> {
        let socket = match socket {
            Inherited::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                Socket::Tcp(probing(TcpListener::from_std(socket)?))
            }
            Inherited::Unix(socket) => {
                socket.set_nonblocking(true)?;
                Socket::Unix(UnixListener::from_std(socket)?)
            }
        };
        Ok(Listener { socket, tls: None, proxy_protocol: false })
    }

    /// The same, in TLS.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<Terminator>>) -> Listener {
        Listener { tls, ..self }
    }

    /// The same, with a PROXY protocol header at the start of each connection. Its address is
    /// believed from trusted proxies.
    #[must_use]
    pub fn with_proxy_protocol(self, proxy_protocol: bool) -> Listener {
        Listener { proxy_protocol, ..self }
    }

    /// The address of a TCP listener, its port known.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) | Socket::Other(_) => None,
        }
    }

    async fn accept(&self) -> io::Result<(Plain, IpAddr)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // A failure here costs latency, not correctness.
                let _ = stream.set_nodelay(true);
                Ok((Plain::Tcp(stream), peer.ip().to_canonical()))
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Plain::Unix(stream), Ipv4Addr::LOCALHOST.into()))
            }
            Socket::Other(network) => {
                let (line, peer) = network.accept().await?;
                Ok((Plain::Other(line), peer.to_canonical()))
            }
        }
    }
}

/// The same socket, whose connections probe a silent client: a connection inherits the options of its
/// listener (tcp(7)). Nothing is read from or written to a client that follows a quiet log file; without
/// probes it would take hours to notice that its machine is gone.
fn probing(socket: TcpListener) -> TcpListener {
    probe(&socket, SILENCE, SILENCE / 2);
    socket
}

fn is_socket(entry: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&entry.file_type())
}

/// Accepts until the tasks are closed; connections then finish what is under way. Each request
/// goes by the state as it is at that moment.
pub fn serve(
    listener: impl Into<Listener>,
    state: Arc<ArcSwap<ListenerState>>,
    tasks: Tasks,
    bounds: ListenerLimits,
) -> Task {
    let (states, closing) = (Arc::clone(&state), tasks.clone());
    Box::pin(accept(listener.into(), state, tasks, bounds, move |stream, peer, http2| -> Task {
        let (peer, state, closing) = (Arc::new(peer), Arc::clone(&states), closing.clone());
        if http2 {
            Box::pin(converse_http2(stream, BytesMut::new(), peer, state, closing, bounds))
        } else {
            Box::pin(converse(stream, peer, state, closing, bounds))
        }
    }))
}

/// The same for the rate-limit service, which speaks HTTP/2 alone.
pub fn serve_ratelimit(
    listener: Listener,
    service: Arc<Service>,
    tasks: Tasks,
    bounds: ListenerLimits,
) -> Task {
    let (state, closing) = (Arc::clone(service.state()), tasks.clone());
    Box::pin(accept(listener, state, tasks, bounds, move |stream, peer, _| -> Task {
        let (service, closing) = (Arc::clone(&service), closing.clone());
        Box::pin(async move {
            let address = peer.address;
            let answer = move |request| {
                let service = Arc::clone(&service);
                async move { Ok(service.answer(address, request).await) }
            };
            speak_http2(stream, BytesMut::new(), address, answer, closing, bounds, QUESTIONS_MAX).await;
        })
    }))
}

/// Accepts and opens connections, and has `converse` speak on each; it is told whether TLS agreed
/// on HTTP/2.
async fn accept(
    listener: Listener,
    state: Arc<ArcSwap<ListenerState>>,
    tasks: Tasks,
    bounds: ListenerLimits,
    converse: impl Fn(Stream, Peer, bool) -> Task + Clone + Send + 'static,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.closed() => return,
        };
        let accepted = accepted.and_then(|(stream, address)| Ok((stream.detach()?, address)));
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: those connected go on, newcomers wait.
                tracing::warn!(%error, "cannot accept a connection; trying again in 50 ms");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let proxy = Arc::clone(&state.load().proxy);
        let trusted = proxy.identifier.trusts(address);
        let (all_max, own_max) = (bounds.connections_max, bounds.of_subscriber(trusted));
        let Some(mut counted) = proxy.connections.enter(address, all_max, own_max) else {
            tracing::debug!(%address, "too many connections; this one is closed");
            continue;
        };
        let (tls, converse) = (listener.tls.clone(), converse.clone());
        let peer = Peer {
            address,
            hop: hop(address),
            tls: tls.is_some(),
            body: bounds.body(),
            abandoned_max: bounds.abandoned_max,
        };
        let proxy_protocol = listener.proxy_protocol;
        // What a connection holds while it idles is small: what it needs before is gone by then.
        let opening = Box::pin(async move {
            let mut stream = stream.attach()?;
            let peer = if proxy_protocol {
                introduce(&mut stream, peer, &proxy, &mut counted, &bounds).await?
            } else {
                peer
            };
            let (stream, peer, http2) = open(stream, peer, tls.as_deref()).await?;
            io::Result::Ok((converse(stream, peer, http2), counted))
        });
        tasks.spawn_on_next_core(Box::pin(async move {
            match tokio::time::timeout(bounds.head_timeout, opening).await {
                Ok(Ok((conversation, _counted))) => conversation.await,
                Ok(Err(error)) => tracing::debug!(%address, %error, "connection not opened"),
                Err(_) => tracing::debug!(%address, "connection not opened in time"),
            }
        }));
    }
}

/// Reads the PROXY protocol's header: the peer it names, if its sender is trusted.
async fn introduce(
    stream: &mut Plain,
    mut peer: Peer,
    proxy: &ProxyState,
    counted: &mut Counted,
    bounds: &ListenerLimits,
) -> io::Result<Peer> {
    let told = proxy_protocol::read(stream).await?;
    if let Some(client) = told.filter(|_| proxy.identifier.trusts(peer.address)) {
        if !counted.belongs_to(client, bounds.of_subscriber(proxy.identifier.trusts(client))) {
            return Err(io::Error::other("too many connections of this client"));
        }
        (peer.address, peer.hop) = (client, hop(client));
    }
    Ok(peer)
}

/// What comes before HTTP; the last of the three tells whether TLS agreed on HTTP/2.
async fn open(stream: Plain, peer: Peer, tls: Option<&Terminator>) -> io::Result<(Stream, Peer, bool)> {
    let Some(tls) = tls else { return Ok((Stream::Plain(stream), peer, false)) };
    let stream = tls.acceptor().accept(stream).await?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Stream::Tls(Box::new(stream.into())), peer, http2))
}

/// How an HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Speaks HTTP/1.1 or HTTP/2 on one connection until it ends; while one of HTTP/1 sleeps there is nothing of it
/// but this.
#[expect(
    clippy::manual_async_fn,
    reason = "a block keeps its captures where they are; an `async fn` keeps its arguments twice"
)]
fn converse(
    mut stream: Stream,
    peer: Arc<Peer>,
    state: Arc<ArcSwap<ListenerState>>,
    tasks: Tasks,
    bounds: ListenerLimits,
) -> impl Future<Output = ()> + Send {
    async move {
        let mut start = BytesMut::new();
        let first = tokio::select! {
            first = tokio::time::timeout(bounds.head_timeout, begins_as_http2(&mut stream, &mut start)) => first,
            () = closed(&tasks, FAREWELL) => return,
        };
        match first {
            Ok(Ok(true)) => return Box::pin(converse_http2(stream, start, peer, state, tasks, bounds)).await,
            Ok(Ok(false)) => {}
            Ok(Err(_)) | Err(_) => return, // it left, or said nothing
        }
        let clock = state.load().proxy.clock;
        let (head, origins) = reads_at(&state.load().routing, &bounds);
        loop {
            let keep_alive = KeepAlive::default();
            let patience = Patience::new(clock, bounds.idle_timeout, bounds.head_timeout);
            let framing_guard =
                FramingGuard::new(stream, start, head, origins.clone(), patience, keep_alive.clone());
            // What is escaped in a target takes three bytes for one.
            let buffer_max = head.bytes.max(8192) + 2 * head.target + 1024;
            Box::pin(speak_http1(
                framing_guard,
                buffer_max,
                Arc::clone(&peer),
                Arc::clone(&state),
                &tasks,
                bounds,
                keep_alive.clone(),
            ))
            .await;
            let Some((asleep, since)) = keep_alive.resume() else { return };
            (stream, start) = (asleep, BytesMut::new());
            let until = clock.instant(since + bounds.idle_timeout);
            let begun = tokio::select! {
                read = tokio::time::timeout_at(until, stream.read_buf(&mut start)) => matches!(read, Ok(Ok(1..))),
                () = closed(&tasks, FAREWELL) => false,
            };
            if !begun {
                // It left, or has idled for too long.
                let _ = stream.shutdown().await;
                return;
            }
        }
    }
}

/// How long a head may be here, and whose pages may read a refusal.
fn reads_at(routing: &Routing, bounds: &ListenerLimits) -> (HeadBounds, Option<Origins>) {
    let head = HeadBounds::of(routing.surface, bounds.head_bytes_max, bounds.headers_max);
    (head, (routing.surface == Surface::Serve).then(|| routing.origins.clone()))
}

/// Reads until it is clear which version is spoken: one byte tells, most of the time.
async fn begins_as_http2(stream: &mut Stream, start: &mut BytesMut) -> io::Result<bool> {
    loop {
        let length = start.len().min(PREFACE.len());
        if start[..length] != PREFACE[..length] {
            return Ok(false);
        }
        if length == PREFACE.len() {
            return Ok(true);
        }
        if stream.read_buf(start).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn speak_http1(
    framing_guard: FramingGuard,
    buffer_max: usize,
    peer: Arc<Peer>,
    state: Arc<ArcSwap<ListenerState>>,
    tasks: &Tasks,
    bounds: ListenerLimits,
    keep_alive: KeepAlive,
) {
    let (closing, address, heard) = (tasks.clone(), peer.address, keep_alive.clone());
    let before = LastRequest::default();
    let service = service_fn(move |request: Request<Incoming>| {
        let repeats = heard.head_is_a_request();
        let memory = Some(Memory { before: &before, repeats });
        handle(&state.load(), &peer, request, Some(closing.clone()), memory)
    });
    let mut builder = http1::Builder::new();
    builder
        // Most answers are short: head and body in one buffer are one plain write.
        .writev(false)
        // The framing guard keeps time, and looks whether the client has left: hyper reads for the next head alone.
        .header_read_timeout(None)
        .half_close(true)
        .max_buf_size(buffer_max);
    if bounds.headers_max != HEADERS_ON_STACK {
        builder.max_headers(bounds.headers_max);
    }
    let connection = builder.serve_connection(TokioIo::new(framing_guard), service).with_upgrades();
    let wind_up = http1::UpgradeableConnection::graceful_shutdown;
    drain_connection(connection, wind_up, address, idle_after_close(tasks, &keep_alive)).await;
}

/// Streams one connection may have open at once.
const STREAMS_MAX: u32 = 256;

/// Questions one connection of the rate-limit service may have open: an Envoy has one for each of
/// its threads, and asks once for each of its requests.
const QUESTIONS_MAX: u32 = 1024;

async fn converse_http2(
    stream: Stream,
    start: BytesMut,
    peer: Arc<Peer>,
    state: Arc<ArcSwap<ListenerState>>,
    tasks: Tasks,
    bounds: ListenerLimits,
) {
    let address = peer.address;
    let surface = state.load().routing.surface;
    let bounds =
        ListenerLimits { head_bytes_max: HeadBounds::of(surface, bounds.head_bytes_max, 0).bytes, ..bounds };
    let answer = move |request| handle(&state.load(), &peer, request, None, None);
    speak_http2(stream, start, address, answer, tasks, bounds, STREAMS_MAX).await;
}

async fn speak_http2<A, B>(
    stream: Stream,
    start: BytesMut,
    address: IpAddr,
    answer: impl Fn(Request<Incoming>) -> A,
    tasks: Tasks,
    bounds: ListenerLimits,
    streams_max: u32,
) where
    A: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(bounds.head_bytes_max).unwrap_or(u32::MAX))
        .max_concurrent_streams(streams_max)
        // A client that opens and resets streams faster than they are looked at is cut off.
        .max_pending_accept_reset_streams(32)
        .max_local_error_reset_streams(256)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let service = service_fn(answer);
    let connection = builder.serve_connection(TokioIo::new(FramingGuard::open(stream, start)), service);
    // GOAWAY tells a client at once, and in good order.
    drain_connection(connection, http2::Connection::graceful_shutdown, address, tasks.closed()).await;
}

/// For how long an HTTP/1 connection that idles when the proxy closes is left open: a request may
/// be on its way. It is answered, and told that it was the last.
const FAREWELL: Duration = Duration::from_secs(1);

/// Resolves so long after the tasks were closed.
async fn closed(tasks: &Tasks, farewell: Duration) {
    tasks.closed().await;
    tokio::time::sleep(farewell).await;
}

/// Resolves when the tasks are closed and the connection has idled for as long as it is left open: one that
/// carries an answer whose head went out before is in its client's eyes good for another request.
async fn idle_after_close(tasks: &Tasks, connection: &KeepAlive) {
    tasks.closed().await;
    let mut idle = Duration::ZERO;
    while idle < FAREWELL {
        tokio::time::sleep(FAREWELL / 10).await;
        idle = if connection.is_busy() { Duration::ZERO } else { idle + FAREWELL / 10 };
    }
}

/// Serves a connection to its end; on `wind_up` what is under way is finished and nothing else begun.
async fn drain_connection<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    wind_up: impl FnOnce(Pin<&mut C>),
    address: IpAddr,
    when: impl Future<Output = ()>,
) {
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = when => {
            wind_up(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "connection ended early");
    }
}
