//! One bounded GET: what scrape, query, probe and discovery have in common.
//!
//! Nothing that Ray or Prometheus answers may hurt the proxy: the whole exchange has one
//! deadline, the body one size, and what breaks either is cut off while it streams, not after
//! it has been held in memory. No redirects are followed and no proxy of the environment is
//! used: the loop must read the head it was told to read. Credentials stay out of every
//! message. Ray's own ports speak no TLS; a Prometheus may.

use crate::core::signal::reading::Missing;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// What one exchange may cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// From the first byte sent to the last one received.
    pub timeout: Duration,
    /// Bytes of the answer's body.
    pub body_bytes_max: usize,
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke before the answer began.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// Not done in time.
    #[error("no complete answer within {0:?}; raise the timeout if the server is only slow")]
    Slow(Duration),
    /// A body beyond the bound; it was cut off there.
    #[error("the answer is larger than {0} bytes; raise the size cap or drop the target")]
    TooLarge(usize),
    /// The connection broke in the middle of the body.
    #[error("the answer broke off after {received} bytes: {cause}")]
    BrokeOff {
        /// Bytes that came.
        received: usize,
        /// The system's words.
        cause: String,
    },
    /// An answer, but not 200.
    #[error("answered with status {0}{remedy}", remedy = remedy(*.0))]
    Status(u16),
    /// A web page where data should be.
    #[error("answered with a web page ({0}); check the port and the path")]
    WebPage(String),
    /// The file of those who vouch for the server is of no use.
    #[error("{path}: {problem}; give a PEM file of CA certificates")]
    Authorities {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The client could not be set up at all.
    #[error("the HTTP client could not be made: {0}")]
    Client(String),
}

fn remedy(status: u16) -> &'static str {
    match status {
        401 | 403 => "; it needs credentials, or different ones",
        404 => "; check the path, or the version of Ray",
        300..=399 => ", a redirect, which is not followed; give the final address",
        _ => "",
    }
}

impl FetchError {
    /// Whether credentials are asked for.
    pub fn is_refused(&self) -> bool {
        matches!(self, FetchError::Status(401 | 403))
    }

    /// As the signals know it.
    pub fn missing(&self, target: &str) -> Missing {
        let target: Arc<str> = target.into();
        Missing::Unreachable { target, problem: self.to_string().into() }
    }
}

/// An answer of status 200.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: String,
    pub(super) body: Vec<u8>,
}

/// Where systems keep the certificates they trust.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The client all observations share: keeps connections alive, follows nothing, uses no proxy.
pub fn client() -> Result<Client, FetchError> {
    client_with(rustls::RootCertStore::empty())
}

