//! A byte stream of one of the kinds the proxy speaks over, and where streams come from that are
//! not the OS's.
//!
//! In service every stream is a socket of the OS. A simulation brings a network of its own,
//! in which time is virtual and lines break by seed, and the proxy is to be the same there down to
//! its last line: so such a network hands it streams ([`NetworkStream`]), and it asks for nothing else.

use socket2::{SockRef, TcpKeepalive};
use std::fmt::Debug;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

/// A byte stream of one of the kinds the proxy speaks over.
#[derive(Debug)]
pub enum Stream {
    /// As it is.
    Plain(Plain),
    /// In TLS, ended or begun here.
    Tls(Box<TlsStream<Plain>>),
}

/// A byte stream before TLS.
#[derive(Debug)]
pub enum Plain {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// Of a network that is not the OS's.
    Other(Box<dyn NetworkStream>),
}

/// A stream that no runtime looks after.
#[derive(Debug)]
pub(super) enum Detached {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
    Other(Box<dyn NetworkStream>),
}

impl Plain {
    /// Takes it from the runtime that looks after it.
    pub(super) fn detach(self) -> io::Result<Detached> {
        Ok(match self {
            Plain::Tcp(stream) => Detached::Tcp(stream.into_std()?),
            Plain::Unix(stream) => Detached::Unix(stream.into_std()?),
            Plain::Other(line) => Detached::Other(line),
        })
    }
}

impl Detached {
    /// Gives it to the runtime of the caller.
    pub(super) fn attach(self) -> io::Result<Plain> {
        Ok(match self {
            Detached::Tcp(stream) => Plain::Tcp(TcpStream::from_std(stream)?),
            Detached::Unix(stream) => Plain::Unix(UnixStream::from_std(stream)?),
            Detached::Other(line) => Plain::Other(line),
        })
    }
}

/// A byte stream of a network that is not the OS's.
pub trait NetworkStream: AsyncRead + AsyncWrite + Unpin + Send + Debug {}

impl<L: AsyncRead + AsyncWrite + Unpin + Send + Debug> NetworkStream for L {}

/// What a network that is not the OS's has still to say.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Where streams begin, on a network that is not the OS's.
pub trait Dial: Debug + Send + Sync {
    /// A stream to `host:port`.
    fn dial<'a>(&'a self, address: &'a str) -> Pending<'a, Box<dyn NetworkStream>>;
}

/// Where streams arrive, on a network that is not the OS's.
pub trait Accept: Debug + Send + Sync {
    /// The next stream, and whose it is.
    fn accept(&self) -> Pending<'_, (Box<dyn NetworkStream>, IpAddr)>;
}

/// Probes the peer of this socket, or of the connections accepted from it, after so long a `silence`. A peer
/// that answers none of three probes, one `every` so often, counts as gone.
pub(super) fn probe(socket: &impl AsFd, silence: Duration, every: Duration) {
    let probes = TcpKeepalive::new().with_time(silence).with_interval(every).with_retries(3);
    // A failure here costs patience, not correctness.
    let _ = SockRef::from(socket).set_tcp_keepalive(&probes);
}

macro_rules! forward_to {
    ($Stream:ident, $($Kind:ident),+) => {
        impl AsyncRead for $Stream {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $($Stream::$Kind(inner) => Pin::new(inner).poll_read(context, buffer),)+
                }
            }
        }

        impl AsyncWrite for $Stream {
            fn poll_write(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $($Stream::$Kind(inner) => Pin::new(inner).poll_write(context, bytes),)+
                }
            }
            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                slices: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $($Stream::$Kind(inner) => Pin::new(inner).poll_write_vectored(context, slices),)+
                }
            }
            fn is_write_vectored(&self) -> bool {
                true
            }
            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $($Stream::$Kind(inner) => Pin::new(inner).poll_flush(context),)+
                }
            }
            fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $($Stream::$Kind(inner) => Pin::new(inner).poll_shutdown(context),)+
                }
            }
        }
    };
}

forward_to!(Stream, Plain, Tls);
forward_to!(Plain, Tcp, Unix, Other);
