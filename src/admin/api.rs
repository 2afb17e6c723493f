//! The API: what is, what was, and overrides.
//!
//! Every answer is JSON of a type in [`schema`](crate::admin::schema), every refusal a
//! [`Problem`] with its remedy. `/livez` asks whether the controller still steps, `/readyz` whether
//! this process takes requests; neither asks whether Ray is well, or an ill head would have its
//! guard restarted or taken out of service when it is needed most.

use crate::admin::access::Peer;
use crate::admin::answer::{Answer, Problem, bytes, json, text};
use crate::admin::openapi::{DESCRIPTION, OPERATIONS, Parameter};
use crate::admin::schema::{
    AdjustmentRow, Adjustments, Done, EventRow, Events, FreezeRequest, LeaseView, LimitRow, Limits,
    ListenerView, ModeRequest, PinRequest, ReceiverTest, ReloadRequest, Reloaded, State, Tested,
    UnpinRequest, WORDS_MAX,
};
use crate::admin::state::AdminState;
use crate::admin::{clients, discovery, page};
use crate::core::admission::table::Mode;
use crate::core::controller::overrides::{Override, OverrideError, PIN_MAX, PinView};
use crate::core::controller::view::{ClassView, LimitView, SignalView, View};
use crate::core::event::{Event, LimitKind, number, printable, quantity};
use crate::core::replicas::quota::Leased;
use crate::core::time::WallMs;
use crate::observe::adjustment_log::{self, Entry};
use crate::observe::metrics;
use crate::runtime::app::App;
use crate::runtime::reload::NotReloaded;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// The largest body of an order.
const OVERRIDE_BYTES_MAX: usize = 16 * 1024;

/// An order must have come within this.
const OVERRIDE_TIMEOUT: Duration = Duration::from_secs(10);

/// A controller that has not stepped for so long is not alive.
const STALLED: Duration = Duration::from_secs(10);

/// Answers one request.
pub async fn answer<B>(admin: &Arc<AdminState>, peer: Peer, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match route(admin, peer, request).await {
        Ok(answer) => answer,
        Err(problem) => problem.answer(),
    }
}

async fn route<B>(admin: &Arc<AdminState>, peer: Peer, request: Request<B>) -> Result<Answer, Problem>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let Some(operation) = OPERATIONS.iter().find(|known| known.path == path) else {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "unknown_path",
            format!("there is nothing at `{}`", printable(path)),
            "GET /openapi.json lists all paths",
        ));
    };
    let method = operation.method;
    if !is(&head.method, method) {
        let mut problem = Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method",
            format!("{path} does not take {}", head.method),
            format!("use {method}"),
        );
        problem.allow = Some(if method == "GET" { "GET, HEAD" } else { "POST" });
        return Err(problem);
    }
    // The kubelet and load balancers send whatever Host they like; these two tell nothing.
    if !matches!(path, "/livez" | "/readyz") {
        admin.access.may_ask(&head.uri, &head.headers)?;
    }
    if method == "POST" {
        let who = admin.access.may_override(peer, &head.headers)?;
        let body = read(&head.headers, body).await?;
        return override_limits(admin, path, &who, &body).await;
    }
    let query = Query::parse(head.uri.query().unwrap_or_default());
    query.only(operation.parameters)?;
    if path == "/api/v1/adjustment-log" {
        return adjustment_log(&admin.app, query.since(admin.app.clock.wall())?).await;
    }
    look(admin, peer, path, &head.headers, &query)
}

fn is(method: &Method, expected: &str) -> bool {
    method == expected || (expected == "GET" && method == Method::HEAD)
}

// === looking ===

