//! What the proxy may change in a message: hop-by-hop headers and `X-Forwarded-*`, nothing else.
//!
//! Ray treats `Origin`, `Referer` and `Sec-Fetch-*` as the mark of a browser and answers by
//! them; cookies, `Authorization` and `X-Ray-Authorization` are its own. All pass as they came.

use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, Entry, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use std::net::IpAddr;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_RAY_AUTHORIZATION: HeaderName = HeaderName::from_static("x-ray-authorization");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The header that carries a request's id.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-rayguard-request-id");
/// The header that says why a request was refused.
pub const REASON: HeaderName = HeaderName::from_static("x-rayguard-reason");

/// Which of the names that the proxy looks for stand in a head. One pass over the few there are costs
/// less than a look-up for each that is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeaderPresence(u16);

impl HeaderPresence {
    const NONE: HeaderPresence = HeaderPresence(0);
    /// `Connection`.
    pub const CONNECTION: HeaderPresence = HeaderPresence(1);
    /// Any other header that concerns one hop only.
    pub(crate) const HOP_BY_HOP: HeaderPresence = HeaderPresence(1 << 1);
    /// `Upgrade`, which is one of them.
    pub const UPGRADE: HeaderPresence = HeaderPresence(1 << 2 | 1 << 1);
    /// `Transfer-Encoding`, another.
    pub(crate) const TRANSFER_ENCODING: HeaderPresence = HeaderPresence(1 << 3 | 1 << 1);
    /// `Expect`.
    pub(crate) const EXPECT: HeaderPresence = HeaderPresence(1 << 4);
    /// `Content-Type`.
    pub const CONTENT_TYPE: HeaderPresence = HeaderPresence(1 << 5);
    /// `Cookie`.
    pub(crate) const COOKIE: HeaderPresence = HeaderPresence(1 << 6);
    const AUTHORIZATION: HeaderPresence = HeaderPresence(1 << 7);
    const X_RAY_AUTHORIZATION: HeaderPresence = HeaderPresence(1 << 8);
    const X_FORWARDED_FOR: HeaderPresence = HeaderPresence(1 << 9);
    const CLIENT_ID: HeaderPresence = HeaderPresence(1 << 10);
    const API_KEY: HeaderPresence = HeaderPresence(1 << 11);
    /// `Origin`.
    pub const ORIGIN: HeaderPresence = HeaderPresence(1 << 12);

    /// What this head mentions.
    pub fn of(headers: &HeaderMap) -> HeaderPresence {
        headers.keys().fold(HeaderPresence::NONE, |all, name| {
            HeaderPresence(all.0 | HeaderPresence::by(name.as_str()).0)
        })
    }

    /// Whether it mentions this.
    pub fn has(self, name: HeaderPresence) -> bool {
        self.0 & name.0 == name.0
    }

    /// What a header of this lower-case name mentions: nothing, if the proxy does not look for it.
    fn by(name: &str) -> HeaderPresence {
        match name {
            "connection" => HeaderPresence::CONNECTION,
            "keep-alive" | "proxy-connection" | "proxy-authenticate" | "proxy-authorization" | "te" => {
                HeaderPresence::HOP_BY_HOP
            }
            "upgrade" => HeaderPresence::UPGRADE,
            "transfer-encoding" => HeaderPresence::TRANSFER_ENCODING,
            "expect" => HeaderPresence::EXPECT,
            "content-type" => HeaderPresence::CONTENT_TYPE,
            "cookie" => HeaderPresence::COOKIE,
            "authorization" => HeaderPresence::AUTHORIZATION,
            "x-ray-authorization" => HeaderPresence::X_RAY_AUTHORIZATION,
            "x-forwarded-for" => HeaderPresence::X_FORWARDED_FOR,
            "client_id" => HeaderPresence::CLIENT_ID,
            "x-rayguard-key" => HeaderPresence::API_KEY,
            "origin" => HeaderPresence::ORIGIN,
            _ => HeaderPresence::NONE,
        }
    }
}

/// Removes what concerns one hop only (RFC 9110, 7.6.1), the names listed in `Connection`
/// included. `TE: trailers` is kept: gRPC servers ask for it. `Trailer` announces trailers to
/// the far end: it passes.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip(headers, HeaderPresence::of(headers));
}

/// The same for headers that have been looked over before.
pub(crate) fn strip(headers: &mut HeaderMap, header_presence: HeaderPresence) {
    if header_presence.has(HeaderPresence::CONNECTION) {
        let mut named = Vec::new();
        if let Entry::Occupied(connection) = headers.entry(CONNECTION) {
            if !connection.iter().all(is_usual) {
                named.extend(connection.iter().flat_map(self::named));
            }
            connection.remove();
        }
        for name in named {
            headers.remove(name);
        }
    }
    if header_presence.has(HeaderPresence::HOP_BY_HOP) {
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
        if headers.get(TE).is_some_and(|value| value != "trailers") {
            headers.remove(TE);
        }
    }
}

