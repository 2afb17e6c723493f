//! The binary itself: started, restarted, starved, and given new certificates, under traffic.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

#[path = "door/rig.rs"]
mod rig;

use rayguard::runtime::tasks::Tasks;
use rig::{Client, Ray, get, until};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
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

    /// A configuration for a door at `listen` before `ray`.
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
    fn start(&self, shell: &str, stdin: Stdio) -> Guard {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = Command::new("sh")
            .args(["-c", &format!("{shell}; exec \"$0\" run --config \"$1\"")])
            .arg(env!("CARGO_BIN_EXE_rayguard"))
            .arg(self.path("rayguard.toml"))
            .env("TOKIO_WORKER_THREADS", "2")
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Guard(child)
    }

    /// Starts the program with this socket handed over as systemd does it.
    fn start_with(&self, socket: &TcpListener) -> Guard {
        let socket = OwnedFd::from(socket.try_clone().unwrap());
        let shell = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$";
        self.start(shell, Stdio::from(socket))
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
struct Guard(Child);

impl Guard {
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

impl Drop for Guard {
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
    let mut guard = home.start_with(&socket);
    let load = Load::begin(&tasks, address, 8);
    for _ in 0..3 {
        load.serves_more("served before the restart").await;
        guard.tell("TERM");
        assert!(guard.ended().await, "{}", home.log());
        guard = home.start_with(&socket);
    }
    load.serves_more("served after the last").await;
    load.stop.store(true, Ordering::SeqCst);
    assert_eq!(load.failed.load(Ordering::SeqCst), 0, "of {} requests\n{}", load.served(), home.log());
}

#[tokio::test]
async fn a_shared_request_under_way_is_finished_while_the_door_drains() {
    let (home, tasks) = (Home::new("drain-shared"), Tasks::default());
    let ray = Ray::start(&tasks).await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    home.configure(ray.address, address, "listen = 'LISTEN'");
    let mut guard = home.start_with(&socket);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(address).await;
        client.send(get("/api/jobs/", &["x-do: hold"])).await;
        clients.push(client);
    }
    until("Ray has it", || ray.count() == 1).await;
    // A request on their heels shows that all were read.
    let mut last = Client::connect(address).await;
    last.send(get(PATH, &[])).await;
    assert_eq!(last.answer().await.status, 200);
    guard.tell("TERM");
    until("it drains", || home.log().contains("winding up") || home.log().contains("draining")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    ray.hold.add_permits(1);
    for client in &mut clients {
        assert_eq!(client.answer().await.text(), "held", "{}", home.log());
    }
    assert!(guard.ended().await, "{}", home.log());
}

#[tokio::test]
async fn without_descriptors_left_the_door_serves_those_it_has() {
    let (home, tasks) = (Home::new("descriptors"), Tasks::default());
    let ray = Ray::start(&tasks).await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    drop(socket);
    home.configure(ray.address, address, "listen = 'LISTEN'");
    let mut guard = home.start("ulimit -n 64", Stdio::null());
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
        assert_eq!(early.answer().await.status, 200, "whoever was there goes on");
    }
    assert!(guard.runs());
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
    let guard = home.start_with(&socket);
    let before = CertificateDer::from_pem_file(fixture("server.pem")).unwrap();
    assert_eq!(shown(address).await, Some(before.clone()));

    // One that does not go with its key changes nothing.
    publish(&volume, "2", "renewed.pem", "server.key");
    guard.tell("HUP");
    until("the refusal is said", || home.log().contains("the new certificate is refused")).await;
    assert_eq!(shown(address).await, Some(before));

    publish(&volume, "3", "renewed.pem", "renewed.key");
    guard.tell("HUP");
    until("it is taken over", || home.log().contains("the new certificate is in force")).await;
    let after = CertificateDer::from_pem_file(fixture("renewed.pem")).unwrap();
    assert_eq!(shown(address).await, Some(after));
}

/// Starts the program on a port of its own, once it listens there.
fn started(home: &Home, ray: SocketAddr, more: &str) -> (Guard, SocketAddr) {
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
    let (head, door, stranger) = (Home::new("tls-head"), Home::new("tls-door"), Home::new("tls-stranger"));
    let tasks = Tasks::default();
    let ray = Ray::start(&tasks).await;
    // A door that ends TLS is the TLS upstream of the next.
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
    let (_door, trusting) = started(&door, ray.address, &behind("authority.pem"));
    for _ in 0..3 {
        assert_eq!(status(trusting, &[]).await.0, 200, "{}", door.log());
    }
    let (_stranger, wary) = started(&stranger, ray.address, &behind("renewed-authority.pem"));
    let (refused, why) = status(wary, &[]).await;
    assert_eq!(refused, 502, "{why}");
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn an_api_key_is_good_from_when_its_file_names_it_until_it_does_no_more() {
    let (home, tasks) = (Home::new("keys"), Tasks::default());
    let ray = Ray::start(&tasks).await;
    let file = home.path("keys");
    std::fs::write(&file, "# nobody yet\n").unwrap();
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
