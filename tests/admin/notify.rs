//! Alerts reach a real Alertmanager and plain webhooks, and survive a receiver that was away.

use crate::instance::{Instance, PATIENCE, eventually, has};
use crate::metrics::{Server, free_port};
use rayguard::config::settings::NotifyKind;
use rayguard::core::alert::{Alert, AlertState, Severity, Transition};
use rayguard::core::time::Time;
use rayguard::observe::notify::{self, Options, Receiver};
use rayguard::proxy::clock::Clock;
use rayguard::proxy::tasks::Tasks;
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const ALERTMANAGER: &str = "/usr/bin/prometheus-alertmanager";
const QUICK: &str =
    "[probe]\ninterval = '100ms'\ntimeout = '90ms'\n[alerts.rule.upstream-down]\nfor = '0s'\nclear = '0s'\n";

#[tokio::test]
async fn a_real_alertmanager_takes_an_alert_and_its_end_is_not_its_beginning() {
    if !has(ALERTMANAGER) {
        return;
    }
    let (_server, port) = alertmanager("rings");
    let config =
        format!("{QUICK}[[alerts.notify]]\nkind = 'alertmanager'\nurl = 'http://127.0.0.1:{port}'\n");
    let mut instance = Instance::start("alertmanager", &config, None).await;
    eventually("the test alert is taken", async || {
        let (status, tested) = instance.order("/api/v1/alerts/test", &json!({})).await;
        assert_eq!(status, 200);
        tested["receivers"][0]["problem"].is_null().then_some(())
    })
    .await;
    instance.head.take();
    let alert = eventually("the alert is there", async || {
        let url = format!("http://127.0.0.1:{port}/api/v2/alerts");
        let alerts: Value =
            serde_json::from_str(&instance.client.get(url).send().await.ok()?.text().await.ok()?).ok()?;
        alerts.as_array()?.iter().find(|alert| alert["labels"]["alert_key"] == "upstream-down").cloned()
    })
    .await;
    assert_eq!(alert["labels"]["severity"], "critical");
    assert_eq!(alert["labels"]["alertname"], "RayguardUpstreamDown");
    assert_eq!(alert["generatorURL"], "http://rayguard.example/");
    let runbook =
        "https://github.com/rayguard/rayguard/blob/main/config/deploy/RUNBOOK.md#alert-upstream-down";
    assert_eq!(alert["annotations"]["runbook_url"], runbook);
    assert!(alert["annotations"]["description"].as_str().unwrap().contains("slow start"));
    assert!(alert["annotations"]["summary"].as_str().unwrap().contains("unreachable"));
    assert!(alert["endsAt"].as_str() > alert["startsAt"].as_str());
}

