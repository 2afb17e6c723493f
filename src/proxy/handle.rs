//! The path of a request in one function ([`handle`]), and the common case: admit, forward, pass back.
//! Special cases have modules of their own: an answer that is shared between clients that ask the
//! same (`shared`), a WebSocket (`held`), and a body too long to be read whole first (`upload`).

mod held;
mod shared;
mod upload;

use crate::circuit_breaker::RECONNECT_S;
use crate::client_body::{BodyBounds, BodyError, ClientBody, Upload, gather};
use crate::coalesce::{Key, Origin, Question};
use crate::cors::Origins;
use crate::forward::{self, Answer, Exchange, Sent};
use crate::h1_connection::SentHead;
use crate::headers::{
    HeaderPresence, Lookup, REASON, REQUEST_ID, is_grpc, join_cookies, strip, strip_hop_by_hop, strip_key,
    tell_client,
};
use crate::id::Id;
use crate::permit_guard::PermitGuard;
use crate::reject::{self, Contact, ErrorFormat, GRPC_STATUS, Refused};
use crate::request_validation::{self, Malformed};
use crate::response_body::Body;
use crate::response_policy::ResponsePolicy;
use crate::routing::Routing;
use crate::sessions::Alive;
use crate::state::{ListenerState, ProxyState, ShedNote};
use crate::submitted::Submission;
use crate::tasks::Tasks;
use crate::tunnel;
use crate::upstream::RayBody;
use crate::upstream::UpstreamError;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONNECTION, HeaderMap, HeaderValue, ORIGIN};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use rayguard_core::admission::controller::{Ask, Shed};
use rayguard_core::admission::flow::Flow;
use rayguard_core::admission::meter::Reason;
use rayguard_core::event::Via;
use rayguard_core::policy::{Coalesce, Kind, Treatment};
use rayguard_core::request::catalogue::Surface;
use rayguard_core::request::classify::{Match, UNLISTED};
use rayguard_core::request::facts::Facts;
use rayguard_core::time::Time;
use rayguard_core::traffic_trace::Ending;
use rayguard_core::usage::{RequestSummary, Unlisted, Verdict};
use std::cell::Cell;
use std::convert::Infallible;
use std::mem;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The connection a request came on.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The other end, as the socket or a PROXY header tells it.
    pub address: IpAddr,
    /// The same, as Ray is told.
    pub hop: HeaderValue,
    /// Whether TLS was ended here.
    pub tls: bool,
    /// How its bodies may come, and for how long an answer may be left unread.
    pub body: BodyBounds,
    /// For how long work that no client waits for stays counted, if Ray never answers.
    pub abandoned_max: Duration,
}

/// A request on its way through the proxy.
struct RequestContext {
    proxy: Arc<ProxyState>,
    routing: Arc<Routing>,
    peer: Arc<Peer>,
    id: Id,
    /// What is known of it.
    known: Arc<Recognised>,
    /// That was known already: it repeats the request before it to the byte.
    repeats: bool,
    /// When the request arrived.
    since: Time,
    /// How long rayguard waited for its body.
    kept: Duration,
    /// Declared length of its body.
    bytes: u64,
    /// Its class is in shadow mode: it is treated as without rayguard.
    shadow: bool,
    /// The bandwidth of its class.
    flow: Option<Arc<Flow>>,
}

