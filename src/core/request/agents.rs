//! Programs that call Ray on a cluster's behalf, by what they call themselves.
//!
//! An operator reconciles every few seconds, often from the address that people come from too: a sidecar's
//! 127.0.0.1, an ingress, the API server. As one client with them it would wait for their flood. So what names
//! itself as one of these is a client of its own beside the others of its address, with or without a token. It shares
//! that address's part with them as credentials do. Without a token it is one client at each address: a program that
//! only takes such a name has gained nothing (`identify.rs`).
//!
//! What KubeRay sends, as its source has it (1.5, August 2026):
//!
//! | who | `User-Agent` | and |
//! |---|---|---|
//! | operator, straight to the head | `Go-http-client/1.1`, Go's own: it sets none | `X-Ray-Authorization` with a token |
//! | operator through the API server (`--use-kubernetes-proxy`) | `kuberay-operator/VERSION` | |
//! | submitter of a RayJob | `Go-http-client/1.1` | `X-Ray-Authorization` with a token |
//! | history server: collector in the head's pod | `Go-http-client/1.1` | token, if there is one |
//! | history server: pages of a live cluster | what its user's browser sent | its own token in `X-Ray-Authorization` |
//!
//! So the operator has a name of its own on one way alone, the history server has none, and Go's own stands for
//! both: no command, SDK or page of Ray's is a Go program. Where more of them must be told apart, an API key or the
//! header of a trusted proxy does it.

use std::sync::Arc;

/// The header in which programs name themselves.
pub const HEADER: &str = "user-agent";

/// How the names begin that are known unless configured, in lower case.
pub const AGENTS: &[&str] = &["kuberay-operator/", "go-http-client/"];

/// A longer name is looked at no further.
const LOOKED_AT_MAX: usize = 128;

/// Which of these a program's name begins with, whatever its case.
pub fn recognise<'a>(agents: &'a [Arc<str>], name: &[u8]) -> Option<&'a str> {
    let name = &name.trim_ascii()[..name.trim_ascii().len().min(LOOKED_AT_MAX)];
    let begins = |agent: &&Arc<str>| {
        name.get(..agent.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(agent.as_bytes()))
    };
    agents.iter().find(begins).map(|agent| &**agent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_how_its_name_begins() {
        let known: Vec<Arc<str>> = AGENTS.iter().map(|&agent| agent.into()).collect();
        let of = |name: &str| recognise(&known, name.as_bytes());
        assert_eq!(of("kuberay-operator/v1.5.1"), Some("kuberay-operator/"));
        assert_eq!(of(" Go-http-client/1.1"), Some("go-http-client/"));
        for other in
            ["", "python-requests/2.31.0", "Mozilla/5.0 Go-http-client/1.1", "go-http", "kuberay-operator"]
        {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(recognise(&[], b"Go-http-client/1.1"), None);
    }
}
