//! Connections to Ray: kept alive, reused last-in-first-out, bounded.
//!
//! The proxy decides how many requests are under way; the pool follows. It keeps what has been
//! used lately and drops what has idled for too long.
//!
//! A request that meets a connection Ray has closed was never sent (hyper hands it back) and is sent
//! again. Closing and sending may also cross on the way: then a GET or HEAD without a body, of whose
//! answer not a byte has come, is sent once more on a new connection, and any other is not, because
//! Ray may have acted on it.

use crate::circuit_breaker::{CircuitBreaker, RETRY};
use crate::client_body::{BodyError, ClientBody};
use crate::clock::Clock;
use crate::cores;
use crate::h1_connection::{AnswerBounds, H1Connection, SentHead};
pub use crate::protocol::Protocol;
use crate::stream::{Dial, Plain, Stream, probe};
use crate::tasks::Tasks;
use crate::tls::Originator;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::{Mutex, MutexGuard};
use rayguard_config::settings;
use rayguard_core::admission::meter::Reason;
use rayguard_core::time::Time;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream, lookup_host};

/// Where Ray listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// `host:port`, resolved at each connection.
    Tcp(String),
    /// `host:port`, in TLS.
    Tls(String, Originator),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) | Address::Tls(address, _) => f.write_str(address),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why upstream gave no answer. The sentence says whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nothing listens there, or the network is gone.
    #[error("Ray is down: {address} accepts no connections ({source})")]
    Connect {
        /// Where.
        address: String,
        /// What the OS says.
        source: io::Error,
    },
    /// No connection within the bound.
    #[error("Ray is down: {address} accepted no connection within {bound:?}")]
    ConnectTimeout {
        /// Where.
        address: String,
        /// The bound.
        bound: Duration,
    },
    /// The exchange broke before the answer's head had come.
    #[error(
        "Ray at {address} closed the connection before it answered ({source}); it may have begun to work on the request"
    )]
    Broken {
        /// Where.
        address: String,
        /// What hyper says.
        source: hyper::Error,
    },
    /// What came is no answer that can be passed on.
    #[error("the answer of Ray at {address} is not HTTP and cannot be passed on ({source})")]
    Unreadable {
        /// Where.
        address: String,
        /// What hyper says.
        source: hyper::Error,
    },
    /// The answer's head is longer than the bounds.
    #[error(
        "Ray's answer has more than {} headers (`http.answer_headers_max`) or a head of more than {} bytes \
         (`http.answer_header_bytes_max`); raise the bound, or have fewer or smaller headers sent",
        .0.headers, .0.bytes
    )]
    AnswerHead(AnswerBounds),
    /// The client's own body did not come to its end.
    #[error(transparent)]
    Client(BodyError),
}

impl UpstreamError {
    /// The word for it in the `X-Rayguard-Reason` header.
    pub fn reason(&self) -> &'static str {
        match self {
            UpstreamError::Connect { .. } | UpstreamError::ConnectTimeout { .. } => {
                Reason::UpstreamUnreachable.label()
            }
            UpstreamError::Broken { .. } => "upstream_broke_off",
            UpstreamError::Unreadable { .. } => "upstream_unreadable",
            UpstreamError::AnswerHead(_) => "answer_too_large",
            UpstreamError::Client(_) => "malformed",
        }
    }

    /// Whether no connection was accepted, as far as can be told from here; what this machine lacks itself
    /// (descriptors, ports) says nothing of Ray.
    fn is_absence(&self) -> bool {
        use io::ErrorKind::{
            ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, NotFound, TimedOut,
        };
        match self {
            UpstreamError::ConnectTimeout { .. } => true,
            UpstreamError::Connect { source, .. } => matches!(
                source.kind(),
                ConnectionRefused
                    | ConnectionReset
                    | HostUnreachable
                    | NetworkUnreachable
                    | NotFound
                    | TimedOut
            ),
            _ => false,
        }
    }
}

