//! The page, driven in a real Chromium over its debugging pipe.

use crate::instance::{Instance, PATIENCE, eventually, has};
use rayguard::emulator::MetricsFault;
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const CHROMIUM: &str = "/usr/bin/chromium";

/// A browser with one page; ended when dropped.
struct Browser {
    _child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    id: u64,
    dir: std::path::PathBuf,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Browser {
    /// Opens a page as wide as a screen.
    async fn open(name: &str, url: &str, width: u32) -> Browser {
        let dir = std::env::temp_dir().join(format!("rayguard-page-{name}-{}", std::process::id()));
        // The debugging pipe is descriptors 3 and 4: requests in, answers out.
        let script = format!(
            "exec {CHROMIUM} --headless --no-sandbox --disable-gpu --no-first-run --user-data-dir='{}' \
             --remote-debugging-pipe about:blank 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null",
            dir.display()
        );
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut browser = Browser { _child: child, to, from, session: None, id: 0, dir };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        let screen = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600});
        browser.call("Emulation.setDeviceMetricsOverride", screen).await;
        browser.call("Page.navigate", json!({"url": url})).await;
        browser.until("document.body?.dataset.ready === 'yes'").await;
        browser
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.id += 1;
        let mut request = json!({"id": self.id, "method": method, "params": params});
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).await.unwrap();
        let answer = async {
            loop {
                let mut message = Vec::new();
                self.from.read_until(0, &mut message).await.unwrap();
                message.pop();
                let message: Value = serde_json::from_slice(&message).unwrap();
                if message["id"] == self.id {
                    assert!(message["error"].is_null(), "{method}: {message}");
                    return message["result"].clone();
                }
            }
        };
        tokio::time::timeout(PATIENCE, answer).await.unwrap()
    }

    /// The value of an expression.
    async fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        self.call("Runtime.evaluate", params).await["result"]["value"].clone()
    }

    /// Presses a key and lets go of it.
    async fn key(&mut self, key: &str, code: u32) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let press =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            self.call("Input.dispatchKeyEvent", press).await;
        }
    }

    async fn until(&mut self, expression: &str) {
        let waiting = async {
            while self.value(expression).await != json!(true) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never: {expression}");
    }
}

#[tokio::test]
async fn limits_are_frozen_by_button_with_confirmation_and_reason() {
    if !has(CHROMIUM) {
        return;
    }
    let instance = Instance::start("page-freeze", "", None).await;
    let mut browser = Browser::open("freeze", &instance.admin, 1280).await;
    browser.value("document.getElementById('freeze').click()").await;
    assert_eq!(browser.value("document.getElementById('dialog').open").await, json!(true));
    assert_eq!(instance.json("/api/v1/state").await["frozen"], false);
    browser.value("document.getElementById('d-why').value = 'upgrade of the head'").await;
    browser.value("document.getElementById('d-yes').click()").await;
    browser.until("!document.getElementById('dialog').open").await;
    let state = instance.json("/api/v1/state").await;
    assert_eq!(state["frozen"], true);
    let events = instance.json("/api/v1/events").await;
    let change = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["event"] == "mode_change")
        .unwrap()
        .clone();
    assert_eq!(change["why"], "upgrade of the head");
    assert_eq!(change["who"], "page (127.0.0.1)");
    browser.until("document.getElementById('freeze').textContent === 'Let limits move'").await;
}

#[tokio::test]
async fn the_token_is_asked_for_and_a_wrong_one_is_told() {
    if !has(CHROMIUM) {
        return;
    }
    let instance = Instance::start("page-token", "", Some("s3cret")).await;
    let mut browser = Browser::open("token", &instance.admin, 1280).await;
    browser.value("document.getElementById('freeze').click()").await;
    assert_eq!(browser.value("document.getElementById('d-token-row').hidden").await, json!(false));
    browser
        .value("document.getElementById('d-token').value = 'wrong'; document.getElementById('d-yes').click()")
        .await;
    browser.until("document.getElementById('d-problem').textContent.includes('not the admin token')").await;
    assert_eq!(instance.json("/api/v1/state").await["frozen"], false);
    browser
        .value(
            "document.getElementById('d-token').value = 's3cret'; document.getElementById('d-yes').click()",
        )
        .await;
    browser.until("!document.getElementById('dialog').open").await;
    assert_eq!(instance.json("/api/v1/state").await["frozen"], true);
    assert_eq!(browser.value("localStorage.length + sessionStorage.length").await, json!(0));
}

