//! Connections to Ray: kept alive, reused last-in-first-out, bounded.
//!
//! The door decides how many requests are under way; the pool follows. It keeps what has been
//! used lately and drops what has idled longer than Ray keeps its side open. A request that
//! meets a connection Ray has just closed was never sent (hyper hands it back) and is sent
//! again on a new one; a request that may have been seen is never repeated.

use crate::core::request::catalogue::Surface;
use crate::proxy::body::{BodyError, ClientBody, RayBody};
use crate::proxy::headers::is_grpc;
use crate::proxy::stream::Stream;
use crate::runtime::clock::Clock;
use crate::runtime::tasks::Tasks;
use http::header::HOST;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};

/// Where Ray listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// `host:port`, resolved at each connection.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why upstream gave no answer. The sentence says whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody listens, or the network is gone.
    #[error("Ray does not accept connections at {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// What the OS says.
        source: std::io::Error,
    },
    /// No connection within the bound.
    #[error("Ray did not accept a connection at {address} within {bound:?}")]
    ConnectTimeout {
        /// Where.
        address: String,
        /// The bound.
        bound: Duration,
    },
    /// The exchange broke before the answer's head had come.
    #[error("Ray at {address} broke off before it answered: {source}")]
    Broken {
        /// Where.
        address: String,
        /// What hyper says.
        source: hyper::Error,
    },
    /// The client's own body did not come to its end.
    #[error(transparent)]
    Client(BodyError),
}

/// What is spoken with Ray.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// HTTP/1.1: the dashboard, Serve.
    #[default]
    Http1,
    /// HTTP/2 without TLS, known beforehand: gRPC.
    Http2,
}

impl Protocol {
    /// What Ray speaks on the port behind this kind of listener.
    #[must_use]
    pub fn of(surface: Surface) -> Protocol {
        match surface {
            Surface::Dashboard | Surface::Serve => Protocol::Http1,
            Surface::RayClient => Protocol::Http2,
        }
    }
}

/// One upstream and its idle connections.
#[derive(Debug)]
pub struct Upstream {
    address: Address,
    options: Options,
    clock: Clock,
    tasks: Tasks,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Arc<Http2>>>,
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
    /// The most idle connections kept.
    pub idle_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            protocol: Protocol::Http1,
            connect_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(30),
            idle_max: 64,
        }
    }
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<ClientBody>,
    since: crate::core::time::Time,
}

/// A connection that carries many streams.
#[derive(Debug)]
struct Http2 {
    sender: http2::SendRequest<ClientBody>,
    streams: Arc<()>,
}

/// Streams on a connection before another is opened, and connections at most. Streams share
/// their connection's window, so few are kept on each.
const STREAMS_PER_CONNECTION: usize = 16;
const CONNECTIONS_MAX: usize = 16;

/// Windows of a stream and of a connection to Ray, in bytes: one slow reader must not use up
/// what the others on its connection need.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;

/// A connection that carries one exchange. Dropped, it is closed; given back, it is reused.
#[derive(Debug)]
pub struct Lease {
    upstream: Arc<Upstream>,
    sender: SendRequest<ClientBody>,
}

impl Lease {
    /// The exchange is complete: the connection may carry the next.
    pub fn give_back(mut self) {
        if self.sender.is_ready() {
            self.upstream.keep(self.sender);
        } else {
            // The last bytes are not through yet: wait for that beside the request's way.
            let upstream = Arc::clone(&self.upstream);
            let tasks = upstream.tasks.clone();
            tasks.spawn(async move {
                if self.sender.ready().await.is_ok() {
                    upstream.keep(self.sender);
                }
            });
        }
    }
}