/// Answers one request: recognise, share, admit, forward. One that is answered when these tasks are `closing` is
/// the last of its HTTP/1 connection, whenever it began: the next would not be read.
///
/// What can be done at once is done at once, so that the future keeps only what it waits with: every byte of
/// it is moved a few times for every request. (A block keeps its captures where they are; an `async fn`
/// would keep its arguments twice.)
///
/// # Errors
/// None: it is what hyper calls.
pub fn handle(
    state: &Arc<ListenerState>,
    peer: &Arc<Peer>,
    request: Request<Incoming>,
    closing: Option<Tasks>,
    memory: Option<Memory>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<> {
    let Begun { context, request, onward, page, last } = begin(state, peer, request, memory);
    async move {
        let id = HeaderValue::from_bytes(context.id.as_bytes());
        let mut response = match onward {
            Onward::Refused(refusal) => *refusal,
            Onward::Plain => context.pass(request, context.since).await,
            // What is not every request's way stands on the heap, and costs the others no room.
            Onward::Upgraded(client) => Box::pin(context.tail(request.into_parts().0, client)).await,
            Onward::Shared(key) => Box::pin(context.share(request, key)).await,
            Onward::WithBody(body) => Box::pin(context.pass_with_body(request, body)).await,
        };
        if let Ok(id) = id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        if let Some(page) = page {
            page.may_read(&mut response);
        }
        let last = last || closing.is_some_and(|tasks| tasks.closing());
        if last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// A request that has been recognised, and what is to become of it.
struct Begun {
    context: RequestContext,
    request: Box<Request<ClientBody>>,
    onward: Onward,
    page: Option<Box<Page>>,
    /// It is the last of its connection.
    last: bool,
}

/// The ways of a request.
enum Onward {
    /// Here it ends.
    Refused(Box<Response<Body>>),
    Plain,
    WithBody(Incoming),
    Shared(Key),
    Upgraded(OnUpgrade),
}

/// The last request of a connection as it was recognised, and under which configuration.
#[derive(Default)]
pub struct LastRequest(Cell<Option<(Arc<ListenerState>, Arc<Recognised>)>>);

/// What a connection remembers when a request comes on it.
#[derive(Clone, Copy)]
pub struct Memory<'a> {
    /// The request before.
    pub before: &'a LastRequest,
    /// This one repeats it to the byte.
    pub repeats: bool,
}

impl Memory<'_> {
    /// What is known of this request: as before if nothing has changed since, which is said beside it, or else by
    /// looking at it.
    fn recall(
        self,
        state: &Arc<ListenerState>,
        recognise: impl FnOnce() -> Recognised,
    ) -> (Arc<Recognised>, bool) {
        let before = self.before.0.take().filter(|(then, _)| self.repeats && Arc::ptr_eq(then, state));
        let repeats = before.is_some();
        let (state, recognised) = before.unwrap_or_else(|| (Arc::clone(state), Arc::new(recognise())));
        self.before.0.set(Some((state, Arc::clone(&recognised))));
        (recognised, repeats)
    }
}

/// Recognises a request.
fn begin(
    state: &Arc<ListenerState>,
    peer: &Arc<Peer>,
    mut request: Request<Incoming>,
    memory: Option<Memory>,
) -> Begun {
    let (proxy, routing) = (Arc::clone(&state.proxy), Arc::clone(&state.routing));
    let id = proxy.ids.next();
    let look = || recognise(&proxy, &routing, peer.address, &request);
    let (known, repeats) = match memory {
        Some(memory) => memory.recall(state, look),
        None => (Arc::new(look()), false),
    };
    let Recognised { header_presence, malformed, matched, trusted, call, last, .. } = *known;
    let page = Page::of(&routing, header_presence, request.headers());
    let upgrade = (call == Call::WebSocket).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    // On the heap: it passes through many hands, and all that it passes through has room for it.
    let mut request = Box::new(Request::from_parts(parts, ClientBody::Empty));
    let bytes = http_body::Body::size_hint(&body).exact().unwrap_or(0);
    let (shadow, flow) = proxy.conduct(matched.class);
    let too_large =
        (bytes > peer.body.bytes_max && !shadow).then_some(Malformed::BodyTooLarge(peer.body.bytes_max));
    strip(request.headers_mut(), header_presence);
    strip_key(request.headers_mut(), proxy.identifier.key_header(), header_presence);
    name_host(&mut request);
    if header_presence.has(HeaderPresence::COOKIE) {
        join_cookies(request.headers_mut());
    }
    // An answer is shared by those who ask the same; a body is part of the question.
    let origin = Origin { hop: &peer.hop, trusted, tls: peer.tls };
    let coalesces = proxy.policy.classes[matched.class.index()].coalesce.is_some();
    let bare = http_body::Body::is_end_stream(&body);
    let shares = bare && coalesces && !shadow;
    let question = || Question::of(&routing, matched.route, request.uri());
    let key =
        shares.then(|| Key::of(&routing, origin, request.method(), &question(), request.headers())).flatten();
    let since = proxy.clock.now();
    let context = RequestContext {
        proxy,
        routing,
        peer: Arc::clone(peer),
        id,
        known,
        repeats,
        since,
        kept: Duration::ZERO,
        bytes,
        shadow,
        flow,
    };
    let refusal = malformed
        .or(too_large)
        .map(|problem| reject::unread(problem, &context.id))
        .or_else(|| context.refuse_at_once());
    let onward = match (refusal, upgrade, key) {
        (Some(refusal), ..) => Onward::Refused(Box::new(refusal)),
        (None, Some(client), _) => Onward::Upgraded(client),
        (None, None, Some(key)) => Onward::Shared(key),
        (None, None, None) if bare => Onward::Plain,
        (None, None, None) => Onward::WithBody(body),
    };
    Begun { context, request, onward, page, last }
}

/// A web page that calls an application of Serve.
struct Page {
    origin: HeaderValue,
    origins: Origins,
}

impl Page {
    fn of(routing: &Routing, header_presence: HeaderPresence, headers: &HeaderMap) -> Option<Box<Page>> {
        if routing.surface != Surface::Serve || !header_presence.has(HeaderPresence::ORIGIN) {
            return None;
        }
        let origin = headers.get(ORIGIN)?.clone();
        Some(Box::new(Page { origin, origins: routing.origins.clone() }))
    }

    /// Lets the page read an answer of ours; Ray's are left as they are.
    fn may_read(&self, answer: &mut Response<Body>) {
        if answer.headers().contains_key(REASON)
            && !answer.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN)
        {
            self.origins.expose(answer.headers_mut(), &self.origin);
        }
    }
}

