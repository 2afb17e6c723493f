//! The command line's end of the admin API.

use crate::admin::answer::ProblemBody;
use crate::cli::format::Format;
use crate::observe::fetch;
use serde::de::DeserializeOwned;
use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

/// Where the admin API is, and how to say what it answers.
#[derive(clap::Args, Clone, Debug)]
pub struct Reach {
    /// The admin listener: `http://host:port` or `unix:/path`.
    #[arg(
        long,
        value_name = "URL",
        env = "RAYGUARD_ADDRESS",
        hide_env_values = true,
        default_value = "http://127.0.0.1:9465"
    )]
    pub address: String,
    /// A file with the admin token; without it, the variable RAYGUARD_ADMIN_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

impl Reach {
    /// The admin listener at this address.
    #[must_use]
    pub fn at(address: &str) -> Reach {
        Reach { address: address.to_owned(), token_file: None, format: Format::Table }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error(
        "invalid address `{address}`: {problem}; write http://127.0.0.1:9465 or unix:/run/rayguard/admin.sock"
    )]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing answers.
    #[error(
        "no rayguard answers at {address}: {problem}; is it running, and is `admin.listen` this address?"
    )]
    Unreachable {
        /// Where.
        address: String,
        /// What happened.
        problem: String,
    },
    /// Something answers, but not as rayguard does.
    #[error(
        "{address} is not the admin API of a rayguard {} (perhaps it is Ray): {problem}; give the address of `admin.listen`",
        env!("CARGO_PKG_VERSION")
    )]
    Strange {
        /// Where.
        address: String,
        /// What happened.
        problem: String,
    },
    /// It was refused.
    #[error("{}; {}", .problem.message, .problem.remedy)]
    Refused {
        /// The answer's status.
        status: u16,
        /// Why, and what to do.
        problem: ProblemBody,
    },
    /// It runs, and takes no requests.
    #[error("not ready: {said} (status {status})")]
    NotReady {
        /// The answer's status.
        status: u16,
        /// Its words.
        said: String,
    },
    /// The token's file cannot be read.
    #[error("the admin token cannot be read from {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the OS says.
        source: io::Error,
    },
    /// Receivers of alerts did not take the test.
    #[error("{failed} of {of} receivers did not accept the test alert")]
    DeliveryError {
        /// How many.
        failed: usize,
        /// Of how many.
        of: usize,
    },
    /// What was typed cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// The answer cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl ClientError {
    /// 2 when it was asked wrongly, 1 when it went wrong.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            ClientError::Address { .. }
            | ClientError::Usage(_)
            | ClientError::Refused { status: 400 | 404 | 409 | 422, .. } => 2,
            _ => 1,
        }
    }
}

/// Runs a command against the API and returns its exit code. A reader that has gone, such as
/// `head`, is no failure.
pub fn carry_out(command: impl Future<Output = Result<(), ClientError>>) -> u8 {
    let outcome = runtime().and_then(|runtime| runtime.block_on(command));
    match outcome {
        Ok(()) => 0,
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "rayguard: {error}");
            error.code()
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, ClientError> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The reason of an order: as given, or as it is typed where somebody sits at a terminal.
///
/// # Errors
/// There is none.
pub fn reason(given: Option<&str>) -> Result<String, ClientError> {
    let mut reason = given.unwrap_or_default().trim().to_owned();
    if given.is_none()
        && io::IsTerminal::is_terminal(&io::stdin())
        && io::IsTerminal::is_terminal(&io::stderr())
    {
        eprint!("Reason (kept in the adjustment log): ");
        let mut line = String::new();
        io::stdin().read_line(&mut line)?;
        line.trim().clone_into(&mut reason);
    }
    if reason.is_empty() {
        return Err(ClientError::Usage(
            "a reason is needed; write --why \"...\" (it is kept in the adjustment log)".into(),
        ));
    }
    Ok(reason)
}

/// A connection to be.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    address: String,
    token: Option<String>,
}

/// Longer than the server takes for any order.
const TIMEOUT: Duration = Duration::from_secs(30);

impl Client {
    /// By what the command line says.
    pub fn new(reach: &Reach) -> Result<Client, ClientError> {
        let wrong = |problem: &str| ClientError::Address {
            address: reach.address.clone(),
            problem: problem.to_owned(),
        };
        let builder = fetch::builder().map_err(|error| wrong(&error.to_string()))?.timeout(TIMEOUT);
        let (builder, base) = if let Some(path) = reach.address.strip_prefix("unix:") {
            (builder.unix_socket(PathBuf::from(path)), "http://localhost".to_owned())
        } else {
            let given = reach.address.trim_end_matches('/');
            let whole = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
            let url = url::Url::parse(&whole).map_err(|error| wrong(&error.to_string()))?;
            if url.scheme() != "http" || !url.has_host() {
                return Err(wrong("unsupported scheme; use http:// or unix:"));
            }
            (builder, whole)
        };
        let http = builder.build().map_err(|error| wrong(&error.to_string()))?;
        Ok(Client { http, base, address: reach.address.clone(), token: token(reach)? })
    }

