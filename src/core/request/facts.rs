//! What the proxy knows of a request before it decides: the input of `classify` and
//! `identify`. Borrowed from the wire, nothing is copied.

use std::net::IpAddr;

/// What the proxy knows of a request.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// `GET`, `POST`, ... as sent.
    pub method: &'a str,
    /// The path as sent, without the query; not yet normalised.
    pub path: &'a str,
    /// The query without `?`, or empty.
    pub query: &'a str,
    /// The peer of the connection, as the socket (or a PROXY header) tells it. What
    /// `X-Forwarded-For` adds is `identify`'s to judge.
    pub address: IpAddr,
    /// The headers, looked up by lower-case name.
    pub headers: &'a dyn Headers,
    /// A WebSocket handshake (`Upgrade: websocket`).
    pub upgrade: bool,
    /// `content-type: application/grpc*`.
    pub grpc: bool,
}

/// Header look-up, so that the core needs no HTTP library.
pub trait Headers {
    /// The first value of the header with this lower-case name, if it is there.
    fn get(&self, name: &str) -> Option<&[u8]>;
    /// The `n`-th value of that header counted from the last line, 0 being the last. A proxy
    /// may add a line of its own below the client's, so only the last lines can be trusted.
    fn nth_back(&self, name: &str, n: usize) -> Option<&[u8]>;
}

impl std::fmt::Debug for dyn Headers + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Headers carry credentials: never shown.
        f.write_str("Headers(..)")
    }
}

/// Headers for tests: lines in the order they were sent.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Lines(pub(crate) Vec<(&'static str, Vec<u8>)>);

#[cfg(test)]
impl Headers for Lines {
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|line| line.0 == name).map(|line| &*line.1)
    }
    fn nth_back(&self, name: &str, n: usize) -> Option<&[u8]> {
        self.0.iter().rev().filter(|line| line.0 == name).nth(n).map(|line| &*line.1)
    }
}
