//! The page, driven in a real Chromium over its debugging pipe.

use crate::instance::{Instance, PATIENCE, eventually, has};
use rayguard::lab::emulator::{Emulator, EmulatorConfig, MetricsFault};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;
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
        Browser::open_with(name, url, width, "").await
    }

    /// The same, with a script that runs before the page's own.
    async fn open_with(name: &str, url: &str, width: u32, before: &str) -> Browser {
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
        browser.call("Page.enable", json!({})).await;
        browser.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": before})).await;
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
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let came = tokio::time::timeout(PATIENCE, waiting).await.is_ok();
        assert!(came, "never: {expression}; the page says {}", self.says().await);
    }

    /// Waits until the headline is as a pattern has it.
    async fn headline(&mut self, pattern: &str) {
        self.until(&format!("/^{pattern}$/.test(document.querySelector('h1').textContent)")).await;
    }

    /// The first screen as text.
    async fn says(&mut self) -> String {
        let text = self.value("document.getElementById('verdict').innerText").await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// How high and how wide the page is.
    async fn size(&mut self) -> (u64, u64) {
        let root = "document.documentElement";
        let size = self.value(&format!("[{root}.scrollHeight, {root}.scrollWidth]")).await;
        (size[0].as_u64().unwrap(), size[1].as_u64().unwrap())
    }
}

/// Requests from one address of this machine, until dropped.
struct Traffic {
    _running: tokio::task::JoinSet<()>,
}

impl Traffic {
    /// One request after each pause, whether or not those before are answered; `{n}` counts them.
    fn from(address: &str, instance: &Instance, path: &'static str, pause: Duration) -> Traffic {
        let address: IpAddr = address.parse().unwrap();
        let client = rayguard::observe::fetch::builder().unwrap().local_address(address).build().unwrap();
        let base = format!("http://{}", instance.proxy);
        let mut running = tokio::task::JoinSet::new();
        running.spawn(async move {
            let mut every = tokio::time::interval(pause);
            let mut sent = tokio::task::JoinSet::new();
            for n in 0_u64.. {
                every.tick().await;
                while sent.try_join_next().is_some() {}
                let url = format!("{base}{}", path.replace("{n}", &n.to_string()));
                sent.spawn(client.get(url).header("cache-control", "no-cache").send());
            }
        });
        Traffic { _running: running }
    }
}

const JOB: &str = "/api/jobs/raysubmit_0000000000000001";
const TASKS: &str = "/api/v0/tasks?limit=100&filter_keys=name&filter_predicates=%3D&filter_values=step_{n}";

/// A flood is shed at once: one request a second, and next to no queue.
const NARROW: &str =
    "rate = { initial = '1/s', min = '1/s', max = '1/s', burst = 1 }\nqueue = { len = 1, wait = '100ms' }\n";

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
    browser
        .value("document.getElementById('d-why').value = '  '; document.getElementById('d-yes').click()")
        .await;
    browser.until("document.getElementById('d-problem').textContent.startsWith('Enter a reason.')").await;
    assert_eq!(browser.value("document.activeElement.id").await, json!("d-why"));
    assert_eq!(browser.value("document.getElementById('dialog').open").await, json!(true));
    assert_eq!(instance.json("/api/v1/state").await["frozen"], false, "a reason is required");
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
    browser.until("document.getElementById('freeze').textContent === 'Unfreeze limits'").await;
    browser.headline("All limits are frozen").await;
    let says = browser.says().await;
    assert!(says.contains("by page (127.0.0.1): upgrade of the head"), "{says}");
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
    browser.value("document.getElementById('d-why').value = 'test'").await;
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
    let unnamed = "[...document.querySelectorAll('main button, header button, main [role=meter], main .plot')].filter((e) => !e.hidden && \
                   !(e.textContent.trim() || e.getAttribute('aria-label'))).length";
    assert_eq!(browser.value(unnamed).await, json!(0));
    instance.head.take();
    browser.until("document.title.includes('Ray is unreachable')").await;
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
    browser.until(&says("replica-1:1 is one of 2 replicas; this one leads")).await;
    browser.until(&says("The shared store answers.")).await;
    instance.ask("/api/jobs/").await;
    browser.until(&says("job-list in flight: ")).await;
    redis.kill().await.unwrap();
    browser.until(&says("it decides for itself, with an even share")).await;
    browser.headline("The replicas.s? shared store is unreachable").await;
    browser.until("document.querySelector('#replicas .bad')?.textContent.includes('is unreachable')").await;
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
        browser.headline("(Ray.s metrics are stale: .*|.* (is|are) stale)").await;
        let title = browser.value("document.querySelector('h1').textContent").await;
        assert!(title.as_str().unwrap().len() < 80, "{title}");
        let says = browser.says().await;
        assert!(says.contains("do not rise") && says.contains("rayguard doctor"), "{says}");
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

