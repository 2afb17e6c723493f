//! What one value of the file becomes: an address, a server, a secret, a word.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// An HTTP server that rayguard forwards to. Plain HTTP: Ray's own ports speak no TLS.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Upstream {
    /// Host name or address, without brackets.
    pub host: Arc<str>,
    /// Port, never 0.
    pub port: u16,
}

impl Upstream {
    /// `host:port` as it stands in a URL or a Host header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// `http://host:port`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.authority())
    }
}

/// Where a listener is bound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// TCP; port 0 takes any free one.
    Tcp(SocketAddr),
    /// A Unix socket; the path fits `sun_path`.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A key handed to a known client. The key itself is nowhere: only its digest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiKey {
    /// The client.
    pub name: Arc<str>,
    /// SHA-256 of the key.
    pub sha256: [u8; 32],
}

/// Where a secret stands. It is read when it is needed, and never shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Secret {
    /// The content of a file, without white space at its end.
    File(PathBuf),
    /// The value of an environment variable.
    Env(Arc<str>),
}

/// Forms of the program's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// What a receiver of alerts speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotifyKind {
    /// Alertmanager's API v2; the URL is its root.
    Alertmanager,
    /// A POST with JSON.
    Webhook,
    /// Slack's incoming webhook.
    Slack,
}