#[tokio::test]
async fn what_is_read_is_shown_as_text_and_fits_a_phone() {
    if !has(CHROMIUM) {
        return;
    }
    let mut instance =
        Instance::start("page-text", "[probe]\ninterval = '200ms'\ntimeout = '150ms'", None).await;
    let hostile = "<img src=x onerror=alert(1)>";
    let pin = json!({"class": "job-list", "limit": "in_flight", "value": 2, "for": "1h", "why": hostile});
    assert_eq!(instance.order("/api/v1/pin", &pin).await.0, 200);
    eventually("a request is in the history", async || {
        instance.ask("/api/jobs/").await;
        let history = instance.json("/api/v1/history").await;
        let offered = history["classes"]["job-list"]["offered"]
            .as_array()?
            .iter()
            .any(|rate| rate.as_f64() > Some(0.0));
        offered.then_some(())
    })
    .await;
    let mut browser = Browser::open("text", &instance.admin, 390).await;
    browser.until("document.getElementById('held').textContent.includes('<img src=x')").await;
    assert_eq!(browser.value("document.querySelectorAll('main img').length").await, json!(0));
    browser.until("document.querySelector('.card h3')?.textContent.startsWith('job-list')").await;
    let wide = browser.value("document.documentElement.scrollWidth").await.as_u64().unwrap();
    assert!(wide <= 390, "{wide}");
    let unnamed = "[...document.querySelectorAll('main button, header button, main [role=meter], main svg')].filter((e) => !e.hidden && \
                   !(e.textContent.trim() || e.getAttribute('aria-label'))).length";
    assert_eq!(browser.value(unnamed).await, json!(0));
    instance.head.take();
    browser.until("document.title.includes('Ray does not answer')").await;
}

#[tokio::test]
async fn a_proxy_among_several_says_who_decides_and_what_it_has_leased() {
    if !has(CHROMIUM) || !has("/usr/bin/redis-server") {
        return;
    }
    let alone = Instance::start("page-alone", "", None).await;
    let mut browser = Browser::open("alone", &alone.admin, 1280).await;
    assert_eq!(browser.value("document.getElementById('replicas').hidden").await, json!(true));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut redis = Command::new("/usr/bin/redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--port", &port])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let config = format!("[replicas]\nurl = 'redis://127.0.0.1:{port}'\ncount = 2\nname = 'replica-1'");
    let instance = Instance::start("page-replicas", &config, None).await;
    let replicas = instance.app.settings().replicas.clone().unwrap();
    let mut replica = rayguard::replicas::Replica::new(&instance.app, &replicas, None, "host", "1").unwrap();
    replica.begin().await;
    replica.start();
    let mut browser = Browser::open("replicas", &instance.admin, 390).await;
    let says =
        |text: &str| format!("document.getElementById('replicas').textContent.includes({})", json!(text));
    browser.until(&says("replica-1:1 is one of 2 replicas; this one decides for all")).await;
    browser.until(&says("The shared store answers.")).await;
    instance.ask("/api/jobs/").await;
    browser.until(&says("job-list in flight: ")).await;
    redis.kill().await.unwrap();
    browser.until(&says("it decides for itself, with an even share")).await;
    browser.until("document.querySelector('#replicas .bad')?.textContent.includes('cannot be asked')").await;
    let wide = browser.value("document.documentElement.scrollWidth").await.as_u64().unwrap();
    assert!(wide <= 390, "{wide}");
}

