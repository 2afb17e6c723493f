//! A rayguard that runs, asked over its admin listener: what `status` and `limits` have in
//! common. One request, one deadline, and a refusal in the server's own words.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Client, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::admin::answer::ProblemBody;
use crate::observe::fetch::{self, Fault};

/// Where the admin listener is unless told otherwise.
pub const ADDRESS: &str = "http://127.0.0.1:9465";
/// An admin listener that takes longer is ill.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Far more than any answer of ours has.
const BODY_BYTES_MAX: usize = 16 << 20;

/// How a running rayguard is reached.
#[derive(clap::Args, Clone, Debug)]
pub struct Reach {
    /// The admin listener.
    #[arg(long, value_name = "URL", default_value = ADDRESS, global = true)]
    pub address: String,
    /// A file with the admin token, where steering takes one.
    #[arg(long, value_name = "FILE", global = true)]
    pub token_file: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Not an address.
    #[error("`{given}` is not the address of an admin listener; write one such as {ADDRESS}")]
    Address {
        /// As given.
        given: String,
    },
    /// The token's file.
    #[error("{}: {problem}; name a file that this user can read", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system says.
        problem: std::io::Error,
    },
    /// Nobody answers.
    #[error(
        "no rayguard answers at {url}: {problem}; is it running, and is admin.listen there? name it with --address"
    )]
    Unreachable {
        /// What was asked.
        url: Url,
        /// What happened.
        problem: String,
    },
    /// It refuses.
    #[error("{message}; {remedy}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// Its sentence.
        message: String,
        /// Its remedy.
        remedy: String,
    },
    /// What came is not what was asked for.
    #[error(
        "the answer of {url} is not rayguard's ({problem}); is another program there, or another version?"
    )]
    Strange {
        /// What was asked.
        url: Url,
        /// What is wrong.
        problem: String,
    },
    /// No client, or no runtime.
    #[error("cannot ask: {0}")]
    System(String),
}

/// A running rayguard.
pub struct Remote {
    base: Url,
    token: Option<String>,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is never shown.
        f.debug_struct("Remote").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Remote {
    /// Reaches for the one that `args` name; nothing is sent yet.
    pub fn new(args: &Reach) -> Result<Remote, RemoteError> {
        let given = args.address.trim();
        let whole = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
        let address = || RemoteError::Address { given: given.to_owned() };
        let base = Url::parse(&whole).map_err(|_| address())?;
        if base.scheme() != "http" || !base.has_host() {
            return Err(address());
        }
        let token = match &args.token_file {
            None => None,
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|problem| RemoteError::Token { path: path.clone(), problem })?
                    .trim_end()
                    .to_owned(),
            ),
        };
        let client = fetch::client().map_err(|fault: Fault| RemoteError::System(fault.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| RemoteError::System(error.to_string()))?;
        Ok(Remote { base, token, client, runtime })
    }

    /// `GET path`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RemoteError> {
        self.ask(Method::GET, path, None)
    }

    /// `POST path` with an order.
    pub fn post<T: DeserializeOwned>(&self, path: &str, order: &impl Serialize) -> Result<T, RemoteError> {
        let body = serde_json::to_vec(order).map_err(|error| RemoteError::System(error.to_string()))?;
        self.ask(Method::POST, path, Some(body))
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, RemoteError> {
        let mut url = self.base.clone();
        url.set_path(path);
        let mut request = self.client.request(method, url.clone()).timeout(TIMEOUT);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let unreachable = |error: reqwest::Error| {
            let mut root: &dyn std::error::Error = &error;
            while let Some(cause) = root.source() {
                root = cause;
            }
            RemoteError::Unreachable { url: url.clone(), problem: root.to_string() }
        };
        let (status, body) = self.runtime.block_on(async {
            let mut answer = request.send().await.map_err(unreachable)?;
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
                if body.len() + chunk.len() > BODY_BYTES_MAX {
                    let problem = format!("more than {BODY_BYTES_MAX} bytes");
                    return Err(RemoteError::Strange { url: url.clone(), problem });
                }
                body.extend_from_slice(&chunk);
            }
            Ok((answer.status(), body))
        })?;
        let strange =
            |error: serde_json::Error| RemoteError::Strange { url: url.clone(), problem: error.to_string() };
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(strange);
        }
        match serde_json::from_slice::<ProblemBody>(&body) {
            Ok(problem) => {
                Err(RemoteError::Refused { status, message: problem.message, remedy: problem.remedy })
            }
            Err(_) => Err(RemoteError::Strange { url: url.clone(), problem: format!("status {status}") }),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A server that answers one request and hands back what it was asked.
    pub(in crate::cli) fn served<T>(status: &str, body: &str, ask: impl FnOnce(Reach) -> T) -> (T, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut chunk = [0; 4096];
            loop {
                let count = stream.read(&mut chunk).unwrap();
                asked.extend_from_slice(&chunk[..count]);
                let text = String::from_utf8_lossy(&asked);
                let length = text
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .map_or(0, |length| length.trim().parse::<usize>().unwrap());
                if text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.len() >= length) || count == 0 {
                    break;
                }
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(asked).unwrap()
        });
        let outcome = ask(Reach { address, token_file: None });
        (outcome, server.join().unwrap())
    }

    #[test]
    fn a_refusal_comes_in_the_servers_own_words() {
        let body =
            r#"{"error":"out_of_bounds","message":"99 is outside 1 to 8","remedy":"choose a value within"}"#;
        let (outcome, asked) = served("422 Unprocessable Entity", body, |args| {
            Remote::new(&args)
                .unwrap()
                .post::<serde_json::Value>("/api/v1/pin", &serde_json::json!({"class": "x"}))
        });
        assert_eq!(outcome.unwrap_err().to_string(), "99 is outside 1 to 8; choose a value within");
        assert!(
            asked.starts_with("POST /api/v1/pin HTTP/1.1") && asked.ends_with(r#"{"class":"x"}"#),
            "{asked}"
        );
    }

    #[test]
    fn what_is_not_rayguards_is_said_to_be_strange() {
        let (outcome, _) = served("200 OK", "<html>", |args| {
            Remote::new(&args).unwrap().get::<serde_json::Value>("/api/v1/state").map(|_| ())
        });
        assert!(matches!(outcome, Err(RemoteError::Strange { .. })), "{outcome:?}");
    }

    #[test]
    fn nobody_there_is_said_with_what_to_do() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let remote = Remote::new(&Reach { address: free.to_string(), token_file: None }).unwrap();
        let error = remote.get::<serde_json::Value>("/api/v1/state").unwrap_err().to_string();
        assert!(error.contains("is it running"), "{error}");
        for wrong in ["https://x", "", "ftp://x:1"] {
            assert!(matches!(
                Remote::new(&Reach { address: wrong.into(), token_file: None }),
                Err(RemoteError::Address { .. })
            ));
        }
    }
}