    /// Asks for a value.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    /// Asks for a text, of which any status but 200 is a failure.
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let unreachable = |error: reqwest::Error| ClientError::Unreachable {
            address: self.address.clone(),
            problem: root_cause(&error),
        };
        let answer = self.http.get(format!("{}{path}", self.base)).send().await.map_err(unreachable)?;
        let status = answer.status().as_u16();
        let text = answer.text().await.map_err(|error| self.strange(&root_cause(&error)))?;
        if status == 200 {
            Ok(text)
        } else {
            Err(ClientError::NotReady { status, said: text.trim().to_owned() })
        }
    }

    /// The same, for commands that do nothing else meanwhile.
    pub fn wait_for_text(&self, path: &str) -> Result<String, ClientError> {
        runtime()?.block_on(self.text(path))
    }

    /// Asks for bytes, and waits for them.
    pub fn wait_for_bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let asking = async {
            let request = self.http.get(format!("{}{path}", self.base));
            let (status, body) = self.exchange(request).await?;
            if status == 200 { Ok(body.to_vec()) } else { Err(self.refused(status, &body)) }
        };
        runtime()?.block_on(asking)
    }

    /// Sends an order.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        order: &impl serde::Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(order).map_err(|error| self.strange(&error.to_string()))?;
        let mut request = self.http.post(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        self.send(request.header("content-type", "application/json").body(body)).await
    }

    async fn send<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, ClientError> {
        let (status, body) = self.exchange(request).await?;
        if status == 200 {
            return serde_json::from_slice(&body).map_err(|error| self.strange(&error.to_string()));
        }
        Err(self.refused(status, &body))
    }

    async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<(u16, bytes::Bytes), ClientError> {
        let answer = request.send().await.map_err(|error| ClientError::Unreachable {
            address: self.address.clone(),
            problem: root_cause(&error),
        })?;
        let status = answer.status().as_u16();
        Ok((status, answer.bytes().await.map_err(|error| self.strange(&root_cause(&error)))?))
    }

    fn refused(&self, status: u16, body: &[u8]) -> ClientError {
        match serde_json::from_slice(body) {
            Ok(problem) => ClientError::Refused { status, problem },
            Err(_) => self.strange(&format!("status {status}")),
        }
    }

    fn strange(&self, problem: &str) -> ClientError {
        ClientError::Strange { address: self.address.clone(), problem: problem.to_owned() }
    }
}

fn token(reach: &Reach) -> Result<Option<String>, ClientError> {
    if let Some(path) = &reach.token_file {
        let token = std::fs::read_to_string(path)
            .map_err(|source| ClientError::Token { path: path.clone(), source })?;
        return Ok(Some(token.trim_end().to_owned()));
    }
    #[expect(clippy::disallowed_methods, reason = "the command line is the room that reads the environment")]
    let token = std::env::var("RAYGUARD_ADMIN_TOKEN");
    Ok(token.ok().filter(|token| !token.is_empty()))
}

/// Who types, for the adjustment log.
#[must_use]
pub fn who() -> String {
    #[expect(clippy::disallowed_methods, reason = "the command line is the room that reads the environment")]
    let name = |variable| std::env::var(variable).ok().filter(|name: &String| !name.is_empty());
    name("SUDO_USER").or_else(|| name("USER")).or_else(|| name("LOGNAME")).unwrap_or_default()
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Writes a value as JSON.
pub fn json(out: &mut dyn Write, value: &impl serde::Serialize) -> Result<(), ClientError> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Columns as wide as their widest cell; those in `right` hold numbers and are set right.
pub fn table(out: &mut dyn Write, right: &Range<usize>, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for row in rows {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            let gap = " ".repeat(widths[at] - cell.chars().count());
            let parts = if right.contains(&at) {
                [gap.as_str(), cell.as_str()]
            } else {
                [cell.as_str(), gap.as_str()]
            };
            line.extend(parts);
            line.push_str("  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Colours, if the reader is a terminal that wants them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paint(bool);

impl Paint {
    /// For standard output.
    #[must_use]
    pub fn stdout() -> Paint {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        Paint(wanted && io::IsTerminal::is_terminal(&io::stdout()))
    }

    /// Never.
    #[must_use]
    pub fn plain() -> Paint {
        Paint(false)
    }

    /// Something is wrong.
    #[must_use]
    pub fn bad(self, text: &str) -> String {
        self.with("31;1", text)
    }

    /// Something wants a look.
    #[must_use]
    pub fn warn(self, text: &str) -> String {
        self.with("33", text)
    }

    /// A heading.
    #[must_use]
    pub fn head(self, text: &str) -> String {
        self.with("1", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `3 s`, `12 min`, `4 h 5 min`, `2 d 3 h`: as long as it is good to know.
#[must_use]
pub fn length(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX).as_secs();
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{minutes} min"),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_told_in_two_units_at_most() {
        for (seconds, text) in
            [(0.4, "0 s"), (59.9, "59 s"), (61.0, "1 min"), (3_700.0, "1 h 1 min"), (200_000.0, "2 d 7 h")]
        {
            assert_eq!(length(seconds), text);
        }
        assert_eq!(length(f64::NAN), "0 s");
    }

    #[test]
    fn columns_line_up_and_lines_end_where_their_text_does() {
        let mut out = Vec::new();
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        table(&mut out, &(1..2), &[row(["CLASS", "N", ""]), row(["a", "100", ""])]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "CLASS    N\na      100\n");
    }

    #[test]
    fn what_was_asked_wrongly_is_told_from_what_went_wrong() {
        let refused = |status| {
            let problem = ProblemBody { error: String::new(), message: String::new(), remedy: String::new() };
            ClientError::Refused { status, problem }.code()
        };
        assert_eq!([refused(400), refused(404), refused(422), refused(401), refused(503)], [2, 2, 2, 1, 1]);
        assert_eq!(ClientError::Usage(String::new()).code(), 2);
    }
}