/// One upstream and its idle connections.
#[derive(Debug)]
pub struct Upstream {
    address: Address,
    /// Where streams come from, if not from the OS.
    network: Option<Arc<dyn Dial>>,
    options: Options,
    clock: Clock,
    tasks: Tasks,
    breaker: CircuitBreaker,
    /// Idle connections, those of each core apart: a core takes up only what it opened, or its requests would
    /// be woken from another.
    idle: Box<[Mutex<Vec<Idle>>]>,
    shared: Mutex<Vec<Http2>>,
}

/// Bounds of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// What is spoken.
    pub protocol: Protocol,
    /// For a connection to be accepted.
    pub connect_timeout: Duration,
    /// An idle connection is dropped after this.
    pub idle_timeout: Duration,
    /// The most idle connections kept, for each core.
    pub idle_max: usize,
    /// How long the head of an answer may be.
    pub answer: AnswerBounds,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            protocol: Protocol::Http1,
            connect_timeout: settings::Http::default().connect_timeout,
            idle_timeout: Duration::from_secs(30),
            idle_max: 64,
            answer: AnswerBounds::default(),
        }
    }
}

#[derive(Debug)]
struct Idle {
    wire: Box<H1Connection>,
    since: Time,
}

/// A connection that carries many streams.
#[derive(Clone, Debug)]
struct Http2 {
    sender: http2::SendRequest<ClientBody>,
    /// One for each stream, and the pool's own.
    streams: Arc<()>,
    /// When it was first seen without a stream.
    idle_since: Option<Time>,
}

/// Streams on a connection before another is opened, and connections at most. Streams share
/// their connection's window, so few are kept on each.
const STREAMS_PER_CONNECTION: usize = 16;
const CONNECTIONS_MAX: usize = 16;

/// A line that is silent is asked whether its other end is still there after this, and three times
/// again. A head that is busy or frozen answers, by its kernel; one that is gone, or a network that
/// has forgotten the line, does not, and what was counted on it would be for `abandoned_max`.
const PROBE: Duration = Duration::from_secs(5);

/// Windows of a stream and of a connection to Ray, in bytes: one slow reader must not use up
/// what the others on its connection need.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// A connection that carries one exchange. Dropped, it is closed; given back, it is reused.
#[derive(Debug)]
pub struct Lease {
    upstream: Arc<Upstream>,
    wire: Box<H1Connection>,
}

impl Lease {
    /// Until it is driven again it wakes no task.
    pub fn rest(&self) {
        self.wire.rest();
    }

    /// Moves the exchange on. The reader of its body calls this when it finds nothing there.
    pub fn drive(&mut self, context: &mut Context<'_>) {
        self.wire.drive(context);
    }

    /// The answer is complete: the connection may carry the next, unless the request is still
    /// on its way.
    pub fn give_back(self) {
        if self.wire.is_ready() {
            self.upstream.keep(self.wire);
        }
    }
}

/// The largest body that is looked for beside its head, in bytes.
const SHORT_MAX: u64 = 64 << 10;

/// Ray's body.
#[derive(Debug)]
pub enum RayBody {
    /// From an HTTP/1 connection, which goes back to its pool at the end.
    Http1(Incoming, Option<Lease>),
    /// From an HTTP/2 stream, which counts on its connection for as long as this lives.
    Http2(Incoming, Arc<()>),
}

impl RayBody {
    /// Whether it may have come in one piece with its head: its length is known and small.
    pub(crate) fn is_short(&self) -> bool {
        matches!(self, RayBody::Http1(..))
            && self.size_hint().exact().is_some_and(|length| length <= SHORT_MAX)
    }

    /// The exchange is complete: its connection may carry the next.
    pub(crate) fn release(&mut self) {
        if let RayBody::Http1(_, lease) = self
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
    }

    fn incoming(&self) -> &Incoming {
        let (RayBody::Http1(body, _) | RayBody::Http2(body, _)) = self;
        body
    }
}

impl Body for RayBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(match this {
            RayBody::Http1(body, Some(lease)) => {
                // Data comes only by driving the connection: it is looked for before and after, and wakes no task.
                let mut look = || Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop()));
                lease.rest();
                let there = look();
                if there.is_pending() {
                    lease.drive(context);
                    look()
                } else {
                    there
                }
            }
            RayBody::Http1(body, None) | RayBody::Http2(body, _) => Pin::new(body).poll_frame(context),
        });
        if frame.is_none() || this.is_end_stream() {
            this.release();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming().size_hint()
    }
}

