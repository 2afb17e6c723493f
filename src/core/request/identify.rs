//! Who asks?
//!
//! Two keyed digests: of the address, and of the credential the request carries. The things
//! themselves are neither kept nor logged, and without the key a digest leads back to no client. Where clients' pasts
//! are kept (`identity.history`) the key is in the state directory, where replicas share their limits in their store;
//! otherwise it lives as long as the process.
//!
//! **Address.** The peer of the connection. IPv4 counts whole, IPv4 written as IPv6 counts
//! as IPv4, IPv6 by its /64, since that much is handed to a single subscriber. Only when the
//! peer is a listed proxy is `X-Forwarded-For` read, from the right: every listed hop is
//! stepped over, and the first that is not listed is the client. What stands left of it was
//! written by the client and is not looked at; nor is anything left of an entry that is no
//! address. Lines are read from the last up, because a proxy may add its own below a
//! forged one (HAProxy does).
//!
//! **Credential.** Where Ray looks for its token, in Ray's order: `Authorization`, then
//! `X-Ray-Authorization`, then the cookie `ray-authentication-token`; the same token gives
//! the same digest in all three. A Ray Client without a token is known by its `client_id`.
//! A credential is not verified here, Ray does that: invented ones share the address they
//! come from, which is what makes inventing them useless (see `admission/queue.rs`).
//!
//! **Verified name.** A header that the operator listed, set by a listed proxy
//! (`X-Forwarded-User` of oauth2-proxy), outranks both: it stands alone, as the address
//! part, so that one user is one client from every address and two users behind one proxy
//! are two. From any other peer the header means nothing.
//!
//! **API key.** A key that the operator handed out, known here by its SHA-256 alone, outranks
//! everything: its holder is one client from wherever it calls. All known digests are compared,
//! each in constant time, so that a guess learns nothing from how long its refusal took. An
//! unknown key is not an error and not a credential; the request counts as if it had none.
//!
//! **Agent.** KubeRay's operator and its kin (`agents.rs`) are told from the others of their address, and from those
//! who hold the same token, by what they call themselves: part of the credential, so that it can be invented to no
//! avail, as that can.
//!
//! Every kind of thing is digested in a domain of its own: a `client_id` that is spelled
//! like a token is not that token's holder.

use crate::request::agents::recognise;
use crate::request::client_id::ClientId;
use crate::request::facts::Facts;
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::fmt;
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// How many hops of `X-Forwarded-For` are followed; behind more than that, the farthest seen
/// stands for the client.
pub(crate) const HOPS_MAX: usize = 16;

/// A longer API key is none of ours, and is not hashed.
const KEY_BYTES_MAX: usize = 512;

/// How many lines of one header are read.
const LINES_MAX: usize = 16;

/// What one kind of thing is digested under.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Domain {
    V4 = 1,
    V6 = 2,
    Name = 3,
    Token = 4,
    Other = 5,
    Client = 6,
    Key = 7,
    Agent = 8,
}

/// From facts to client.
#[derive(Clone)]
pub struct Identifier {
    key: [u64; 2],
    trusted: Vec<IpNet>,
    name_headers: Vec<Arc<str>>,
    key_header: Arc<str>,
    key_digests: Vec<[u8; 32]>,
    agent_header: Arc<str>,
    agents: Vec<Arc<str>>,
}

impl Identifier {
    /// An identifier. The caller draws `key` at random as the process starts; `trusted` are
    /// the proxies that may speak for others; `name_headers`, in lower case and in order of
    /// preference, are the headers in which they name the user.
    pub fn new(key: [u64; 2], trusted: Vec<IpNet>, name_headers: Vec<Arc<str>>) -> Identifier {
        Identifier {
            key,
            trusted,
            name_headers,
            key_header: "".into(),
            key_digests: Vec::new(),
            agent_header: "".into(),
            agents: Vec::new(),
        }
    }

    /// Knows the holders of API keys, too: `header`, in lower case, is where they send them,
    /// `digests` the SHA-256 of each.
    #[must_use]
    pub fn with_keys(self, header: Arc<str>, digests: Vec<[u8; 32]>) -> Identifier {
        Identifier { key_header: header, key_digests: digests, ..self }
    }

    /// Tells programs of these names from the others of their address: `header`, in lower case, has the name,
    /// `agents` are how it begins.
    #[must_use]
    pub fn with_agents(self, header: Arc<str>, agents: Vec<Arc<str>>) -> Identifier {
        Identifier { agent_header: header, agents, ..self }
    }