/// The same for a server that may speak TLS, and must then be vouched for by these authorities,
/// or by those the system trusts.
pub fn client_trusting(authorities: Option<&Path>) -> Result<Client, FetchError> {
    let mut roots = rustls::RootCertStore::empty();
    let Some(path) = authorities else {
        for bundle in BUNDLES {
            if let Ok(certificates) = CertificateDer::pem_file_iter(bundle) {
                roots.add_parsable_certificates(certificates.filter_map(Result::ok));
            }
        }
        return client_with(roots);
    };
    let fault = |problem: String| FetchError::Authorities { path: path.display().to_string(), problem };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))? {
        let certificate = certificate.map_err(|error| fault(error.to_string()))?;
        roots.add(certificate).map_err(|error| fault(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(fault("there is no certificate in it".to_owned()));
    }
    client_with(roots)
}

/// What builds a client for servers without TLS. reqwest looks for a provider of TLS whether one is
/// needed or not, and panics without.
pub fn builder() -> Result<reqwest::ClientBuilder, FetchError> {
    builder_with(rustls::RootCertStore::empty())
}

fn builder_with(roots: rustls::RootCertStore) -> Result<reqwest::ClientBuilder, FetchError> {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| FetchError::Client(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Client::builder().no_proxy().tls_backend_preconfigured(tls))
}

fn client_with(roots: rustls::RootCertStore) -> Result<Client, FetchError> {
    builder_with(roots)?
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(2)
        .pool_idle_timeout(Duration::from_secs(60))
        .user_agent(concat!("rayguard/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| FetchError::Client(root_cause(&error)))
}

/// Gets `url`, whatever its status.
pub(super) async fn get(
    client: &Client,
    url: Url,
    accept: &'static str,
    token: Option<&str>,
    bounds: Bounds,
) -> Result<Answer, FetchError> {
    let mut headers = HeaderMap::new();
    if let Some(mut value) = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok()) {
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    get_with(client, url, accept, headers, bounds).await
}

/// The same with headers of one's own.
pub(super) async fn get_with(
    client: &Client,
    url: Url,
    accept: &'static str,
    headers: HeaderMap,
    bounds: Bounds,
) -> Result<Answer, FetchError> {
    let request = client.get(url).header(ACCEPT, accept).headers(headers);
    let exchange = exchange(request, bounds.body_bytes_max);
    let slow = FetchError::Slow(bounds.timeout);
    tokio::time::timeout(bounds.timeout, exchange).await.unwrap_or(Err(slow))
}

async fn exchange(request: reqwest::RequestBuilder, max: usize) -> Result<Answer, FetchError> {
    let sent = request.send().await;
    let mut response = sent.map_err(|error| FetchError::Unreachable(root_cause(&error)))?;
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let announced = response.content_length().unwrap_or(0);
    if announced > max as u64 {
        return Err(FetchError::TooLarge(max));
    }
    let mut body = Vec::with_capacity(usize::try_from(announced).unwrap_or(0));
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > max => return Err(FetchError::TooLarge(max)),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(Answer { status: response.status(), content_type, body }),
            Err(error) => {
                return Err(FetchError::BrokeOff { received: body.len(), cause: root_cause(&error) });
            }
        }
    }
}

impl Answer {
    /// Status 200, and not a web page.
    pub(super) fn data(self) -> Result<Vec<u8>, FetchError> {
        if self.status != StatusCode::OK {
            return Err(FetchError::Status(self.status.as_u16()));
        }
        if self.content_type.contains("html") || is_web_page(&self.body) {
            return Err(FetchError::WebPage(self.content_type));
        }
        Ok(self.body)
    }
}

fn is_web_page(body: &[u8]) -> bool {
    let begin: Vec<u8> = body.trim_ascii_start().iter().take(9).map(u8::to_ascii_lowercase).collect();
    begin.starts_with(b"<!doctype") || begin.starts_with(b"<html")
}

/// The innermost cause; the outer ones repeat the URL, which may hold credentials.
pub(super) fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Servers for tests: on 127.0.0.1, ephemeral ports, one answer each, all bytes as given.
#[cfg(test)]
pub(super) mod server {
    use std::future::Future;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// A head with its length and a body.
    pub(in crate::observe) fn answer(status: &str, content_type: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
            .into_bytes()
    }

    /// Runs `client` against a server that sends `bytes` to each request and closes.
    pub(in crate::observe) async fn with<T>(bytes: Vec<u8>, client: impl AsyncFnOnce(String) -> T) -> T {
        serve(
            async |mut stream: TcpStream| {
                let _ = stream.write_all(&bytes).await;
            },
            client,
        )
        .await
    }

    /// Runs `client` against a server that treats each connection, its request read, with `treat`.
    pub(in crate::observe) async fn serve<T>(
        treat: impl AsyncFn(TcpStream),
        client: impl AsyncFnOnce(String) -> T,
    ) -> T {
        serve_requests(async |_request: &[u8], stream| treat(stream).await, client).await
    }

    /// As [`serve`], with the request's bytes.
    pub(in crate::observe) async fn serve_requests<T>(
        treat: impl AsyncFn(&[u8], TcpStream),
        client: impl AsyncFnOnce(String) -> T,
    ) -> T {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                treat(&request[..length], stream).await;
            }
        };
        until(Box::pin(client(address)), server).await
    }

    /// The first future's result; the second one runs as long, and never ends by itself.
    async fn until<T>(first: impl Future<Output = T>, second: impl Future<Output = ()>) -> T {
        tokio::select! {
            result = first => result,
            () = second => unreachable!("the server runs for ever"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(10), body_bytes_max: 1 << 20 };

    async fn get_from(address: String) -> Result<Vec<u8>, FetchError> {
        get_within(address, BOUNDS).await
    }

    async fn get_within(address: String, bounds: Bounds) -> Result<Vec<u8>, FetchError> {
        let url = Url::parse(&format!("http://{address}/metrics")).unwrap();
        get(&client().unwrap(), url, "text/plain", None, bounds).await?.data()
    }

    #[tokio::test]
    async fn a_plain_answer_is_handed_over_whole() {
        let bytes = server::answer("200 OK", "text/plain", "up 1\n");
        assert_eq!(server::with(bytes, get_from).await, Ok(b"up 1\n".to_vec()));
    }

    #[tokio::test]
    async fn other_statuses_say_what_to_do() {
        for (status, words) in
            [("404 Not Found", "version of Ray"), ("401 Nope", "credentials"), ("302 Found", "redirect")]
        {
            let bytes = server::answer(status, "text/plain", "");
            let fault = server::with(bytes, get_from).await.unwrap_err();
            assert!(fault.to_string().contains(words), "{fault}");
        }
    }

    #[tokio::test]
    async fn a_web_page_is_refused_by_its_type_or_by_its_looks() {
        for content_type in ["text/html; charset=utf-8", "text/plain"] {
            let bytes = server::answer("200 OK", content_type, "\n<!DOCTYPE html><html></html>");
            assert!(matches!(server::with(bytes, get_from).await, Err(FetchError::WebPage(..))));
        }
    }

    #[tokio::test]
    async fn garbage_and_silence_are_faults() {
        assert!(matches!(
            server::with(b"SSH-2.0-x\r\n".to_vec(), get_from).await,
            Err(FetchError::Unreachable(..))
        ));
        assert!(matches!(server::with(Vec::new(), get_from).await, Err(FetchError::Unreachable(..))));
    }

    #[tokio::test]
    async fn nothing_listens() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let fault = get_from(address).await.unwrap_err();
        assert!(fault.to_string().contains("refused"), "{fault}");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_not_taken_for_whole() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nup 1\n".to_vec();
        assert!(matches!(server::with(bytes, get_from).await, Err(FetchError::BrokeOff { received: 5, .. })));
        let bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nup 1\n\r\n".to_vec();
        assert!(matches!(server::with(bytes, get_from).await, Err(FetchError::BrokeOff { received: 5, .. })));
    }

    #[tokio::test]
    async fn an_announced_giant_is_refused_before_its_body() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 52428800\r\n\r\n".to_vec();
        assert_eq!(server::with(bytes, get_from).await, Err(FetchError::TooLarge(1 << 20)));
    }

    #[tokio::test]
    async fn a_giant_of_50_mib_is_cut_off_at_the_cap() {
        let sent = std::cell::Cell::new(0);
        let treat = async |mut stream: tokio::net::TcpStream| {
            let line = vec![b'x'; 1 << 16];
            let mut failed = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.is_err();
            while !failed && sent.get() < 50 << 20 {
                failed = stream.write_all(&line).await.is_err();
                sent.set(sent.get() + line.len());
            }
            // Held open: only the client may end this.
            std::future::pending::<()>().await;
        };
        let result = server::serve(treat, get_from).await;
        assert_eq!(result, Err(FetchError::TooLarge(1 << 20)));
        assert!(sent.get() < 50 << 20, "the rest was never read");
    }

    const IMPATIENT: Bounds = Bounds { timeout: Duration::from_millis(50), ..BOUNDS };

    #[tokio::test]
    async fn a_server_that_never_answers_is_given_up() {
        let treat = async |_stream: tokio::net::TcpStream| std::future::pending::<()>().await;
        let result = server::serve(treat, async |address| get_within(address, IMPATIENT).await).await;
        assert_eq!(result, Err(FetchError::Slow(IMPATIENT.timeout)));
    }

    #[tokio::test]
    async fn a_server_that_drips_is_given_up_at_the_same_deadline() {
        let treat = async |mut stream: tokio::net::TcpStream| {
            let mut failed = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.is_err();
            while !failed {
                failed = stream.write_all(b"x").await.is_err();
                tokio::task::yield_now().await;
            }
        };
        let result = server::serve(treat, async |address| get_within(address, IMPATIENT).await).await;
        assert_eq!(result, Err(FetchError::Slow(IMPATIENT.timeout)));
    }
}