impl Upstream {
    /// An upstream without connections yet.
    #[must_use]
    pub fn new(address: Address, options: Options, clock: Clock, tasks: Tasks) -> Arc<Upstream> {
        Arc::new(Upstream {
            address,
            options,
            clock,
            tasks,
            idle: Mutex::default(),
            shared: Mutex::default(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn send(
        self: &Arc<Self>,
        request: Request<ClientBody>,
    ) -> Result<Response<RayBody>, UpstreamError> {
        // gRPC is HTTP/2 whatever else is spoken there: Serve has applications of both kinds.
        if self.options.protocol == Protocol::Http2 || is_grpc(request.headers()) {
            return self.send_http2(request).await;
        }
        let mut request = request;
        while let Some(mut sender) = self.take_idle() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.answer(response, sender)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(self.broken(error.into_error())),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await.map_err(|source| self.broken(source))?;
        Ok(self.answer(response, sender))
    }

    /// Sends a request on a connection of its own, which may be upgraded.
    pub async fn send_alone(
        self: &Arc<Self>,
        request: Request<ClientBody>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let mut sender = self.connect().await?;
        sender.send_request(request).await.map_err(|source| self.broken(source))
    }

    async fn connect(&self) -> Result<SendRequest<ClientBody>, UpstreamError> {
        let stream = self.dial().await?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(256)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| self.broken(source))?;
        self.tasks.spawn(async move {
            // An error here has been reported to whoever was waiting for the answer.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    async fn dial(&self) -> Result<Stream, UpstreamError> {
        let bound = self.options.connect_timeout;
        let connecting = async {
            Ok(match &self.address {
                Address::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Stream::Tcp(stream)
                }
                Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
            })
        };
        tokio::time::timeout(bound, connecting)
            .await
            .map_err(|_| UpstreamError::ConnectTimeout { address: self.address.to_string(), bound })?
            .map_err(|source| UpstreamError::Connect { address: self.address.to_string(), source })
    }

    async fn send_http2(
        self: &Arc<Self>,
        request: Request<ClientBody>,
    ) -> Result<Response<RayBody>, UpstreamError> {
        let mut request = Upstream::absolute(request);
        for attempt in 0.. {
            let connection = self.connection().await?;
            let mut sender = connection.sender.clone();
            match sender.try_send_request(request).await {
                Ok(response) => {
                    return Ok(response.map(|body| RayBody::Http2(body, Arc::clone(&connection.streams))));
                }
                Err(mut error) => match error.take_message() {
                    // Never sent: the connection had just been closed.
                    Some(unsent) if attempt < 2 => request = unsent,
                    _ => {
                        return Err(self.broken(error.into_error()));
                    }
                },
            }
        }
        unreachable!("the loop returns")
    }

    /// HTTP/2 has the host in the target instead of in a field.
    fn absolute(request: Request<ClientBody>) -> Request<ClientBody> {
        let (mut parts, body) = request.into_parts();
        let host = parts.headers.remove(HOST);
        let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        // Both parts have been read as parts of a URI before.
        if let Ok(uri) = format!("http://{host}{target}").parse() {
            parts.uri = uri;
        }
        parts.version = Version::HTTP_2;
        Request::from_parts(parts, body)
    }

    /// The least used connection, or a new one.
    async fn connection(&self) -> Result<Arc<Http2>, UpstreamError> {
        {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.retain(|connection| !connection.sender.is_closed());
            let least = shared.iter().min_by_key(|connection| Arc::strong_count(&connection.streams));
            if let Some(least) = least
                && (Arc::strong_count(&least.streams) <= STREAMS_PER_CONNECTION
                    || shared.len() >= CONNECTIONS_MAX)
            {
                return Ok(Arc::clone(least));
            }
        }
        let stream = self.dial().await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(256 * 1024)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| self.broken(source))?;
        self.tasks.spawn_until_closed(async move {
            // An error here reaches every stream that was on it.
            let _ = connection.await;
        });
        let connection = Arc::new(Http2 { sender, streams: Arc::default() });
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&connection));
        Ok(connection)
    }

    fn take_idle(&self) -> Option<SendRequest<ClientBody>> {
        let now = self.clock.now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(last) = idle.pop() {
            if now.since(last.since) > self.options.idle_timeout {
                idle.clear(); // the others have idled longer still
                return None;
            }
            if last.sender.is_ready() {
                return Some(last.sender);
            }
        }
        None
    }

    fn keep(&self, sender: SendRequest<ClientBody>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.options.idle_max {
            idle.push(Idle { sender, since: self.clock.now() });
        }
    }

    fn answer(
        self: &Arc<Self>,
        response: Response<Incoming>,
        sender: SendRequest<ClientBody>,
    ) -> Response<RayBody> {
        response.map(|body| RayBody::Http1(body, Some(Lease { upstream: Arc::clone(self), sender })))
    }

    fn broken(&self, source: hyper::Error) -> UpstreamError {
        if let Some(fault) = client_fault(&source) {
            return UpstreamError::Client(fault);
        }
        UpstreamError::Broken { address: self.address.to_string(), source }
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
#[must_use]
pub fn timer() -> TokioTimer {
    TokioTimer::new()
}
