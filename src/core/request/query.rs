//! Which part of a query does Ray read?
//!
//! A handler of Ray's reads a few keys by name and never sees the rest: `/api/jobs/?r=1` and
//! `/api/jobs/?r=2` are one question. `READ_KEYS` says which keys each route reads, over all Ray
//! versions from [`VERSIONS`]; `tests/fixtures/ray/query.txt` is the same table, and `tests/ray/test_query.py`
//! compares it with the handlers of the installed Ray and asks a real head both ways.
//!
//! **Two queries are one question** ([`question`]) if each key that is read has the same values: the first,
//! where the handler takes one (`query.get`), or all in their order, where it takes a list
//! (`query.getall`). Keys and values are decoded once, as Ray does (`%XX`, and `+` for a space), so that one
//! value has one form. The order of different keys, and every other key, is nothing to Ray.
//!
//! **What stays apart.** A pair with a byte that is not printable ASCII, or with a `;` that old Pythons read as
//! `&` and that would then name a key that is read, stands as sent. A query of more than [`FIELDS_MAX`]
//! pairs is another question than one of fewer: newer heads refuse it where a handler reads any key, and where none is
//! read they do not count. That of a route that has no entry here is not looked at.

use crate::request::path::normalise;
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// The Ray versions `2.MINOR` for which `READ_KEYS` holds.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 9..=60;

/// aiohttp 3.14 answers 400 to more pairs than this.
pub const FIELDS_MAX: usize = 1000;

/// What a route's handler reads of its query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadKeys {
    /// The route's pattern.
    pub path: &'static str,
    /// Keys of which it takes the first value.
    pub first: &'static [&'static str],
    /// Keys of which it takes all values.
    pub all: &'static [&'static str],
}

