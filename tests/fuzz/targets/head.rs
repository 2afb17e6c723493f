//! Bytes on a connection of HTTP/1, at the live listener before an upstream: what reaches the
//! upstream can be read in one way only.
#![no_main]

#[path = "../../proxy/rig.rs"]
mod rig;

use libfuzzer_sys::fuzz_target;
use rayguard_config::settings::Address;
use rayguard_proxy::listen::{Listener, ListenerLimits};
use rig::{Rig, Setup};
use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// An input whose answer waits for a time-out is left behind after this.
const PATIENCE: Duration = Duration::from_millis(5);

struct Front {
    runtime: tokio::runtime::Runtime,
    rig: Rig,
    socket: PathBuf,
}

thread_local! {
    static FRONT: OnceCell<Front> = const { OnceCell::new() };
}

impl Front {
    fn open() -> Front {
        let socket = std::env::temp_dir().join(format!("rayguard-fuzz-head-{}", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rig = runtime.block_on(async {
            let listener = Listener::bind(&Address::Unix(socket.clone())).await.unwrap();
            Rig::on(listener, Setup { bounds: ListenerLimits::default(), ..Setup::default() }).await
        });
        Front { runtime, rig, socket }
    }

    /// Says all this, and listens until everything has been said.
    fn say(&self, bytes: &[u8]) {
        self.runtime.block_on(async {
            let mut stream = UnixStream::connect(&self.socket).await.unwrap();
            let (mut from, mut to) = stream.split();
            let saying = async {
                let _ = to.write_all(bytes).await;
                let _ = to.shutdown().await;
            };
            let listening = async {
                let mut buffer = vec![0; 64 * 1024];
                while matches!(from.read(&mut buffer).await, Ok(1..)) {}
            };
            let _ = tokio::time::timeout(PATIENCE, async { tokio::join!(saying, listening) }).await;
        });
    }

    /// Heads that the upstream has received since the last time.
    fn seen(&self) -> Vec<rig::Seen> {
        std::mem::take(&mut *self.rig.ray.seen.lock().unwrap())
    }
}

fn count(head: &str, field: &str) -> usize {
    let is_field =
        |line: &&str| line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(field));
    head.lines().filter(is_field).count()
}

fuzz_target!(|bytes: &[u8]| {
    FRONT.with(|front| {
        let front = front.get_or_init(Front::open);
        front.say(bytes);
        for rig::Seen { head, .. } in front.seen() {
            let lengths = count(&head, "content-length");
            assert!(count(&head, "host") <= 1 && lengths <= 1, "{head:?}");
            assert!(lengths == 0 || count(&head, "transfer-encoding") == 0, "{head:?}");
            assert!(!head.lines().skip(1).any(|line| line.starts_with([' ', '\t'])), "{head:?}");
        }
    });
});
