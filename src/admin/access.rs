//! Who may ask, and who may change anything?
//!
//! Three strangers are kept out. A web page that has pointed its own name at this address (DNS
//! rebinding) shows in `Host`: only addresses, `localhost` and configured names are answered. A
//! web page that sends a request across origins shows in `Origin` and `Sec-Fetch-Site`: only
//! our own is answered, nothing is ever allowed by CORS, and changes take `application/json`,
//! which no form can send. A client from another machine shows in its address: without a token
//! only this machine may change anything, and a proxy on this machine that speaks for others
//! (`X-Forwarded-For`, `Forwarded`, `Via`) is not this machine.
//!
//! The token is held and compared as a digest, in constant time.

use crate::admin::answer::Problem;
use http::header::{AUTHORIZATION, FORWARDED, HOST, HeaderMap, ORIGIN, VIA};
use http::{StatusCode, Uri};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Who may ask, and who may change anything.
#[derive(Clone, Default)]
pub struct Access {
    token: Option<[u8; 32]>,
    hosts: Vec<Arc<str>>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("token", &self.token.is_some()).field("hosts", &self.hosts).finish()
    }
}

/// Who is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// Over TCP.
    Tcp(IpAddr),
    /// Over a Unix socket; the file's mode has judged already.
    Unix,
}

impl Peer {
    fn is_here(self) -> bool {
        match self {
            Peer::Tcp(address) => address.to_canonical().is_loopback(),
            Peer::Unix => true,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Tcp(address) => address.to_canonical().fmt(f),
            Peer::Unix => f.write_str("local socket"),
        }
    }
}

impl Access {
    /// With this token for changes, asked by these names.
    pub fn new(token: Option<&str>, hosts: Vec<Arc<str>>) -> Access {
        Access { token: token.map(|token| Sha256::digest(token).into()), hosts }
    }

    /// Whether changes take a token.
    pub fn takes_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether the request was meant for us, and not sent by another site's page.
    pub fn may_ask(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "host",
                "a request has one Host header",
                "send `Host: localhost`",
            ));
        };
        let host = host.to_str().unwrap_or_default();
        let named = uri.authority().map_or(host, http::uri::Authority::as_str);
        if !self.is_ours(host) || !self.is_ours(named) {
            return Err(Problem::new(
                StatusCode::MISDIRECTED_REQUEST,
                "host",
                format!("`{}` is not a name of this listener", crate::core::event::printable(host)),
                "use an IP address or localhost, or add the name to `admin.hosts` in the configuration",
            ));
        }
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or_default();
        let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if own.is_some_and(|own| own.eq_ignore_ascii_case(host)) {
            return Ok(());
        }
        Err(cross_origin())
    }

    /// Whether the client may change anything; its name for the adjustment log.
    pub fn may_override(&self, peer: Peer, headers: &HeaderMap) -> Result<String, Problem> {
        let site = headers.get("sec-fetch-site").map(http::HeaderValue::as_bytes);
        if !matches!(site, None | Some(b"same-origin" | b"none")) {
            return Err(cross_origin());
        }
        if let Some(token) = &self.token {
            let given = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
            let Some(given) = given else {
                return Err(Problem::new(
                    StatusCode::UNAUTHORIZED,
                    "token_required",
                    "this request changes rayguard and needs the admin token",
                    "set RAYGUARD_ADMIN_TOKEN, or give a file with --token-file; over HTTP: \
                        `Authorization: Bearer TOKEN`",
                ));
            };
            let digest: [u8; 32] = Sha256::digest(given).into();
            if bool::from(digest.ct_eq(token)) {
                return Ok(format!("token, {peer}"));
            }
            return Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "token_wrong",
                "this is not the admin token",
                "use the token that `admin.token` in the configuration refers to",
            ));
        }
        let forwarded = ["x-forwarded-for", "x-real-ip", FORWARDED.as_str(), VIA.as_str()];
        if !peer.is_here() || forwarded.iter().any(|name| headers.contains_key(*name)) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "not_local",
                "no admin token is configured, so changes are accepted only from the machine that \
                    rayguard runs on",
                "set `admin.token` in the configuration, or send the request from that machine",
            ));
        }
        Ok(peer.to_string())
    }

    fn is_ours(&self, authority: &str) -> bool {
        let Some(host) = host_of(authority) else { return false };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_ok() {
            return true;
        }
        let name = host.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        name == "localhost" || name.ends_with(".localhost") || self.hosts.iter().any(|ours| **ours == *name)
    }
}

