//! Asks one job whether it has started: `GET /api/jobs/{submission_id}`, which every version of Ray has.

use crate::core::control::job_starts::JobState;
use crate::observe::fetch::{self, FetchError, FetchLimits};
use reqwest::Client;
use serde::Deserialize;
use std::time::Duration;
use url::Url;

/// A job's entrypoint and runtime environment come with its state.
const BODY_BYTES_MAX: usize = 1 << 20;

#[derive(Deserialize)]
struct Details {
    status: String,
}

/// The state of `job` at the dashboard's own address.
///
/// # Errors
/// It was not answered, or with something else.
pub async fn ask(
    client: &Client,
    dashboard: &Url,
    job: &str,
    token: Option<&str>,
    timeout: Duration,
) -> Result<JobState, FetchError> {
    let mut url = dashboard.clone();
    url.set_path(&format!("/api/jobs/{job}"));
    url.set_query(None);
    let bounds = FetchLimits { timeout, body_bytes_max: BODY_BYTES_MAX };
    let answer = fetch::get(client, url, "application/json", token, bounds).await?;
    if answer.status == reqwest::StatusCode::NOT_FOUND {
        return Ok(JobState::Gone);
    }
    let body = answer.data()?;
    let details: Details = serde_json::from_slice(&body)
        .map_err(|error| FetchError::WebPage(format!("no job's details: {error}")))?;
    Ok(match details.status.as_str() {
        "PENDING" => JobState::Waits,
        "STOPPED" => JobState::Gone,
        _ => JobState::Started,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fetch::server;

    async fn asked(status: &str, body: &str) -> Result<JobState, FetchError> {
        let answer = server::answer(status, "application/json", body);
        server::with(answer, async |address| {
            let dashboard = Url::parse(&format!("http://{address}/ignored?x=y")).unwrap();
            let timeout = Duration::from_secs(5);
            ask(&fetch::client().unwrap(), &dashboard, "raysubmit_1", None, timeout).await
        })
        .await
    }

    #[tokio::test]
    async fn a_job_waits_until_it_is_anything_but_pending() {
        for (status, state) in [
            ("PENDING", JobState::Waits),
            ("RUNNING", JobState::Started),
            ("SUCCEEDED", JobState::Started),
            ("FAILED", JobState::Started),
            ("STOPPED", JobState::Gone),
        ] {
            let body = format!(r#"{{"type": "SUBMISSION", "status": "{status}", "entrypoint": "true"}}"#);
            assert_eq!(asked("200 OK", &body).await, Ok(state), "{status}");
        }
    }

    #[tokio::test]
    async fn a_job_that_is_not_there_is_gone_and_what_is_no_answer_says_nothing() {
        assert_eq!(asked("404 Not Found", "no such job").await, Ok(JobState::Gone));
        assert!(asked("401 Unauthorized", "").await.unwrap_err().is_refused());
        for (status, body) in [("200 OK", "{}"), ("200 OK", "hello"), ("500 Oops", "")] {
            let fault = asked(status, body).await.unwrap_err();
            assert!(!fault.is_refused(), "{fault}");
        }
    }
}
