//! A framing guard before the HTTP/1 parser: it sees the bytes of each head before hyper does, and
//! lets through only heads that can be read in one way.
//!
//! hyper takes a bare line feed for a line end, drops a `Content-Length` beside a
//! `Transfer-Encoding`, and merges equal lengths. Each is harmless to us, but a proxy
//! before us may read the same bytes differently: request smuggling lives on that. The framing guard does
//! not parse; it looks for line ends and for the names of the framing fields, and counts the
//! bytes of a body of known length so as to find the next head. After a chunked body or a
//! switch of protocols it looks no further, and `listen` ends the connection with that request.
//!
//! It has two more errands. A few characters that Ray reads in a target hyper does not (`"`, `<`, `>`
//! and `` ` ``): they are escaped, which means the same. And where hyper refuses a head, in an answer
//! without a word, the framing guard says why in its place.
//!
//! A client that keeps its connection asks for the same again and again, in the same bytes: a head that is
//! equal to the last one passes as that one did, without a second look.
//!
//! A refusal is a sentence. So that the client can read it, its remaining bytes are read and
//! thrown away for a while before the connection is closed, as they are whenever the proxy
//! closes on a client that is still sending.

use crate::cors::Origins;
use crate::headers::REQUEST_ID;
use crate::keepalive::{KeepAlive, Patience, Silence};
use crate::request_validation::{HeadBounds, Malformed};
use crate::stream::Stream;
use bytes::{Buf, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use rayguard_core::time::Time;
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A stream behind a framing guard.
#[derive(Debug)]
pub(crate) struct FramingGuard {
    /// `None` once its connection sleeps.
    stream: Option<Stream>,
    /// Read, and not yet let through.
    held: BytesMut,
    state: State,
    bounds: HeadBounds,
    /// Whose pages may read a refusal, on Serve.
    origins: Option<Origins>,
    /// How long the client may be silent, and who is told of its heads.
    patience: Option<(Patience, KeepAlive)>,
    linger: Option<Pin<Box<Sleep>>>,
    /// The last head that passed, if it came in one piece, with all of its body or none to come.
    last: Vec<u8>,
    /// Something is written that the client does not take yet.
    blocked: bool,
    /// The reader found nothing, and is woken for what comes.
    awaited: bool,
}

#[derive(Debug)]
enum State {
    /// A head comes next; so much of what is held has been looked at.
    Head(usize),
    /// So many bytes of what is held may pass, then so many of the body.
    Passing(usize, Body),
    /// So many bytes of a body are left.
    Body(u64),
    /// Everything may pass.
    Open,
    /// Refused: this is to be written, so much of it is.
    Refused(String, usize),
    /// Nothing has come since then: what reads here is told that this is the end.
    Asleep(Time),
}

/// What follows a head.
#[derive(Clone, Copy, Debug)]
enum Body {
    Length(u64),
    Unknown,
}

/// A longer head is not kept to be compared with the next.
const LAST_MAX: usize = 4096;

/// For how long a client may go on sending to a proxy that has closed.
const LINGER: Duration = Duration::from_secs(10);

impl FramingGuard {
    /// A framing guard before HTTP/1; `start` has been read already.
    #[must_use]
    pub(crate) fn new(
        stream: Stream,
        start: BytesMut,
        bounds: HeadBounds,
        origins: Option<Origins>,
        patience: Patience,
        keep_alive: KeepAlive,
    ) -> FramingGuard {
        FramingGuard {
            bounds,
            origins,
            state: State::Head(0),
            patience: Some((patience, keep_alive)),
            ..FramingGuard::open(stream, start)
        }
    }

    /// No framing guard: only what has been read already comes first.
    #[must_use]
    pub(crate) fn open(stream: Stream, start: BytesMut) -> FramingGuard {
        FramingGuard {
            stream: Some(stream),
            held: start,
            state: State::Open,
            bounds: HeadBounds { target: 0, bytes: 0, headers: 0 },
            origins: None,
            patience: None,
            linger: None,
            last: Vec::new(),
            blocked: false,
            awaited: false,
        }
    }

    /// Hands over what is held, at most `max` bytes, or reads that much.
    fn poll_pass(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        max: u64,
    ) -> Poll<io::Result<usize>> {
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(buffer.remaining());
        if !self.held.is_empty() {
            let length = self.held.len().min(max);
            buffer.put_slice(&self.held[..length]);
            self.held.advance(length);
            return Poll::Ready(Ok(length));
        }
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(max));
        ready!(there(&mut self.stream)?.poll_read(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        Poll::Ready(Ok(read))
    }

    /// Reads more into what is held; 0 is the end.
    fn poll_hold(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.held.reserve(4096);
        pin!(there(&mut self.stream)?.read_buf(&mut self.held)).poll(context)
    }

    /// Reads when nothing is held. A head that comes in one piece, and no more than its body with it, passes
    /// at once; anything else is held.
    fn poll_head(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(there(&mut self.stream)?.poll_read(context, buffer))?;
        let come = &buffer.filled()[before..];
        if !come.is_empty() && self.last == come {
            self.state = State::Body(0);
            self.pass_head(true);
        } else if let Some(next) = after_whole_head(come, self.bounds) {
            self.last.clear();
            if matches!(next, State::Body(0)) && come.len() <= LAST_MAX {
                self.last.extend_from_slice(come);
            }
            self.state = next;
            self.pass_head(false);
        } else {
            self.held.extend_from_slice(come); // nothing at all, at the end
            buffer.set_filled(before);
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing more of a head has come.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some((patience, _)) = &mut self.patience else { return Poll::Pending };
        match ready!(patience.poll(!self.blocked, context)) {
            Silence::Doze(since) => {
                self.state = State::Asleep(since);
                Poll::Ready(Ok(()))
            }
            Silence::TooLong => {
                self.stream = None;
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// While hyper does not read, it would not learn that the client leaves: that is found out here. What the
    /// client sends ahead of its next turn is held; after a body whose end is not known, one byte of it, which is
    /// more than a client sends.
    fn look_ahead(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let held_max = match self.state {
            _ if self.awaited || self.patience.is_none() => return Ok(()),
            State::Head(_) | State::Body(0) => self.bounds.bytes,
            State::Open => 1,
            State::Passing(..) | State::Body(_) | State::Refused(..) | State::Asleep(_) => return Ok(()),
        };
        let mut room = [MaybeUninit::uninit(); 512];
        while self.held.len() < held_max {
            let mut ahead = ReadBuf::uninit(&mut room[..held_max.min(512)]);
            if there(&mut self.stream)?.poll_read(context, &mut ahead)?.is_pending() {
                break;
            }
            if ahead.filled().is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.held.extend_from_slice(ahead.filled());
        }
        Ok(())
    }

    /// A head goes to hyper, which hands it on or refuses it; `repeats` the one before it to the byte.
    fn pass_head(&mut self, repeats: bool) {
        if let Some((patience, keep_alive)) = &mut self.patience {
            patience.head_is_whole();
            keep_alive.head_has_passed(repeats);
        }
    }

    /// What hyper refuses a head for, if this is its answer to one: three lines and no body, and without
    /// the id that every answer to a request has.
    fn refused_by_hyper(&self, answer: &[u8]) -> Option<Malformed> {
        let status = answer.strip_prefix(b"HTTP/1.1 4")?.get(..2)?;
        let is_bare = answer.ends_with(b"\r\n\r\n")
            && answer.len() < 200
            && memchr::memmem::find(answer, b"content-length: 0\r\n").is_some()
            && memchr::memmem::find(answer, REQUEST_ID.as_str().as_bytes()).is_none();
        if !is_bare || !self.patience.as_ref()?.1.head_is_unanswered() {
            return None;
        }
        Some(match status {
            b"14" => Malformed::TargetTooLong(self.bounds.target),
            b"31" => Malformed::TooManyHeaders(self.bounds.headers),
            _ => Malformed::Unreadable,
        })
    }

    /// Writes what is left of a refusal.
    fn poll_say(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let State::Refused(answer, written) = &mut self.state
            && *written < answer.len()
        {
            let stream = there(&mut self.stream)?;
            *written += ready!(stream.poll_write(context, &answer.as_bytes()[*written..]))?;
        }
        Poll::Ready(Ok(()))
    }

    fn refuse(&mut self, problem: Malformed) {
        let status = problem.status();
        let body = format!("rayguard: {problem}. The request was not sent to Ray.\n");
        let answer = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
             x-rayguard-reason: {}\r\n{}connection: close\r\n\r\n{body}",
            status.as_str(),
            status.canonical_reason().unwrap_or(""),
            body.len(),
            problem.label(),
            self.permission(),
        );
        self.held.clear();
        self.state = State::Refused(answer, 0);
    }

    /// The header lines that let a page read a refusal of a head that was not parsed: its origin is looked for
    /// in what has come.
    fn permission(&self) -> String {
        let Some(origins) = &self.origins else { return String::new() };
        let value = |line: &[u8]| {
            let colon = memchr::memchr(b':', line)?;
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            name.eq_ignore_ascii_case(b"origin").then(|| HeaderValue::from_bytes(value).ok())?
        };
        let origin = self.held.as_ref().split(|byte| *byte == b'\n').find_map(value);
        let mut headers = HeaderMap::new();
        origins.expose(&mut headers, &origin.unwrap_or(HeaderValue::from_static("null")));
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()))
        };
        headers.iter().map(line).collect()
    }

    /// Throws away what comes until the client has closed or its time is up.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if linger.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        loop {
            self.held.clear();
            match ready!(self.poll_hold(context)) {
                Ok(1..) => {}
                _ => return Poll::Ready(()),
            }
        }
    }

    /// The next of what may pass.
    fn poll_next(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Open => {
                    if self.held.is_empty() {
                        return there(&mut self.stream)?.poll_read(context, buffer);
                    }
                    return self.poll_pass(context, buffer, u64::MAX).map_ok(|_| ());
                }
                State::Body(0) => self.state = State::Head(0),
                State::Body(left) => {
                    let left = *left;
                    let passed = ready!(self.poll_pass(context, buffer, left))? as u64;
                    self.state = State::Body(left - passed);
                    return Poll::Ready(Ok(()));
                }
                State::Passing(length, body) => {
                    let (length, body) = (*length, *body);
                    let passed = ready!(self.poll_pass(context, buffer, length as u64))?;
                    self.state = match body {
                        _ if passed < length => State::Passing(length - passed, body),
                        Body::Length(left) => State::Body(left),
                        Body::Unknown => State::Open,
                    };
                    return Poll::Ready(Ok(()));
                }
                State::Head(_) if self.held.is_empty() => {
                    self.want_next();
                    if self.poll_head(context, buffer)?.is_pending() {
                        return self.poll_silence(context);
                    }
                    if self.held.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                }
                State::Head(scanned) => match find_head(&self.held, scanned, self.bounds) {
                    Ok(Some(end)) => match framing(&self.held[..end], self.bounds) {
                        Ok(head) => {
                            let end = if head.is_plain { end } else { escape_target(&mut self.held, end) };
                            self.state = State::Passing(end, head.body);
                            self.last.clear();
                            self.pass_head(false);
                        }
                        Err(problem) => self.refuse(problem),
                    },
                    Ok(None) => {
                        self.want_next();
                        if let Some((patience, _)) = &mut self.patience {
                            patience.head_is_incomplete();
                        }
                        match self.poll_hold(context)? {
                            Poll::Ready(0) => return Poll::Ready(Ok(())),
                            Poll::Ready(_) => {}
                            Poll::Pending => return self.poll_silence(context),
                        }
                    }
                    Err(problem) => self.refuse(problem),
                },
                State::Refused(answer, written) if *written < answer.len() => {
                    ready!(self.poll_say(context))?;
                    ready!(there(&mut self.stream)?.poll_flush(context))?;
                }
                State::Refused(..) | State::Asleep(_) => {
                    // The end, to the reader; `poll_shutdown` does the rest.
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// hyper is done with the request before, and asks for the next.
    fn want_next(&self) {
        if let Some((_, keep_alive)) = &self.patience {
            keep_alive.next_is_wanted();
        }
    }
}

impl AsyncRead for FramingGuard {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = this.poll_next(context, buffer);
        this.awaited = read.is_pending();
        read
    }
}

/// The stream, unless its connection sleeps: then nothing reads or writes here any more.
fn there(stream: &mut Option<Stream>) -> io::Result<Pin<&mut Stream>> {
    stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
}

/// What comes after these bytes, if they are one head that may pass and at most what belongs to it.
fn after_whole_head(come: &[u8], bounds: HeadBounds) -> Option<State> {
    let end = find_head(come, &mut 0, bounds).ok()??;
    let head = framing(&come[..end], bounds).ok().filter(|head| head.is_plain)?;
    match head.body {
        Body::Unknown => Some(State::Open),
        Body::Length(length) => length.checked_sub((come.len() - end) as u64).map(State::Body),
    }
}

/// Where the first head ends, if it is held in full; every line of it must end in CR LF.
fn find_head(held: &[u8], scanned: &mut usize, bounds: HeadBounds) -> Result<Option<usize>, Malformed> {
    // One empty line before a request is passed over (RFC 9112, 2.2), by hyper too.
    let start = if held.starts_with(b"\r\n") { 2 } else { 0 };
    for at in memchr::memchr2_iter(b'\n', b'\r', &held[*scanned..]).map(|at| at + *scanned) {
        if held[at] == b'\r' {
            match held.get(at + 1) {
                Some(b'\n') => continue,
                Some(_) => return Err(Malformed::LineEnd),
                None => break,
            }
        }
        if at == 0 || held[at - 1] != b'\r' {
            return Err(Malformed::LineEnd);
        }
        if at >= start + 3 && held[at - 2] == b'\n' {
            return if at < bounds.bytes { Ok(Some(at + 1)) } else { Err(too_large(held, bounds)) };
        }
    }
    if held.len() > bounds.bytes {
        return Err(too_large(held, bounds));
    }
    // The line that is not complete stays to be looked at.
    *scanned = memchr::memrchr(b'\n', held).map_or(*scanned, |feed| feed.max(*scanned));
    Ok(None)
}

/// A head without end is most likely a target without end, or headers.
fn too_large(held: &[u8], bounds: HeadBounds) -> Malformed {
    if memchr::memchr(b'\n', held).is_none_or(|line| line > bounds.target + LINE_OVERHEAD) {
        Malformed::TargetTooLong(bounds.target)
    } else {
        Malformed::HeadTooLarge(bounds.bytes)
    }
}

/// What a request line may have beside its target, in bytes.
const LINE_OVERHEAD: usize = 32;

/// What is seen of a head at a glance.
struct Head {
    body: Body,
    /// Its target has nothing that hyper would not read.
    is_plain: bool,
}

/// Escapes what Ray reads in a target and hyper does not; returns where the head ends now.
fn escape_target(held: &mut BytesMut, end: usize) -> usize {
    let line = memchr::memchr(b'\n', &held[2..end]).map_or(end, |feed| feed + 2);
    let mut escaped = BytesMut::with_capacity(held.len() + 64);
    let (mut in_target, mut in_query) = (false, false);
    for &byte in &held[..line] {
        in_target |= byte == b' ';
        in_query |= byte == b'?';
        match (byte, in_query) {
            (b'<' | b'>', _) | (b'"', true) | (b'`', false) if in_target => {
                escaped.extend_from_slice(format!("%{byte:02X}").as_bytes());
            }
            _ => escaped.extend_from_slice(&[byte]),
        }
    }
    let end = escaped.len() + end - line;
    escaped.extend_from_slice(&held[line..]);
    *held = escaped;
    end
}

/// What the request line says of itself, and the framing fields of a head of its body.
fn framing(head: &[u8], bounds: HeadBounds) -> Result<Head, Malformed> {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request = lines.by_ref().find(|line| !line.is_empty()).unwrap_or_default();
    if request.len() > bounds.target + LINE_OVERHEAD {
        return Err(Malformed::TargetTooLong(bounds.target));
    }
    let is_plain =
        memchr::memchr3(b'"', b'<', b'>', request).is_none() && memchr::memchr(b'`', request).is_none();
    let (mut length, mut chunked, mut switches) = (None, false, false);
    for line in lines.filter(|line| !line.is_empty()) {
        if matches!(line[0], b' ' | b'\t') {
            return Err(Malformed::Folded);
        }
        // Names worth a look begin with C, T or U; all others are passed over by one byte.
        if !matches!(line[0] | 0x20, b'c' | b't' | b'u') {
            continue;
        }
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let (name, value) =
            (line[..colon].trim_ascii(), line.get(colon + 1..).unwrap_or_default().trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            if length.is_some() {
                return Err(Malformed::Framing("there is more than one Content-Length"));
            }
            length = Some(decimal(value).ok_or(Malformed::Framing("the Content-Length is not a number"))?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if std::mem::replace(&mut chunked, true) {
                return Err(Malformed::Framing("there is more than one Transfer-Encoding"));
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed::Framing("the only Transfer-Encoding understood is `chunked`"));
            }
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            switches = true;
        } else if name.eq_ignore_ascii_case(b"content_length")
            || name.eq_ignore_ascii_case(b"transfer_encoding")
        {
            // Gateways that turn headers into variables read these as their hyphenated selves.
            return Err(Malformed::Framing(
                "the header content_length or transfer_encoding is written with an underscore; use a hyphen",
            ));
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(Malformed::Framing("there are both a Content-Length and a Transfer-Encoding")),
        _ if chunked || switches => Ok(Head { body: Body::Unknown, is_plain }),
        (length, _) => Ok(Head { body: Body::Length(length.unwrap_or(0)), is_plain }),
    }
}

/// Digits only: no sign, no space, no list.
fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || bytes.len() > 18 {
        return None;
    }
    bytes
        .iter()
        .try_fold(0_u64, |number, &byte| byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0')))
}

impl AsyncWrite for FramingGuard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(problem) = self.refused_by_hyper(bytes) {
            self.refuse(problem);
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = there(&mut self.stream)?.poll_write(context, bytes);
        self.blocked = written.is_pending();
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = there(&mut self.stream)?.poll_write_vectored(context, slices);
        self.blocked = written.is_pending();
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_say(context))?;
        self.look_ahead(context)?;
        there(&mut self.stream)?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let (State::Asleep(since), Some((_, keep_alive))) = (&this.state, &this.patience) {
            if let Some(stream) = this.stream.take() {
                keep_alive.hibernate(stream, *since);
            }
            return Poll::Ready(Ok(()));
        }
        if this.linger.is_none() {
            ready!(this.poll_say(context))?;
            ready!(there(&mut this.stream)?.poll_shutdown(context))?;
        }
        let still_sending = match &this.state {
            State::Refused(..) | State::Body(1..) => true,
            State::Passing(_, body) => !matches!(body, Body::Length(0)),
            State::Head(_) | State::Body(0) | State::Open | State::Asleep(_) => !this.held.is_empty(),
        };
        if still_sending || this.linger.is_some() {
            ready!(this.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}
