//! How a Prometheus server is asked: its address, who vouches for it, and as whom.

use http::header::{HeaderName, HeaderValue};
use toml::Spanned;
use url::Url;

use super::checked::{Judge, Place};
use super::raw::RawMetrics;
use super::settings::{Login, Prometheus};

impl Judge {
    /// The Prometheus server, and what it is asked with.
    pub(super) fn prometheus(&mut self, raw: &RawMetrics) -> Option<Prometheus> {
        let Some(given) = &raw.prometheus else {
            self.refuse_without_server(raw);
            return None;
        };
        let url = self.server_url(given);
        let authorities = self.path("metrics.prometheus_authorities", raw.prometheus_authorities.as_ref());
        if let Some(given) = &raw.prometheus_authorities
            && url.as_ref().is_some_and(|url| url.scheme() != "https")
        {
            let message = "nobody vouches for a server that is spoken with in the open";
            let remedy = "write prometheus = \"https://...\", or take the line away";
            self.refuse(Place::new("metrics.prometheus_authorities", given), message, remedy);
        }
        let mut headers = Vec::new();
        for (name, value) in &raw.prometheus_headers {
            let key = format!("metrics.prometheus_headers.{}", name.get_ref());
            let fits = name.get_ref().parse::<HeaderName>().is_ok()
                && HeaderValue::from_str(value.get_ref()).is_ok();
            if fits {
                headers.push((name.get_ref().as_str().into(), value.get_ref().as_str().into()));
            } else {
                let remedy = "write a header such as { X-Scope-OrgID = \"team-a\" }";
                self.refuse(Place::new(key, value), "this is not a header", remedy);
            }
        }
        let headers_from = raw.prometheus_headers_from.as_ref();
        let headers_from = headers_from.and_then(|from| self.secret("metrics.prometheus_headers_from", from));
        Some(Prometheus { url: url?, authorities, login: self.login(raw), headers, headers_from })
    }

    /// What a server is asked with says nothing without a server.
    fn refuse_without_server(&mut self, raw: &RawMetrics) {
        let places = [
            raw.prometheus_authorities
                .as_ref()
                .map(|given| Place::new("metrics.prometheus_authorities", given)),
            raw.prometheus_token.as_ref().map(|given| Place::new("metrics.prometheus_token", given)),
            raw.prometheus_user.as_ref().map(|given| Place::new("metrics.prometheus_user", given)),
            raw.prometheus_password.as_ref().map(|given| Place::new("metrics.prometheus_password", given)),
            raw.prometheus_headers_from
                .as_ref()
                .map(|given| Place::new("metrics.prometheus_headers_from", given)),
            raw.prometheus_headers.keys().next().map(|given| Place::new("metrics.prometheus_headers", given)),
        ];
        for place in places.into_iter().flatten() {
            self.refuse(place, "no Prometheus server is named", "write prometheus = \"http://host:9090\"");
        }
    }

    /// As whom Prometheus is asked.
    fn login(&mut self, raw: &RawMetrics) -> Option<Login> {
        match (&raw.prometheus_token, &raw.prometheus_user, &raw.prometheus_password) {
            (None, None, None) => None,
            (Some(token), None, None) => self.secret("metrics.prometheus_token", token).map(Login::Token),
            (None, Some(user), Some(password)) => {
                let password = self.secret("metrics.prometheus_password", password)?;
                if user.get_ref().contains(':') {
                    let message = "a user's name with `:` cannot be sent";
                    self.refuse(Place::new("metrics.prometheus_user", user), message, "");
                }
                Some(Login::Basic { user: user.get_ref().as_str().into(), password })
            }
            (token, user, password) => {
                let place = match (token, user, password) {
                    (Some(token), ..) => Place::new("metrics.prometheus_token", token),
                    (_, Some(user), _) => Place::new("metrics.prometheus_user", user),
                    (_, _, Some(password)) => Place::new("metrics.prometheus_password", password),
                    _ => return None,
                };
                let remedy = "give prometheus_token alone, or prometheus_user with prometheus_password";
                self.refuse(place, "Prometheus is asked with a token, or with a user and a password", remedy);
                None
            }
        }
    }

    /// The address of Prometheus: http or https, with a path and a query if need be.
    fn server_url(&mut self, given: &Spanned<String>) -> Option<Url> {
        let text = given.get_ref().trim();
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}/") };
        let place = Place::new("metrics.prometheus", given);
        match Url::parse(&whole) {
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                // The file is read by more people than may ask Prometheus.
                let remedy = "write prometheus_user = \"name\" and prometheus_password = { file = \"/run/secrets/name\" }";
                self.refuse(place, "a user or a password stands in the address", remedy);
            }
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => return Some(url),
            _ => {
                let remedy = "write a URL, such as \"http://127.0.0.1:9090\"";
                self.refuse(place, "this is not an http or https URL", remedy);
            }
        }
        None
    }
}
