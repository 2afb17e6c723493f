//! The page: one file, embedded, with everything it needs in it.
//!
//! It loads nothing from elsewhere and works where nothing else does. The policy it is sent
//! with names the digests of its own script and style, so that nothing else runs even if
//! something got into it; and nothing can, because the script only ever sets text.

use crate::admin::answer::{Answer, bytes};
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
        base64(&Sha256::digest(inner.map_or("", |(inner, _)| inner)))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        digest("script"),
        digest("style"),
    )
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let group =
            three.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            if place <= three.len() {
                let index = group >> (18 - 6 * place) & 63;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

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
