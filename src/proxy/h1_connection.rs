//! One HTTP/1.1 connection to Ray, moved on by the task that waits for its answer.
//!
//! hyper's client is two halves: one takes requests, the other does the reading and writing and
//! is usually given a task of its own. For a proxy that costs two wake-ups and two switches of
//! task per request, and buys nothing: the caller waits anyway. Here the halves stay
//! together, and the connection is polled by the future that waits for the head and by the body
//! that waits for the next bytes. Nothing polls an idle connection; that Ray has closed it
//! shows when it is taken up again (the request then comes back unsent) or swept.
//!
//! hyper's halves wake each other, and a pooled connection remembers the task that polled it last: left to
//! itself it would wake its own caller for what the caller has just been told, and, when it is taken up
//! again, the caller before. So a connection wakes the task that drives it now (`Driver`) and no task while it
//! idles, and what only it can bring about is looked for right after it was polled. And each time it is
//! polled hyper reads several times, for the next head, for the end; so a socket that had nothing is not
//! asked again (`FrugalStream`).
//!
//! Upstream may close an idle connection just as a request is sent on it. hyper has used the request
//! up by then, so one that may be sent again is kept until its answer begins (`Kept`).

use crate::client_body::ClientBody;
use crate::cores;
use crate::stream::Stream;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rayguard_config::settings;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use tokio::task::coop::unconstrained;

/// How long the head of an answer may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnswerBounds {
    /// Its headers.
    pub headers: usize,
    /// All of it, in bytes; so much is read ahead or kept for writing at most. A connection keeps room for
    /// what it has once needed.
    pub bytes: usize,
}

/// As many headers as hyper parses in place; told another number, it takes its room from the heap for each answer.
const HEADERS_ON_STACK: usize = 100;

impl From<&settings::Http> for AnswerBounds {
    fn from(http: &settings::Http) -> AnswerBounds {
        AnswerBounds { headers: http.answer_headers_max, bytes: http.answer_header_bytes_max }
    }
}

impl Default for AnswerBounds {
    fn default() -> AnswerBounds {
        AnswerBounds::from(&settings::Http::default())
    }
}

/// A connection and its two halves.
#[derive(Debug)]
pub struct H1Connection {
    sender: SendRequest<ClientBody>,
    /// `None` once it has ended: a caller that still waits learns of it when this half is dropped.
    connection: Option<Box<Driven>>,
    driver: Arc<Driver>,
    /// Wakes the task that drives it now.
    waker: Waker,
    kept: Kept,
    /// It has ended, and no byte came since the last whole answer.
    silent: bool,
    /// The core whose runtime looks after its stream.
    core: usize,
}

/// A GET or HEAD without a body, for as long as it may have to be sent again: one of its own, or one that
/// it repeats.
#[derive(Debug, Default)]
struct Kept {
    own: Head,
    repeated: Option<Arc<SentHead>>,
}

/// The head of the requests to Ray that a client's connection repeats to the byte, once one was sent.
#[derive(Debug, Default)]
pub struct SentHead(OnceLock<Head>);

/// The head of a request. Its room is kept from one request to the next, so that keeping one takes no
/// memory from the heap.
#[derive(Debug, Default)]
struct Head {
    line: Option<(Method, Uri)>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Kept {
    fn keep(&mut self, request: &Request<ClientBody>, sent_head: Option<&Arc<SentHead>>) {
        match sent_head {
            None => self.own.copy(request),
            Some(sent_head) => {
                sent_head.0.get_or_init(|| {
                    let mut head = Head::default();
                    head.copy(request);
                    head
                });
                self.repeated = Some(Arc::clone(sent_head));
            }
        }
    }

    /// Its headers stand in the buffer of the client's connection, which has its own use for it.
    fn forget(&mut self) {
        self.repeated = None;
        self.own.line = None;
        self.own.headers.clear();
    }

    fn take(&mut self) -> Option<Request<ClientBody>> {
        let repeated = self.repeated.take();
        let request =
            repeated.as_ref().and_then(|sent_head| sent_head.0.get()).unwrap_or(&self.own).request();
        self.forget();
        request
    }
}

impl Head {
    fn copy(&mut self, request: &Request<ClientBody>) {
        self.line = Some((request.method().clone(), request.uri().clone()));
        self.headers.extend(request.headers().iter().map(|(name, value)| (name.clone(), value.clone())));
    }