    /// The header in which API keys come, empty if none does: a secret between client and proxy, that
    /// Ray has no use for.
    pub fn key_header(&self) -> &str {
        &self.key_header
    }

    /// Whether the request shows one of the operator's API keys.
    pub fn holds_key(&self, facts: &Facts) -> bool {
        self.verified_key(facts).is_some()
    }

    /// Who asks.
    pub fn identify(&self, facts: &Facts) -> ClientId {
        if let Some(name) = self.verified_key(facts).or_else(|| self.verified_name(facts)) {
            return ClientId { address: name, credential: None };
        }
        let address = match self.client_address(facts) {
            IpAddr::V4(address) => self.digest(Domain::V4, &[&address.octets()]),
            IpAddr::V6(address) => self.digest(Domain::V6, &[&address.octets()[..8]]),
        };
        let credential = self.credential(facts);
        let agent = facts.headers.get(&self.agent_header).and_then(|name| recognise(&self.agents, name));
        let credential = match agent {
            Some(agent) => {
                // Without one it is a program of its address: a name alone has no past.
                let own = credential.unwrap_or(address).to_le_bytes();
                Some(self.digest(Domain::Agent, &[agent.as_bytes(), &own]))
            }
            None => credential,
        };
        ClientId { address, credential }
    }

    /// The client of a name that somebody trusted has verified, whatever header it came in.
    pub fn named(&self, name: &[u8]) -> ClientId {
        ClientId { address: self.digest(Domain::Name, &[&[0], name]), credential: None }
    }

    /// The client's address as far as it can be trusted, IPv4 never written as IPv6.
    pub fn client_address(&self, facts: &Facts) -> IpAddr {
        let mut nearest = facts.address.to_canonical();
        if !self.trusts(nearest) {
            return nearest;
        }
        let mut hops = 0;
        for line in (0..LINES_MAX).map_while(|n| facts.headers.nth_back("x-forwarded-for", n)) {
            for entry in line.rsplit(|&byte| byte == b',').filter(|entry| !entry.trim_ascii().is_empty()) {
                let Some(hop) = parse_hop(entry) else { return nearest };
                nearest = hop;
                hops += 1;
                if hops == HOPS_MAX || !self.trusts(hop) {
                    return nearest;
                }
            }
        }
        nearest
    }

    /// The Ray Client session a gRPC request belongs to: a digest of its `client_id`. The same
    /// on every call of a session, so that a live session's calls can be told from a
    /// newcomer's.
    pub fn session(&self, facts: &Facts) -> Option<u64> {
        let id = facts.headers.get("client_id").map(<[u8]>::trim_ascii).filter(|id| !id.is_empty())?;
        facts.grpc.then(|| self.digest(Domain::Client, &[id]))
    }

    /// The holder of one of the operator's API keys.
    fn verified_key(&self, facts: &Facts) -> Option<u64> {
        if self.key_digests.is_empty() {
            return None;
        }
        let given = facts.headers.get(&self.key_header)?.trim_ascii();
        if given.is_empty() || given.len() > KEY_BYTES_MAX {
            return None;
        }
        let given: [u8; 32] = Sha256::digest(given).into();
        let known =
            self.key_digests.iter().fold(subtle::Choice::from(0), |known, key| known | key.ct_eq(&given));
        bool::from(known).then(|| self.digest(Domain::Key, &[&given]))
    }

    /// The name a listed proxy gives the user; its own line is the last.
    fn verified_name(&self, facts: &Facts) -> Option<u64> {
        if self.name_headers.is_empty() || !self.trusts(facts.address.to_canonical()) {
            return None;
        }
        self.name_headers.iter().find_map(|header| {
            let name = facts.headers.nth_back(header, 0)?.trim_ascii();
            (!name.is_empty()).then(|| self.digest(Domain::Name, &[header.as_bytes(), &[0], name]))
        })
    }

    /// The credential that Ray would judge the request by.
    fn credential(&self, facts: &Facts) -> Option<u64> {
        let filled = |name| facts.headers.get(name).map(<[u8]>::trim_ascii).filter(|value| !value.is_empty());
        if let Some(value) = filled("authorization").or_else(|| filled("x-ray-authorization")) {
            return Some(match bearer(value) {
                Some(token) => self.digest(Domain::Token, &[token]),
                None => self.digest(Domain::Other, &[value]),
            });
        }
        // HTTP/2 may send one line per cookie; the last of equal names wins, as with Ray.
        (0..LINES_MAX)
            .map_while(|n| facts.headers.nth_back("cookie", n))
            .find_map(|line| cookie(line, b"ray-authentication-token"))
            .map(|token| self.digest(Domain::Token, &[token]))
            .or_else(|| self.session(facts))
    }

