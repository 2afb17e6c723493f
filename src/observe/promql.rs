//! Asking a Prometheus server.
//!
//! For heads whose pages cannot be reached from here, and for readings that need history or
//! arithmetic: `GET /api/v1/query`, one expression, one number. An answer is a reading only
//! when it is a scalar or a vector of exactly one element; of several elements none is more
//! right than the others, and the refusal says how to make them one. The answer carries the
//! time of evaluation, which becomes the reading's own: a query that was slow to answer does
//! not look younger than it is.
//!
//! Source: Prometheus HTTP API, "Instant queries"; values are strings, with `NaN` and `+Inf`.

use crate::core::signal::reading::Missing;
use crate::core::time::WallMs;
use crate::observe::fetch::{self, Bounds, Fault};
use reqwest::Client;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// Timeout and size cap of a query unless configured; one number needs little room.
pub const DEFAULT_BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(4), body_bytes_max: 1 << 20 };

/// A Prometheus server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// `host:port`, for logs and readings.
    pub name: Arc<str>,
    query: Url,
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
pub enum QueryFault {
    /// The server's address is none.
    #[error("`{given}` is not a Prometheus address: {problem}; write `http://host:9090`")]
    BadServer {
        /// As written.
        given: String,
        /// What is wrong.
        problem: String,
    },
    /// The exchange failed.
    #[error(transparent)]
    Fetch(#[from] Fault),
    /// Prometheus refuses the expression or cannot evaluate it.
    #[error("prometheus says {kind}: {message}")]
    Refused {
        /// `bad_data`, `timeout`, `execution`, ...
        kind: String,
        /// Its words.
        message: String,
    },
    /// Not the API's JSON.
    #[error("the answer is not Prometheus': {problem}; check the address and its path prefix")]
    NotPrometheus {
        /// What is wrong.
        problem: String,
    },
    /// Nothing matches.
    #[error("the expression gives no series; is the target scraped, and the name right?")]
    Empty,
    /// More than one element.
    #[error("the expression gives {count} series; wrap it in max(..) or sum(..)")]
    SeveralSeries {
        /// How many.
        count: usize,
    },
    /// A matrix, a string or a native histogram.
    #[error("the expression gives a {kind}; a scalar or a vector of one element is needed")]
    WrongType {
        /// As Prometheus calls it.
        kind: String,
    },
    /// NaN or infinite, mostly a division by zero.
    #[error("the value is {value}; guard the expression against dividing by zero")]
    NotFinite {
        /// As Prometheus writes it.
        value: String,
    },
}

impl QueryFault {
    /// As the signals know it: an answer without a value is unusable, no answer unreachable.
    #[must_use]
    pub fn missing(&self, server: &Server, expression: &str) -> Missing {
        match self {
            QueryFault::Fetch(fault) => fault.missing(&server.name),
            QueryFault::NotPrometheus { .. } | QueryFault::BadServer { .. } => {
                Missing::Unreachable { target: server.name.clone(), problem: self.to_string().into() }
            }
            QueryFault::Empty => Missing::NotFound { tried: expression.into() },
            _ => Missing::Unusable { metric: expression.into(), problem: self.to_string().into() },
        }
    }
}

impl Server {
    /// Reads a base URL; a path prefix (`http://host/prometheus`) is kept.
    ///
    /// # Errors
    /// [`QueryFault::BadServer`].
    pub fn parse(given: &str) -> Result<Server, QueryFault> {
        let bad = |problem: &str| {
            let given = given.rsplit_once('@').map_or(given, |(_, rest)| rest).to_owned();
            QueryFault::BadServer { given, problem: problem.to_owned() }
        };
        let mut query = Url::parse(given.trim()).map_err(|error| bad(&error.to_string()))?;
        if query.scheme() != "http" {
            return Err(bad("only http:// is supported"));
        }
        let Some(host) = query.host_str() else { return Err(bad("it has no host")) };
        let name = format!("{host}:{}", query.port_or_known_default().unwrap_or(80)).into();
        let prefix = query.path().trim_end_matches('/').to_owned();
        query.set_path(&format!("{prefix}/api/v1/query"));
        query.set_query(None);
        query.set_fragment(None);
        Ok(Server { name, query })
    }
}

/// Asks for the value of an expression now.
///
/// # Errors
/// [`QueryFault`].
pub async fn query(
    client: &Client,
    server: &Server,
    expression: &str,
    bounds: Bounds,
) -> Result<Answer, QueryFault> {
    let mut url = server.query.clone();
    // Prometheus gives up when we do.
    let timeout = format!("{}ms", bounds.timeout.as_millis());
    url.query_pairs_mut().append_pair("query", expression).append_pair("timeout", &timeout);
    let answer = fetch::get(client, url, "application/json", None, bounds).await?;
    // A refusal has a status of its own, and a body that says more.
    match serde_json::from_slice::<Envelope>(&answer.body) {
        Ok(envelope) => envelope.answer(),
        Err(error) => {
            answer.data()?;
            Err(QueryFault::NotPrometheus { problem: error.to_string() })
        }
    }
}

/// The API's JSON.
#[derive(Deserialize)]
struct Envelope {
    status: String,
    data: Option<Data>,
    #[serde(rename = "errorType", default)]
    kind: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    kind: String,
    result: Value,
}

impl Envelope {
    fn answer(self) -> Result<Answer, QueryFault> {
        let data = match (self.status.as_str(), self.data) {
            ("success", Some(data)) => data,
            ("error", _) => return Err(QueryFault::Refused { kind: self.kind, message: self.error }),
            _ => return Err(QueryFault::NotPrometheus { problem: "no data in it".to_owned() }),
        };
        let pair = match (data.kind.as_str(), data.result.as_array().map(Vec::as_slice)) {
            ("scalar", Some(pair)) => pair,
            ("vector", Some([])) => return Err(QueryFault::Empty),
            ("vector", Some([one])) => match one.get("value").and_then(Value::as_array) {
                Some(pair) => pair.as_slice(),
                None => return Err(QueryFault::WrongType { kind: "native histogram".to_owned() }),
            },
            ("vector", Some(several)) => {
                return Err(QueryFault::SeveralSeries { count: several.len() });
            }
            _ => return Err(QueryFault::WrongType { kind: data.kind }),
        };
        let (evaluated, value) = read_pair(pair)?;
        Ok(Answer { value, evaluated, warnings: self.warnings })
    }
}

/// `[1700000000.123, "4.2"]`.
fn read_pair(pair: &[Value]) -> Result<(WallMs, f64), QueryFault> {
    let not_prometheus = || QueryFault::NotPrometheus { problem: "a value without time stamp".to_owned() };
    let [seconds, value] = pair else { return Err(not_prometheus()) };
    let (Some(seconds), Some(written)) = (seconds.as_f64(), value.as_str()) else {
        return Err(not_prometheus());
    };
    let value: f64 = written
        .parse()
        .map_err(|_| QueryFault::NotPrometheus { problem: format!("`{written}` is not a number") })?;
    if !value.is_finite() {
        return Err(QueryFault::NotFinite { value: written.to_owned() });
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

    async fn ask(status: &str, body: &str) -> Result<Answer, QueryFault> {
        let bytes = server::answer(status, "application/json", body);
        server::with(bytes, async |address| {
            let server = Server::parse(&format!("http://{address}")).unwrap();
            query(&fetch::client().unwrap(), &server, "max(up)", DEFAULT_BOUNDS).await
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
    }

    #[tokio::test]
    async fn nothing_and_too_much_are_no_value() {
        assert_eq!(ask("200 OK", &success("vector", "[]")).await, Err(QueryFault::Empty));
        let two = r#"[{"metric":{},"value":[1,"2"]},{"metric":{"a":"b"},"value":[1,"3"]}]"#;
        let fault = ask("200 OK", &success("vector", two)).await.unwrap_err();
        assert_eq!(fault, QueryFault::SeveralSeries { count: 2 });
        assert!(fault.to_string().contains("max("), "{fault}");
    }

    #[tokio::test]
    async fn nan_and_infinity_are_no_value() {
        for written in ["NaN", "+Inf", "-Inf"] {
            let body = success("scalar", &format!(r#"[1,"{written}"]"#));
            assert_eq!(ask("200 OK", &body).await, Err(QueryFault::NotFinite { value: written.to_owned() }));
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_prometheus_own_words() {
        let body =
            r#"{"status":"error","errorType":"bad_data","error":"parse error: unexpected end of input"}"#;
        let fault = ask("400 Bad Request", body).await.unwrap_err();
        assert!(matches!(&fault, QueryFault::Refused { kind, .. } if kind == "bad_data"));
        assert!(fault.to_string().contains("unexpected end"), "{fault}");
    }

    #[tokio::test]
    async fn other_types_and_other_servers_are_named() {
        let matrix = ask("200 OK", &success("matrix", "[]")).await.unwrap_err();
        assert_eq!(matrix, QueryFault::WrongType { kind: "matrix".to_owned() });
        let histogram = success("vector", r#"[{"metric":{},"histogram":[1,{}]}]"#);
        assert!(matches!(ask("200 OK", &histogram).await, Err(QueryFault::WrongType { .. })));
        for body in [
            r#"{"result":true}"#,
            "up 1\n",
            "",
            r#"{"status":"success","data":{"resultType":"scalar","result":[1]}}"#,
        ] {
            assert!(matches!(ask("200 OK", body).await, Err(QueryFault::NotPrometheus { .. })), "{body}");
        }
        let page = ask("200 OK", "<!doctype html>").await.unwrap_err();
        assert!(matches!(page, QueryFault::Fetch(Fault::WebPage { .. })));
        let down = ask("503 Service Unavailable", "starting").await.unwrap_err();
        assert_eq!(down, QueryFault::Fetch(Fault::Status { status: 503 }));
    }

    #[tokio::test]
    async fn the_expression_is_sent_escaped_and_whole() {
        let seen = std::cell::RefCell::new(String::new());
        let body = success("scalar", r#"[1,"2"]"#);
        let bytes = server::answer("200 OK", "application/json", &body);
        let treat = async |request: &[u8], mut stream: tokio::net::TcpStream| {
            seen.replace(String::from_utf8_lossy(request).into_owned());
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await;
        };
        server::serve_requests(treat, async |address| {
            let server = Server::parse(&format!("http://{address}/prefix/")).unwrap();
            query(&fetch::client().unwrap(), &server, "sum(a{b=~\"c|d\"}) / 2 + 1", DEFAULT_BOUNDS).await
        })
        .await
        .unwrap();
        let line = seen.borrow().lines().next().unwrap().to_owned();
        let path = line.split(' ').nth(1).unwrap();
        let url = Url::parse(&format!("http://x{path}")).unwrap();
        assert_eq!(url.path(), "/prefix/api/v1/query");
        let asked = url.query_pairs().find(|(name, _)| name == "query").unwrap().1.into_owned();
        assert_eq!(asked, "sum(a{b=~\"c|d\"}) / 2 + 1");
    }

    #[test]
    fn an_address_that_is_none_is_refused_without_its_password() {
        let fault = Server::parse("https://me:secret@prom:9090").unwrap_err().to_string();
        assert!(fault.contains("http://") && !fault.contains("secret"), "{fault}");
        assert!(Server::parse("prom:9090").is_err());
    }
}
