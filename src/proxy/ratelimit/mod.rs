//! The brain behind Envoys: rayguard decides, Envoys enforce.
//!
//! Many already have an Envoy, Istio or Envoy Gateway in front of Ray, and no wish for one
//! more hop. Envoy can ask before it lets a request pass: `ShouldRateLimit` of its rate-limit
//! service protocol v3. Here that question is put to the very admission controller that decides about requests at
//! the proxy ([`AdmissionController::decide`]), under the very same table: the loop moves a limit, and the next
//! answer to any Envoy is by that limit. Proxy and Envoys may be in use at the same time and share
//! every limit. Nothing is decided twice, and nothing is decided here.
//!
//! **Rate** limits, client ceilings and the backlog's allowance need nothing more: they are spent on
//! arrival. `hits_addend` is their price (`core/admission/controller/multi_cost.rs`).
//!
//! **In-flight** limits need to know when an exchange ends, and this protocol has no word for it.
//! There are two ways round that, and both hold a real place in the admission controller (`lease_table.rs`):
//! - *Envoy tells.* A second descriptor with `apply_on_stream_done` names the exchange that has
//!   ended and, as its `hits_addend`, the status of the answer. Then concurrency is counted as at
//!   the proxy, and proxy latency is measured too: the inner loop controls what goes through Envoys
//!   by how long it took.
//! - *Envoy does not tell.* The place is held for as long as an exchange of the class is known to last:
//!   the mean of what was measured at the proxy or told by others, or, before there is any, the
//!   objective of the class. By Little's law, L = lambda W, holding each of L places for W is the
//!   rate L / W, and no more than L begin in any W. If exchanges take longer than thought, more
//!   are under way than the limit says; the outer loop then sees it in Ray's own signals.
//!
//! **Waiting.** A short wait is worth more than a refusal, and fairness between clients comes from
//! the queue. So a question waits in the class's line like a request at the proxy, but for no more
//! than three quarters of what Envoy waits for the answer (`grpc-timeout`, from the filter's
//! `timeout`). When Envoy gives up first, it does as its `failure_mode_deny` says, and that is not
//! ours to provoke.
//!
//! **Never a shed by ignorance, never open by it either.** Another domain, or a descriptor that
//! names nothing known, is answered OK, counted and logged: the configuration does not fit, and
//! its author can see that. A path that cannot be classified is not ignorance but doubt,
//! and is charged (`descriptor.rs`). What becomes of stale signals, frozen limits and shadow mode
//! is the table's affair: in shadow every answer is OK, and what would have been shed is counted.
//!
//! What this cannot do: choose the status (Envoy's `rate_limited_status`, 429, stands for 404, 401
//! and 503 of the proxy), share answers between equal requests, keep to bandwidth, or refuse an
//! upload before its submission.
//!
//! Two limits on trust. A refusal stops at the first descriptor that is over: the others are only
//! looked at, and places already taken are given back. And a client that breaks off while our
//! answer is on its way to its Envoy is never reported as ended, which a hostile one may do on
//! purpose: its place lasts until it is taken for lost (`LOST_OBJECTIVES`). So it gains what a slow
//! request would have gained it, and clients share places as they do at the proxy.
//!
//! [`AdmissionController::decide`]: rayguard_core::admission::controller::AdmissionController::decide

pub mod call;
pub mod descriptor;
mod lease_table;
pub mod message;
mod service_time;
pub mod tally;

use crate::headers::REQUEST_ID;
use crate::permit_guard::PermitGuard;
use crate::ratelimit::call::CallError;
use crate::ratelimit::descriptor::{Question, Told};
use crate::ratelimit::lease_table::{LeaseTable, Until};
use crate::ratelimit::message::{
    Code, Descriptor, DescriptorStatus, HeaderValue, RateLimit, RateLimitRequest, RateLimitResponse, Unit,
};
use crate::ratelimit::service_time::ServiceTimes;
use crate::ratelimit::tally::Answer;
use crate::reject::{self, Refused};
use crate::response_body::Body;
use crate::state::{ListenerState, ProxyState, ShedNote};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use rayguard_core::admission::controller::Shed;
use rayguard_core::admission::controller::multi_cost::Left;
use rayguard_core::admission::meter::Reason;
use rayguard_core::event::Via;
use rayguard_core::policy::{ClassId, Kind, Treatment};
use rayguard_core::time::Time;
use rayguard_core::usage::{RequestSummary, Verdict};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// Descriptors in one question, and entries in each. Envoy's operator writes them, not its clients.
pub(crate) const DESCRIPTORS_MAX: usize = 16;

