//! Asking a Prometheus server.
//!
//! For heads whose pages cannot be reached from here, and for readings that need history or
//! arithmetic: `GET /api/v1/query`, one expression, one number. An answer is a reading only
//! when it is a scalar or a vector of exactly one element; of several elements none is more
//! right than the others, and the refusal says how to make them one. The answer carries the
//! time of evaluation, which becomes the reading's own: a query that was slow to answer does
//! not look younger than it is.
//!
//! A Prometheus is asked as its people let it be asked: under a path, with parameters of its own
//! in the query, over TLS, with a bearer token, with user and password, or with headers, such as
//! a tenant's. Secrets are read for each question, so that one that has been replaced is used at
//! once, and stand in no message.
//!
//! Source: Prometheus HTTP API, "Instant queries"; values are strings, with `NaN` and `+Inf`.

use crate::config::settings::{Login, Prometheus};
use crate::core::signal::reading::Missing;
use crate::core::time::WallMs;
use crate::observe::fetch::{self, FetchError, FetchLimits};
use crate::runtime::secret;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use reqwest::Client;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// Timeout and size cap of a query unless configured; one number needs little room.
pub const DEFAULT_BOUNDS: FetchLimits =
    FetchLimits { timeout: Duration::from_secs(4), body_bytes_max: 1 << 20 };

/// A Prometheus server.
#[derive(Clone, Debug)]
pub struct Server {
    /// `host:port`, for logs and readings.
    pub name: Arc<str>,
    query: Url,
    access: Prometheus,
    client: Client,
}

/// One number.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// Finite.
    pub value: f64,
    /// When Prometheus evaluated the expression.
    pub evaluated: WallMs,
    /// What Prometheus warns of, e.g. a rate over what is no counter.
    pub warnings: Vec<String>,
}

/// Why there is no number.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum QueryError {
    /// The exchange failed.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It answers in plain HTTP.
    #[error(
        "Prometheus does not use TLS at this address; write http:// in `metrics.prometheus`, or use its \
            TLS port"
    )]
    NoTls,
    /// Its certificate is not trusted.
    #[error("TLS with Prometheus fails: {0}; {remedy}", remedy = tls_remedy(.0))]
    Tls(String),
    /// It answers, but not with 200.
    #[error("Prometheus answered with status {status}{}{}", quoted(.said), remedy(*.status))]
    Status {
        /// The status.
        status: u16,
        /// The beginning of its words.
        said: String,
    },
    /// What it is to be asked with cannot be had.
    #[error("{0}")]
    Secret(String),
    /// Prometheus refuses the expression or cannot evaluate it.
    #[error("Prometheus reports {kind}: {message}")]
    Refused {
        /// `bad_data`, `timeout`, `execution`, ...
        kind: String,
        /// Its words.
        message: String,
    },
    /// Not the API's JSON.
    #[error("the answer is not Prometheus': {0}; check the address and its path prefix")]
    NotPrometheus(String),
    /// Nothing matches.
    #[error("the expression gives no series; is the target scraped, and the name right?")]
    Empty,
    /// More than one element.
    #[error("the expression gives {0} series; wrap it in max(..) or sum(..)")]
    SeveralSeries(usize),
    /// A matrix, a string or a native histogram.
    #[error("the expression gives a {0}; a scalar or a vector of one element is needed")]
    WrongType(String),
    /// NaN or infinite, mostly a division by zero.
    #[error("the value is {0}; guard the expression against dividing by zero")]
    NotFinite(String),
}

fn quoted(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(" ({said})") }
}

fn remedy(status: u16) -> &'static str {
    match status {
        401 | 403 => {
            "; it needs credentials, or different ones: see `metrics.prometheus_token`, `prometheus_user`, and \
             `prometheus_headers` for a tenant"
        }
        404 => "; check the path before `/api/v1/query` in `metrics.prometheus`",
        300..=399 => ", a redirect, which is not followed; give the final address",
        _ => "",
    }
}

