//! WebSocket tunnels: log tails.
//!
//! Ray's parent only ever writes to a tail's client, so it does not notice that a client has
//! left: the slot in JobHead stays taken until the log's next line or the job's end (facts G).
//! Closing our side does not free it, it only hides it. So when a client leaves, the tunnel
//! keeps reading from Ray and throws away what comes until Ray closes, and its ticket stays
//! counted for as long as Ray's slot is taken.

use crate::proxy::body::ClientBody;
use crate::proxy::slot::Slot;
use crate::proxy::throttle::Throttle;
use crate::proxy::upstream::{Upstream, UpstreamError};
use crate::proxy::websocket::{self, Frames, GOING_AWAY};
use crate::runtime::tasks::Tasks;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Whether these headers ask for a WebSocket.
#[must_use]
pub fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// How Ray answered a handshake.
pub enum Shaken {
    /// It took it; its end of the line is there once the answer has been read.
    Open(Response<Incoming>, OnUpgrade, Slot),
    /// It declined, and says why.
    Declined(Response<Incoming>, Slot),
}

/// Asks Ray for the upgrade on a connection of its own. `request` has its hop-by-hop headers
/// stripped.
pub async fn shake_hands(
    upstream: &Arc<Upstream>,
    mut request: Request<ClientBody>,
    mut slot: Slot,
) -> Result<Shaken, UpstreamError> {
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    slot.sent();
    match upstream.send_alone(request).await {
        Ok(mut response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let ray = hyper::upgrade::on(&mut response);
            Ok(Shaken::Open(response, ray, slot))
        }
        Ok(response) => Ok(Shaken::Declined(response, slot)),
        Err(error) => {
            slot.failed();
            Err(error)
        }
    }
}

/// Joins the two ends until Ray closes its own or the door goes down. Each is to be had once its
/// answer has been sent. When the client leaves, Ray is told unless it `is_tail`.
pub async fn connect(
    client: OnUpgrade,
    ray: OnUpgrade,
    mut slot: Slot,
    throttle: Option<Throttle>,
    is_tail: bool,
    tasks: Tasks,
) {
    match tokio::try_join!(client, ray) {
        Ok((client, ray)) => {
            join(TokioIo::new(client), TokioIo::new(ray), throttle, is_tail, &tasks).await;
            slot.served();
        }
        Err(_) => slot.failed(), // one side left between handshake and tunnel
    }
}

/// Copies both ways until Ray closes; a client that leaves does not end it. When the door goes down the
/// client is told so, after the frame that is on its way.
async fn join(
    client: impl AsyncRead + AsyncWrite,
    ray: impl AsyncRead + AsyncWrite,
    mut throttle: Option<Throttle>,
    is_tail: bool,
    tasks: &Tasks,
) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_ray, mut to_ray) = tokio::io::split(ray);
    let upward = async {
        // Ends when the client leaves. A tail's other side stays open: closing it would free our
        // socket and leave Ray's slot taken, out of our sight. Any other server is told.
        let _ = tokio::io::copy(&mut from_client, &mut to_ray).await;
        if !is_tail {
            let _ = to_ray.shutdown().await;
        }
    };
    let downward = async {
        let mut buffer = vec![0; 16 * 1024];
        let mut listening = true;
        let mut frames = Frames::default();
        loop {
            let read = tokio::select! {
                read = from_ray.read(&mut buffer) => read,
                () = tasks.closed(), if !listening || frames.are_whole() => {
                    if listening {
                        // It may have left meanwhile.
                        let _ = to_client.write_all(&websocket::close_frame(GOING_AWAY)).await;
                    }
                    break;
                }
            };
            match read {
                Ok(0) | Err(_) => break,
                Ok(read) if listening => {
                    if let Some(throttle) = &mut throttle {
                        throttle.pass(read).await;
                    }
                    frames.pass(&buffer[..read]);
                    listening = to_client.write_all(&buffer[..read]).await.is_ok();
                }
                Ok(_) => {} // nobody listens any more: Ray's slot is drained, not hidden
            }
        }
        let _ = to_client.shutdown().await;
    };
    tokio::pin!(upward);
    tokio::pin!(downward);
    tokio::select! {
        () = &mut downward => {}
        () = &mut upward => downward.await,
    }
}