fn look(
    admin: &AdminState,
    peer: Peer,
    path: &str,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Answer, Problem> {
    let app = &admin.app;
    Ok(match path {
        "/" => page::answer(),
        "/livez" => alive(app),
        "/readyz" => ready(app),
        "/metrics" => exposition(app, headers),
        "/openapi.json" => bytes(StatusCode::OK, "application/json", DESCRIPTION.as_str()),
        "/api/v1/adjustments" => ok(&adjustments(app, query)?),
        "/api/v1/events" => {
            let (since, count) = (query.since(app.clock.wall())?, query.limit(200)?);
            ok(&Events { events: last(count, events(app, since).map(EventRow::from)) })
        }
        "/api/v1/history" => {
            let since = query.since(app.clock.wall())?.map_or(0, |since| since.0);
            ok(&admin.history.columns(since, query.get("class")))
        }
        "/api/v1/clients" => {
            let open = admin.access.may_override(peer, headers).is_ok();
            ok(&clients::clients(admin, query.limit(20)?, open))
        }
        "/api/v1/limits" => ok(&limits(&app.view())),
        "/api/v1/signals" => ok::<Vec<SignalView>>(&app.view().signals),
        "/api/v1/discovery" => ok(&discovery::discovery(admin)),
        "/api/v1/alerts" => ok(&app.view().alerts),
        _ => ok(&state(admin)),
    })
}

/// The newest lines of the adjustment log as they lie on disk, in at most so many bytes.
const LOG_BYTES_MAX: u64 = 32 << 20;

async fn adjustment_log(app: &App, since: Option<WallMs>) -> Result<Answer, Problem> {
    let dir = app.adjustment_log_dir();
    let reading =
        tokio::task::spawn_blocking(move || adjustment_log::newest_lines(&dir, since, LOG_BYTES_MAX));
    match reading.await {
        // None has been written yet.
        Ok(Err(none)) if none.kind() == std::io::ErrorKind::NotFound => {
            Ok(bytes(StatusCode::OK, "application/jsonl", Bytes::new()))
        }
        Ok(Ok(lines)) => Ok(bytes(StatusCode::OK, "application/jsonl", lines)),
        Ok(Err(problem)) => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "adjustment_log",
            format!("the adjustment log cannot be read: {problem}"),
            "check `adjustment_log.dir` and its disk",
        )),
        Err(_) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            "rayguard is draining",
            "read the files at `adjustment_log.dir`",
        )),
    }
}

fn ok<T: serde::Serialize>(value: &T) -> Answer {
    json(StatusCode::OK, value)
}

fn alive(app: &App) -> Answer {
    let idle = app.clock.now().since(app.proxy_reading().1);
    if idle > STALLED {
        let body = format!("the controller has not stepped for {:.0} s\n", idle.as_secs_f64());
        return text(StatusCode::SERVICE_UNAVAILABLE, &body);
    }
    text(StatusCode::OK, "alive\n")
}

fn ready(app: &App) -> Answer {
    if app.tasks.closing() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    text(StatusCode::OK, "ready\n")
}

fn exposition(app: &App, headers: &HeaderMap) -> Answer {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let page = metrics::page(app, metrics::Format::accepted(accept));
    bytes(StatusCode::OK, page.kind, page.body)
}

fn state(admin: &AdminState) -> State {
    let app = &admin.app;
    let settings = app.settings();
    let listeners = settings.listeners.iter().map(|listener| ListenerView {
        kind: crate::proxy::handle::surface_name(listener.surface).to_owned(),
        listen: listener.address.to_string(),
        upstream: listener.upstream.url(),
    });
    State {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: settings.version.to_string(),
        time: app.clock.wall(),
        uptime_s: app.clock.now().as_secs_f64(),
        token_required: admin.access.takes_token(),
        listeners: listeners.collect(),
        awaits_restart: app.awaits_restart().into_iter().map(str::to_owned).collect(),
        leases: leases(app),
        view: {
            let mut view = app.view();
            admin.history.tell_rates(&mut view, app.clock.now());
            view
        },
        ray: app.ray(),
    }
}

/// What this replica may use of each limit it shares.
fn leases(app: &App) -> Vec<LeaseView> {
    let leased = app.leased().map(|(leased, _)| leased).unwrap_or_default();
    let row =
        |of: Leased| LeaseView { name: of.name.to_string(), limit: of.limit.to_owned(), value: of.value };
    leased.into_iter().map(row).collect()
}

/// The limits of a view, class by class.
pub fn limits(view: &View) -> Limits {
    let row = |class: &ClassView, limit: &LimitView| LimitRow {
        class: class.name.clone(),
        module: class.module.clone(),
        mode: class.mode,
        limit: limit.clone(),
    };
    Limits {
        table: view.table,
        frozen: view.frozen,
        limits: view
            .classes
            .iter()
            .flat_map(|class| class.limits.iter().map(move |limit| row(class, limit)))
            .collect(),
        modules: view.modules.clone(),
        pins: view.pins.clone(),
    }
}

fn events(app: &App, since: Option<WallMs>) -> impl Iterator<Item = Entry> {
    app.recent(since).into_iter()
}

