//! A whole rayguard on ephemeral loopback ports, in front of an emulated head.

use crate::described::{check_answer, check_order};
use rayguard::admin;
use rayguard::admin::access::Access;
use rayguard::admin::listen::Listener;
use rayguard::config::settings::{Address, NotifyUrl};
use rayguard::config::{self, Overrides};
use rayguard::core::request::catalogue::Surface;
use rayguard::lab::emulator::{Emulator, EmulatorConfig, Running};
use rayguard::observe::adjustment_log::{self, AdjustmentLog, LogThread, Writer};
use rayguard::observe::notify::{self, Options, Receiver};
use rayguard::proxy::clock::Clock;
use rayguard::proxy::listen::{self, ListenerLimits};
use rayguard::proxy::tasks::Tasks;
use rayguard::proxy::upstream;
use rayguard::runtime::app::{App, Outlets};
use rayguard::runtime::reload;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Long enough for the slowest machine; only a failing test waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Instance {
    pub(crate) app: Arc<App>,
    pub(crate) head: Option<Running>,
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: String,
    pub(crate) client: reqwest::Client,
    /// The configuration's file.
    pub(crate) file: PathBuf,
    dir: PathBuf,
}

impl Instance {
    /// With this configuration in addition to what the ports need; changes take `token`.
    pub(crate) async fn start(name: &str, config: &str, token: Option<&str>) -> Instance {
        let head = Emulator::start(EmulatorConfig::default()).await.unwrap();
        let dir = std::env::temp_dir().join(format!("rayguard-admin-{name}-{}", std::process::id()));
        let text = format!(
            "upstream = 'http://{}'\nlisten = '127.0.0.1:0'\nstate_dir = '{}'\n{config}\n[metrics]\ntargets = ['{}', '{}']\n\
             discover = false\ndiscovery_file = 'off'\ninterval = '1s'\ntimeout = '900ms'\n",
            head.dashboard,
            dir.display(),
            head.metrics,
            head.dashboard_metrics
        );
        let settings = Arc::new(
            config::parse(&text, "test", &Overrides::default())
                .unwrap_or_else(|problems| panic!("{problems}")),
        );
        let (clock, tasks) = (Clock::start(), Tasks::default());
        let (adjustment_log, thread) = record(dir.join("adjustment-log"));
        std::thread::spawn(move || thread.run());
        let (alerts, transitions) = mpsc::channel(256);
        let app = App::new(
            Arc::clone(&settings),
            &[],
            [1, 2],
            clock,
            tasks.clone(),
            Outlets { adjustment_log, alerts },
        );
        let receivers = settings.alerts.notify.iter().map(|spec| {
            let NotifyUrl::Plain(url) = &spec.url else { panic!("tests name receivers in the open") };
            Receiver { kind: spec.kind, url: url.clone(), token: None }
        });
        let options = Options {
            receivers: receivers.collect(),
            repeat: settings.alerts.repeat,
            runbook: None,
            page: "http://rayguard.example/".parse().ok(),
        };
        let notifier = notify::start(&tasks, clock, options, transitions);
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy_address = proxy.local_addr().unwrap();
        let upstream = upstream::Address::Tcp(head.dashboard.to_string());
        let state = app.listener_state(Surface::Dashboard, upstream).unwrap();
        tasks.spawn(listen::serve(proxy, state, tasks.clone(), ListenerLimits::default()));
        let listener = Listener::bind(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).await.unwrap();
        let admin = format!("http://{}", listener.address());
        let path = dir.join("rayguard.toml");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(&path, &text).unwrap();
        let source = reload::Source { path: path.clone(), overrides: Overrides::default() };
        let reloader = reload::start(&app, Some(source), Vec::new());
        let access = Access::new(token, vec!["instance.test".into()]);
        admin::start(&app, listener, access, notifier, reloader);
        rayguard::runtime::watch::start(&app);
        rayguard::runtime::head_version::start(&app);
        // Until then all modules are one process, and what is asked is numbered by another policy.
        eventually("the version of the emulated head", async || app.ray().version).await;
        let client = rayguard::observe::fetch::client().unwrap();
        Instance { app, head: Some(head), proxy: proxy_address, admin, client, file: path, dir }
    }

    /// An answer's status and body, which must be as described.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.client.get(format!("{}{path}", self.admin)).send().await.unwrap();
        let (status, is_json) =
            (answer.status().as_u16(), answer.headers()["content-type"] == "application/json");
        let body = answer.text().await.unwrap();
        if is_json {
            check_answer("get", path, status, &serde_json::from_str(&body).unwrap());
        }
        (status, body)
    }

    /// An answer that must be 200 and JSON.
    pub(crate) async fn json(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// What comes of an order; it must be described, as must the order be that is carried out.
    pub(crate) async fn order(&self, path: &str, order: &serde_json::Value) -> (u16, serde_json::Value) {
        let request =
            self.client.post(format!("{}{path}", self.admin)).header("content-type", "application/json");
        let answer = request.body(order.to_string()).send().await.unwrap();
        let (status, answer) =
            (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap());
        check_answer("post", path, status, &answer);
        if status == 200 {
            check_order(path, order);
        }
        (status, answer)
    }

    /// Sends a request through the proxy; its status.
    pub(crate) async fn ask(&self, path: &str) -> u16 {
        self.client.get(format!("http://{}{path}", self.proxy)).send().await.unwrap().status().as_u16()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.app.tasks.close();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn record(dir: PathBuf) -> (AdjustmentLog, LogThread) {
    let options = adjustment_log::Options { dir, file_bytes_max: 1 << 20, files_max: 2 };
    adjustment_log::channel(Writer::open(options).0, 4096)
}

/// Asks again until there is an answer.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Whether a program that a test needs is there. In CI it has to be.
pub(crate) fn has(program: &str) -> bool {
    let there = std::path::Path::new(program).exists();
    let must = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(there || !must, "{program} is missing, and CI needs it");
    if !there {
        println!("skipped: {program} is missing");
    }
    there
}