    fn request(&self) -> Option<Request<ClientBody>> {
        let mut request = Request::new(ClientBody::Empty);
        (*request.method_mut(), *request.uri_mut()) = self.line.clone()?;
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        Some(request)
    }
}

/// Whether a request may be sent twice (RFC 9110, 9.2.2), and can be: a body passes only once.
fn may_repeat(request: &Request<ClientBody>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && matches!(request.body(), ClientBody::Empty)
}

/// The half that reads and writes.
pub type Driven = Connection<FrugalStream, ClientBody>;

/// The stream to Ray, as hyper reads and writes it.
#[derive(Debug)]
pub struct FrugalStream {
    stream: TokioIo<Stream>,
    driver: Arc<Driver>,
}

impl hyper::rt::Read for FrugalStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.driver.found_nothing.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() {
            self.driver.found_nothing.store(self.driver.drives.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        read
    }
}

impl hyper::rt::Write for FrugalStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The task that drives a connection and is woken when the connection can move on.
#[derive(Debug)]
struct Driver {
    waker: Mutex<Option<Waker>>,
    /// Since it is driven this time the stream had nothing, and wakes the driver when it has.
    found_nothing: AtomicBool,
    /// It is driven here, and not polled by a task of its own.
    drives: AtomicBool,
}

impl Default for Driver {
    fn default() -> Driver {
        Driver {
            waker: Mutex::default(),
            found_nothing: AtomicBool::new(false),
            drives: AtomicBool::new(true),
        }
    }
}

impl Driver {
    fn is(&self, waker: &Waker) {
        self.found_nothing.store(false, Ordering::Relaxed);
        let mut driver = self.waker.lock();
        if driver.as_ref().is_none_or(|driver| !driver.will_wake(waker)) {
            *driver = Some(waker.clone());
        }
    }

    fn leaves(&self) {
        *self.waker.lock() = None;
    }
}

impl Wake for Driver {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let driver = self.waker.lock().clone();
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl H1Connection {
    /// Speaks HTTP/1.1 on a stream.
    pub async fn open(stream: Stream, bounds: AnswerBounds) -> hyper::Result<H1Connection> {
        // Most requests are a head and nothing else: one buffer, one plain write.
        let mut builder = http1::Builder::new();
        builder.writev(false).max_buf_size(bounds.bytes);
        if bounds.headers != HEADERS_ON_STACK {
            builder.max_headers(bounds.headers);
        }
        let driver = Arc::<Driver>::default();
        let stream = FrugalStream { stream: TokioIo::new(stream), driver: Arc::clone(&driver) };
        let (sender, connection) = builder.handshake(stream).await?;
        let waker = Waker::from(Arc::clone(&driver));
        let kept = Kept::default();
        Ok(H1Connection {
            sender,
            connection: Some(Box::new(connection)),
            driver,
            waker,
            kept,
            silent: false,
            core: cores::current(),
        })
    }

    /// The halves, for an exchange that turns into a tunnel.
    pub fn into_parts(self) -> (SendRequest<ClientBody>, Option<Box<Driven>>) {
        self.driver.drives.store(false, Ordering::Relaxed);
        (self.sender, self.connection)
    }

    /// Sends a request and waits for the head of its answer. With `keep`, see `unanswered`; a
    /// request that repeats another of its client need not be copied for that, if both have the same `sent_head`.
    ///
    /// # Errors
    /// With the request, if no byte of it was sent.
    pub async fn exchange(
        &mut self,
        request: Box<Request<ClientBody>>,
        keep: bool,
        sent_head: Option<&Arc<SentHead>>,
    ) -> Result<Response<Incoming>, Box<TrySendError<Request<ClientBody>>>> {
        let keeps = keep && may_repeat(&request);
        if keeps {
            self.kept.keep(&request, sent_head);
        }
        // Without a budget of tokio's: an answer that is there is taken at once, and one that is not
        // has no need to wake anybody.
        let mut answer = pin!(unconstrained(self.sender.try_send_request(*request)));
        let answer = poll_fn(|context| {
            self.drive(context);
            // A failure stands on the heap: it has room for a request, and an answer is moved from hand to hand.
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop())).map_err(Box::new)
        })
        .await;
        if keeps && answer.is_ok() {
            self.kept.forget();
        }
        answer
    }

