//! Telling people: alerts that began or ended, to Alertmanager, a webhook or Slack.
//!
//! Each receiver has a task, a bounded queue and its own pace, so that one that hangs holds up
//! no other, and none holds up the loop. What comes within a second goes out as one message;
//! of one alert only the latest word waits, so that a receiver that was away learns what is,
//! not all that was. A failed message is tried again after 1, 2, 4 ... 60 s. What still fires is
//! said again: to Alertmanager each minute (its alerts end by themselves unless renewed), to
//! the others as `alerts.repeat` says.
//!
//! Addresses may be secrets: a receiver is named by its kind and host alone.

use crate::config::settings::NotifyKind;
use crate::core::alert::{Alert, AlertState, RUNBOOK, Severity, Transition};
use crate::core::time::{Time, WallMs};
use crate::observe::fetch;
use crate::proxy::clock::Clock;
use crate::proxy::tasks::Tasks;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::mpsc;
use url::Url;

/// What comes within this goes out together.
const GATHER: Duration = Duration::from_secs(1);

/// One attempt, from connecting to the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Alertmanager is told again so often, and ends an alert itself after four times that.
const RENEW: Duration = Duration::from_secs(60);

/// Transitions that may wait for a receiver's task.
const QUEUE: usize = 256;

/// A receiver of alerts, its secrets read.
#[derive(Clone)]
pub struct Receiver {
    /// What it speaks.
    pub kind: NotifyKind,
    /// Where it is.
    pub url: Url,
    /// The bearer token.
    pub token: Option<String>,
}

impl Receiver {
    /// Its kind and host.
    pub fn name(&self) -> String {
        let kind = match self.kind {
            NotifyKind::Alertmanager => "alertmanager",
            NotifyKind::Webhook => "webhook",
            NotifyKind::Slack => "slack",
        };
        format!("{kind} {}", self.url.host_str().unwrap_or_default())
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// Whom to tell, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom.
    pub receivers: Vec<Receiver>,
    /// What still fires is said again so often.
    pub repeat: Duration,
    /// Where runbooks stand, instead of the project's own; the alert's name is appended.
    pub runbook: Option<Url>,
    /// Where people open the page.
    pub page: Option<Url>,
}

/// Why a message was not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeliveryError {
    /// No connection, or it broke.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// Not in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Slow,
    /// An answer other than 2xx.
    #[error("answered with status {status}: {said}")]
    Status {
        /// The status.
        status: u16,
        /// The beginning of its words.
        said: String,
    },
}

/// Tells receivers; copies share them.
#[derive(Clone, Debug)]
pub struct Notifier {
    options: Arc<Options>,
    clock: Clock,
    current: Arc<OnceLock<Current>>,
}

/// What a firing alert says now, by its key.
type Summary = dyn Fn(&str) -> Option<String> + Send + Sync;

struct Current(Box<Summary>);

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

/// Hands alerts on until the tasks close; each is in the program's log in any case.
pub fn start(
    tasks: &Tasks,
    clock: Clock,
    options: Options,
    mut transitions: mpsc::Receiver<Transition>,
) -> Notifier {
    let notifier = Notifier { options: Arc::new(options), clock, current: Arc::default() };
    let queues: Vec<(String, mpsc::Sender<Transition>)> = notifier
        .options
        .receivers
        .iter()
        .map(|receiver| {
            let (queue, waiting) = mpsc::channel(QUEUE);
            tasks.spawn_until_closed(notifier.clone().tell(receiver.clone(), waiting));
            (receiver.name(), queue)
        })
        .collect();
    tasks.spawn_until_closed(async move {
        while let Some(transition) = transitions.recv().await {
            match transition.state {
                AlertState::Firing if transition.severity == Severity::Info => {
                    tracing::info!(alert = transition.key, severity = "info", "{}", transition.summary);
                }
                AlertState::Firing => {
                    let severity = severity(transition.severity);
                    tracing::warn!(alert = transition.key, severity, "{}", transition.summary);
                }
                AlertState::Resolved => {
                    tracing::info!(alert = transition.key, "resolved: {}", transition.summary);
                }
            }
            for (receiver, queue) in &queues {
                if queue.try_send(transition.clone()).is_err() {
                    tracing::error!(%receiver, alert = transition.key, "too many alerts are waiting for \
                        delivery; this one is only in the adjustment log");
                }
            }
        }
    });
    notifier
}

impl Notifier {
    /// What is said again is said as it is then, and not as the alert began.
    pub fn say_what_is(&self, current: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
        let _ = self.current.set(Current(Box::new(current)));
    }