/// An exchange whose end was to be told is taken for lost when it has lasted so many times as long
/// as its class's objective, and so many times as long as they last on the average: late enough for
/// the loop to have seen that Ray is slow, and soon enough for a lost report to cost little.
const LOST_OBJECTIVES: u32 = 5;
const LOST_SERVICE_TIMES: u32 = 10;

/// How often places whose time is up are given back; the bound on how late that is.
const EXPIRE: Duration = Duration::from_millis(10);

/// How often it is looked at how long exchanges last.
const MEASURE: Duration = Duration::from_secs(1);

/// The rate-limit service.
#[derive(Debug)]
pub struct Service {
    state: Arc<ArcSwap<ListenerState>>,
    domain: Arc<str>,
    permit_max: Duration,
    places: Mutex<LeaseTable<PermitGuard>>,
    durations: Mutex<ServiceTimes>,
}

/// How one descriptor was decided.
enum Decided {
    Pass(PermitGuard),
    WouldShed(PermitGuard),
    Refused(Shed),
}

impl Service {
    /// A service for `domain` by this listener's routes and limits. A place whose end is to be told
    /// is held for `permit_max` at most.
    pub fn start(state: Arc<ArcSwap<ListenerState>>, domain: Arc<str>, permit_max: Duration) -> Arc<Service> {
        let tasks = state.load().proxy.tasks.clone();
        let service = Arc::new(Service {
            state,
            domain,
            permit_max,
            places: Mutex::default(),
            durations: Mutex::default(),
        });
        let expiring = Arc::clone(&service);
        tasks.every(EXPIRE, move || expiring.expire());
        let measuring = Arc::clone(&service);
        tasks.every(MEASURE, move || measuring.measure());
        service
    }

    /// The state it decides by, which a listener needs to know whom it may let in.
    pub fn state(&self) -> &Arc<ArcSwap<ListenerState>> {
        &self.state
    }

    /// Answers one call from `peer`.
    pub async fn answer(&self, peer: IpAddr, request: Request<Incoming>) -> Response<call::Body> {
        let began = self.state.load().proxy.clock.now();
        let patience = call::timeout(request.headers()).map_or(Duration::ZERO, |told| told / 4 * 3);
        let message = match call::read(request).await {
            Ok(message) => self.decide(peer, &message, began + patience).await,
            Err(fault) => Err(fault),
        };
        match message {
            Ok(message) => call::answer(&message),
            Err(fault) => {
                let count = self.state.load().proxy.ratelimit.note(Answer::Malformed);
                if count.is_power_of_two() {
                    tracing::warn!(%peer, count, %fault, "could not answer a rate-limit request");
                }
                call::refuse(fault)
            }
        }
    }

