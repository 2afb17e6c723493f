//! The kinds of values that keys have: how each is read, bounded, and written again.
//!
//! A value that is not understood is refused where it stands: serde carries the sentence, and
//! `document` adds key and place. A sentence is `what is wrong; what to do`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use url::Url;

use super::quantity::{self, Objective, shown};
use super::scalars::{Address, Upstream};
use rayguard_core::admission::table::Mode;
use rayguard_core::policy::{Kind, OnStale, Slo, Treatment};
use rayguard_core::request::catalogue::Surface;
use rayguard_core::request::profile::{self, Fit, Profile};

/// The longest path that fits `sun_path` (108 bytes on Linux, 104 elsewhere, one for NUL).
const UNIX_PATH_BYTES_MAX: usize = 103;

/// A kind of value.
pub trait Value {
    /// What is kept of it.
    type Out;
    /// What a range bounds; `()` where nothing can.
    type Bound: Copy + PartialOrd;
    /// What the tables of the documentation call it.
    fn unit() -> String;
    /// The words it may be, where it is one of a few.
    fn words() -> Vec<&'static str> {
        Vec::new()
    }
    /// Reads it.
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self::Out, D::Error>;
    /// What a range bounds in it.
    fn bound(_value: &Self::Out) -> Option<Self::Bound> {
        None
    }
    /// A bound as people write it.
    fn show(_bound: Self::Bound) -> String {
        String::new()
    }
    /// The value as it stands in a file; empty for one that is absent.
    fn toml(value: &Self::Out) -> String;
}

/// Reads a value of kind `V`, wherever serde asks for a seed.
pub(crate) struct Read<V>(PhantomData<V>);

impl<V> Read<V> {
    pub(crate) fn new() -> Self {
        Read(PhantomData)
    }
}

impl<'de, V: Value> DeserializeSeed<'de> for Read<V> {
    type Value = V::Out;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<V::Out, D::Error> {
        V::read(from)
    }
}

/// [`Read`], within a range.
pub(crate) struct ReadWithin<V: Value> {
    pub(crate) bounds: Option<(V::Bound, V::Bound)>,
    /// The range in words, where the bounds alone do not say it.
    pub(crate) range: &'static str,
    pub(crate) default: fn() -> String,
}

impl<'de, V: Value> DeserializeSeed<'de> for ReadWithin<V> {
    type Value = V::Out;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<V::Out, D::Error> {
        let value = V::read(from)?;
        let (Some((least, most)), Some(given)) = (self.bounds, V::bound(&value)) else { return Ok(value) };
        // Written so that NaN, which compares to nothing, is refused too.
        if given >= least && given <= most {
            return Ok(value);
        }
        let bounds = format!("{} to {}", V::show(least), V::show(most));
        let (message, range) = match (self.range, self.range.strip_prefix("{}")) {
            ("", _) => (&*bounds, bounds.clone()),
            (_, Some(more)) => (&*bounds, format!("{bounds}{more}")),
            (told, None) => ("the range", told.to_owned()),
        };
        let default = match (self.default)() {
            default if default.is_empty() => default,
            default => format!("; the default is {}", default.trim_matches('"')),
        };
        let given = V::show(given);
        Err(de::Error::custom(format!("{given} is outside {message}; write {range}{default}")))
    }
}

// === quantities and numbers ===

