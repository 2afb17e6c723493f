//! What holds when the file is silent, where it takes more than a value beside the key.
//!
//! Classes, modules and routes come from `core::request::catalogue`, signals from
//! `core::signal::catalogue`; both argue for their numbers there; how the loop steps, from
//! `core::policy::Control`. All else stands in `keys`.

use std::net::{Ipv4Addr, SocketAddr};

use super::scalars::{Address, Upstream};
use rayguard_core::policy::{Class, Law, Module, Signal, SignalId};
use rayguard_core::request::catalogue;
use rayguard_core::signal::catalogue::{SIGNALS, SignalDefault};

/// Ray's dashboard on the head itself.
pub(super) fn upstream() -> Upstream {
    Upstream { host: "127.0.0.1".into(), port: 8265 }
}
/// Beside Ray's own port, so that a first try disturbs nothing.
pub(super) fn listen() -> Address {
    Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8266)))
}
/// Loopback: the page and the metrics name no one, but a change is a change.
pub fn admin() -> Address {
    Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 9465)))
}
/// Relative to the working directory; deployments say better.
pub const STATE_DIR: &str = "rayguard-state";
/// Where Ray lists its metrics targets on the head.
pub(crate) const DISCOVERY_FILE: &str = "/tmp/ray/prom_metrics_service_discovery.json";
/// Passes the parent loop and ReportHead, and asks the GCS: public, 1 to 4 ms.
pub(crate) const PROBE_PATH: &str = "/api/gcs_healthz";
/// The law of custom classes: integral on log(limit), SIMC gain.
pub(crate) const LAW: Law = Law::Pid { kp: 0.0, ki: None, kd: 0.0 };
/// What oauth2-proxy and its kin set; believed from trusted proxies alone.
pub(crate) const IDENTITY_HEADERS: &[&str] = &["x-client-id", "x-forwarded-user", "x-auth-request-user"];
pub use rayguard_core::request::agents::{AGENTS, HEADER as AGENT_HEADER};

/// The built-in modules.
pub fn modules() -> Vec<Module> {
    catalogue::modules()
}

/// The built-in classes over `signals`.
pub fn classes(signals: &[Signal]) -> Vec<Class> {
    let place = |name: &str| {
        let place = signals.iter().position(|signal| &*signal.name == name)?;
        u8::try_from(place).ok().map(SignalId)
    };
    let mut classes = catalogue::classes(place);
    for (class, default) in classes.iter_mut().zip(catalogue::CLASSES) {
        if default.signals.is_empty() {
            class.signals = followed(&class.name).iter().filter_map(|name| place(name)).collect();
        }
    }
    classes
}

/// The signals of a class for which the catalogue names none. What lists and parses much
/// follows the GCS and the head's CPU; what reads or keeps whole files follows its memory.
/// What operators and Ray's own agents need follows nothing: it must work best when the head
/// is worst, and only its own latency at the proxy moves it.
fn followed(class: &str) -> &'static [&'static str] {
    match class {
        "state-heavy" | "state-light" | "task-query" | "job-list" => &["gcs_latency", "head_cpu"],
        "views" | "views-report" => &["head_cpu"],
        "packages" => &["head_memory", "gcs_latency"],
        "job-logs" | "state-logs" | "agent-logs" => &["head_memory", "head_cpu"],
        _ => &[],
    }
}

/// The built-in signals.
pub fn signals() -> Vec<Signal> {
    SIGNALS.iter().map(SignalDefault::signal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_that_a_class_follows_exists() {
        let signals = signals();
        let known: Vec<&str> = signals.iter().map(|signal| &*signal.name).collect();
        for class in catalogue::CLASSES {
            for name in class.signals.iter().chain(followed(class.name)) {
                assert!(known.contains(name), "{}: {name}", class.name);
            }
        }
    }

    #[test]
    fn what_operators_need_follows_no_reading_of_a_sick_head() {
        for class in classes(&signals()) {
            if class.priority.0 >= 8 {
                assert!(class.signals.is_empty(), "{}", class.name);
            }
        }
    }
}