    /// Decides about one question; nothing in it waits beyond `deadline`.
    pub async fn decide(
        &self,
        peer: IpAddr,
        message: &RateLimitRequest,
        deadline: Time,
    ) -> Result<RateLimitResponse, CallError> {
        let descriptors = &message.descriptors;
        let sizes = descriptors.iter().map(|descriptor| descriptor.entries.len()).chain([descriptors.len()]);
        if sizes.max().is_some_and(|most| most > DESCRIPTORS_MAX) {
            return Err(CallError::TooMany(DESCRIPTORS_MAX));
        }
        let state = self.state.load_full();
        let mut answer = RateLimitResponse { overall_code: Code::Ok as i32, ..RateLimitResponse::default() };
        if message.domain != self.domain.as_bytes() {
            self.shrug(&state.proxy, Answer::UnknownDomain, peer, descriptors.first());
            answer.statuses = descriptors.iter().map(|_| passed()).collect();
            return Ok(answer);
        }
        let mut taken = Vec::with_capacity(descriptors.len());
        for descriptor in descriptors {
            let status = match descriptor::read(&state, peer, descriptor) {
                Told::Unknown => {
                    self.shrug(&state.proxy, Answer::UnknownDescriptor, peer, Some(descriptor));
                    passed()
                }
                Told::Ends(name, status) => {
                    self.end(&state.proxy, name, status);
                    passed()
                }
                Told::Asks(question) => {
                    let hits = hits(descriptor, message.hits_addend);
                    let refused = answer.overall_code == Code::OverLimit as i32;
                    match NonZeroU32::new(hits).filter(|_| !refused) {
                        None => self.look(&state.proxy, &question),
                        Some(hits) => match self.admit(&state.proxy, &question, hits, deadline).await {
                            Decided::Pass(permit) | Decided::WouldShed(permit) => {
                                taken.push((permit, question.name));
                                self.status(&state.proxy, &question, None)
                            }
                            Decided::Refused(shed) => {
                                refuse(&state.proxy, &question, shed, &mut answer);
                                self.status(&state.proxy, &question, Some(shed))
                            }
                        },
                    }
                }
            };
            answer.statuses.push(status);
        }
        if answer.overall_code == Code::Ok as i32 {
            self.hold(&state.proxy, taken);
        }
        Ok(answer)
    }

    /// Puts a question to the admission controller.
    async fn admit(
        &self,
        proxy: &Arc<ProxyState>,
        question: &Question<'_>,
        hits: NonZeroU32,
        deadline: Time,
    ) -> Decided {
        let (ask, now) = (question.ask, proxy.clock.now());
        let limited = proxy.table.load().class(ask.class).treatment == Treatment::Limited;
        let more = NonZeroU32::new(hits.get() - 1).filter(|_| limited);
        let early = if question.keyless {
            Some((Reason::ApiKey, Duration::ZERO))
        } else {
            more.and_then(|_| proxy.admission.lacks(ask, hits.get(), now))
        };
        if let Some((reason, wait)) = early
            && let Some(shed) = proxy.admission.refuse_at_once(&proxy.table.load(), ask.class, reason, wait)
        {
            return Decided::Refused(shed);
        }
        let permit = match proxy.admit_within(ask, deadline.since(now), now).await {
            Ok(permit) => permit,
            Err(shed) => return Decided::Refused(shed),
        };
        let shadow = permit.permit().is_some_and(|inner| inner.would_shed.is_some()) || early.is_some();
        if let (Some(more), Some(inner), false) = (more, permit.permit(), shadow)
            && let Err((reason, wait)) = proxy.admission.pay(inner, more, proxy.clock.now())
        {
            // Somebody came in between; the permit goes back unsent.
            return Decided::Refused(proxy.admission.refuse(ask.class, reason, wait));
        }
        let (verdict, answer) =
            if shadow { (Verdict::WouldShed, Answer::WouldShed) } else { (Verdict::Admitted, Answer::Ok) };
        count(proxy, question, verdict);
        proxy.ratelimit.note(answer);
        if shadow { Decided::WouldShed(permit) } else { Decided::Pass(permit) }
    }

