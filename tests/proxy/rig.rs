//! A proxy between a raw client and a raw upstream, all on ephemeral loopback ports.
//!
//! The upstream does what the request's `x-do` header says, so that any path, and with it any
//! class, can be made slow, broken or chatty. Both ends speak HTTP by hand: what is asserted
//! is what stands on the wire.
#![allow(dead_code, unreachable_pub, reason = "shared by several test binaries")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

use rayguard::core::policy::{ClassId, Policy};
pub use rayguard::core::request::catalogue::policy;
use rayguard::core::request::catalogue::{self, Surface};
use rayguard::core::request::classify::{Classifier, Rule};
use rayguard::core::request::identify::Identifier;
use rayguard::proxy::clock::Clock;
use rayguard::proxy::cores::Cores;
use rayguard::proxy::listen::{self, Listener, ListenerLimits};
use rayguard::proxy::routing::Routing;
use rayguard::proxy::state::{ListenerState, ProxyState, ShedNote};
use rayguard::proxy::tasks::Tasks;
use rayguard::proxy::upstream::{Address, Options, Upstream};
use rayguard::proxy::websocket;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

/// The place of a class in [`policy`].
pub fn class(name: &str) -> ClassId {
    let at = catalogue::CLASSES.iter().position(|class| class.name == name).unwrap();
    ClassId(u8::try_from(at).unwrap())
}

/// A proxy that listens.
pub struct Rig {
    pub proxy: Arc<ProxyState>,
    pub routing: Arc<Routing>,
    pub address: SocketAddr,
    pub ray: Arc<Ray>,
    pub sheds: mpsc::Receiver<ShedNote>,
    pub cores: Option<Cores>,
}

/// What differs from one test to the next.
pub struct Setup {
    pub surface: Surface,
    pub bounds: ListenerLimits,
    pub options: Options,
    pub upstream: Option<Address>,
    pub policy: Policy,
    /// The operator's routes.
    pub rules: Vec<Rule>,
    /// SHA-256 of the API keys that were handed out.
    pub keys: Vec<[u8; 32]>,
    /// Whether the head is of a Ray whose handlers are known.
    pub reads_are_known: bool,
    /// Threads that serve connections, in addition to the test's.
    pub cores: Option<Cores>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            surface: Surface::Dashboard,
            bounds: ListenerLimits::default(),
            options: Options::default(),
            upstream: None,
            policy: policy(),
            rules: Vec::new(),
            keys: Vec::new(),
            reads_are_known: false,
            cores: None,
        }
    }
}

impl Rig {
    pub async fn start() -> Rig {
        Rig::with(Setup::default()).await
    }

    pub async fn with_policy(change: impl FnOnce(&mut Policy)) -> Rig {
        let mut setup = Setup::default();
        change(&mut setup.policy);
        Rig::with(setup).await
    }

    pub async fn with(setup: Setup) -> Rig {
        let address = rayguard::config::settings::Address::Tcp("127.0.0.1:0".parse().unwrap());
        Rig::on(Listener::bind(&address).await.unwrap(), setup).await
    }

    /// A proxy behind this listener.
    pub async fn on(listener: Listener, setup: Setup) -> Rig {
        let tasks = Tasks::over(setup.cores.as_ref().map(Cores::handles).unwrap_or_default());
        // It does not go down with the proxy.
        let ray = Ray::start(&Tasks::default()).await;
        let clock = Clock::start();
        let (note, sheds) = mpsc::channel(1024);
        // 127.0.0.1 speaks for others: `x-forwarded-for` names the client in these tests.
        let identifier = Identifier::new([1, 2], vec!["127.0.0.1/32".parse().unwrap()], Vec::new())
            .with_keys("x-rayguard-key".into(), setup.keys);
        let classifier = Classifier::new(&setup.policy, setup.surface, &setup.rules).unwrap();
        let proxy = ProxyState::new(Arc::new(setup.policy), identifier, clock, tasks.clone(), note);
        let address = setup.upstream.unwrap_or(Address::Tcp(ray.address.to_string()));
        let upstream = Upstream::new(address, setup.options, clock, tasks.clone());
        let routing = Routing::new(setup.surface, classifier, upstream);
        let routing = Arc::new(routing.with_reads(Arc::new(setup.reads_are_known.into())));
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let address = listener.local_address().unwrap_or(unknown);
        let state = ListenerState::new(Arc::clone(&proxy), Arc::clone(&routing));
        tasks.spawn(listen::serve(listener, state, tasks.clone(), setup.bounds));
        Rig { proxy, routing, address, ray, sheds, cores: setup.cores }
    }