fn tls_remedy(cause: &str) -> &'static str {
    if cause.contains("CaUsedAsEndEntity") {
        "its certificate is a CA's own, which no server may use: sign one for the server with it, and name that CA in \
         `metrics.prometheus_authorities`"
    } else if cause.contains("UnsupportedCertVersion") {
        "its certificate is of X.509 version 1; give it one of version 3"
    } else if cause.contains("not valid for name") {
        "use a name that its certificate contains"
    } else {
        "`metrics.prometheus_authorities` names the CA certificates it must chain to"
    }
}

impl QueryError {
    /// As the signals know it: an answer without a value is unusable, no answer unreachable.
    pub fn missing(&self, server: &Server, expression: &str) -> Missing {
        match self {
            QueryError::Fetch(fault) => fault.missing(&server.name),
            QueryError::NotPrometheus(..)
            | QueryError::NoTls
            | QueryError::Tls(..)
            | QueryError::Status { .. }
            | QueryError::Secret(..) => {
                Missing::Unreachable { target: server.name.clone(), problem: self.to_string().into() }
            }
            QueryError::Empty => Missing::NotFound { tried: expression.into() },
            _ => Missing::Unusable { metric: expression.into(), problem: self.to_string().into() },
        }
    }
}

impl Server {
    /// The server of the configuration. A path before the API's (`http://host/prometheus`) and
    /// the parameters of its address are kept.
    ///
    /// # Errors
    /// [`QueryError::Fetch`] when those who vouch for it cannot be read.
    pub fn new(access: &Prometheus) -> Result<Server, QueryError> {
        let mut query = access.url.clone();
        let host = query.host_str().unwrap_or_default();
        let name = format!("{host}:{}", query.port_or_known_default().unwrap_or(80)).into();
        let prefix = query.path().trim_end_matches('/').to_owned();
        query.set_path(&format!("{prefix}/api/v1/query"));
        query.set_fragment(None);
        let client = fetch::client_trusting(access.authorities.as_deref())?;
        Ok(Server { name, query, access: access.clone(), client })
    }

    /// What it is asked with.
    fn headers(&self) -> Result<HeaderMap, QueryError> {
        let read = |from, what: &str| {
            let problem = |error: secret::SecretError| QueryError::Secret(error.to_string());
            secret::read(from, what).map_err(problem)
        };
        let mut headers = HeaderMap::new();
        for (name, value) in &self.access.headers {
            add(&mut headers, name, value)?;
        }
        if let Some(from) = &self.access.headers_from {
            let what = "headers of Prometheus";
            let listed: Listed = serde_json::from_str(&read(from, what)?).map_err(|_| {
                QueryError::Secret(format!(
                    "the {what} are not JSON such as {{\"X-Scope-OrgID\": \"team-a\"}}"
                ))
            })?;
            for (name, value) in listed.0 {
                add(&mut headers, &name, &value)?;
            }
        }
        let authorization = match &self.access.login {
            None => return Ok(headers),
            Some(Login::Token(token)) => format!("Bearer {}", read(token, "token of Prometheus")?),
            Some(Login::Basic { user, password }) => {
                let password = read(password, "password of Prometheus")?;
                format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
            }
        };
        add(&mut headers, AUTHORIZATION.as_str(), &authorization)?;
        Ok(headers)
    }
}

fn add(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), QueryError> {
    let (Ok(header), Ok(mut text)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) else {
        // Not its value: that may be the secret.
        return Err(QueryError::Secret(format!("`{name}` of Prometheus is not a header")));
    };
    text.set_sensitive(true);
    // The later of two is meant: some servers refuse a tenant that is named twice.
    headers.insert(header, text);
    Ok(())
}

/// Headers as Ray's own `RAY_PROMETHEUS_HEADERS` holds them: an object, or a list of pairs.
#[derive(Debug)]
struct Listed(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Listed, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Object(std::collections::BTreeMap<String, String>),
            Pairs(Vec<(String, String)>),
        }
        Ok(Listed(match Either::deserialize(deserializer)? {
            Either::Object(object) => object.into_iter().collect(),
            Either::Pairs(pairs) => pairs,
        }))
    }
}

