//! One HTTP/1.1 connection to Ray, moved on by whoever waits for its answer.
//!
//! hyper's client is two halves: one takes requests, the other does the reading and writing and
//! is usually given a task of its own. For a proxy that costs two wake-ups and two switches of
//! task per request, and buys nothing: whoever asked is waiting anyway. Here the halves stay
//! together, and the connection is polled by the future that waits for the head and by the body
//! that waits for the next bytes. An idle connection is polled by nobody; that Ray has closed it
//! shows when it is taken up again (the request then comes back unsent) or swept.

use crate::proxy::body::ClientBody;
use crate::proxy::stream::Stream;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Waker};

/// The most that is read ahead or kept for writing, in bytes; the head of an answer must fit. A connection
/// keeps room for what it has once needed.
const BUFFER_MAX: usize = 128 << 10;

/// A connection and its two halves.
#[derive(Debug)]
pub struct Wire {
    sender: SendRequest<ClientBody>,
    /// `None` once it has ended: whoever still waits for an answer learns of it when this half is dropped.
    connection: Option<Box<Driven>>,
}

/// The half that reads and writes.
pub type Driven = Connection<TokioIo<Stream>, ClientBody>;

impl Wire {
    /// Speaks HTTP/1.1 on a stream.
    ///
    /// # Errors
    /// What hyper says.
    pub async fn open(stream: Stream) -> hyper::Result<Wire> {
        // An answer may have as many headers as hyper keeps room for on the stack. Most requests are a
        // head and nothing else: one buffer, one plain write.
        let mut builder = http1::Builder::new();
        builder.writev(false).max_buf_size(BUFFER_MAX);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        Ok(Wire { sender, connection: Some(Box::new(connection)) })
    }

    /// The halves, for an exchange that turns into a tunnel.
    pub fn into_parts(self) -> (SendRequest<ClientBody>, Option<Box<Driven>>) {
        (self.sender, self.connection)
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// With the request, if no byte of it was sent.
    pub async fn exchange(
        &mut self,
        request: Request<ClientBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<ClientBody>>> {
        let mut answer = pin!(self.sender.try_send_request(request));
        poll_fn(|context| {
            self.drive(context);
            answer.as_mut().poll(context)
        })
        .await
    }

    /// Reads and writes what can be; `context` is woken when more can.
    pub fn drive(&mut self, context: &mut Context<'_>) {
        // An error reaches whoever reads the answer.
        if let Some(connection) = &mut self.connection
            && Pin::new(&mut **connection).poll(context).is_ready()
        {
            self.connection = None;
        }
    }

    /// Whether it can carry a request at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Whether it can still carry one, as far as this side has heard.
    pub fn is_alive(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.is_ready()
    }
}