/// Idle, calm and what follows a flood: on a phone, with the figures of what is shed and failed.
#[tokio::test]
async fn rest_and_calm_are_said_and_fit_a_phone() {
    if !has(CHROMIUM) {
        return;
    }
    let instance = Instance::start("page-calm", "", None).await;
    let mut browser = Browser::open("calm", &instance.admin, 390).await;
    browser.headline("Idle: no requests in the last 10 s").await;
    let says = browser.says().await;
    assert!(says.contains("None; Ray is reachable") && says.contains("Nothing shed or failed"), "{says}");
    let pause = Duration::from_millis(200);
    let paths =
        [JOB, "/api/version", "/api/jobs/?n={n}", "/api/v0/actors?limit={n}", "/nodes?view=summary", TASKS];
    let traffic: Vec<Traffic> = (1_u32..)
        .zip(paths)
        .map(|(n, path)| Traffic::from(&format!("127.0.1.{n}"), &instance, path, pause * n))
        .collect();
    browser.headline("Calm: [\\d.]+ requests\\/s, none shed, none failed").await;
    browser.until("document.querySelectorAll('#cards .card').length >= 5").await;
    browser.until("document.querySelectorAll('#clients tbody tr').length === 5").await;
    let (high, wide) = browser.size().await;
    assert!(high <= 2500 && wide <= 390, "{high} x {wide}");
    let open = "document.querySelectorAll('#cards .card[open], #meters .meter').length";
    assert_eq!(browser.value(open).await, json!(0), "what is well is closed");
    assert!(
        browser
            .value("document.getElementById('rest').textContent")
            .await
            .as_str()
            .unwrap()
            .contains("at or below target")
    );
    drop(traffic);
}