    /// Whether this peer is a listed proxy, which may speak for others.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&address))
    }

    fn digest(&self, domain: Domain, parts: &[&[u8]]) -> u64 {
        sip_hash(self.key, &[domain as u8], parts)
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key would undo the digests: never shown.
        f.debug_struct("Identifier")
            .field("trusted", &self.trusted)
            .field("name_headers", &self.name_headers)
            .finish_non_exhaustive()
    }
}

/// One entry of `X-Forwarded-For`: an address, with or without port and brackets.
fn parse_hop(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim();
    let bare = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']'));
    let address = match bare {
        Some(bare) => IpAddr::V6(bare.parse::<Ipv6Addr>().ok()?),
        None => entry.parse().or_else(|_| entry.parse::<SocketAddr>().map(|socket| socket.ip())).ok()?,
    };
    Some(address.to_canonical())
}

/// The token after `Bearer`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The last value of a cookie in one line, without its quotes.
fn cookie<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    line.rsplit(|&byte| byte == b';').find_map(|pair| {
        let value =
            pair.trim_ascii_start().strip_prefix(name)?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
        let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        (!bare.is_empty()).then_some(bare)
    })
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012): a keyed digest that strangers cannot control into collisions without
/// the key. The parts of a message are joined, so clients separate what must stay apart.
#[expect(
    deprecated,
    reason = "digests are kept on disk and shared by replicas: it must be this hash, by its name"
)]
fn sip_hash([k0, k1]: [u64; 2], domain: &[u8], parts: &[&[u8]]) -> u64 {
    let mut hash = std::hash::SipHasher::new_with_keys(k0, k1);
    hash.write(domain);
    for part in parts {
        hash.write(part);
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::facts::Lines;
    use proptest::prelude::*;

    const KEY: [u64; 2] = [1, 2];

    /// Trusts 10.0.0.0/8 and fd00::/8; `x-forwarded-user`, then `x-client-id`, name the user.
    fn identifier() -> Identifier {
        Identifier::new(
            KEY,
            vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            vec!["x-forwarded-user".into(), "x-client-id".into()],
        )
    }

    fn facts<'a>(peer: &str, headers: &'a Lines) -> Facts<'a> {
        let address = peer.parse().unwrap();
        Facts { method: "GET", path: "/", query: "", address, headers, upgrade: false, grpc: false }
    }

    fn lines(lines: &[(&'static str, &str)]) -> Lines {
        Lines(lines.iter().map(|(name, value)| (*name, value.as_bytes().to_vec())).collect())
    }

    fn client(peer: &str, headers: &[(&'static str, &str)]) -> ClientId {
        identifier().identify(&facts(peer, &lines(headers)))
    }

    fn address(peer: &str, headers: &[(&'static str, &str)]) -> String {
        identifier().client_address(&facts(peer, &lines(headers))).to_string()
    }

    #[test]
    fn a_known_api_key_is_one_client_from_everywhere_and_outranks_the_rest() {
        let digest = |key: &str| -> [u8; 32] { Sha256::digest(key).into() };
        let identifier =
            identifier().with_keys("x-rayguard-key".into(), vec![digest("nightly"), digest("ci")]);
        let who =
            |peer: &str, headers: &[(&'static str, &str)]| identifier.identify(&facts(peer, &lines(headers)));
        let nightly = who("1.1.1.1", &[("x-rayguard-key", "nightly")]);
        assert_eq!(nightly.credential, None);
        assert_eq!(
            nightly,
            who("2.2.2.2", &[("x-rayguard-key", " nightly "), ("authorization", "Bearer t")])
        );
        assert_eq!(nightly, who("10.0.0.1", &[("x-rayguard-key", "nightly"), ("x-forwarded-user", "ann")]));
        assert_ne!(nightly, who("1.1.1.1", &[("x-rayguard-key", "ci")]));
        // A key that was not handed out is no credential: inventing keys makes no new clients.
        let plain = who("1.1.1.1", &[]);
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        for invented in ["guess", "", "Nightly", &long] {
            assert_eq!(plain, who("1.1.1.1", &[("x-rayguard-key", invented)]), "{invented}");
        }
        let holds = |key| identifier.holds_key(&facts("1.1.1.1", &lines(&[("x-rayguard-key", key)])));
        assert!(holds("nightly") && holds("ci") && !holds("guess") && !holds(""));
    }

    #[test]
    fn the_digest_is_siphash_2_4() {
        // The paper's vector: key 00..0f, message 00..0e; however it is cut.
        let message: Vec<u8> = (0..15).collect();
        for (one, two) in (0..=15).flat_map(|one| (one..=15).map(move |two| (one, two))) {
            let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
            let digest = sip_hash(key, &message[..one], &[&message[one..two], &message[two..]]);
            assert_eq!(digest, 0xa129_ca61_49be_45e5, "cut at {one} and {two}");
        }
    }

    #[test]
    fn an_address_is_ipv4_whole_and_ipv6_by_its_64() {
        let same = |a: &str, b: &str| client(a, &[]) == client(b, &[]);
        assert!(!same("192.0.2.1", "192.0.2.2"));
        assert!(same("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(same("2001:db8::1", "2001:db8::ffff:0:0:1"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert_eq!(client("192.0.2.1", &[]).credential, None);
    }

    #[test]
    fn a_token_is_the_same_wherever_ray_reads_it() {
        let with = |name, value| client("192.0.2.1", &[(name, value)]).credential;
        let token = with("authorization", "Bearer s3cret");
        assert!(token.is_some());
        assert_eq!(with("x-ray-authorization", "Bearer s3cret"), token);
        assert_eq!(with("authorization", "bearer   s3cret "), token);
        assert_eq!(with("cookie", "ray-authentication-token=s3cret"), token);
        assert_eq!(with("cookie", "a=b; ray-authentication-token=\"s3cret\"; c=d"), token);
        assert_eq!(with("cookie", "ray-authentication-token=old; ray-authentication-token=s3cret"), token);
        assert_ne!(with("authorization", "Bearer other"), token);
        assert_ne!(with("authorization", "Basic s3cret"), token);
        assert_ne!(with("authorization", "s3cret"), token);
        assert_eq!(with("cookie", "xray-authentication-token=s3cret"), None);
        assert_eq!(with("cookie", "ray-authentication-token-2=s3cret"), None);
        assert_eq!(with("cookie", "ray-authentication-token="), None);
    }

    #[test]
    fn the_first_place_decides_as_it_does_for_ray() {
        let bad = client("192.0.2.1", &[("authorization", "Bearer bad")]);
        let rescued = client(
            "192.0.2.1",
            &[
                ("authorization", "Bearer bad"),
                ("x-ray-authorization", "Bearer good"),
                ("cookie", "ray-authentication-token=good"),
            ],
        );
        assert_eq!(bad, rescued, "a bad Authorization is not rescued by a good one elsewhere");
        let empty = client("192.0.2.1", &[("authorization", ""), ("x-ray-authorization", "Bearer good")]);
        assert_eq!(
            empty,
            client("192.0.2.1", &[("authorization", "Bearer good")]),
            "an empty one counts as none"
        );
        let split = client(
            "192.0.2.1",
            &[("cookie", "a=b"), ("cookie", "ray-authentication-token=good"), ("cookie", "c=d")],
        );
        assert_eq!(split, empty, "HTTP/2 may split cookies into lines");
    }

    #[test]
    fn a_ray_client_is_known_by_its_client_id() {
        let headers = lines(&[("client_id", "0123abcd")]);
        let call = Facts { grpc: true, ..facts("192.0.2.1", &headers) };
        let found = identifier().identify(&call);
        assert!(found.credential.is_some());
        assert_eq!(found.credential, identifier().session(&call));
        assert_eq!(client("192.0.2.1", &[("client_id", "0123abcd")]).credential, None, "only in gRPC");

        let both = lines(&[("client_id", "0123abcd"), ("authorization", "Bearer s3cret")]);
        let call = Facts { grpc: true, ..facts("192.0.2.1", &both) };
        assert_eq!(
            identifier().identify(&call).credential,
            client("192.0.2.1", &[("authorization", "Bearer s3cret")]).credential
        );
        assert_eq!(identifier().session(&call), found.credential, "the session is known all the same");
    }

    #[test]
    fn like_spelt_things_of_different_kinds_are_different() {
        let word = "s3cret";
        let headers = lines(&[("client_id", word)]);
        let session = identifier().session(&Facts { grpc: true, ..facts("192.0.2.1", &headers) });
        let token = client("192.0.2.1", &[("authorization", "Bearer s3cret")]).credential;
        let other = client("192.0.2.1", &[("authorization", word)]).credential;
        let name = Some(client("10.0.0.1", &[("x-forwarded-user", word)]).address);
        let id = Some(client("10.0.0.1", &[("x-client-id", word)]).address);
        let all = [session, token, other, name, id];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b), "{all:?}");
        }
    }

    #[test]
    fn a_stranger_cannot_forge_an_address_or_a_name() {
        let honest = client("192.0.2.1", &[]);
        assert_eq!(client("192.0.2.1", &[("x-forwarded-for", "203.0.113.9")]), honest);
        assert_eq!(client("192.0.2.1", &[("x-forwarded-for", "10.0.0.1")]), honest);
        assert_eq!(client("192.0.2.1", &[("x-forwarded-user", "admin"), ("x-client-id", "7")]), honest);
        assert_eq!(client("::ffff:192.0.2.1", &[("x-forwarded-for", "203.0.113.9")]), honest);
    }

    #[test]
    fn behind_listed_proxies_the_first_hop_not_listed_is_the_client() {
        let via = |value: &str| address("10.0.0.1", &[("x-forwarded-for", value)]);
        assert_eq!(via("203.0.113.9"), "203.0.113.9");
        assert_eq!(via("198.51.100.7, 203.0.113.9"), "203.0.113.9", "what the client wrote is left alone");
        assert_eq!(
            via("198.51.100.7, 203.0.113.9, 10.9.9.9, fd00::1"),
            "203.0.113.9",
            "listed hops are stepped over"
        );
        assert_eq!(via("10.2.2.2"), "10.2.2.2", "all listed: the farthest");
        assert_eq!(via("203.0.113.9:4711"), "203.0.113.9");
        assert_eq!(via("[2001:db8::1]:4711"), "2001:db8::1");
        assert_eq!(via("[2001:db8::1]"), "2001:db8::1");
        assert_eq!(via("::ffff:203.0.113.9"), "203.0.113.9");
        assert_eq!(via("198.51.100.7, 203.0.113.9,"), "203.0.113.9", "an empty entry is no client");
        assert_eq!(via("203.0.113.9, ,10.9.9.9, "), "203.0.113.9");
        assert_eq!(via("\u{fc}, 203.0.113.9"), "203.0.113.9", "what the client wrote is left alone");
        assert_eq!(via("198.51.100.7, unknown"), "10.0.0.1", "nothing left of what is no address");
        assert_eq!(via("198.51.100.7, unknown, 10.9.9.9"), "10.9.9.9");
        assert_eq!(via(""), "10.0.0.1");
        assert_eq!(address("::ffff:10.0.0.1", &[("x-forwarded-for", "203.0.113.9")]), "203.0.113.9");
    }

    #[test]
    fn a_proxy_that_adds_a_line_below_the_forged_one_is_believed() {
        let two = [("x-forwarded-for", "198.51.100.7"), ("x-forwarded-for", "203.0.113.9")];
        assert_eq!(address("10.0.0.1", &two), "203.0.113.9");
        let empty = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "")];
        assert_eq!(address("10.0.0.1", &empty), "203.0.113.9");
        let listed = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "10.3.3.3")];
        assert_eq!(address("10.0.0.1", &listed), "203.0.113.9", "on to the line above");
        let named = [("x-forwarded-user", "admin"), ("x-forwarded-user", "mallory")];
        assert_eq!(client("10.0.0.1", &named), client("10.0.0.1", &[("x-forwarded-user", "mallory")]));
    }

    #[test]
    fn a_verified_name_stands_alone() {
        let ann =
            [("x-forwarded-user", "ann"), ("x-forwarded-for", "203.0.113.9"), ("authorization", "Bearer a")];
        let ann_elsewhere = [("x-forwarded-user", " ann "), ("x-forwarded-for", "203.0.113.10")];
        assert_eq!(client("10.0.0.1", &ann), client("10.0.0.2", &ann_elsewhere));
        assert_ne!(client("10.0.0.1", &[("x-forwarded-user", "bob")]), client("10.0.0.1", &ann));
        let by_id = client("10.0.0.1", &[("x-client-id", "7")]);
        assert_eq!(client("10.0.0.1", &[("x-forwarded-user", ""), ("x-client-id", "7")]), by_id);
        assert_eq!(by_id.credential, None);
        assert_eq!(
            client("10.0.0.1", &[("x-forwarded-user", " ")]),
            client("10.0.0.1", &[]),
            "an empty name is none"
        );
    }

    #[test]
    fn endless_forwarding_ends() {
        let hops = vec!["10.1.1.1"; 10_000].join(",");
        assert_eq!(address("10.0.0.1", &[("x-forwarded-for", &hops)]), "10.1.1.1");
        let lines: Vec<_> = (0..10_000).map(|_| ("x-forwarded-for", "10.1.1.1")).collect();
        assert_eq!(address("10.0.0.1", &lines), "10.1.1.1");
    }

    #[test]
    fn another_key_gives_other_digests_and_no_key_is_shown() {
        let headers = lines(&[("authorization", "Bearer s3cret")]);
        let facts = facts("192.0.2.1", &headers);
        let here = identifier().identify(&facts);
        let there = Identifier::new([0xdead_beef, 2], Vec::new(), Vec::new());
        assert_ne!(there.identify(&facts).address, here.address);
        assert_ne!(there.identify(&facts).credential, here.credential);
        let shown = format!("{there:?} {here:?} {facts:?}");
        assert!(
            !shown.contains("s3cret") && !shown.contains("3735928559") && !shown.contains("deadbeef"),
            "{shown}"
        );
    }

    proptest! {
        #[test]
        fn no_header_of_a_strangers_moves_its_address(
            forwarded in prop::collection::vec(any::<u8>(), 0..60),
            user in "\\PC{0,20}",
            peer in any::<[u8; 4]>().prop_filter("a stranger", |octets| octets[0] != 10),
        ) {
            let address = IpAddr::from(peer);
            let headers = Lines(vec![("x-forwarded-for", forwarded), ("x-forwarded-user", user.into_bytes())]);
            let none = Lines::default();
            let facts = |headers| Facts { address, ..facts("192.0.2.1", headers) };
            prop_assert_eq!(identifier().identify(&facts(&headers)), identifier().identify(&facts(&none)));
        }

        #[test]
        fn nothing_a_client_writes_before_its_proxys_entry_counts(forged in "[0-9a-f.:, \\[\\]]{0,60}") {
            let forwarded = format!("{forged},203.0.113.9");
            prop_assert_eq!(address("10.0.0.1", &[("x-forwarded-for", &forwarded)]), "203.0.113.9");
        }

        #[test]
        fn no_header_makes_it_panic(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 6),
            grpc in any::<bool>(),
        ) {
            let names = ["authorization", "x-ray-authorization", "cookie", "client_id", "x-forwarded-for", "x-client-id"];
            let headers = Lines(names.into_iter().zip(values).collect());
            for peer in ["10.0.0.1", "192.0.2.1", "fd00::1"] {
                let _ = identifier().identify(&Facts { grpc, ..facts(peer, &headers) });
            }
        }
    }

    #[test]
    fn an_operator_is_told_from_the_others_of_its_address_and_of_its_token() {
        let known = identifier().with_agents("user-agent".into(), vec!["go-http-client/".into()]);
        let from = |address: &str, lines: Vec<(&'static str, Vec<u8>)>| {
            let headers = Lines(lines);
            let address = address.parse().unwrap();
            known.identify(&Facts {
                method: "GET",
                path: "/",
                query: "",
                address,
                headers: &headers,
                upgrade: false,
                grpc: false,
            })
        };
        let of = |lines| from("203.0.113.7", lines);
        let go = || ("user-agent", b"Go-http-client/1.1".to_vec());
        let browser = || ("user-agent", b"Mozilla/5.0".to_vec());
        let token = || ("x-ray-authorization", b"Bearer t".to_vec());
        let (operator, user) = (of(vec![go()]), of(vec![browser()]));
        assert_eq!((operator.address, user.credential), (user.address, None), "one address's share");
        assert!(operator.credential.is_some());
        assert_eq!(of(vec![]), user, "other programs are as if they had not said who they are");
        let (operators, users) = (of(vec![go(), token()]), of(vec![browser(), token()]));
        assert!(operators.credential != users.credential && operators.credential != operator.credential);
        assert_eq!(of(vec![token(), ("user-agent", b"go-http-client/2.0".to_vec())]), operators);
        let elsewhere = |lines| from("203.0.113.8", lines);
        assert_eq!(elsewhere(vec![go(), token()]).credential, operators.credential);
        assert_ne!(elsewhere(vec![go()]).credential, operator.credential, "a name alone has no past");
    }
}