    /// Answers without taking: nothing is worth nothing.
    fn look(&self, proxy: &Arc<ProxyState>, question: &Question<'_>) -> DescriptorStatus {
        proxy.ratelimit.note(Answer::Asked);
        let ask = question.ask;
        let table = proxy.table.load();
        let over = proxy.admission.would_shed(&table, ask.class, ask.client, proxy.clock.now());
        let over = over.map(|(reason, wait)| Shed {
            class: ask.class,
            reason,
            retry_after_s: u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1),
        });
        self.status(proxy, question, over)
    }

    /// Holds what was let in until its end.
    fn hold(&self, proxy: &ProxyState, taken: Vec<(PermitGuard, Option<&[u8]>)>) {
        let now = proxy.clock.now();
        let mut gave_way = Vec::new();
        for (mut permit, name) in taken {
            let Some(inner) = permit.permit() else { continue };
            let class = &proxy.policy.classes[inner.ask.class.index()];
            let holds_a_place = inner.is_counted();
            let stay = self.stay(proxy, inner.ask.class);
            let long = (class.slo.latency * LOST_OBJECTIVES).max(stay * LOST_SERVICE_TIMES);
            let latest = class.timeout.unwrap_or(self.permit_max).min(long).min(self.permit_max);
            let latest = if class.kind == Kind::Held { self.permit_max } else { latest };
            let until = Until { expected: now + stay, latest: now + latest };
            permit.unseen();
            if holds_a_place {
                gave_way.extend(self.places.lock().hold(permit, name, until));
            }
        }
        proxy.ratelimit.set_places(self.places.lock().count());
    }

    /// An exchange has ended; its status, where it is told, is 0 if its client left before it had one.
    fn end(&self, proxy: &ProxyState, name: &[u8], status: Option<u64>) {
        let ended = self.places.lock().release(name);
        proxy.ratelimit.note(if ended.is_some() { Answer::End } else { Answer::EndUnknown });
        if let Some(mut permit) = ended {
            match status {
                Some(0) => permit.sent(),
                Some(500..) => permit.failed(),
                _ => permit.served(),
            }
        }
    }

    fn expire(&self) {
        let proxy = Arc::clone(&self.state.load().proxy);
        let ended = self.places.lock().expire(proxy.clock.now());
        if !ended.is_empty() {
            drop(ended);
            proxy.ratelimit.set_places(self.places.lock().count());
        }
    }

    fn measure(&self) {
        let state = self.state.load();
        self.durations.lock().measure(&state.proxy);
    }

    /// How long an exchange of a class is expected to hold its place.
    fn stay(&self, proxy: &ProxyState, id: ClassId) -> Duration {
        let class = &proxy.policy.classes[id.index()];
        let measured = self.durations.lock().mean(proxy, id);
        match (class.kind, measured) {
            // A log is read for hours; what it took to open it tells nothing.
            (Kind::Held, _) => self.permit_max,
            (Kind::Unary, measured) => measured.unwrap_or(class.slo.latency).min(self.permit_max),
        }
    }

    /// An Envoy asks about something that is not known here: logged at the 1st, 2nd, 4th, 8th ... time.
    fn shrug(&self, proxy: &ProxyState, answer: Answer, peer: IpAddr, descriptor: Option<&Descriptor>) {
        let count = proxy.ratelimit.note(answer);
        if count.is_power_of_two() {
            // Keys alone: values may be credentials.
            let keys: Vec<_> = descriptor
                .iter()
                .flat_map(|descriptor| descriptor.entries.iter().take(8))
                .map(|entry| String::from_utf8_lossy(&entry.key[..entry.key.len().min(32)]).into_owned())
                .collect();
            tracing::warn!(
                %peer, count, answer = answer.label(), keys = keys.join(","), domain = &*self.domain,
                "an Envoy asked about a request that is not limited here; it passes"
            );
        }
    }

    fn status(&self, proxy: &ProxyState, question: &Question<'_>, over: Option<Shed>) -> DescriptorStatus {
        let ask = question.ask;
        let table = proxy.table.load();
        if table.class(ask.class).treatment == Treatment::Exempt {
            return passed();
        }
        let left = proxy.admission.left(&table, ask.class, ask.client, proxy.clock.now());
        let stay = self.stay(proxy, ask.class);
        let reset = match over {
            Some(shed) => Duration::from_secs(u64::from(shed.retry_after_s)),
            None if left.rate.is_some() => left.whole.min(Duration::from_secs(3600)),
            None => stay,
        };
        let code = if over.is_some() { Code::OverLimit } else { Code::Ok };
        DescriptorStatus {
            code: code as i32,
            current_limit: Some(limit(proxy.class_name(ask.class), &left, stay)),
            limit_remaining: if over.is_some() { 0 } else { left.requests },
            duration_until_reset: Some(message::Duration {
                seconds: i64::try_from(reset.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(reset.subsec_nanos()).unwrap_or(0),
            }),
        }
    }
}