static HOP_BY_HOP: [HeaderName; 6] =
    [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION];

/// What most clients and servers say in a `Connection` field, which names no header.
fn is_usual(connection: &HeaderValue) -> bool {
    matches!(connection.as_bytes(), b"keep-alive" | b"close")
}

/// The headers that a `Connection` field names.
fn named(connection: &HeaderValue) -> impl Iterator<Item = HeaderName> {
    let options = connection.to_str().ok().into_iter().flat_map(|names| names.split(',').map(str::trim));
    options
        .filter(|name| !name.eq_ignore_ascii_case("keep-alive") && !name.eq_ignore_ascii_case("close"))
        .filter_map(|name| HeaderName::try_from(name).ok())
        // Ray reads `TE` itself, and a request that has lost its host on the way is another request.
        .filter(|name| name != TE && name != HOST)
}

/// Removes the header in which clients send their API key: a secret between them and this proxy, also where
/// no key is known.
pub(crate) fn strip_key(headers: &mut HeaderMap, name: &str, header_presence: HeaderPresence) {
    if !name.is_empty() && header_presence.has(HeaderPresence::by(name)) {
        headers.remove(name);
    }
}

/// An address as `X-Forwarded-For` has it: the same for every request of a connection.
pub fn hop(address: IpAddr) -> HeaderValue {
    // invariant: digits, dots and colons.
    #[expect(clippy::unwrap_used, reason = "an address is written in digits, dots and colons")]
    HeaderValue::try_from(address.to_canonical().to_string()).unwrap()
}

/// Says for whom the request is made: the peer is appended to `X-Forwarded-For`, one list of all its
/// lines, if those who wrote it are trusted, and replaces it otherwise; the scheme and host the client used are
/// told unless a trusted proxy has said so already.
pub fn tell_client(headers: &mut HeaderMap, peer: &HeaderValue, peer_is_trusted: bool, tls: bool) {
    // Room for all three at once.
    let _ = headers.try_reserve(3);
    let chain = if peer_is_trusted { chain(headers, peer) } else { None };
    headers.insert(X_FORWARDED_FOR, chain.unwrap_or_else(|| peer.clone()));
    if !(peer_is_trusted && headers.contains_key(X_FORWARDED_PROTO)) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if tls { "https" } else { "http" }));
    }
    if !(peer_is_trusted && headers.contains_key(X_FORWARDED_HOST)) {
        match headers.get(HOST).cloned() {
            Some(host) => {
                headers.insert(X_FORWARDED_HOST, host);
            }
            None => {
                headers.remove(X_FORWARDED_HOST);
            }
        }
    }
}

/// The addresses in `X-Forwarded-For`, in order, and the peer; `None` if there is no address but the peer's.
fn chain(headers: &HeaderMap, peer: &HeaderValue) -> Option<HeaderValue> {
    let lines = headers.get_all(X_FORWARDED_FOR).iter();
    let entries = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b',')).map(<[u8]>::trim_ascii);
    let mut chain = Vec::new();
    for entry in entries.filter(|entry| !entry.is_empty()) {
        chain.extend_from_slice(entry);
        chain.extend_from_slice(b", ");
    }
    if chain.is_empty() {
        return None;
    }
    chain.extend_from_slice(peer.as_bytes());
    HeaderValue::from_bytes(&chain).ok()
}

/// HTTP/2 may send one field per cookie; HTTP/1 has one field for all (RFC 9113, 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Whether the message is gRPC's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Header look-up for the core, which knows no HTTP library.
pub struct Lookup<'a> {
    headers: &'a HeaderMap,
    header_presence: HeaderPresence,
}

impl<'a> Lookup<'a> {
    /// Looks up in these.
    pub fn new(headers: &'a HeaderMap) -> Lookup<'a> {
        Lookup { headers, header_presence: HeaderPresence::of(headers) }
    }

    /// What they mention.
    pub(crate) fn header_presence(&self) -> HeaderPresence {
        self.header_presence
    }
}

impl rayguard_core::request::facts::Headers for Lookup<'_> {
    fn get(&self, name: &str) -> Option<&[u8]> {
        if !self.header_presence.has(HeaderPresence::by(name)) {
            return None;
        }
        let value = match known(name) {
            Some(name) => self.headers.get(name),
            None => self.headers.get(name),
        };
        value.map(HeaderValue::as_bytes)
    }

    fn nth_back(&self, name: &str, n: usize) -> Option<&[u8]> {
        if !self.header_presence.has(HeaderPresence::by(name)) {
            return None;
        }
        let values = match known(name) {
            Some(name) => self.headers.get_all(name),
            None => self.headers.get_all(name),
        };
        values.iter().rev().nth(n).map(HeaderValue::as_bytes)
    }
}

