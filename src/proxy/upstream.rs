//! Connections to Ray: kept alive, reused last-in-first-out, bounded.
//!
//! The door decides how many requests are under way; the pool follows. It keeps what has been
//! used lately and drops what has idled longer than Ray keeps its side open. A request that
//! meets a connection Ray has just closed was never sent (hyper hands it back) and is sent
//! again on a new one; a request that may have been seen is never repeated.

use crate::runtime::clock::Clock;
use crate::runtime::tasks::Tasks;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
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

/// What the door sends to Ray.
#[derive(Debug)]
pub enum Outgoing {
    /// The client's body as it comes.
    Client(Incoming),
    /// None.
    Empty,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;
    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Outgoing::Client(body) => Pin::new(body).poll_frame(context),
            Outgoing::Empty => Poll::Ready(None),
        }
    }
    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Client(body) => body.is_end_stream(),
            Outgoing::Empty => true,
        }
    }
    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Client(body) => body.size_hint(),
            Outgoing::Empty => SizeHint::with_exact(0),
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
}

/// One upstream and its idle connections.
#[derive(Debug)]
pub struct Upstream {
    address: Address,
    options: Options,
    clock: Clock,
    tasks: Tasks,
    idle: Mutex<Vec<Idle>>,
}

/// Bounds of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
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
            connect_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(30),
            idle_max: 64,
        }
    }
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Outgoing>,
    since: crate::core::time::Time,
}

/// A connection that carries one exchange. Dropped, it is closed; given back, it is reused.
#[derive(Debug)]
pub struct Lease {
    upstream: Arc<Upstream>,
    sender: SendRequest<Outgoing>,
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
        Arc::new(Upstream { address, options, clock, tasks, idle: Mutex::default() })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn send(
        self: &Arc<Self>,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Lease), UpstreamError> {
        let mut request = request;
        while let Some(mut sender) = self.take_idle() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, self.lease(sender))),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(self.broken(error.into_error())),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await.map_err(|source| self.broken(source))?;
        Ok((response, self.lease(sender)))
    }

    /// Sends a request on a connection of its own, which may be upgraded.
    pub async fn send_alone(
        self: &Arc<Self>,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let mut sender = self.connect().await?;
        sender.send_request(request).await.map_err(|source| self.broken(source))
    }

    async fn connect(self: &Arc<Self>) -> Result<SendRequest<Outgoing>, UpstreamError> {
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
        let stream = tokio::time::timeout(bound, connecting)
            .await
            .map_err(|_| UpstreamError::ConnectTimeout { address: self.address.to_string(), bound })?
            .map_err(|source| UpstreamError::Connect { address: self.address.to_string(), source })?;
        match stream {
            Stream::Tcp(stream) => self.handshake(stream).await,
            Stream::Unix(stream) => self.handshake(stream).await,
        }
    }

    async fn handshake<S>(&self, stream: S) -> Result<SendRequest<Outgoing>, UpstreamError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
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

    fn take_idle(&self) -> Option<SendRequest<Outgoing>> {
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

    fn keep(&self, sender: SendRequest<Outgoing>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.options.idle_max {
            idle.push(Idle { sender, since: self.clock.now() });
        }
    }

    fn lease(self: &Arc<Self>, sender: SendRequest<Outgoing>) -> Lease {
        Lease { upstream: Arc::clone(self), sender }
    }

    fn broken(&self, source: hyper::Error) -> UpstreamError {
        UpstreamError::Broken { address: self.address.to_string(), source }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The timer hyper needs for its header time-outs.
#[must_use]
pub fn timer() -> TokioTimer {
    TokioTimer::new()
}