    pub async fn client(&self) -> Client<TcpStream> {
        Client::connect(self.address).await
    }

    /// One request on a connection of its own.
    pub async fn ask(&self, request: &str) -> Answer {
        let mut client = self.client().await;
        client.send(request).await;
        client.answer().await
    }

    /// `GET path` with these header lines.
    pub async fn get(&self, path: &str, headers: &[&str]) -> Answer {
        self.ask(&get(path, headers)).await
    }

    pub fn in_flight(&self, name: &str) -> u32 {
        self.proxy.admission.load(class(name)).0
    }

    pub fn waiting(&self, name: &str) -> u32 {
        self.proxy.admission.load(class(name)).1
    }
}

/// The request line and head of a GET.
pub fn get(path: &str, headers: &[&str]) -> String {
    let mut head = format!("GET {path} HTTP/1.1\r\nhost: ray\r\n");
    for line in headers {
        head.push_str(line);
        head.push_str("\r\n");
    }
    head + "\r\n"
}

/// A client's part, beside others.
pub type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs them all side by side, to the end.
pub async fn all(tasks: Vec<Task>) {
    let mut left = tasks;
    std::future::poll_fn(|context| {
        left.retain_mut(|task| task.as_mut().poll(context).is_pending());
        if left.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Waits until something holds; the bound is there so that a failing test ends.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never came to pass: {what}");
}

/// A raw client.
pub struct Client<S> {
    pub stream: S,
    buffer: Vec<u8>,
    /// How long the other end may say nothing.
    patience: Duration,
}

/// An answer as it stood on the wire.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// Whether the body was delimited by the end of the connection.
    pub closed: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The first value of a header in a raw head.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

impl Client<TcpStream> {
    pub async fn connect(address: SocketAddr) -> Client<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn over(stream: S) -> Client<S> {
        Client { stream, buffer: Vec::new(), patience: Duration::from_secs(20) }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends what the other end may have no ear for any more.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
        let _ = self.stream.flush().await;
    }

    /// More bytes, or `None` at the end.
    async fn more(&mut self) -> Option<()> {
        let mut chunk = vec![0; 16 * 1024];
        let read = tokio::time::timeout(self.patience, self.stream.read(&mut chunk))
            .await
            .expect("an answer in time")
            .unwrap_or(0);
        self.buffer.extend_from_slice(&chunk[..read]);
        (read > 0).then_some(())
    }

    pub async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 4);
                return Some(head);
            }
            self.more().await?;
        }
    }

    /// The next answer.
    pub async fn answer(&mut self) -> Answer {
        self.try_answer().await.expect("an answer before the end")
    }

    pub async fn try_answer(&mut self) -> Option<Answer> {
        loop {
            let head = self.head().await?;
            let status: u16 = head.split(' ').nth(1)?.parse().ok()?;
            if status == 100 {
                continue;
            }
            if status == 101 || status == 204 || status == 304 {
                return Some(Answer { status, head, body: Vec::new(), closed: false });
            }
            let (body, closed) = if header(&head, "transfer-encoding").is_some() {
                (self.chunked().await?, false)
            } else if let Some(length) = header(&head, "content-length") {
                (self.exact(length.parse().ok()?).await?, false)
            } else {
                while self.more().await.is_some() {}
                (std::mem::take(&mut self.buffer), true)
            };
            return Some(Answer { status, head, body, closed });
        }
    }

    /// Exactly so many bytes.
    pub async fn exact(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Some(self.buffer.drain(..length).collect())
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Some(line);
            }
            self.more().await?;
        }
    }

    pub async fn chunked(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(self.line().await?.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Some(body);
            }
            body.extend(self.exact(size).await?);
            self.line().await?;
        }
    }

    /// The next WebSocket message or control frame, fragments put together: its opcode and payload. `None` at the
    /// end of the connection.
    pub async fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        let (mut kind, mut message) = (0, Vec::new());
        loop {
            let head = self.exact(2).await?;
            let length = match head[1] & 0x7f {
                126 => u16::from_be_bytes(self.exact(2).await?.try_into().unwrap()).into(),
                127 => usize::try_from(u64::from_be_bytes(self.exact(8).await?.try_into().unwrap())).unwrap(),
                short => usize::from(short),
            };
            let (opcode, payload) = (head[0] & 15, self.exact(length).await?);
            if opcode >= 8 {
                return Some((opcode, payload));
            }
            kind = if opcode == 0 { kind } else { opcode };
            message.extend(payload);
            if head[0] & 0x80 != 0 {
                return Some((kind, message));
            }
        }
    }

    /// The next message, as text.
    pub async fn said(&mut self) -> String {
        String::from_utf8(self.message().await.expect("a message before the end").1).unwrap()
    }

    /// Whether the other end has closed.
    pub async fn is_closed(&mut self) -> bool {
        self.more().await.is_none()
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// A request as Ray saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
    pub connection: usize,
}