const fn reads(path: &'static str, first: &'static [&'static str]) -> ReadKeys {
    ReadKeys { path, first, all: &[] }
}
const fn lists(path: &'static str) -> ReadKeys {
    ReadKeys { path, first: &["detail", "exclude_driver", "limit", "timeout"], all: FILTERS }
}
const fn summarizes(path: &'static str) -> ReadKeys {
    ReadKeys { path, first: &["summary_by", "timeout"], all: FILTERS }
}

/// Repeated once for each filter.
const FILTERS: &[&str] = &["filter_keys", "filter_predicates", "filter_values"];

/// Of a log, and of a log that is followed.
const LOG: &[&str] = &[
    "actor_id",
    "attempt_number",
    "download_filename",
    "filename",
    "filter_ansi_code",
    "format",
    "interval",
    "lines",
    "node_id",
    "node_ip",
    "pid",
    "submission_id",
    "suffix",
    "task_id",
    "timeout",
];

/// Of a profile of a process's memory.
const MEMORY: &[&str] = &[
    "attempt_number",
    "duration",
    "format",
    "ip",
    "leaks",
    "native",
    "node_id",
    "pid",
    "task_id",
    "trace_python_allocators",
];

/// Of a profile of what a process does with the CPU.
const TASK_CPU: &[&str] =
    &["attempt_number", "duration", "format", "idle", "native", "node_id", "subprocesses", "task_id"];
const WORKER_CPU: &[&str] = &["duration", "format", "idle", "ip", "native", "node_id", "pid", "subprocesses"];

/// The routes of the dashboard and the agent that are asked with `GET`, by path; those asked in another way read
/// no query at all. `nocache` belongs to Ray's own cache of two
/// seconds.
pub(crate) const READ_KEYS: &[ReadKeys] = &[
    reads("/", &[]),
    reads("/api/actors/kill", &["actor_id", "force_kill", "no_restart"]),
    reads("/api/authentication_mode", &[]),
    reads("/api/cluster_status", &["format"]),
    reads("/api/component_activities", &["timeout"]),
    reads("/api/data/datasets", &[]),
    reads("/api/data/datasets/{job_id}", &[]),
    reads("/api/gcs_healthz", &[]),
    reads("/api/grafana_health", &[]),
    reads("/api/healthz", &[]),
    reads("/api/job_agent/jobs/{job_or_submission_id}/logs", &[]),
    reads("/api/job_agent/jobs/{job_or_submission_id}/logs/tail", &[]),
    reads("/api/jobs/", &[]),
    reads("/api/jobs/{job_or_submission_id}", &[]),
    reads("/api/jobs/{job_or_submission_id}/logs", &[]),
    reads("/api/jobs/{job_or_submission_id}/logs/tail", &[]),
    reads("/api/local_raylet_healthz", &[]),
    reads("/api/packages/{protocol}/{package_name}", &[]),
    reads("/api/profiling_enabled", &[]),
    reads("/api/prometheus/sd", &[]),
    reads("/api/prometheus_health", &[]),
    reads("/api/ray/version", &[]),
    reads("/api/serve/applications/", &["api_type"]),
    reads("/api/train/runs", &[]),
    reads("/api/train/v2/runs", &[]),
    reads("/api/train/v2/runs/v1", &[]),
    lists("/api/v0/actors"),
    summarizes("/api/v0/actors/summarize"),
    lists("/api/v0/cluster_events"),
    reads("/api/v0/cluster_metadata", &[]),
    reads("/api/v0/delay/{delay_s}", &[]),
    lists("/api/v0/jobs"),
    reads("/api/v0/logs", &["glob", "node_id", "node_ip", "timeout"]),
    reads("/api/v0/logs/stream", LOG),
    reads("/api/v0/logs/{media_type}", LOG),
    lists("/api/v0/nodes"),
    lists("/api/v0/objects"),
    summarizes("/api/v0/objects/summarize"),
    lists("/api/v0/placement_groups"),
    reads("/api/v0/platform_events", &["nocache"]),
    reads("/api/v0/runtime_env_redaction", &[]),
    lists("/api/v0/runtime_envs"),
    lists("/api/v0/tasks"),
    summarizes("/api/v0/tasks/summarize"),
    reads("/api/v0/tasks/timeline", &["download", "job_id"]),
    lists("/api/v0/workers"),
    reads("/api/version", &[]),
    reads("/cluster_id", &[]),
    reads("/events", &["job_id", "nocache"]),
    reads("/favicon.ico", &[]),
    reads("/internal/node_module", &[]),
    reads("/logical/actors", &["ids", "nocache"]),
    reads("/logical/actors/{actor_id}", &["nocache"]),
    reads("/memory_profile", MEMORY),
    reads("/nodes", &["nocache", "view"]),
    reads("/nodes/{node_id}", &["nocache"]),
    reads("/task/cpu_profile", TASK_CPU),
    reads("/task/traceback", &["attempt_number", "native", "node_id", "subprocesses", "task_id"]),
    reads("/test/dump", &["key"]),
    reads("/timezone", &[]),
    reads("/usage_stats_enabled", &[]),
    reads("/worker/cpu_profile", WORKER_CPU),
    reads("/worker/gpu_profile", &["ip", "node_id", "num_iterations", "pid"]),
    reads("/worker/jax_profile", &["duration", "ip", "node_id", "pid", "port"]),
    reads("/worker/traceback", &["ip", "native", "node_id", "pid", "subprocesses"]),
];

/// What the dashboard's route of this pattern reads, if that is known.
pub fn read_keys(pattern: &str) -> Option<&'static ReadKeys> {
    READ_KEYS.binary_search_by(|known| known.path.cmp(pattern)).ok().map(|at| &READ_KEYS[at])
}

/// Whether `READ_KEYS` holds for this version of Ray, as `/api/version` names it.
pub fn holds_for(ray_version: &str) -> bool {
    let mut numbers = ray_version.split('.');
    let major = numbers.next() == Some("2");
    let minor = numbers.next().and_then(|minor| minor.parse().ok());
    // A build from a branch (`2.60.0.dev0`, `2.60.0rc1`) may be anything.
    let patch =
        numbers.next().is_some_and(|patch| !patch.is_empty() && patch.bytes().all(|b| b.is_ascii_digit()));
    major && patch && numbers.next().is_none() && minor.is_some_and(|minor| VERSIONS.contains(&minor))
}

/// The part of `query` that a handler reads, in a form of its own: equal forms get equal answers.
pub fn question(query: &str, keys: &ReadKeys) -> Vec<u8> {
    let mut form = Vec::new();
    if query.is_empty() {
        return form;
    }
    let reads_any = !(keys.first.is_empty() && keys.all.is_empty());
    if reads_any && query.split('&').count() > FIELDS_MAX {
        push(&mut form, "&", b"more");
    }
    let pairs: Vec<Pair> = query.split('&').filter(|piece| !piece.is_empty()).map(Pair::of).collect();
    for name in keys.first {
        if let Some(value) = pairs.iter().find_map(|pair| pair.value_of(name)) {
            push(&mut form, name, &value);
        }
    }
    for name in keys.all {
        for value in pairs.iter().filter_map(|pair| pair.value_of(name)) {
            push(&mut form, name, &value);
        }
    }
    let is_read = |name: &[u8]| keys.first.iter().chain(keys.all).any(|read| read.as_bytes() == name);
    for piece in pairs.iter().filter_map(|pair| pair.as_sent(is_read)) {
        push(&mut form, "", piece.as_bytes());
    }
    form
}