fn recognise(proxy: &ProxyState, routing: &Routing, peer: IpAddr, request: &Request<Incoming>) -> Recognised {
    let headers = Lookup::new(request.headers());
    let header_presence = headers.header_presence();
    let facts = Facts {
        method: request.method().as_str(),
        path: request.uri().path(),
        query: request.uri().query().unwrap_or(""),
        address: peer,
        headers: &headers,
        upgrade: header_presence.has(HeaderPresence::UPGRADE) && tunnel::is_websocket(request.headers()),
        grpc: header_presence.has(HeaderPresence::CONTENT_TYPE)
            && routing.surface != Surface::Dashboard
            && request.version() == http::Version::HTTP_2
            && is_grpc(request.headers()),
    };
    let mut matched = routing.classifier.classify(&facts);
    let trusted = proxy.identifier.trusts(peer);
    let session = if facts.grpc { proxy.identifier.session(&facts) } else { None };
    // The question of a session that was let in is not a newcomer's knock.
    if let (Some(session), Some(call)) = (session, proxy.linked.call)
        && Some(matched.class) == proxy.linked.newcomer
        && proxy.sessions.is_known(session)
    {
        matched.class = call;
    }
    let known = **routing.classifier.label(matched.route) != *UNLISTED;
    let unlisted = (!known).then(|| Arc::new(Unlisted::new(routing.surface, facts.method, facts.path)));
    let route = unlisted.as_ref().map_or(matched.route.0, |unlisted| unlisted.cost_key(matched.route));
    Recognised {
        header_presence,
        malformed: request_validation::check(request, header_presence, routing.surface).err(),
        matched,
        ask: Ask { class: matched.class, route, client: proxy.identifier.identify(&facts) },
        keyless: proxy.asks_for_key(matched.class) && !proxy.identifier.holds_key(&facts),
        trusted,
        session,
        address: proxy.identifier.client_address(&facts),
        unlisted,
        error_format: ErrorFormat::of(facts.path, facts.grpc),
        call: match (facts.grpc, facts.upgrade) {
            (true, _) => Call::Grpc,
            (false, true) => Call::WebSocket,
            (false, false) => Call::Plain,
        },
        last: is_last(request, header_presence),
        sent_head: OnceLock::new(),
    }
}