/// The first refusal speaks to the client.
fn refuse(proxy: &Arc<ProxyState>, question: &Question<'_>, shed: Shed, answer: &mut RateLimitResponse) {
    count(proxy, question, Verdict::Shed);
    proxy.ratelimit.note(Answer::OverLimit);
    let id = proxy.ids.next();
    proxy.note(proxy.clock.now(), || ShedNote {
        id: id.to_string(),
        shed,
        route: Arc::clone(&question.pattern),
        client: question.ask.client.address,
        via: Via::RatelimitService,
        waited: Duration::ZERO,
    });
    answer.overall_code = Code::OverLimit as i32;
    let about = Refused::at(proxy, shed, &id);
    let mut refusal = reject::shed(question.error_format, shed, &about, HeaderMap::new());
    if let Ok(id) = http::HeaderValue::from_bytes(id.as_bytes()) {
        refusal.headers_mut().insert(REQUEST_ID, id);
    }
    (answer.response_headers_to_add, answer.raw_body) = spoken(refusal);
}

/// Nothing is said but that it may pass.
fn passed() -> DescriptorStatus {
    DescriptorStatus { code: Code::Ok as i32, ..DescriptorStatus::default() }
}

/// What a descriptor is worth: its own word before the request's, and nothing said is one.
fn hits(descriptor: &Descriptor, of_request: u32) -> u32 {
    match descriptor.hits_addend {
        Some(own) => u32::try_from(own).unwrap_or(u32::MAX),
        None => of_request.max(1),
    }
}

fn count(proxy: &ProxyState, question: &Question<'_>, verdict: Verdict) {
    let summary = RequestSummary {
        ask: question.ask,
        address: question.address,
        pattern: &question.pattern,
        unlisted: question.unlisted.as_deref(),
        in_flight: proxy.admission.load(question.ask.class).0,
    };
    proxy.count(&summary, verdict, proxy.clock.now());
}

/// A limit in words of this protocol: whole requests per unit of time, in the least unit that
/// tells them to within a tenth. Places are L / W.
fn limit(name: &str, left: &Left, stay: Duration) -> RateLimit {
    let per_second =
        left.rate.map_or_else(|| f64::from(left.places) / stay.as_secs_f64().max(1e-3), |(rate, _)| rate);
    const UNITS: [(Unit, f64); 4] =
        [(Unit::Second, 1.0), (Unit::Minute, 60.0), (Unit::Hour, 3600.0), (Unit::Day, 86_400.0)];
    let tells = |(_, seconds): &(Unit, f64)| {
        let exact = per_second * seconds;
        exact >= 10.0 || (exact >= 1.0 && exact - exact.floor() < 1e-6)
    };
    let (unit, seconds) = UNITS.into_iter().find(tells).unwrap_or(UNITS[3]);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as-casts of f64 saturate")]
    let requests_per_unit = (per_second * seconds + 1e-6) as u32;
    RateLimit { requests_per_unit, unit: unit as i32, name: name.to_owned() }
}

/// A refusal of the proxy's as Envoy is to speak it. Status and gRPC's own words are Envoy's.
fn spoken(response: Response<Body>) -> (Vec<HeaderValue>, Bytes) {
    let (parts, body) = response.into_parts();
    let headers =
        parts.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "grpc-status" | "grpc-message"));
    let headers = headers.filter_map(|(name, value)| {
        Some(HeaderValue { key: name.as_str().to_owned(), value: value.to_str().ok()?.to_owned() })
    });
    let bytes = if let Body::Full(Some(bytes)) = body { bytes } else { Bytes::new() };
    (headers.collect(), bytes)
}

#[cfg(test)]
mod tests;
