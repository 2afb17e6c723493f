//! Which of Ray's modules live in one process, by version.
//!
//! The catalogue says what each module may have under way. Up to Ray 2.44 the dashboard's modules are objects in
//! one process on one event loop; in 2.53 each has a process of its own. Where modules
//! share a loop, ceilings that were meant for several processes add up, and polite clients wait behind all of
//! them. So a [`Profile`] puts the classes of such modules on the dashboard's module ([`Profile::shape`]): one
//! ceiling and one bound on work, while each class keeps its own limits, queue and priority.
//!
//! A version takes the newest profile that is not newer than itself, and one newer than all the newest of them. While
//! no version is known, it is the oldest.
//!
//! **A Ray that no profile was made for is corrected by what it exports.** Its metrics name the processes of its
//! dashboard: a module whose process is not among them, or goes by a name that is not known, counts as living in the
//! dashboard's own, the more careful of the two ([`Profile::of_signals`]); the others keep theirs, and task events, whose
//! process Ray starts only where it is told to, what the profile says. That latencies rise together would not say it:
//! they do so too when the dashboard's own loop, through which all modules are asked, or the node's CPU is short, while
//! each module has its process.
//!
//! A profile also says what the dear routes of its version cost, as measured with 1,000 tasks and 120 jobs
//! (`benches/costs`); that stands for what is learnt until the first request of a route has been seen.

use crate::policy::{Bounds, Module, ModuleId, Policy};
use crate::request::catalogue::ROUTES;
use crate::request::classify::RouteId;

/// The topology of a Ray head, from one version on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Profile {
    /// The first version that has it, as people name it: `2.44`.
    pub ray: &'static str,
    minor: u32,
    /// Which modules live in the dashboard's own process.
    pub one_process: Modules,
    /// Names of built-in signals that this Ray does not export, beside those of modules without a process.
    lacks: &'static [&'static [&'static str]],
    /// What a `GET` of a route takes on an idle head, in milliseconds.
    costs: &'static [(&'static str, f64)],
}

/// The module that stands for the dashboard's own process.
const DASHBOARD: &str = "Dashboard";

/// What one process may have under way: as the busiest of Ray's modules, which is one too.
const SHARED: Bounds = Bounds { initial: 24.0, min: 8.0, max: 32.0 };

/// The dashboard's modules as [`MODULES`](crate::request::catalogue::MODULES) names them, those that came after 2.44
/// where they would have been, and the CPU of each one's process, where it always has one.
const MODULES: &[(&str, Option<&str>)] = &[
    ("JobHead", Some("job_head_cpu")),
    ("StateHead", Some("state_head_cpu")),
    ("NodeHead", Some("node_head_cpu")),
    ("ReportHead", Some("report_head_cpu")),
    ("ServeHead", Some("serve_head_cpu")),
    ("EventHead", Some("event_head_cpu")),
    ("TaskEventsHead", None),
    ("MetricsHead", Some("metrics_head_cpu")),
    ("DataHead", Some("data_head_cpu")),
    ("TrainHead", Some("train_head_cpu")),
];

/// Some of them, a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Modules(u16);

impl Modules {
    const NONE: Modules = Modules(0);
    const ALL: Modules = Modules((1 << MODULES.len()) - 1);

    /// Those of which the CPU is told, by that signal's name, and this holds of it.
    fn told(holds: impl Fn(&str) -> bool) -> Modules {
        let of = |(at, (_, cpu)): (usize, &(_, Option<&str>))| u16::from(cpu.is_some_and(&holds)) << at;
        Modules(MODULES.iter().enumerate().map(of).sum())
    }

    /// Whether it is none.
    pub fn is_empty(self) -> bool {
        self == Modules::NONE
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        MODULES.iter().enumerate().filter(move |(at, _)| self.0 & (1 << at) != 0).map(|(_, (name, _))| *name)
    }
}

/// The agent does not know the GCS's process, and of its calls none is timed but the last.
const NO_GCS: &[&str] = &["gcs_cpu", "gcs_memory", "gcs_slow_share", "gcs_very_slow_share"];

/// The dashboard does not look at its own loop.
const NO_LOOP: &[&str] = &["dashboard_loop_tasks", "dashboard_loop_lag"];