macro_rules! quantities {
    ($($(#[doc = $doc:literal])+ $name:ident($quantity:ident) -> $out:ty, $unit:literal, $expected:literal;)*) => {$(
        $(#[doc = $doc])+
        pub enum $name {}
        impl Value for $name {
            type Out = $out;
            type Bound = $out;
            fn unit() -> String {
                $unit.to_owned()
            }
            fn read<'de, D: Deserializer<'de>>(from: D) -> Result<$out, D::Error> {
                let parse = |text: &str| text.parse().map(|quantity::$quantity(value)| value);
                text(from, $expected, |text| parse(text).map_err(|error| error.to_string()))
            }
            fn bound(value: &$out) -> Option<$out> {
                Some(*value)
            }
            fn show(bound: $out) -> String {
                quantity::$quantity(bound).to_string()
            }
            fn toml(value: &$out) -> String {
                quoted(&quantity::$quantity(*value))
            }
        }
    )*};
}

quantities! {
    /// A length of time.
    Time(Length) -> Duration, "time", "a duration in quotes, such as \"500ms\" or \"10s\"";
    /// A rate.
    Rate(PerSecond) -> f64, "rate", "a rate in quotes, such as \"5/s\" or \"120/min\"";
    /// A size.
    Size(Bytes) -> u64, "size", "a size in quotes, such as \"100 MiB\"";
    /// A flow of bytes.
    Throughput(BytesPerSecond) -> f64, "throughput", "a throughput in quotes, such as \"20 MB/s\"";
}

macro_rules! plain {
    ($($type:ident, $unit:literal;)*) => {$(
        impl Value for $type {
            type Out = $type;
            type Bound = $type;
            fn unit() -> String {
                $unit.to_owned()
            }
            fn read<'de, D: Deserializer<'de>>(from: D) -> Result<$type, D::Error> {
                $type::deserialize(from)
            }
            fn bound(value: &$type) -> Option<$type> {
                Some(*value)
            }
            fn show(bound: $type) -> String {
                bound.to_string()
            }
            fn toml(value: &$type) -> String {
                value.to_string()
            }
        }
    )*};
}

plain! {
    bool, "boolean";
    f64, "";
    usize, "count";
    u64, "count";
}

/// A size of what is kept in memory.
pub enum Room {}
impl Value for Room {
    type Out = usize;
    type Bound = usize;
    fn unit() -> String {
        Size::unit()
    }
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
        Ok(usize::try_from(Size::read(from)?).unwrap_or(usize::MAX))
    }
    fn bound(value: &usize) -> Option<usize> {
        Some(*value)
    }
    fn show(bound: usize) -> String {
        Size::show(bound as u64)
    }
    fn toml(value: &usize) -> String {
        Size::toml(&(*value as u64))
    }
}

// === words ===

/// What is written as one of a few words.
pub trait Words: Copy + PartialEq + 'static {
    /// The words, and what each means.
    const WORDS: &'static [(&'static str, Self)];
    /// The word for this.
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, meaning)| *meaning == self).map_or("", |(word, _)| word)
    }
}

/// One of a few words.
pub struct Word<T>(PhantomData<T>);

impl<T: Words> Value for Word<T> {
    type Out = T;
    type Bound = ();
    fn unit() -> String {
        String::new()
    }
    fn words() -> Vec<&'static str> {
        T::WORDS.iter().map(|(word, _)| *word).collect()
    }
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        text(from, "a word in quotes", |text| {
            let found = T::WORDS.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
            let known = || Self::words().join(", ");
            found.ok_or_else(|| format!("`{}` is not known here; write one of: {}", shown(text), known()))
        })
    }
    fn toml(value: &T) -> String {
        quoted(&value.word())
    }
}

macro_rules! words {
    ($($type:path { $($word:literal => $meaning:expr),* $(,)? })*) => {$(
        impl Words for $type {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, $meaning)),*];
        }
    )*};
}

words! {
    Mode { "enforce" => Mode::Enforce, "shadow" => Mode::Shadow }
    Surface { "dashboard" => Surface::Dashboard, "ray-client" => Surface::RayClient, "serve" => Surface::Serve }
    OnStale { "hold" => OnStale::Hold, "decay" => OnStale::Decay, "static" => OnStale::Static }
    Treatment { "limited" => Treatment::Limited, "exempt" => Treatment::Exempt, "blocked" => Treatment::Blocked }
    Kind { "unary" => Kind::Unary, "held" => Kind::Held }
    tracing::Level {
        "error" => tracing::Level::ERROR, "warn" => tracing::Level::WARN, "info" => tracing::Level::INFO,
        "debug" => tracing::Level::DEBUG, "trace" => tracing::Level::TRACE,
    }
    super::scalars::LogFormat { "text" => Self::Text, "json" => Self::Json }
    super::scalars::NotifyKind {
        "alertmanager" => Self::Alertmanager, "webhook" => Self::Webhook, "slack" => Self::Slack,
    }
    How {
        "sum" => How::Sum, "max" => How::Max, "rate" => How::Rate, "share-above" => How::ShareAbove,
        "quantile" => How::Quantile, "ratio" => How::Ratio,
    }
    LawKind {
        "static" => LawKind::Static, "aimd" => LawKind::Aimd, "pid" => LawKind::Pid,
        "gradient" => LawKind::Gradient,
    }
}