/// Who floods what, and what becomes of the others; then two; then the values of a chart; then the end.
#[tokio::test]
async fn a_flood_is_named_with_its_client_class_and_impact() {
    if !has(CHROMIUM) {
        return;
    }
    let config = format!("[class.state-heavy]\n{NARROW}[class.state-light]\n{NARROW}");
    let instance = Instance::start("page-flood", &config, None).await;
    let polite = Traffic::from("127.0.1.1", &instance, JOB, Duration::from_millis(250));
    let one = Traffic::from("127.0.2.1", &instance, TASKS, Duration::from_millis(50));
    let mut browser = Browser::open("flood", &instance.admin, 1280).await;
    browser.headline("127\\.0\\.2\\.1 floods state-heavy: [\\d.]+\\/s shed; everyone else is served").await;
    let why = "/in-flight limit of the class|rate limit of the class/.test(document.getElementById('facts').textContent)";
    browser.until(why).await;
    let says = browser.says().await;
    assert!(says.contains("to state-heavy (/api/v0/tasks)"), "{says}");
    assert!(says.contains(" ago") && says.contains("Ask the owner of 127.0.2.1"), "{says}");
    let shed = "document.querySelector('#clients tbody tr').textContent.startsWith('127.0.2.1')";
    browser.until(shed).await;

    // The pointer over the chart: the figures are those of that time.
    let place = "(() => { const plot = document.querySelector('.card .plot'); plot.scrollIntoView({ block: 'center' }); \
                 const box = plot.getBoundingClientRect(); return [box.right - 3, box.top + 40]; })()";
    let place = browser.value(place).await;
    let moved = json!({"type": "mouseMoved", "x": place[0], "y": place[1]});
    browser.call("Input.dispatchMouseEvent", moved).await;
    tokio::time::sleep(Duration::from_secs(6)).await; // the step is whole
    browser.until("document.querySelectorAll('.card .a-cross').length === 2").await;
    let then = "(async () => { const card = document.querySelector('.card'), at = Number(card.dataset.at); \
                const past = await (await fetch('/api/v1/history')).json(); \
                const shed = past.classes['state-heavy'].shed.filter((_, i) => Math.floor(past.times_ms[i] / 5000) === at); \
                const mean = shed.reduce((a, b) => a + b, 0) / shed.length; \
                const says = Number(/Shed ([\\d.]+)\\/s/.exec(card.querySelector('.plot').getAttribute('aria-valuetext'))[1]); \
                const shown = card.querySelector('.figures').innerText, time = card.querySelector('.axis strong').textContent; \
                return [mean, says, shown.includes('p95') && shown.includes('Failed') && shown.includes(says + '/s'), /^\\d\\d:\\d\\d:\\d\\d$/.test(time)]; })()";
    let then = browser.value(then).await;
    let (mean, says) = (then[0].as_f64().unwrap(), then[1].as_f64().unwrap());
    assert!((mean - says).abs() <= 0.06 && mean > 0.0, "{then}");
    assert_eq!((&then[2], &then[3]), (&json!(true), &json!(true)), "{then}");
    browser.value("document.querySelector('.card .plot').focus()").await;
    browser.key("ArrowLeft", 37).await;
    browser
        .until("/^\\d\\d:/.test(document.querySelector('.card .plot').getAttribute('aria-valuetext'))")
        .await;

    let two = Traffic::from("127.0.2.2", &instance, "/api/v0/actors?limit=1{n}", Duration::from_millis(50));
    let both = "(127\\.0\\.2\\.1 floods state-heavy, 127\\.0\\.2\\.2 floods state-light|127\\.0\\.2\\.2 floods state-light, 127\\.0\\.2\\.1 floods state-heavy)";
    browser.headline(&format!("{both}: [\\d.]+\\/s shed; everyone else is served")).await;
    // A third client is shed beside them: the page no longer says that others are served.
    let third =
        Traffic::from("127.0.1.3", &instance, "/api/v0/actors?limit=2{n}", Duration::from_millis(500));
    browser.headline(&format!("{both}: [\\d.]+\\/s shed; other clients: [\\d.]+\\/s shed")).await;
    drop((one, two, third));
    browser.headline("Calm: [\\d.]+ requests\\/s, none shed, none failed").await;
    let says = browser.says().await;
    assert!(says.contains("Last shed or failed request "), "{says}");
    drop(polite);
}