/// Where all modules are one process.
const COSTS_2_9: &[(&str, f64)] = &[
    ("/api/v0/tasks", 663.0),
    ("/api/v0/tasks/summarize", 546.0),
    ("/api/jobs/", 68.0),
    ("/api/v0/actors", 47.0),
    ("/api/v0/workers", 34.0),
    ("/api/jobs/{job_or_submission_id}/logs", 12.0),
];
const COSTS_2_44: &[(&str, f64)] = &[
    ("/api/v0/tasks", 586.0),
    ("/api/v0/tasks/summarize", 612.0),
    ("/api/jobs/", 67.0),
    ("/api/v0/actors", 32.0),
    ("/api/v0/workers", 25.0),
    ("/api/jobs/{job_or_submission_id}/logs", 9.0),
];

const COSTS_2_60: &[(&str, f64)] =
    &[("/api/v0/tasks", 138.0), ("/api/v0/tasks/summarize", 142.0), ("/api/jobs/", 19.4)];

/// Every profile, oldest first.
pub const PROFILES: &[Profile] = &[
    Profile { ray: "2.9", minor: 9, one_process: Modules::ALL, lacks: &[NO_GCS, NO_LOOP], costs: COSTS_2_9 },
    Profile {
        ray: "2.31",
        minor: 31,
        one_process: Modules::ALL,
        lacks: &[NO_GCS, &["dashboard_loop_tasks"]],
        costs: COSTS_2_9,
    },
    Profile {
        ray: "2.44",
        minor: 44,
        one_process: Modules::ALL,
        lacks: &[&["gcs_cpu", "gcs_memory"]],
        costs: COSTS_2_44,
    },
    Profile { ray: "2.53", minor: 53, one_process: Modules::NONE, lacks: &[], costs: COSTS_2_60 },
    Profile { ray: "2.60", minor: 60, one_process: Modules::NONE, lacks: &[], costs: COSTS_2_60 },
];

/// How a version stands to the profile that it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    /// The profile was made from this version.
    Exact,
    /// It lies between two of them.
    Between,
    /// It is newer than all of them.
    Newer,
    /// It is older than all of them, or no version that can be read.
    Unknown,
}

/// The profile of a version as `/api/version` names it (`2.44.1`), and how well it fits.
pub fn of_version(version: &str) -> (&'static Profile, Fit) {
    let mut numbers = version.trim().split('.').map(leading_number);
    let (major, minor) = (numbers.next().flatten(), numbers.next().flatten());
    match (major, minor) {
        (Some(3..), _) => (newest(), Fit::Newer),
        (Some(2), Some(minor)) => {
            let Some(profile) = PROFILES.iter().rev().find(|profile| profile.minor <= minor) else {
                return (oldest(), Fit::Unknown);
            };
            let fit = if profile.minor == minor {
                Fit::Exact
            } else if *profile == *newest() {
                Fit::Newer
            } else {
                Fit::Between
            };
            (profile, fit)
        }
        _ => (oldest(), Fit::Unknown),
    }
}

/// The oldest profile, also of a version that cannot be read: it protects every head, and holds a newer one back a little.
pub fn oldest() -> &'static Profile {
    &PROFILES[0]
}

/// The newest profile.
pub fn newest() -> &'static Profile {
    &PROFILES[PROFILES.len() - 1]
}

/// `60` of `60rc1`.
fn leading_number(text: &str) -> Option<u32> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

impl Profile {
    /// The profile of a head by the processes of its dashboard that its own metrics name, where its version is not
    /// known or newer than all profiles. `None` if they name none.
    pub fn of_signals(is_read: impl Fn(&str) -> bool) -> Option<Profile> {
        if !is_read("dashboard_cpu") {
            return None;
        }
        if Modules::told(&is_read).is_empty() {
            return PROFILES.iter().rev().find(|profile| profile.one_process == Modules::ALL).copied();
        }
        Some(Profile { one_process: Modules::told(|cpu| !is_read(cpu)), ..*newest() })
    }

    /// Whether this Ray does not export a built-in signal.
    pub fn lacks(&self, signal: &str) -> bool {
        let of_module = MODULES.iter().find(|(_, cpu)| *cpu == Some(signal));
        of_module.is_some_and(|(module, _)| self.one_process.names().any(|name| name == *module))
            || self.lacks.iter().any(|names| names.contains(&signal))
    }