/// Asks for the value of an expression now.
pub async fn query(server: &Server, expression: &str, bounds: FetchLimits) -> Result<Answer, QueryError> {
    let mut url = server.query.clone();
    // Prometheus gives up when we do.
    let timeout = format!("{}ms", bounds.timeout.as_millis());
    url.query_pairs_mut().append_pair("query", expression).append_pair("timeout", &timeout);
    let headers = server.headers()?;
    let answer = fetch::get_with(&server.client, url, "application/json", headers.clone(), bounds).await;
    let answer = answer.map_err(as_tls)?;
    let status = answer.status.as_u16();
    // A refusal has a status of its own, and a body that says more.
    match serde_json::from_slice::<Envelope>(&answer.body) {
        Ok(envelope) if matches!(status, 401 | 403) || (status != 200 && envelope.kind.is_empty()) => {
            Err(QueryError::Status { status, said: printable(envelope.error.as_bytes(), &headers) })
        }
        Ok(envelope) => envelope.answer(),
        Err(_) if status != 200 => {
            Err(QueryError::Status { status, said: printable(&answer.body, &headers) })
        }
        Err(error) => {
            answer.data()?;
            Err(QueryError::NotPrometheus(error.to_string()))
        }
    }
}

fn as_tls(fault: FetchError) -> QueryError {
    match fault {
        // As rustls words what a server without TLS, or a server's certificate, makes it say.
        FetchError::Unreachable(cause) if cause.contains("corrupt message") => QueryError::NoTls,
        FetchError::Unreachable(cause) if cause.contains("certificate") => QueryError::Tls(cause),
        fault => QueryError::Fetch(fault),
    }
}

/// The beginning of what was said; nothing when it is a page, or repeats what we sent.
fn printable(body: &[u8], sent: &HeaderMap) -> String {
    let text = String::from_utf8_lossy(body);
    let repeats = sent.values().filter_map(|value| value.to_str().ok()).any(|value| text.contains(value));
    if repeats || text.trim_start().starts_with('<') {
        return String::new();
    }
    let text: String = text.trim().chars().filter(|letter| !letter.is_control()).take(200).collect();
    text
}

/// The API's JSON.
#[derive(Deserialize)]
struct Envelope {
    status: String,
    data: Option<Data>,
    #[serde(rename = "errorType", default, deserialize_with = "text_or_null")]
    kind: String,
    #[serde(default, deserialize_with = "text_or_null")]
    error: String,
    /// Left out, empty or `null` where there are none.
    warnings: Option<Vec<String>>,
}

fn text_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    kind: String,
    result: Value,
}

impl Envelope {
    fn answer(self) -> Result<Answer, QueryError> {
        let data = match (self.status.as_str(), self.data) {
            ("success", Some(data)) => data,
            ("error", _) => return Err(QueryError::Refused { kind: self.kind, message: self.error }),
            _ => return Err(QueryError::NotPrometheus("no data in it".to_owned())),
        };
        let pair = match (data.kind.as_str(), data.result.as_array().map(Vec::as_slice)) {
            ("scalar", Some(pair)) => pair,
            ("vector", Some([])) => return Err(QueryError::Empty),
            ("vector", Some([one])) => match one.get("value").and_then(Value::as_array) {
                Some(pair) => pair.as_slice(),
                None => return Err(QueryError::WrongType("native histogram".to_owned())),
            },
            ("vector", Some(several)) => {
                return Err(QueryError::SeveralSeries(several.len()));
            }
            _ => return Err(QueryError::WrongType(data.kind)),
        };
        let (evaluated, value) = read_pair(pair)?;
        Ok(Answer { value, evaluated, warnings: self.warnings.unwrap_or_default() })
    }
}