/// Whether a request must be the last of its connection: the client says so, or the framing guard sees no
/// further than this one.
fn is_last(request: &Request<Incoming>, header_presence: HeaderPresence) -> bool {
    let keeps_alive = || {
        let connection = request.headers().get(CONNECTION);
        connection.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"keep-alive"))
    };
    match request.version() {
        http::Version::HTTP_2 => false,
        version => {
            header_presence.has(HeaderPresence::TRANSFER_ENCODING)
                || header_presence.has(HeaderPresence::UPGRADE)
                || version != http::Version::HTTP_11 && !keeps_alive()
        }
    }
}

/// What a request wants its connection for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Plain,
    Grpc,
    WebSocket,
}

/// What the proxy knows of a request before it decides: the same of the same bytes from the same peer, as long
/// as the configuration is the same, except for a gRPC call, whose session may have begun.
struct Recognised {
    header_presence: HeaderPresence,
    /// Why it cannot be passed on.
    malformed: Option<Malformed>,
    matched: Match,
    /// What the admission controller is asked.
    ask: Ask,
    /// Whether it asks for something that takes an API key, and shows none.
    keyless: bool,
    /// Whether the peer may say for whom it asks.
    trusted: bool,
    /// The Ray Client session it belongs to.
    session: Option<u64>,
    /// Where the client calls from.
    address: IpAddr,
    /// What it asks for, if no route knows it.
    unlisted: Option<Arc<Unlisted>>,
    error_format: ErrorFormat,
    call: Call,
    /// It is the last of its connection.
    last: bool,
    /// What is sent to Ray for it, once it was repeated: the same for all that are equal.
    sent_head: OnceLock<Arc<SentHead>>,
}

impl RequestContext {
    /// What is refused before anything of it is read: what takes a key and shows none, and an
    /// upload whose submission would be refused.
    fn refuse_at_once(&self) -> Option<Response<Body>> {
        let uploads = Some(self.known.matched.class) == self.proxy.linked.packages;
        if !self.known.keyless && !uploads {
            return None;
        }
        let table = self.proxy.table.load();
        let (reason, wait) = if self.known.keyless {
            (Reason::ApiKey, Duration::ZERO)
        } else {
            let submit = self.proxy.linked.submit?;
            self.proxy.admission.would_shed(&table, submit, self.known.ask.client, self.proxy.clock.now())?
        };
        let shed = self.proxy.admission.refuse_at_once(&table, self.known.matched.class, reason, wait)?;
        Some(self.refuse(shed))
    }

    /// The way of a request with a body, which is its client's time and not Ray's.
    async fn pass_with_body(
        mut self,
        mut request: Box<Request<ClientBody>>,
        body: Incoming,
    ) -> Response<Body> {
        let clock = self.proxy.clock;
        if self.known.error_format == ErrorFormat::Grpc {
            // A stream may be silent for hours, and its two ends speak in turn.
            let body = Upload::new(body, None, self.flow.clone(), clock);
            *request.body_mut() = ClientBody::Streamed(UnsyncBoxBody::new(body));
            self.pass(request, self.since).await
        } else {
            let gathered = if self.flow.is_some() || self.shadow {
                Ok(Err(body))
            } else {
                gather(body, self.peer.body, clock, &self.proxy.gathered).await
            };
            let now = clock.now();
            match gathered {
                Ok(Ok(whole)) => {
                    self.kept = now.since(self.since);
                    *request.body_mut() = ClientBody::Whole(whole);
                    self.pass(request, now).await
                }
                Ok(Err(body)) => Arc::new(self).upload(request, body).await,
                Err(error) => self.broke_off(&error),
            }
        }
    }

