//! Which Ray is at `upstream`? Asked at the start, every ten seconds, and soon after the head was away: behind a name
//! that passes from one head to another, such as a Service's, none is ever away. The answer costs a head a
//! millisecond.
//!
//! It decides which modules share a process (`core/request/profile.rs`), and whether the keys that Ray's handlers
//! ignore are known (`core/request/query.rs`): a newer Ray may read a key that this version of rayguard has
//! never heard of, and two questions would then share one answer. While the answer is not known, queries count
//! as sent and all modules as one process, which is the oldest profile. A head that tells its version to those with a token alone is known by
//! the processes that its metrics name.

use crate::core::request::profile::{self, Fit, Profile};
use crate::core::request::query;
use crate::observe::discover::{self, DiscoverError};
use crate::observe::fetch::{self, FetchError};
use crate::runtime::app::App;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// How often it is looked whether the version has to be asked for.
const ROUND: Duration = Duration::from_secs(2);

/// How many of these rounds pass before it is asked for although nothing has happened.
const ROUNDS: u32 = 5;

/// And while the keys are not known.
const UNSETTLED_ROUNDS: u32 = 2;

/// What is known of the Ray at `upstream`.
#[derive(Clone, PartialEq, Debug)]
pub struct Seen {
    /// As it names it.
    pub version: Option<String>,
    /// What its metrics or its version say.
    pub profile: Profile,
    /// How well that fits.
    pub fit: Fit,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { version: None, profile: *profile::oldest(), fit: Fit::Unknown }
    }
}

impl Seen {
    /// A head that names this version.
    pub fn of_version(version: &str) -> Seen {
        let (profile, fit) = profile::of_version(version);
        Seen { version: Some(version.to_owned()), profile: *profile, fit }
    }

    /// A head that keeps its version to itself, by the signals that are read from it.
    pub fn of_signals(is_read: impl Fn(&str) -> bool) -> Option<Seen> {
        let profile = Profile::of_signals(is_read)?;
        Some(Seen { version: None, profile, fit: Fit::Between })
    }

    /// The same, where no profile was made for it and the processes that its metrics name say otherwise; while they
    /// say nothing, as `before`.
    #[must_use]
    pub fn corrected(self, before: &Seen, is_read: impl Fn(&str) -> bool) -> Seen {
        let same = (before.version == self.version).then_some(before.profile);
        match Profile::of_signals(is_read).or(same) {
            Some(profile) if self.fit != Fit::Exact && profile.one_process != self.profile.one_process => {
                Seen { profile, ..self }
            }
            _ => self,
        }
    }

    /// What stands for it while it withholds its version: itself, as long as Ray has not been away since it told that
    /// (a token that is being replaced, a rate limit on the way); then what its metrics say.
    fn withheld(&self, was_away: bool, is_read: impl Fn(&str) -> bool) -> Seen {
        if self.version.is_some() && !was_away {
            return self.clone();
        }
        let before = if self.version.is_none() { self.clone() } else { Seen::default() };
        Seen::of_signals(is_read).unwrap_or(before)
    }

    /// What it is known by; `None` while nothing is known of it.
    pub fn identity(&self) -> Option<RayIdentity> {
        let is_known = self.version.is_some() || self.fit != Fit::Unknown;
        is_known.then(|| RayIdentity { version: self.version.clone(), profile: self.profile.ray.into() })
    }

    fn is_corrected(&self) -> bool {
        self.version.as_deref().is_some_and(|version| *profile::of_version(version).0 != self.profile)
    }

    /// The profile in force and why, for people; `fixed` is the operator's word.
    pub fn view(&self, fixed: Option<&'static Profile>) -> RayView {
        let profile = fixed.copied().unwrap_or(self.profile);
        let version = self.version.as_deref();
        let because = match (fixed, self.fit, version) {
            (Some(_), ..) => "set by ray_version",
            (None, Fit::Exact, Some(_)) => "made for it",
            (None, Fit::Between | Fit::Unknown, Some(_)) if self.is_corrected() => {
                "no profile for this version: chosen by the processes in its metrics"
            }
            (None, Fit::Between, Some(_)) => "the newest profile not newer than this version",
            (None, Fit::Newer, Some(_)) if self.is_corrected() => {
                "newer than every known version: chosen by the processes in its metrics"
            }
            (None, Fit::Newer, Some(_)) => "newer than every known version: the newest profile",
            (None, Fit::Unknown, Some(_)) => "unknown version: the most cautious profile",
            (None, Fit::Unknown, None) => "version not known yet: the most cautious profile",
            (None, _, None) => "chosen by its metrics, because it does not report its version",
        };
        let says = format!("profile {} ({because}): {}", profile.ray, profile.says());
        RayView { version: self.version.clone(), profile: profile.ray.to_owned(), says }
    }
}