/// A real Alertmanager that notifies no receiver; its port.
fn alertmanager(name: &str) -> (Server, u16) {
    let dir = std::env::temp_dir().join(format!("rayguard-alertmanager-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let config = dir.join("alertmanager.yml");
    std::fs::write(&config, "route: {receiver: none}\nreceivers: [{name: none}]\n").unwrap();
    let port = free_port();
    let server = Server(
        Command::new(ALERTMANAGER)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    (server, port)
}

fn word(alert: Alert, subject: &str, state: AlertState) -> Transition {
    Transition {
        alert,
        state,
        severity: Severity::Warning,
        subject: Some(subject.into()),
        key: format!("{}/{subject}", alert.label()),
        summary: format!("something is the matter with {subject}"),
        description: String::new(),
        runbook: String::new(),
        since: Time::ZERO,
    }
}

/// A notifier with these receivers, and the way to it.
fn notifier(receivers: &[(NotifyKind, String)]) -> (mpsc::Sender<Transition>, Tasks) {
    let tasks = Tasks::default();
    let (sender, transitions) = mpsc::channel(8);
    let receivers =
        receivers.iter().map(|(kind, url)| Receiver { kind: *kind, url: url.parse().unwrap(), token: None });
    let options = Options {
        receivers: receivers.collect(),
        repeat: Duration::from_secs(3600),
        runbook: None,
        page: None,
    };
    notify::start(&tasks, Clock::start(), options, transitions);
    (sender, tasks)
}

/// A webhook that answers each request with what `status` says of its number.
async fn webhook(
    status: impl Fn(usize) -> &'static str + Send + 'static,
) -> (String, Arc<Mutex<Vec<Value>>>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let taken: Arc<Mutex<Vec<Value>>> = Arc::default();
    let seen = Arc::clone(&taken);
    let mut server = JoinSet::new();
    server.spawn(async move {
        for attempt in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let body = loop {
                let mut chunk = [0; 4096];
                let count = stream.read(&mut chunk).await.unwrap();
                request.extend_from_slice(&chunk[..count]);
                let text = String::from_utf8_lossy(&request);
                if let Some((_, body)) = text.split_once("\r\n\r\n")
                    && let Ok(body) = serde_json::from_str::<Value>(body)
                {
                    break body;
                }
                assert!(count > 0, "{text}");
            };
            let status = status(attempt);
            if status.starts_with("200") {
                seen.lock().unwrap().push(body);
            }
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, taken, server)
}

fn keys(message: &Value) -> Vec<(&str, &str)> {
    let alerts = message["alerts"].as_array().unwrap();
    alerts.iter().map(|alert| (alert["key"].as_str().unwrap(), alert["state"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn a_real_alertmanager_is_told_that_an_alert_has_ended() {
    if !has(ALERTMANAGER) {
        return;
    }
    let (_server, port) = alertmanager("resolves");
    let (words, tasks) = notifier(&[(NotifyKind::Alertmanager, format!("http://127.0.0.1:{port}"))]);
    let client = rayguard::observe::fetch::client().unwrap();
    let active = async || -> Option<Vec<String>> {
        let url = format!("http://127.0.0.1:{port}/api/v2/alerts");
        let alerts: Value =
            serde_json::from_str(&client.get(url).send().await.ok()?.text().await.ok()?).ok()?;
        let key = |alert: &Value| alert["labels"]["alert_key"].as_str().unwrap().to_owned();
        Some(alerts.as_array()?.iter().map(key).collect())
    };
    for subject in ["job-list", "views"] {
        words.send(word(Alert::SloBreached, subject, AlertState::Firing)).await.unwrap();
    }
    eventually("both are active", async || (active().await?.len() == 2).then_some(())).await;
    words.send(word(Alert::SloBreached, "views", AlertState::Resolved)).await.unwrap();
    eventually("one has ended", async || (active().await? == ["slo-breached/job-list"]).then_some(())).await;
    tasks.close();
}

#[tokio::test]
async fn what_comes_together_goes_out_together_once_and_its_end_follows() {
    let (url, taken, _server) = webhook(|_| "200 OK").await;
    let (words, tasks) = notifier(&[(NotifyKind::Webhook, url)]);
    for subject in ["a", "b", "a", "c"] {
        words.send(word(Alert::ShedsRising, subject, AlertState::Firing)).await.unwrap();
    }
    words.send(word(Alert::ShedsRising, "c", AlertState::Resolved)).await.unwrap();
    eventually("a message", async || (!taken.lock().unwrap().is_empty()).then_some(())).await;
    words.send(word(Alert::ShedsRising, "a", AlertState::Resolved)).await.unwrap();
    eventually("its end", async || (taken.lock().unwrap().len() == 2).then_some(())).await;
    tasks.close();
    let taken = taken.lock().unwrap();
    assert_eq!(keys(&taken[0]), [("sheds-rising/a", "firing"), ("sheds-rising/b", "firing")]);
    assert_eq!(keys(&taken[1]), [("sheds-rising/a", "resolved")]);
}

/// News that keeps coming must not put off the next attempt.
#[tokio::test]
async fn a_receiver_that_was_away_is_tried_again_though_news_keep_coming() {
    let (url, taken, _server) =
        webhook(|attempt| if attempt < 2 { "503 Unavailable" } else { "200 OK" }).await;
    let (words, tasks) = notifier(&[(NotifyKind::Webhook, url)]);
    let number = AtomicU32::new(1);
    eventually("it is told after all", async || {
        let subject = number.fetch_add(1, Ordering::Relaxed).to_string();
        let _ = words.send(word(Alert::PinnedFloor, &subject, AlertState::Firing)).await;
        (!taken.lock().unwrap().is_empty()).then_some(())
    })
    .await;
    tasks.close();
    assert!(keys(&taken.lock().unwrap()[0]).contains(&("pinned-floor/1", "firing")), "nothing is lost by it");
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_no_other_and_no_sender() {
    let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, taken, _server) = webhook(|_| "200 OK").await;
    let hung_url = format!("http://{}/", hung.local_addr().unwrap());
    let (words, tasks) = notifier(&[(NotifyKind::Webhook, hung_url), (NotifyKind::Webhook, url)]);
    let many = async {
        // Ten times what a receiver's queue holds.
        for number in 0..2_560 {
            let state = if number % 2 == 0 { AlertState::Firing } else { AlertState::Resolved };
            words.send(word(Alert::SignalStale, &(number / 2).to_string(), state)).await.unwrap();
            tokio::task::yield_now().await;
        }
        words.send(word(Alert::UpstreamDown, "last", AlertState::Firing)).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, many).await.expect("nothing waits for a receiver");
    eventually("the other has heard", async || {
        let again = word(Alert::UpstreamDown, "last", AlertState::Firing);
        let _ = words.send(again).await;
        let taken = taken.lock().unwrap();
        taken.iter().any(|message| keys(message).contains(&("upstream-down/last", "firing"))).then_some(())
    })
    .await;
    tasks.close();
}

#[tokio::test]
async fn a_webhook_that_fails_is_tried_again_until_it_takes_the_alert() {
    let (url, taken, _server) =
        webhook(|attempt| if attempt == 0 { "503 Unavailable" } else { "200 OK" }).await;
    let mut instance = Instance::start(
        "webhook",
        &format!("{QUICK}[[alerts.notify]]\nkind = 'webhook'\nurl = '{url}'\n"),
        None,
    )
    .await;
    instance.head.take();
    let alert = eventually("the second attempt is taken", async || {
        let taken = taken.lock().unwrap();
        taken
            .iter()
            .filter_map(|body| body["alerts"].as_array().cloned())
            .flatten()
            .find(|alert| alert["key"] == "upstream-down")
    })
    .await;
    assert_eq!((alert["state"].as_str(), alert["severity"].as_str()), (Some("firing"), Some("critical")));
}

#[tokio::test]
async fn without_a_receiver_a_test_says_so() {
    let instance = Instance::start("no-receiver", "", None).await;
    let (status, problem) = instance.order("/api/v1/alerts/test", &json!({})).await;
    assert_eq!((status, problem["error"].as_str()), (409, Some("no_receivers")));
}