/// Whether a path as sent is this literal pattern to both of the dashboard's routers.
pub fn is_path(sent: &str, pattern: &str) -> bool {
    sent == pattern
        || (!sent.contains("//") && {
            let normal = normalise(sent);
            normal.resolved.is_none() && normal.path == pattern
        })
}

/// One `key=value`, or what stands for it.
struct Pair<'a> {
    sent: &'a str,
    name: Cow<'a, [u8]>,
    value: &'a str,
}

impl<'a> Pair<'a> {
    fn of(sent: &'a str) -> Pair<'a> {
        let (name, value) = sent.split_once('=').unwrap_or((sent, ""));
        Pair { sent, name: decode(name), value }
    }

    fn value_of(&self, name: &str) -> Option<Cow<'a, [u8]>> {
        (*self.name == *name.as_bytes()).then(|| decode(self.value))
    }

    /// The pair as it was sent, where Ray may read it in a way of its own.
    fn as_sent(&self, is_read: impl Fn(&[u8]) -> bool) -> Option<&'a str> {
        let plain = self.sent.bytes().all(|byte| byte.is_ascii_graphic());
        let mut parts = self.sent.split(';');
        let names_one = self.sent.contains(';')
            && parts.any(|part| is_read(&decode(part.split_once('=').map_or(part, |(name, _)| name))));
        (!plain || names_one).then_some(self.sent)
    }
}

/// Adds a value in a form that runs into no other.
fn push(form: &mut Vec<u8>, name: &str, value: &[u8]) {
    form.extend_from_slice(name.as_bytes());
    form.push(b'=');
    form.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
    form.extend_from_slice(value);
}

