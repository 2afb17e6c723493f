//! The binary itself: started, restarted, starved, and given new certificates, under traffic.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

#[path = "proxy/rig.rs"]
mod rig;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rayguard::proxy::tasks::Tasks;
use rayguard::proxy::websocket::{CLOSE, GOING_AWAY, NORMAL, answer_frame};
use rig::{Client, Ray, get, until};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const PATH: &str = "/api/jobs/raysubmit_1";

/// A directory of one test, gone with it.
struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Home {
        let home = std::env::temp_dir().join(format!("rayguard-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&home).unwrap();
        Home(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A configuration for a proxy at `listen` before `ray`.
    fn configure(&self, ray: SocketAddr, listen: SocketAddr, more: &str) {
        let text = format!(
            "upstream = 'http://{ray}'\nstate_dir = '{}'\n{more}\n[admin]\nlisten = 'off'\n\
             [metrics]\ndiscovery_file = 'off'\ndiscover = false\n[probe]\nenabled = false\n\
             [class.job-status]\nrate = 'off'\nin_flight = 10000\n",
            self.path("state").display()
        );
        std::fs::write(self.path("rayguard.toml"), text.replace("LISTEN", &listen.to_string())).unwrap();
    }

    /// Starts the program by a line of shell that ends in `exec rayguard`.
    fn start(&self, shell: &str, stdin: Stdio) -> App {
        self.start_between(shell, stdin, Stdio::null())
    }

    fn start_between(&self, shell: &str, stdin: Stdio, stdout: Stdio) -> App {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = Command::new("sh")
            .args(["-c", &format!("{shell}; exec \"$0\" run --config \"$1\"")])
            .arg(env!("CARGO_BIN_EXE_rayguard"))
            .arg(self.path("rayguard.toml"))
            .env("TOKIO_WORKER_THREADS", "2")
            .stdin(stdin)
            .stdout(stdout)
            .stderr(log)
            .spawn()
            .unwrap();
        App(child)
    }

    /// Starts the program with this socket handed over as systemd does it.
    fn start_with(&self, socket: &TcpListener) -> App {
        let socket = OwnedFd::from(socket.try_clone().unwrap());
        let shell = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$";
        self.start(shell, Stdio::from(socket))
    }

    /// The same with two.
    fn start_with_both(&self, sockets: [&TcpListener; 2]) -> App {
        let [first, second] = sockets.map(|socket| Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
        let shell = "exec 3<&0 4>&1 </dev/null >/dev/null; export LISTEN_FDS=2 LISTEN_PID=$$";
        self.start_between(shell, first, second)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The program.
struct App(Child);

impl App {
    fn tell(&self, signal: &str) {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.0.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    async fn ended(&mut self) -> bool {
        for _ in 0..2000 {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.success();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it goes on");
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clients on kept connections, who count what they get and mend nothing.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    served: AtomicUsize,
    failed: AtomicUsize,
}

impl Load {
    fn begin(tasks: &Tasks, to: SocketAddr, clients: usize) -> Arc<Load> {
        let load = Arc::new(Load::default());
        for _ in 0..clients {
            let load = Arc::clone(&load);
            tasks.spawn(async move { load.client(to).await });
        }
        load
    }

    async fn client(&self, to: SocketAddr) {
        let mut kept = None;
        while !self.stop.load(Ordering::SeqCst) {
            let client = match kept.take() {
                Some(client) => Some(client),
                None => TcpStream::connect(to).await.ok().map(Client::over),
            };
            let Some(mut client) = client else {
                self.failed.fetch_add(1, Ordering::SeqCst);
                continue;
            };
            client.try_send(get(PATH, &[])).await;
            match client.try_answer().await {
                Some(answer) if answer.status == 200 => {
                    self.served.fetch_add(1, Ordering::SeqCst);
                    kept = (answer.header("connection") != Some("close")).then_some(client);
                }
                _ => {
                    self.failed.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    async fn serves_more(&self, what: &str) {
        let before = self.served();
        until(what, || self.served() > before + 100).await;
    }
}

#[tokio::test]
async fn a_restart_with_the_socket_handed_over_fails_no_request() {
    let (home, tasks) = (Home::new("restart"), Tasks::default());
    let ray = Ray::start(&tasks).await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    home.configure(ray.address, address, "listen = 'LISTEN'");
    let mut app = home.start_with(&socket);
    let load = Load::begin(&tasks, address, 8);
    for _ in 0..3 {
        load.serves_more("served before the restart").await;
        app.tell("TERM");
        assert!(app.ended().await, "{}", home.log());
        app = home.start_with(&socket);
    }
    load.serves_more("served after the last").await;
    load.stop.store(true, Ordering::SeqCst);
    assert_eq!(load.failed.load(Ordering::SeqCst), 0, "of {} requests\n{}", load.served(), home.log());
}

#[tokio::test]
async fn what_is_known_of_clients_outlives_the_process_unless_it_is_not_to() {
    for kept in [true, false] {
        let (home, tasks) = (Home::new(&format!("history-{kept}")), Tasks::default());
        let ray = Ray::start(&tasks).await;
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        home.configure(ray.address, address, &format!("listen = 'LISTEN'\n[identity]\nhistory = {kept}"));
        for life in 0..2 {
            let mut app = home.start_with(&socket);
            let load = Load::begin(&tasks, address, 1);
            load.serves_more("served in calm").await;
            load.stop.store(true, Ordering::SeqCst);
            app.tell("TERM");
            assert!(app.ended().await, "{}", home.log());
            let known = home.log().contains("restored the history of clients");
            assert_eq!(known, kept && life == 1, "{}", home.log());
        }
        for name in ["state/history", "state/identity.key", "state/costs.json"] {
            let file = std::fs::metadata(home.path(name));
            assert_eq!(file.is_ok(), kept, "{name}");
            assert!(file.is_err() || file.unwrap().permissions().mode() & 0o777 == 0o600, "{name}");
        }
    }
}

/// A gRPC server that takes its time and says back what it heard.
async fn repeats(tasks: &Tasks) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, spawner) = (listener.local_addr().unwrap(), tasks.clone());
    tasks.spawn_until_closed(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = |request: http::Request<hyper::body::Incoming>| async {
                let body = request.into_body().collect().await?.to_bytes();
                tokio::time::sleep(Duration::from_millis(100)).await;
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                let body = Full::new(body).with_trailers(async { Some(Ok(trailers)) });
                let response =
                    http::Response::builder().header("content-type", "application/grpc").body(body);
                Ok::<_, hyper::Error>(response.unwrap())
            };
            spawner.spawn_until_closed(async move {
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer))
                    .await;
            });
        }
    });
    address
}

/// One gRPC call on a connection of its own; like any gRPC client it asks again what was told to be unsent.
async fn call(to: SocketAddr) -> Result<(), String> {
    loop {
        let stream = TcpStream::connect(to).await.map_err(|error| error.to_string())?;
        let opened = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = opened.map_err(|error| format!("handshake: {error}"))?;
        let request = http::Request::post(format!("http://{to}/app.Service/Call"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from_static(b"said")))
            .unwrap();
        let asks = async {
            let answer = match sender.try_send_request(request).await {
                Ok(answer) => answer,
                Err(mut error) => match error.take_message() {
                    Some(_) => return Ok(false),
                    None => return Err(error.into_error().to_string()),
                },
            };
            let head = format!("{:?}", answer.headers());
            let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
            let status = body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned());
            if body.to_bytes() != "said" || status.is_none_or(|status| status != "0") {
                return Err(head);
            }
            Ok(true)
        };
        let mut asks = pin!(asks);
        let asked = tokio::select! {
            asked = &mut asks => asked,
            // What was on it knows by now.
            _ = connection => asks.await,
        };
        if asked? {
            return Ok(());
        }
    }
}

/// One request on a connection of its own, answered with 200 and this body.
async fn exchange(to: SocketAddr, request: &str, wanted: &str) -> Result<(), String> {
    let mut client = TcpStream::connect(to).await.map(Client::over).map_err(|error| error.to_string())?;
    client.try_send(request).await;
    match client.try_answer().await {
        Some(answer) if answer.status == 200 && answer.text() == wanted => Ok(()),
        Some(answer) => Err(format!("{} {}", answer.status, answer.text())),
        None => Err("broken off".into()),
    }
}

/// An upload that comes by and by.
async fn upload(to: SocketAddr) -> Result<(), String> {
    let mut client = TcpStream::connect(to).await.map(Client::over).map_err(|error| error.to_string())?;
    let path = "/api/packages/gcs/_ray_pkg_0123456789abcdef.zip";
    client
        .try_send(format!("PUT {path} HTTP/1.1\r\nhost: ray\r\nx-do: echo\r\ncontent-length: 800\r\n\r\n"))
        .await;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        client.try_send([b'p'; 100]).await;
    }
    match client.try_answer().await {
        Some(answer) if answer.status == 200 && answer.body == [b'p'; 800] => Ok(()),
        Some(answer) => Err(format!("{} {}", answer.status, answer.text())),
        None => Err("broken off".into()),
    }
}

/// Follows a log to its end or to the restart, and ends the connection in order.
async fn follow(to: SocketAddr, job: usize) -> Result<(), String> {
    let mut client = TcpStream::connect(to).await.map(Client::over).map_err(|error| error.to_string())?;
    let handshake = get(
        &format!("/api/jobs/raysubmit_{job}/logs/tail"),
        &[
            "connection: Upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
            "x-do: websocket-log:8:40",
        ],
    );
    client.try_send(handshake).await;
    let answer = client.try_answer().await.ok_or("no answer to the handshake")?;
    if answer.status != 101 {
        return Err(format!("{} {}", answer.status, answer.text()));
    }
    let mut lines = 0;
    let close = loop {
        match client.message().await {
            Some((CLOSE, payload)) => break payload,
            Some((_, text)) if text == rig::log_line(lines).as_bytes() => lines += 1,
            Some((_, text)) => return Err(format!("not line {lines}: {}", String::from_utf8_lossy(&text))),
            None => return Err(format!("broken off after {lines} lines")),
        }
    };
    client.try_send(answer_frame(CLOSE, &close)).await;
    let end = client.stream.read(&mut [0; 1]).await;
    match (u16::from_be_bytes(close.try_into().map_err(|_| "a Close without a code")?), lines) {
        (NORMAL, 8) | (GOING_AWAY, _) if matches!(end, Ok(0)) => Ok(()),
        (code, _) => Err(format!("closed with {code} after {lines} lines, then {end:?}")),
    }
}

/// Whatever may be under way when a process is restarted, over and over until told to stop.
struct Mixed {
    stop: AtomicBool,
    done: [AtomicUsize; KINDS.len()],
    failed: Mutex<Vec<String>>,
}

const KINDS: [&str; 8] = ["plain", "shared", "rate", "queue", "upload", "events", "tail", "grpc"];

impl Mixed {
    async fn client(&self, kind: usize, number: usize, [http, grpc]: [SocketAddr; 2]) {
        while !self.stop.load(Ordering::SeqCst) {
            let ended = match KINDS[kind] {
                "plain" => exchange(http, &get(PATH, &["x-do: slow:20"]), "slow").await,
                "shared" => exchange(http, &get("/api/jobs/", &["x-do: slow:300"]), "slow").await,
                "rate" => {
                    let submit = "POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\ncontent-length: 2\r\n\r\n{}";
                    exchange(http, submit, "ray").await
                }
                "queue" => {
                    let path = format!("/api/v0/tasks?limit={number}");
                    exchange(http, &get(&path, &["x-do: slow:60"]), "slow").await
                }
                "upload" => upload(http).await,
                "events" => exchange(http, &get(PATH, &["x-do: drip:6:50"]), &"data: x\n\n".repeat(6)).await,
                "tail" => follow(http, number % 3).await,
                _ => call(grpc).await,
            };
            match ended {
                Ok(()) => drop(self.done[kind].fetch_add(1, Ordering::SeqCst)),
                Err(why) => self.failed.lock().unwrap().push(format!("{}: {why}", KINDS[kind])),
            }
        }
    }

    fn done(&self) -> [usize; KINDS.len()] {
        self.done.each_ref().map(|done| done.load(Ordering::SeqCst))
    }
}

/// Twenty restarts: `RESTARTS=20 cargo test --test lifecycle mixed`.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "asked for by hand")]
async fn a_restart_under_a_mixed_load_fails_nothing() {
    let restarts = std::env::var("RESTARTS").map_or(3, |count| count.parse().unwrap());
    let (home, tasks) = (Home::new("mixed"), Tasks::default());
    let (ray, grpc) = (Ray::start(&tasks).await, repeats(&tasks).await);
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let at = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
    let limits = format!(
        "[[listen]]\naddress = '{}'\n\
         [[listen]]\naddress = '{}'\nkind = 'serve'\nupstream = 'http://{grpc}'\n\
         [class.job-submit]\nrate = {{ initial = '8/s', min = '8/s', max = '8/s', burst = 1 }}\nbacklog = 'off'\n\
         queue = {{ len = 64, wait = '20s' }}\n\
         [class.state-heavy]\nin_flight = 1\nqueue = {{ len = 64, wait = '20s' }}\n\
         [class.packages]\nrate = 'off'\n",
        at[0], at[1]
    );
    home.configure(ray.address, at[0], &limits);
    let mixed =
        Arc::new(Mixed { stop: AtomicBool::new(false), done: Default::default(), failed: Mutex::default() });
    let mut app = home.start_with_both(sockets.each_ref());
    let clients = Tasks::default();
    for number in 0..6 * KINDS.len() {
        let mixed = Arc::clone(&mixed);
        clients.spawn(async move { mixed.client(number % KINDS.len(), number / KINDS.len(), at).await });
    }
    for restart in 0..=restarts {
        let before = mixed.done();
        until("each kind is served", || mixed.done().iter().zip(before).all(|(done, was)| *done > was + 6))
            .await;
        if restart < restarts {
            app.tell("TERM");
            assert!(app.ended().await, "{}", home.log());
            assert!(!home.log().contains("did not finish in time"), "{}", home.log());
            app = home.start_with_both(sockets.each_ref());
        }
    }
    mixed.stop.store(true, Ordering::SeqCst);
    assert!(clients.drain(Duration::from_secs(60)).await);
    let failed = mixed.failed.lock().unwrap();
    assert!(failed.is_empty(), "{failed:#?}\nof {:?}\n{}", mixed.done(), home.log());
}

/// Submissions at 4 in a second: what they were answered, and whether the process ended in good order.
async fn stopped_while_waiting(name: &str, drain: &str) -> Vec<(u16, String)> {
    let (home, tasks) = (Home::new(name), Tasks::default());
    let ray = Ray::start(&tasks).await;
    let limits = format!(
        "listen = 'LISTEN'\nhttp.drain = '{drain}'\n[class.job-submit]\nbacklog = 'off'\n\
         rate = {{ initial = '4/s', min = '4/s', max = '4/s', burst = 1 }}\nqueue = {{ len = 64, wait = '30s' }}"
    );
    let (mut app, address) = started(&home, ray.address, &limits);
    assert_eq!(status(address, &[]).await.0, 200, "it is up");
    let answers = Arc::new(Mutex::new(Vec::new()));
    let clients = Tasks::default();
    let sent = Arc::new(AtomicUsize::new(0));
    for _ in 0..9 {
        let (answers, sent) = (Arc::clone(&answers), Arc::clone(&sent));
        clients.spawn(async move {
            let mut client = Client::connect(address).await;
            client.send("POST /api/jobs/ HTTP/1.1\r\nhost: ray\r\ncontent-length: 2\r\n\r\n{}").await;
            sent.fetch_add(1, Ordering::SeqCst);
            let answer = client.try_answer().await;
            let answer = answer.map_or((0, "broken off".into()), |answer| (answer.status, answer.text()));
            answers.lock().unwrap().push(answer);
        });
    }
    // All have been accepted: a client that comes after the signal finds the port closed.
    until("all have asked, and some wait", || sent.load(Ordering::SeqCst) == 9 && ray.count() >= 3).await;
    app.tell("TERM");
    assert!(app.ended().await, "{}", home.log());
    assert!(clients.drain(Duration::from_secs(10)).await);
    Arc::into_inner(answers).unwrap().into_inner().unwrap()
}

#[tokio::test]
async fn those_who_wait_for_a_rate_have_their_turn_while_the_process_ends() {
    let answers = stopped_while_waiting("served", "30s").await;
    assert_eq!(answers.len(), 9);
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
}

#[tokio::test]
async fn those_whose_turn_does_not_come_before_the_process_ends_are_told_so() {
    let mut answers = stopped_while_waiting("told", "1s").await;
    answers.retain(|(status, _)| *status != 200);
    assert!(!answers.is_empty());
    for (status, why) in answers {
        assert_eq!(status, 503, "{why}");
        assert!(why.contains("shutting down") && why.contains("reason draining"), "{why}");
    }
}

#[tokio::test]
async fn a_shared_request_under_way_is_finished_while_the_proxy_drains() {
    let (home, tasks) = (Home::new("drain-shared"), Tasks::default());
    let ray = Ray::start(&tasks).await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    home.configure(ray.address, address, "listen = 'LISTEN'");
    let mut app = home.start_with(&socket);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(address).await;
        client.send(get("/api/jobs/", &["x-do: hold"])).await;
        clients.push(client);
    }
    until("Ray has it", || ray.under_way.load(Ordering::SeqCst) == 1).await;
    // A request on their heels shows that all were read.
    let mut last = Client::connect(address).await;
    last.send(get(PATH, &[])).await;
    assert_eq!(last.answer().await.status, 200);
    app.tell("TERM");
    until("it drains", || home.log().contains("draining")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    ray.hold.add_permits(1);
    for client in &mut clients {
        assert_eq!(client.answer().await.text(), "held", "{}", home.log());
    }
    assert!(app.ended().await, "{}", home.log());
}

#[tokio::test]
async fn without_descriptors_left_the_proxy_serves_those_it_has() {
    let (home, tasks) = (Home::new("descriptors"), Tasks::default());
    let ray = Ray::start(&tasks).await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    drop(socket);
    home.configure(ray.address, address, "listen = 'LISTEN'");
    let mut app = home.start("ulimit -n 64", Stdio::null());
    for _ in 0..2000 {
        if TcpStream::connect(address).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut early = Client::connect(address).await;
    early.send(get(PATH, &[])).await;
    assert_eq!(early.answer().await.status, 200);
    let mut crowd = Vec::new();
    for _ in 0..200 {
        let Ok(stream) = TcpStream::connect(address).await else { break };
        crowd.push(stream);
    }
    until("it has run out", || home.log().contains("cannot accept a connection")).await;
    for _ in 0..20 {
        early.send(get(PATH, &[])).await;
        assert_eq!(early.answer().await.status, 200, "a client that was there goes on");
    }
    assert!(app.runs());
    drop(crowd);
    let mut late = Client::connect(address).await;
    late.send(get(PATH, &[])).await;
    assert_eq!(late.answer().await.status, 200, "and newcomers are let in again");
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

/// A volume as Kubernetes writes it: files are links into `..data`, itself a link that is replaced.
fn publish(volume: &Path, version: &str, certificate: &str, key: &str) {
    let data = volume.join(format!("..{version}"));
    std::fs::create_dir_all(&data).unwrap();
    std::fs::copy(fixture(certificate), data.join("tls.crt")).unwrap();
    std::fs::copy(fixture(key), data.join("tls.key")).unwrap();
    let next = volume.join("..data_tmp");
    symlink(&data, &next).unwrap();
    std::fs::rename(&next, volume.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        let _ = symlink(volume.join("..data").join(file), volume.join(file));
    }
}

/// The certificate shown to a new connection.
async fn shown(address: SocketAddr) -> Option<CertificateDer<'static>> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in ["authority.pem", "renewed-authority.pem"] {
        roots.add(CertificateDer::from_pem_file(fixture(authority)).unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.ok()?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    Some(stream.get_ref().1.peer_certificates().unwrap()[0].clone())
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let (home, tasks) = (Home::new("renewed"), Tasks::default());
    let ray = Ray::start(&tasks).await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let volume = home.path("volume");
    publish(&volume, "1", "server.pem", "server.key");
    let listen = format!(
        "[[listen]]\naddress = 'LISTEN'\ntls = {{ certificate = '{0}/tls.crt', key = '{0}/tls.key' }}",
        volume.display()
    );
    home.configure(ray.address, address, &listen);
    let app = home.start_with(&socket);
    let before = CertificateDer::from_pem_file(fixture("server.pem")).unwrap();
    assert_eq!(shown(address).await, Some(before.clone()));

    // One that does not go with its key changes nothing.
    publish(&volume, "2", "renewed.pem", "server.key");
    app.tell("HUP");
    until("the refusal is said", || home.log().contains("new certificate rejected")).await;
    assert_eq!(shown(address).await, Some(before));

    publish(&volume, "3", "renewed.pem", "renewed.key");
    app.tell("HUP");
    until("it is taken over", || home.log().contains("certificate reloaded")).await;
    let after = CertificateDer::from_pem_file(fixture("renewed.pem")).unwrap();
    assert_eq!(shown(address).await, Some(after));
}

/// Starts the program on a port of its own, once it listens there.
fn started(home: &Home, ray: SocketAddr, more: &str) -> (App, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    home.configure(ray, address, more);
    (home.start_with(&socket), address)
}

async fn status(to: SocketAddr, headers: &[&str]) -> (u16, String) {
    let mut client = Client::connect(to).await;
    client.send(get(PATH, headers)).await;
    let answer = client.answer().await;
    (answer.status, answer.text())
}

#[tokio::test]
async fn tls_is_spoken_with_an_upstream_that_can_show_who_it_is_and_with_no_other() {
    let (head, proxy, stranger) = (Home::new("tls-head"), Home::new("tls-proxy"), Home::new("tls-stranger"));
    let tasks = Tasks::default();
    let ray = Ray::start(&tasks).await;
    // A proxy that ends TLS is the TLS upstream of the next.
    let front = format!(
        "[[listen]]\naddress = 'LISTEN'\ntls = {{ certificate = '{}', key = '{}' }}",
        fixture("server.pem").display(),
        fixture("server.key").display()
    );
    let (_head, upstream) = started(&head, ray.address, &front);
    let behind = |authority: &str| {
        format!(
            "[[listen]]\naddress = 'LISTEN'\nupstream = 'http://{upstream}'\nupstream_tls = {{ authorities = '{}', name = 'localhost' }}",
            fixture(authority).display()
        )
    };
    let (_proxy, trusting) = started(&proxy, ray.address, &behind("authority.pem"));
    for _ in 0..3 {
        assert_eq!(status(trusting, &[]).await.0, 200, "{}", proxy.log());
    }
    let (_stranger, wary) = started(&stranger, ray.address, &behind("renewed-authority.pem"));
    let (refused, why) = status(wary, &[]).await;
    assert_eq!(refused, 503, "{why}");
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn an_api_key_is_good_from_when_its_file_names_it_until_it_does_no_more() {
    let (home, tasks) = (Home::new("keys"), Tasks::default());
    let ray = Ray::start(&tasks).await;
    let file = home.path("keys");
    std::fs::write(&file, "# no keys yet\n").unwrap();
    let more = format!("listen = 'LISTEN'\n[identity]\napi_keys_file = '{}'", file.display());
    let (_guard, address) = started(&home, ray.address, &more);
    let config = home.path("rayguard.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("in_flight = 10000", "in_flight = 10000\nrequire_key = true"))
        .unwrap();
    let key = ["x-rayguard-key: a key of the night's batch"];
    let becomes = async |wanted: u16, what: &str| {
        for _ in 0..500 {
            if status(address, &key).await.0 == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what}\n{}", home.log());
    };
    becomes(401, "the class takes a key now").await;
    // printf %s "a key of the night's batch" | sha256sum
    let digest = "5ec03e5cded559a4fa8386ded51f6e6d5a0b39f558268e97d35296c13a31d375";
    std::fs::write(&file, format!("nightly {digest}\n")).unwrap();
    becomes(200, "the key is named").await;
    std::fs::write(&file, "nightly not-a-digest\n").unwrap();
    until("the broken file is refused", || home.log().contains("is not an API key")).await;
    assert_eq!(status(address, &key).await.0, 200, "what was in force stays");
    std::fs::write(&file, "# gone again\n").unwrap();
    becomes(401, "the key is named no more").await;
}

macro_rules! pages {
    ($name:literal) => {
        [
            include_str!(concat!("fixtures/ray/scrapes/", $name, "_8080.prom")),
            include_str!(concat!("fixtures/ray/scrapes/", $name, "_44227.prom")),
        ]
    };
}

/// A Ray head as far as rayguard asks it: its version, its health, where its metrics are, and the pages that a head
/// of this version was seen to write. It goes away, and its connections with it, when this is dropped.
struct Head {
    _tasks: tokio::task::JoinSet<()>,
}

impl Head {
    /// At this address; the exporters take ports of the moment, as Ray's do.
    async fn start(dashboard: SocketAddr, version: &str, pages: [&'static str; 2]) -> Head {
        let mut tasks = tokio::task::JoinSet::new();
        let mut targets = Vec::new();
        for page in pages {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            targets.push(listener.local_addr().unwrap().to_string());
            tasks.spawn(answer_all(listener, move |_| Some(("text/plain", page.to_owned()))));
        }
        let version = serde_json::json!({ "ray_version": version }).to_string();
        let targets = serde_json::json!([{ "labels": { "job": "ray" }, "targets": targets }]).to_string();
        let listener = loop {
            // The head before may still be going.
            match tokio::net::TcpListener::bind(dashboard).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        tasks.spawn(answer_all(listener, move |path| match path {
            "/api/version" => Some(("application/json", version.clone())),
            "/api/prometheus/sd" => Some(("application/json", targets.clone())),
            "/api/gcs_healthz" => Some(("text/plain", "success".to_owned())),
            "/api/jobs/" | "/api/v0/actors" => Some(("application/json", "[]".to_owned())),
            _ => None,
        }));
        Head { _tasks: tasks }
    }
}

/// Answers each request by its path, on connections that end with the listener.
async fn answer_all(
    listener: tokio::net::TcpListener,
    answer: impl Fn(&str) -> Option<(&'static str, String)> + Clone + Send + Sync + 'static,
) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let answer = answer.clone();
        connections.spawn(async move {
            let answer = |request: http::Request<hyper::body::Incoming>| {
                let response = http::Response::builder();
                let response = match answer(request.uri().path()) {
                    Some((kind, body)) => response.header("content-type", kind).body(Full::new(body.into())),
                    None => response.status(404).body(Full::<Bytes>::default()),
                };
                std::future::ready(response)
            };
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer))
                .await;
        });
    }
}

/// Asks again until there is an answer; only a failing test waits so long.
async fn eventually<T>(what: &str, home: &Home, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..1200 {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}\n{}", home.log());
}

#[tokio::test]
async fn a_head_that_is_replaced_by_one_of_another_version_is_taken_for_what_it_is() {
    let home = Home::new("replaced");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let place = TcpListener::bind("127.0.0.1:0").unwrap();
    let dashboard = place.local_addr().unwrap();
    drop(place);
    let text = format!(
        "upstream = 'http://{dashboard}'\nstate_dir = '{}'\nlisten = '{address}'\n[admin]\nlisten = '127.0.0.1:0'\n\
         [metrics]\ndiscovery_file = 'off'\ninterval = '1s'\ntimeout = '900ms'\n[probe]\ninterval = '500ms'\n",
        home.path("state").display()
    );
    std::fs::write(home.path("rayguard.toml"), text).unwrap();

    let head = Head::start(dashboard, "2.60.0", pages!("idle0")).await;
    let mut app = home.start_with(&socket);
    let admin = eventually("the admin listener", &home, async || {
        let log = home.log();
        let said = log.split("admin page, API and metrics address=").nth(1)?;
        Some(format!("http://{}", said.split_whitespace().next()?))
    })
    .await;
    let client = rayguard::observe::fetch::client().unwrap();
    let json = async |path: &str| -> serde_json::Value {
        let answer = client.get(format!("{admin}{path}")).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    };
    let ask = async |path: &str| {
        let answer = client.get(format!("http://{address}{path}")).send().await.unwrap();
        answer.status().as_u16()
    };
    // Which Ray it is, and what is read off the node's page.
    let is_taken_for = async |version: &str, node_cpu: f64| {
        eventually(version, &home, async || {
            let ray = json("/api/v1/state").await["ray"].clone();
            let signals = json("/api/v1/signals").await;
            let read =
                signals.as_array().unwrap().iter().find(|signal| signal["name"] == "node_cpu")?.clone();
            let is_read = read["value"] == node_cpu && read["health"] == "fresh";
            (ray["version"] == version && is_read).then_some(())
        })
        .await;
    };
    let modules = async || -> Vec<String> {
        let limits = json("/api/v1/limits").await;
        let names = limits["modules"].as_array().unwrap().iter();
        names.map(|module| module["name"].as_str().unwrap().to_owned()).collect()
    };
    let status = async || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rayguard"));
        command.args(["status", "--address", &admin]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    is_taken_for("2.60.0", 5.1).await;
    assert!(modules().await.contains(&"JobHead".to_owned()));
    let screen = status().await;
    assert!(screen.contains("2.60.0") && screen.contains("a process of its own"), "{screen}");
    assert_eq!(ask("/api/jobs/").await, 200);

    drop(head);
    eventually("it is noticed that the head is away", &home, async || {
        (ask("/api/jobs/").await == 503).then_some(())
    })
    .await;
    let head = Head::start(dashboard, "2.9.3", pages!("ray2.9.3")).await;
    is_taken_for("2.9.3", 100.0).await;
    assert_eq!(ask("/api/v0/actors").await, 200);
    let modules = modules().await;
    assert!(
        modules.contains(&"Dashboard".to_owned()) && !modules.contains(&"JobHead".to_owned()),
        "{modules:?}"
    );
    let says = "profile 2.9 (made for it): all dashboard modules share one process";
    let screen = status().await;
    assert!(screen.contains("2.9.3") && screen.contains(says), "{screen}");
    assert!(home.log().contains(says), "{}", home.log());
    let events = json("/api/v1/events").await;
    let changes: Vec<&serde_json::Value> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["event"] == "config_change")
        .collect();
    let last = changes.last().unwrap().to_string();
    assert!(last.contains("Ray 2.9.3 at") && last.contains(says), "{last}");

    app.tell("TERM");
    assert!(app.ended().await, "{}", home.log());
    let costs = std::fs::read_to_string(home.path("state/costs.json")).unwrap();
    assert!(costs.contains("2.9.3") && costs.contains("/api/v0/actors"), "{costs}");
    assert!(!costs.contains("/api/jobs/"), "learnt of the head before: {costs}");
    drop(head);
}

#[tokio::test]
async fn a_head_that_keeps_its_version_to_itself_is_not_said_to_be_absent() {
    let (home, tasks) = (Home::new("withheld"), Tasks::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ray = listener.local_addr().unwrap();
    tasks.spawn_until_closed(answer_all(listener, |_| None));
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    home.configure(ray, socket.local_addr().unwrap(), "listen = 'LISTEN'");
    let mut app = home.start_with(&socket);
    let says = "does not report its version: answered with status 404";
    eventually(says, &home, async || home.log().contains(says).then_some(())).await;
    app.tell("TERM");
    assert!(app.ended().await, "{}", home.log());
    assert!(!home.log().contains("no Ray dashboard answers"), "{}", home.log());
}
