//! The client's side of a load: one operation, with its attempts, its patience and its line.
//!
//! Time is counted from the moment an operation was due, not from the moment a line was
//! free for it, so a generator that falls behind reports a longer wait instead of hiding it
//! (coordinated omission). A client that gives up closes its line, as Ray's do.

use super::plan::{Connection, Shape, Stream};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The source ports in use, when the source address is chosen.
const PORT_FIRST: u16 = 10_000;
const PORTS: u32 = 50_000;
/// How many ports are tried before a connection counts as broken.
const PORT_TRIES: u32 = 64;

/// What became of an operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fate {
    /// The last attempt's status.
    Status(u16),
    /// The last attempt was not answered in time.
    Timeout,
    /// The last attempt's line could not be made, or broke.
    Broken,
    /// Never sent: too much was under way already.
    Unsent,
}

/// Sends a stream's operations.
pub(crate) struct Client {
    stream: Stream,
    target: SocketAddr,
    authority: String,
    /// Idle lines, by source address.
    idle: Vec<Mutex<Vec<OpenConnection>>>,
    /// Source ports are taken in turn, so that the longest unused comes next.
    next_port: AtomicU32,
}

type Http1 = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// A connection, moved along by the request that uses it: nothing runs behind an idle one.
struct OpenConnection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once it has ended under a request that it will not answer.
    connection: Option<Http1>,
    /// The connection's future has ended and must not be polled again.
    finished: bool,
    /// It has carried an exchange before.
    used: bool,
}

/// What an attempt, or the operation's last attempt, brought.
pub(crate) struct OperationOutcome {
    /// How it ended.
    pub(crate) fate: Fate,
    /// Attempts made so far.
    pub(crate) attempts: u32,
    /// Bytes of the answer's body.
    pub(crate) bytes: u64,
    /// A line that is to be held open now that it has been answered.
    pub(crate) held: Option<Held>,
    retry_after: Option<Duration>,
}

/// A tail or a stream: answered, and still open.
pub(crate) struct Held {
    line: OpenConnection,
    body: Incoming,
    websocket: bool,
    length: Duration,
}

impl Client {
    /// A client of `target`, named `authority` in the Host header.
    pub(crate) fn new(stream: Stream, target: SocketAddr, authority: String) -> Client {
        let idle = (0..stream.addresses).map(|_| Mutex::new(Vec::new())).collect();
        // Streams at one address begin at different ports.
        let begin =
            stream.name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        Client { stream, target, authority, idle, next_port: AtomicU32::new(begin % PORTS) }
    }

    /// Carries out operation number `n` with the request at `shape`, due at `due`: the first
    /// attempt, and the further ones the stream's retries allow.
    pub(crate) async fn operate(&self, n: u64, shape: usize, due: Instant) -> OperationOutcome {
        let patience = Duration::from_secs_f64(self.stream.timeout_s);
        let retry = self.stream.retry;
        let mut pause = Duration::from_secs_f64(retry.delay_s.max(0.0));
        let mut deadline = due + patience;
        let mut attempts = 1;
        loop {
            let made = timeout_at(deadline, self.attempt(n, &self.stream.requests[shape])).await;
            let made =
                OperationOutcome { attempts, ..made.unwrap_or(OperationOutcome::ended(Fate::Timeout)) };
            if made.fate.is_success() || attempts > retry.max {
                return made;
            }
            sleep(made.retry_after.filter(|_| retry.honour_retry_after).unwrap_or(pause)).await;
            pause = pause.mul_f64(retry.backoff.max(1.0)).min(PAUSE_MAX);
            deadline = Instant::now() + patience;
            attempts += 1;
        }
    }

    async fn attempt(&self, n: u64, shape: &Shape) -> OperationOutcome {
        let address = usize::try_from(n % u64::from(self.stream.addresses.max(1))).unwrap_or(0);
        let Ok(request) = self.request(n, shape) else { return OperationOutcome::ended(Fate::Broken) };
        let mut kept = self.idle_at(address).pop();
        loop {
            let line = match kept.take() {
                Some(line) => Ok(line),
                None => self.connect(address).await,
            };
            let Ok(mut line) = line else { return OperationOutcome::ended(Fate::Broken) };
            match line.ask(request.clone()).await {
                Ok(answer) => return self.read(line, answer, address, shape).await,
                // The other side may have closed a kept line meanwhile: a new one is due.
                Err(_) if line.used => {}
                Err(_) => return OperationOutcome::ended(Fate::Broken),
            }
        }
    }

    fn request(&self, n: u64, shape: &Shape) -> Result<Request<Full<Bytes>>, http::Error> {
        let number = n.to_string();
        let mut request = Request::builder()
            .method(shape.method.as_str())
            .uri(shape.path.replace("{n}", &number))
            .header(http::header::HOST, &self.authority)
            .header(http::header::ACCEPT, "*/*");
        // Up to 2.44 Ray answers 500 to a request without one.
        if !self.stream.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
            request =
                request.header(http::header::USER_AGENT, concat!("rayguard/", env!("CARGO_PKG_VERSION")));
        }
        for (name, value) in &self.stream.headers {
            request = request.header(name, value.replace("{n}", &number));
        }
        if self.stream.tokens > 0 {
            let token = n % u64::from(self.stream.tokens);
            let value = format!("Bearer {}{token}", self.stream.token_prefix);
            request = request.header(http::header::AUTHORIZATION, value);
        }
        if shape.websocket {
            request = request
                .header(http::header::CONNECTION, "Upgrade")
                .header(http::header::UPGRADE, "websocket")
                .header(http::header::SEC_WEBSOCKET_VERSION, "13")
                .header(http::header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==");
        }
        let body = if shape.body_bytes > 0 {
            Bytes::from(vec![b'x'; shape.body_bytes])
        } else {
            Bytes::from(shape.body.replace("{n}", &number))
        };
        request.body(Full::new(body))
    }