/// The names that are looked up for each request need not be read each time.
fn known(name: &str) -> Option<&'static HeaderName> {
    static KNOWN: [HeaderName; 4] = [AUTHORIZATION, X_RAY_AUTHORIZATION, COOKIE, X_FORWARDED_FOR];
    KNOWN.iter().find(|known| known.as_str() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayguard_core::request::facts::Headers;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn only_hop_by_hop_headers_go() {
        let mut headers = map(&[
            ("connection", "close, x-private"),
            ("connection", "X-Other"),
            ("x-other", "1"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("origin", "http://localhost"),
            ("sec-fetch-mode", "cors"),
            ("authorization", "Bearer abc"),
            ("x-ray-authorization", "Bearer abc"),
            ("cookie", "ray-authentication-token=abc"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(
            left,
            ["authorization", "cookie", "origin", "sec-fetch-mode", "te", "x-ray-authorization"]
        );
    }

    #[test]
    fn what_is_looked_for_is_found_as_if_no_pass_had_been_made() {
        let headers = map(&[
            ("authorization", "a"),
            ("x-ray-authorization", "b"),
            ("cookie", "c=1"),
            ("cookie", "d=2"),
            ("client_id", "e"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-user", "f"),
        ]);
        let (all, none) = (Lookup::new(&headers), HeaderMap::new());
        for name in headers.keys().map(HeaderName::as_str) {
            let last = headers.get_all(name).iter().next_back().map(HeaderValue::as_bytes);
            assert_eq!(all.get(name), headers.get(name).map(HeaderValue::as_bytes), "{name}");
            assert_eq!(all.nth_back(name, 0), last, "{name}");
            assert_eq!(Lookup::new(&none).get(name), None, "{name}");
        }
        assert_eq!((all.get("expect"), all.nth_back("x-client-id", 0)), (None, None));
        for (name, mentioned) in
            [(&UPGRADE, HeaderPresence::UPGRADE), (&TRANSFER_ENCODING, HeaderPresence::TRANSFER_ENCODING)]
        {
            let one =
                HeaderPresence::of(&HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("x"))]));
            assert!(one.has(mentioned) && one.has(HeaderPresence::HOP_BY_HOP), "{name}");
            let other =
                if *name == UPGRADE { HeaderPresence::TRANSFER_ENCODING } else { HeaderPresence::UPGRADE };
            assert!(!one.has(other) && !one.has(HeaderPresence::EXPECT), "{name}");
        }
        for name in HOP_BY_HOP.iter().chain([&TE]) {
            let one = HeaderMap::from_iter([(name.clone(), HeaderValue::from_static("x"))]);
            assert!(HeaderPresence::of(&one).has(HeaderPresence::HOP_BY_HOP), "{name}");
        }
    }

    #[test]
    fn a_forged_forwarding_chain_is_replaced_a_trusted_one_extended() {
        let peer = hop("::ffff:10.0.0.7".parse().unwrap());
        let mut forged = map(&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-host", "evil")]);
        tell_client(&mut forged, &peer, false, false);
        assert_eq!(forged[&X_FORWARDED_FOR], "10.0.0.7");
        assert!(!forged.contains_key(X_FORWARDED_HOST));
        let mut trusted = map(&[("x-forwarded-for", "1.2.3.4")]);
        tell_client(&mut trusted, &peer, true, true);
        assert_eq!(trusted[&X_FORWARDED_FOR], "1.2.3.4, 10.0.0.7");
        assert_eq!(trusted[&X_FORWARDED_PROTO], "https");
    }

    #[test]
    fn a_forwarding_chain_is_one_list_of_all_its_lines_in_order() {
        let peer = hop("10.0.0.7".parse().unwrap());
        for (lines, chain) in [
            (&["6.6.6.6", "203.0.113.9"][..], &b"6.6.6.6, 203.0.113.9, 10.0.0.7"[..]),
            (&["a, b,", " ,c"], b"a, b, c, 10.0.0.7"),
            (&[""], b"10.0.0.7"),
            (&[",", " , "], b"10.0.0.7"),
            (&["1.2.3.4\u{fc}, 203.0.113.9"], b"1.2.3.4\xc3\xbc, 203.0.113.9, 10.0.0.7"),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
            }
            tell_client(&mut headers, &peer, true, false);
            let told: Vec<_> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
            assert_eq!(told, [chain], "{lines:?}");
        }
    }

    #[test]
    fn the_key_header_goes_whatever_its_name() {
        for name in ["x-rayguard-key", "x-my-key"] {
            let mut headers =
                HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static("k"))]);
            let header_presence = HeaderPresence::of(&headers);
            strip_key(&mut headers, name, header_presence);
            assert!(headers.is_empty(), "{name}");
        }
    }
}
