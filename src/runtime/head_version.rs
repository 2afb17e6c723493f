//! Which Ray is at `upstream`? Asked at the start, every ten seconds, and soon after the head was away: behind a name
//! that passes from one head to another, such as a Service's, none is ever away. The answer costs a head a
//! millisecond.
//!
//! It decides which modules share a process (`core/request/profile.rs`), and whether the keys that Ray's handlers
//! ignore are known (`core/request/query.rs`): a newer Ray may read a key that this version of rayguard has
//! never heard of, and two questions would then share one answer. While the answer is not known, queries count
//! as sent and all modules as one process, which is the oldest profile. A head that tells its version to those with a token alone is known by
//! the processes that its metrics name.

use crate::core::request::query;
use crate::observe::discover::{self, DiscoverError};
use crate::observe::fetch::{self, FetchError};
use crate::runtime::app::App;
use crate::runtime::ray_identity::Seen;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// How often it is looked whether the version has to be asked for.
const ROUND: Duration = Duration::from_secs(2);

/// How many of these rounds pass before it is asked for although nothing has happened.
const ROUNDS: u32 = 5;

/// And while the keys are not known.
const UNSETTLED_ROUNDS: u32 = 2;

/// Starts to ask, for as long as the app's tasks run.
pub fn start(app: &Arc<App>) {
    let Ok(client) = fetch::client() else { return };
    let app = Arc::clone(app);
    let tasks = app.tasks.clone();
    tasks.spawn_until_closed(async move {
        let (mut last, mut last_withheld) = (String::new(), None);
        loop {
            let Ok(dashboard) = Url::parse(&app.settings().upstream.url()) else { return };
            let token = app.rays_token();
            match discover::version(&client, &dashboard, token).await {
                Ok(version) => {
                    let known = query::holds_for(&version.ray_version);
                    if !known && version.ray_version != last {
                        tracing::warn!(
                            ray = version.ray_version,
                            "it is unknown which query keys this version of Ray reads; requests that \
                                differ in any key are not shared"
                        );
                    }
                    app.on_reads_known(known);
                    let seen = Seen::of_version(&version.ray_version);
                    app.on_ray(&seen.corrected(&app.seen(), |name| app.has_read(name)));
                    (last, last_withheld) = (version.ray_version, None);
                }
                Err(fault) => {
                    // Else it is a head that is slow to answer, and the one that it was.
                    if let Some(withheld) = withheld(&fault, token.is_some()) {
                        let was_away = !app.knows_reads();
                        let seen = app.seen().withheld(was_away, |name| app.has_read(name));
                        app.on_reads_known(seen.version.is_some() && !was_away);
                        app.on_ray(&seen);
                        if last_withheld.as_ref() != Some(&withheld) {
                            tracing::warn!("Ray {}; {}", withheld.found, withheld.remedy);
                        }
                        last_withheld = Some(withheld);
                    }
                }
            }
            let settled = app.knows_reads();
            for _ in 0..if settled { ROUNDS } else { UNSETTLED_ROUNDS } {
                tokio::time::sleep(ROUND).await;
                if settled && !app.knows_reads() {
                    break; // the head was away
                }
            }
        }
    });
}

/// A head that answers, and does not tell its version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Withheld {
    /// What it does, for people.
    pub found: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Whether this is what a head answers that withholds its version: it wants a token, or a login page or an ingress
/// comes first. Anything else says nothing of who answers.
pub fn withheld(fault: &DiscoverError, shows_token: bool) -> Option<Withheld> {
    let DiscoverError::Dashboard { fault, .. } = fault else { return None };
    let remedy = match fault {
        FetchError::Status(401 | 403) if shows_token => {
            "it rejects this token: set the right one with metrics.token or RAY_AUTH_TOKEN"
        }
        FetchError::Status(401 | 403) => {
            "set Ray's token with metrics.token, so that its version and exporters are found"
        }
        FetchError::Status(301 | 302 | 303 | 307 | 308 | 404) | FetchError::WebPage(..) => {
            "something other than Ray answers there, or a proxy in front of it: set `upstream` to the \
                address where Ray itself answers"
        }
        _ => return None,
    };
    Some(Withheld { found: format!("does not report its version: {fault}"), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wants_a_token_or_a_login_withholds_its_version_and_what_is_short_of_time_does_not() {
        let of = |fault| withheld(&DiscoverError::Dashboard { url: String::new(), fault }, false);
        for status in [302, 307, 401, 403, 404] {
            let found = of(FetchError::Status(status)).unwrap().found;
            assert!(
                found.starts_with(&format!("does not report its version: answered with status {status}")),
                "{found}"
            );
        }
        assert!(of(FetchError::WebPage("text/html".to_owned())).is_some());
        for status in [408, 429, 500, 503] {
            assert_eq!(of(FetchError::Status(status)), None, "{status}");
        }
        assert_eq!(of(FetchError::Slow(Duration::from_secs(1))), None);
    }
}
