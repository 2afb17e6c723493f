//! How a Prometheus server is asked: its address, who vouches for it, and as whom.

use http::header::{HeaderName, HeaderValue};

use super::check::Check;
use super::keys::RawMetrics;
use super::settings::{Login, Prometheus};

impl Check<'_> {
    /// The Prometheus server, and what it is asked with.
    pub(super) fn prometheus(&mut self, raw: &RawMetrics) -> Option<Prometheus> {
        let Some(url) = raw.prometheus.clone() else {
            // What a server is asked with says nothing without a server.
            for key in ["authorities", "token", "user", "password", "headers_from", "headers"] {
                let key = format!("metrics.prometheus_{key}");
                if self.has(&key) {
                    let remedy = "write prometheus = \"http://host:9090\"";
                    self.refuse(key, "no Prometheus server is configured", remedy);
                }
            }
            return None;
        };
        if raw.prometheus_authorities.is_some() && url.scheme() != "https" {
            let message = "the connection to Prometheus is not encrypted, so no certificate is checked";
            let remedy = "write prometheus = \"https://...\", or remove the line";
            self.refuse("metrics.prometheus_authorities", message, remedy);
        }
        for (name, value) in &raw.prometheus_headers {
            if name.parse::<HeaderName>().is_err() || HeaderValue::from_str(value).is_err() {
                let remedy = "write a header such as { X-Scope-OrgID = \"team-a\" }";
                self.refuse(format!("metrics.prometheus_headers.{name}"), "this is not a header", remedy);
            }
        }
        let headers = raw.prometheus_headers.iter();
        Some(Prometheus {
            url,
            authorities: raw.prometheus_authorities.clone(),
            login: self.login(raw),
            headers: headers.map(|(name, value)| (name.as_str().into(), value.clone())).collect(),
            headers_from: raw.prometheus_headers_from.clone(),
        })
    }

    /// As whom Prometheus is asked.
    fn login(&mut self, raw: &RawMetrics) -> Option<Login> {
        match (raw.prometheus_token.clone(), raw.prometheus_user.clone(), raw.prometheus_password.clone()) {
            (None, None, None) => None,
            (Some(token), None, None) => Some(Login::Token(token)),
            (None, Some(user), Some(password)) => {
                if user.contains(':') {
                    self.refuse("metrics.prometheus_user", "a user name cannot contain `:`", "");
                }
                Some(Login::Basic { user, password })
            }
            (token, user, _) => {
                let what = match (token, user) {
                    (Some(_), _) => "token",
                    (None, Some(_)) => "user",
                    (None, None) => "password",
                };
                let remedy = "set either prometheus_token, or prometheus_user with prometheus_password";
                let message = "a token, and a user with a password, exclude each other";
                self.refuse(format!("metrics.prometheus_{what}"), message, remedy);
                None
            }
        }
    }
}