    /// The plain way: admit, forward, pass back.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` would keep its arguments twice")]
    fn pass(
        &self,
        mut request: Box<Request<ClientBody>>,
        now: Time,
    ) -> impl Future<Output = Response<Body>> + Send + '_ {
        async move {
            let permit = match self.let_in(Duration::MAX, now).await {
                Ok(permit) => permit,
                Err(shed) => return self.tell(shed, mem::take(request.headers_mut())),
            };
            let opening = self.opens_session().map(|session| self.proxy.sessions.opening(session));
            let exchange = self.exchange(request, permit);
            let response = match self.in_time(exchange).await {
                Ok(answer) => self.pass_back(answer),
                Err(late) => {
                    self.note_change();
                    late
                }
            };
            drop(opening);
            response
        }
    }

    /// Whatever was answered, it may have been done.
    fn note_change(&self) {
        if self.changes_jobs() {
            self.proxy.coalescer.forget();
        }
    }

    fn pass_back(&self, answer: Answer) -> Response<Body> {
        self.note_change();
        match answer {
            Ok((response, permit)) => {
                let permit = self.keep_place(&response, permit);
                let (mut parts, body) = response.into_parts();
                strip_hop_by_hop(&mut parts.headers);
                let body = Body::forwarded(body, permit, self.stay_alive(), self.response_policy());
                Response::from_parts(parts, body)
            }
            Err(UpstreamError::Client(error)) => self.broke_off(&error),
            Err(error) => reject::upstream(self.known.error_format, &error, &self.id, &self.contact()),
        }
    }

    /// The answer to a request whose body did not come to its end, or had come in vain.
    fn broke_off(&self, error: &BodyError) -> Response<Body> {
        match error {
            BodyError::Shed(shed) => return self.refuse(*shed),
            BodyError::Slow { lasted, .. } => {
                self.proxy.usage().keep(self.known.ask, *lasted, self.proxy.clock.now());
            }
            BodyError::TooLarge(_) | BodyError::Broken(_) => {}
        }
        reject::body(error, &self.id)
    }

    /// What the answer keeps to on its way back.
    fn response_policy(&self) -> ResponsePolicy {
        let held = self.class().kind == Kind::Held;
        // Its bandwidth, too, may keep an answer waiting.
        let least = self.flow.as_ref().map_or(Duration::ZERO, |_| self.peer.abandoned_max);
        ResponsePolicy {
            clock: self.proxy.clock,
            patience: (!held && !self.shadow).then(|| (self.proxy.readers.clone(), self.peer.body.stall)),
            silence_max: self.timeout().filter(|_| !held).map(|timeout| timeout.max(least)),
            flow: self.flow.clone(),
            submission: self.submission(),
        }
    }

    /// The job that Ray's answer names.
    fn submission(&self) -> Option<Box<Submission>> {
        let submits = Some(self.known.matched.class) == self.proxy.linked.submit;
        submits.then(|| Box::new(Submission::new(Arc::clone(&self.proxy.submitted), self.proxy.clock)))
    }

    /// How long Ray may take to begin its answer.
    fn timeout(&self) -> Option<Duration> {
        self.class().timeout.filter(|_| !self.shadow)
    }

    /// How its answers are shared.
    fn coalesce(&self) -> Option<Coalesce> {
        self.class().coalesce.filter(|_| !self.shadow)
    }

    /// Whether the job list is another one after this.
    fn changes_jobs(&self) -> bool {
        let class = Some(self.known.matched.class);
        class == self.proxy.linked.submit || class == self.proxy.linked.control
    }

    /// A newcomer that Ray answered keeps its place until its session has started; any other permit
    /// rides in the answer.
    fn keep_place(&self, answer: &Response<RayBody>, permit: PermitGuard) -> Option<PermitGuard> {
        let newcomer = Some(self.known.matched.class) == self.proxy.linked.newcomer;
        let Some(session) = self.known.session.filter(|_| newcomer) else { return Some(permit) };
        if !answer.status().is_success() || answer.headers().contains_key(GRPC_STATUS) {
            return Some(permit);
        }
        self.proxy.tasks.spawn_until_closed(self.proxy.sessions.start(session, permit));
        None
    }

    /// The session whose stream this is.
    fn opens_session(&self) -> Option<u64> {
        self.known.session.filter(|_| self.proxy.linked.sessions.contains(&Some(self.known.matched.class)))
    }

    /// A session is alive from the moment Ray takes its stream.
    fn stay_alive(&self) -> Option<Alive> {
        self.proxy.sessions.open(self.opens_session()?)
    }

    async fn admit(&self, now: Time) -> Result<PermitGuard, Response<Body>> {
        self.admit_within(Duration::MAX, now).await
    }

    /// The same for one that has waited already.
    async fn admit_within(&self, patience: Duration, now: Time) -> Result<PermitGuard, Response<Body>> {
        self.let_in(patience, now).await.map_err(|shed| self.tell(shed, HeaderMap::new()))
    }

    /// The same for who words a refusal itself.
    async fn let_in(&self, patience: Duration, now: Time) -> Result<PermitGuard, Shed> {
        if let Some(shed) = self.cut_off() {
            self.note_refused(shed);
            return Err(shed);
        }
        let mut permit = self.try_admit(patience, now).await.inspect_err(|shed| self.note_refused(*shed))?;
        if permit.waited() && self.is_cut_off() {
            permit.failed();
            let (class, reason) = (self.known.matched.class, Reason::UpstreamUnreachable);
            let shed = Shed { class, reason, retry_after_s: RECONNECT_S };
            // Its permit counts it, as failed.
            self.log_refused(shed, self.proxy.clock.now());
            return Err(shed);
        }
        self.note_admitted(&mut permit);
        Ok(permit)
    }

    /// What a request is told that Ray cannot be reached for.
    fn cut_off(&self) -> Option<Shed> {
        let (class, reason) = (self.known.matched.class, Reason::UpstreamUnreachable);
        let table = || self.proxy.table.load();
        let shed = self
            .is_cut_off()
            .then(|| self.proxy.admission.refuse_at_once(&table(), class, reason, Duration::ZERO))
            .flatten()?;
        Some(Shed { retry_after_s: RECONNECT_S, ..shed })
    }

    async fn try_admit(&self, patience: Duration, now: Time) -> Result<PermitGuard, Shed> {
        let mut permit = self.proxy.admit_within(self.known.ask, patience, now).await?.asking(self.bytes);
        permit.kept_before(self.kept);
        Ok(permit)
    }

    fn note_admitted(&self, permit: &mut PermitGuard) {
        if let Some(inner) = permit.permit() {
            let would_shed = inner.would_shed.is_some();
            let verdict = if would_shed { Verdict::WouldShed } else { Verdict::Admitted };
            self.count(verdict, inner.admitted);
        }
        permit.account(self.known.unlisted.clone());
    }

    /// Whether Ray accepts no connections, and the request is one that is told so at once. What is exempt
    /// tries all the same: health checks get Ray's own silence.
    fn is_cut_off(&self) -> bool {
        self.routing.upstream.is_unreachable() && self.class().treatment == Treatment::Limited
    }

    fn count(&self, verdict: Verdict, now: Time) {
        let summary = RequestSummary {
            ask: self.known.ask,
            address: self.known.address,
            pattern: match &self.known.unlisted {
                Some(unlisted) => &unlisted.pattern,
                None => self.routing.classifier.label(self.known.matched.route),
            },
            unlisted: self.known.unlisted.as_deref(),
            in_flight: self.proxy.admission.load(self.known.matched.class).0,
        };
        self.proxy.count(&summary, verdict, now);
    }

    /// Sends it on.
    fn exchange(
        &self,
        mut request: Box<Request<ClientBody>>,
        permit: PermitGuard,
    ) -> Exchange<impl Future<Output = Sent> + Send + 'static> {
        self.address_to_ray(&mut request);
        let upstream = Arc::clone(&self.routing.upstream);
        let sent_head = self.repeats.then(|| Arc::clone(self.known.sent_head.get_or_init(Arc::default)));
        forward::send(upstream, request, sent_head, permit, self.proxy.tasks.clone(), self.peer.abandoned_max)
    }

    /// Waits for its answer within the class's time; the outer error is the answer that it took too long.
    async fn in_time(
        &self,
        mut exchange: Exchange<impl Future<Output = Sent> + Send + 'static>,
    ) -> Result<Answer, Response<Body>> {
        match self.timeout() {
            None => Ok(exchange.await),
            Some(bound) => tokio::time::timeout(bound, &mut exchange).await.map_err(|_| {
                exchange.late();
                self.too_late(bound)
            }),
        }
    }

    fn too_late(&self, bound: Duration) -> Response<Body> {
        self.note_late();
        reject::timeout(self.known.error_format, &self.class().name, bound, &self.id, &self.contact())
    }

    /// Counts the request as failed, since Ray took too long.
    fn note_late(&self) {
        self.proxy.admission.late(self.known.matched.class);
        self.proxy.usage().fail(self.known.ask, self.known.unlisted.as_deref(), self.proxy.clock.now());
    }

    fn contact(&self) -> Contact {
        Contact::of(&self.proxy)
    }

    /// Makes of it what Ray gets.
    fn address_to_ray(&self, request: &mut Request<ClientBody>) {
        self.tell_client(request.headers_mut());
        origin_form(request);
        if self.known.error_format == ErrorFormat::Grpc {
            *request.version_mut() = http::Version::HTTP_2;
        }
    }

    /// Says for which client the request is made: only a request that goes to Ray needs it.
    fn tell_client(&self, headers: &mut HeaderMap) {
        tell_client(headers, &self.peer.hop, self.known.trusted, self.peer.tls);
    }

    fn refuse(&self, shed: Shed) -> Response<Body> {
        self.note_refused(shed);
        self.tell(shed, HeaderMap::new())
    }

    fn note_refused(&self, shed: Shed) {
        let now = self.proxy.clock.now();
        self.count(if shed.reason.is_failure() { Verdict::Unreachable } else { Verdict::Shed }, now);
        self.proxy.record(self.known.ask, Ending::Shed(shed.reason), self.since, (self.bytes, 0));
        self.log_refused(shed, now);
    }

    fn log_refused(&self, shed: Shed, now: Time) {
        self.proxy.note(now, || ShedNote {
            id: self.id.to_string(),
            shed,
            route: Arc::clone(self.routing.classifier.label(self.known.matched.route)),
            client: self.known.ask.client.address,
            via: Via::Proxy,
            waited: now.since(self.since).saturating_sub(self.kept),
        });
    }

    /// The answer to a request that was refused, in the room that its own headers took.
    fn tell(&self, shed: Shed, mut spare: HeaderMap) -> Response<Body> {
        spare.clear();
        let upstream = Some(self.routing.upstream.address());
        let about = Refused { upstream, ..Refused::at(&self.proxy, shed, &self.id) };
        reject::shed(self.known.error_format, shed, &about, spare)
    }

    fn class(&self) -> &rayguard_core::policy::Class {
        &self.proxy.policy.classes[self.known.matched.class.index()]
    }
}

/// The host as a header, wherever the client wrote it.
fn name_host(request: &mut Request<ClientBody>) {
    if let Some(authority) = request.uri().authority()
        && !request.headers().contains_key(http::header::HOST)
        && let Ok(host) = HeaderValue::try_from(authority.as_str())
    {
        request.headers_mut().insert(http::header::HOST, host);
    }
}

/// Ray is an origin server: it gets a path, not a URL; the host stays in `Host`.
fn origin_form(request: &mut Request<ClientBody>) {
    let uri = request.uri();
    if uri.scheme().is_some() || uri.authority().is_some() {
        *request.uri_mut() =
            uri.path_and_query().map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()));
    }
    // A client of HTTP/1.0 need not name a host; one of 1.1 that names none has been refused.
    if request.version() != http::Version::HTTP_11 {
        request.headers_mut().entry(http::header::HOST).or_insert(HeaderValue::from_static(""));
    }
    *request.version_mut() = http::Version::HTTP_11;
    request.extensions_mut().clear();
}

/// The surface a listener serves, for logs.
pub fn surface_name(surface: Surface) -> &'static str {
    match surface {
        Surface::Dashboard => "dashboard",
        Surface::RayClient => "ray-client",
        Surface::Serve => "serve",
    }
}