/// What is made of samples; its numbers stand in keys beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Their sum.
    Sum,
    /// The largest.
    Max,
    /// Their increase per second.
    Rate,
    /// Share of a histogram's new observations above a bound.
    ShareAbove,
    /// Quantile of a histogram's new observations.
    Quantile,
    /// Their sum over another sum.
    Ratio,
}

/// The laws; their gains stand in keys beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LawKind {
    /// The limit stays.
    Static,
    /// Additive increase, multiplicative decrease.
    Aimd,
    /// Velocity-form PID on log(limit).
    Pid,
    /// Latency against a learnt baseline.
    Gradient,
}

// === texts ===

macro_rules! texts {
    ($($(#[doc = $doc:literal])+ $name:ident -> $out:ty, $unit:literal, $expected:literal, $parse:expr, $write:expr;)*) => {$(
        $(#[doc = $doc])+
        pub enum $name {}
        #[allow(clippy::ref_option_ref, reason = "one of them is an option of a reference")]
        impl Value for $name {
            type Out = $out;
            type Bound = ();
            fn unit() -> String {
                $unit.to_owned()
            }
            fn read<'de, D: Deserializer<'de>>(from: D) -> Result<$out, D::Error> {
                text(from, $expected, $parse)
            }
            fn toml(value: &$out) -> String {
                let write: fn(&$out) -> String = $write;
                quoted(&write(value))
            }
        }
    )*};
}

texts! {
    /// Any text.
    Text -> Arc<str>, "text", "a text in quotes", |text| Ok(text.into()), |text| text.to_string();
    /// A latency objective.
    Slos -> Slo, "by class", "an objective in quotes, such as \"p99 1s\"",
        |text| text.parse().map(|Objective(slo)| slo).map_err(|error| error.to_string()),
        |slo| Objective(*slo).to_string();
    /// A path of the file system.
    Path -> PathBuf, "path", "a path in quotes", path, |path| path.display().to_string();
    /// Where to listen.
    Listen -> Address, "address", "an address in quotes, such as \"127.0.0.1:8266\"", address,
        Address::to_string;
    /// A server of Ray's.
    Server -> Upstream, "URL", "a URL in quotes, such as \"http://127.0.0.1:8265\"", upstream, Upstream::url;
    /// Any URL of http or https.
    AnyUrl -> Url, "URL", "a URL in quotes", any_url, Url::to_string;
    /// A page of metrics.
    Page -> Url, "URL", "a URL in quotes", page, Url::to_string;
    /// The address of Prometheus: http or https, with a path and a query if need be.
    PrometheusUrl -> Url, "URL", "a URL in quotes", prometheus_url, Url::to_string;
    /// A version of Ray, or `auto`.
    RayVersion -> Option<&'static Profile>, "version", "a version in quotes, or \"auto\"", ray_version,
        |profile| profile.map_or("auto", |profile| profile.ray).to_owned();
    /// Who helps users.
    Contact -> Arc<String>, "text", "a text in quotes", contact, |text| text.to_string();
    /// A network, or one address.
    Network -> IpNet, "network", "a network in quotes, such as \"10.0.0.0/8\"", network, IpNet::to_string;
    /// The name of a header.
    Header -> Arc<str>, "name", "the name of a header in quotes", header, |name| name.to_string();
    /// How the name of a program begins.
    Agent -> Arc<str>, "text", "a text in quotes", agent, |text| text.to_string();
    /// An origin, as browsers send it.
    Origin -> Arc<str>, "origin", "an origin in quotes, or \"*\"", origin, |text| text.to_string();
    /// The digest of an API key.
    Digest -> [u8; 32], "hexadecimal", "64 hexadecimal digits in quotes",
        |text| super::api_keys::digest(text)
            .ok_or("this is not a SHA-256 digest of 64 hexadecimal digits; print it with: printf %s \"$KEY\" | sha256sum".into()),
        |_| String::new();
    /// A path of HTTP.
    HttpPath -> Arc<str>, "path", "a path in quotes", http_path, |text| text.to_string();
    /// A host's name.
    Host -> Arc<str>, "name", "a host name in quotes", host, |text| text.to_string();
    /// A short name.
    Name -> Arc<str>, "name", "a name in quotes", name, |text| text.to_string();
}

/// Reads a text by `parse`.
fn text<'de, D: Deserializer<'de>, T>(
    from: D,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Parse<F>(&'static str, F);
    impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Parse<F> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).map_err(E::custom)
        }
    }
    from.deserialize_any(Parse(expected, parse))
}

