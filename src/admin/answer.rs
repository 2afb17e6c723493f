//! What the listener answers with: JSON, text, or a problem with its remedy.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::{Response, StatusCode};
use http_body_util::Full;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An answer, whole in memory.
pub type Answer = Response<Full<Bytes>>;

/// Why something was not done, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}; {remedy}")]
pub struct Problem {
    /// The answer's status.
    pub status: StatusCode,
    /// For programs; stable.
    pub code: &'static str,
    /// A sentence.
    pub message: String,
    /// What to do.
    pub remedy: String,
    /// For 405: the methods that are taken.
    pub allow: Option<&'static str>,
}

/// Why a request was refused, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct ProblemBody {
    /// A code for programs, such as `unknown_class`; stable.
    pub error: String,
    /// A sentence.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    /// A problem.
    pub fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Problem {
        Problem { status, code, message: message.into(), remedy: remedy.into(), allow: None }
    }

    /// As an answer.
    pub fn answer(&self) -> Answer {
        let body = ProblemBody {
            error: self.code.to_owned(),
            message: self.message.clone(),
            remedy: self.remedy.clone(),
        };
        let mut answer = json(self.status, &body);
        if self.status == StatusCode::UNAUTHORIZED {
            answer
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"rayguard\""));
        }
        if let Some(allow) = self.allow {
            answer.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static(allow));
        }
        answer
    }
}

/// A value as JSON.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.push(b'\n');
            bytes(status, "application/json", body)
        }
        // Our own types have string keys and finite numbers; should that fail, say so.
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!(
                "the answer could not be written \
            as JSON: {error}\n"
            ),
        ),
    }
}

/// Plain text.
pub fn text(status: StatusCode, body: &str) -> Answer {
    bytes(status, "text/plain; charset=utf-8", body.to_owned())
}

/// Bytes of a kind. Nothing here may be kept by a cache, framed, or taken for another kind.
pub fn bytes(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    answer
}