impl Seen {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or("")
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// The upstream.
pub struct Ray {
    pub address: SocketAddr,
    pub seen: Mutex<Vec<Seen>>,
    /// Heads that have arrived, bodies perhaps not.
    pub begun: std::sync::atomic::AtomicUsize,
    /// What `x-do: hold` waits for.
    pub hold: Semaphore,
    pub connections: std::sync::atomic::AtomicUsize,
    pub under_way: std::sync::atomic::AtomicUsize,
    pub under_way_max: std::sync::atomic::AtomicUsize,
}

use std::sync::atomic::Ordering::SeqCst;

impl Ray {
    pub async fn start(tasks: &Tasks) -> Arc<Ray> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ray = Arc::new(Ray {
            address: listener.local_addr().unwrap(),
            seen: Mutex::default(),
            begun: 0.into(),
            hold: Semaphore::new(0),
            connections: 0.into(),
            under_way: 0.into(),
            under_way_max: 0.into(),
        });
        let (server, spawner) = (Arc::clone(&ray), tasks.clone());
        tasks.spawn_until_closed(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let ray = Arc::clone(&server);
                spawner.spawn_until_closed(async move { ray.serve(stream).await });
            }
        });
        ray
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    async fn serve(&self, stream: TcpStream) {
        let connection = self.connections.fetch_add(1, SeqCst);
        // A connection that is kept may be idle for long.
        let mut line = Client { patience: Duration::from_secs(3600), ..Client::over(stream) };
        while let Some(head) = line.head().await {
            self.begun.fetch_add(1, SeqCst);
            let task = header(&head, "x-do").unwrap_or("").to_owned();
            let body = if header(&head, "transfer-encoding").is_some() {
                line.chunked().await
            } else {
                let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
                line.exact(length).await
            };
            let Some(body) = body else { return };
            let echo = body.clone();
            self.seen.lock().unwrap().push(Seen { head: head.clone(), body, connection });
            let under_way = self.under_way.fetch_add(1, SeqCst) + 1;
            self.under_way_max.fetch_max(under_way, SeqCst);
            let goes_on = self.act(&task, &head, echo, &mut line).await;
            self.under_way.fetch_sub(1, SeqCst);
            if !goes_on {
                return;
            }
        }
    }

    /// Answers by what the request's `x-do` header says; whether the connection goes on.
    async fn act(&self, task: &str, head: &str, body: Vec<u8>, line: &mut Client<TcpStream>) -> bool {
        let (verb, rest) = task.split_once(':').unwrap_or((task, ""));
        match verb {
            "hold" => {
                self.hold.acquire().await.unwrap().forget();
                reply(line, 200, "held").await
            }
            "slow" => {
                tokio::time::sleep(Duration::from_millis(rest.parse().unwrap())).await;
                reply(line, 200, "slow").await
            }
            "status" => reply(line, rest.parse().unwrap(), "as told").await,
            "break" => false,
            "break-body" => {
                let _ = line.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
                false
            }
            "fall-silent" => {
                let _ = line.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
                self.hold.acquire().await.is_ok()
            }
            "last" => {
                reply(line, 200, "last").await;
                false
            }
            "echo" => {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                line.stream.write_all(head.as_bytes()).await.is_ok()
                    && line.stream.write_all(&body).await.is_ok()
            }
            "big" => {
                let length: usize = rest.parse().unwrap();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                line.stream.write_all(head.as_bytes()).await.is_ok()
                    && line.stream.write_all(&vec![b'x'; length]).await.is_ok()
            }
            "hold-big" => {
                self.hold.acquire().await.unwrap().forget();
                let length: usize = rest.parse().unwrap();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                line.stream.write_all(head.as_bytes()).await.is_ok()
                    && line.stream.write_all(&vec![b'x'; length]).await.is_ok()
            }
            "close-delimited" => {
                let _ = line.stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
                false
            }
            "raw" => line.stream.write_all(rest.replace("\\r\\n", "\r\n").as_bytes()).await.is_ok(),
            "chunked" => {
                let text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                            5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 11\r\n\r\n";
                line.stream.write_all(text.as_bytes()).await.is_ok()
            }
            "stream" => {
                // A line per permit, until there are none and the semaphore is closed.
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                if line.stream.write_all(head.as_bytes()).await.is_err() {
                    return false;
                }
                while let Ok(permit) = self.hold.acquire().await {
                    permit.forget();
                    if line.stream.write_all(b"5\r\nline\n\r\n").await.is_err() {
                        return false;
                    }
                }
                line.stream.write_all(b"0\r\n\r\n").await.is_ok()
            }
            "websocket-late" => {
                // Shakes hands when there is a permit, then says nothing.
                let Ok(permit) = self.hold.acquire().await else { return false };
                permit.forget();
                line.stream.write_all(SWITCH).await.is_ok() && self.hold.acquire().await.is_ok()
            }
            "websocket-log" => {
                // So many lines with so many milliseconds between them, then a Close; whether it is answered is for
                // the client to see. From the first line on for each client, as Ray does it.
                let (lines, pause) = rest.split_once(':').unwrap();
                let pause = Duration::from_millis(pause.parse().unwrap());
                if line.stream.write_all(SWITCH).await.is_err() {
                    return false;
                }
                for number in 0..lines.parse().unwrap() {
                    let text = websocket::text_frame(&log_line(number));
                    if line.stream.write_all(&text).await.is_err() {
                        return false;
                    }
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
                let _ = line.stream.write_all(&websocket::close_frame(websocket::NORMAL)).await;
                // As Ray: until it is answered, or has not been for ten seconds.
                let answer = tokio::time::timeout(Duration::from_secs(10), line.more()).await;
                drop(answer);
                false
            }
            "drip" => {
                // So many lines with so many milliseconds between them, as server-sent events.
                let (lines, pause) = rest.split_once(':').unwrap();
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                let mut sent = line.stream.write_all(head.as_bytes()).await.is_ok();
                for _ in 0..lines.parse::<usize>().unwrap() {
                    tokio::time::sleep(Duration::from_millis(pause.parse().unwrap())).await;
                    sent &= line.stream.write_all(b"9\r\ndata: x\n\n\r\n").await.is_ok();
                }
                sent && line.stream.write_all(b"0\r\n\r\n").await.is_ok()
            }
            "websocket-text" => {
                let mut said = SWITCH.to_vec();
                said.extend(websocket::text_frame(rest));
                line.stream.write_all(&said).await.is_ok() && self.hold.acquire().await.is_ok()
            }
            "websocket" => {
                assert!(header(head, "upgrade").is_some(), "no upgrade: {head}");
                let said = [SWITCH, &websocket::text_frame("hello")].concat();
                line.stream.write_all(&said).await.unwrap();
                // A line per permit; closes when the semaphore does. What the client says comes back.
                let mut chunk = [0; 1024];
                let mut open = true;
                loop {
                    tokio::select! {
                        permit = self.hold.acquire() => match permit {
                            Ok(permit) => {
                                permit.forget();
                                let tick = websocket::text_frame("tick");
                                if line.stream.write_all(&tick).await.is_err() { return false; }
                            }
                            Err(_) => return false,
                        },
                        read = line.stream.read(&mut chunk), if open => match read {
                            Ok(0) | Err(_) => open = false,
                            Ok(read) => { let _ = line.stream.write_all(&chunk[..read]).await; }
                        },
                    }
                }
            }
            "head" => {
                // Once there is a permit, this head and an empty body.
                self.hold.acquire().await.unwrap().forget();
                let head = rest.replace("\\r\\n", "\r\n");
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{head}\r\n\r\n");
                line.stream.write_all(head.as_bytes()).await.is_ok()
            }
            _ => reply_with(line, 200, "set-cookie: a=b\r\nset-cookie: c=d\r\n", "ray").await,
        }
    }
}

const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
                        connection: upgrade\r\nsec-websocket-accept: abc\r\n\r\n";

/// A line of the log of `websocket-log`.
pub fn log_line(number: usize) -> String {
    format!("{number:06} {}\n", "of a log that says a thing or two ".repeat(6))
}

async fn reply(line: &mut Client<TcpStream>, status: u16, text: &str) -> bool {
    reply_with(line, status, "", text).await
}

async fn reply_with(line: &mut Client<TcpStream>, status: u16, headers: &str, text: &str) -> bool {
    let head = format!(
        "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\nx-ray: yes\r\n{headers}\r\n{text}",
        text.len()
    );
    line.stream.write_all(head.as_bytes()).await.is_ok()
}