/// As TOML quotes it.
pub(crate) fn quoted(value: &impl fmt::Display) -> String {
    format!("\"{value}\"")
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("this is not a path; write a path, or remove the key".into());
    }
    Ok(text.into())
}

fn address(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        let message = match path.len() {
            0 => "the path of the Unix socket is empty".to_owned(),
            1..=UNIX_PATH_BYTES_MAX if path.contains('\0') => "the path holds a NUL".to_owned(),
            1..=UNIX_PATH_BYTES_MAX => return Ok(Address::Unix(path.into())),
            bytes => {
                format!(
                    "the path of the Unix socket has {bytes} bytes, the system takes {UNIX_PATH_BYTES_MAX}"
                )
            }
        };
        return Err(format!("{message}; choose a short path, such as unix:/run/rayguard/proxy.sock"));
    }
    let named = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    if let Ok(address) = named.as_deref().unwrap_or(text).parse() {
        return Ok(Address::Tcp(address));
    }
    let remedy = match text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
        Some(port) => format!("for every interface write \"0.0.0.0:{}\"", shown(port)),
        None => "write address and port, such as \"127.0.0.1:8266\" or \"[::1]:8266\", or \"unix:/path\""
            .to_owned(),
    };
    Err(format!("`{}` is not an address to listen on; {remedy}", shown(text)))
}

fn upstream(text: &str) -> Result<Upstream, String> {
    let text = text.trim();
    let url = if text.contains("://") { Url::parse(text) } else { Url::parse(&format!("http://{text}")) };
    let text = shown(text);
    let message = match url {
        Err(_) => format!("`{text}` is not an address of a server"),
        Ok(url) if url.scheme() == "https" => {
            "Ray's own ports do not use https; for a TLS server in front of them, set `upstream_tls` in \
                its `[[listen]]`"
                .to_owned()
        }
        Ok(url) if url.scheme() != "http" => format!("Ray does not use the scheme `{}`", url.scheme()),
        Ok(url) if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() => {
            format!("`{text}` has a path, which is not allowed here")
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            "a password does not belong here, because clients send their own credentials".to_owned()
        }
        Ok(url) if url.port_or_known_default() == Some(0) => "port 0 is not the port of a server".to_owned(),
        Ok(url) => {
            let host = match url.host() {
                Some(url::Host::Ipv6(address)) => address.to_string(),
                Some(host) => host.to_string(),
                None => String::new(),
            };
            if !host.is_empty() {
                return Ok(Upstream { host: host.into(), port: url.port_or_known_default().unwrap_or(80) });
            }
            format!("`{text}` has no host")
        }
    };
    Err(format!("{message}; write scheme, host and port, such as \"http://127.0.0.1:8265\""))
}

fn any_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| {
        format!("`{}` is not a URL; write a URL, such as \"http://alertmanager:9093\"", shown(text))
    })
}

/// An http URL; `host:port` alone gets the usual path.
fn page(text: &str) -> Result<Url, String> {
    let text = text.trim();
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}/metrics") };
    let remedy = "write an http URL, such as \"http://127.0.0.1:9090\"";
    match Url::parse(&whole) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Ok(url),
        Ok(url) if url.scheme() == "https" => Err(format!("Ray's exporters do not use https; {remedy}")),
        _ => Err(format!("`{}` is not an http URL; {remedy}", shown(text))),
    }
}

fn prometheus_url(text: &str) -> Result<Url, String> {
    let text = text.trim();
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}/") };
    match Url::parse(&whole) {
        // The file is read by more people than may ask Prometheus.
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            let remedy =
                "write prometheus_user = \"name\" and prometheus_password = { file = \"/run/secrets/name\" }";
            Err(format!("the address contains a user or a password; {remedy}"))
        }
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err("this is not an http or https URL; write a URL, such as \"http://127.0.0.1:9090\"".into()),
    }
}

fn ray_version(text: &str) -> Result<Option<&'static Profile>, String> {
    let text = text.trim();
    if text == "auto" {
        return Ok(None);
    }
    match profile::of_version(text) {
        (_, Fit::Unknown) => Err(format!(
            "`{}` is not a Ray version from {} on; write \"auto\" to detect it, or a version such as \"2.44\"",
            shown(text),
            profile::PROFILES[0].ray
        )),
        (profile, _) => Ok(Some(profile)),
    }
}