/// `[1700000000.123, "4.2"]`.
fn read_pair(pair: &[Value]) -> Result<(WallMs, f64), QueryError> {
    let not_prometheus = || QueryError::NotPrometheus("a value without time stamp".to_owned());
    let [seconds, value] = pair else { return Err(not_prometheus()) };
    let (Some(seconds), Some(written)) = (seconds.as_f64(), value.as_str()) else {
        return Err(not_prometheus());
    };
    let value: f64 =
        written.parse().map_err(|_| QueryError::NotPrometheus(format!("`{written}` is not a number")))?;
    if !value.is_finite() {
        return Err(QueryError::NotFinite(written.to_owned()));
    }
    let ms = (seconds * 1000.0).round();
    if !(0.0..9.0e15).contains(&ms) {
        return Err(not_prometheus());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded just above")]
    let evaluated = WallMs(ms as u64);
    Ok((evaluated, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fetch::server;

    fn at(address: &str) -> Prometheus {
        Prometheus::plain(Url::parse(&format!("http://{address}")).unwrap())
    }

    async fn ask(status: &str, body: &str) -> Result<Answer, QueryError> {
        let bytes = server::answer(status, "application/json", body);
        server::with(bytes, async |address| {
            query(&Server::new(&at(&address)).unwrap(), "max(up)", DEFAULT_BOUNDS).await
        })
        .await
    }

    fn success(kind: &str, result: &str) -> String {
        format!(r#"{{"status":"success","data":{{"resultType":"{kind}","result":{result}}}}}"#)
    }

    #[tokio::test]
    async fn a_vector_of_one_and_a_scalar_are_values_with_their_own_time() {
        let expected = Answer { value: 4.25, evaluated: WallMs(1_700_000_000_123), warnings: Vec::new() };
        let vector = success("vector", r#"[{"metric":{},"value":[1700000000.123,"4.25"]}]"#);
        assert_eq!(ask("200 OK", &vector).await, Ok(expected.clone()));
        let scalar = success("scalar", r#"[1700000000.123,"4.25"]"#);
        assert_eq!(ask("200 OK", &scalar).await, Ok(expected));
    }

    #[tokio::test]
    async fn warnings_come_with_the_value() {
        let body = success("scalar", r#"[1,"2"]"#).replacen('{', r#"{"warnings":["no counter"],"#, 1);
        assert_eq!(ask("200 OK", &body).await.unwrap().warnings, ["no counter"]);
        // As compatible servers write it that have none.
        let body = body.replace(r#"["no counter"]"#, r#"null,"errorType":null,"error":null,"infos":null"#);
        assert_eq!(ask("200 OK", &body).await.unwrap().warnings, Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_refusal_without_words_keeps_its_status() {
        let refused = ask("429 Too Many Requests", r#"{"status":"error","errorType":"","error":""}"#).await;
        assert_eq!(refused, Err(QueryError::Status { status: 429, said: String::new() }));
    }

    #[test]
    fn of_a_header_that_is_configured_twice_the_later_is_sent() {
        let twice =
            [("X-Scope-OrgID", "a"), ("x-scope-orgid", "b")].map(|(name, value)| (name.into(), value.into()));
        let access = Prometheus { headers: twice.into_iter().collect(), ..at("127.0.0.1:9090") };
        let sent = Server::new(&access).unwrap().headers().unwrap();
        assert_eq!(sent.get_all("x-scope-orgid").iter().collect::<Vec<_>>(), ["b"]);
    }

    #[tokio::test]
    async fn nothing_and_too_much_are_no_value() {
        assert_eq!(ask("200 OK", &success("vector", "[]")).await, Err(QueryError::Empty));
        let two = r#"[{"metric":{},"value":[1,"2"]},{"metric":{"a":"b"},"value":[1,"3"]}]"#;
        let fault = ask("200 OK", &success("vector", two)).await.unwrap_err();
        assert_eq!(fault, QueryError::SeveralSeries(2));
        assert!(fault.to_string().contains("max("), "{fault}");
    }

    #[tokio::test]
    async fn nan_and_infinity_are_no_value() {
        for written in ["NaN", "+Inf", "-Inf"] {
            let body = success("scalar", &format!(r#"[1,"{written}"]"#));
            assert_eq!(ask("200 OK", &body).await, Err(QueryError::NotFinite(written.to_owned())));
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_prometheus_own_words() {
        let body =
            r#"{"status":"error","errorType":"bad_data","error":"parse error: unexpected end of input"}"#;
        let fault = ask("400 Bad Request", body).await.unwrap_err();
        assert!(matches!(&fault, QueryError::Refused { kind, .. } if kind == "bad_data"));
        assert!(fault.to_string().contains("unexpected end"), "{fault}");
    }

    #[tokio::test]
    async fn other_types_and_other_servers_are_named() {
        let matrix = ask("200 OK", &success("matrix", "[]")).await.unwrap_err();
        assert_eq!(matrix, QueryError::WrongType("matrix".to_owned()));
        let histogram = success("vector", r#"[{"metric":{},"histogram":[1,{}]}]"#);
        assert!(matches!(ask("200 OK", &histogram).await, Err(QueryError::WrongType(..))));
        for body in [
            r#"{"result":true}"#,
            "up 1\n",
            "",
            r#"{"status":"success","data":{"resultType":"scalar","result":[1]}}"#,
        ] {
            assert!(matches!(ask("200 OK", body).await, Err(QueryError::NotPrometheus(..))), "{body}");
        }
        let page = ask("200 OK", "<!doctype html>").await.unwrap_err();
        assert!(matches!(page, QueryError::Fetch(FetchError::WebPage(..))));
        let down = ask("503 Service Unavailable", "starting").await.unwrap_err();
        assert_eq!(down, QueryError::Status { status: 503, said: "starting".to_owned() });
    }

    /// What a server is sent, that answers with 12.5.
    async fn sent(access: impl FnOnce(&str) -> Prometheus) -> String {
        let seen = std::cell::RefCell::new(String::new());
        let bytes = server::answer("200 OK", "application/json", &success("scalar", r#"[1,"12.5"]"#));
        let treat = async |request: &[u8], mut stream: tokio::net::TcpStream| {
            seen.replace(String::from_utf8_lossy(request).into_owned());
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await;
        };
        let ask = async |address: String| {
            let server = Server::new(&access(&address)).unwrap();
            query(&server, "sum(a{b=~\"c|d\"}) / 2 + 1", DEFAULT_BOUNDS).await.unwrap()
        };
        assert!((server::serve_requests(treat, ask).await.value - 12.5).abs() < 1e-9);
        seen.into_inner()
    }

    #[tokio::test]
    async fn the_expression_is_sent_escaped_and_whole_behind_the_addresss_own_path_and_query() {
        let sent = sent(|address| at(&format!("{address}/prefix/?tenant=team-a"))).await;
        let path = sent.split(' ').nth(1).unwrap();
        let url = Url::parse(&format!("http://x{path}")).unwrap();
        assert_eq!(url.path(), "/prefix/api/v1/query");
        let parameter = |wanted: &str| {
            url.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
        };
        assert_eq!(parameter("query").unwrap(), "sum(a{b=~\"c|d\"}) / 2 + 1");
        assert_eq!(parameter("tenant").unwrap(), "team-a");
    }

    /// A secret in a file of its own.
    fn file(name: &str, content: &str) -> (crate::config::settings::Secret, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("rayguard-prom-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        (crate::config::settings::Secret::File(path.clone()), path)
    }

    #[tokio::test]
    async fn a_server_is_asked_with_token_password_and_headers_as_its_people_want() {
        let (token, path) = file("token", "s3cret\n");
        let bearer =
            sent(|address| Prometheus { login: Some(Login::Token(token.clone())), ..at(address) }).await;
        assert!(bearer.contains("authorization: Bearer s3cret\r\n"), "{bearer}");
        let login = Login::Basic { user: "me".into(), password: token };
        let basic = sent(|address| Prometheus { login: Some(login), ..at(address) }).await;
        assert!(basic.contains("authorization: Basic bWU6czNjcmV0\r\n"), "{basic}");
        std::fs::remove_file(path).unwrap();
        let tenant = vec![("X-Scope-OrgID".into(), "team-a".into())];
        let headers = sent(|address| Prometheus { headers: tenant, ..at(address) }).await;
        assert!(headers.contains("x-scope-orgid: team-a\r\n"), "{headers}");
        for (name, rays) in
            [("object", r#"{"H1": "V1", "H2": "V2"}"#), ("pairs", r#"[["H1","V1"],["H2","V2"]]"#)]
        {
            let (from, path) = file(name, rays);
            let sent = sent(|address| Prometheus { headers_from: Some(from), ..at(address) }).await;
            assert!(sent.contains("h1: V1\r\n") && sent.contains("h2: V2\r\n"), "{sent}");
            std::fs::remove_file(path).unwrap();
        }
    }

    #[tokio::test]
    async fn a_secret_that_is_replaced_is_used_at_once_and_one_that_is_gone_is_named() {
        let (token, path) = file("replaced", "old");
        let access = |address: &str| Prometheus { login: Some(Login::Token(token.clone())), ..at(address) };
        let server = Server::new(&access("127.0.0.1:1")).unwrap();
        std::fs::write(&path, "new").unwrap();
        assert_eq!(server.headers().unwrap()[AUTHORIZATION], "Bearer new");
        std::fs::write(&path, "new\u{1}line").unwrap();
        let fault = server.headers().unwrap_err().to_string();
        assert!(!fault.contains("new"), "{fault}");
        std::fs::remove_file(&path).unwrap();
        let fault = query(&server, "up", DEFAULT_BOUNDS).await.unwrap_err().to_string();
        assert!(fault.contains("token of Prometheus") && fault.contains("replaced"), "{fault}");
        let (from, path) = file("no-json", "X-Secret: value");
        let server = Server::new(&Prometheus { headers_from: Some(from), ..at("127.0.0.1:1") }).unwrap();
        let fault = server.headers().unwrap_err().to_string();
        assert!(fault.contains("JSON") && !fault.contains("value"), "{fault}");
        std::fs::remove_file(path).unwrap();
    }

    #[tokio::test]
    async fn a_server_that_wants_other_credentials_is_told_of_in_its_own_words_and_with_the_keys() {
        let fault = ask("401 Unauthorized", "no org id").await.unwrap_err();
        assert_eq!(fault, QueryError::Status { status: 401, said: "no org id".to_owned() });
        let said = fault.to_string();
        assert!(said.contains("(no org id)") && said.contains("prometheus_headers"), "{said}");
        let body = r#"{"status":"error","errorType":"x","error":"no tenant"}"#;
        assert!(ask("403 Forbidden", body).await.unwrap_err().to_string().contains("(no tenant)"));
        // Some servers repeat what they were sent.
        let mut sent = HeaderMap::new();
        add(&mut sent, "authorization", "Bearer s3cret").unwrap();
        assert_eq!(printable(b"not allowed: Bearer s3cret", &sent), "");
        let missing = ask("404 Not Found", "").await.unwrap_err().to_string();
        assert!(missing.contains("/api/v1/query"), "{missing}");
    }

    #[tokio::test]
    async fn a_server_without_tls_is_told_from_one_whose_certificate_fails() {
        let bytes = server::answer("200 OK", "text/plain", "");
        let fault = server::with(bytes, async |address| {
            let https = Url::parse(&format!("https://{address}")).unwrap();
            query(&Server::new(&Prometheus::plain(https)).unwrap(), "up", DEFAULT_BOUNDS).await
        })
        .await
        .unwrap_err();
        assert_eq!(fault, QueryError::NoTls);
        assert!(
            fault.to_string().contains("http://") && !fault.to_string().contains("authorities"),
            "{fault}"
        );
        let nowhere = Prometheus { authorities: Some("/nowhere/ca.pem".into()), ..at("127.0.0.1:1") };
        let fault = Server::new(&nowhere).unwrap_err().to_string();
        assert!(fault.contains("/nowhere/ca.pem"), "{fault}");
    }
}