/// What one Ray is told from another by, in memory and in files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RayIdentity {
    /// Its version, unless it keeps that to itself.
    pub version: Option<String>,
    /// The profile that it is taken by.
    pub profile: Box<str>,
}

impl RayIdentity {
    /// Whether both may be the same Ray: by their versions, or by their profiles where one withholds its version.
    pub fn may_be(&self, other: &RayIdentity) -> bool {
        match (&self.version, &other.version) {
            (Some(version), Some(other)) => version == other,
            _ => self.profile == other.profile,
        }
    }
}

/// The Ray at `upstream`, and the profile it is taken by.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Ray")]
pub struct RayView {
    /// Its version; null while it has not told it.
    pub version: Option<String>,
    /// The profile in force, named by the first version that has it.
    pub profile: String,
    /// The profile, why it was chosen, and what it says.
    pub says: String,
}

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
    fn while_nothing_is_known_all_modules_count_as_one_process() {
        let seen = Seen::default();
        let view = seen.view(None);
        assert_eq!((seen.profile, &*view.profile), (*profile::oldest(), "2.9"));
        assert!(!seen.profile.one_process.is_empty());
        assert!(view.says.contains("not known yet: the most cautious"), "{}", view.says);
        let fixed = seen.view(Some(profile::newest()));
        assert!(fixed.profile == "2.60" && fixed.says.contains("set by ray_version"), "{}", fixed.says);
    }

    #[test]
    fn a_newer_ray_is_corrected_by_its_processes_and_no_other_is() {
        let seen = |version: &str, processes: &'static [&'static str]| {
            Seen::of_version(version).corrected(&Seen::default(), |name| processes.contains(&name))
        };
        assert_eq!(seen("2.61.0", &[]).profile, *profile::newest(), "nothing has been read");
        let back_in_one = seen("2.61.0", &["dashboard_cpu"]);
        assert!(!back_in_one.profile.one_process.is_empty());
        assert!(
            back_in_one.view(None).says.contains("chosen by the processes"),
            "{:?}",
            back_in_one.view(None)
        );
        assert_eq!(seen("2.60.0", &["dashboard_cpu"]).profile, *profile::newest());
        assert_eq!(seen("2.9.3", &["dashboard_cpu"]).profile.ray, "2.9");
        assert_eq!(seen("2.30.0", &["dashboard_cpu"]).profile.ray, "2.9", "they say what was thought");
        let everything = |_: &str| true;
        let between = Seen::of_version("2.52.0").corrected(&Seen::default(), everything);
        assert_eq!(between.profile, *profile::newest());
        assert!(between.view(None).says.contains("no profile for this version"), "{:?}", between.view(None));
        let later = Seen::of_version("2.61.0").corrected(&back_in_one, |_| false);
        assert_eq!(later, back_in_one, "a page that is missed changes nothing");
    }

    #[test]
    fn a_version_that_is_withheld_is_what_it_was_until_ray_has_been_away() {
        let known = Seen::of_version("2.60.0");
        assert_eq!(known.withheld(false, |_| true), known, "a token that is being replaced");
        let hidden = known.withheld(true, |name| name == "dashboard_cpu");
        assert_eq!((hidden.version.clone(), hidden.profile.ray), (None, "2.44"), "it may be an older one");
        assert_eq!(known.withheld(true, |_| false), Seen::default(), "nothing says what it is");
        assert_eq!(hidden.withheld(true, |_| false), hidden, "a page that is missed changes nothing");
    }

    #[test]
    fn one_ray_is_told_from_another_by_its_version_or_else_by_its_profile() {
        let known = |version: &str| Seen::of_version(version).identity().unwrap();
        assert_eq!(Seen::default().identity(), None);
        assert!(known("2.60.0").may_be(&known("2.60.0")) && !known("2.44.1").may_be(&known("2.52.0")));
        assert!(Seen::of_version("1.13.0").identity().is_some(), "it has told what it is");
        let hidden = Seen::of_signals(|name| name == "dashboard_cpu").unwrap().identity().unwrap();
        assert!(hidden.may_be(&known("2.44.1")) && !hidden.may_be(&known("2.60.0")));
    }

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
