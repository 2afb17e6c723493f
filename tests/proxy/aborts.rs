//! Clients that leave at any moment: while they connect, in the middle of a head or a body, before, in and after the
//! answer, in the handshake of a WebSocket and within it, on HTTP/1 and HTTP/2. Whatever they held comes back.

use super::rig::{self, Client, Rig, Setup, all, get, until};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rayguard::core::request::catalogue::{CLASSES, Surface};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const ABORTS: u64 = 3000;
const AT_ONCE: u64 = 20;

/// SplitMix64: the same moments in each run, as far as a real clock lets them be.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }

    fn size(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }

    async fn moment(&mut self) {
        tokio::time::sleep(Duration::from_micros(self.below(6000))).await;
    }

    /// Something that Ray does with a request.
    fn task(&mut self) -> String {
        match self.below(6) {
            0 => "x-do: break".to_owned(),
            1 => "x-do: break-body".to_owned(),
            2 => format!("x-do: big:{}", self.below(300_000)),
            3 => "x-do: chunked".to_owned(),
            4 => format!("x-do: slow:{}", self.below(8)),
            _ => "x-do: nothing".to_owned(),
        }
    }
}

/// One client, from its first byte to the moment it leaves.
async fn come_and_go(address: SocketAddr, number: u64) {
    let mut dice = Dice(number);
    let task = dice.task();
    let request = match dice.below(6) {
        0 => get("/api/jobs/", &[&task]),
        1 => get(&format!("/api/jobs/{number}"), &[&task]),
        2 => {
            let body = dice.size(100_000);
            let head = format!("PUT /api/packages/gcs/{number}.zip HTTP/1.1\r\nhost: ray\r\n{task}\r\n");
            format!("{head}content-length: {body}\r\n\r\n{}", "b".repeat(body))
        }
        3 => get(
            &format!("/api/jobs/{}/logs/tail", number % 40),
            &[
                "connection: Upgrade",
                "upgrade: websocket",
                "sec-websocket-version: 13",
                "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
                if dice.below(4) == 0 { "x-do: break" } else { "x-do: websocket" },
            ],
        ),
        4 => return over_http2(address, number, &task, &mut dice).await,
        _ => get("/api/v0/tasks", &[&task]),
    };
    let Ok(stream) = TcpStream::connect(address).await else { return };
    let mut client = Client::over(stream);
    // A third of them leave in the middle of what they ask.
    let whole = dice.below(3) > 0;
    let cut = if whole { request.len() } else { dice.size(request.len()) };
    client.try_send(&request[..cut]).await;
    dice.moment().await;
    if dice.below(2) == 0 {
        let mut some = vec![0; dice.size(50_000) + 1];
        let _ = tokio::time::timeout(Duration::from_millis(3), client.stream.read(&mut some)).await;
    }
}

async fn over_http2(address: SocketAddr, number: u64, task: &str, dice: &mut Dice) {
    let Ok(stream) = TcpStream::connect(address).await else { return };
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let Ok((mut sender, connection)) = shaken else { return };
    let (name, value) = task.split_once(": ").unwrap();
    let asks = |sender: &mut hyper::client::conn::http2::SendRequest<Full<Bytes>>| {
        let uri = format!("http://ray/api/jobs/{number}");
        let request = http::Request::get(uri).header(name, value).body(Full::new(Bytes::from_static(b"b")));
        sender.send_request(request.unwrap())
    };
    let (first, second) = (asks(&mut sender), asks(&mut sender));
    let (reset, bound) = (Duration::from_micros(dice.below(3000)), Duration::from_micros(dice.below(9000)));
    let talk = async {
        // One stream is reset, the other may be read; the connection goes with both.
        let _ = tokio::time::timeout(reset, first).await;
        if let Ok(answer) = second.await {
            let _ = answer.into_body().collect().await;
        }
    };
    tokio::select! {
        _ = connection => {}
        _ = tokio::time::timeout(bound, talk) => {}
    }
}

#[tokio::test]
async fn three_thousand_clients_that_leave_at_any_moment_leave_no_permit_held() {
    for surface in [Surface::Dashboard, Surface::Serve] {
        let rig = Rig::with(Setup { surface, ..Setup::default() }).await;
        for round in 0..ABORTS / 2 / AT_ONCE {
            let numbers = (0..AT_ONCE).map(|n| round * AT_ONCE + n);
            let address = rig.address;
            all(numbers.map(|n| Box::pin(come_and_go(address, n)) as rig::Task).collect()).await;
        }
        // Ray ends the tails it holds; all else has ended or ends by itself.
        rig.ray.hold.close();
        for class in CLASSES {
            until(class.name, || rig.proxy.admission.load(rig::class(class.name)) == (0, 0)).await;
        }
        until("no connection is left", || rig.proxy.connections.count() == 0).await;
        assert_eq!(rig.get("/api/version", &[]).await.status, 200);
        println!("{surface:?}: {} requests reached Ray", rig.ray.count());
        assert!(rig.ray.count() > 200, "most of them got as far as Ray: {}", rig.ray.count());
    }
}
