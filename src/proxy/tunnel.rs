//! WebSocket tunnels: log tails.
//!
//! Ray's parent only ever writes to a tail's client, so it does not notice that a client has
//! left: the slot in JobHead stays taken until the log's next line or the job's end.
//! Closing our side does not free it, it only hides it. So when a client leaves, the tunnel
//! keeps reading from Ray and throws away what comes until Ray closes, and its permit stays
//! counted for as long as Ray's slot is taken.

use crate::client_body::ClientBody;
use crate::permit_guard::PermitGuard;
use crate::tasks::Tasks;
use crate::throttle::Throttle;
use crate::upstream::{Upstream, UpstreamError};
pub use crate::websocket::is_websocket;
use crate::websocket::{self, Frames, GOING_AWAY};
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// How Ray answered a handshake.
pub enum Shaken {
    /// It took it; its end of the line is there once the answer has been read.
    Open(Response<Incoming>, OnUpgrade, PermitGuard),
    /// It declined, and says why.
    Declined(Response<Incoming>, PermitGuard),
}

/// Asks Ray for the upgrade on a connection of its own. `request` has its hop-by-hop headers
/// stripped.
pub(crate) async fn shake_hands(
    upstream: &Arc<Upstream>,
    mut request: Request<ClientBody>,
    mut permit: PermitGuard,
) -> Result<Shaken, UpstreamError> {
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    permit.sent();
    match upstream.send_alone(request).await {
        Ok(mut response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let ray = hyper::upgrade::on(&mut response);
            Ok(Shaken::Open(response, ray, permit))
        }
        Ok(response) => Ok(Shaken::Declined(response, permit)),
        Err(error) => {
            permit.failed();
            Err(error)
        }
    }
}

/// Joins the two ends until Ray closes its own or the process drains. Each is to be had once its
/// answer has been sent. When the client leaves, Ray is told unless it `is_tail`.
pub async fn connect(
    client: OnUpgrade,
    ray: OnUpgrade,
    mut permit: PermitGuard,
    throttle: Option<Throttle>,
    is_tail: bool,
    tasks: Tasks,
) {
    let Ok(ray) = ray.await else { return permit.failed() };
    let ray = TokioIo::new(ray);
    match client.await {
        Ok(client) => join(TokioIo::new(client), ray, throttle, is_tail, &tasks).await,
        // It left during the handshake: what was opened is let go in the same way.
        Err(_) => join(tokio::io::empty(), ray, None, is_tail, &tasks).await,
    }
    permit.served();
}

/// Copies both ways until Ray closes; a client that leaves does not end it. When the process drains the
/// client is told so, after the frame that is on its way. A connection on which a Close has been sent is
/// ended when it has been answered, or some time later (RFC 6455, 7.1.1): sooner would look like a failure.
async fn join(
    client: impl AsyncRead + AsyncWrite,
    ray: impl AsyncRead + AsyncWrite,
    throttle: Option<Throttle>,
    is_tail: bool,
    tasks: &Tasks,
) {
    let (from_client, mut to_client) = tokio::io::split(client);
    let (from_ray, to_ray) = tokio::io::split(ray);
    let (says, closed) = watch::channel(false);
    let mut upward = pin!(upward(from_client, to_ray, is_tail, says));
    let ended = {
        let mut downward = pin!(downward(from_ray, &mut to_client, throttle, tasks));
        tokio::select! {
            ended = &mut downward => ended,
            () = &mut upward => {
                downward.await;
                Ended::Dropped
            }
        }
    };
    if ended == Ended::Closed {
        websocket::see_closed(upward, closed, |closed| *closed).await;
    }
    let _ = to_client.shutdown().await;
}

/// What the client says, for Ray, until the client has left.
async fn upward(
    mut from_client: impl AsyncRead + Unpin,
    mut to_ray: impl AsyncWrite + Unpin,
    is_tail: bool,
    says: watch::Sender<bool>,
) {
    let (mut buffer, mut frames) = (vec![0; 16 * 1024], Frames::default());
    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
        // Ray may have gone; that the client answers its Close is still to be heard.
        let _ = to_ray.write_all(&buffer[..read]).await;
        frames.pass(&buffer[..read]);
        if frames.are_closed() {
            says.send_replace(true);
        }
    }
    // A tail's other side stays open: closing it would free our socket and leave Ray's slot taken, out of
    // our sight. Any other server is told.
    if !is_tail {
        let _ = to_ray.shutdown().await;
    }
}

/// How what Ray says came to an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    /// With a Close, which the client has been sent.
    Closed,
    /// Without one, or the client no longer listens.
    Dropped,
}

/// What Ray says, for the client, until Ray has closed or the process drains.
async fn downward(
    mut from_ray: impl AsyncRead + Unpin,
    to_client: &mut (impl AsyncWrite + Unpin),
    mut throttle: Option<Throttle>,
    tasks: &Tasks,
) -> Ended {
    let mut buffer = vec![0; 16 * 1024];
    let (mut listening, mut frames) = (true, Frames::default());
    loop {
        let read = tokio::select! {
            read = from_ray.read(&mut buffer) => read,
            () = tasks.closed(), if !listening || frames.are_whole() => {
                let farewell = websocket::close_frame(GOING_AWAY);
                // It may have left meanwhile.
                let told = listening && (frames.are_closed() || to_client.write_all(&farewell).await.is_ok());
                return if told { Ended::Closed } else { Ended::Dropped };
            }
        };
        match read {
            Ok(0) | Err(_) if listening && frames.are_closed() => return Ended::Closed,
            Ok(0) | Err(_) => return Ended::Dropped,
            Ok(read) if listening => {
                if let Some(throttle) = &mut throttle {
                    throttle.pass(read).await;
                }
                frames.pass(&buffer[..read]);
                listening = to_client.write_all(&buffer[..read]).await.is_ok();
            }
            Ok(_) => {} // the client no longer listens: Ray's slot is drained, not hidden
        }
    }
}
