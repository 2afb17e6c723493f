//! What is known of the Ray at `upstream`: its version, the profile it is taken by, and why.

use crate::core::request::profile::{self, Fit, Profile};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    #[must_use]
    pub fn withheld(&self, was_away: bool, is_read: impl Fn(&str) -> bool) -> Seen {
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
}