/// It stands in answers and headers: one short line.
fn contact(text: &str) -> Result<Arc<String>, String> {
    const CONTACT_MAX: usize = 200;
    let text = text.trim();
    if (1..=CONTACT_MAX).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Ok(Arc::new(text.to_owned()));
    }
    Err(format!(
        "`{}` is not one line of 1 to {CONTACT_MAX} ASCII characters; write who helps users, such as \"#ray-help in Slack\" or \"ray-admins@example.com\"",
        shown(text)
    ))
}

fn network(text: &str) -> Result<IpNet, String> {
    match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
        Ok(network) if network.prefix_len() == 0 => Err(format!(
            "`{text}` trusts everyone, so any client could pretend to be another; list the networks of \
                your proxies, such as \"10.0.0.0/8\""
        )),
        Ok(network) => Ok(network.trunc()),
        Err(_) => Err(format!(
            "`{}` is not a network; write an address or a network, such as \"10.1.2.3\" or \"10.0.0.0/8\"",
            shown(text)
        )),
    }
}

fn header(text: &str) -> Result<Arc<str>, String> {
    let name = http::HeaderName::from_bytes(text.as_bytes()).map(|name| name.as_str().into());
    name.map_err(|_| {
        format!("`{}` is not the name of a header; write a name such as \"x-forwarded-user\"", shown(text))
    })
}

fn agent(text: &str) -> Result<Arc<str>, String> {
    if (3..=100).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text.to_ascii_lowercase().into());
    }
    Err(format!(
        "`{}` is not the beginning of a program's name; write 3 to 100 letters, digits and signs, such as \
            \"kuberay-operator/\"",
        shown(text)
    ))
}

fn origin(text: &str) -> Result<Arc<str>, String> {
    if text == "*" || Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text) {
        return Ok(text.into());
    }
    Err(format!(
        "`{}` is not an origin; write scheme, host and port as a browser sends them, such as \"https://app.example\", or \"*\"",
        shown(text)
    ))
}

fn http_path(text: &str) -> Result<Arc<str>, String> {
    if text.starts_with('/') && !text.contains(char::is_whitespace) {
        return Ok(text.into());
    }
    let usual = super::defaults::PROBE_PATH;
    Err(format!("`{}` is not a path; write a path such as \"{usual}\"", shown(text)))
}

fn host(text: &str) -> Result<Arc<str>, String> {
    if is_short_name(text, 253) {
        return Ok(text.to_ascii_lowercase().into());
    }
    Err(format!("`{}` is not a host name; write the bare name, such as \"rayguard.ray.svc\"", shown(text)))
}

fn name(text: &str) -> Result<Arc<str>, String> {
    if is_short_name(text, 100) {
        return Ok(text.into());
    }
    Err(format!("`{}` is not a name; use up to 100 letters, digits, `-`, `.` and `_`", shown(text)))
}

fn is_short_name(text: &str, length_max: usize) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=length_max).contains(&text.len()) && text.bytes().all(fits)
}

// === values made of values ===

impl<V: Value> Value for Option<V> {
    type Out = Option<V::Out>;
    type Bound = V::Bound;
    fn unit() -> String {
        V::unit()
    }
    fn words() -> Vec<&'static str> {
        V::words()
    }
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Option<V::Out>, D::Error> {
        V::read(from).map(Some)
    }
    fn bound(value: &Option<V::Out>) -> Option<V::Bound> {
        value.as_ref().and_then(V::bound)
    }
    fn show(bound: V::Bound) -> String {
        V::show(bound)
    }
    fn toml(value: &Option<V::Out>) -> String {
        value.as_ref().map_or_else(String::new, V::toml)
    }
}

impl<V: Value> Value for Vec<V> {
    type Out = Vec<V::Out>;
    type Bound = ();
    fn unit() -> String {
        format!("list of {}s", V::unit())
    }
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<V::Out>, D::Error> {
        struct List<V>(PhantomData<V>);
        impl<'de, V: Value> Visitor<'de> for List<V> {
            type Value = Vec<V::Out>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list")
            }
            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Vec<V::Out>, S::Error> {
                let mut list = Vec::new();
                while let Some(element) = seq.next_element_seed(Read::<V>::new())? {
                    list.push(element);
                }
                Ok(list)
            }
        }
        from.deserialize_any(List::<V>(PhantomData))
    }
    fn toml(value: &Vec<V::Out>) -> String {
        format!("[{}]", value.iter().map(V::toml).collect::<Vec<_>>().join(", "))
    }
}

