//! May a web page read what the proxy itself answers? (The Fetch standard, 3.2: CORS.)
//!
//! A page that calls a Serve application of another origin sees an answer only if it says that it may
//! be seen. Ray's answers say so themselves or do not; without a word on ours, the page would see a
//! network error in place of "try again in 3 seconds". There is nothing in our answers that a page may
//! not know: so any may read them, unless the operator names those that may.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, HeaderMap,
    HeaderValue, VARY,
};
use std::sync::Arc;

/// What a page may read of our answers, with status and body.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "retry-after, ratelimit, ratelimit-policy, x-rayguard-reason, x-rayguard-request-id",
);

/// The origins whose pages may read the proxy's own answers.
#[derive(Clone, Debug)]
pub struct Origins(Arc<[Arc<str>]>);

impl Default for Origins {
    /// All of them.
    fn default() -> Origins {
        Origins::new(&["*".into()])
    }
}

impl Origins {
    /// These; `*` is any.
    pub fn new(origins: &[Arc<str>]) -> Origins {
        Origins(origins.into())
    }

    /// Lets a page of this origin read the answer, if it may.
    pub fn expose(&self, answer: &mut HeaderMap, origin: &HeaderValue) {
        let lists = |name: &[u8]| self.0.iter().any(|origin| origin.as_bytes() == name);
        if lists(origin.as_bytes()) {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        } else if lists(b"*") {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        } else {
            return;
        }
        answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        answer.append(VARY, HeaderValue::from_static("origin"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_read_what_its_origin_is_let() {
        let told = |origins: &[&str], origin: &'static str| {
            let origins: Vec<Arc<str>> = origins.iter().map(|origin| Arc::from(*origin)).collect();
            let mut headers = HeaderMap::new();
            Origins::new(&origins).expose(&mut headers, &HeaderValue::from_static(origin));
            let credentials = headers.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS);
            let exposes = headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS);
            headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(|origin| (origin.clone(), credentials, exposes))
        };
        let (any, page) = (HeaderValue::from_static("*"), HeaderValue::from_static("https://a.example"));
        assert_eq!(told(&["*"], "https://a.example"), Some((any.clone(), false, true)));
        assert_eq!(told(&["https://a.example"], "https://a.example"), Some((page.clone(), true, true)));
        assert_eq!(told(&["https://a.example"], "https://b.example"), None);
        assert_eq!(told(&["*", "https://a.example"], "https://a.example"), Some((page, true, true)));
        assert_eq!(told(&["*", "https://a.example"], "https://b.example"), Some((any, false, true)));
        assert_eq!(told(&[], "https://a.example"), None);
    }
}