impl Upstream {
    /// An upstream without connections yet.
    pub fn new(address: Address, options: Options, clock: Clock, tasks: Tasks) -> Arc<Upstream> {
        Upstream::over(None, address, options, clock, tasks)
    }

    /// The same, reached by a network that is not the OS's.
    pub fn over(
        network: Option<Arc<dyn Dial>>,
        address: Address,
        options: Options,
        clock: Clock,
        tasks: Tasks,
    ) -> Arc<Upstream> {
        Arc::new(Upstream {
            address,
            network,
            options,
            clock,
            idle: (0..tasks.threads()).map(|_| Mutex::default()).collect(),
            tasks,
            breaker: CircuitBreaker::default(),
            shared: Mutex::default(),
        })
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether it is known to accept no connections. While the process ends, no task tries any more.
    pub fn is_unreachable(&self) -> bool {
        self.breaker.is_open() && !self.tasks.closing()
    }

    /// Sends a request and waits for the head of its answer. For `sent_head`, see
    /// [`H1Connection::exchange`].
    pub async fn send(
        self: &Arc<Self>,
        request: Box<Request<ClientBody>>,
        sent_head: Option<Arc<SentHead>>,
    ) -> Result<Response<RayBody>, UpstreamError> {
        // gRPC is HTTP/2 whatever else is spoken there: Serve has applications of both kinds.
        if self.options.protocol == Protocol::Http2 || request.version() == Version::HTTP_2 {
            // The rare ways stand on the heap: whatever awaits them has room for the usual one only.
            Box::pin(self.send_http2(*request)).await
        } else {
            self.send_http1(request, sent_head).await
        }
    }

    async fn send_http1(
        self: &Arc<Self>,
        mut request: Box<Request<ClientBody>>,
        sent_head: Option<Arc<SentHead>>,
    ) -> Result<Response<RayBody>, UpstreamError> {
        frame(&mut request);
        let mut again = false;
        loop {
            let idle = if again { None } else { self.take_idle() };
            let (mut wire, reused) = match idle {
                Some(wire) => (wire, true),
                None => (Box::pin(self.connect()).await?, false),
            };
            let mut error = match wire.exchange(request, reused, sent_head.as_ref()).await {
                Ok(response) => return Ok(self.answer(response, wire)),
                Err(error) => error,
            };
            if !reused {
                return Err(self.broken(error.into_error()));
            }
            request = Box::new(if let Some(unsent) = error.take_message() {
                unsent // Ray had closed this connection before
            } else {
                again = true; // Ray closed it just then
                wire.unanswered().ok_or_else(|| self.broken(error.into_error()))?
            });
        }
    }

    /// Sends a request on a connection of its own, which may be upgraded.
    pub(crate) async fn send_alone(
        self: &Arc<Self>,
        mut request: Request<ClientBody>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        frame(&mut request);
        let (mut sender, connection) = self.connect().await?.into_parts();
        self.tasks.spawn(async move {
            // An error here has been reported to the caller that waited for the answer.
            if let Some(connection) = connection {
                let _ = connection.with_upgrades().await;
            }
        });
        sender.send_request(request).await.map_err(|source| self.broken(source))
    }

    async fn connect(self: &Arc<Self>) -> Result<Box<H1Connection>, UpstreamError> {
        let stream = self.dial(Protocol::Http1).await?;
        let wire =
            H1Connection::open(stream, self.options.answer).await.map_err(|source| self.broken(source))?;
        Ok(Box::new(wire))
    }

    /// A new connection; the circuit breaker learns how it went.
    async fn dial(self: &Arc<Self>, protocol: Protocol) -> Result<Stream, UpstreamError> {
        let unfinished = Unfinished(self);
        let dialled = self.try_dial(protocol).await;
        std::mem::forget(unfinished);
        if dialled.as_ref().is_err_and(UpstreamError::is_absence) && self.breaker.open() {
            // What idles was accepted before, and would only be found out one by one.
            self.idle.iter().for_each(|core| core.lock().clear());
            self.shared().clear();
            self.watch_for_return();
        }
        dialled
    }

    /// Tries to connect until that is accepted.
    fn watch_for_return(self: &Arc<Self>) {
        let upstream = Arc::downgrade(self);
        self.tasks.spawn_until_closed(async move {
            // A configuration that leads elsewhere has no use for the answer.
            while let Some(upstream) = upstream.upgrade() {
                match upstream.try_dial(upstream.options.protocol).await {
                    Err(error) if error.is_absence() => {
                        let _ = upstream.breaker.open();
                    }
                    _ => return upstream.breaker.close(),
                }
                drop(upstream);
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    async fn try_dial(&self, protocol: Protocol) -> Result<Stream, UpstreamError> {
        let bound = self.options.connect_timeout;
        let connecting = async {
            Ok(match &self.address {
                Address::Tcp(address) => Stream::Plain(self.reach(address).await?),
                Address::Tls(address, originator) => {
                    let (connector, name) = originator.connector(protocol);
                    let stream = connector.connect(name, self.reach(address).await?).await?;
                    Stream::Tls(Box::new(stream.into()))
                }
                Address::Unix(path) => Stream::Plain(Plain::Unix(UnixStream::connect(path).await?)),
            })
        };
        tokio::time::timeout(bound, connecting)
            .await
            .map_err(|_| UpstreamError::ConnectTimeout { address: self.address.to_string(), bound })?
            .map_err(|source| UpstreamError::Connect { address: self.address.to_string(), source })
    }

    async fn reach(&self, address: &str) -> io::Result<Plain> {
        if let Some(network) = &self.network {
            return Ok(Plain::Other(network.dial(address).await?));
        }
        // A name that no longer resolves counts as a host that is gone.
        let found =
            lookup_host(address).await.map_err(|source| io::Error::new(io::ErrorKind::NotFound, source))?;
        let stream = TcpStream::connect(&*found.collect::<Vec<_>>()).await?;
        stream.set_nodelay(true)?;
        probe(&stream, PROBE, PROBE);
        Ok(Plain::Tcp(stream))
    }

    async fn send_http2(
        self: &Arc<Self>,
        request: Request<ClientBody>,
    ) -> Result<Response<RayBody>, UpstreamError> {
        let mut request = self.absolute(request);
        let mut attempt = 0;
        loop {
            let Http2 { mut sender, streams, .. } = self.connection().await?;
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| RayBody::Http2(body, streams))),
                Err(mut error) => match error.take_message() {
                    // Never sent: the connection had just been closed.
                    Some(unsent) if attempt < 2 => request = unsent,
                    _ => return Err(self.broken(error.into_error())),
                },
            }
            attempt += 1;
        }
    }

    /// HTTP/2 has the host in the target instead of in a field.
    fn absolute(&self, request: Request<ClientBody>) -> Request<ClientBody> {
        let (mut parts, body) = request.into_parts();
        let host = parts.headers.remove(HOST);
        let host = host
            .as_ref()
            .and_then(|host| host.to_str().ok())
            .filter(|host| !host.is_empty())
            .unwrap_or("localhost");
        let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let scheme = if matches!(self.address, Address::Tls(..)) { "https" } else { "http" };
        // Both parts have been read as parts of a URI before.
        if let Ok(uri) = format!("{scheme}://{host}{target}").parse() {
            parts.uri = uri;
        }
        parts.version = Version::HTTP_2;
        Request::from_parts(parts, body)
    }

    /// The least used connection, or a new one. It counts as a stream for as long as it is held.
    async fn connection(self: &Arc<Self>) -> Result<Http2, UpstreamError> {
        {
            let mut shared = self.shared();
            shared.retain(|connection| !connection.sender.is_closed());
            let full = shared.len() >= CONNECTIONS_MAX;
            let least = shared.iter_mut().min_by_key(|connection| Arc::strong_count(&connection.streams));
            if let Some(least) = least
                && (full || Arc::strong_count(&least.streams) <= STREAMS_PER_CONNECTION)
            {
                least.idle_since = None;
                return Ok(least.clone());
            }
        }
        let stream = self.dial(Protocol::Http2).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(self.options.answer.bytes).unwrap_or(u32::MAX))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| self.broken(source))?;
        // A shutdown finishes the streams that are under way.
        self.tasks.spawn_until_drained(async move {
            // An error here reaches every stream that was on it.
            let _ = connection.await;
        });
        let connection = Http2 { sender, streams: Arc::default(), idle_since: None };
        self.shared().push(connection.clone());
        Ok(connection)
    }