    fn summary_now(&self, key: &str) -> Option<String> {
        self.current.get().and_then(|current| (current.0)(key))
    }

    /// Sends a test to every receiver; its name, and why it did not take it.
    pub async fn test(&self) -> Vec<(String, Option<String>)> {
        let now = self.clock.now();
        let mut outcomes = Vec::new();
        for receiver in &self.options.receivers {
            let body = self.message(receiver, &[&test_alert(now)]);
            let outcome = post(receiver, body).await;
            outcomes.push((receiver.name(), outcome.err().map(|delivery_error| delivery_error.to_string())));
        }
        outcomes
    }

    /// Tells one receiver, for as long as it is polled.
    async fn tell(self, receiver: Receiver, mut queue: mpsc::Receiver<Transition>) {
        let again = if receiver.kind == NotifyKind::Alertmanager { RENEW } else { self.options.repeat };
        let mut dispatcher = Dispatcher::default();
        let mut pace = Pace::default();
        let mut due = tokio::time::Instant::now() + again;
        loop {
            match tokio::time::timeout_at(due, queue.recv()).await {
                Ok(None) => return,
                Ok(Some(transition)) => {
                    dispatcher.take(transition);
                    // After a failure nothing but time helps, and news does not put the time off.
                    if pace.is_held() {
                        continue;
                    }
                    tokio::time::sleep(GATHER).await;
                    while let Ok(more) = queue.try_recv() {
                        dispatcher.take(more);
                    }
                }
                Err(_) if pace.is_held() => {}
                Err(_) => dispatcher.renew(|key| self.summary_now(key)),
            }
            let waiting: Vec<&Transition> = dispatcher.waiting.values().collect();
            let outcome = if waiting.is_empty() {
                Ok(())
            } else {
                post(&receiver, self.message(&receiver, &waiting)).await
            };
            let wait = match outcome {
                Ok(()) => {
                    dispatcher.said();
                    pace.taken();
                    again
                }
                Err(delivery_error) => {
                    // It may have heard us and been slow to say so: then it is owed the end as well.
                    if delivery_error == DeliveryError::Slow {
                        dispatcher.perhaps_said();
                    }
                    let wait = pace.failed();
                    tracing::warn!(receiver = %receiver.name(), %delivery_error, again_in = ?wait, "alerts could not be delivered; retrying");
                    wait
                }
            };
            due = tokio::time::Instant::now() + wait;
        }
    }

    fn message(&self, receiver: &Receiver, alerts: &[&Transition]) -> Value {
        match receiver.kind {
            NotifyKind::Alertmanager => alerts.iter().map(|alert| self.for_alertmanager(alert)).collect(),
            NotifyKind::Webhook => json!({
                "source": "rayguard",
                "version": env!("CARGO_PKG_VERSION"),
                "alerts": alerts.iter().map(|alert| self.for_webhook(alert)).collect::<Vec<_>>(),
            }),
            NotifyKind::Slack => self.for_slack(alerts),
        }
    }

    fn for_alertmanager(&self, alert: &Transition) -> Value {
        let now = self.clock.wall();
        let ends = match alert.state {
            AlertState::Firing => WallMs(now.0 + 4 * 60_000),
            AlertState::Resolved => now,
        };
        json!({
            "labels": {
                "alertname": if alert.key == TEST { "RayguardTest" } else { alert.alert.name() },
                "severity": severity(alert.severity),
                "subject": alert.subject.as_deref().unwrap_or(""),
                "alert_key": alert.key,
                "source": "rayguard",
            },
            "annotations": {
                "summary": alert.summary,
                "description": alert.description,
                "runbook_url": self.runbook(alert),
            },
            "startsAt": self.began(alert),
            "endsAt": ends,
            // Alertmanager shows it as the alert's source.
            "generatorURL": self.options.page.as_ref().map_or("", Url::as_str),
        })
    }

    fn for_webhook(&self, alert: &Transition) -> Value {
        json!({
            "alert": if alert.key == TEST { TEST } else { alert.alert.label() },
            "key": alert.key,
            "state": alert.state.label(),
            "severity": severity(alert.severity),
            "subject": alert.subject,
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": self.runbook(alert),
            "page_url": self.options.page.as_ref().map(Url::as_str),
            "since": self.began(alert),
        })
    }