/// With Ray away nothing is called served; with Ray back, the way up is said.
#[tokio::test]
async fn an_outage_is_said_with_what_fails_and_the_slow_start_after_it() {
    if !has(CHROMIUM) {
        return;
    }
    let mut instance =
        Instance::start("page-down", "[probe]\ninterval = '200ms'\ntimeout = '150ms'", None).await;
    let traffic = Traffic::from("127.0.1.1", &instance, JOB, Duration::from_millis(100));
    let mut browser = Browser::open("down", &instance.admin, 1280).await;
    browser.headline("Calm: .*").await;
    let head = instance.head.take().unwrap();
    let addresses = (head.dashboard, head.metrics, head.dashboard_metrics);
    drop(head);
    browser.headline("Ray is unreachable: [\\d.]+\\/s of [\\d.]+\\/s fail").await;
    let says = browser.says().await;
    assert!(
        says.contains("All clients; failing now: 127.0.1.1")
            && says.contains("failed since")
            && says.contains(" ago"),
        "{says}"
    );
    assert!(!says.contains("served"), "{says}");
    let failed = "Number.parseFloat([...document.querySelectorAll('#totals div')].find((e) => e.textContent.startsWith('Failed')).lastChild.textContent) > 0";
    browser.until(failed).await;
    browser.until("document.querySelector('.card.fails .figures .fail') !== null").await;
    browser.until("Number(document.querySelector('#clients tbody td.fail')?.textContent) > 0").await;
    let config = EmulatorConfig {
        dashboard: addresses.0,
        metrics: addresses.1,
        dashboard_metrics: addresses.2,
        ..EmulatorConfig::default()
    };
    instance.head =
        Some(eventually("the ports are free", async || Emulator::start(config.clone()).await.ok()).await);
    browser.headline("Slow start: Ray is reachable again; limits rise until .*").await;
    let says = browser.says().await;
    assert!(
        says.contains("Unreachable for ") && says.contains("failed; in-flight limits start low"),
        "{says}"
    );
    drop(traffic);
}

/// More submitted jobs than Ray starts.
#[tokio::test]
async fn a_job_backlog_is_said_with_its_target() {
    if !has(CHROMIUM) {
        return;
    }
    let instance = Instance::start("page-backlog", "[signal.submission_backlog]\ntarget = 2", None).await;
    let head = instance.head.as_ref().unwrap().dashboard;
    for _ in 0..60 {
        let job = json!({"entrypoint": "python job.py"}).to_string();
        let request = instance.client.post(format!("http://{head}/api/jobs/"));
        request.header("content-type", "application/json").body(job).send().await.unwrap();
    }
    let mut browser = Browser::open("backlog", &instance.admin, 390).await;
    browser.headline("[\\d.]+ submitted jobs have not started \\(target 2\\); nothing is shed").await;
    let says = browser.says().await;
    assert!(
        says.contains("about as fast as Ray starts jobs") && says.contains("--entrypoint-num-cpus"),
        "{says}"
    );
    browser
        .until("document.querySelector('#meters .meter.over')?.textContent.includes('submission_backlog')")
        .await;
}

/// In shadow mode nothing is shed, and the page says what would have been.
#[tokio::test]
async fn shadow_mode_says_that_ray_is_not_protected() {
    if !has(CHROMIUM) {
        return;
    }
    let instance = Instance::start("page-shadow", &format!("[class.state-heavy]\n{NARROW}"), None).await;
    let order = json!({"mode": "shadow", "why": "first week"});
    assert_eq!(instance.order("/api/v1/mode", &order).await.0, 200);
    let traffic = Traffic::from("127.0.2.1", &instance, TASKS, Duration::from_millis(100));
    let mut browser = Browser::open("shadow", &instance.admin, 390).await;
    browser.headline("Shadow mode: nothing is shed; [\\d.]+\\/s would be").await;
    let says = browser.says().await;
    assert!(
        says.contains("Most: 127.0.2.1") && says.contains("requests would have been shed in the last"),
        "{says}"
    );
    assert!(says.contains("Ray is not protected") && says.contains(": first week"), "{says}");
    assert!(browser.size().await.1 <= 390);
    drop(traffic);
}

/// Answers of rayguard, changed on their way: states that are hard to bring about.
const BENT: &str = "const real = window.fetch; window.bend = {}; window.fetch = async (path, options) => { \
    const answer = await real(path, options), name = /api.v1.([a-z]+)/.exec(path)[1]; \
    if (!window.bend[name] || !answer.ok) return answer; \
    const body = await answer.json(); window.bend[name](body); return new Response(JSON.stringify(body)); };";