/// What stands at the top when Ray's metrics are gone, and who asks, at every width.
#[tokio::test]
async fn a_head_without_metrics_is_one_matter_and_clients_are_named() {
    if !has(CHROMIUM) {
        return;
    }
    let config = "[signal.head_cpu]\nstale_after = '3s'\n[signal.head_memory]\nstale_after = '3s'\n\
                  [signal.pending_tasks]\nstale_after = '3s'\n[alerts.rule.signal-stale]\nfor = '0s'";
    let instance = Instance::start("page-stale", config, None).await;
    eventually("readings have come", async || {
        let state = instance.json("/api/v1/state").await;
        let fresh = state["signals"].as_array()?.iter().filter(|signal| signal["health"] == "fresh").count();
        (fresh > 10).then_some(())
    })
    .await;
    instance.ask("/api/v0/actors").await;
    let hostile = instance.client.get(format!("http://{}/<b>%3Cimg%3E/x", instance.proxy));
    hostile.header("authorization", "Bearer <b>").send().await.unwrap();
    instance.head.as_ref().unwrap().set_metrics_fault(MetricsFault::Unavailable);
    for width in [1280, 390] {
        let mut browser = Browser::open(&format!("stale-{width}"), &instance.admin, width).await;
        let flying =
            "/^(Flying without|Ray.s readings are stale)/.test(document.querySelector('h1').textContent)";
        browser.until(flying).await;
        let title = browser.value("document.querySelector('h1').textContent").await;
        assert!(title.as_str().unwrap().len() < 80, "{title}");
        browser.until("document.querySelectorAll('#alerts li').length === 1").await;
        browser.until("document.getElementById('stale').textContent.includes('stale: ')").await;
        browser.until("document.getElementById('clients').textContent.includes('127.0.0.1')").await;
        assert_eq!(browser.value("document.querySelectorAll('main img, main b').length").await, json!(0));
        let wide = browser.value("document.documentElement.scrollWidth").await.as_u64().unwrap();
        assert!(wide <= u64::from(width), "{wide}");
    }
}

/// A limit can be pinned without a mouse, and leaving the dialogue changes nothing.
#[tokio::test]
async fn a_limit_is_pinned_with_the_keyboard_alone() {
    if !has(CHROMIUM) {
        return;
    }
    let instance = Instance::start("page-keys", "", None).await;
    eventually("a request is in the history", async || {
        instance.ask("/api/jobs/").await;
        let history = instance.json("/api/v1/history").await;
        let offered = history["classes"]["job-list"]["offered"].as_array()?;
        offered.iter().any(|rate| rate.as_f64() > Some(0.0)).then_some(())
    })
    .await;
    let mut browser = Browser::open("keys", &instance.admin, 1280).await;
    let focused = "document.activeElement.getAttribute('aria-label') === 'Pin a limit of job-list'";
    browser.until("document.querySelector('[aria-label=\"Pin a limit of job-list\"]') !== null").await;
    let mut steps = 0;
    while browser.value(focused).await != json!(true) {
        browser.key("Tab", 9).await;
        steps += 1;
        assert!(steps < 40, "the button is not reached by Tab");
    }
    browser.key("Enter", 13).await;
    browser.until("document.getElementById('dialog').open").await;
    browser.key("Escape", 27).await;
    browser.until("!document.getElementById('dialog').open").await;
    assert_eq!(instance.json("/api/v1/state").await["pins"], json!([]));
    assert_eq!(browser.value(focused).await, json!(true), "the focus is back where it was");
    browser.key("Enter", 13).await;
    browser.until("document.getElementById('dialog').open").await;
    browser.value("document.getElementById('d-why').focus()").await;
    browser.call("Input.insertText", json!({"text": "by hand"})).await;
    browser.key("Enter", 13).await;
    browser.until("!document.getElementById('dialog').open").await;
    let pin = instance.json("/api/v1/state").await["pins"][0].clone();
    assert_eq!((&pin["class"], &pin["why"]), (&json!("job-list"), &json!("by hand")));
}