    fn for_slack(&self, alerts: &[&Transition]) -> Value {
        let line = |alert: &&Transition| {
            let head = match alert.state {
                AlertState::Firing => severity(alert.severity),
                AlertState::Resolved => "resolved",
            };
            let runbook = self.runbook(alert);
            let page = self.options.page.as_ref().map_or_else(String::new, |page| format!(" <{page}|page>"));
            format!(
                "*{head}* `{}` {} <{runbook}|runbook>{page}",
                escaped(&alert.key),
                escaped(&alert.summary)
            )
        };
        json!({ "text": alerts.iter().map(line).collect::<Vec<_>>().join("\n") })
    }

    fn runbook(&self, alert: &Transition) -> String {
        let base = self.options.runbook.as_ref();
        base.map_or_else(|| alert.runbook.clone(), |base| format!("{base}{}", alert.alert.label()))
    }

    fn began(&self, alert: &Transition) -> WallMs {
        let ago = self.clock.now().since(alert.since).as_millis();
        WallMs(self.clock.wall().0.saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX)))
    }
}

/// When to try again: after 1, 2, 4 ... 60 s.
#[derive(Debug, Default)]
struct Pace(Option<Duration>);

impl Pace {
    fn is_held(&self) -> bool {
        self.0.is_some()
    }

    fn taken(&mut self) {
        self.0 = None;
    }

    fn failed(&mut self) -> Duration {
        let next = self.0.map_or(GATHER, |pause| (pause * 2).min(PAUSE_MAX));
        self.0 = Some(next);
        next
    }
}

/// What is to be said to one receiver, and what it has been told fires.
#[derive(Debug, Default)]
struct Dispatcher {
    waiting: BTreeMap<String, Transition>,
    firing: BTreeMap<String, Transition>,
}

impl Dispatcher {
    /// Only the latest word of each alert waits; an end whose beginning was never said is none.
    fn take(&mut self, transition: Transition) {
        let known = self.firing.contains_key(&transition.key);
        if transition.state == AlertState::Resolved && !known {
            self.waiting.remove(&transition.key);
        } else {
            self.waiting.insert(transition.key.clone(), transition);
        }
    }

    fn renew(&mut self, now: impl Fn(&str) -> Option<String>) {
        for (key, firing) in &mut self.firing {
            firing.summary = now(key).unwrap_or_else(|| std::mem::take(&mut firing.summary));
        }
        self.waiting = self.firing.clone();
    }

    fn perhaps_said(&mut self) {
        let begun = self.waiting.iter().filter(|(_, word)| word.state == AlertState::Firing);
        self.firing.extend(begun.map(|(key, word)| (key.clone(), word.clone())));
    }