#[tokio::test]
async fn failures_alerts_and_a_rejected_configuration_are_said() {
    if !has(CHROMIUM) {
        return;
    }
    let instance = Instance::start("page-bent", "", None).await;
    let traffic = Traffic::from("127.0.1.1", &instance, JOB, Duration::from_millis(200));
    let mut browser = Browser::open_with("bent", &instance.admin, 1280, BENT).await;
    browser.headline("Calm: .*").await;
    let fails = "window.bend.history = (h) => { h.classes['job-status'].failed = h.times_ms.map(() => 2); }; \
                 window.bend.clients = (c) => { for (const r of c.clients) { r.failed = r.classes[0].failed = 2 * Math.round(Date.now() / 1000); } }";
    browser.value(fails).await;
    browser.headline("job-status fails: [\\d.]+\\/s of [\\d.]+\\/s").await;
    let says = browser.says().await;
    assert!(says.contains("Ray answered 500 or above, too late, or broke off"), "{says}");
    let ill = "window.bend = { state: (s) => { s.upstream_problem = 'answered with status 503'; } }";
    browser.value(ill).await;
    browser.headline("Ray fails its health check: .*").await;
    assert!(!browser.says().await.contains("unreachable"));
    let many = "window.bend = { state: (s) => { s.awaits_restart = ['listen', 'upstream']; }, \
                history: (h) => { h.classes['job-status'].shed = h.times_ms.map(() => 3); }, \
                clients: (c) => { const one = c.clients[0], sent = 3 * Math.round(Date.now() / 1000); \
                    c.clients = [...Array(10).keys()].map((n) => ({ ...one, client: String(n), address: '10.0.0.' + n, \
                        classes: [{ ...one.classes[0], class: 'job-status', asked: sent, shed: sent }] })); } }";
    browser.value(many).await;
    browser.headline("job-status sheds [\\d.]+\\/s of [\\d.]+\\/s, from 1[01] clients").await;
    let says = browser.says().await;
    assert!(!says.contains("served") && says.contains("A restart of rayguard is needed"), "{says}");
    assert!(says.contains("in listen and upstream"), "{says}");
    let rejected = "window.bend = { state: (s) => { s.config_problem = 'rayguard.toml:3: unknown key'; s.alerts = [ \
                    { key: 'slo-breached/job-list', severity: 'warning', since: 0, summary: 'latency of job-list is 2x its SLO', description: 'See `rayguard log`.', runbook: 'javascript:alert(1)' }, \
                    { key: 'loop-hunting/job-list', severity: 'warning', since: 0, summary: 'it swings', description: 'x', runbook: '#alert-loop-hunting' }, \
                    { key: 'pinned-floor/job-list', severity: 'warning', since: 0, summary: 'at its floor', description: 'x', runbook: 'https://wiki.example/pinned-floor' }]; } }";
    browser.value(rejected).await;
    browser.until("document.querySelectorAll('#alerts li').length === 3").await;
    browser.headline("(job-status fails: .*|New configuration rejected; the previous one is in force)").await;
    let links = "[...document.querySelectorAll('#alerts a')].map((a) => a.href).sort()";
    let place = "https://github.com/rayguard/rayguard/blob/main/config/deploy/RUNBOOK.md";
    assert_eq!(
        browser.value(links).await,
        json!([place, format!("{place}#alert-loop-hunting"), "https://wiki.example/pinned-floor"])
    );
    assert_eq!(
        browser.value("document.querySelector('#alerts code').textContent").await,
        json!("rayguard log")
    );
    browser.headline("New configuration rejected; the previous one is in force").await;
    let says = browser.says().await;
    assert!(
        says.contains("rayguard.toml:3: unknown key")
            && says.contains("latency of job-list is 2x its SLO. Since "),
        "{says}"
    );
    drop(traffic);
}
