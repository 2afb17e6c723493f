//! The admin listener: few connections, small requests, an address of its own.

use crate::admin::access::Peer;
use crate::admin::api;
use crate::admin::state::AdminState;
use crate::config::settings::Address;
use crate::proxy::upstream::timer;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, service::service_fn};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at once: a few people, a few scrapers, the probes.
const CONNECTIONS_MAX: usize = 256;

/// A request's head must be complete within this; an idle connection is closed after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// On TCP.
    Tcp(TcpListener),
    /// On a Unix socket.
    Unix(UnixSocket),
}

/// A Unix socket, removed when it is closed.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Another process may have taken the path since; a socket file left over does no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listener {
    /// Binds. A socket file that a killed run has left over is replaced, any other file is not.
    ///
    /// # Errors
    /// The address is taken, or not ours.
    pub async fn bind(address: &Address) -> io::Result<Listener> {
        match address {
            Address::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
            Address::Unix(path) => {
                use std::os::unix::fs::FileTypeExt;
                let left_over = std::fs::symlink_metadata(path)
                    .is_ok_and(|meta| meta.file_type().is_socket())
                    && tokio::net::UnixStream::connect(path).await.is_err();
                if left_over {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                Ok(Listener::Unix(UnixSocket { listener, path: path.clone() }))
            }
        }
    }

    /// Where it is bound, for people.
    pub fn address(&self) -> String {
        match self {
            Listener::Tcp(listener) => {
                listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
            }
            Listener::Unix(socket) => format!("unix:{}", socket.path.display()),
        }
    }
}

/// Accepts until the app's tasks close; connections then finish what is under way.
pub async fn serve(listener: Listener, admin: Arc<AdminState>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = admin.app.tasks.clone();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = accept(&listener, &admin, permit) => accepted,
            () = tasks.closed() => return,
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "the admin listener cannot accept; trying again in 50 ms");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn accept(
    listener: &Listener,
    admin: &Arc<AdminState>,
    permit: OwnedSemaphorePermit,
) -> io::Result<()> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, peer) = listener.accept().await?;
            // A failure here costs latency, not correctness.
            let _ = stream.set_nodelay(true);
            converse(stream, Peer::Tcp(peer.ip()), admin, permit);
        }
        Listener::Unix(socket) => {
            let (stream, _) = socket.listener.accept().await?;
            converse(stream, Peer::Unix, admin, permit);
        }
    }
    Ok(())
}

/// Speaks HTTP/1.1 on one connection until it ends.
fn converse<S>(stream: S, peer: Peer, admin: &Arc<AdminState>, permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let admin = Arc::clone(admin);
    let tasks = admin.app.tasks.clone();
    let closing = tasks.clone();
    tasks.spawn(async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let admin = Arc::clone(&admin);
            async move { Ok::<_, Infallible>(api::answer(&admin, peer, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(timer())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(32 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing.closed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "admin connection ended early");
        }
        drop(permit);
    });
}