/// Escapes decoded once, and `+` as a space; what is no escape stays.
fn decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text.as_bytes());
    }
    Cow::Owned(percent_decode_str(&text.replace('+', " ")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::catalogue::{ROUTES, Surface};
    use proptest::prelude::*;

    fn asks(path: &str, query: &str) -> Vec<u8> {
        question(query, read_keys(path).unwrap())
    }

    #[test]
    fn what_ray_ignores_and_the_order_of_keys_split_nothing() {
        let (jobs, tasks) = ("/api/jobs/", "/api/v0/tasks");
        for (path, one, other) in [
            (jobs, "", "r=1"),
            (jobs, "r=2&r=3", "%72=x&&=&limit=5"),
            (tasks, "limit=100&detail=1", "detail=1&r=9&limit=100"),
            (tasks, "limit=1%30&x", "lim%69t=10"),
            (tasks, "filter_values=a+b", "filter_values=a%20b"),
            (tasks, "limit=5&limit=6", "limit=5&limit=7"),
            (
                tasks,
                "filter_keys=a&filter_values=1&filter_keys=b",
                "filter_keys=a&filter_keys=b&filter_values=1",
            ),
            (tasks, "limit", "limit="),
            (tasks, "a;b=1", "a;b=2"),
        ] {
            assert_eq!(asks(path, one), asks(path, other), "{one} {other}");
        }
    }

    #[test]
    fn what_ray_reads_tells_two_questions_apart() {
        for (one, other) in [
            ("", "limit=1"),
            ("limit=1", "limit=10"),
            ("limit=5&limit=6", "limit=6&limit=5"),
            ("filter_keys=a&filter_keys=b", "filter_keys=b&filter_keys=a"),
            ("filter_keys=a&filter_keys=b", "filter_keys=a"),
            ("filter_keys=a", "filter_values=a"),
            ("filter_keys=a&filter_values=b", "filter_keys=b&filter_values=a"),
            ("filter_values=%26", "filter_values=%2526"),
            ("filter_values=%FF", "filter_values=%FE"),
            ("filter_values=%zz", "filter_values=zz"),
            ("limit", ""),
            ("a;limit=1", "a;limit=2"),
            ("r=\u{e9}", "r=\u{e8}"),
        ] {
            assert_ne!(asks("/api/v0/tasks", one), asks("/api/v0/tasks", other), "{one} {other}");
        }
    }

    #[test]
    fn more_pairs_than_a_newer_ray_takes_make_one_other_question_where_any_key_is_read() {
        let (few, many) = ("a&".repeat(FIELDS_MAX - 1), "a&".repeat(FIELDS_MAX));
        assert_eq!(asks("/api/jobs/", &many), asks("/api/jobs/", ""));
        let tasks = |query: &str| asks("/api/v0/tasks", query);
        assert_eq!(tasks(&few), tasks(""));
        assert_ne!(tasks(&many), tasks(""));
        assert_eq!(tasks(&many), tasks(&format!("{many}&r=1")));
        assert_ne!(tasks(&many), tasks(&format!("{many}&limit=1")));
    }

    #[test]
    fn a_path_is_a_pattern_only_where_both_of_rays_routers_say_so() {
        assert!(is_path("/api/jobs/", "/api/jobs/") && is_path("/api/j%6Fbs/", "/api/jobs/"));
        for other in
            ["/api/jobs", "/api//jobs/", "/api/jobs/.", "/x/../api/jobs/", "/api/%2561", "/api/Jobs/"]
        {
            assert!(!is_path(other, "/api/jobs/"), "{other}");
        }
    }

    #[test]
    fn the_table_holds_for_the_versions_it_was_read_from() {
        for (version, holds) in [
            ("2.9.3", true),
            ("2.60.0", true),
            ("2.61.0", false),
            ("2.8.1", false),
            ("3.0.0", false),
            ("2.60.0.dev0", false),
            ("2.60.0rc1", false),
            ("2.60", false),
            ("", false),
        ] {
            assert_eq!(holds_for(version), holds, "{version}");
        }
    }

    #[test]
    fn every_route_that_is_asked_with_get_has_an_entry_and_none_is_of_another_route() {
        assert!(READ_KEYS.is_sorted_by(|a, b| a.path < b.path));
        assert!(READ_KEYS.iter().all(|keys| keys.first.is_sorted() && keys.all.is_sorted()));
        let gets =
            || ROUTES.iter().filter(|route| route.surface == Surface::Dashboard && route.method == "GET");
        // Files have no handler that could be looked at.
        for route in gets().filter(|route| route.path != "/static/{*file}") {
            assert!(read_keys(route.path).is_some(), "{}", route.path);
        }
        for keys in READ_KEYS {
            assert!(gets().any(|route| route.path == keys.path), "{}", keys.path);
        }
    }

    #[test]
    fn the_table_is_the_one_that_is_compared_with_rays_handlers() {
        let listed = include_str!("../../../tests/fixtures/ray/query.txt");
        let ours: Vec<String> = READ_KEYS
            .iter()
            .map(|keys| {
                let all = keys.all.iter().map(|name| format!("{name}*"));
                let names = keys.first.iter().map(ToString::to_string).chain(all);
                std::iter::once(keys.path.to_owned()).chain(names).collect::<Vec<_>>().join(" ")
            })
            .collect();
        assert_eq!(listed.lines().collect::<Vec<_>>(), ours);
    }

    /// The meaning of a query to a handler, the slow way.
    fn meaning(query: &str, keys: &ReadKeys) -> Vec<Vec<Vec<u8>>> {
        let values = |name: &str| -> Vec<Vec<u8>> {
            let pairs = query.split('&').map(|piece| piece.split_once('=').unwrap_or((piece, "")));
            pairs
                .filter(|(key, _)| *decode(key) == *name.as_bytes())
                .map(|pair| decode(pair.1).into_owned())
                .collect()
        };
        let first = keys.first.iter().map(|name| values(name).into_iter().take(1).collect());
        first.chain(keys.all.iter().map(|name| values(name))).collect()
    }

    fn query() -> impl Strategy<Value = String> {
        let word = prop_oneof![
            Just("limit"),
            Just("filter_keys"),
            Just("%66ilter_keys"),
            Just("r"),
            Just(""),
            Just("="),
            Just("+"),
            Just("%3"),
        ];
        let value = prop_oneof![Just("1"), Just("%31"), Just("2"), Just(""), Just("=="), Just("%26")];
        prop::collection::vec((word, value), 0..6).prop_map(|pairs| {
            pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
        })
    }

    proptest! {
        #[test]
        fn queries_are_one_question_exactly_if_a_handler_cannot_tell_them_apart(one in query(), other in query()) {
            let keys = read_keys("/api/v0/tasks").unwrap();
            let same = meaning(&one, keys) == meaning(&other, keys);
            prop_assert_eq!(question(&one, keys) == question(&other, keys), same, "{} {}", one, other);
        }
    }
}
