//! Listeners: accepting connections, and letting them go in good order.
//!
//! A connection costs memory before it has said anything, so there are bounds on connections
//! in all and per address, and on the time a client may take to say what it wants. Running out
//! of file descriptors pauses accepting; it does not end it.

use crate::proxy::door::Front;
use crate::proxy::handle::{Peer, handle};
use crate::proxy::upstream::timer;
use crate::runtime::tasks::Tasks;
use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper::{Request, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;

/// Bounds on what a client may ask of a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Connections in all.
    pub connections_max: usize,
    /// Connections of one address.
    pub connections_per_address_max: usize,
    /// A request's head must be complete within this.
    pub head_timeout: Duration,
    /// The largest head, in bytes.
    pub head_bytes_max: usize,
    /// Headers in a head.
    pub headers_max: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            connections_max: 16_384,
            connections_per_address_max: 4_096,
            head_timeout: Duration::from_secs(15),
            head_bytes_max: 64 * 1024,
            headers_max: 128,
        }
    }
}

/// Who is connected.
#[derive(Debug, Default)]
struct Connections(Mutex<HashMap<IpAddr, usize>>);

/// One connection, counted for as long as it lives.
struct Counted {
    connections: Arc<Connections>,
    address: IpAddr,
}

impl Connections {
    fn enter(self: &Arc<Self>, address: IpAddr, bounds: &Bounds) -> Option<Counted> {
        let mut by_address = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize =
            if by_address.len() > bounds.connections_max { usize::MAX } else { by_address.values().sum() };
        let own = by_address.entry(address).or_default();
        if all >= bounds.connections_max || *own >= bounds.connections_per_address_max {
            if *own == 0 {
                by_address.remove(&address);
            }
            return None;
        }
        *own += 1;
        Some(Counted { connections: Arc::clone(self), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut by_address = self.connections.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// Accepts until the tasks are closed; connections then finish what is under way. Each request
/// goes by the front as it is at that moment.
pub async fn serve(listener: TcpListener, front: Arc<ArcSwap<Front>>, tasks: Tasks, bounds: Bounds) {
    let connections = Arc::new(Connections::default());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: those connected go on, newcomers wait.
                tracing::warn!(%error, "cannot accept a connection; trying again in 50 ms");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let address = peer.ip().to_canonical();
        let Some(counted) = connections.enter(address, &bounds) else {
            tracing::debug!(%address, "too many connections; this one is closed");
            continue;
        };
        // A failure here costs latency, not correctness.
        let _ = stream.set_nodelay(true);
        let (front, closing) = (Arc::clone(&front), tasks.clone());
        tasks.spawn(async move {
            converse(stream, Peer { address, tls: false }, front, closing, bounds).await;
            drop(counted);
        });
    }
}

/// Speaks HTTP/1.1 or HTTP/2 on one connection until it ends.
async fn converse<S>(stream: S, peer: Peer, front: Arc<ArcSwap<Front>>, tasks: Tasks, bounds: Bounds)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(timer())
        .header_read_timeout(bounds.head_timeout)
        .max_buf_size(bounds.head_bytes_max.max(8192))
        .max_headers(bounds.headers_max)
        .http2()
        .timer(timer())
        .max_header_list_size(u32::try_from(bounds.head_bytes_max).unwrap_or(u32::MAX))
        .max_concurrent_streams(256)
        .max_pending_accept_reset_streams(32)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let service = service_fn(move |request: Request<Incoming>| {
        let front = front.load();
        let (door, entrance) = (Arc::clone(&front.door), Arc::clone(&front.entrance));
        async move { Ok::<_, Infallible>(handle(door, entrance, peer, request).await) }
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tasks.closed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(address = %peer.address, %error, "connection ended early");
    }
}
