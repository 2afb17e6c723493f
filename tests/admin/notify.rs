//! Alerts reach a real Alertmanager and plain webhooks, and survive a receiver that was away.

use crate::gate::{Gate, eventually, has};
use crate::metrics::{Server, free_port};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const ALERTMANAGER: &str = "/usr/bin/prometheus-alertmanager";
const QUICK: &str =
    "[probe]\ninterval = '100ms'\ntimeout = '90ms'\n[alerts.rule.upstream-down]\nfor = '0s'\nclear = '0s'\n";

#[tokio::test]
async fn a_real_alertmanager_takes_an_alert_and_its_end_is_not_its_beginning() {
    if !has(ALERTMANAGER) {
        return;
    }
    let dir = std::env::temp_dir().join(format!("rayguard-alertmanager-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("alertmanager.yml"), "route: {receiver: none}\nreceivers: [{name: none}]\n")
        .unwrap();
    let port = free_port();
    let _server = Server(
        Command::new(ALERTMANAGER)
            .arg(format!("--config.file={}", dir.join("alertmanager.yml").display()))
            .arg(format!("--storage.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let config =
        format!("{QUICK}[[alerts.notify]]\nkind = 'alertmanager'\nurl = 'http://127.0.0.1:{port}'\n");
    let mut gate = Gate::start("alertmanager", &config, None).await;
    eventually("the test alert is taken", async || {
        let (status, tested) = gate.order("/api/v1/alerts/test", &json!({})).await;
        assert_eq!(status, 200);
        tested["receivers"][0]["problem"].is_null().then_some(())
    })
    .await;
    gate.head.take();
    let alert = eventually("the alert is there", async || {
        let url = format!("http://127.0.0.1:{port}/api/v2/alerts");
        let alerts: Value =
            serde_json::from_str(&gate.client.get(url).send().await.ok()?.text().await.ok()?).ok()?;
        alerts.as_array()?.iter().find(|alert| alert["labels"]["alert_key"] == "upstream-down").cloned()
    })
    .await;
    assert_eq!(alert["labels"]["severity"], "critical");
    assert!(alert["annotations"]["summary"].as_str().unwrap().contains("does not answer"));
    assert!(alert["endsAt"].as_str() > alert["startsAt"].as_str());
    let _ = std::fs::remove_dir_all(dir);
}

#[tokio::test]
async fn a_webhook_that_fails_is_tried_again_until_it_takes_the_alert() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let taken: Arc<Mutex<Vec<Value>>> = Arc::default();
    let seen = Arc::clone(&taken);
    let mut server = tokio::task::JoinSet::new();
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
            let status = if attempt == 0 { "503 Service Unavailable" } else { "200 OK" };
            if attempt > 0 {
                seen.lock().unwrap().push(body);
            }
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let mut gate =
        Gate::start("webhook", &format!("{QUICK}[[alerts.notify]]\nkind = 'webhook'\nurl = '{url}'\n"), None)
            .await;
    gate.head.take();
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
    server.abort_all();
}

#[tokio::test]
async fn without_a_receiver_a_test_says_so() {
    let gate = Gate::start("no-receiver", "", None).await;
    let (status, problem) = gate.order("/api/v1/alerts/test", &json!({})).await;
    assert_eq!((status, problem["error"].as_str()), (409, Some("no_receivers")));
}