    /// What routes of this Ray cost before anything has been learnt: the key of each, and seconds.
    pub fn expected_costs(&self) -> impl Iterator<Item = (u16, f64)> {
        let places = |path: &'static str| {
            let routes = ROUTES.iter().enumerate();
            routes.filter(move |(_, route)| route.method == "GET" && route.path == path).map(|(at, _)| at)
        };
        let costs = self.costs.iter();
        costs.flat_map(move |(path, ms)| places(path).map(move |at| (RouteId::of_ray(at).0, ms / 1000.0)))
    }

    /// `policy` as this head needs it: what lives in one process has one ceiling and one bound on work. Modules and
    /// classes keep their places. A module whose limits the operator's file changes keeps them.
    pub fn shape(&self, policy: &Policy) -> Policy {
        let mut shaped = policy.clone();
        let at =
            |module: &Module| self.one_process.names().any(|name| name == &*module.name) && !module.apart;
        let dashboard = shaped.modules.iter().position(|module| &*module.name == DASHBOARD);
        let Some(dashboard) = dashboard.filter(|_| shaped.modules.iter().any(at)) else { return shaped };
        let Ok(id) = u8::try_from(dashboard) else { return shaped };
        for class in &mut shaped.classes {
            if at(&shaped.modules[class.module.index()]) {
                class.module = ModuleId(id);
            }
        }
        let shared = &mut shaped.modules[dashboard];
        shared.shared = true;
        if !shared.apart {
            shared.in_flight = SHARED;
        }
        shaped
    }

    /// Which processes the dashboard has, for people.
    pub fn says(&self) -> String {
        match self.one_process {
            Modules::NONE => "each dashboard module has a process of its own".to_owned(),
            Modules::ALL => "all dashboard modules share one process".to_owned(),
            some => {
                let names: Vec<&str> = some.names().collect();
                let share = if names.len() == 1 { "shares" } else { "share" };
                format!(
                    "{} {share} the dashboard's process, the other modules have one each",
                    names.join(", ")
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::controller::{AdmissionController, Ask, Decision};
    use crate::admission::table::LimitTable;
    use crate::policy::{ClassId, Kind, Treatment};
    use crate::request::catalogue::{self, policy};
    use crate::request::client_id::ClientId;
    use crate::time::Time;

    fn module_of<'a>(policy: &'a Policy, class: &str) -> &'a Module {
        let class = policy.classes.iter().find(|known| &*known.name == class).unwrap();
        &policy.modules[class.module.index()]
    }

    #[test]
    fn every_name_of_a_profile_is_known() {
        for profile in PROFILES {
            for module in profile.one_process.names() {
                assert!(catalogue::MODULES.iter().any(|known| known.name == module), "{module}");
            }
            for signal in profile
                .lacks
                .iter()
                .copied()
                .flatten()
                .chain(MODULES.iter().filter_map(|(_, cpu)| cpu.as_ref()))
            {
                assert!(
                    crate::signal::catalogue::SIGNALS.iter().any(|known| known.name == *signal),
                    "{signal}"
                );
            }
            assert_eq!(profile.expected_costs().count(), profile.costs.len(), "a route is not known");
            assert_eq!(of_version(&format!("{}.7", profile.ray)), (profile, Fit::Exact));
        }
        assert!(PROFILES.is_sorted_by_key(|profile| profile.minor));
    }

    #[test]
    fn a_version_takes_the_newest_profile_that_is_not_newer() {
        for (version, ray, fit) in [
            ("2.9.3", "2.9", Fit::Exact),
            ("2.30.0", "2.9", Fit::Between),
            ("2.44.1", "2.44", Fit::Exact),
            ("2.52.1", "2.44", Fit::Between),
            ("2.59.0", "2.53", Fit::Between),
            ("2.60.0", "2.60", Fit::Exact),
            ("2.60.0rc1", "2.60", Fit::Exact),
            ("2.61.0", "2.60", Fit::Newer),
            ("3.0.0.dev0", "2.60", Fit::Newer),
            ("2.8.1", "2.9", Fit::Unknown),
            ("1.13.0", "2.9", Fit::Unknown),
            ("", "2.9", Fit::Unknown),
            ("nightly", "2.9", Fit::Unknown),
        ] {
            let (profile, found) = of_version(version);
            assert_eq!((profile.ray, found), (ray, fit), "{version}");
        }
    }

    #[test]
    fn a_head_that_does_not_tell_its_version_is_known_by_its_processes() {
        let reads = |has: &'static [&'static str]| Profile::of_signals(move |name| has.contains(&name));
        assert_eq!(reads(&[]), None);
        let old = reads(&["dashboard_cpu"]).unwrap();
        assert_eq!((old.ray, old.one_process), ("2.44", Modules::ALL));
        assert_eq!(Profile::of_signals(|_| true), Some(*newest()));
    }

    #[test]
    fn a_module_without_a_process_of_its_name_shares_the_dashboards_and_the_others_keep_theirs() {
        let found = Profile::of_signals(|name| name != "state_head_cpu" && name != "node_head_cpu").unwrap();
        assert_eq!(found.one_process.names().collect::<Vec<_>>(), ["StateHead", "NodeHead"]);
        assert!(found.lacks("state_head_cpu") && !found.lacks("job_head_cpu"));
        assert!(
            found.says().starts_with("StateHead, NodeHead share the dashboard's process"),
            "{}",
            found.says()
        );
        let shaped = found.shape(&policy());
        let dashboard = module_of(&shaped, "state-heavy");
        assert!(dashboard.shared && *dashboard.name == *DASHBOARD, "{dashboard:?}");
        let jobs = module_of(&shaped, "job-list");
        assert!(!jobs.shared && &*jobs.name == "JobHead", "{jobs:?}");
    }

    #[test]
    fn modules_of_one_process_are_one_module_and_all_else_stays() {
        let before = policy();
        assert!(newest().shape(&before).modules.iter().all(|module| !module.shared));
        for profile in PROFILES {
            let shaped = profile.shape(&before);
            for (class, was) in shaped.classes.iter().zip(&before.classes) {
                let module = &*before.modules[was.module.index()].name;
                let shares = profile.one_process.names().any(|name| name == module);
                let expected = if shares { DASHBOARD } else { module };
                assert_eq!(&*shaped.modules[class.module.index()].name, expected, "{}", class.name);
                assert_eq!((class.in_flight, class.priority), (was.in_flight, was.priority));
            }
        }
        assert!(of_version("2.53.0").0.shape(&before).modules.iter().all(|module| !module.shared));
        let old = oldest().shape(&before);
        assert_eq!(module_of(&old, "job-list").in_flight, SHARED);
        assert_eq!(&*module_of(&old, "serve").name, "Serve");
        assert_eq!(&*module_of(&old, "agent-submit").name, "JobAgent");
        let limited = |class: &&crate::policy::Class| {
            class.treatment == Treatment::Limited && class.kind == Kind::Unary && !class.awaits
        };
        for class in old.classes.iter().filter(limited) {
            assert!(
                class.in_flight.initial <= old.modules[class.module.index()].in_flight.max,
                "{}",
                class.name
            );
        }
    }

    #[test]
    fn a_flood_that_is_there_before_anything_is_learnt_is_let_in_one_by_one() {
        let policy = oldest().shape(&policy());
        let table = LimitTable::initial(&policy);
        let ask = |path: &str, address| {
            let place = ROUTES.iter().position(|route| route.path == path && route.method == "GET").unwrap();
            let class = policy.classes.iter().position(|class| *class.name == *ROUTES[place].class).unwrap();
            Ask {
                class: ClassId(u8::try_from(class).unwrap()),
                route: RouteId::of_ray(place).0,
                client: ClientId { address, credential: None },
            }
        };
        let flood: Vec<Ask> = (0..10)
            .flat_map(|address| {
                ["/api/v0/tasks", "/api/jobs/", "/api/v0/actors"].map(|path| ask(path, address))
            })
            .collect();
        let let_in = |expected: bool| {
            let admission = AdmissionController::<u64>::new(&policy, &table, Time::ZERO);
            if expected {
                oldest().expected_costs().for_each(|(route, cost)| admission.costs().expect(route, cost));
            }
            let decide = |ask: &Ask| admission.decide(&table, *ask, Time::ZERO, || 0, &mut |_, _| ());
            flood.iter().map(decide).filter(|decision| matches!(decision, Decision::Admit(_))).count()
        };
        assert_eq!((let_in(true), let_in(false)), (1, 14));
    }

    #[test]
    fn a_module_whose_limits_the_file_changes_keeps_them() {
        let mut policy = policy();
        for name in ["StateHead", DASHBOARD] {
            policy.modules.iter_mut().find(|module| &*module.name == name).unwrap().apart = true;
        }
        let shaped = oldest().shape(&policy);
        assert_eq!(&*module_of(&shaped, "state-heavy").name, "StateHead");
        let dashboard = module_of(&shaped, "job-list");
        assert_eq!((&*dashboard.name, dashboard.in_flight.initial), (DASHBOARD, 32.0));
    }
}