/// The host of `host[:port]`; `None` when the port is no number or there is more than that.
fn host_of(authority: &str) -> Option<&str> {
    let end = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at_checked(end)?;
    let sound = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    sound.then_some(host)
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn cross_origin() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "cross_origin",
        "this request came from another site's page",
        "use the page at this address, or the command line",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const HERE: Peer = Peer::Tcp(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    const FAR: Peer = Peer::Tcp(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)));

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn asks(host: &str) -> bool {
        Access::new(None, vec!["rayguard.ray.svc".into()])
            .may_ask(&Uri::from_static("/"), &headers(&[("host", host)]))
            .is_ok()
    }

    #[test]
    fn addresses_localhost_and_configured_names_are_answered_and_no_others() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9465",
            "[::1]",
            "[::1]:9465",
            "10.1.2.3:1",
            "localhost",
            "LocalHost:80",
            "localhost.",
            "a.localhost",
            "rayguard.ray.svc",
            "Rayguard.Ray.svc:9465",
        ] {
            assert!(asks(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9465",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:9465@evil.example",
            "[::1]evil.example",
            "[::1",
            "svc",
            "localhost:x",
            "ray.svc",
        ] {
            assert!(!asks(host), "{host}");
        }
    }

    #[test]
    fn one_host_header_is_needed_and_an_absolute_target_is_held_to_the_same() {
        let access = Access::default();
        assert!(access.may_ask(&Uri::from_static("/"), &headers(&[])).is_err());
        assert!(
            access
                .may_ask(&Uri::from_static("/"), &headers(&[("host", "::1"), ("host", "localhost")]))
                .is_err()
        );
        let absolute = Uri::from_static("http://evil.example/");
        assert!(access.may_ask(&absolute, &headers(&[("host", "localhost")])).is_err());
    }

    #[test]
    fn a_page_of_another_origin_is_refused() {
        let access = Access::default();
        let ask = |origin| {
            access
                .may_ask(&Uri::from_static("/"), &headers(&[("host", "localhost:9465"), ("origin", origin)]))
                .is_ok()
        };
        assert!(ask("http://localhost:9465"));
        assert!(ask("https://localhost:9465"));
        for origin in
            ["null", "http://localhost:8265", "http://localhost", "http://evil.example", "", "localhost:9465"]
        {
            assert!(!ask(origin), "{origin}");
        }
        for site in ["cross-site", "same-site", "else"] {
            assert!(access.may_override(HERE, &headers(&[("sec-fetch-site", site)])).is_err(), "{site}");
        }
        assert!(access.may_override(HERE, &headers(&[("sec-fetch-site", "same-origin")])).is_ok());
    }

    #[test]
    fn without_a_token_only_this_machine_itself_may_change_anything() {
        let access = Access::default();
        assert_eq!(access.may_override(HERE, &headers(&[])).unwrap(), "127.0.0.1");
        assert!(access.may_override(Peer::Unix, &headers(&[])).is_ok());
        assert_eq!(access.may_override(FAR, &headers(&[])).unwrap_err().code, "not_local");
        for speaks_for_others in ["x-forwarded-for", "forwarded", "via", "x-real-ip"] {
            let problem =
                access.may_override(HERE, &headers(&[(speaks_for_others, "10.0.0.9")])).unwrap_err();
            assert_eq!(problem.code, "not_local");
        }
    }

    #[test]
    fn no_client_changes_anything_without_the_configured_token_not_even_from_here() {
        let access = Access::new(Some("s3cret"), Vec::new());
        assert_eq!(access.may_override(HERE, &headers(&[])).unwrap_err().code, "token_required");
        for wrong in ["Bearer s3cre", "Bearer s3crett", "Bearer S3CRET", "Bearer ", "Basic s3cret"] {
            assert!(access.may_override(HERE, &headers(&[("authorization", wrong)])).is_err(), "{wrong}");
        }
        assert_eq!(
            access.may_override(FAR, &headers(&[("authorization", "bearer s3cret")])).unwrap(),
            "token, 10.0.0.9"
        );
        assert!(!format!("{access:?}").contains("s3cret"));
    }

    proptest! {
        #[test]
        fn no_host_panics_and_none_is_ours_by_chance(host in "\\PC{0,40}") {
            let ours = Access::default().is_ours(&host);
            let lower = host.to_ascii_lowercase();
            prop_assert!(!ours || lower.contains("localhost") || host.contains(['.', ':']));
        }
    }
}