    /// What idles of the connections that this core opened.
    fn idle(&self, core: usize) -> MutexGuard<'_, Vec<Idle>> {
        self.idle[core % self.idle.len()].lock()
    }

    fn shared(&self) -> MutexGuard<'_, Vec<Http2>> {
        self.shared.lock()
    }

    /// The connection used last, which is the least likely to have been closed by Ray.
    fn take_idle(&self) -> Option<Box<H1Connection>> {
        let now = self.clock.now();
        let mut idle = self.idle(cores::current());
        let last = idle.pop()?;
        if now.since(last.since) <= self.options.idle_timeout {
            return Some(last.wire);
        }
        idle.clear(); // the others have idled longer still
        None
    }

    fn keep(&self, wire: Box<H1Connection>) {
        wire.rest();
        let mut idle = self.idle(wire.core());
        if idle.len() < self.options.idle_max {
            idle.push(Idle { wire, since: self.clock.now() });
        }
    }

    /// Closes connections that have idled for too long or that Ray has closed. Nothing else looks at an
    /// idle connection: to be called now and then.
    pub fn sweep(&self) {
        let now = self.clock.now();
        let bound = self.options.idle_timeout;
        for core in &self.idle {
            core.lock().retain_mut(|idle| now.since(idle.since) <= bound && idle.wire.is_alive());
        }
        // Without a sender, and without streams, a connection ends.
        self.shared().retain_mut(|connection| {
            if Arc::strong_count(&connection.streams) > 1 {
                connection.idle_since = None;
                return !connection.sender.is_closed();
            }
            now.since(*connection.idle_since.get_or_insert(now)) <= bound && !connection.sender.is_closed()
        });
    }

    fn answer(self: &Arc<Self>, response: Response<Incoming>, wire: Box<H1Connection>) -> Response<RayBody> {
        response.map(|body| RayBody::Http1(body, Some(Lease { upstream: Arc::clone(self), wire })))
    }

    fn broken(&self, source: hyper::Error) -> UpstreamError {
        if let Some(fault) = client_fault(&source) {
            return UpstreamError::Client(fault);
        }
        let address = self.address.to_string();
        if source.is_parse_too_large() {
            return UpstreamError::AnswerHead(self.options.answer);
        }
        if source.is_parse() {
            return UpstreamError::Unreadable { address, source };
        }
        UpstreamError::Broken { address, source }
    }
}