/// Tables by name.
pub struct Named<V>(PhantomData<V>);

impl<V: Value> Value for Named<V> {
    type Out = BTreeMap<String, V::Out>;
    type Bound = ();
    fn unit() -> String {
        if V::unit() == "table" { "tables by name".into() } else { V::unit() }
    }
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self::Out, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Value> Visitor<'de> for Entries<V> {
            type Value = BTreeMap<String, V::Out>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    entries.insert(name, map.next_value_seed(Read::<V>::new())?);
                }
                Ok(entries)
            }
        }
        from.deserialize_any(Entries::<V>(PhantomData))
    }
    fn toml(_: &Self::Out) -> String {
        String::new()
    }
}

/// `"off"`, or a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OrOff<T> {
    /// Not wanted.
    Off,
    /// Wanted so.
    On(T),
}

impl<T> OrOff<T> {
    /// The value, if it is wanted.
    pub fn on(self) -> Option<T> {
        match self {
            OrOff::Off => None,
            OrOff::On(value) => Some(value),
        }
    }
}

/// A single value, or a table that says more.
#[derive(Clone, PartialEq, Debug)]
pub enum Short<A, T> {
    /// The short form.
    Value(A),
    /// The long form.
    Table(T),
}

/// Forwards single values to `$inner`, wrapped by `$wrap`.
macro_rules! forward_single_values {
    ($inner:ty, $wrap:path) => {
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
            <$inner>::read(number.into_deserializer()).map($wrap)
        }
        fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
            <$inner>::read(number.into_deserializer()).map($wrap)
        }
    };
}

impl<V: Value> Value for OrOff<V> {
    type Out = OrOff<V::Out>;
    type Bound = V::Bound;
    fn unit() -> String {
        format!("{} or `off`", V::unit())
    }
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self::Out, D::Error> {
        struct Either<V>(PhantomData<V>);
        impl<V: Value> Visitor<'_> for Either<V> {
            type Value = OrOff<V::Out>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity in quotes, or \"off\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                if text == "off" { Ok(OrOff::Off) } else { V::read(text.into_deserializer()).map(OrOff::On) }
            }
            forward_single_values!(V, OrOff::On);
        }
        from.deserialize_any(Either::<V>(PhantomData))
    }
    fn bound(value: &Self::Out) -> Option<V::Bound> {
        if let OrOff::On(value) = value { V::bound(value) } else { None }
    }
    fn show(bound: V::Bound) -> String {
        V::show(bound)
    }
    fn toml(value: &Self::Out) -> String {
        if let OrOff::On(value) = value { V::toml(value) } else { "\"off\"".into() }
    }
}

impl<V: Value, T: Value> Value for Short<V, T> {
    type Out = Short<V::Out, T::Out>;
    type Bound = V::Bound;
    fn unit() -> String {
        format!("{} or range", V::unit())
    }
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self::Out, D::Error> {
        struct Either<V, T>(PhantomData<(V, T)>);
        impl<'de, V: Value, T: Value> Visitor<'de> for Either<V, T> {
            type Value = Short<V::Out, T::Out>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a single value or a table")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                V::read(text.into_deserializer()).map(Short::Value)
            }
            forward_single_values!(V, Short::Value);
            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
                T::read(de::value::MapAccessDeserializer::new(map)).map(Short::Table)
            }
            fn visit_seq<S: SeqAccess<'de>>(self, seq: S) -> Result<Self::Value, S::Error> {
                T::read(de::value::SeqAccessDeserializer::new(seq)).map(Short::Table)
            }
        }
        from.deserialize_any(Either::<V, T>(PhantomData))
    }
    fn bound(value: &Self::Out) -> Option<V::Bound> {
        if let Short::Value(value) = value { V::bound(value) } else { None }
    }
    fn show(bound: V::Bound) -> String {
        V::show(bound)
    }
    fn toml(value: &Self::Out) -> String {
        if let Short::Value(value) = value { V::toml(value) } else { String::new() }
    }
}
