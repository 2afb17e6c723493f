//! The page: one file, embedded, with everything it needs in it.
//!
//! It loads nothing from elsewhere and works where nothing else does. The policy it is sent
//! with names the digests of its own script and style, so that nothing else runs even if
//! something got into it; and nothing can, because the script only ever sets text.

use crate::admin::answer::{Answer, bytes};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::StatusCode;
use http::header::{CONTENT_SECURITY_POLICY, HeaderValue};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const PAGE: &str = include_str!("page.html");

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = policy(PAGE);
    // Base64 and fixed words: always a valid header; were it not, nothing at all may run.
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// The page.
pub fn answer() -> Answer {
    let mut answer = bytes(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    answer
}

fn policy(page: &str) -> String {
    let digest = |tag: &str| {
        let inner =
            page.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
        BASE64_STANDARD.encode(Sha256::digest(inner.map_or("", |(inner, _)| inner)))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        digest("script"),
        digest("style"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_nothing_that_comes_from_elsewhere() {
        for once in ["<script>", "</script>", "<style>", "</style>"] {
            assert_eq!(PAGE.matches(once).count(), 1, "{once}");
        }
        for never in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "localStorage",
            "sessionStorage",
            "document.cookie",
            "src=",
            "@import",
            " style=",
            " onclick=",
        ] {
            assert!(!PAGE.contains(never), "{never}");
        }
        // A name, and a link that is only ever followed by hand.
        let names = [
            "http://www.w3.org/2000/svg",
            "https://github.com/rayguard/rayguard/blob/main/config/deploy/RUNBOOK.md",
        ];
        let known: usize = names.iter().map(|name| PAGE.matches(name).count()).sum();
        assert_eq!(PAGE.matches("http://").count() + PAGE.matches("https://").count(), known);
    }
}