fn adjustments(app: &App, query: &Query) -> Result<Adjustments, Problem> {
    let (since, count) = (query.since(app.clock.wall())?, query.limit(100)?);
    let class = query.get("class");
    let rows = events(app, since).filter_map(|entry| match entry.event {
        Event::Adjustment(adjustment) if class.is_none_or(|class| class == adjustment.class) => {
            Some(AdjustmentRow::new(entry.time, &adjustment))
        }
        _ => None,
    });
    Ok(Adjustments { adjustments: last(count, rows), since: app.recent_since() })
}

fn last<T>(count: usize, rows: impl Iterator<Item = T>) -> Vec<T> {
    let mut rows: Vec<T> = rows.collect();
    rows.split_off(rows.len().saturating_sub(count))
}

/// The part after the question mark.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Query {
        Query(url::form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    fn only(&self, known: &[Parameter]) -> Result<(), Problem> {
        let known: Vec<&str> = known.iter().map(|parameter| parameter.name()).collect();
        let Some((name, _)) = self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) else {
            return Ok(());
        };
        let remedy = if known.is_empty() {
            "it takes none".to_owned()
        } else {
            format!("it takes {}", known.join(", "))
        };
        Err(bad("query", format!("unknown parameter `{}`", printable(name)), remedy))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A wall time, a length of time before now, or milliseconds since the epoch.
    fn since(&self, now: WallMs) -> Result<Option<WallMs>, Problem> {
        let Some(text) = self.get("since") else { return Ok(None) };
        let at = WallMs::parse_rfc3339(text)
            .or_else(|| text.parse().ok().map(WallMs))
            .or_else(|| {
                let length = humantime::parse_duration(text).ok()?;
                Some(WallMs(now.0.saturating_sub(u64::try_from(length.as_millis()).ok()?)))
            })
            .ok_or_else(|| {
                bad(
                    "query",
                    format!("invalid time `{}`", printable(text)),
                    "write since=15m, since=2026-01-31T23:59:59Z or milliseconds since 1970",
                )
            })?;
        Ok(Some(at))
    }

    fn limit(&self, default: usize) -> Result<usize, Problem> {
        let Some(text) = self.get("limit") else { return Ok(default) };
        text.parse().ok().filter(|count| (1..=1000).contains(count)).ok_or_else(|| {
            bad("query", format!("invalid count `{}`", printable(text)), "write limit=1 to limit=1000")
        })
    }
}

fn bad(code: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code, message, remedy)
}

// === overrides ===

async fn read<B>(headers: &HeaderMap, body: B) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_type",
            format!("the request body must be JSON, not `{}`", printable(kind)),
            "send `Content-Type: application/json`",
        ));
    }
    let whole = Limited::new(body, OVERRIDE_BYTES_MAX).collect();
    match tokio::time::timeout(OVERRIDE_TIMEOUT, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(_)) => Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body",
            format!("the request body broke off or is larger than {OVERRIDE_BYTES_MAX} bytes"),
            "send a shorter reason",
        )),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body",
            format!("the request body did not arrive within {} s", OVERRIDE_TIMEOUT.as_secs()),
            "send it again",
        )),
    }
}

async fn override_limits(admin: &AdminState, path: &str, who: &str, body: &[u8]) -> Result<Answer, Problem> {
    let app = &admin.app;
    let (order, given_who, why, mut done) = match path {
        "/api/v1/pin" => pin(parse(body)?)?,
        "/api/v1/unpin" => unpin(parse(body)?),
        "/api/v1/freeze" => freeze(parse(body)?, true)?,
        "/api/v1/unfreeze" => freeze(parse(body)?, false)?,
        "/api/v1/mode" => mode(parse(body)?)?,
        "/api/v1/reload" => return reload(admin, parse(body)?, who).await,
        _ => {
            parse::<serde_json::Map<String, serde_json::Value>>(body)?;
            return test_alerts(admin).await;
        }
    };
    let who = by(&given_who, who);
    let was_frozen = app.view().frozen;
    app.override_limits(&order, &words("who", &who)?, &words("why", &why)?)
        .map_err(|refusal| refused(&refusal, app))?;
    match &order {
        Override::Freeze(frozen) => done = frozen_words(*frozen, was_frozen, &app.view().pins),
        Override::Pin { class, limit, .. } => done.push_str(&beside(&app.view(), class, *limit)),
        Override::Unpin { .. } | Override::Mode { .. } => {}
    }
    tracing::info!(who = %printable(&who), why = %printable(&why), "{done}");
    Ok(ok(&Done { done, table: app.proxy().table.load().version }))
}

