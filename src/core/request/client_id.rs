//! A client: who asks, reduced to two digests. Nothing that could name a person or hold a
//! credential stays in memory.

/// Who asks. Both numbers are keyed digests (see `identify`), never the thing itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClientId {
    /// Digest of the address (IPv4 whole, IPv6 by /64).
    pub address: u64,
    /// Digest of the credential seen with the request (token, cookie, trusted header, gRPC
    /// `client_id`); `None` when there was none.
    pub credential: Option<u64>,
}