    async fn connect(&self, address: usize) -> io::Result<OpenConnection> {
        let stream = self.dial(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        Ok(OpenConnection { sender, connection: Some(connection), finished: false, used: false })
    }

    /// Connects from the source address in turn. The port is chosen here: left to the system, each
    /// `bind` searches all ports, which takes ever longer as finished connections linger.
    async fn dial(&self, address: usize) -> io::Result<TcpStream> {
        let Some(first) = self.stream.first_address else {
            return TcpSocket::new_v4()?.connect(self.target).await;
        };
        let offset = u32::try_from(address).unwrap_or(0);
        let source = IpAddr::V4(Ipv4Addr::from_bits(first.to_bits().wrapping_add(offset)));
        let mut refused = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..PORT_TRIES {
            let turn = self.next_port.fetch_add(1, Ordering::Relaxed);
            let port = PORT_FIRST + u16::try_from(turn % PORTS).unwrap_or(0);
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            let made = match socket.bind(SocketAddr::new(source, port)) {
                Ok(()) => socket.connect(self.target).await,
                Err(taken) => Err(taken),
            };
            match made {
                Ok(stream) => return Ok(stream),
                Err(taken)
                    if matches!(taken.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) =>
                {
                    refused = taken;
                }
                Err(other) => return Err(other),
            }
        }
        Err(refused)
    }

    async fn read(
        &self,
        mut line: OpenConnection,
        answer: Response<Incoming>,
        address: usize,
        shape: &Shape,
    ) -> OperationOutcome {
        let status = answer.status();
        let retry_after = seconds(answer.headers().get(http::header::RETRY_AFTER));
        let mut outcome =
            OperationOutcome { retry_after, ..OperationOutcome::ended(Fate::Status(status.as_u16())) };
        let mut body = answer.into_body();
        let websocket = status == StatusCode::SWITCHING_PROTOCOLS;
        if websocket || (shape.hold_s > 0.0 && status.is_success()) {
            let length = Duration::from_secs_f64(shape.hold_s.max(0.0));
            outcome.held = Some(Held { line, body, websocket, length });
            return outcome;
        }
        while let Some(frame) = line.drive(body.frame()).await {
            match frame {
                Ok(frame) => outcome.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
                Err(_) => return OperationOutcome::ended(Fate::Broken),
            }
        }
        drop(body);
        if self.stream.connection == Connection::Keep && !line.finished {
            line.used = true;
            self.idle_at(address).push(line);
        }
        outcome
    }

    fn idle_at(&self, address: usize) -> MutexGuard<'_, Vec<OpenConnection>> {
        self.idle[address].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnection {
    /// Sends a request once the line is ready for it, and waits for the answer's head.
    async fn ask(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let OpenConnection { sender, connection, finished, .. } = self;
        drive(connection, finished, sender.ready()).await?;
        drive(connection, finished, sender.send_request(request)).await
    }

    async fn drive<T>(&mut self, future: impl Future<Output = T>) -> T {
        drive(&mut self.connection, &mut self.finished, future).await
    }
}

/// Waits for `future` and moves the connection's bytes meanwhile.
async fn drive<T>(connection: &mut Option<Http1>, finished: &mut bool, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Poll::Ready(value) = future.as_mut().poll(context) {
            return Poll::Ready(value);
        }
        if let Some(moving) = connection.as_mut().filter(|_| !*finished)
            && moving.poll_without_shutdown(context).is_ready()
        {
            *finished = true;
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(value);
            }
            // A request that still waits on it learns of its end when it is dropped.
            *connection = None;
            return future.as_mut().poll(context);
        }
        Poll::Pending
    })
    .await
}

impl Held {
    /// Keeps the line open for its time, reading whatever comes; ends earlier when the other
    /// side closes. Answers with the bytes read and whether the other side closed it.
    pub(crate) async fn hold(self) -> (u64, bool) {
        let Held { mut line, mut body, websocket, length } = self;
        let mut bytes = 0;
        let reading = async {
            if websocket {
                drop(body);
                let Some(connection) = line.connection.take() else { return };
                let mut wire = connection.into_parts().io.into_inner();
                let mut chunk = [0; 4096];
                while let Ok(read @ 1..) = wire.read(&mut chunk).await {
                    bytes += read as u64;
                }
            } else {
                while let Some(Ok(frame)) = line.drive(body.frame()).await {
                    bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
            }
        };
        let closed = timeout(length, reading).await.is_ok();
        (bytes, closed)
    }
}

impl OperationOutcome {
    fn ended(fate: Fate) -> OperationOutcome {
        OperationOutcome { fate, attempts: 1, bytes: 0, held: None, retry_after: None }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fate::Status(status) => write!(f, "{status}"),
            Fate::Timeout => f.write_str("timeout"),
            Fate::Broken => f.write_str("broken"),
            Fate::Unsent => f.write_str("unsent"),
        }
    }
}

impl Fate {
    /// A 2xx, or a WebSocket that was accepted.
    pub(crate) fn is_success(self) -> bool {
        matches!(self, Fate::Status(101 | 200..=299))
    }

    /// Refused by a limit: 429 or 503.
    pub(crate) fn is_shed(self) -> bool {
        matches!(self, Fate::Status(429 | 503))
    }
}

fn seconds(value: Option<&HeaderValue>) -> Option<Duration> {
    value?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}