    /// The last request, if it was kept, may be sent twice, and the connection ended without a byte
    /// of an answer to it.
    pub(crate) fn unanswered(&mut self) -> Option<Request<ClientBody>> {
        self.kept.take().filter(|_| self.silent)
    }

    /// Reads and writes what can be; `context` is woken when more can.
    pub fn drive(&mut self, context: &mut Context<'_>) {
        self.driver.is(context.waker());
        // An error reaches the reader of the answer.
        if let Some(connection) = &mut self.connection
            && Pin::new(&mut **connection).poll(&mut Context::from_waker(&self.waker)).is_ready()
            && let Some(connection) = self.connection.take()
        {
            self.silent = connection.into_parts().read_buf.is_empty();
        }
    }

    /// The core that opened it.
    pub fn core(&self) -> usize {
        self.core
    }

    /// Until it is driven again it wakes no task.
    pub fn rest(&self) {
        self.driver.leaves();
    }

    /// Whether it can carry a request at once.
    pub fn is_ready(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Whether it can still carry one, as far as this side has heard.
    pub fn is_alive(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.is_ready()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Plain;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_connection_wakes_the_task_that_drives_it_now_and_none_while_it_rests() {
        let (ours, mut rays) = tokio::io::duplex(1024);
        let mut wire =
            H1Connection::open(Stream::Plain(Plain::Other(Box::new(ours))), AnswerBounds::default())
                .await
                .unwrap();
        let bells = [Arc::<Bell>::default(), Arc::<Bell>::default()];
        let rung = || bells.each_ref().map(|bell| bell.0.load(Ordering::Relaxed));
        let wakers = bells.each_ref().map(|bell| Waker::from(Arc::clone(bell)));
        for (caller, waker) in wakers.iter().enumerate() {
            let request = Request::get("/").header("host", "ray").body(ClientBody::Empty).unwrap();
            {
                let mut exchange = pin!(wire.exchange(Box::new(request), false, None));
                let mut context = Context::from_waker(waker);
                assert!(exchange.as_mut().poll(&mut context).is_pending());
                assert_eq!(rung()[caller], 0, "nothing has come yet");
                assert!(rays.read(&mut [0; 1024]).await.unwrap() > 0);
                rays.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                assert_eq!(rung()[caller], 1, "the answer has come");
                assert!(exchange.as_mut().poll(&mut context).is_ready());
            }
            wire.rest();
            assert!(wire.is_ready());
            assert_eq!(rung()[caller], 1, "its caller knows already");
            assert_eq!(rung()[0], 1, "the caller before is not woken");
        }
        drop(rays);
        assert_eq!(rung(), [1, 1], "an idle connection wakes no task");
        assert!(!wire.is_alive(), "a look shows that it was closed");
    }

    #[tokio::test]
    async fn a_request_that_repeats_another_is_sent_again_whole() {
        let (ours, mut rays) = tokio::io::duplex(1024);
        let mut wire =
            H1Connection::open(Stream::Plain(Plain::Other(Box::new(ours))), AnswerBounds::default())
                .await
                .unwrap();
        let sent_head = Arc::<SentHead>::default();
        let request = || Request::get("/jobs?a=1").header("host", "ray").header("x-one", "1");
        let exchange =
            wire.exchange(Box::new(request().body(ClientBody::Empty).unwrap()), true, Some(&sent_head));
        let answer = async {
            assert!(rays.read(&mut [0; 1024]).await.unwrap() > 0);
            rays.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        };
        assert!(tokio::join!(exchange, answer).0.is_ok());
        assert!(wire.unanswered().is_none(), "it was answered");
        let exchange =
            wire.exchange(Box::new(request().body(ClientBody::Empty).unwrap()), true, Some(&sent_head));
        let leave = async {
            assert!(rays.read(&mut [0; 1024]).await.unwrap() > 0);
            drop(rays);
        };
        assert!(tokio::join!(exchange, leave).0.is_err());
        let (again, first) = (wire.unanswered().unwrap(), request().body(ClientBody::Empty).unwrap());
        assert_eq!(
            (again.method(), again.uri(), again.headers()),
            (first.method(), first.uri(), first.headers())
        );
        assert!(wire.unanswered().is_none(), "once");
    }
}