    fn said(&mut self) {
        for (key, transition) in std::mem::take(&mut self.waiting) {
            match transition.state {
                AlertState::Firing => self.firing.insert(key, transition),
                AlertState::Resolved => self.firing.remove(&key),
            };
        }
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The key of an alert that is only a test; no rule has it.
const TEST: &str = "test";

fn test_alert(now: Time) -> Transition {
    Transition {
        alert: Alert::UpstreamDown,
        state: AlertState::Firing,
        severity: Severity::Info,
        subject: Some("test".into()),
        key: TEST.into(),
        summary: "this is a test of rayguard's alerts; nothing is wrong".into(),
        description: "Sent by `rayguard alerts test`.".into(),
        runbook: format!("{RUNBOOK}#alert-test"),
        since: now,
    }
}

/// One attempt.
async fn post(receiver: &Receiver, message: Value) -> Result<(), DeliveryError> {
    tokio::time::timeout(TIMEOUT, attempt(receiver, message)).await.unwrap_or(Err(DeliveryError::Slow))
}

async fn attempt(receiver: &Receiver, message: Value) -> Result<(), DeliveryError> {
    let unreachable = |error: &dyn std::error::Error| DeliveryError::Unreachable(fetch::root_cause(error));
    let mut url = receiver.url.clone();
    if receiver.kind == NotifyKind::Alertmanager {
        url.set_path(&format!("{}/api/v2/alerts", url.path().trim_end_matches('/')));
    }
    let client = fetch::client_trusting(None).map_err(|error| unreachable(&error))?;
    let mut request = client.post(url).header(CONTENT_TYPE, "application/json").body(message.to_string());
    if let Some(token) = &receiver.token {
        request = request.bearer_auth(token);
    }
    let mut answer = request.send().await.map_err(|error| unreachable(&error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let said = answer.chunk().await.ok().flatten().unwrap_or_default();
    let said = String::from_utf8_lossy(&said).chars().take(200).collect();
    Err(DeliveryError::Status { status: status.as_u16(), said })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    fn word(key: &str, state: AlertState) -> Transition {
        Transition { key: key.into(), state, ..test_alert(Time::ZERO) }
    }

    #[test]
    fn only_the_latest_word_of_an_alert_waits_and_an_end_is_not_said_where_the_beginning_was_not() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.take(word("a", AlertState::Firing));
        dispatcher.take(word("a", AlertState::Firing));
        dispatcher.take(word("b", AlertState::Firing));
        dispatcher.take(word("b", AlertState::Resolved));
        assert_eq!(dispatcher.waiting.keys().collect::<Vec<_>>(), ["a"]);
        dispatcher.said();
        dispatcher.take(word("a", AlertState::Resolved));
        assert_eq!(dispatcher.waiting["a"].state, AlertState::Resolved);
        dispatcher.said();
        dispatcher.renew(|_| None);
        assert!(dispatcher.waiting.is_empty());
        dispatcher.take(word("c", AlertState::Firing));
        dispatcher.said();
        dispatcher.renew(|key| (key == "c").then(|| "as it is now".to_owned()));
        assert_eq!(dispatcher.waiting["c"].summary, "as it is now");
    }

    #[tokio::test]
    async fn what_still_fires_is_said_again_and_leads_to_the_runbook_of_the_house() {
        use tokio::io::AsyncWriteExt;
        let said = std::sync::Mutex::new(Vec::new());
        let ok = fetch::server::answer("200 OK", "text/plain", "");
        let treat = async |request: &[u8], mut stream: TcpStream| {
            said.lock().unwrap().push(String::from_utf8_lossy(request).into_owned());
            let _ = stream.write_all(&ok).await;
        };
        fetch::server::serve_requests(treat, async |address| {
            let tasks = Tasks::default();
            let (alerts, transitions) = mpsc::channel(8);
            let url = Url::parse(&format!("http://{address}/hook")).unwrap();
            let options = Options {
                receivers: vec![Receiver { kind: NotifyKind::Webhook, url, token: None }],
                repeat: Duration::from_millis(20),
                runbook: Url::parse("https://wiki.example/runbooks/").ok(),
                page: None,
            };
            start(&tasks, Clock::start(), options, transitions);
            alerts.send(word("a", AlertState::Firing)).await.unwrap();
            while said.lock().unwrap().len() < 3 {
                tokio::task::yield_now().await;
            }
            tasks.close();
        })
        .await;
        for message in said.lock().unwrap().iter() {
            assert!(message.contains("firing"), "{message}");
            assert!(message.contains("https://wiki.example/runbooks/upstream-down"), "{message}");
        }
    }

    #[test]
    fn an_end_is_owed_to_a_receiver_that_may_have_heard_the_beginning() {
        let mut dispatcher = Dispatcher::default();
        dispatcher.take(word("a", AlertState::Firing));
        dispatcher.perhaps_said();
        dispatcher.take(word("a", AlertState::Resolved));
        assert_eq!(dispatcher.waiting["a"].state, AlertState::Resolved);
        dispatcher.said();
        assert!(dispatcher.waiting.is_empty() && dispatcher.firing.is_empty());
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_anew_after_success() {
        let mut pace = Pace::default();
        let pauses: Vec<u64> = (0..8).map(|_| pace.failed().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        pace.taken();
        assert!(!pace.is_held());
        assert_eq!(pace.failed(), GATHER);
    }

    #[test]
    fn slack_gets_text_that_cannot_be_mistaken_for_its_own_marks() {
        let notifier = Notifier {
            options: Arc::new(Options {
                receivers: Vec::new(),
                repeat: RENEW,
                runbook: None,
                page: Url::parse("http://a.example/").ok(),
            }),
            clock: Clock::start(),
            current: Arc::default(),
        };
        let alert = Transition { summary: "<!channel> & co".into(), ..test_alert(Time::ZERO) };
        let text = notifier.for_slack(&[&alert]).to_string();
        assert!(text.contains("&lt;!channel&gt; &amp; co"), "{text}");
        assert!(text.contains("<http://a.example/|page>"), "{text}");
    }

    #[test]
    fn a_receiver_never_shows_its_whole_address() {
        let url = Url::parse("https://hooks.example/services/SECRET").unwrap();
        let receiver = Receiver { kind: NotifyKind::Slack, url, token: Some("hush".into()) };
        assert_eq!(format!("{receiver:?}"), "slack hooks.example");
    }
}