/// The name that the client gives, and what the connection tells of it.
fn by(given: &str, who: &str) -> String {
    if given.is_empty() { who.to_owned() } else { format!("{given} ({who})") }
}

type Asked = (Override, String, String, String);

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    // By way of a map: an order is an object, where serde would take an array of its fields too.
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body)
        .and_then(|map| T::deserialize(serde_json::Value::Object(map)))
        .map_err(|error| {
            bad(
                "order",
                format!("the request body cannot be read: {error}"),
                "GET /openapi.json shows its form",
            )
        })
}

fn pin(order: PinRequest) -> Result<Asked, Problem> {
    let length = humantime::parse_duration(&order.r#for)
        .ok()
        .filter(|length| *length >= Duration::from_secs(1))
        .ok_or_else(|| {
            bad(
                "order",
                format!("invalid duration `{}`: expected a number and a unit of at least one second, such as \"10s\"", printable(&order.r#for)),
                "write 30m, 1h or 2d",
            )
        })?;
    if length > PIN_MAX {
        let days = PIN_MAX.as_secs() / 86_400;
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "pin_too_long",
            format!("{} is more than a pin may last ({days}d)", printable(&order.r#for)),
            format!("write --for {days}d or less"),
        ));
    }
    let why = reason(order.why)?;
    let done = format!(
        "{} {} is pinned at {}{} for {}",
        order.class,
        order.limit.label(),
        number(order.value),
        order.limit.unit(),
        // As it was given, and it has been read as a length of time.
        order.r#for
    );
    let pin = Override::Pin { class: order.class, limit: order.limit, value: order.value, length };
    Ok((pin, order.who, why, done))
}

/// What has come of an order to freeze or unfreeze.
fn frozen_words(frozen: bool, was_frozen: bool, pins: &[PinView]) -> String {
    let done = match (frozen, was_frozen) {
        (true, false) => return "all limits are frozen at their current values".to_owned(),
        (true, true) => return "all limits were already frozen".to_owned(),
        (false, true) => "limits move again",
        (false, false) => "limits were not frozen",
    };
    let pinned: Vec<String> = pins.iter().map(|pin| format!("{} {}", pin.class, pin.limit.label())).collect();
    match &pinned[..] {
        [] => done.to_owned(),
        [one] => format!("{done}; {one} stays pinned"),
        several => format!("{done}; {} stay pinned", several.join(", ")),
    }
}

/// What holds beside a pinned limit: a pin lifts no other.
fn beside(view: &View, class: &str, pinned: LimitKind) -> String {
    let Some(class) = view.classes.iter().find(|known| known.name == class) else { return String::new() };
    let others = class.limits.iter().filter(|limit| limit.limit != pinned);
    let mut others: Vec<String> = others
        .map(|limit| format!("{} {}{}", limit.limit.label(), number(limit.value), limit.limit.unit()))
        .collect();
    if let Some(work_s) = class.work_limit_s {
        others.push(format!("work in flight {}", quantity(work_s, "s")));
    }
    if let Some(module) = view.modules.iter().find(|module| module.name == class.module) {
        others.push(format!("{} in_flight {}", module.name, number(module.limit)));
    }
    if others.is_empty() { String::new() } else { format!("; also in force: {}", others.join(", ")) }
}

/// What changes how Ray is protected has a reason.
fn reason(why: String) -> Result<String, Problem> {
    if why.trim().is_empty() {
        return Err(bad(
            "order",
            "a reason is needed",
            "give a reason in `why`, for the next person on call",
        ));
    }
    Ok(why)
}

fn unpin(order: UnpinRequest) -> Asked {
    let done = format!("{} {} moves again", order.class, order.limit.label());
    (Override::Unpin { class: order.class, limit: order.limit }, order.who, order.why, done)
}

fn freeze(order: FreezeRequest, frozen: bool) -> Result<Asked, Problem> {
    Ok((Override::Freeze(frozen), order.who, reason(order.why)?, String::new()))
}

fn mode(order: ModeRequest) -> Result<Asked, Problem> {
    let subject = order.class.as_deref().unwrap_or("every class").to_owned();
    let done = match order.mode {
        Mode::Enforce => format!("limits of {subject} are enforced"),
        Mode::Shadow => {
            format!("{subject} is in shadow mode: nothing is shed, and what would have been shed is counted")
        }
    };
    Ok((Override::Mode { class: order.class, mode: order.mode }, order.who, reason(order.why)?, done))
}

/// What goes into the adjustment log: short, and without anything that could forge a line.
fn words(name: &str, text: &str) -> Result<String, Problem> {
    if text.chars().count() > WORDS_MAX {
        return Err(bad(
            "order",
            format!("`{name}` is longer than {WORDS_MAX} characters"),
            "shorten it, and link to the details",
        ));
    }
    Ok(printable(text.trim()))
}

fn refused(refusal: &OverrideError, app: &App) -> Problem {
    let (status, code, remedy) = match refusal {
        OverrideError::UnknownClass { class } => {
            let proxy = app.proxy();
            let known = proxy.policy.classes.iter().map(|class| &*class.name);
            let nearest = crate::config::problem::suggest(class, known)
                .unwrap_or_else(|| "`rayguard limits` lists them".to_owned());
            return Problem::new(StatusCode::NOT_FOUND, "unknown_class", refusal.to_string(), nearest);
        }
        OverrideError::NoSuchLimit { .. } => {
            (StatusCode::NOT_FOUND, "no_such_limit", "`rayguard limits` lists what each class has")
        }
        OverrideError::Module { .. } => (
            StatusCode::NOT_FOUND,
            "module",
            "pin a limit of one of its classes; `rayguard limits` lists them",
        ),
        OverrideError::OutOfBounds { .. } => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "out_of_bounds",
            "choose a value within the bounds, or widen them in the configuration",
        ),
        OverrideError::Follows { .. } => {
            (StatusCode::CONFLICT, "follows", "send the override to that replica; the others follow it")
        }
        OverrideError::NotPinned { .. } => {
            (StatusCode::CONFLICT, "not_pinned", "`rayguard limits` shows what is pinned")
        }
    };
    Problem::new(status, code, refusal.to_string(), remedy)
}

async fn reload(admin: &AdminState, order: ReloadRequest, who: &str) -> Result<Answer, Problem> {
    let (who, why) = (words("who", &by(&order.who, who))?, words("why", &order.why)?);
    let asked =
        if why.is_empty() { format!("asked for by {who}") } else { format!("asked for by {who}: {why}") };
    match admin.reloader.reload(asked).await {
        Ok(left) => {
            let config = admin.app.settings().version.to_string();
            let takes_restart: Vec<String> = left.iter().map(|part| (*part).to_owned()).collect();
            let parts: Vec<String> = takes_restart.iter().map(|part| format!("`{part}`")).collect();
            let later = match &parts[..] {
                [] => String::new(),
                [one] => format!("; {one} changes at the next restart"),
                several => format!("; {} change at the next restart", several.join(", ")),
            };
            let done = format!("configuration {config} is in force{later}");
            Ok(ok(&Reloaded { done, config, takes_restart }))
        }
        Err(NotReloaded::Refused(problems)) => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "config_rejected",
            format!("new configuration rejected; still using the previous one: {}", problems.join("\n")),
            "`rayguard check FILE` shows each problem in its line; correct it and reload again",
        )),
        Err(NotReloaded::Missing(file)) => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "config_missing",
            format!("{file} does not exist; still using the previous configuration"),
            "restore it and reload again",
        )),
        Err(NotReloaded::NoFile) => Err(Problem::new(
            StatusCode::CONFLICT,
            "no_file",
            "rayguard runs without a configuration file, so there is nothing to read again",
            "start it with `rayguard run --config FILE`",
        )),
        Err(NotReloaded::Closing) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            "rayguard is draining",
            "send the request to the process that replaces it",
        )),
    }
}

async fn test_alerts(admin: &AdminState) -> Result<Answer, Problem> {
    let outcomes = admin.notifier.test().await;
    if outcomes.is_empty() {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "no_receivers",
            "no alert receiver is configured",
            "add [[alerts.notify]] to the configuration",
        ));
    }
    let receivers = outcomes.into_iter().map(|(receiver, problem)| ReceiverTest { receiver, problem });
    Ok(ok(&Tested { receivers: receivers.collect() }))
}