/// A connection that is neither accepted nor refused yet. If it is dropped then, its verdict stays unknown.
struct Unfinished<'a>(&'a Arc<Upstream>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // Outside a runtime (the very end of the process) no request comes any more.
        if tokio::runtime::Handle::try_current().is_ok() && self.0.breaker.suspect() {
            self.0.watch_for_return();
        }
    }
}

/// What the head says of the body is what the body is. hyper leaves a `Content-Length` without a body
/// behind it as it is, and Ray would take the next request on the connection for that body; and it leaves
/// out the body of a GET whose length is not known unless the head announces it.
fn frame(request: &mut Request<ClientBody>) {
    let length = request.body().size_hint().exact();
    let headers = request.headers_mut();
    if length.is_none() {
        headers.remove(CONTENT_LENGTH);
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if length == Some(0) && headers.get(CONTENT_LENGTH).is_some_and(|announced| announced != "0") {
        headers.remove(CONTENT_LENGTH);
    }
}

/// hyper reports a body that could not be read as an error of its own: whose fault it was
/// stands inside.
fn client_fault(error: &hyper::Error) -> Option<BodyError> {
    let mut inner: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = inner {
        if let Some(fault) = error.downcast_ref::<BodyError>() {
            return Some(fault.clone());
        }
        inner = error.source();
    }
    None
}

/// The timer hyper needs for its header time-outs.
pub fn timer() -> TokioTimer {
    TokioTimer::new()
}
